//! The functions of `libtokend.so`, over the blocking client. `include/tokend.h` is made of these sources.
//!
//! A pointer that a function returns belongs to the caller, who frees it with the function of its type. Strings end with a zero
//! byte, and live as long as the object that they are of.

#![expect(unsafe_code, reason = "callers in C hand over raw pointers")]

pub mod failure;

use std::ffi::{CStr, CString, c_char};
use std::fmt;
use std::ptr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokend_client::{CallerHeaders, Error, Options, RejectOutcome, TokenReply, blocking};
use zeroize::Zeroize;

use self::failure::Failure;
use self::failure::call;

/// A client. Any number of threads may use it at the same time.
#[derive(Debug)]
pub struct Client(blocking::Client);

/// An access token. It is erased from memory when it is freed.
#[derive(Debug)]
pub struct Token {
    /// The value of the `Authorization` header, which ends with the token.
    authorization: Wiped,
    scheme_length: usize,
    fingerprint: CString,
    expires_at: i64,
}

/// The headers of an API call. They are erased from memory when they are freed.
#[derive(Debug)]
pub struct Headers {
    headers: Vec<(CString, Wiped)>,
    fingerprint: CString,
}

/// The result of a rejection: the daemon was told that an API refused a token.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The call failed.
    Failed,
    /// There is a new token. Get it, and repeat the API call.
    Replaced,
    /// The daemon held another token already. Get it, and repeat the API call.
    Superseded,
    /// The provider returned the same token. Another one would not help.
    Unchanged,
    /// The daemon did not ask the provider, because this token or the last request is only seconds old.
    TooSoon,
}

/// A text with a zero byte at its end, which is erased when it is dropped.
struct Wiped(CString);

impl fmt::Debug for Wiped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[secret]")
    }
}

impl Drop for Wiped {
    fn drop(&mut self) {
        std::mem::take(&mut self.0).into_bytes_with_nul().zeroize();
    }
}

impl Token {
    fn new(reply: &TokenReply) -> Result<Self, Error> {
        let authorization = Wiped::new(&[&reply.token_type, " ", reply.token.expose()]);
        let scheme_length = reply.token_type.len() + 1;
        if scheme_length > authorization.0.as_bytes().len() {
            return Err(Error::Protocol { message: "the type of the token has a zero byte".to_owned() });
        }
        Ok(Self {
            authorization,
            scheme_length,
            fingerprint: text(&reply.info.fingerprint.to_string()),
            expires_at: unix_seconds(reply.info.expires_at_wall.to_system_time()),
        })
    }
}

impl Wiped {
    /// Tokens and values of headers contain no zero byte; one that does is cut off there.
    fn new(parts: &[&str]) -> Self {
        // Large enough for the zero byte too, so that no copy is left behind in a smaller buffer.
        let mut bytes = Vec::with_capacity(parts.iter().map(|part| part.len()).sum::<usize>() + 1);
        for part in parts {
            bytes.extend_from_slice(part.as_bytes());
        }
        bytes.push(0);
        let end = bytes.iter().position(|byte| *byte == 0).map_or(bytes.len(), |end| end + 1);
        let rest = bytes.split_off(end);
        drop(zeroize::Zeroizing::new(rest));
        Self(CString::from_vec_with_nul(bytes).unwrap_or_default())
    }
}

/// Makes a client. It connects at the first call.
///
/// `socket`: the path of the daemon's socket. With NULL, the one that the variable `TOKEND_SOCKET` names, or else
/// /run/tokend/tokend.sock. `deadline_ms`: how long a call may take in all; 0 stands for 10 seconds.
///
/// # Safety
/// `socket` is NULL or a string.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tokend_client_new(socket: *const c_char, deadline_ms: u32) -> *mut Client {
    let options = if socket.is_null() {
        Options::from_env()
    } else {
        // SAFETY: the caller promises a string.
        let path = unsafe { CStr::from_ptr(socket) };
        Options::new(std::path::PathBuf::from(os_string(path)))
    };
    let deadline = if deadline_ms == 0 {
        tokend_client::DEFAULT_DEADLINE
    } else {
        Duration::from_millis(deadline_ms.into())
    };
    Box::into_raw(Box::new(Client(blocking::Client::new(options.deadline(deadline)))))
}

/// Frees a client. NULL is allowed.
///
/// # Safety
/// The client is of `tokend_client_new`, and is not used any more.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tokend_client_free(client: *mut Client) {
    // SAFETY: the caller promises this.
    unsafe { free(client) }
}

