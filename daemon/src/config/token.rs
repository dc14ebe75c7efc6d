//! `[token.NAME]`: the token request, and who may have the token.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokend_protocol::TokenName;

use super::fault::{Sink, join, one_of, quoted};
use super::preset;
use super::provider::Provider;
use super::section::{Field, Section};
use super::{
    CredentialSettings, TermKind, TermRules, TermSet, Terms, TokenSettings, VariantSettings, grant, rules,
    values,
};
use crate::access::Rule;

/// How long after its last use a token on demand is still renewed: longer than the pauses of a program that works
/// through the day, and shorter than a night.
const IDLE_TIMEOUT: Duration = Duration::from_secs(60 * 60);

const VARIANT_TERMS: &str =
    "a string, or an array of strings and of tables such as { term = \"a\", allow = [\"unit:a.service\"] }";

/// Reads all sections, and warns of providers that no token uses.
pub(super) fn read_all(
    mut sections: BTreeMap<String, Section<'_>>,
    providers: &BTreeMap<String, Provider>,
    sink: &Sink,
) -> BTreeMap<TokenName, TokenSettings> {
    let no_variants = Arc::default();
    let read = |(name, section): (&String, &mut Section<'_>)| {
        let settings = read(section, providers, &no_variants)?;
        Some((name.parse().ok()?, settings))
    };
    // The sections are dropped together at the end, so that the memory of many is free in one piece.
    let tokens: BTreeMap<TokenName, TokenSettings> = sections.iter_mut().filter_map(read).collect();
    for provider in providers.values() {
        if !tokens.values().any(|token| token.provider == provider.name) {
            sink.warn(&provider.place, &join("provider", &provider.name), "no token uses this provider");
        }
    }
    tokens
}

/// Reads every key before it gives up, so that every fault is found.
fn read(
    section: &mut Section<'_>,
    providers: &BTreeMap<String, Provider>,
    no_variants: &Arc<VariantSettings>,
) -> Option<TokenSettings> {
    let unknown = |name: &str| format!("no provider {}; add [{}]", quoted(name), join("provider", name));
    let provider = section.find("provider", providers, unknown);
    section.missing::<()>("provider", "name one of the [provider.NAME] sections");
    // The key that the section itself sets, at which a clash is reported: the other one may come from the preset.
    let has_headers = section.has("headers") && !section.has("caller_headers");
    let clash_key = if has_headers { "headers" } else { "caller_headers" };
    if let Some(provider) = provider {
        preset::fill(section, &provider.token_defaults);
    }
    let (grant, terms, params) = (grant::read(section), terms(section), params(section));
    let headers = section.read("headers", values::headers).unwrap_or_default();
    let caller_headers = section.read("caller_headers", values::caller_headers).unwrap_or_default();
    let is_fixed = |name: &&String| headers.iter().any(|header| header.name.eq_ignore_ascii_case(name));
    if let Some(name) = caller_headers.iter().find(is_fixed) {
        let message = format!("{} is among both headers and caller_headers; keep it in one", quoted(name));
        section.fault_if_complete::<()>(clash_key, message);
    }
    let allow = section.read("allow", rules::list).unwrap_or_default();
    let refresh_before = section.read("refresh_before", values::duration);
    let default_lifetime = section.read("default_lifetime", values::lifetime);
    let scope_required = section.read("scope_required", values::boolean).unwrap_or_default();
    let idle_timeout = idle_timeout(section);
    let variants = section.read("variants", variants);
    let provider = provider?;
    let client = provider.client.clone()?;
    let default_lifetime = default_lifetime.unwrap_or(provider.default_lifetime);
    let (grant, params) = (grant?, params?);
    let credential = CredentialSettings { client, grant, terms, params, default_lifetime, scope_required };
    Some(TokenSettings {
        provider: Arc::clone(&provider.name),
        credential: Arc::new(credential),
        max_requests_per_minute: provider.max_requests_per_minute,
        refresh_before,
        idle_timeout,
        variants: variants.map_or_else(|| Arc::clone(no_variants), Arc::new),
        headers: headers.into(),
        caller_headers: caller_headers.into(),
        allow: allow.into(),
    })
}

