use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use proptest::prelude::*;

use super::*;
use crate::access::{Condition, Principal, RootAccess, Rule, UnitPattern};
use crate::quota::Quota;
use crate::secret_source::SecretSource;

mod client_authentication;
mod files;
mod grants;
mod presets;
mod rules;

const FILE: &str = "/etc/tokend/tokend.toml";
/// A process that can find out everything about callers.
const ABLE: Abilities = Abilities { users: true, units: true, executables: true };

const EXAMPLE: &str = include_str!("../../../systemd/tokend.toml");
const REFERENCE: &str = include_str!("../../CONFIGURATION.md");

/// Stands wherever a secret might be written by mistake, and must never be seen in a fault.
const CANARY: &str = "hunter2-canary";

/// Lines 1 to 4: a good provider. Cases go on at line 5.
const PROVIDER: &str = "[provider.p]\n\
    token_endpoint = \"https://id.example/token\"\n\
    client_id = \"c\"\n\
    client_secret = { env = \"S\" }\n";

/// Lines 1 to 6: a good provider and the beginning of a token. Cases go on at line 7.
const TOKEN: &str = "[provider.p]\n\
    token_endpoint = \"https://id.example/token\"\n\
    client_id = \"c\"\n\
    client_secret = { env = \"S\" }\n\
    [token.t]\n\
    provider = \"p\"\n";

fn good(text: &str) -> Config {
    parse(Path::new(FILE), text).unwrap_or_else(|faults| panic!("{faults:#?}\nin\n{text}")).config
}

fn token(text: &str) -> TokenSettings {
    good(text).tokens.into_values().next().unwrap()
}

fn source(path: &Path) -> Source {
    Source { path: path.to_owned(), egress_dir: None }
}

fn warnings(text: &str) -> Vec<String> {
    parse(Path::new(FILE), text).unwrap().warnings.iter().map(ToString::to_string).collect()
}

fn faults(text: &str) -> Vec<Fault> {
    parse(Path::new(FILE), text).err().unwrap_or_default()
}

/// Asserts that `text` has exactly these faults: line, key, and a part of the message.
#[track_caller]
fn assert_faults(text: &str, expected: &[(usize, &str, &str)]) {
    let found = faults(text);
    let listed: String = found.iter().fold(String::new(), |mut listed, fault| {
        writeln!(listed, "{fault}").unwrap();
        listed
    });
    let agree = found.len() == expected.len()
        && found.iter().zip(expected).all(|(fault, (line, key, part))| {
            fault.place.line == Some(*line) && fault.key == *key && fault.message.contains(part)
        });
    assert!(agree, "found:\n{listed}expected: {expected:#?}\nin\n{text}");
    assert!(!listed.contains(CANARY), "a secret is shown:\n{listed}");
    assert_eq!(listed.lines().count(), expected.len(), "a fault has one line:\n{listed}");
}

/// Cases of one fault each, in what follows `before`.
#[track_caller]
fn assert_each(before: &str, cases: &[(&str, usize, &str, &str)]) {
    for (case, line, key, part) in cases {
        assert_faults(&format!("{before}{case}\n"), &[(*line, key, part)]);
    }
}

fn preset_token(provider: &str, token: &str) -> String {
    format!(
        "[provider.p]\n{provider}\nclient_id = \"c\"\nclient_secret = {{ env = \"S\" }}\n[token.t]\nprovider = \"p\"\n{token}\n"
    )
}

fn words(words: &[&str]) -> TermSet {
    words.iter().map(|&word| word.to_owned()).collect()
}

#[test]
fn what_is_not_set_has_its_default() {
    let config = good("");
    let daemon = DaemonSettings {
        socket: "/run/tokend/tokend.sock".into(),
        http_socket: None,
        credential_socket: None,
        socket_group: None,
        state_dir: "/var/lib/tokend".into(),
        state_key: None,
        egress_dir: None,
        max_connections: 4096,
        quota: Quota::default(),
    };
    assert_eq!(config.daemon, daemon);
    assert_eq!(config.daemon.quota.connections, 1024);
    assert_eq!(
        warnings(""),
        ["/etc/tokend/tokend.toml: no [token.NAME] section, so there is nothing to hand out"]
    );

    let token = token(TOKEN);
    let credential = &token.credential;
    assert_eq!(credential.client.endpoint, Endpoint::Token("https://id.example/token".parse().unwrap()));
    let secrets = vec![SecretSource::Environment("S".into())];
    assert_eq!(
        credential.client.authentication,
        ClientAuthentication::SecretBasic { secrets, encoding: BasicEncoding::Form }
    );
    assert_eq!(credential.grant, Grant::ClientCredentials);
    assert_eq!(credential.client.accept, "application/json");
    assert_eq!(credential.default_lifetime, Duration::from_secs(300));
    assert_eq!((token.refresh_before, token.allow.len(), token.headers.len()), (None, 0, 0));
}

fn client_of_every_key() -> ClientSettings {
    ClientSettings {
        tls: None,
        endpoint: Endpoint::Issuer("https://id.example/realm".parse().unwrap()),
        client_id: "c".into(),
        authentication: ClientAuthentication::SecretBasic {
            secrets: vec![SecretSource::Command(vec!["pass".into(), "show".into(), "x".into()])],
            encoding: BasicEncoding::Raw,
        },
        accept: "*/*".into(),
        ca_file: Some("/etc/ca.pem".into()),
        proxy: Some("http://proxy.example:3128".parse().unwrap()),
        token_type: Some("JWT".into()),
    }
}

