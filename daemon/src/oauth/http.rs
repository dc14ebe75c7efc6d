//! Token requests over HTTP: reads the secrets, finds the token endpoint, and sends one request for each client secret
//! until one is accepted.

use std::future::Future;
use std::iter;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use reqwest::header::{ACCEPT, HeaderValue};
use reqwest::{Method, Request};
use tokend_protocol::{ErrorClass, Secret};
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout};
use url::{Position, Url};

use crate::clock::Clock;
use crate::config::{ClientAuthentication, CredentialSettings, Endpoint};
use crate::oauth::assertion::{self, Claims};
use crate::oauth::client::{EXCHANGE_TIMEOUT, HttpClient};
use crate::oauth::discovery::TokenEndpoint;
use crate::oauth::request::compose;
use crate::oauth::response::{Context, HttpReply, read};
use crate::oauth::{Failure, Granted, Outcome, Provider, Refusal, SecretInUse, discovery, redact};
use crate::secret_source::{SecretSource, Stamp, on_another_thread, stamps};
use crate::signing_key::SigningAlg;

/// How long all exchanges of one token request may take: discovery, and one exchange for each client secret. With
/// [`SECRETS_TIMEOUT`] and the check of the secret files, a token request takes at most 47 seconds.
const EXCHANGES_TIMEOUT: Duration = EXCHANGE_TIMEOUT.saturating_mul(3);

/// How long reading all secrets of one token request may take. A command has ten seconds of it, and may wait for others.
const SECRETS_TIMEOUT: Duration = Duration::from_secs(15);

/// How long reading the stamps of the secret files may take, in case a file system hangs.
const STAMPS_TIMEOUT: Duration = Duration::from_secs(2);

/// By how many seconds the provider's clock may differ from the one that an assertion was made by. Providers allow for such a
/// difference themselves.
const TOLERATED_SKEW: u64 = 5;

/// How often the secret files are looked at while requests are refused or a secret cannot be read.
const POLL_INTERVAL: Duration = Duration::from_secs(2);

/// Requests one kind of token from one provider.
#[derive(Debug)]
pub struct HttpProvider {
    settings: Arc<CredentialSettings>,
    http: Arc<HttpClient>,
    clock: Clock,
    /// Never locked across an await. Nothing is known of most tokens between two requests.
    known: Mutex<Option<Box<Known>>>,
}

/// The state that lasts from one request to the next.
#[derive(Debug)]
struct Known {
    /// The token endpoint that the issuer's metadata named. Dropped after a failure, because it may have moved.
    endpoint: Option<TokenEndpoint>,
    /// By how many seconds the provider's clock is ahead of this host's, if an assertion was accepted only with that.
    clock_skew: i64,
    /// The client secret that worked last. While a secret is replaced, the provider may accept either of two.
    preferred_secret: u8,
    /// The stamps of the files from before they were last read. Dropped after a success, as nothing is wrong with them.
    stamps: Option<Vec<Stamp>>,
    /// Held by the one thread that takes the stamps of the secret files. It is not `reading`: a secret file can be read
    /// while another one is on a file system that hangs.
    stamping: Arc<Semaphore>,
    /// Held by the one thread that reads a secret file.
    reading: Arc<Semaphore>,
}

/// One token request: the time that is left, and the outcome so far.
struct Attempt<'a> {
    provider: &'a HttpProvider,
    time_for_exchanges: Duration,
    time_for_secrets: Duration,
    /// A line for each request: its URL without the query, and the status or error.
    asked: Vec<String>,
    outcome: Outcome,
}

impl Provider for HttpProvider {
    async fn request(&self) -> Outcome {
        let nothing_yet = Failure::new(ErrorClass::Internal, "no token request was sent");
        let mut attempt = Attempt {
            provider: self,
            time_for_exchanges: EXCHANGES_TIMEOUT,
            time_for_secrets: SECRETS_TIMEOUT,
            asked: Vec::new(),
            outcome: Outcome::of(Err(nothing_yet), 0),
        };
        let result = attempt.run().await;
        match &result {
            Ok(_) => self.forget_files(),
            Err(_) => self.with_known(|known| known.endpoint = None),
        }
        let Attempt { asked, mut outcome, .. } = attempt;
        if !asked.is_empty() {
            outcome.facts.insert("asked", asked.join("; "));
        }
        let said = result.as_ref().err().and_then(|failure| failure.provider_said.clone());
        outcome.facts.extend(said.map(|said| ("provider-said", said)));
        Outcome { result, ..outcome }
    }

