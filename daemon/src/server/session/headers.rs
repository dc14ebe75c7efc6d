//! `Headers`: the header set of an API call. `Authorization`, the configured headers, and those of the caller.

use std::sync::PoisonError;

use tokend_protocol::{
    CallOptions, CallerHeader, ErrorClass, ErrorCode, ErrorReply, Header, HeadersReply, HeadersRequest,
    Reply, Secret, TokenName,
};

use super::{Session, refusal};
use crate::clock::Instant;
use crate::config::{HeaderSettings, HeaderValue, is_field_value};
use crate::engine::credential::Failed;
use crate::engine::registry::Entry;
use crate::secret_source::UserTurns;
use crate::server::audit::Operation;

/// How many milliseconds the secrets of a header set may take for a caller without a deadline: they are on this host, and
/// no provider has to be waited for.
const SECRETS_TIMEOUT_MS: u32 = 1000;

impl Session {
    pub(super) async fn headers(&self, request: HeadersRequest) -> Result<Reply, ErrorReply> {
        let (token, info, headers) = self.hand_out(Operation::Headers, request).await?;
        let headers = with_authorization(&token.secret, headers);
        Ok(Reply::Headers(HeadersReply { info, headers }))
    }

    pub(super) fn deadline_for_secrets(&self, options: CallOptions) -> Instant {
        self.deadline(if options.deadline_ms == 0 { SECRETS_TIMEOUT_MS } else { options.deadline_ms })
    }

    /// The configured headers, with their secrets as they are now.
    pub(super) async fn configured_headers(
        &self,
        name: TokenName,
        entry: &Entry,
        deadline: Instant,
    ) -> Result<Vec<Header>, ErrorReply> {
        let read = tokio::select! {
            // Secrets that are at hand are read, however short the deadline.
            biased;
            read = configured(&entry.settings.headers, &self.allowance.secret_turns) => read,
            () = self.shared.clock.sleep_until(deadline) => {
                let message = "the deadline passed before the secrets of the header set were read";
                return Err(refusal(ErrorCode::DeadlineExceeded, message));
            }
        };
        read.map_err(|error| {
            let now = self.shared.clock.now();
            let mut throttle = self.shared.header_failures.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(times) = throttle.record(now) {
                tracing::warn!(token = %name, %error, times, "a header cannot be made");
            }
            drop(throttle);
            let message = "a secret of the header set cannot be read on this host";
            let detail = Some(error.into());
            let failed = Failed { detail, ..Failed::new(ErrorClass::Secret, message, now) };
            self.failed(&failed, None)
        })
    }
}

/// Checks the caller's headers against those that the configuration leaves to it, and returns them in the configured
/// spelling and order.
pub(super) fn supplied(
    expected: &[String],
    supplied: &[CallerHeader],
    omitted: &[String],
) -> Result<Vec<Header>, String> {
    let names = |list: &[String], name: &str| list.iter().any(|other| other.eq_ignore_ascii_case(name));
    for name in supplied.iter().map(|header| &header.name).chain(omitted) {
        if !names(expected, name) {
            return Err(format!(
                "the header {name:.64} is not among those that the caller supplies for this token"
            ));
        }
    }
    let mut headers = Vec::with_capacity(expected.len());
    for name in expected {
        // The protocol lets nobody supply a header twice.
        let header = supplied.iter().find(|header| header.name.eq_ignore_ascii_case(name));
        match (header, names(omitted, name)) {
            (Some(_), true) => return Err(format!("the header {name} is both supplied and left out")),
            (None, true) => (),
            (None, false) => {
                return Err(format!(
                    "the header {name} is missing: supply its value, or leave it out of this call"
                ));
            }
            (Some(header), false) if is_field_value(&header.value) => {
                headers.push(Header { name: name.clone(), value: Secret::from(header.value.clone()) });
            }
            (Some(_), false) => {
                return Err(format!(
                    "the value of the header {name} is empty or has characters that no header can carry"
                ));
            }
        }
    }
    Ok(headers)
}

/// The configured headers. Secrets are read now.
async fn configured(settings: &[HeaderSettings], turns: &UserTurns) -> Result<Vec<Header>, String> {
    let mut headers = Vec::with_capacity(settings.len());
    for HeaderSettings { name, value } in settings {
        let value = match value {
            HeaderValue::Fixed(text) => Secret::from(text.clone()),
            HeaderValue::Secret(source) => {
                source.read_for_caller(turns).await.map_err(|error| format!("{name}: {error}"))?
            }
        };
        if !is_field_value(value.expose()) {
            return Err(format!("{name}: the secret has characters that no header can carry"));
        }
        headers.push(Header { name: name.clone(), value });
    }
    Ok(headers)
}

/// The whole set, `Authorization` first.
fn with_authorization(token: &Secret, others: Vec<Header>) -> Vec<Header> {
    let value = Secret::from(format!("Bearer {}", token.expose()));
    let authorization = Header { name: "Authorization".to_owned(), value };
    std::iter::once(authorization).chain(others).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn caller(name: &str, value: &str) -> CallerHeader {
        CallerHeader { name: name.to_owned(), value: value.to_owned() }
    }

    fn check(given: &[CallerHeader], omitted: &[&str]) -> Result<Vec<(String, String)>, String> {
        let omitted: Vec<String> = omitted.iter().map(|name| (*name).to_owned()).collect();
        let headers = supplied(&["Requestor-ID".to_owned()], given, &omitted)?;
        Ok(headers.into_iter().map(|header| (header.name, header.value.expose().to_owned())).collect())
    }

    #[test]
    fn the_caller_supplies_exactly_what_is_left_to_it() {
        assert_eq!(
            check(&[caller("requestor-id", "42")], &[]),
            Ok(vec![("Requestor-ID".into(), "42".into())])
        );
        assert_eq!(check(&[], &["REQUESTOR-ID"]), Ok(vec![]));
    }

    #[test]
    fn each_mistake_names_the_header() {
        let cases = [
            (check(&[], &[]), "missing"),
            (check(&[caller("Requestor-ID", "1")], &["Requestor-ID"]), "both supplied and left out"),
            (check(&[caller("Requestor-ID", "1\r\nX: y")], &[]), "characters that no header"),
            (check(&[caller("Requestor-ID", "")], &[]), "is empty"),
            (
                check(&[caller("Authorization", "Bearer x")], &["Requestor-ID"]),
                "header Authorization is not among",
            ),
            (check(&[], &["Requestor-ID", "Accept"]), "header Accept is not among"),
        ];
        for (result, expected) in cases {
            assert!(
                result.as_ref().is_err_and(|message| message.contains(expected)),
                "{expected}: {result:?}"
            );
        }
    }

    #[tokio::test]
    async fn the_set_begins_with_the_token() {
        let settings =
            [HeaderSettings { name: "Accept".into(), value: HeaderValue::Fixed("text/plain".into()) }];
        let set = with_authorization(
            &Secret::from("tok".to_owned()),
            configured(&settings, &UserTurns::default()).await.unwrap(),
        );
        let lines: Vec<_> = set.iter().map(|h| format!("{}: {}", h.name, h.value.expose())).collect();
        assert_eq!(lines, ["Authorization: Bearer tok", "Accept: text/plain"]);
    }
}