#[test]
fn every_key_arrives() {
    let config = good(
        r#"
        [daemon]
        socket = "/run/t.sock"
        http_socket = "/run/h.sock"
        credential_socket = "/run/c.sock"
        socket_group = "40000"
        state_dir = "/var/lib/t"
        state_key = { credential = "tokend.state-key" }
        max_connections = 10
        max_connections_per_uid = 9
        [admin]
        allow = ["user:0"]
        [provider.p]
        issuer = "https://id.example/realm"
        client_id = "c"
        client_secret = { command = ["pass", "show", "x"] }
        token_endpoint_auth_method = "client_secret_basic"
        client_secret_basic_encoding = "raw"
        ca_file = "/etc/ca.pem"
        proxy = "http://proxy.example:3128"
        accept = "*/*"
        default_lifetime = "30m"
        token_type = "JWT"
        [token.t]
        provider = "p"
        grant_type = "password"
        username = "u"
        password = { file = "/p" }
        scope = ["b", "a"]
        resource = "r"
        audience = ["x", "y"]
        params = { acr_values = "tenant:acme" }
        headers = { Subscription-Key = { credential = "k" }, Accept = "application/json" }
        caller_headers = ["Requestor-ID"]
        allow = ["user:1000", "group:4294967294", "unit:billing.service"]
        refresh_before = "1m 30s"
        default_lifetime = "20m"
        scope_required = true
        "#,
    );
    let more_sockets = [&config.daemon.http_socket, &config.daemon.credential_socket];
    assert_eq!(
        more_sockets.map(|path| path.as_deref()),
        [Some(Path::new("/run/h.sock")), Some(Path::new("/run/c.sock"))]
    );
    assert_eq!(config.daemon.socket_group, Some(Principal::Id(40000)));
    assert_eq!((config.daemon.max_connections, config.daemon.quota.connections), (10, 9));
    assert_eq!(config.admin.allow, [Rule::of(Condition::User(Principal::Id(0)))]);
    assert_eq!(config.admin.root, RootAccess::Allow);
    let token = &config.tokens["t"];
    let terms = |terms: &[&str]| terms.iter().map(|&term| term.to_owned()).collect::<TermSet>();
    let user = UserPassword { username: "u".into(), password: SecretSource::File("/p".into()) };
    let expected = CredentialSettings {
        client: Arc::new(client_of_every_key()),
        grant: Grant::Password(Box::new(user)),
        terms: Terms { scope: terms(&["b", "a"]), resource: terms(&["r"]), audience: terms(&["x", "y"]) },
        params: BTreeMap::from([("acr_values".into(), "tenant:acme".into())]),
        default_lifetime: Duration::from_secs(1200),
        scope_required: true,
    };
    assert_eq!(*token.credential, expected);
    assert_eq!(
        token.credential.terms.scope.as_slice(),
        ["b", "a"],
        "the order on the wire is that of the file"
    );
    assert_eq!(token.refresh_before, Some(Duration::from_secs(90)));
    let headers = [
        HeaderSettings { name: "Accept".into(), value: HeaderValue::Fixed("application/json".into()) },
        HeaderSettings {
            name: "Subscription-Key".into(),
            value: HeaderValue::Secret(SecretSource::Credential("k".into())),
        },
    ];
    assert_eq!(*token.headers, headers);
    assert_eq!(*token.caller_headers, ["Requestor-ID"]);
    let unit = Condition::Unit(UnitPattern::Exact("billing.service".into()));
    assert_eq!(
        *token.allow,
        [Condition::User(Principal::Id(1000)), Condition::Group(Principal::Id(u32::MAX - 1)), unit]
            .map(Rule::of)
    );
}

#[test]
fn the_limit_per_user_follows_a_lower_limit_in_all() {
    assert_eq!(good("[daemon]\nmax_connections = 50").daemon.quota.connections, 50);
}

#[test]
fn unknown_keys_and_sections_are_one_fault_each() {
    assert_each(
        TOKEN,
        &[
            ("scpoe = \"hunter2-canary\"", 7, "token.t.scpoe", "unknown key; did you mean \"scope\"?"),
            ("Allow = []", 7, "token.t.Allow", "did you mean \"allow\"?"),
            ("refresh-before = \"5m\"", 7, "token.t.refresh-before", "did you mean \"refresh_before\"?"),
            ("colour = \"red\"", 7, "token.t.colour", "unknown key; the keys here are provider, grant_type"),
            ("client_id = \"x\"", 7, "token.t.client_id", "\"client_id\" belongs in [provider.NAME]"),
            ("\"a\\nb\" = 1", 7, "token.t.\"a\\nb\"", "unknown key"),
            ("[tokn.x]\nprovider = \"p\"", 7, "tokn", "unknown section; did you mean \"token\"?"),
            ("[logging]\nlevel = 1", 7, "logging", "unknown section; the sections are"),
            ("[[token]]\nprovider = \"p\"", 7, "", "duplicate key"),
        ],
    );
    assert_each("", &[("socket = \"/s\"", 1, "socket", "\"socket\" belongs in [daemon]")]);
    assert_each("", &[("daemon = 1", 1, "daemon", "expected [daemon], found an integer")]);
    assert_each("", &[("token = \"x\"", 1, "token", "expected [token.NAME], found a string")]);
    assert_each("", &[("[daemon]\nallow = []", 2, "daemon.allow", "belongs in [token.NAME]")]);
    assert_each(PROVIDER, &[("[token]\nprovider = \"p\"", 6, "token.provider", "as in [token.NAME]")]);
}

