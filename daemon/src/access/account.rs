//! A user with all of its groups, as at a new login. For explanations only: decisions use what the kernel says about a
//! process.

use std::ffi::CString;
use std::io;
use std::time::Duration;

use nix::unistd::{Gid, Uid, User, getgrouplist};
use tokio::sync::Semaphore;
use tokio::task::spawn_blocking;
use tokio::time::timeout;

use super::facts::NO_ID;
use super::{Facts, names};

/// How long an explanation waits for the name service.
const WAIT_MAX: Duration = Duration::from_secs(2);

/// Allows one look-up at a time, so that a name service that hangs occupies only one thread.
static LOOK_UPS: Semaphore = Semaphore::const_new(1);

/// Looks up the facts about a user by name or number; `None` if the host has no user of this name. A number without a user
/// has no groups.
///
/// # Errors
/// The name service gives no answer in time.
pub async fn facts_of_user(user: String) -> io::Result<Option<Facts>> {
    look_up_alone(&LOOK_UPS, move || look_up(&user)).await
}

async fn look_up_alone<T: Send + 'static>(
    permits: &'static Semaphore,
    look_up: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    let answer = async {
        let permit = permits.acquire().await.map_err(io::Error::other)?;
        // The thread holds the permit until it is done, even if nobody waits for it any more.
        spawn_blocking(move || (look_up(), permit).0).await.map_err(io::Error::other)?
    };
    timeout(WAIT_MAX, answer).await?
}

/// Holds up all look-ups.
///
/// # Panics
/// Never: nothing closes the semaphore.
#[cfg(test)]
pub async fn hold_look_ups() -> Option<tokio::sync::SemaphorePermit<'static>> {
    LOOK_UPS.acquire().await.ok()
}

/// May block on the name service.
fn look_up(user: &str) -> io::Result<Option<Facts>> {
    let number = user.parse().ok().filter(|uid| *uid != NO_ID);
    let found = match number {
        Some(uid) => User::from_uid(Uid::from_raw(uid)),
        None => User::from_name(user),
    };
    let Some(user) = names::known(found.map_err(io::Error::from))? else {
        return Ok(number.map(|uid| Facts { uid, gid: NO_ID, ..Facts::default() }));
    };
    let groups = getgrouplist(&CString::new(user.name)?, user.gid)?;
    let groups = groups.into_iter().map(Gid::as_raw).collect();
    Ok(Some(Facts { uid: user.uid.as_raw(), gid: user.gid.as_raw(), groups, ..Facts::default() }))
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    #[tokio::test]
    async fn a_name_service_that_hangs_holds_one_thread_however_many_give_up() {
        let turns: &'static Semaphore = Box::leak(Box::new(Semaphore::new(1)));
        let (let_go, gate) = std::sync::mpsc::channel::<()>();
        tokio::time::pause();
        let mut first = Box::pin(look_up_alone(turns, move || gate.recv().map_err(io::Error::other)));
        assert!((&mut first).now_or_never().is_none());
        tokio::time::advance(2 * WAIT_MAX).await;
        assert_eq!(first.await.unwrap_err().kind(), io::ErrorKind::TimedOut);
        let mut second =
            Box::pin(look_up_alone(turns, || -> io::Result<()> { panic!("another thread is taken") }));
        assert!((&mut second).now_or_never().is_none());
        tokio::time::advance(2 * WAIT_MAX).await;
        assert_eq!(second.await.unwrap_err().kind(), io::ErrorKind::TimedOut);
        tokio::time::resume();
        let_go.send(()).unwrap();
        let _free = turns.acquire().await.unwrap();
    }

    #[tokio::test]
    async fn a_user_is_found_by_name_and_by_number_with_its_groups() {
        let root = facts_of_user("root".into()).await.unwrap().unwrap();
        assert_eq!((root.uid, root.gid), (0, 0));
        assert!(root.groups.contains(&0));
        assert_eq!(facts_of_user("0".into()).await.unwrap(), Some(root));
    }

    #[tokio::test]
    async fn a_number_without_a_user_has_no_groups_and_a_name_without_one_is_unknown() {
        let nobody = Facts { uid: 4_000_000_000, gid: NO_ID, ..Facts::default() };
        assert_eq!(facts_of_user("4000000000".into()).await.unwrap(), Some(nobody));
        assert_eq!(facts_of_user("no-such-user-here".into()).await.unwrap(), None);
        assert_eq!(facts_of_user("a\0b".into()).await.unwrap(), None);
    }
}
