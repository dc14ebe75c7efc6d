//! The instructions and the system calls of the daemon for one call, as callgrind and strace count them.
//!
//! Neither depends on the speed of the machine. Instructions are those of the program. The kernel's are not among them.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::io::{BufRead, BufReader, Read, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, Uid};

use crate::Plan;
use crate::load::connect;
use crate::server::Kind;
use crate::table::Report;
use crate::tokend::Tokens;

/// Calls of each kind. With several requests in flight, each request is a call.
const CALLS: usize = 2048;

/// Until the daemon has noticed the end of the last connection.
const REST: Duration = Duration::from_millis(300);

/// The functions that are named, those with the most instructions of their own.
const FUNCTIONS: usize = 12;

/// The longest name of a function.
const NAME: usize = 90;

/// The share of all instructions from which on a function is one that calls all others.
const WHOLE: f64 = 0.99;

/// System calls that are rarer do not belong to the calls, but to the start or the end of the measurement.
const FEW: f64 = 0.01;

/// A name, and requests in flight on a connection that is kept. With 0, each call has a connection of its own.
const CASES: [(&str, usize); 3] = [("get", 1), ("get, 16 in flight", 16), ("connect, get, close", 0)];

/// Of a call, on average.
struct Counts {
    total: f64,
    /// By name, the largest first.
    parts: Vec<(String, f64)>,
}

pub(crate) fn measure(_: &Plan, report: &mut Report) {
    // The daemon lets no other process trace it.
    if !Uid::effective().is_root() {
        report.left_out.push("instructions and system calls of a call: run it as root".to_owned());
        return;
    }
    for program in ["callgrind_control", "strace"] {
        if Command::new(program).arg("--version").output().is_err() {
            report
                .left_out
                .push(format!("instructions and system calls of a call: {program} is not installed"));
            return;
        }
    }
    let tokens = Tokens::configure(5, 1, "");
    let instructions = instructions(&tokens);
    let calls = system_calls(&tokens);
    for (((name, _), instructions), calls) in CASES.iter().zip(&instructions).zip(&calls) {
        let what = format!("{name}: work of the daemon");
        report.add(what.clone(), "instructions", vec![instructions.total], None);
        report.add(what, "system calls", vec![calls.total], None);
        report.profiles.push(profile(name, instructions, calls));
    }
}

/// The parts of a call, as Markdown.
fn profile(name: &str, instructions: &Counts, calls: &Counts) -> String {
    let mut text = format!("\n{name}: {:.0} instructions\n\n", instructions.total);
    // callgrind counts all instructions for the functions that run for the whole time.
    let functions = instructions.parts.iter().filter(|(_, count)| *count < WHOLE * instructions.total);
    for (function, count) in functions.take(FUNCTIONS) {
        let share = 100.0 * count / instructions.total;
        let _ = writeln!(text, "    {count:>7.0} {share:>4.1} %  {function}");
    }
    let calls = calls.parts.iter().filter(|(_, count)| *count >= FEW);
    let calls: Vec<String> = calls.map(|(call, count)| format!("{call} {count:.2}")).collect();
    let _ = writeln!(text, "\nSystem calls: {}.", calls.join(", "));
    text
}

/// Runs the daemon under callgrind, which counts during the calls only.
fn instructions(tokens: &Tokens) -> Vec<Counts> {
    let files = tokens.home.path().join("callgrind");
    let out = format!("--callgrind-out-file={}", files.display());
    let daemon = tokens.launch().through(&["valgrind", "--quiet", "--tool=callgrind", &out]).start();
    tokens.wait_until_asked(daemon.socket());
    let pid = daemon.pid().to_string();
    let count = |(number, &(_, in_flight)): (usize, &(_, usize))| {
        call(daemon.socket(), in_flight);
        run("callgrind_control", &["--zero", &pid]);
        call(daemon.socket(), in_flight);
        run("callgrind_control", &["--dump", &pid]);
        let profile = format!("{}.{}", files.display(), number + 1);
        functions(&run("callgrind_annotate", &["--auto=no", "--threshold=100", &profile]))
    };
    CASES.iter().enumerate().map(count).collect()
}

