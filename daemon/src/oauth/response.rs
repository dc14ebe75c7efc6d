//! Reads a token response (RFC 6749 sections 5.1 and 5.2). Tolerates what real providers send, and notes each deviation
//! for operators. Pure functions.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::de::IgnoredAny;
use serde::{Deserialize, Deserializer};
use serde_json::error::Category;
use serde_json::value::{RawValue, to_raw_value};
use tokend_protocol::{ErrorClass, Secret};

use crate::config::{CredentialSettings, Grant};
use crate::oauth::redact::{self, SentSecrets};
pub use crate::oauth::reply::HttpReply;
use crate::oauth::{EXPIRED_ON_ARRIVAL, Failure, Granted, Outcome, Refusal};

/// The longest access token that is accepted, in bytes. It must fit into a reply frame.
const TOKEN_MAX: usize = 64 * 1024;

/// The longest list of granted scopes that is passed on, in bytes.
const SCOPE_MAX: usize = 16 * 1024;

/// The longest lifetime that is believed. A longer one is an error or means "for ever".
const LIFETIME_MAX: Duration = Duration::from_secs(366 * 24 * 60 * 60);

/// The error codes that are repeated: those of RFC 6749 sections 4.1.2.1 and 5.2, and the ones that RFC 8628 and RFC 8707
/// add. Any other one is a text of the provider's, in which a secret may hide.
const CODES: [&str; 11] = [
    "invalid_request",
    "invalid_client",
    "invalid_grant",
    "unauthorized_client",
    "unsupported_grant_type",
    "invalid_scope",
    "access_denied",
    "server_error",
    "temporarily_unavailable",
    "slow_down",
    "invalid_target",
];

/// Inputs of [`read`] besides the reply.
#[derive(Clone, Copy, Debug)]
pub struct Context<'a> {
    pub settings: &'a CredentialSettings,
    pub wall: Duration,
    /// The secrets of the request, which the reply may repeat.
    pub sent: &'a SentSecrets,
}

/// The fields of a token response, as JSON. Other fields are ignored. A body that repeats one of these is no token
/// response.
#[derive(Default, Deserialize)]
struct Fields {
    access_token: Field,
    token_type: Field,
    #[serde(default, deserialize_with = "even_null")]
    expires_in: Field,
    scope: Field,
    error: Field,
    error_description: Field,
}

type Field = Option<Box<RawValue>>;

/// The claims of a JWT about time, in seconds since the Unix epoch (RFC 7519 section 4.1).
#[derive(Deserialize)]
struct Claims {
    exp: f64,
    iat: Option<f64>,
}

struct Reading<'a> {
    reply: &'a HttpReply,
    context: Context<'a>,
    deviations: Vec<&'static str>,
    facts: BTreeMap<&'static str, String>,
}

pub fn read(reply: &HttpReply, context: Context<'_>) -> Outcome {
    let mut reading = Reading { reply, context, deviations: Vec::new(), facts: BTreeMap::new() };
    let is_success = (200..300).contains(&reply.status);
    let mut result = match reading.fields() {
        Ok(fields) if is_success => reading.granted(&fields),
        Err(reason) if is_success => {
            let message =
                format!("a reply that is not a token response: {reason} ({})", reply.status_and_type());
            Err(Failure::new(ErrorClass::Malformed, message))
        }
        fields => Err(reading.refused(&fields.unwrap_or_default())),
    };
    if let Err(failure) = &mut result {
        failure.retry_after = reply.retry_after(context.wall);
    }
    let ahead = |date: Duration| date.as_secs().wrapping_sub(context.wall.as_secs()).cast_signed();
    let clock_skew = reply.date().map(ahead);
    let Reading { deviations, facts, .. } = reading;
    Outcome { deviations, facts, clock_skew, ..Outcome::of(result, 1) }
}