#[test]
fn a_misspelt_section_or_key_is_not_missed_as_well() {
    let token = "[token.t]\nprovider = \"p\"\n";
    assert_faults(
        &format!("{token}{}", PROVIDER.replace("provider.p", "providr.p")),
        &[(3, "providr", "did you mean")],
    );
    for (right, wrong) in [
        ("client_id", "clientid"),
        ("client_secret", "client_secert"),
        ("client_secret", "secret"),
        ("token_endpoint", "token_url"),
        ("token_endpoint", "endpoint"),
    ] {
        let provider = PROVIDER.replace(right, wrong);
        let line = 1 + provider.lines().position(|line| line.starts_with(wrong)).unwrap();
        assert_faults(&provider, &[(line, &format!("provider.p.{wrong}"), right)]);
    }
    let misplaced = TOKEN.replace("client_id = \"c\"", "") + "client_id = \"c\"";
    assert_faults(&misplaced, &[(7, "token.t.client_id", "belongs in [provider.NAME]")]);
    assert_faults(
        &format!("{PROVIDER}[token.t]\nprovidr = \"p\""),
        &[(6, "token.t.providr", "\"provider\"")],
    );
}

#[test]
fn what_is_missing_is_reported_at_its_section() {
    let without = |key: &str| {
        let lines = PROVIDER.lines().filter(|line| !line.starts_with(key));
        format!("\n{}\n", lines.collect::<Vec<_>>().join("\n"))
    };
    assert_faults(
        &without("token_endpoint"),
        &[(2, "provider.p.token_endpoint", "set token_endpoint, or issuer")],
    );
    assert_faults(&without("client_id"), &[(2, "provider.p.client_id", "missing")]);
    assert_faults(
        &without("client_secret"),
        &[(2, "provider.p.client_secret", "missing; say where it is kept")],
    );
    assert_each(PROVIDER, &[("[token.t]", 5, "token.t.provider", "missing")]);
}

#[test]
fn wrong_types_name_both_types() {
    assert_each(
        TOKEN,
        &[
            ("scope = 5", 7, "token.t.scope", "expected a string or an array of strings, found an integer"),
            ("scope = [1]", 7, "token.t.scope", "expected a string, found an integer"),
            ("resource = true", 7, "token.t.resource", "found a boolean"),
            ("params = [\"hunter2-canary\"]", 7, "token.t.params", "found an array"),
            ("params = { x = 1.5 }", 7, "token.t.params.x", "expected a string, found a float"),
            ("headers = \"hunter2-canary\"", 7, "token.t.headers", "expected a table such as"),
            ("headers = { X = 1979-05-27 }", 7, "token.t.headers.X", "found a date or time"),
            ("caller_headers = \"X\"", 7, "token.t.caller_headers", "expected an array of header names"),
            ("allow = \"user:a\"", 7, "token.t.allow", "found a string"),
            ("allow = [\n\"user:0\",\n1\n]", 9, "token.t.allow", "a string or a table, found an integer"),
            ("grant_type = {}", 7, "token.t.grant_type", "expected a string, found a table"),
            ("refresh_before = []", 7, "token.t.refresh_before", "found an array"),
        ],
    );
    assert_each(
        "[daemon]\n",
        &[
            ("socket = 1", 2, "daemon.socket", "expected a string, found an integer"),
            (
                "max_connections = \"many\"",
                2,
                "daemon.max_connections",
                "expected an integer, found a string",
            ),
        ],
    );
}

#[test]
fn durations_need_a_unit_and_an_end() {
    assert_each(
        TOKEN,
        &[
            ("refresh_before = 300", 7, "token.t.refresh_before", "for seconds write \"300s\""),
            (
                "refresh_before = \"300\"",
                7,
                "token.t.refresh_before",
                "found \"300\", expected a duration with a unit",
            ),
            ("refresh_before = \"soon\"", 7, "token.t.refresh_before", "found \"soon\""),
            ("refresh_before = \"-5m\"", 7, "token.t.refresh_before", "found \"-5m\""),
            ("refresh_before = \"367d\"", 7, "token.t.refresh_before", "longer than a year"),
            ("refresh_before = \"5M\"", 7, "token.t.refresh_before", "write \"m\" for minutes"),
            ("warm = \"on demand\"", 7, "token.t.warm", "did you mean \"on-demand\"?"),
            ("max_requests_per_minute = 5", 7, "token.t.max_requests_per_minute", "[provider.NAME]"),
            ("warm = true", 7, "token.t.warm", "found a boolean"),
            (
                "scope_required = \"yes\"",
                7,
                "token.t.scope_required",
                "expected true or false, found a string",
            ),
            ("idle_timeout = \"1h\"", 7, "token.t.idle_timeout", "belongs to warm = \"on-demand\""),
            ("variants = [\"a\"]", 7, "token.t.variants", "found an array"),
            ("variants = { scopes = [\"a\"] }", 7, "token.t.variants.scopes", "did you mean \"scope\"?"),
            ("variants = { scope = [\"a\\\"\"] }", 7, "token.t.variants.scope", "scope"),
            ("headers = { A = \"\" }", 7, "token.t.headers.A", "not empty"),
            ("headers = { A = \"hü\" }", 7, "token.t.headers.A", "visible ASCII"),
            ("default_lifetime = \"0s\"", 7, "token.t.default_lifetime", "less than a second"),
        ],
    );
    assert_eq!(token(&format!("{TOKEN}refresh_before = \"0s\"")).refresh_before, Some(Duration::ZERO));
}

