//! The daemon as a library, on a runtime of its own within the test's process: for tests that are about what
//! it does and not about being a process.

use std::path::{Path, PathBuf};

use tokend::Daemon;
use tokend::clock::{Clock, ClockChanges};
use tokend::config::{self, Config, Source};
use tokend::store::Store;
use tokio::net::UnixListener;
use tokio::runtime::Runtime;

use crate::{RawPeer, TestDir, Tokenctl};

/// More connections than any test opens.
const MOST_CONNECTIONS: usize = 4096;

/// A daemon in this process. It stops when it is dropped.
#[derive(Debug)]
pub struct InProcess {
    daemon: Option<Daemon>,
    runtime: Runtime,
    socket: PathBuf,
    config: PathBuf,
}

impl InProcess {
    /// Starts the daemon of a [`TestDir`].
    ///
    /// # Panics
    /// When its configuration has a fault.
    pub fn start(home: &TestDir) -> Self {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let config = load(&home.config());
        let listening = runtime.enter();
        let listener = UnixListener::bind(home.socket()).expect("the socket can be bound");
        drop(listening);
        let store = Store::forgetful(Clock::kernel(ClockChanges::default()));
        let daemon =
            runtime.block_on(Daemon::start(config, listener.into(), MOST_CONNECTIONS, store, String::new()));
        let daemon = daemon.expect("the kernel has randomness");
        Self { daemon: Some(daemon), runtime, socket: home.socket(), config: home.config() }
    }

    /// Takes the configuration over as it is now.
    ///
    /// # Panics
    /// When it has a fault.
    pub fn reload(&self) {
        let config = load(&self.config);
        self.runtime.block_on(self.daemon().reload(config));
    }

    /// The daemon itself.
    pub fn daemon(&self) -> &Daemon {
        self.daemon.as_ref().expect("it is there until it is dropped")
    }

    /// Its socket.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// `tokenctl` for its socket.
    pub fn tokenctl(&self) -> Tokenctl {
        Tokenctl::new(&self.socket)
    }

    /// A connection to it.
    pub fn peer(&self) -> RawPeer {
        RawPeer::connect(&self.socket).expect("the daemon takes connections")
    }
}

impl Drop for InProcess {
    fn drop(&mut self) {
        if let Some(daemon) = self.daemon.take() {
            self.runtime.block_on(daemon.stop());
        }
    }
}

fn load(path: &Path) -> Config {
    let source = Source { path: path.to_owned(), egress_dir: None };
    config::load(&source, tokend::peer::abilities()).unwrap_or_else(|faults| panic!("{faults:#?}")).config
}
