//! Reads a token response (RFC 6749 sections 5.1 and 5.2). Tolerates what real providers send, and notes each deviation
//! for operators. Pure functions.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::Deserialize;
use serde_json::value::RawValue;
use tokend_protocol::{ErrorClass, Secret};

use crate::oauth::redact::{self, SentSecrets};
use crate::oauth::{ClockSkew, Deviation, Failure, Granted, Outcome, jwt};

/// The longest access token that is accepted, in bytes. It must fit into a reply frame.
const TOKEN_MAX: usize = 64 * 1024;

/// The longest list of granted scopes that is passed on, in bytes.
const SCOPE_MAX: usize = 16 * 1024;

/// The longest lifetime that is believed. A longer one is an error or means "for ever".
const LIFETIME_MAX: Duration = Duration::from_secs(10 * 366 * 24 * 60 * 60);

/// The parts of an HTTP reply that are read.
#[derive(Clone, Copy, Debug, Default)]
pub struct HttpReply<'a> {
    /// The status code.
    pub status: u16,
    /// `Content-Type`.
    pub content_type: Option<&'a str>,
    /// `Content-Encoding`, if it is still encoded.
    pub content_encoding: Option<&'a str>,
    /// `Date`.
    pub date: Option<&'a str>,
    /// `Retry-After`.
    pub retry_after: Option<&'a str>,
    /// The body.
    pub body: &'a [u8],
}

/// Inputs of [`read`] besides the reply.
#[derive(Clone, Copy, Debug)]
pub struct Context<'a> {
    /// The lifetime of a token whose reply states none.
    pub default_lifetime: Duration,
    /// Wall time now.
    pub wall: Duration,
    /// The secrets of the request, which the reply may repeat.
    pub sent: &'a SentSecrets,
}

/// The fields of a token response. Others are ignored, whatever they are.
#[derive(Default, Deserialize)]
struct Fields<'a> {
    #[serde(borrow)]
    access_token: Option<&'a RawValue>,
    #[serde(borrow)]
    token_type: Option<&'a RawValue>,
    #[serde(borrow, default, deserialize_with = "present")]
    expires_in: Option<&'a RawValue>,
    #[serde(borrow)]
    scope: Option<&'a RawValue>,
    #[serde(borrow)]
    error: Option<&'a RawValue>,
    #[serde(borrow)]
    error_description: Option<&'a RawValue>,
}

/// Distinguishes `null` from a missing field.
fn present<'de: 'a, 'a, D: serde::Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<&'a RawValue>, D::Error> {
    <&RawValue>::deserialize(deserializer).map(Some)
}

/// The fields as text, from a JSON or a form-encoded body.
#[derive(Default)]
struct Values {
    access_token: Option<String>,
    token_type: Option<String>,
    expires_in: Option<Number>,
    scope: Option<String>,
    error: Option<String>,
    error_description: Option<String>,
}

/// `expires_in` as it was written, and how that deviates.
type Number = (String, Option<Deviation>);

/// The state of reading a reply.
struct Reading<'a> {
    reply: &'a HttpReply<'a>,
    context: Context<'a>,
    deviations: Vec<Deviation>,
}

/// Reads a reply.
pub fn read(reply: &HttpReply<'_>, context: Context<'_>) -> Outcome {
    let mut reading = Reading { reply, context, deviations: Vec::new() };
    let mut result = match reading.values() {
        Some(values) if (200..300).contains(&reply.status) => reading.granted(values),
        values => Err(refused(reply.status, values.as_ref(), context.sent)),
    };
    if let Err(failure) = &mut result {
        failure.retry_after = retry_after(reply, context.wall);
    }
    let clock_skew = reply.date.and_then(http_date).map(|date| ClockSkew::between(date, context.wall));
    Outcome { deviations: reading.deviations, clock_skew, ..Outcome::of(result, 1) }
}

