//! Reads a request over HTTP: what the caller asks for, as the request of the protocol, and the form of the answer. Pure.

use std::time::Duration;

use http::header::ORIGIN;
use http::{HeaderMap, Method, StatusCode, Uri};
use percent_encoding::percent_decode_str;
use tokend_protocol::{
    CallOptions, CallerHeader, GetRequest, HeadersRequest, Message, PageRequest, RejectRequest, Request,
    TokenName, Variant,
};

use super::reply::Problem;

/// How long a request may take unless it says so: as in `tokenctl`.
const DEADLINE: Duration = Duration::from_secs(10);

/// What a caller asks for.
#[derive(Debug, PartialEq, Eq)]
pub struct Asked {
    pub request: Request,
    pub form: Form,
}

/// The form in which a token is handed out. All other replies have one form.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    Json,
    /// As the header of a reply without a body, for `auth_request` of nginx.
    Authorization,
}

/// A path of the interface, with the name of a token where it has one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Route {
    Token,
    Headers,
    Reject,
    List,
    Authorization,
}

/// The parameters of a query, as far as they are taken out.
struct Parameters(Vec<(String, String)>);

impl Route {
    fn method(self) -> Method {
        if self == Self::Reject { Method::POST } else { Method::GET }
    }
}

/// Reads the head of a request. `has_body`: whether a body follows, which no request needs.
///
/// # Errors
/// The answer, if the request is refused.
pub fn read(method: &Method, uri: &Uri, headers: &HeaderMap, has_body: bool) -> Result<Asked, Problem> {
    if headers.contains_key(ORIGIN) {
        let detail = "requests of web pages (with an Origin header) are refused";
        return Err(Problem::new(StatusCode::FORBIDDEN, "not-allowed", detail));
    }
    if has_body {
        return Err(Problem { closes: true, ..Problem::invalid("send no body: everything is in the path and the query") });
    }
    let (route, name) = route(uri.path())?;
    let allowed = route.method();
    if *method != allowed {
        let detail = format!("use {allowed} for this path");
        let problem = Problem::new(StatusCode::METHOD_NOT_ALLOWED, "invalid-request", detail);
        return Err(Problem { allow: Some(allowed), ..problem });
    }
    let mut parameters = Parameters::of(uri.query().unwrap_or_default());
    let request = match (route, name) {
        (Route::List, _) => Request::List(PageRequest { after: parameters.name_after()? }),
        (_, None) => return Err(Problem::no_such_path()),
        (Route::Token | Route::Authorization, Some(name)) => {
            let (options, variant) = (parameters.options()?, parameters.variant());
            Request::Get(GetRequest { name, options, variant })
        }
        (Route::Headers, Some(name)) => {
            let (options, variant) = (parameters.options()?, parameters.variant());
            let omitted = parameters.take_all("omit");
            let header = |(name, value)| CallerHeader { name, value };
            let supplied = parameters.0.drain(..).map(header).collect();
            Request::Headers(HeadersRequest { name, options, supplied, omitted, variant })
        }
        (Route::Reject, Some(name)) => {
            let fingerprint = parameters.take("fingerprint")?.ok_or_else(|| {
                Problem::invalid("fingerprint is missing: give that of the token that was refused")
            })?;
            let fingerprint = fingerprint.parse().map_err(|error| Problem::invalid(format!("fingerprint: {error}")))?;
            let deadline_ms = parameters.duration("deadline", DEADLINE)?;
            Request::Reject(RejectRequest { name, fingerprint, deadline_ms, variant: parameters.variant() })
        }
    };
    parameters.check_empty()?;
    request.check().map_err(|error| Problem::invalid(error.to_string()))?;
    let form = if route == Route::Authorization { Form::Authorization } else { Form::Json };
    Ok(Asked { request, form })
}

fn route(path: &str) -> Result<(Route, Option<TokenName>), Problem> {
    let segments: Vec<&str> = path.split('/').skip(1).collect();
    let (route, name) = match *segments.as_slice() {
        ["v1", "tokens"] => return Ok((Route::List, None)),
        ["v1", "tokens", name] => (Route::Token, name),
        ["v1", "tokens", name, "headers"] => (Route::Headers, name),
        ["v1", "tokens", name, "reject"] => (Route::Reject, name),
        ["v1", "auth", name] => (Route::Authorization, name),
        _ => return Err(Problem::no_such_path()),
    };
    let name = percent_decode_str(name).decode_utf8_lossy();
    let name = name.parse().map_err(|error: tokend_protocol::TokenNameError| Problem::invalid(error.to_string()))?;
    Ok((route, Some(name)))
}

impl Parameters {
    fn of(query: &str) -> Self {
        Self(form_urlencoded::parse(query.as_bytes()).into_owned().collect())
    }

    /// Takes all values of a parameter.
    fn take_all(&mut self, name: &str) -> Vec<String> {
        self.0.extract_if(.., |(other, _)| other == name).map(|(_, value)| value).collect()
    }

    /// Takes the value of a parameter that may be given once.
    fn take(&mut self, name: &str) -> Result<Option<String>, Problem> {
        let mut values = self.take_all(name);
        if values.len() > 1 {
            return Err(Problem::invalid(format!("{name} is given more than once")));
        }
        Ok(values.pop())
    }

    /// Takes a duration, in milliseconds.
    fn duration(&mut self, name: &str, default: Duration) -> Result<u32, Problem> {
        let duration = match self.take(name)? {
            None => default,
            Some(text) => humantime::parse_duration(&text).map_err(|_| {
                Problem::invalid(format!("{name} is no duration: write it as 30s, 1500ms or 5m"))
            })?,
        };
        u32::try_from(duration.as_millis())
            .map_err(|_| Problem::invalid(format!("{name} is too long: 49 days are the most")))
    }

    fn options(&mut self) -> Result<CallOptions, Problem> {
        let deadline_ms = self.duration("deadline", DEADLINE)?;
        Ok(CallOptions { deadline_ms, min_ttl_ms: self.duration("min_ttl", Duration::ZERO)? })
    }

    /// Several scopes may be in one parameter, separated by spaces (RFC 6749 section 3.3).
    fn variant(&mut self) -> Variant {
        let scope = self.take_all("scope");
        let scope = scope.iter().flat_map(|scopes| scopes.split_ascii_whitespace()).map(str::to_owned);
        Variant {
            scope: scope.collect(),
            resource: self.take_all("resource"),
            audience: self.take_all("audience"),
        }
    }

    fn name_after(&mut self) -> Result<Option<TokenName>, Problem> {
        let after = self.take("after")?.map(|name| name.parse()).transpose();
        after.map_err(|error| Problem::invalid(format!("after: {error}")))
    }

    fn check_empty(&self) -> Result<(), Problem> {
        match self.0.first() {
            None => Ok(()),
            Some((name, _)) => Err(Problem::invalid(format!("there is no parameter {name:.64?} for this path"))),
        }
    }
}
