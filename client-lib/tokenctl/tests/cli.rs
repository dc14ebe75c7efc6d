//! The real program against a daemon that answers what each test tells it to: what is printed where, to the
//! letter, and with which exit status.

#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "a failed step fails the test")]

#[path = "../../tests/fake/mod.rs"]
mod fake;

use std::fs::{self, File, Permissions};
use std::io::{Read, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{SystemTime, UNIX_EPOCH};

use fake::{
    Answer, FakeDaemon, TOKEN, daemon_status, error, explained, fingerprint, held, info, name, token,
    token_status,
};
use nix::unistd::{Group, Uid, User};
use serde_json::Value;
use tempfile::TempDir;
use tokend_client::{
    Attribute, Count, DaemonStatus, Deviation, ErrorClass, EventReply, ExplainedList, ExplainedReply, Header,
    HeadersReply, LastError, ListEntry, RefreshedReply, RejectOutcome, RejectedReply, Secret, State, Subject,
    Timestamp, TokenStatus, Variant, VariantStatus, VersionReply,
};
use tokend_protocol::{ErrorCode, ErrorReply, ListReply, Reply, Request, StatusReply};

/// A place for a socket, and the program that is pointed to it.
struct Bench(TempDir);

impl Bench {
    fn new() -> Self {
        Self(TempDir::new().unwrap())
    }

    fn socket(&self) -> PathBuf {
        self.0.path().join("tokend.sock")
    }

    fn daemon(&self, reply: impl Fn(&Request) -> Reply + Send + Sync + 'static) -> FakeDaemon {
        FakeDaemon::answering(&self.socket(), reply)
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = program();
        command.arg("--socket").arg(self.socket()).args(args);
        command
    }

    fn run(&self, args: &[&str]) -> Ran {
        Ran::of(self.command(args).output().unwrap())
    }
}

/// The program in an environment that has no say in the outcome.
fn program() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tokenctl"));
    command.env_remove("TOKEND_SOCKET").env_remove("NO_COLOR").env("TERM", "xterm").stdin(Stdio::null());
    command
}

/// What a run left.
#[derive(Debug, PartialEq, Eq)]
struct Ran {
    exit: i32,
    out: String,
    err: String,
}

impl Ran {
    fn of(output: Output) -> Self {
        let text = |bytes| String::from_utf8(bytes).unwrap();
        let ran =
            Self { exit: output.status.code().unwrap(), out: text(output.stdout), err: text(output.stderr) };
        assert!(!ran.err.contains(TOKEN), "the token is on standard error: {ran:?}");
        ran
    }

    fn json(&self) -> Value {
        assert_eq!(self.out.matches('\n').count(), 1, "one line: {self:?}");
        serde_json::from_str(&self.out).unwrap()
    }

    #[track_caller]
    fn is(&self, exit: i32, out: &str, err: &str) {
        assert_eq!((self.exit, self.out.as_str(), self.err.as_str()), (exit, out, err));
    }
}

fn user() -> String {
    User::from_uid(Uid::effective()).unwrap().unwrap().name
}

fn headers(values: &[(&str, &str)]) -> Reply {
    let header = |(name, value): &(&str, &str)| Header {
        name: (*name).to_owned(),
        value: Secret::from((*value).to_owned()),
    };
    Reply::Headers(HeadersReply { info: info(), headers: values.iter().map(header).collect() })
}

/// A token that gives no joy.
fn failing_token(text: &str) -> TokenStatus {
    let message = "no answer within 10s".to_owned();
    TokenStatus {
        state: State::Unavailable,
        held: None,
        last_error: Some(LastError { class: ErrorClass::Timeout, message, at: Timestamp(1_700_000_000_000) }),
        failures: 7,
        next_attempt: Some(Timestamp(2_000_000_000_000)),
        deviations: vec![Deviation { kind: "expires_in-string".to_owned(), count: 3 }],
        attributes: vec![
            attribute("client-secret", "the second of 2 is in use"),
            attribute("clock-skew", "the provider's clock is 90 s behind this host's"),
        ],
        counts: vec![count("failed-timeout", 7), count("refused", 2)],
        ..token_status(text)
    }
}

fn count(name: &str, value: u64) -> Count {
    Count { name: name.to_owned(), value }
}

fn attribute(name: &str, value: &str) -> Attribute {
    Attribute { name: name.to_owned(), value: value.to_owned() }
}

/// The right answer to each request: what `JSON.md` shows.
fn happy_reply(request: &Request) -> Reply {
    match request {
        Request::Get(_) => token(),
        Request::Headers(_) => {
            headers(&[("Authorization", &format!("Bearer {TOKEN}")), ("Requestor-ID", "4711")])
        }
        Request::List(_) => {
            let listed = |text, state| ListEntry { name: name(text), state };
            let tokens = vec![listed("bnp", State::Degraded), listed("psb", State::Fresh)];
            Reply::List(ListReply { tokens, more: false })
        }
        Request::Status(_) => {
            let tokens = vec![failing_token("bnp"), token_status("psb")];
            let daemon = DaemonStatus {
                attributes: vec![attribute("clock-set", "2 times")],
                counts: vec![count("resident-bytes", 4_404_020)],
                ..daemon_status()
            };
            Reply::Status(StatusReply { daemon, tokens, more: false })
        }
        Request::Refresh(_) => Reply::Refreshed(RefreshedReply { info: info(), changed: true }),
        Request::Reject(_) => {
            Reply::Rejected(RejectedReply { outcome: RejectOutcome::Replaced, info: info() })
        }
        Request::Watch(_) => Reply::Event(event(State::Fresh)),
        Request::Version => Reply::Version(VersionReply {
            daemon: "9.8.7".to_owned(),
            oldest: 1,
            newest: 1,
            highest_request: 8,
        }),
        Request::Explain(_) => Reply::Explained(explained()),
    }
}

fn event(state: State) -> EventReply {
    EventReply {
        index: 0,
        name: name("psb"),
        state,
        held: Some(held()),
        last_error: None,
        next_attempt: None,
        token: None,
    }
}

/// A static program starts faster. It is dynamic where the static C library is missing.
#[test]
fn the_program_loads_no_library() {
    const LOADED: usize = 1;
    const INTERPRETER: usize = 3;
    let found = Command::new("cc").arg("-print-file-name=libc.a").output();
    if !found.is_ok_and(|found| found.stdout.starts_with(b"/")) || cfg!(not(target_pointer_width = "64")) {
        return;
    }
    let program = fs::read(env!("CARGO_BIN_EXE_tokenctl")).unwrap();
    let number = |at: usize, size: usize| {
        let mut bytes = [0; 8];
        bytes[..size].copy_from_slice(&program[at..at + size]);
        usize::try_from(u64::from_le_bytes(bytes)).unwrap()
    };
    // The table of segments of an ELF file: its place, the size of an entry, their number.
    let (table, size, count) = (number(32, 8), number(54, 2), number(56, 2));
    let kinds: Vec<usize> = (0..count).map(|entry| number(table + entry * size, 4)).collect();
    assert!(kinds.contains(&LOADED) && !kinds.contains(&INTERPRETER), "{kinds:?}");
}

