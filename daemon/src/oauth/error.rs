//! What an HTTP client's error means. Its own text is never passed on: it would carry the whole URL. The TLS
//! library's is for operators alone: a certificate can put anything into it, such as every name of a host.

use std::error::Error;
use std::io;

use hyper_util::client::legacy;
use rustls::CertificateError;
use tokend_egress::ConnectError;
use tokend_protocol::ErrorClass;
use tower::timeout::error::Elapsed;

use crate::oauth::{Failure, redact};

/// Why no reply began.
pub fn of_request(error: &legacy::Error) -> Failure {
    if let Some(fault) = cause::<rustls::Error>(error) {
        return tls_failure(fault);
    }
    if let Some(fault) = cause::<ConnectError>(error) {
        return connect_failure(fault);
    }
    if cause::<Elapsed>(error).is_some() {
        return no_connection_in_time();
    }
    match cause::<io::Error>(error) {
        Some(fault) => {
            io_failure(fault, if error.is_connect() { no_connection_in_time } else { no_reply_in_time })
        }
        None if error.is_connect() => Failure::new(ErrorClass::Unreachable, "no connection to the provider"),
        None => Failure::new(ErrorClass::Unreachable, "the exchange with the provider broke off"),
    }
}

/// Why a reply did not come to its end.
pub fn of_body(error: &(dyn Error + 'static)) -> Failure {
    if let Some(fault) = cause::<rustls::Error>(error) {
        return tls_failure(fault);
    }
    // A decoder's complaint is an I/O error too, but it is about what the provider sent.
    let is_decoders =
        |fault: &&io::Error| matches!(fault.kind(), io::ErrorKind::InvalidData | io::ErrorKind::InvalidInput);
    match cause::<io::Error>(error).filter(|fault| !is_decoders(fault)) {
        Some(fault) => io_failure(fault, no_reply_in_time),
        None => Failure::new(ErrorClass::Malformed, "a reply that breaks off or cannot be decoded"),
    }
}

/// The reply had not come to its end when the time for it was over.
pub fn no_reply_in_time() -> Failure {
    Failure::new(ErrorClass::Timeout, "no complete reply in time")
}

fn no_connection_in_time() -> Failure {
    Failure::new(ErrorClass::Timeout, "no connection in time")
}

fn connect_failure(fault: &ConnectError) -> Failure {
    match fault {
        ConnectError::Unresolved(reason) => {
            let failure =
                Failure::new(ErrorClass::Unreachable, "network: the provider's name cannot be resolved");
            failure.with_detail(redact::printable(reason))
        }
        ConnectError::Failed(fault) => io_failure(fault, no_connection_in_time),
        ConnectError::Helper { .. } => {
            let failure = Failure::new(ErrorClass::Unreachable, "network: tokend-egress makes no connection");
            failure.with_detail(redact::printable(&fault.to_string()))
        }
    }
}

fn io_failure(fault: &io::Error, late: fn() -> Failure) -> Failure {
    match fault.kind() {
        io::ErrorKind::TimedOut => late(),
        kind => Failure::new(ErrorClass::Unreachable, format!("network: {kind}")),
    }
}

fn tls_failure(fault: &rustls::Error) -> Failure {
    let message = match fault {
        rustls::Error::InvalidCertificate(fault) => certificate_fault(fault),
        rustls::Error::NoCertificatesPresented => "TLS: the provider shows no certificate",
        rustls::Error::InvalidMessage(_) => "TLS: what answers does not speak TLS",
        rustls::Error::PeerIncompatible(_) => "TLS: no version or cipher suite in common with the provider",
        rustls::Error::AlertReceived(_) => "TLS: the provider broke the connection off with an alert",
        _ => "TLS: no encrypted connection to the provider",
    };
    Failure::new(ErrorClass::Tls, message).with_detail(redact::printable(&fault.to_string()))
}

fn certificate_fault(fault: &CertificateError) -> &'static str {
    use CertificateError::{
        Expired, ExpiredContext, NotValidForName, NotValidForNameContext, NotValidYet, NotValidYetContext,
        UnknownIssuer,
    };
    match fault {
        Expired | ExpiredContext { .. } => "TLS: the provider's certificate has expired",
        NotValidYet | NotValidYetContext { .. } => "TLS: the provider's certificate is not valid yet",
        NotValidForName | NotValidForNameContext { .. } => {
            "TLS: the provider's certificate is that of another host"
        }
        UnknownIssuer => "TLS: the provider's certificate is of an authority that is not trusted here",
        _ => "TLS: the provider's certificate is not good",
    }
}

/// The innermost error of a type among an error and its causes.
fn cause<'a, E: Error + 'static>(error: &'a (dyn Error + 'static)) -> Option<&'a E> {
    chain(error).filter_map(|error| error.downcast_ref::<E>()).last()
}

/// An error and its causes, outermost first.
fn chain<'a>(error: &'a (dyn Error + 'static)) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    std::iter::successors(Some(error), |&error| {
        // An io::Error that wraps another error does not name it as its source.
        let wrapped = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        wrapped.map(|error| error as &(dyn Error + 'static)).or_else(|| error.source())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cause_is_found_within_an_io_error() {
        let inner = rustls::Error::DecryptError;
        let outer = io::Error::other(io::Error::other(inner.clone()));
        assert_eq!(cause::<rustls::Error>(&outer), Some(&inner));
    }

    #[test]
    fn a_certificate_can_put_nothing_into_what_callers_see_and_little_into_what_operators_see() {
        let presented = (0..10_000).map(|n| format!("\u{202e}{n}.internal.example")).collect();
        let expected = rustls::pki_types::ServerName::try_from("id.example").unwrap();
        let fault = CertificateError::NotValidForNameContext { expected, presented };
        let failure = tls_failure(&rustls::Error::InvalidCertificate(fault));
        assert_eq!(failure.message, "TLS: the provider's certificate is that of another host");
        let detail = failure.detail.unwrap();
        assert!(detail.contains("1.internal.example") && !detail.contains('\u{202e}'), "{detail}");
        assert!(detail.len() < 500, "{} bytes", detail.len());
    }

    #[test]
    fn each_fault_of_a_certificate_that_is_met_has_words_of_its_own() {
        use rustls::AlertDescription;
        let cases = [
            (CertificateError::Expired.into(), "expired"),
            (CertificateError::NotValidYet.into(), "not valid yet"),
            (CertificateError::UnknownIssuer.into(), "not trusted here"),
            (CertificateError::Revoked.into(), "not good"),
            (rustls::Error::AlertReceived(AlertDescription::HandshakeFailure), "alert"),
        ];
        for (fault, words) in cases {
            let failure = tls_failure(&fault);
            assert!(failure.message.contains(words), "{fault}: {}", failure.message);
            assert_eq!(failure.detail, Some(fault.to_string()));
        }
    }
}
