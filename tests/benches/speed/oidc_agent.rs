//! oidc-agent, another agent for tokens, with an account at a provider on loopback.

use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};

use serde_json::json;
use tokend_tests::{Answer, Provider, TestDir, wait};

use crate::server::{Ended, TOKEN_LENGTH};

/// A running agent, which ends when it is dropped.
pub(crate) struct OidcAgent {
    _process: Ended,
    home: TestDir,
    provider: Provider,
}

impl OidcAgent {
    /// One that holds a token; `None` if it is not installed.
    pub(crate) fn start() -> Option<Self> {
        Command::new("oidc-agent").arg("--version").output().ok()?;
        let (home, provider) = (TestDir::new(), provider());
        let mut agent = Command::new("setpriv");
        agent.args(["--pdeathsig", "KILL", "--", "oidc-agent", "--console", "--socket-path"]);
        let socket = home.path().join("socket");
        agent.arg(&socket).env("HOME", home.path()).env("OIDC_CONFIG_DIR", home.path());
        let process =
            Ended(agent.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap());
        let agent = Self { _process: process, home, provider };
        wait::until("oidc-agent", || UnixStream::connect(&socket).ok());
        agent.add_account();
        Some(agent)
    }

    fn add_account(&self) {
        let mut command = self.command("timeout");
        command.args(["60", "oidc-gen", "t0", "--issuer", &self.provider.url("/")]);
        let words = "--client-id c --client-secret s --refresh-token r --scope openid --prompt none --confirm-yes --manual \
                     --no-save --pw-cmd";
        let added = command.args(words.split_whitespace()).arg("echo p").output().unwrap();
        assert!(added.status.success(), "oidc-gen: {}", String::from_utf8_lossy(&added.stderr));
    }

    /// A command that finds the agent.
    pub(crate) fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.env_clear().env("PATH", "/usr/bin:/bin").env("HOME", self.home.path());
        command.env("OIDC_CONFIG_DIR", self.home.path()).env("OIDC_SOCK", self.home.path().join("socket"));
        command.stdin(Stdio::null()).stdout(Stdio::null());
        command
    }
}

/// A provider that describes itself, and gives a token of a day.
fn provider() -> Provider {
    let provider = Provider::start();
    let description = json!({
        "issuer": provider.url("/"),
        "authorization_endpoint": provider.url("/authorize"),
        "token_endpoint": provider.token_endpoint(),
        "scopes_supported": ["openid", "offline_access"],
        "grant_types_supported": ["authorization_code", "refresh_token"],
        "response_types_supported": ["code"],
    });
    let token = json!({
        "access_token": "v".repeat(TOKEN_LENGTH),
        "token_type": "Bearer",
        "expires_in": 86_400,
        "refresh_token": "r",
    });
    provider.answer_with(move |request| {
        Answer::json(200, if request.method == "GET" { &description } else { &token })
    });
    provider
}
