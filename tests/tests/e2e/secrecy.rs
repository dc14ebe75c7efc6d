//! No secret and no token is ever in a log, an error or a command line. The harness searches what every
//! test of every suite leaves behind; here is shown that the search finds, and what is most likely to leak.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;

use serde_json::json;
use tokend_tests::daemon::Launch;
use tokend_tests::notify::Manager;
use tokend_tests::test_support::{token_of, token_table};
use tokend_tests::{Answer, Kind, Provider, Scene, StandIn, TestDir, secrets};

#[test]
fn the_search_finds_what_is_there_to_be_found() {
    let scene = Scene::start(Provider::start(), &token_table("t", ""));
    let token = scene.tokenctl().get("t");
    assert_eq!(secrets::found_in(&format!("token={token}")), ["access-token"]);
    let body = &scene.provider.requests()[0].body;
    assert!(!secrets::found_in(body).is_empty(), "the provider, and nobody else, is sent the secret");
    assert!(scene.daemon.log().lines().count() > 3, "the log that is searched is not empty");
}

#[test]
fn five_providers_at_the_most_talkative_log_level_tell_nothing() {
    for format in ["text", "json"] {
        let (home, standins) = (TestDir::new(), Kind::ALL.map(StandIn::start));
        let text: String = standins.iter().map(|standin| standin.configuration(&home, "")).collect();
        home.configure("", &text);
        let mut daemon = Launch::new(&home).argument(&format!("--log-format={format}")).start();
        let tokenctl = daemon.tokenctl();
        for standin in &standins {
            let name = standin.kind().token_name();
            tokenctl.get(name);
            tokenctl.run(&["headers", name]);
            tokenctl.run(&["refresh", name]);
            tokenctl.run(&["reject", name]);
        }
        tokenctl.json(&["status"]);
        tokenctl.json(&["list"]);
        assert_eq!(daemon.stop(), 0);
        secrets::assert_absent("the daemon's log", &daemon.log());
    }
}

#[test]
fn every_place_for_a_secret_is_read_and_none_is_shown() {
    let home = TestDir::new();
    let provider = Provider::start_answering(|request| {
        let known =
            request.field("client_secret").is_some_and(|secret| !secrets::found_in(&secret).is_empty());
        if known { Answer::token(600) } else { Answer::refusal(401, "invalid_client") }
    });
    let from_file = home.secret("file-secret", &secrets::invent_awkward("file-secret"));
    let from_command = secrets::invent("command-secret");
    let _ = home.secret("command-secret", &from_command);
    let credentials = home.path().join("credentials");
    fs::create_dir(&credentials).unwrap();
    fs::write(credentials.join("p.secret"), secrets::invent("credential-secret")).unwrap();
    fs::set_permissions(credentials.join("p.secret"), fs::Permissions::from_mode(0o440)).unwrap();
    let command = format!("{{ command = [\"cat\", \"{}\"] }}", home.path().join("command-secret").display());
    let sources = [
        ("file", from_file),
        ("command", command),
        ("env", "{ env = \"THE_SECRET\" }".to_owned()),
        ("credential", "{ credential = \"p.secret\" }".to_owned()),
    ];
    let mut text = String::new();
    for (name, source) in &sources {
        let table = format!(
            "[provider.{name}]\ntoken_endpoint = {:?}\nclient_id = \"{name}\"\nclient_secret = {source}\n\
             token_endpoint_auth_method = \"client_secret_post\"\n",
            provider.token_endpoint()
        );
        text.push_str(&(table + &token_of(name, name, "")));
    }
    home.configure("", &text);
    let daemon = Launch::new(&home)
        .env("THE_SECRET", secrets::invent("env-secret"))
        .env("CREDENTIALS_DIRECTORY", &credentials)
        .start();
    for (name, _) in sources {
        daemon.tokenctl().get(name);
    }
}

/// A token whose client secret is what a shell script prints.
fn configure_command(home: &TestDir, provider: &Provider, script: &str) {
    let command = format!("[\"sh\", \"-c\", \"{script}\"]");
    let provider = format!(
        "[provider.p]\ntoken_endpoint = {:?}\nclient_id = \"c\"\nclient_secret = {{ command = {command} }}\n",
        provider.token_endpoint()
    );
    home.configure("", &(provider + &token_table("t", "")));
}

