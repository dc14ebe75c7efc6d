//! The Python client library: its own tests, and programs written with it against the real daemon. `tests/run` installs what
//! they need.

#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a panic is how a test fails")]

use std::collections::HashSet;
use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, mpsc};
use std::thread;
use std::time::Duration;

use nix::sys::signal::Signal;
use tokend_tests::daemon::Launch;
use tokend_tests::test_support::{provider_table, token_table};
use tokend_tests::{
    Answer, Finished, Provider, Scene, TestDir, process, program, requirement, secrets, wait,
};

const LIMIT: Duration = Duration::from_secs(300);

/// The type of a token that Google takes for one of its own.
const JWT: &str = "urn:ietf:params:oauth:token-type:jwt";

fn library() -> PathBuf {
    program::workspace().join("client-lib/python")
}

/// The Python of the tests: the environment that `tests/run` makes, or else that of the machine.
fn python(home: &Path) -> Command {
    let environment = program::workspace().join("target/python/bin/python3");
    let mut command = Command::new(if environment.is_file() { environment } else { "python3".into() });
    command.arg("-B").current_dir(home).env("PYTHONPATH", library());
    command
}

/// Whether there is Python with these packages.
fn has(packages: &[&str]) -> bool {
    let import = format!("import {}", packages.join(", "));
    requirement::program("python3") && {
        let imported = process::run(python(Path::new("/")).args(["-c", &import]), LIMIT);
        requirement::met(&format!("Python with {} (see tests/run)", packages.join(", ")), imported.code == 0)
    }
}

/// Runs a program with the library against a daemon. It must not print a secret.
fn run_program(scene: &Scene, text: &str, arguments: &[&str]) -> Finished {
    let mut command = python(scene.home.path());
    command.args(["-W", "error", "-c", text]).args(arguments).env("TOKEND_SOCKET", scene.socket());
    let finished = process::run(&mut command, LIMIT);
    secrets::assert_absent("standard output of the program", &finished.stdout);
    finished
}

#[test]
fn the_library_s_own_tests_pass() {
    if !requirement::program("python3") {
        return;
    }
    let run = process::run(python(&library()).args(["-m", "unittest"]), LIMIT);
    assert!(run.code == 0 && run.stderr.contains("\nOK"), "{run:?}");
    // They skip the tests of what is not installed, which is reported here.
    let skips = run.stderr.contains("skipped=");
    assert!(!(has(&["requests", "httpx"]) && skips), "{run:?}");
}

#[test]
fn the_types_are_right() {
    if !has(&["mypy", "requests", "httpx"]) {
        return;
    }
    let cache = program::workspace().join("target/python/mypy");
    process::run(python(&library()).args(["-m", "mypy", "--cache-dir"]).arg(cache), LIMIT).expect_success();
}

#[test]
fn the_version_is_that_of_the_daemon() {
    let metadata = fs::read_to_string(library().join("pyproject.toml")).unwrap();
    assert!(metadata.contains(&format!("\nversion = \"{}\"\n", env!("CARGO_PKG_VERSION"))), "{metadata}");
}

#[test]
fn the_first_lines_of_the_readme_work() {
    if !requirement::program("python3") {
        return;
    }
    let scene = Scene::start(Provider::start(), &token_table("psb", ""));
    let readme = fs::read_to_string(library().join("README.md")).unwrap();
    let lines = readme.split("```").nth(1).and_then(|block| block.strip_prefix("python\n")).unwrap();
    let printed = run_program(&scene, lines, &[]).expect_success();
    let held = &scene.tokenctl().status_of("psb")["held"];
    assert!(printed.contains(held["fingerprint"].as_str().unwrap()), "{printed}");
    assert!(printed.ends_with("['Authorization']\npsb fresh\n"), "{printed}");
}

#[test]
fn a_user_without_a_rule_is_refused() {
    if !requirement::program("python3") || !requirement::root() {
        return;
    }
    let table = token_table("t", "allow = [\"user:61002\"]");
    let scene = Scene::start_with(Provider::start(), "socket_group = \"61000\"", &table);
    let text = "
import os, sys, tokend
os.setgroups([61000]), os.setgid(61001), os.setuid(int(sys.argv[1]))
try:
    print(tokend.Client().get('t').fingerprint)
except tokend.NotAllowed as error:
    sys.exit(f'refused: {error}')
";
    let refused = run_program(&scene, text, &["61001"]).expect_code(1);
    assert!(refused.starts_with("refused: ") && refused.contains("no such token"), "{refused}");
    run_program(&scene, text, &["61002"]).expect_success();
}