impl Reading<'_> {
    /// The fields of the body, or the reason why it is not a token response.
    fn fields(&mut self) -> Result<Fields, &'static str> {
        let encoding = self.reply.header("content-encoding").unwrap_or("identity");
        if encoding.eq_ignore_ascii_case("br") {
            return Err("it is compressed with br, which was not asked for");
        }
        if !encoding.eq_ignore_ascii_case("identity") {
            return Err("it is compressed in a way that was not asked for");
        }
        let content_type = self.reply.header("content-type").map(str::to_ascii_lowercase);
        let body = self.reply.text();
        if body.len() < self.reply.body.len() {
            self.deviations.push("byte-order-mark");
        }
        match body.trim_ascii_start().first() {
            None => return Err("it is empty"),
            Some(b'{') => {
                let fields = serde_json::from_slice(body).map_err(|error| match error.classify() {
                    Category::Eof => "its JSON breaks off",
                    Category::Data => "its JSON repeats a field",
                    Category::Syntax | Category::Io => "it is not JSON",
                })?;
                if content_type.is_some_and(|value| !value.contains("json")) {
                    self.deviations.push("content-type");
                }
                return Ok(fields);
            }
            // Without this, serde would take an array for the values of the fields, in their order.
            Some(_) if serde_json::from_slice::<IgnoredAny>(body).is_ok() => {
                return Err("its JSON is not an object");
            }
            Some(_) => (),
        }
        // Some old providers send a form. Every text parses as a form, so other content types and markup are excluded: an
        // access token in a link of a page is not meant for this client.
        let content_type = content_type.unwrap_or_default();
        if ["html", "json", "xml"].iter().any(|other| content_type.contains(other)) || body.contains(&b'<') {
            return Err("it is neither JSON nor a form");
        }
        let mut fields = Fields::default();
        for (name, value) in form_urlencoded::parse(body) {
            let field = match &*name {
                "access_token" => &mut fields.access_token,
                "token_type" => &mut fields.token_type,
                "expires_in" | "expires" => &mut fields.expires_in,
                "scope" => &mut fields.scope,
                "error" => &mut fields.error,
                "error_description" => &mut fields.error_description,
                _ => continue,
            };
            *field = to_raw_value(&value).ok();
        }
        // Without one of these it is no token response.
        text(&fields.access_token).or(error(&fields)).ok_or("it is neither JSON nor a form")?;
        self.deviations.push("form-encoded");
        Ok(fields)
    }

    fn granted(&mut self, fields: &Fields) -> Result<Granted, Failure> {
        let malformed = |message: &str| Failure::new(ErrorClass::Malformed, message);
        let Some(token) = text(&fields.access_token) else {
            if error(fields).is_some() {
                self.deviations.push("error-with-200");
                return Err(self.refused(fields));
            }
            return Err(malformed("a reply without an access token"));
        };
        if token.is_empty() {
            return Err(malformed("an empty access token"));
        }
        if token.len() > TOKEN_MAX {
            return Err(malformed("an access token of more than 64 KiB"));
        }
        // RFC 6749 appendix A.12, without the space, which RFC 6750 section 2.1 excludes. Other characters could break
        // the header that the token is put into.
        if !token.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(malformed("an access token with characters that RFC 6750 forbids"));
        }
        self.check_token_type(fields)?;
        let scope = self.scope(fields);
        // A scope that cannot be read is not taken for the scope that was asked for.
        let is_stated = fields.scope.as_ref().is_some_and(|scope| scope.get() != "null");
        if is_stated {
            self.check_scope(scope.as_deref().unwrap_or_default())?;
        }
        let lifetime = self.lifetime(fields, &token);
        if lifetime.is_zero() {
            return Err(malformed(EXPIRED_ON_ARRIVAL));
        }
        let scope = scope.filter(|scope| !scope.trim().is_empty()).map(Arc::from);
        Ok(Granted { token: Secret::from(token), lifetime, scope })
    }

    /// The granted scopes (RFC 6749 section 3.3), separated by spaces: a text, or the list that some providers send.
    fn scope(&mut self, fields: &Fields) -> Option<String> {
        let value = fields.scope.as_ref()?.get();
        if value.starts_with('[') {
            self.deviations.push("scope-array");
        }
        let list = || serde_json::from_str::<Vec<String>>(value).ok().map(|list| list.join(" "));
        let is_allowed = |byte: u8| byte == b' ' || byte.is_ascii_graphic();
        let is_scope = |scope: &String| scope.len() <= SCOPE_MAX && scope.bytes().all(is_allowed);
        text(&fields.scope).or_else(list).filter(is_scope)
    }

    /// Notes that less scope was granted than asked for. Some providers separate scopes by commas.
    fn check_scope(&mut self, granted: &str) -> Result<(), Failure> {
        let CredentialSettings { terms, scope_required, .. } = self.context.settings;
        let split = |scopes: &'_ str| scopes.split([' ', ',']).map(str::to_owned).collect::<Vec<_>>();
        let granted_scopes = split(granted);
        let asked = terms.scope.as_slice().iter().flat_map(|scope| split(scope));
        if asked.into_iter().all(|scope| granted_scopes.contains(&scope)) {
            return Ok(());
        }
        self.deviations.push("scope-narrower");
        self.note("granted-scope", if granted.is_empty() { "none" } else { granted });
        if *scope_required {
            let detail = "scope_required is set: have the provider grant the scopes, or ask for fewer";
            return Err(Failure::new(ErrorClass::Refused, "the provider granted less scope than asked for")
                .with_detail(detail));
        }
        Ok(())
    }

    /// A client must not use a token of a type that it does not know (RFC 6749 section 7.1).
    fn check_token_type(&mut self, fields: &Fields) -> Result<(), Failure> {
        let Some(named) = text(&fields.token_type) else {
            self.deviations.push("token_type-missing");
            return Ok(());
        };
        if named.eq_ignore_ascii_case("bearer") {
            return Ok(());
        }
        self.note("token-type", &named);
        let also = self.context.settings.client.token_type.as_ref();
        if !also.is_some_and(|also| also.eq_ignore_ascii_case(&named)) {
            let detail =
                "if its API calls use Bearer all the same, set token_type of the provider to this type";
            return Err(
                Failure::new(ErrorClass::Refused, "a token of another type than Bearer").with_detail(detail)
            );
        }
        self.deviations.push("token_type-other");
        Ok(())
    }

    fn refused(&mut self, fields: &Fields) -> Failure {
        let (status, named) = (self.reply.status, error(fields));
        let code = CODES.into_iter().find(|code| named.as_deref() == Some(*code));
        let message = match (code, &named, status) {
            (Some(code), ..) => format!("{code} (status {status})"),
            (None, Some(_), _) => format!("an error code that is not in RFC 6749 (status {status})"),
            (None, None, 300..400) => format!(
                "a redirect (status {status}), which is never followed: configure the final token endpoint"
            ),
            (None, None, _) => format!("status {status} without an OAuth error code"),
        };
        let description = text(&fields.error_description);
        let words: Vec<String> =
            named.clone().filter(|_| code.is_none()).into_iter().chain(description).collect();
        if !words.is_empty() {
            self.note("provider-said", &words.join(": "));
        }
        let class = class(status, named.as_deref());
        // RFC 6749 section 5.2 has its codes in answers of 400 and 401. With another status, an unknown word is no code: a
        // gateway's page in JSON has one too.
        let code = code.or(named.as_deref().filter(|_| matches!(status, 200..300 | 400)));
        let has_password = matches!(self.context.settings.grant, Grant::Password(_));
        // An assertion or a token that is given in exchange locks no account.
        let is_about_a_user =
            matches!(self.context.settings.grant, Grant::Password(_) | Grant::ClientCredentials);
        let refusal =
            refusal(status, code, has_password, is_about_a_user).filter(|_| class == ErrorClass::Refused);
        Failure { refusal, ..Failure::new(class, message) }
    }

    /// Notes a provider's words for operators. They are never logged.
    fn note(&mut self, name: &'static str, words: &str) {
        self.facts.insert(name, redact::description(words, self.context.sent));
    }

    /// The shorter lifetime of `expires_in` and the token's own claims; without both, the default.
    fn lifetime(&mut self, fields: &Fields, token: &str) -> Duration {
        let stated = self.stated_lifetime(fields);
        let claimed = claimed_lifetime(token, self.reply.date(), self.context.wall);
        let lifetime = match (stated, claimed) {
            (Some(stated), Some(claimed)) => {
                // Both clocks are rounded to whole seconds.
                if claimed.saturating_add(Duration::from_secs(2)) < stated {
                    self.deviations.push("jwt-expires-earlier");
                }
                stated.min(claimed)
            }
            (Some(lifetime), None) | (None, Some(lifetime)) => lifetime,
            (None, None) => self.context.settings.default_lifetime,
        };
        if lifetime > LIFETIME_MAX {
            self.deviations.push("expires_in-huge");
        }
        lifetime.min(LIFETIME_MAX)
    }

    fn stated_lifetime(&mut self, fields: &Fields) -> Option<Duration> {
        let Some(value) = &fields.expires_in else {
            self.deviations.push("expires_in-missing");
            return None;
        };
        let text = text(&fields.expires_in);
        // A form has only strings.
        if text.is_some() && !self.deviations.contains(&"form-encoded") {
            self.deviations.push("expires_in-string");
        }
        let text = text.as_deref().unwrap_or(value.get()).trim();
        // The parser also takes words, such as "inf".
        let is_word = |c: char| c.is_ascii_alphabetic() && !matches!(c, 'e' | 'E');
        let seconds: Option<f64> = text.parse().ok().filter(|_| !text.contains(is_word));
        let Some(seconds) = seconds else {
            let is_null = value.get() == "null";
            self.deviations.push(if is_null { "expires_in-null" } else { "expires_in-invalid" });
            return None;
        };
        if text.contains(['.', 'e', 'E']) {
            self.deviations.push("expires_in-float");
        }
        if seconds <= 0.0 {
            self.deviations.push(if seconds < 0.0 { "expires_in-negative" } else { "expires_in-zero" });
        }
        // A number that is too large for a duration means "for ever".
        Some(Duration::try_from_secs_f64(seconds.max(0.0)).unwrap_or(Duration::MAX))
    }
}

