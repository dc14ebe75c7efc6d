//! The end of the commands that run until they are stopped.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::flag;

/// The end of the program at a signal, with status 0. As process 1 of a container, the program would ignore the signals
/// otherwise.
pub(crate) struct Ending {
    /// Whether a signal ends the program at once.
    at_once: Arc<AtomicBool>,
    asked: Arc<AtomicBool>,
}

impl Ending {
    pub(crate) fn at_signals() -> io::Result<Self> {
        let ending = Self { at_once: Arc::new(AtomicBool::new(true)), asked: Arc::default() };
        for signal in [SIGTERM, SIGINT] {
            flag::register_conditional_shutdown(signal, 0, Arc::clone(&ending.at_once))?;
            flag::register(signal, Arc::clone(&ending.asked))?;
        }
        Ok(ending)
    }

    /// Does something that no signal interrupts. Returns whether the program goes on after it.
    pub(crate) fn after<E>(&self, work: impl FnOnce() -> Result<(), E>) -> Result<bool, E> {
        self.at_once.store(false, Ordering::SeqCst);
        let done = work();
        self.at_once.store(true, Ordering::SeqCst);
        done.map(|()| !self.asked.load(Ordering::SeqCst))
    }
}
