//! Keeps secrets out of swap, as far as the process may.
//!
//! Where it may lock whatever it likes, all of its memory is locked. A limit must never be applied to all of it: what
//! went beyond would not be allocated, and the daemon would end. Under a limit the pages are locked that held tokens
//! lie on, one by one, which is what stays in memory for long; what a token request holds for a second is not.

use std::collections::BTreeSet;
use std::ffi::c_void;
use std::fmt;
use std::fs;
use std::ptr::NonNull;
use std::sync::{Mutex, OnceLock, PoisonError};

use nix::errno::Errno;
use nix::libc::MCL_ONFAULT;
use nix::sys::mman::{MlockAllFlags, mlock, mlockall};
use nix::sys::resource::{RLIM_INFINITY, Resource, getrlimit, setrlimit};
use tokend_protocol::Secret;

/// `CAP_IPC_LOCK` in a set of capabilities (capabilities(7)): no limit holds.
const CAP_IPC_LOCK: u64 = 1 << 14;

/// Pages that are locked one by one, at most: the 8 MiB that systemd and the kernel allow unless told otherwise. Each
/// may divide a mapping in three, of which a process can have 65,530.
const PAGES_MAX: usize = 2048;

const PAGE: usize = 4096;

/// What became of it. Belongs to the process as its memory does.
static LOCKED: OnceLock<Locked> = OnceLock::new();

/// How much of the memory is locked.
#[derive(Debug)]
enum Locked {
    /// All of it, also what is still to come.
    All,
    /// The pages of held tokens.
    Tokens(Mutex<Pages>),
    /// Nothing.
    Nothing(Errno),
}

/// Pages that were locked one by one.
#[derive(Debug, Default)]
struct Pages {
    addresses: BTreeSet<usize>,
    /// Whether some token lies on a page that could not be locked.
    some_missing: bool,
}

/// Locks what may be locked, and says in the log what that is.
pub fn lock_memory() {
    let locked = LOCKED.get_or_init(lock_all_or_prepare);
    match locked {
        Locked::All => tracing::info!("memory is {locked}"),
        Locked::Tokens(_) | Locked::Nothing(_) => {
            tracing::warn!("memory is {locked}; LimitMEMLOCK=infinity lets all of it be");
        }
    }
}

/// Locks the pages of a token that is going to be held, where not all memory is locked.
pub fn keep_out(token: &Secret) {
    if let Some(Locked::Tokens(pages)) = LOCKED.get() {
        pages.lock().unwrap_or_else(PoisonError::into_inner).lock_those_of(token.expose());
    }
}

/// How much of the memory is locked, for the status.
pub fn condition() -> String {
    LOCKED.get().map_or_else(|| "not locked".to_owned(), ToString::to_string)
}

fn lock_all_or_prepare() -> Locked {
    let (soft, hard) = getrlimit(Resource::RLIMIT_MEMLOCK).unwrap_or_default();
    // Where the sandbox refuses to raise it, the lower limit has to do.
    let limit = setrlimit(Resource::RLIMIT_MEMLOCK, hard, hard).map_or(soft, |()| hard);
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    if limit != RLIM_INFINITY && !is_above_limits(&status) {
        return if limit == 0 { Locked::Nothing(Errno::EPERM) } else { Locked::Tokens(Mutex::default()) };
    }
    // Pages that are never touched, as most of a thread's stack, need not be there for being locked.
    let on_fault = MlockAllFlags::from_bits_retain(MCL_ONFAULT);
    match mlockall(MlockAllFlags::MCL_CURRENT | MlockAllFlags::MCL_FUTURE | on_fault) {
        Ok(()) => Locked::All,
        Err(error) => Locked::Nothing(error),
    }
}

/// Whether `/proc/PID/status` is that of a process that may lock what it likes.
fn is_above_limits(status: &str) -> bool {
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let capabilities = effective.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok());
    capabilities.is_some_and(|capabilities| capabilities & CAP_IPC_LOCK != 0)
}

impl Pages {
    /// Locks them, also those that were locked before: the allocator may have given one back and got it again. They
    /// stay locked when the token goes, because others may lie on them.
    fn lock_those_of(&mut self, text: &str) {
        let start = text.as_ptr().addr() / PAGE;
        let end = (text.as_ptr().addr() + text.len()).div_ceil(PAGE);
        let is_known = (start..end).all(|page| self.addresses.contains(&page));
        if !is_known && self.addresses.len() + (end - start) > PAGES_MAX {
            self.some_missing = true;
            return;
        }
        match lock(text) {
            Ok(()) => self.addresses.extend(start..end),
            Err(_) => self.some_missing = true,
        }
    }
}

fn lock(text: &str) -> nix::Result<()> {
    let start: NonNull<c_void> = NonNull::from(text).cast();
    // SAFETY: locking changes nothing about what is in the memory or who may use it.
    #[expect(unsafe_code, reason = "no library locks memory that it has not allocated itself")]
    unsafe {
        mlock(start, text.len())
    }
}

impl fmt::Display for Locked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::All => f.write_str("locked"),
            Self::Nothing(error) => write!(f, "not locked ({error})"),
            Self::Tokens(pages) => {
                let missing = pages.lock().unwrap_or_else(PoisonError::into_inner).some_missing;
                f.write_str(if missing {
                    "partly locked: some of the held tokens, up to the limit of locked memory"
                } else {
                    "partly locked: the held tokens"
                })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_capability_is_told_from_others() {
        let status =
            |set: &str| format!("Name:\ttokend\nCapPrm:\t000001ffffffffff\nCapEff:\t{set}\nSeccomp:\t0\n");
        assert!(is_above_limits(&status("000001ffffffffff")));
        assert!(is_above_limits(&status("0000000000004000")));
        assert!(!is_above_limits(&status("000001ffffffbfff")));
        assert!(!is_above_limits(&status("0000000000000000")));
        assert!(!is_above_limits(""));
    }

    #[test]
    fn a_tokens_pages_are_counted_once_and_no_more_than_are_allowed() {
        let mut pages = Pages::default();
        let text = "x".repeat(3 * PAGE);
        pages.lock_those_of(&text);
        let counted = pages.addresses.len();
        assert!((3..=4).contains(&counted) || pages.some_missing, "{pages:?}");
        pages.lock_those_of(&text);
        assert_eq!(pages.addresses.len(), counted);
        pages.addresses.extend(0..PAGES_MAX - counted);
        pages.lock_those_of(&text);
        pages.lock_those_of(&"y".repeat(2 * PAGE));
        assert!(pages.some_missing);
        assert_eq!(pages.addresses.len(), PAGES_MAX);
    }
}
