//! What a token request says: the form body and the `Authorization` header (RFC 6749 sections 2.3.1, 4.3.2
//! and 4.4.2). Pure functions.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use form_urlencoded::Serializer;
use tokend_protocol::Secret;
use zeroize::Zeroizing;

use crate::config::{BasicEncoding, ClientAuthentication, CredentialSettings, Grant};
use crate::oauth::redact::SentSecrets;

/// Room for every usual request but for its secrets. A body that grew would leave copies behind that are not
/// wiped.
const BODY_CAPACITY: usize = 4096;

/// How many characters form encoding makes of a byte, at most.
const FORM_ENCODED_MAX: usize = 3;

/// The secrets that a request needs, read for this one request.
#[derive(Debug, Default)]
pub struct RequestSecrets {
    /// The client secret, unless the client is public.
    pub client_secret: Option<Secret>,
    /// The resource owner's password, for the password grant.
    pub password: Option<Secret>,
}

impl RequestSecrets {
    fn iter(&self) -> impl Iterator<Item = &Secret> {
        self.client_secret.iter().chain(&self.password)
    }
}

/// A token request, ready to be sent.
pub struct TokenRequest {
    /// The form-encoded body.
    pub body: Zeroizing<String>,
    /// The value of `Authorization`, for `client_secret_basic`.
    pub authorization: Option<Zeroizing<String>>,
}

impl std::fmt::Debug for TokenRequest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TokenRequest").finish_non_exhaustive()
    }
}

/// Composes the request.
pub fn compose(settings: &CredentialSettings, secrets: &RequestSecrets) -> TokenRequest {
    let secrets_len: usize = secrets.iter().map(|secret| secret.expose().len()).sum();
    let mut form = Serializer::new(String::with_capacity(BODY_CAPACITY + FORM_ENCODED_MAX * secrets_len));
    match &settings.grant {
        Grant::ClientCredentials => form.append_pair("grant_type", "client_credentials"),
        Grant::Password { username, .. } => form
            .append_pair("grant_type", "password")
            .append_pair("username", username)
            .append_pair("password", exposed(secrets.password.as_ref())),
    };
    let client_secret = exposed(secrets.client_secret.as_ref());
    let authorization = match &settings.authentication {
        ClientAuthentication::SecretBasic { encoding, .. } => {
            Some(basic(&settings.client_id, client_secret, *encoding))
        }
        ClientAuthentication::SecretPost { .. } => {
            form.append_pair("client_id", &settings.client_id).append_pair("client_secret", client_secret);
            None
        }
        ClientAuthentication::None => {
            form.append_pair("client_id", &settings.client_id);
            None
        }
    };
    if !settings.scope.as_slice().is_empty() {
        form.append_pair("scope", &settings.scope.as_slice().join(" "));
    }
    form.extend_pairs(settings.resource.as_slice().iter().map(|value| ("resource", value)));
    form.extend_pairs(settings.audience.as_slice().iter().map(|value| ("audience", value)));
    form.extend_pairs(&settings.params);
    TokenRequest { body: Zeroizing::new(form.finish()), authorization }
}

fn exposed(secret: Option<&Secret>) -> &str {
    secret.map(Secret::expose).unwrap_or_default()
}

/// `Basic` credentials (RFC 7617), with id and secret form-encoded first where the provider follows RFC 6749.
fn basic(client_id: &str, client_secret: &str, encoding: BasicEncoding) -> Zeroizing<String> {
    let pair = Zeroizing::new(match encoding {
        BasicEncoding::Raw => format!("{client_id}:{client_secret}"),
        BasicEncoding::Form => format!("{}:{}", &*form_encoded(client_id), &*form_encoded(client_secret)),
    });
    let encoded = Zeroizing::new(STANDARD.encode(pair.as_bytes()));
    Zeroizing::new(format!("Basic {}", &*encoded))
}

fn form_encoded(text: &str) -> Zeroizing<String> {
    let mut encoded = Zeroizing::new(String::with_capacity(FORM_ENCODED_MAX * text.len()));
    encoded.extend(form_urlencoded::byte_serialize(text.as_bytes()));
    encoded
}

/// The request's secrets in every form in which it sends them, so that they can be told from a provider's own
/// words.
pub fn sent_secrets(request: &TokenRequest, secrets: &RequestSecrets) -> SentSecrets {
    let credentials = request.authorization.as_deref().and_then(|value| value.strip_prefix("Basic "));
    let as_they_are = secrets.iter().map(Secret::expose).chain(credentials);
    let encoded = secrets.iter().map(|secret| form_encoded(secret.expose()));
    as_they_are.map(|text| Zeroizing::new(text.to_owned())).chain(encoded).collect()
}