#[test]
fn endpoints_are_encrypted_unless_they_are_on_this_host() {
    let at = |key: &str, url: &str| {
        format!("[provider.p]\n{key} = \"{url}\"\nclient_id = \"c\"\nclient_secret = {{ env = \"S\" }}\n")
    };
    for url in [
        "https://id.example/token",
        "https://id.example:8443/token?tenant=1",
        "http://localhost:8080/token",
        "http://127.0.0.1/token",
        "http://127.8.9.10:1/token",
        "http://[::1]:1/token",
    ] {
        assert_faults(&at("token_endpoint", url), &[]);
    }
    for (url, part) in [
        ("http://id.example/token", "http:// to \"id.example\" would send the client secret unencrypted"),
        ("http://localhost.example/token", "unencrypted"),
        ("http://127.0.0.1.example/token", "unencrypted"),
        ("http://128.0.0.1/token", "unencrypted"),
        ("http://[::2]/token", "unencrypted"),
        ("https://user:hunter2-canary@id.example/token", "user name or password before the host"),
        ("https://hunter2-canary@id.example/token", "user name or password before the host"),
        ("https://id.example/token#hunter2-canary", "fragment"),
        ("https://id.example:0/token", "port 0"),
        ("ftp://id.example/token", "a scheme other than https"),
        ("unix:/run/x", "a scheme other than https"),
        ("id.example/token", "not a URL"),
        ("https://", "not a URL"),
        (" https://id.example/token", "white space"),
        ("", "not a URL"),
    ] {
        assert_faults(&at("token_endpoint", url), &[(2, "provider.p.token_endpoint", part)]);
    }
    assert_faults(&at("issuer", "https://id.example/?x=1"), &[(2, "provider.p.issuer", "no query")]);
    let both = format!("{PROVIDER}issuer = \"https://id.example\"");
    assert_faults(
        &both,
        &[(5, "provider.p.issuer", "contradicts token_endpoint (/etc/tokend/tokend.toml:2)")],
    );
}

#[test]
fn a_proxy_is_scheme_host_and_port_and_never_for_plain_http() {
    assert_each(
        PROVIDER,
        &[
            ("proxy = \"socks5://proxy.example\"", 5, "provider.p.proxy", "a scheme other than https"),
            (
                "proxy = \"http://u:hunter2-canary@proxy.example\"",
                5,
                "provider.p.proxy",
                "user name or password",
            ),
            ("proxy = \"http://proxy.example/x\"", 5, "provider.p.proxy", "scheme, host and port"),
        ],
    );
    let plain = PROVIDER.replace("https://id.example", "http://localhost");
    assert_each(
        &plain,
        &[("proxy = \"http://proxy.example\"", 5, "provider.p.proxy", "not reached through a proxy")],
    );
}

#[test]
fn a_proxy_is_not_combined_with_an_egress_directory() {
    let proxy = format!("{PROVIDER}proxy = \"http://proxy.example\"\n");
    let egress = "[daemon]\negress_dir = \"/run/tokend-egress\"\n";
    assert_faults(&format!("{proxy}{egress}"), &[(5, "provider.p.proxy", "egress_dir")]);
    assert_eq!(good(&format!("{PROVIDER}{egress}")).daemon.egress_dir, Some("/run/tokend-egress".into()));

    // The command line decides.
    let (_directory, path) = directory(&format!("{proxy}{egress}"), &[]);
    assert!(load(&Source { egress_dir: Some("".into()), ..source(&path) }, ABLE).is_ok());
    let (_directory, path) = directory(&proxy, &[]);
    let faults = load(&Source { egress_dir: Some("/run/x".into()), ..source(&path) }, ABLE).unwrap_err();
    assert_eq!(faults[0].key, "provider.p.proxy");
}

#[test]
fn client_authentication_agrees_with_the_secret() {
    assert_each(
        PROVIDER,
        &[
            (
                "token_endpoint_auth_method = \"client_secret_pots\"",
                5,
                "provider.p.token_endpoint_auth_method",
                "found \"client_secret_pots\", expected \"client_secret_basic\", \"client_secret_post\", \"client_secret_jwt\", \"private_key_jwt\", \"tls_client_auth\", \"self_signed_tls_client_auth\" or \"none\"; did you mean \"client_secret_post\"?",
            ),
            (
                "token_endpoint_auth_method = \"none\"",
                4,
                "provider.p.client_secret",
                "has a meaning only with token_endpoint_auth_method = \"client_secret_basic\", \"client_secret_post\" or \"client_secret_jwt\"",
            ),
            (
                "token_endpoint_auth_method = \"client_secret_post\"\nclient_secret_basic_encoding = \"raw\"",
                6,
                "provider.p.client_secret_basic_encoding",
                "only with token_endpoint_auth_method = \"client_secret_basic\"",
            ),
            (
                "client_secret_basic_encoding = \"base64\"",
                5,
                "provider.p.client_secret_basic_encoding",
                "expected \"form\" or \"raw\"",
            ),
        ],
    );
    let public = PROVIDER.replace("client_secret = { env = \"S\" }", "token_endpoint_auth_method = \"none\"");
    let settings = token(&format!("{public}[token.t]\nprovider = \"p\""));
    assert_eq!(settings.credential.client.authentication, ClientAuthentication::None);
}

#[test]
fn secrets_that_overlap_are_read_in_their_order_and_the_order_matters() {
    let authentication = |value: &str| {
        let provider = PROVIDER.replace("{ env = \"S\" }", value);
        token(&format!("{provider}[token.t]\nprovider = \"p\"")).credential.client.authentication.clone()
    };
    let both = authentication("[{ env = \"NEW\" }, { file = \"/old\" }]");
    assert_eq!(both.secrets(), [SecretSource::Environment("NEW".into()), SecretSource::File("/old".into())]);
    assert_ne!(both, authentication("[{ file = \"/old\" }, { env = \"NEW\" }]"));
    assert_eq!(authentication("[{ env = \"NEW\" }]"), authentication("{ env = \"NEW\" }"));
}

