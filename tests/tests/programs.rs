//! Real programs that ask `tokenctl helper` for credentials. `tests/run` installs them.

#![expect(clippy::expect_used, reason = "a panic is how a test fails")]

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use tokend_tests::test_support::{Scene, token_table};
use tokend_tests::{Finished, Provider, process, program, requirement};

const LIMIT: Duration = Duration::from_secs(120);

/// Runs `git credential`, which asks the helpers, without the settings of this machine and user.
fn git_credential(home: &Path, operation: &str, question: &str) -> Finished {
    fs::write(home.join("question"), question).expect("the question can be written");
    let mut command = Command::new("sh");
    command.args(["-c", "git credential \"$1\" <question", "sh", operation]).current_dir(home);
    command.env("HOME", home).env("GIT_CONFIG_NOSYSTEM", "1").env("GIT_TERMINAL_PROMPT", "0");
    process::run(&mut command, LIMIT)
}

#[test]
fn git_asks_for_a_token_and_reports_one_that_a_server_refuses() {
    if !requirement::program("git") {
        return;
    }
    let scene = Scene::start(Provider::start(), &token_table("t", "allow = [\"any\"]"));
    let home = scene.home.path();
    let (program, socket) = (program::tokenctl(), scene.socket());
    let helper = format!("!{} --socket {} helper git t", program.display(), socket.display());
    fs::write(
        home.join(".gitconfig"),
        format!("[credential \"https://git.example\"]\nhelper = \"{helper}\"\n"),
    )
    .expect("git can be configured");
    let token = scene.tokenctl().get("t");
    let question = "capability[]=authtype\nprotocol=https\nhost=git.example\n";

    let credential = git_credential(home, "fill", question).expect_success();
    let has = |line: String| credential.lines().any(|known| known == line);
    // Since 2.46 git sends a Bearer token.
    let is_bearer = has("authtype=Bearer".to_owned()) && has(format!("credential={token}"));
    assert!(is_bearer || has(format!("password={token}")), "{credential}");
    let elsewhere = git_credential(home, "fill", "protocol=https\nhost=other.example\n");
    assert!(elsewhere.code != 0 && elsewhere.stdout.is_empty(), "the token is for one host: {elsewhere:?}");

    git_credential(home, "approve", &credential).expect_success();
    git_credential(home, "reject", &credential).expect_success();
    let journal = fs::read_to_string(scene.home.log()).expect("the daemon's log can be read");
    assert!(journal.contains("verb=\"reject\""), "{journal}");
}
