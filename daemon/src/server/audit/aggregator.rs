//! Aggregates repeated decisions into one record with a count. Pure: it writes nothing and reads no clock.
//!
//! The first decision of a kind is written at once, and the decisions like it are counted until the window ends. Each
//! user has a limited number of exact kinds in a window. Decisions beyond that are counted under coarse kinds: hand-outs
//! without the process, refusals by user, operation and reason only. So neither a fork bomb nor made-up names can fill the
//! memory or the journal. No decision is left out of the counts.

use std::borrow::Cow;
use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasher, RandomState};

use super::record::Record;
use crate::access::Facts;

/// Exact kinds of one user in a window: more than a service has, and few enough to limit a user to some records a second.
const EXACT_MAX: usize = 64;

/// Kinds of all users in a window. A decision beyond them is written and not counted.
const KINDS_MAX: usize = 16 * 1024;

/// Names in a record of several refusals.
const NAMES_MAX: usize = 8;

/// The decisions of the window that has not ended.
#[derive(Debug, Default)]
pub(super) struct Aggregator {
    /// The record of each kind, and how often it was repeated.
    pub(super) kinds: HashMap<Kind, (Record<'static>, u64)>,
    /// How many exact kinds each user has.
    exact: HashMap<u32, usize>,
    /// Counts of windows that have ended, to be written.
    pub(super) due: VecDeque<(Record<'static>, u64)>,
    /// Two keys, because a kind is known by its hashes only.
    keys: [RandomState; 2],
}

/// 128 bits of keyed hashes, for which nobody can find a collision.
pub(super) type Kind = [u64; 2];

impl Aggregator {
    /// Counts a decision. Returns whether it is the first of its kind, to be written at once.
    pub(super) fn add(&mut self, record: &Record<'_>) -> bool {
        let exact = self.kind(record);
        if let Some((_, repeats)) = self.kinds.get_mut(&exact) {
            *repeats += 1;
            return false;
        }
        if self.kinds.len() >= KINDS_MAX {
            return true;
        }
        let of_user = self.exact.entry(record.peer.uid).or_default();
        if *of_user < EXACT_MAX {
            *of_user += 1;
            self.kinds.insert(exact, (record.to_kept(), 0));
            return true;
        }
        let general = generalise(record);
        let coarse = self.kind(&general);
        let Some((kept, repeats)) = self.kinds.get_mut(&coarse) else {
            self.kinds.insert(coarse, (general, 0));
            return true;
        };
        *repeats += 1;
        let new = record.tokens.iter().filter(|token| !kept.tokens.contains(token));
        let new: Vec<_> = new.take(NAMES_MAX - kept.tokens.len()).cloned().collect();
        kept.tokens.to_mut().extend(new);
        false
    }

    /// Ends the window: its counts become due, and the next decision of every kind is a first one.
    pub(super) fn end_window(&mut self) {
        self.due.extend(self.kinds.drain().map(|(_, counted)| counted).filter(|(_, repeats)| *repeats > 0));
        self.kinds.shrink_to(EXACT_MAX);
        self.exact = HashMap::new();
    }

    fn kind(&self, record: &Record<'_>) -> Kind {
        self.keys.each_ref().map(|key| key.hash_one(record))
    }
}

/// The record of a coarse kind: of an allowed request all but the process; of a refused one only the user with its group,
/// the operation and the reason.
fn generalise(record: &Record<'_>) -> Record<'static> {
    let mut general = record.to_kept();
    general.peer.to_mut().pid = None;
    if general.decision.is_err() {
        general.peer = Cow::Owned(Facts { uid: record.peer.uid, gid: record.peer.gid, ..Facts::default() });
        general.tokens = Cow::default();
        general.variant = Cow::default();
    }
    general
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tokend_protocol::{Fingerprint, TokenName, Variant};

    use super::super::{Operation, Refusal};
    use super::*;
    use crate::access::{Executable, Id};

    fn exe(path: String) -> Executable {
        Executable { path: path.into(), file: Id::Number(0) }
    }

    fn refused(uid: u32, pid: i32, token: u32) -> Record<'static> {
        let token: TokenName = format!("t{token}").parse().unwrap();
        Record {
            peer: Cow::Owned(Facts { uid, gid: uid, pid: Some(pid), ..Facts::default() }),
            operation: Operation::Get,
            tokens: vec![token].into(),
            variant: Cow::default(),
            fingerprint: None,
            decision: Err(Refusal::NoRule),
        }
    }

    /// Allowed by the rule `user:UID`.
    fn by(uid: u32) -> Cow<'static, str> {
        format!("user:{uid}").into()
    }

    fn allowed(uid: u32, pid: i32, token: u32, rotation: u8) -> Record<'static> {
        let fingerprint = Some(Fingerprint([rotation; 8]));
        Record { fingerprint, decision: Ok(by(7)), ..refused(uid, pid, token) }
    }

    fn drain(aggregator: &mut Aggregator) -> Vec<(Record<'static>, u64)> {
        aggregator.due.drain(..).collect()
    }

    #[test]
    fn the_first_decision_is_written_at_once_and_the_rest_are_counted() {
        let mut aggregator = Aggregator::default();
        let get = allowed(7, 1, 1, 0);
        assert!(aggregator.add(&get));
        (0..9).for_each(|_| assert!(!aggregator.add(&get)));
        assert!(drain(&mut aggregator).is_empty(), "the window has not ended");
        aggregator.end_window();
        assert_eq!(drain(&mut aggregator), [(get.clone(), 9)]);
        assert!(aggregator.kinds.is_empty());
        assert!(aggregator.add(&get), "a new window begins with a record");
        aggregator.end_window();
        assert!(drain(&mut aggregator).is_empty(), "nothing was repeated");
    }

