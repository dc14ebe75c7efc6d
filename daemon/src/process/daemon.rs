//! The daemon without signals and service manager. [`super::run`] starts it for the program, tests in process.

use std::io;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use tokend_protocol::ErrorClass;
use tokio::task::{JoinHandle, JoinSet};
use tokio_util::task::TaskTracker;

use crate::clock::{Clock, ClockChanges, watch_clock_changes};
use crate::config::{Config, DaemonSettings};
use crate::engine::credential::ActorContext;
use crate::engine::registry::{CredentialFactory, Registry};
use crate::fingerprint::Fingerprinter;
use crate::process::sockets::Sockets;
use crate::process::{hardening, network};
use crate::quota::Allowances;
use crate::server::event_loop::EventLoop;
use crate::server::{ServerState, accept, credential, http};
use crate::store::Store;

/// How long callers' requests and token requests may take to end when the daemon stops. One exchange with a token
/// endpoint takes ten seconds at most, and storing its token two. An attempt that takes longer, because of discovery,
/// slow secrets or several client secrets, is cut off. `TimeoutStopSec=` in `tokend.service` must be longer.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(14);

/// After so many connections have closed or requests ended, their memory is given back: some hundred kilobytes or more.
const ENDED_MANY: usize = 512;

/// A running daemon. It runs on the tokio runtime that it was started on.
#[derive(Debug)]
pub struct Daemon {
    shared: Arc<ServerState>,
    /// The `[daemon]` table of the start, which a reload does not change.
    settings: DaemonSettings,
    actors: TaskTracker,
    background: JoinSet<()>,
    event_loop: EventLoop,
    /// The HTTP socket and the credential socket are served until the daemon stops.
    others: Vec<JoinHandle<io::Result<()>>>,
}

impl Daemon {
    /// Starts all tokens of `config` and serves callers on `sockets`. Waits for no provider.
    ///
    /// `most_connections` is the limit that the process's open descriptors impose. `memory` is the status line about
    /// locked memory.
    pub async fn start(
        config: Config,
        sockets: Sockets,
        most_connections: usize,
        store: Arc<Store>,
        memory: String,
    ) -> io::Result<Self> {
        let main = accept::Listener::new(sockets.main, accept::QUEUE_MAX)?;
        let http = sockets.http.map(|socket| accept::Listener::new(socket, http::QUEUE_MAX)).transpose()?;
        let credential = sockets.credential.map(|socket| accept::Listener::new(socket, accept::QUEUE_MAX));
        let credential = credential.transpose()?;
        let actors = TaskTracker::new();
        let changes = ClockChanges::default();
        let clock = Clock::kernel(changes.clone());
        let actor_context = ActorContext {
            clock: clock.clone(),
            fingerprinter: Arc::new(Fingerprinter::with_key(
                &store.fingerprint_key().await.map_err(io::Error::other)?,
            )),
            roll: fastrand::f64,
            tasks: actors.clone(),
        };
        let settings = config.daemon.clone();
        let egress_dir = settings.egress_dir.clone();
        let mut factory = CredentialFactory::new(Arc::clone(&store), egress_dir, actor_context);
        let registry = Registry::build(config, &mut factory, None);
        store.drop_unclaimed();
        let mut shared = ServerState::new(registry, factory, clock);
        shared.memory = memory;
        shared.allowances = Allowances::new(settings.quota);
        shared.most_open = ENDED_MANY.into();
        shared.connections_max = settings.max_connections.min(most_connections);
        let shared = Arc::new(shared);
        let names_in_rules = shared.registry.borrow().names_in_rules.clone();
        shared.names.resolve(names_in_rules).await;
        let background = work_in_background(&shared, changes);
        let event_loop = EventLoop::start(main, Arc::clone(&shared))?;
        let mut others = Vec::new();
        if let Some(listener) = http {
            others.push(tokio::spawn(http::serve(listener, Arc::clone(&shared))));
        }
        if let Some(listener) = credential {
            others.push(tokio::spawn(credential::serve(listener, Arc::clone(&shared))));
        }
        Ok(Self { shared, settings, actors, background, event_loop, others })
    }

