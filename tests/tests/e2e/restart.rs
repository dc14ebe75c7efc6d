//! Tokens outlive the daemon: killed, restarted, upgraded, it goes on as if nothing had happened, and its provider
//! is none the wiser.

use std::fs::File;
use std::io::Write;

use nix::sys::signal::Signal;
use tokend_tests::test_support::{provider_table, token_table};
use tokend_tests::{Answer, Provider, RealDaemon, ServiceManager, TestDir};

/// A daemon that a service manager starts again and again.
struct Service {
    daemon: Option<RealDaemon>,
    manager: ServiceManager,
    provider: Provider,
    home: TestDir,
}

impl Service {
    /// One with these tokens of the provider `p`.
    fn start(tokens: &str) -> Self {
        Self::with(Provider::start(), tokens)
    }

    fn with(provider: Provider, tokens: &str) -> Self {
        let home = TestDir::new();
        let manager = ServiceManager::new(&home);
        let mut service = Self { daemon: None, manager, provider, home };
        service.configure(tokens);
        service.begin();
        service
    }

    fn configure(&self, tokens: &str) {
        let table = provider_table(&self.home, "p", &self.provider.token_endpoint(), "");
        self.home.configure("", &(table + tokens));
    }

    fn begin(&mut self) {
        self.daemon = Some(self.manager.launch(&self.home).start());
    }

    fn daemon(&self) -> &RealDaemon {
        self.daemon.as_ref().expect("it runs")
    }

    fn kill(&mut self) {
        self.daemon.take().expect("it runs").kill();
    }

    fn crash(&mut self) {
        self.kill();
        self.begin();
    }

    fn restart(&mut self) {
        assert_eq!(self.daemon.take().expect("it runs").stop(), 0);
        self.begin();
    }

    fn get(&self, name: &str) -> String {
        self.manager.tokenctl().get(name)
    }

    fn fact(&self, name: &str) -> String {
        let status = self.manager.tokenctl().json(&["status"]);
        status["daemon"]["attributes"][name].as_str().unwrap_or_default().to_owned()
    }
}

#[test]
fn a_killed_daemons_successor_has_its_tokens_and_asks_for_nothing() {
    let mut service = Service::start(&(token_table("t", "") + &token_table("u", "scope = \"b a\"")));
    let (t, u) = (service.get("t"), service.get("u"));
    let before = service.manager.tokenctl().status_of("t");
    for _ in 0..3 {
        service.crash();
        assert_eq!((service.get("t"), service.get("u")), (t.clone(), u.clone()));
    }
    service.restart();
    assert_eq!((service.get("t"), service.get("u")), (t, u));
    let after = service.manager.tokenctl().status_of("t");
    assert_eq!(
        after["held"]["fingerprint"], before["held"]["fingerprint"],
        "it is named as before in the log"
    );
    let renewal = |status: &serde_json::Value| status["next_attempt"].as_str().unwrap().to_owned();
    assert_eq!(renewal(&after), renewal(&before), "the schedule is the same");
    assert_eq!(service.provider.count(), 2);
    assert_eq!(service.fact("hot-restart"), "the service manager keeps the tokens");
    assert_eq!(service.fact("restored"), "2 valid at the start");
}

#[test]
fn without_a_service_manager_nothing_is_kept_and_the_status_says_so() {
    let (home, provider) = (TestDir::new(), Provider::start());
    home.configure("", &(provider_table(&home, "p", &provider.token_endpoint(), "") + &token_table("t", "")));
    for start in 1..=2 {
        let mut daemon = RealDaemon::start(&home);
        daemon.tokenctl().get("t");
        assert_eq!(provider.count(), start);
        let status = daemon.tokenctl().json(&["status"]);
        let fact = status["daemon"]["attributes"]["hot-restart"].as_str().unwrap();
        assert!(fact.starts_with("no service manager keeps the tokens"), "{fact}");
        assert_eq!(daemon.stop(), 0);
    }
    let state = std::fs::read_dir(home.path().join("state")).unwrap().count();
    assert_eq!(state, 0, "and nothing is on the disk");
}

#[test]
fn a_token_whose_settings_changed_meanwhile_is_not_used_and_wiped() {
    let mut service = Service::start(&token_table("t", ""));
    let old = service.get("t");
    service.kill();
    service.configure(&token_table("t", "scope = \"other\""));
    service.begin();
    assert_ne!(service.get("t"), old);
    assert_eq!(service.provider.count(), 2);
    assert!(!contains(&service.manager.stored(), &old));
}