#[test]
fn a_secret_in_the_configuration_is_refused_and_not_shown() {
    let provider = |value: &str| PROVIDER.replace("{ env = \"S\" }", value);
    for (value, key, part) in [
        (
            "\"hunter2-canary\"",
            "",
            "a secret is not written here; say where it is kept: { credential = \"NAME\" }",
        ),
        ("[\"hunter2-canary\"]", "", "a secret is not written here; say where it is kept"),
        ("[{ env = \"S\" }, \"hunter2-canary\"]", "", "a secret is not written here"),
        ("[{ env = \"S\" }, { file = \"hunter2-canary\" }]", ".file", "expected an absolute path"),
        ("[{ env = \"S\" }, [{ env = \"T\" }]]", "", "found an array"),
        ("[]", "", "an array of 0 sources, expected 1 to 4, the preferred one first: [{ credential"),
        (
            "[{ env = \"A\" }, { env = \"B\" }, { env = \"C\" }, { env = \"D\" }, { env = \"E\" }]",
            "",
            "an array of 5 sources, expected 1 to 4",
        ),
        ("[{ env = \"S\" }, { env = \"S\" }]", "", "the same source is listed twice"),
        ("42", "", "found an integer"),
        ("{}", "", "an empty table"),
        ("{ value = \"hunter2-canary\" }", "", "unknown kind of secret source; expected"),
        ("{ hunter2-canary = 1 }", "", "unknown kind of secret source; expected"),
        ("{ fiel = \"/hunter2-canary\" }", "", "did you mean \"file\"?"),
        ("{ env = \"hunter2-canary\", file = \"/x\" }", "", "2 sources for one secret"),
        ("{ file = \"/x\", mode = \"0400\" }", "", "unknown kind of secret source; expected"),
        ("{ file = \"/x\", hunter2-canary = \"0400\" }", "", "unknown kind of secret source; expected"),
        ("{ file = \"hunter2-canary\" }", ".file", "expected an absolute path"),
        ("{ file = 1 }", ".file", "expected a string"),
        ("{ credential = \"hunter2-canary/x\" }", ".credential", "without \"/\""),
        ("{ credential = \"..\" }", ".credential", "without \"/\""),
        ("{ env = \"\" }", ".env", "not empty"),
        ("{ env = \"hunter2-canary=x\" }", ".env", "no \"=\""),
        ("{ command = \"pass hunter2-canary\" }", ".command", "there is no shell"),
        ("{ command = [] }", ".command", "names no program"),
        ("{ command = [\"\"] }", ".command", "names no program"),
        ("{ command = [\"pass\", 1] }", ".command", "expected a string"),
        ("{ command = [\"pass\", \"hunter2-canary\\u0000\"] }", ".command", "NUL"),
    ] {
        assert_faults(&provider(value), &[(4, &format!("provider.p.client_secret{key}"), part)]);
    }
    assert_each(
        TOKEN,
        &[("headers = { X = { hunter2-canary = 1 } }", 7, "token.t.headers.X", "unknown kind")],
    );
}

#[test]
fn scopes_fields_and_headers_are_fit_to_be_sent() {
    assert_each(
        TOKEN,
        &[
            ("scope = \"a\\\"b\"", 7, "token.t.scope", "which a scope cannot have"),
            ("scope = \"a\\tb\"", 7, "token.t.scope", "which a scope cannot have"),
            ("scope = [\"a b\"]", 7, "token.t.scope", "one scope term in each string"),
            ("resource = \"\"", 7, "token.t.resource", "empty"),
            ("audience = [\"a\\nb\"]", 7, "token.t.audience", "control character"),
            (
                "params = { client_secret = \"hunter2-canary\" }",
                7,
                "token.t.params.client_secret",
                "set by the key \"client_secret\" of [provider.NAME]",
            ),
            (
                "params = { client_assertion = \"hunter2-canary\" }",
                7,
                "token.t.params.client_assertion",
                "set by the key \"client_assertion\" of [provider.NAME]",
            ),
            (
                "headers = { authorization = \"hunter2-canary\" }",
                7,
                "token.t.headers.authorization",
                "written by the daemon",
            ),
            ("headers = { \"a b\" = \"x\" }", 7, "token.t.headers.\"a b\"", "cannot be the name of a header"),
            (
                "headers = { X = \"hunter2-canary\\n\" }",
                7,
                "token.t.headers.X",
                "cannot be the value of a header",
            ),
            ("headers = { X = \" a\" }", 7, "token.t.headers.X", "cannot be the value of a header"),
            ("[token.t.headers]\nAccept = \"a\"\naccept = \"b\"", 9, "token.t.headers.accept", "given twice"),
            ("caller_headers = [\"Authorization\"]", 7, "token.t.caller_headers", "written by the daemon"),
            ("caller_headers = [\"X\", \"x\"]", 7, "token.t.caller_headers", "names \"x\" twice"),
            ("headers = { X = \"a\" }\ncaller_headers = [\"x\"]", 8, "token.t.caller_headers", "among both"),
        ],
    );
    assert_eq!(token(&format!("{TOKEN}scope = \"\"")).credential.terms.scope, TermSet::default());
}

#[test]
fn names_are_checked_at_their_section() {
    for name in ["a/b", "-a", "a b", "a\\nb", "a\\u0000b", "", &"x".repeat(300)] {
        for kind in ["token", "provider", "preset"] {
            let body = if kind == "token" { "provider = \"p\"" } else { "" };
            let text = format!("{PROVIDER}\n[{kind}.\"{name}\"]\n{body}");
            let text = if kind == "provider" {
                format!("{text}{}", &PROVIDER[PROVIDER.find('\n').unwrap()..])
            } else {
                text
            };
            let found = faults(&text);
            assert_eq!(found.len(), 1, "{found:#?}");
            assert_eq!(found[0].place.line, Some(6));
            assert!(found[0].message.contains("name"), "{}", found[0]);
            assert!(found[0].to_string().len() < 300, "{}", found[0]);
        }
    }
}