/// A field that is a string.
fn text(field: &Field) -> Option<String> {
    serde_json::from_str(field.as_ref()?.get()).ok()
}

/// A field that is there, even if it is `null`.
fn even_null<'de, D: Deserializer<'de>>(field: D) -> Result<Field, D::Error> {
    Box::deserialize(field).map(Some)
}

fn error(fields: &Fields) -> Option<String> {
    text(&fields.error).filter(|error| !error.is_empty())
}

/// Returns the remaining lifetime that a JWT access token claims for itself (RFC 9068), or `None` where the text is not a
/// JWT with an `exp`. The time now is the reply's `date`, else the token's `iat`, else the host's clock `wall`. A `date` is
/// rounded down to whole seconds; the host's clock tells the rest.
///
/// The signature is not verified: the claims can only shorten a lifetime, so a forged one gains nothing.
pub fn claimed_lifetime(token: &str, date: Option<Duration>, wall: Duration) -> Option<Duration> {
    let parts: Vec<_> = token.split('.').collect();
    let &[_header, claims, _signature] = parts.as_slice() else { return None };
    let json = URL_SAFE_NO_PAD.decode(claims.trim_end_matches('=')).ok()?;
    let Claims { exp, iat } = serde_json::from_slice(&json).ok()?;
    let date = date.map(|date| wall.clamp(date, date.saturating_add(Duration::from_secs(1))));
    let now = date.map(|date| date.as_secs_f64()).or(iat).unwrap_or(wall.as_secs_f64());
    // An expiry that is too far away for a Duration never comes.
    Some(Duration::try_from_secs_f64((exp - now).max(0.0)).unwrap_or(Duration::MAX))
}

