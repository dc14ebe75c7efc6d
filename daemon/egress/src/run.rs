//! `tokend-egress` as a process: its socket, its log, signals and the service manager.

use std::fs::File;
use std::io;
use std::os::unix::net::UnixListener;
use std::path::Path;

use sd_notify::NotifyState;
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::cli::Cli;
use crate::log;
use crate::server;
use crate::socket::{self, SocketError};

/// Why it does not run.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// There is no socket.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// A filter that cannot be understood.
    #[error(
        "--log-level {0:?} is neither a level (error, warn, info, debug, trace) nor a list of target=level"
    )]
    BadFilter(String),
    /// The operating system refuses something basic.
    #[error("{what}: {source}")]
    System {
        /// What was tried.
        what: &'static str,
        /// What the system says.
        source: io::Error,
    },
}

/// Runs until it is told to stop, on one thread beside those that wait for the name service.
pub fn run(options: &Cli) -> Result<(), StartError> {
    log::start(&options.log_level).map_err(|_| StartError::BadFilter(options.log_level.clone()))?;
    let (listener, _lock) = listen(options.socket.as_deref())?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(server::REQUESTS_MOST)
        .build()
        .map_err(|source| StartError::System { what: "starting the runtime", source })?;
    let ended = runtime.block_on(serve(listener));
    // A name service that hangs must not hang the end.
    runtime.shutdown_background();
    ended
}

async fn serve(listener: UnixListener) -> Result<(), StartError> {
    let system = |what| move |source| StartError::System { what, source };
    let mut terminate = caught(SignalKind::terminate())?;
    let mut interrupt = caught(SignalKind::interrupt())?;
    listener.set_nonblocking(true).map_err(system("setting up the socket"))?;
    let listener = tokio::net::UnixListener::from_std(listener).map_err(system("registering the socket"))?;
    tracing::info!(version = env!("CARGO_PKG_VERSION"), "serving");
    tell(&[NotifyState::Ready, NotifyState::Status("opens connections for tokend")]);
    tokio::select! {
        () = server::serve(listener) => (),
        _ = terminate.recv() => (),
        _ = interrupt.recv() => (),
    }
    tell(&[NotifyState::Stopping]);
    Ok(())
}

fn caught(kind: SignalKind) -> Result<Signal, StartError> {
    signal(kind).map_err(|source| StartError::System { what: "catching signals", source })
}

fn listen(own: Option<&Path>) -> Result<(UnixListener, Option<File>), StartError> {
    if let Some(listener) = socket::passed()? {
        return Ok((listener, None));
    }
    let (listener, lock) = socket::make(own.ok_or(SocketError::None)?)?;
    Ok((listener, Some(lock)))
}

fn tell(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::warn!(%error, "the service manager could not be told");
    }
}
