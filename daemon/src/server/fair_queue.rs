//! Lets users have their turns, one after the other, however many connections each of them has.
//!
//! Work is done in rounds. In each, a user's connections share one small allowance; what goes beyond it waits for
//! the next round. Between two rounds the kernel is asked who else has something to say. So whoever asks seldom is
//! served within a round, and a round is as long as the number of users who want more than they can have.
//!
//! A turn is held for work that is at hand, and never across a wait.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::{Notify, oneshot};

/// What one user may do in a round, in units of work: a unit is about what it takes to answer a request from what
/// is held. Small, because everybody else waits so long.
const ALLOWANCE: u32 = 12;

/// What it takes to turn to a connection: to wake it up, and to read and write once.
const OPENING: u32 = 4;

/// Users of whom it is remembered what they have done. With more, a round ends.
const USERS_MAX: usize = 1024;

/// The turns of all users.
#[derive(Debug, Default)]
pub struct FairQueue {
    /// Held for a look or a change, never across an await.
    round: Mutex<Round>,
    exhausted: Notify,
}

/// A turn of a user, until it is dropped.
#[derive(Debug)]
pub struct Turn<'a> {
    turns: &'a FairQueue,
    uid: u32,
}

#[derive(Debug, Default)]
struct Round {
    /// What each user has done in this round.
    done: HashMap<u32, u32>,
    /// Who waits, by user, in the order in which they came. No queue is empty.
    queues: HashMap<u32, VecDeque<oneshot::Sender<()>>>,
}

impl FairQueue {
    /// Waits for a turn of this user. Who stops waiting loses nothing but the place.
    pub async fn take(&self, uid: u32) -> Turn<'_> {
        let wait = self.round().enter(uid);
        if let Some(turn) = wait {
            self.exhausted.notify_one();
            // The other end is dropped only with all of this.
            let _ = turn.await;
        }
        Turn { turns: self, uid }
    }

    /// Begins a round whenever somebody waits for one. Never returns.
    pub async fn keep(&self) {
        loop {
            self.exhausted.notified().await;
            while self.round().is_waited_for() {
                // The scheduler looks for what is new on all connections before it comes back.
                tokio::task::yield_now().await;
                self.round().begin();
            }
        }
    }

    fn round(&self) -> MutexGuard<'_, Round> {
        self.round.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Turn<'_> {
    /// Counts so many units of work, and tells whether there is room for more.
    pub fn spend(&self, units: u32) -> bool {
        let mut round = self.turns.round();
        let done = round.done.entry(self.uid).or_default();
        *done = done.saturating_add(units);
        *done < ALLOWANCE
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.turns.round().pass_on(self.uid);
    }
}

impl Round {
    /// Begins a turn, or gives what to wait for.
    fn enter(&mut self, uid: u32) -> Option<oneshot::Receiver<()>> {
        if self.done.len() >= USERS_MAX {
            self.done.clear();
        }
        if !self.queues.contains_key(&uid) && self.open(uid) {
            return None;
        }
        let (turn, wait) = oneshot::channel();
        self.queues.entry(uid).or_default().push_back(turn);
        Some(wait)
    }

    /// FairQueue to a connection of the user, if there is room.
    fn open(&mut self, uid: u32) -> bool {
        let done = self.done.entry(uid).or_default();
        let has_room = *done == 0 || *done + OPENING < ALLOWANCE;
        if has_room {
            *done += OPENING;
        }
        has_room
    }

    /// Gives what room there is to the next of the user's who waits.
    fn pass_on(&mut self, uid: u32) {
        if !self.queues.contains_key(&uid) || !self.open(uid) {
            return;
        }
        let Entry::Occupied(mut queue) = self.queues.entry(uid) else { return };
        // Those who wait no longer are passed over.
        while let Some(next) = queue.get_mut().pop_front() {
            if next.send(()).is_ok() {
                break;
            }
        }
        if queue.get().is_empty() {
            queue.remove();
        }
    }

    fn begin(&mut self) {
        self.done.clear();
        let users: Vec<u32> = self.queues.keys().copied().collect();
        for uid in users {
            self.pass_on(uid);
        }
    }