impl Reading<'_> {
    fn values(&mut self) -> Option<Values> {
        let HttpReply { content_encoding, content_type, body, .. } = *self.reply;
        if content_encoding.is_some_and(|encoding| !encoding.eq_ignore_ascii_case("identity")) {
            return None;
        }
        let Ok(fields) = serde_json::from_slice::<Fields<'_>>(body) else {
            let values = form_values(self.reply)?;
            self.deviations.push(Deviation::FORM_ENCODED);
            return Some(values);
        };
        if content_type.is_some_and(|value| !value.to_ascii_lowercase().contains("json")) {
            self.deviations.push(Deviation::CONTENT_TYPE);
        }
        if fields.scope.is_some_and(|scope| scope.get().starts_with('[')) {
            self.deviations.push(Deviation::SCOPE_ARRAY);
        }
        Some(Values {
            access_token: fields.access_token.and_then(text),
            token_type: fields.token_type.and_then(text),
            expires_in: fields.expires_in.map(number),
            scope: fields.scope.and_then(scope),
            error: fields.error.and_then(text).filter(|error| !error.is_empty()),
            error_description: fields.error_description.and_then(text),
        })
    }

    fn granted(&mut self, values: Values) -> Result<Granted, Failure> {
        let malformed = |message: &str| Failure::new(ErrorClass::Malformed, message);
        let Some(token) = values.access_token else {
            if values.error.is_some() {
                self.deviations.push(Deviation::ERROR_WITH_200);
                return Err(refused(self.reply.status, Some(&values), self.context.sent));
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
        match values.token_type.as_deref() {
            None => self.deviations.push(Deviation::TOKEN_TYPE_MISSING),
            Some(text) if text.eq_ignore_ascii_case("bearer") => (),
            Some(_) => self.deviations.push(Deviation::TOKEN_TYPE_OTHER),
        }
        let lifetime = self.lifetime(values.expires_in.as_ref(), &token);
        if lifetime.is_zero() {
            return Err(malformed("an access token that has already expired"));
        }
        Ok(Granted {
            token: Secret::from(token),
            lifetime,
            token_type: token_type(values.token_type.as_deref()).into(),
            scope: values.scope.as_deref().filter(|scope| is_scope(scope)).map(Into::into),
        })
    }

    /// The shorter lifetime of `expires_in` and the token's own claims; without both, the default.
    fn lifetime(&mut self, expires_in: Option<&Number>, token: &str) -> Duration {
        let stated = self.stated_lifetime(expires_in);
        let date = self.reply.date.and_then(http_date);
        let claimed =
            jwt::times(token).map(|times| times.remaining(date, self.context.wall).min(LIFETIME_MAX));
        match (stated, claimed) {
            (Some(stated), Some(claimed)) => {
                // Both clocks are rounded to whole seconds.
                if claimed + Duration::from_secs(2) < stated {
                    self.deviations.push(Deviation::JWT_EXPIRES_EARLIER);
                }
                stated.min(claimed)
            }
            (Some(lifetime), None) | (None, Some(lifetime)) => lifetime,
            (None, None) => self.context.default_lifetime,
        }
    }

    fn stated_lifetime(&mut self, expires_in: Option<&Number>) -> Option<Duration> {
        let Some((text, deviation)) = expires_in else {
            self.deviations.push(Deviation::EXPIRES_IN_MISSING);
            return None;
        };
        self.deviations.extend(*deviation);
        if *deviation == Some(Deviation::EXPIRES_IN_NULL) {
            return None;
        }
        let text = text.trim();
        let seconds = text.parse().ok().filter(|seconds: &f64| !seconds.is_nan());
        if seconds.is_some() && text.contains(['.', 'e', 'E']) {
            self.deviations.push(Deviation::EXPIRES_IN_FLOAT);
        }
        let longest = LIFETIME_MAX.as_secs_f64();
        let (deviation, lifetime) = match seconds {
            None => (Deviation::EXPIRES_IN_INVALID, None),
            Some(seconds) if seconds > longest => (Deviation::EXPIRES_IN_HUGE, Some(LIFETIME_MAX)),
            Some(seconds) if seconds > 0.0 => return Duration::try_from_secs_f64(seconds).ok(),
            Some(seconds) if seconds < 0.0 => (Deviation::EXPIRES_IN_NEGATIVE, None),
            Some(_) => (Deviation::EXPIRES_IN_ZERO, None),
        };
        self.deviations.push(deviation);
        lifetime
    }
}

fn text(value: &RawValue) -> Option<String> {
    serde_json::from_str(value.get()).ok()
}

/// The granted scopes, separated by spaces: a text, or the list that some providers send.
fn scope(value: &RawValue) -> Option<String> {
    text(value).or_else(|| serde_json::from_str::<Vec<String>>(value.get()).ok().map(|list| list.join(" ")))
}

fn number(value: &RawValue) -> Number {
    match (value.get(), text(value)) {
        ("null", _) => (String::new(), Some(Deviation::EXPIRES_IN_NULL)),
        (_, Some(text)) => (text, Some(Deviation::EXPIRES_IN_STRING)),
        (written, None) => (written.to_owned(), None),
    }
}

/// Reads a form-encoded body, as some old providers send. It must have a field of a token response.
///
/// Every text parses as a form. So other content types and markup are excluded: an access token in a link of a page is
/// not meant for this client.
fn form_values(reply: &HttpReply<'_>) -> Option<Values> {
    let content_type = reply.content_type.unwrap_or_default().to_ascii_lowercase();
    if ["html", "json", "xml"].iter().any(|other| content_type.contains(other)) || reply.body.contains(&b'<')
    {
        return None;
    }
    let mut values = Values::default();
    for (name, value) in form_urlencoded::parse(reply.body) {
        let value = value.into_owned();
        match &*name {
            "access_token" => values.access_token = Some(value),
            "token_type" => values.token_type = Some(value),
            "expires_in" | "expires" => values.expires_in = Some((value, None)),
            "scope" => values.scope = Some(value),
            "error" if !value.is_empty() => values.error = Some(value),
            "error_description" => values.error_description = Some(value),
            _ => (),
        }
    }
    (values.access_token.is_some() || values.error.is_some()).then_some(values)
}

/// The token type as an `Authorization` header spells it. One that no header can carry counts as `Bearer`.
fn token_type(named: Option<&str>) -> &str {
    let is_scheme = |text: &&str| {
        let is_allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
        !text.is_empty() && text.len() <= 64 && text.bytes().all(is_allowed)
    };
    named.filter(is_scheme).filter(|text| !text.eq_ignore_ascii_case("bearer")).unwrap_or("Bearer")
}

/// Whether a text is a list of scopes (RFC 6749 section 3.3) of a sensible length.
fn is_scope(text: &str) -> bool {
    !text.trim().is_empty()
        && text.len() <= SCOPE_MAX
        && text.bytes().all(|b| b == b' ' || b.is_ascii_graphic())
}

fn http_date(text: &str) -> Option<Duration> {
    let date: SystemTime = httpdate::parse_http_date(text).ok()?;
    date.duration_since(UNIX_EPOCH).ok()
}

/// Reads `Retry-After`: seconds, or a date, which is compared with the reply's `Date` where there is one. Anything else,
/// or a date in the past, is ignored.
pub fn retry_after(reply: &HttpReply<'_>, wall: Duration) -> Option<Duration> {
    let text = reply.retry_after?.trim();
    if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Some(text.parse().map_or(Duration::MAX, Duration::from_secs));
    }
    let now = reply.date.and_then(http_date).unwrap_or(wall);
    http_date(text)?.checked_sub(now)
}

