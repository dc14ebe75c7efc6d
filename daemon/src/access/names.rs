//! The users, groups and executables that rules name, resolved in the background.
//!
//! The host's name service may ask a network, be slow or hang, and a decision waits for nothing. So names are resolved when
//! a configuration is loaded and every minute after that, on one thread, and decisions use the latest answers. An answer
//! stands until there is another one: a failed look-up is not the answer "does not exist". A name without an answer
//! matches nobody.

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use nix::libc;
use nix::unistd::{Group, User};
use tokio::sync::{Semaphore, watch};
use tokio::task::spawn_blocking;
use tokio::time::{sleep, timeout};

use super::{Executable, Named, Principal};

/// How often names are resolved again.
const INTERVAL: Duration = Duration::from_secs(60);

/// How long a start, a reload or a connection waits for names.
const WAIT_MAX: Duration = Duration::from_secs(2);

/// The user, group or file that a name stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Id {
    /// A user or a group.
    Number(u32),
    /// A file.
    File {
        /// The device that it is on.
        device: u64,
        /// Its inode number there.
        inode: u64,
    },
}

/// The latest answers about names.
#[derive(Clone, Debug, Default)]
pub struct ResolvedIds {
    answers: HashMap<Named, Option<Id>>,
    generation: u64,
}

/// Looks a name up on the host; `None` if there is no such user, group or file. May block.
type LookUp = dyn Fn(&Named) -> io::Result<Option<Id>> + Send + Sync;

/// The names in the rules of this process, and how they are resolved.
pub struct Names {
    look_up: Arc<LookUp>,
    ids: Arc<watch::Sender<ResolvedIds>>,
    /// One thread at a time looks names up: one that hangs is not followed by others.
    thread: Arc<Semaphore>,
    is_failing: AtomicBool,
}

impl ResolvedIds {
    /// Stores an answer. Returns whether it differs from the one before.
    pub fn note(&mut self, name: Named, id: Option<Id>) -> bool {
        let is_new = self.answers.insert(name, id) != Some(id);
        self.generation += u64::from(is_new);
        is_new
    }

    /// The answer about a name: what it stands for, if anything. The outer `None` means that there is no answer.
    pub fn answer(&self, name: &Named) -> Option<Option<Id>> {
        self.answers.get(name).copied()
    }

    /// The id of a name, if there is an answer and the name exists.
    pub fn id(&self, name: &Named) -> Option<Id> {
        self.answer(name).flatten()
    }

    /// The number of changes so far.
    pub fn generation(&self) -> u64 {
        self.generation
    }
}

impl Names {
    /// Names that are resolved on this host.
    pub fn of_the_host() -> Self {
        Self::resolved_by(look_up)
    }

    /// Names that `look_up` resolves.
    pub fn resolved_by(look_up: impl Fn(&Named) -> io::Result<Option<Id>> + Send + Sync + 'static) -> Self {
        Self {
            look_up: Arc::new(look_up),
            ids: Arc::new(watch::Sender::default()),
            thread: Arc::new(Semaphore::new(1)),
            is_failing: AtomicBool::new(false),
        }
    }

    /// The latest answers. Held for a decision, never across an await.
    pub fn ids(&self) -> watch::Ref<'_, ResolvedIds> {
        self.ids.borrow()
    }

    /// Subscribes to changes of the answers.
    pub fn subscribe(&self) -> watch::Receiver<ResolvedIds> {
        self.ids.subscribe()
    }

    /// Resolves `names`, and waits for it for a bounded time. The thread goes on for as long as it takes, and each answer
    /// counts as soon as it is there.
    pub async fn resolve(&self, names: Vec<Named>) {
        let is_complete = self.resolve_in_time(names).await;
        if !self.is_failing.swap(!is_complete, Ordering::Relaxed) && !is_complete {
            tracing::warn!(
                "some users, groups or executables in rules could not be looked up on this host; earlier answers \
                 stand, and a name without one matches nobody"
            );
        }
    }

    /// Returns whether all names were answered in time.
    async fn resolve_in_time(&self, names: Vec<Named>) -> bool {
        let (look_up, ids) = (Arc::clone(&self.look_up), Arc::clone(&self.ids));
        let resolving = async {
            let permit = Arc::clone(&self.thread).acquire_owned().await.ok()?;
            let resolved = spawn_blocking(move || {
                let _permit = permit;
                look_up_all(&*look_up, &ids, names)
            });
            resolved.await.ok()
        };
        timeout(WAIT_MAX, resolving).await.ok().flatten().unwrap_or(false)
    }

    /// Resolves all of `names` every minute. Never returns.
    pub async fn keep_current(&self, names: impl Fn() -> Vec<Named>) {
        loop {
            sleep(INTERVAL).await;
            self.resolve(names()).await;
        }
    }

    /// Resolves the path of an executable again if another file was found there: it may have been replaced since, as by an
    /// upgrade. One path says nothing about the other names, so this logs nothing.
    pub async fn recheck(&self, exe: &Executable) {
        let name = Named::Executable(exe.path.clone());
        let answer = self.ids().answer(&name);
        if answer.is_some_and(|found| found != Some(exe.file)) {
            self.resolve_in_time(vec![name]).await;
        }
    }
}