fn refusal(status: u16, code: Option<&str>, has_password: bool, is_about_a_user: bool) -> Option<Refusal> {
    match (code, status) {
        (Some("invalid_client"), _) => Some(Refusal::Client),
        (Some("invalid_grant"), _) if is_about_a_user => Some(Refusal::User),
        (Some(code), _) => (!CODES.contains(&code)).then_some(Refusal::UnknownCode),
        (None, 400 | 401 | 403) if has_password => Some(Refusal::PasswordWithoutCode(status)),
        (None, 401) => Some(Refusal::Client),
        (None, _) => Some(Refusal::WithoutCode(status)),
    }
}

/// The class of a failure, by its RFC 6749 code, or by its status where it has none.
pub fn class(status: u16, code: Option<&str>) -> ErrorClass {
    match (code, status) {
        (_, 429) | (Some("slow_down"), _) => ErrorClass::Throttled,
        (Some("temporarily_unavailable" | "server_error"), _) | (_, 408 | 425 | 500..) => ErrorClass::Server,
        (None, 200..300) => ErrorClass::Malformed,
        _ => ErrorClass::Refused,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::LazyLock;

    use proptest::prelude::*;
    use reqwest::header::{HeaderName, HeaderValue};

    use super::*;
    use crate::config::{ClientAuthentication, Terms, UserPassword};
    use crate::oauth::request::tests::settings;
    use crate::secret_source::SecretSource;

    fn context() -> Context<'static> {
        static NONE: LazyLock<SentSecrets> = LazyLock::new(SentSecrets::default);
        static SETTINGS: LazyLock<CredentialSettings> =
            LazyLock::new(|| settings(ClientAuthentication::None));
        Context { settings: &SETTINGS, wall: Duration::from_secs(1_700_000_000), sent: &NONE }
    }

    /// A reply with these headers, as far as they can be headers.
    fn reply<const N: usize>(
        status: u16,
        body: &str,
        headers: [(&'static str, Option<&str>); N],
    ) -> HttpReply {
        let headers = headers.into_iter().filter_map(|(name, value)| {
            Some((HeaderName::from_static(name), HeaderValue::from_bytes(value?.as_bytes()).ok()?))
        });
        HttpReply { status, headers: headers.collect(), body: body.as_bytes().to_vec() }
    }

    fn read_json(status: u16, body: &str) -> Outcome {
        read(&reply(status, body, [("content-type", Some("application/json;charset=UTF-8"))]), context())
    }

    fn with_expiry(expires_in: &str) -> (Result<u64, ErrorClass>, Vec<&'static str>) {
        let body = format!(r#"{{"access_token":"t","token_type":"Bearer",{expires_in}"x":1}}"#);
        let Outcome { result, deviations, .. } = read_json(200, &body);
        (result.map(|granted| granted.lifetime.as_secs()).map_err(|failure| failure.class), deviations)
    }

    #[test]
    fn every_way_to_write_a_lifetime_is_understood_and_the_odd_ones_are_counted() {
        let huge = LIFETIME_MAX.as_secs();
        let cases: [(&str, u64, &[&str]); 15] = [
            (r#""expires_in":3600,"#, 3600, &[]),
            (r#""expires_in":"1799","#, 1799, &["expires_in-string"]),
            (r#""expires_in":" 60 ","#, 60, &["expires_in-string"]),
            (r#""expires_in":59.9,"#, 59, &["expires_in-float"]),
            (r#""expires_in":1e3,"#, 1000, &["expires_in-float"]),
            (r#""expires_in":"3.6e3","#, 3600, &["expires_in-string", "expires_in-float"]),
            (r#""expires_in":99999999999999999999999,"#, huge, &["expires_in-huge"]),
            (r#""expires_in":1e400,"#, huge, &["expires_in-float", "expires_in-huge"]),
            ("", 300, &["expires_in-missing"]),
            (r#""expires_in":null,"#, 300, &["expires_in-null"]),
            (r#""expires_in":"inf","#, 300, &["expires_in-string", "expires_in-invalid"]),
            (r#""expires_in":"NaN","#, 300, &["expires_in-string", "expires_in-invalid"]),
            (r#""expires_in":"soon","#, 300, &["expires_in-string", "expires_in-invalid"]),
            (r#""expires_in":[1],"#, 300, &["expires_in-invalid"]),
            (r#""expires_in":true,"#, 300, &["expires_in-invalid"]),
        ];
        for (field, seconds, deviations) in cases {
            assert_eq!(with_expiry(field), (Ok(seconds), deviations.to_vec()), "{field}");
        }
    }

    #[test]
    fn a_jwt_tells_its_lifetime_and_the_shortest_wins() {
        let claims = URL_SAFE_NO_PAD.encode(r#"{"iat":1000,"exp":1600}"#);
        let reading = |expires_in: &str| {
            let body = format!(r#"{{"access_token":"e30.{claims}.s","token_type":"Bearer"{expires_in}}}"#);
            let Outcome { result, deviations, .. } = read_json(200, &body);
            (result.unwrap().lifetime.as_secs(), deviations)
        };
        assert_eq!(reading(""), (600, vec!["expires_in-missing"]));
        assert_eq!(reading(r#","expires_in":3600"#), (600, vec!["jwt-expires-earlier"]));
        assert_eq!(reading(r#","expires_in":60"#), (60, vec![]));
    }

    #[test]
    fn a_token_without_life_is_none() {
        for (expires_in, deviation) in
            [("0", "expires_in-zero"), ("-5", "expires_in-negative"), ("-0.0", "expires_in-zero")]
        {
            let (result, deviations) = with_expiry(&format!("\"expires_in\":{expires_in},"));
            assert_eq!(result, Err(ErrorClass::Malformed), "{expires_in}");
            assert!(deviations.contains(&deviation), "{expires_in}: {deviations:?}");
        }
    }

    #[test]
    fn a_jwt_that_expires_after_more_than_a_year_is_capped() {
        let claims = URL_SAFE_NO_PAD.encode(r#"{"iat":1000,"exp":1e10}"#);
        let outcome =
            read_json(200, &format!(r#"{{"access_token":"e30.{claims}.s","token_type":"Bearer"}}"#));
        assert_eq!(outcome.result.unwrap().lifetime, LIFETIME_MAX);
        assert_eq!(outcome.deviations, ["expires_in-missing", "expires_in-huge"]);
    }

    /// Of a provider whose `token_type` is its own.
    fn bearer_token_settings() -> CredentialSettings {
        let mut settings = settings(ClientAuthentication::None);
        Arc::make_mut(&mut settings.client).token_type = Some("BearerToken".to_owned());
        settings
    }

    #[test]
    fn a_token_type_that_was_not_asked_for_is_refused() {
        let bnp = bearer_token_settings();
        let read_type = |named: &str, settings| {
            let body = format!(r#"{{"access_token":"t","token_type":"{named}","expires_in":1}}"#);
            read(&reply(200, &body, []), Context { settings, ..context() })
        };
        for named in ["mac", "DPoP", "BearerToken", "N_A", "bearer "] {
            let outcome = read_type(named, context().settings);
            let failure = outcome.result.unwrap_err();
            assert!(
                failure.class == ErrorClass::Refused && failure.refusal.is_none(),
                "{named}: {failure:?}"
            );
            assert_eq!(outcome.facts["token-type"], named);
        }
        let tolerated = read_type("bearertoken", &bnp);
        assert_eq!((tolerated.result.is_ok(), tolerated.deviations), (true, vec!["token_type-other"]));
        assert!(read_type("DPoP", &bnp).result.is_err());
    }

    #[test]
    fn less_scope_than_asked_for_is_shown_and_refused_where_it_is_required() {
        let scope = ["a", "b"].map(str::to_owned).into_iter().collect();
        let tolerant = CredentialSettings {
            terms: Terms { scope, ..Terms::default() },
            ..settings(ClientAuthentication::None)
        };
        let strict = CredentialSettings { scope_required: true, ..tolerant.clone() };
        let read_scope = |scope: &str, settings| {
            let body = format!(r#"{{"access_token":"t","token_type":"Bearer","expires_in":1{scope}}}"#);
            read(&reply(200, &body, []), Context { settings, ..context() })
        };
        for all in ["", r#","scope":null"#, r#","scope":"b a c""#, r#","scope":"a,b""#, r#","scope":["a b"]"#]
        {
            let outcome = read_scope(all, &strict);
            assert!(outcome.result.is_ok() && !outcome.facts.contains_key("granted-scope"), "{all}");
        }
        for (less, granted) in [
            (r#","scope":"a""#, "a"),
            (r#","scope":"""#, "none"),
            (r#","scope":7"#, "none"),
            (r#","scope":"ab""#, "ab"),
        ] {
            let outcome = read_scope(less, &tolerant);
            assert!(outcome.result.is_ok(), "{less}");
            assert_eq!(
                (&*outcome.facts["granted-scope"], outcome.deviations),
                (granted, vec!["scope-narrower"])
            );
            assert_eq!(read_scope(less, &strict).result.unwrap_err().class, ErrorClass::Refused, "{less}");
        }
    }

    #[test]
    fn a_byte_order_mark_is_skipped() {
        let body = "\u{feff}{\"access_token\":\"t\",\"token_type\":\"Bearer\",\"expires_in\":60}";
        let outcome = read_json(200, body);
        assert_eq!((outcome.result.is_ok(), outcome.deviations), (true, vec!["byte-order-mark"]));
    }

    #[test]
    fn a_reply_that_is_no_token_response_says_why_and_repeats_nothing() {
        let json = "application/json; charset=utf-8";
        let cases: [(&str, &str, &str, &str); 9] = [
            ("", json, "identity", "it is empty (status 200, application/json)"),
            (r#"{"access_token":"s3c"#, json, "identity", "its JSON breaks off"),
            (r#"{"a":s3c}"#, json, "identity", "it is not JSON"),
            (r#"{"error":"s3c","error":"x"}"#, json, "identity", "its JSON repeats a field"),
            (r#""s3c""#, json, "identity", "its JSON is not an object"),
            ("[1]", "s3c/x", "identity", "its JSON is not an object (status 200, another media type)"),
            ("<p>s3c", "Text/HTML", "identity", "it is neither JSON nor a form (status 200, text/html)"),
            ("s3c", json, "br", "it is compressed with br, which was not asked for"),
            ("s3c", json, "s3c", "it is compressed in a way that was not asked for"),
        ];
        for (body, content_type, encoding, words) in cases {
            let headers = [("content-type", Some(content_type)), ("content-encoding", Some(encoding))];
            let outcome = read(&reply(200, body, headers), context());
            let failure = outcome.result.unwrap_err();
            assert!(failure.message.contains(words), "{body}: {}", failure.message);
            assert!(!format!("{failure:?}{:?}", outcome.facts).contains("s3c"), "{failure:?}");
        }
    }

    #[test]
    fn a_jwt_that_has_expired_by_the_providers_own_clock_is_not_taken() {
        let claims = URL_SAFE_NO_PAD.encode(r#"{"iat":1000,"exp":1600}"#);
        let body = format!(r#"{{"access_token":"e30.{claims}.s","token_type":"Bearer","expires_in":3600}}"#);
        let date = Some("Thu, 01 Jan 1970 00:30:00 GMT");
        let outcome = read(&reply(200, &body, [("date", date)]), context());
        assert_eq!(outcome.result.unwrap_err().class, ErrorClass::Malformed);
    }

    #[test]
    fn the_date_of_a_reply_gives_the_clock_skew() {
        let skew = |date| read(&reply(503, "", [("date", date)]), context()).clock_skew;
        assert_eq!(skew(Some("Tue, 14 Nov 2023 22:13:19 GMT")), Some(-1));
        assert_eq!(skew(Some("Tue, 14 Nov 2023 23:13:20 GMT")), Some(3600));
        assert_eq!((skew(None), skew(Some("yesterday"))), (None, None));
    }

    #[test]
    fn unknown_fields_of_a_real_reply_are_ignored() {
        let body = r#"{"refresh_token_expires_in":"0","api_product_list":"[a]","api_product_list_json":["a"],
            "organization_name":"o","developer.email":"d","token_type":"BearerToken","issued_at":"1","":{"x":[]},
            "client_id":"c","access_token":"tok","application_name":"n","scope":"pisp aisp","expires_in":"1799",
            "refresh_count":"0","status":"approved"}"#;
        let settings = bearer_token_settings();
        let Outcome { result, deviations, .. } =
            read(&reply(200, body, []), Context { settings: &settings, ..context() });
        let granted = result.unwrap();
        assert_eq!((granted.token.expose(), granted.lifetime.as_secs()), ("tok", 1799));
        assert_eq!(deviations, ["token_type-other", "expires_in-string"]);
    }

    #[test]
    fn token_types_scopes_and_encodings_of_all_kinds() {
        let read_as =
            |content_type, body| read(&reply(200, body, [("content-type", content_type)]), context());
        let json = Some("application/json");
        let cases: [(Option<&str>, &str, &[&str]); 6] = [
            (json, r#"{"access_token":"t","token_type":"bEARER","expires_in":1,"scope":null}"#, &[]),
            (
                json,
                r#"{"access_token":"t","expires_in":1,"scope":["a","b"]}"#,
                &["token_type-missing", "scope-array"],
            ),
            (json, r#"{"access_token":"t","token_type":7,"expires_in":1}"#, &["token_type-missing"]),
            (
                Some("text/html"),
                r#"{"access_token":"t","token_type":"Bearer","expires_in":1}"#,
                &["content-type"],
            ),
            (None, r#"{"access_token":"t","token_type":"Bearer","expires_in":1}"#, &[]),
            (None, "access_token=t&token_type=bearer&expires_in=1", &["form-encoded"]),
        ];
        for (content_type, body, deviations) in cases {
            let outcome = read_as(content_type, body);
            assert_eq!(outcome.result.unwrap().token.expose(), "t", "{body}");
            assert_eq!(outcome.deviations, deviations, "{body}");
        }
    }

    #[test]
    fn other_bodies_than_a_token_response_are_malformed() {
        let long = format!(r#"{{"access_token":"{}"}}"#, "x".repeat(TOKEN_MAX + 1));
        let bodies = [
            "",
            "{}",
            "[]",
            "null",
            r#"["t","Bearer",3600,"a",null,null]"#,
            r#"{"access_token":"t","token_type":"Bearer","access_token":"t"}"#,
            r#"{"access_token":"t","token_type":"Bearer","expires_in":null,"expires_in":60}"#,
            r#"{"access_token":"#,
            r#"{"access_token":null}"#,
            r#"{"access_token":7}"#,
            r#"{"access_token":""}"#,
            r#"{"access_token":"a\nb"}"#,
            r#"{"access_token":"ü"}"#,
            r#"{"access_token":" "}"#,
            r#"{"access_token":"Bearer abc"}"#,
            "<html><body>Sign in to the network</body></html>",
            "\u{0}\u{1}",
            &long,
        ];
        for body in bodies {
            let failure = read_json(200, body).result.unwrap_err();
            assert_eq!(failure.class, ErrorClass::Malformed, "{body:.40}");
        }
        let encoded = reply(200, "{}", [("content-encoding", Some("br"))]);
        assert_eq!(read(&encoded, context()).result.unwrap_err().class, ErrorClass::Malformed);
    }

    #[test]
    fn a_body_that_is_said_to_be_something_else_is_no_form() {
        let class_of = |content_type, body: &str| {
            read(&reply(200, body, [("content-type", content_type)]), context())
                .result
                .map(|_| ())
                .map_err(|failure| failure.class)
        };
        let form = "x=1&access_token=abc&token_type=bearer&expires_in=60";
        let class = |content_type| class_of(Some(content_type), form);
        for other in ["text/html", "Text/HTML; charset=utf-8", "application/json", "application/xhtml+xml"] {
            assert_eq!(class(other), Err(ErrorClass::Malformed), "{other}");
        }
        for form in ["application/x-www-form-urlencoded;charset=UTF-8", "text/plain"] {
            assert_eq!(class(form), Ok(()), "{form}");
        }
        assert_eq!(class_of(None, form), Ok(()));
        assert_eq!(class_of(None, &format!("<a href=\"/sign-in?{form}\">")), Err(ErrorClass::Malformed));
    }

    #[test]
    fn refusals_are_sorted_by_code_before_status() {
        use ErrorClass::{Malformed, Refused, Server, Throttled};
        let cases = [
            (400, r#"{"error":"invalid_client"}"#, Refused),
            (401, r#"{"error":"invalid_client","error_description":"no"}"#, Refused),
            (200, r#"{"error":"invalid_scope"}"#, Refused),
            (200, r#"{"error":""}"#, Malformed),
            (200, r#"{"error":"temporarily_unavailable"}"#, Server),
            (400, r#"{"error":"scope_invalid"}"#, Refused),
            (403, "", Refused),
            (404, "<html>", Refused),
            (307, "", Refused),
            (400, r#"{"error":"temporarily_unavailable"}"#, Server),
            (400, r#"{"error":"slow_down"}"#, Throttled),
            (429, "", Throttled),
            (408, "", Server),
            (500, r#"{"error":"invalid_client"}"#, Server),
            (503, "<html>", Server),
            (204, "", Malformed),
        ];
        for (status, body, class) in cases {
            assert_eq!(read_json(status, body).result.unwrap_err().class, class, "{status} {body}");
        }
    }

    #[test]
    fn a_providers_words_are_cleaned_and_capped() {
        let body = format!(
            r#"{{"error":"invalid_client","error_description":"\u001b[31mno\n{}"}}"#,
            "x".repeat(5000)
        );
        let outcome = read_json(401, &body);
        assert_eq!(outcome.result.unwrap_err().message, "invalid_client (status 401)");
        let detail = &outcome.facts["provider-said"];
        assert!(detail.starts_with("[31mnoxxx"), "{detail}");
        assert!(detail.len() <= 200 && !detail.contains(char::is_control));
    }

    #[test]
    fn a_refusal_names_its_status() {
        let told = |status, body: &str| read_json(status, body).result.unwrap_err().message;
        assert_eq!(told(200, r#"{"error":"invalid_scope"}"#), "invalid_scope (status 200)");
        let other = "an error code that is not in RFC 6749 (status 400)";
        assert_eq!(told(400, r#"{"error":"\u202e"}"#), other);
        assert_eq!(told(400, r#"{"error":"YmFzZTY0"}"#), other);
    }

    #[test]
    fn a_refusal_repeats_no_secret_of_the_request() {
        let sent = SentSecrets::new(["pass phrase", "s3cr3t"].map(str::to_owned).into());
        let body = format!(
            r#"{{"error":"not pass phrase","error_description":"{}s3cr3t is wrong"}}"#,
            "x".repeat(195)
        );
        let outcome = read(&reply(401, &body, []), Context { sent: &sent, ..context() });
        let failure = outcome.result.unwrap_err();
        assert!(!format!("{failure:?}").contains("pass phrase"));
        let said = &outcome.facts["provider-said"];
        assert!(said.starts_with("not ***: xxx") && !said.contains("s3c"), "{said}");
    }

    #[test]
    fn a_code_is_understood_even_if_a_secret_is_a_part_of_it() {
        let sent = SentSecrets::new(vec!["slow".to_owned()]);
        let reply = reply(400, r#"{"error":"slow_down"}"#, []);
        let failure = read(&reply, Context { sent: &sent, ..context() }).result.unwrap_err();
        assert_eq!(
            (failure.class, failure.message.as_str()),
            (ErrorClass::Throttled, "slow_down (status 400)")
        );
    }

    #[test]
    fn retry_after_in_seconds_as_a_date_and_as_nonsense() {
        let date = Some("Tue, 14 Nov 2023 22:13:20 GMT"); // 1700000000
        let reading = |text: &str, date| {
            let reply = reply(429, "", [("retry-after", Some(text)), ("date", date)]);
            read(&reply, context()).result.unwrap_err().retry_after.map(|wait| wait.as_secs())
        };
        assert_eq!(reading("60", None), Some(60));
        assert_eq!(reading(" 0 ", None), Some(0));
        assert_eq!(reading("99999999999999999999999", None), Some(u64::MAX));
        assert_eq!(reading("Tue, 14 Nov 2023 22:14:20 GMT", None), Some(60));
        assert_eq!(reading("Tue, 14 Nov 2023 22:14:20 GMT", Some("Tue, 14 Nov 2023 22:14:00 GMT")), Some(20));
        for nonsense in ["", "-5", "soon", "1.5", "Tue, 14 Nov 2000 22:14:20 GMT"] {
            assert_eq!(reading(nonsense, date), None, "{nonsense}");
        }
    }

    proptest! {
        #[test]
        fn no_reply_causes_a_panic(status in 100_u16..600, body: Vec<u8>, header: String) {
            let headers = ["content-type", "date", "retry-after"].map(|name| (name, Some(header.as_str())));
            let _ = read(&HttpReply { body, ..reply(status, "", headers) }, context());
        }

        #[test]
        fn a_granted_token_always_has_a_lifetime(expires_in in "[-+0-9eE.\" ]{0,12}") {
            if let Ok(seconds) = with_expiry(&format!("\"expires_in\":{expires_in},")).0 {
                prop_assert!(seconds <= LIFETIME_MAX.as_secs());
            }
        }
    }

    #[test]
    fn only_a_refusal_that_a_wrong_secret_may_explain_lets_another_one_be_tried() {
        let refuses = |status, body| match read_json(status, body).result {
            Err(failure) => failure.may_be_the_secret(),
            Ok(_) => false,
        };
        for (status, body) in [
            (401, r#"{"error":"invalid_client"}"#),
            (400, r#"{"error":"invalid_client"}"#),
            (200, r#"{"error":"invalid_client"}"#),
            (401, "{}"),
            (401, "who are you?"),
            (400, ""),
            (400, "{}"),
            (403, ""),
            (403, "<html>"),
            (401, r#"{"error":"unauthorized"}"#),
            (403, r#"{"error":"Forbidden"}"#),
            (400, r#"{"error":"bad credentials"}"#),
        ] {
            assert!(refuses(status, body), "{status} {body}");
        }
        for (status, body) in [
            (400, r#"{"error":"invalid_grant"}"#),
            (401, r#"{"error":"invalid_grant"}"#),
            (400, r#"{"error":"unauthorized_client"}"#),
            (429, r#"{"error":"invalid_client"}"#),
            (503, r#"{"error":"invalid_client"}"#),
            (404, "{}"),
            (302, ""),
            (429, "{}"),
            (500, "{}"),
        ] {
            assert!(!refuses(status, body), "{status} {body}");
        }
    }

    #[test]
    fn a_refusal_may_be_a_gateways_unless_its_code_is_one_of_oauth_or_it_is_about_a_client_or_a_password() {
        let (username, password) = ("u".to_owned(), SecretSource::File("/p".into()));
        let grant = Grant::Password(Box::new(UserPassword { username, password }));
        let with_password = CredentialSettings { grant, ..settings(ClientAuthentication::None) };
        let refusal = |status, body: &str, settings| {
            let outcome = read(&reply(status, body, []), Context { settings, ..context() });
            outcome.result.unwrap_err().refusal
        };
        let page = r#"{"status":404,"error":"Not Found"}"#;
        for (status, body, of_client, of_password) in [
            (404, page, Some(Refusal::WithoutCode(404)), Some(Refusal::WithoutCode(404))),
            (403, page, Some(Refusal::WithoutCode(403)), Some(Refusal::PasswordWithoutCode(403))),
            (400, "", Some(Refusal::WithoutCode(400)), Some(Refusal::PasswordWithoutCode(400))),
            (401, page, Some(Refusal::Client), Some(Refusal::PasswordWithoutCode(401))),
            (400, page, Some(Refusal::UnknownCode), Some(Refusal::UnknownCode)),
            (400, r#"{"error":"invalid_scope"}"#, None, None),
            (403, r#"{"error":"invalid_client"}"#, Some(Refusal::Client), Some(Refusal::Client)),
        ] {
            let refusals = (refusal(status, body, context().settings), refusal(status, body, &with_password));
            assert_eq!(refusals, (of_client, of_password), "{status} {body}");
        }
    }

    fn jwt(claims: &str) -> String {
        format!("e30.{}.c2ln", URL_SAFE_NO_PAD.encode(claims))
    }

    fn remaining(claims: &str, date: Option<u64>) -> Duration {
        let (date, wall) = (date.map(Duration::from_secs), Duration::from_secs(9000));
        claimed_lifetime(&jwt(claims), date, wall).unwrap()
    }

    #[test]
    fn a_text_without_an_expiry_claim_has_no_lifetime() {
        let no_exp = jwt(r#"{"iat":1}"#);
        let wrong_type = jwt(r#"{"exp":"soon"}"#);
        for text in ["opaque", "a.b", "a.b.c.d", "a.!!.c", "..", &no_exp, &wrong_type] {
            assert_eq!(claimed_lifetime(text, None, Duration::ZERO), None, "{text}");
        }
    }

    #[test]
    fn the_providers_clock_is_believed_before_the_hosts() {
        let with_iat = r#"{"iss":"x","iat":1400,"exp":5000.5}"#;
        let without_iat = r#"{"exp":5000.5}"#;
        assert_eq!(
            remaining(with_iat, Some(2000)),
            Duration::from_millis(2_999_500),
            "its seconds are rounded down"
        );
        assert_eq!(remaining(with_iat, None), Duration::from_millis(3_600_500));
        assert_eq!(remaining(without_iat, None), Duration::ZERO);
        assert_eq!(remaining(without_iat, Some(6000)), Duration::ZERO);
    }

    #[test]
    fn an_expiry_beyond_all_bounds_is_far_away() {
        for exp in [1e20, 1e300, f64::MAX] {
            let claims = format!(r#"{{"iat":-1e308,"exp":{exp:e}}}"#);
            assert_eq!(remaining(&claims, None), Duration::MAX, "{exp}");
            assert_eq!(remaining(&claims, Some(2000)), Duration::MAX, "{exp}");
        }
        assert_eq!(remaining(r#"{"exp":-1e300}"#, None), Duration::ZERO);
    }
}
