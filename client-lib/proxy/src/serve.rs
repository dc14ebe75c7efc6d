//! The connections of callers, and their orderly end.

use std::convert::Infallible;
use std::error::Error;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};

use crate::Proxy;

/// Connections at a time. More wait in the queue of the kernel.
const CONNECTIONS_MAX: usize = 1024;

/// How long a caller may take to send the head of a request, and a connection may be idle.
const HEAD_TIMEOUT: Duration = Duration::from_secs(75);

/// How long requests may take to end when the program stops.
const END_TIMEOUT: Duration = Duration::from_secs(10);

/// After a failed accept. Without a pause the kernel would report the same connection again at once.
const PAUSE: Duration = Duration::from_millis(100);

/// The connections that are open.
#[derive(Default)]
pub struct Connections {
    open: GracefulShutdown,
}

impl std::fmt::Debug for Connections {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Connections").finish_non_exhaustive()
    }
}

impl Connections {
    /// Serves what `accept` returns, for ever.
    ///
    /// # Errors
    /// None: a failed accept is repeated after a pause.
    pub async fn serve<S, F>(&self, proxy: &Arc<Proxy>, accept: impl Fn() -> F) -> Result<(), Box<dyn Error>>
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
        F: Future<Output = io::Result<S>>,
    {
        let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        loop {
            let place = Arc::clone(&places).acquire_owned().await?;
            let Ok(stream) = accept().await else {
                sleep(PAUSE).await;
                continue;
            };
            let proxy = Arc::clone(proxy);
            let service = service_fn(move |request| {
                let proxy = Arc::clone(&proxy);
                async move { Ok::<_, Infallible>(proxy.forward(request).await) }
            });
            let mut server = http1::Builder::new();
            server.timer(TokioTimer::new()).header_read_timeout(HEAD_TIMEOUT).half_close(true);
            let connection = self.open.watch(server.serve_connection(TokioIo::new(stream), service));
            tokio::spawn(async move {
                // A caller that breaks off needs no answer.
                let _ = connection.await;
                drop(place);
            });
        }
    }

    /// Waits until the requests have ended that are under way.
    pub async fn finish(self) {
        let _ended = timeout(END_TIMEOUT, self.open.shutdown()).await;
    }
}
