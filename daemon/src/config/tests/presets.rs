//! Presets, shipped and of one's own.

use super::*;

fn client(url: &str) -> ClientSettings {
    ClientSettings {
        tls: None,
        endpoint: Endpoint::Token(url.parse().unwrap()),
        client_id: "c".into(),
        authentication: ClientAuthentication::SecretPost {
            secrets: vec![SecretSource::Environment("S".into())],
        },
        accept: "application/json".into(),
        ca_file: None,
        proxy: None,
        token_type: None,
    }
}

fn shipped(url: &str) -> CredentialSettings {
    CredentialSettings {
        client: Arc::new(client(url)),
        grant: Grant::ClientCredentials,
        terms: Terms::default(),
        params: BTreeMap::new(),
        default_lifetime: Duration::from_secs(300),
        scope_required: false,
    }
}

fn scopes(scopes: &[&str]) -> Terms {
    Terms { scope: words(scopes), ..Terms::default() }
}

#[test]
fn preset_econnect_psb() {
    let production = shipped("https://identity.econnect.eu/connect/token");
    let expected = CredentialSettings { terms: scopes(&["ap"]), ..production };
    let settings = token(&preset_token("preset = \"econnect-psb\"", ""));
    assert_eq!(*settings.credential, expected);
    assert_eq!(
        (settings.refresh_before, settings.headers, settings.caller_headers),
        (None, [].into(), [].into())
    );

    let user = "grant_type = \"password\"\nusername = \"u\"\npassword = { env = \"P\" }\nheaders = { Subscription-Key = { env = \"K\" } }";
    let settings = token(&preset_token("preset = \"econnect-psb\"\nenvironment = \"acceptance\"", user));
    let acceptance = shipped("https://accp-identity.econnect.eu/connect/token");
    let user = UserPassword { username: "u".into(), password: SecretSource::Environment("P".into()) };
    let grant = Grant::Password(Box::new(user));
    assert_eq!(*settings.credential, CredentialSettings { terms: scopes(&["ap"]), grant, ..acceptance });
}

#[test]
fn preset_bnpparibas_cib() {
    let url = "https://gateway.example/oauth2/v1/token";
    let provider =
        format!("preset = \"bnpparibas-cib\"\nenvironment = \"production\"\ntoken_endpoint = \"{url}\"");
    let settings = token(&preset_token(&provider, "scope = \"aisp pisp\""));
    let secrets = vec![SecretSource::Environment("S".into())];
    let client = ClientSettings {
        authentication: ClientAuthentication::SecretBasic { secrets, encoding: BasicEncoding::Raw },
        accept: "*/*".into(),
        token_type: Some("BearerToken".into()),
        ..client(url)
    };
    let expected = CredentialSettings {
        client: Arc::new(client),
        terms: scopes(&["aisp", "pisp"]),
        default_lifetime: Duration::from_secs(3600),
        ..shipped(url)
    };
    assert_eq!(*settings.credential, expected);
    let accept =
        HeaderSettings { name: "Accept".into(), value: HeaderValue::Fixed("application/json".into()) };
    assert_eq!(*settings.headers, [accept]);
}

#[test]
fn preset_partner_api() {
    let url = "https://partner.example/token";
    let settings = token(&preset_token(&format!("preset = \"partner-api\"\ntoken_endpoint = \"{url}\""), ""));
    assert_eq!(*settings.credential, shipped(url));
    assert_eq!(*settings.caller_headers, ["Requestor-ID"]);
}

#[test]
fn preset_aritma_psd2() {
    let terms = scopes(&["banking.channel.psd2", "banking.ais.read"]);
    let settings = token(&preset_token("preset = \"aritma-psd2\"", ""));
    assert_eq!(settings.credential.terms.scope.as_slice(), terms.scope.as_slice());
    let expected = CredentialSettings { terms, ..shipped("https://id.aritma.io/connect/token") };
    assert_eq!(*settings.credential, expected);
    let settings = token(&preset_token("preset = \"aritma-psd2\"\nenvironment = \"development\"", ""));
    let url = "https://id.dev.aritma.io/connect/token".parse().unwrap();
    assert_eq!(settings.credential.client.endpoint, Endpoint::Token(url));
}

