//! A user with all of its groups, as it would be if it logged in now. For explanations alone: decisions go by what
//! the kernel says about a process.

use std::ffi::CString;
use std::io;
use std::time::Duration;

use nix::unistd::{Uid, User, getgrouplist};
use tokio::sync::Semaphore;

/// How long an explanation waits for the name service.
const TIMEOUT: Duration = Duration::from_secs(2);

/// One question at a time, so that a service that hangs holds one thread.
static TURN: Semaphore = Semaphore::const_new(1);

/// A user with its groups.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Account {
    /// The user.
    pub uid: u32,
    /// Its first group; `None` for a number that the host has no user for.
    pub gid: Option<u32>,
    /// All of its groups.
    pub groups: Vec<u32>,
}

/// Why there is no account.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoAccount {
    /// The host has no such user.
    Unknown,
    /// The name service gives no answer.
    Unanswered,
}

impl Account {
    /// The account of a user by name or number.
    pub async fn of(user: String) -> Result<Self, NoAccount> {
        asked(&TURN, move || look_up(&user)).await
    }
}

async fn asked(
    turns: &'static Semaphore,
    look_up: impl FnOnce() -> Result<Account, NoAccount> + Send + 'static,
) -> Result<Account, NoAccount> {
    let question = async {
        let turn = turns.acquire().await.map_err(|_| NoAccount::Unanswered)?;
        // The turn lasts as long as the thread, however soon who asked stops waiting.
        let answer = tokio::task::spawn_blocking(move || (look_up(), turn).0);
        answer.await.unwrap_or(Err(NoAccount::Unanswered))
    };
    tokio::time::timeout(TIMEOUT, question).await.unwrap_or(Err(NoAccount::Unanswered))
}

/// May block on the name service.
fn look_up(user: &str) -> Result<Account, NoAccount> {
    let number = user.parse().ok().filter(|uid| *uid != u32::MAX);
    let found = match number {
        Some(uid) => User::from_uid(Uid::from_raw(uid)),
        None => User::from_name(user),
    };
    match (super::said(found), number) {
        (Ok(Some(known)), _) => with_groups(&known),
        (Ok(None), Some(uid)) => Ok(Account { uid, gid: None, groups: Vec::new() }),
        (Ok(None), None) => Err(NoAccount::Unknown),
        (Err(_), _) => Err(NoAccount::Unanswered),
    }
}

fn with_groups(user: &User) -> Result<Account, NoAccount> {
    let groups = CString::new(user.name.as_str())
        .map_err(io::Error::from)
        .and_then(|name| getgrouplist(&name, user.gid).map_err(io::Error::from))
        .map_err(|_| NoAccount::Unanswered)?;
    let groups = groups.into_iter().map(nix::unistd::Gid::as_raw).collect();
    Ok(Account { uid: user.uid.as_raw(), gid: Some(user.gid.as_raw()), groups })
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    #[tokio::test]
    async fn a_service_that_hangs_holds_one_thread_however_many_stop_waiting() {
        let turns: &'static Semaphore = Box::leak(Box::new(Semaphore::new(1)));
        let (let_go, gate) = std::sync::mpsc::channel::<()>();
        tokio::time::pause();
        let hanging = move || gate.recv().map_err(|_| NoAccount::Unanswered).and(Err(NoAccount::Unknown));
        let mut first = Box::pin(asked(turns, hanging));
        assert!((&mut first).now_or_never().is_none());
        tokio::time::advance(2 * TIMEOUT).await;
        assert_eq!(first.await, Err(NoAccount::Unanswered));
        let mut second = Box::pin(asked(turns, || panic!("another thread is taken")));
        assert!((&mut second).now_or_never().is_none());
        tokio::time::advance(2 * TIMEOUT).await;
        assert_eq!(second.await, Err(NoAccount::Unanswered));
        tokio::time::resume();
        let_go.send(()).unwrap();
        let _free = turns.acquire().await.unwrap();
    }

    #[tokio::test]
    async fn a_user_is_found_by_name_and_by_number_with_its_groups() {
        let root = Account::of("root".into()).await.unwrap();
        assert_eq!((root.uid, root.gid), (0, Some(0)));
        assert!(root.groups.contains(&0));
        assert_eq!(Account::of("0".into()).await, Ok(root));
    }

    #[tokio::test]
    async fn a_number_without_a_user_has_no_groups_and_a_name_without_one_is_unknown() {
        let nobody = Account { uid: 4_000_000_000, gid: None, groups: vec![] };
        assert_eq!(Account::of("4000000000".into()).await, Ok(nobody));
        assert_eq!(Account::of("no-such-user-here".into()).await, Err(NoAccount::Unknown));
        assert_eq!(Account::of("a\0b".into()).await, Err(NoAccount::Unknown));
    }
}
