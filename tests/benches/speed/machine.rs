//! Facts about the machine and the programs that are compared.

use std::fs;
use std::process::Command;

use tokend_tests::program;

use crate::cpu;
use crate::server::Kind;

pub(crate) fn facts() -> Vec<(&'static str, String)> {
    let mut facts = vec![
        ("processor", line_of("/proc/cpuinfo", "model name")),
        ("processors", cpu::allowed().len().to_string()),
        ("memory", line_of("/proc/meminfo", "MemTotal")),
        ("kernel", first_words("/proc/sys/kernel/osrelease", 1)),
        ("load before the run (1, 5, 15 minutes)", first_words("/proc/loadavg", 3)),
        ("tokend", version(&program::tokend().display().to_string())),
    ];
    for kind in [Kind::Redis, Kind::Memcached] {
        facts.extend(kind.program().map(|program| (kind.name(), version(program))));
    }
    facts
}

/// The value of the first line of a file in /proc that begins with this name.
fn line_of(file: &str, name: &str) -> String {
    let text = fs::read_to_string(file).unwrap_or_default();
    let value = text.lines().find(|line| line.starts_with(name)).and_then(|line| line.split_once(':'));
    value.map_or("unknown", |(_, value)| value.trim()).to_owned()
}

fn first_words(file: &str, words: usize) -> String {
    let text = fs::read_to_string(file).unwrap_or_default();
    text.split_whitespace().take(words).collect::<Vec<_>>().join(" ")
}

/// The first line that a program prints about its version.
fn version(program: &str) -> String {
    let said = Command::new(program).arg("--version").output();
    let text = said.map(|said| String::from_utf8_lossy(&said.stdout).into_owned()).unwrap_or_default();
    text.lines().next().unwrap_or("not installed").to_owned()
}