/// Gets a valid access token. Returns NULL upon a failure, and then sets `error`, unless that is NULL.
///
/// `min_ttl_ms`: the shortest remaining lifetime that the caller can use; 0 accepts any valid token.
///
/// # Safety
/// `client` is a client, `name` a string, `error` NULL or the place of a pointer.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tokend_get(
    client: *const Client,
    name: *const c_char,
    min_ttl_ms: u32,
    error: *mut *mut Failure,
) -> *mut Token {
    // SAFETY: the caller promises this.
    unsafe {
        call(error, ptr::null_mut(), || {
            let token = handle(client, name)?.with_min_ttl(Duration::from_millis(min_ttl_ms.into()));
            Ok(Box::into_raw(Box::new(Token::new(&token.get()?)?)))
        })
    }
}

/// The access token.
///
/// # Safety
/// `token` is a token, or NULL, of which all facts are NULL or 0.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tokend_token_value(token: *const Token) -> *const c_char {
    // SAFETY: the caller promises a token or NULL. `Token::new` checks that the scheme is within the text.
    unsafe {
        token.as_ref().map_or(ptr::null(), |token| token.authorization.0.as_ptr().add(token.scheme_length))
    }
}

/// The value of the `Authorization` header with the token, as in `Bearer 2YotnFZFEjr1zCsicMWpAA`.
///
/// # Safety
/// `token` is a token, or NULL, of which all facts are NULL or 0.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tokend_token_authorization(token: *const Token) -> *const c_char {
    // SAFETY: the caller promises a token or NULL.
    unsafe { token.as_ref() }.map_or(ptr::null(), |token| token.authorization.0.as_ptr())
}

/// Identifies the token in `tokend_reject` and in the journal, without revealing it.
///
/// # Safety
/// `token` is a token, or NULL, of which all facts are NULL or 0.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tokend_token_fingerprint(token: *const Token) -> *const c_char {
    // SAFETY: the caller promises a token or NULL.
    unsafe { token.as_ref() }.map_or(ptr::null(), |token| token.fingerprint.as_ptr())
}

/// When the token expires, in seconds since 1970.
///
/// # Safety
/// `token` is a token, or NULL, of which all facts are NULL or 0.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tokend_token_expires_at(token: *const Token) -> i64 {
    // SAFETY: the caller promises a token or NULL.
    unsafe { token.as_ref() }.map_or(0, |token| token.expires_at)
}

/// Erases and frees a token. NULL is allowed.
///
/// # Safety
/// The token is of `tokend_get`, and is not used any more.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tokend_token_free(token: *mut Token) {
    // SAFETY: the caller promises this.
    unsafe { free(token) }
}

/// Gets all headers of an API call, `Authorization` first. Returns NULL upon a failure, and then sets `error`, unless that is NULL.
/// Headers that the configuration leaves to the caller are left out.
///
/// # Safety
/// As `tokend_get`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tokend_headers_get(
    client: *const Client,
    name: *const c_char,
    min_ttl_ms: u32,
    error: *mut *mut Failure,
) -> *mut Headers {
    // SAFETY: the caller promises this.
    unsafe {
        call(error, ptr::null_mut(), || {
            let token = handle(client, name)?.with_min_ttl(Duration::from_millis(min_ttl_ms.into()));
            let reply = token.headers(&CallerHeaders::new())?;
            let header =
                |header: &tokend_client::Header| (text(&header.name), Wiped::new(&[header.value.expose()]));
            let headers = reply.headers.iter().map(header).collect();
            let fingerprint = text(&reply.info.fingerprint.to_string());
            Ok(Box::into_raw(Box::new(Headers { headers, fingerprint })))
        })
    }
}

/// How many headers there are.
///
/// # Safety
/// `headers` is of `tokend_headers_get`, or NULL, which has no headers.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tokend_headers_count(headers: *const Headers) -> usize {
    // SAFETY: the caller promises headers or NULL.
    unsafe { headers.as_ref() }.map_or(0, |headers| headers.headers.len())
}

/// The name of a header, counted from 0. NULL after the last one.
///
/// # Safety
/// As `tokend_headers_count`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tokend_headers_name(headers: *const Headers, index: usize) -> *const c_char {
    // SAFETY: the caller promises headers.
    let header = unsafe { headers.as_ref() }.and_then(|headers| headers.headers.get(index));
    header.map_or(ptr::null(), |(name, _)| name.as_ptr())
}

/// The value of a header, counted from 0. NULL after the last one.
///
/// # Safety
/// As `tokend_headers_count`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tokend_headers_value(headers: *const Headers, index: usize) -> *const c_char {
    // SAFETY: the caller promises headers.
    let header = unsafe { headers.as_ref() }.and_then(|headers| headers.headers.get(index));
    header.map_or(ptr::null(), |(_, value)| value.0.as_ptr())
}

