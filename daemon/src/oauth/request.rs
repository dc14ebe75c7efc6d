//! Composes a token request: the form body and the `Authorization` header (RFC 6749 sections 2.3.1, 4.3.2 and 4.4.2,
//! RFC 7523 section 2.2).

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use form_urlencoded::Serializer;
use reqwest::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HeaderValue};
use reqwest::{Method, Request};
use tokend_protocol::{ErrorClass, Secret};
use url::Url;

use crate::config::{BasicEncoding, ClientAuthentication, CredentialSettings, Grant, JWT_BEARER};
use crate::oauth::Failure;
use crate::oauth::redact::SentSecrets;

/// Composes the request. `client_secret` may be a client assertion in its place. A secret that it does not need is empty. Also returns the secrets in every encoding in which they
/// are sent, so that they can be removed from the reply.
pub fn compose(
    settings: &CredentialSettings,
    endpoint: &Url,
    client_secret: &Secret,
    password: &Secret,
) -> Result<(Request, SentSecrets), Failure> {
    let mut request = Request::new(Method::POST, endpoint.clone());
    let headers = request.headers_mut();
    headers.insert(ACCEPT, header_value(&settings.client.accept)?);
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/x-www-form-urlencoded"));
    let (client_secret, password) = (client_secret.expose(), password.expose());
    let mut sent = Vec::from([client_secret, password].map(str::to_owned));
    sent.extend([client_secret, password].map(form_encoded));
    // Not sent so, but the usual form of an echo.
    sent.extend([client_secret, password].map(|secret| STANDARD.encode(secret)));
    if let ClientAuthentication::SecretBasic { encoding, .. } = &settings.client.authentication {
        let id = &settings.client.client_id;
        let credentials = STANDARD.encode(match encoding {
            BasicEncoding::Raw => format!("{id}:{client_secret}"),
            BasicEncoding::Form => format!("{}:{}", form_encoded(id), form_encoded(client_secret)),
        });
        let mut value = header_value(&format!("Basic {credentials}"))?;
        value.set_sensitive(true);
        headers.insert(AUTHORIZATION, value);
        sent.push(credentials);
    }
    *request.body_mut() = Some(form(settings, client_secret, password).into());
    Ok((request, SentSecrets::new(sent)))
}

fn form(settings: &CredentialSettings, client_secret: &str, password: &str) -> String {
    let mut form = Serializer::new(String::new());
    match &settings.grant {
        Grant::ClientCredentials => form.append_pair("grant_type", "client_credentials"),
        Grant::Password(user) => form
            .append_pair("grant_type", "password")
            .append_pair("username", &user.username)
            .append_pair("password", password),
    };
    let client = &settings.client;
    match &client.authentication {
        ClientAuthentication::SecretBasic { .. } => &mut form,
        ClientAuthentication::SecretPost { .. } => {
            form.append_pair("client_id", &client.client_id).append_pair("client_secret", client_secret)
        }
        ClientAuthentication::None | ClientAuthentication::Tls => {
            form.append_pair("client_id", &client.client_id)
        }
        ClientAuthentication::SecretJwt { .. } | ClientAuthentication::PrivateKeyJwt(_) => {
            assertion(&mut form, &client.client_id, JWT_BEARER, client_secret)
        }
        ClientAuthentication::Assertion { assertion_type, .. } => {
            assertion(&mut form, &client.client_id, assertion_type, client_secret)
        }
    };
    if !settings.terms.scope.as_slice().is_empty() {
        form.append_pair("scope", &settings.terms.scope.as_slice().join(" "));
    }
    form.extend_pairs(settings.terms.resource.as_slice().iter().map(|value| ("resource", value)));
    form.extend_pairs(settings.terms.audience.as_slice().iter().map(|value| ("audience", value)));
    form.extend_pairs(&settings.params);
    form.finish()
}

/// A client assertion (RFC 7521 section 4.2). Some providers want the client's identifier beside it, and the RFC permits that.
fn assertion<'a>(
    form: &'a mut Serializer<'static, String>,
    client_id: &str,
    assertion_type: &str,
    assertion: &str,
) -> &'a mut Serializer<'static, String> {
    form.append_pair("client_id", client_id)
        .append_pair("client_assertion_type", assertion_type)
        .append_pair("client_assertion", assertion)
}

fn header_value(text: &str) -> Result<HeaderValue, Failure> {
    HeaderValue::from_str(text)
        .map_err(|_| Failure::new(ErrorClass::Internal, "a header that cannot be sent"))
}

fn form_encoded(text: &str) -> String {
    form_urlencoded::byte_serialize(text.as_bytes()).collect()
}

