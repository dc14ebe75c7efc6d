//! Tokens that are kept in this process, for any number of readers. The clients do the I/O.

mod watches;

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError, RwLock};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue};
use tokend_protocol::{
    EventReply, Fingerprint, HeadersReply, RejectOutcome, State, TokenInfo, TokenName, TokenReply,
    WatchedToken,
};
use zeroize::Zeroizing;

use crate::Error;
use crate::deadline::{Deadline, now};
use crate::failure::silent;
pub(crate) use watches::{BackOff, Watches};

/// A token of a source, with its header.
#[derive(Debug)]
pub struct SourceToken {
    /// The token, as a `get` returns it.
    pub reply: TokenReply,
    /// The value of the `Authorization` header. It is marked as sensitive, and wiped from memory with its last clone.
    pub header_value: HeaderValue,
}

/// The headers of an API call, with a token of a source.
#[derive(Debug)]
pub struct SourceHeaders {
    /// The lifetime, condition and fingerprint of the token in the headers.
    pub info: TokenInfo,
    /// The headers. All values are marked as sensitive.
    pub map: HeaderMap,
}

impl SourceToken {
    pub(crate) fn new(reply: TokenReply) -> Result<Self, Error> {
        let (scheme, token) = (reply.token_type.as_str(), reply.token.expose());
        // Large enough, so that no part of the token is left behind in a smaller buffer.
        let mut text = Zeroizing::new(String::with_capacity(scheme.len() + 1 + token.len()));
        for part in [scheme, " ", token] {
            text.push_str(part);
        }
        Ok(Self { header_value: sensitive(text)?, reply })
    }

    /// Identifies the token, for `reject`.
    pub fn fingerprint(&self) -> Fingerprint {
        self.reply.info.fingerprint
    }
}

impl SourceHeaders {
    pub(crate) fn new(reply: HeadersReply) -> Result<Self, Error> {
        let mut map = HeaderMap::with_capacity(reply.headers.len());
        for header in reply.headers {
            let name = HeaderName::try_from(header.name.as_str());
            let name = name.map_err(|_| Error::protocol("it has a header whose name is not valid"))?;
            map.append(name, sensitive(Zeroizing::new(header.value.expose().to_owned()))?);
        }
        Ok(Self { info: reply.info, map })
    }

    /// Adds the headers to those of a request, in place of headers with the same names.
    pub fn add_to(&self, headers: &mut HeaderMap) {
        headers.extend(self.map.clone());
    }
}

/// The value of a header. Its memory is wiped with its last clone.
fn sensitive(text: Zeroizing<String>) -> Result<HeaderValue, Error> {
    let value = HeaderValue::from_maybe_shared(Bytes::from_owner(text));
    let mut value = value.map_err(|_| Error::protocol("it has a value that no header can carry"))?;
    value.set_sensitive(true);
    Ok(value)
}

/// The token of one source, for its readers and for the task or thread that writes it.
pub(crate) struct Subscription {
    watched: WatchedToken,
    /// The shortest remaining lifetime that the client accepts, in milliseconds.
    min_ttl_ms: u64,
    /// Locked only to copy or replace a pointer.
    current: RwLock<Current>,
    /// The number of changes, for readers that wait for one.
    changes: Mutex<u64>,
    changed: Condvar,
    #[cfg(feature = "tokio")]
    notify: tokio::sync::Notify,
}

#[derive(Clone)]
struct Current {
    token: Option<Arc<SourceToken>>,
    /// Why there is no token, or no newer one.
    error: Error,
}

impl Subscription {
    pub(crate) fn new(watched: WatchedToken, min_ttl: Duration) -> Self {
        let error = no_token("no token has come from the daemon yet".to_owned());
        Self {
            watched,
            min_ttl_ms: u64::try_from(min_ttl.as_nanos().div_ceil(1_000_000)).unwrap_or(u64::MAX).max(1),
            current: RwLock::new(Current { token: None, error }),
            changes: Mutex::default(),
            changed: Condvar::new(),
            #[cfg(feature = "tokio")]
            notify: tokio::sync::Notify::new(),
        }
    }