    fn is_waited_for(&self) -> bool {
        !self.queues.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::rc::Rc;
    use std::sync::Arc;

    use futures_util::FutureExt;
    use tokio::task::{LocalSet, spawn_local, yield_now};

    use super::*;

    const CROWD: u32 = 1;
    const OTHER: u32 = 2;

    /// FairQueue that a crowd of one user's connections takes as fast as it can, and how many units it has done.
    fn crowded(connections: usize) -> (Arc<FairQueue>, Rc<Cell<u32>>) {
        let (turns, done) = (Arc::new(FairQueue::default()), Rc::new(Cell::new(0)));
        let keeper = Arc::clone(&turns);
        spawn_local(async move { keeper.keep().await });
        for _ in 0..connections {
            let (turns, done) = (Arc::clone(&turns), Rc::clone(&done));
            spawn_local(async move {
                loop {
                    let turn = turns.take(CROWD).await;
                    done.set(done.get() + 1);
                    while turn.spend(1) {
                        done.set(done.get() + 1);
                    }
                    drop(turn);
                    // As one does that finds more to read at once.
                    yield_now().await;
                }
            });
        }
        (turns, done)
    }

    #[tokio::test(flavor = "current_thread")]
    async fn however_many_connections_a_user_has_another_waits_for_a_round_at_most() {
        for connections in [1, 64, 1000] {
            let others_turns = async {
                let (turns, done) = crowded(connections);
                for _ in 0..3 * connections {
                    yield_now().await;
                }
                for _ in 0..100 {
                    let before = done.get();
                    assert!(before > 0, "the crowd is at work");
                    turns.take(OTHER).await.spend(1);
                    let meanwhile = done.get() - before;
                    assert!(
                        meanwhile <= ALLOWANCE,
                        "{connections}: {meanwhile} units of the crowd's came before"
                    );
                    yield_now().await;
                }
            };
            LocalSet::new().run_until(others_turns).await;
        }
    }

    #[tokio::test(flavor = "current_thread")]
    async fn a_crowd_does_no_more_in_a_round_than_one() {
        let in_rounds = |connections| async move {
            let (_turns, done) = crowded(connections);
            for _ in 0..1000 {
                yield_now().await;
            }
            done.get()
        };
        let alone = LocalSet::new().run_until(in_rounds(1)).await;
        let crowd = LocalSet::new().run_until(in_rounds(1000)).await;
        assert!(crowd <= 2 * alone, "{crowd} units for 1000 connections, {alone} for one");
    }

    #[test]
    fn what_goes_beyond_the_allowance_waits_for_the_next_round_in_order() {
        let turns = FairQueue::default();
        let turn = turns.take(CROWD).now_or_never().expect("there is room");
        while turn.spend(1) {}
        drop(turn);
        let mut first = Box::pin(turns.take(CROWD));
        let mut dropped = Box::pin(turns.take(CROWD));
        let mut second = Box::pin(turns.take(CROWD));
        for wait in [&mut first, &mut dropped, &mut second] {
            assert!(wait.now_or_never().is_none());
        }
        drop(dropped);
        assert!(turns.take(OTHER).now_or_never().is_some(), "another user has an allowance of its own");
        turns.round().begin();
        assert!((&mut second).now_or_never().is_none(), "who came first goes first");
        let turn = first.now_or_never().expect("its turn has come");
        while turn.spend(1) {}
        drop(turn);
        assert!((&mut second).now_or_never().is_none(), "nothing is left in this round");
        turns.round().begin();
        assert!(second.now_or_never().is_some(), "who left is passed over");
        assert!(!turns.round().is_waited_for());
    }

    #[test]
    fn what_a_connection_leaves_is_the_next_one_s() {
        let turns = FairQueue::default();
        let (a, b) = (turns.take(CROWD).now_or_never().unwrap(), turns.take(CROWD).now_or_never().unwrap());
        let mut first = Box::pin(turns.take(CROWD));
        let mut second = Box::pin(turns.take(CROWD));
        assert!((&mut first).now_or_never().is_none() && (&mut second).now_or_never().is_none());
        drop((a, b));
        turns.round().begin();
        let turn = first.now_or_never().expect("its turn has come");
        let mut newcomer = Box::pin(turns.take(CROWD));
        assert!((&mut newcomer).now_or_never().is_none(), "others have waited for longer");
        drop(turn);
        assert!(second.now_or_never().is_some(), "there is room in the same round");
    }

    #[test]
    fn memory_is_bounded() {
        let turns = FairQueue::default();
        for uid in 0..100_000 {
            turns.take(uid).now_or_never().expect("each has an allowance").spend(1);
        }
        assert!(turns.round().done.len() <= USERS_MAX);
    }
}
