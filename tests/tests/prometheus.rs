//! Prometheus, which gets its token from a file of `tokenctl sync`, and the metrics of `tokenctl metrics`. `tests/run` installs it.

#![expect(clippy::expect_used, reason = "a panic is how a test fails")]

use std::collections::BTreeSet;
use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::{Value, json};
use tokend_tests::process::Background;
use tokend_tests::provider::Recorded;
use tokend_tests::test_support::{Scene, token_table};
use tokend_tests::{Answer, Provider, TestDir, http, process, program, requirement, secrets, wait};

const LIMIT: Duration = Duration::from_secs(120);

/// A provider and an API in one. It issues tokens of 5 seconds, and takes each of them until it has issued this many newer ones.
#[derive(Default)]
struct Api {
    issued: Vec<String>,
    /// The token of each scrape as its place in `issued`, or `None` if it was refused.
    scrapes: Vec<Option<usize>>,
}

impl Api {
    const NEWER_MAX: usize = 4;

    fn answer(&mut self, request: &Recorded) -> Answer {
        if request.path != "/metrics" {
            let token = secrets::invent("access-token");
            self.issued.push(token.clone());
            return Answer::this_token(&token, 5);
        }
        let is_sent = |token: &String| request.header("Authorization") == Some(&format!("Bearer {token}"));
        let used = self.issued.iter().position(is_sent);
        let used = used.filter(|used| used + Self::NEWER_MAX >= self.issued.len());
        self.scrapes.push(used);
        match used {
            Some(_) => Answer::status(200).with_body("text/plain; version=0.0.4", "scraped 1\n"),
            None => Answer::status(401),
        }
    }
}

/// Starts Prometheus with this scrape configuration, in a directory of its own. Returns it with its log.
fn prometheus(home: &Path, address: &str, scrape_config: &str) -> (Background, PathBuf) {
    let (config, log) = (home.join("prometheus.yml"), home.join("prometheus.log"));
    let text = format!("scrape_configs:\n- scrape_interval: 500ms\n  scrape_timeout: 500ms\n{scrape_config}");
    fs::write(&config, text).expect("Prometheus can be configured");
    let mut command = Command::new("prometheus");
    command.arg("--config.file").arg(&config).arg("--storage.tsdb.path").arg(home.join("data"));
    command.arg("--web.listen-address").arg(address);
    (Background::start(&mut command, &log), log)
}

#[test]
fn prometheus_scrapes_with_the_token_in_a_file_through_its_rotations() {
    if !requirement::program("prometheus") {
        return;
    }
    let api = Arc::new(Mutex::new(Api::default()));
    let answering = Arc::clone(&api);
    let provider = Provider::start_answering(move |request| answering.lock().unwrap().answer(request));
    let target = provider.address();
    let scene = Scene::start(provider, &token_table("t", "allow = [\"any\"]"));
    let home = scene.home.path();
    let file = home.join("token");
    let mut sync = Command::new(program::tokenctl());
    sync.arg("--socket").arg(scene.socket()).args(["sync", "t", "--file"]).arg(&file);
    let _sync = Background::start(&mut sync, &home.join("sync.log"));
    wait::until("the file", || file.exists().then_some(()));
    let scrape_config = format!(
        "  job_name: api\n  authorization: {{ credentials_file: {file:?} }}\n  static_configs: [{{ targets: \
         [\"{target}\"] }}]\n"
    );
    let (mut prometheus, log) = prometheus(home, "127.0.0.1:0", &scrape_config);
    wait::until("scrapes with four tokens", || {
        assert!(prometheus.is_running(), "{}", fs::read_to_string(&log).unwrap_or_default());
        let scrapes = api.lock().unwrap().scrapes.clone();
        assert!(scrapes.iter().all(Option::is_some), "a scrape was refused: {scrapes:?}");
        let mut used = scrapes;
        used.dedup();
        (used.len() >= 4).then_some(())
    });
}

#[test]
fn promtool_finds_no_fault_in_the_metrics_and_the_alerts() {
    if !requirement::program("promtool") {
        return;
    }
    let tokens = token_table("good", "") + &token_table("bad", "scope = \"refused\"");
    let provider = Provider::start_answering(|request| match request.field("scope") {
        Some(_) => Answer::status(503),
        None => Answer::token(3600),
    });
    let scene = Scene::start(provider, &tokens);
    wait::until("a failure", || (scene.tokenctl().status_of("bad")["failures"] == 1).then_some(()));
    let home = scene.home.path();
    let metrics = scene.tokenctl().run(&["metrics"]).expect_success();
    assert!(metrics.contains("tokend_token_last_failure_timestamp_seconds{token=\"bad\","), "{metrics}");
    assert!(
        metrics.contains("tokend_token_failures_total{token=\"bad\",provider=\"p\",class=\"server\"} 1\n"),
        "{metrics}"
    );
    assert!(metrics.contains("tokend_token_refusals_total{token=\"good\",provider=\"p\"} 0\n"), "{metrics}");
    let resident = metrics.lines().find_map(|line| line.strip_prefix("tokend_resident_memory_bytes "));
    let resident: u64 = resident.and_then(|bytes| bytes.parse().ok()).expect("the daemon knows its memory");
    assert!((1 << 20..1 << 30).contains(&resident), "{resident}");
    fs::write(home.join("metrics.prom"), metrics).expect("a file can be written");
    let mut check = Command::new("sh");
    check.args(["-c", "promtool check metrics <metrics.prom"]).current_dir(home);
    let checked = process::run(&mut check, LIMIT);
    assert_eq!((checked.code, checked.stdout.as_str(), checked.stderr.as_str()), (0, "", ""));
    let rules = program::workspace().join("systemd/prometheus");
    for args in [["check", "rules", "tokend.rules.yml"], ["test", "rules", "tokend.rules.test.yml"]] {
        process::run(Command::new("promtool").args(args).current_dir(&rules), LIMIT).expect_success();
    }
}

