//! Daemons with many tokens, and the providers of those tokens.

use std::path::Path;
use std::time::Duration;

use tokend_tests::daemon::Launch;
use tokend_tests::test_support::{provider_table, token_of};
use tokend_tests::{Answer, Provider, Recorded, TestDir, wait};

use crate::load::connect;
use crate::server::{Kind, TOKEN_LENGTH, http_socket};

/// A day, so that no token is renewed during a run.
const LIFETIME: u64 = 86_400;

/// So that no limit of a user or of a provider is what is measured.
const LIMITS: &str = "max_connections = 12000\nmax_connections_per_uid = 12000\n\
                      max_provider_calls_per_minute_per_uid = 1000000\n";
const PROVIDER_LIMIT: &str = "max_requests_per_minute = 60000";

/// How long a user may wait for all tokens of a daemon.
const START_LIMIT: Duration = Duration::from_secs(180);

/// The configuration of a daemon. The tokens are `t0`, `t1` and so on, and each has a request of its own.
pub(crate) struct Tokens {
    pub(crate) home: TestDir,
    pub(crate) count: usize,
    providers: Vec<Provider>,
}

impl Tokens {
    /// Tokens of so many providers. `daemon` holds further lines of `[daemon]`.
    pub(crate) fn configure(count: usize, providers: usize, daemon: &str) -> Self {
        let home = TestDir::new();
        let providers: Vec<Provider> = (0..providers).map(|_| provider()).collect();
        let mut text = String::new();
        for (number, provider) in providers.iter().enumerate() {
            text += &provider_table(&home, &format!("p{number}"), &provider.token_endpoint(), PROVIDER_LIMIT);
        }
        for number in 0..count {
            let provider = format!("p{}", number % providers.len());
            let more = format!("scope = \"s{number}\"\nallow = [\"any\"]");
            text += &token_of(&provider, &format!("t{number}"), &more);
        }
        let http = format!("http_socket = \"{}\"\n", http_socket(&home.socket()).display());
        home.configure(&format!("{LIMITS}{http}{daemon}"), &text);
        Self { home, count, providers }
    }

    /// The daemon, which logs what it logs by default.
    pub(crate) fn launch(&self) -> Launch {
        Launch::logging(&self.home, "info")
    }

    /// Has the providers take so long for an answer.
    pub(crate) fn answer_slowly(&self, delay: Duration) {
        for provider in &self.providers {
            provider.answer_with(numbered(delay));
        }
    }

    /// Asks for the last token: how many other requests its provider gets between this call and the request for that token.
    pub(crate) fn requests_before_the_last(&self, socket: &Path) -> usize {
        let last = self.count - 1;
        let provider = &self.providers[last % self.providers.len()];
        let (before, scope) = (provider.count(), format!("s{last}"));
        Kind::Tokend.call(&mut connect(socket), &format!("t{last}"));
        let requests = provider.requests();
        let place = requests.iter().rposition(|request| request.field("scope").as_ref() == Some(&scope));
        place.unwrap().saturating_sub(before)
    }

    /// Waits until the daemon has asked for all tokens, and holds the first.
    pub(crate) fn wait_until_asked(&self, socket: &Path) {
        let requests = || self.providers.iter().map(Provider::count).sum::<usize>();
        let all = wait::within(START_LIMIT, || (requests() >= self.count).then_some(()));
        assert!(all.is_some(), "{} of {} tokens in {START_LIMIT:?}", requests(), self.count);
        // A call for each token would leave its mark in the memory, by the audit.
        Kind::Tokend.call(&mut connect(socket), "t0");
    }
}

/// A provider of tokens that differ.
fn provider() -> Provider {
    Provider::start_answering(numbered(Duration::ZERO))
}

fn numbered(delay: Duration) -> impl FnMut(&Recorded) -> Answer + Send + 'static {
    let mut number = 0_u64;
    move |_| {
        number += 1;
        Answer::this_token(&format!("{number:0>TOKEN_LENGTH$}"), LIFETIME).after(delay)
    }
}
