//! What survives a crash, a restart and a reboot of a real machine: the tokens, at no request.

use tempfile::TempDir;
use tokend_tests::{secrets, wait};

use crate::host::Host;

#[test]
fn a_crash_and_a_restart_cost_no_token_and_no_request() {
    let Some(host) = Host::boot() else { return };
    let machine = &host.machine;
    host.start_provider();
    machine.check(&["systemctl", "start", "tokend"]);
    let token = host.token_for("alice", "psb");
    let same = |after: &str| {
        let got = machine.run_as("alice", &["tokenctl", "get", "psb"]);
        assert_eq!((got.code, got.stdout.trim_end()), (0, token.as_str()), "{after}: {}", got.stderr);
        assert_eq!(host.requests().len(), 1, "{after}");
    };
    for restarts in 1..=3 {
        machine.check(&["systemctl", "kill", "--signal=KILL", "tokend.service"]);
        same("kill -9");
        assert_eq!(machine.property("tokend", "NRestarts"), restarts.to_string());
    }
    machine.check(&["systemctl", "restart", "tokend"]);
    same("systemctl restart");
    let status = machine.check(&["tokenctl", "status", "--json"]);
    assert!(status.contains("1 valid at the start"), "{status}");
    host.stop_cleanly();
}

#[test]
fn sealed_tokens_survive_a_reboot_and_no_one_reads_them() {
    let Some(disk) = Disk::new() else { return };
    let secret = secrets::invent("client-secret");

    let first = disk.boot(&secret);
    first.machine.check(&["sh", "-c", SEAL_A_KEY]);
    first.start_provider();
    first.machine.check(&["systemctl", "start", "tokend"]);
    let token = first.token_for("alice", "psb");
    first.stop_cleanly();
    assert_eq!(first.requests().len(), 1);
    drop(first);

    let files = disk.sealed_files();
    assert!(!files.is_empty(), "nothing was written");
    for (name, content) in files {
        secrets::assert_absent(&name, &String::from_utf8_lossy(&content));
    }

    let second = disk.boot(&secret);
    second.start_provider();
    second.machine.check(&["systemctl", "start", "tokend"]);
    assert_eq!(second.token_for("alice", "psb"), token);
    assert_eq!(second.requests(), [], "the provider was asked after the reboot");
    second.stop_cleanly();
}

/// As `daemon/CONFIGURATION.md` tells operators to.
const SEAL_A_KEY: &str = "test -e /var/lib/systemd/state-key || head -c 32 /dev/urandom | base64 | \
    systemd-creds encrypt --with-key=auto --name=tokend.state-key - /var/lib/systemd/state-key";

const UNIT: &str = "[Service]\nLoadCredential=psb.secret:/etc/credstore/psb.secret\n\
    LoadCredentialEncrypted=tokend.state-key:/var/lib/systemd/state-key\n";

/// What of a machine outlives a reboot.
struct Disk(TempDir);

impl Disk {
    fn new() -> Option<Self> {
        if !tokend_tests::requirement::root() {
            return None;
        }
        let disk = TempDir::new().unwrap();
        for folder in ["systemd", "tokend"] {
            std::fs::create_dir(disk.path().join(folder)).unwrap();
        }
        // The key that seals credentials belongs to a machine of this name.
        let id = format!("{:032x}\n", fastrand::u128(1..));
        std::fs::write(disk.path().join("machine-id"), id).unwrap();
        Some(Self(disk))
    }

    fn boot(&self, secret: &str) -> Host {
        let [id, systemd, tokend] = ["machine-id", "systemd", "tokend"].map(|name| self.0.path().join(name));
        let host = Host::boot_with(
            &[(&id, "/etc/machine-id")],
            &[(&systemd, "/var/lib/systemd"), (&tokend, "/var/lib/tokend")],
        );
        host.prepare(secret);
        host.machine.write("/etc/systemd/system/tokend.service.d/secrets.conf", UNIT);
        host.configure("[daemon]\nstate_key = { credential = \"tokend.state-key\" }\n");
        host.machine.check(&["systemctl", "daemon-reload"]);
        host
    }

    fn sealed_files(&self) -> Vec<(String, Vec<u8>)> {
        let folder = std::fs::read_dir(self.0.path().join("tokend/tokens")).unwrap();
        let read = |entry: std::fs::DirEntry| {
            (entry.path().display().to_string(), std::fs::read(entry.path()).unwrap())
        };
        folder.map(|entry| read(entry.unwrap())).collect()
    }
}

/// Waits until another process than this one serves.
pub(crate) fn wait_for_successor(host: &Host, before: &str) {
    wait::until("the next process", || {
        let shown = host.machine.check(&["systemctl", "show", "-p", "MainPID,ActiveState", "tokend.service"]);
        let has = |line: &str| shown.lines().any(|shown| shown == line);
        let is_another = !has(&format!("MainPID={before}")) && !has("MainPID=0");
        (is_another && has("ActiveState=active")).then_some(())
    });
}