#[test]
fn a_token_names_a_provider_that_is_there() {
    assert_each(
        &PROVIDER.replace("provider.p", "provider.psb"),
        &[
            (
                "[token.t]\nprovider = \"pbs\"",
                6,
                "token.t.provider",
                "no provider \"pbs\"; add [provider.pbs]; did you mean \"psb\"?",
            ),
            ("[token.t]\nprovider = 1", 6, "token.t.provider", "expected a string"),
        ],
    );
    let broken = TOKEN.replace("client_id = \"c\"", "client_id = 5");
    assert_faults(&broken, &[(3, "provider.p.client_id", "expected a string")]);
}

#[test]
fn paths_and_numbers_are_within_bounds() {
    let long = format!("socket = \"/{}\"", "x".repeat(107));
    assert_each(
        "[daemon]\n",
        &[
            ("socket = \"tokend.sock\"", 2, "daemon.socket", "an absolute path"),
            (&long, 2, "daemon.socket", "a path of 108 bytes, but a socket's path has at most 107"),
            ("http_socket = \"http.sock\"", 2, "daemon.http_socket", "an absolute path"),
            ("http_socket = \"/run/tokend/tokend.sock\"", 2, "daemon.http_socket", "a path of its own"),
            ("credential_socket = \"/run/tokend/tokend.sock\"", 2, "daemon.credential_socket", "of its own"),
            ("credential_socket = \"c.sock\"", 2, "daemon.credential_socket", "an absolute path"),
            ("state_dir = \"\"", 2, "daemon.state_dir", "an absolute path"),
            ("state_dir = \"/a\\u0000\"", 2, "daemon.state_dir", "NUL"),
            ("max_connections = 0", 2, "daemon.max_connections", "found 0, expected 1 to 100000"),
            ("max_connections = -1", 2, "daemon.max_connections", "found -1"),
            (
                "max_connections_per_uid = 99999999999999999999999",
                2,
                "daemon.max_connections_per_uid",
                "expected 1 to",
            ),
            (
                "max_connections = 5\nmax_connections_per_uid = 6",
                3,
                "daemon.max_connections_per_uid",
                "more than max_connections (5)",
            ),
            ("socket_group = \"a b\"", 2, "daemon.socket_group", "cannot be the name of a group"),
        ],
    );
}

#[test]
fn a_syntax_error_is_reported_with_its_column_and_without_the_text_of_its_line() {
    for case in [
        "scope = hunter2-canary",
        "scope = \"hunter2-canary",
        "scope hunter2-canary",
        "scope: hunter2-canary",
        "hunter2-canary",
        "scope =",
        "scope == \"hunter2-canary\"",
        "scope = \"a\\q\"",
        "refresh_before = 5m",
        "= \"hunter2-canary\"",
        "scope = \"a\" \"hunter2-canary\"",
        "[token.u",
        "[token.u] x",
        "[provider..q]",
    ] {
        let text = format!("{TOKEN}{case}\nallow = []\ncolour = 1\n[daemon]\nsocket = 1\n");
        let found = faults(&text);
        let [fault] = found.as_slice() else { panic!("{found:#?}\nin\n{text}") };
        let column = fault.place.column.unwrap();
        assert!((1..=case.len() + 1).contains(&column), "{fault}\nin {case}");
        assert!(fault.to_string().starts_with(&format!("{FILE}:7:{column}: syntax error: ")), "{fault}");
        assert!(!fault.to_string().contains(CANARY), "{fault}");
    }
    let unquoted = faults("[daemon]\nsocket = hunter2-canary");
    assert_eq!((unquoted[0].place.line, unquoted[0].place.column), (Some(2), Some(10)));
    assert!(unquoted[0].message.contains("string values must be quoted"), "{}", unquoted[0]);
}

#[test]
fn a_key_given_twice_is_named() {
    let twice = faults(&format!("{TOKEN}scope = \"a\"\nscope = \"hunter2-canary\""));
    assert_eq!(twice[0].to_string(), format!("{FILE}:8:1: scope: syntax error: duplicate key"));
    let unknown = faults(&format!("{TOKEN}hunter2-canary = 1\nhunter2-canary = 1"));
    assert_eq!(unknown[0].to_string(), format!("{FILE}:8:1: syntax error: duplicate key"));
    assert_eq!((twice.len(), unknown.len()), (1, 1));
}

#[test]
fn a_broken_file_hides_no_fault_of_a_value_in_another_file_and_causes_none() {
    // The second file needs the first: its provider, its preset, its grant type and its limits are there.
    let (_directory, path) = directory(
        &format!("{TOKEN}scope = a\n[daemon]\nmax_connections = 100000\n"),
        &[(
            "a.toml",
            "[token.t]\nusername = \"u\"\n[token.u]\nprovider = \"p\"\nscope = 1\n[provider.p]\nenvironment = \"x\"\n\
             [token.v]\n[daemon]\nmax_connections_per_uid = 5000",
        )],
    );
    let found = load(&source(&path), ABLE).unwrap_err();
    let shown: Vec<_> = found.iter().map(|fault| (fault.place.line.unwrap(), &*fault.key)).collect();
    assert_eq!(shown, [(7, ""), (5, "token.u.scope")], "{found:?}");
}

#[test]
fn a_fault_of_a_preset_hides_no_fault_of_a_value_and_causes_none() {
    let preset = "[preset.ours]\ntoken_endpoint_auth_method = \"non\"\nenvironment.production.issuer = \"https://x.example\"\n";
    let text = format!("{preset}[provider.p]\npreset = \"ours\"\n[token.t]\nprovider = \"p\"\nscope = 1");
    assert_faults(
        &text,
        &[
            (2, "preset.ours.token_endpoint_auth_method", "did you mean \"none\"?"),
            (8, "token.t.scope", "found an integer"),
        ],
    );
}

