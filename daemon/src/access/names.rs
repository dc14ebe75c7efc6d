//! The users, groups and executables that rules name, resolved in the background.
//!
//! The host's name service may ask a network, be slow or hang, and a decision waits for nothing. So names are resolved when
//! a configuration is loaded and every minute after that, on one thread, and decisions use the latest answers. An answer
//! stands until there is another one: a failed look-up is not the answer "does not exist". A name without an answer
//! matches nobody.

use std::collections::HashMap;
use std::ffi::CString;
use std::fmt;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use nix::libc;
use nix::unistd::{Gid, Group, Uid, User, getgrouplist};
use tokio::sync::{Semaphore, watch};
use tokio::task::spawn_blocking;
use tokio::time::{sleep, timeout};

use super::{Condition, Executable, Facts, NO_ID, Principal};

/// How often names are resolved again.
const INTERVAL: Duration = Duration::from_secs(60);

/// How long a start, a reload, a connection or an explanation waits for the host.
const WAIT_MAX: Duration = Duration::from_secs(2);

/// The user, group or file that a name stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Id {
    /// A user or a group.
    Number(u32),
    File {
        device: u64,
        inode: u64,
    },
}

/// The latest answers about the names in conditions.
#[derive(Clone, Debug, Default)]
pub struct ResolvedIds(HashMap<Condition, Option<Id>>);

/// Looks up what a condition names on the host; `None` if there is no such user, group or file. May block.
type LookUp = dyn Fn(&Condition) -> io::Result<Option<Id>> + Send + Sync;

/// The names in the rules of this process, and how they are resolved.
pub struct Names {
    look_up: Arc<LookUp>,
    /// The latest answers. A decision borrows them, never across an await.
    pub ids: Arc<watch::Sender<ResolvedIds>>,
    /// Held by the one thread that looks names up.
    resolving: Arc<Semaphore>,
    /// Held by the one thread that looks a user up for an explanation.
    explaining: Arc<Semaphore>,
    is_failing: AtomicBool,
}

impl ResolvedIds {
    /// Stores an answer. Returns whether it differs from the one before.
    pub fn note(&mut self, name: Condition, id: Option<Id>) -> bool {
        self.0.insert(name, id) != Some(id)
    }

    /// The user, group or file of a condition, if it exists. The outer `None` means that there is no answer.
    pub fn answer(&self, condition: &Condition) -> Option<Option<Id>> {
        match condition {
            Condition::User(Principal::Id(id)) | Condition::Group(Principal::Id(id)) => {
                Some(Some(Id::Number(*id)))
            }
            named => self.0.get(named).copied(),
        }
    }

    /// The user, group or file of a condition, if there is an answer and it exists.
    pub fn id(&self, condition: &Condition) -> Option<Id> {
        self.answer(condition).flatten()
    }
}

impl Names {
    /// Names that are resolved on this host.
    pub fn of_the_host() -> Self {
        Self::resolved_by(look_up)
    }

    /// Names that `look_up` resolves.
    pub fn resolved_by(
        look_up: impl Fn(&Condition) -> io::Result<Option<Id>> + Send + Sync + 'static,
    ) -> Self {
        Self {
            look_up: Arc::new(look_up),
            ids: Arc::new(watch::Sender::default()),
            resolving: Arc::new(Semaphore::new(1)),
            explaining: Arc::new(Semaphore::new(1)),
            is_failing: AtomicBool::new(false),
        }
    }

    /// Resolves `names`, and waits for it for a bounded time. The thread goes on for as long as it takes, and each answer
    /// counts as soon as it is there.
    pub async fn resolve(&self, names: Vec<Condition>) {
        let is_complete = self.resolve_in_time(names).await;
        if !self.is_failing.swap(!is_complete, Ordering::Relaxed) && !is_complete {
            tracing::warn!(
                "some users, groups or executables in rules could not be looked up on this host; earlier answers \
                 stand, and a name without one matches nobody"
            );
        }
    }

    /// Returns whether all names were answered in time.
    async fn resolve_in_time(&self, names: Vec<Condition>) -> bool {
        let (look_up, ids) = (Arc::clone(&self.look_up), Arc::clone(&self.ids));
        on_one_thread(&self.resolving, move || look_up_all(&*look_up, &ids, names)).await.unwrap_or(false)
    }

