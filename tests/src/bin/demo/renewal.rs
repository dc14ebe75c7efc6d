//! Watches a short-lived token being renewed, with the eyes of `tokenctl watch`.

use std::io::{BufRead, BufReader};
use std::process::{Child, ChildStdout, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;
use tokend_tests::RealDaemon;

use crate::screen::{Ink, Screen};

/// A renewal comes well within one lifetime; this is for a machine that is busy with something else.
const LIMIT: Duration = Duration::from_secs(8);

/// A running `tokenctl watch`, which is ended when it is dropped.
struct Watcher {
    child: Child,
    lines: Receiver<String>,
}

impl Watcher {
    fn start(daemon: &RealDaemon, name: &str) -> Result<Self, String> {
        let mut command = daemon.tokenctl().command();
        let command = command.args(["--json", "watch", name]).stdin(Stdio::null()).stdout(Stdio::piped());
        let mut child = command.spawn().map_err(|error| format!("tokenctl watch: {error}"))?;
        let stdout = child.stdout.take().ok_or("tokenctl watch has no output")?;
        Ok(Self { child, lines: read_lines(stdout) })
    }

    /// The next token that is held, with its fingerprint and its remaining seconds.
    fn next_held(&self, end: Instant) -> Result<(String, u64), String> {
        loop {
            let left = end.saturating_duration_since(Instant::now());
            let line = self.lines.recv_timeout(left).map_err(|error| match error {
                RecvTimeoutError::Timeout => format!("no renewal within {LIMIT:?}"),
                RecvTimeoutError::Disconnected => "tokenctl watch ended".to_owned(),
            })?;
            let event: Value = serde_json::from_str(&line).map_err(|error| format!("{line}: {error}"))?;
            let held = |key: &str| event.pointer(&format!("/held/{key}"));
            let fingerprint = held("fingerprint").and_then(Value::as_str);
            if let Some((fingerprint, left)) =
                fingerprint.zip(held("expires_in_seconds").and_then(Value::as_u64))
            {
                return Ok((fingerprint.to_owned(), left));
            }
        }
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn read_lines(stdout: ChildStdout) -> Receiver<String> {
    let (sender, lines) = mpsc::channel();
    thread::spawn(move || {
        for line in BufReader::new(stdout).lines().map_while(Result::ok) {
            if sender.send(line).is_err() {
                return;
            }
        }
    });
    lines
}

/// Waits for one renewal of a token, before which the old one must not have expired.
pub(crate) fn watch(screen: &Screen, daemon: &RealDaemon, name: &str, life: Duration) -> Result<(), String> {
    screen.heading(&format!("$ tokenctl watch {name}"));
    let remark =
        format!("its tokens live for {} seconds here; nobody asks for one meanwhile", life.as_secs());
    screen.item(Ink::Faint, &remark);
    let watcher = Watcher::start(daemon, name)?;
    let end = Instant::now() + LIMIT;
    let (first, left) = watcher.next_held(end)?;
    screen.item(Ink::Plain, &format!("token {first}, valid for {left} s"));
    let began = Instant::now();
    let mut fingerprint = first.clone();
    while fingerprint == first {
        (fingerprint, _) = watcher.next_held(end)?;
    }
    let waited = began.elapsed();
    if waited > Duration::from_secs(left + 1) {
        return Err(format!("the token had expired before another came, after {waited:?}"));
    }
    screen.item(
        Ink::Good,
        &format!("token {fingerprint} took its place after {:.1} s, before it expired", waited.as_secs_f64()),
    );
    Ok(())
}