#[test]
fn a_slip_of_the_finger_is_one_fault() {
    let text = format!(
        "{TOKEN}scope = \"a b\"\nrefresh_before = \"5m\"\nparams = {{ x = \"y\" }}\nallow = [\"user:0\", \"group:0\"]\n\
         [token.t.headers]\nAccept = \"*/*\"\nX-Key = {{ file = \"/x\" }}\n[daemon]\nsocket = \"/x\"\n"
    );
    good(&text);
    for (index, _) in text.char_indices().filter(|(_, c)| *c != '\n') {
        let mut slip = text.clone();
        let lost = slip.remove(index);
        let found = faults(&slip);
        // Without a dot or a bracket a line may become something else, which is wrong in more than one way.
        let most = if "[].".contains(lost) { 3 } else { 1 };
        assert!(found.len() <= most, "{found:#?}\nin\n{slip}");
    }
}

#[test]
fn a_file_of_syntax_errors_comes_to_an_end() {
    let text = "x = [\n\"\"\"\n{{{ ]]] = = =\n".repeat(200);
    assert!(!faults(&text).is_empty());
}

#[test]
fn ten_assorted_faults_are_ten_reports() {
    let text = r#"[daemon]
socket = "run/tokend.sock"


[provider.psb]
preset = "econect-psb"
client_id = "id"
client_secret = "hunter2-canary"

[provider.web]
token_endpoint = "http://id.example/token"
client_id = "id"
client_secret = { env = "S" }

[provider.two]
token_endpoint = "https://id.example/token"
issuer = "https://id.example"
client_id = "id"
client_secret = { env = "S" }

[token.psb]
provider = "psb"
scpoe = "ap"
refresh_before = 300

[token.web]
provider = "wbe"
allow = ["billing"]

[token."a/b"]
provider = "two"
"#;
    assert_faults(
        text,
        &[
            (2, "daemon.socket", "absolute"),
            (6, "provider.psb.preset", "did you mean \"econnect-psb\"?"),
            (8, "provider.psb.client_secret", "not written here"),
            (11, "provider.web.token_endpoint", "https"),
            (17, "provider.two.issuer", "contradicts"),
            (23, "token.psb.scpoe", "did you mean \"scope\"?"),
            (24, "token.psb.refresh_before", "300s"),
            (27, "token.web.provider", "did you mean \"web\"?"),
            (28, "token.web.allow", "expected \"user:NAME\""),
            (30, "token.\"a/b\"", "expected 1 to 255 letters"),
        ],
    );
    let line = faults(text)[5].to_string();
    assert_eq!(line, "/etc/tokend/tokend.toml:23: token.psb.scpoe: unknown key; did you mean \"scope\"?");
}

#[test]
fn a_provider_without_a_token_is_a_warning() {
    assert_eq!(warnings(PROVIDER)[1], "/etc/tokend/tokend.toml:1: provider.p: no token uses this provider");
}

#[test]
fn unknown_users_and_groups_are_looked_up_and_warned_of_only_by_a_check() {
    let text = format!(
        "{TOKEN}allow = [\"user:no-such-user-here\",\n\"group:no-such-group-here\", \"user:root\"]\n[daemon]\nsocket_group = \"no-such-group-here\""
    );
    let (_directory, path) = directory(&text, &[]);
    assert_eq!(load(&source(&path), ABLE).unwrap().warnings, []);
    let shown = path.display();
    let warnings: Vec<String> =
        load_and_look_up(&source(&path), ABLE).unwrap().warnings.iter().map(ToString::to_string).collect();
    assert_eq!(
        warnings,
        [
            format!("{shown}:7: token.t.allow: this host has no user \"no-such-user-here\" at present"),
            format!(
                "{shown}:10: daemon.socket_group: this host has no group \"no-such-group-here\" at present"
            ),
        ]
    );
}

#[test]
fn a_check_reports_files_that_its_user_cannot_read() {
    let folder = tempfile::tempdir().unwrap();
    let (file, ca) = (folder.path().join("secret"), folder.path().join("ca.pem"));
    let text = TOKEN.replace("{ env = \"S\" }", &format!("{{ file = {file:?} }}\nca_file = {ca:?}"));
    let (_directory, path) = directory(&text, &[]);
    let found = || match load_and_look_up(&source(&path), ABLE) {
        Ok(loaded) => loaded.warnings.iter().map(ToString::to_string).collect(),
        Err(faults) => faults.iter().map(ToString::to_string).collect::<Vec<_>>(),
    };
    let shown = path.display();
    let missing = found();
    assert_eq!(missing.len(), 2, "{missing:#?}");
    assert!(missing[0].starts_with(&format!("{shown}:4: provider.p.client_secret.file: ")), "{missing:#?}");
    assert!(missing[1].starts_with(&format!("{shown}:5: provider.p.ca_file: ")), "{missing:#?}");
    assert_eq!(load(&source(&path), ABLE).unwrap().warnings, [], "the daemon waits for the secret");
    assert!(load_and_look_up(&source(&path), ABLE).is_ok(), "they may appear later");
    for path in [&file, &ca] {
        write(path, CANARY);
    }
    let open = found();
    assert!(open.len() == 1 && open[0].contains(&format!("chmod 0600 {}", file.display())), "{open:#?}");
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o400)).unwrap();
    let pem = |content| format!("-----BEGIN CERTIFICATE-----\n{content}\n-----END CERTIFICATE-----\n");
    for (content, fault) in [
        (CANARY.to_owned(), "it has no certificate"),
        (pem("!"), "it is not valid PEM"),
        (pem("AAAA"), "its certificate 1 is not valid"),
    ] {
        write(&ca, &content);
        let expected = format!("{shown}:5: provider.p.ca_file: {}: {fault}; ", ca.display());
        let warnings = found();
        assert!(warnings.len() == 1 && warnings[0].starts_with(&expected), "{warnings:#?}");
    }
}

