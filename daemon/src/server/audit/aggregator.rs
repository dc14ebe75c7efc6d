//! Aggregator the repetitions of a decision into one record with a count. Pure: it writes nothing and reads no clock.
//!
//! The first of its kind is for writing at once; what is like it is counted until the window ends. A caller has
//! only so many kinds of its own in a window. After that, which process it was, and for refusals which name, no
//! longer make another kind: so neither a fork bomb nor made-up names can fill the memory or the journal. No
//! decision is left out of the counts.

use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasher, Hash, Hasher, RandomState};

use tokend_protocol::TokenName;

use super::record::{Decided, Outcome, Record, Verdict};
use crate::access::Facts;

/// Kinds of one user in a window that tell processes and refused names apart. Above what a service has, and few
/// enough that a user cannot have more than some records a second written.
const EXACT_MAX: usize = 64;

/// Kinds in all in a window. What finds no place is written without being folded.
const KINDS_MAX: usize = 16 * 1024;

/// Names that a record of several refusals repeats.
const NAMES_MAX: usize = 8;

/// What has been seen in the window that has not ended.
#[derive(Debug, Default)]
pub(super) struct Aggregator {
    kinds: HashMap<Kind, Fold>,
    /// How many exact kinds each user has.
    exact: HashMap<u32, usize>,
    /// Of windows that have ended, to be written.
    due: VecDeque<(Record, u64)>,
    /// Two keys, because a kind is known by nothing but its hashes.
    keys: [RandomState; 2],
}

/// What one decision has in common with those that it is counted with: 128 bits of keyed hashes, which nobody
/// can aim at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Kind([u64; 2]);

#[derive(Debug)]
struct Fold {
    record: Record,
    more: u64,
}

/// How exactly decisions are told apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Granularity {
    /// By all of it.
    Exact,
    /// By all but the process where it was allowed; by user, verb and reason where it was refused.
    Coarse,
}

impl Aggregator {
    /// Takes a decision in. What comes back is to be written at once; otherwise it has been counted.
    pub(super) fn note(&mut self, decided: Decided<'_>) -> Option<Record> {
        let exact = self.kind(decided, Granularity::Exact);
        if let Some(fold) = self.kinds.get_mut(&exact) {
            fold.more += 1;
            return None;
        }
        if self.kinds.len() >= KINDS_MAX {
            return Some(decided.to_record());
        }
        let of_user = self.exact.entry(decided.peer.uid).or_default();
        if *of_user < EXACT_MAX {
            *of_user += 1;
            return Some(self.open(exact, decided.to_record(), decided));
        }
        let coarse = self.kind(decided, Granularity::Coarse);
        match self.kinds.get_mut(&coarse) {
            Some(fold) => {
                fold.add(decided.token);
                None
            }
            None => Some(self.open(coarse, generalised(decided), decided)),
        }
    }

    /// Ends the window: what was counted becomes due, and everything is a first again.
    pub(super) fn end_window(&mut self) {
        let counted = self.kinds.drain().filter(|(_, fold)| fold.more > 0);
        self.due.extend(counted.map(|(_, fold)| (fold.record, fold.more)));
        self.kinds.shrink_to(EXACT_MAX);
        self.exact = HashMap::new();
    }

    /// The next record that is due, and how many decisions it stands for.
    pub(super) fn next_due(&mut self) -> Option<(Record, u64)> {
        self.due.pop_front()
    }

    /// Whether nothing has been seen in this window.
    pub(super) fn is_empty(&self) -> bool {
        self.kinds.is_empty()
    }

    fn open(&mut self, kind: Kind, kept: Record, decided: Decided<'_>) -> Record {
        self.kinds.insert(kind, Fold { record: kept, more: 0 });
        decided.to_record()
    }

    fn kind(&self, decided: Decided<'_>, grain: Granularity) -> Kind {
        Kind(self.keys.each_ref().map(|key| {
            let mut hasher = key.build_hasher();
            describe(decided, grain, &mut hasher);
            hasher.finish()
        }))
    }
}

impl Fold {
    fn add(&mut self, token: Option<&TokenName>) {
        self.more += 1;
        let Some(token) = token else { return };
        if self.record.tokens.len() < NAMES_MAX && !self.record.tokens.contains(token) {
            self.record.tokens.push(token.clone());
        }
    }
}

fn describe(decided: Decided<'_>, grain: Granularity, hasher: &mut impl Hasher) {
    let Decided { peer, verb, token, variant, fingerprint, outcome } = decided;
    (grain, peer.uid, verb).hash(hasher);
    match (grain, outcome) {
        (Granularity::Coarse, Outcome::Deny(refusal)) => return refusal.generalised().hash(hasher),
        (Granularity::Coarse, Outcome::Allow(rule)) => rule.hash(hasher),
        (Granularity::Exact, Outcome::Deny(refusal)) => (peer.pid, false, refusal).hash(hasher),
        (Granularity::Exact, Outcome::Allow(rule)) => (peer.pid, true, rule).hash(hasher),
    }
    (peer.gid, &peer.unit, &peer.user_unit, &peer.invocation_id, &peer.exe).hash(hasher);
    let variant = variant.map(|variant| (&variant.scope, &variant.resource, &variant.audience));
    (token, variant, fingerprint.map(|fingerprint| fingerprint.0)).hash(hasher);
}

