//! `token_endpoint_auth_method`, and the keys of `[provider.NAME]` that it needs.

use std::path::PathBuf;
use std::sync::Arc;

use super::fault::{PrivateKeyFile, join, one_of};
use super::files::{Item, Table, Value};
use super::section::{Field, Section};
use super::{
    AssertionAudience, AssertionSettings, BasicEncoding, ClientAuthentication, Endpoint, PrivateKeySettings,
    TlsSettings, values,
};
use crate::secret_source::SecretSource;
use crate::signing_key::SigningAlg;

pub(super) const METHODS: &[&str] = &[BASIC, POST, SECRET_JWT, PRIVATE_KEY_JWT, TLS, SELF_SIGNED_TLS, NONE];
pub(super) const ENCODINGS: &[&str] = &["form", "raw"];

const BASIC: &str = "client_secret_basic";
const POST: &str = "client_secret_post";
const SECRET_JWT: &str = "client_secret_jwt";
const PRIVATE_KEY_JWT: &str = "private_key_jwt";
const TLS: &str = "tls_client_auth";
const SELF_SIGNED_TLS: &str = "self_signed_tls_client_auth";
const NONE: &str = "none";

/// The type of an assertion that is a JWT (RFC 7523 section 2.2).
pub const JWT_BEARER: &str = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer";

/// The keys, each with the methods that it has a meaning with. A private key also has one with any method, if there is a
/// certificate.
const USES: [(&str, &[&str]); 9] = [
    ("client_secret", &[BASIC, POST, SECRET_JWT]),
    ("client_secret_basic_encoding", &[BASIC]),
    ("private_key", &[PRIVATE_KEY_JWT]),
    ("private_key_passphrase", &[PRIVATE_KEY_JWT]),
    ("private_key_id", &[PRIVATE_KEY_JWT]),
    ("signing_alg", &[SECRET_JWT, PRIVATE_KEY_JWT]),
    ("assertion_audience", &[SECRET_JWT, PRIVATE_KEY_JWT]),
    ("client_assertion", &[PRIVATE_KEY_JWT]),
    ("client_assertion_type", &[PRIVATE_KEY_JWT]),
];

/// A provider with a private key or an assertion authenticates by it, unless it or its preset says otherwise. The key of a
/// certificate may serve mutual TLS only, so it decides nothing.
pub(super) fn infer_method(section: &mut Section<'_>, preset: Option<&Table>) {
    let of_preset = preset.and_then(|preset| preset.get("token_endpoint_auth_method"));
    let is_tls = of_preset.is_some_and(|item| {
        [TLS, SELF_SIGNED_TLS].iter().any(|method| item.value == Value::Text((*method).to_owned()))
    });
    let key = if section.has("client_assertion") { "client_assertion" } else { "private_key" };
    let may_be_for_tls = key == "private_key" && (is_tls || section.has("client_certificate"));
    if !section.has(key) || may_be_for_tls || section.has("token_endpoint_auth_method") {
        return;
    }
    let (place, value) = (section.place_of(key).clone(), Value::Text(PRIVATE_KEY_JWT.to_owned()));
    section.table.insert("token_endpoint_auth_method".to_owned(), Item { place, value });
}

/// Drops the defaults of a preset that have no meaning with the method of the section.
pub(super) fn drop_unused(section: &Section<'_>, defaults: &mut Table) {
    let Some(method) = section.table.get("token_endpoint_auth_method") else { return };
    let Value::Text(method) = &method.value else { return };
    defaults.retain(|key, _| USES.iter().all(|(used, methods)| used != key || methods.contains(&&**method)));
    if section.has("client_assertion") {
        defaults.retain(|key, _| !matches!(&**key, "signing_alg" | "assertion_audience"));
    }
}

pub(super) fn alg(field: &Field<'_>) -> Option<SigningAlg> {
    let name = values::word(&SigningAlg::ALL.map(SigningAlg::as_str))(field)?;
    SigningAlg::ALL.into_iter().find(|alg| alg.as_str() == name)
}

