//! The documented token request of each provider, and its comparison with what came.

use base64::Engine;
use base64::prelude::BASE64_STANDARD;

use super::{Client, Kind};
use crate::Recorded;

const FORM: &str = "application/x-www-form-urlencoded";

/// Header fields that any HTTP client sends and no provider gives a meaning.
const TRANSPORT: [&str; 5] = ["host", "content-length", "accept-encoding", "user-agent", "connection"];

/// One request that is accepted, to the letter.
#[derive(Clone, Debug)]
pub struct Expectation {
    path: &'static str,
    accept: Option<&'static str>,
    credentials: Credentials,
    fields: Vec<(&'static str, String)>,
}

/// How the client proves who it is.
#[derive(Clone, Debug)]
pub enum Credentials {
    /// `client_id` and `client_secret` are fields of the form.
    Form {
        /// The client id.
        id: String,
        /// The client secret.
        secret: String,
    },
    /// The value of the `Authorization` header.
    Header(String),
}

impl Expectation {
    /// What a provider documents. eConnect documents two grants, the others one.
    pub fn of(kind: Kind, client: &Client) -> Vec<Self> {
        let grant = ("grant_type", "client_credentials".to_owned());
        let one = |fields: Vec<(&'static str, String)>| {
            let accept = accept(kind);
            Self { path: kind.token_path(), accept, credentials: credentials(kind, client), fields }
        };
        match kind {
            Kind::EconnectPsb => vec![
                one(vec![grant, ("scope", "ap".to_owned())]),
                one(vec![
                    ("grant_type", "password".to_owned()),
                    ("scope", "ap".to_owned()),
                    ("username", client.username.clone()),
                    ("password", client.password.clone()),
                ]),
            ],
            Kind::BnpParibasCib | Kind::PartnerApi => vec![one(vec![grant])],
            Kind::AritmaPsd2 => {
                vec![one(vec![grant, ("scope", "banking.channel.psd2 banking.ais.read".to_owned())])]
            }
            Kind::CubeConnect => vec![one(vec![
                grant,
                ("scope", "profile".to_owned()),
                ("resource", "connectapi".to_owned()),
                ("acr_values", "tenant:acme".to_owned()),
            ])],
        }
    }

    /// The first difference, in words that hold no secret.
    fn compare(&self, request: &Recorded) -> Result<(), String> {
        same("method", "POST", &request.method)?;
        same("path", self.path, &request.path)?;
        same("Content-Type", FORM, request.header("content-type").unwrap_or("(none, or several)"))?;
        self.compare_accept(request)?;
        self.compare_authorization(request)?;
        compare_other_headers(request)?;
        self.compare_fields(request)
    }

    fn compare_accept(&self, request: &Recorded) -> Result<(), String> {
        let Some(expected) = self.accept else { return Ok(()) };
        same("Accept", expected, request.header("accept").unwrap_or("(none, or several)"))
    }

    fn compare_authorization(&self, request: &Recorded) -> Result<(), String> {
        let came = request.headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("authorization"));
        match &self.credentials {
            Credentials::Form { .. } if came => {
                Err("an Authorization header that is not documented".to_owned())
            }
            Credentials::Form { .. } => Ok(()),
            Credentials::Header(value) if request.header("authorization") == Some(value) => Ok(()),
            Credentials::Header(_) => Err("another Authorization header than the documented one".to_owned()),
        }
    }

    fn compare_fields(&self, request: &Recorded) -> Result<(), String> {
        let mut expected = self.fields.clone();
        if let Credentials::Form { id, secret } = &self.credentials {
            expected.push(("client_id", id.clone()));
            expected.push(("client_secret", secret.clone()));
        }
        let came = request.form();
        for (name, value) in &expected {
            let mut values = came.iter().filter(|(known, _)| known == name).map(|(_, value)| value);
            match (values.next(), values.next()) {
                (None, _) => return Err(format!("the field {name} is missing")),
                (Some(_), Some(_)) => return Err(format!("the field {name} came more than once")),
                (Some(found), None) if found != value => {
                    return Err(format!("the field {name} has another value than the documented one"));
                }
                (Some(_), None) => (),
            }
        }
        let odd = came.iter().find(|(name, _)| expected.iter().all(|(known, _)| known != name));
        odd.map_or(Ok(()), |(name, _)| Err(format!("a field {name} that is not documented")))
    }
}

/// Compares a request with each that is accepted: the difference is from the one of the same grant.
pub(super) fn compare_with_any(expectations: &[Expectation], request: &Recorded) -> Result<(), String> {
    let grant = request.field("grant_type").unwrap_or_default();
    let same_grant = expectations.iter().find(|expectation| {
        expectation.fields.iter().any(|(name, value)| *name == "grant_type" && *value == grant)
    });
    match same_grant.or(expectations.first()) {
        Some(expectation) => expectation.compare(request),
        None => Err("no request is accepted here".to_owned()),
    }
}

fn compare_other_headers(request: &Recorded) -> Result<(), String> {
    let known =
        |name: &str| TRANSPORT.contains(&name) || matches!(name, "content-type" | "accept" | "authorization");
    let odd = request.headers.iter().map(|(name, _)| name.to_ascii_lowercase()).find(|name| !known(name));
    odd.map_or(Ok(()), |name| Err(format!("a header {name} that is not documented")))
}

fn accept(kind: Kind) -> Option<&'static str> {
    match kind {
        Kind::EconnectPsb => Some("application/json"),
        Kind::BnpParibasCib => Some("*/*"),
        Kind::PartnerApi | Kind::AritmaPsd2 | Kind::CubeConnect => None,
    }
}

fn credentials(kind: Kind, client: &Client) -> Credentials {
    match kind {
        // Joined as they are, without form-encoding them first.
        Kind::BnpParibasCib => {
            let joined = BASE64_STANDARD.encode(format!("{}:{}", client.id, client.secret));
            Credentials::Header(format!("Basic {joined}"))
        }
        _ => Credentials::Form { id: client.id.clone(), secret: client.secret.clone() },
    }
}

fn same(what: &str, expected: &str, found: &str) -> Result<(), String> {
    if expected == found { Ok(()) } else { Err(format!("{what} is {found:?}, not {expected:?}")) }
}