    pub(crate) fn watched(&self) -> &WatchedToken {
        &self.watched
    }

    /// The token, if it lasts as long as the client demands.
    #[inline]
    pub(crate) fn held(&self) -> Option<Arc<SourceToken>> {
        let current = self.current.read().unwrap_or_else(PoisonError::into_inner);
        let token = current.token.clone();
        drop(current);
        token.filter(|token| token.reply.info.expires_at.0 >= now().0.saturating_add(self.min_ttl_ms))
    }

    /// The token, or why there is none.
    #[inline]
    pub(crate) fn token(&self) -> Result<Arc<SourceToken>, Error> {
        self.held().ok_or_else(|| self.why_not())
    }

    #[cold]
    fn why_not(&self) -> Error {
        let Current { token, error } = self.current();
        let left = token.map(|token| token.reply.info.remaining(now()));
        match left.filter(|left| !left.is_zero() && left.as_millis() < self.min_ttl_ms.into()) {
            Some(best) => {
                let message = "the token does not last as long as asked".to_owned();
                Error::MinTtlUnreachable { message, best: Some(best) }
            }
            None => error,
        }
    }

    fn current(&self) -> Current {
        self.current.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The next token of which `is_wanted` is true, or the error if waiting is of no use or the deadline passes.
    #[cfg(feature = "tokio")]
    pub(crate) async fn wait(
        &self,
        deadline: Deadline,
        is_wanted: impl Fn(&SourceToken) -> bool,
    ) -> Result<Arc<SourceToken>, Error> {
        loop {
            let mut changed = std::pin::pin!(self.notify.notified());
            changed.as_mut().enable();
            let error = match self.wanted(&is_wanted) {
                Err(error) if error.is_retryable() => error,
                ready => return ready,
            };
            if tokio::time::timeout(deadline.remaining(), changed).await.is_err() {
                return Err(error);
            }
        }
    }

    /// Blocks as the async `wait` waits.
    pub(crate) fn wait_blocking(
        &self,
        deadline: Deadline,
        is_wanted: impl Fn(&SourceToken) -> bool,
    ) -> Result<Arc<SourceToken>, Error> {
        let mut changes = self.changes.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            let error = match self.wanted(&is_wanted) {
                Err(error) if error.is_retryable() => error,
                ready => return ready,
            };
            let (seen, left) = (*changes, deadline.remaining());
            let waited = self.changed.wait_timeout_while(changes, left, |changes| *changes == seen);
            let (guard, timeout) = waited.unwrap_or_else(PoisonError::into_inner);
            if timeout.timed_out() {
                return Err(error);
            }
            changes = guard;
        }
    }

    /// Waits until the number of changes is another one than `seen`. Returns the number.
    #[cfg(feature = "tokio")]
    pub(crate) async fn changed(&self, seen: u64) -> u64 {
        loop {
            let mut changed = std::pin::pin!(self.notify.notified());
            changed.as_mut().enable();
            let present = *self.changes.lock().unwrap_or_else(PoisonError::into_inner);
            if present != seen {
                return present;
            }
            changed.await;
        }
    }

    /// Blocks as the async `changed` waits, but no longer than `wait`.
    pub(crate) fn changed_blocking(&self, seen: u64, wait: Duration) -> u64 {
        let changes = self.changes.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = self.changed.wait_timeout_while(changes, wait, |changes| *changes == seen);
        *waited.unwrap_or_else(PoisonError::into_inner).0
    }

    fn wanted(&self, is_wanted: impl Fn(&SourceToken) -> bool) -> Result<Arc<SourceToken>, Error> {
        self.token().and_then(|token| if is_wanted(&token) { Ok(token) } else { Err(silent()) })
    }

    /// The daemon went away, or does not answer. The token that is held stays in use.
    pub(crate) fn lost(&self, error: &Error) {
        #[cfg(feature = "tracing")]
        self.log_error(error, "the daemon is away");
        let Current { token, .. } = self.current();
        self.publish(Current { token, error: error.clone() });
    }