pub(super) fn audience(field: &Field<'_>) -> Option<AssertionAudience> {
    Some(match values::line(field)?.as_str() {
        "token_endpoint" => AssertionAudience::TokenEndpoint,
        "issuer" => AssertionAudience::Issuer,
        other => AssertionAudience::Other(other.to_owned()),
    })
}

/// The client authentication. A missing secret is a fault unless the method needs none: a client without one is rare,
/// and a forgotten secret is not.
pub(super) fn read(section: &Section<'_>, endpoint: Option<&Endpoint>) -> Option<ClientAuthentication> {
    let Some(method) = section.read_or("token_endpoint_auth_method", BASIC, values::word(METHODS)) else {
        report_faulty_values(section);
        return None;
    };
    if matches!(method, TLS | SELF_SIGNED_TLS) && !section.has("client_certificate") {
        let message = "the PEM file with the certificate by which the client authenticates";
        return section.missing("client_certificate", message);
    }
    for (key, methods) in USES {
        let is_for_tls =
            section.has("client_certificate") && matches!(key, "private_key" | "private_key_passphrase");
        if section.has(key) && !methods.contains(&method) && !is_for_tls {
            let only = one_of(methods);
            let message = format!("has a meaning only with token_endpoint_auth_method = {only}");
            report_faulty_values(section);
            return section.fault_if_complete(key, message);
        }
    }
    match method {
        NONE => Some(ClientAuthentication::None),
        TLS | SELF_SIGNED_TLS => by_certificate(section, endpoint),
        PRIVATE_KEY_JWT if section.has("client_assertion") => by_assertion(section),
        PRIVATE_KEY_JWT => {
            let message = "say where it is kept, such as { credential = \"NAME\" }, or set client_assertion for an \
                           assertion that is made elsewhere";
            section.missing::<()>("private_key", message);
            private_key(section, endpoint).map(|key| ClientAuthentication::PrivateKeyJwt(Box::new(key)))
        }
        _ => by_secret(section, endpoint, method),
    }
}

/// Reads every key, so that every faulty value is reported, whatever the method is.
fn report_faulty_values(section: &Section<'_>) {
    for key in ["client_secret", "private_key", "client_assertion"] {
        section.read(key, values::secret_sources);
    }
    section.read("client_secret_basic_encoding", values::word(ENCODINGS));
    section.read("private_key_passphrase", values::secret_source);
    section.read("private_key_id", values::line);
    section.read("signing_alg", alg);
    section.read("assertion_audience", audience);
    section.read("client_assertion_type", values::line);
}

fn by_secret(
    section: &Section<'_>,
    endpoint: Option<&Endpoint>,
    method: &str,
) -> Option<ClientAuthentication> {
    if !section.has("client_secret") {
        let (method, client) = if section.has("client_certificate") {
            ("\"tls_client_auth\" or \"private_key_jwt\"", "that authenticates by its key")
        } else {
            ("\"none\"", "without one")
        };
        let message = format!(
            "say where it is kept, such as {{ credential = \"NAME\" }}, or set token_endpoint_auth_method = {method} for \
             a client {client}"
        );
        return section.missing("client_secret", &message);
    }
    let secrets = section.read("client_secret", values::secret_sources);
    match method {
        POST => Some(ClientAuthentication::SecretPost { secrets: secrets? }),
        SECRET_JWT => {
            let assertion = assertion(section, endpoint)?;
            if assertion.alg.is_some_and(|alg| !alg.is_symmetric()) {
                let message = "needs a private key; with client_secret_jwt, expected HS256, HS384 or HS512";
                return section.fault_if_complete("signing_alg", message);
            }
            Some(ClientAuthentication::SecretJwt { secrets: secrets?, assertion })
        }
        _ => {
            let encoding =
                section.read_or("client_secret_basic_encoding", "form", values::word(ENCODINGS))?;
            let encoding = if encoding == "raw" { BasicEncoding::Raw } else { BasicEncoding::Form };
            Some(ClientAuthentication::SecretBasic { secrets: secrets?, encoding })
        }
    }
}

