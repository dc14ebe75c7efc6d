//! Composes a token request: the form body and the `Authorization` header (RFC 6749 sections 2.3.1 and 4.3 to 4.5,
//! RFC 7523 section 2, RFC 8693 section 2.1).

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

/// Composes the request. `client_secret` may be a client assertion in its place, and `grant_secret` is that
/// of [`Grant::secret`]. A secret that it does not need is empty. Also returns the secrets in every encoding in which they
/// are sent, so that they can be removed from the reply.
pub fn compose(
    settings: &CredentialSettings,
    endpoint: &Url,
    client_secret: &Secret,
    grant_secret: &Secret,
) -> Result<(Request, SentSecrets), Failure> {
    let mut request = Request::new(Method::POST, endpoint.clone());
    let headers = request.headers_mut();
    headers.insert(ACCEPT, header_value(&settings.client.accept)?);
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/x-www-form-urlencoded"));
    let secrets = [client_secret.expose(), grant_secret.expose()];
    let [client_secret, grant_secret] = secrets;
    let mut sent = Vec::from(secrets.map(str::to_owned));
    sent.extend(secrets.map(form_encoded));
    // Not sent so, but the usual form of an echo.
    sent.extend(secrets.map(|secret| STANDARD.encode(secret)));
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
    *request.body_mut() = Some(form(settings, client_secret, grant_secret).into());
    Ok((request, SentSecrets::new(sent)))
}

fn form(settings: &CredentialSettings, client_secret: &str, grant_secret: &str) -> String {
    let mut form = Serializer::new(String::new());
    match &settings.grant {
        Grant::ClientCredentials => form.append_pair("grant_type", "client_credentials"),
        Grant::Password(user) => form
            .append_pair("grant_type", "password")
            .append_pair("username", &user.username)
            .append_pair("password", grant_secret),
        Grant::JwtBearer(_) => {
            form.append_pair("grant_type", Grant::JWT_BEARER).append_pair("assertion", grant_secret)
        }
        Grant::TokenExchange(exchange) => form
            .append_pair("grant_type", Grant::TOKEN_EXCHANGE)
            .append_pair("subject_token", grant_secret)
            .append_pair("subject_token_type", &exchange.subject_token_type)
            .extend_pairs(exchange.requested_token_type.iter().map(|value| ("requested_token_type", value))),
        Grant::Other { grant_type, assertion } => form
            .append_pair("grant_type", grant_type)
            .extend_pairs(assertion.iter().map(|_| ("assertion", grant_secret))),
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
    use crate::config::{ClientSettings, Endpoint, Terms, TokenExchange, UserPassword};
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
    fn each_grant_has_its_own_fields() {
        let exchange = TokenExchange {
            subject_token: source(),
            subject_token_type: "urn:t".to_owned(),
            requested_token_type: Some("urn:r".to_owned()),
        };
        let without = TokenExchange { requested_token_type: None, ..exchange.clone() };
        let uri = "grant_type=urn%3Aietf%3Aparams%3Aoauth%3Agrant-type%3A";
        for (grant, expected) in [
            (Grant::JwtBearer(Box::new(source())), format!("{uri}jwt-bearer&assertion=a%2Bb")),
            (
                Grant::TokenExchange(Box::new(exchange)),
                format!(
                    "{uri}token-exchange&subject_token=a%2Bb&subject_token_type=urn%3At&requested_token_type=urn%3Ar"
                ),
            ),
            (
                Grant::TokenExchange(Box::new(without)),
                format!("{uri}token-exchange&subject_token=a%2Bb&subject_token_type=urn%3At"),
            ),
            (
                Grant::Other { grant_type: "account_credentials".to_owned(), assertion: None },
                "grant_type=account_credentials".to_owned(),
            ),
            (
                Grant::Other { grant_type: "urn:x".to_owned(), assertion: Some(Box::new(source())) },
                "grant_type=urn%3Ax&assertion=a%2Bb".to_owned(),
            ),
        ] {
            let mut settings = settings(ClientAuthentication::SecretBasic {
                secrets: vec![source()],
                encoding: BasicEncoding::Form,
            });
            settings.grant = grant;
            assert_eq!(composed(&settings, "a+b").0, expected);
        }
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
