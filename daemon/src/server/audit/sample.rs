//! The first few different callers of merged decisions.

use std::fmt;

/// Different callers in a sample.
const SHOWN_MAX: usize = 8;

/// The longest description of a caller in bytes. Longer ones are cut.
const LENGTH_MAX: usize = 256;

/// Descriptions of different callers, each with the number of its decisions.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Sample {
    shown: Vec<(String, u64)>,
    /// The decisions about all other callers.
    pub(super) others: u64,
}

impl Sample {
    pub(super) fn add(&mut self, mut details: String) {
        let end = (0..=details.len().min(LENGTH_MAX)).rev().find(|end| details.is_char_boundary(*end));
        details.truncate(end.unwrap_or_default());
        let shown = self.shown.iter_mut().find(|(shown, _)| *shown == details);
        if let Some((_, decisions)) = shown {
            *decisions += 1;
        } else if self.shown.len() < SHOWN_MAX {
            self.shown.push((details, 1));
        } else {
            self.others += 1;
        }
    }
}

impl fmt::Display for Sample {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = self.shown.iter().map(|(details, decisions)| format!("{decisions} x {details}"));
        f.write_str(&shown.collect::<Vec<_>>().join("; "))
    }
}
