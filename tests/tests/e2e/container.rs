//! The image of `systemd/packaging/Containerfile`, built from a tarball and run with the sockets' directory mounted.

use std::fs;
use std::os::unix::fs::chown;
use std::path::Path;
use std::process::Command;

use tempfile::TempDir;
use tokend_tests::process::Finished;
use tokend_tests::test_support::{Scene, token_table};
use tokend_tests::{Answer, Provider, process, requirement, secrets, wait};

use crate::packaging::build_package;

/// Runs buildah, which keeps images and containers in this directory and needs no service and no network.
fn buildah(storage: &Path, args: &[&str]) -> Finished {
    let mut command = Command::new("buildah");
    command.arg("--root").arg(storage.join("root")).arg("--runroot").arg(storage.join("run"));
    command.args(["--storage-driver", "vfs"]).args(args).env("BUILDAH_ISOLATION", "chroot");
    process::run(&mut command, wait::PATIENCE)
}

#[test]
fn a_container_of_the_image_gets_the_token_of_its_user_and_no_other() {
    if !(requirement::program("buildah") && requirement::root()) {
        return;
    }
    let (folder, token) = (TempDir::new().unwrap(), secrets::invent("access-token"));
    let tarball = build_package("tarball", &folder);
    let context = folder.path().join("unpacked");
    fs::create_dir(&context).unwrap();
    let mut unpack = Command::new("tar");
    unpack.arg("-xf").arg(tarball).arg("--strip-components=1").arg("-C").arg(&context);
    process::run(&mut unpack, wait::PATIENCE).expect_success();
    let recipe = context.join("systemd/packaging/Containerfile");
    let build = ["build", "--tag", "tokenctl", "--file", recipe.to_str().unwrap(), context.to_str().unwrap()];
    buildah(folder.path(), &build).expect_success();
    let container = buildah(folder.path(), &["from", "--pull-never", "localhost/tokenctl"]).expect_success();

    let issued = token.clone();
    let provider = Provider::start_answering(move |_| Answer::this_token(&issued, 3600));
    let tokens =
        token_table("its", "allow = [\"user:10001\"]") + &token_table("other", "allow = [\"user:10002\"]");
    let scene = Scene::start(provider, &tokens);
    // As a container engine does with `--group-add`: the user of the image has the group of the socket.
    chown(scene.socket(), None, Some(10001)).unwrap();
    let directory = scene.socket().parent().unwrap().display();
    let volume = format!("{directory}:/run/tokend:ro");
    let socket = Path::new("/run/tokend").join(scene.socket().file_name().unwrap());
    let get = |name: &str| {
        let run = ["run", "--volume", &volume, container.trim(), "--", "/usr/bin/tokenctl", "--socket"];
        buildah(folder.path(), &[&run[..], &[socket.to_str().unwrap(), "get", name]].concat())
    };
    assert_eq!(get("its").expect_success().trim(), token);
    let refused = get("other");
    assert!(refused.code != 0 && refused.stderr.contains("other"), "{refused:?}");
    buildah(folder.path(), &["rm", "--all"]).expect_success();
}