fn by_assertion(section: &Section<'_>) -> Option<ClientAuthentication> {
    let made_here = ["private_key", "signing_alg", "assertion_audience", "private_key_id"];
    // The key may be for TLS.
    let is_other =
        |key: &&str| section.has(key) && !(*key == "private_key" && section.has("client_certificate"));
    if let Some(key) = made_here.into_iter().find(is_other) {
        let message = "contradicts client_assertion, which is sent as it is; remove one of them";
        return section.fault_if_complete(key, message);
    }
    let assertions = section.read("client_assertion", values::secret_sources);
    let assertion_type = section.read_or("client_assertion_type", JWT_BEARER.to_owned(), values::line);
    Some(ClientAuthentication::Assertion { assertions: assertions?, assertion_type: assertion_type? })
}

fn by_certificate(section: &Section<'_>, endpoint: Option<&Endpoint>) -> Option<ClientAuthentication> {
    if endpoint.is_some_and(|endpoint| endpoint.url().scheme() == "http") {
        let message = "needs an https:// endpoint, because the certificate is shown in TLS";
        return section.fault_if_complete("token_endpoint_auth_method", message);
    }
    Some(ClientAuthentication::Tls)
}

/// The certificate for mutual TLS, with its key.
pub(super) fn tls(section: &Section<'_>) -> Option<Arc<TlsSettings>> {
    let certificate =
        section.read("client_certificate", |field| values::readable_path(field, "certificate"))?;
    let passphrase = section.read("private_key_passphrase", values::secret_source);
    let message = "say where that of the client_certificate is kept, such as { credential = \"NAME\" }";
    section.missing::<()>("private_key", message);
    let mut keys = section.read("private_key", values::secret_sources)?;
    if keys.len() > 1 {
        let message = "cannot be that of several private keys; keep one of them";
        return section.fault_if_complete("client_certificate", message);
    }
    let key = keys.pop()?;
    mention(section, &key, None, passphrase.is_some(), Some(&certificate));
    Some(Arc::new(TlsSettings { certificate, key, passphrase }))
}

/// Remembers a private key that is in a file, for a check.
fn mention(
    section: &Section<'_>,
    source: &SecretSource,
    alg: Option<SigningAlg>,
    has_passphrase: bool,
    certificate: Option<&PathBuf>,
) {
    if let SecretSource::File(file) = source {
        let key =
            PrivateKeyFile { file: file.clone(), alg, has_passphrase, certificate: certificate.cloned() };
        let (place, path) = (section.place_of("private_key").clone(), join(&section.path, "private_key"));
        section.sink.private_keys.borrow_mut().push((place, path, key));
    }
}

fn private_key(section: &Section<'_>, endpoint: Option<&Endpoint>) -> Option<PrivateKeySettings> {
    let keys = section.read("private_key", values::secret_sources);
    let passphrase = section.read("private_key_passphrase", values::secret_source);
    let key_id = section.read("private_key_id", values::line);
    let certificate = section.read("client_certificate", values::path);
    let assertion = assertion(section, endpoint);
    let keys = keys?;
    if keys.len() > 1 && key_id.is_some() {
        let message = "cannot be that of several private keys; use JWKs, which have their own \"kid\"";
        return section.fault_if_complete("private_key_id", message);
    }
    let assertion = assertion?;
    if assertion.alg.is_some_and(SigningAlg::is_symmetric) {
        let message =
            "takes a shared secret; with a private key, expected one of RS256, PS256, ES256, ES384 and EdDSA";
        return section.fault_if_complete("signing_alg", message);
    }
    for source in &keys {
        mention(section, source, assertion.alg, passphrase.is_some(), None);
    }
    Some(PrivateKeySettings { keys, passphrase, key_id, certificate, assertion })
}

fn assertion(section: &Section<'_>, endpoint: Option<&Endpoint>) -> Option<AssertionSettings> {
    let alg = section.read("signing_alg", alg);
    let audience = section.read_or("assertion_audience", AssertionAudience::TokenEndpoint, audience)?;
    if audience == AssertionAudience::Issuer && matches!(endpoint, Some(Endpoint::Token(_))) {
        let message = "the issuer is not known; set issuer in place of token_endpoint, or write its URL here";
        return section.fault_if_complete("assertion_audience", message);
    }
    if section.has("signing_alg") && alg.is_none() {
        return None;
    }
    Some(AssertionSettings { alg, audience })
}
