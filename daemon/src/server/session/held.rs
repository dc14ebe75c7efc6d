//! The fast path of a `get`: for a token without a variant that is held and that the caller may have. The reply is encoded once
//! for each change of the token or its condition, and then copied.

use std::sync::{Arc, PoisonError};
use std::time::Duration;

use tokend_protocol::{TokenFrame, VERSION, Variant, decode_get};

use super::{Asked, Session, view};
use crate::clock::Instant;
use crate::engine::credential::{Snapshot, Token};
use crate::engine::registry::Entry;
use crate::server::audit::{Operation, Place};

/// How long an encoded reply is used. It contains times by the wall clock, which may be set.
const RENEWED_AFTER: Duration = Duration::from_secs(1);

/// The answer to a `get`, also for equal requests in the same turn.
#[derive(Debug)]
pub struct Held<'a> {
    /// The request, without its id.
    request: &'a [u8],
    snapshot: Arc<Snapshot>,
    frame: Arc<TokenFrame>,
    entry: Arc<Entry>,
    /// Where the audit counts the hand-out, unless it merges it with others.
    place: Option<Place>,
}

impl Session {
    /// Appends the answer to a request, if the fast path has one. Otherwise returns `false`, and [`Session::answer`] answers it by
    /// the same rules. `last` is the previous answer in the same turn.
    pub fn get_held<'a>(&self, body: &'a [u8], last: &mut Option<Held<'a>>, wire: &mut Vec<u8>) -> bool {
        let Some((&[VERSION, a, b, c, d], request)) = body.split_first_chunk() else { return false };
        let is_counted = |place| self.shared.audit.repeat(place);
        let equal = last.take_if(|last| last.request == request && last.place.is_some_and(is_counted));
        *last = equal.inspect(|held| held.entry.count_hand_out()).or_else(|| self.held(body, request));
        let answer = last.as_ref().and_then(|held| Some((&held.frame, held.snapshot.token.as_ref()?)));
        let id = u32::from_be_bytes([a, b, c, d]);
        answer.inspect(|(frame, token)| frame.append(id, &token.secret, wire)).is_some()
    }

    /// Decides about a `get`, and counts and audits the hand-out.
    fn held<'a>(&self, body: &[u8], request: &'a [u8]) -> Option<Held<'a>> {
        let (name, options) = decode_get(body)?;
        let mut remembered = self.remembered.lock().unwrap_or_else(PoisonError::into_inner);
        let registry = self.registry();
        let allowed = self.decide(&mut remembered, &registry, name).ok()?;
        let (now, min_ttl) = (self.shared.clock.now(), Duration::from_millis(options.min_ttl_ms.into()));
        let snapshot = allowed.entry.credential.serve_held(min_ttl, now)?;
        let token = snapshot.token.as_deref()?;
        let frame = snapshot.reply.get(now, || self.encode(&snapshot, token, now))?;
        allowed.entry.count_hand_out();
        let counted = allowed.counted.filter(|(fingerprint, place)| {
            *fingerprint == token.fingerprint && self.shared.audit.repeat(*place)
        });
        if counted.is_none() {
            let (name, variant) = (name.parse().ok()?, Variant::default());
            let asked = Asked { operation: Operation::Get, name: &name, variant: &variant };
            let fingerprint = token.fingerprint;
            let place = self.audit_allowed(asked, &allowed.entry, &allowed.reason, Some(fingerprint));
            allowed.counted = place.map(|place| (fingerprint, place));
        }
        let place = allowed.counted.map(|(_, place)| place);
        Some(Held { request, snapshot, frame, entry: Arc::clone(&allowed.entry), place })
    }

    fn encode(&self, snapshot: &Snapshot, token: &Token, now: Instant) -> Option<(Instant, TokenFrame)> {
        let info = view::token_info(token, snapshot, &self.shared.clock);
        let due = snapshot.next_attempt.filter(|at| *at > now);
        let until = due.into_iter().fold(now.after(RENEWED_AFTER), Instant::min);
        Some((until, TokenFrame::new(&view::token_reply(token, info)).ok()?))
    }
}
