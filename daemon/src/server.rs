//! Serves local callers: accepts connections, authorizes and answers requests, limits and audits them.

pub mod accept;
pub mod audit;
pub mod connection;
pub mod credential;
pub mod event_loop;
pub mod fair_queue;
pub mod http;
pub mod log_throttle;
pub mod session;
pub mod sessions;
pub mod stream;

use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokend_protocol::Timestamp;
use tokio::sync::watch;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use self::audit::Audit;
use self::connection::Buffers;
use self::fair_queue::FairQueue;
use self::log_throttle::LogThrottle;
use crate::access::Names;
use crate::clock::Clock;
use crate::engine::registry::{CredentialFactory, Registry};
use crate::quota::{Allowances, Quota};
use crate::store::Store;

/// How long a request may go on when the daemon stops. Shorter than the daemon waits for all of them.
const WAITS_END_AFTER: Duration = Duration::from_secs(12);

/// The state that all connections share.
#[derive(Debug)]
pub struct ServerState {
    /// The registry in force.
    pub registry: watch::Sender<Arc<Registry>>,
    /// Locked while a registry is built or a variant started, never across an await.
    pub credential_factory: Mutex<CredentialFactory>,
    pub store: Arc<Store>,
    pub clock: Clock,
    pub audit: Audit,
    pub allowances: Allowances,
    pub fair_queue: Arc<FairQueue>,
    /// Held while a long list of groups is read.
    pub reading_groups: tokio::sync::Mutex<()>,
    /// Of the tasks. Locked for the length of a turn, never across an await.
    pub buffers: Mutex<Buffers>,
    pub names: Arc<Names>,
    pub own_uid: u32,
    pub started_at: Timestamp,
    /// Whether the process's memory is locked, for the status.
    pub memory: String,
    /// The open connections.
    pub connections: TaskTracker,
    pub connections_max: usize,
    /// The most open connections and requests to providers since memory was given back.
    pub most_open: AtomicUsize,
    /// Asks the connections to finish what is in flight.
    pub stop: CancellationToken,
    /// Limits the log lines about header sets whose secrets cannot be read. Never locked across an await.
    pub header_failures: Mutex<LogThrottle>,
    /// When the last reload failed, if it did. Nothing subscribes: the sender only stores the value.
    pub reload_failed_at: watch::Sender<Option<Timestamp>>,
}

impl ServerState {
    /// Waits until the daemon has been stopping for 12 seconds. Requests that still wait then get an error.
    pub async fn end_of_waits(&self) {
        self.stop.cancelled().await;
        sleep(WAITS_END_AFTER).await;
    }

    /// The state of a daemon that starts now.
    pub fn new(registry: Registry, credential_factory: CredentialFactory, clock: Clock) -> Self {
        Self {
            store: Arc::clone(&credential_factory.store),
            registry: watch::Sender::new(Arc::new(registry)),
            credential_factory: Mutex::new(credential_factory),
            started_at: clock.timestamp(clock.now()),
            allowances: Allowances::new(Quota::default()),
            clock,
            audit: Audit::default(),
            fair_queue: Arc::default(),
            reading_groups: tokio::sync::Mutex::default(),
            buffers: Mutex::default(),
            names: Arc::new(Names::of_the_host()),
            own_uid: nix::unistd::geteuid().as_raw(),
            memory: "not locked".to_owned(),
            connections: TaskTracker::new(),
            connections_max: usize::MAX,
            most_open: AtomicUsize::new(0),
            stop: CancellationToken::new(),
            header_failures: Mutex::default(),
            reload_failed_at: watch::Sender::new(None),
        }
    }
}