    #[test]
    fn any_difference_makes_another_kind() {
        let first = allowed(7, 1, 1, 0);
        let variant = |term: &str| Cow::Owned(Variant { scope: vec![term.into()], ..Variant::default() });
        let peer = |change: fn(&mut Facts)| {
            let mut record = first.clone();
            change(record.peer.to_mut());
            record
        };
        let others = [
            allowed(8, 1, 1, 0),
            allowed(7, 2, 1, 0),
            allowed(7, 1, 2, 0),
            allowed(7, 1, 1, 1),
            refused(7, 1, 1),
            Record { operation: Operation::Headers, ..first.clone() },
            Record { variant: variant("a"), ..first.clone() },
            Record { variant: variant("b"), ..first.clone() },
            Record { decision: Ok(by(8)), ..first.clone() },
            Record { decision: Err(Refusal::NoSuchToken), ..refused(7, 1, 1) },
            peer(|peer| peer.gid = 8),
            peer(|peer| peer.invocation_id = Some("1".into())),
            peer(|peer| peer.unit = Some("a.service".into())),
            peer(|peer| peer.user_unit = Some("a.service".into())),
            peer(|peer| peer.exe = Some(exe("/a".into()))),
        ];
        let mut aggregator = Aggregator::default();
        for record in [&[first.clone()][..], &others].concat() {
            assert!(aggregator.add(&record), "{record:?}");
        }
    }

    #[test]
    fn made_up_names_and_forked_processes_are_counted_together_and_the_first_are_named() {
        let mut aggregator = Aggregator::default();
        let flood = (0..10_000_u32).filter(|n| {
            let mut record = refused(7, i32::try_from(*n).unwrap(), *n);
            record.variant.to_mut().scope = vec![format!("s{n}")];
            record.peer.to_mut().unit = Some(format!("a@{n}.service"));
            record.peer.to_mut().exe = Some(exe(format!("/{n}")));
            aggregator.add(&record)
        });
        assert_eq!(flood.count(), EXACT_MAX + 1);
        assert!(aggregator.add(&refused(8, 1, 1)), "another user has kinds of its own");
        aggregator.end_window();
        let due = drain(&mut aggregator);
        let [(record, count)] = due.as_slice() else { panic!("{due:?}") };
        assert_eq!(*record.peer, Facts { uid: 7, gid: 7, ..Facts::default() }, "what they have in common");
        assert!(record.variant.is_empty());
        assert_eq!(usize::try_from(*count).unwrap(), 10_000 - EXACT_MAX - 1);
        assert_eq!(record.tokens.len(), NAMES_MAX);
    }

    #[test]
    fn hand_outs_of_different_tokens_are_counted_apart() {
        let mut aggregator = Aggregator::default();
        for _ in 0..3 {
            for token in 0..1000 {
                aggregator.add(&allowed(7, 1, token, 0));
            }
        }
        aggregator.end_window();
        let due = drain(&mut aggregator);
        assert_eq!(due.len(), 1000);
        assert!(due.iter().all(|(record, count)| record.tokens.len() == 1 && *count == 2));
    }

    #[test]
    fn hand_outs_to_many_processes_are_counted_by_rule() {
        let mut aggregator = Aggregator::default();
        let crowd = i32::try_from(EXACT_MAX).unwrap() + 11;
        for user in [7, 8] {
            for pid in 0..crowd {
                aggregator.add(&Record { decision: Ok(by(user)), ..allowed(7, pid, 1, 0) });
            }
        }
        aggregator.end_window();
        let mut due: Vec<_> =
            drain(&mut aggregator).into_iter().map(|(record, count)| (record.decision, count)).collect();
        due.sort_by_key(|(_, count)| *count);
        assert_eq!(due, [(Ok(by(7)), 10), (Ok(by(8)), u64::try_from(crowd).unwrap() - 1)]);
    }

    #[test]
    fn a_callers_groups_are_not_kept() {
        let mut record = refused(7, 1, 1);
        record.peer.to_mut().groups = (0..65_536).collect::<Vec<u32>>().into();
        let mut aggregator = Aggregator::default();
        aggregator.add(&record);
        assert!(aggregator.kinds.values().all(|(kept, _)| kept.peer.groups.as_slice().is_empty()));
    }

    proptest! {
        #[test]
        fn the_counts_add_up(
            steps in prop::collection::vec((0_u32..4, 0_i32..200, 0_u32..300, any::<bool>(), 0_u8..20), 0..2000),
        ) {
            let mut aggregator = Aggregator::default();
            let mut written = 0;
            for (uid, pid, token, is_allowed, chance) in &steps {
                let record = if *is_allowed {
                    allowed(*uid, *pid, *token, chance % 2)
                } else {
                    refused(*uid, *pid, *token)
                };
                written += u64::from(aggregator.add(&record));
                match chance {
                    0 => aggregator.end_window(),
                    1 => written += aggregator.due.pop_front().map_or(0, |(_, count)| count),
                    _ => (),
                }
            }
            aggregator.end_window();
            written += drain(&mut aggregator).iter().map(|(_, count)| count).sum::<u64>();
            prop_assert_eq!(written, steps.len() as u64);
        }
    }

    #[test]
    fn memory_is_bounded_for_any_number_of_users() {
        let mut aggregator = Aggregator::default();
        let written = (0..40_000).filter(|uid| aggregator.add(&refused(*uid, 1, 1)));
        assert_eq!(written.count(), 40_000, "a decision without a place is written");
        assert!(aggregator.kinds.len() <= KINDS_MAX && aggregator.exact.len() <= KINDS_MAX);
    }
}
