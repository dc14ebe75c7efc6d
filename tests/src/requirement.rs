//! Requirements of a test on the machine. A test that cannot run is reported: it is never skipped silently.
//!
//! `tests/run` sets `TOKEND_TESTS_SKIPPED` to a file, and prints its lines at the end.

use std::env;
use std::fs::File;
use std::io::Write;
use std::thread;

use nix::unistd::Uid;

/// Whether a requirement is met that somebody can install or arrange. Otherwise the test is reported as skipped; with
/// `CI=true` or `TOKEND_TESTS_REQUIRE_ALL=1` it fails instead.
pub fn met(what: &str, present: bool) -> bool {
    let requires_all = is_set("CI", "true") || is_set("TOKEND_TESTS_REQUIRE_ALL", "1");
    assert!(present || !requires_all, "{what}: missing, and no test may be skipped here");
    if !present {
        report("skipped", &format!("{what} is missing"));
    }
    present
}

/// Whether the test applies to this machine, as a version of systemd or a setting of the kernel decides. Otherwise the test
/// is reported as not applicable, and never fails.
pub fn applies(what: &str, present: bool) -> bool {
    if !present {
        report("not applicable", &format!("needs {what}"));
    }
    present
}

/// Whether the test runs as root, which it must to become other users.
pub fn root() -> bool {
    met("running as root", Uid::effective().is_root())
}

/// Whether a program is in `PATH`.
pub fn program(name: &str) -> bool {
    let path = env::var_os("PATH").unwrap_or_default();
    met(name, env::split_paths(&path).any(|directory| directory.join(name).is_file()))
}

fn is_set(variable: &str, value: &str) -> bool {
    env::var(variable).is_ok_and(|set| set == value)
}

#[expect(clippy::print_stderr, reason = "a skipped test must be seen by whoever reads the test run")]
fn report(kind: &str, reason: &str) {
    // The thread of a test has its name.
    let line = format!("{kind}: {}: {reason}", thread::current().name().unwrap_or("a test"));
    eprintln!("{line}");
    if let Some(path) = env::var_os("TOKEND_TESTS_SKIPPED") {
        let file = File::options().create(true).append(true).open(path);
        file.and_then(|mut file| writeln!(file, "{line}")).expect("the list of skipped tests can be written");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_test_that_does_not_apply_is_reported() {
        const VARIABLE: &str = "TOKEND_TESTS_REPORT_CHILD";
        if env::var_os(VARIABLE).is_some() {
            assert!(!applies("systemd 999", false));
            return;
        }
        let list = tempfile::NamedTempFile::new().unwrap();
        let run = std::process::Command::new(env::current_exe().unwrap())
            .args(["--exact", "requirement::tests::a_test_that_does_not_apply_is_reported"])
            .env(VARIABLE, "1")
            .env("TOKEND_TESTS_SKIPPED", list.path())
            .output()
            .unwrap();
        assert!(run.status.success());
        assert_eq!(
            std::fs::read_to_string(list.path()).unwrap(),
            "not applicable: requirement::tests::a_test_that_does_not_apply_is_reported: needs systemd 999\n"
        );
    }
}
