//! Aggregates repeated decisions into one record with a count. Pure: it writes nothing and reads no clock.
//!
//! The first decision of a kind is written at once, and the decisions like it are counted until the window ends. How finely
//! decisions are told apart is a [`Level`]. Each user has a limited number of places at a level in a window. Decisions
//! beyond them are merged at the next level, with a sample of the facts in which they differ. So a caller that varies what it
//! can (its processes, units, programs, variants, names that do not exist) fills neither the memory nor the journal, and takes
//! no place from other users. No decision is left out of the counts.

use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasher, RandomState};

use super::record::Record;
use super::sample::Sample;
use crate::access::NO_ID;

/// The facts that make decisions different ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Level {
    /// All that is written.
    Exact,
    /// The user, the operation and the token. For allowed requests only: names of refused ones may be made up.
    Token,
    /// The user, the operation and the reason of a refusal.
    User,
    /// The operation and the reason of a refusal. There are few of these, so they need no limit.
    Operation,
}

/// The places of one user in a window, and of all users, at a level and the ones before it. So a user has 64 exact kinds, more
/// than a service needs, in at most 13 records a second. Refusals get only a part, so that they leave room for hand-outs.
const LIMITS: [(Level, usize, usize); 3] = [
    (Level::Exact, 64, KINDS_MAX / 2),
    (Level::Token, 1024, KINDS_MAX / 4 * 3),
    (Level::User, 1088, KINDS_MAX),
];

/// Kinds of all users in a window.
const KINDS_MAX: usize = 8 * 1024;

/// The decisions of the window that has not ended.
#[derive(Debug, Default)]
pub(super) struct Aggregator {
    /// Where each kind is counted.
    kinds: HashMap<Kind, usize>,
    pub(super) counts: Vec<Count>,
    /// How many windows have ended.
    window: u64,
    /// How many kinds each user has.
    places: HashMap<u32, usize>,
    /// Counts of windows that have ended, to be written.
    pub(super) due: VecDeque<Count>,
    /// Two keys, because a kind is known by its hashes only.
    keys: [RandomState; 2],
}

/// Where decisions of an exact kind are counted in a window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    window: u64,
    index: usize,
}

/// 128 bits of keyed hashes, for which nobody can find a collision.
pub(super) type Kind = [u64; 2];

/// A kind of decisions, of which the first is written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Count {
    /// The first decision, without the facts in which the others differ.
    pub(super) record: Record<'static>,
    /// How many followed the first.
    pub(super) repeats: u64,
    /// The facts in which those differ. An exact kind has none.
    pub(super) sample: Option<Sample>,
}

impl Aggregator {
    /// Counts a decision. Returns whether it is the first of its kind, to be written at once, and where to count exact
    /// repetitions.
    pub(super) fn add(&mut self, record: &Record<'_>) -> (bool, Option<Place>) {
        let open = LIMITS.into_iter().find_map(|(level, of_user, of_all)| {
            let kind = self.kind(level, record);
            let is_open = self.kinds.contains_key(&kind) || self.has_room(level, record, of_user, of_all);
            is_open.then_some((level, kind))
        });
        let (level, kind) = open.unwrap_or_else(|| (Level::Operation, self.kind(Level::Operation, record)));
        let new = self.counts.len();
        let index = *self.kinds.entry(kind).or_insert(new);
        if let Some(count) = self.counts.get_mut(index) {
            count.repeat(record);
        } else {
            self.counts.push(Count::new(level, record));
            if level != Level::Operation {
                *self.places.entry(record.peer.uid).or_default() += 1;
            }
        }
        (index == new, (level == Level::Exact).then_some(Place { window: self.window, index }))
    }

    /// Where decisions like this one are counted, if there was one in this window.
    pub(super) fn place(&self, record: &Record<'_>) -> Option<Place> {
        let index = *self.kinds.get(&self.kind(Level::Exact, record))?;
        Some(Place { window: self.window, index })
    }

    /// Counts a decision of an exact kind once more. Returns `false`, and counts nothing, if the window has ended.
    pub(super) fn repeat(&mut self, place: Place) -> bool {
        let count = self.counts.get_mut(place.index).filter(|_| place.window == self.window);
        count.map(|count| count.repeats += 1).is_some()
    }

    /// Ends the window: its counts become due, and the next decision of every kind is a first one.
    pub(super) fn end_window(&mut self) {
        self.window += 1;
        (self.kinds, self.places) = (HashMap::new(), HashMap::new());
        self.due.extend(std::mem::take(&mut self.counts).into_iter().filter(|count| count.repeats > 0));
    }

