//! A tower layer that sends the headers of a token with each request.

use std::error::Error;
use std::future::{Future, poll_fn};
use std::mem;
use std::pin::Pin;
use std::task::{Context, Poll};

use http::{Request, Response, StatusCode};
use tower_layer::Layer;
use tower_service::Service;

use super::TokenSource;

/// Adds all headers of a token to each request of an HTTP client that is a tower service. If the API answers 401, it rejects the
/// token and sends the request once more with another one, if there is one.
///
/// A layer is for one API, because each request has the token. Put layers that follow redirects below it, and let them drop the
/// headers for other servers.
///
/// ```
/// use tokend_client::{Client, TokenLayer};
/// use tower_layer::Layer;
/// # fn example<S>(http_client: S) -> Result<(), tokend_client::Error> {
///
/// let source = Client::from_env().token("psb")?.source();
/// let with_token = TokenLayer::new(source).layer(http_client);
/// # let _ = with_token;
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct TokenLayer {
    source: TokenSource,
}

/// The service of a [`TokenLayer`].
#[derive(Clone, Debug)]
pub struct WithToken<S> {
    inner: S,
    source: TokenSource,
}

/// An error of the service below, or an [`Error`](crate::Error) if there is no token.
type BoxError = Box<dyn Error + Send + Sync>;

impl TokenLayer {
    /// The headers are those of [`TokenSource::headers`].
    pub fn new(source: TokenSource) -> Self {
        Self { source }
    }
}

impl<S> Layer<S> for TokenLayer {
    type Service = WithToken<S>;

    fn layer(&self, inner: S) -> WithToken<S> {
        WithToken { inner, source: self.source.clone() }
    }
}

impl<S, B, R> Service<Request<B>> for WithToken<S>
where
    S: Service<Request<B>, Response = Response<R>, Error: Into<BoxError>, Future: Send>
        + Clone
        + Send
        + 'static,
    B: Clone + Send + 'static,
    R: Send,
{
    type Response = Response<R>;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Response<R>, BoxError>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.inner.poll_ready(context).map_err(Into::into)
    }

    fn call(&mut self, mut request: Request<B>) -> Self::Future {
        // The one that is ready.
        let clone = self.inner.clone();
        let mut inner = mem::replace(&mut self.inner, clone);
        let source = self.source.clone();
        Box::pin(async move {
            let mut again = request.clone();
            let headers = source.headers().await?;
            headers.add_to(request.headers_mut());
            let response = inner.call(request).await.map_err(Into::into)?;
            if response.status() != StatusCode::UNAUTHORIZED {
                return Ok(response);
            }
            // Without another token, the answer of the API says most.
            let Ok(Some(_)) = source.reject(headers.info.fingerprint).await else { return Ok(response) };
            let Ok(newer) = source.headers().await else { return Ok(response) };
            newer.add_to(again.headers_mut());
            // The service may accept the next request only when the response is dropped.
            drop(response);
            poll_fn(|context| inner.poll_ready(context)).await.map_err(Into::into)?;
            inner.call(again).await.map_err(Into::into)
        })
    }
}