#[test]
fn a_token_that_is_removed_or_replaced_is_nowhere_in_what_is_kept() {
    let service = Service::start(&(token_table("t", "") + &token_table("u", "scope = \"a\"")));
    let (t, u) = (service.get("t"), service.get("u"));
    assert!(contains(&service.manager.stored(), &t) && contains(&service.manager.stored(), &u));
    service.configure(&token_table("t", ""));
    service.daemon().signal(Signal::SIGHUP);
    service.daemon().wait_for_log(&["reloaded"]);
    tokend_tests::wait::until("the end of the removed token", || {
        (!contains(&service.manager.stored(), &u)).then_some(())
    });
    service.manager.tokenctl().run(&["refresh", "t"]).expect_success();
    let stored = service.manager.stored();
    assert!(!contains(&stored, &t) && contains(&stored, &service.get("t")));
}

#[test]
fn a_crash_loop_asks_no_sooner_than_one_daemon_would_and_a_restart_on_purpose_does() {
    let provider = Provider::start();
    provider.always(Answer::refusal(401, "invalid_client"));
    let mut service = Service::with(provider, &token_table("t", ""));
    service.manager.tokenctl().run(&["get", "t"]).expect_code(7);
    for _ in 0..3 {
        service.crash();
        service.manager.tokenctl().run(&["get", "t"]).expect_code(7);
    }
    assert_eq!(service.provider.count(), 1);
    service.provider.always(Answer::token(3600));
    service.restart();
    tokend_tests::wait::until("a token", || {
        (service.manager.tokenctl().run(&["get", "t"]).code == 0).then_some(())
    });
    assert_eq!(service.provider.count(), 2);
}

#[test]
fn an_issuer_that_asked_for_quiet_has_it_from_the_successor_for_all_its_tokens() {
    let provider = Provider::start();
    provider.always(Answer::status(503).with_header("Retry-After", "600"));
    let mut service = Service::with(provider, &token_table("t", ""));
    service.manager.tokenctl().run(&["get", "t"]).expect_code(6);
    service.kill();
    service.configure(&(token_table("t", "") + &token_table("u", "scope = \"a\"")));
    service.begin();
    service.manager.tokenctl().run(&["get", "u"]).expect_code(6);
    service.restart();
    service.manager.tokenctl().run(&["get", "u"]).expect_code(6);
    assert_eq!(service.provider.count(), 1);
}

#[test]
fn a_variant_is_kept_as_long_as_its_token() {
    let variants = "variants = { scope = [\"a\", \"b\"] }";
    let mut service = Service::start(&token_table("t", variants));
    let narrow = |service: &Service| {
        let got = service.manager.tokenctl().run(&["get", "t", "--scope", "a"]).expect_success();
        got.trim_end().to_owned()
    };
    let variant = narrow(&service);
    assert_ne!(service.get("t"), variant);
    service.crash();
    service.crash();
    assert_eq!(narrow(&service), variant);
    assert_eq!(service.provider.count(), 2);
    service.kill();
    service.configure(&token_table("u", "scope = \"c\""));
    service.begin();
    service.get("u");
    assert!(!contains(&service.manager.stored(), &variant));
}

/// Spoils the memory that a killed daemon left; the file is not one of tokend's.
type Spoil = fn(&ServiceManager, File);

#[test]
fn an_unreadable_memory_is_reported_and_replaced() {
    const REPLACED: &str = "the memory of the last process is replaced";
    const DAMAGED: &str = "the last process left damaged memory";
    let foreign = || {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&[7; 5_000]).unwrap();
        file
    };
    let spoil: [(&str, Spoil); 3] = [
        (REPLACED, |manager, foreign| manager.store(foreign)),
        (REPLACED, |manager, _| manager.write_stored(b"X", 3)),
        // Everything after the header.
        (DAMAGED, |manager, _| manager.write_stored(&[0xff; 16_384], 64)),
    ];
    for (report, spoil) in spoil {
        let mut service = Service::start(&token_table("t", ""));
        let lost = service.get("t");
        service.kill();
        spoil(&service.manager, foreign());
        service.begin();
        let anew = service.get("t");
        assert_ne!(anew, lost);
        service.daemon().wait_for_log(&[report]);
        service.crash();
        assert_eq!(service.get("t"), anew, "what took its place is kept again");
        assert_eq!(service.provider.count(), 2);
    }
}

#[test]
fn a_token_that_expired_meanwhile_is_not_served() {
    let provider = Provider::start();
    provider.then(Answer::token(2));
    let mut service = Service::with(provider, &token_table("t", "warm = \"on-demand\""));
    let short = service.get("t");
    service.kill();
    tokend_tests::wait::until("its end", || {
        (service.provider.requests()[0].at.elapsed().as_secs() >= 2).then_some(())
    });
    service.begin();
    assert_ne!(service.get("t"), short);
    assert_eq!(service.provider.count(), 2);
}

fn contains(bytes: &[u8], text: &str) -> bool {
    bytes.windows(text.len()).any(|window| window == text.as_bytes())
}