#[test]
fn get_prints_the_token_and_nothing_else() {
    let bench = Bench::new();
    let daemon = bench.daemon(happy_reply);
    bench.run(&["get", "psb", "--min-ttl", "1m 30s", "--deadline", "3s"]).is(0, "eyJ-sample-token\n", "");
    let [Request::Get(asked)] = &daemon.requests()[..] else { panic!("{:?}", daemon.requests()) };
    assert_eq!((asked.name.as_str(), asked.options.min_ttl_ms), ("psb", 90_000));
    assert!((1..=3_000).contains(&asked.options.deadline_ms), "{asked:?}");
}

#[test]
fn exec_gives_a_command_the_token_in_its_environment_alone() {
    let bench = Bench::new();
    let _daemon = bench.daemon(happy_reply);
    let shell = ["--", "sh", "-c", "echo $TOKEN $API_TOKEN; exit 3"];
    let exec = |args: &[&str]| bench.run(&[&["exec", "psb"], args].concat());
    exec(&shell).is(3, "eyJ-sample-token\n", "");
    exec(&[&["--env", "API_TOKEN"], &shell[..]].concat()).is(3, "eyJ-sample-token\n", "");
    exec(&["--", "sh", "-c", "tr '\\0' ' ' </proc/$$/cmdline | grep -c sample-to[k]en"]).is(1, "0\n", "");
    let missing = exec(&["--", "/nonexistent/program"]);
    let message = "tokenctl: cannot run /nonexistent/program: No such file or directory (os error 2)\n";
    missing.is(127, "", message);
    exec(&["--", "/etc/passwd"]).is(
        126,
        "",
        "tokenctl: cannot run /etc/passwd: Permission denied (os error 13)\n",
    );
    assert_eq!([exec(&[]).exit, exec(&["--env", "A=B", "--", "true"]).exit], [2, 2]);
}

#[test]
fn exec_runs_nothing_without_a_token() {
    let bench = Bench::new();
    let _daemon = bench.daemon(|_| Reply::Error(error(ErrorCode::NotAllowed)));
    let ran = bench.run(&["exec", "psb", "--", "echo", "it ran"]);
    assert_eq!((ran.exit, ran.out.as_str()), (4, ""), "{ran:?}");
}

/// Runs `tokenctl helper` as another program would: with these arguments, this `KUBERNETES_EXEC_INFO` and this input.
fn helper(bench: &Bench, args: &[&str], kubernetes: &str, input: &str) -> Ran {
    let mut command = bench.command(&[&["helper"], args].concat());
    command.env("KUBERNETES_EXEC_INFO", kubernetes).stdin(Stdio::piped());
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
    Ran::of(child.wait_with_output().unwrap())
}

#[test]
fn kubernetes_gets_the_token_in_the_version_that_it_asks_for() {
    let bench = Bench::new();
    let _daemon = bench.daemon(happy_reply);
    let ask = |info: &str| helper(&bench, &["kubectl", "psb"], info, "");
    for (info, version) in [
        ("", "client.authentication.k8s.io/v1"),
        (
            r#"{"apiVersion":"client.authentication.k8s.io/v1beta1","kind":"ExecCredential"}"#,
            "client.authentication.k8s.io/v1beta1",
        ),
    ] {
        let credential = serde_json::json!({
            "apiVersion": version,
            "kind": "ExecCredential",
            "status": { "token": TOKEN, "expirationTimestamp": "2033-05-18T03:33:20Z" },
        });
        assert_eq!(ask(info).json(), credential);
    }
    ask(r#"{"apiVersion":"client.authentication.k8s.io/v1alpha1"}"#).is(
        2,
        "",
        "tokenctl: the client of Kubernetes asks for client.authentication.k8s.io/v1alpha1; set apiVersion: \
         client.authentication.k8s.io/v1 in its kubeconfig\n",
    );
}

#[test]
fn git_gets_a_bearer_token_or_as_an_older_one_a_password() {
    let bench = Bench::new();
    let _daemon = bench.daemon(happy_reply);
    let get = |args: &[&str], question: &str| {
        helper(&bench, &[&["git", "psb"], args, &["get"]].concat(), "", question)
    };
    let question = "capability[]=authtype\ncapability[]=state\nprotocol=https\nhost=git.example\n\n";
    let bearer = "capability[]=authtype\nauthtype=Bearer\ncredential=eyJ-sample-token\nephemeral=1\n\
                  password_expiry_utc=2000000000\n";
    get(&[], question).is(0, bearer, "");
    let question = "protocol=https\nhost=git.example\n";
    let password =
        |user| format!("username={user}\npassword=eyJ-sample-token\npassword_expiry_utc=2000000000\n");
    get(&[], question).is(0, &password("oauth2"), "");
    get(&["--username", "x-token-auth"], question).is(0, &password("x-token-auth"), "");
    get(&[], "protocol=http\nhost=git.example\n").is(
        2,
        "",
        "tokenctl: git would send the token to http://git.example without encryption; use https\n",
    );
}

#[test]
fn a_token_that_git_erases_is_rejected_unless_there_is_another_by_now() {
    let bench = Bench::new();
    let daemon = bench.daemon(happy_reply);
    let run = |operation: &str, question: &str| {
        helper(&bench, &["git", "psb", operation], "", question).is(0, "", "");
    };
    let rejected = || daemon.requests().iter().filter(|asked| matches!(asked, Request::Reject(_))).count();
    run("store", "protocol=https\nhost=a\ncredential=eyJ-sample-token\n");
    run("erase", "protocol=https\nhost=a\n");
    run("erase", "protocol=https\nhost=a\npassword=an older one\n");
    run("capability", "");
    assert_eq!(rejected(), 0);
    run("erase", "protocol=https\nhost=a\nauthtype=Bearer\ncredential=eyJ-sample-token\n");
    run("erase", "protocol=https\nhost=a\nusername=oauth2\npassword=eyJ-sample-token\n");
    assert_eq!(rejected(), 2);
}

