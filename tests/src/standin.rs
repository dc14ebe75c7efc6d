//! Stand-ins for the five providers.
//!
//! Each accepts exactly the token request that its provider documents and refuses every other, saying what
//! the first difference is; answers in the provider's dialect; and has an API that demands exactly the
//! documented headers.

mod api;
mod dialect;
mod token_request;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::{Answer, Provider, Recorded, TestDir, secrets};

pub use token_request::{Credentials, Expectation};

/// The path of every stand-in's API.
pub const API_PATH: &str = "/api/v1/resource";

/// The provider that a stand-in imitates.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// eConnect PSB.
    EconnectPsb,
    /// BNP Paribas CIB API Gateway.
    BnpParibasCib,
    /// Partner API (wealth).
    PartnerApi,
    /// Aritma PSD2.
    AritmaPsd2,
    /// Cube connectapi.
    CubeConnect,
}

/// A running stand-in.
#[derive(Debug)]
pub struct StandIn {
    kind: Kind,
    provider: Provider,
    client: Client,
    state: Arc<Mutex<StandInState>>,
}

/// The credentials that the provider gave its customer.
#[derive(Clone, Debug)]
pub struct Client {
    /// The client id, or key.
    pub id: String,
    /// The client secret.
    pub secret: String,
    /// The user of the password grant.
    pub username: String,
    /// Its password.
    pub password: String,
    /// The key that API calls carry, where the provider has one.
    pub subscription_key: String,
}

/// The state of a stand-in.
#[derive(Debug, Default)]
struct StandInState {
    lifetime: Option<Duration>,
    /// Issued tokens and when they end.
    issued: HashMap<String, Instant>,
    refusals: Vec<String>,
    api_calls: usize,
    /// Whether token requests fail, while the API works on.
    is_down: bool,
    /// The client secret that has taken the place of the first one.
    new_secret: Option<String>,
}

impl Kind {
    /// All five.
    pub const ALL: [Self; 5] =
        [Self::EconnectPsb, Self::BnpParibasCib, Self::PartnerApi, Self::AritmaPsd2, Self::CubeConnect];

    /// The name of the preset.
    pub fn preset(self) -> &'static str {
        match self {
            Self::EconnectPsb => "econnect-psb",
            Self::BnpParibasCib => "bnpparibas-cib",
            Self::PartnerApi => "partner-api",
            Self::AritmaPsd2 => "aritma-psd2",
            Self::CubeConnect => "cube-connect",
        }
    }

    /// The provider's own name, for people.
    pub fn title(self) -> &'static str {
        match self {
            Self::EconnectPsb => "eConnect PSB",
            Self::BnpParibasCib => "BNP Paribas CIB API Gateway",
            Self::PartnerApi => "Partner API",
            Self::AritmaPsd2 => "Aritma PSD2",
            Self::CubeConnect => "Cube connectapi",
        }
    }

    /// The `[provider.NAME]` and `[token.NAME]` of [`StandIn::configuration`].
    pub fn token_name(self) -> &'static str {
        match self {
            Self::EconnectPsb => "psb",
            Self::BnpParibasCib => "bnp",
            Self::PartnerApi => "partner",
            Self::AritmaPsd2 => "aritma",
            Self::CubeConnect => "cube",
        }
    }

    /// The headers that a caller supplies for each API call, as `tokenctl headers --header` takes them.
    pub fn caller_headers(self) -> &'static [&'static str] {
        match self {
            Self::PartnerApi => &["Requestor-ID=np-7041"],
            _ => &[],
        }
    }

    fn token_path(self) -> &'static str {
        match self {
            Self::EconnectPsb | Self::AritmaPsd2 | Self::CubeConnect => "/connect/token",
            Self::BnpParibasCib => "/oauth2/v1/token",
            Self::PartnerApi => "/oauth/token",
        }
    }
}

impl StandIn {
    /// Starts one.
    pub fn start(kind: Kind) -> Self {
        let client = Client::invent(kind);
        let state = Arc::new(Mutex::new(StandInState::default()));
        let responder = Responder { kind, client: client.clone() };
        let (provider, shared) = (Provider::start(), Arc::clone(&state));
        provider.answer_with(move |request| responder.answer(request, &mut lock(&shared)));
        Self { kind, provider, client, state }
    }

    /// The provider that it imitates.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// The server, to look at its requests.
    pub fn provider(&self) -> &Provider {
        &self.provider
    }

    /// The credentials of the customer.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// The token endpoint.
    pub fn token_endpoint(&self) -> String {
        self.provider.url(self.kind.token_path())
    }