    /// The files are polled, not watched with inotify: a secret is replaced by a rename, a changed link on its path, a
    /// mount, a change of mode, or by appearing at all. Inotify needs another watch for each of these, and misses what
    /// another host does to a network file system.
    async fn changed(&self) {
        let files = self.files();
        if files.is_empty() {
            return std::future::pending().await;
        }
        let (before, stamping) = self.with_known(|known| (known.stamps.clone(), Arc::clone(&known.stamping)));
        loop {
            self.clock.sleep_until(self.clock.now().after(POLL_INTERVAL)).await;
            let now = stamps(files.clone(), &stamping).await;
            if now.is_some() && now != before {
                return;
            }
        }
    }
}

impl HttpProvider {
    pub fn new(settings: Arc<CredentialSettings>, http: Arc<HttpClient>, clock: Clock) -> Self {
        Self { settings, http, clock, known: Mutex::default() }
    }

    /// The secret files and the `ca_file`.
    fn files(&self) -> Vec<PathBuf> {
        let CredentialSettings { client, grant, .. } = &*self.settings;
        let grant_secret = grant.secret().map(|(_, source)| source);
        let client_secrets = client.authentication.secrets().iter().chain(client.authentication.passphrase());
        let tls = client.tls.iter().flat_map(|tls| iter::once(&tls.key).chain(&tls.passphrase));
        let mut files: Vec<_> =
            client_secrets.chain(tls).chain(grant_secret).filter_map(SecretSource::path).collect();
        files.extend(client.tls.iter().map(|tls| tls.certificate.clone()).chain(client.ca_file.clone()));
        files
    }

    fn with_known<T>(&self, use_it: impl FnOnce(&mut Known) -> T) -> T {
        use_it(self.lock().get_or_insert_default())
    }

    /// Forgets the state of the secret files, unless a thread still reads one.
    fn forget_files(&self) {
        let mut lock = self.lock();
        let Some(known) = lock.as_deref_mut() else { return };
        known.stamps = None;
        let is_idle = [&known.stamping, &known.reading].into_iter().all(|turn| turn.available_permits() > 0);
        if is_idle && known.endpoint.is_none() && known.preferred_secret == 0 && known.clock_skew == 0 {
            *lock = None;
        }
    }

    fn lock(&self) -> MutexGuard<'_, Option<Box<Known>>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Default for Known {
    fn default() -> Self {
        let [stamping, reading] = [1, 1].map(|permits| Arc::new(Semaphore::new(permits)));
        Self { endpoint: None, clock_skew: 0, preferred_secret: 0, stamps: None, stamping, reading }
    }
}

