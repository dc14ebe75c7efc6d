//! An authorization server that we did not write: the npm package `oidc-provider`, which is certified by the
//! `OpenID` Foundation. `tests/run` installs it.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "a panic is how a test fails"
)]

use std::io::{BufRead, BufReader, Write};
use std::ops::Range;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::{Duration, Instant, SystemTime};

use base64::Engine;
use base64::prelude::{BASE64_STANDARD, BASE64_URL_SAFE_NO_PAD};
use serde_json::{Value, json};
use tokend_client::Options;
use tokend_client::blocking::Client;
use tokend_tests::daemon::Launch;
use tokend_tests::test_support::{token_of, token_table};
use tokend_tests::{Authority, Identity, RealDaemon, TestDir, program, requirement, scale, secrets};

const RESOURCE: &str = "https://api.example/";

/// The running server. It ends when its standard input does.
struct Server {
    issuer: String,
    secret: String,
    child: Child,
    stdin: Option<ChildStdin>,
}

impl Server {
    /// Starts it with two clients, `basic client` and `post client`, with one secret; `None` where it is not
    /// installed and need not be.
    fn start() -> Option<Self> {
        Self::start_with(Duration::from_secs(600))
    }

    /// Starts a server whose access tokens have this lifetime.
    fn start_with(lifetime: Duration) -> Option<Self> {
        let secret = secrets::invent_awkward("client-secret");
        Self::start_from(&settings(&secret, lifetime), secret)
    }

    fn start_from(settings: &Value, secret: String) -> Option<Self> {
        let folder = program::workspace().join("tests/oidc-provider");
        let installed = folder.join("node_modules/oidc-provider").is_dir();
        if !requirement::program("node") || !requirement::met("oidc-provider (see tests/run)", installed) {
            return None;
        }
        let mut child = Command::new("node")
            .arg("server.mjs")
            .current_dir(folder)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("node can be started");
        let mut stdin = child.stdin.take().unwrap();
        writeln!(stdin, "{settings}").unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let told: Value = serde_json::from_str(&line).expect("the server tells where it is");
        let issuer = told["issuer"].as_str().unwrap().to_owned();
        Some(Self { issuer, secret, child, stdin: Some(stdin) })
    }

    /// A daemon with the token `t` of one of the clients.
    fn daemon(&self, provider: &str, token: &str) -> (RealDaemon, TestDir) {
        let home = TestDir::new();
        let secret = home.secret("oidc.secret", &self.secret);
        home.configure(
            "",
            &format!("[provider.p]\nclient_secret = {secret}\n{provider}\n{}", token_table("t", token)),
        );
        (Launch::new(&home).start(), home)
    }

    fn endpoint(&self) -> String {
        format!("token_endpoint = \"{}/token\"", self.issuer)
    }

    fn basic(&self) -> String {
        format!(
            "{}\nclient_id = \"basic client\"\ntoken_endpoint_auth_method = \"client_secret_basic\"",
            self.endpoint()
        )
    }

    fn post(&self) -> String {
        format!(
            "{}\nclient_id = \"post client\"\ntoken_endpoint_auth_method = \"client_secret_post\"",
            self.endpoint()
        )
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.stdin.take());
        let _ = self.child.wait();
    }
}

fn settings(secret: &str, lifetime: Duration) -> Value {
    let client = |id: &str, method: &str| {
        json!({
            "client_id": id, "client_secret": secret, "token_endpoint_auth_method": method, "scope": "read write",
        })
    };
    let of_key = |name: &str| {
        let mut jwk: Value = serde_json::from_str(&key(&format!("{name}.jwk.json"))).unwrap();
        for private in ["d", "p", "q", "dp", "dq", "qi"] {
            jwk.as_object_mut().unwrap().remove(private);
        }
        json!({
            "client_id": name, "token_endpoint_auth_method": "private_key_jwt", "scope": "read write",
            "jwks": { "keys": [jwk] },
        })
    };
    json!({
        "clients": [
            client("basic client", "client_secret_basic"), client("post client", "client_secret_post"),
            client("jwt client", "client_secret_jwt"),
            of_key("rsa"), of_key("p256"), of_key("p384"), of_key("ed25519"),
        ],
        "resources": [RESOURCE],
        "scopes": ["read", "write"],
        "lifetime": lifetime.as_secs(),
    })
}

/// A private key of the daemon's own tests.
fn key(file: &str) -> String {
    let folder = program::workspace().join("daemon/src/signing_key/tests");
    std::fs::read_to_string(folder.join(file)).expect("there is such a key")
}

/// The claims of a token that is a JWT.
fn claims(token: &str) -> Value {
    let payload = token.split('.').nth(1).expect("the token is a JWT");
    serde_json::from_slice(&BASE64_URL_SAFE_NO_PAD.decode(payload).unwrap()).unwrap()
}

