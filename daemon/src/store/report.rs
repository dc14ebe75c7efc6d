//! The condition of the store for people: in the log when it changes, and in the status while it lasts.

use std::sync::{Mutex, MutexGuard, PoisonError};

use super::folder::Folder;

/// What there is to report.
#[derive(Debug, Default)]
pub(super) struct Report(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    /// Whether the service manager keeps the memory for certain, if there is one. Before release 254 systemd does not
    /// say so.
    is_kept: Option<bool>,
    restored: usize,
    /// Why memory is not written.
    memory: Option<String>,
    /// Why files are not written.
    files: Option<String>,
}

impl Report {
    pub(super) fn kept_by_manager(&self, is_proved: bool) {
        self.lock().is_kept = Some(is_proved);
    }

    pub(super) fn restored(&self) {
        self.lock().restored += 1;
    }

    /// Notes how writing memory went.
    pub(super) fn memory(&self, written: std::io::Result<()>) {
        let fault = written.err().map(|error| format!("writing memory: {error}"));
        note(&mut self.lock().memory, fault, "restart");
    }

    /// Notes how writing files went. All is well again only when no file is left that failed.
    pub(super) fn files(&self, written: Result<(), String>) {
        note(&mut self.lock().files, written.err(), "reboot");
    }

    /// Names and values for people, in order of the names.
    pub(super) fn facts(&self, folder: Option<&Folder>) -> Vec<(&'static str, String)> {
        let state = self.lock();
        let keeper = match state.is_kept {
            None => "no service manager keeps the tokens",
            Some(true) => "the service manager keeps the tokens",
            Some(false) => {
                "the service manager was asked to keep the tokens (FileDescriptorStoreMax= must allow it)"
            }
        };
        let not_kept = |fault: &String| format!("tokens are not kept: {fault}");
        let damaged = folder.map(Folder::damaged).filter(|damaged| *damaged > 0);
        let damaged = damaged
            .map(|damaged| format!("{damaged} found since the start and not used; the log names each"));
        let sealed = folder.map(|folder| format!("tokens are sealed in {}", folder.path().display()));
        let facts = [
            ("damaged-files", damaged),
            ("hot-restart", Some(state.memory.as_ref().map_or(keeper.to_owned(), not_kept))),
            ("reboot", state.files.as_ref().map(not_kept).or(sealed)),
            ("restored", Some(format!("{} valid at the start", state.restored))),
        ];
        facts.into_iter().filter_map(|(name, value)| Some((name, value?))).collect()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Logs the first fault and its end: one write after the other fails for the same reason.
fn note(known: &mut Option<String>, fault: Option<String>, end: &str) {
    match (&known, &fault) {
        (None, Some(fault)) => tracing::error!("a {end} would lose tokens: {fault}"),
        (Some(_), None) => tracing::info!("tokens are kept for a {end} again"),
        _ => (),
    }
    *known = fault;
}