#[test]
fn preset_cube_connect() {
    let settings =
        token(&preset_token("preset = \"cube-connect\"", "params = { acr_values = \"tenant:acme\" }"));
    let expected = CredentialSettings {
        terms: Terms { resource: words(&["connectapi"]), ..scopes(&["profile"]) },
        params: BTreeMap::from([("acr_values".into(), "tenant:acme".into())]),
        ..shipped("https://auth-core-cloud.cube.eu/connect/token")
    };
    assert_eq!(*settings.credential, expected);
    assert_eq!(settings.refresh_before, Some(Duration::ZERO));
}

#[test]
fn faults_about_presets() {
    let case = |provider: &str, token: &str, fault| assert_faults(&preset_token(provider, token), &[fault]);
    case("preset = \"cube-connect\"", "", (5, "token.t.params", "missing \"acr_values\""));
    case("preset = \"cube-connect\"", "params = {}", (7, "token.t.params", "missing \"acr_values\""));
    case(
        "preset = \"cube\"",
        "",
        (2, "provider.p.preset", "no preset \"cube\", only \"aritma-psd2\", \"bnpparibas-cib\""),
    );
    case(
        "preset = \"bnpparibas-cib\"",
        "",
        (1, "provider.p.token_endpoint", "does not know the endpoint: set token_endpoint, or issuer"),
    );
    case("preset = \"partner-api\"", "", (1, "provider.p.token_endpoint", "does not know the endpoint"));
    case(
        "preset = \"aritma-psd2\"\nenvironment = \"developmnt\"",
        "",
        (
            3,
            "provider.p.environment",
            "has no \"developmnt\", only \"development\" or \"production\"; did you mean \"development\"?",
        ),
    );
    case(
        "environment = \"x\"\ntoken_endpoint = \"https://id.example\"",
        "",
        (2, "provider.p.environment", "none is set"),
    );
    case(
        "preset = \"aritma-psd2\"",
        "grant_type = \"password\"\nusername = \"u\"\npassword = { env = \"P\" }",
        (
            7,
            "token.t.grant_type",
            "\"password\" is not offered by the provider's preset, only \"client_credentials\"",
        ),
    );
    case(
        "preset = \"partner-api\"\ntoken_endpoint = \"https://id.example\"",
        "headers = { requestor-id = \"1\" }",
        (8, "token.t.headers", "among both"),
    );
}

#[test]
fn a_preset_of_ones_own() {
    let preset = r#"
        [preset.ours]
        description = "Our identity provider"
        token_endpoint_auth_method = "client_secret_post"
        scope = "base"
        params = { a = "preset", b = "preset" }
        headers = { X-A = "preset", X-B = "preset" }
        caller_headers = ["X-Caller"]
        refresh_before = "1m"
        [preset.ours.environment]
        test.issuer = "https://test.example"
        live.token_endpoint = "https://live.example/token"
    "#;
    let given = "scope = \"more\"\nparams = { b = \"own\" }\nheaders = { x-b = \"own\" }\ncaller_headers = []\nrefresh_before = \"2m\"";
    let text = preset_token("preset = \"ours\"\nenvironment = \"test\"", given);
    let settings = token(&format!("{text}{preset}"));
    assert_eq!(
        settings.credential.client.endpoint,
        Endpoint::Issuer("https://test.example".parse().unwrap())
    );
    assert_eq!(settings.credential.terms.scope, words(&["more"]));
    let params = BTreeMap::from([("a".into(), "preset".into()), ("b".into(), "own".into())]);
    assert_eq!(settings.credential.params, params);
    let fixed = |name: &str, value: &str| HeaderSettings {
        name: name.into(),
        value: HeaderValue::Fixed(value.into()),
    };
    assert_eq!(*settings.headers, [fixed("X-A", "preset"), fixed("x-b", "own")]);
    assert_eq!(
        (settings.caller_headers, settings.refresh_before),
        ([].into(), Some(Duration::from_secs(120)))
    );

    let without = preset_token("preset = \"ours\"", "");
    assert_faults(
        &format!("{without}{preset}"),
        &[(1, "provider.p.environment", "has \"live\" or \"test\"")],
    );
    let faulty = preset.replace("\"base\"", "5");
    assert_faults(&format!("{text}{faulty}"), &[(17, "preset.ours.scope", "found an integer")]);
    let shipped = "[preset.cube-connect]\nscope = \"x\"";
    assert_faults(shipped, &[(1, "preset.cube-connect", "is a shipped preset")]);
}
