//! An attack on the audit trail: allowed calls that differ in whatever a caller can vary. Processes of ever new numbers run
//! copies of a program, in control groups of the user's own, and ask for variants of a token.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::{env, thread};

use tokend_protocol::{Reply, read_frame};
use tokend_tests::raw_peer;

use crate::attacker::{Attacker, LETTERS, become_user, get};

/// Copies of the program, and control groups.
const COPIES: usize = 199;
const GROUPS: usize = 64;

/// Variants of a token, fewer than it may have, and calls for each on one connection.
const VARIANTS: usize = 24;
const CALLS: usize = 4;

/// Starts callers without end, until the input ends. Prints how many tokens they got.
pub(crate) fn run(attacker: &Attacker) {
    let copies = copies(attacker);
    let groups = control_groups(attacker.uid);
    let (stop, got, started) = (AtomicBool::new(false), AtomicU64::new(0), AtomicUsize::new(0));
    let (uid, socket) = (attacker.uid.to_string(), &attacker.socket);
    let work = || {
        while !stop.load(Ordering::Relaxed) {
            let number = started.fetch_add(1, Ordering::Relaxed);
            let group = groups.get(number % GROUPS).map_or(Path::new(""), PathBuf::as_path);
            let mut program = Command::new(&copies[number % COPIES]);
            let called = program.args(["once", &uid]).args([group, socket]).output().unwrap();
            let text = String::from_utf8(called.stdout).unwrap();
            got.fetch_add(text.trim().parse::<u64>().unwrap_or_default(), Ordering::Relaxed);
        }
    };
    thread::scope(|scope| {
        for _ in 0..attacker.threads() {
            scope.spawn(work);
        }
        println!("ready");
        std::io::stdin().read_to_end(&mut Vec::new()).unwrap();
        stop.store(true, Ordering::Relaxed);
    });
    // From the innermost outwards.
    let outer = groups.iter().flat_map(|group| group.ancestors().skip(1).take(3)).take(3);
    groups.iter().map(PathBuf::as_path).chain(outer).for_each(|group| drop(fs::remove_dir(group)));
    println!("{}", got.load(Ordering::Relaxed));
}

/// Makes links to this program.
fn copies(attacker: &Attacker) -> Vec<PathBuf> {
    let this = env::current_exe().unwrap();
    let paths = (0..COPIES).map(|n| this.with_file_name(format!("caller-{}-{n}", attacker.uid)));
    paths
        .inspect(|path| {
            if !path.exists() {
                fs::hard_link(&this, path).unwrap();
            }
        })
        .collect()
}

/// Makes units of the user's own service manager, as far as the kernel lets this process. Otherwise there are none, and
/// the attack does without.
fn control_groups(uid: u32) -> Vec<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    let unified = mounts.lines().find(|line| line.split(' ').nth(2) == Some("cgroup2"));
    let Some(root) = unified.and_then(|line| line.split(' ').nth(1)) else { return Vec::new() };
    let manager = format!("{root}/user.slice/user-{uid}.slice/user@{uid}.service");
    let groups = (0..GROUPS).map(|n| PathBuf::from(format!("{manager}/unit{n}.service")));
    groups.filter(|group| fs::create_dir_all(group).is_ok()).collect()
}

/// The role `once`: asks for each variant a few times and prints how many tokens came.
pub(crate) fn call(uid: u32, control_group: &str, socket: &str) {
    if !control_group.is_empty() {
        let _ = fs::write(Path::new(control_group).join("cgroup.procs"), "0");
    }
    become_user(uid, 1);
    let calls = (0..VARIANTS).cycle().take(VARIANTS * CALLS);
    let scope = |n: usize| vec![LETTERS[n].to_string(), LETTERS[n + 1].to_string()];
    let wire: Vec<u8> =
        (0..).zip(calls).flat_map(|(id, n)| raw_peer::wire(id, get("varied", scope(n)))).collect();
    let got = UnixStream::connect(socket).and_then(|mut stream| {
        stream.write_all(&wire)?;
        let mut tokens = 0;
        for _ in 0..VARIANTS * CALLS {
            let Some(Ok(reply)) = read_frame::<Reply>(&mut stream)? else { break };
            tokens += u64::from(matches!(reply.message, Reply::Token(_)));
        }
        Ok(tokens)
    });
    println!("{}", got.unwrap_or_default());
}
