//! `tokenctl watch` tells of a rotation as it happens, and `tokenctl get` waits for none of it.

use std::io::{BufRead, BufReader};
use std::process::{Child, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::Instant;

use serde_json::Value;
use tokend_tests::test_support::token_table;
use tokend_tests::{Answer, Gate, Provider, Scene, Tokenctl, wait};

/// A running `tokenctl watch --json`. It is killed when it is dropped.
struct Watch {
    child: Child,
    lines: Receiver<(Instant, Value)>,
}

impl Watch {
    fn start(tokenctl: &Tokenctl, name: &str) -> Self {
        let mut command = tokenctl.command();
        command.args(["watch", "--json", name]).stdin(Stdio::null()).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        let (send, lines) = mpsc::channel();
        thread::spawn(move || {
            for line in stdout.lines().map_while(Result::ok) {
                let event = serde_json::from_str(&line).unwrap_or(Value::String(line));
                if send.send((Instant::now(), event)).is_err() {
                    return;
                }
            }
        });
        Self { child, lines }
    }

    /// The first event that is as wanted, and when it came. Those before it are passed over.
    fn wait_for(&self, what: &str, wanted: impl Fn(&Value) -> bool) -> (Instant, Value) {
        let end = Instant::now() + wait::PATIENCE;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            let (at, event) = self.lines.recv_timeout(left).expect(what);
            if wanted(&event) {
                return (at, event);
            }
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn fingerprint(event: &Value) -> &Value {
    &event["held"]["fingerprint"]
}

#[test]
#[expect(clippy::print_stdout, reason = "how soon is for the readers of the output, not for an assertion")]
fn a_watch_prints_a_rotation_as_it_happens_and_a_get_waits_for_nothing() {
    let gate = Gate::new();
    let provider = Provider::start();
    provider.then(Answer::token(3600));
    provider.always(Answer::token(3600).behind(&gate));
    let scene = Scene::start(provider, &token_table("t", ""));
    let tokenctl = scene.tokenctl();
    let before = tokenctl.get("t");
    let watch = Watch::start(&tokenctl, "t");
    let (_, first) = watch.wait_for("the present condition", |_| true);
    assert_eq!((&first["name"], &first["state"]), (&Value::from("t"), &Value::from("fresh")), "{first}");

    thread::scope(|scope| {
        let refresh = scope.spawn(|| tokenctl.run(&["refresh", "t"]));
        scene.provider.wait_for_requests(2);
        let (_, renewing) = watch.wait_for("the renewal's beginning", |event| event["state"] == "refreshing");
        assert_eq!(fingerprint(&renewing), fingerprint(&first));
        assert_eq!(tokenctl.get("t"), before, "it does not wait for the provider, which is silent");

        let opened = Instant::now();
        gate.open();
        let (told, renewed) =
            watch.wait_for("the new token", |event| fingerprint(event) != fingerprint(&first));
        assert!(told >= opened && renewed["state"] == "fresh", "{renewed}");
        println!("told {:?} after the provider was let answer", told - opened);
        assert_ne!(tokenctl.get("t"), before, "what is told can be had");
        refresh.join().unwrap().expect_success();
    });
    let rest: Vec<Value> = watch.lines.try_iter().map(|(_, event)| event).collect();
    assert_eq!(rest, Vec::<Value>::new(), "nothing happens, and nothing is told");
}

#[test]
fn a_watch_tells_of_a_failure_and_of_its_end() {
    let provider = Provider::start();
    provider.then(Answer::token(3600));
    provider.always(Answer::status(503));
    let scene = Scene::start(provider, &token_table("t", ""));
    let tokenctl = scene.tokenctl();
    let before = tokenctl.get("t");
    let watch = Watch::start(&tokenctl, "t");
    watch.wait_for("the present condition", |event| event["state"] == "fresh");
    tokenctl.run(&["refresh", "t"]).expect_code(6);
    let (_, failed) = watch.wait_for("the failure", |event| event["state"] == "degraded");
    assert_eq!(failed["last_error"], "server", "{failed}");
    assert_eq!(tokenctl.get("t"), before);
    scene.provider.always(Answer::token(3600));
    let (_, over) = watch.wait_for("the recovery", |event| event["state"] == "fresh");
    assert!(over["last_error"].is_null(), "{over}");
    assert_ne!(tokenctl.get("t"), before);
}