/// A directory with `tokend.toml` and the drop-ins.
fn directory(main: &str, drop_ins: &[(&str, &str)]) -> (tempfile::TempDir, PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("tokend.toml");
    write(&path, main);
    if !drop_ins.is_empty() {
        std::fs::create_dir(directory.path().join("tokend.toml.d")).unwrap();
    }
    for (name, text) in drop_ins {
        write(&directory.path().join("tokend.toml.d").join(name), text);
    }
    (directory, path)
}

fn write(path: &Path, text: &str) {
    std::fs::write(path, text).unwrap();
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o644)).unwrap();
}

#[test]
fn a_lifetime_is_the_tokens_or_the_providers_or_the_presets() {
    let lifetime = |provider: &str, own: &str| {
        let provider =
            format!("preset = \"bnpparibas-cib\"\ntoken_endpoint = \"https://id.example\"\n{provider}");
        token(&preset_token(&provider, own)).credential.default_lifetime.as_secs()
    };
    assert_eq!(lifetime("", ""), 3600);
    assert_eq!(lifetime("default_lifetime = \"20m\"", ""), 1200);
    assert_eq!(lifetime("default_lifetime = \"20m\"", "default_lifetime = \"10m\""), 600);
}

#[test]
fn warmth_and_variants() {
    let of = |keys: &str| {
        let mut config = good(&format!("{PROVIDER}[token.t]\nprovider = \"p\"\n{keys}"));
        config.tokens.pop_first().unwrap().1
    };
    let hour = Duration::from_secs(3600);
    assert_eq!(of("").idle_timeout, None);
    assert_eq!(of("warm = \"on-demand\"").idle_timeout, Some(hour));
    let short = of("warm = \"on-demand\"\nidle_timeout = \"5m\"").idle_timeout;
    assert_eq!(short, Some(hour / 12));
    assert_eq!(*of("").variants, VariantSettings::default());
    let variants = of("variants = { scope = \"a b\", resource = [\"r\"], audience = \"x\" }").variants;
    assert_eq!(variants.terms.scope.as_slice(), ["a", "b"]);
    assert_eq!(
        (variants.terms.resource.as_slice(), variants.terms.audience.as_slice()),
        (&["r".to_owned()][..], &["x".to_owned()][..])
    );
}

#[test]
fn the_shipped_example_is_good_and_has_the_five_providers() {
    let config = good(EXAMPLE);
    let providers: std::collections::BTreeSet<&str> =
        config.tokens.values().map(|token| &*token.provider).collect();
    assert_eq!(Vec::from_iter(providers), ["aritma", "bnp", "cube", "partner", "psb"]);
}

#[test]
fn the_examples_of_the_reference_are_good() {
    let examples: Vec<&str> =
        REFERENCE.split("```toml\n").skip(1).map(|rest| rest.split("```").next().unwrap()).collect();
    assert!(examples.len() >= 3, "{}", examples.len());
    for example in examples {
        good(example);
    }
}

#[test]
fn the_reference_names_every_key() {
    for key in KINDS.into_iter().flat_map(|(kind, ..)| keys_of(kind)) {
        assert!(REFERENCE.contains(&format!("`{key}`")), "{key}");
    }
}

#[test]
fn twenty_thousand_tokens_are_read_in_one_go() {
    let mut text = PROVIDER.to_owned();
    for index in 0..20_000 {
        writeln!(text, "[token.t{index}]\nprovider = \"p\"\nscope = \"s{index}\"\nallow = [\"user:0\"]")
            .unwrap();
    }
    assert_eq!(good(&text).tokens.len(), 20_000);
}

proptest! {
    #[test]
    fn no_text_makes_it_panic(text in "\\PC{0,200}") {
        let _ = faults(&text);
    }

    #[test]
    fn nothing_like_toml_makes_it_panic(parts in proptest::collection::vec(prop::sample::select(vec![
        "[", "]", "[[", "]]", "{", "}", "=", ".", ",", "\n", "\r\n", "\"", "\"\"\"", "'", "'''", "#", " ", "\\", "1", "x",
        "token", "provider", "preset", "daemon", "environment", "headers", "[token.t]\n", "[provider.p]\n", "a = 1\n",
        "provider = \"p\"\n", "\u{0}", "é", "client_secret = ", "\"s\"",
    ]), 0..60)) {
        let _ = faults(&parts.concat());
    }

    #[test]
    fn no_mutation_of_the_example_makes_it_panic(
        edits in proptest::collection::vec((0..EXAMPLE.len(), 0..12_usize, "[\\[\\]{}=\"'.,#\n a-z0-9]{0,4}"), 1..4),
    ) {
        let mut text = EXAMPLE.to_owned();
        for (start, length, new) in edits {
            let floor = |index: usize| (0..=index.min(text.len())).rev().find(|i| text.is_char_boundary(*i)).unwrap_or(0);
            let (start, end) = (floor(start), floor(start + length));
            text.replace_range(start..end, &new);
        }
        for fault in faults(&text) {
            prop_assert!(fault.to_string().lines().count() == 1, "{fault}");
            prop_assert!(fault.place.line.is_none_or(|line| line <= text.matches('\n').count() + 1), "{fault}");
        }
    }
}