#[cfg(test)]
pub(crate) mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use super::*;
    use crate::config::{ClientSettings, Endpoint, Terms, UserPassword};
    use crate::oauth::redact::description;
    use crate::secret_source::SecretSource;

    pub(crate) fn settings(authentication: ClientAuthentication) -> CredentialSettings {
        let client = ClientSettings {
            endpoint: Endpoint::Token("https://id.example/token".parse().unwrap()),
            client_id: "my client:1".into(),
            authentication,
            tls: None,
            accept: "application/json".into(),
            ca_file: None,
            proxy: None,
            token_type: None,
        };
        CredentialSettings {
            client: Arc::new(client),
            grant: Grant::ClientCredentials,
            terms: Terms::default(),
            params: std::collections::BTreeMap::default(),
            default_lifetime: Duration::from_secs(300),
            scope_required: false,
        }
    }

    fn source() -> SecretSource {
        SecretSource::Environment("UNUSED".into())
    }

    fn secret(text: &str) -> Secret {
        Secret::from(text.to_owned())
    }

    /// The body, and the decoded credentials.
    fn composed(settings: &CredentialSettings, password: &str) -> (String, Option<String>) {
        let endpoint = "https://id.example/token".parse().unwrap();
        let (request, _) = compose(settings, &endpoint, &secret("s/3+c ü"), &secret(password)).unwrap();
        let body = request.body().and_then(reqwest::Body::as_bytes).unwrap();
        let credentials = request.headers().get(AUTHORIZATION).map(|value| {
            let encoded = value.to_str().unwrap().strip_prefix("Basic ").unwrap();
            String::from_utf8(STANDARD.decode(encoded).unwrap()).unwrap()
        });
        (String::from_utf8(body.to_vec()).unwrap(), credentials)
    }

    #[test]
    fn post_puts_the_credentials_into_the_body() {
        let authentication = ClientAuthentication::SecretPost { secrets: vec![source()] };
        let expected = "grant_type=client_credentials&client_id=my+client%3A1&client_secret=s%2F3%2Bc+%C3%BC";
        assert_eq!(composed(&settings(authentication), ""), (expected.to_owned(), None));
    }

    #[test]
    fn basic_is_form_encoded_or_raw_as_the_provider_wants() {
        for (encoding, expected) in [
            (BasicEncoding::Form, "my+client%3A1:s%2F3%2Bc+%C3%BC"),
            (BasicEncoding::Raw, "my client:1:s/3+c ü"),
        ] {
            let authentication = ClientAuthentication::SecretBasic { secrets: vec![source()], encoding };
            let (body, credentials) = composed(&settings(authentication), "");
            assert_eq!(body, "grant_type=client_credentials");
            assert_eq!(credentials.as_deref(), Some(expected));
        }
    }

    #[test]
    fn a_public_client_only_names_itself() {
        let (body, _) = composed(&settings(ClientAuthentication::None), "");
        assert_eq!(body, "grant_type=client_credentials&client_id=my+client%3A1");
    }

    #[test]
    fn every_configured_field_is_sent_as_it_is() {
        let mut settings = settings(ClientAuthentication::None);
        Arc::make_mut(&mut settings.client).client_id = "c".into();
        let user = UserPassword { username: "u@x".into(), password: source() };
        settings.grant = Grant::Password(Box::new(user));
        settings.terms.scope = ["b".to_owned(), "a".to_owned()].into_iter().collect();
        settings.terms.resource = ["connectapi".to_owned(), "urn:x".to_owned()].into_iter().collect();
        settings.terms.audience = ["api".to_owned()].into_iter().collect();
        settings.params = [("acr_values".to_owned(), "tenant:acme".to_owned())].into();
        assert_eq!(
            composed(&settings, "p&w").0,
            "grant_type=password&username=u%40x&password=p%26w&client_id=c&scope=b+a\
             &resource=connectapi&resource=urn%3Ax&audience=api&acr_values=tenant%3Aacme"
        );
    }

    #[test]
    fn words_that_repeat_a_secret_are_cleaned_in_every_form_it_was_sent() {
        let authentication =
            ClientAuthentication::SecretBasic { secrets: vec![source()], encoding: BasicEncoding::Form };
        let endpoint = "https://id.example/token".parse().unwrap();
        let (request, sent) =
            compose(&settings(authentication), &endpoint, &secret("s/3+c ü"), &secret("")).unwrap();
        let credentials = request.headers()[AUTHORIZATION].to_str().unwrap();
        let echo = format!("bad secret s/3+c ü or s%2F3%2Bc+%C3%BC in {credentials}");
        assert_eq!(description(&echo, &sent), "bad secret *** or *** in Basic ***");
    }
}