#[test]
fn docker_and_bazel_get_the_token_for_hosts_with_encryption() {
    let bench = Bench::new();
    let _daemon = bench.daemon(happy_reply);
    let docker = |operation: &str, input: &str| helper(&bench, &["docker", "psb", operation], "", input);
    let credential =
        serde_json::json!({ "ServerURL": "registry.example", "Username": "oauth2", "Secret": TOKEN });
    assert_eq!(docker("get", "registry.example\n").json(), credential);
    docker("list", "").is(0, "{}\n", "");
    docker("erase", "registry.example").is(0, "", "");
    assert_eq!(docker("store", "{}").exit, 2);
    docker("get", "http://registry.example").is(
        2,
        "",
        "tokenctl: Docker would send the token to http://registry.example without encryption; use https\n",
    );
    let bazel = |input: &str| helper(&bench, &["bazel", "psb", "get"], "", input);
    let headers = serde_json::json!({
        "headers": { "Authorization": [format!("Bearer {TOKEN}")] },
        "expires": "2033-05-18T03:33:20Z",
    });
    for uri in
        ["https://cache.example/a", "grpcs://cache.example", "grpc://localhost:8980", "http://127.0.0.1/x"]
    {
        assert_eq!(bazel(&format!("{{\"uri\": \"{uri}\"}}")).json(), headers);
    }
    for question in
        ["{\"uri\": \"grpc://cache.example\"}", "{\"uri\": \"http://localhost.example\"}", "{}", ""]
    {
        assert_eq!((bazel(question).exit, bazel(question).out.as_str()), (2, ""), "{question}");
    }
}

#[test]
fn google_gets_the_token_or_the_reason_why_there_is_none() {
    let bench = Bench::new();
    let daemon = bench.daemon(happy_reply);
    let ran = helper(&bench, &["google", "psb"], "", "");
    let success = serde_json::json!({
        "version": 1,
        "success": true,
        "token_type": "urn:ietf:params:oauth:token-type:jwt",
        "id_token": TOKEN,
        "expiration_time": 2_000_000_000,
    });
    assert_eq!(ran.json(), success);
    drop(daemon);
    let ran = helper(&bench, &["google", "psb"], "", "");
    let failure = ran.json();
    assert_eq!(
        (ran.exit, &failure["success"], &failure["code"]),
        (3, &false.into(), &"not-reachable".into())
    );
    assert!(failure["message"].as_str().unwrap().contains("there is no such socket"), "{failure}");
}

#[test]
fn headers_prints_what_curl_reads() {
    let bench = Bench::new();
    let daemon = bench.daemon(happy_reply);
    for supplied in
        [["--header", "Requestor-ID=a=b: c"], ["-H", "Requestor-ID: a=b: c"], ["-H", "Requestor-ID:a=b: c"]]
    {
        let ran = bench
            .run(&[&["headers", "psb", "--without", "Accept", "--timeout", "3s"], &supplied[..]].concat());
        ran.is(0, "Authorization: Bearer eyJ-sample-token\nRequestor-ID: 4711\n", "");
        let requests = daemon.requests();
        let Some(Request::Headers(asked)) = requests.last() else { panic!("{requests:?}") };
        let [header] = &asked.supplied[..] else { panic!("{asked:?}") };
        assert_eq!((header.name.as_str(), header.value.as_str()), ("Requestor-ID", "a=b: c"));
        assert_eq!(asked.omitted, ["Accept"]);
        assert!((1..=3_000).contains(&asked.options.deadline_ms), "{asked:?}");
    }
}

#[test]
fn a_header_cannot_smuggle_another() {
    let bench = Bench::new();
    let _daemon = bench.daemon(|_| headers(&[("Accept", "x\r\nHost: elsewhere")]));
    let ran = bench.run(&["headers", "psb"]);
    ran.is(1, "", "tokenctl: the daemon's answer has a header with a control character\n");
}

#[test]
fn a_piped_list_is_of_plain_names() {
    let bench = Bench::new();
    let _daemon = bench.daemon(happy_reply);
    bench.run(&["list"]).is(0, "bnp\npsb\n", "");
}

/// The status of a daemon that started 3 h 12 m ago, with times half a minute off the full one.
fn recent(request: &Request) -> Reply {
    let now = u64::try_from(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis()).unwrap();
    let ago = |seconds: u64| Timestamp(now - seconds * 1000);
    let ahead = |seconds: u64| Timestamp(now + seconds * 1000);
    let Reply::Status(mut status) = happy_reply(request) else { return happy_reply(request) };
    status.daemon.started_at = ago(11_550);
    let failed = status.tokens[0].last_error.as_mut().unwrap();
    failed.at = ago(7_230);
    "no answer\x1b[2J within 10s".clone_into(&mut failed.message);
    status.tokens[0].next_attempt = Some(ago(5));
    status.tokens[1].next_attempt = Some(ahead(7_230));
    Reply::Status(status)
}

#[test]
fn status_is_a_table_that_a_person_reads() {
    let bench = Bench::new();
    let _daemon = bench.daemon(recent);
    let ran = bench.run(&["status"]);
    ran.is(
        0,
        "tokend 9.8.7, pid 4711, up 3h 12m, 2 connections\n\
         NAME  STATE        EXPIRES-IN  RENEWS-IN  REQUESTS  LAST-ERROR\n\
         bnp   unavailable  -           now        3         timeout 2h ago: no answer?[2J within 10s\n\
         psb   fresh        2d 2h       2h         3         -\n\
         bnp: 3 deviations from the RFCs; see `tokenctl status bnp`\n",
        "",
    );
}

#[test]
fn status_says_nothing_of_the_process_where_the_daemon_does_not() {
    let bench = Bench::new();
    let _daemon = bench.daemon(|request| {
        let Reply::Status(mut status) = recent(request) else { panic!("not a status") };
        (status.daemon.pid, status.daemon.connections) = (0, 0);
        Reply::Status(status)
    });
    let ran = bench.run(&["status"]);
    assert!(ran.out.starts_with("tokend 9.8.7, up 3h 12m\nNAME "), "{ran:?}");
}

#[test]
fn a_piped_status_is_not_cut() {
    let bench = Bench::new();
    let message = "x".repeat(300);
    let reason = message.clone();
    let _daemon = bench.daemon(move |request| {
        let Reply::Status(mut status) = recent(request) else { panic!("not a status") };
        status.tokens[0].last_error.as_mut().unwrap().message.clone_from(&reason);
        Reply::Status(status)
    });
    let ran = bench.run(&["status"]);
    assert!(ran.out.contains(&format!("timeout 2h ago: {message}\n")), "{ran:?}");
    let shown = on_a_terminal(&mut bench.command(&["status"]));
    assert!(shown.contains('…') && !shown.contains(&message), "{shown}");
}

#[test]
fn verbose_status_shows_everything() {
    let bench = Bench::new();
    let _daemon = bench.daemon(happy_reply);
    let ran = bench.run(&["status", "--verbose"]);
    assert_eq!(ran.exit, 0, "{ran:?}");
    for line in [
        "  clock-set: 2 times",
        "  resident memory: 4.2 MiB",
        "bnp: unavailable",
        "psb: fresh",
        "  expires in: 2d 2h (2033-05-18T03:33:20Z)",
    ] {
        assert!(ran.out.lines().any(|shown| shown == line), "{line}: {ran:?}");
    }
}

