//! Any bytes as a sealed file: it opens only if it is what was sealed, under its name.
#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use tokend::store::record::Key;
use tokend::store::sealed::Sealer;
use tokend_protocol::Secret;

static SEALER: LazyLock<Sealer> =
    LazyLock::new(|| Sealer::new(&Secret::from("0123456789abcdef".repeat(3))).expect("it is long enough"));

const KEY: Key = Key([7; 32]);

// Where to damage the file (2 bytes) and how, then the record.
fuzz_target!(|input: &[u8]| {
    assert!(SEALER.open("name", input).is_err(), "nobody but the sealer seals");
    let Some((&[low, high, damage], record)) = input.split_first_chunk() else { return };
    let mut file = SEALER.seal("name", &KEY, record).expect("there is randomness");
    assert_eq!(SEALER.open("name", &file), Ok((KEY, record.to_vec())));
    assert!(SEALER.open("other", &file).is_err());
    let place = usize::from(u16::from_le_bytes([low, high])) % file.len();
    assert!(SEALER.open("name", &file[..place]).is_err(), "a part is not the whole");
    file[place] ^= damage;
    assert_eq!(SEALER.open("name", &file).is_ok(), damage == 0);
});