/// What all decisions of a coarse kind have in common. A refused name is one of those that follow.
fn generalised(decided: Decided<'_>) -> Record {
    let mut record = decided.to_record();
    record.peer.pid = None;
    if let Outcome::Deny(refusal) = decided.outcome {
        let peer = Facts { uid: record.peer.uid, gid: record.peer.gid, ..Facts::default() };
        let verdict = Verdict::Deny(refusal.generalised());
        record = Record { peer, tokens: Vec::new(), variant: None, verdict, ..record };
    }
    record
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tokend_protocol::{Fingerprint, Variant};

    use super::super::{Operation, Refusal};
    use super::*;
    use crate::access::{Executable, Id};

    /// A decision as a test makes it up.
    #[derive(Clone, Debug)]
    struct Made {
        peer: Facts,
        verb: Operation,
        token: TokenName,
        variant: Option<Variant>,
        fingerprint: Option<Fingerprint>,
        outcome: Outcome<'static>,
    }

    impl Made {
        fn new(uid: u32, pid: i32, token: u32) -> Self {
            let peer = Facts { uid, gid: uid, pid: Some(pid), ..Facts::default() };
            let token = format!("t{token}").parse().unwrap();
            let outcome = Outcome::Deny(Refusal::NoRule);
            Self { peer, verb: Operation::Get, token, variant: None, fingerprint: None, outcome }
        }

        fn allowed(mut self, rotation: u8) -> Self {
            self.outcome = Outcome::Allow("any");
            self.fingerprint = Some(Fingerprint([rotation; 8]));
            self
        }

        fn decided(&self) -> Decided<'_> {
            Decided {
                peer: &self.peer,
                verb: self.verb,
                token: Some(&self.token),
                variant: self.variant.as_ref(),
                fingerprint: self.fingerprint,
                outcome: self.outcome,
            }
        }
    }

    fn exe(path: String) -> Executable {
        Executable { path: path.into(), file: Id::Number(0) }
    }

    fn drain(folds: &mut Aggregator) -> Vec<(Record, u64)> {
        std::iter::from_fn(|| folds.next_due()).collect()
    }

    #[test]
    fn the_first_is_written_at_once_and_the_rest_are_counted() {
        let mut folds = Aggregator::default();
        let get = Made::new(7, 1, 1).allowed(0);
        assert_eq!(folds.note(get.decided()), Some(get.decided().to_record()));
        (0..9).for_each(|_| assert_eq!(folds.note(get.decided()), None));
        assert!(drain(&mut folds).is_empty(), "the window has not ended");
        folds.end_window();
        assert_eq!(drain(&mut folds), [(get.decided().to_record(), 9)]);
        assert!(folds.is_empty());
        assert!(folds.note(get.decided()).is_some(), "a new window begins with a record");
        folds.end_window();
        assert!(drain(&mut folds).is_empty(), "nothing was repeated");
    }

    #[test]
    fn whatever_differs_is_another_kind() {
        let first = Made::new(7, 1, 1).allowed(0);
        let form = |term: &str| Some(Variant { scope: vec![term.into()], ..Variant::default() });
        let others = [
            Made::new(8, 1, 1).allowed(0),
            Made::new(7, 2, 1).allowed(0),
            Made::new(7, 1, 2).allowed(0),
            Made::new(7, 1, 1).allowed(1),
            Made::new(7, 1, 1),
            Made { verb: Operation::Headers, ..first.clone() },
            Made { variant: form("a"), ..first.clone() },
            Made { variant: form("b"), ..first.clone() },
            Made { outcome: Outcome::Allow("user:7"), ..first.clone() },
            Made { outcome: Outcome::Deny(Refusal::NoSuchToken), ..Made::new(7, 1, 1) },
            Made { peer: Facts { gid: 8, ..first.peer.clone() }, ..first.clone() },
            Made { peer: Facts { invocation_id: Some("1".into()), ..first.peer.clone() }, ..first.clone() },
            Made { peer: Facts { unit: Some("a.service".into()), ..first.peer.clone() }, ..first.clone() },
            Made {
                peer: Facts { user_unit: Some("a.service".into()), ..first.peer.clone() },
                ..first.clone()
            },
            Made { peer: Facts { exe: Some(exe("/a".into())), ..first.peer.clone() }, ..first.clone() },
        ];
        let mut folds = Aggregator::default();
        for made in [&[first][..], &others].concat() {
            assert_eq!(folds.note(made.decided()), Some(made.decided().to_record()), "{made:?}");
        }
    }

    #[test]
    fn made_up_names_and_forked_processes_are_folded_and_the_first_are_named() {
        let mut folds = Aggregator::default();
        let flood = (0..10_000_u32).filter(|n| {
            let mut made = Made::new(7, i32::try_from(*n).unwrap(), *n);
            made.variant = Some(Variant { scope: vec![format!("s{n}")], ..Variant::default() });
            made.peer.unit = Some(format!("a@{n}.service"));
            made.peer.exe = Some(exe(format!("/{n}")));
            folds.note(made.decided()).is_some()
        });
        assert_eq!(flood.count(), EXACT_MAX + 1);
        assert!(folds.note(Made::new(8, 1, 1).decided()).is_some(), "another user has kinds of its own");
        folds.end_window();
        let due = drain(&mut folds);
        let [(record, count)] = due.as_slice() else { panic!("{due:?}") };
        assert_eq!(record.peer, Facts { uid: 7, gid: 7, ..Facts::default() }, "what is so of all of them");
        assert_eq!(record.variant, None);
        assert_eq!(usize::try_from(*count).unwrap(), 10_000 - EXACT_MAX - 1);
        assert_eq!(record.tokens.len(), NAMES_MAX);
    }

    #[test]
    fn a_hand_out_is_never_folded_with_that_of_another_token() {
        let mut folds = Aggregator::default();
        for _ in 0..3 {
            for token in 0..1000 {
                folds.note(Made::new(7, 1, token).allowed(0).decided());
            }
        }
        folds.end_window();
        let due = drain(&mut folds);
        assert_eq!(due.len(), 1000);
        assert!(due.iter().all(|(record, count)| record.tokens.len() == 1 && *count == 2));
    }

    #[test]
    fn hand_outs_to_many_processes_are_folded_by_the_rule_that_let_them() {
        let mut folds = Aggregator::default();
        let crowd = i32::try_from(EXACT_MAX).unwrap() + 11;
        for rule in ["user:7", "group:8"] {
            for pid in 0..crowd {
                let made = Made::new(7, pid, 1).allowed(0);
                folds.note(Made { outcome: Outcome::Allow(rule), ..made }.decided());
            }
        }
        folds.end_window();
        let mut due: Vec<_> =
            drain(&mut folds).into_iter().map(|(record, count)| (record.verdict, count)).collect();
        due.sort_by_key(|(_, count)| *count);
        let by = |rule: &str| Verdict::Allow(rule.to_owned());
        assert_eq!(due, [(by("user:7"), 10), (by("group:8"), u64::try_from(crowd).unwrap() - 1)]);
    }

    #[test]
    fn what_a_caller_is_not_to_tell_apart_is_counted_as_one() {
        let mut folds = Aggregator::default();
        let deny = |folds: &mut Aggregator, token: u32, refusal| {
            let made = Made::new(7, 1, token);
            folds.note(Decided { outcome: Outcome::Deny(refusal), ..made.decided() })
        };
        // All kinds of its own are taken, and the first that finds none makes the common one.
        for token in 0..=u32::try_from(EXACT_MAX).unwrap() {
            assert!(deny(&mut folds, token, Refusal::NoRule).is_some());
        }
        let alike = [Refusal::NoRule, Refusal::NoSuchToken];
        for (token, refusal) in (100..).zip(alike) {
            assert_eq!(deny(&mut folds, token, refusal), None, "{refusal:?} is written and takes longer");
        }
        folds.end_window();
        let due = drain(&mut folds);
        let [(record, 2)] = due.as_slice() else { panic!("{due:?}") };
        assert_eq!(
            record.verdict,
            Verdict::Deny(Refusal::NothingForIt),
            "it says no more than is so of each"
        );
    }

    #[test]
    fn nothing_is_kept_of_a_caller_s_groups() {
        let mut made = Made::new(7, 1, 1);
        made.peer.groups = (0..65_536).collect();
        let mut folds = Aggregator::default();
        assert_eq!(folds.note(made.decided()).unwrap().peer.groups.capacity(), 0);
        assert!(folds.kinds.values().all(|fold| fold.record.peer.groups.capacity() == 0));
    }

    proptest! {
        #[test]
        fn the_counts_add_up_and_memory_is_bounded(
            steps in prop::collection::vec((0_u32..4, 0_i32..200, 0_u32..300, any::<bool>(), 0_u8..20), 0..2000),
        ) {
            let mut folds = Aggregator::default();
            let mut written = 0;
            for (uid, pid, token, allowed, chance) in &steps {
                let made = Made::new(*uid, *pid, *token);
                let made = if *allowed { made.allowed(chance % 2) } else { made };
                written += u64::from(folds.note(made.decided()).is_some());
                match chance {
                    0 => folds.end_window(),
                    1 => written += folds.next_due().map_or(0, |(_, count)| count),
                    _ => (),
                }
            }
            folds.end_window();
            written += drain(&mut folds).iter().map(|(_, count)| count).sum::<u64>();
            prop_assert_eq!(written, steps.len() as u64);
        }
    }

    #[test]
    fn memory_is_bounded_whoever_asks() {
        let mut folds = Aggregator::default();
        let written = (0..40_000).filter(|uid| folds.note(Made::new(*uid, 1, 1).decided()).is_some());
        assert_eq!(written.count(), 40_000, "what finds no place is written");
        assert!(folds.kinds.len() <= KINDS_MAX && folds.exact.len() <= KINDS_MAX);
    }
}
