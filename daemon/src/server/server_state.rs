//! The state that all connections share.

use std::sync::atomic::AtomicU32;
use std::sync::{Arc, Mutex, PoisonError};

use tokend_protocol::Timestamp;
use tokio::sync::watch;

use crate::access::Names;
use crate::clock::Clock;
use crate::engine::registry::{CredentialFactory, Registry};
use crate::quota::Allowances;
use crate::quota::Quota;
use crate::server::audit::Audit;
use crate::server::fair_queue::FairQueue;
use crate::store::Store;

/// The state that all connections share.
#[derive(Debug)]
pub struct ServerState {
    /// The registry in force.
    pub registry: watch::Sender<Arc<Registry>>,
    /// Creates credentials. Locked while a registry is built or a variant started, never across an await.
    pub credential_factory: Mutex<CredentialFactory>,
    /// The memory that outlives the process.
    pub store: Arc<Store>,
    /// Time.
    pub clock: Clock,
    /// The audit trail.
    pub audit: Audit,
    /// The quota account of each user.
    pub allowances: Allowances,
    /// Shares the thread among users.
    pub turns: FairQueue,
    /// The names in rules, resolved.
    pub names: Arc<Names>,
    /// The daemon's own user.
    pub own_uid: u32,
    /// When the daemon started.
    pub started_at: Timestamp,
    /// Whether the process's memory is locked, for the status.
    pub memory: String,
    /// Open connections.
    pub connections: AtomicU32,
    reload_failed_at: Mutex<Option<Timestamp>>,
}

impl ServerState {
    /// The state of a daemon that starts now.
    pub fn new(registry: Registry, credential_factory: CredentialFactory, clock: Clock) -> Self {
        Self {
            store: credential_factory.store(),
            registry: watch::channel(Arc::new(registry)).0,
            credential_factory: Mutex::new(credential_factory),
            started_at: clock.timestamp(clock.now()),
            allowances: Allowances::new(Quota::default()),
            clock,
            audit: Audit::default(),
            turns: FairQueue::default(),
            names: Arc::new(Names::of_the_host()),
            own_uid: nix::unistd::geteuid().as_raw(),
            memory: "not locked".to_owned(),
            connections: AtomicU32::new(0),
            reload_failed_at: Mutex::new(None),
        }
    }

    /// Notes how the last reload ended.
    pub fn set_reload_failed_at(&self, at: Option<Timestamp>) {
        *self.reload_failed_at.lock().unwrap_or_else(PoisonError::into_inner) = at;
    }

    /// When the last reload failed, if it did.
    pub fn reload_failed_at(&self) -> Option<Timestamp> {
        *self.reload_failed_at.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
