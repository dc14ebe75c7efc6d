//! Private keys and assertions in place of client secrets.

use std::fs;

use super::*;
use crate::signing_key::SigningAlg;

/// A provider with these lines in place of the secret, the first of which is line 4.
fn authentication(lines: &str) -> String {
    let provider = PROVIDER.replace("client_secret = { env = \"S\" }", lines);
    format!("{provider}[token.t]\nprovider = \"p\"\n")
}

/// Asserts that these lines of a provider have one fault, at this line and key.
fn assert_fault(lines: &str, line: usize, key: &str, message: &str) {
    assert_faults(&authentication(lines), &[(line, &format!("provider.p.{key}"), message)]);
}

#[test]
fn a_private_key_or_an_assertion_is_a_method_of_its_own() {
    let read = |lines: &str| token(&authentication(lines)).credential.client.authentication.clone();
    let source = || SecretSource::Environment("K".to_owned());
    let endpoint = AssertionSettings { alg: None, audience: AssertionAudience::TokenEndpoint };
    let key = PrivateKeySettings {
        keys: vec![source()],
        passphrase: None,
        key_id: None,
        certificate: None,
        assertion: endpoint.clone(),
    };
    assert_eq!(
        read("private_key = { env = \"K\" }"),
        ClientAuthentication::PrivateKeyJwt(Box::new(key.clone()))
    );
    let lines = "private_key = { env = \"K\" }\nprivate_key_passphrase = { env = \"P\" }\nprivate_key_id = \"k1\"\n\
                 client_certificate = \"/cert.pem\"\nsigning_alg = \"PS256\"\nassertion_audience = \"urn:x\"\n\
                 token_endpoint_auth_method = \"private_key_jwt\"";
    let all = PrivateKeySettings {
        passphrase: Some(SecretSource::Environment("P".to_owned())),
        key_id: Some("k1".to_owned()),
        certificate: Some("/cert.pem".into()),
        assertion: AssertionSettings {
            alg: Some(SigningAlg::Ps256),
            audience: AssertionAudience::Other("urn:x".to_owned()),
        },
        ..key
    };
    assert_eq!(read(lines), ClientAuthentication::PrivateKeyJwt(Box::new(all)));
    let assertion_type = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer".to_owned();
    assert_eq!(
        read("client_assertion = { env = \"K\" }"),
        ClientAuthentication::Assertion { assertions: vec![source()], assertion_type }
    );
    assert_eq!(
        read("client_secret = { env = \"K\" }\ntoken_endpoint_auth_method = \"client_secret_jwt\""),
        ClientAuthentication::SecretJwt { secrets: vec![source()], assertion: endpoint }
    );
}

#[test]
fn the_settings_of_an_assertion_agree() {
    let cases = [
        (
            "token_endpoint_auth_method = \"private_key_jwt\"",
            1,
            "private_key",
            "missing; say where it is kept",
        ),
        (
            "private_key = { env = \"K\" }\ntoken_endpoint_auth_method = \"client_secret_post\"",
            4,
            "private_key",
            "has a meaning only with token_endpoint_auth_method = \"private_key_jwt\"",
        ),
        (
            "private_key = { env = \"K\" }\nclient_secret = { env = \"S\" }",
            5,
            "client_secret",
            "has a meaning only with",
        ),
        ("private_key = { env = \"K\" }\nsigning_alg = \"HS256\"", 5, "signing_alg", "takes a shared secret"),
        (
            "private_key = { env = \"K\" }\nsigning_alg = \"RS257\"",
            5,
            "signing_alg",
            "did you mean \"RS256\"?",
        ),
        (
            "client_secret = { env = \"S\" }\nsigning_alg = \"ES256\"\ntoken_endpoint_auth_method = \"client_secret_jwt\"",
            5,
            "signing_alg",
            "needs a private key",
        ),
        (
            "private_key = { env = \"K\" }\nassertion_audience = \"issuer\"",
            5,
            "assertion_audience",
            "the issuer is not known; set issuer in place of token_endpoint",
        ),
    ];
    for (lines, line, key, message) in cases {
        assert_fault(lines, line, key, message);
    }
}