/// An API that refuses every other request, after the daemon has replaced the token.
fn api_that_refuses_each_token_at_first(scene: &Scene) -> Provider {
    let (tokenctl, mut calls) = (scene.tokenctl(), 0);
    Provider::start_answering(move |request| {
        calls += 1;
        if calls % 2 == 1 {
            tokenctl.run(&["refresh", "t"]).expect_success();
            return Answer::status(401);
        }
        let is_new = request.header("authorization") == Some(&format!("Bearer {}", tokenctl.get("t")));
        Answer::status(if is_new { 200 } else { 403 })
    })
}

#[test]
fn http_clients_repeat_a_refused_request_with_another_token() {
    if !has(&["requests", "httpx"]) {
        return;
    }
    let scene = Scene::start(Provider::start(), &token_table("t", ""));
    let api = api_that_refuses_each_token_at_first(&scene);
    let text = "
import asyncio, sys, httpx, requests, tokend.httpx, tokend.requests
print(requests.get(sys.argv[1], auth=tokend.requests.TokenAuth('t')).status_code)
with httpx.Client(auth=tokend.httpx.TokenAuth('t')) as http:
    print(http.post(sys.argv[1], json={'amount': 5}).status_code)
async def call():
    async with httpx.AsyncClient(auth=tokend.httpx.TokenAuth('t')) as http:
        print((await http.get(sys.argv[1])).status_code)
asyncio.run(call())
";
    assert_eq!(run_program(&scene, text, &[&api.url("/accounts")]).expect_success(), "200\n200\n200\n");
    let bodies: Vec<_> = api.requests().into_iter().map(|request| request.body).collect();
    assert_eq!(bodies, ["", "", "{\"amount\":5}", "{\"amount\":5}", "", ""]);
}

#[test]
fn opentelemetry_repeats_a_refused_export_with_another_token() {
    if !has(&["requests", "opentelemetry.exporter.otlp.proto.http"]) {
        return;
    }
    let scene = Scene::start(Provider::start(), &token_table("t", ""));
    let api = api_that_refuses_each_token_at_first(&scene);
    let text = "
import sys, requests, tokend.requests
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
class Exporter(OTLPSpanExporter):
    def export(self, spans):
        result = super().export(spans)
        print(result.name)
        return result
session = requests.Session()
session.auth = tokend.requests.TokenAuth('t')
provider = TracerProvider()
provider.add_span_processor(SimpleSpanProcessor(Exporter(sys.argv[1], session=session)))
for name in ['first', 'second']:
    with provider.get_tracer('example').start_as_current_span(name):
        pass
provider.shutdown()
";
    let url = api.url("/v1/traces");
    assert_eq!(run_program(&scene, text, &[&url]).expect_success(), "SUCCESS\nSUCCESS\n");
    let requests = api.requests();
    let names = requests.iter().map(|request| request.body.contains("first"));
    assert_eq!(names.collect::<Vec<_>>(), [true, true, false, false], "each batch is sent twice");
}

/// Google's library runs `tokenctl helper google`, and exchanges the token for one of Google.
#[test]
fn google_exchanges_the_newest_token() {
    if !has(&["google.auth", "requests"]) {
        return;
    }
    let scene = Scene::start(Provider::start(), &token_table("t", ""));
    let tokenctl = scene.tokenctl();
    let google = Provider::start_answering(move |request| {
        let is_newest = request.field("subject_token") == Some(tokenctl.get("t"));
        if !is_newest || request.field("subject_token_type").as_deref() != Some(JWT) {
            return Answer::refusal(400, "invalid_grant");
        }
        let mut token =
            serde_json::json!({ "access_token": "exchanged", "token_type": "Bearer", "expires_in": 3600 });
        token["issued_token_type"] = "urn:ietf:params:oauth:token-type:access_token".into();
        Answer::json(200, &token)
    });
    let command =
        format!("{} --socket {} helper google t", program::tokenctl().display(), scene.socket().display());
    let configuration = serde_json::json!({
        "type": "external_account",
        "audience": "//iam.googleapis.com/projects/1/locations/global/workloadIdentityPools/p/providers/p",
        "subject_token_type": JWT,
        "token_url": google.url("/v1/token"),
        "credential_source": { "executable": { "command": command, "timeout_millis": 120_000 } },
    });
    fs::write(scene.home.path().join("google.json"), configuration.to_string()).unwrap();
    let text = "
import os, sys, google.auth.pluggable, google.auth.transport.requests
os.environ['GOOGLE_EXTERNAL_ACCOUNT_ALLOW_EXECUTABLES'] = '1'
credentials = google.auth.pluggable.Credentials.from_file('google.json', scopes=['example'])
with google.auth.transport.requests.requests.Session() as session:
    try:
        credentials.refresh(google.auth.transport.requests.Request(session))
    except google.auth.exceptions.RefreshError as error:
        sys.exit(str(error))
print(credentials.token)
";
    for _ in 0..2 {
        assert_eq!(run_program(&scene, text, &[]).expect_success(), "exchanged\n");
        scene.tokenctl().run(&["refresh", "t"]).expect_success();
    }
    scene.reconfigure("", &token_table("u", ""));
    scene.daemon.signal(Signal::SIGHUP);
    let refused = wait::until("a refusal", || {
        let run = run_program(&scene, text, &[]);
        (run.code != 0).then_some(run.stderr)
    });
    assert!(refused.contains("no such token"), "the library passes on the reason: {refused}");
}

