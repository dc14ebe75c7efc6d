//! The sessions of the processes that are connected, or were a moment ago. A process that connects again is recognized without
//! a new pidfd, and its connections share a session.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::time::Instant;

use super::ServerState;
use super::session::Session;
use crate::access::Facts;

/// For how long new connections join a session.
const JOINED_FOR: Duration = Duration::from_secs(10);

/// How many sessions new connections can join.
const RECENT_MAX: usize = 16;

/// The sessions of one event loop.
#[derive(Debug, Default)]
pub struct Sessions {
    by_pid: HashMap<i32, Known>,
    /// The sessions that new connections join, and until when. The newest is the first. They are kept when their last connection
    /// has closed.
    recent: VecDeque<(Instant, Arc<Session>)>,
}

#[derive(Debug)]
struct Known {
    session: Weak<Session>,
    /// How many connections had been accepted when it was made.
    accepted: u64,
}

/// A session of the process that has connected.
#[derive(Debug)]
pub struct Found {
    pub session: Arc<Session>,
    is_recent: bool,
}

impl Sessions {
    /// Finds the last session of the process that connected, as `user` describes it. So many connections had been
    /// accepted before this one.
    ///
    /// A process id alone proves nothing: it may have belonged to another process before. But connections are accepted in the
    /// order in which they were made. So if this one was accepted after the session was made, it was made after a connection
    /// of the known process; and if that process is still alive, the id has been its own ever since.
    pub fn find(&self, user: &Facts, accepted_before: u64) -> Option<Found> {
        let known = self.by_pid.get(&user.pid?).filter(|known| known.accepted <= accepted_before)?;
        let session = known.session.upgrade()?;
        let caller = session.peer.caller();
        let is_same = (caller.uid, caller.gid) == (user.uid, user.gid)
            && session.peer.process().is_some_and(|process| process.is_alive());
        let is_recent = self.recent.iter().any(|(_, recent)| Arc::ptr_eq(recent, &session));
        is_same.then_some(Found { session, is_recent })
    }

    /// Adds the session of a connection that is identified after so many have been accepted.
    pub fn add(&mut self, session: &Arc<Session>, accepted: u64) {
        let Some(pid) = session.peer.caller().pid.filter(|_| session.peer.process().is_some()) else {
            return;
        };
        let known = Known { session: Arc::downgrade(session), accepted };
        if self.by_pid.get(&pid).is_some_and(|before| before.session.ptr_eq(&known.session)) {
            return;
        }
        if self.by_pid.len() == self.by_pid.capacity() {
            self.by_pid.retain(|_, known| known.session.strong_count() > 0);
        }
        self.by_pid.insert(pid, known);
        self.recent.truncate(RECENT_MAX - 1);
        self.recent.push_front((Instant::now() + JOINED_FOR, Arc::clone(session)));
    }

    /// When the next session ends to be joined.
    pub fn due(&self) -> Option<Instant> {
        self.recent.back().map(|(due, _)| *due)
    }

    /// Ends what is due.
    pub fn pass_time(&mut self, now: Instant) {
        while self.due().is_some_and(|due| due <= now) {
            self.recent.pop_back();
        }
        if self.recent.is_empty() {
            self.by_pid.retain(|_, known| known.session.strong_count() > 0);
            self.by_pid.shrink_to_fit();
        }
    }
}

impl Found {
    /// The session, if a new connection with these facts joins it. Where decisions are about the process, none does: it may run
    /// another program by now.
    pub fn joined(self, facts: &Facts, shared: &ServerState) -> Option<Arc<Session>> {
        let is_joined = self.is_recent
            && self.session.peer.caller() == facts
            && !self.session.peer.has_named_facts()
            && !shared.registry.borrow().has_rules_about_processes;
        is_joined.then_some(self.session)
    }
}

#[cfg(test)]
mod tests {
    use std::process::{Child, Command, Stdio};

    use super::*;
    use crate::peer::Peer;
    use crate::quota::Quota;
    use crate::server::accept::tests::scene;

    struct Scene {
        shared: Arc<ServerState>,
        sessions: Sessions,
        process: Child,
        _folder: tempfile::TempDir,
    }