#[test]
fn a_faulty_method_hides_no_fault_of_a_value() {
    let lines =
        "client_secret = { file = \"relative\" }\nsigning_alg = 5\ntoken_endpoint_auth_method = \"basic\"";
    let found = faults(&authentication(lines));
    let lines: Vec<_> = found.iter().map(|fault| fault.place.line).collect();
    assert_eq!(lines, [Some(4), Some(5), Some(6)], "{found:?}");
}

#[test]
fn there_is_one_key_or_one_assertion() {
    let cases = [
        (
            "private_key = [{ env = \"K\" }, { env = \"L\" }]\nprivate_key_id = \"k1\"",
            5,
            "private_key_id",
            "cannot be that of several private keys",
        ),
        (
            "private_key = { env = \"K\" }\nclient_assertion = { env = \"A\" }",
            4,
            "private_key",
            "contradicts client_assertion",
        ),
    ];
    for (lines, line, key, message) in cases {
        assert_fault(lines, line, key, message);
    }
}

#[test]
fn a_key_replaces_the_method_of_a_preset() {
    let text = "[provider.p]\npreset = \"bnpparibas-cib\"\ntoken_endpoint = \"https://id.example/token\"\nclient_id = \"c\"\n\
                private_key = { env = \"K\" }\n[token.t]\nprovider = \"p\"";
    let authentication = token(text).credential.client.authentication.clone();
    assert!(matches!(authentication, ClientAuthentication::PrivateKeyJwt(_)), "{authentication:?}");
    // But not the method of one whose clients have certificates: one is missing here.
    let text = "[preset.bank]\ntoken_endpoint_auth_method = \"tls_client_auth\"\n\
                environment.production.issuer = \"https://id.example\"\n[provider.p]\npreset = \"bank\"\n\
                client_id = \"c\"\nprivate_key = { env = \"K\" }\n[token.t]\nprovider = \"p\"";
    assert_faults(text, &[(4, "provider.p.client_certificate", "missing; the PEM file")]);
}

#[test]
fn a_check_tries_the_private_keys_in_files() {
    let keys = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/signing_key/tests");
    let check = |key: &str, lines: &str| {
        let text = authentication(&format!("private_key = {{ file = \"/KEY\" }}\n{lines}"));
        let (directory, path) = directory("", &[]);
        let file = directory.path().join("key.pem");
        fs::write(&file, fs::read(keys.join(key)).unwrap()).unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
        fs::write(&path, text.replace("/KEY", file.to_str().unwrap())).unwrap();
        match load_and_look_up(&source(&path), ABLE) {
            Ok(_) => String::new(),
            Err(faults) => {
                assert_eq!(
                    faults.iter().map(|fault| fault.place.line).collect::<Vec<_>>(),
                    [Some(4)],
                    "{faults:?}"
                );
                faults[0].message.rsplit_once(": ").unwrap().1.to_owned()
            }
        }
    };
    assert_eq!(check("p256.sec1.pem", ""), "");
    assert_eq!(
        check("p256.sec1.pem", "signing_alg = \"ES384\""),
        "a key on P-256 cannot sign with ES384; expected ES256"
    );
    assert_eq!(check("p256.encrypted.pem", ""), "encrypted; set private_key_passphrase");
    assert_eq!(check("p256.encrypted.pem", "private_key_passphrase = { env = \"P\" }"), "");
    assert_eq!(check("p256.public.pem", ""), "has no private key; a certificate or a public key cannot sign");
}

