//! Shares the server's threads among users, however many connections each of them has.
//!
//! The connections of one user take turns. All connections of a user share one allowance per round. When it is used up, all
//! other users are served before the next round begins. So a user with few requests waits for at most one allowance of each
//! busy user. Work that costs more than is left of the allowance is done, and the user pays for it with its next rounds.
//!
//! The event loop serves the users in its [`ReadyList`]. A task waits for [`UserQueue::turn`], and for nothing else meanwhile:
//! the task of a connection, or of a long answer. It never holds its turn across a wait. A future that is polled only now
//! and then could get the turn while nobody polls it, and block the user's other tasks.

use std::collections::{HashMap, VecDeque};
use std::ops::Deref;
use std::os::fd::RawFd;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use tokio::sync::MutexGuard;
use tokio::task::yield_now;

/// The work of one user in a round, in units: one unit is about the work for one `get` of a token that is held.
const ALLOWANCE: u32 = 12;

/// The allowance of the only user who is connected. It bounds how long a new connection waits.
const ALLOWANCE_ALONE: u32 = 384;

/// The units that each turn costs: to wake the task of the connection, to read and to write.
const TURN_UNITS: u32 = 4;

/// The rounds, and the users who are connected.
#[derive(Debug, Default)]
pub struct FairQueue {
    round: AtomicU64,
    /// Whether the event loop is in a round. Only it begins the next one then.
    is_loop_busy: AtomicBool,
    users_connected: AtomicUsize,
    users: Mutex<HashMap<u32, Weak<UserQueue>>>,
}

/// The turns of one user, shared by all its connections and tasks.
#[derive(Debug)]
pub struct UserQueue {
    fair_queue: Arc<FairQueue>,
    connections: AtomicUsize,
    /// Locked for the length of a task's turn. Waiting tasks are served in the order in which they came.
    turn: tokio::sync::Mutex<()>,
    /// Never held across an await.
    account: Mutex<Account>,
}

/// A connection of a user, which counts as connected for as long as it has one.
#[derive(Debug)]
pub struct Joined(Arc<UserQueue>);

/// The users with connections that the event loop has to serve.
#[derive(Debug)]
pub struct ReadyList {
    fair_queue: Arc<FairQueue>,
    /// Users who may have room in this round.
    users: VecDeque<Arc<UserQueue>>,
    /// Users who have none.
    waiting: VecDeque<Arc<UserQueue>>,
}

#[derive(Debug, Default)]
struct Account {
    /// The current round, as far as this user has seen.
    round: u64,
    /// The units that were spent in it, or are unpaid from those before.
    units: u32,
    /// The connections that the event loop has to serve, by their descriptors.
    ready: VecDeque<RawFd>,
}

impl FairQueue {
    /// Adds a connection of this user.
    pub fn join(self: &Arc<Self>, uid: u32) -> Joined {
        let user = self.of(uid);
        if user.connections.fetch_add(1, Ordering::Relaxed) == 0 {
            self.users_connected.fetch_add(1, Ordering::Relaxed);
        }
        Joined(user)
    }

    /// The turns of this user.
    pub fn of(self: &Arc<Self>, uid: u32) -> Arc<UserQueue> {
        let mut users = self.users.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(user) = users.get(&uid).and_then(Weak::upgrade) {
            return user;
        }
        // Users who have left are forgotten now and then.
        if users.len() == users.capacity() {
            users.retain(|_, user| user.strong_count() > 0);
        }
        let (connections, turn, account) = (0.into(), tokio::sync::Mutex::default(), Mutex::default());
        let user = Arc::new(UserQueue { fair_queue: Arc::clone(self), connections, turn, account });
        users.insert(uid, Arc::downgrade(&user));
        user
    }
}

impl ReadyList {
    pub fn new(fair_queue: &Arc<FairQueue>) -> Self {
        Self { fair_queue: Arc::clone(fair_queue), users: VecDeque::new(), waiting: VecDeque::new() }
    }

    /// Adds a connection of this user.
    pub fn push(&mut self, user: &Arc<UserQueue>, descriptor: RawFd) {
        let mut account = user.account();
        if account.ready.is_empty() {
            self.fair_queue.is_loop_busy.store(true, Ordering::Relaxed);
            self.users.push_back(Arc::clone(user));
        }
        account.ready.push_back(descriptor);
    }

    /// Takes the next connection of a user who has room in this round, and begins a turn of this user.
    pub fn take_next(&mut self) -> Option<RawFd> {
        while let Some(user) = self.users.front() {
            let (mut account, allowance) = user.in_this_round();
            if account.units < allowance {
                account.units = account.units.saturating_add(TURN_UNITS);
                let next = account.ready.pop_front();
                let is_last = account.ready.is_empty();
                drop(account);
                if is_last {
                    self.users.pop_front();
                }
                return next;
            }
            drop(account);
            self.waiting.extend(self.users.pop_front());
        }
        None
    }

