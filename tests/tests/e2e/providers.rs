//! The five providers, from the preset to an accepted API call.

use serde_json::json;
use tokend_tests::daemon::Launch;
use tokend_tests::{Answer, Kind, RealDaemon, StandIn, TestDir, http};

/// A stand-in of its own and a daemon that is configured as the provider documents.
fn start(kind: Kind) -> (RealDaemon, StandIn, TestDir) {
    let (home, standin) = (TestDir::new(), StandIn::start(kind));
    home.configure("", &standin.configuration(&home, ""));
    (Launch::new(&home).start(), standin, home)
}

/// Gets a token and calls the API with the headers that belong to it.
fn accepted_with(daemon: &RealDaemon, standin: &StandIn, token: &str) {
    let tokenctl = daemon.tokenctl();
    let got = tokenctl.run(&["get", token]);
    assert_eq!(got.code, 0, "{}\nrefused by the stand-in: {:?}", got.stderr, standin.refusals());
    let mut arguments = vec!["headers", token];
    for header in standin.kind().caller_headers() {
        arguments.extend(["--header", header]);
    }
    let headers = http::header_lines(&tokenctl.run(&arguments).expect_success());
    let authorization = ("Authorization".to_owned(), format!("Bearer {}", got.stdout.trim_end()));
    assert_eq!(
        headers.first(),
        Some(&authorization),
        "the token that `get` prints is the one in the headers"
    );
    let answer = http::get(&standin.api(), &headers).unwrap();
    assert_eq!(answer.status, 200, "{}", answer.body);
}

fn works_to_the_letter(kind: Kind) {
    let (mut daemon, standin, _home) = start(kind);
    accepted_with(&daemon, &standin, kind.token_name());
    assert_eq!(standin.refusals(), Vec::<String>::new());
    assert_eq!(daemon.stop(), 0);
}

#[test]
fn econnect_psb_accepts_us_with_client_credentials() {
    works_to_the_letter(Kind::EconnectPsb);
}

#[test]
fn econnect_psb_accepts_us_with_the_password_of_a_user() {
    let (daemon, standin, _home) = start(Kind::EconnectPsb);
    accepted_with(&daemon, &standin, "psb-user");
    let grants = standin.provider().requests().into_iter().filter_map(|request| request.field("grant_type"));
    assert!(grants.into_iter().any(|grant| grant == "password"));
    assert_eq!(standin.refusals(), Vec::<String>::new());
}

#[test]
fn bnp_paribas_cib_accepts_us() {
    works_to_the_letter(Kind::BnpParibasCib);
}

#[test]
fn the_partner_api_accepts_us_and_each_call_names_its_requestor() {
    works_to_the_letter(Kind::PartnerApi);
}

#[test]
fn a_header_that_the_caller_must_supply_is_asked_for_by_name() {
    let (daemon, _standin, _home) = start(Kind::PartnerApi);
    let refused = daemon.tokenctl().run(&["headers", "partner"]);
    assert_ne!(refused.code, 0);
    assert_eq!(refused.stdout, "");
    assert!(refused.stderr.contains("Requestor-ID"), "{}", refused.stderr);
}

#[test]
fn aritma_psd2_accepts_us() {
    works_to_the_letter(Kind::AritmaPsd2);
}

#[test]
fn cube_connectapi_accepts_us_and_its_token_is_not_renewed_early() {
    let (daemon, standin, _home) = start(Kind::CubeConnect);
    accepted_with(&daemon, &standin, "cube");
    accepted_with(&daemon, &standin, "cube");
    assert_eq!(standin.provider().count_at("/connect/token"), 1, "one token is used again");
    let status = daemon.tokenctl().status_of("cube");
    assert_eq!(status["next_attempt"], status["held"]["expires_at"], "{status:#}");
}

