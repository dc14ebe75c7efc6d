//! A register of every secret and token of a test run, and the search for them.
//!
//! The harness registers what it makes up, and searches whatever the programs under test write. So each
//! test is also a test that nothing leaks, and a secret of one test is looked for in the logs of all.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;

/// Every form of every secret, with the name by which a finding is reported.
static REGISTER: Mutex<BTreeMap<String, String>> = Mutex::new(BTreeMap::new());

/// Makes up a secret of this kind and registers it. The kind is part of it, so that a person who meets it
/// knows where it came from.
pub fn invent(kind: &str) -> String {
    let text = format!("{:016x}{:016x}-{kind}", fastrand::u64(..), fastrand::u64(..));
    register(kind, &text);
    text
}

/// Makes up a secret with the characters that encodings trip over, of those that RFC 6749 appendix A.2 has.
pub fn invent_awkward(kind: &str) -> String {
    let text = format!("{kind} {:016x}+/=&%:~\"\\", fastrand::u64(..));
    register(kind, &text);
    text
}

/// Registers a text to be searched for, in each form in which it could appear.
pub fn register(kind: &str, text: &str) {
    assert!(text.len() >= 8, "a secret of {} bytes would be found by chance", text.len());
    let encoded: String = form_urlencoded::byte_serialize(text.as_bytes()).collect();
    let quoted = serde_json::to_string(text).unwrap();
    let hexadecimal = text.bytes().fold(String::new(), |hex, byte| format!("{hex}{byte:02x}"));
    let forms = [
        text.to_owned(),
        encoded,
        quoted.trim_matches('"').to_owned(),
        BASE64_STANDARD.encode(text).trim_end_matches('=').to_owned(),
        hexadecimal,
    ];
    let mut register = lock();
    for form in forms {
        register.insert(form, kind.to_owned());
    }
}

/// Registers the credentials of HTTP Basic authentication, whose encoding hides the secret's own.
pub fn register_basic(credentials: &str) {
    register("Basic credentials", &BASE64_STANDARD.encode(credentials));
}

/// The kinds of the secrets that are in a text.
pub fn found_in(text: &str) -> Vec<String> {
    lock().iter().filter(|(form, _)| text.contains(form.as_str())).map(|(_, kind)| kind.clone()).collect()
}

/// How many forms of secrets are searched for.
pub fn count() -> usize {
    lock().len()
}

/// # Panics
/// When a registered secret is in the text. The message says of which kind, without showing it.
pub fn assert_absent(place: &str, text: &str) {
    let found = found_in(text);
    assert!(found.is_empty(), "{place} shows secrets of these kinds: {}", found.join(", "));
}

fn lock() -> MutexGuard<'static, BTreeMap<String, String>> {
    REGISTER.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_found_in_every_form_it_could_take() {
        let secret = invent_awkward("client-secret");
        let encoded: String = form_urlencoded::byte_serialize(secret.as_bytes()).collect();
        let forms = [
            format!("x{secret}y"),
            format!("client_secret={encoded}&grant_type=password"),
            format!("Basic {}", BASE64_STANDARD.encode(&secret)),
            format!("{secret:?}"),
        ];
        for form in forms {
            assert!(found_in(&form).contains(&"client-secret".to_owned()), "{form}");
        }
        assert!(found_in("nothing of that kind").is_empty());
    }
}
