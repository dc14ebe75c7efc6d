//! The usual scene: one scripted provider, one daemon, some tokens.

use std::path::Path;

use crate::daemon::Launch;
use crate::{Provider, RealDaemon, TestDir, Tokenctl};

/// A daemon with one provider, `p`, in its configuration.
#[derive(Debug)]
pub struct Scene {
    /// The daemon. It ends before what it relies on.
    pub daemon: RealDaemon,
    /// The provider.
    pub provider: Provider,
    /// The directory of both.
    pub home: TestDir,
}

impl Scene {
    /// Starts a daemon with these tokens, which name `provider = "p"`, on a provider that has its script.
    pub fn start(provider: Provider, tokens: &str) -> Self {
        Self::start_with(provider, "", tokens)
    }

    /// The same with further lines in `[daemon]`.
    pub fn start_with(provider: Provider, daemon: &str, tokens: &str) -> Self {
        let home = TestDir::new();
        home.configure(
            daemon,
            &format!("{}\n{tokens}", provider_table(&home, "p", &provider.token_endpoint(), "")),
        );
        let daemon = Launch::new(&home).start();
        Self { daemon, provider, home }
    }

    /// The same with a daemon that logs no more than it does by default.
    pub fn quiet(provider: Provider, daemon: &str, tokens: &str) -> Self {
        let home = TestDir::new();
        let table = provider_table(&home, "p", &provider.token_endpoint(), "");
        home.configure(daemon, &format!("{table}\n{tokens}"));
        let daemon = Launch::logging(&home, "info").start();
        Self { daemon, provider, home }
    }

    /// `tokenctl` for the daemon.
    pub fn tokenctl(&self) -> Tokenctl {
        self.daemon.tokenctl()
    }

    /// The daemon's socket.
    pub fn socket(&self) -> &Path {
        self.daemon.socket()
    }

    /// Writes another configuration with the same provider.
    pub fn reconfigure(&self, daemon: &str, tokens: &str) {
        let table = provider_table(&self.home, "p", &self.provider.token_endpoint(), "");
        self.home.configure(daemon, &format!("{table}\n{tokens}"));
    }
}

/// A `[provider.NAME]` that sends its secret in the form. The secret is in a file of the home, `NAME.secret`,
/// and is made up on first use. `more` holds further lines.
pub fn provider_table(home: &TestDir, name: &str, endpoint: &str, more: &str) -> String {
    let secret = home.secret_once(&format!("{name}.secret"));
    format!(
        "[provider.{name}]\ntoken_endpoint = {endpoint:?}\nclient_id = \"client\"\nclient_secret = {secret}\n\
         token_endpoint_auth_method = \"client_secret_post\"\n{more}\n"
    )
}

/// A `[token.NAME]` of the provider `p`, with further lines.
pub fn token_table(name: &str, more: &str) -> String {
    token_of("p", name, more)
}

/// A `[token.NAME]` of some provider, with further lines.
pub fn token_of(provider: &str, name: &str, more: &str) -> String {
    format!("[token.{name}]\nprovider = {provider:?}\n{more}\n")
}