#[test]
fn a_stand_in_refuses_every_request_but_the_documented_one() {
    let near_misses: [(&str, &str, &[&str]); 5] = [
        ("scope = \"ap extra\"", "scope", &["psb"]),
        ("params = { extra = \"1\" }", "extra", &["psb", "bnp", "partner", "aritma"]),
        ("audience = \"x\"", "audience", &["psb", "bnp", "partner", "aritma", "cube"]),
        ("resource = [\"another\"]", "resource", &["psb", "bnp", "partner", "aritma", "cube"]),
        ("scope = \"banking.ais.read\"", "scope", &["psb", "bnp", "partner", "cube"]),
    ];
    for (line, field, tokens) in near_misses {
        let (home, standins) = (TestDir::new(), Kind::ALL.map(StandIn::start));
        let chosen = standins.iter().filter(|standin| tokens.contains(&standin.kind().token_name()));
        let text: String = chosen.clone().map(|standin| standin.configuration(&home, line)).collect();
        home.configure("", &text);
        let daemon = Launch::new(&home).start();
        for standin in chosen {
            daemon.tokenctl().run(&["get", standin.kind().token_name()]).expect_code(7);
            let refusals = standin.refusals();
            assert!(refusals.iter().all(|refusal| refusal.contains(field)), "{line}: {refusals:?}");
            assert!(!refusals.is_empty(), "{line}: {:?} accepted it", standin.kind());
        }
    }
}

#[test]
fn a_stand_in_refuses_the_documented_request_with_the_wrong_secret() {
    for kind in Kind::ALL {
        let (home, standin) = (TestDir::new(), StandIn::start(kind));
        let text = standin.configuration(&home, "");
        let _ = home.secret(&format!("{}-client-secret", kind.token_name()), "not the client secret");
        home.configure("", &text);
        let daemon = Launch::new(&home).start();
        daemon.tokenctl().run(&["get", kind.token_name()]).expect_code(7);
        assert_eq!(standin.issued(), 0);
    }
}

#[test]
fn a_stand_in_s_api_refuses_a_call_without_the_documented_headers() {
    for kind in [Kind::EconnectPsb, Kind::BnpParibasCib, Kind::PartnerApi] {
        let (daemon, standin, _home) = start(kind);
        let token = daemon.tokenctl().get(kind.token_name());
        let bare = vec![("Authorization".to_owned(), format!("Bearer {token}"))];
        assert_eq!(http::get(&standin.api(), &bare).unwrap().status, 400, "{kind:?}");
        assert_eq!(http::get(&standin.api(), &[]).unwrap().status, 401, "{kind:?}");
    }
}

#[test]
fn five_providers_live_in_one_daemon() {
    let (home, standins) = (TestDir::new(), Kind::ALL.map(StandIn::start));
    let text: String = standins.iter().map(|standin| standin.configuration(&home, "")).collect();
    home.configure("", &text);
    let daemon = Launch::new(&home).start();
    for standin in &standins {
        accepted_with(&daemon, standin, standin.kind().token_name());
    }
    let status = daemon.tokenctl().json(&["status"]);
    assert_eq!(status["tokens"].as_array().map(Vec::len), Some(6), "{status:#}");
}

#[test]
fn one_s_own_preset_is_a_table_of_the_configuration() {
    let home = TestDir::new();
    let provider = tokend_tests::Provider::start_answering(|request| {
        let documented =
            request.field("scope").as_deref() == Some("a b") && request.field("tenant").is_some();
        if documented { Answer::token(600) } else { Answer::json(400, &json!({ "error": "invalid_scope" })) }
    });
    let secret = home.secret_once("own.secret");
    home.configure(
        "",
        &format!(
            "[preset.in-house]\nenvironment.staging.token_endpoint = {:?}\ntoken_endpoint_auth_method = \"client_secret_post\"\n\
             scope = \"a b\"\nparams = {{ tenant = \"t\" }}\n\
             [provider.own]\npreset = \"in-house\"\nenvironment = \"staging\"\nclient_id = \"c\"\nclient_secret = {secret}\n\
             [token.own]\nprovider = \"own\"\n",
            provider.token_endpoint()
        ),
    );
    let daemon = Launch::new(&home).start();
    assert_eq!(daemon.tokenctl().run(&["get", "own"]).code, 0);
}