    /// The API.
    pub fn api(&self) -> String {
        self.provider.url(API_PATH)
    }

    /// Issues tokens of this lifetime instead of the provider's own.
    pub fn set_lifetime(&self, lifetime: Duration) {
        lock(&self.state).lifetime = Some(lifetime);
    }

    /// Makes token requests fail with status 503, or succeed again. The API works in either case.
    pub fn set_down(&self, is_down: bool) {
        lock(&self.state).is_down = is_down;
    }

    /// Replaces the client secret: from now on only the new one is accepted. The caller gives it to the daemon.
    pub fn replace_secret(&self) -> String {
        let secret = secrets::invent_awkward("client-secret");
        secrets::register_basic(&format!("{}:{secret}", self.client.id));
        lock(&self.state).new_secret = Some(secret.clone());
        secret
    }

    /// Why requests were refused, in order.
    pub fn refusals(&self) -> Vec<String> {
        lock(&self.state).refusals.clone()
    }

    /// How many tokens were issued.
    pub fn issued(&self) -> usize {
        lock(&self.state).issued.len()
    }

    /// How many API calls were accepted.
    pub fn api_calls(&self) -> usize {
        lock(&self.state).api_calls
    }

    /// The configuration that the provider's documentation leads to: its provider and token, with secrets in
    /// files of `home`. The token's name is [`Kind::token_name`], and eConnect has a second one, with `-user`
    /// after it, for the password grant. `token` holds further lines for each token.
    pub fn configuration(&self, home: &TestDir, token: &str) -> String {
        let name = self.kind.token_name();
        let secret = home.secret(&format!("{name}-client-secret"), &self.client.secret);
        let mut text = format!(
            "[provider.{name}]\npreset = {:?}\ntoken_endpoint = {:?}\nclient_id = {:?}\n\
             client_secret = {secret}\n\n[token.{name}]\nprovider = {name:?}\n{token}\n",
            self.kind.preset(),
            self.token_endpoint(),
            self.client.id,
        );
        text.push_str(&self.particulars(home, token));
        text
    }

    fn particulars(&self, home: &TestDir, token: &str) -> String {
        match self.kind {
            Kind::EconnectPsb => {
                let key = home.secret("psb-subscription-key", &self.client.subscription_key);
                let password = home.secret("psb-password", &self.client.password);
                format!(
                    "headers = {{ Subscription-Key = {key} }}\n\n\
                     [token.psb-user]\nprovider = \"psb\"\ngrant_type = \"password\"\nusername = {:?}\n\
                     password = {password}\nheaders = {{ Subscription-Key = {key} }}\n\
                     {token}\n",
                    self.client.username,
                )
            }
            Kind::CubeConnect => "params = { acr_values = \"tenant:acme\" }\n\n".to_owned(),
            Kind::BnpParibasCib | Kind::PartnerApi | Kind::AritmaPsd2 => "\n".to_owned(),
        }
    }
}

impl Client {
    fn invent(kind: Kind) -> Self {
        let client = Self {
            id: format!("{}-client", kind.token_name()),
            secret: secrets::invent_awkward("client-secret"),
            username: "api-user@example".to_owned(),
            password: secrets::invent_awkward("password"),
            subscription_key: secrets::invent("subscription-key"),
        };
        secrets::register_basic(&format!("{}:{}", client.id, client.secret));
        client
    }
}

/// Answers the requests of a stand-in.
struct Responder {
    kind: Kind,
    client: Client,
}

impl Responder {
    fn answer(&self, request: &Recorded, state: &mut StandInState) -> Answer {
        if request.path == API_PATH {
            return api::answer(self.kind, &self.client, request, state);
        }
        if state.is_down {
            return Answer::status(503);
        }
        let secret = state.new_secret.clone().unwrap_or_else(|| self.client.secret.clone());
        let expectations = Expectation::of(self.kind, &Client { secret, ..self.client.clone() });
        match token_request::compare_with_any(&expectations, request) {
            Ok(()) => self.issue(state),
            Err(difference) => {
                state.refusals.push(difference.clone());
                let body = serde_json::json!({ "error": "invalid_request", "error_description": difference });
                Answer::json(400, &body)
            }
        }
    }

    fn issue(&self, state: &mut StandInState) -> Answer {
        let lifetime = state.lifetime.unwrap_or_else(|| dialect::lifetime(self.kind));
        let (token, answer) = dialect::reply(self.kind, lifetime);
        secrets::register("access-token", &token);
        state.issued.insert(token, Instant::now() + lifetime);
        answer
    }
}

fn lock(state: &Mutex<StandInState>) -> MutexGuard<'_, StandInState> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}