/// The queries in a dashboard of Grafana.
fn queries(part: &Value, found: &mut Vec<String>) {
    match part {
        Value::Object(members) => {
            // As Grafana fills them in.
            let query = members.get("expr").and_then(Value::as_str);
            found.extend(
                query.map(|query| query.replace("$__rate_interval", "1m").replace("$instance", ".+")),
            );
            members.values().for_each(|member| queries(member, found));
        }
        Value::Array(elements) => elements.iter().for_each(|element| queries(element, found)),
        _ => (),
    }
}

#[test]
fn the_queries_of_the_dashboard_are_valid_and_about_metrics_that_exist() {
    if !requirement::program("promtool") {
        return;
    }
    let read = |path: &str| fs::read_to_string(program::workspace().join(path)).expect(path);
    let dashboard: Value = serde_json::from_str(&read("systemd/prometheus/tokend.dashboard.json"))
        .expect("the dashboard is JSON");
    let mut found = Vec::new();
    queries(&dashboard, &mut found);
    let panels = dashboard["panels"].as_array().expect("there are panels");
    assert!(found.len() > panels.len(), "each panel has a query");
    let distinct =
        |member: &str| panels.iter().map(|panel| panel[member].to_string()).collect::<BTreeSet<_>>().len();
    assert_eq!((distinct("id"), distinct("title")), (panels.len(), panels.len()));
    let metrics = read("protocol/src/documents/metrics.rs");
    for query in &found {
        let words = query.split(|c: char| !c.is_ascii_lowercase() && c != '_');
        let names: Vec<_> = words.filter(|word| word.starts_with("tokend_")).collect();
        assert!(!names.is_empty(), "{query}");
        for name in names {
            assert!(metrics.contains(&format!("\"{}\"", name.trim_end_matches("_total"))), "{name}");
        }
    }
    let rules =
        found.iter().enumerate().map(|(n, query)| json!({ "record": format!("r{n}"), "expr": query }));
    let groups = json!({ "groups": [{ "name": "dashboard", "rules": rules.collect::<Vec<_>>() }] });
    let home = TestDir::new();
    // JSON is YAML too.
    fs::write(home.path().join("rules.yml"), groups.to_string()).expect("a file can be written");
    let checked =
        Command::new("promtool").args(["check", "rules", "rules.yml"]).current_dir(home.path()).output();
    let checked = checked.expect("promtool runs");
    assert!(checked.status.success(), "{checked:?}");
}

#[test]
fn prometheus_scrapes_the_metrics() {
    if !requirement::program("prometheus") {
        return;
    }
    let scene = Scene::start(Provider::start(), &token_table("t", ""));
    let home = scene.home.path();
    let mut exporter = Command::new(program::tokenctl());
    exporter.arg("--socket").arg(scene.socket()).args(["metrics", "--listen", "127.0.0.1:0"]);
    let output = home.join("exporter.log");
    let _exporter = Background::start(&mut exporter, &output);
    let target = wait::until("the address", || {
        let line = fs::read_to_string(&output).ok()?;
        Some(line.strip_prefix("tokenctl: serving http://")?.split_once("/metrics\n")?.0.to_owned())
    });
    // A port that nothing has taken yet.
    let free = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr());
    let address = free.expect("there is a free port").to_string();
    let scrape_config = format!("  job_name: tokend\n  static_configs: [{{ targets: [\"{target}\"] }}]\n");
    let (mut prometheus, log) = prometheus(home, &address, &scrape_config);
    let query = format!("http://{address}/api/v1/query?query=tokend_token_requests_total");
    let found = wait::until("the metric in Prometheus", || {
        assert!(prometheus.is_running(), "{}", fs::read_to_string(&log).unwrap_or_default());
        let body = http::get(&query, &[]).ok()?.body;
        body.contains("tokend_token_requests_total").then_some(body)
    });
    assert!(found.contains(r#""token":"t""#) && found.contains(r#""provider":"p""#), "{found}");
    let metadata = format!("http://{address}/api/v1/metadata?metric=tokend_token_requests");
    let metadata = http::get(&metadata, &[]).expect("Prometheus answers").body;
    assert!(metadata.contains(r#""type":"counter""#), "it took OpenMetrics: {metadata}");
}