    /// The daemon ended the watch. If it does so because the caller may not have the token, the token is dropped.
    fn refused(&self, error: Error) {
        #[cfg(feature = "tracing")]
        self.log_error(&error, "the daemon ended the watch");
        let is_refusal = matches!(
            error,
            Error::NotAllowed { .. } | Error::UnknownToken { .. } | Error::InvalidRequest { .. }
        );
        let token = self.current().token.filter(|_| !is_refusal);
        self.publish(Current { token, error });
    }

    /// The condition of the token changed.
    fn event(&self, event: EventReply) {
        let error = event_error(&self.watched.name, &event);
        let held = event.held.map(|held| held.fingerprint);
        #[cfg(feature = "tracing")]
        self.log_event(&event, &error);
        let (token, error) = match event.token.map(SourceToken::new) {
            Some(Ok(token)) => (Some(Arc::new(token)), error),
            Some(Err(error)) => (None, error),
            // The daemon may have dropped the token, because it was configured anew.
            None => (self.current().token.filter(|token| Some(token.fingerprint()) == held), error),
        };
        self.publish(Current { token, error });
    }

    fn publish(&self, current: Current) {
        let mut present = self.current.write().unwrap_or_else(PoisonError::into_inner);
        let former = std::mem::replace(&mut *present, current);
        drop(present);
        // After the lock was released: it wipes the former token.
        drop(former);
        *self.changes.lock().unwrap_or_else(PoisonError::into_inner) += 1;
        self.changed.notify_all();
        #[cfg(feature = "tokio")]
        self.notify.notify_waiters();
    }
}

#[cfg(feature = "tracing")]
impl Subscription {
    /// Logs a new token, or a failure. The daemon logs its own reasons. A new connection brings the present token again, which is
    /// no news.
    fn log_event(&self, event: &EventReply, error: &Error) {
        let name = &self.watched.name;
        let present = self.current().token.map(|token| token.fingerprint());
        let info = event.token.as_ref().map(|token| token.info);
        if let Some(info) = info.filter(|info| Some(info.fingerprint) != present) {
            let (fingerprint, lifetime) = (info.fingerprint, info.remaining(now()));
            tracing::info!(token = %name, %fingerprint, ?lifetime, "a new token");
        } else if let Some(class) = event.last_error.filter(|_| self.is_news(error)) {
            tracing::warn!(token = %name, class = class.as_str(), "the daemon could not renew the token");
        }
    }

    /// Logs why there is no newer token. Repeated attempts fail with the same error.
    fn log_error(&self, error: &Error, what: &str) {
        if self.is_news(error) {
            tracing::warn!(token = %self.watched.name, %error, "{what}");
        }
    }

    fn is_news(&self, error: &Error) -> bool {
        self.current().error.to_string() != error.to_string()
    }
}

impl fmt::Debug for Subscription {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let WatchedToken { name, variant } = &self.watched;
        f.debug_struct("TokenSource").field("name", name).field("variant", variant).finish_non_exhaustive()
    }
}

/// The error of readers while the daemon holds no valid token.
fn event_error(name: &TokenName, event: &EventReply) -> Error {
    let next_attempt = event.next_attempt.map(tokend_protocol::Timestamp::to_system_time);
    let Some(class) = event.last_error else {
        return no_token(format!("the daemon has no valid token of {name} yet"));
    };
    let class_name = class.as_str();
    let message = format!(
        "the daemon has no valid token of {name}, because the last request failed (class {class_name}); an operator \
         sees the reason and the remedy with `tokenctl status {name}`"
    );
    match event.state {
        State::NeedsOperator => Error::NeedsOperator { message, class: Some(class), next_attempt },
        _ => Error::Unavailable { message, class: Some(class), next_attempt },
    }
}

fn no_token(message: String) -> Error {
    Error::Unavailable { message, class: None, next_attempt: None }
}

/// The result of the last rejection, for the callers that wait to reject the same token.
#[derive(Default)]
pub(crate) struct Rejections {
    ended: AtomicU64,
}

