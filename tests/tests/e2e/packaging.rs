//! What `systemd/install` installs, as a packager runs it, and the packages of it.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};
use tempfile::TempDir;
use tokend_tests::{package, process, program, requirement, wait};

const FILES: &[&str] = &[
    "usr/bin/tokend",
    "usr/bin/tokenctl",
    "usr/bin/tokend-proxy",
    "usr/lib/debug/usr/bin/tokend.debug",
    "usr/lib/systemd/system/tokend.service",
    "usr/lib/systemd/system/tokend.socket",
    "usr/lib/systemd/system/tokend-metrics.service",
    "usr/lib/systemd/system/tokend-proxy@.service",
    "usr/lib/systemd/system/tokend-sync@.service",
    "usr/lib/systemd/system-generators/tokend-generator",
    "usr/lib/sysusers.d/tokend.conf",
    "usr/lib/tmpfiles.d/tokend.conf",
    "usr/lib/tokend/257-fdstore.conf",
    "usr/share/doc/tokend/prometheus/tokend.dashboard.json",
    "usr/share/doc/tokend/prometheus/tokend.rules.yml",
    "usr/share/doc/tokend/CHANGELOG.md",
    "usr/share/doc/tokend/CONFIGURATION.md",
    "usr/share/doc/tokend/LICENSE-MIT",
    "usr/share/doc/tokend/README.md",
    "usr/share/doc/tokend/SECURITY.md",
    "usr/share/doc/tokend/tokend.schema.json",
    "usr/share/doc/tokend/tokend.toml",
    "usr/share/man/man1/tokenctl.1",
    "usr/share/man/man1/tokenctl-get.1",
    "usr/share/man/man1/tokend-proxy.1",
    "usr/share/man/man5/tokend.toml.5",
    "usr/share/man/man7/tokend-protocol.7",
    "usr/share/man/man8/tokend.8",
    "usr/share/bash-completion/completions/tokenctl",
    "usr/share/fish/vendor_completions.d/tokenctl.fish",
    "usr/share/zsh/site-functions/_tokenctl",
];

fn install(tree: &Path, prefix: &str) {
    let mut install = Command::new(program::workspace().join("systemd/install"));
    install.env("DESTDIR", tree).env("PREFIX", prefix).env("TARGET_DIR", program::tokend().parent().unwrap());
    process::run(&mut install, wait::PATIENCE).expect_success();
}

#[test]
fn a_package_has_all_programs_units_and_documents() {
    let tree = TempDir::new().unwrap();
    install(tree.path(), "/usr");
    let missing: Vec<&str> = FILES.iter().copied().filter(|file| !tree.path().join(file).exists()).collect();
    assert_eq!(missing, [""; 0]);
    for program in ["tokend", "tokenctl", "tokend-proxy"] {
        let installed = tree.path().join("usr/bin").join(program);
        process::run(Command::new(&installed).arg("--version"), wait::PATIENCE).expect_success();
        let built = fs::metadata(program::tokend().with_file_name(program)).unwrap().len();
        assert!(fs::metadata(installed).unwrap().len() < built, "{program} has its debug information");
    }
}

