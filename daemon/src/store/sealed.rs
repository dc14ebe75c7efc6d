//! The format of sealed files. Without the state key they cannot be read, changed or swapped.
//!
//! The name of a file is a keyed hash of its record's key, so that the folder does not show which tokens the host
//! has. Its content is sealed with ChaCha20-Poly1305 under a key for this one write, derived from the state key and
//! 32 random bytes, so that no pair of key and nonce repeats. The name is authenticated too: a file under another
//! name does not open.
//!
//! | at | what |
//! | --- | --- |
//! | 0 | magic (10 bytes), with the version of the format |
//! | 10 | 32 random bytes |
//! | 42 | the sealed key (32 bytes) and record, then 16 bytes that authenticate them |

use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};
use ring::error::Unspecified;
use ring::rand::{SecureRandom, SystemRandom};
use ring::{hkdf, hmac};
use tokend_protocol::Secret;

use super::record::{KEY_LENGTH, Key};

/// The shortest state key, in bytes.
const STATE_KEY_MIN: usize = 32;

const MAGIC: &[u8; 10] = b"tokendRS\x02\0";
const SALT: usize = 32;

#[derive(Debug)]
pub struct Sealer {
    names: hmac::Key,
    contents: hkdf::Prk,
}

impl Sealer {
    pub fn new(state_key: &Secret) -> Result<Self, String> {
        let material = state_key.expose().as_bytes();
        if material.len() < STATE_KEY_MIN {
            return Err(format!(
                "has {} bytes, and a state key has at least {STATE_KEY_MIN}; make one with \
                 `head -c 32 /dev/urandom | base64`",
                material.len()
            ));
        }
        let root = hkdf::Salt::new(hkdf::HKDF_SHA256, b"tokend state key").extract(material);
        let unusable = |Unspecified| "cannot be used".to_owned();
        let names = root.expand(&[b"names"], hmac::HMAC_SHA256).map_err(unusable)?.into();
        let contents = root.expand(&[b"contents"], hkdf::HKDF_SHA256).map_err(unusable)?.into();
        Ok(Self { names, contents })
    }

    pub fn name(&self, key: &Key) -> String {
        let tag = hmac::sign(&self.names, &key.0);
        tag.as_ref().iter().fold(String::new(), |name, byte| name + &format!("{byte:02x}"))
    }

    /// The content of the file of this name. Fails only without randomness.
    pub fn seal(&self, name: &str, key: &Key, record: &[u8]) -> Result<Vec<u8>, Unspecified> {
        let mut salt = [0; SALT];
        SystemRandom::new().fill(&mut salt)?;
        let mut sealed = [&key.0, record].concat();
        let tag = self.write_key(&salt)?.seal_in_place_separate_tag(nonce(), aad(name), &mut sealed)?;
        Ok([MAGIC, salt.as_slice(), &sealed, tag.as_ref()].concat())
    }

    /// The record in the file of this name, and its key; or why it does not open.
    pub fn open(&self, name: &str, file: &[u8]) -> Result<(Key, Vec<u8>), &'static str> {
        let foreign = "is not a sealed record of this release of tokend";
        let rest = file.strip_prefix(MAGIC).ok_or(foreign)?;
        let (salt, sealed) = rest.split_first_chunk::<SALT>().ok_or(foreign)?;
        let mut sealed = sealed.to_vec();
        let opened = self.write_key(salt).and_then(|key| {
            let record = key.open_in_place(nonce(), aad(name), &mut sealed)?;
            let (key, record) = record.split_first_chunk::<KEY_LENGTH>().ok_or(Unspecified)?;
            Ok((Key(*key), record.to_vec()))
        });
        opened.map_err(|Unspecified| "was sealed under another state key, or is damaged")
    }

    /// The key of one write.
    fn write_key(&self, salt: &[u8; SALT]) -> Result<LessSafeKey, Unspecified> {
        let info = [b"tokend record".as_slice(), salt];
        let key = self.contents.expand(&info, &CHACHA20_POLY1305)?;
        Ok(LessSafeKey::new(UnboundKey::from(key)))
    }
}

/// Each key seals one file only, so that a constant nonce is safe.
fn nonce() -> Nonce {
    Nonce::assume_unique_for_key([0; 12])
}

fn aad(name: &str) -> Aad<Vec<u8>> {
    Aad::from([MAGIC, name.as_bytes()].concat())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sealer(text: &str) -> Sealer {
        Sealer::new(&Secret::from(text.to_owned())).unwrap()
    }

    const KEY: &str = "0123456789abcdef0123456789abcdef";
    const RECORD_KEY: Key = Key([1; 32]);
    const RECORD: &[u8] = b"a record with a token";

    #[test]
    fn a_file_opens_only_under_its_state_key_and_name() {
        let one = sealer(KEY);
        let name = one.name(&RECORD_KEY);
        let file = one.seal(&name, &RECORD_KEY, RECORD).unwrap();
        assert_eq!(one.open(&name, &file).unwrap(), (RECORD_KEY, RECORD.to_vec()));
        assert_eq!(sealer(KEY).open(&name, &file).unwrap().1, RECORD, "after a restart");
        let other = one.name(&Key([2; 32]));
        assert_eq!(
            one.open(&other, &file),
            Err("was sealed under another state key, or is damaged"),
            "swapped with another file"
        );
        let foreign = sealer("another key of thirty-two bytes!");
        assert!(foreign.open(&name, &file).is_err());
        assert_ne!(foreign.name(&RECORD_KEY), name);
    }

    #[test]
    fn every_changed_byte_and_every_missing_end_is_noticed() {
        let one = sealer(KEY);
        let file = one.seal("name", &RECORD_KEY, RECORD).unwrap();
        for at in 0..file.len() {
            let mut changed = file.clone();
            changed[at] ^= 1;
            assert!(one.open("name", &changed).is_err(), "byte {at}");
            assert!(one.open("name", &file[..at]).is_err(), "cut after {at}");
        }
        assert!(one.open("name", &[file.as_slice(), b"x"].concat()).is_err());
        let mut newer = file;
        newer[8] = 9;
        assert_eq!(one.open("name", &newer), Err("is not a sealed record of this release of tokend"));
    }

    #[test]
    fn no_two_writes_are_alike_and_none_shows_the_record() {
        let one = sealer(KEY);
        let [first, second] = [(); 2].map(|()| one.seal("name", &RECORD_KEY, RECORD).unwrap());
        assert_ne!(first[MAGIC.len() + SALT..], second[MAGIC.len() + SALT..]);
        assert!(!first.windows(8).any(|bytes| bytes == b"a record"));
    }

    #[test]
    fn a_short_state_key_is_refused_with_the_remedy() {
        let error = Sealer::new(&Secret::from("short".to_owned())).unwrap_err();
        assert!(error.contains("has 5 bytes"), "{error}");
    }
}
