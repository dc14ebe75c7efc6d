//! Units that know nothing of tokend get tokens as credentials (`LoadCredential=`), from the real service manager.

use tokend_tests::{Finished, Machine, wait};

use crate::host::Host;

/// Runs a unit that prints a credential and its size.
fn start_unit(machine: &Machine, unit: &str, id: &str) -> Finished {
    let (unit, load) = (format!("--unit={unit}"), format!("LoadCredential={id}:/run/tokend/credential.sock"));
    let print = format!("cd \"$CREDENTIALS_DIRECTORY\" && cat {id} && wc -c <{id}");
    let options = ["systemd-run", "--quiet", "--wait", "--collect", "--pipe", "-p", "DynamicUser=yes"];
    machine.run(&[&options[..], &[&unit, "-p", &load, "--", "sh", "-c", &print]].concat())
}

#[test]
fn a_unit_that_never_heard_of_tokend_starts_with_its_token() {
    let Some(host) = Host::boot() else { return };
    let machine = &host.machine;
    host.start_provider();
    host.configure(
        "[token.unit]\nprovider = \"psb\"\nallow = [\"unit:legacy.service\"]\n\
         [token.unit.headers]\nAccept = \"application/json\"\n\
         [token.root]\nprovider = \"psb\"\n",
    );
    // The first unit starts the daemon too.
    machine.check(&["systemctl", "start", "tokend-credential.socket"]);
    let first = start_unit(machine, "legacy.service", "unit.token");
    assert_eq!(first.code, 0, "{first:?}");
    assert!(!first.stdout.starts_with('0'), "a unit waits for the daemon and for the provider: {first:?}");
    let token = host.token_for("root", "unit");
    let given = start_unit(machine, "legacy.service", "unit.token");
    assert_eq!((given.code, given.stdout.trim()), (0, &*format!("{token}{}", token.len())), "{given:?}");
    let headers = start_unit(machine, "legacy.service", "unit.headers");
    let expected = format!("Authorization: Bearer {token}\nAccept: application/json\n");
    assert!(headers.stdout.starts_with(&expected), "{headers:?}");
    let json = start_unit(machine, "legacy.service", "unit.json");
    assert!(json.stdout.contains(&format!("\"access_token\":\"{token}\"")), "{json:?}");

    // A unit without a rule, one whose token is for root alone, and an ID without a token: each has an empty file.
    for (unit, id, reason) in [
        ("other.service", "unit.token", "no rule of the token's allow list matches"),
        ("legacy.service", "root.token", "allow"),
        ("legacy.service", "unit", "is not NAME.token"),
    ] {
        let refused = start_unit(machine, unit, id);
        assert_eq!((refused.code, refused.stdout.trim()), (0, "0"), "{unit} {id}: {refused:?}");
        wait::until(&format!("a line about {id} of {unit}"), || {
            let journal = machine.journal(&["-u", "tokend"]);
            let mut lines = journal.lines();
            lines
                .any(|line| [unit, id, reason, "empty file"].iter().all(|words| line.contains(words)))
                .then_some(())
        });
    }
    let audited = |decision: &str, unit: &str| {
        let decision = format!("TOKEND_DECISION={decision}");
        let found = [&*decision, &format!("TOKEND_UNIT={unit}"), "TOKEND_TOKEN=unit"];
        machine.journal(&found).lines().filter(|line| line.contains(unit)).count()
    };
    assert_eq!((audited("deny", "other.service"), audited("allow", "other.service")), (1, 0));
    assert!(audited("allow", "legacy.service") >= 2, "a token and headers");

    host.stop_cleanly();
}

#[test]
fn units_wait_for_a_daemon_whose_configuration_is_mended() {
    let Some(host) = Host::boot() else { return };
    let machine = &host.machine;
    host.start_provider();
    host.configure("[token.unit]\nprovider = \"psp\"\n");
    machine.check(&["systemctl", "start", "tokend-credential.socket"]);
    machine.check(&[
        "systemd-run",
        "--no-block",
        "--unit=legacy.service",
        "-p",
        "LoadCredential=unit.token:/run/tokend/credential.sock",
        "-p",
        "RemainAfterExit=yes",
        "--",
        "sh",
        "-c",
        "test -s \"$CREDENTIALS_DIRECTORY\"/unit.token",
    ]);
    wait::until("a start with a fault", || {
        machine.journal(&["-u", "tokend"]).contains("token.unit.provider").then_some(())
    });
    host.configure("[token.unit]\nprovider = \"psb\"\nallow = [\"unit:legacy.service\"]\n");
    wait::until("the start of the unit", || {
        (machine.property("legacy.service", "SubState") == "exited").then_some(())
    });
    assert_eq!(machine.property("legacy.service", "Result"), "success");
    host.stop_cleanly();
}
