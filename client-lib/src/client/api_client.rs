//! A client of an HTTP API that sends the headers of a token with each request.

use reqwest::{Client, ClientBuilder, Request, Response, StatusCode, redirect};

use super::TokenSource;
use crate::Error;

/// Redirects that are followed, as in reqwest's own default.
const REDIRECTS_MAX: usize = 10;

/// Sends requests to an API with all headers of a token. If the API answers 401, it rejects the token, so that later requests have
/// another one. It sends the request once more if there is another token and the request can be repeated: a body that is a stream
/// cannot.
///
/// Use it for one API only, because each request has the token. Redirects are followed only within the origin of the request, so
/// that no other server gets it.
///
/// ```no_run
/// use tokend_client::{ApiClient, Client};
///
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// let source = Client::from_env().token("psb")?.source();
/// let api = ApiClient::new(source, reqwest::Client::builder())?;
/// let request = api.http().get("https://api.example/accounts").build()?;
/// let response = api.execute(request).await?;
/// # let _ = response;
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct ApiClient {
    http: Client,
    source: TokenSource,
}

/// Why a request got no answer.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ApiError {
    /// There is no token.
    #[error(transparent)]
    Token(#[from] Error),
    /// The request failed.
    #[error(transparent)]
    Http(#[from] reqwest::Error),
}

impl ApiClient {
    /// The headers are those of [`TokenSource::headers`]. The policy for redirects of the builder is replaced.
    ///
    /// # Errors
    /// Those of [`ClientBuilder::build`].
    pub fn new(source: TokenSource, http: ClientBuilder) -> reqwest::Result<Self> {
        let within_origin = redirect::Policy::custom(|attempt| {
            let previous = attempt.previous();
            let is_same = previous.last().is_some_and(|last| last.origin() == attempt.url().origin());
            if is_same && previous.len() <= REDIRECTS_MAX { attempt.follow() } else { attempt.stop() }
        });
        Ok(Self { http: http.redirect(within_origin).build()?, source })
    }

    /// The client below, which builds requests. Requests that it sends itself have no token.
    pub fn http(&self) -> &Client {
        &self.http
    }

    /// Sends a request.
    ///
    /// # Errors
    /// If there is no token, or no answer. An answer with an error status is an answer.
    pub async fn execute(&self, mut request: Request) -> Result<Response, ApiError> {
        let again = request.try_clone();
        let headers = self.source.headers().await?;
        headers.add_to(request.headers_mut());
        let response = self.http.execute(request).await?;
        if response.status() != StatusCode::UNAUTHORIZED {
            return Ok(response);
        }
        // Also for a request that cannot be repeated: the next one needs another token.
        let rejected = self.source.reject(headers.info.fingerprint).await;
        // Without another token, the answer of the API says most.
        let (Some(mut again), Ok(Some(_))) = (again, rejected) else { return Ok(response) };
        let Ok(newer) = self.source.headers().await else { return Ok(response) };
        newer.add_to(again.headers_mut());
        // The response holds a connection, and the API may accept only one.
        drop(response);
        Ok(self.http.execute(again).await?)
    }
}