#[test]
fn the_status_of_one_token_has_the_reason_and_the_remedy() {
    let bench = Bench::new();
    let daemon = bench.daemon(|request| {
        let Reply::Status(mut status) = recent(request) else { panic!("not a status") };
        status.tokens.truncate(1);
        let token = &mut status.tokens[0];
        token.next_attempt = None;
        token.state = State::NeedsOperator;
        token.last_error.as_mut().unwrap().class = ErrorClass::Secret;
        token.last_error.as_mut().unwrap().message = "/etc/tokend/s: Permission denied".to_owned();
        token.variants_held = 1;
        token.variants = vec![VariantStatus {
            variant: Variant { scope: vec!["aisp".to_owned()], ..Variant::default() },
            state: State::Degraded,
            held: Some(held()),
            last_error: Some(ErrorClass::Server),
            next_attempt: None,
        }];
        Reply::Status(status)
    });
    let whole = "bnp: needs-operator\n  \
         last error: secret 2h ago: /etc/tokend/s: Permission denied\n  \
         failures in a row: 7\n  \
         what to do: the daemon cannot read a secret on this host and sent no request: make the secret readable to \
         the daemon's user; for a systemd credential, `systemctl restart tokend`\n  \
         once put right: `tokenctl refresh bnp`\n  \
         provider: bnp\n  requests: 3\n  hand-outs: 40\n  \
         deviation: expires_in-string, 3 times\n  \
         client-secret: the second of 2 is in use\n  \
         clock-skew: the provider's clock is 90 s behind this host's\n  \
         failed-timeout: 7\n  refused: 2\n  \
         variants with a valid token: 1\n  \
         variant: scope aisp: degraded, expires in 2d 2h, last error: server\n";
    bench.run(&["status", "bnp"]).is(0, whole, "");
    let json = bench.run(&["status", "bnp", "--json"]).json();
    assert_eq!((&json["name"], &json["variants"][0]["scope"][0]), (&"bnp".into(), &"aisp".into()), "{json}");
    let asked = daemon.requests();
    assert!(
        asked
            .iter()
            .all(|request| matches!(request, Request::Status(asked) if asked.name == Some(name("bnp")))),
        "{asked:?}"
    );
}

#[test]
fn the_exit_status_of_status_is_that_of_the_worst_token() {
    for (states, exit) in [
        (&[][..], 0),
        (&[State::Fresh, State::Refreshing, State::Degraded], 0),
        (&[State::Fresh, State::Pending], 6),
        (&[State::Unavailable, State::Fresh], 6),
        (&[State::NeedsOperator, State::Unavailable], 7),
    ] {
        let bench = Bench::new();
        let _daemon = bench.daemon(|_| {
            let token = |(at, state): (usize, &State)| TokenStatus {
                state: *state,
                ..token_status(&format!("t{at}"))
            };
            let tokens = states.iter().enumerate().map(token).collect();
            Reply::Status(StatusReply { daemon: daemon_status(), tokens, more: false })
        });
        let ran = bench.run(&["status", "--exit-status"]);
        assert_eq!((ran.exit, ran.err.as_str()), (exit, ""), "{states:?}: {ran:?}");
        assert!(ran.out.starts_with("tokend 9.8.7"), "{ran:?}");
        assert_eq!(bench.run(&["status"]).exit, 0, "{states:?}");
    }
}

#[test]
fn a_token_is_not_printed_into_the_journal() {
    let bench = Bench::new();
    let daemon = bench.daemon(happy_reply);
    let journal = File::create(bench.0.path().join("journal")).unwrap();
    let metadata = journal.metadata().unwrap();
    let stream = format!("{}:{}", metadata.dev(), metadata.ino());
    for args in [&["get", "psb"][..], &["headers", "psb"], &["get", "psb", "--json"]] {
        let mut command = bench.command(args);
        command.env("JOURNAL_STREAM", &stream).stdout(journal.try_clone().unwrap());
        let ran = Ran::of(command.output().unwrap());
        assert_eq!(ran.exit, 2, "{ran:?}");
        assert!(ran.err.contains("standard output is the journal"), "{ran:?}");
    }
    assert!(daemon.requests().is_empty(), "nothing is asked for");
    assert!(!fs::read_to_string(bench.0.path().join("journal")).unwrap().contains(TOKEN));
    // Another output of a service whose standard error is the journal.
    let ran = Ran::of(bench.command(&["get", "psb"]).env("JOURNAL_STREAM", &stream).output().unwrap());
    ran.is(0, "eyJ-sample-token\n", "");
    let list = bench.command(&["list"]).env("JOURNAL_STREAM", &stream).stdout(journal).output().unwrap();
    assert!(list.status.success(), "what is no secret may be in the journal");
}

#[test]
fn refresh_asks_for_the_variant() {
    let bench = Bench::new();
    let daemon = bench.daemon(happy_reply);
    assert_eq!(
        bench.run(&["refresh", "psb", "--scope", "a b", "--resource", "r", "--audience", "x"]).exit,
        0
    );
    let [Request::Refresh(asked)] = &daemon.requests()[..] else { panic!("{:?}", daemon.requests()) };
    let owned = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>();
    assert_eq!(
        (&asked.variant.scope, &asked.variant.resource, &asked.variant.audience),
        (&owned(&["a", "b"]), &owned(&["r"]), &owned(&["x"]))
    );
}

#[test]
fn refresh_and_reject_tell_what_was_done() {
    let bench = Bench::new();
    let daemon = bench.daemon(happy_reply);
    bench.run(&["refresh", "psb"]).is(0, "psb: a new token, expires in 2d 2h\n", "");
    let replaced = "psb: replaced by a new token; the current token expires in 2d 2h\n";
    bench.run(&["reject", "psb", "--fingerprint", "0123456789abcdef"]).is(0, replaced, "");
    bench.run(&["reject", "psb"]).is(0, replaced, "");
    let rejected: Vec<_> = daemon
        .requests()
        .iter()
        .filter_map(|request| match request {
            Request::Reject(request) => Some(request.fingerprint),
            _ => None,
        })
        .collect();
    // Without a fingerprint, it is that of the token now held.
    assert_eq!(rejected, ["0123456789abcdef".parse().unwrap(), fingerprint()]);
}

#[test]
fn a_reject_that_replaces_nothing_exits_with_6() {
    use RejectOutcome::{Replaced, Superseded, TooSoon, Unchanged};
    for (outcome, exit) in [(Replaced, 0), (Superseded, 0), (Unchanged, 6), (TooSoon, 6)] {
        let bench = Bench::new();
        let _daemon = bench.daemon(move |_| Reply::Rejected(RejectedReply { outcome, info: info() }));
        let ran = bench.run(&["reject", "psb", "--fingerprint", "0123456789abcdef"]);
        assert!(ran.exit == exit && ran.out.starts_with("psb: "), "{outcome:?}: {ran:?}");
    }
}