#[test]
fn a_certificate_is_shown_whatever_the_method_is() {
    let client = |lines: &str| token(&authentication(lines)).credential.client.clone();
    let key = "private_key = { env = \"K\" }\nclient_certificate = \"/cert.pem\"\n";
    let tls = TlsSettings {
        certificate: "/cert.pem".into(),
        key: SecretSource::Environment("K".to_owned()),
        passphrase: None,
    };
    for method in ["tls_client_auth", "self_signed_tls_client_auth"] {
        let client = client(&format!("{key}token_endpoint_auth_method = \"{method}\""));
        assert_eq!((&client.authentication, client.tls.as_deref()), (&ClientAuthentication::Tls, Some(&tls)));
    }
    let client = client(&format!("{key}client_secret = {{ env = \"S\" }}"));
    assert!(matches!(client.authentication, ClientAuthentication::SecretBasic { .. }));
    assert_eq!(client.tls.as_deref(), Some(&tls));
}

#[test]
fn the_settings_of_a_certificate_agree() {
    let (key, certificate) = ("private_key = { env = \"K\" }\n", "client_certificate = \"/cert.pem\"\n");
    let (method, keys) = (
        "token_endpoint_auth_method = \"tls_client_auth\"\n",
        "private_key = [{ env = \"K\" }, { env = \"L\" }]\n",
    );
    let cases = [
        (format!("{method}{key}"), 1, "client_certificate", "missing; the PEM file"),
        (method.to_owned(), 1, "client_certificate", "missing; the PEM file"),
        (
            format!("{method}{certificate}"),
            1,
            "private_key",
            "missing; say where that of the client_certificate",
        ),
        (
            format!("{key}{certificate}"),
            1,
            "client_secret",
            "\"tls_client_auth\" or \"private_key_jwt\" for a client that",
        ),
        (
            format!("{method}{keys}{certificate}"),
            6,
            "client_certificate",
            "cannot be that of several private keys",
        ),
    ];
    for (lines, line, key, message) in cases {
        assert_fault(&lines, line, key, message);
    }
    let plain = authentication(&format!("{method}{key}{certificate}"))
        .replace("https://id.example", "http://localhost");
    assert_faults(&plain, &[(4, "provider.p.token_endpoint_auth_method", "needs an https:// endpoint")]);
}

#[test]
fn a_check_holds_the_key_against_its_certificate() {
    let (directory, path) = directory("", &[]);
    let file = |name: &str, text: &str| {
        let file = directory.path().join(name);
        fs::write(&file, text).unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
        file.display().to_string()
    };
    let [certificate, key, other] = ["p256.certificate.pem", "p256.pkcs8.pem", "p384.sec1.pem"].map(|name| {
        let keys = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/signing_key/tests");
        file(name, &fs::read_to_string(keys.join(name)).unwrap())
    });
    let jwk = file("key.jwk", include_str!("../../signing_key/tests/p256.jwk.json"));
    let binary = directory.path().join("key.der").display().to_string();
    fs::write(&binary, [0x30, 0x81, 0x87]).unwrap();
    fs::set_permissions(&binary, fs::Permissions::from_mode(0o600)).unwrap();
    let (not_jwk, not_key) = (
        format!("{jwk}: a JWK; the key of a client_certificate has to be PEM"),
        format!(
            "{binary}: neither PEM nor a JWK; expected \"-----BEGIN PRIVATE KEY-----\" or {{\"kty\": ..}}"
        ),
    );
    for (key, expected) in [
        (key, None),
        (other, Some("the private_key is not that of the client_certificate")),
        (jwk, Some(&*not_jwk)),
        (binary, Some(&*not_key)),
    ] {
        let lines = format!(
            "client_certificate = \"{certificate}\"\nprivate_key = {{ file = \"{key}\" }}\n\
             token_endpoint_auth_method = \"tls_client_auth\""
        );
        fs::write(&path, authentication(&lines)).unwrap();
        let found = load_and_look_up(&source(&path), ABLE).map_err(|faults| faults[0].message.clone());
        assert_eq!(found.err().as_deref(), expected);
    }
}
