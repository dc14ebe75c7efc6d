//! A provider's words, made fit to be repeated in a log or to a caller: without the secrets that it was sent,
//! in characters that a terminal shows as they are, and not too many. Pure functions.
//!
//! Secrets are removed from the raw words, before anything else. Removed later, one that a cap has cut in two or
//! that has lost a character would not be recognised any more, and what is left of it would show. They are removed
//! once more from what is repeated of the words: a line break within a secret is not, and so it would be whole again.

use zeroize::Zeroizing;

/// The longest description that is repeated, in characters.
const DESCRIPTION_MAX: usize = 200;

/// The longest error code that is repeated, in characters. Those of the RFCs have half of it.
const CODE_MAX: usize = 64;

/// What stands where a secret was. An error code can have it.
const REMOVED: &str = "***";

/// The secrets that a request carried, in every form in which it carried them.
#[derive(Default)]
pub struct SentSecrets {
    /// Longest first, so that a secret which is a part of another one does not leave the rest of it.
    forms: Vec<Zeroizing<String>>,
}

impl std::fmt::Debug for SentSecrets {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SentSecrets").finish_non_exhaustive()
    }
}

impl SentSecrets {
    /// None.
    pub const NONE: Self = Self { forms: Vec::new() };

    /// What `repeated` leaves of a text, without them.
    fn redact(&self, text: &str, repeated: impl Fn(&str) -> String) -> String {
        let raw = self.forms.iter().fold(text.to_owned(), |text, form| text.replace(form.as_str(), REMOVED));
        let forms = self.forms.iter().map(|form| Zeroizing::new(repeated(form)));
        let of_some_length = forms.filter(|form| !form.is_empty());
        of_some_length.fold(repeated(&raw), |text, form| text.replace(form.as_str(), REMOVED))
    }
}

impl FromIterator<Zeroizing<String>> for SentSecrets {
    fn from_iter<I: IntoIterator<Item = Zeroizing<String>>>(forms: I) -> Self {
        let mut forms: Vec<_> = forms.into_iter().filter(|form| !form.is_empty()).collect();
        forms.sort_unstable_by_key(|form| std::cmp::Reverse(form.len()));
        Self { forms }
    }
}

/// An `error` as one word in the characters of RFC 6749 section 5.2, or `None` where nothing is left.
pub fn error_code(text: &str, sent: &SentSecrets) -> Option<String> {
    let in_code = |text: &str| {
        let letters = text.chars().map(|c| if c == ' ' { '_' } else { c });
        letters.filter(|&c| is_code_character(c)).collect()
    };
    let code: String = sent.redact(text, in_code).chars().take(CODE_MAX).collect();
    (!code.is_empty()).then_some(code)
}

/// An `error_description`, for an operator.
pub fn description(text: &str, sent: &SentSecrets) -> String {
    let in_print = |text: &str| text.chars().filter(|&c| is_printable(c)).collect();
    printable(&sent.redact(text, in_print))
}

/// Words that can have no secret in them, for an operator.
pub fn printable(text: &str) -> String {
    text.chars().filter(|&c| is_printable(c)).take(DESCRIPTION_MAX).collect()
}

fn is_code_character(c: char) -> bool {
    matches!(c, '\x20'..='\x21' | '\x23'..='\x5b' | '\x5d'..='\x7e')
}

/// Whether a character shows as itself: no control character, and none that is invisible or changes the order
/// or the look of others.
fn is_printable(c: char) -> bool {
    let is_format = matches!(c,
        '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
        | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}');
    !c.is_control() && !is_format
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn sent(forms: &[&str]) -> SentSecrets {
        forms.iter().map(|form| Zeroizing::new((*form).to_owned())).collect()
    }

    #[test]
    fn a_secret_that_the_cap_would_cut_in_two_leaves_nothing() {
        let sent = sent(&["correct-horse"]);
        for before in [DESCRIPTION_MAX - 5, CODE_MAX - 5] {
            let text = format!("{}correct-horse and more", "x".repeat(before));
            let code = error_code(&text, &sent).unwrap();
            let description = description(&text, &sent);
            assert!(!code.contains("cor") && !description.contains("cor"), "{code}, {description}");
        }
    }

    #[test]
    fn a_secret_leaves_nothing_when_some_of_its_characters_are_not_repeated() {
        let sent = sent(&["my secret", "tab\tbed", "quo\"ted", "ü-secret"]);
        for text in ["bad my secret!", "bad tab\tbed!", "bad quo\"ted!", "bad ü-secret!"] {
            assert_eq!(error_code(text, &sent).unwrap(), "bad_***!", "{text}");
            assert_eq!(description(text, &sent), "bad ***!", "{text}");
        }
    }

    #[test]
    fn a_secret_with_something_in_it_that_is_not_repeated_leaves_nothing() {
        let sent = sent(&["my secret"]);
        for text in ["bad my\n secret!", "bad m\u{7f}y secret!", "bad \u{200b}my secre\r\nt!"] {
            assert_eq!(error_code(text, &sent).unwrap(), "bad_***!", "{text:?}");
            assert_eq!(description(text, &sent), "bad ***!", "{text:?}");
        }
    }

    #[test]
    fn a_secret_that_is_a_part_of_another_leaves_nothing_of_that() {
        assert_eq!(description("is horse-staple right?", &sent(&["horse", "horse-staple"])), "is *** right?");
    }

    #[test]
    fn a_code_is_one_word_in_the_characters_of_the_rfc() {
        let cases = [
            ("invalid_client", Some("invalid_client")),
            ("Invalid client", Some("Invalid_client")),
            ("a\"b\\c\nd\u{1b}[0m\u{202e}é", Some("abcd[0m")),
            ("\u{202e}", None),
            ("", None),
        ];
        for (text, code) in cases {
            assert_eq!(error_code(text, &SentSecrets::NONE).as_deref(), code, "{text:?}");
        }
    }

    #[test]
    fn a_description_in_any_language_shows_as_it_is_read() {
        let text = "clé \u{202e}refusée\u{2066} 拒否\u{200b}\u{feff}\r\n\u{85}";
        assert_eq!(printable(text), "clé refusée 拒否");
    }

    proptest! {
        #[test]
        fn words_have_a_bound_and_no_secret(text: String, before in ".{0,250}") {
            let sent = sent(&["s3cr3t"]);
            let text = format!("{before}s3cr3t{text}");
            let (description, code) = (description(&text, &sent), error_code(&text, &sent).unwrap());
            prop_assert!(description.chars().count() <= DESCRIPTION_MAX && code.len() <= CODE_MAX);
            prop_assert!(!description.contains("s3cr3") && !code.contains("s3cr3"));
        }
    }
}
