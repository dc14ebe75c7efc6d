//! A machine that was booted for a test: a real systemd in namespaces of its own, by `tests/systemd-box`.

use std::env;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{self, Command};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use crate::process::run;
use crate::{Finished, program, secrets};

/// How long a boot or a command may take.
const LIMIT: Duration = Duration::from_secs(600);

/// How long a boot may take, in seconds.
const BOOT: &str = "300";

/// A booted machine. It is powered off when it is dropped.
#[derive(Debug)]
pub struct Machine {
    name: String,
}

impl Machine {
    /// Boots one that has the trees in `copies`, each at its place.
    ///
    /// # Panics
    /// When it does not boot.
    pub fn boot(copies: &[(&Path, &str)]) -> Self {
        Self::boot_with_disk(copies, &[])
    }

    /// The same with folders that outlive it, as a disk does, each at its place.
    ///
    /// # Panics
    /// When it does not boot.
    pub fn boot_with_disk(copies: &[(&Path, &str)], disk: &[(&Path, &str)]) -> Self {
        static BOOTED: AtomicU32 = AtomicU32::new(0);
        let machine =
            Self { name: format!("tokend-{}-{}", process::id(), BOOTED.fetch_add(1, Ordering::Relaxed)) };
        let mut command = machine.command();
        command.args(["up", "--max-life", "3600", "--timeout", BOOT]);
        command.args(other_systemd());
        for (source, place) in copies {
            command.arg("--copy").arg(format!("{}:{place}", source.display()));
        }
        for (source, place) in disk {
            command.arg("--bind").arg(format!("{}:{place}", source.display()));
        }
        run(&mut command, LIMIT).expect_success();
        machine
    }

    /// Runs a command in it as root.
    pub fn run(&self, command: &[&str]) -> Finished {
        run(self.command().args(["run", "--"]).args(command), LIMIT)
    }

    /// Runs a command in it as root, which must succeed: its standard output.
    pub fn check(&self, command: &[&str]) -> String {
        let finished = self.run(command);
        assert_eq!(
            finished.code,
            0,
            "{command:?}: {}{}\n{}",
            finished.stdout,
            finished.stderr,
            self.journal(&[])
        );
        finished.stdout
    }

    /// Runs a command in it as another user.
    pub fn run_as(&self, user: &str, command: &[&str]) -> Finished {
        run(self.command().args(["run", "--user", user, "--"]).args(command), LIMIT)
    }

    /// Writes a file in it, readable by root alone.
    pub fn write(&self, path: &str, text: &str) {
        let source = tempfile::NamedTempFile::new().expect("a file can be made");
        std::fs::write(source.path(), text).expect("a file can be written");
        self.send(source.path(), path);
    }

    /// Copies a file of this machine into it, readable by root alone.
    ///
    /// # Panics
    /// When it cannot be copied.
    pub fn send(&self, source: &Path, path: &str) {
        // As standard input, so that no secret is on a command line.
        let mut command = self.command();
        command.args([
            "run",
            "--",
            "sh",
            "-c",
            "umask 077; mkdir -p \"$(dirname \"$1\")\"; cat >\"$1\"",
            "sh",
            path,
        ]);
        let input = std::fs::File::open(source).expect("a file can be read");
        let status = command.stdin(input).status().expect("the machine takes a command");
        assert!(status.success(), "{path} could not be written");
    }

    /// The number of its systemd's version.
    pub fn systemd_version(&self) -> u32 {
        let version = self.check(&["systemctl", "--version"]);
        version.split_ascii_whitespace().nth(1).and_then(|number| number.parse().ok()).expect("a version")
    }

    /// Its journal, or a part of it.
    pub fn journal(&self, arguments: &[&str]) -> String {
        let journal = ["journalctl", "--no-pager", "--output=short"];
        self.run(&[&journal, arguments].concat()).stdout
    }

    /// A property of a unit.
    pub fn property(&self, unit: &str, name: &str) -> String {
        self.check(&["systemctl", "show", "--value", "-p", name, unit]).trim().to_owned()
    }

    fn command(&self) -> Command {
        let mut command = Command::new(script());
        command.env("SYSTEMD_BOX_NAME", &self.name).env_remove("NOTIFY_SOCKET");
        command
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        if std::thread::panicking() {
            show(&format!("--- the machine's journal\n{}---", self.journal(&["-u", "tokend*"])));
        } else {
            secrets::assert_absent("the machine's journal", &self.journal(&["--output=export"]));
        }
        let _ = self.command().arg("down").status();
    }
}

/// Options for another systemd than this host's, where the environment names one: a layer over this host's `/usr`
/// or a whole tree, which `tests/systemd-box mklayer` and `mktree` make.
fn other_systemd() -> Vec<OsString> {
    let kinds = [("TOKEND_TESTS_SYSTEMD_LAYER", "--layer"), ("TOKEND_TESTS_SYSTEMD_ROOT", "--root")];
    let named = kinds.into_iter().filter_map(|(name, option)| Some([option.into(), env::var_os(name)?]));
    named.flatten().collect()
}

fn script() -> PathBuf {
    program::workspace().join("tests/systemd-box")
}

#[expect(clippy::print_stderr, reason = "a failed test shows what the machine said")]
fn show(text: &str) {
    eprintln!("{text}");
}
