//! Sequences of changes, cut off at every byte of every step: what is read then is the state before the change or
//! the one after it.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

/// What is kept, as far as whoever keeps it knows.
type Model = BTreeMap<u8, Vec<u8>>;

#[derive(Clone, Debug)]
enum Change {
    Put(u8, Vec<u8>),
    Remove(u8),
}

fn key(number: u8) -> Key {
    Key::from_bytes([number; KEY_LENGTH])
}

fn records(bytes: &[u8]) -> Model {
    let contents = read(bytes).unwrap();
    assert!(!contents.is_damaged, "a cut-off change is no damage");
    contents.records.iter().map(|(key, record)| (key.as_bytes()[0], record.to_vec())).collect()
}

/// Does as much of a step as takes so many bytes.
fn carry_out(bytes: &mut Vec<u8>, step: &Step, cut: usize) {
    match step {
        Step::Grow(length) => bytes.resize(bytes.len().max(usize::try_from(*length).unwrap()), 0),
        Step::Write(at, written) => write(bytes, *at, &written[..cut.min(written.len())]),
        Step::Wipe(at, length) => write(bytes, *at, &vec![0; cut.min(*length)]),
    }
}

fn write(bytes: &mut [u8], at: u64, written: &[u8]) {
    let at = usize::try_from(at).unwrap();
    bytes[at..at + written.len()].copy_from_slice(written);
}

fn length(step: &Step) -> usize {
    match step {
        Step::Grow(_) => 0,
        Step::Write(_, bytes) => bytes.len(),
        Step::Wipe(_, length) => *length,
    }
}

fn plan(layout: &Layout, change: &Change) -> Option<Plan> {
    match change {
        Change::Put(number, record) => Some(layout.put(&key(*number), record).unwrap()),
        Change::Remove(number) => layout.remove(&key(*number)),
    }
}

fn apply(model: &mut Model, change: &Change) {
    match change {
        Change::Put(number, record) => drop(model.insert(*number, record.clone())),
        Change::Remove(number) => drop(model.remove(number)),
    }
}

/// Cuts a change off everywhere, and looks each time at what a successor would find.
fn cut_everywhere(bytes: &[u8], plan: &Plan, change: &Change, before: &Model, stride: usize) {
    let mut after = before.clone();
    apply(&mut after, change);
    for (number, step) in plan.steps.iter().enumerate() {
        let cuts = (0..length(step)).step_by(stride).chain([length(step)]);
        for cut in cuts {
            let mut left = bytes.to_vec();
            plan.steps[..number].iter().for_each(|done| carry_out(&mut left, done, usize::MAX));
            carry_out(&mut left, step, cut);
            let found = records(&left);
            // While a record is being wiped, the state before the current one may be what is still there.
            let is_wiping = matches!(change, Change::Remove(_));
            assert!(
                found == *before || found == after || is_wiping && same_but(change, &found, before),
                "{change:?} cut off in step {number} after {cut} bytes: {found:?}"
            );
            if matches!((change, step), (Change::Put(..), Step::Wipe(..))) {
                assert_eq!(found, after, "what is whole is found, whatever is left of the former state");
            }
            if cut % 16 == 0 || cut == length(step) {
                check_that_it_can_go_on(left, &found);
            }
        }
    }
}

fn same_but(change: &Change, found: &Model, before: &Model) -> bool {
    let (Change::Put(number, _) | Change::Remove(number)) = change;
    let without =
        |model: &Model| model.clone().into_iter().filter(|(key, _)| key != number).collect::<Model>();
    without(found) == without(before)
}

/// The successor clears up and goes on from what it found.
fn check_that_it_can_go_on(mut bytes: Vec<u8>, found: &Model) {
    let mut contents = read(&bytes).unwrap();
    for leftover in std::mem::take(&mut contents.leftovers) {
        let step = contents.layout.clear(leftover);
        carry_out(&mut bytes, &step, usize::MAX);
    }
    let mut expected = found.clone();
    for change in
        [Change::Put(1, vec![1; 300]), Change::Put(200, vec![2; 10]), Change::Put(201, vec![3; 700])]
    {
        let plan = plan(&contents.layout, &change).unwrap();
        plan.steps.iter().for_each(|step| carry_out(&mut bytes, step, usize::MAX));
        contents.layout.commit(&plan);
        apply(&mut expected, &change);
    }
    assert_eq!(records(&bytes), expected);
}

fn run(changes: &[Change], stride: usize) -> (Vec<u8>, Layout, Model) {
    let (mut bytes, mut layout, mut model) = (header(), Layout::empty(), Model::new());
    for change in changes {
        let Some(plan) = plan(&layout, change) else { continue };
        if stride > 0 {
            cut_everywhere(&bytes, &plan, change, &model, stride);
        }
        plan.steps.iter().for_each(|step| carry_out(&mut bytes, step, usize::MAX));
        layout.commit(&plan);
        apply(&mut model, change);
        assert_eq!(records(&bytes), model);
    }
    (bytes, layout, model)
}

fn change() -> impl Strategy<Value = Change> {
    let record = proptest::collection::vec(any::<u8>(), 0..1_200);
    prop_oneof![
        4 => (0_u8..5, record).prop_map(|(number, record)| Change::Put(number, record)),
        1 => (0_u8..5).prop_map(Change::Remove),
    ]
}

