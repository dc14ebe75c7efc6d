//! Why a call failed: an object of its own, which the caller asks and frees.

use std::ffi::{CString, c_char};
use std::panic::{AssertUnwindSafe, catch_unwind};

use tokend_client::Error;

use crate::{free, text, unix_seconds};

/// Why a call failed.
#[derive(Debug)]
pub struct Failure {
    code: Code,
    message: CString,
    retry_at: i64,
}

/// The kinds of failures, by what the caller can do.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Code {
    /// No failure.
    Ok,
    /// The daemon cannot be reached.
    NotReachable,
    /// The caller may not do this, or there is no such token.
    NotAllowed,
    /// There is no such token. Only operators get this.
    UnknownToken,
    /// No token now, for a reason that may pass.
    Unavailable,
    /// No token until an operator acts.
    NeedsOperator,
    /// The deadline passed.
    DeadlineExceeded,
    /// The request is not valid: an argument is NULL or not UTF-8, or no token can have this name.
    InvalidRequest,
    /// The daemon and this library do not understand each other. Upgrade one of them.
    Protocol,
    /// The caller or its user has too many connections or requests.
    Overloaded,
    /// No token lasts as long as asked.
    MinTtlUnreachable,
    /// The daemon is stopping.
    ShuttingDown,
    /// A fault in this library.
    Internal,
}

/// The kind of the failure. `TOKEND_CODE_OK` for NULL.
///
/// # Safety
/// `error` is NULL or an error.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tokend_error_code(error: *const Failure) -> Code {
    // SAFETY: the caller promises this.
    unsafe { error.as_ref() }.map_or(Code::Ok, |error| error.code)
}

/// The reason for a person. It contains no secret.
///
/// # Safety
/// `error` is an error, or NULL, of which the message is empty.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tokend_error_message(error: *const Failure) -> *const c_char {
    // SAFETY: the caller promises an error or NULL.
    unsafe { error.as_ref() }.map_or(c"".as_ptr(), |error| error.message.as_ptr())
}

/// When the same call may succeed, in seconds since 1970. 0 if the daemon does not know it.
///
/// # Safety
/// `error` is an error, or NULL, of which the message is empty.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tokend_error_retry_at(error: *const Failure) -> i64 {
    // SAFETY: the caller promises an error or NULL.
    unsafe { error.as_ref() }.map_or(0, |error| error.retry_at)
}

/// Whether the same call may succeed later without anybody changing anything.
///
/// # Safety
/// `error` is an error, or NULL, of which the message is empty.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tokend_error_is_retryable(error: *const Failure) -> bool {
    // SAFETY: the caller promises an error or NULL.
    let code = unsafe { error.as_ref() }.map_or(Code::Ok, |error| error.code);
    matches!(
        code,
        Code::NotReachable
            | Code::Unavailable
            | Code::DeadlineExceeded
            | Code::Overloaded
            | Code::ShuttingDown
    )
}

/// Frees an error. NULL is allowed.
///
/// # Safety
/// The error was set by this library, and is not used any more.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tokend_error_free(error: *mut Failure) {
    // SAFETY: the caller promises this.
    unsafe { free(error) }
}

/// Makes a call, and hands over its error. A panic does not reach the caller.
///
/// # Safety
/// `error` is NULL or the place of a pointer.
pub(crate) unsafe fn call<T>(
    error: *mut *mut Failure,
    failed: T,
    call: impl FnOnce() -> Result<T, Error>,
) -> T {
    let failure = match catch_unwind(AssertUnwindSafe(call)) {
        Ok(Ok(value)) => return value,
        Ok(Err(error)) => Failure {
            code: code(&error),
            message: text(&error.to_string()),
            retry_at: error.next_attempt().map_or(0, unix_seconds),
        },
        Err(_) => {
            let message = text("a fault in libtokend; the standard error has its place");
            Failure { code: Code::Internal, message, retry_at: 0 }
        }
    };
    if !error.is_null() {
        // SAFETY: the caller promises the place of a pointer.
        unsafe { *error = Box::into_raw(Box::new(failure)) };
    }
    failed
}

fn code(error: &Error) -> Code {
    match error {
        Error::NotReachable { .. } => Code::NotReachable,
        Error::NotAllowed { .. } => Code::NotAllowed,
        Error::UnknownToken { .. } => Code::UnknownToken,
        Error::Unavailable { .. } => Code::Unavailable,
        Error::NeedsOperator { .. } => Code::NeedsOperator,
        Error::DeadlineExceeded { .. } => Code::DeadlineExceeded,
        Error::InvalidRequest { .. } => Code::InvalidRequest,
        Error::Overloaded { .. } => Code::Overloaded,
        Error::MinTtlUnreachable { .. } => Code::MinTtlUnreachable,
        Error::ShuttingDown { .. } => Code::ShuttingDown,
        _ => Code::Protocol,
    }
}

#[cfg(test)]
mod tests {
    use std::ptr;

    use super::*;

    #[test]
    fn a_panic_is_an_error() {
        let mut error = ptr::null_mut();
        // SAFETY: the error is freed once.
        unsafe {
            assert_eq!(call(&raw mut error, 7, || panic!("a fault of the test")), 7);
            assert_eq!(tokend_error_code(error), Code::Internal);
            tokend_error_free(error);
        }
    }
}
