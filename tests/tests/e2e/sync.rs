//! `tokenctl sync`: a token in a file, at each rotation and while the daemon restarts.

use std::fs;
use std::process::Command;

use tokend_tests::daemon::Launch;
use tokend_tests::process::Background;
use tokend_tests::test_support::{provider_table, token_table};
use tokend_tests::{Provider, TestDir, Tokenctl, program, secrets, wait};

#[test]
fn a_file_has_each_token_also_after_a_restart_of_the_daemon() {
    let (home, provider) = (TestDir::new(), Provider::start());
    let table = provider_table(&home, "p", &provider.token_endpoint(), "");
    home.configure("", &(table + &token_table("t", "")));
    let (file, output) = (home.path().join("token"), home.path().join("sync.log"));
    let mut command = Command::new(program::tokenctl());
    command.arg("--socket").arg(home.socket()).args(["sync", "t", "--file"]).arg(&file);
    // It waits for the daemon.
    let mut sync = Background::start(&mut command, &output);
    let daemon = Launch::new(&home).start();
    let tokenctl = daemon.tokenctl();
    let is_in_the_file = |token: &str| {
        wait::until("the token in the file", || {
            fs::read_to_string(&file).is_ok_and(|content| content == token).then_some(())
        });
    };
    let rotated = |tokenctl: &Tokenctl, last: &str| {
        tokenctl.run(&["refresh", "t"]).expect_success();
        let token = tokenctl.get("t");
        assert_ne!(token, last);
        is_in_the_file(&token);
        token
    };
    let first = tokenctl.get("t");
    is_in_the_file(&first);
    let second = rotated(&tokenctl, &first);
    daemon.kill();
    is_in_the_file(&second);
    let daemon = Launch::new(&home).start();
    let third = rotated(&daemon.tokenctl(), &second);
    drop(daemon);
    is_in_the_file(&third);
    assert!(sync.is_running());
    secrets::assert_absent("standard error of tokenctl sync", &fs::read_to_string(&output).unwrap());
}
