//! The real daemon over HTTP, with the bytes of a caller that has no client.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;

use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, bind, connect, socket};
use serde_json::Value;
use tokend_tests::daemon::Launch;
use tokend_tests::test_support::{provider_table, token_table};
use tokend_tests::{Answer, Provider, RealDaemon, TestDir, audit, requirement, secrets, wait};

use crate::test_users::{ALICE, BOB, SOCKET};

struct Scene {
    daemon: RealDaemon,
    http: PathBuf,
    provider: Provider,
    _home: TestDir,
}

/// An answer: its status, its head, its body, and the document in it.
struct Answered {
    status: u16,
    head: String,
    body: String,
    document: Value,
}

impl Scene {
    fn new(provider: Provider, tokens: &str) -> Self {
        let home = TestDir::new();
        let http = home.path().join("http.sock");
        let table = provider_table(&home, "p", &provider.token_endpoint(), "");
        let daemon = format!("socket_group = \"{SOCKET}\"\nhttp_socket = \"{}\"", http.display());
        home.configure(&daemon, &format!("{table}\n{tokens}"));
        let daemon = Launch::new(&home).start();
        Self { daemon, http, provider, _home: home }
    }

    fn ask(&self, request: &str) -> Answered {
        let mut connection = UnixStream::connect(&self.http).unwrap();
        connection.write_all(format!("{request} HTTP/1.1\r\nHost: localhost\r\n\r\n").as_bytes()).unwrap();
        connection.shutdown(Shutdown::Write).unwrap();
        let mut answer = String::new();
        connection.read_to_string(&mut answer).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
        let status = head.get(9..12).and_then(|status| status.parse().ok()).unwrap();
        let document: Value = serde_json::from_str(body).unwrap_or_default();
        if let Some(token) = document["access_token"].as_str() {
            secrets::register("access-token", token);
        }
        Answered { status, head: head.to_owned(), body: body.to_owned(), document }
    }

    fn token(&self) -> String {
        wait::until("a token over HTTP", || {
            let answered = self.ask("GET /v1/tokens/t");
            (answered.status == 200).then(|| answered.document["access_token"].as_str().unwrap().to_owned())
        })
    }
}

#[test]
fn a_token_is_got_used_rejected_and_replaced() {
    let settings = "caller_headers = [\"Requestor-ID\"]\nscope = \"a b\"\nvariants = { scope = [\"a\"] }\n\
                    [token.t.headers]\nAccept = \"text/plain\"";
    let scene = Scene::new(Provider::start(), &token_table("t", settings));
    let token = scene.token();
    assert_eq!(scene.daemon.tokenctl().get("t"), token, "both sockets serve one token");
    let got = scene.ask("GET /v1/tokens/t").document;
    assert!(got["expires_in"].as_u64().unwrap() > 0 && got["expires_at"].as_str().unwrap().ends_with('Z'));
    let headers = scene.ask("GET /v1/tokens/t/headers?Requestor-ID=4711").document;
    assert_eq!(
        headers["headers"],
        serde_json::json!({
            "Authorization": format!("Bearer {token}"), "Accept": "text/plain", "Requestor-ID": "4711"
        })
    );
    let nginx = scene.ask("GET /v1/auth/t");
    assert!(
        nginx.status == 204 && nginx.head.contains(&format!("authorization: Bearer {token}")),
        "{}",
        nginx.head
    );
    let variant = scene.ask("GET /v1/tokens/t?scope=a").document["access_token"].as_str().unwrap().to_owned();
    assert_ne!(variant, token);
    let fingerprint = got["fingerprint"].as_str().unwrap();
    let too_new = scene.ask(&format!("POST /v1/tokens/t/reject?fingerprint={fingerprint}")).document;
    assert_eq!(too_new["outcome"], "too-soon");
    scene.daemon.tokenctl().run(&["refresh", "t"]).expect_success();
    assert_ne!(scene.token(), token);
    let superseded = scene.ask(&format!("POST /v1/tokens/t/reject?fingerprint={fingerprint}")).document;
    assert_eq!(superseded["outcome"], "superseded");
    assert_eq!(scene.ask("GET /v1/tokens").document["tokens"][0]["name"], "t");
}

/// Without what changes from one request to the next: the lifetimes, and the memory of the daemon.
fn without_what_changes(mut status: Value) -> Value {
    assert!(status["daemon"]["counts"].as_object_mut().unwrap().remove("resident-bytes").is_some());
    for token in status["tokens"].as_array_mut().unwrap() {
        for lifetime in ["expires_in_seconds", "age_seconds"] {
            assert!(token["held"].as_object_mut().unwrap().remove(lifetime).is_some());
        }
    }
    status
}

