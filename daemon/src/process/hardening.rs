//! Restrictions that the process puts on itself before it reads its first secret, and limits that it raises.

use std::fs;
use std::panic;

use nix::libc;
use nix::sys::mman::{MlockAllFlags, mlockall};
use nix::sys::prctl;
use nix::sys::resource::{RLIM_INFINITY, Resource, getrlimit, setrlimit};

/// Descriptors that are not for connections: the log, timers, files and providers.
const RESERVED_DESCRIPTORS: u64 = 128;

/// Descriptors per connection: its socket and the pidfd of its peer.
const DESCRIPTORS_EACH: u64 = 2;

/// `CAP_IPC_LOCK` in a capability set (capabilities(7)): `RLIMIT_MEMLOCK` does not apply.
const CAP_IPC_LOCK: u64 = 1 << 14;

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
pub fn keep_descriptors() {
    const FIRST: libc::c_uint = 3;
    // SAFETY: the call closes nothing; it only sets a flag on descriptors.
    #[expect(unsafe_code, reason = "no library wraps this call")]
    let _ =
        unsafe { libc::syscall(libc::SYS_close_range, FIRST, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC) };
}

/// Reports panics as events with the place and a fixed text only: a formatted message could contain a secret.
pub fn report_panics_without_values() {
    panic::set_hook(Box::new(|panic| {
        let place = panic.location().map(ToString::to_string);
        let text = panic.payload().downcast_ref::<&'static str>();
        tracing::error!(place, text, "a fault in the daemon");
    }));
}

/// Raises the limit of open descriptors as far as allowed, and returns the number of connections that it is enough for.
pub fn raise_descriptor_limit() -> usize {
    let connections =
        raise(Resource::RLIMIT_NOFILE, 1024).saturating_sub(RESERVED_DESCRIPTORS) / DESCRIPTORS_EACH;
    usize::try_from(connections).unwrap_or(usize::MAX).max(1)
}

/// Locks all memory, present and future, so that no secret is swapped out. Returns the outcome for `tokenctl status`.
///
/// Under a limit (`RLIMIT_MEMLOCK`) nothing is locked: an allocation beyond the limit would fail and end the daemon.
pub fn lock_memory() -> String {
    match try_lock_memory() {
        Ok(()) => {
            tracing::info!("memory is locked");
            "locked".to_owned()
        }
        Err(reason) => {
            tracing::warn!("memory is not locked and may be swapped: {reason}");
            format!("not locked ({reason})")
        }
    }
}

fn try_lock_memory() -> Result<(), String> {
    let limit = raise(Resource::RLIMIT_MEMLOCK, 0);
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    if limit != RLIM_INFINITY && !has_ipc_lock(&status) {
        return Err(format!("the limit is {limit} bytes; set LimitMEMLOCK=infinity"));
    }
    // Pages that are never touched, such as most of a thread's stack, stay unallocated.
    let on_fault = MlockAllFlags::from_bits_retain(libc::MCL_ONFAULT);
    let all = MlockAllFlags::MCL_CURRENT | MlockAllFlags::MCL_FUTURE | on_fault;
    mlockall(all).map_err(|error| error.to_string())
}

/// Raises a limit as far as allowed and returns it.
fn raise(resource: Resource, default: u64) -> u64 {
    let (soft, hard) = getrlimit(resource).unwrap_or((default, default));
    // The sandbox may forbid the call.
    setrlimit(resource, hard, hard).map_or(soft, |()| hard)
}

/// Whether `/proc/self/status` shows `CAP_IPC_LOCK` in the effective set.
fn has_ipc_lock(status: &str) -> bool {
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let capabilities = effective.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok());
    capabilities.is_some_and(|capabilities| capabilities & CAP_IPC_LOCK != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_capability_is_read_from_the_effective_set() {
        assert!(has_ipc_lock("CapPrm:\t0\nCapEff:\t0000000000004000\n"));
        assert!(has_ipc_lock("CapEff:\t000001ffffffffff\n"));
        assert!(!has_ipc_lock("CapEff:\t0000000000003fff\nCapBnd:\t0000000000004000\n"));
        assert!(!has_ipc_lock(""));
    }
}
