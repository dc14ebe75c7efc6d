//! The daemon as a process: sockets, signals and the service manager.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::OptionFuture;
use tokend_egress::Egress;
use tokio::net::UnixListener;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::task::{JoinError, JoinHandle};

use crate::access::directory;
use crate::clock::{Clock, ClockChanges};
use crate::config::{self, Config, DaemonSettings, Faults, Loaded};
use crate::fingerprint::NoRandomness;
use crate::peer;
use crate::process::daemon::Daemon;
use crate::process::hardening;
use crate::process::listener::{OwnSocket, SocketError};
use crate::process::memlock;
use crate::process::systemd::{self, PassedSocketError};
use crate::store::{FdStore, Media, Store};

/// How often the line for `systemctl status` is looked at, unless the watchdog wants to be fed more often.
const STATUS_INTERVAL: Duration = Duration::from_secs(5);

/// Why the daemon does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The configuration has faults.
    #[error("{0}")]
    Config(#[from] Faults),
    /// There is no socket.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// The passed socket cannot be used.
    #[error(transparent)]
    PassedSocket(#[from] PassedSocketError),
    /// The group of the socket is not known.
    #[error("daemon.socket_group: there is no group {0} on this host")]
    UnknownGroup(String),
    /// Fingerprints cannot be made.
    #[error(transparent)]
    NoRandomness(#[from] NoRandomness),
    /// The operating system refuses something basic.
    #[error("{what}: {source}")]
    System {
        /// What was tried.
        what: &'static str,
        /// What the system says.
        source: std::io::Error,
    },
}

/// Runs the daemon on a runtime of its own: one thread, because a second one only adds hand-overs to work
/// that is mostly waiting.
pub fn run_blocking(config_path: &Path, socket: Option<PathBuf>, egress: Egress) -> Result<(), StartError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|source| StartError::System { what: "starting the runtime", source })?;
    let result = runtime.block_on(run(config_path, socket, egress));
    // A name service or a disk that hangs must not hang the end.
    runtime.shutdown_background();
    result
}

/// Runs the daemon with the configuration in `config_path` until it is told to stop. Providers are reached by `egress`.
pub async fn run(config_path: &Path, socket: Option<PathBuf>, egress: Egress) -> Result<(), StartError> {
    let system = |what| move |source| StartError::System { what, source };
    let memory = memlock::lock_all();
    // Signals are caught before anything else, so that none is lost during the start.
    let mut signals = Signals::new().map_err(system("catching signals"))?;
    let config = load(config_path)?;
    let passed = systemd::passed()?;
    let (listener, own_socket) = listen(&config, passed.socket, socket)?;
    let listener = UnixListener::from_std(listener).map_err(system("registering the socket"))?;
    let store = open_store(&config, passed.store).await;
    let daemon =
        Daemon::start(&config, listener, hardening::raise_descriptor_limit(), store, egress, memory).await?;
    tracing::info!(version = env!("CARGO_PKG_VERSION"), tokens = config.tokens.len(), "serving");
    systemd::ready(&daemon.summary());
    supervise(&daemon, &mut signals, config_path).await;
    systemd::stopping();
    tracing::info!("stopping");
    daemon.stop().await;
    drop(own_socket);
    Ok(())
}

fn load(path: &Path) -> Result<Config, Faults> {
    let Loaded { config, warnings } = config::load(path, peer::abilities())?;
    for warning in &warnings {
        tracing::warn!("{warning}");
    }
    Ok(config)
}

/// Finds what the process before left. The steps of the clock are no business of it, which waits for nothing.
async fn open_store(config: &Config, manager: FdStore) -> Arc<Store> {
    let DaemonSettings { state_dir, state_key, .. } = config.daemon.clone();
    Store::open(
        Clock::kernel(ClockChanges::default()),
        Media { manager, keep: systemd::keep_descriptor, state_dir, state_key },
    )
    .await
}

fn listen(
    config: &Config,
    passed: Option<std::os::unix::net::UnixListener>,
    socket: Option<PathBuf>,
) -> Result<(std::os::unix::net::UnixListener, Option<OwnSocket>), StartError> {
    if let Some(listener) = passed {
        let nonblocking = listener.set_nonblocking(true);
        nonblocking.map_err(|source| StartError::System { what: "setting up the socket", source })?;
        return Ok((listener, None));
    }
    let group = match &config.daemon.socket_group {
        Some(group) => {
            Some(directory::gid(group).ok_or_else(|| StartError::UnknownGroup(group.to_string()))?)
        }
        None => None,
    };
    let path = socket.unwrap_or_else(|| config.daemon.socket.clone());
    let (listener, own) = OwnSocket::bind(&path, group)?;
    Ok((listener, Some(own)))
}

/// Serves signals and the service manager until a signal asks to stop.
async fn supervise(daemon: &Daemon, signals: &mut Signals, config_path: &Path) {
    let pace = systemd::watchdog_interval().map_or(STATUS_INTERVAL, |interval| interval.min(STATUS_INTERVAL));
    let mut heartbeat = tokio::time::interval(pace);
    let mut told = daemon.summary();
    let mut reload = None;
    loop {
        tokio::select! {
            _ = signals.terminate.recv() => return,
            _ = signals.interrupt.recv() => return,
            // A signal that comes during a reload is kept, and begins another after it.
            Some(()) = signals.hangup.recv(), if reload.is_none() => reload = Some(begin_reload(config_path)),
            Some(loaded) = OptionFuture::from(reload.as_mut()) => {
                reload = None;
                end_reload(daemon, loaded);
            }
            _ = heartbeat.tick() => {
                beat(daemon);
                let summary = daemon.summary();
                if summary != told {
                    systemd::status(&summary);
                    told = summary;
                }
            }
        }
    }
}

/// Feeds the watchdog only while tokens are being renewed on time: a daemon that serves but does not renew
/// is one to restart.
fn beat(daemon: &Daemon) {
    if daemon.is_on_schedule() {
        systemd::watchdog();
    } else {
        tracing::error!("tokens are overdue for renewal and nothing is at work on them");
    }
}

/// Reads the configuration on a thread of its own: a disk that takes its time delays no caller, no signal and
/// no sign of life.
fn begin_reload(config_path: &Path) -> JoinHandle<Result<Config, Faults>> {
    systemd::reloading();
    let path = config_path.to_owned();
    tokio::task::spawn_blocking(move || load(&path))
}

/// All or nothing: a configuration with faults changes nothing.
fn end_reload(daemon: &Daemon, loaded: Result<Result<Config, Faults>, JoinError>) {
    match loaded {
        Ok(Ok(config)) => {
            daemon.reload(&config);
            tracing::info!(tokens = config.tokens.len(), "reloaded");
            systemd::ready(&daemon.summary());
            return;
        }
        Ok(Err(faults)) => faults.as_slice().iter().for_each(|fault| tracing::error!("{fault}")),
        Err(_) => tracing::error!("reading the configuration broke off"),
    }
    daemon.reload_failed();
    tracing::error!("not reloaded: the configuration before stays in force");
    systemd::ready("the last reload failed; the configuration before it is in force");
}

struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
}

impl Signals {
    fn new() -> std::io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }
}
