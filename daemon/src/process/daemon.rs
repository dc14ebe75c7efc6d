//! The whole daemon without a process around it: `main` runs it, and tests start it.

use std::sync::{Arc, PoisonError};
use std::time::Duration;

use tokend_protocol::{ErrorClass, State};
use tokio::net::UnixListener;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::access::Names;
use crate::clock::{Clock, ClockChanges, watch_clock_changes};
use crate::config::{Config, DaemonSettings};
use crate::engine::credential::ActorContext;
use crate::engine::registry::{CredentialFactory, Registry};
use crate::fingerprint::{Fingerprinter, NoRandomness};
use crate::process::network;
use crate::quota::Allowances;
use crate::server::accept::{self, Limits};
use crate::server::server_state::ServerState;
use crate::store::Store;

/// How long requests in flight and token requests may take to end when the daemon stops. A token request takes ten seconds
/// at most, and storing its token two. Reading secrets and discovery before it may be cut off: they have no effect.
///
/// The service manager must allow for more: `TimeoutStopSec=` in `tokend.service`.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(14);

/// A running daemon. It runs on the tokio runtime that it was started on.
#[derive(Debug)]
pub struct Daemon {
    shared: Arc<ServerState>,
    /// The `[daemon]` table of the start, which a reload does not change.
    settings: DaemonSettings,
    connections: TaskTracker,
    actors: TaskTracker,
    stop: CancellationToken,
}

impl Daemon {
    /// Starts all tokens of `config` and serves callers on `listener`. Waits for no provider.
    ///
    /// `most_connections` is what the process can hold open, whatever the configuration allows. What the `store` has
    /// kept is used first. `memory` tells the status whether memory is locked.
    pub async fn start(
        config: &Config,
        listener: UnixListener,
        most_connections: usize,
        store: Arc<Store>,
        memory: String,
    ) -> Result<Self, NoRandomness> {
        let steps = ClockChanges::default();
        let clock = Clock::kernel(steps.clone());
        let stop = CancellationToken::new();
        tokio::spawn(stop.clone().run_until_cancelled_owned(async move {
            if let Err(error) = watch_clock_changes(steps).await {
                tracing::warn!(%error, "changes of the clock and suspends are not noticed");
            }
        }));
        let actors = TaskTracker::new();
        let actor_context = ActorContext {
            clock: clock.clone(),
            fingerprinter: Arc::new(Fingerprinter::with_key(&store.fingerprint_key().await?)),
            roll: fastrand::f64,
            tasks: actors.clone(),
        };
        let mut origins = CredentialFactory::with_store(
            Arc::clone(&store),
            config.daemon.egress_dir.clone(),
            actor_context,
        );
        let registry = Registry::build(config, &mut origins, None);
        store.drop_unclaimed();
        let mut shared = ServerState::new(registry, origins, clock.clone());
        shared.memory = memory;
        shared.allowances = Allowances::new(config.daemon.quota);
        let shared = Arc::new(shared);
        tokio::spawn(stop.clone().run_until_cancelled_owned(heed_network(Arc::clone(&shared))));
        let audited = Arc::clone(&shared);
        tokio::spawn(stop.clone().run_until_cancelled_owned(async move {
            audited.audit.keep(&audited.clock).await;
        }));
        shared.names.resolve(config.names_in_rules()).await;
        let named = Arc::clone(&shared);
        tokio::spawn(stop.clone().run_until_cancelled_owned(async move {
            let in_force = || named.registry.borrow().names_in_rules().to_vec();
            named.names.keep_current(in_force).await;
        }));
        let limits = Limits {
            connections: config.daemon.max_connections.min(most_connections),
            connections_per_uid: config.daemon.max_connections_per_uid,
        };
        let connections = TaskTracker::new();
        let serving = accept::serve(listener, limits, Arc::clone(&shared), connections.clone(), stop.clone());
        connections.spawn(serving);
        Ok(Self { shared, settings: config.daemon.clone(), connections, actors, stop })
    }

    /// The names in rules. Those of another configuration are to be resolved before it is put in force.
    pub fn names(&self) -> Arc<Names> {
        Arc::clone(&self.shared.names)
    }

    /// Puts another configuration in force. Connections, and tokens with the same settings, are kept; removed tokens are
    /// dropped at once.
    pub fn reload(&self, config: &Config) {
        if config.daemon != self.settings {
            tracing::warn!("a change in [daemon] takes effect at the next start");
        }
        let mut origins = self.shared.origins.lock().unwrap_or_else(PoisonError::into_inner);
        let previous = self.shared.registry.borrow().clone();
        let next = Arc::new(Registry::build(config, &mut origins, Some(&previous)));
        self.shared.registry.send_replace(Arc::clone(&next));
        previous.discard_all_but(&next);
        self.shared.store.drop_unclaimed();
        // Whoever reloads may have put something right that the configuration only names.
        next.retry_failed(|_| true);
        self.shared.set_reload_failed_at(None);
    }

    /// Records a failed reload for `tokenctl status`.
    pub fn reload_failed(&self) {
        let clock = &self.shared.clock;
        self.shared.set_reload_failed_at(Some(clock.timestamp(clock.now())));
    }

    /// Whether every actor keeps its schedule.
    pub fn is_on_schedule(&self) -> bool {
        self.shared.registry.borrow().is_on_schedule(self.shared.clock.now())
    }

    /// The states of the tokens, in one line.
    pub fn summary(&self) -> String {
        let registry = self.shared.registry.borrow().clone();
        let now = self.shared.clock.now();
        let states: Vec<State> =
            registry.after(None).map(|(_, entry)| entry.credential.snapshot().state(now)).collect();
        let count = |state: &State| {
            let count = states.iter().filter(|other| *other == state).count();
            (count > 0).then(|| format!("{count} {}", state.as_str()))
        };
        let counts: Vec<String> = STATES.iter().filter_map(count).collect();
        let tokens = if states.len() == 1 { "token" } else { "tokens" };
        let colon = if counts.is_empty() { "" } else { ": " };
        format!("{} {tokens}{colon}{}", states.len(), counts.join(", "))
    }

    /// Stops accepting, and waits with a deadline for requests in flight and token requests to end.
    pub async fn stop(self) {
        self.stop.cancel();
        self.connections.close();
        self.actors.close();
        let drained = tokio::time::timeout(DRAIN_TIMEOUT, async {
            self.connections.wait().await;
            // Callers in flight may have needed the actors until now.
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

/// All states, in the order of the summary.
const STATES: [State; 6] = [
    State::Fresh,
    State::Refreshing,
    State::Degraded,
    State::Pending,
    State::Unavailable,
    State::NeedsOperator,
];

/// Tries again what failed for want of the network, whenever the network changes.
async fn heed_network(shared: Arc<ServerState>) {
    let changed = || {
        let registry = shared.registry.borrow().clone();
        registry.retry_failed(|class| matches!(class, ErrorClass::Unreachable | ErrorClass::Timeout));
    };
    // A daemon without a network of its own has no such notices, and no use for them.
    if let Err(error) = network::watch(changed).await {
        tracing::debug!(%error, "changes of the network go unnoticed");
    }
}
