//! `variants`, `warm` and `idle_timeout` of `[token.NAME]`: what callers may ask for besides, and whether a
//! token is renewed while nobody uses it.

use std::time::Duration;

use super::fault::{did_you_mean, one_of, quoted};
use super::section::{Field, Section};
use super::{VariantSettings, values};
use crate::credential::Warmth;

const EXPECTED: &str = "a table such as { scope = [\"a\", \"b\"], resource = [\"https://api.example\"] }";

const KINDS: [&str; 3] = ["scope", "resource", "audience"];

/// How long a token on demand stays warm after its last use: as long as the pauses of a program that works
/// through the day, and not over night.
const IDLE_TIMEOUT: Duration = Duration::from_secs(60 * 60);

/// `variants = { scope = [..], resource = [..], audience = [..] }`.
pub(super) fn settings(field: &Field<'_>) -> Option<VariantSettings> {
    let mut settings = VariantSettings::default();
    for (name, field) in field.table(EXPECTED)? {
        match name {
            "scope" => settings.scope = values::scope(&field)?,
            "resource" => settings.resource = values::terms(&field)?,
            "audience" => settings.audience = values::terms(&field)?,
            unknown => {
                field.fault(format!(
                    "unknown kind of variant; expected {}{}",
                    one_of(KINDS),
                    did_you_mean(unknown, KINDS)
                ));
                return None;
            }
        }
    }
    Some(settings)
}

/// `warm`, with `idle_timeout` where it has a meaning.
pub(super) fn warmth(section: &Section<'_>) -> Option<Warmth> {
    let warm = section.read("warm", |field| {
        let text = field.text()?;
        let known = matches!(text, "always" | "on-demand");
        if !known {
            let words = ["always", "on-demand"];
            let hint = did_you_mean(text, words);
            field.fault(format!("found {}; expected {}{hint}", quoted(text), one_of(words)));
        }
        known.then_some(text == "on-demand")
    });
    let idle_timeout = section.read("idle_timeout", values::lifetime);
    let place = idle_timeout.place().cloned();
    match (warm.or_default(|| false)?, place) {
        (true, _) => idle_timeout.or_default(|| IDLE_TIMEOUT).map(Warmth::OnDemand),
        (false, None) => idle_timeout.is_absent().then_some(Warmth::Always),
        (false, Some(place)) => {
            section.fault_at(
                &place,
                "idle_timeout",
                "belongs to warm = \"on-demand\"; set that, or remove it",
            );
            None
        }
    }
}