#[test]
fn basic_credentials_with_special_characters_are_accepted() {
    let Some(server) = Server::start() else { return };
    let (daemon, _home) = server.daemon(&server.basic(), "");
    assert!(!daemon.tokenctl().get("t").is_empty());
}

#[test]
fn credentials_in_the_form_are_accepted() {
    let Some(server) = Server::start() else { return };
    let (daemon, _home) = server.daemon(&server.post(), "");
    assert!(!daemon.tokenctl().get("t").is_empty());
}

#[test]
fn scope_and_resource_are_in_the_token_that_we_are_given() {
    let Some(server) = Server::start() else { return };
    for provider in [server.basic(), server.post()] {
        let (daemon, _home) =
            server.daemon(&provider, &format!("scope = \"read\"\nresource = [\"{RESOURCE}\"]"));
        let claims = claims(&daemon.tokenctl().get("t"));
        assert_eq!(claims["scope"], "read");
        assert_eq!(claims["aud"], RESOURCE);
    }
}

#[test]
fn the_token_endpoint_is_found_by_the_issuer_alone() {
    let Some(server) = Server::start() else { return };
    let provider = format!(
        "issuer = \"{}\"\nclient_id = \"basic client\"\ntoken_endpoint_auth_method = \"client_secret_basic\"",
        server.issuer
    );
    let (daemon, _home) = server.daemon(&provider, &format!("resource = [\"{RESOURCE}\"]"));
    assert_eq!(claims(&daemon.tokenctl().get("t"))["iss"], server.issuer);
}

#[test]
fn a_key_of_each_kind_and_format_proves_the_client() {
    let Some(server) = Server::start() else { return };
    let home = TestDir::new();
    let by_issuer = format!("issuer = \"{}\"\nassertion_audience = \"issuer\"", server.issuer);
    let endpoint = server.endpoint();
    let passphrase = format!("private_key_passphrase = {}", home.secret("passphrase", "swordfish"));
    let mut configuration = Vec::new();
    let keys = [
        ("rsa", "rsa.pkcs8.pem", &*endpoint, ""),
        ("rsa", "rsa.pkcs1.pem", &endpoint, "signing_alg = \"PS384\""),
        ("rsa", "rsa.jwk.json", &by_issuer, "signing_alg = \"RS512\""),
        ("p256", "p256.pkcs8.pem", &by_issuer, ""),
        ("p256", "p256.sec1.pem", &endpoint, ""),
        ("p256", "p256.encrypted.pem", &endpoint, &passphrase),
        ("p256", "p256.jwk.json", &endpoint, ""),
        ("p384", "p384.sec1.pem", &endpoint, ""),
        ("p384", "p384.jwk.json", &endpoint, "signing_alg = \"ES384\""),
        ("ed25519", "ed25519.pkcs8.pem", &endpoint, ""),
        ("ed25519", "ed25519.jwk.json", &by_issuer, ""),
    ];
    for (client, file, server, more) in keys {
        let source = home.secret(file, &key(file));
        configuration.push(format!(
            "[provider.\"{file}\"]\n{server}\nclient_id = \"{client}\"\nprivate_key = {source}\n{more}\n{}",
            token_of(file, &format!("\"{file}\""), "")
        ));
    }
    let secret = home.secret("oidc.secret", &server.secret);
    for alg in ["HS256", "HS512"] {
        configuration.push(format!(
            "[provider.{alg}]\n{endpoint}\nclient_id = \"jwt client\"\nclient_secret = {secret}\nsigning_alg = \"{alg}\"\n\
             token_endpoint_auth_method = \"client_secret_jwt\"\n{}",
            token_of(alg, alg, "")
        ));
    }
    home.configure("", &configuration.concat());
    let daemon = Launch::new(&home).start();
    for name in keys.map(|(_, file, ..)| file).into_iter().chain(["HS256", "HS512"]) {
        let got = daemon.tokenctl().run(&["get", name]);
        assert_eq!(got.code, 0, "{name}: {}", daemon.tokenctl().status_of(name));
    }
}

