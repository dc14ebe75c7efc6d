//! Processors: which ones a process may use, and how much it used.

use std::fs;
use std::time::Duration;

use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;

/// Lets a process run on one processor only, the last of those that this process may use.
pub(crate) fn pin(pid: u32) {
    let mut one = CpuSet::new();
    one.set(allowed().pop().unwrap()).unwrap();
    set(pid, &one);
}

/// Lets a process run on all processors that this process may use.
pub(crate) fn free(pid: u32) {
    let mut all = CpuSet::new();
    for number in allowed() {
        all.set(number).unwrap();
    }
    set(pid, &all);
}

/// The numbers of the processors that this process may use.
pub(crate) fn allowed() -> Vec<usize> {
    let set = sched_getaffinity(Pid::this()).unwrap();
    (0..CpuSet::count()).filter(|number| set.is_set(*number).unwrap()).collect()
}

fn set(pid: u32, processors: &CpuSet) {
    for thread in threads(pid) {
        sched_setaffinity(Pid::from_raw(thread), processors).unwrap();
    }
}

/// The processor time that the threads of a process used so far.
pub(crate) fn used(pid: u32) -> Duration {
    let of_thread = |thread: i32| {
        let text = fs::read_to_string(format!("/proc/{pid}/task/{thread}/schedstat")).unwrap_or_default();
        text.split(' ').next().and_then(|nanos| nanos.parse::<u64>().ok()).unwrap_or_default()
    };
    Duration::from_nanos(threads(pid).into_iter().map(of_thread).sum())
}

/// How many times the threads of a process went to sleep by themselves so far.
pub(crate) fn sleeps(pid: u32) -> u64 {
    let of_thread = |thread: i32| {
        let status = fs::read_to_string(format!("/proc/{pid}/task/{thread}/status")).unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
        line.map_or(0, |count| count.trim().parse().unwrap())
    };
    threads(pid).into_iter().map(of_thread).sum()
}

fn threads(pid: u32) -> Vec<i32> {
    let entries = fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    entries.map(|entry| entry.unwrap().file_name().to_str().unwrap().parse().unwrap()).collect()
}
