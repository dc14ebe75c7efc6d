//! What a provider notices of us when it gives short tokens, or asks for fewer requests.

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use nix::unistd::{SysconfVar, sysconf};
use tokend_client::blocking::Client;
use tokend_client::{Options, TokenName};
use tokend_tests::test_support::{token_of, token_table};
use tokend_tests::{Answer, Provider, Scene, wait};

/// The processor time that a process has used.
fn processor_time(pid: u32) -> Duration {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    // The name, in brackets, may have spaces. The third field follows it, and the times are the 14th and 15th.
    let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
    let ticks: u64 = fields[11..13].iter().map(|field| field.parse::<u64>().unwrap()).sum();
    let per_second = u64::try_from(sysconf(SysconfVar::CLK_TCK).unwrap().unwrap()).unwrap();
    Duration::from_millis(ticks * 1000 / per_second)
}

#[test]
#[expect(clippy::print_stdout, reason = "how few is for the readers of the output too")]
fn tokens_of_five_seconds_cost_a_request_in_three_and_no_processor() {
    const OBSERVED: Duration = Duration::from_secs(12);
    let began = Instant::now();
    let scene = Scene::start(Provider::start_answering(|_| Answer::token(5)), &token_table("t", ""));
    let client = Client::new(Options::new(scene.socket()));
    let name: TokenName = "t".parse().unwrap();
    client.get(&name).unwrap();
    let (used_before, observed) = (processor_time(scene.daemon.pid()), Instant::now());
    // A caller all the while, who never meets a gap between two tokens.
    while observed.elapsed() < OBSERVED {
        client.get(&name).unwrap();
        thread::sleep(Duration::from_millis(200));
    }
    let used = processor_time(scene.daemon.pid()).saturating_sub(used_before);
    let observed = observed.elapsed();

    let (requests, lasted) = (scene.provider.requests(), began.elapsed());
    let most = 1 + lasted.as_secs() / 3;
    assert!(requests.len() as u64 <= most, "{} requests in {lasted:?}", requests.len());
    assert!(requests.len() >= 3, "it is renewed at all: {} requests in {lasted:?}", requests.len());
    println!("{} requests, {used:?} of processor time in {observed:?}", requests.len());
    assert!(used < observed / 10, "{used:?} of processor time in {observed:?}");
}

#[test]
fn an_issuer_that_asks_for_quiet_gets_it_from_all_its_tokens() {
    const QUIET: Duration = Duration::from_secs(3);
    let tokens = ["a", "b", "c"].map(|name| token_table(name, &format!("scope = \"{name}\""))).concat();
    let scene = Scene::start(Provider::start(), &tokens);
    let tokenctl = scene.tokenctl();
    let held = ["a", "b", "c"].map(|name| tokenctl.get(name));
    scene.provider.then(Answer::status(429).with_header("Retry-After", "3"));
    tokenctl.run(&["refresh", "a"]).expect_code(6);
    let refused = scene.provider.requests().last().unwrap().at;

    // An operator, a caller whom an API refused the token, and a token that is new, all at once.
    let refreshed = tokenctl.run(&["refresh", "b"]);
    let reported = tokenctl.run(&["reject", "c"]);
    scene.reconfigure("", &(tokens + &token_table("d", "scope = \"d\"")));
    scene.daemon.signal(Signal::SIGHUP);
    let got = wait::until("the token d in the configuration", || {
        let got = tokenctl.run(&["get", "d"]);
        (got.code != 5).then_some(got)
    });
    let count = scene.provider.count();
    if refused.elapsed() < QUIET {
        assert_eq!(count, 4, "somebody asked during the quiet");
        assert_eq!(refreshed.code, 6, "{}", refreshed.stderr);
        assert_eq!(got.code, 6, "{}", got.stderr);
        assert!(matches!(reported.code, 0 | 6), "{}", reported.stderr);
        assert_eq!(["a", "b", "c"].map(|name| tokenctl.get(name)), held, "valid tokens are served");
    }
    wait::until("the token d", || (tokenctl.run(&["get", "d"]).code == 0).then_some(()));
    let next = scene.provider.requests()[4].at;
    assert!(next - refused >= QUIET, "asked again after {:?}", next - refused);
}

#[test]
fn a_client_of_the_same_host_that_is_always_throttled_costs_a_token_nothing() {
    let throttled = Answer::status(429).with_header("Retry-After", "60");
    let provider = Provider::start_answering(move |request| {
        let is_other = request.field("client_id").as_deref() == Some("other");
        if is_other { throttled.clone() } else { Answer::token(3) }
    });
    let other = format!(
        "[provider.o]\ntoken_endpoint = {:?}\nclient_id = \"other\"\n\
         client_secret = {{ command = [\"/bin/echo\", \"secret\"] }}\n\
         token_endpoint_auth_method = \"client_secret_post\"\n{}",
        provider.token_endpoint(),
        token_of("o", "other", "")
    );
    let scene = Scene::start(provider, &(other + &token_table("t", "")));
    let tokenctl = scene.tokenctl();
    tokenctl.run(&["get", "other"]).expect_code(6);
    let renewed = || {
        tokenctl.get("t");
        (scene.provider.count() >= 6).then_some(())
    };
    wait::until("renewals, without a failed get meanwhile", renewed);
    let clients = scene.provider.requests().into_iter().map(|request| request.field("client_id"));
    let of_other = clients.filter(|client| client.as_deref() == Some("other")).count();
    assert_eq!(of_other, 1, "the other one is asked again before its Retry-After");
}