    /// Resolves all of `names` every minute. Never returns.
    pub async fn keep_current(&self, names: impl Fn() -> Vec<Condition>) {
        loop {
            sleep(INTERVAL).await;
            self.resolve(names()).await;
        }
    }

    /// Resolves the path of an executable again if another file was found there: it may have been replaced since, as by an
    /// upgrade. One path says nothing about the other names, so this logs nothing.
    pub async fn recheck(&self, exe: &Executable) {
        let name = Condition::Exe(exe.path.clone());
        let answer = self.ids.borrow().answer(&name);
        if answer.is_some_and(|found| found != Some(exe.file)) {
            self.resolve_in_time(vec![name]).await;
        }
    }

    /// Looks up a user by name or number, with all of its groups as at a new login; `None` if the host has no user of this
    /// name. A number without a user has no groups. For explanations only: decisions use what the kernel says about a
    /// process.
    ///
    /// # Errors
    /// The name service gives no answer in time.
    pub async fn facts_of_user(&self, user: String) -> io::Result<Option<Facts>> {
        on_one_thread(&self.explaining, move || facts_of_user(&user)).await?
    }
}

/// Waits for `look_up` for a bounded time. Its thread holds the permit until it is done, even if nobody waits for it any
/// more, so that a name service that hangs occupies only one thread.
async fn on_one_thread<T: Send + 'static>(
    permits: &Arc<Semaphore>,
    look_up: impl FnOnce() -> T + Send + 'static,
) -> io::Result<T> {
    let answer = async {
        let permit = Arc::clone(permits).acquire_owned().await.map_err(io::Error::other)?;
        let looking_up = spawn_blocking(move || {
            let _permit = permit;
            look_up()
        });
        looking_up.await.map_err(io::Error::other)
    };
    timeout(WAIT_MAX, answer).await?
}

/// Stores each answer as it comes. Returns whether all names were answered. May block.
fn look_up_all(look_up: &LookUp, ids: &watch::Sender<ResolvedIds>, names: Vec<Condition>) -> bool {
    let mut is_complete = true;
    for name in names {
        match look_up(&name) {
            Ok(id) => drop(ids.send_if_modified(|ids| ids.note(name, id))),
            Err(_) => is_complete = false,
        }
    }
    is_complete
}

impl fmt::Debug for Names {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Names").field("ids", &self.ids.borrow()).finish_non_exhaustive()
    }
}

/// Looks a group up, at the start. May block.
pub fn group_id(group: &Principal) -> Option<u32> {
    match group {
        Principal::Id(gid) => Some(*gid),
        Principal::Name(name) => Group::from_name(name).ok()?.map(|group| group.gid.as_raw()),
    }
}

fn look_up(name: &Condition) -> io::Result<Option<Id>> {
    known(match name {
        Condition::User(Principal::Name(name)) => {
            User::from_name(name).map(|user| Some(Id::Number(user?.uid.as_raw()))).map_err(io::Error::from)
        }
        Condition::Group(Principal::Name(name)) => {
            Group::from_name(name).map(|group| Some(Id::Number(group?.gid.as_raw()))).map_err(io::Error::from)
        }
        Condition::Exe(path) => {
            let file = std::fs::metadata(path);
            file.map(|file| Some(Id::File { device: file.dev(), inode: file.ino() }))
        }
        // `Rule::to_resolve` has none of these.
        Condition::User(_) | Condition::Group(_) | Condition::Unit(_) | Condition::UserUnit(_) => Ok(None),
    })
}

/// May block.
fn facts_of_user(user: &str) -> io::Result<Option<Facts>> {
    let number = user.parse().ok().filter(|uid| *uid != NO_ID);
    let found = match number {
        Some(uid) => User::from_uid(Uid::from_raw(uid)),
        None => User::from_name(user),
    };
    let Some(user) = known(found.map_err(io::Error::from))? else {
        return Ok(number.map(|uid| Facts { uid, gid: NO_ID, ..Facts::default() }));
    };
    let groups = getgrouplist(&CString::new(user.name)?, user.gid)?;
    let groups = groups.into_iter().map(Gid::as_raw).collect::<Vec<_>>().into();
    Ok(Some(Facts { uid: user.uid.as_raw(), gid: user.gid.as_raw(), groups, ..Facts::default() }))
}