#[cfg(test)]
pub(crate) mod tests {
    use std::time::Duration;

    use super::*;
    use crate::config::{Endpoint, TermSet};
    use crate::oauth::redact::description;
    use crate::secret_source::SecretSource;

    pub(crate) fn settings(authentication: ClientAuthentication) -> CredentialSettings {
        CredentialSettings {
            endpoint: Endpoint::Token("https://id.example/token".parse().unwrap()),
            client_id: "my client:1".into(),
            authentication,
            grant: Grant::ClientCredentials,
            scope: TermSet::default(),
            resource: TermSet::default(),
            audience: TermSet::default(),
            params: std::collections::BTreeMap::default(),
            accept: "application/json".into(),
            ca_file: None,
            proxy: None,
            default_lifetime: Duration::from_secs(300),
        }
    }

    fn source() -> SecretSource {
        SecretSource::Environment("UNUSED".into())
    }

    fn secrets() -> RequestSecrets {
        RequestSecrets { client_secret: Some(Secret::from("s/3+c ü".to_owned())), password: None }
    }

    fn decoded(value: Option<&Zeroizing<String>>) -> String {
        let encoded = value.unwrap().strip_prefix("Basic ").unwrap().to_owned();
        String::from_utf8(STANDARD.decode(encoded).unwrap()).unwrap()
    }

    #[test]
    fn post_puts_the_credentials_into_the_body() {
        let request =
            compose(&settings(ClientAuthentication::SecretPost { secrets: vec![source()] }), &secrets());
        let expected = "grant_type=client_credentials&client_id=my+client%3A1&client_secret=s%2F3%2Bc+%C3%BC";
        assert_eq!(request.body.as_str(), expected);
        assert!(request.authorization.is_none());
    }

    #[test]
    fn basic_is_form_encoded_or_raw_as_the_provider_wants() {
        let compose_as = |encoding| {
            compose(
                &settings(ClientAuthentication::SecretBasic { secrets: vec![source()], encoding }),
                &secrets(),
            )
        };
        let form = compose_as(BasicEncoding::Form);
        assert_eq!(decoded(form.authorization.as_ref()), "my+client%3A1:s%2F3%2Bc+%C3%BC");
        assert_eq!(form.body.as_str(), "grant_type=client_credentials");
        let raw = compose_as(BasicEncoding::Raw);
        assert_eq!(decoded(raw.authorization.as_ref()), "my client:1:s/3+c ü");
    }

    #[test]
    fn a_public_client_only_names_itself() {
        let request = compose(&settings(ClientAuthentication::None), &RequestSecrets::default());
        assert_eq!(request.body.as_str(), "grant_type=client_credentials&client_id=my+client%3A1");
    }

    #[test]
    fn every_configured_field_is_sent_as_it_is() {
        let mut settings = settings(ClientAuthentication::None);
        settings.client_id = "c".into();
        settings.grant = Grant::Password { username: "u@x".into(), password: source() };
        settings.scope = ["b".to_owned(), "a".to_owned()].into_iter().collect();
        settings.resource = ["connectapi".to_owned(), "urn:x".to_owned()].into_iter().collect();
        settings.audience = ["api".to_owned()].into_iter().collect();
        settings.params = [("acr_values".to_owned(), "tenant:acme".to_owned())].into();
        let secrets = RequestSecrets { client_secret: None, password: Some(Secret::from("p&w".to_owned())) };
        assert_eq!(
            compose(&settings, &secrets).body.as_str(),
            "grant_type=password&username=u%40x&password=p%26w&client_id=c&scope=b+a\
             &resource=connectapi&resource=urn%3Ax&audience=api&acr_values=tenant%3Aacme"
        );
    }

    #[test]
    fn words_that_repeat_a_secret_are_cleaned_in_every_form_it_was_sent() {
        let authentication =
            ClientAuthentication::SecretBasic { secrets: vec![source()], encoding: BasicEncoding::Form };
        let secrets = secrets();
        let request = compose(&settings(authentication), &secrets);
        let credentials = request.authorization.clone().unwrap();
        let echo = format!("bad secret s/3+c ü or s%2F3%2Bc+%C3%BC in {}", &*credentials);
        let sent = sent_secrets(&request, &secrets);
        assert_eq!(description(&echo, &sent), "bad secret *** or *** in Basic ***");
    }
}