#[test]
fn watch_tells_each_event_until_the_end() {
    let bench = Bench::new();
    let daemon = FakeDaemon::start(&bench.socket(), |_| {
        let refused = ErrorReply { message: "it is gone".to_owned(), ..error(ErrorCode::UnknownToken) };
        let told = [
            Reply::Event(event(State::Fresh)),
            Reply::Event(event(State::Refreshing)),
            Reply::Error(refused),
        ];
        told.into_iter().map(Answer::Reply).collect()
    });
    let ran = bench.run(&["watch", "psb"]);
    let told: Vec<_> = ran.out.lines().map(|line| line.split_once(' ').unwrap().1).collect();
    assert_eq!(told, ["psb: fresh, expires in 2d 2h", "psb: refreshing, expires in 2d 2h"]);
    assert_eq!((ran.exit, daemon.requests().len()), (5, 1));
}

/// A daemon that tells these states of a watched token, and then nothing more.
fn sends_states(bench: &Bench, states: &'static [State]) -> FakeDaemon {
    let told = |state: &State| {
        let last_error = (*state == State::Unavailable).then_some(ErrorClass::Timeout);
        Answer::Reply(Reply::Event(EventReply { last_error, ..event(*state) }))
    };
    FakeDaemon::start(&bench.socket(), move |_| states.iter().map(told).collect())
}

#[test]
fn wait_ends_without_a_word_once_the_token_is_so() {
    let bench = Bench::new();
    let daemon = sends_states(&bench, &[State::Pending, State::Unavailable, State::Degraded]);
    bench.run(&["wait", "psb", "--for", "valid"]).is(0, "", "");
    assert!(matches!(&daemon.requests()[..], [Request::Watch(_)]), "{:?}", daemon.requests());
    drop(daemon);
    for state in ["fresh", "valid"] {
        let _daemon = sends_states(&bench, &[State::Fresh]);
        bench.run(&["wait", "psb", "--for", state]).is(0, "", "");
    }
    let _daemon = sends_states(&bench, &[State::Degraded, State::Refreshing, State::Fresh]);
    let ran = bench.run(&["wait", "psb", "--for", "fresh", "--json"]);
    assert_eq!((ran.exit, ran.json()["state"].as_str()), (0, Some("fresh")), "{ran:?}");
}

#[test]
fn wait_ends_at_the_deadline_and_tells_how_the_token_is() {
    let bench = Bench::new();
    let daemon = sends_states(&bench, &[State::Degraded, State::Unavailable]);
    let advice = "try again, or wait longer with --deadline\n";
    let run = |condition, deadline| bench.run(&["wait", "psb", "--for", condition, "--deadline", deadline]);
    let unavailable = "still unavailable (last error: timeout), not fresh";
    run("fresh", "1s").is(8, "", &format!("tokenctl: psb: {unavailable}; {advice}"));
    drop(daemon);
    let _daemon = sends_states(&bench, &[State::NeedsOperator]);
    run("valid", "1s").is(8, "", &format!("tokenctl: psb: still needs-operator, not valid; {advice}"));
    let ran = bench.run(&["wait", "psb", "--for", "fresh", "--deadline", "10ms", "--json"]);
    assert_eq!(ran.json()["error"]["code"], "deadline-exceeded", "{ran:?}");
}

#[test]
fn wait_for_what_one_may_not_have_ends_at_once() {
    let bench = Bench::new();
    let daemon = bench.daemon(|_| Reply::Error(error(ErrorCode::NotAllowed)));
    assert_eq!(bench.run(&["wait", "psb", "--for", "valid"]).exit, 4);
    drop(daemon);
    assert_eq!(bench.run(&["wait", "psb", "--for", "valid"]).exit, 3);
}

#[test]
fn explain_tells_the_decision_the_facts_and_how_each_rule_fared() {
    let bench = Bench::new();
    let daemon = bench.daemon(happy_reply);
    let named = |name: Option<String>, id| name.map_or(format!("{id}"), |name| format!("{name} ({id})"));
    let user = named(User::from_uid(1001.into()).unwrap().map(|user| user.name), 1001);
    let [group, sudo] =
        [1001, 27].map(|id| named(Group::from_gid(id.into()).unwrap().map(|group| group.name), id));
    let facts = format!(
        "  user: {user}\n  group: {group}\n  groups: {sudo}, {group}\n  process: 4711\n  unit: pay@eu.service\n  \
         user unit: not known\n  invocation: 0123456789abcdef0123456789abcdef\n  executable: not known\n  operator: no\n"
    );
    let rules = "rules of the token:\n  \
                 user:billing and unit:billing.service: does not match\n    \
                 user:billing: holds: the user is 1001\n    \
                 unit:billing.service: does not hold: the unit is pay@eu.service\n  \
                 unit:pay@*.service: matches\n    the unit is pay@eu.service\n";
    let whole = format!("psb: allowed: unit:pay@*.service\n{facts}{rules}");
    bench.run(&["explain", "psb", "--pid", "4711", "--scope", "a b"]).is(0, &whole, "");
    bench.run(&["explain", "psb"]).is(0, &whole, "");
    let of_user = bench.run(&["explain", "psb", "--user", "billing"]);
    assert_eq!(of_user.out, whole.replace("not known", "not given"));
    let asked: Vec<_> = daemon
        .requests()
        .into_iter()
        .map(|request| match request {
            Request::Explain(asked) => (asked.subject, asked.variant.scope),
            other => panic!("{other:?}"),
        })
        .collect();
    let scope = vec!["a".to_owned(), "b".to_owned()];
    let (process, user) = (Subject::Process(4711), Subject::User("billing".to_owned()));
    assert_eq!(asked, [(process, scope), (Subject::Caller, vec![]), (user, vec![])]);
    assert_eq!(bench.run(&["explain", "psb", "--user", "billing", "--pid", "7"]).exit, 2);
    bench.run(&["explain", "psb", "--unit", "billing.service"]);
    let last = daemon.requests().pop().unwrap();
    let unit = Subject::Unit("billing.service".to_owned());
    assert!(matches!(&last, Request::Explain(asked) if asked.subject == unit), "{last:?}");
}

#[test]
fn an_explanation_of_a_denial_exits_with_4() {
    let bench = Bench::new();
    let refused = ExplainedReply {
        allowed: false,
        reason: "no rule of the token's allow list matches\x1b[2J".to_owned(),
        lists: vec![ExplainedList { of: "token".to_owned(), rules: vec![] }],
        omitted: 7,
        ..explained()
    };
    let _daemon = bench.daemon(move |_| Reply::Explained(refused.clone()));
    let ran = bench.run(&["explain", "psb", "--user", "billing"]);
    assert_eq!((ran.exit, ran.err.as_str()), (4, ""), "{ran:?}");
    assert!(
        ran.out.starts_with("psb: not allowed: no rule of the token's allow list matches?[2J\n"),
        "{ran:?}"
    );
    assert!(
        ran.out.ends_with("rules of the token:\n  none\n7 more groups or rules are not shown\n"),
        "{ran:?}"
    );
    let ran = bench.run(&["explain", "psb", "--json"]);
    assert_eq!((ran.exit, &ran.json()["decision"]), (4, &"deny".into()));
}

