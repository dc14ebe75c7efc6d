//! Cleans a provider's text for an operator: removes the secrets of the request and unprintable characters, and
//! caps the length. Pure functions.
//!
//! Secrets are removed before the text is cut or filtered, because afterwards they could not be recognised. They are
//! removed again from the printable text, because dropping a control character can make a split secret whole.

use tokend_protocol::Secret;

/// The longest description that is repeated, in characters.
const DESCRIPTION_MAX: usize = 200;

/// Replaces a secret.
const REMOVED: &str = "***";

/// The secrets that a request carried, in every encoding in which it carried them. Longest first, so that removing a
/// secret does not split a longer one that contains it.
#[derive(Debug, Default)]
pub struct SentSecrets(Vec<Secret>);

impl SentSecrets {
    pub fn new(mut secrets: Vec<String>) -> Self {
        secrets.retain(|secret| !secret.is_empty());
        secrets.sort_unstable_by_key(|secret| std::cmp::Reverse(secret.len()));
        Self(secrets.into_iter().map(Secret::from).collect())
    }

    /// Removes the secrets from a text, before and after `filter` is applied to it.
    fn redact(&self, text: &str, filter: impl Fn(&str) -> String) -> String {
        let secrets = || self.0.iter().map(Secret::expose);
        let raw = secrets().fold(text.to_owned(), |text, secret| text.replace(secret, REMOVED));
        let printed = secrets().map(&filter).filter(|secret| !secret.is_empty());
        printed.fold(filter(&raw), |text, secret| text.replace(&secret, REMOVED))
    }
}

/// A text of the provider, for an operator.
pub fn description(text: &str, sent: &SentSecrets) -> String {
    let in_print = |text: &str| text.chars().filter(|&c| is_printable(c)).collect();
    printable(&sent.redact(text, in_print))
}

/// A text that can hold no secret, for an operator.
pub fn printable(text: &str) -> String {
    text.chars().filter(|&c| is_printable(c)).take(DESCRIPTION_MAX).collect()
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
        SentSecrets::new(forms.iter().map(|form| (*form).to_owned()).collect())
    }

    #[test]
    fn a_secret_that_the_cap_would_cut_in_two_leaves_nothing() {
        let sent = sent(&["correct-horse"]);
        let text = format!("{}correct-horse and more", "x".repeat(DESCRIPTION_MAX - 5));
        assert!(!description(&text, &sent).contains("cor"));
    }

    #[test]
    fn a_secret_leaves_nothing_when_some_of_its_characters_are_not_repeated() {
        let sent = sent(&["my secret", "tab\tbed", "quo\"ted", "ü-secret"]);
        for text in ["bad my secret!", "bad tab\tbed!", "bad quo\"ted!", "bad ü-secret!"] {
            assert_eq!(description(text, &sent), "bad ***!", "{text}");
        }
    }

    #[test]
    fn a_secret_with_something_in_it_that_is_not_repeated_leaves_nothing() {
        let sent = sent(&["my secret"]);
        for text in ["bad my\n secret!", "bad m\u{7f}y secret!", "bad \u{200b}my secre\r\nt!"] {
            assert_eq!(description(text, &sent), "bad ***!", "{text:?}");
        }
    }

    #[test]
    fn a_secret_that_is_a_part_of_another_leaves_nothing_of_that() {
        assert_eq!(description("is horse-staple right?", &sent(&["horse", "horse-staple"])), "is *** right?");
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
            let description = description(&text, &sent);
            prop_assert!(description.chars().count() <= DESCRIPTION_MAX && !description.contains("s3cr3"));
        }
    }
}
