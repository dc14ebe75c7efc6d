//! Looks at file systems for the sake of peers, on threads beside the runtime's: a few at a time, and one for each user.
//!
//! What a look costs is partly up to the callers: whoever may make control groups can make very many, and a path may
//! lead to what hangs. So whoever connects often waits for itself, and the others go in between.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::task::spawn_blocking;
use tokio::time::{Instant, timeout, timeout_at};

/// How long a look may take.
const PATIENCE: Duration = Duration::from_secs(2);

/// How long a peer waits until its look begins.
const WAIT_MAX: Duration = Duration::from_secs(10);

/// Users that are remembered whether they wait for anything or not.
const USERS_MIN: usize = 64;

/// Looks of one kind.
#[derive(Debug)]
pub(super) struct Lookups {
    places: Semaphore,
    /// The one turn of each user. Held for a look or a change, never across an await.
    users: Mutex<BTreeMap<u32, Weak<Semaphore>>>,
}

/// There is no answer in time, which says nothing about what it would have been.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IdentifyTimeout;

impl Lookups {
    /// So many at a time.
    pub(super) const fn new(places: usize) -> Self {
        Self { places: Semaphore::const_new(places), users: Mutex::new(BTreeMap::new()) }
    }

    /// What `look` finds, or what is `known` by the time that it is this peer's turn.
    ///
    /// # Errors
    /// It took too long, or its turn did not come.
    pub(super) async fn ask<T: Send + 'static>(
        &'static self,
        uid: u32,
        known: impl Fn() -> Option<T>,
        look: impl FnOnce() -> Option<T> + Send + 'static,
    ) -> Result<Option<T>, IdentifyTimeout> {
        let until = Instant::now() + WAIT_MAX;
        let turn =
            timeout_at(until, self.turns_of(uid).acquire_owned()).await.map_err(|_| IdentifyTimeout)?;
        // Another of the user's may have found it meanwhile.
        if let Some(known) = known() {
            return Ok(Some(known));
        }
        let place = timeout_at(until, self.places.acquire()).await.map_err(|_| IdentifyTimeout)?;
        // Turn and place are free again when the thread is, however long that takes.
        let answer = spawn_blocking(move || (look(), turn, place).0);
        timeout(PATIENCE, answer).await.map_err(|_| IdentifyTimeout)?.map_err(|_| IdentifyTimeout)
    }

    fn turns_of(&self, uid: u32) -> Arc<Semaphore> {
        let mut users = self.users.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(turns) = users.get(&uid).and_then(Weak::upgrade) {
            return turns;
        }
        if users.len() >= USERS_MIN {
            users.retain(|_, turns| turns.strong_count() > 0);
        }
        let turns = Arc::new(Semaphore::new(1));
        users.insert(uid, Arc::downgrade(&turns));
        turns
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Sender, channel};

    use futures_util::FutureExt;
    use tokio::task::yield_now;
    use tokio::time::{advance, pause};

    use super::*;

    const CROWD: u32 = 1;
    const OTHER: u32 = 2;

    fn lookups(places: usize) -> &'static Lookups {
        Box::leak(Box::new(Lookups::new(places)))
    }

    type Asked = std::pin::Pin<Box<dyn Future<Output = Result<Option<u32>, IdentifyTimeout>>>>;

    /// A look of a user that lasts until it is let go.
    fn hanging(lookups: &'static Lookups, uid: u32) -> (Asked, Sender<()>) {
        let (let_go, gate) = channel::<()>();
        let look = move || gate.recv().ok().map(|()| 7);
        (Box::pin(lookups.ask(uid, || None, look)), let_go)
    }

    #[tokio::test]
    async fn one_user_s_looks_take_one_place_and_leave_the_others_to_others() {
        let lookups = lookups(2);
        let mut crowd: Vec<_> = (0..100).map(|_| hanging(lookups, CROWD)).collect();
        for (asked, _) in &mut crowd {
            assert!(asked.now_or_never().is_none());
        }
        for _ in 0..3 {
            assert_eq!(lookups.ask(OTHER, || None, || Some(8)).await, Ok(Some(8)));
            assert!(crowd.iter_mut().all(|(asked, _)| asked.now_or_never().is_none()));
        }
        // Those of the crowd come one after the other.
        for (asked, let_go) in crowd {
            let_go.send(()).unwrap();
            assert_eq!(asked.await, Ok(Some(7)));
        }
    }

    #[tokio::test]
    async fn the_wait_for_a_place_is_no_part_of_the_time_for_the_look() {
        let lookups = lookups(1);
        pause();
        let (mut first, let_go) = hanging(lookups, CROWD);
        assert!((&mut first).now_or_never().is_none());
        let mut second = Box::pin(lookups.ask(OTHER, || None, || Some(8)));
        assert!((&mut second).now_or_never().is_none());
        advance(2 * PATIENCE).await;
        assert_eq!(first.await, Err(IdentifyTimeout), "the first has been looked for long enough");
        assert!((&mut second).now_or_never().is_none(), "what hangs has its place still");
        tokio::time::resume();
        let_go.send(()).unwrap();
        assert_eq!(second.await, Ok(Some(8)));
    }

    #[tokio::test]
    async fn whose_turn_does_not_come_is_told_so_and_not_that_there_is_nothing() {
        let lookups = lookups(1);
        pause();
        let (mut first, _let_go) = hanging(lookups, CROWD);
        assert!((&mut first).now_or_never().is_none());
        for uid in [CROWD, OTHER] {
            let mut later = Box::pin(lookups.ask(uid, || None, || Some(8)));
            assert!((&mut later).now_or_never().is_none());
            advance(2 * WAIT_MAX).await;
            assert_eq!(later.await, Err(IdentifyTimeout), "user {uid}");
        }
        assert_eq!(
            lookups.ask(OTHER, || Some(8), || None).await,
            Ok(Some(8)),
            "what is known needs no place"
        );
    }

    #[tokio::test]
    async fn what_is_not_there_is_not_late() {
        assert_eq!(lookups(1).ask::<u32>(CROWD, || None, || None).await, Ok(None));
    }

    #[tokio::test]
    async fn users_who_wait_for_nothing_are_forgotten() {
        let lookups = lookups(1);
        for uid in 0..1000 {
            lookups.ask(uid, || Some(8), || None).await.unwrap();
            yield_now().await;
        }
        assert!(lookups.users.lock().unwrap().len() <= USERS_MIN);
    }
}
