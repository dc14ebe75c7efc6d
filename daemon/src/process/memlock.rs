//! Keeps secrets out of swap: locks all memory of the process, where it may.
//!
//! Under a limit (`RLIMIT_MEMLOCK`) nothing is locked: with `MCL_FUTURE` an allocation beyond the limit would fail and
//! end the daemon. The shipped unit sets `LimitMEMLOCK=infinity` and `MemorySwapMax=0`.

use std::fs;

use nix::libc::MCL_ONFAULT;
use nix::sys::mman::{MlockAllFlags, mlockall};
use nix::sys::resource::{RLIM_INFINITY, Resource, getrlimit, setrlimit};

/// `CAP_IPC_LOCK` in a set of capabilities (capabilities(7)): no limit applies.
const CAP_IPC_LOCK: u64 = 1 << 14;

/// Locks all memory, present and future, and returns for the status whether it is locked.
pub fn lock_all() -> String {
    match try_lock_all() {
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

fn try_lock_all() -> Result<(), String> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_MEMLOCK).unwrap_or_default();
    // The sandbox may refuse to raise the limit; then the lower one applies.
    let limit = setrlimit(Resource::RLIMIT_MEMLOCK, hard, hard).map_or(soft, |()| hard);
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    if limit != RLIM_INFINITY && !has_ipc_lock(&status) {
        return Err(format!("the limit is {limit} bytes; set LimitMEMLOCK=infinity"));
    }
    // Pages that are never touched, such as most of a thread's stack, stay unallocated.
    let on_fault = MlockAllFlags::from_bits_retain(MCL_ONFAULT);
    let all = MlockAllFlags::MCL_CURRENT | MlockAllFlags::MCL_FUTURE | on_fault;
    mlockall(all).map_err(|error| error.to_string())
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
