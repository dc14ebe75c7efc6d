//! Secret texts: access tokens, client secrets, subscription keys.

use std::fmt;
use std::sync::Arc;

use serde::de::{self, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use zeroize::Zeroizing;

/// A secret text. It is wiped from memory when its last owner drops it, and nothing shows it by accident:
/// `Debug` prints a placeholder, there is no `Display`, and only the wire format can serialize it.
///
/// Cloning shares the one copy in memory.
///
/// ```
/// use tokend_protocol::Secret;
///
/// let token = Secret::from(String::from("s3cr3t"));
/// assert_eq!(token.expose(), "s3cr3t");
/// assert_eq!(format!("{token:?}"), "Secret(…)");
/// ```
#[derive(Clone)]
pub struct Secret(Arc<Zeroizing<String>>);

impl Secret {
    /// Returns the text. Check at every call where the text goes.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl From<String> for Secret {
    fn from(text: String) -> Self {
        Self(Arc::new(Zeroizing::new(text)))
    }
}

impl From<Zeroizing<String>> for Secret {
    fn from(text: Zeroizing<String>) -> Self {
        Self(Arc::new(text))
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

/// Compares in constant time for texts of equal length.
impl PartialEq for Secret {
    fn eq(&self, other: &Self) -> bool {
        let (a, b) = (self.expose().as_bytes(), other.expose().as_bytes());
        a.len() == b.len() && a.iter().zip(b).fold(0, |differences, (x, y)| differences | (x ^ y)) == 0
    }
}

impl Eq for Secret {}

impl Serialize for Secret {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if serializer.is_human_readable() {
            return Err(serde::ser::Error::custom("a secret is not written in a readable format"));
        }
        serializer.serialize_str(self.expose())
    }
}

impl<'de> Deserialize<'de> for Secret {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        if deserializer.is_human_readable() {
            return Err(de::Error::custom("a secret is not read from a readable format"));
        }
        deserializer.deserialize_string(SecretVisitor)
    }
}

struct SecretVisitor;

impl Visitor<'_> for SecretVisitor {
    type Value = Secret;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a secret text")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Secret, E> {
        Ok(Secret::from(text.to_owned()))
    }

    fn visit_string<E: de::Error>(self, text: String) -> Result<Secret, E> {
        Ok(Secret::from(text))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "correct-horse-battery-staple";

    #[test]
    fn no_format_shows_the_text() {
        #[derive(Debug)]
        #[expect(dead_code, reason = "read by Debug, which is what is tested")]
        struct Holder {
            secret: Option<Secret>,
        }
        let secret = Secret::from(TEXT.to_owned());
        let holder = Holder { secret: Some(secret.clone()) };
        for shown in
            [format!("{secret:?}"), format!("{secret:#?}"), format!("{holder:?}"), format!("{holder:#?}")]
        {
            assert!(!shown.contains(TEXT), "{shown}");
        }
    }

    #[test]
    fn readable_formats_refuse_it_both_ways() {
        let written = serde_json::to_string(&Secret::from(TEXT.to_owned())).map_err(|e| e.to_string());
        assert!(written.is_err_and(|error| !error.contains(TEXT)));
        let read = serde_json::from_str::<Secret>("\"correct-horse\"").map_err(|e| e.to_string());
        assert!(read.is_err_and(|error| !error.contains("horse")));
    }

    #[test]
    fn equality_is_that_of_the_texts() {
        let secret = |text: &str| Secret::from(text.to_owned());
        assert_eq!(secret("abc"), secret("abc"));
        assert_ne!(secret("abc"), secret("abd"));
        assert_ne!(secret("abc"), secret("abcd"));
    }
}
