//! The packages, on a machine that has nothing of tokend.

use std::path::{Path, PathBuf};

use tempfile::TempDir;
use tokend_tests::{Machine, package, program, requirement, secrets};

use crate::host::{Host, install_test_programs, installed};
use crate::load::{end_callers, start_callers};
use crate::restart::wait_for_successor;

#[test]
fn a_deb_is_installed_upgraded_under_load_and_purged() {
    let commands = Commands {
        kind: "deb",
        needs: "dpkg",
        install: &["dpkg", "--install"],
        remove: &["dpkg", "--remove", "tokend"],
    };
    let Some(host) = lifecycle(&commands) else { return };
    // Only the operator's secret and drop-ins stay, and the user.
    host.machine.check(&["dpkg", "--purge", "tokend"]);
    let find = ["find", "/etc", "/usr", "/var", "/run", "-xdev", "-name", "*tokend*"];
    let left = host.machine.check(&find);
    let mut left: Vec<&str> = left.lines().collect();
    left.sort_unstable();
    assert_eq!(
        left,
        ["tokend-sync@.service.d", "tokend.service.d"].map(|name| format!("/etc/systemd/system/{name}"))
    );
}

#[test]
fn an_rpm_is_installed_upgraded_under_load_and_removed() {
    lifecycle(&Commands {
        kind: "rpm",
        needs: "rpmbuild",
        // The C library and systemd of the machine may be from another package manager.
        install: &["rpm", "--upgrade", "--oldpackage", "--nodeps"],
        remove: &["rpm", "--erase", "tokend"],
    });
}

/// All that run all the time.
const SERVICES: [&str; 3] = ["tokend", "tokend-metrics", "tokend-sync@own"];

/// How packages of a kind are managed.
struct Commands {
    kind: &'static str,
    needs: &'static str,
    install: &'static [&'static str],
    remove: &'static [&'static str],
}

impl Commands {
    fn install(&self, machine: &Machine, package: &Path) {
        machine.send(package, "/tmp/package");
        machine.check(&[self.install, &["/tmp/package"]].concat());
    }
}

/// From the first installation to the removal. `None` where a machine or a package manager is missing.
fn lifecycle(commands: &Commands) -> Option<Host> {
    if !(requirement::root() && requirement::program(commands.needs)) {
        return None;
    }
    let folder = TempDir::new().unwrap();
    let usr = folder.path().join("usr");
    install_test_programs(&usr);
    let host = Host { machine: Machine::boot(&[(&usr, "/usr")]) };
    let machine = &host.machine;
    let this = env!("CARGO_PKG_VERSION");
    let package = package::build(commands.kind, this, &installed().join("bin"), &folder.path().join(this));
    let next = next_version();
    let upgrade = next_package(commands.kind, &next, folder.path());

    commands.install(machine, &package);
    check_first_installation(machine);
    host.prepare(&secrets::invent("client-secret"));
    host.configure("[token.own]\nprovider = \"psb\"\n");
    host.start_provider();
    machine.write("/etc/systemd/system/tokend-sync@.service.d/user.conf", "[Service]\nUser=root\n");
    let enable = ["systemctl", "enable", "--now", "tokend-egress@identity.example:443.socket"];
    machine.check(&[&enable, &SERVICES[..]].concat());
    let token = host.token_for("alice", "psb");

    start_callers(&host, &["own".to_owned()]);
    for (package, version) in [(&upgrade, next.as_str()), (&package, this), (&upgrade, &next)] {
        let before = SERVICES.map(|unit| machine.property(unit, "MainPID"));
        commands.install(machine, package);
        wait_for_successor(&host, &before[0]);
        for (unit, before) in SERVICES.iter().zip(before) {
            assert_ne!(machine.property(unit, "MainPID"), before, "{unit} is restarted");
        }
        assert!(machine.check(&["tokenctl", "version"]).contains(version), "{version} runs");
    }
    let report = end_callers(&host);
    assert_eq!(report["failed"], "0", "{report:?}");
    assert_ne!(report["calls"], "0");
    assert_eq!(host.token_for("alice", "psb"), token);
    assert_eq!(host.requests().len(), 1);

    machine.check(commands.remove);
    check_removal(machine);
    Some(host)
}

fn check_first_installation(machine: &Machine) {
    let state = |unit: &str| {
        ["LoadState", "ActiveState", "UnitFileState"].map(|property| machine.property(unit, property))
    };
    for unit in ["tokend.service", "tokend.socket"] {
        assert_eq!(state(unit), ["loaded", "inactive", "disabled"], "{unit}");
    }
    assert_eq!(machine.check(&["stat", "--format=%U %a", "/etc/tokend"]), "tokend 700\n");
    // What tokend-generator adds.
    let notify = if machine.systemd_version() >= 253 { "notify-reload" } else { "notify" };
    assert_eq!(machine.property("tokend.service", "Type"), notify);
}

fn check_removal(machine: &Machine) {
    assert_eq!(machine.check(&["systemctl", "list-units", "--plain", "--no-legend", "tokend*"]), "");
    assert_eq!(machine.property("tokend.service", "NFileDescriptorStore"), "0", "tokens outlive the package");
    assert_eq!(machine.check(&["find", "/run/tokend", "/run/tokend-egress", "-type", "s"]), "");
    machine.check(&["test", "-e", "/etc/tokend/tokend.toml"]);
}

fn next_package(kind: &str, version: &str, folder: &Path) -> PathBuf {
    let programs = folder.join("programs");
    std::fs::create_dir(&programs).unwrap();
    for name in ["tokend", "tokenctl", "tokend-proxy"] {
        let built = std::fs::read(installed().join("bin").join(name)).unwrap();
        let changed = folder.join(name);
        std::fs::write(&changed, with_version(built, version)).unwrap();
        program::copy(&changed, &programs.join(name));
    }
    package::build(kind, version, &programs, &folder.join(version))
}

/// This version with another last digit, so that it has the same length.
fn next_version() -> String {
    let version = env!("CARGO_PKG_VERSION");
    let (rest, last) = version.split_at(version.len() - 1);
    format!("{rest}{}", (last.parse::<u8>().unwrap() + 1) % 10)
}

/// A program of another version, without a build: its version is a string in it.
fn with_version(mut program: Vec<u8>, version: &str) -> Vec<u8> {
    let current = env!("CARGO_PKG_VERSION").as_bytes();
    let mut at = 0;
    while let Some(found) = program[at..].windows(current.len()).position(|window| window == current) {
        at += found;
        program[at..at + current.len()].copy_from_slice(version.as_bytes());
    }
    program
}
