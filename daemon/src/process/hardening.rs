//! What the process gives up before it reads its first secret.

use std::panic;

use nix::libc;
use nix::sys::prctl;
use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// Descriptors that are not for connections: the log, timers, files and providers.
const RESERVED_DESCRIPTORS: u64 = 128;

/// Descriptors of a connection: its socket, and the handle that tells when the process behind it has ended.
const DESCRIPTORS_EACH: u64 = 2;

/// Makes the process undumpable, so that neither a core file nor another process of the same user holds
/// its memory (prctl(2), `PR_SET_DUMPABLE`; `RLIMIT_CORE`).
pub fn forbid_dumps() -> nix::Result<()> {
    // A service manager may have set the limit already and taken the right to set it away.
    if getrlimit(Resource::RLIMIT_CORE)? != (0, 0) {
        setrlimit(Resource::RLIMIT_CORE, 0, 0)?;
    }
    prctl::set_dumpable(false)
}

/// Keeps from programs that are started later what this one was passed or inherited. What it opens itself is kept
/// from them anyway (`close_range(2)`, Linux 5.11).
pub fn keep_descriptors() {
    const AFTER_STANDARD_ERROR: libc::c_uint = 3;
    // SAFETY: the call closes nothing; it changes what happens to descriptors when another program is executed.
    #[expect(unsafe_code, reason = "no library wraps this call")]
    let _older_kernels_do_not_know_it = unsafe {
        libc::syscall(
            libc::SYS_close_range,
            AFTER_STANDARD_ERROR,
            libc::c_uint::MAX,
            libc::CLOSE_RANGE_CLOEXEC,
        )
    };
}

/// Reports panics as events that name only the place and a fixed text. A formatted message could repeat the
/// value that the fault was about, and values here are secrets.
pub fn report_panics_without_values() {
    panic::set_hook(Box::new(|panic| {
        let place = panic.location().map(ToString::to_string);
        let text = panic.payload().downcast_ref::<&'static str>();
        tracing::error!(place, text, "a fault in the daemon");
    }));
}

/// Raises the limit of open descriptors as far as the process may, and tells for how many connections that
/// is enough.
pub fn raise_descriptor_limit() -> usize {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap_or((1024, 1024));
    let limit = match setrlimit(Resource::RLIMIT_NOFILE, hard, hard) {
        Ok(()) => hard,
        Err(_) => soft,
    };
    let connections = limit.saturating_sub(RESERVED_DESCRIPTORS) / DESCRIPTORS_EACH;
    usize::try_from(connections).unwrap_or(usize::MAX).max(1)
}
