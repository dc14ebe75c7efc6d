//! Looks up the users and groups that rules name.
//!
//! The host's name service may ask a network, be slow or hang. So it is asked on a few threads of its own, about
//! each name once at a time, and whoever waits for it does so for a bounded time. Its answers are good for some
//! seconds: a user made after the daemon started is soon known, and a number given to somebody else is soon not
//! mistaken for its former owner. While the service gives no answer, its last one stands in for some minutes.
//! That it gave none is told apart from its answer that there is no such user, and is never remembered.

mod account;

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use nix::errno::Errno;
use nix::unistd::{Group, User};
use tokio::sync::watch;
use tokio::time::{Instant, timeout_at};

pub use self::account::{Account, NoAccount};
use crate::access::{Named, Principal, ResolvedIds};

/// How long one request waits for the name service in all, and how long a name may be in question before
/// nobody waits for it any more.
const LOOKUP_TIMEOUT: Duration = Duration::from_secs(2);

/// How long an answer is good. Short enough that nobody waits long for a change to count, long enough that
/// a busy daemon asks seldom.
const GOOD_FOR: Duration = Duration::from_secs(5);

/// How long an answer stands in for one that cannot be had: as long as a server of names takes to restart.
const STANDS_IN_FOR: Duration = Duration::from_secs(600);

/// Threads that ask. When all of them hang, so does the service.
const THREADS_MAX: usize = 4;

/// Names that are kept whether they are of use or not.
const NAMES_MIN: usize = 1024;

/// The log hears of a service that gives no answer so often at most.
const WARNING_INTERVAL: Duration = Duration::from_secs(60);

/// Asks the name service for a number. May block.
type Ask = dyn Fn(&Named) -> nix::Result<Option<u32>> + Send + Sync;

/// The host's users and groups, for the whole process.
#[derive(Debug)]
pub struct Directory {
    inner: Arc<Inner>,
}

/// Until when one request waits for the name service, over all the names that it needs.
#[derive(Clone, Copy, Debug)]
pub struct Patience(Instant);

/// What the name service said.
#[derive(Debug)]
pub struct Resolved {
    /// The numbers.
    pub numbers: ResolvedIds,
    /// Whether there is an answer to every name.
    pub is_complete: bool,
}

struct Inner {
    ask: Box<Ask>,
    /// Held for a look or a change, never while the service is asked.
    names: Mutex<Names>,
}

/// What is known of the names.
#[derive(Debug)]
struct Names {
    known: HashMap<Named, Known>,
    /// Names that wait for a thread. Where there are any, there are threads.
    queue: VecDeque<Named>,
    threads: usize,
    /// With so many names, those of no more use are forgotten.
    forget_at: usize,
    warned_at: Option<Instant>,
}

#[derive(Debug)]
struct Known {
    answer: Option<Answer>,
    question: Option<Question>,
}

#[derive(Clone, Copy, Debug)]
struct Answer {
    id: Option<u32>,
    /// When it was asked for.
    at: Instant,
}

/// A question that is not answered yet. Dropping it tells those who wait.
#[derive(Debug)]
struct Question {
    since: Instant,
    end: watch::Sender<()>,
}

/// The end of a question, for those who wait.
struct Wait {
    until: Instant,
    end: watch::Receiver<()>,
}

impl Patience {
    /// The patience of a request that is taken up now.
    pub fn of_a_request() -> Self {
        Self(Instant::now() + LOOKUP_TIMEOUT)
    }
}

impl Directory {
    /// The host's.
    pub fn of_the_host() -> Self {
        Self::asking(ask_the_host)
    }

    /// One whose answers are those of `ask`, which may block.
    pub fn asking(ask: impl Fn(&Named) -> nix::Result<Option<u32>> + Send + Sync + 'static) -> Self {
        let names = Names {
            known: HashMap::new(),
            queue: VecDeque::new(),
            threads: 0,
            forget_at: NAMES_MIN,
            warned_at: None,
        };
        Self { inner: Arc::new(Inner { ask: Box::new(ask), names: Mutex::new(names) }) }
    }