/// Stores each answer as it comes. Returns whether all names were answered. May block.
fn look_up_all(look_up: &LookUp, ids: &watch::Sender<ResolvedIds>, names: Vec<Named>) -> bool {
    let mut is_complete = true;
    for name in names {
        match look_up(&name) {
            Ok(id) => drop(ids.send_if_modified(|ids| ids.note(name, id))),
            Err(_) => is_complete = false,
        }
    }
    is_complete
}

#[cfg(test)]
impl Names {
    /// Resolves `names` on this thread.
    pub fn resolve_now(&self, names: Vec<Named>) {
        look_up_all(&*self.look_up, &self.ids, names);
    }
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
        Principal::Name(name) => match look_up(&Named::Group(name.clone())) {
            Ok(Some(Id::Number(gid))) => Some(gid),
            _ => None,
        },
    }
}

fn look_up(name: &Named) -> io::Result<Option<Id>> {
    known(match name {
        Named::User(name) => {
            User::from_name(name).map(|user| Some(Id::Number(user?.uid.as_raw()))).map_err(io::Error::from)
        }
        Named::Group(name) => {
            Group::from_name(name).map(|group| Some(Id::Number(group?.gid.as_raw()))).map_err(io::Error::from)
        }
        Named::Executable(path) => {
            let file = std::fs::metadata(path);
            file.map(|file| Some(Id::File { device: file.dev(), inode: file.ino() }))
        }
    })
}

/// Turns the errors that mean "does not exist" into that answer. Some name services report so (getpwnam(3)).
pub(super) fn known<T>(found: io::Result<Option<T>>) -> io::Result<Option<T>> {
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

    fn user(name: &str) -> Named {
        Named::User(name.to_owned())
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
            Named::Group("root".into()),
            Named::Group("no-such-group-here".into()),
            Named::Executable(file),
            Named::Executable(absent),
            Named::Executable(below_a_file),
        ];
        let names = Names::of_the_host();
        names.resolve(wanted.to_vec()).await;
        let found = wanted.map(|name| names.ids().answer(&name).unwrap());
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
            names.resolve(vec![user("a")]).await;
            told.push((names.ids().answer(&user("a")), names.ids().generation()));
        }
        assert_eq!(told, [(None, 0), (Some(SEVEN), 1), (Some(SEVEN), 1), (Some(None), 2)]);
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
        let mut changes = names.subscribe();
        changes.wait_for(|ids| ids.answer(&user("a")).is_some()).await.unwrap();
        assert_eq!(names.ids().id(&user("a")), SEVEN);
        assert_eq!(names.ids().answer(&user("b")), None, "the second hangs");
        open.send(()).unwrap();
        changes.wait_for(|ids| ids.answer(&user("b")).is_some()).await.unwrap();
        assert_eq!(names.ids().id(&user("b")), SEVEN);
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
        let mut changes = names.subscribe();
        tokio::time::pause();
        let third = Some(Id::Number(2));
        tokio::select! {
            () = names.keep_current(|| vec![user("a")]) => (),
            _ = changes.wait_for(|ids| ids.id(&user("a")) == third) => (),
        }
        assert_eq!(names.ids().id(&user("a")), third);
    }

    #[tokio::test]
    async fn an_executable_that_was_replaced_is_looked_at_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("billing");
        let write = || {
            let new = folder.path().join("new");
            std::fs::write(&new, "").unwrap();
            std::fs::rename(new, &path).unwrap();
            look_up(&Named::Executable(path.clone())).unwrap().unwrap()
        };
        let name = Named::Executable(path.clone());
        let (old, names) = (write(), Names::of_the_host());
        names.recheck(&Executable { path: path.clone(), file: old }).await;
        assert_eq!(names.ids().answer(&name), None, "no rule names it");
        names.resolve(vec![name.clone()]).await;
        assert_eq!(names.ids().id(&name), Some(old));
        let new = write();
        assert_ne!(old, new);
        names.recheck(&Executable { path, file: new }).await;
        assert_eq!(names.ids().id(&name), Some(new));
    }
}
