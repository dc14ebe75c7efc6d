//! Records as they may lie on a disk: unreadable, and impossible to change or to swap, for whoever lacks the state
//! key. Pure, but for randomness.
//!
//! A file is named by a keyed hash of its record's key, so that a look at the folder does not tell which tokens the
//! host has. Its content is sealed by ChaCha20-Poly1305, which is as fast as AES where a processor has nothing for
//! AES, under a key for this one writing: it is derived from the state key and 32 random bytes at the head of the
//! file. So there is no nonce that could ever come twice, however many tokens are written over how many years,
//! where 96 random bits would be used up by a hundred thousand of them in five. The file's name is sealed along
//! with it, so that a file under another name does not open.
//!
//! | at | what |
//! | --- | --- |
//! | 0 | magic (8 bytes), version (`u16`, little-endian) |
//! | 10 | 32 random bytes |
//! | 42 | the sealed record, and 16 bytes more that prove it |

use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};
use ring::rand::{SecureRandom, SystemRandom};
use ring::{hkdf, hmac};
use tokend_protocol::Secret;
use zeroize::Zeroizing;

use super::key::Key;
use super::layout::Bytes;
use crate::fingerprint::NoRandomness;

/// The shortest state key, in bytes.
const STATE_KEY_MIN: usize = 32;

const MAGIC: &[u8; 8] = b"tokendRS";
const VERSION: u16 = 1;
const HEAD: usize = 10;
const SALT: usize = 32;

/// Seals and opens records.
pub struct Sealer {
    names: hmac::Key,
    contents: hkdf::Prk,
}

/// The state key is too short to be one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "has {0} bytes, and a state key has at least {STATE_KEY_MIN}; make one with `head -c 32 /dev/urandom | base64`"
)]
pub struct TooShort(usize);

/// Why a file does not open.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unopened {
    /// It was never written by this program, or not to its end.
    #[error("is not a sealed record of tokend")]
    Foreign,
    /// Another release wrote it.
    #[error("has version {0} of the format, and this release reads version {VERSION}")]
    Version(u16),
    /// The system does not let it be read.
    #[error("cannot be read")]
    Unreadable,
    /// Another key sealed it, under another name, or it was changed since.
    #[error("was sealed under another state key, or is damaged")]
    Sealed,
}

impl Sealer {
    /// One for this state key.
    pub fn new(state_key: &Secret) -> Result<Self, TooShort> {
        let material = state_key.expose().as_bytes();
        if material.len() < STATE_KEY_MIN {
            return Err(TooShort(material.len()));
        }
        let root = hkdf::Salt::new(hkdf::HKDF_SHA256, b"tokend state key").extract(material);
        // Fails only for a length that no hash has.
        let names = root.expand(&[b"names"], hmac::HMAC_SHA256).map(hmac::Key::from);
        let contents = root.expand(&[b"contents"], hkdf::HKDF_SHA256).map(hkdf::Prk::from);
        match (names, contents) {
            (Ok(names), Ok(contents)) => Ok(Self { names, contents }),
            _ => Err(TooShort(material.len())),
        }
    }

    /// The name of the file of this key.
    pub fn name(&self, key: &Key) -> String {
        let tag = hmac::sign(&self.names, key.as_bytes());
        tag.as_ref().iter().fold(String::new(), |name, byte| format!("{name}{byte:02x}"))
    }

    /// The content of the file of this name.
    pub fn seal(&self, name: &str, record: &[u8]) -> Result<Vec<u8>, NoRandomness> {
        let mut salt = [0; SALT];
        SystemRandom::new().fill(&mut salt).map_err(|_| NoRandomness)?;
        let head = head();
        let mut sealed = Zeroizing::new(record.to_vec());
        let key = self.key(&salt).ok_or(NoRandomness)?;
        let tag = key.seal_in_place_separate_tag(nonce(), aad(&head, name), &mut sealed);
        let tag = tag.map_err(|_| NoRandomness)?;
        Ok([&head, salt.as_slice(), &sealed, tag.as_ref()].concat())
    }