#[test]
fn a_change_that_is_cut_off_at_any_byte_leaves_the_state_before_or_after() {
    use Change::{Put, Remove};
    let changes = [
        Put(1, b"first".to_vec()),
        Put(2, b"other".to_vec()),
        Put(1, b"second".to_vec()),
        Put(1, b"third".to_vec()),
        Put(1, vec![b'x'; 300]),
        Put(3, b"in the cell that the first outgrew".to_vec()),
        Remove(1),
        Put(4, vec![b'y'; 250]),
        Remove(2),
    ];
    run(&changes, 1);
}

#[test]
fn of_two_states_of_a_record_the_newer_one_is_found_wherever_it_lies() {
    use Change::{Put, Remove};
    // The larger cell, which the record moves to, lies before the smaller one.
    let changes = [Put(1, vec![b'x'; 300]), Put(2, b"former".to_vec()), Remove(1), Put(2, vec![b'y'; 300])];
    run(&changes, 1);
}

#[test]
fn a_change_writes_its_own_cell_and_nothing_else() {
    let changes: Vec<Change> = (0..200).map(|number| Change::Put(number, vec![number; 100])).collect();
    let (bytes, layout, _) = run(&changes, 0);
    let plan = layout.put(&key(17), b"new").unwrap();
    let [Step::Write(at, slot), Step::Wipe(former, 256)] = plan.steps.as_slice() else { panic!("{plan:?}") };
    assert_eq!((slot.len(), at.abs_diff(*former)), (256, 256), "however many records there are");
    assert_eq!(bytes.len(), 64 + 200 * (8 + 2 * 256));
}

#[test]
fn cells_are_used_again() {
    let rounds = |rounds: u8| {
        let round = |number| [Change::Put(number, vec![1; 100]), Change::Remove(number)];
        let changes: Vec<Change> = (0..rounds).flat_map(round).collect();
        run(&changes, 0).0.len()
    };
    assert_eq!(rounds(100), rounds(1));
}

#[test]
fn what_is_not_ours_is_refused_with_the_reason() {
    let refused = |bytes: &[u8]| read(bytes).unwrap_err();
    assert_eq!(refused(b""), Unreadable::Foreign);
    assert_eq!(refused(&[0; 4096]), Unreadable::Foreign);
    let mut flipped = header();
    flipped[9] ^= 1;
    assert_eq!(refused(&flipped), Unreadable::Foreign, "a version without its checksum");
    let mut newer = header();
    newer[8] = 2;
    let checksum = checksum(&[&newer[..16]]);
    newer[16..32].copy_from_slice(&checksum);
    assert_eq!(refused(&newer), Unreadable::Version(2));
}

#[test]
fn a_former_state_is_nowhere_any_more() {
    let changes = [Change::Put(1, b"former".to_vec()), Change::Put(1, b"now".to_vec())];
    let (bytes, _, _) = run(&changes, 0);
    assert!(!bytes.windows(6).any(|window| window == b"former"));
}

#[test]
fn damage_costs_the_record_that_it_is_in_and_damaged_cells_are_told() {
    let changes = [Change::Put(1, b"one".to_vec()), Change::Put(2, b"two".to_vec())];
    let (bytes, _, mut model) = run(&changes, 0);
    let mut damaged = bytes.clone();
    let at = damaged.windows(3).position(|three| three == b"one").unwrap();
    damaged[at] ^= 1;
    model.remove(&1);
    assert_eq!(records(&damaged), model);
    // The head of the second cell.
    let mut damaged = bytes;
    damaged[64 + 8 + 2 * 256 + 5] ^= 1;
    let contents = read(&damaged).unwrap();
    assert!(contents.is_damaged);
    assert!(contents.records.contains_key(&key(1)) && !contents.records.contains_key(&key(2)));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]

    #[test]
    fn any_changes_cut_off_anywhere_leave_the_state_before_or_after(
        changes in proptest::collection::vec(change(), 1..12),
        stride in 7_usize..40,
    ) {
        run(&changes, stride);
    }

    #[test]
    fn flipped_bytes_are_found_and_never_a_panic(
        changes in proptest::collection::vec(change(), 1..12),
        flips in proptest::collection::vec((any::<prop::sample::Index>(), 1_u8..), 1..6),
    ) {
        let (mut bytes, _, _) = run(&changes, 0);
        let written: Vec<Vec<u8>> = changes
            .into_iter()
            .filter_map(|change| match change { Change::Put(_, record) => Some(record), Change::Remove(_) => None })
            .collect();
        for (index, flip) in flips {
            let at = index.index(bytes.len());
            bytes[at] ^= flip;
        }
        if let Ok(contents) = read(&bytes) {
            for record in contents.records.values() {
                prop_assert!(written.iter().any(|known| known.as_slice() == record.as_slice()));
            }
        }
    }

    #[test]
    fn no_bytes_are_a_panic(rest in proptest::collection::vec(any::<u8>(), 0..2_000)) {
        let _ = read(&rest);
        let _ = read(&[header(), rest].concat());
    }
}
