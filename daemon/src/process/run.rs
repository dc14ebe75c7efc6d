//! The run of the daemon from start to end: sockets, signals, reloads and the service manager.

use std::error::Error;
use std::process::ExitCode;
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::{Instant, interval_at};

use crate::clock::{Clock, ClockChanges};
use crate::config::{self, Config, DaemonSettings, Loaded, Source};
use crate::process::daemon::Daemon;
use crate::process::fault::answer_with_fault;
use crate::process::hardening;
use crate::process::sockets::SocketPaths;
use crate::process::systemd::{self, NotifyState, notify};
use crate::store::Store;

/// Runs the daemon until a signal stops it. The runtime has one thread, which mostly waits for providers. Another thread serves
/// callers: see [`event_loop`](crate::server::event_loop).
pub fn run(source: &Source, paths: &SocketPaths) -> Result<ExitCode, Box<dyn Error>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let ended = runtime.block_on(start_and_serve(source, paths));
    // Does not wait for threads that a name service or a disk may have blocked.
    runtime.shutdown_background();
    ended
}

async fn start_and_serve(source: &Source, paths: &SocketPaths) -> Result<ExitCode, Box<dyn Error>> {
    let memory = hardening::lock_memory();
    // Signals are caught before anything else, so that none is lost during the start.
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let hangup = signal(SignalKind::hangup())?;
    let mut stop = std::pin::pin!(async {
        tokio::select! {
            _ = terminate.recv() => (),
            _ = interrupt.recv() => (),
        }
    });
    let (passed, manager) = systemd::passed()?;
    let Some(config) = load(source) else {
        return Ok(tokio::select! {
            () = stop => ExitCode::SUCCESS,
            // `EX_CONFIG` of sysexits.h.
            () = answer_with_fault(passed) => ExitCode::from(78),
        });
    };
    let (sockets, _own_sockets) = passed.complete(&config.daemon, paths)?;
    let DaemonSettings { state_dir, state_key, .. } = &config.daemon;
    // The store never waits for a point in time, so changes of the clock do not matter to it.
    let clock = Clock::kernel(ClockChanges::default());
    let store = Store::open(clock, manager, systemd::keep_descriptor, state_dir, state_key.as_ref()).await;
    let tokens = config.tokens.len();
    let daemon = Daemon::start(config, sockets, hardening::raise_descriptor_limit(), store, memory).await?;
    tracing::info!(version = env!("CARGO_PKG_VERSION"), tokens, "serving");
    notify(&[NotifyState::Ready, NotifyState::Status(&daemon.summary().await)]);
    tokio::select! {
        () = &mut stop => (),
        () = send_heartbeats(&daemon) => (),
        () = reload_on_signal(&daemon, hangup, source) => (),
    }
    notify(&[NotifyState::Stopping, NotifyState::Status("stopping")]);
    tracing::info!("stopping");
    daemon.stop().await;
    Ok(ExitCode::SUCCESS)
}

/// Reads the configuration, and logs its warnings and faults.
fn load(source: &Source) -> Option<Config> {
    let loaded = config::load(source, crate::peer::abilities()).inspect_err(|faults| {
        for fault in faults.as_slice() {
            tracing::error!("{fault}");
        }
    });
    let Loaded { config, warnings } = loaded.ok()?;
    for warning in warnings {
        tracing::warn!("{warning}");
    }
    Some(config)
}

/// Feeds the watchdog and updates the line in `systemctl status`, every five seconds or twice in the watchdog's time-out.
async fn send_heartbeats(daemon: &Daemon) {
    const OVERDUE: &str =
        "tokens are overdue for renewal, but no request is under way; the watchdog is not fed";
    const NOT_SERVING: &str = "callers are not served; the watchdog is not fed";
    let watchdog = sd_notify::watchdog_enabled().unwrap_or(Duration::MAX);
    let (least, most) = (Duration::from_millis(1), Duration::from_secs(5));
    let period = (watchdog / 2).clamp(least, most);
    // By the first one, the start has freed its memory.
    let mut heartbeat = interval_at(Instant::now() + period, period);
    loop {
        heartbeat.tick().await;
        daemon.give_back_memory();
        // The watchdog starts a daemon again that does not renew, or does not serve.
        let fault = if daemon.is_serving() {
            (!daemon.is_on_schedule().await).then_some(OVERDUE)
        } else {
            Some(NOT_SERVING)
        };
        if let Some(fault) = fault {
            tracing::error!("{fault}");
            notify(&[NotifyState::Status(fault)]);
        } else {
            notify(&[NotifyState::Watchdog, NotifyState::Status(&daemon.summary().await)]);
        }
    }
}

/// Reloads the configuration at each SIGHUP. A signal during a reload starts another reload afterwards.
async fn reload_on_signal(daemon: &Daemon, mut hangup: Signal, source: &Source) {
    while hangup.recv().await.is_some() {
        let now = NotifyState::monotonic_usec_now();
        notify(&[NotifyState::Reloading, now.unwrap_or(NotifyState::Status("reloading"))]);
        let source = source.clone();
        // On a thread of its own: a slow disk delays no caller, no signal and no heartbeat.
        if let Ok(Some(config)) = tokio::task::spawn_blocking(move || load(&source)).await {
            daemon.reload(config).await;
        } else {
            daemon.reload_failed();
        }
        notify(&[NotifyState::Ready, NotifyState::Status(&daemon.summary().await)]);
    }
}
