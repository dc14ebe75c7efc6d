//! Calls an HTTP API once a second with a token of tokend, and prints how the API answers.
//!
//! The daemon may renew the token, the API may refuse it, and the daemon may be restarted: the program goes on.
//!
//! ```console
//! $ cargo run -p tokend-client --features tokio --example call_api -- psb https://api.example/accounts
//! 200 OK, with the token 01f7c2d49a8b3e60
//! ```

#![expect(clippy::print_stdout, clippy::print_stderr, reason = "it is a program for a terminal")]

use std::error::Error;
use std::iter::successors;
use std::time::Duration;

use http::header::AUTHORIZATION;
use reqwest::{Response, StatusCode, Url};
use tokend_client::{Client, Options, SourceToken, TokenName, TokenSource};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [name, url] = &arguments[..] else { return Err("usage: call_api TOKEN URL".into()) };
    let name: TokenName = name.parse().map_err(|error| format!("{name}: {error}"))?;
    let url: Url = url.parse().map_err(|error| format!("{url}: {error}"))?;
    // Only because reqwest is built without its default cryptography here.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let http = reqwest::Client::new();
    // Once for each token, at the start of the program. Every task may have a clone.
    let source = Client::new(Options::from_env()).source(&name);
    loop {
        if let Err(error) = call(&http, &url, &source).await {
            let causes = successors(Some(&*error), |&error| error.source());
            let causes: Vec<_> = causes.map(ToString::to_string).collect();
            eprintln!("{name}: {}", causes.join(": "));
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

/// One call of the API.
async fn call(http: &reqwest::Client, url: &Url, source: &TokenSource) -> Result<(), Box<dyn Error>> {
    let mut token = source.token().await?;
    let mut response = send(http, url, &token).await?;
    // The API refuses a token that should be valid. One more attempt, if there is another token.
    if response.status() == StatusCode::UNAUTHORIZED
        && let Some(newer) = source.reject(token.fingerprint()).await?
    {
        response = send(http, url, &newer).await?;
        token = newer;
    }
    println!("{}, with the token {}", response.status(), token.fingerprint());
    Ok(())
}

async fn send(http: &reqwest::Client, url: &Url, token: &SourceToken) -> reqwest::Result<Response> {
    http.get(url.clone()).header(AUTHORIZATION, token.header_value.clone()).send().await
}