#[test]
fn a_secret_command_that_fails_does_not_get_its_output_logged() {
    let home = TestDir::new();
    let secret = secrets::invent("command-secret");
    let _ = home.secret("command-secret", &secret);
    let file = home.path().join("command-secret");
    let script = format!("cat {0}; cat {0} >&2; exit 3", file.display());
    let provider = Provider::start();
    configure_command(&home, &provider, &script);
    let daemon = Launch::new(&home).start();
    daemon.tokenctl().run(&["get", "t"]).expect_code(7);
    assert_eq!(daemon.tokenctl().status_of("t")["last_error"]["class"], "secret");
    assert_eq!(provider.count(), 0);
}

#[test]
fn a_reply_that_is_no_token_is_not_logged_whatever_is_in_it() {
    let token = secrets::invent("access-token");
    let bodies = [
        json!({ "acess_token": token }).to_string(),
        json!({ "error": "invalid_client", "error_uri": token, "access_tokens": [token] }).to_string(),
        format!("<html>{token}</html>"),
        format!("{{\"access_token\":\"{token}"),
        json!({ "access_token": [token] }).to_string(),
    ];
    for (index, body) in bodies.into_iter().enumerate() {
        let provider = Provider::start();
        provider.always(Answer::status(200).with_body("application/json", body));
        let scene = Scene::start(provider, &token_table("t", ""));
        let got = scene.tokenctl().run(&["get", "t"]);
        assert_ne!(got.code, 0, "{index}");
    }
}

#[test]
fn a_secret_command_is_given_nothing_of_the_daemons() {
    let home = TestDir::new();
    let secret = home.path().join("command-secret");
    let _ = home.secret("command-secret", &secrets::invent("command-secret"));
    let seen = |name: &str| home.path().join(name).display().to_string();
    let script = format!(
        "cat /proc/self/environ > {}; cat /proc/self/cmdline > {}; ls -l /proc/self/fd > {}; cat {}",
        seen("environ"),
        seen("cmdline"),
        seen("descriptors"),
        secret.display()
    );
    let provider = Provider::start();
    configure_command(&home, &provider, &script);
    // With a passed socket, memory that outlives the process, a connection to the caller and one to the provider.
    let manager = Manager::listen(&home.path().join("notify"));
    let listener = UnixListener::bind(home.socket()).unwrap();
    let daemon = Launch::new(&home)
        .env("NOTIFY_SOCKET", manager.path())
        .env("WATCHDOG_USEC", "60000000")
        .env("ANOTHER_SECRET", secrets::invent("env-secret"))
        .activated_by(&home.socket(), &listener)
        .start();
    daemon.tokenctl().get("t");
    let environment = fs::read_to_string(home.path().join("environ")).unwrap();
    let names: Vec<&str> = environment.split_terminator('\0').filter_map(|it| it.split('=').next()).collect();
    // The daemon adds a mark by which it finds all that the command started; the shell adds the last three.
    let mark = "TOKEND_SECRET_COMMAND";
    let known = ["PATH", "HOME", "USER", "LOGNAME", "LANG", "LC_ALL", "TMPDIR", mark, "PWD", "SHLVL", "_"];
    assert!(names.contains(&"PATH") && names.iter().all(|name| known.contains(name)), "{names:?}");
    secrets::assert_absent("the environment of a command", &environment);
    let arguments = fs::read_to_string(home.path().join("cmdline")).unwrap();
    secrets::assert_absent("the arguments of a command", &arguments);
    let descriptors = fs::read_to_string(home.path().join("descriptors")).unwrap();
    let targets: Vec<&str> = descriptors.lines().filter_map(|line| line.split(" -> ").nth(1)).collect();
    // Those of `ls`: nothing to read, the file that it writes, nowhere for its errors, and the directory itself.
    assert_eq!(targets.len(), 4, "{descriptors}");
    assert!(!targets.iter().any(|target| target.contains(':')), "a socket, a pipe, memory: {descriptors}");
}
