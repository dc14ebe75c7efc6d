//! What the shipped unit keeps out of swap.

use crate::host::Host;

#[test]
fn the_unit_is_never_swapped_and_its_memory_is_locked_where_the_manager_allows_it() {
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
    let is_unlimited = limit.trim().starts_with("unlimited");
    let status = host.machine.check(&["tokenctl", "status", "--json"]);
    let status: serde_json::Value = serde_json::from_str(&status).unwrap();
    let memory = status["daemon"]["attributes"]["memory"].as_str().unwrap();
    assert!(
        if is_unlimited { memory == "locked" } else { memory.starts_with("not locked (") },
        "{memory}: {limit}"
    );
    let locked = host.machine.check(&["grep", "VmLck", &format!("/proc/{pid}/status")]);
    assert_eq!(locked.split_whitespace().nth(1) != Some("0"), is_unlimited, "{locked}");
    host.stop_cleanly();
}