/// Identifies the token in the headers: see `tokend_token_fingerprint`.
///
/// # Safety
/// As `tokend_headers_count`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tokend_headers_fingerprint(headers: *const Headers) -> *const c_char {
    // SAFETY: the caller promises headers or NULL.
    unsafe { headers.as_ref() }.map_or(ptr::null(), |headers| headers.fingerprint.as_ptr())
}

/// Erases and frees headers. NULL is allowed.
///
/// # Safety
/// The headers are of `tokend_headers_get`, and are not used any more.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tokend_headers_free(headers: *mut Headers) {
    // SAFETY: the caller promises this.
    unsafe { free(headers) }
}

/// Reports that an API refused the token with this fingerprint (status 401). Upon a failure, returns `TOKEND_OUTCOME_FAILED` and sets
/// `error`, unless that is NULL.
///
/// # Safety
/// As `tokend_get`; `fingerprint` is a string.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tokend_reject(
    client: *const Client,
    name: *const c_char,
    fingerprint: *const c_char,
    error: *mut *mut Failure,
) -> Outcome {
    // SAFETY: the caller promises this.
    unsafe {
        call(error, Outcome::Failed, || {
            let fingerprint = argument(fingerprint, "the fingerprint")?.parse();
            let fingerprint = fingerprint.map_err(|error| invalid(format!("{error}")))?;
            Ok(match handle(client, name)?.reject(fingerprint)?.outcome {
                RejectOutcome::Replaced => Outcome::Replaced,
                RejectOutcome::Superseded => Outcome::Superseded,
                RejectOutcome::Unchanged => Outcome::Unchanged,
                RejectOutcome::TooSoon => Outcome::TooSoon,
            })
        })
    }
}

/// # Safety
/// The pointer is NULL or of [`Box::into_raw`], and is not used any more.
unsafe fn free<T>(pointer: *mut T) {
    if !pointer.is_null() {
        // SAFETY: the caller promises this.
        drop(unsafe { Box::from_raw(pointer) });
    }
}

/// # Safety
/// `client` is NULL or a client, `name` NULL or a string.
unsafe fn handle(client: *const Client, name: *const c_char) -> Result<blocking::Token, Error> {
    // SAFETY: the caller promises this.
    let (client, name) = unsafe { (client.as_ref(), argument(name, "the name")?) };
    client.ok_or_else(|| invalid("the client is NULL".to_owned()))?.0.token(name)
}

/// # Safety
/// `string` is NULL or a string.
unsafe fn argument<'a>(string: *const c_char, what: &str) -> Result<&'a str, Error> {
    if string.is_null() {
        return Err(invalid(format!("{what} is NULL")));
    }
    // SAFETY: the caller promises a string.
    unsafe { CStr::from_ptr(string) }.to_str().map_err(|_| invalid(format!("{what} is not UTF-8")))
}

fn invalid(message: String) -> Error {
    Error::InvalidRequest { message }
}

/// Without zero bytes, which messages do not contain.
fn text(text: &str) -> CString {
    CString::new(text.replace('\0', "?")).unwrap_or_default()
}

fn unix_seconds(time: SystemTime) -> i64 {
    let seconds = time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    i64::try_from(seconds).unwrap_or(i64::MAX)
}

fn os_string(path: &CStr) -> std::ffi::OsString {
    use std::os::unix::ffi::OsStringExt;
    std::ffi::OsString::from_vec(path.to_bytes().to_vec())
}

#[cfg(test)]
mod tests {
    use std::ffi::CStr;

    use tokend_client::testing::FakeDaemon;

    use super::failure::*;
    use super::*;

    fn string(text: &str) -> CString {
        CString::new(text).unwrap()
    }

    /// # Safety
    /// `pointer` is a string.
    unsafe fn shown(pointer: *const c_char) -> String {
        // SAFETY: the caller promises this.
        unsafe { CStr::from_ptr(pointer) }.to_str().unwrap().to_owned()
    }

    /// Calls with a client of a daemon that has a token `psb`.
    fn with_client(calls: impl FnOnce(*mut Client, &FakeDaemon)) {
        let daemon = FakeDaemon::start().unwrap();
        daemon.set("psb", "first", Duration::from_secs(3600));
        daemon.set_after_reject("psb", "second", Duration::from_secs(3600));
        let socket = string(daemon.socket().to_str().unwrap());
        // SAFETY: the socket is a string, and the client is freed once.
        unsafe {
            let client = tokend_client_new(socket.as_ptr(), 5000);
            calls(client, &daemon);
            tokend_client_free(client);
        }
    }