    /// The record in the file of this name.
    pub fn open(&self, name: &str, file: &[u8]) -> Result<Bytes, Unopened> {
        let (found, rest) = file.split_first_chunk::<HEAD>().ok_or(Unopened::Foreign)?;
        let (magic, version) = found.split_at(MAGIC.len());
        if magic != MAGIC {
            return Err(Unopened::Foreign);
        }
        let version = version.first_chunk().copied().map(u16::from_le_bytes).unwrap_or_default();
        if version != VERSION {
            return Err(Unopened::Version(version));
        }
        let (salt, sealed) = rest.split_first_chunk::<SALT>().ok_or(Unopened::Foreign)?;
        let key = self.key(salt).ok_or(Unopened::Sealed)?;
        let mut record = Zeroizing::new(sealed.to_vec());
        let opened = key.open_in_place(nonce(), aad(found, name), &mut record);
        let length = opened.map_err(|_| Unopened::Sealed)?.len();
        record.truncate(length);
        Ok(record)
    }

    /// The key of one writing.
    fn key(&self, salt: &[u8; SALT]) -> Option<LessSafeKey> {
        let okm = self.contents.expand(&[b"tokend record", salt], &CHACHA20_POLY1305).map(UnboundKey::from);
        okm.ok().map(LessSafeKey::new)
    }
}

impl std::fmt::Debug for Sealer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Sealer")
    }
}

fn head() -> [u8; HEAD] {
    let mut head = [0; HEAD];
    let bytes = MAGIC.iter().copied().chain(VERSION.to_le_bytes());
    head.iter_mut().zip(bytes).for_each(|(place, byte)| *place = byte);
    head
}

/// Each key seals once, so that its nonce may always be the same.
fn nonce() -> Nonce {
    Nonce::assume_unique_for_key([0; 12])
}

fn aad(head: &[u8; HEAD], name: &str) -> Aad<Vec<u8>> {
    Aad::from([head.as_slice(), name.as_bytes()].concat())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sealer(text: &str) -> Sealer {
        Sealer::new(&Secret::from(text.to_owned())).unwrap()
    }

    const KEY: &str = "0123456789abcdef0123456789abcdef";
    const RECORD: &[u8] = b"a record with a token";

    #[test]
    fn what_is_sealed_opens_under_its_key_and_name_alone() {
        let one = sealer(KEY);
        let name = one.name(&Key::from_bytes([1; 32]));
        let file = one.seal(&name, RECORD).unwrap();
        assert_eq!(one.open(&name, &file).unwrap().as_slice(), RECORD);
        assert_eq!(sealer(KEY).open(&name, &file).unwrap().as_slice(), RECORD, "after a restart");
        let other = one.name(&Key::from_bytes([2; 32]));
        assert_eq!(one.open(&other, &file), Err(Unopened::Sealed), "swapped with another file");
        let foreign = sealer("another key of thirty-two bytes!");
        assert_eq!(foreign.open(&name, &file), Err(Unopened::Sealed));
        assert_ne!(foreign.name(&Key::from_bytes([1; 32])), name);
    }

    #[test]
    fn a_changed_byte_or_a_missing_end_is_noticed_wherever_it_is() {
        let one = sealer(KEY);
        let file = one.seal("name", RECORD).unwrap();
        for at in 0..file.len() {
            let mut changed = file.clone();
            changed[at] ^= 1;
            assert!(one.open("name", &changed).is_err(), "byte {at}");
            assert!(one.open("name", &file[..at]).is_err(), "cut after {at}");
        }
        assert!(one.open("name", &[file.as_slice(), b"x"].concat()).is_err());
        let mut newer = file;
        newer[8] = 9;
        assert_eq!(one.open("name", &newer), Err(Unopened::Version(9)));
    }

    #[test]
    fn no_two_writings_are_alike_and_none_shows_the_record() {
        let one = sealer(KEY);
        let [first, second] = [(); 2].map(|()| one.seal("name", RECORD).unwrap());
        assert_ne!(first[HEAD + SALT..], second[HEAD + SALT..]);
        assert!(!first.windows(8).any(|bytes| bytes == b"a record"));
    }

    #[test]
    fn a_short_key_is_refused_with_what_to_do() {
        let error = Sealer::new(&Secret::from("short".to_owned())).unwrap_err();
        assert!(error.to_string().contains("has 5 bytes"), "{error}");
    }
}
