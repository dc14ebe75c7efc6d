//! What an HTTP client's error means. Its own text is never passed on: it would carry the whole URL. The TLS
//! library's is for operators alone: a certificate can put anything into it, such as every name of a host.

use std::error::Error;
use std::io;

use rustls::CertificateError;
use tokend_protocol::ErrorClass;

use crate::provider::{Failure, words};

/// Sorts an error of a request that did not bring a whole reply.
pub fn classify(error: &reqwest::Error) -> Failure {
    if let Some(fault) = cause::<rustls::Error>(error) {
        return tls_failure(fault);
    }
    if error.is_timeout() {
        let stage = if error.is_connect() { "no connection" } else { "no complete reply" };
        return Failure::new(ErrorClass::Timeout, format!("{stage} in time"));
    }
    if chain(error).any(|cause| cause.to_string() == "dns error") {
        return Failure::new(ErrorClass::Unreachable, "network: the provider's name cannot be resolved");
    }
    // A decoder's complaint is an I/O error too, but it is about what the provider sent.
    let is_decoders = |fault: &&io::Error| {
        error.is_decode() && matches!(fault.kind(), io::ErrorKind::InvalidData | io::ErrorKind::InvalidInput)
    };
    if let Some(fault) = cause::<io::Error>(error).filter(|fault| !is_decoders(fault)) {
        return Failure::new(ErrorClass::Unreachable, format!("network: {}", fault.kind()));
    }
    if error.is_decode() {
        return Failure::new(ErrorClass::Malformed, "a reply that breaks off or cannot be decoded");
    }
    if error.is_connect() {
        return Failure::new(ErrorClass::Unreachable, "no connection to the provider");
    }
    Failure::new(ErrorClass::Unreachable, "the exchange with the provider broke off")
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
    Failure::new(ErrorClass::Tls, message).with_detail(words::printable(&fault.to_string()))
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