/// The pages that are made of documents. The spaces between words are those of the terminal.
fn page(tree: &Path, file: &str) -> String {
    let mut groff = Command::new("groff");
    groff.args(["-man", "-ww", "-Tutf8", "-P-c", "-rLL=1000n"]).arg(tree.join("usr/share/man").join(file));
    let shown = process::run(&mut groff, wait::PATIENCE);
    assert_eq!((shown.code, shown.stderr.as_str()), (0, ""), "{file}");
    // Bold text is a character, a backspace and the character.
    let text: Vec<char> = shown.stdout.chars().collect();
    let kept = |at: &usize| text[*at] != '\u{8}' && text.get(at + 1) != Some(&'\u{8}');
    let text: String = (0..text.len()).filter(kept).map(|at| text[at]).collect();
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[test]
fn the_man_pages_of_documents_say_what_the_documents_say() {
    if !requirement::program("groff") {
        return;
    }
    let tree = TempDir::new().unwrap();
    install(tree.path(), "/usr");
    let configuration = page(tree.path(), "man5/tokend.toml.5");
    for part in [
        "tokend.toml - configuration of tokend",
        "[daemon] socket default: \"/run/tokend/tokend.sock\". Path of the socket, at most 107 bytes.",
        "client_secret = { credential = \"bnp.secret\" }",
        "TOML <https://toml.io/en/v1.0.0>",
        "Without it nothing is written to a disk egress_dir",
    ] {
        assert!(configuration.contains(part), "{part}");
    }
    let protocol = page(tree.path(), "man7/tokend-protocol.7");
    for part in [
        "fingerprint made of: 8 × u8, no length.",
        "u8 one byte bool 00 false, 01 true; other values are invalid",
    ] {
        assert!(protocol.contains(part), "{part}");
    }
}

#[test]
fn an_installation_below_another_prefix_refers_to_its_own_paths() {
    let tree = TempDir::new().unwrap();
    install(tree.path(), "/opt/tokend");
    let units = tree.path().join("opt/tokend/lib/systemd/system");
    let service = fs::read_to_string(units.join("tokend.service")).unwrap();
    assert!(service.contains("ExecStart=/opt/tokend/bin/tokend --config"));
    assert!(!service.contains("/usr/bin/tokend") && !service.contains("/usr/share/doc/tokend"));
    let example = fs::read_to_string(tree.path().join("opt/tokend/share/doc/tokend/tokend.toml")).unwrap();
    assert!(example.starts_with("#:schema /opt/tokend/share/doc/tokend/tokend.schema.json\n"), "{example}");
    for unit in ["tokend-metrics.service", "tokend-sync@.service"] {
        let unit = fs::read_to_string(units.join(unit)).unwrap();
        assert!(
            unit.contains("ExecStart=/opt/tokend/bin/tokenctl ") && !unit.contains("/usr/bin/token"),
            "{unit}"
        );
    }
}

/// The drop-ins that the generator adds to the service for a version of systemd.
fn drop_ins(version: &str) -> Vec<String> {
    let folder = TempDir::new().unwrap();
    let programs = folder.path().join("programs");
    fs::create_dir(&programs).unwrap();
    let script = |name: &str, text: &str| {
        fs::write(folder.path().join(name), text).unwrap();
        program::copy(&folder.path().join(name), &programs.join(name));
    };
    script("systemctl", &format!("#!/bin/sh\necho 'systemd {version}'\necho +PAM\n"));
    let sources = program::workspace().join("systemd");
    let generator = fs::read_to_string(sources.join("tokend-generator")).unwrap();
    let source = sources.join("tokend.service.d");
    script("tokend-generator", &generator.replace("/usr/lib/tokend", source.to_str().unwrap()));

    let units = folder.path().join("units");
    let mut generator = Command::new(programs.join("tokend-generator"));
    generator.arg(&units).env("PATH", format!("{}:/usr/bin:/bin", programs.display()));
    process::run(&mut generator, wait::PATIENCE).expect_success();
    let Ok(added) = fs::read_dir(units.join("tokend.service.d")) else { return Vec::new() };
    let mut added: Vec<String> =
        added.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    added.sort();
    added
}

#[test]
fn the_generator_adds_what_the_version_of_systemd_is_new_enough_for() {
    let since_253 = ["253-notify-reload.conf", "253-swap.conf"];
    assert_eq!(drop_ins("252 (252.38-1~deb12u1)"), [""; 0]);
    assert_eq!(drop_ins("253"), since_253);
    assert_eq!(drop_ins("256.4"), since_253);
    assert_eq!(drop_ins("257~rc1"), [&since_253[..], &["257-fdstore.conf"]].concat());
}

#[test]
fn lintian_has_nothing_to_say_of_the_deb() {
    if !(requirement::program("lintian") && requirement::program("dpkg-deb")) {
        return;
    }
    let folder = TempDir::new().unwrap();
    let mut lintian = Command::new("lintian");
    lintian.arg("--fail-on=warning").arg(build_package("deb", &folder));
    let checked = process::run(&mut lintian, wait::PATIENCE);
    assert_eq!((checked.code, checked.stdout.as_str()), (0, ""), "{}", checked.stderr);
}

#[test]
fn rpmlint_has_nothing_to_say_of_the_rpm() {
    if !(requirement::program("rpmlint") && requirement::program("rpmbuild")) {
        return;
    }
    let folder = TempDir::new().unwrap();
    let mut rpmlint = Command::new("rpmlint");
    rpmlint.arg("--config").arg(program::workspace().join("systemd/packaging/rpmlint.toml"));
    let checked = process::run(rpmlint.arg(build_package("rpm", &folder)), wait::PATIENCE);
    assert!(
        checked.stdout.contains("1 packages and 0 specfiles checked; 0 errors, 0 warnings"),
        "{checked:?}"
    );
}

/// Of programs without debug information, which is faster.
pub(crate) fn build_package(kind: &str, folder: &TempDir) -> PathBuf {
    let tree = folder.path().join("stripped");
    install(&tree, "/usr");
    package::build(kind, env!("CARGO_PKG_VERSION"), &tree.join("usr/bin"), folder.path())
}

/// The tarball is a part of a clone, from which `systemd/install` installs.
#[test]
fn the_tarball_can_be_installed() {
    let folder = TempDir::new().unwrap();
    let tarball = build_package("tarball", &folder);
    let mut unpack = Command::new("tar");
    unpack.arg("-xf").arg(tarball).arg("--strip-components=1").arg("-C").arg(folder.path());
    process::run(&mut unpack, wait::PATIENCE).expect_success();
    let tree = folder.path().join("tree");
    let mut install = Command::new(folder.path().join("systemd/install"));
    install.env("DESTDIR", &tree).env("PREFIX", "/usr").env_remove("CARGO_TARGET_DIR");
    process::run(&mut install, wait::PATIENCE).expect_success();
    let missing: Vec<&str> = FILES.iter().copied().filter(|file| !tree.join(file).exists()).collect();
    assert_eq!(missing, [""; 0]);
    let mut sums = Command::new("sha256sum");
    sums.args(["--check", "SHA256SUMS"]).current_dir(folder.path());
    process::run(&mut sums, wait::PATIENCE).expect_success();
}

/// The packages whose code is in a program, each as `NAME-VERSION`: the paths of their sources are in it, for panics.
fn crates_in(program: &Path) -> Vec<String> {
    let mut grep = Command::new("grep");
    grep.args([
        "--text",
        "--only-matching",
        "--extended-regexp",
        "/registry/src/[-.a-z0-9]+/[-+.a-zA-Z0-9_]+/src/",
    ]);
    let found = process::run(grep.arg(program).env("LC_ALL", "C"), wait::PATIENCE).expect_success();
    found.lines().map(|path| path.rsplit('/').nth(2).unwrap().to_owned()).collect()
}

#[test]
fn the_bill_of_materials_has_every_package_of_the_programs() {
    let folder = TempDir::new().unwrap();
    let text = fs::read_to_string(build_package("sbom", &folder)).unwrap();
    let bill: Value = serde_json::from_str(&text).unwrap();
    assert_eq!((&bill["bomFormat"], &bill["specVersion"]), (&json!("CycloneDX"), &json!("1.5")));
    let components = bill["components"].as_array().unwrap();
    let names: BTreeSet<String> = components
        .iter()
        .map(|c| format!("{}-{}", c["name"].as_str().unwrap(), c["version"].as_str().unwrap()))
        .collect();
    assert_eq!(names.len(), components.len(), "each is listed once");
    let lock = fs::read_to_string(program::workspace().join("Cargo.lock")).unwrap();
    for component in components {
        let is_ours = component["name"].as_str().unwrap().starts_with("token");
        let sum = component["hashes"][0]["content"].as_str();
        assert!(
            is_ours || sum.is_some_and(|sum| lock.contains(&format!("checksum = \"{sum}\""))),
            "{component}"
        );
        assert!(component["licenses"][0]["expression"].is_string(), "{component}");
    }
    for program in ["tokend", "tokenctl", "tokend-proxy"] {
        let linked: BTreeSet<String> =
            crates_in(&program::tokend().with_file_name(program)).into_iter().collect();
        assert!(linked.len() > 10, "{linked:?}");
        let missing: Vec<&String> = linked.difference(&names).collect();
        assert!(missing.is_empty(), "{program}: {missing:?}");
    }
}

/// `just install` runs two commands: the build must build what the script installs.
#[test]
fn just_install_builds_every_program_that_is_installed() {
    let read = |file: &str| fs::read_to_string(program::workspace().join(file)).unwrap();
    let script = read("systemd/install");
    let list = script.lines().find_map(|line| line.strip_prefix("programs=(")?.strip_suffix(')')).unwrap();
    let justfile = read("justfile");
    let build =
        justfile.lines().map(str::trim).find(|line| line.starts_with("cargo build --release")).unwrap();
    for program in list.split(' ') {
        assert!(build.contains(&format!("-p {program}")), "{build}");
    }
}

#[test]
fn the_manual_page_has_no_warning() {
    if !requirement::program("groff") {
        return;
    }
    let mut groff = Command::new("groff");
    groff.args(["-ww", "-man", "-Tutf8", "-z"]);
    groff.args(["tokend.8", "tokend-proxy.1"].map(|page| program::workspace().join("systemd").join(page)));
    let checked = process::run(&mut groff, wait::PATIENCE);
    assert_eq!((checked.code, checked.stderr.as_str()), (0, ""));
}