    fn has_room(&self, level: Level, record: &Record<'_>, of_user: usize, of_all: usize) -> bool {
        let used = self.places.get(&record.peer.uid).copied().unwrap_or_default();
        let (of_user, of_all) = match (&record.decision, level) {
            (Ok(_), _) => (of_user, of_all),
            (Err(_), Level::Exact) => (of_user / 2, of_all / 4),
            (Err(_), Level::Token) => (0, 0),
            (Err(_), _) => (of_user, of_all / 4),
        };
        used < of_user && self.counts.len() < of_all
    }

    fn kind(&self, level: Level, record: &Record<'_>) -> Kind {
        let refusal = record.decision.as_ref().err();
        let (uid, operation, token) = (record.peer.uid, record.operation, &record.token);
        self.keys.each_ref().map(|key| match level {
            Level::Exact => key.hash_one((level, record)),
            Level::Token => key.hash_one((level, uid, operation, token)),
            Level::User => key.hash_one((level, uid, operation, refusal)),
            Level::Operation => key.hash_one((level, operation, refusal)),
        })
    }
}

impl Count {
    fn new(level: Level, first: &Record<'_>) -> Self {
        let mut record = first.to_kept();
        if matches!(level, Level::User | Level::Operation) {
            record.token = None;
        }
        if level == Level::Operation {
            record.peer.to_mut().uid = NO_ID;
        }
        Self { record, repeats: 0, sample: (level != Level::Exact).then(Sample::default) }
    }