/// A rejection that has ended.
pub(crate) struct Rejection {
    number: u64,
    refused: Fingerprint,
    pub(crate) outcome: RejectOutcome,
}

impl Rejections {
    /// The number of rejections that have ended.
    pub(crate) fn ended(&self) -> u64 {
        self.ended.load(Ordering::Acquire)
    }

    pub(crate) fn end(&self, refused: Fingerprint, outcome: RejectOutcome) -> Rejection {
        #[cfg(feature = "tracing")]
        tracing::info!(fingerprint = %refused, ?outcome, "an API refused the token");
        let number = self.ended.fetch_add(1, Ordering::AcqRel) + 1;
        Rejection { number, refused, outcome }
    }
}

impl Rejection {
    /// Whether it also answers a rejection of this token that began after `began` rejections had ended.
    pub(crate) fn answers(&self, refused: Fingerprint, began: u64) -> bool {
        self.refused == refused && self.number > began
    }
}

/// The last headers of a source.
#[derive(Default)]
pub(crate) struct HeaderCache {
    current: RwLock<Option<Arc<SourceHeaders>>>,
}

impl HeaderCache {
    /// The headers with this token.
    pub(crate) fn with_token(&self, fingerprint: Fingerprint) -> Option<Arc<SourceHeaders>> {
        self.current().filter(|headers| headers.info.fingerprint == fingerprint)
    }

    /// The new headers, or the last ones if there are no new ones now and the last ones are still valid.
    pub(crate) fn replace(&self, headers: Result<HeadersReply, Error>) -> Result<Arc<SourceHeaders>, Error> {
        match headers.and_then(SourceHeaders::new) {
            Ok(headers) => {
                let headers = Arc::new(headers);
                let mut present = self.current.write().unwrap_or_else(PoisonError::into_inner);
                *present = Some(Arc::clone(&headers));
                Ok(headers)
            }
            Err(error) => {
                let last = self.current().filter(|_| error.is_retryable());
                last.filter(|last| !last.info.remaining(now()).is_zero()).ok_or(error)
            }
        }
    }

    /// Drops the headers with a token that an API refused.
    pub(crate) fn reject(&self, refused: Fingerprint) {
        let mut present = self.current.write().unwrap_or_else(PoisonError::into_inner);
        present.take_if(|headers| headers.info.fingerprint == refused);
    }

    fn current(&self) -> Option<Arc<SourceHeaders>> {
        self.current.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

#[cfg(test)]
mod tests {
    use tokend_protocol::{BootInstant, Timestamp};

    use super::*;

    #[test]
    fn a_rejection_answers_those_of_the_same_token_that_began_before_it_ended() {
        let (rejections, refused) = (Rejections::default(), Fingerprint([1; 8]));
        let began = rejections.ended();
        let ended = rejections.end(refused, RejectOutcome::TooSoon);
        assert!(ended.answers(refused, began));
        assert!(!ended.answers(Fingerprint([2; 8]), began), "another token");
        assert!(!ended.answers(refused, rejections.ended()), "it began later");
    }

    #[test]
    fn the_last_headers_are_used_while_they_are_valid_and_new_ones_may_come() {
        let headers = |expires_at: BootInstant| {
            let info = TokenInfo {
                issued_at: BootInstant(0),
                expires_at,
                expires_at_wall: Timestamp(0),
                state: State::Fresh,
                last_error: None,
                next_attempt: None,
                fingerprint: Fingerprint([1; 8]),
            };
            Ok(HeadersReply { info, headers: Vec::new() })
        };
        let cache = HeaderCache::default();
        assert!(cache.replace(Err(silent())).is_err(), "there are none");
        cache.replace(headers(BootInstant(now().0 + 3_600_000))).unwrap();
        cache.replace(Err(silent())).unwrap();
        assert!(cache.replace(Err(Error::NotAllowed { message: String::new() })).is_err());
        cache.replace(headers(now())).unwrap();
        assert!(cache.replace(Err(silent())).is_err(), "they have expired");
    }
}
