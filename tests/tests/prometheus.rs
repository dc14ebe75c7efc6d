//! Prometheus, which gets its token from a file of `tokenctl sync`. `tests/run` installs it.

use std::fs;
use std::process::Command;
use std::sync::{Arc, Mutex};

use tokend_tests::process::Background;
use tokend_tests::provider::Recorded;
use tokend_tests::test_support::{Scene, token_table};
use tokend_tests::{Answer, Provider, program, requirement, secrets, wait};

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
    let (file, config) = (home.join("token"), home.join("prometheus.yml"));
    let mut sync = Command::new(program::tokenctl());
    sync.arg("--socket").arg(scene.socket()).args(["sync", "t", "--file"]).arg(&file);
    let _sync = Background::start(&mut sync, &home.join("sync.log"));
    wait::until("the file", || file.exists().then_some(()));
    fs::write(
        &config,
        format!(
            "scrape_configs:\n- job_name: api\n  scrape_interval: 500ms\n  scrape_timeout: 500ms\n  authorization: {{ \
             credentials_file: {file:?} }}\n  static_configs: [{{ targets: [\"{target}\"] }}]\n"
        ),
    )
    .expect("Prometheus can be configured");
    let mut prometheus = Command::new("prometheus");
    prometheus.arg("--config.file").arg(&config).arg("--storage.tsdb.path").arg(home.join("data"));
    prometheus.arg("--web.listen-address=127.0.0.1:0");
    let log = home.join("prometheus.log");
    let mut prometheus = Background::start(&mut prometheus, &log);
    wait::until("scrapes with four tokens", || {
        assert!(prometheus.is_running(), "{}", fs::read_to_string(&log).unwrap_or_default());
        let scrapes = api.lock().unwrap().scrapes.clone();
        assert!(scrapes.iter().all(Option::is_some), "a scrape was refused: {scrapes:?}");
        let mut used = scrapes;
        used.dedup();
        (used.len() >= 4).then_some(())
    });
}
