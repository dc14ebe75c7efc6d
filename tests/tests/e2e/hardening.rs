//! What other processes can learn from the daemon's own.

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::Path;
use std::process::Command;

use nix::sys::signal::Signal;
use tokend_tests::daemon::Launch;
use tokend_tests::test_support::{provider_table, token_table};
use tokend_tests::{Provider, Scene, TestDir, program, requirement};

#[test]
fn it_never_dumps_core() {
    let scene = Scene::start(Provider::start(), &token_table("t", ""));
    let limits = fs::read_to_string(format!("/proc/{}/limits", scene.daemon.pid())).unwrap();
    let core = limits.lines().find(|line| line.starts_with("Max core file size")).unwrap();
    let figures: Vec<&str> = core.split_whitespace().collect();
    assert_eq!(figures[4..6], ["0", "0"], "{core}");
}

/// What a process leaves behind that dies of a fault in a directory of its own.
fn cores_in(directory: &Path) -> usize {
    let entries = fs::read_dir(directory).unwrap();
    entries
        .filter(|entry| entry.as_ref().is_ok_and(|entry| entry.file_name().as_bytes().starts_with(b"core")))
        .count()
}

#[test]
fn a_fault_leaves_no_core_file_where_the_host_would_make_one() {
    let pattern = fs::read_to_string("/proc/sys/kernel/core_pattern").unwrap();
    if !requirement::applies(
        "core files in the working directory (core_pattern)",
        pattern.starts_with("core"),
    ) {
        return;
    }
    let scene = TestDir::new();
    scene.configure("", "");
    let directory = scene.path().join("work");
    fs::create_dir(&directory).unwrap();
    let place = directory.to_str().unwrap();
    let within = ["env", "-C", place, "prlimit", "--core=unlimited"];
    let mut control = Command::new(within[0]);
    control.args(&within[1..]).args(["sh", "-c", "kill -ABRT $$"]);
    assert!(!control.status().unwrap().success());
    if !requirement::applies("core files of other programs", cores_in(&directory) == 1) {
        return;
    }
    let mut daemon = Launch::new(&scene).through(&within).start();
    daemon.signal(Signal::SIGABRT);
    assert_eq!(daemon.wait_for_exit(), 128 + Signal::SIGABRT as i32);
    assert_eq!(cores_in(&directory), 1, "the daemon's is there as well");
}

#[test]
fn its_own_user_cannot_look_into_its_memory() {
    const USER: u32 = 61_003;
    if !requirement::root() {
        return;
    }
    let home = TestDir::new();
    home.configure("", "");
    let copy = home.path().join("tokend");
    program::copy(&program::tokend(), &copy);
    for path in [home.path(), home.config().as_path(), &home.path().join("state")] {
        chown(path, Some(USER), Some(USER)).unwrap();
    }
    let user = ["setpriv", "--reuid=61003", "--regid=61003", "--clear-groups", "--"];
    let daemon = Launch::of(&copy, &home, "trace").through(&user).start();
    // The files in /proc of a process that may be looked into belong to its user, of others to root.
    let mut control = Command::new(user[0]).args(&user[1..]).args(["sleep", "60"]).spawn().unwrap();
    let owner = |pid: u32| fs::metadata(format!("/proc/{pid}/mem")).map(|file| file.uid()).ok();
    let control_owner = tokend_tests::wait::within(tokend_tests::wait::PATIENCE, || {
        owner(control.id()).filter(|uid| *uid == USER)
    });
    control.kill().unwrap();
    control.wait().unwrap();
    assert_eq!(control_owner, Some(USER));
    assert_eq!(owner(daemon.pid()), Some(0));
}

#[test]
fn memory_is_locked_unless_a_limit_forbids_it() {
    if !requirement::root() {
        return;
    }
    // No limit applies to root's capability, so the case with a limit gives it up.
    let cases = [
        (vec!["env"], "locked", 4096..u64::MAX),
        (
            vec!["prlimit", "--memlock=65536", "setpriv"],
            "not locked (the limit is 65536 bytes; set LimitMEMLOCK=infinity)",
            0..1,
        ),
    ];
    for (mut wrapper, told, kilobytes) in cases {
        if wrapper.ends_with(&["setpriv"]) {
            wrapper.extend(["--bounding-set=-ipc_lock", "--inh-caps=-ipc_lock"]);
        }
        let (home, provider) = (TestDir::new(), Provider::start());
        let table = provider_table(&home, "p", &provider.token_endpoint(), "");
        home.configure("", &(table + &token_table("t", "")));
        let daemon = Launch::new(&home).through(&wrapper).start();
        daemon.tokenctl().get("t");
        assert_eq!(daemon.tokenctl().json(&["status"])["daemon"]["attributes"]["memory"], told);
        let status = fs::read_to_string(format!("/proc/{}/status", daemon.pid())).unwrap();
        let locked = status.lines().find_map(|line| line.strip_prefix("VmLck:")).unwrap();
        let locked: u64 = locked.trim().trim_end_matches(" kB").parse().unwrap();
        assert!(kilobytes.contains(&locked), "{told}: {locked} KiB");
        daemon.wait_for_log(&["memory is", "locked"]);
    }
}

#[test]
fn the_socket_is_never_open_to_more_than_its_owner_and_group() {
    let home = TestDir::new();
    home.configure("", "");
    let loose = ["sh", "-c", "umask 0; exec \"$@\"", "sh"];
    let daemon = Launch::new(&home).through(&loose).spawn();
    let mut seen: Vec<u32> = Vec::new();
    // Without a pause, so that a moment of looser permissions would hardly be missed.
    let end = std::time::Instant::now() + tokend_tests::wait::PATIENCE;
    while seen.len() < 200 && std::time::Instant::now() < end {
        seen.extend(fs::metadata(home.socket()).map(|file| file.permissions().mode() & 0o777));
    }
    assert!(!seen.is_empty(), "no socket:\n{}", daemon.log());
    assert_eq!(seen.iter().fold(0, |all, mode| all | mode), 0o660);
}