#[test]
fn version_tells_both() {
    let bench = Bench::new();
    let own = concat!("tokenctl ", env!("CARGO_PKG_VERSION"), ", protocol 1\n");
    let alone = bench.run(&["version"]);
    assert_eq!((alone.exit, alone.out.as_str()), (3, own));
    assert!(alone.err.contains("there is no such socket"), "{alone:?}");
    let alone = bench.run(&["version", "--json"]);
    let json = alone.json();
    assert_eq!((alone.exit, &json["tokenctl"]), (3, &env!("CARGO_PKG_VERSION").into()));
    assert_eq!((&json["daemon"], &json["protocol"]["daemon_newest"]), (&Value::Null, &Value::Null));
    let _daemon = bench.daemon(happy_reply);
    bench.run(&["version"]).is(0, &format!("{own}tokend 9.8.7, protocol 1\n"), "");
}

/// Each exit status of a refusal, with what the person reads.
#[test]
fn each_refusal_has_its_exit_status_and_its_advice() {
    let at = Some(Timestamp(5_000));
    let refused = format!(
        "psb: its words (user {}); an operator can find out why with `tokenctl explain --user` or `--unit`",
        user()
    );
    let cases: [(ErrorCode, i32, &str); 10] = [
        (ErrorCode::InvalidRequest, 2, "psb: its words"),
        (ErrorCode::NotAllowed, 4, &refused),
        (ErrorCode::UnknownToken, 5, "psb: no such token; `tokenctl status` lists all tokens"),
        (ErrorCode::Unavailable, 6, "psb: its words; try again in a moment"),
        (ErrorCode::Overloaded, 6, "its words; try again in a moment with fewer requests at once"),
        (ErrorCode::ShuttingDown, 6, "its words; try again in a moment"),
        (ErrorCode::MinTtlUnreachable, 2, "psb: its words; ask for less with --min-ttl, 1m at most"),
        (ErrorCode::DeadlineExceeded, 8, "psb: its words; try again, or wait longer with --deadline"),
        (ErrorCode::UnsupportedVersion, 1, "its words; upgrade tokenctl or the daemon"),
        (ErrorCode::UnknownRequest, 1, "its words; upgrade the daemon"),
    ];
    for (code, exit, message) in cases {
        let bench = Bench::new();
        let words = "its words".to_owned();
        let reply = ErrorReply { message: words, next_attempt: at, best_ttl_ms: Some(60_000), ..error(code) };
        let _daemon = bench.daemon(move |_| Reply::Error(reply.clone()));
        bench.run(&["get", "psb"]).is(exit, "", &format!("tokenctl: {message}\n"));
    }
}

#[test]
fn a_failure_that_needs_an_operator_names_the_remedy() {
    let is_root = Uid::effective().is_root();
    for (class, part) in [
        (ErrorClass::Refused, "correct the secret and `systemctl restart tokend`"),
        (ErrorClass::Secret, "cannot read a secret on this host and sent no request"),
    ] {
        let bench = Bench::new();
        let reply = ErrorReply { class: Some(class), ..error(ErrorCode::NeedsOperator) };
        let _daemon = bench.daemon(move |_| Reply::Error(reply.clone()));
        let ran = bench.run(&["get", "psb"]);
        assert!(ran.exit == 7 && ran.err.contains(part), "{ran:?}");
        assert_eq!(ran.err.contains("operator must act"), !is_root, "{ran:?}");
        assert_eq!(ran.err.contains("see `tokenctl status psb`"), is_root, "{ran:?}");
        assert_eq!(ran.err.contains("once put right: `tokenctl refresh psb`"), is_root, "{ran:?}");
    }
}

#[test]
fn a_refusal_without_a_token_names_none() {
    let bench = Bench::new();
    let _daemon = bench.daemon(|_| Reply::Error(error(ErrorCode::NotAllowed)));
    let message = format!(
        "tokenctl: the daemon's words (user {}); an operator can find out why with `tokenctl explain --user` or `--unit`\n",
        user()
    );
    bench.run(&["status"]).is(4, "", &message);
}

#[test]
fn the_daemon_s_words_cannot_take_hold_of_the_terminal() {
    let bench = Bench::new();
    let message = "psb: bad\x1b]0;title\x07\nnews".to_owned();
    let reply = ErrorReply { message, ..error(ErrorCode::Unavailable) };
    let _daemon = bench.daemon(move |_| Reply::Error(reply.clone()));
    // Nor is the name repeated that the daemon gave.
    bench.run(&["get", "psb"]).is(6, "", "tokenctl: psb: bad?]0;title??news; try again in a moment\n");
}

#[test]
fn usage_is_exit_status_two() {
    let bench = Bench::new();
    let long = "x".repeat(300);
    for args in [
        &["get", "a/b"][..],
        &["get", "a\nb"],
        &["get", &long],
        &["get"],
        &["headers", "psb", "--header", "novalue"],
        &["headers", "psb", "-H", "novalue"],
        &["get", "psb", "--deadline", "soon"],
        &["reject", "psb", "--fingerprint", "xyz"],
        &["watch"],
        &["wait", "psb"],
        &["wait", "psb", "--for", "long"],
        &["nonsense"],
        &[],
    ] {
        let ran = bench.run(args);
        assert_eq!((ran.exit, ran.out.as_str()), (2, ""), "{args:?}: {ran:?}");
        assert!(!ran.err.is_empty(), "{args:?}");
    }
}

#[test]
fn without_a_daemon_the_socket_is_named() {
    let bench = Bench::new();
    let socket = bench.socket();
    let advice = "see `systemctl status tokend`, or name another socket with --socket or TOKEND_SOCKET";
    let missing = format!("tokenctl: no daemon at {}: there is no such socket; {advice}\n", socket.display());
    bench.run(&["get", "psb"]).is(3, "", &missing);
    drop(std::os::unix::net::UnixListener::bind(&socket).unwrap());
    let dead = format!("tokenctl: no daemon at {}: no program listens there; {advice}\n", socket.display());
    bench.run(&["get", "psb"]).is(3, "", &dead);
}

#[test]
fn a_socket_that_may_not_be_used_points_to_its_group() {
    let bench = Bench::new();
    let socket = bench.socket();
    let _daemon = bench.daemon(happy_reply);
    fs::set_permissions(&socket, Permissions::from_mode(0o000)).unwrap();
    fs::set_permissions(bench.0.path(), Permissions::from_mode(0o755)).unwrap();
    // Root may use any socket, and where root builds, others may not reach the program.
    // Another process copies it, because a program that is open for writing, here or in a child, is not run.
    let copy = bench.0.path().join("tokenctl");
    assert!(Command::new("cp").arg(env!("CARGO_BIN_EXE_tokenctl")).arg(&copy).status().unwrap().success());
    let mut command = Command::new(&copy);
    command.arg("--socket").arg(&socket).args(["get", "psb"]).stdin(Stdio::null());
    let mut user = user();
    if Uid::effective().is_root() {
        command.uid(65_534).gid(65_534);
        user = User::from_uid(Uid::from_raw(65_534))
            .unwrap()
            .map_or_else(|| "65534".to_owned(), |user| user.name);
    }
    let socket = socket.display();
    Ran::of(command.output().unwrap()).is(
        3,
        "",
        &format!(
            "tokenctl: no permission to connect to {socket}: user {user} may lack the socket's group; \
             compare `ls -l {socket}` with `id`\n"
        ),
    );
}

