//! The run of the daemon from start to end: sockets, signals, reloads and the service manager.

use std::error::Error;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::OptionFuture;
use tokio::net::UnixListener;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::task::JoinError;

use crate::access::{Names, group_id};
use crate::clock::{Clock, ClockChanges};
use crate::config::{self, Config, DaemonSettings, Faults, Loaded, Source};
use crate::peer;
use crate::process::daemon::Daemon;
use crate::process::listener::OwnSocket;
use crate::process::systemd;
use crate::process::{faulty_start, hardening};
use crate::store::{FdStore, Media, Store};

/// How often the line for `systemctl status` is updated, unless the watchdog is to be fed more often.
const STATUS_INTERVAL: Duration = Duration::from_secs(5);

/// Why the daemon does not start.
#[derive(Debug)]
pub enum StartError {
    /// The configuration has faults. All of them are logged already.
    Config,
    /// Anything else. The text names what was tried.
    Other(Box<dyn Error + Send + Sync>),
}

impl<E: Error + Send + Sync + 'static> From<E> for StartError {
    fn from(error: E) -> Self {
        Self::Other(error.into())
    }
}

/// Runs the daemon on a runtime of its own. One thread: the work is mostly waiting, and a second one only adds hand-overs.
pub fn run_blocking(source: &Source, socket: Option<PathBuf>) -> Result<(), StartError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let result = runtime.block_on(run(source, socket));
    // A name service or a disk that hangs must not hang the end.
    runtime.shutdown_background();
    result
}

/// Runs the daemon with this configuration until a signal stops it.
pub async fn run(source: &Source, socket: Option<PathBuf>) -> Result<(), StartError> {
    let memory = hardening::lock_memory();
    // Signals are caught before anything else, so that none is lost during the start.
    let mut signals = Signals::new()?;
    let passed = systemd::passed()?;
    let passed_socket = passed.socket.map(register).transpose()?;
    let config = match load(source) {
        Ok(config) => config,
        Err(faults) => return refuse_start(&faults, passed_socket, &mut signals).await,
    };
    let (listener, own_socket) = match passed_socket {
        Some(listener) => (listener, None),
        None => bind(&config, socket)?,
    };
    let store = open_store(&config, passed.store).await;
    let daemon = Daemon::start(&config, listener, hardening::raise_descriptor_limit(), store, memory).await?;
    tracing::info!(version = env!("CARGO_PKG_VERSION"), tokens = config.tokens.len(), "serving");
    systemd::ready(&daemon.summary());
    supervise(&daemon, &mut signals, source).await;
    systemd::stopping();
    tracing::info!("stopping");
    daemon.stop().await;
    drop(own_socket);
    Ok(())
}

/// Logs the faults and, with a socket of the service manager, answers the callers that wait there.
async fn refuse_start(
    faults: &Faults,
    passed_socket: Option<UnixListener>,
    signals: &mut Signals,
) -> Result<(), StartError> {
    log_faults(faults);
    if let Some(listener) = passed_socket {
        tokio::select! {
            () = faulty_start::answer_callers(listener) => (),
            () = signals.stop() => return Ok(()),
        }
    }
    Err(StartError::Config)
}

fn log_faults(faults: &Faults) {
    faults.as_slice().iter().for_each(|fault| tracing::error!("{fault}"));
}

fn load(source: &Source) -> Result<Config, Faults> {
    let Loaded { config, warnings } = config::load(source, peer::abilities())?;
    for warning in &warnings {
        tracing::warn!("{warning}");
    }
    Ok(config)
}

/// Opens the store with what the previous process left.
async fn open_store(config: &Config, manager: FdStore) -> Arc<Store> {
    let DaemonSettings { state_dir, state_key, .. } = config.daemon.clone();
    // The store waits for no point in time, so changes of the clock do not matter to it.
    Store::open(
        Clock::kernel(ClockChanges::default()),
        Media { manager, keep: systemd::keep_descriptor, state_dir, state_key },
    )
    .await
}

fn bind(config: &Config, socket: Option<PathBuf>) -> Result<(UnixListener, Option<OwnSocket>), StartError> {
    let gid = |group| {
        let unknown = || format!("daemon.socket_group: there is no group {group} on this host");
        group_id(group).ok_or_else(|| StartError::Other(unknown().into()))
    };
    let group = config.daemon.socket_group.as_ref().map(gid).transpose()?;
    let path = socket.unwrap_or_else(|| config.daemon.socket.clone());
    let (listener, own_socket) = OwnSocket::bind(&path, group)?;
    Ok((register(listener)?, Some(own_socket)))
}

fn register(listener: std::os::unix::net::UnixListener) -> io::Result<UnixListener> {
    listener.set_nonblocking(true)?;
    UnixListener::from_std(listener)
}

/// Handles signals, reloads and the watchdog until a signal asks to stop.
async fn supervise(daemon: &Daemon, signals: &mut Signals, source: &Source) {
    let interval =
        systemd::watchdog_interval().map_or(STATUS_INTERVAL, |interval| interval.min(STATUS_INTERVAL));
    let mut heartbeat = tokio::time::interval(interval);
    let mut reported = daemon.summary();
    let mut reload = None;
    loop {
        tokio::select! {
            _ = signals.terminate.recv() => return,
            _ = signals.interrupt.recv() => return,
            // A signal during a reload is kept, and starts another one after it.
            Some(()) = signals.hangup.recv(), if reload.is_none() => {
                systemd::reloading();
                reload = Some(tokio::spawn(load_and_resolve(source.clone(), daemon.names())));
            }
            Some(loaded) = OptionFuture::from(reload.as_mut()) => {
                reload = None;
                apply(daemon, loaded);
            }
            _ = heartbeat.tick() => {
                // A daemon that serves but does not renew is one to restart.
                if daemon.is_on_schedule() {
                    systemd::watchdog();
                } else {
                    tracing::error!("tokens are overdue for renewal, and their actors do nothing");
                }
                let summary = daemon.summary();
                if summary != reported {
                    systemd::status(&summary);
                    reported = summary;
                }
            }
        }
    }
}

/// Reads the configuration and resolves the names in its rules, before it is in force, so that nobody is refused because of a
/// name that is not resolved yet. On a thread of its own: a slow disk delays no caller, no signal and no heartbeat.
async fn load_and_resolve(source: Source, names: Arc<Names>) -> Result<Config, Faults> {
    let loaded = tokio::task::spawn_blocking(move || load(&source)).await;
    let loaded = loaded.unwrap_or_else(|panicked| std::panic::resume_unwind(panicked.into_panic()))?;
    names.resolve(loaded.names_in_rules()).await;
    Ok(loaded)
}

/// Puts a newly read configuration in force. One with faults changes nothing.
fn apply(daemon: &Daemon, loaded: Result<Result<Config, Faults>, JoinError>) {
    match loaded {
        Ok(Ok(config)) => {
            daemon.reload(&config);
            tracing::info!(tokens = config.tokens.len(), "reloaded");
            systemd::ready(&daemon.summary());
            return;
        }
        Ok(Err(faults)) => log_faults(&faults),
        Err(_) => tracing::error!("reading the configuration panicked"),
    }
    daemon.reload_failed();
    tracing::error!("not reloaded: the previous configuration stays in force");
    systemd::ready("the last reload failed; the configuration before it is in force");
}

struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
}

impl Signals {
    fn new() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }

    /// Waits for a signal that asks to stop.
    async fn stop(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => (),
            _ = self.interrupt.recv() => (),
        }
    }
}