/// Reads lines such as `1,234,567 (12.34%)  file.rs:function [program]`.
fn functions(annotated: &str) -> Counts {
    let mut parts = BTreeMap::new();
    let mut total = 0.0;
    for line in annotated.lines() {
        let Some((count, rest)) = line.trim().split_once(' ') else { continue };
        let Some(count) = count.replace(',', "").parse::<f64>().ok().map(|count| count / CALLS as f64) else {
            continue;
        };
        let Some((_, what)) = rest.split_once(')') else { continue };
        let what = what.trim();
        if what == "PROGRAM TOTALS" {
            total = count;
        } else if let Some((_, function)) = what.split_once(':') {
            let function = function.rsplit_once(" [").map_or(function, |(function, _)| function);
            *parts.entry(short(function)).or_insert(0.0) += count;
        }
    }
    Counts { total, parts: sorted(parts) }
}

/// A function's name without the hash of the compiler.
fn short(function: &str) -> String {
    let hash = |text: &str| text.len() == 16 && text.chars().all(|digit| digit.is_ascii_hexdigit());
    let name = function.rsplit_once("::h").filter(|(_, end)| hash(end)).map_or(function, |(name, _)| name);
    name.chars().take(NAME).collect()
}

fn sorted(parts: BTreeMap<String, f64>) -> Vec<(String, f64)> {
    let mut parts: Vec<_> = parts.into_iter().collect();
    parts.sort_by(|(_, one), (_, other)| other.total_cmp(one));
    parts
}

/// Runs the daemon, and attaches strace during the calls.
fn system_calls(tokens: &Tokens) -> Vec<Counts> {
    let daemon = tokens.launch().start();
    tokens.wait_until_asked(daemon.socket());
    let pid = daemon.pid();
    let count = |&(_, in_flight): &(_, usize)| {
        call(daemon.socket(), in_flight);
        let mut strace = Command::new("strace");
        strace.args(["-f", "-c", "-U", "calls,name", "-p", &pid.to_string()]);
        let mut strace = strace.stdin(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let mut said = BufReader::new(strace.stderr.take().unwrap()).lines();
        let line = said.next().unwrap().unwrap();
        assert!(line.contains("attached"), "strace says: {line}");
        call(daemon.socket(), in_flight);
        kill(Pid::from_raw(strace.id().try_into().unwrap()), Signal::SIGINT).unwrap();
        let lines: Vec<String> = said.map(Result::unwrap).collect();
        strace.wait().unwrap();
        summary(&lines)
    };
    CASES.iter().map(count).collect()
}

/// Reads lines such as `2048 epoll_wait`.
fn summary(lines: &[String]) -> Counts {
    let mut parts = BTreeMap::new();
    for line in lines {
        let Some((count, name)) = line.trim().split_once(' ') else { continue };
        let Ok(count) = count.parse::<f64>() else { continue };
        if name.trim() != "total" {
            parts.insert(name.trim().to_owned(), count / CALLS as f64);
        }
    }
    Counts { total: parts.values().sum(), parts: sorted(parts) }
}

fn call(socket: &Path, in_flight: usize) {
    if in_flight == 0 {
        for _ in 0..CALLS {
            Kind::Tokend.call(&mut connect(socket), "t0");
        }
    } else {
        call_kept(&mut connect(socket), in_flight);
    }
    thread::sleep(REST);
}

fn call_kept(stream: &mut UnixStream, in_flight: usize) {
    let size = Kind::Tokend.call(stream, "t0").len();
    let requests = Kind::Tokend.get("t0").repeat(in_flight);
    let mut replies = vec![0; size * in_flight];
    for _ in 0..CALLS / in_flight {
        stream.write_all(&requests).unwrap();
        stream.read_exact(&mut replies).unwrap();
    }
}

/// Runs a program, and returns its standard output.
fn run(program: &str, words: &[&str]) -> String {
    let done = Command::new(program).args(words).output().unwrap();
    assert!(done.status.success(), "{program} {words:?}: {}", String::from_utf8_lossy(&done.stderr));
    String::from_utf8_lossy(&done.stdout).into_owned()
}
