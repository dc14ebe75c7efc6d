//! A machine of the test's own with tokend on it.

use std::process::Command;
use std::time::Duration;

use tempfile::TempDir;
use tokend_tests::{Machine, process, program, requirement, secrets, wait};

const PROVIDER: &str = "127.0.0.1:8089";

/// A machine on which tokend is installed and configured as a packager and an operator would.
pub(crate) struct Host {
    pub(crate) machine: Machine,
    _tree: TempDir,
}

impl Host {
    /// `None` where no machine can be booted and need not be.
    pub(crate) fn boot() -> Option<Self> {
        if !requirement::root() {
            return None;
        }
        let tree = TempDir::new().unwrap();
        install(&tree);
        let usr = tree.path().join("usr");
        let machine = Machine::boot(&[(usr.as_path(), "/usr")]);
        let host = Self { machine, _tree: tree };
        host.prepare();
        Some(host)
    }

    fn prepare(&self) {
        let machine = &self.machine;
        machine.check(&["systemd-sysusers"]);
        machine.check(&["systemd-tmpfiles", "--create"]);
        for (user, groups) in [("alice", "tokend"), ("bob", "tokend"), ("carol", "")] {
            machine.check(&["useradd", "--no-create-home", "--groups", groups, user]);
        }
        let secret = secrets::invent("client-secret");
        machine.write("/etc/credstore/psb.secret", &secret);
        machine.write(
            "/etc/systemd/system/tokend.service.d/secrets.conf",
            "[Service]\nLoadCredential=psb.secret:/etc/credstore/psb.secret\n",
        );
        self.configure("");
        machine.check(&["systemctl", "daemon-reload"]);
    }

    /// Writes the configuration, with further lines.
    pub(crate) fn configure(&self, more: &str) {
        self.machine.write(
            "/etc/tokend/tokend.toml",
            &format!(
                "[provider.psb]\npreset = \"econnect-psb\"\ntoken_endpoint = \"http://{PROVIDER}/connect/token\"\n\
                 client_id = \"host\"\nclient_secret = {{ credential = \"psb.secret\" }}\n\
                 [token.psb]\nprovider = \"psb\"\nallow = [\"user:alice\"]\n{more}"
            ),
        );
        self.machine.check(&["chown", "tokend:", "/etc/tokend/tokend.toml"]);
    }

    /// Starts a provider in the machine's own network.
    pub(crate) fn start_provider(&self) {
        self.machine.check(&[
            "systemd-run",
            "--quiet",
            "--unit=provider",
            "/usr/bin/provider",
            PROVIDER,
            "/etc/credstore/psb.secret",
            "3600",
        ]);
    }

    /// A token, once there is one.
    pub(crate) fn token_for(&self, user: &str, name: &str) -> String {
        let token = wait::until(&format!("the token {name} for {user}"), || {
            let got = self.machine.run_as(user, &["tokenctl", "get", name]);
            (got.code == 0).then(|| got.stdout.trim_end().to_owned())
        });
        secrets::register("access-token", &token);
        token
    }

    pub(crate) fn stop_cleanly(&self) {
        self.machine.check(&["systemctl", "stop", "tokend.socket", "tokend.service"]);
        assert_eq!(self.machine.property("tokend.service", "Result"), "success");
        assert_eq!(self.machine.property("tokend.service", "ExecMainStatus"), "0");
        let failed =
            self.machine.check(&["systemctl", "list-units", "--failed", "--plain", "--no-legend", "tokend*"]);
        assert_eq!(failed, "");
    }
}

/// Installs into a tree as a packager does.
fn install(tree: &TempDir) {
    let built = program::tokend();
    let mut command = Command::new(program::workspace().join("systemd/install"));
    command.env("DESTDIR", tree.path()).env("PREFIX", "/usr").env("TARGET_DIR", built.parent().unwrap());
    process::run(&mut command, Duration::from_secs(60)).expect_success();
    program::copy(&program::provider(), &tree.path().join("usr/bin/provider"));
}