fn refused(status: u16, values: Option<&Values>, sent: &SentSecrets) -> Failure {
    let error = values.and_then(|values| values.error.as_deref());
    let code = error.and_then(|error| redact::error_code(error, sent));
    let description = values.and_then(|values| values.error_description.as_deref());
    let class = class(status, error);
    Failure {
        refuses_client: class == ErrorClass::Refused
            && matches!((error, status), (Some("invalid_client"), _) | (None, 401)),
        detail: description.map(|text| redact::description(text, sent)),
        ..Failure::new(class, message(status, code.as_deref()))
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

fn message(status: u16, code: Option<&str>) -> String {
    match (status, code) {
        (_, Some(code)) => format!("{code} (status {status})"),
        (200..300, None) => format!("a reply that is not a token response (status {status})"),
        (300..400, None) => format!(
            "a redirect (status {status}), which is never followed: configure the final token endpoint"
        ),
        (_, None) => format!("status {status} without an OAuth error code"),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    static NONE: SentSecrets = SentSecrets::NONE;

    const CONTEXT: Context<'_> = Context {
        default_lifetime: Duration::from_secs(300),
        wall: Duration::from_secs(1_700_000_000),
        sent: &NONE,
    };

    fn read_json(status: u16, body: &str) -> Outcome {
        let content_type = Some("application/json;charset=UTF-8");
        read(&HttpReply { status, content_type, body: body.as_bytes(), ..HttpReply::default() }, CONTEXT)
    }

    fn with_expiry(expires_in: &str) -> (Result<u64, ErrorClass>, Vec<Deviation>) {
        let body = format!(r#"{{"access_token":"t","token_type":"Bearer",{expires_in}"x":1}}"#);
        let Outcome { result, deviations, .. } = read_json(200, &body);
        (result.map(|granted| granted.lifetime.as_secs()).map_err(|failure| failure.class), deviations)
    }

    #[test]
    fn every_way_to_write_a_lifetime_is_understood_and_the_odd_ones_are_counted() {
        use Deviation as D;
        let huge = LIFETIME_MAX.as_secs();
        let cases: [(&str, u64, &[Deviation]); 15] = [
            (r#""expires_in":3600,"#, 3600, &[]),
            (r#""expires_in":"1799","#, 1799, &[D::EXPIRES_IN_STRING]),
            (r#""expires_in":" 60 ","#, 60, &[D::EXPIRES_IN_STRING]),
            (r#""expires_in":59.9,"#, 59, &[D::EXPIRES_IN_FLOAT]),
            (r#""expires_in":1e3,"#, 1000, &[D::EXPIRES_IN_FLOAT]),
            (r#""expires_in":"3.6e3","#, 3600, &[D::EXPIRES_IN_STRING, D::EXPIRES_IN_FLOAT]),
            (r#""expires_in":99999999999999999999999,"#, huge, &[D::EXPIRES_IN_HUGE]),
            (r#""expires_in":1e400,"#, huge, &[D::EXPIRES_IN_FLOAT, D::EXPIRES_IN_HUGE]),
            ("", 300, &[D::EXPIRES_IN_MISSING]),
            (r#""expires_in":null,"#, 300, &[D::EXPIRES_IN_NULL]),
            (r#""expires_in":0,"#, 300, &[D::EXPIRES_IN_ZERO]),
            (r#""expires_in":-5,"#, 300, &[D::EXPIRES_IN_NEGATIVE]),
            (r#""expires_in":"soon","#, 300, &[D::EXPIRES_IN_STRING, D::EXPIRES_IN_INVALID]),
            (r#""expires_in":[1],"#, 300, &[D::EXPIRES_IN_INVALID]),
            (r#""expires_in":true,"#, 300, &[D::EXPIRES_IN_INVALID]),
        ];
        for (field, seconds, deviations) in cases {
            assert_eq!(with_expiry(field), (Ok(seconds), deviations.to_vec()), "{field}");
        }
    }

    #[test]
    fn a_jwt_tells_its_lifetime_and_the_shortest_wins() {
        use base64::Engine;
        let claims = base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(r#"{"iat":1000,"exp":1600}"#);
        let reading = |expires_in: &str| {
            let body = format!(r#"{{"access_token":"e30.{claims}.s","token_type":"Bearer"{expires_in}}}"#);
            let Outcome { result, deviations, .. } = read_json(200, &body);
            (result.unwrap().lifetime.as_secs(), deviations)
        };
        assert_eq!(reading(""), (600, vec![Deviation::EXPIRES_IN_MISSING]));
        assert_eq!(reading(r#","expires_in":3600"#), (600, vec![Deviation::JWT_EXPIRES_EARLIER]));
        assert_eq!(reading(r#","expires_in":60"#), (60, vec![]));
    }

    #[test]
    fn a_jwt_that_has_expired_by_the_providers_own_clock_is_not_taken() {
        use base64::Engine;
        let claims = base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(r#"{"iat":1000,"exp":1600}"#);
        let body = format!(r#"{{"access_token":"e30.{claims}.s","token_type":"Bearer","expires_in":3600}}"#);
        let date = Some("Thu, 01 Jan 1970 00:30:00 GMT");
        let outcome =
            read(&HttpReply { status: 200, date, body: body.as_bytes(), ..HttpReply::default() }, CONTEXT);
        assert_eq!(outcome.result.unwrap_err().class, ErrorClass::Malformed);
    }

    #[test]
    fn the_date_of_a_reply_gives_the_clock_skew() {
        let skew = |date| {
            let reply = HttpReply { status: 503, date, ..HttpReply::default() };
            read(&reply, CONTEXT).clock_skew.filter(|skew| skew.is_remarkable()).map(|skew| skew.to_string())
        };
        assert_eq!(skew(Some("Tue, 14 Nov 2023 22:13:20 GMT")), None);
        let ahead = Some("the provider's clock is 3600 s ahead of this host's".to_owned());
        assert_eq!(skew(Some("Tue, 14 Nov 2023 23:13:20 GMT")), ahead);
        assert_eq!((skew(None), skew(Some("yesterday"))), (None, None));
    }

    #[test]
    fn unknown_fields_of_a_real_reply_are_ignored() {
        let body = r#"{"refresh_token_expires_in":"0","api_product_list":"[a]","api_product_list_json":["a"],
            "organization_name":"o","developer.email":"d","token_type":"BearerToken","issued_at":"1","":{"x":[]},
            "client_id":"c","access_token":"tok","application_name":"n","scope":"pisp aisp","expires_in":"1799",
            "refresh_count":"0","status":"approved"}"#;
        let Outcome { result, deviations, .. } = read_json(200, body);
        let granted = result.unwrap();
        assert_eq!((granted.token.expose(), granted.lifetime.as_secs()), ("tok", 1799));
        assert_eq!(deviations, [Deviation::TOKEN_TYPE_OTHER, Deviation::EXPIRES_IN_STRING]);
    }

    #[test]
    fn token_types_scopes_and_encodings_of_all_kinds() {
        use Deviation as D;
        let read_as = |content_type, body: &str| {
            read(
                &HttpReply { status: 200, content_type, body: body.as_bytes(), ..HttpReply::default() },
                CONTEXT,
            )
        };
        let json = Some("application/json");
        let cases: [(Option<&str>, &str, &[Deviation]); 6] = [
            (json, r#"{"access_token":"t","token_type":"bEARER","expires_in":1,"scope":null}"#, &[]),
            (
                json,
                r#"{"access_token":"t","expires_in":1,"scope":["a","b"]}"#,
                &[D::SCOPE_ARRAY, D::TOKEN_TYPE_MISSING],
            ),
            (json, r#"{"access_token":"t","token_type":7,"expires_in":1}"#, &[D::TOKEN_TYPE_MISSING]),
            (
                Some("text/html"),
                r#"{"access_token":"t","token_type":"Bearer","expires_in":1}"#,
                &[D::CONTENT_TYPE],
            ),
            (None, r#"{"access_token":"t","token_type":"Bearer","expires_in":1}"#, &[]),
            (None, "access_token=t&token_type=bearer&expires_in=1", &[D::FORM_ENCODED]),
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
        let encoded =
            HttpReply { status: 200, content_encoding: Some("br"), body: b"{}", ..HttpReply::default() };
        assert_eq!(read(&encoded, CONTEXT).result.unwrap_err().class, ErrorClass::Malformed);
    }

    #[test]
    fn a_body_that_is_said_to_be_something_else_is_no_form() {
        let class_of = |content_type, body: &str| {
            let reply =
                HttpReply { status: 200, content_type, body: body.as_bytes(), ..HttpReply::default() };
            read(&reply, CONTEXT).result.map(|_| ()).map_err(|failure| failure.class)
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
        let failure = read_json(401, &body).result.unwrap_err();
        assert_eq!(failure.message, "invalid_client (status 401)");
        let detail = failure.detail.unwrap();
        assert!(detail.starts_with("[31mnoxxx"), "{detail}");
        assert!(detail.len() <= 200 && !detail.contains(char::is_control));
    }

    #[test]
    fn a_refusal_names_its_status() {
        let told = |status, body: &str| read_json(status, body).result.unwrap_err().message;
        assert_eq!(told(200, r#"{"error":"invalid_scope"}"#), "invalid_scope (status 200)");
        assert_eq!(told(400, r#"{"error":"\u202e"}"#), "status 400 without an OAuth error code");
    }

    #[test]
    fn a_refusal_repeats_no_secret_of_the_request() {
        let sent = ["pass phrase", "s3cr3t"].map(str::to_owned).into_iter().collect();
        let body = format!(
            r#"{{"error":"not pass phrase","error_description":"{}s3cr3t is wrong"}}"#,
            "x".repeat(195)
        );
        let reply = HttpReply { status: 401, body: body.as_bytes(), ..HttpReply::default() };
        let failure = read(&reply, Context { sent: &sent, ..CONTEXT }).result.unwrap_err();
        assert_eq!(failure.message, "not_*** (status 401)");
        assert!(!failure.detail.unwrap().contains("s3c"));
    }

    #[test]
    fn a_code_is_understood_even_if_a_secret_is_a_part_of_it() {
        let sent = ["slow".to_owned()].into_iter().collect();
        let reply = HttpReply { status: 400, body: br#"{"error":"slow_down"}"#, ..HttpReply::default() };
        let failure = read(&reply, Context { sent: &sent, ..CONTEXT }).result.unwrap_err();
        assert_eq!(
            (failure.class, failure.message.as_str()),
            (ErrorClass::Throttled, "***_down (status 400)")
        );
    }

    #[test]
    fn retry_after_in_seconds_as_a_date_and_as_nonsense() {
        let date = Some("Tue, 14 Nov 2023 22:13:20 GMT"); // 1700000000
        let reading = |text: &str, date| {
            let reply = HttpReply { status: 429, retry_after: Some(text), date, ..HttpReply::default() };
            read(&reply, CONTEXT).result.unwrap_err().retry_after.map(|wait| wait.as_secs())
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
            let header = Some(header.as_str());
            let reply = HttpReply { status, content_type: header, content_encoding: None, date: header, retry_after: header, body: &body };
            let _ = read(&reply, CONTEXT);
        }

        #[test]
        fn a_granted_token_always_has_a_lifetime(expires_in in "[-+0-9eE.\" ]{0,12}") {
            if let Ok(seconds) = with_expiry(&format!("\"expires_in\":{expires_in},")).0 {
                prop_assert!(seconds <= LIFETIME_MAX.as_secs());
            }
        }
    }

    #[test]
    fn only_a_refusal_of_the_client_itself_lets_another_secret_be_tried() {
        let refuses = |status, body| match read_json(status, body).result {
            Err(failure) => failure.refuses_client,
            Ok(_) => false,
        };
        for (status, body) in [
            (401, r#"{"error":"invalid_client"}"#),
            (400, r#"{"error":"invalid_client"}"#),
            (200, r#"{"error":"invalid_client"}"#),
            (401, "{}"),
            (401, "who are you?"),
        ] {
            assert!(refuses(status, body), "{status} {body}");
        }
        for (status, body) in [
            (400, r#"{"error":"invalid_grant"}"#),
            (401, r#"{"error":"invalid_grant"}"#),
            (400, r#"{"error":"unauthorized_client"}"#),
            (429, r#"{"error":"invalid_client"}"#),
            (503, r#"{"error":"invalid_client"}"#),
            (400, "{}"),
            (403, "{}"),
            (500, "{}"),
        ] {
            assert!(!refuses(status, body), "{status} {body}");
        }
    }
}