    /// Looks up all of `wanted`.
    pub async fn resolve(&self, wanted: &[Named], patience: Patience) -> Resolved {
        let mut resolved = Resolved { numbers: ResolvedIds::default(), is_complete: true };
        if wanted.is_empty() {
            return resolved;
        }
        // All are asked about before the first is waited for.
        for mut wait in self.inquire(wanted, patience) {
            // Dropped or in time: what there is to know now is looked at below.
            let _ = timeout_at(wait.until, wait.end.changed()).await;
        }
        let mut names = self.inner.names();
        let now = Instant::now();
        for name in wanted {
            match names.answer(name, now) {
                Some(answer) => resolved.numbers.note(name.clone(), answer.id),
                None => resolved.is_complete = false,
            }
        }
        resolved
    }

    /// Asks about the names that there is no good answer to, and tells what to wait for.
    fn inquire(&self, wanted: &[Named], patience: Patience) -> Vec<Wait> {
        let now = Instant::now();
        let mut names = self.inner.names();
        let mut waits = Vec::new();
        for name in wanted {
            if names.has_good_answer(name, now) {
                continue;
            }
            // Whose patience is at its end asks no more questions, but still learns what others asked.
            if !names.is_in_question(name) && now < patience.0 {
                names.put(name, now);
                self.employ(&mut names);
            }
            waits.extend(names.wait(name, patience));
        }
        waits
    }

    /// Starts a thread, if there is work and there are not enough of them.
    fn employ(&self, names: &mut Names) {
        if names.threads >= THREADS_MAX || names.queue.is_empty() {
            return;
        }
        let inner = Arc::clone(&self.inner);
        match std::thread::Builder::new().name("names".to_owned()).spawn(move || inner.work()) {
            Ok(_) => names.threads += 1,
            Err(error) if names.threads == 0 => {
                tracing::warn!(%error, "no thread can be started to look up users and groups");
                names.give_up();
            }
            // Those that there are come to it.
            Err(_) => (),
        }
    }
}

impl Inner {
    /// Answers questions until there are none.
    fn work(&self) {
        while let Some(name) = self.take() {
            let answer = (self.ask)(&name);
            self.names().note(&name, answer);
        }
    }

    fn take(&self) -> Option<Named> {
        self.names().take()
    }

    fn names(&self) -> MutexGuard<'_, Names> {
        self.names.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Names {
    fn has_good_answer(&self, name: &Named, now: Instant) -> bool {
        let answer = self.known.get(name).and_then(|known| known.answer);
        answer.is_some_and(|answer| now.duration_since(answer.at) < GOOD_FOR)
    }

    fn is_in_question(&self, name: &Named) -> bool {
        self.known.get(name).is_some_and(|known| known.question.is_some())
    }

    /// The answer, be it a good one or one that stands in.
    fn answer(&mut self, name: &Named, now: Instant) -> Option<Answer> {
        let answer = self.known.get(name).and_then(|known| known.answer);
        let age = answer.map_or(Duration::MAX, |answer| now.duration_since(answer.at));
        // Younger ones may have been good when they were looked at first.
        if age >= GOOD_FOR + LOOKUP_TIMEOUT {
            self.warn(now);
        }
        answer.filter(|_| age < STANDS_IN_FOR)
    }

    fn wait(&self, name: &Named, patience: Patience) -> Option<Wait> {
        let question = self.known.get(name)?.question.as_ref()?;
        let until = patience.0.min(question.since + LOOKUP_TIMEOUT);
        Some(Wait { until, end: question.end.subscribe() })
    }

    /// Puts a question.
    fn put(&mut self, name: &Named, now: Instant) {
        if self.known.len() >= self.forget_at {
            self.forget(now);
        }
        let known = self.known.entry(name.clone()).or_insert(Known { answer: None, question: None });
        known.question = Some(Question { since: now, end: watch::Sender::new(()) });
        self.queue.push_back(name.clone());
    }

    /// The next question for a thread. Without one the thread ends.
    fn take(&mut self) -> Option<Named> {
        let next = self.queue.pop_front();
        if next.is_none() {
            self.threads -= 1;
        }
        next
    }

    /// Notes what the service said. A failure says nothing, so that the answer before it stands.
    fn note(&mut self, name: &Named, answer: nix::Result<Option<u32>>) {
        let Some(known) = self.known.get_mut(name) else { return };
        let question = known.question.take();
        if let (Ok(id), Some(question)) = (answer, question) {
            known.answer = Some(Answer { id, at: question.since });
        }
    }

    /// Leaves all questions that wait for a thread without an answer.
    fn give_up(&mut self) {
        for name in std::mem::take(&mut self.queue) {
            self.note(&name, Err(Errno::EAGAIN));
        }
    }

    fn forget(&mut self, now: Instant) {
        self.known.retain(|_, known| {
            let is_of_use = |answer: Answer| now.duration_since(answer.at) < STANDS_IN_FOR;
            known.question.is_some() || known.answer.is_some_and(is_of_use)
        });
        self.forget_at = NAMES_MIN.max(2 * self.known.len());
    }

    fn warn(&mut self, now: Instant) {
        if self.warned_at.is_none_or(|at| now.duration_since(at) >= WARNING_INTERVAL) {
            self.warned_at = Some(now);
            tracing::warn!(
                "the host's name service gives no answer in time; a user or group that it has not answered \
                 about lately matches nobody for now"
            );
        }
    }
}

impl fmt::Debug for Inner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Inner").field("names", &self.names).finish_non_exhaustive()
    }
}