#[test]
fn operators_get_the_status_and_the_metrics_of_tokenctl() {
    let scene = Scene::new(Provider::start(), &token_table("t", ""));
    scene.token();
    let of_tokenctl = |words: &[&str]| scene.daemon.tokenctl().run(words).expect_success();
    let mut status = scene.ask("GET /v1/status").document;
    assert_eq!(status.as_object_mut().unwrap().remove("more"), Some(false.into()));
    let printed = serde_json::from_str(&of_tokenctl(&["status", "--json"])).unwrap();
    assert_eq!(without_what_changes(status), without_what_changes(printed));
    assert_eq!(scene.ask("GET /v1/status/t").document["tokens"][0]["name"], "t");
    assert_eq!(scene.ask("GET /v1/status/u").status, 404);
    let without_memory = |text: &str| {
        let lines = text.lines().filter(|line| !line.starts_with("tokend_resident_memory_bytes "));
        lines.map(str::to_owned).collect::<Vec<_>>()
    };
    let metrics = scene.ask("GET /metrics").body;
    assert_eq!(without_memory(&metrics), without_memory(&of_tokenctl(&["metrics"])));
}

#[test]
fn a_failure_says_what_the_caller_can_do() {
    let provider = Provider::start();
    provider.always(Answer::status(503));
    let scene = Scene::new(provider, &token_table("t", ""));
    let failed = scene.ask("GET /v1/tokens/t?deadline=0s");
    assert!([503, 504].contains(&failed.status), "{}", failed.head);
    let failed = wait::until("the failure of the provider", || {
        let failed = scene.ask("GET /v1/tokens/t?deadline=5s");
        (failed.document["class"] == "server").then_some(failed)
    });
    assert_eq!(failed.status, 503);
    assert!(failed.head.contains("content-type: application/problem+json"), "{}", failed.head);
    let wait = failed.head.lines().find_map(|line| line.strip_prefix("retry-after: "));
    assert!(
        wait.is_some_and(|seconds| seconds.parse::<u64>().is_ok_and(|seconds| seconds > 0)),
        "{}",
        failed.head
    );
    assert_eq!(failed.document["status"], 503);
    assert_eq!(scene.ask("GET /v1/tokens/other").status, if requirement::root() { 404 } else { 403 });
    drop(scene.provider);
}

#[test]
fn a_unit_waits_for_a_provider_that_does_not_answer_yet() {
    if !requirement::root() {
        return;
    }
    let (home, provider) = (TestDir::new(), Provider::start());
    provider.always(Answer::status(503));
    let path = home.path().join("credential.sock");
    let table = provider_table(&home, "p", &provider.token_endpoint(), "");
    let tokens = token_table("t", "allow = [\"unit:x.service\"]");
    home.configure(&format!("credential_socket = \"{}\"", path.display()), &format!("{table}\n{tokens}"));
    let daemon = Launch::new(&home).start();
    daemon.wait_for_log(&["not renewed"]);
    // As the service manager does.
    let unit = socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).unwrap();
    let address = format!("{}/unit/x.service/t.token", std::process::id());
    bind(unit.as_raw_fd(), &UnixAddr::new_abstract(address.as_bytes()).unwrap()).unwrap();
    connect(unit.as_raw_fd(), &UnixAddr::new(&path).unwrap()).unwrap();
    provider.always(Answer::token(60));
    let mut given = String::new();
    UnixStream::from(unit).read_to_string(&mut given).unwrap();
    secrets::register("access-token", &given);
    assert_eq!(daemon.tokenctl().get("t"), given);
}

#[test]
fn users_without_a_rule_are_refused_and_audited_as_on_the_other_socket() {
    if !requirement::root() {
        return;
    }
    let mut scene = Scene::new(Provider::start(), &token_table("t", &format!("allow = [\"user:{ALICE}\"]")));
    // Users who are in the socket's group need a way to the socket.
    scene.daemon.tokenctl().get("t");
    let token = scene.token();
    let curl = |uid: u32| {
        let target = "http://localhost/v1/tokens/t";
        let mut command = std::process::Command::new("setpriv");
        command.args([&format!("--reuid={uid}"), &format!("--regid={uid}"), &format!("--groups={SOCKET}")]);
        command.args(["curl", "--silent", "--show-error", "--unix-socket"]).arg(&scene.http).arg(target);
        tokend_tests::process::run(&mut command, wait::PATIENCE).stdout
    };
    assert!(curl(ALICE).contains(&token));
    let refused: Value = serde_json::from_str(&curl(BOB)).unwrap();
    assert_eq!(
        (&refused["status"], &refused["detail"]),
        (&403.into(), &"not allowed, or no such token".into())
    );
    scene.daemon.stop();
    let records =
        |decision, user: u32| audit::records(&scene.daemon.log(), decision, |uid| uid == user).decisions;
    assert_eq!([records("allow", ALICE), records("deny", ALICE)], [1, 0]);
    assert_eq!([records("allow", BOB), records("deny", BOB)], [0, 1]);
}