    /// Puts another configuration in force. Keeps connections and tokens with the same settings, and drops removed tokens.
    pub async fn reload(&self, config: Config) {
        // Resolved before they are in force, so that nobody is refused because of an unresolved name.
        self.shared.names.resolve(config.names_in_rules()).await;
        if config.daemon != self.settings {
            tracing::warn!("a change in [daemon] takes effect at the next start");
        }
        let mut factory = self.shared.credential_factory.lock().unwrap_or_else(PoisonError::into_inner);
        let previous = self.shared.registry.borrow().clone();
        let tokens = config.tokens.len();
        let next = Arc::new(Registry::build(config, &mut factory, Some(&previous)));
        self.shared.registry.send_replace(Arc::clone(&next));
        previous.discard_all_but(&next);
        self.shared.store.drop_unclaimed();
        // An operator who reloads may have mended something outside the configuration, such as a secret's file.
        next.retry_failed(|_| true);
        self.shared.most_open.fetch_add(ENDED_MANY, Ordering::Relaxed);
        self.shared.reload_failed_at.send_replace(None);
        tracing::info!(tokens, "reloaded");
    }

    pub fn reload_failed(&self) {
        tracing::error!("not reloaded: the previous configuration stays in force");
        let clock = &self.shared.clock;
        self.shared.reload_failed_at.send_replace(Some(clock.timestamp(clock.now())));
    }

    /// Gives freed memory back after a configuration was read, or very many connections or requests have ended.
    pub fn give_back_memory(&self) {
        let (open, most) = (self.shared.connections.len() + self.actors.len(), &self.shared.most_open);
        if most.fetch_max(open, Ordering::Relaxed).saturating_sub(open) >= ENDED_MANY {
            most.store(open, Ordering::Relaxed);
            let is_locked = self.shared.memory == hardening::LOCKED;
            tokio::task::spawn_blocking(move || hardening::give_back_memory(is_locked));
        }
    }

    /// Whether callers are served.
    pub fn is_serving(&self) -> bool {
        self.event_loop.is_alive() && !self.others.iter().any(JoinHandle::is_finished)
    }

    pub async fn is_on_schedule(&self) -> bool {
        let registry = self.shared.registry.borrow().clone();
        registry.is_on_schedule(self.shared.clock.now()).await
    }

    /// The states of the tokens and a failed reload, in one line.
    pub async fn summary(&self) -> String {
        let registry = self.shared.registry.borrow().clone();
        let counts = registry.count_states(self.shared.clock.now()).await;
        let tokens: usize = counts.values().sum();
        let counts: Vec<_> = counts.iter().map(|(state, n)| format!("{n} {}", state.as_str())).collect();
        let (s, colon) = (if tokens == 1 { "" } else { "s" }, if tokens == 0 { "" } else { ": " });
        let mut summary = format!("{tokens} token{s}{colon}{}", counts.join(", "));
        if self.shared.reload_failed_at.borrow().is_some() {
            summary += "; the last reload failed, and the configuration before it is in force";
        }
        summary
    }

    /// Stops accepting, and waits with a deadline for requests in flight and token requests to end.
    pub async fn stop(self) {
        self.shared.stop.cancel();
        drop(self.background);
        let event_loop = self.event_loop;
        self.shared.connections.close();
        self.actors.close();
        let drained = tokio::time::timeout(DRAIN_TIMEOUT, async {
            event_loop.stop().await;
            self.shared.connections.wait().await;
            // Stopped after the connections, because waiting callers need the actors.
            self.shared.registry.borrow().stop();
            self.actors.wait().await;
        });
        if drained.await.is_err() {
            tracing::warn!("some requests or token requests did not end in time and are cut off");
        }
        self.shared.audit.close();
        self.shared.store.note_orderly_end();
    }
}

/// Starts the background tasks: clock and network watches, audit, and names in rules. Dropping the result ends them.
fn work_in_background(shared: &Arc<ServerState>, changes: ClockChanges) -> JoinSet<()> {
    let mut background = JoinSet::new();
    background.spawn(async move {
        if let Err(error) = watch_clock_changes(changes).await {
            tracing::warn!(%error, "changes of the clock and suspends are not noticed");
        }
    });
    let state = Arc::clone(shared);
    background.spawn(async move {
        let retry = || {
            let registry = state.registry.borrow().clone();
            registry.retry_failed(|class| matches!(class, ErrorClass::Unreachable | ErrorClass::Timeout));
        };
        if let Err(error) = network::watch(retry).await {
            tracing::debug!(%error, "changes of the network go unnoticed");
        }
    });
    let state = Arc::clone(shared);
    background.spawn(async move { state.audit.write_windows(&state.clock).await });
    let state = Arc::clone(shared);
    background.spawn(async move {
        state.names.keep_current(|| state.registry.borrow().names_in_rules.clone()).await;
    });
    background
}