/// An API that answers 401 to the tokens in the set.
fn api(revoked: &Arc<Mutex<HashSet<String>>>) -> Provider {
    let revoked = Arc::clone(revoked);
    Provider::start_answering(move |request| {
        let token = request.header("authorization").and_then(|value| value.strip_prefix("Bearer "));
        let is_refused = token.is_none_or(|token| revoked.lock().unwrap().contains(token));
        Answer::status(if is_refused { 401 } else { 200 })
    })
}

/// The running example. It is killed when it is dropped.
struct Example {
    child: Child,
    lines: mpsc::Receiver<String>,
}

impl Example {
    fn start(home: &TestDir, url: &str) -> Self {
        let mut command = python(home.path());
        command.arg(library().join("examples/service.py")).args(["t", url]);
        command.env("TOKEND_SOCKET", home.socket()).stdin(Stdio::null());
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        let (send, lines) = mpsc::channel();
        thread::spawn(move || output.lines().map_while(Result::ok).try_for_each(|line| send.send(line)));
        Self { child, lines }
    }

    /// Waits for a call with this token that the API accepts.
    fn wait_for(&self, what: &str, fingerprint: &str) {
        let is_it = |line: &str| line.starts_with("200") && line.ends_with(fingerprint);
        while !is_it(&self.lines.recv_timeout(wait::PATIENCE).expect(what)) {}
    }

    /// Waits for its end: its exit code and standard error.
    fn wait_for_exit(mut self) -> (i32, String) {
        let code = process::exit_code_within(&mut self.child, wait::PATIENCE).expect("the example ends");
        let mut errors = String::new();
        self.child.stderr.take().unwrap().read_to_string(&mut errors).unwrap();
        (code, errors)
    }
}

impl Drop for Example {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn the_example_goes_on_through_a_rotation_a_401_and_a_restart_and_ends_with_a_refusal() {
    if !requirement::program("python3") {
        return;
    }
    let home = TestDir::new();
    let (provider, revoked) = (Provider::start_answering(|_| Answer::token(100)), Arc::default());
    let table = provider_table(&home, "p", &provider.token_endpoint(), "");
    home.configure("", &format!("{table}{}", token_table("t", "")));
    let mut daemon = Launch::new(&home).start();
    let tokenctl = daemon.tokenctl();
    let api = api(&revoked);
    let example = Example::start(&home, &api.url("/accounts"));
    let held = || tokenctl.status_of("t")["held"]["fingerprint"].as_str().map(str::to_owned);
    let another = |what: &str, than: &str| wait::until(what, || held().filter(|now| now != than));
    let first = another("the first token", "");
    example.wait_for("a call", &first);
    tokenctl.run(&["refresh", "t"]).expect_success();
    let second = another("the rotation", &first);
    example.wait_for("a call after the rotation", &second);
    revoked.lock().unwrap().insert(tokenctl.get("t"));
    let third = another("the 401 is reported", &second);
    daemon.wait_for_log(&["an API refused the token", &second]);
    example.wait_for("a call after the 401", &third);
    assert_eq!(daemon.stop(), 0);
    let daemon = Launch::new(&home).start();
    let fourth = another("a token after the restart", &third);
    example.wait_for("a call after the restart", &fourth);
    home.configure("", &format!("{table}{}", token_table("u", "")));
    daemon.signal(Signal::SIGHUP);
    let (code, errors) = example.wait_for_exit();
    secrets::assert_absent("standard error of the example", &errors);
    assert!(code == 1 && errors.contains("no such token"), "{code}: {errors}");
}