#[test]
fn a_silent_daemon_is_exit_status_eight() {
    let bench = Bench::new();
    let _daemon = FakeDaemon::start(&bench.socket(), |_| Vec::new());
    bench.run(&["get", "psb", "--deadline", "10ms"]).is(
        8,
        "",
        "tokenctl: psb: the daemon did not answer before the deadline; try again, or wait longer with --deadline\n",
    );
}

#[test]
fn an_answer_that_is_none_is_exit_status_one() {
    let bench = Bench::new();
    let _daemon =
        FakeDaemon::start(&bench.socket(), |_| vec![Answer::Raw(b"HTTP/1.1 400 Bad Request\r\n".to_vec())]);
    let ran = bench.run(&["get", "psb"]);
    assert_eq!(ran.exit, 1, "{ran:?}");
    assert!(ran.err.starts_with("tokenctl: the daemon's answer is not understood: "), "{ran:?}");
}

#[test]
fn the_socket_comes_from_the_environment_unless_it_is_given() {
    let bench = Bench::new();
    let _daemon = bench.daemon(happy_reply);
    let run = |variable: &Path, args: &[&str]| {
        Ran::of(program().env("TOKEND_SOCKET", variable).args(args).output().unwrap())
    };
    run(&bench.socket(), &["get", "psb"]).is(0, "eyJ-sample-token\n", "");
    let given = bench.socket();
    let args = ["get", "psb", "--socket", given.to_str().unwrap()];
    run(Path::new("/nonexistent"), &args).is(0, "eyJ-sample-token\n", "");
    let elsewhere = run(Path::new("/nonexistent"), &["get", "psb"]);
    assert!(elsewhere.exit == 3 && elsewhere.err.contains("/nonexistent"), "{elsewhere:?}");
    // Set to nothing is not set; no system that builds this need have a daemon to tell whether it was asked.
    assert_ne!(run(Path::new(""), &["get", "psb", "--deadline", "0s"]).exit, 2);
}

/// Puts the documented figures in the place of those that depend on the clock, which must be near them.
fn with_documented_times(mut json: Value) -> Value {
    let (json_in, now) = (&mut json, tokend_client::now().0);
    match json_in {
        Value::Object(fields) => {
            if let Some(expires_at) = fields.get("expires_at_boot_ms").and_then(Value::as_u64) {
                let left = fields["expires_in_seconds"].as_u64().unwrap();
                let age = fields["age_seconds"].as_u64().unwrap();
                assert!((48..1_000).contains(&age), "{fields:?}");
                assert!(left + age <= 181_848 && left > 180_000, "{fields:?}");
                assert_eq!(expires_at - fields["issued_at_boot_ms"].as_u64().unwrap(), 181_848_000);
                assert!(expires_at > now, "{fields:?}");
                for (name, value) in [
                    ("expires_in_seconds", 181_800),
                    ("age_seconds", 48),
                    ("issued_at_boot_ms", 100_000_000),
                    ("expires_at_boot_ms", 281_848_000_u64),
                ] {
                    fields.insert(name.to_owned(), value.into());
                }
            }
            for value in fields.values_mut() {
                *value = with_documented_times(value.take());
            }
        }
        Value::Array(values) => {
            for value in values {
                *value = with_documented_times(value.take());
            }
        }
        _ => (),
    }
    json
}

/// The examples of `JSON.md`, by heading.
fn documented() -> Vec<(String, Value)> {
    let text = include_str!("../JSON.md");
    let sections = text.split("\n## ").skip(1);
    sections
        .map(|section| {
            let heading = section.lines().next().unwrap().to_owned();
            let example = section.split("```json\n").nth(1).unwrap().split("```").next().unwrap();
            (heading, serde_json::from_str(example).unwrap())
        })
        .collect()
}

#[test]
fn json_is_as_documented() {
    let bench = Bench::new();
    let daemon = bench.daemon(happy_reply);
    let mut documented = documented();
    let (_, error) = documented.pop().unwrap();
    let headings: Vec<_> = documented.iter().map(|(heading, _)| heading.as_str()).collect();
    assert_eq!(
        headings,
        ["get", "headers", "list", "status", "refresh", "reject", "watch", "wait", "explain", "version"]
    );
    for (command, example) in &documented {
        let args: &[&str] = match command.as_str() {
            "list" | "status" | "version" => &["--json", command],
            "watch" => continue,
            "wait" => &["wait", "psb", "--for", "fresh", "--json"],
            _ => &[command, "psb", "--json"],
        };
        let ran = bench.run(args);
        assert_eq!((ran.exit, &with_documented_times(ran.json())), (0, example), "{command}");
    }
    drop(daemon);

    let daemon = FakeDaemon::start(&bench.socket(), |_| {
        let gone = ErrorReply { next_attempt: Some(Timestamp(5_000)), ..self::error(ErrorCode::Unavailable) };
        let message = "no answer within 10s".to_owned();
        let gone = ErrorReply { message, class: Some(ErrorClass::Timeout), ..gone };
        vec![Answer::Reply(Reply::Event(event(State::Fresh))), Answer::Reply(Reply::Error(gone))]
    });
    let ran = bench.run(&["watch", "psb", "--json"]);
    let lines: Vec<Value> =
        ran.out.lines().map(|line| with_documented_times(serde_json::from_str(line).unwrap())).collect();
    assert_eq!(lines, [documented[6].1.clone(), error]);
    assert_eq!((ran.exit, daemon.requests().len()), (6, 1));
}

#[test]
fn errors_are_json_too() {
    let bench = Bench::new();
    for (args, exit, code) in [
        (&["get", "psb", "--json"][..], 3, "not-reachable"),
        (&["--json", "get", "a/b"], 2, "usage"),
        (&["--json", "nonsense"], 2, "usage"),
    ] {
        let ran = bench.run(args);
        let error = &ran.json()["error"];
        assert_eq!((ran.exit, error["code"].as_str()), (exit, Some(code)), "{ran:?}");
        assert_eq!(error["exit_status"], exit);
        assert!(ran.err.contains(error["message"].as_str().unwrap()), "{ran:?}");
    }
}