fn ask_the_host(name: &Named) -> nix::Result<Option<u32>> {
    let found = match name {
        Named::User(name) => User::from_name(name).map(|user| Some(user?.uid.as_raw())),
        Named::Group(name) => Group::from_name(name).map(|group| Some(group?.gid.as_raw())),
    };
    said(found)
}

/// What the name service said, in one form for all its sources.
fn said<T>(found: nix::Result<Option<T>>) -> nix::Result<Option<T>> {
    match found {
        // Some sources report in this way that they do not know a name (getpwnam(3)).
        Err(Errno::ENOENT | Errno::ESRCH) => Ok(None),
        found => found,
    }
}

/// The number of a group, if the host knows it. May block on the name service, so it is for the start alone.
pub fn gid(group: &Principal) -> Option<u32> {
    match group {
        Principal::Id(gid) => Some(*gid),
        Principal::Name(name) => ask_the_host(&Named::Group(name.clone())).ok().flatten(),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::mpsc;

    use futures_util::future::join_all;

    use super::*;

    fn user(name: &str) -> Named {
        Named::User(name.to_owned())
    }

    /// The numbers, and whether they are all that there is to know.
    async fn ids(directory: &Directory, names: &[Named]) -> (Vec<Option<u32>>, bool) {
        let resolved = directory.resolve(names, Patience::of_a_request()).await;
        let number = |name| resolved.numbers.answer(name).flatten();
        (names.iter().map(number).collect(), resolved.is_complete)
    }

    async fn pass(time: Duration) {
        tokio::time::pause();
        tokio::time::advance(time).await;
        tokio::time::resume();
    }

    /// A service that answers 7 as often as it is let, and the count of the questions to it.
    fn gated() -> (Directory, mpsc::Sender<()>, Arc<AtomicUsize>) {
        let (open, gate) = mpsc::channel();
        let gate = Mutex::new(gate);
        let asked = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&asked);
        let directory = Directory::asking(move |_| {
            count.fetch_add(1, Ordering::SeqCst);
            gate.lock().unwrap().recv().map(|()| Some(7)).map_err(|_| Errno::EIO)
        });
        (directory, open, asked)
    }

    async fn eventually(held: impl AsyncFn() -> bool) {
        for _ in 0..3000 {
            if held().await {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("it does not come about");
    }

    #[tokio::test]
    async fn names_and_unknown_names() {
        let group = |name: &str| Named::Group(name.to_owned());
        let names = [user("root"), group("root"), group("no-such-group-here")];
        let directory = Directory::of_the_host();
        assert_eq!(ids(&directory, &names).await, (vec![Some(0), Some(0), None], true));
    }

    #[tokio::test]
    async fn a_failure_is_not_the_answer_that_there_is_no_such_user_and_is_not_remembered() {
        let asked = AtomicUsize::new(0);
        let directory = Directory::asking(move |_| match asked.fetch_add(1, Ordering::SeqCst) {
            0 => Err(Errno::EIO),
            1 => Ok(None),
            _ => Ok(Some(7)),
        });
        let names = [user("a")];
        assert_eq!(ids(&directory, &names).await, (vec![None], false));
        let resolved = directory.resolve(&names, Patience::of_a_request()).await;
        assert_eq!((resolved.numbers.answer(&names[0]), resolved.is_complete), (Some(None), true));
    }

    #[tokio::test]
    async fn a_name_is_asked_about_once_at_a_time_and_again_after_some_seconds() {
        let (directory, open, asked) = gated();
        let names = [user("a")];
        let all = join_all((0..50).map(|_| ids(&directory, &names)));
        let let_through = async { open.send(()).unwrap() };
        let (answers, ()) = tokio::join!(all, let_through);
        assert!(answers.iter().all(|answer| *answer == (vec![Some(7)], true)), "{answers:?}");
        assert_eq!(ids(&directory, &names).await.0, [Some(7)]);
        assert_eq!(asked.load(Ordering::SeqCst), 1);
        pass(GOOD_FOR).await;
        open.send(()).unwrap();
        assert_eq!(ids(&directory, &names).await.0, [Some(7)]);
        assert_eq!(asked.load(Ordering::SeqCst), 2);
    }

    #[tokio::test]
    async fn a_service_that_hangs_is_waited_for_once_and_by_few_threads() {
        let (directory, open, asked) = gated();
        let names: Vec<Named> = (0..20).map(|n| user(&format!("u{n}"))).collect();
        let wait = ids(&directory, &names);
        tokio::time::pause();
        let before = Instant::now();
        assert_eq!(wait.await, (vec![None; 20], false));
        assert_eq!(before.elapsed().as_secs(), LOOKUP_TIMEOUT.as_secs());
        let before = Instant::now();
        assert_eq!(ids(&directory, &names).await, (vec![None; 20], false));
        assert_eq!(before.elapsed(), Duration::ZERO, "nobody waits again for what hangs");
        tokio::time::resume();
        eventually(async || asked.load(Ordering::SeqCst) == THREADS_MAX).await;
        assert_eq!(directory.inner.names().queue.len(), names.len() - THREADS_MAX);
        for _ in &names {
            open.send(()).unwrap();
        }
        eventually(async || ids(&directory, &names).await == (vec![Some(7); 20], true)).await;
        eventually(async || directory.inner.names().threads == 0).await;
        assert_eq!(asked.load(Ordering::SeqCst), names.len());
    }

    #[tokio::test]
    async fn the_last_answer_stands_in_for_one_that_cannot_be_had_but_not_for_ever() {
        let (directory, open, _) = gated();
        let names = [user("a")];
        open.send(()).unwrap();
        assert_eq!(ids(&directory, &names).await, (vec![Some(7)], true));
        drop(open);
        pass(STANDS_IN_FOR / 2).await;
        assert_eq!(ids(&directory, &names).await, (vec![Some(7)], true));
        pass(STANDS_IN_FOR / 2).await;
        assert_eq!(ids(&directory, &names).await, (vec![None], false));
    }

    #[tokio::test]
    async fn whose_patience_has_ended_asks_nothing_and_waits_for_nothing() {
        let (directory, _open, asked) = gated();
        let spent = Patience(Instant::now());
        let resolved = directory.resolve(&[user("a")], spent).await;
        assert!(!resolved.is_complete);
        assert!(directory.inner.names().known.is_empty());
        assert_eq!(asked.load(Ordering::SeqCst), 0);
    }

    #[tokio::test]
    async fn names_of_no_more_use_are_forgotten() {
        let directory = Directory::asking(|_| Ok(Some(7)));
        let many = |prefix: &str| (0..NAMES_MIN).map(|n| user(&format!("{prefix}{n}"))).collect::<Vec<_>>();
        ids(&directory, &many("a")).await;
        pass(STANDS_IN_FOR).await;
        ids(&directory, &many("b")).await;
        assert!(directory.inner.names().known.len() <= NAMES_MIN);
    }
}
