//! The fast path of a `get`: for a token without a variant that is held and that the caller may have. The reply is encoded once
//! for each change of the token or its condition, and then copied.

use std::sync::Arc;
use std::time::Duration;

use tokend_protocol::{TokenFrame, VERSION, Variant, decode_get};

use super::authorize::{Allowed, InForce};
use super::{Asked, Session, view};
use crate::clock::Instant;
use crate::engine::credential::{Snapshot, Token};
use crate::engine::registry::Entry;
use crate::server::audit::{Operation, Place};

/// How long an encoded reply is used. It contains times by the wall clock, which may be set.
const RENEWED_AFTER: Duration = Duration::from_secs(1);

/// The last answer of the fast path, which is also the answer to equal requests of the same caller until it is forgotten. That
/// is so soon that its age does not matter.
#[derive(Debug, Default)]
pub struct LastHeld {
    held: Option<Held>,
    /// The request of it, without its id.
    request: Vec<u8>,
    /// Tells whether its decision still holds.
    in_force: Option<InForce>,
    /// Whether it was the answer in the present turn already.
    is_of_this_turn: bool,
}

#[derive(Debug)]
struct Held {
    session: Arc<Session>,
    entry: Arc<Entry>,
    snapshot: Arc<Snapshot>,
    frame: Arc<TokenFrame>,
    /// Where the audit counts the hand-outs.
    place: Place,
}

impl LastHeld {
    /// Forgets the answer, which leads to a token.
    pub fn forget(&mut self) {
        self.held = None;
    }

    pub fn begin_turn(&mut self) {
        self.is_of_this_turn = false;
    }

    /// The answer, if it is the answer to this request too.
    fn repeated(&mut self, session: &Arc<Session>, request: &[u8]) -> Option<&Held> {
        let in_force = self.in_force.get_or_insert_with(|| session.in_force());
        if !self.is_of_this_turn && !in_force.is_unchanged() {
            *in_force = session.in_force();
            self.held = None;
        }
        let held = self.held.as_ref()?;
        let is_same = Arc::ptr_eq(&held.session, session)
            && self.request == request
            && (self.is_of_this_turn || !held.snapshot.is_superseded())
            && session.shared.audit.repeat(held.place);
        self.is_of_this_turn |= is_same;
        is_same.then_some(held)
    }
}

impl Session {
    /// Appends the answer to a request, if the fast path has one. Otherwise returns `false`, and [`Session::answer`] answers it by
    /// the same rules.
    pub fn get_held(self: &Arc<Self>, body: &[u8], last: &mut LastHeld, wire: &mut Vec<u8>) -> bool {
        let Some((&[VERSION, a, b, c, d], request)) = body.split_first_chunk() else { return false };
        let id = u32::from_be_bytes([a, b, c, d]);
        if let Some(held) = last.repeated(self, request) {
            held.entry.count_hand_out();
            return append(&held.frame, &held.snapshot, id, wire).is_some();
        }
        self.held(body, request, id, last, wire).is_some()
    }

    /// Decides about a `get`, and counts and audits the hand-out.
    #[inline(never)]
    fn held(
        self: &Arc<Self>,
        body: &[u8],
        request: &[u8],
        id: u32,
        last: &mut LastHeld,
        wire: &mut Vec<u8>,
    ) -> Option<()> {
        last.is_of_this_turn = false;
        let (name, options) = decode_get(body)?;
        // Another thread that serves the caller is not waited for. After a panic the memory is not used any more.
        let mut remembered = self.remembered.try_lock().ok()?;
        let Allowed { entry, reason, counted } = self.remembered(&mut remembered, name)?;
        let (now, min_ttl) = (self.shared.clock.now(), Duration::from_millis(options.min_ttl_ms.into()));
        let snapshot = entry.credential.serve_held(min_ttl, now)?;
        let token = snapshot.token.as_deref()?;
        let frame = snapshot.reply.get(now, || self.encode(&snapshot, token, now))?;
        entry.count_hand_out();
        let is_counted = counted.is_some_and(|(fingerprint, place)| {
            fingerprint == token.fingerprint && self.shared.audit.repeat(place)
        });
        if !is_counted {
            let (name, variant) = (name.parse().ok()?, Variant::default());
            let asked = Asked { operation: Operation::Get, name: &name, variant: &variant };
            let place = self.audit_allowed(asked, entry, reason, Some(token.fingerprint));
            *counted = place.map(|place| (token.fingerprint, place));
        }
        append(&frame, &snapshot, id, wire)?;
        last.held = counted.map(|(_, place)| {
            let (session, entry) = (Arc::clone(self), Arc::clone(entry));
            Held { session, entry, snapshot, frame, place }
        });
        last.request.clear();
        last.request.extend_from_slice(request);
        last.is_of_this_turn = true;
        Some(())
    }

    fn encode(&self, snapshot: &Snapshot, token: &Token, now: Instant) -> Option<(Instant, TokenFrame)> {
        let info = view::token_info(token, snapshot, &self.shared.clock);
        let due = snapshot.next_attempt.filter(|at| *at > now);
        let until = due.into_iter().fold(now.after(RENEWED_AFTER), Instant::min);
        Some((until, TokenFrame::new(&view::token_reply(token, info)).ok()?))
    }
}

/// Appends the answer with the token of its snapshot.
fn append(frame: &TokenFrame, snapshot: &Snapshot, id: u32, wire: &mut Vec<u8>) -> Option<()> {
    let token = snapshot.token.as_ref()?;
    frame.append(id, &token.secret, wire);
    Some(())
}
