//! Reads a request over HTTP: what the caller asks for, as the request of the protocol, and the form of the answer. Pure.

use std::time::Duration;

use http::header::{ACCEPT, ORIGIN};
use http::{HeaderMap, Method, StatusCode, Uri};
use percent_encoding::percent_decode_str;
use tokend_protocol::{
    CallOptions, CallerHeader, GetRequest, HEADERS_MAX, HeadersRequest, Message, PageRequest, RejectRequest,
    Request, StatusRequest, TERMS_MAX, TokenName, Variant, documents::Dialect,
};

use super::reply::Problem;

/// How long a request may take unless it says so: as in `tokenctl`.
const DEADLINE: Duration = Duration::from_secs(10);

/// The most parameters that a request can have use for.
const PARAMETERS_MAX: usize = 3 * TERMS_MAX + 2 * HEADERS_MAX + 2;

/// A request of a caller.
#[derive(Debug, PartialEq, Eq)]
pub enum Asked {
    /// A request of the protocol, and the form of its answer.
    Request(Request, Form),
    /// All pages of the status, as metrics of Prometheus.
    Metrics(Dialect),
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
    Status,
    Metrics,
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
        return Err(Problem {
            closes: true,
            ..Problem::invalid("send no body: everything is in the path and the query")
        });
    }
    let (route, name) = route(uri.path())?;
    let allowed = route.method();
    if *method != allowed {
        let detail = format!("use {allowed} for this path");
        let problem = Problem::new(StatusCode::METHOD_NOT_ALLOWED, "invalid-request", detail);
        return Err(Problem { allow: Some(allowed), ..problem });
    }
    let mut parameters = Parameters::of(uri.query().unwrap_or_default())?;
    if route == Route::Metrics {
        parameters.check_empty()?;
        let accept = headers.get_all(ACCEPT).iter().filter_map(|value| value.to_str().ok());
        return Ok(Asked::Metrics(Dialect::of_accept(accept)));
    }
    let request = request(route, name, &mut parameters)?;
    parameters.check_empty()?;
    request.check().map_err(|error| Problem::invalid(error.to_string()))?;
    let form = if route == Route::Authorization { Form::Authorization } else { Form::Json };
    Ok(Asked::Request(request, form))
}

/// The request of the protocol for a path.
fn request(route: Route, name: Option<TokenName>, parameters: &mut Parameters) -> Result<Request, Problem> {
    Ok(match (route, name) {
        (Route::List, _) => Request::List(PageRequest { after: parameters.name_after()? }),
        (Route::Status, None) => {
            Request::Status(StatusRequest { name: None, after: parameters.name_after()? })
        }
        (Route::Status, name) => Request::Status(StatusRequest { name, after: None }),
        (_, None) | (Route::Metrics, _) => return Err(Problem::no_such_path()),
        (Route::Token | Route::Authorization, Some(name)) => {
            let (options, variant) = (parameters.options()?, parameters.variant()?);
            Request::Get(GetRequest { name, options, variant })
        }
        (Route::Headers, Some(name)) => {
            let (options, variant) = (parameters.options()?, parameters.variant()?);
            let omitted = parameters.take_all("omit");
            let header = |(name, value)| CallerHeader { name, value };
            let supplied = parameters.0.drain(..).map(header).collect();
            Request::Headers(HeadersRequest { name, options, supplied, omitted, variant })
        }
        (Route::Reject, Some(name)) => {
            let fingerprint = parameters.take("fingerprint")?.ok_or_else(|| {
                Problem::invalid("fingerprint is missing: give that of the token that was refused")
            })?;
            let fingerprint =
                fingerprint.parse().map_err(|error| Problem::invalid(format!("fingerprint: {error}")))?;
            let deadline_ms = parameters.duration("deadline", DEADLINE)?;
            Request::Reject(RejectRequest { name, fingerprint, deadline_ms, variant: parameters.variant()? })
        }
    })
}

fn route(path: &str) -> Result<(Route, Option<TokenName>), Problem> {
    let segments: Vec<&str> = path.split('/').skip(1).collect();
    let (route, name) = match *segments.as_slice() {
        ["v1", "tokens"] => return Ok((Route::List, None)),
        ["v1", "status"] => return Ok((Route::Status, None)),
        ["metrics"] => return Ok((Route::Metrics, None)),
        ["v1", "tokens", name] => (Route::Token, name),
        ["v1", "tokens", name, "headers"] => (Route::Headers, name),
        ["v1", "tokens", name, "reject"] => (Route::Reject, name),
        ["v1", "auth", name] => (Route::Authorization, name),
        ["v1", "status", name] => (Route::Status, name),
        _ => return Err(Problem::no_such_path()),
    };
    let name = percent_decode_str(name).decode_utf8_lossy();
    let name =
        name.parse().map_err(|error: tokend_protocol::TokenNameError| Problem::invalid(error.to_string()))?;
    Ok((route, Some(name)))
}

