//! `grant_type`, and the keys that it needs.

use super::*;

#[test]
fn grants_have_what_they_need() {
    assert_each(
        TOKEN,
        &[
            (
                "grant_type = \"password\"",
                7,
                "token.t.grant_type",
                "\"password\" also needs username and password",
            ),
            ("grant_type = \"password\"\nusername = \"u\"", 7, "token.t.grant_type", "also needs password"),
            (
                "username = \"u\"\npassword = { env = \"P\" }",
                7,
                "token.t.username",
                "belongs to grant_type = \"password\"",
            ),
            ("password = { env = \"P\" }", 7, "token.t.password", "belongs to grant_type = \"password\""),
            (
                "grant_type = \"client_credential\"",
                7,
                "token.t.grant_type",
                "did you mean \"client_credentials\"?",
            ),
            (
                "grant_type = \"implicit\"\nusername = \"u\"",
                7,
                "token.t.grant_type",
                "expected \"client_credentials\", \"password\",",
            ),
            (
                "grant_type = \"password\"\nusername = \"u\"\npassword = \"hunter2-canary\"",
                9,
                "token.t.password",
                "a secret is not written here",
            ),
            (
                "grant_type = \"password\"\nusername = \"\"\npassword = { env = \"P\" }",
                8,
                "token.t.username",
                "empty",
            ),
        ],
    );
}

#[test]
fn extension_grants_have_what_they_need() {
    assert_each(
        TOKEN,
        &[
            (
                "assertion = { env = \"P\" }",
                7,
                "token.t.assertion",
                "belongs to grant_type = \"urn:ietf:params:oauth:",
            ),
            (
                "grant_type = \"urn:ietf:params:oauth:grant-type:token-exchange\"",
                7,
                "token.t.grant_type",
                "also needs subject_token",
            ),
            (
                "grant_type = \"urn:ietf:params:oauth:grant-type:jwt-bearer\"\nassertion = \"hunter2-canary\"",
                8,
                "token.t.assertion",
                "a secret is not written here",
            ),
            (
                "grant_type = \"urn:ietf:params:oauth:grant-type:jwt-barer\"",
                7,
                "token.t.grant_type",
                "did you mean \"urn:ietf:params:oauth:grant-type:jwt-bearer\"?",
            ),
        ],
    );
}

#[test]
fn an_extension_grant_has_its_secret() {
    let grant = |lines: &str| token(&format!("{TOKEN}{lines}")).credential.grant.clone();
    let source = || SecretSource::Environment("A".to_owned());
    let uri = "urn:ietf:params:oauth:grant-type:";
    assert_eq!(
        grant(&format!("grant_type = \"{uri}jwt-bearer\"\nassertion = {{ env = \"A\" }}")),
        Grant::JwtBearer(Box::new(source()))
    );
    let exchange = TokenExchange {
        subject_token: source(),
        subject_token_type: "urn:ietf:params:oauth:token-type:jwt".to_owned(),
        requested_token_type: Some("urn:x".to_owned()),
    };
    let lines = "subject_token = { env = \"A\" }\nrequested_token_type = \"urn:x\"";
    assert_eq!(
        grant(&format!("grant_type = \"{uri}token-exchange\"\n{lines}")),
        Grant::TokenExchange(Box::new(exchange))
    );
    let other = |grant_type: &str| Grant::Other { grant_type: grant_type.to_owned(), assertion: None };
    let (saml, apikey) = (format!("{uri}saml2-bearer"), "urn:ibm:params:oauth:grant-type:apikey");
    for name in ["account_credentials", "https://id.example/grants/own", &saml, apikey] {
        assert_eq!(grant(&format!("grant_type = \"{name}\"")), other(name));
    }
    let with_assertion = Grant::Other { grant_type: saml.clone(), assertion: Some(Box::new(source())) };
    assert_eq!(grant(&format!("grant_type = \"{saml}\"\nassertion = {{ env = \"A\" }}")), with_assertion);
}
