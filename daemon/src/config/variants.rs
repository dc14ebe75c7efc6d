//! `variants` of `[token.NAME]`: the scopes, resources and audiences that callers may choose.

use super::document::Value;
use super::fault::quoted;
use super::section::Field;
use super::{TermKind, TermRules, TermSet, VariantSettings, rules, values};
use crate::access::Rule;

const EXPECTED: &str = "a table such as { scope = [\"a\", \"b\"], resource = [\"https://api.example\"] }";

const EXPECTED_TERMS: &str =
    "a string, or an array of strings and of tables such as { term = \"a\", allow = [\"unit:a.service\"] }";

/// Reads `variants = { scope = [..], resource = [..], audience = [..] }`.
pub(super) fn settings(field: &Field<'_>) -> Option<VariantSettings> {
    let mut settings = VariantSettings::default();
    field.read_table(EXPECTED, "kind of variant", &TermKind::ALL.map(TermKind::as_str), |name, field| {
        let kind = TermKind::ALL.into_iter().find(|kind| kind.as_str() == name)?;
        let (terms, rules) = terms(field, kind)?;
        match kind {
            TermKind::Scope => settings.terms.scope = terms,
            TermKind::Resource => settings.terms.resource = terms,
            TermKind::Audience => settings.terms.audience = terms,
        }
        settings.rules.extend(rules);
        Some(())
    })?;
    Some(settings)
}

/// The terms of one kind, and the rules of those that have any.
fn terms(field: &Field<'_>, kind: TermKind) -> Option<(TermSet, Vec<TermRules>)> {
    if field.is_text() {
        return Some((values::terms(field, kind)?, Vec::new()));
    }
    let items = field.list(EXPECTED_TERMS)?;
    let read = values::all(items.iter().map(|item| term(item, kind)))?;
    let (mut terms, mut ruled): (Vec<String>, Vec<TermRules>) = (Vec::new(), Vec::new());
    for (item, (term, allow)) in items.iter().zip(read) {
        // With two entries of a term, their order would decide whether its rules apply.
        let is_ruled = allow.is_some() || ruled.iter().any(|rules| rules.term == term);
        let message = format!("{} is listed twice, and once with rules; keep one", quoted(&term));
        item.ensure(!(terms.contains(&term) && is_ruled), message)?;
        ruled.extend(allow.map(|allow| TermRules { kind, term: term.clone(), allow }));
        terms.push(term);
    }
    Some((terms.into_iter().collect(), ruled))
}

/// A string, or a table with rules.
fn term(field: &Field<'_>, kind: TermKind) -> Option<(String, Option<Vec<Rule>>)> {
    let Value::Table(table) = &field.item.value else {
        field.text_or("a string, or a table such as { term = \"a\", allow = [\"unit:a.service\"] }")?;
        return Some((values::term(field, kind)?, None));
    };
    let (mut term, mut allow) = (None, None);
    field.read_table(EXPECTED_TERMS, "key", &["term", "allow"], |name, field| {
        if name == "term" {
            term = Some(values::term(field, kind)?);
        } else {
            allow = Some(rules::list(field)?);
        }
        Some(())
    })?;
    for key in ["term", "allow"] {
        let message = format!("{} is missing; expected {{ term = \"a\", allow = [..] }}", quoted(key));
        field.ensure(table.contains_key(key), message)?;
    }
    Some((term?, Some(allow?)))
}