impl Attempt<'_> {
    /// Tries each client secret once, the one that worked last first. One that cannot be read, and a refusal that a
    /// wrong secret may explain, are followed by the next. Any other answer is final.
    async fn run(&mut self) -> Result<Granted, Failure> {
        let (settings, files) = (&self.provider.settings, self.provider.files());
        if !files.is_empty() {
            // Before the files are read, so that no later change is missed.
            let stamping = self.provider.with_known(|known| Arc::clone(&known.stamping));
            let taken = timeout(STAMPS_TIMEOUT, stamps(files, &stamping)).await;
            self.provider.with_known(|known| known.stamps = taken.ok().flatten());
        }
        let endpoint = self.token_endpoint().await?;
        let none = Secret::from(String::new());
        let grant_secret = match settings.grant.secret() {
            None => none.clone(),
            Some((name, source)) => self.secret(name, source).await?,
        };
        let (sources, name) =
            (settings.client.authentication.secrets(), settings.client.authentication.name_of_secrets());
        if sources.is_empty() {
            return self.ask(&endpoint, &none, &grant_secret).await;
        }
        let mut passed_over = Vec::new();
        let first = self.provider.lock().as_ref().map_or(0, |known| known.preferred_secret);
        let from_first = (0_u8..).zip(sources).cycle().skip(first.into());
        for (index, source) in from_first.take(sources.len()) {
            let result = match self.secret(name, source).await {
                Ok(secret) => self.ask(&endpoint, &secret, &grant_secret).await,
                Err(failure) => Err(failure),
            };
            match result {
                Ok(granted) => {
                    self.provider.with_known(|known| known.preferred_secret = index);
                    let in_use = SecretInUse { index, of: u8::try_from(sources.len()).unwrap_or(u8::MAX) };
                    self.outcome.client_secret = (in_use.of > 1).then_some(in_use);
                    return Ok(granted);
                }
                Err(failure) if failure.may_be_the_secret() || failure.class == ErrorClass::Secret => {
                    passed_over.push(failure);
                }
                Err(failure) => return Err(failure),
            }
        }
        Err(verdict(passed_over))
    }

    /// Sends a request with this client secret. An assertion that is refused while the clocks differ is made once more, by the
    /// provider's clock.
    async fn ask(
        &mut self,
        endpoint: &TokenEndpoint,
        secret: &Secret,
        grant_secret: &Secret,
    ) -> Result<Granted, Failure> {
        let assumed = self.provider.lock().as_ref().map_or(0, |known| known.clock_skew);
        let Some(assertion) = self.assertion(endpoint, secret, assumed).await? else {
            return self.send(&endpoint.url, secret, grant_secret).await;
        };
        let failure = match self.send(&endpoint.url, &assertion, grant_secret).await {
            Err(failure) if failure.may_be_the_secret() && failure.retry_after.is_none() => failure,
            result => return result,
        };
        // The clock of a gateway may be another one than the server's. So a skew that does not help is forgotten.
        let other_skews = [self.outcome.clock_skew.unwrap_or(assumed), 0];
        let Some(skew) = other_skews.into_iter().find(|skew| skew.abs_diff(assumed) > TOLERATED_SKEW) else {
            return Err(failure);
        };
        let Some(assertion) = self.assertion(endpoint, secret, skew).await? else { return Err(failure) };
        let result = self.send(&endpoint.url, &assertion, grant_secret).await;
        self.provider.with_known(|known| known.clock_skew = if result.is_ok() { skew } else { 0 });
        result
    }

    /// Makes a client assertion with a client secret or a private key, if the client authenticates by one. With a private key on
    /// another thread, because decrypting it and signing with it take long.
    async fn assertion(
        &mut self,
        endpoint: &TokenEndpoint,
        secret: &Secret,
        skew: i64,
    ) -> Result<Option<Secret>, Failure> {
        let HttpProvider { settings, clock, .. } = self.provider;
        let (client, now) = (&settings.client, assertion::by_clock_of_provider(clock.wall(), skew));
        let key = match &client.authentication {
            ClientAuthentication::PrivateKeyJwt(key) => key.clone(),
            ClientAuthentication::SecretJwt { assertion, .. } => {
                let claims = Claims::new(&client.client_id, &assertion.audience, endpoint, now);
                let alg = assertion.alg.unwrap_or(SigningAlg::Hs256);
                let made = assertion::by_secret(secret, alg, &claims);
                let failure =
                    || Failure::new(ErrorClass::Internal, "no assertion can be made with this signing_alg");
                return made.ok_or_else(failure).map(Some);
            }
            _ => return Ok(None),
        };
        let passphrase = match &key.passphrase {
            None => None,
            Some(source) => Some(self.secret("private_key_passphrase", source).await?),
        };
        let claims = Claims::new(&client.client_id, &key.assertion.audience, endpoint, now);
        let (turn, text) = (self.provider.with_known(|known| Arc::clone(&known.reading)), secret.clone());
        let signing = async {
            let turn = turn.acquire_owned().await.ok();
            on_another_thread(turn, move || assertion::by_key_of(&key, &text, passphrase.as_ref(), &claims))
                .await
        };
        let detail = match within(&mut self.time_for_secrets, signing).await {
            Some(Ok(Ok(assertion))) => return Ok(Some(assertion)),
            Some(Ok(Err(reason))) => reason,
            Some(Err(error)) => error.to_string(),
            None => "private_key: no signature in time".to_owned(),
        };
        Err(Failure::new(ErrorClass::Secret, "the private_key cannot be used on this host")
            .with_detail(detail))
    }

    async fn send(
        &mut self,
        endpoint: &Url,
        secret: &Secret,
        grant_secret: &Secret,
    ) -> Result<Granted, Failure> {
        let HttpProvider { settings, clock, .. } = self.provider;
        let (request, sent) = compose(settings, endpoint, secret, grant_secret)?;
        let reply = self.exchange(request).await?;
        let read = read(&reply, Context { settings, wall: clock.wall(), sent: &sent });
        self.outcome.facts = read.facts;
        self.outcome.deviations.extend(read.deviations);
        self.outcome.clock_skew = read.clock_skew.or(self.outcome.clock_skew);
        read.result
    }

    /// Returns the token endpoint that is configured, or known, or else found at the metadata URLs, which are requested in
    /// turn. If all fail, the first failure is returned, because the usual URL comes first.
    async fn token_endpoint(&mut self) -> Result<TokenEndpoint, Failure> {
        let issuer = match &self.provider.settings.client.endpoint {
            Endpoint::Token(url) => return Ok(TokenEndpoint { url: url.clone(), issuer: None }),
            Endpoint::Issuer(issuer) => issuer,
        };
        if let Some(endpoint) = self.provider.with_known(|known| known.endpoint.clone()) {
            return Ok(endpoint);
        }
        let client = &self.provider.settings.client;
        // With `private_key_jwt`, the certificate may be there only to be named in the assertion.
        let has_certificate =
            client.tls.is_some() && !matches!(client.authentication, ClientAuthentication::PrivateKeyJwt(_));
        let mut first = None;
        for url in discovery::metadata_urls(issuer) {
            let mut request = Request::new(Method::GET, url);
            request.headers_mut().insert(ACCEPT, HeaderValue::from_static("application/json"));
            let reply = self.exchange(request).await;
            let wall = self.provider.clock.wall();
            match reply.and_then(|reply| discovery::read(issuer, has_certificate, &reply, wall)) {
                Ok(Some(endpoint)) => {
                    self.provider.with_known(|known| known.endpoint = Some(endpoint.clone()));
                    return Ok(endpoint);
                }
                Ok(None) => (),
                Err(failure) if discovery::ends_search(&failure) => return Err(failure),
                Err(failure) => first = first.or(Some(failure)),
            }
        }
        Err(first.unwrap_or_else(|| {
            let message = "discovery: the issuer publishes no metadata; configure its token_endpoint";
            let refusal = Some(Refusal::WithoutCode(404));
            Failure { refusal, ..Failure::new(ErrorClass::Refused, message) }
        }))
    }

    async fn exchange(&mut self, request: Request) -> Result<HttpReply, Failure> {
        self.outcome.requests += 1;
        // Without the query, in which a provider may have put anything.
        let url = redact::printable(&request.url()[..Position::AfterPath]);
        let exchanged = within(&mut self.time_for_exchanges, self.provider.http.exchange(request)).await;
        let exchanged =
            exchanged.unwrap_or_else(|| Err(Failure::new(ErrorClass::Timeout, "no complete reply in time")));
        let end =
            exchanged.as_ref().map_or_else(|failure| failure.message.clone(), HttpReply::status_and_type);
        self.asked.push(format!("{url} ({end})"));
        exchanged
    }

    /// Reads a secret. A timeout here is a failure of this host, not of the provider.
    async fn secret(&mut self, name: &str, source: &SecretSource) -> Result<Secret, Failure> {
        let turn = self.provider.with_known(|known| Arc::clone(&known.reading));
        let reading = source.read_in_turn(&turn);
        let (message, detail) = match within(&mut self.time_for_secrets, reading).await {
            Some(Ok(secret)) => return Ok(secret),
            Some(Err(error)) => (format!("the {name} cannot be read on this host"), error.to_string()),
            None => (
                format!("the {name} cannot be read in time on this host"),
                format!("{source}: no answer within {} seconds", SECRETS_TIMEOUT.as_secs()),
            ),
        };
        Err(Failure::new(ErrorClass::Secret, message).with_detail(detail))
    }
}

