//! A machine of the test's own with tokend on it.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use tokend_tests::{Machine, process, program, requirement, secrets, wait};

/// Where the provider is.
pub(crate) const PROVIDER: &str = "127.0.0.1:8089";

/// How long its tokens live, in seconds.
const LIFETIME: u64 = 3600;

/// Where it logs its requests.
const REQUESTS: &str = "/tmp/requests";

/// A machine on which tokend is installed and configured as a packager and an operator would.
pub(crate) struct Host {
    pub(crate) machine: Machine,
}

impl Host {
    /// `None` where no machine can be booted and need not be.
    pub(crate) fn boot() -> Option<Self> {
        if !requirement::root() {
            return None;
        }
        let host = Self::boot_with(&[], &[]);
        let secret = secrets::invent("client-secret");
        host.prepare(&secret);
        Some(host)
    }

    /// Boots it with further files and with folders that outlive it, and prepares nothing.
    pub(crate) fn boot_with(copies: &[(&Path, &str)], disk: &[(&Path, &str)]) -> Self {
        let copies = [&[(installed(), "/usr")], copies].concat();
        Self { machine: Machine::boot_with_disk(&copies, disk) }
    }

    /// Users, secrets and a configuration.
    pub(crate) fn prepare(&self, secret: &str) {
        let machine = &self.machine;
        machine.check(&["systemd-sysusers"]);
        machine.check(&["systemd-tmpfiles", "--create"]);
        for (user, groups) in [("alice", "tokend"), ("bob", "tokend"), ("carol", "")] {
            machine.check(&["useradd", "--no-create-home", "--groups", groups, user]);
        }
        machine.write("/etc/credstore/psb.secret", secret);
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

    /// Takes the network from the daemon, as the shipped example says.
    pub(crate) fn take_network(&self) {
        const EXAMPLE: &str = "/usr/share/doc/tokend/no-network.conf.example";
        const DROPIN: &str = "/etc/systemd/system/tokend.service.d/no-network.conf";
        self.machine.check(&["install", "-D", "-m", "0644", EXAMPLE, DROPIN]);
        self.machine.check(&["systemctl", "daemon-reload"]);
    }

    /// Starts a provider in the machine's own network.
    pub(crate) fn start_provider(&self) {
        self.start_provider_with(LIFETIME);
    }

    /// The same, with tokens that live for so many seconds.
    pub(crate) fn start_provider_with(&self, lifetime: u64) {
        let lifetime = lifetime.to_string();
        self.machine.check(&[
            "systemd-run",
            "--quiet",
            "--unit=provider",
            "/usr/bin/provider",
            PROVIDER,
            "/etc/credstore/psb.secret",
            &lifetime,
            REQUESTS,
        ]);
    }

    /// The requests that the provider was sent: the milliseconds after the boot, and the scope.
    pub(crate) fn requests(&self) -> Vec<(u64, String)> {
        let log = self.machine.run(&["cat", REQUESTS]).stdout;
        let request = |line: &str| {
            let (millis, scope) = line.split_once(' ')?;
            Some((millis.parse().ok()?, scope.to_owned()))
        };
        log.lines().filter_map(request).collect()
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
        let sockets = ["tokend.socket", "tokend-http.socket", "tokend-credential.socket"];
        self.machine.check(&[&["systemctl", "stop", "tokend.service"], &sockets[..]].concat());
        assert_eq!(self.machine.property("tokend.service", "Result"), "success");
        assert_eq!(self.machine.property("tokend.service", "ExecMainStatus"), "0");
        assert_eq!(self.machine.check(&["ls", "-A", "/run/tokend"]), "");
        let failed =
            self.machine.check(&["systemctl", "list-units", "--failed", "--plain", "--no-legend", "tokend*"]);
        assert_eq!(failed, "");
    }
}

/// The `usr` of an installation, made once, without debug information so that a machine boots fast.
pub(crate) fn installed() -> &'static Path {
    static INSTALLED: OnceLock<PathBuf> = OnceLock::new();
    INSTALLED.get_or_init(|| {
        let tree = Path::new(env!("CARGO_TARGET_TMPDIR")).join("installed");
        let _ = std::fs::remove_dir_all(&tree);
        let built = program::tokend();
        let mut command = Command::new(program::workspace().join("systemd/install"));
        command.env("DESTDIR", &tree).env("PREFIX", "/usr").env("TARGET_DIR", built.parent().unwrap());
        process::run(&mut command, wait::PATIENCE).expect_success();
        let usr = tree.join("usr");
        std::fs::remove_dir_all(usr.join("lib/debug")).unwrap();
        install_test_programs(&usr);
        usr
    })
}

/// Adds what the tests run on a machine, besides tokend.
pub(crate) fn install_test_programs(usr: &Path) {
    std::fs::create_dir_all(usr.join("bin")).unwrap();
    for built in
        [program::provider(), program::load(), program::fd_relay(), program::flood(), program::http_caller()]
    {
        let mut install = Command::new("install");
        install.args(["--strip", "--mode=0755", "-t"]).arg(usr.join("bin")).arg(built);
        process::run(&mut install, wait::PATIENCE).expect_success();
    }
}
