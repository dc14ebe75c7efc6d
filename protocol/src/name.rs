//! The name of a token, checked once when it is parsed.

use std::borrow::Borrow;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize};

use crate::limits::TOKEN_NAME_MAX;

/// The name by which callers ask for a token, as in `[token.NAME]` of the configuration.
///
/// One to 255 ASCII letters, digits and `. _ - @ : +`, beginning with a letter or a digit. So a name is
/// always safe in a path, a unit name, a log line and a terminal. Cloning shares the one copy in memory.
///
/// ```
/// use tokend_protocol::TokenName;
///
/// let name: TokenName = "bnp-aisp".parse()?;
/// assert_eq!(name.as_str(), "bnp-aisp");
/// assert!("../etc/passwd".parse::<TokenName>().is_err());
/// # Ok::<(), tokend_protocol::TokenNameError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct TokenName(Arc<str>);

/// Why a text is not a [`TokenName`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TokenNameError {
    /// The text has no characters.
    #[error("a token name must not be empty")]
    Empty,
    /// The text has more than [`TOKEN_NAME_MAX`] bytes.
    #[error("a token name has at most {TOKEN_NAME_MAX} characters, not {0}")]
    TooLong(usize),
    /// The first character is neither a letter nor a digit.
    #[error("a token name begins with a letter or a digit, not with {0:?}")]
    BadStart(char),
    /// The character is not allowed in a name.
    #[error("a token name has only letters, digits and . _ - @ : +, not {0:?}")]
    BadCharacter(char),
}

impl TokenName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    fn check(text: &str) -> Result<(), TokenNameError> {
        let first = text.chars().next().ok_or(TokenNameError::Empty)?;
        if text.len() > TOKEN_NAME_MAX {
            return Err(TokenNameError::TooLong(text.len()));
        }
        if let Some(bad) = text.chars().find(|c| !(c.is_ascii_alphanumeric() || "._-@:+".contains(*c))) {
            return Err(TokenNameError::BadCharacter(bad));
        }
        if first.is_ascii_alphanumeric() { Ok(()) } else { Err(TokenNameError::BadStart(first)) }
    }
}

impl FromStr for TokenName {
    type Err = TokenNameError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::check(text)?;
        Ok(Self(text.into()))
    }
}

impl fmt::Display for TokenName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl From<TokenName> for Arc<str> {
    fn from(name: TokenName) -> Self {
        name.0
    }
}

impl Borrow<str> for TokenName {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl<'de> Deserialize<'de> for TokenName {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = Box::<str>::deserialize(deserializer)?;
        Self::check(&text).map_err(serde::de::Error::custom)?;
        Ok(Self(text.into()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accepts_the_names_people_use() {
        let longest = "x".repeat(TOKEN_NAME_MAX);
        for text in ["psb", "bnp-aisp", "a.b_c", "user@host:8080+x", "9", &longest] {
            assert_eq!(text.parse::<TokenName>().map(|name| name.to_string()), Ok(text.to_owned()));
        }
    }

    #[test]
    fn refuses_what_could_be_mistaken_for_something_else() {
        use TokenNameError::{BadCharacter, BadStart, Empty, TooLong};
        let cases = [
            ("", Empty),
            ("a/b", BadCharacter('/')),
            ("a\0b", BadCharacter('\0')),
            ("a\nb", BadCharacter('\n')),
            ("naïve", BadCharacter('ï')),
            ("-rf", BadStart('-')),
            ("..", BadStart('.')),
        ];
        for (text, expected) in cases {
            assert_eq!(text.parse::<TokenName>(), Err(expected), "{text:?}");
        }
        assert_eq!("x".repeat(300).parse::<TokenName>(), Err(TooLong(300)));
    }

    #[test]
    fn the_border_check_holds_for_deserialized_names_too() {
        assert!(serde_json::from_str::<TokenName>("\"a/b\"").is_err());
        assert!(serde_json::from_str::<TokenName>("\"a-b\"").is_ok());
    }
}
