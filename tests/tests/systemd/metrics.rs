//! `tokend-metrics.service`: the status of the daemon for Prometheus.

use crate::host::Host;

const UNIT: &str = "tokend-metrics.service";

#[test]
fn the_unit_serves_the_metrics_of_all_tokens_on_loopback() {
    let Some(host) = Host::boot() else { return };
    let machine = &host.machine;
    host.configure(&format!("[admin]\nallow = [\"unit:{UNIT}\"]\n"));
    host.start_provider();
    machine.check(&["systemctl", "start", "tokend", UNIT]);
    host.token_for("alice", "psb");
    // As a user that may not connect to the daemon's socket.
    let scrape = "exec 3<>/dev/tcp/127.0.0.1/9464; printf 'GET /metrics HTTP/1.1\\r\\n\\r\\n' >&3; cat <&3";
    let scraped = || machine.run_as("carol", &["bash", "-c", scrape]).expect_success();
    let metrics = scraped();
    assert!(metrics.contains("\ntokend_tokens{provider=\"psb\",state=\"fresh\"} 1\n"), "{metrics}");
    assert!(metrics.contains("\ntokend_last_reload_successful 1\n"), "the unit is an operator: {metrics}");
    machine.check(&["systemctl", "stop", "tokend.socket", "tokend.service"]);
    assert!(scraped().contains("\ntokend_up 0\n"));
    machine.check(&["systemctl", "stop", UNIT]);
    assert_eq!(machine.property(UNIT, "Result"), "success");
    host.stop_cleanly();
}
