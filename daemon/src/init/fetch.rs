//! One token request with settings that are not written yet.

use std::path::PathBuf;
use std::sync::Arc;

use crate::clock::{Clock, ClockChanges};
use crate::config::{ClientAuthentication, TokenSettings};
use crate::oauth::client::{Connection, HttpClient};
use crate::oauth::http::HttpProvider;
use crate::oauth::{Outcome, Provider};
use crate::secret_source::SecretSource;

/// Requests a token with the secret in `source`, and describes the result without the token.
pub(super) fn fetch(
    settings: &TokenSettings,
    source: SecretSource,
    egress_dir: Option<PathBuf>,
) -> Result<String, String> {
    let mut credential = (*settings.credential).clone();
    let mut client = (*credential.client).clone();
    match &mut client.authentication {
        ClientAuthentication::SecretBasic { secrets, .. }
        | ClientAuthentication::SecretPost { secrets }
        | ClientAuthentication::SecretJwt { secrets, .. } => *secrets = vec![source],
        ClientAuthentication::PrivateKeyJwt(_)
        | ClientAuthentication::Assertion { .. }
        | ClientAuthentication::Tls
        | ClientAuthentication::None => (),
    }
    let http = HttpClient::new(Connection::of(&client), egress_dir);
    credential.client = Arc::new(client);
    let clock = Clock::kernel(ClockChanges::default());
    let provider = HttpProvider::new(Arc::new(credential), Arc::new(http), clock);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| format!("cannot make a request: {error}"))?;
    let outcome = runtime.block_on(async {
        tokio::select! {
            outcome = provider.request() => Some(outcome),
            _ = tokio::signal::ctrl_c() => None,
        }
    });
    runtime.shutdown_background();
    describe(outcome.ok_or("interrupted")?)
}

fn describe(outcome: Outcome) -> Result<String, String> {
    let Outcome { result, facts, .. } = outcome;
    match result {
        Ok(granted) => Ok(format!(
            "the provider gave a token, valid for {}",
            humantime::format_duration(granted.lifetime)
        )),
        Err(failure) => {
            let details = failure.detail.into_iter().chain(facts.into_values());
            let lines = std::iter::once(format!("no token: {}", failure.message)).chain(details);
            Err(lines.collect::<Vec<_>>().join("\n"))
        }
    }
}
