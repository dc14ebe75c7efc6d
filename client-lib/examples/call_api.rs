//! Calls an HTTP API once a second with a token of tokend, and prints how the API answers.
//!
//! The daemon may renew the token, the API may refuse it, and the daemon may be restarted: the program goes on.
//!
//! ```console
//! $ cargo run -p tokend-client --features reqwest --example call_api -- psb https://api.example/accounts
//! 200 OK, with the token 01f7c2d49a8b3e60
//! ```

#![expect(clippy::print_stdout, clippy::print_stderr, reason = "it is a program for a terminal")]

use std::error::Error;
use std::iter::successors;
use std::time::Duration;

use reqwest::Url;
use tokend_client::{ApiClient, Client};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [name, url] = &arguments[..] else { return Err("usage: call_api TOKEN URL".into()) };
    let url: Url = url.parse().map_err(|error| format!("{url}: {error}"))?;
    // Only because reqwest is built without its default cryptography here.
    let _ = rustls::crypto::ring::default_provider().install_default();
    // Once for each token, at the start of the program. Every task may have a clone.
    let source = Client::from_env().token(name)?.source();
    let api = ApiClient::new(source.clone(), reqwest::Client::builder())?;
    loop {
        // With the headers of the token, and once more with another token after a 401.
        match api.execute(api.http().get(url.clone()).build()?).await {
            Ok(response) => {
                let token = source.try_token().map(|token| token.fingerprint().to_string());
                let token = token.unwrap_or_else(|error| format!("(none any more: {error})"));
                println!("{}, with the token {token}", response.status());
            }
            Err(error) => {
                let causes = successors(Some(&error as &dyn Error), |&error| error.source());
                let causes: Vec<_> = causes.map(ToString::to_string).collect();
                eprintln!("{name}: {}", causes.join(": "));
            }
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}