pub(super) fn terms(section: &Section<'_>) -> Terms {
    let read = |kind: TermKind| section.read(kind.as_str(), |field| values::terms(field, kind));
    let [scope, resource, audience] = TermKind::ALL.map(|kind| read(kind).unwrap_or_default());
    Terms { scope, resource, audience }
}

/// The form fields. Those that the preset requires must be there.
fn params(section: &Section<'_>) -> Option<BTreeMap<String, String>> {
    let params = section.read_or("params", BTreeMap::new(), values::params)?;
    let mut missing =
        section.read("required_params", |field| values::strings(field, values::line)).unwrap_or_default();
    missing.retain(|name| !params.contains_key(name));
    if !missing.is_empty() {
        let required = one_of(missing).replace(" or ", " and ");
        let message = format!("missing {required}, which the provider's preset requires");
        section.fault_if_complete::<()>("params", message);
    }
    Some(params)
}

/// The idle time-out with `warm = "on-demand"`; nothing with `warm = "always"`.
fn idle_timeout(section: &Section<'_>) -> Option<Duration> {
    let idle_timeout = section.read("idle_timeout", values::lifetime);
    let warm = section.read_or("warm", "always", values::word(&["always", "on-demand"]))?;
    if warm == "on-demand" {
        return Some(idle_timeout.unwrap_or(IDLE_TIMEOUT));
    }
    if idle_timeout.is_some() {
        section.fault_if_complete::<()>(
            "idle_timeout",
            "belongs to warm = \"on-demand\"; set that, or remove it",
        );
    }
    None
}

fn variants(field: &Field<'_>) -> Option<VariantSettings> {
    const EXPECTED: &str = "a table such as { scope = [\"a\", \"b\"], resource = [\"https://api.example\"] }";
    let mut settings = VariantSettings::default();
    let (terms, rules) = (&mut settings.terms, &mut settings.rules);
    field.read_table(EXPECTED, "kind of variant", &["scope", "resource", "audience"], |name, field| {
        match name {
            "scope" => terms.scope = variant_terms(field, TermKind::Scope, rules)?,
            "resource" => terms.resource = variant_terms(field, TermKind::Resource, rules)?,
            _ => terms.audience = variant_terms(field, TermKind::Audience, rules)?,
        }
        Some(())
    })?;
    Some(settings)
}

/// The terms of one kind. Adds the rules of those that have any.
fn variant_terms(field: &Field<'_>, kind: TermKind, rules: &mut Vec<TermRules>) -> Option<TermSet> {
    if field.is_text() {
        return values::terms(field, kind);
    }
    let items = field.list(VARIANT_TERMS)?;
    let read = values::all(items.iter().map(|item| variant_term(item, kind)))?;
    let mut terms: Vec<String> = Vec::new();
    for (item, (term, allow)) in items.iter().zip(read) {
        // With two entries of a term, their order would decide whether its rules apply.
        let is_ruled = allow.is_some() || rules.iter().any(|rules| rules.kind == kind && rules.term == term);
        let message = format!("{} is listed twice, and once with rules; keep one", quoted(&term));
        item.ensure(!(terms.contains(&term) && is_ruled), message)?;
        rules.extend(allow.map(|allow| TermRules { kind, term: term.clone(), allow }));
        terms.push(term);
    }
    Some(terms.into_iter().collect())
}

fn variant_term(field: &Field<'_>, kind: TermKind) -> Option<(String, Option<Vec<Rule>>)> {
    if !field.is_table() {
        field.text_or("a string, or a table such as { term = \"a\", allow = [\"unit:a.service\"] }")?;
        return Some((values::term(field, kind)?, None));
    }
    let (mut term, mut allow) = (None, None);
    field.read_table(VARIANT_TERMS, "key", &["term", "allow"], |name, field| {
        if name == "term" {
            term = Some(values::term(field, kind)?);
        } else {
            allow = Some(rules::list(field)?);
        }
        Some(())
    })?;
    for (key, is_there) in [("term", term.is_some()), ("allow", allow.is_some())] {
        let message = format!("{} is missing; expected {{ term = \"a\", allow = [..] }}", quoted(key));
        field.ensure(is_there, message)?;
    }
    Some((term?, allow))
}
