//! What a test needs of the machine: present, missing and skipped aloud, or missing and a failure.

use std::env;

use nix::unistd::Uid;

/// Says whether the test may go on. Where it may not, it says why on standard error; with `CI=true` or
/// `TOKEND_TESTS_REQUIRE_ALL=1` it fails instead, so that nothing is skipped unseen.
pub fn met(what: &str, present: bool) -> bool {
    if present {
        return true;
    }
    assert!(!everything_required(), "{what}: missing, and nothing may be skipped here");
    complain(what);
    false
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

fn everything_required() -> bool {
    env::var("CI").is_ok_and(|value| value == "true")
        || env::var("TOKEND_TESTS_REQUIRE_ALL").is_ok_and(|value| value == "1")
}

#[expect(clippy::print_stderr, reason = "a skipped test must be seen by whoever reads the test run")]
fn complain(what: &str) {
    eprintln!("skipped: {what} is missing");
}