/// Turns the errors that mean "does not exist" into that answer. Some name services report so (getpwnam(3)).
fn known<T>(found: io::Result<Option<T>>) -> io::Result<Option<T>> {
    match found {
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENOTDIR | libc::ESRCH)) => {
            Ok(None)
        }
        found => found,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::sync::atomic::AtomicUsize;
    use std::sync::mpsc::{Sender, channel};

    use futures_util::FutureExt;

    use super::*;

    impl Names {
        /// Resolves `names` on this thread.
        pub(crate) fn resolve_now(&self, names: Vec<Condition>) {
            look_up_all(&*self.look_up, &self.ids, names);
        }

        /// Holds up the look-ups for explanations.
        pub(crate) fn hold_explanations(&self) -> tokio::sync::OwnedSemaphorePermit {
            Arc::clone(&self.explaining).try_acquire_owned().unwrap()
        }
    }

    fn user(name: &str) -> Condition {
        Condition::User(Principal::Name(name.to_owned()))
    }

    fn group(name: &str) -> Condition {
        Condition::Group(Principal::Name(name.to_owned()))
    }

    /// Names that all become 7 as often as the sender lets them, and the number of look-ups.
    fn gated() -> (Names, Sender<()>, Arc<AtomicUsize>) {
        let (open, gate) = channel();
        let gate = Mutex::new(gate);
        let asked = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&asked);
        let names = Names::resolved_by(move |_| {
            count.fetch_add(1, Ordering::SeqCst);
            gate.lock().unwrap().recv().map(|()| Some(Id::Number(7))).map_err(io::Error::other)
        });
        (names, open, asked)
    }

    const SEVEN: Option<Id> = Some(Id::Number(7));

    #[tokio::test]
    async fn users_groups_and_files_of_the_host_are_resolved() {
        let folder = tempfile::tempdir().unwrap();
        let [file, absent] = ["there", "absent"].map(|name| folder.path().join(name));
        std::fs::write(&file, "").unwrap();
        let below_a_file = file.join("x");
        let wanted = [
            user("root"),
            group("root"),
            group("no-such-group-here"),
            Condition::Exe(file),
            Condition::Exe(absent),
            Condition::Exe(below_a_file),
        ];
        let names = Names::of_the_host();
        names.resolve(wanted.to_vec()).await;
        let found = wanted.map(|name| names.ids.borrow().answer(&name).unwrap());
        assert_eq!(found[..3], [Some(Id::Number(0)), Some(Id::Number(0)), None]);
        assert!(matches!(found[3], Some(Id::File { .. })));
        assert_eq!(found[4..], [None, None]);
    }

    #[tokio::test]
    async fn a_failed_look_up_is_no_answer_and_leaves_the_earlier_one() {
        let asked = AtomicUsize::new(0);
        let names = Names::resolved_by(move |_| match asked.fetch_add(1, Ordering::SeqCst) {
            0 | 2 => Err(io::ErrorKind::Other.into()),
            1 => Ok(Some(Id::Number(7))),
            _ => Ok(None),
        });
        let mut told = Vec::new();
        for _ in 0..4 {
            let changes = names.ids.subscribe();
            names.resolve(vec![user("a")]).await;
            told.push((names.ids.borrow().answer(&user("a")), changes.has_changed().unwrap()));
        }
        assert_eq!(told, [(None, false), (Some(SEVEN), true), (Some(SEVEN), false), (Some(None), true)]);
    }

    #[tokio::test]
    async fn a_service_that_hangs_is_waited_for_briefly_on_one_thread_and_its_answers_count_when_they_come() {
        let (names, open, asked) = gated();
        open.send(()).unwrap();
        tokio::time::pause();
        for _ in 0..3 {
            let mut resolving = Box::pin(names.resolve(vec![user("a"), user("b")]));
            assert!((&mut resolving).now_or_never().is_none());
            tokio::time::advance(2 * WAIT_MAX).await;
            resolving.await;
        }
        tokio::time::resume();
        let mut changes = names.ids.subscribe();
        changes.wait_for(|ids| ids.answer(&user("a")).is_some()).await.unwrap();
        assert_eq!(names.ids.borrow().id(&user("a")), SEVEN);
        assert_eq!(names.ids.borrow().answer(&user("b")), None, "the second hangs");
        open.send(()).unwrap();
        changes.wait_for(|ids| ids.answer(&user("b")).is_some()).await.unwrap();
        assert_eq!(names.ids.borrow().id(&user("b")), SEVEN);
        assert_eq!(asked.load(Ordering::SeqCst), 2, "rounds that were given up asked nothing");
    }

    #[tokio::test]
    async fn names_are_resolved_again_every_minute() {
        let asked = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&asked);
        let names = Names::resolved_by(move |_| {
            let number = count.fetch_add(1, Ordering::SeqCst);
            Ok(u32::try_from(number).ok().map(Id::Number))
        });
        let mut changes = names.ids.subscribe();
        tokio::time::pause();
        let third = Some(Id::Number(2));
        tokio::select! {
            () = names.keep_current(|| vec![user("a")]) => (),
            _ = changes.wait_for(|ids| ids.id(&user("a")) == third) => (),
        }
        assert_eq!(names.ids.borrow().id(&user("a")), third);
    }

    #[tokio::test]
    async fn an_executable_that_was_replaced_is_looked_at_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("billing");
        let write = || {
            let new = folder.path().join("new");
            std::fs::write(&new, "").unwrap();
            std::fs::rename(new, &path).unwrap();
            look_up(&Condition::Exe(path.clone())).unwrap().unwrap()
        };
        let name = Condition::Exe(path.clone());
        let (old, names) = (write(), Names::of_the_host());
        names.recheck(&Executable { path: path.clone(), file: old }).await;
        assert_eq!(names.ids.borrow().answer(&name), None, "no rule names it");
        names.resolve(vec![name.clone()]).await;
        assert_eq!(names.ids.borrow().id(&name), Some(old));
        let new = write();
        assert_ne!(old, new);
        names.recheck(&Executable { path, file: new }).await;
        assert_eq!(names.ids.borrow().id(&name), Some(new));
    }

    #[tokio::test]
    async fn a_name_service_that_hangs_holds_one_thread_however_many_give_up() {
        let turns = Arc::new(Semaphore::new(1));
        let (let_go, gate) = std::sync::mpsc::channel::<()>();
        tokio::time::pause();
        let mut first = Box::pin(on_one_thread(&turns, move || gate.recv()));
        assert!((&mut first).now_or_never().is_none());
        tokio::time::advance(2 * WAIT_MAX).await;
        assert_eq!(first.await.unwrap_err().kind(), io::ErrorKind::TimedOut);
        let mut second = Box::pin(on_one_thread(&turns, || -> () { panic!("another thread is taken") }));
        assert!((&mut second).now_or_never().is_none());
        tokio::time::advance(2 * WAIT_MAX).await;
        assert_eq!(second.await.unwrap_err().kind(), io::ErrorKind::TimedOut);
        tokio::time::resume();
        let_go.send(()).unwrap();
        let _free = turns.acquire().await.unwrap();
    }

    #[tokio::test]
    async fn a_user_is_found_by_name_and_by_number_with_its_groups() {
        let names = Names::of_the_host();
        let root = names.facts_of_user("root".into()).await.unwrap().unwrap();
        assert_eq!((root.uid, root.gid), (0, 0));
        assert!(root.groups.contains(0));
        assert_eq!(names.facts_of_user("0".into()).await.unwrap(), Some(root));
    }

    #[tokio::test]
    async fn a_number_without_a_user_has_no_groups_and_a_name_without_one_is_unknown() {
        let names = Names::of_the_host();
        let nobody = Facts { uid: 4_000_000_000, gid: NO_ID, ..Facts::default() };
        assert_eq!(names.facts_of_user("4000000000".into()).await.unwrap(), Some(nobody));
        assert_eq!(names.facts_of_user("no-such-user-here".into()).await.unwrap(), None);
        assert_eq!(names.facts_of_user("a\0b".into()).await.unwrap(), None);
    }
}
