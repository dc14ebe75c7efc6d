//! The provider's API: it accepts a call that carries exactly the documented headers.

use std::time::Instant;

use serde_json::json;

use super::{Client, Kind, StandInState};
use crate::{Answer, Recorded};

pub(super) fn answer(kind: Kind, client: &Client, request: &Recorded, state: &mut StandInState) -> Answer {
    if !bears_issued_token(request, state) {
        return Answer::json(401, &json!({ "error": "invalid_token" }))
            .with_header("WWW-Authenticate", "Bearer");
    }
    match compare(&demanded(kind, client), request) {
        Ok(()) => {
            state.api_calls += 1;
            Answer::json(200, &json!({ "accepted": true }))
        }
        Err(difference) => {
            state.refusals.push(difference.clone());
            Answer::json(400, &json!({ "error": difference }))
        }
    }
}

fn bears_issued_token(request: &Recorded, state: &StandInState) -> bool {
    let token = request.header("authorization").and_then(|value| value.strip_prefix("Bearer "));
    token.and_then(|token| state.issued.get(token)).is_some_and(|end| Instant::now() < *end)
}

/// The headers of a call besides `Authorization`.
fn demanded(kind: Kind, client: &Client) -> Vec<(&'static str, String)> {
    match kind {
        Kind::EconnectPsb => vec![("subscription-key", client.subscription_key.clone())],
        Kind::BnpParibasCib => vec![("accept", "application/json".to_owned())],
        Kind::PartnerApi => vec![("requestor-id", "np-7041".to_owned())],
        Kind::AritmaPsd2 | Kind::CubeConnect => Vec::new(),
    }
}

fn compare(demanded: &[(&str, String)], request: &Recorded) -> Result<(), String> {
    for (name, value) in demanded {
        match request.header(name) {
            None => return Err(format!("the header {name} is missing")),
            Some(found) if found != value => {
                return Err(format!("the header {name} has another value than the documented one"));
            }
            Some(_) => (),
        }
    }
    let odd = request.headers.iter().map(|(name, _)| name.to_ascii_lowercase()).find(|name| {
        !matches!(name.as_str(), "host" | "connection" | "authorization")
            && demanded.iter().all(|(known, _)| known != name)
    });
    odd.map_or(Ok(()), |name| Err(format!("a header {name} that is not documented")))
}
