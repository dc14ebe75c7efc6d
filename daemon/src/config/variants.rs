//! `variants`, `warm` and `idle_timeout` of `[token.NAME]`: what callers may ask for besides, who may have which
//! of it, and whether a token is renewed while nobody uses it.

use std::time::Duration;

use super::fault::{Place, did_you_mean, one_of, quoted};
use super::section::{Field, Section};
use super::{CredentialSettings, TermKind, TermRules, TermSet, VariantSettings, rules, values};
use crate::access::Rule;

const EXPECTED: &str = "a table such as { scope = [\"a\", \"b\"], resource = [\"https://api.example\"] }";

const EXPECTED_TERMS: &str =
    "a string, or an array of strings and of tables such as { term = \"a\", allow = [\"unit:a.service\"] }";

/// How long a token on demand stays warm after its last use: as long as the pauses of a program that works
/// through the day, and not over night.
const IDLE_TIMEOUT: Duration = Duration::from_secs(60 * 60);

/// `variants = { scope = [..], resource = [..], audience = [..] }`.
pub(super) fn settings(field: &Field<'_>) -> Option<VariantSettings> {
    let mut settings = VariantSettings::default();
    let kinds = || TermKind::ALL.into_iter().map(TermKind::as_str);
    let mut is_good = true;
    for (name, field) in field.table(EXPECTED)? {
        let Some(kind) = TermKind::ALL.into_iter().find(|kind| kind.as_str() == name) else {
            let hint = did_you_mean(name, kinds());
            field.fault(format!("unknown kind of variant; expected {}{hint}", one_of(kinds())));
            is_good = false;
            continue;
        };
        match terms(&field, kind) {
            Some((terms, rules)) => {
                *settings.terms_mut(kind) = terms;
                settings.rules.extend(rules);
            }
            None => is_good = false,
        }
    }
    is_good.then_some(settings)
}

/// Warns of rules that say nothing about the token as it is configured, because that names no terms.
pub(super) fn warn_of_unruled_form(
    section: &Section<'_>,
    place: &Place,
    settings: &VariantSettings,
    credential: &CredentialSettings,
) {
    for kind in TermKind::ALL {
        let is_ruled = settings.rules.iter().any(|rules| rules.kind == kind);
        if is_ruled && credential.terms(kind).as_slice().is_empty() {
            let kind = kind.as_str();
            let message = format!(
                "a {kind} has rules of its own, but without {kind} in this section the provider decides what the \
                 token holds where a caller asks for none; set {kind} to what everybody of allow may have"
            );
            section.sink.warn(place, Some(format!("{}.variants", section.path)), message);
        }
    }
}

/// The terms of one kind, and the rules of those that have any.
fn terms(field: &Field<'_>, kind: TermKind) -> Option<(TermSet, Vec<TermRules>)> {
    let Some(items) = field.as_list() else {
        let Some(_) = field.as_text() else {
            field.wrong_type(EXPECTED_TERMS);
            return None;
        };
        return Some((unruled(field, kind)?, Vec::new()));
    };
    let read = values::all(items.iter().map(|item| term(item, kind)))?;
    let (mut terms, mut ruled): (Vec<String>, Vec<TermRules>) = (Vec::new(), Vec::new());
    for (item, (term, allow)) in items.iter().zip(read) {
        // Without this it would depend on the order whether the rules count.
        let is_ruled = allow.is_some() || ruled.iter().any(|rules| rules.term == term);
        if terms.contains(&term) && is_ruled {
            item.fault(format!("{} is listed twice, and once with rules; keep one", quoted(&term)));
            return None;
        }
        ruled.extend(allow.map(|allow| TermRules { kind, term: term.clone(), allow }));
        terms.push(term);
    }
    Some((terms.into_iter().collect(), ruled))
}

/// All that a string holds.
fn unruled(field: &Field<'_>, kind: TermKind) -> Option<TermSet> {
    match kind {
        TermKind::Scope => values::scope(field),
        TermKind::Resource | TermKind::Audience => values::terms(field),
    }
}

/// A string, or a table with rules.
fn term(field: &Field<'_>, kind: TermKind) -> Option<(String, Option<Vec<Rule>>)> {
    let Some(table) = field.as_table() else {
        let Some(_) = field.as_text() else {
            field.wrong_type("a string, or a table such as { term = \"a\", allow = [\"unit:a.service\"] }");
            return None;
        };
        return Some((single(field, kind)?, None));
    };
    let (mut term, mut allow, mut is_good) = (None, None, true);
    for (name, field) in &table {
        match *name {
            "term" => term = single(field, kind),
            "allow" => allow = rules::list(field),
            unknown => {
                let hint = did_you_mean(unknown, ["term", "allow"]);
                field.fault(format!("unknown key; expected \"term\" and \"allow\"{hint}"));
                is_good = false;
            }
        }
    }
    for key in ["term", "allow"] {
        if is_good && !table.iter().any(|(name, _)| *name == key) {
            field.fault(format!("{} is missing; expected {{ term = \"a\", allow = [..] }}", quoted(key)));
            return None;
        }
    }
    is_good.then_some((term?, Some(allow?)))
}

/// One term.
fn single(field: &Field<'_>, kind: TermKind) -> Option<String> {
    match kind {
        TermKind::Scope => values::scope_term(field),
        TermKind::Resource | TermKind::Audience => values::line(field),
    }
}

/// `warm`, with `idle_timeout` where it has a meaning.
pub(super) fn idle_timeout(section: &Section<'_>) -> Option<Option<Duration>> {
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
        (true, _) => idle_timeout.or_default(|| IDLE_TIMEOUT).map(Some),
        (false, None) => idle_timeout.is_absent().then_some(None),
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
