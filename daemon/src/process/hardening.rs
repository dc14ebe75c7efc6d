//! Restrictions that the process puts on itself before it reads its first secret, and limits that it raises.

use std::panic;

use nix::libc;
use nix::sys::mman::{MlockAllFlags, mlockall, munlockall};
use nix::sys::prctl;
use nix::sys::resource::{RLIM_INFINITY, Resource, getrlimit, setrlimit};

/// The outcome of [`lock_memory`] if all is locked.
pub const LOCKED: &str = "locked";

/// Makes the process undumpable, so that neither a core file nor another process of the same user gets at its memory
/// (prctl(2), `PR_SET_DUMPABLE`; `RLIMIT_CORE`).
pub fn forbid_dumps() -> nix::Result<()> {
    // The service manager may have set the limit already, and forbidden the call that sets it.
    if getrlimit(Resource::RLIMIT_CORE)? != (0, 0) {
        setrlimit(Resource::RLIMIT_CORE, 0, 0)?;
    }
    prctl::set_dumpable(false)
}

/// Marks all inherited descriptors close-on-exec, so that programs named by `{ command = [...] }` do not get them
/// (`close_range(2)`, Linux 5.11; older kernels ignore the call).
pub fn close_descriptors_on_exec() {
    // SAFETY: the call closes nothing; it only sets a flag on descriptors.
    #[expect(unsafe_code, reason = "no library wraps this call")]
    let _ = unsafe { libc::syscall(libc::SYS_close_range, 3, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC) };
}

/// Reports panics as events with the place and a fixed text only: a formatted message could contain a secret.
pub fn report_panics_without_values() {
    panic::set_hook(Box::new(|panic| {
        let place = panic.location().map(ToString::to_string);
        let text = panic.payload().downcast_ref::<&'static str>();
        tracing::error!(place, text, "a fault in the daemon");
    }));
}

/// Raises the limit of open descriptors as far as allowed, and returns how many connections it allows.
pub fn raise_descriptor_limit() -> usize {
    // 128 descriptors are for the log, timers, files and providers, or three fifths if that is less. A connection takes two:
    // its socket and a pidfd. Of four connections, one is reserved for root.
    let limit = raise(Resource::RLIMIT_NOFILE, 1024);
    let connections = (limit.saturating_sub(128) / 2).max(limit / 5);
    usize::try_from(connections).unwrap_or(usize::MAX).max(4)
}

/// Locks all memory, present and future, so that no secret is swapped out. Returns the outcome for `tokenctl status`. Under
/// a limit (`RLIMIT_MEMLOCK`) nothing is locked: an allocation beyond the limit would fail and end the daemon.
pub fn lock_memory() -> String {
    const CAP_IPC_LOCK: u32 = 14;
    let limit = raise(Resource::RLIMIT_MEMLOCK, 0);
    let locked = if limit == RLIM_INFINITY || crate::peer::has_capability(CAP_IPC_LOCK) {
        lock_all().map_err(|error| error.to_string())
    } else {
        Err(format!("the limit is {limit} bytes; set LimitMEMLOCK=infinity"))
    };
    if let Err(reason) = locked {
        tracing::warn!("memory is not locked and may be swapped: {reason}");
        return format!("not locked ({reason})");
    }
    tracing::info!("memory is locked");
    LOCKED.to_owned()
}

fn lock_all() -> nix::Result<()> {
    // Pages that are never touched, such as most of a thread's stack, stay unallocated.
    let on_fault = MlockAllFlags::from_bits_retain(libc::MCL_ONFAULT);
    mlockall(MlockAllFlags::MCL_CURRENT | MlockAllFlags::MCL_FUTURE | on_fault)
}

/// Gives freed memory back to the kernel, and the program's own pages, of which many are needed at the start only: those that
/// are used again come back from the page cache. Takes milliseconds. The kernel takes no locked memory back, so all is
/// unlocked for that long.
pub fn give_back_memory(is_locked: bool) {
    if is_locked && munlockall().is_err() {
        return;
    }
    // SAFETY: the call changes no memory that is in use.
    #[cfg(target_env = "gnu")]
    #[expect(unsafe_code, reason = "no library wraps malloc_trim(3)")]
    unsafe {
        libc::malloc_trim(0);
    }
    give_back_program();
    if is_locked && let Err(error) = lock_all() {
        tracing::error!(%error, "memory could not be locked again and may be swapped");
    }
}

/// Gives back the program's read-only pages: its code, and the constants before it.
#[expect(unsafe_code, reason = "no library wraps this use of madvise(2)")]
fn give_back_program() {
    unsafe extern "C" {
        /// The first byte of the program, and the end of its code. The linker defines both.
        #[link_name = "__executable_start"]
        static START: u8;
        #[link_name = "etext"]
        static END: u8;
    }
    let (start, end) = (&raw const START, &raw const END);
    // SAFETY: nothing writes to these pages, so that they are the same when they are read from the file again.
    unsafe {
        libc::madvise(start.cast_mut().cast(), end.addr() - start.addr(), libc::MADV_DONTNEED);
    }
}

/// Raises a limit as far as allowed and returns it.
fn raise(resource: Resource, default: u64) -> u64 {
    let (soft, hard) = getrlimit(resource).unwrap_or((default, default));
    // The sandbox may forbid the call.
    setrlimit(resource, hard, hard).map_or(soft, |()| hard)
}