/// Runs on a terminal and returns what appears there.
fn on_a_terminal(command: &mut Command) -> String {
    let terminal = nix::pty::openpty(None, None).unwrap();
    let mut child = command.stdout(terminal.slave).stderr(Stdio::piped()).spawn().unwrap();
    command.stdout(Stdio::null());
    assert!(child.wait().unwrap().success());
    let mut shown = Vec::new();
    // Once the other side is closed, the terminal says so with an error.
    let _ = File::from(terminal.master).read_to_end(&mut shown);
    String::from_utf8(shown).unwrap().replace("\r\n", "\n")
}

#[test]
fn colours_are_for_terminals_that_take_them() {
    let bench = Bench::new();
    let _daemon = bench.daemon(happy_reply);
    let list = "NAME  STATE\nbnp   degraded\npsb   fresh\n";
    let painted = "NAME  STATE\nbnp   \x1b[33mdegraded\x1b[0m\npsb   \x1b[32mfresh\x1b[0m\n";
    assert_eq!(on_a_terminal(&mut bench.command(&["list"])), painted);
    assert_eq!(on_a_terminal(bench.command(&["list"]).env("NO_COLOR", "")), painted);
    assert_eq!(on_a_terminal(bench.command(&["list"]).env("NO_COLOR", "1")), list);
    assert_eq!(on_a_terminal(bench.command(&["list"]).env("TERM", "dumb")), list);
    assert!(on_a_terminal(&mut bench.command(&["status"])).contains("\x1b[31munavailable\x1b[0m"));
    let piped = bench.run(&["status"]);
    assert!(!piped.out.contains('\x1b'), "{piped:?}");
}

#[test]
fn output_that_nobody_takes_is_no_panic() {
    let bench = Bench::new();
    let _daemon = bench.daemon(happy_reply);
    for args in [&["get", "psb"][..], &["status"], &["list", "--json"], &["completions", "bash"], &["man"]] {
        let full = File::options().write(true).open("/dev/full").unwrap();
        let ran = Ran::of(bench.command(args).stdout(full).output().unwrap());
        let message = "tokenctl: cannot write to standard output: No space left on device (os error 28)\n";
        assert_eq!((ran.exit, ran.err.as_str()), (1, message), "{args:?}");
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let ran = Ran::of(bench.command(args).stdout(writer).output().unwrap());
        assert_eq!((ran.exit, ran.err.as_str()), (0, ""), "{args:?}");
    }
}

#[test]
fn completions_are_made_for_each_shell() {
    for (shell, mark) in
        [("bash", "complete -F"), ("zsh", "#compdef tokenctl"), ("fish", "complete -c tokenctl")]
    {
        let ran = Ran::of(program().args(["completions", shell]).output().unwrap());
        assert_eq!(ran.exit, 0, "{ran:?}");
        assert!(ran.out.contains(mark) && ran.out.contains("min-ttl"), "{shell}");
    }
}

/// The completions that bash offers for these words, the last of which is completed.
fn completed(bench: &Bench, words: &str) -> Vec<String> {
    let script = format!(
        "PATH={}:$PATH; source <(tokenctl completions bash); COMP_WORDS=({words}); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1))
         _tokenctl tokenctl \"${{COMP_WORDS[-1]}}\" \"${{COMP_WORDS[-2]}}\"; printf '%s\\n' \"${{COMPREPLY[@]}}\"",
        Path::new(env!("CARGO_BIN_EXE_tokenctl")).parent().unwrap().display()
    );
    let mut bash = Command::new("bash");
    let ran = Ran::of(bash.args(["-c", &script]).env("TOKEND_SOCKET", bench.socket()).output().unwrap());
    assert_eq!((ran.exit, ran.err.as_str()), (0, ""), "{words}: {ran:?}");
    ran.out.lines().map(str::to_owned).collect()
}

#[test]
fn bash_completes_the_names_of_tokens() {
    let bench = Bench::new();
    let daemon = bench.daemon(happy_reply);
    for command in
        ["get", "headers", "exec", "sync", "status", "refresh", "watch", "explain", "helper kubectl"]
    {
        assert_eq!(completed(&bench, &format!("tokenctl {command} p")), ["psb"], "{command}");
    }
    let all = completed(&bench, "tokenctl get ''");
    assert!(["bnp", "psb", "--min-ttl"].iter().all(|word| all.contains(&(*word).to_owned())), "{all:?}");
    assert_eq!(completed(&bench, "tokenctl list p"), [""]);
    let requests = daemon.requests().len();
    assert_eq!(completed(&bench, "tokenctl get --min"), ["--min-ttl"]);
    assert_eq!(daemon.requests().len(), requests, "an option needs no daemon");
    drop(daemon);
    assert_eq!(completed(&bench, "tokenctl get p"), [""]);
}

#[test]
fn the_help_of_each_command_has_examples() {
    let help = |words: &[&str]| Ran::of(program().args(words).arg("--help").output().unwrap()).out;
    let commands = |help: &str| -> Vec<String> {
        let list = help.split("\nCommands:\n").nth(1).unwrap().split("\n\n").next().unwrap();
        let names = list.lines().filter(|line| line.starts_with("  ") && !line.starts_with("   "));
        names.map(|line| line.split_whitespace().next().unwrap().to_owned()).collect()
    };
    let mut checked = 0;
    for command in commands(&help(&[])) {
        let helpers = if command == "helper" { commands(&help(&["helper"])) } else { vec![String::new()] };
        for helper in helpers.iter().filter(|name| *name != "help" && command != "help") {
            let words: Vec<_> =
                [command.as_str(), helper].into_iter().filter(|word| !word.is_empty()).collect();
            let text = help(&words);
            assert!(text.contains("\nExamples:\n  "), "{words:?}: {text}");
            checked += 1;
        }
    }
    assert_eq!(checked, 21);
}

#[test]
fn manual_pages_are_made() {
    let page = Ran::of(program().arg("man").output().unwrap());
    assert_eq!(page.exit, 0, "{page:?}");
    for part in [".TH tokenctl 1", ".SH \"EXIT STATUS\"", "TOKEND_SOCKET", ".SH \"JSON OUTPUT\"", "best_ttl"]
    {
        assert!(page.out.contains(part), "{part} is not in the page");
    }
    let dir = TempDir::new().unwrap();
    let ran = Ran::of(program().arg("man").arg(dir.path()).output().unwrap());
    ran.is(0, "", "");
    assert_eq!(fs::read_to_string(dir.path().join("tokenctl.1")).unwrap(), page.out);
    let get = fs::read_to_string(dir.path().join("tokenctl-get.1")).unwrap();
    assert!(get.contains(".TH tokenctl-get 1") && get.contains("min\\-ttl"), "{get}");
    assert!(get.contains(".SH EXAMPLES\n.nf\n  tokenctl get psb\n") && !get.contains("EXTRA"), "{get}");
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 18);
    let nowhere = Ran::of(program().args(["man", "/nonexistent"]).output().unwrap());
    assert_eq!(nowhere.exit, 1);
    assert!(nowhere.err.starts_with("tokenctl: cannot write /nonexistent/tokenctl.1: "), "{nowhere:?}");
}