    #[test]
    fn a_token_is_got_and_replaced() {
        with_client(|client, _| {
            let psb = string("psb");
            // SAFETY: all pointers are of this library, and each is freed once.
            unsafe {
                let token = tokend_get(client, psb.as_ptr(), 0, ptr::null_mut());
                assert_eq!(shown(tokend_token_value(token)), "first");
                assert_eq!(shown(tokend_token_authorization(token)), "Bearer first");
                assert!(tokend_token_expires_at(token) > unix_seconds(SystemTime::now()) + 3500);
                let headers = tokend_headers_get(client, psb.as_ptr(), 0, ptr::null_mut());
                assert_eq!(tokend_headers_count(headers), 1);
                assert_eq!(shown(tokend_headers_name(headers, 0)), "Authorization");
                assert_eq!(shown(tokend_headers_value(headers, 0)), "Bearer first");
                assert!(
                    tokend_headers_name(headers, 1).is_null() && tokend_headers_value(headers, 1).is_null()
                );
                let fingerprint = tokend_token_fingerprint(token);
                assert_eq!(shown(tokend_headers_fingerprint(headers)), shown(fingerprint));
                let reject = || tokend_reject(client, psb.as_ptr(), fingerprint, ptr::null_mut());
                assert_eq!([reject(), reject()], [Outcome::Replaced, Outcome::Superseded]);
                tokend_token_free(token);
                tokend_headers_free(headers);
            }
        });
    }

    #[test]
    fn a_type_with_a_zero_byte_is_an_error() {
        let daemon = FakeDaemon::start().unwrap();
        daemon.set("psb", "first", Duration::from_secs(3600));
        let mut reply = blocking::Client::new(daemon.options()).token("psb").unwrap().get().unwrap();
        for token_type in ["\0", "Bea\0rer", "Bearer\0"] {
            reply.token_type = token_type.to_owned();
            let mut error = ptr::null_mut();
            // SAFETY: the error is freed once.
            unsafe {
                assert!(!call(&raw mut error, false, || Token::new(&reply).map(|_| true)));
                assert_eq!(tokend_error_code(error), Code::Protocol);
                tokend_error_free(error);
            }
        }
    }

    #[test]
    fn each_wrong_argument_is_an_error_and_never_a_crash() {
        with_client(|client, _| {
            let (psb, spaces, nul) = (string("psb"), string("a b"), ptr::null());
            let not_utf8 = CString::new(vec![0xff]).unwrap();
            let get = |client, name: *const c_char| {
                let mut error = ptr::null_mut();
                // SAFETY: the pointers are of this library or NULL, and each is freed once.
                unsafe {
                    assert!(tokend_get(client, name, 0, &raw mut error).is_null());
                    let failure = (tokend_error_code(error), shown(tokend_error_message(error)));
                    assert_eq!((tokend_error_retry_at(error), tokend_error_is_retryable(error)), (0, false));
                    tokend_error_free(error);
                    failure
                }
            };
            let invalid = |message: &str| (Code::InvalidRequest, message.to_owned());
            assert_eq!(get(client, nul), invalid("the name is NULL"));
            assert_eq!(get(client, not_utf8.as_ptr()), invalid("the name is not UTF-8"));
            assert_eq!(get(ptr::null_mut(), psb.as_ptr()), invalid("the client is NULL"));
            assert!(get(client, spaces.as_ptr()).1.contains("letters"));
            assert_eq!(get(client, string("unknown").as_ptr()).0, Code::NotAllowed);
            // SAFETY: NULL is allowed.
            unsafe {
                assert_eq!(tokend_reject(client, psb.as_ptr(), nul, ptr::null_mut()), Outcome::Failed);
                assert_eq!(tokend_error_code(ptr::null()), Code::Ok);
                assert_eq!(shown(tokend_error_message(ptr::null())), "");
                assert_eq!(tokend_error_retry_at(ptr::null()), 0);
                assert!(!tokend_error_is_retryable(ptr::null()));
                assert!(tokend_token_value(ptr::null()).is_null());
                assert!(tokend_token_authorization(ptr::null()).is_null());
                assert!(tokend_token_fingerprint(ptr::null()).is_null());
                assert!(tokend_headers_fingerprint(ptr::null()).is_null());
                assert_eq!((tokend_token_expires_at(ptr::null()), tokend_headers_count(ptr::null())), (0, 0));
                tokend_token_free(ptr::null_mut());
                tokend_headers_free(ptr::null_mut());
                tokend_error_free(ptr::null_mut());
                tokend_client_free(ptr::null_mut());
            }
        });
    }
}