/// A server that asks for certificates, with the clients `tls`, by the name `client.example` in its certificate, and
/// `self-signed`, by its key.
fn settings_with_tls(authority: &Authority, self_signed: &Identity) -> Value {
    let own = authority.issue("127.0.0.1");
    let point = self_signed.key.public_key_raw();
    let coordinate = |range: Range<usize>| BASE64_URL_SAFE_NO_PAD.encode(&point[range]);
    let jwk = json!({
        "kty": "EC", "crv": "P-256", "x": coordinate(1..33), "y": coordinate(33..65),
        "x5c": [BASE64_STANDARD.encode(self_signed.certificate.der())],
    });
    json!({
        "clients": [
            {
                "client_id": "tls", "token_endpoint_auth_method": "tls_client_auth",
                "tls_client_auth_san_dns": "client.example", "scope": "read write",
            },
            {
                "client_id": "self-signed", "token_endpoint_auth_method": "self_signed_tls_client_auth",
                "jwks": { "keys": [jwk] }, "scope": "read write",
            },
        ],
        "resources": [], "scopes": ["read", "write"], "lifetime": 600,
        "tls": {
            "key": own.key.serialize_pem(), "cert": own.certificate.pem(),
            "ca": std::fs::read_to_string(authority.ca_file()).unwrap(),
        },
    })
}

#[test]
fn a_certificate_proves_the_client() {
    let (authority, self_signed) = (Authority::new(), Identity::self_signed("self.example"));
    let settings = settings_with_tls(&authority, &self_signed);
    let Some(server) = Server::start_from(&settings, String::new()) else { return };
    let home = TestDir::new();
    let provider = |client: &str, method: &str, identity: &Identity| {
        format!(
            "[provider.{client}]\nissuer = {:?}\nca_file = {:?}\nclient_id = {client:?}\n\
             token_endpoint_auth_method = {method:?}\n{}{}",
            server.issuer,
            authority.ca_file(),
            identity.configure(&home, client),
            token_of(client, client, "")
        )
    };
    let (known, method) = (authority.issue("client.example"), "tls_client_auth");
    let configuration = provider("tls", method, &known)
        + &provider("self-signed", "self_signed_tls_client_auth", &self_signed);
    home.configure("", &configuration);
    let daemon = Launch::new(&home).start();
    for name in ["tls", "self-signed"] {
        let got = daemon.tokenctl().run(&["get", name]);
        assert_eq!(got.code, 0, "{name}: {}", daemon.tokenctl().json(&["status", name]));
    }
    // Files are read for each request: another client's certificate is refused, and the next right one is taken.
    authority.issue("another.example").configure(&home, "tls");
    daemon.tokenctl().run(&["refresh", "tls"]).expect_code(7);
    authority.issue("client.example").configure(&home, "tls");
    daemon.tokenctl().run(&["refresh", "tls"]).expect_success();
}

#[test]
fn another_clients_key_is_refused() {
    let Some(server) = Server::start() else { return };
    let home = TestDir::new();
    let source = home.secret("key.pem", &key("p384.sec1.pem"));
    let provider = server.endpoint();
    let text = format!(
        "[provider.p]\n{provider}\nclient_id = \"p256\"\nprivate_key = {source}\n{}",
        token_table("t", "")
    );
    home.configure("", &text);
    let daemon = Launch::new(&home).start();
    let refused = daemon.tokenctl().run(&["get", "t"]).expect_code(7);
    assert!(refused.contains("invalid_client"), "{refused}");
}

#[test]
fn credentials_joined_raw_are_refused_by_a_server_that_follows_the_rfc() {
    let Some(server) = Server::start() else { return };
    let provider = format!("{}\nclient_secret_basic_encoding = \"raw\"", server.basic());
    let (daemon, _home) = server.daemon(&provider, "");
    daemon.tokenctl().run(&["get", "t"]).expect_code(7);
}

#[test]
fn a_resource_that_the_server_does_not_know_is_an_operator_s_matter() {
    let Some(server) = Server::start() else { return };
    let (daemon, _home) = server.daemon(&server.post(), "resource = [\"https://another.example/\"]");
    let refused = daemon.tokenctl().run(&["get", "t"]).expect_code(7);
    assert!(refused.contains("invalid_target"), "{refused}");
}

#[test]
fn no_token_is_handed_out_past_its_expiry_by_the_servers_own_clock() {
    let Some(server) = Server::start_with(Duration::from_secs(5)) else { return };
    let token = format!("resource = [\"{RESOURCE}\"]\nrefresh_before = \"0s\"");
    let (_daemon, home) = server.daemon(&server.basic(), &token);
    let client = Client::new(Options::new(home.socket()));
    let (mut seen, name) = (Vec::new(), "t".parse().unwrap());
    let end = Instant::now() + Duration::from_secs(u64::try_from(scale::size(60, 12)).unwrap());
    while Instant::now() < end {
        // The server is on this host. A token that had expired before it was asked for is one too many, however slow the
        // host is.
        let asked_at = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs_f64();
        let held = client.get(&name).expect("a caller waits for the new token");
        let expires_at = claims(held.token.expose())["exp"].as_f64().unwrap();
        assert!(expires_at > asked_at, "asked at {asked_at}, expired at {expires_at}");
        seen.push(expires_at);
    }
    seen.dedup();
    assert!(seen.len() >= 2, "{seen:?}");
}
