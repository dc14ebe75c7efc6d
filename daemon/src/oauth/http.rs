//! Token requests over HTTP: TLS or loopback only, no redirect, no proxy that is not configured, a deadline
//! on everything, a bound on the body.

mod client;
mod secret_watch;
mod trust;

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use http::header::{
    ACCEPT, AUTHORIZATION, CONTENT_ENCODING, CONTENT_TYPE, DATE, HeaderName, HeaderValue, RETRY_AFTER,
};
use http::{Request, Response};
use http_body_util::Full;
use tokend_protocol::{ErrorClass, Secret};
use url::Url;
use zeroize::Zeroizing;

use crate::clock::Clock;
use crate::config::{CredentialSettings, Endpoint, Grant};
use crate::oauth::request::{RequestSecrets, TokenRequest, compose, sent_secrets};
use crate::oauth::response::{Context, HttpReply, read};
use crate::oauth::secret_choice::SecretChoice;
use crate::oauth::{Failure, Outcome, Provider, SecretInUse, discovery};
use crate::secret_source::SecretSource;
pub use client::HttpClient;
use client::{Http, TOTAL_TIMEOUT, exchange, uri};
use secret_watch::SecretWatch;

/// Asks one provider for one kind of token.
#[derive(Debug)]
pub struct HttpProvider {
    settings: Arc<CredentialSettings>,
    http: Arc<HttpClient>,
    clock: Clock,
    /// The token endpoint that the issuer's metadata named. Forgotten after a failure, because it may have
    /// moved. Held for a read or a write of one value, never across an await.
    discovered: Mutex<Option<Url>>,
    /// Which client secret is sent first.
    choice: SecretChoice,
    /// The files that the secrets are in.
    watch: SecretWatch,
}

impl Provider for HttpProvider {
    async fn request(&self) -> Outcome {
        let sent = AtomicU32::new(0);
        // Each exchange has a deadline of its own; discovery and secrets that are refused make some more.
        let ended = tokio::time::timeout(3 * TOTAL_TIMEOUT, self.exchange(&sent)).await;
        let ended =
            ended.unwrap_or_else(|_| Err(Failure::new(ErrorClass::Timeout, "no complete reply in time")));
        let outcome = ended.unwrap_or_else(|failure| Outcome::of(Err(failure), 0));
        if outcome.result.is_err() {
            *self.discovered() = None;
        }
        Outcome { requests: sent.into_inner(), ..outcome }
    }

    async fn changed(&self) {
        self.watch.changed(&self.clock).await;
    }
}

impl HttpProvider {
    /// A provider with these settings.
    pub fn new(settings: Arc<CredentialSettings>, http: Arc<HttpClient>, clock: Clock) -> Self {
        let watch = SecretWatch::new(&settings);
        Self { settings, http, clock, discovered: Mutex::new(None), choice: SecretChoice::default(), watch }
    }

    async fn exchange(&self, sent: &AtomicU32) -> Result<Outcome, Failure> {
        self.watch.look().await;
        let client = self.http.client().await?;
        let ended = self.exchange_by(&client, sent).await;
        if ended.as_ref().is_err_and(|failure| failure.class == ErrorClass::Tls) {
            self.http.forget(&client).await;
        }
        ended
    }

    /// Goes through the client secrets, once: one that cannot be read here or that the provider refuses gives way
    /// to the next. Any other answer is final, because it is about something else.
    async fn exchange_by(&self, client: &Http, sent: &AtomicU32) -> Result<Outcome, Failure> {
        let endpoint = self.token_endpoint(client).await?;
        let sources = self.settings.authentication.secrets();
        if sources.is_empty() {
            let secrets = self.with_password(None).await?;
            return self.ask(client, endpoint, &secrets, sent).await;
        }
        let mut passed_over = Vec::new();
        let (mut deviations, mut clock_skew) = (Vec::new(), None);
        for index in self.choice.order(sources.len()) {
            let client_secret = match read_secret("client_secret", sources.get(index)).await {
                Ok(secret) => secret,
                Err(failure) => {
                    passed_over.push(failure);
                    continue;
                }
            };
            let secrets = self.with_password(client_secret).await?;
            let mut outcome = self.ask(client, endpoint.clone(), &secrets, sent).await?;
            deviations.append(&mut outcome.deviations);
            clock_skew = outcome.clock_skew.or(clock_skew);
            let outcome = match outcome.result {
                Err(failure) if failure.refuses_client => {
                    passed_over.push(failure);
                    continue;
                }
                Err(_) => outcome,
                Ok(_) => self.remember(index, outcome),
            };
            return Ok(Outcome { deviations, clock_skew, ..outcome });
        }
        Ok(Outcome { deviations, clock_skew, ..Outcome::of(Err(verdict(passed_over)), 0) })
    }

    fn remember(&self, index: usize, outcome: Outcome) -> Outcome {
        self.choice.worked(index);
        let of = self.settings.authentication.secrets().len();
        Outcome { client_secret: (of > 1).then_some(SecretInUse { index, of }), ..outcome }
    }

    async fn ask(
        &self,
        client: &Http,
        endpoint: Url,
        secrets: &RequestSecrets,
        sent: &AtomicU32,
    ) -> Result<Outcome, Failure> {
        let request = compose(&self.settings, secrets);
        let words = sent_secrets(&request, secrets);
        sent.fetch_add(1, Ordering::Relaxed);
        let received = exchange(client, self.post(&endpoint, request)?).await?;
        let context = Context {
            default_lifetime: self.settings.default_lifetime,
            wall: self.clock.wall(),
            sent: &words,
        };
        Ok(read(&reply(&received), context))
    }