    impl Scene {
        fn new() -> Self {
            let (_, shared, _, folder) = scene(Quota::default());
            let process = Command::new("cat").stdin(Stdio::piped()).spawn().unwrap();
            Self { shared, sessions: Sessions::default(), process, _folder: folder }
        }

        /// Looks for the session of the process when it connects again.
        fn found(&self, accepted_before: u64) -> Option<Found> {
            let user = Peer::of_process(self.process.id()).caller().clone();
            self.sessions.find(&user, accepted_before)
        }

        /// A session of the process whose connection was the last of so many.
        fn add(&mut self, accepted: u64) -> Arc<Session> {
            let session =
                Arc::new(Session::new(Arc::clone(&self.shared), Peer::of_process(self.process.id())));
            self.sessions.add(&session, accepted);
            session
        }

        /// The session that a later connection joins.
        fn joined(&self, facts: &Facts) -> Option<Arc<Session>> {
            self.found(99)?.joined(facts, &self.shared)
        }
    }

    impl Drop for Scene {
        fn drop(&mut self) {
            let _ = self.process.kill();
            let _ = self.process.wait();
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_with_the_same_user_and_groups_joins_the_session_of_its_process_for_ten_seconds() {
        let mut scene = Scene::new();
        let session = scene.add(1);
        let facts = session.peer.caller().clone();
        assert!(Arc::ptr_eq(&scene.joined(&facts).unwrap(), &session));
        for others in [
            Facts { uid: facts.uid + 1, ..facts.clone() },
            Facts { gid: facts.gid + 1, ..facts.clone() },
            Facts { groups: vec![61_001].into(), ..facts.clone() },
        ] {
            assert!(scene.joined(&others).is_none());
        }
        tokio::time::advance(JOINED_FOR).await;
        scene.sessions.pass_time(Instant::now());
        assert!(scene.joined(&facts).is_none());
        assert!(scene.found(99).is_some(), "the process is still known");
        drop(session);
        assert!(scene.found(99).is_none(), "no connection is left");
    }

    #[tokio::test]
    async fn a_session_is_kept_for_the_next_connection_of_its_process() {
        let mut scene = Scene::new();
        let facts = scene.add(1).peer.caller().clone();
        assert!(scene.joined(&facts).is_some());
        assert!(scene.sessions.due().is_some());
    }

    #[tokio::test]
    async fn where_rules_are_about_processes_each_connection_has_a_session() {
        let mut scene = Scene::new();
        let facts = scene.add(1).peer.caller().clone();
        scene.shared.registry.send_modify(|registry| {
            Arc::get_mut(registry).unwrap().has_rules_about_processes = true;
        });
        assert!(scene.joined(&facts).is_none());
        assert!(scene.found(99).is_some(), "it is the same process nevertheless");
    }

    #[tokio::test]
    async fn what_a_decision_found_out_about_a_process_is_not_shared_with_later_connections() {
        let mut scene = Scene::new();
        let session = scene.add(1);
        session.peer.description();
        assert!(scene.joined(session.peer.caller()).is_some(), "what the audit found out decides nothing");
        session.peer.facts();
        assert!(scene.joined(session.peer.caller()).is_none());
    }

    #[tokio::test]
    async fn a_number_is_no_proof_for_connections_from_before_and_for_a_process_that_has_ended() {
        let mut scene = Scene::new();
        let session = scene.add(5);
        let other_user = Facts { uid: 61_001, ..session.peer.caller().clone() };
        assert!(scene.sessions.find(&other_user, 99).is_none());
        // It was accepted before the process was known: another process may have had the number.
        assert!(scene.found(4).is_none());
        assert!(scene.found(5).is_some());
        scene.process.kill().unwrap();
        scene.process.wait().unwrap();
        let found = scene.sessions.find(session.peer.caller(), 5);
        assert!(found.is_none(), "the number may be another's now");
    }

    #[tokio::test]
    async fn memory_is_bounded() {
        let mut scene = Scene::new();
        for pid in 1..10_000 {
            let peer = Peer::of_process(scene.process.id())
                .of_same_process(Facts { pid: Some(pid), ..Facts::default() });
            let session = Arc::new(Session::new(Arc::clone(&scene.shared), peer));
            scene.sessions.add(&session, 1);
        }
        assert!(scene.sessions.by_pid.len() < 100 && scene.sessions.recent.len() <= RECENT_MAX);
    }
}
