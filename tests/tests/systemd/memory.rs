//! What the shipped unit keeps out of swap.

use crate::host::Host;

#[test]
fn nothing_of_the_unit_is_swapped_and_its_memory_is_locked_as_far_as_the_manager_may_let_it() {
    let Some(host) = Host::boot() else { return };
    host.start_provider();
    host.machine.check(&["systemctl", "start", "tokend.socket"]);
    host.token_for("alice", "psb");
    assert_eq!(host.machine.property("tokend.service", "MemorySwapMax"), "0");
    assert_eq!(host.machine.property("tokend.service", "LimitMEMLOCK"), "infinity");
    let pid = host.machine.property("tokend.service", "MainPID");
    // In a container the manager itself may have a limit that it cannot raise.
    let limits = host.machine.check(&["cat", &format!("/proc/{pid}/limits")]);
    let limit = limits.lines().find_map(|line| line.strip_prefix("Max locked memory")).unwrap();
    let status = host.machine.check(&["tokenctl", "status", "--json"]);
    let status: serde_json::Value = serde_json::from_str(&status).unwrap();
    let expected =
        if limit.trim().starts_with("unlimited") { "locked" } else { "partly locked: the held tokens" };
    assert_eq!(status["daemon"]["attributes"]["memory"], expected, "{limit}");
    let locked = host.machine.check(&["grep", "VmLck", &format!("/proc/{pid}/status")]);
    assert_ne!(locked.split_whitespace().nth(1), Some("0"), "{locked}");
    host.stop_cleanly();
}