/// Runs a step for at most `left`, and subtracts its duration from `left`. Returns `None` on timeout.
async fn within<T>(left: &mut Duration, step: impl Future<Output = T>) -> Option<T> {
    let began = Instant::now();
    let ended = timeout(*left, step).await.ok();
    *left = left.saturating_sub(began.elapsed());
    ended
}

/// Returns the failure of a request for which no client secret worked. A refusal takes precedence over a secret that
/// cannot be read, because its back-off is longer, and one of the client over one without an OAuth error code.
fn verdict(failures: Vec<Failure>) -> Failure {
    let several = (failures.len() > 1).then(|| {
        let each = failures.iter().map(|failure| failure.detail.as_deref().unwrap_or(&failure.message));
        format!("none of {} secrets worked: {}", failures.len(), each.collect::<Vec<_>>().join("; "))
    });
    let retry_after = failures.iter().filter_map(|failure| failure.retry_after).max();
    let first_refusal = failures.into_iter().min_by_key(|failure| {
        (failure.refusal != Some(Refusal::Client), failure.class != ErrorClass::Refused)
    });
    let verdict =
        first_refusal.unwrap_or_else(|| Failure::new(ErrorClass::Secret, "no client secret is configured"));
    Failure { detail: several.or(verdict.detail), retry_after, ..verdict }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::ClientAuthentication;
    use crate::oauth::client::Connection;
    use crate::oauth::request::tests::settings;

    #[test]
    fn a_refusal_weighs_most_and_each_secret_is_reported() {
        let unreadable =
            || Failure::new(ErrorClass::Secret, "cannot be read").with_detail("secret file /new");
        let refused = || Failure {
            refusal: Some(Refusal::Client),
            ..Failure::new(ErrorClass::Refused, "invalid_client")
        };
        assert_eq!(verdict(vec![refused()]), refused());
        assert_eq!(verdict(vec![unreadable()]), unreadable());
        let failure = verdict(vec![unreadable(), refused()]);
        assert_eq!((failure.class, &*failure.message), (ErrorClass::Refused, "invalid_client"));
        let quiet = Failure { retry_after: Some(Duration::from_secs(600)), ..refused() };
        assert_eq!(verdict(vec![quiet.clone(), refused()]).retry_after, quiet.retry_after);
        let detail = "none of 2 secrets worked: secret file /new; invalid_client";
        assert_eq!(failure.detail.as_deref(), Some(detail));
    }

    /// The permits are taken as by threads that hang.
    #[tokio::test(start_paused = true)]
    async fn a_secret_file_that_hangs_costs_one_thread_and_keeps_no_other_secret_from_being_read() {
        let authentication =
            ClientAuthentication::SecretPost { secrets: vec![SecretSource::File("/nonexistent".into())] };
        let http = Arc::new(HttpClient::new(Connection::default(), None));
        let provider = HttpProvider::new(Arc::new(settings(authentication)), http, Clock::simulated());
        let [stamping, reading] =
            provider.with_known(|known| [&known.stamping, &known.reading].map(Arc::clone));
        let _stamping = stamping.acquire().await.unwrap();
        let failure = provider.request().await.result.unwrap_err();
        assert_eq!(failure.message, "the client_secret cannot be read on this host");
        assert_eq!(provider.with_known(|known| known.stamps.clone()), None);
        let reading = reading.acquire().await.unwrap();
        let failure = provider.request().await.result.unwrap_err();
        assert_eq!(failure.message, "the client_secret cannot be read in time on this host");
        assert_eq!(failure.detail.unwrap(), "secret file /nonexistent: no answer within 15 seconds");
        drop(reading);
        let failure = provider.request().await.result.unwrap_err();
        assert_eq!(failure.message, "the client_secret cannot be read on this host");
    }

    #[tokio::test(start_paused = true)]
    async fn the_time_of_a_step_is_taken_from_what_is_left() {
        let mut left = Duration::from_secs(15);
        assert_eq!(within(&mut left, tokio::time::sleep(Duration::from_secs(10))).await, Some(()));
        assert_eq!(left, Duration::from_secs(5));
        assert_eq!(within(&mut left, std::future::pending::<()>()).await, None);
        assert_eq!(left, Duration::ZERO);
    }

    /// Sixteen commands that hang, of which four run at once: most wait in the queue until their time is up.
    #[tokio::test(start_paused = true)]
    async fn a_secret_that_hangs_is_not_a_timeout_of_the_provider() {
        let command = SecretSource::Command(["sleep", "1000"].map(str::to_owned).into());
        let authentication = ClientAuthentication::SecretPost { secrets: vec![command] };
        let (settings, http) =
            (Arc::new(settings(authentication)), Arc::new(HttpClient::new(Connection::default(), None)));
        let provider = Arc::new(HttpProvider::new(settings, http, Clock::simulated()));
        let mut requests = tokio::task::JoinSet::new();
        for _ in 0..16 {
            let provider = Arc::clone(&provider);
            requests.spawn(async move { provider.request().await.result.unwrap_err() });
        }
        while let Some(failure) = requests.join_next().await {
            let failure = failure.unwrap();
            assert_eq!(failure.class, ErrorClass::Secret);
            assert!(failure.detail.is_some_and(|detail| detail.starts_with("secret command \"sleep\": ")));
        }
    }
}