impl Parameters {
    fn of(query: &str) -> Result<Self, Problem> {
        let parameters = form_urlencoded::parse(query.as_bytes()).into_owned().take(PARAMETERS_MAX + 1);
        let parameters: Vec<_> = parameters.collect();
        if parameters.len() > PARAMETERS_MAX {
            return Err(Problem::invalid(format!("a request has at most {PARAMETERS_MAX} parameters")));
        }
        Ok(Self(parameters))
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
    fn variant(&mut self) -> Result<Variant, Problem> {
        let scope = self.take_all("scope");
        if scope.iter().any(|scopes| scopes.trim_ascii().is_empty()) {
            return Err(Problem::invalid("scope is empty: leave it out for the configured scopes"));
        }
        let scope = scope.iter().flat_map(|scopes| scopes.split_ascii_whitespace()).map(str::to_owned);
        Ok(Variant {
            scope: scope.collect(),
            resource: self.take_all("resource"),
            audience: self.take_all("audience"),
        })
    }

    fn name_after(&mut self) -> Result<Option<TokenName>, Problem> {
        let after = self.take("after")?.map(|name| name.parse()).transpose();
        after.map_err(|error| Problem::invalid(format!("after: {error}")))
    }

    fn check_empty(&self) -> Result<(), Problem> {
        match self.0.first() {
            None => Ok(()),
            Some((name, _)) => {
                Err(Problem::invalid(format!("there is no parameter {name:.64?} for this path")))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use tokend_protocol::TokenName;

    use super::*;

    fn request_of(asked: Result<Asked, Problem>) -> Request {
        match asked.unwrap() {
            Asked::Request(request, _) => request,
            Asked::Metrics(_) => panic!("metrics"),
        }
    }

    fn ask(method: &str, target: &str) -> Result<Asked, Problem> {
        let uri = target.parse().unwrap();
        read(&method.parse().unwrap(), &uri, &HeaderMap::new(), false)
    }

    fn psb() -> TokenName {
        "psb".parse().unwrap()
    }

    fn texts(texts: &[&str]) -> Vec<String> {
        texts.iter().map(|text| (*text).to_owned()).collect()
    }

    #[test]
    fn a_path_and_its_query_say_all_that_a_request_can_say() {
        let options = CallOptions { deadline_ms: 10_000, min_ttl_ms: 0 };
        let get = Request::Get(GetRequest { name: psb(), options, variant: Variant::default() });
        assert_eq!(ask("GET", "/v1/tokens/psb"), Ok(Asked::Request(get.clone(), Form::Json)));
        assert_eq!(request_of(ask("GET", "http://any.example/v1/tokens/psb")), get, "the host is ignored");
        assert_eq!(ask("GET", "/v1/auth/psb"), Ok(Asked::Request(get, Form::Authorization)));
        let query =
            "scope=a+b&scope=c&resource=https%3A%2F%2Fapi.example%2F&audience=x&min_ttl=90s&deadline=1500ms";
        let (scope, resource) = (texts(&["a", "b", "c"]), texts(&["https://api.example/"]));
        let variant = Variant { scope, resource, audience: texts(&["x"]) };
        let options = CallOptions { deadline_ms: 1500, min_ttl_ms: 90_000 };
        let asked = request_of(ask("GET", &format!("/v1/tokens/psb?{query}")));
        assert_eq!(asked, Request::Get(GetRequest { name: psb(), options, variant }));
        let asked = request_of(ask(
            "GET",
            "/v1/tokens/p%40b%2Beu/headers?Requestor-ID=47%2011&omit=X-Other&deadline=0s",
        ));
        let header = CallerHeader { name: "Requestor-ID".to_owned(), value: "47 11".to_owned() };
        let expected = HeadersRequest {
            name: "p@b+eu".parse().unwrap(),
            options: CallOptions { deadline_ms: 0, min_ttl_ms: 0 },
            supplied: vec![header],
            omitted: texts(&["X-Other"]),
            variant: Variant::default(),
        };
        assert_eq!(asked, Request::Headers(expected));
        let asked = request_of(ask("POST", "/v1/tokens/psb/reject?fingerprint=00f1e2d3c4b5a697"));
        let fingerprint = "00f1e2d3c4b5a697".parse().unwrap();
        let variant = Variant::default();
        let reject = RejectRequest { name: psb(), fingerprint, deadline_ms: 10_000, variant };
        assert_eq!(asked, Request::Reject(reject));
        let asked = request_of(ask("GET", "/v1/tokens?after=psb"));
        assert_eq!(asked, Request::List(PageRequest { after: Some(psb()) }));
        let status = |name, after| Request::Status(StatusRequest { name, after });
        assert_eq!(request_of(ask("GET", "/v1/status?after=psb")), status(None, Some(psb())));
        assert_eq!(request_of(ask("GET", "/v1/status/psb")), status(Some(psb()), None));
        let metrics = read(&Method::GET, &"/metrics".parse().unwrap(), &HeaderMap::new(), false);
        assert_eq!(metrics, Ok(Asked::Metrics(Dialect::Prometheus)));
    }

    #[test]
    fn each_mistake_is_named() {
        let scopes: Vec<String> = (0..65).map(|n| format!("s{n}")).collect();
        let many_parameters = format!("/v1/tokens/psb/headers?{}", "a=&".repeat(323));
        let many_scopes = format!("/v1/tokens/psb?scope={}", scopes.join("+"));
        for (method, target, status, words) in [
            ("GET", "/", 404, "no such path"),
            ("GET", "/v1/tokens/", 400, "must not be empty"),
            ("GET", "/v1/tokens/psb/", 404, "no such path"),
            ("GET", "//v1/tokens/psb", 404, "no such path"),
            ("GET", "/v2/tokens/psb", 404, "no such path"),
            ("GET", "/v1/tokens/%2e%2e", 400, "begins with a letter"),
            ("GET", "/v1/tokens/a%00b", 400, "only letters"),
            ("GET", "/v1/tokens/a%ffb", 400, "only letters"),
            ("GET", "*", 404, "no such path"),
            ("PUT", "/v1/tokens/psb", 405, "use GET"),
            ("HEAD", "/v1/tokens/psb", 405, "use GET"),
            ("CONNECT", "psb:443", 404, "no such path"),
            ("GET", "/v1/tokens/psb/reject?fingerprint=00f1e2d3c4b5a697", 405, "use POST"),
            ("POST", "/v1/tokens/psb/reject", 400, "fingerprint is missing"),
            ("POST", "/v1/tokens/psb/reject?fingerprint=xyz", 400, "fingerprint: "),
            ("GET", "/v1/tokens/psb?minttl=3s", 400, "no parameter \"minttl\""),
            ("GET", "/v1/tokens/psb?min_ttl=3", 400, "min_ttl is no duration"),
            ("GET", "/v1/tokens/psb?deadline=1s&deadline=2s", 400, "more than once"),
            ("GET", "/v1/tokens/psb?deadline=50days", 400, "deadline is too long"),
            ("GET", "/v1/tokens/psb?scope=a&scope=a", 400, "scopes is in the request twice"),
            ("GET", "/v1/tokens/psb/headers?A=1&a=2", 400, "headers is in the request twice"),
            ("GET", &many_scopes, 400, "at most 64 scopes"),
            ("GET", &many_parameters, 400, "at most 322 parameters"),
            ("POST", "/metrics", 405, "use GET"),
            ("GET", "/v1/status/psb?after=t", 400, "no parameter \"after\""),
            ("GET", "/metrics?after=psb", 400, "no parameter \"after\""),
            ("GET", "/v1/metrics", 404, "no such path"),
            ("GET", "/v1/tokens/psb?scope=", 400, "scope is empty"),
            ("GET", "/v1/tokens/psb?scope=a&scope=+", 400, "scope is empty"),
        ] {
            let problem = ask(method, target).unwrap_err();
            assert_eq!(problem.status.as_u16(), status, "{method} {target}: {problem:?}");
            assert!(problem.detail.contains(words), "{method} {target}: {problem:?}");
        }
        assert_eq!(ask("POST", "/v1/tokens/psb").unwrap_err().allow, Some(Method::GET));
    }

    #[test]
    fn web_pages_and_bodies_are_refused_whatever_they_ask_for() {
        for target in ["/v1/tokens/psb", "/v1/tokens", "/"] {
            let headers = [(ORIGIN, "null".parse().unwrap())].into_iter().collect();
            let uri = target.parse().unwrap();
            let problem = read(&Method::GET, &uri, &headers, false).unwrap_err();
            assert_eq!(problem.status, StatusCode::FORBIDDEN);
            let problem = read(&Method::GET, &uri, &HeaderMap::new(), true).unwrap_err();
            assert!(problem.status == StatusCode::BAD_REQUEST && problem.closes, "{problem:?}");
        }
    }
}