    async fn token_endpoint(&self, client: &Http) -> Result<Url, Failure> {
        let issuer = match &self.settings.endpoint {
            Endpoint::Token(url) => return Ok(url.clone()),
            Endpoint::Issuer(issuer) => issuer,
        };
        let known = self.discovered().clone();
        if let Some(url) = known {
            return Ok(url);
        }
        let url = self.discover(client, issuer).await?;
        *self.discovered() = Some(url.clone());
        Ok(url)
    }

    fn discovered(&self) -> MutexGuard<'_, Option<Url>> {
        self.discovered.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Looks in each place. Of several failures the first counts, because the usual place comes first; but one
    /// that ends the search counts most, because what would have been found is not known then.
    async fn discover(&self, client: &Http, issuer: &Url) -> Result<Url, Failure> {
        let mut first = None;
        for url in discovery::metadata_urls(issuer) {
            match self.fetch_metadata(client, issuer, url).await {
                Ok(Some(endpoint)) => return Ok(endpoint),
                Ok(None) => (),
                Err(failure) if discovery::ends_search(&failure) => return Err(failure),
                Err(failure) => first = first.or(Some(failure)),
            }
        }
        Err(first.unwrap_or_else(discovery::nothing_found))
    }

    async fn fetch_metadata(&self, client: &Http, issuer: &Url, url: Url) -> Result<Option<Url>, Failure> {
        let request = Request::get(uri(&url)?).header(ACCEPT, "application/json").body(Full::default());
        let received = exchange(client, request.map_err(|_| not_sendable())?).await?;
        discovery::read(issuer, &reply(&received), self.clock.wall())
    }

    async fn with_password(&self, client_secret: Option<Secret>) -> Result<RequestSecrets, Failure> {
        let password = match &self.settings.grant {
            Grant::ClientCredentials => None,
            Grant::Password { password, .. } => Some(password),
        };
        Ok(RequestSecrets { client_secret, password: read_secret("password", password).await? })
    }

    /// The request as it is sent.
    fn post(&self, endpoint: &Url, request: TokenRequest) -> Result<Request<Full<Bytes>>, Failure> {
        // Body and header take over the wiped memory that the request is in, where they would copy a text.
        let mut builder = Request::post(uri(endpoint)?)
            .header(ACCEPT, &self.settings.accept)
            .header(CONTENT_TYPE, "application/x-www-form-urlencoded");
        if let Some(credentials) = request.authorization {
            let mut value = HeaderValue::from_maybe_shared(Bytes::from_owner(credentials))
                .map_err(|_| Failure::new(ErrorClass::Secret, "credentials that no header can carry"))?;
            value.set_sensitive(true);
            builder = builder.header(AUTHORIZATION, value);
        }
        builder.body(Full::new(Bytes::from_owner(request.body))).map_err(|_| not_sendable())
    }
}

fn not_sendable() -> Failure {
    Failure::new(ErrorClass::Internal, "a request that cannot be written")
}

fn reply(received: &Response<Zeroizing<Vec<u8>>>) -> HttpReply<'_> {
    let text = |name: &HeaderName| received.headers().get(name).and_then(|value| value.to_str().ok());
    HttpReply {
        status: received.status().as_u16(),
        content_type: text(&CONTENT_TYPE),
        content_encoding: text(&CONTENT_ENCODING),
        date: text(&DATE),
        retry_after: text(&RETRY_AFTER),
        body: received.body(),
    }
}

/// What to tell where no client secret helped. A refusal weighs more than a secret that cannot be read: the
/// provider has been asked, and is not to be asked again soon.
fn verdict(failures: Vec<Failure>) -> Failure {
    let several = (failures.len() > 1).then(|| {
        let each = failures.iter().map(|failure| failure.detail.as_deref().unwrap_or(&failure.message));
        format!("none of {} client secrets helped: {}", failures.len(), each.collect::<Vec<_>>().join("; "))
    });
    let heaviest = failures.into_iter().reduce(|heaviest, other| {
        if other.refuses_client && !heaviest.refuses_client { other } else { heaviest }
    });
    let told = heaviest.unwrap_or_else(|| Failure::new(ErrorClass::Secret, "no client secret is configured"));
    Failure { detail: several.or(told.detail), ..told }
}

async fn read_secret(what: &str, source: Option<&SecretSource>) -> Result<Option<Secret>, Failure> {
    let Some(source) = source else { return Ok(None) };
    match source.read().await {
        Ok(secret) => Ok(Some(secret)),
        Err(error) => {
            let message = format!("the {what} cannot be read on this host");
            Err(Failure::new(ErrorClass::Secret, message).with_detail(error.to_string()))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_no_secret_helps_a_refusal_weighs_most_and_each_is_told() {
        let unreadable =
            || Failure::new(ErrorClass::Secret, "cannot be read").with_detail("secret file /new");
        let refused =
            || Failure { refuses_client: true, ..Failure::new(ErrorClass::Refused, "invalid_client") };
        assert_eq!(verdict(vec![refused()]), refused());
        assert_eq!(verdict(vec![unreadable()]), unreadable());
        let told = verdict(vec![unreadable(), refused()]);
        assert_eq!((told.class, &*told.message), (ErrorClass::Refused, "invalid_client"));
        let detail = "none of 2 client secrets helped: secret file /new; invalid_client";
        assert_eq!(told.detail.as_deref(), Some(detail));
    }
}