    /// Begins the next round, if somebody waits for it.
    pub fn end_round(&mut self) {
        if self.waiting.is_empty() {
            self.fair_queue.is_loop_busy.store(false, Ordering::Relaxed);
        } else {
            self.fair_queue.round.fetch_add(1, Ordering::Relaxed);
            std::mem::swap(&mut self.users, &mut self.waiting);
        }
    }

    pub fn is_empty(&self) -> bool {
        self.users.is_empty() && self.waiting.is_empty()
    }
}

impl Drop for ReadyList {
    /// Otherwise tasks would wait for the next round of a loop that has ended.
    fn drop(&mut self) {
        self.fair_queue.is_loop_busy.store(false, Ordering::Relaxed);
    }
}

impl Deref for Joined {
    type Target = Arc<UserQueue>;

    fn deref(&self) -> &Self::Target {
        &self.0
    }
}

impl Drop for Joined {
    fn drop(&mut self) {
        if self.connections.fetch_sub(1, Ordering::Relaxed) == 1 {
            self.fair_queue.users_connected.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

impl UserQueue {
    /// Waits for a turn, which ends when it is dropped. Only a task of its own calls this, outside a turn.
    pub async fn turn(&self) -> MutexGuard<'_, ()> {
        let turn = self.turn.lock().await;
        let current = &self.fair_queue.round;
        // Most turns begin with room.
        if self.spend(TURN_UNITS) {
            return turn;
        }
        while !self.spend(0) {
            let round = current.load(Ordering::Relaxed);
            yield_now().await;
            // Of all that wait for the next round, the first begins it. While the event loop has a round, it goes on to the next
            // one itself: otherwise its users would have a new allowance before the others had a turn.
            if !self.fair_queue.is_loop_busy.load(Ordering::Relaxed) {
                let _ = current.compare_exchange(round, round + 1, Ordering::Relaxed, Ordering::Relaxed);
            }
        }
        turn
    }

    /// Inside a turn: counts units of work in the current round, and returns whether there is room for more.
    pub fn spend(&self, units: u32) -> bool {
        let (mut account, allowance) = self.in_this_round();
        account.units = account.units.saturating_add(units);
        account.units < allowance
    }

    /// The account of the current round, and the allowance.
    fn in_this_round(&self) -> (std::sync::MutexGuard<'_, Account>, u32) {
        let round = self.fair_queue.round.load(Ordering::Relaxed);
        let is_alone = self.fair_queue.users_connected.load(Ordering::Relaxed) <= 1;
        let allowance = if is_alone { ALLOWANCE_ALONE } else { ALLOWANCE };
        let mut account = self.account();
        // Two threads look at the round, and the other one may have seen a later one.
        let passed = u32::try_from(round.saturating_sub(account.round)).unwrap_or(u32::MAX);
        account.units = account.units.saturating_sub(allowance.saturating_mul(passed));
        account.round = account.round.max(round);
        (account, allowance)
    }

    fn account(&self) -> std::sync::MutexGuard<'_, Account> {
        self.account.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::rc::Rc;

    use futures_util::FutureExt;
    use tokio::task::{LocalSet, spawn_local};

    use super::*;

    const CROWD: u32 = 1;
    const OTHER: u32 = 2;

    /// Starts connections of one user that take turns as fast as they can. Returns the units that they have spent.
    fn crowd(queue: &Arc<FairQueue>, connections: usize) -> Rc<Cell<u32>> {
        let done = Rc::new(Cell::new(0));
        for _ in 0..connections {
            let (member, done) = (queue.join(CROWD), Rc::clone(&done));
            spawn_local(async move {
                loop {
                    let _turn = member.turn().await;
                    done.set(done.get() + 1);
                    while member.spend(1) {
                        done.set(done.get() + 1);
                    }
                }
            });
        }
        done
    }

    #[test]
    fn a_user_has_its_turn_in_the_event_loop_after_one_allowance_of_another() {
        let queue = Arc::new(FairQueue::default());
        let (crowd, other) = (queue.join(CROWD), queue.join(OTHER));
        let mut ready = ReadyList::new(&queue);
        (0..1000).for_each(|descriptor| ready.push(&crowd, descriptor));
        let mut turns_of_crowd = 0;
        for _ in 0..10 {
            let mut turns = 0;
            ready.push(&other, 1000);
            loop {
                match ready.take_next() {
                    Some(1000) => break,
                    Some(_) => {
                        crowd.spend(1);
                        turns += 1;
                    }
                    None => ready.end_round(),
                }
            }
            assert!(turns * (TURN_UNITS + 1) <= 2 * ALLOWANCE, "{turns} turns of the crowd");
            turns_of_crowd += turns;
        }
        assert!(turns_of_crowd >= 10, "the crowd is served too");
        let rest = std::iter::from_fn(|| {
            (0..3).find_map(|_| {
                let next = ready.take_next();
                if next.is_none() {
                    ready.end_round();
                }
                next
            })
        });
        assert_eq!(u32::try_from(rest.count()).unwrap(), 1000 - turns_of_crowd, "nobody is forgotten");
        assert!(ready.is_empty());
    }

    #[test]
    fn a_task_that_pays_for_many_rounds_gives_no_user_more_of_the_event_loop() {
        let queue = Arc::new(FairQueue::default());
        let [crowd, other, debtor] = [CROWD, OTHER, 3].map(|uid| queue.join(uid));
        let mut ready = ReadyList::new(&queue);
        debtor.spend(100 * ALLOWANCE);
        let mut turn = Box::pin(debtor.turn());
        (0..1000).for_each(|descriptor| ready.push(&crowd, descriptor));
        ready.push(&other, 1000);
        let mut turns = 0;
        while ready.take_next() != Some(1000) {
            crowd.spend(1);
            turns += 1;
            assert!((0..10).all(|_| (&mut turn).now_or_never().is_none()));
        }
        assert!(turns * (TURN_UNITS + 1) <= 2 * ALLOWANCE, "{turns} turns of the crowd");
        drop(ready);
        assert!((0..1000).any(|_| (&mut turn).now_or_never().is_some()), "the loop has ended");
    }

    #[tokio::test(flavor = "current_thread")]
    async fn a_user_waits_for_one_allowance_however_many_connections_another_has() {
        for connections in [1, 64, 1000] {
            let others_turns = async {
                let queue = Arc::new(FairQueue::default());
                let other = queue.join(OTHER);
                let done = crowd(&queue, connections);
                yield_now().await;
                for _ in 0..100 {
                    let before = done.get();
                    assert!(before > 0, "the crowd is at work");
                    drop(other.turn().await);
                    other.spend(1);
                    let meanwhile = done.get() - before;
                    assert!(meanwhile <= 2 * ALLOWANCE, "{connections}: {meanwhile} units of the crowd");
                    yield_now().await;
                }
            };
            LocalSet::new().run_until(others_turns).await;
        }
    }

    #[tokio::test(flavor = "current_thread")]
    async fn many_connections_do_no_more_in_a_round_than_one() {
        let in_rounds = |connections| async move {
            let queue = Arc::new(FairQueue::default());
            let _other = queue.join(OTHER);
            let done = crowd(&queue, connections);
            let round = || queue.round.load(Ordering::Relaxed);
            while round() < 100 {
                yield_now().await;
            }
            done.get()
        };
        let alone = LocalSet::new().run_until(in_rounds(1)).await;
        let crowd = LocalSet::new().run_until(in_rounds(1000)).await;
        assert!(crowd <= 2 * alone, "{crowd} units of 1000 connections, {alone} of one");
    }

    #[test]
    fn connections_of_a_user_take_turns_in_order() {
        let queue = Arc::new(FairQueue::default());
        let members = [(); 4].map(|()| queue.join(CROWD));
        let held = members[0].turn().now_or_never().expect("it is free");
        let mut first = Box::pin(members[1].turn());
        let mut dropped = Box::pin(members[2].turn());
        let mut second = Box::pin(members[3].turn());
        for wait in [&mut first, &mut dropped, &mut second] {
            assert!(wait.now_or_never().is_none());
        }
        drop(dropped);
        assert!(queue.join(OTHER).turn().now_or_never().is_some(), "another user has turns of its own");
        drop(held);
        assert!((&mut second).now_or_never().is_none(), "the first to come is the first to go");
        drop(first.now_or_never().expect("its turn has come"));
        assert!(second.now_or_never().is_some(), "a connection that has left is passed over");
    }

    #[test]
    fn an_allowance_is_larger_while_nobody_else_is_connected() {
        let queue = Arc::new(FairQueue::default());
        let alone = queue.join(CROWD);
        let spend_all = || {
            let _turn = alone.turn().now_or_never().expect("it is free");
            (1..10_000).find(|_| !alone.spend(1)).unwrap()
        };
        assert_eq!(spend_all(), ALLOWANCE_ALONE - TURN_UNITS);
        let other = queue.join(OTHER);
        assert!(alone.turn().now_or_never().is_none(), "the others come first");
        drop(other);
        assert_eq!(queue.users_connected.load(Ordering::Relaxed), 1);
    }

    #[tokio::test(flavor = "current_thread")]
    async fn a_user_pays_for_expensive_work_with_its_next_rounds() {
        const ROUNDS: u32 = 20;
        let shares = async {
            let queue = Arc::new(FairQueue::default());
            let expensive = queue.join(OTHER);
            let done = crowd(&queue, 1);
            yield_now().await;
            drop(expensive.turn().await);
            expensive.spend(ROUNDS * ALLOWANCE);
            let before = done.get();
            drop(expensive.turn().await);
            done.get() - before
        };
        let meanwhile = LocalSet::new().run_until(shares).await;
        assert!(meanwhile >= ROUNDS * (ALLOWANCE - TURN_UNITS), "{meanwhile} units of the other user");
    }

    #[test]
    fn memory_is_bounded() {
        let queue = Arc::new(FairQueue::default());
        for uid in 0..100_000 {
            let user = queue.join(uid);
            drop(user.turn().now_or_never().expect("each has an allowance"));
            user.spend(1);
        }
        assert!(queue.users.lock().unwrap().len() < 10);
    }
}