    fn repeat(&mut self, record: &Record<'_>) {
        self.repeats += 1;
        if let Some(sample) = &mut self.sample {
            sample.add(record.details(&self.record));
            self.record.keep_common(record);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::borrow::Cow;

    use proptest::prelude::*;
    use tokend_protocol::{Fingerprint, TokenName, Variant};

    use super::super::{Operation, Refusal};
    use super::*;
    use crate::access::{Executable, Facts, Id};

    impl Aggregator {
        fn is_first(&mut self, record: &Record<'_>) -> bool {
            self.add(record).0
        }
    }

    fn exe(path: String) -> Executable {
        Executable { path: path.into(), file: Id::Number(0) }
    }

    fn refused(uid: u32, pid: i32, token: u32) -> Record<'static> {
        let token: TokenName = format!("t{token}").parse().unwrap();
        Record {
            peer: Cow::Owned(Facts { uid, gid: uid, pid: Some(pid), ..Facts::default() }),
            operation: Operation::Get,
            token: Some(Cow::Owned(token)),
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

    /// The counts of the window.
    fn counts(aggregator: &mut Aggregator) -> Vec<Count> {
        aggregator.end_window();
        aggregator.due.drain(..).collect()
    }

    #[test]
    fn the_first_decision_is_written_at_once_and_the_rest_are_counted() {
        let mut aggregator = Aggregator::default();
        let get = allowed(7, 1, 1, 0);
        assert!(aggregator.is_first(&get));
        (0..9).for_each(|_| assert!(!aggregator.is_first(&get)));
        assert_eq!(counts(&mut aggregator), [Count { record: get.clone(), repeats: 9, sample: None }]);
        assert!(aggregator.counts.is_empty());
        assert!(aggregator.is_first(&get), "a new window begins with a record");
        assert!(counts(&mut aggregator).is_empty(), "nothing was repeated");
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
            assert!(aggregator.is_first(&record), "{record:?}");
        }
    }

    #[test]
    fn a_process_with_a_number_of_its_own_is_one_caller_whatever_it_runs() {
        let runs = |process, path: &str| {
            let mut record = allowed(7, 1, 1, 0);
            (record.peer.to_mut().process, record.peer.to_mut().exe) =
                (Some(process), Some(exe(path.into())));
            record
        };
        let mut aggregator = Aggregator::default();
        assert!(aggregator.is_first(&runs(1, "/a")));
        assert!(!aggregator.is_first(&runs(1, "/b")));
        assert!(aggregator.is_first(&runs(2, "/a")), "another process");
    }

    #[test]
    fn a_repetition_is_counted_at_its_place_until_the_window_ends() {
        let mut aggregator = Aggregator::default();
        aggregator.add(&allowed(7, 2, 1, 0));
        let (_, place) = aggregator.add(&allowed(7, 1, 1, 0));
        assert!((0..3).all(|_| aggregator.repeat(place.unwrap())));
        let counts = counts(&mut aggregator);
        assert_eq!(
            counts.iter().map(|count| (count.record.peer.pid, count.repeats)).collect::<Vec<_>>(),
            [(Some(1), 3)]
        );
        (8..10).for_each(|pid| _ = aggregator.add(&allowed(7, pid, 9, 0)));
        assert!(!aggregator.repeat(place.unwrap()), "another decision has the place now");
    }

    /// A decision of user 7 in which all that a caller can vary is different for each `n`.
    fn varied(n: u32, mut record: Record<'static>) -> Record<'static> {
        record.variant.to_mut().scope = vec![format!("s{n}")];
        let peer = record.peer.to_mut();
        peer.pid = Some(i32::try_from(n).unwrap());
        peer.gid = n;
        peer.unit = Some(format!("a@{n}.service"));
        peer.user_unit = Some(format!("b@{n}.scope"));
        peer.exe = Some(exe(format!("/{n}")));
        record
    }

    const EXACT: usize = LIMITS[0].1;

    #[test]
    fn refusals_that_differ_in_all_that_a_caller_can_vary_are_one_count_with_a_sample() {
        let mut aggregator = Aggregator::default();
        let written = (0..1000).filter(|n| aggregator.is_first(&varied(*n, refused(7, 1, *n))));
        assert_eq!(written.count(), EXACT / 2 + 1);
        assert!(aggregator.is_first(&refused(8, 1, 1)), "another user has kinds of its own");
        let counts = counts(&mut aggregator);
        let [Count { record, repeats, sample: Some(sample) }] = counts.as_slice() else {
            panic!("{counts:?}")
        };
        assert_eq!(
            *record.peer,
            Facts { uid: 7, gid: NO_ID, ..Facts::default() },
            "what they have in common"
        );
        assert!(record.variant.is_empty() && record.token.is_none());
        assert_eq!(usize::try_from(*repeats).unwrap(), 1000 - EXACT / 2 - 1);
        assert_eq!(sample.others, repeats - 8);
        let first = "1 x token=t33 pid=33 gid=33 unit=a@33.service user_unit=b@33.scope variant=scope=s33 exe=\"/33\"; ";
        assert!(sample.to_string().starts_with(first), "{sample}");
    }

    #[test]
    fn hand_outs_that_differ_in_all_that_a_caller_can_vary_are_one_count_for_each_token() {
        let mut aggregator = Aggregator::default();
        let varied =
            |n| varied(n, Record { decision: Ok(by(n)), ..allowed(7, 1, n % 3, n.to_le_bytes()[0]) });
        let written = (0..3000).filter(|n| aggregator.is_first(&varied(*n)));
        assert_eq!(written.count(), EXACT + 3, "the first of each token, and the exact ones");
        let mut counts = counts(&mut aggregator);
        counts.sort_by_key(|count| count.record.token.clone());
        let counted =
            counts.iter().map(|count| (count.record.token.as_ref().unwrap().as_str(), count.repeats));
        assert_eq!(counted.map(|(_, repeats)| repeats).sum::<u64>(), 3000 - EXACT as u64 - 3);
        for (number, count) in counts.iter().enumerate() {
            assert_eq!(count.record.token.as_ref().unwrap().as_str(), format!("t{number}"));
            assert_eq!((count.record.fingerprint, &count.record.decision), (None, &Ok(Cow::Borrowed(""))));
            assert_eq!(count.sample.as_ref().unwrap().others, count.repeats - 8);
        }
        assert!(counts[0].sample.as_ref().unwrap().to_string().contains(" rule=user:"));
    }

    #[test]
    fn a_merged_record_keeps_what_its_decisions_have_in_common_and_counts_equal_callers_together() {
        let mut aggregator = Aggregator::default();
        let of = |pid| {
            let mut record = allowed(7, pid, 1, 1);
            record.peer.to_mut().unit = Some("a.service".to_owned());
            record
        };
        let crowd = i32::try_from(EXACT).unwrap();
        (0..crowd).for_each(|pid| assert!(aggregator.is_first(&of(pid))));
        assert_eq!(aggregator.add(&of(1000)), (true, None), "the next ones have facts of their own");
        assert!([1001, 1002, 1001].iter().all(|pid| !aggregator.is_first(&of(*pid))));
        let counts = counts(&mut aggregator);
        let [Count { record, repeats: 3, sample: Some(sample) }] = counts.as_slice() else {
            panic!("{counts:?}")
        };
        let mut common = of(0);
        common.peer.to_mut().pid = None;
        assert_eq!(*record, common);
        let [first, second] = ["2 x pid=1001", "1 x pid=1002"]
            .map(|caller| format!("{caller} gid=7 unit=a.service fingerprint=0101010101010101 rule=user:7"));
        assert_eq!((sample.to_string(), sample.others), (format!("{first}; {second}"), 0));
    }

    #[test]
    fn hand_outs_of_different_tokens_are_counted_apart() {
        let mut aggregator = Aggregator::default();
        for _ in 0..3 {
            for token in 0..1000 {
                aggregator.is_first(&allowed(7, 1, token, 0));
            }
        }
        let counts = counts(&mut aggregator);
        assert_eq!(counts.len(), 1000);
        assert!(counts.iter().all(|count| count.record.token.is_some() && count.repeats == 2));
    }

    #[test]
    fn refusals_of_a_user_with_many_tokens_are_counted_as_that_users() {
        let mut aggregator = Aggregator::default();
        (0..1000).for_each(|token| assert!(aggregator.is_first(&allowed(7, 1, token, 0))));
        (0..9).for_each(|n| _ = aggregator.is_first(&refused(7, 1, n)));
        let counts = counts(&mut aggregator);
        assert_eq!(
            counts.iter().map(|count| (count.record.peer.uid, count.repeats)).collect::<Vec<_>>(),
            [(7, 8)]
        );
    }

    #[test]
    fn a_callers_groups_are_not_kept() {
        let mut record = refused(7, 1, 1);
        record.peer.to_mut().groups = (0..65_536).collect::<Vec<u32>>().into();
        let mut aggregator = Aggregator::default();
        aggregator.is_first(&record);
        assert!(aggregator.counts.iter().all(|count| count.record.peer.groups.as_slice().is_empty()));
    }

    proptest! {
        #[test]
        fn the_counts_add_up(
            steps in prop::collection::vec((0_u32..4, 0_i32..200, 0_u32..300, any::<bool>(), 0_u8..20), 0..600),
        ) {
            let mut aggregator = Aggregator::default();
            let mut written = 0;
            for (uid, pid, token, is_allowed, chance) in &steps {
                let record = if *is_allowed {
                    allowed(*uid, *pid, *token, chance % 2)
                } else {
                    refused(*uid, *pid, *token)
                };
                written += u64::from(aggregator.is_first(&record));
                match chance {
                    0 => aggregator.end_window(),
                    1 => written += aggregator.due.pop_front().map_or(0, |count| count.repeats),
                    _ => (),
                }
            }
            written += counts(&mut aggregator).iter().map(|count| count.repeats).sum::<u64>();
            prop_assert_eq!(written, steps.len() as u64);
        }
    }

    #[test]
    fn records_and_memory_are_bounded_for_any_number_of_users() {
        let mut aggregator = Aggregator::default();
        let written = (0..10_000).filter(|uid| aggregator.is_first(&refused(*uid, 1, 1)));
        assert_eq!(written.count(), KINDS_MAX / 4 + 1);
        assert!(aggregator.counts.len() <= KINDS_MAX && aggregator.places.len() <= KINDS_MAX);
        let counts = counts(&mut aggregator);
        let [Count { record, repeats, sample: Some(sample) }] = counts.as_slice() else {
            panic!("{counts:?}")
        };
        assert_eq!(
            (record.peer.uid, usize::try_from(*repeats).unwrap()),
            (NO_ID, 10_000 - KINDS_MAX / 4 - 1)
        );
        let first = KINDS_MAX / 4 + 1;
        assert!(sample.to_string().starts_with(&format!("1 x uid={first} token=t1 pid=1 ")), "{sample}");
    }

    #[test]
    fn refusals_leave_room_for_hand_outs() {
        let mut aggregator = Aggregator::default();
        let mut exact_of = |uid| {
            let hand_outs = (0..100).filter(|pid| aggregator.is_first(&allowed(uid, *pid, 1, 0))).count();
            (0..10_000).for_each(|uid| _ = aggregator.is_first(&refused(uid, 1, 1)));
            hand_outs
        };
        assert_eq!([exact_of(50_000), exact_of(50_001)], [EXACT + 1; 2], "refusals of many users");
        aggregator.end_window();
        (0..100).for_each(|token| _ = aggregator.is_first(&refused(7, 1, token)));
        let exact = (0..100).filter(|pid| aggregator.is_first(&allowed(7, *pid, 1, 0)));
        assert_eq!(exact.count(), EXACT / 2, "refusals of the same user");
    }

    #[test]
    fn a_user_with_many_tokens_leaves_room_for_others() {
        let mut aggregator = Aggregator::default();
        (0..5000).for_each(|token| _ = aggregator.is_first(&allowed(7, 1, token, 0)));
        let of_user = aggregator.counts.len();
        assert!(of_user < KINDS_MAX / 4, "{of_user}");
        assert!((0..EXACT).all(|pid| aggregator.is_first(&allowed(8, i32::try_from(pid).unwrap(), 1, 0))));
    }
}
