//! Classifies errors of the HTTP client. The client's own text is never passed on, because it contains the whole URL.
//! The TLS library's text is for operators only, because a certificate can put anything into it.

use std::error::Error;
use std::io;

use rustls::CertificateError;
use tokend_protocol::ErrorClass;

use crate::oauth::client::Unresolved;
use crate::oauth::{Failure, redact};

/// Returns the failure of an exchange without a reply. `egress` is the instance of the egress units, to which the
/// detail then refers.
pub(super) fn of(error: &reqwest::Error, egress: Option<&str>) -> Failure {
    let failure = classify(error);
    // A host with other characters has no unit, and an operator is not to paste it into a shell.
    let in_a_unit_name = |byte: u8| byte.is_ascii_alphanumeric() || b".:-_".contains(&byte);
    let Some(instance) = egress.filter(|instance| instance.bytes().all(in_a_unit_name)) else {
        return failure;
    };
    let socket_is_missing = cause::<io::Error>(error).is_some_and(|fault| {
        matches!(fault.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused)
    });
    match failure.class {
        ErrorClass::Unreachable if error.is_connect() && socket_is_missing => {
            let message = "network: no egress socket for the provider";
            Failure::new(ErrorClass::Unreachable, message).with_detail(format!(
                "nothing listens for {instance}; run `systemctl enable --now tokend-egress@{instance}.socket`"
            ))
        }
        ErrorClass::Unreachable | ErrorClass::Timeout => {
            failure.with_detail(format!("see `journalctl -u 'tokend-egress@{instance}.service'`"))
        }
        _ => failure,
    }
}

fn classify(error: &reqwest::Error) -> Failure {
    let unreachable = |message: String| Failure::new(ErrorClass::Unreachable, message);
    if let Some(fault) = cause::<rustls::Error>(error) {
        return tls_failure(fault);
    }
    if let Some(Unresolved(reason)) = cause::<Unresolved>(error) {
        let failure = unreachable("network: the provider's name cannot be resolved".to_owned());
        return failure.with_detail(redact::printable(reason));
    }
    let fault = cause::<io::Error>(error).map(io::Error::kind);
    if error.is_timeout() || fault == Some(io::ErrorKind::TimedOut) {
        let message = if error.is_connect() { "no connection in time" } else { "no complete reply in time" };
        return Failure::new(ErrorClass::Timeout, message);
    }
    match fault {
        // An error of the decompressor is an I/O error too, but the provider caused it.
        Some(kind) if !matches!(kind, io::ErrorKind::InvalidData | io::ErrorKind::InvalidInput) => {
            unreachable(format!("network: {kind}"))
        }
        _ if error.is_builder() => Failure::new(ErrorClass::Internal, "the request cannot be written"),
        _ if error.is_decode() => {
            Failure::new(ErrorClass::Malformed, "a reply that breaks off or cannot be decoded")
        }
        _ if error.is_connect() => unreachable("no connection to the provider".to_owned()),
        _ => unreachable("the exchange with the provider broke off".to_owned()),
    }
}

fn tls_failure(fault: &rustls::Error) -> Failure {
    use CertificateError::{
        Expired, ExpiredContext, NotValidForName, NotValidForNameContext, NotValidYet, NotValidYetContext,
        UnknownIssuer,
    };
    use rustls::Error::{self, InvalidCertificate};
    let reason = match fault {
        InvalidCertificate(fault) => match fault {
            Expired | ExpiredContext { .. } => "the provider's certificate has expired",
            NotValidYet | NotValidYetContext { .. } => "the provider's certificate is not valid yet",
            NotValidForName | NotValidForNameContext { .. } => {
                "the provider's certificate is for another host"
            }
            UnknownIssuer => "the provider's certificate is from an authority that is not trusted here",
            _ => "the provider's certificate is not valid",
        },
        Error::NoCertificatesPresented => "the provider presented no certificate",
        Error::InvalidMessage(_) => "the server did not answer with TLS",
        Error::PeerIncompatible(_) => "no version or cipher suite in common with the provider",
        Error::AlertReceived(_) => "the provider closed the connection with an alert",
        _ => "no encrypted connection to the provider",
    };
    Failure::new(ErrorClass::Tls, format!("TLS: {reason}")).with_detail(redact::printable(&fault.to_string()))
}

/// The innermost error of a type among an error and its causes.
fn cause<'a, E: Error + 'static>(error: &'a (dyn Error + 'static)) -> Option<&'a E> {
    let causes = std::iter::successors(Some(error), |&error| {
        // An io::Error that wraps another error does not name it as its source.
        let wrapped = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        wrapped.map(|error| error as &(dyn Error + 'static)).or_else(|| error.source())
    });
    causes.filter_map(|error| error.downcast_ref::<E>()).last()
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
    fn a_certificate_puts_nothing_into_a_message_and_little_into_a_detail() {
        let presented = (0..10_000).map(|n| format!("\u{202e}{n}.internal.example")).collect();
        let expected = rustls::pki_types::ServerName::try_from("id.example").unwrap();
        let fault = CertificateError::NotValidForNameContext { expected, presented };
        let failure = tls_failure(&rustls::Error::InvalidCertificate(fault));
        assert_eq!(failure.message, "TLS: the provider's certificate is for another host");
        let detail = failure.detail.unwrap();
        assert!(detail.contains("1.internal.example") && !detail.contains('\u{202e}'), "{detail}");
        assert!(detail.len() < 500, "{} bytes", detail.len());
    }

    #[test]
    fn each_usual_fault_of_a_certificate_has_a_message_of_its_own() {
        use rustls::AlertDescription;
        let cases = [
            (CertificateError::Expired.into(), "expired"),
            (CertificateError::NotValidYet.into(), "not valid yet"),
            (CertificateError::UnknownIssuer.into(), "not trusted here"),
            (CertificateError::Revoked.into(), "not valid"),
            (rustls::Error::AlertReceived(AlertDescription::HandshakeFailure), "alert"),
        ];
        for (fault, words) in cases {
            let failure = tls_failure(&fault);
            assert!(failure.message.contains(words), "{fault}: {}", failure.message);
            assert_eq!(failure.detail, Some(fault.to_string()));
        }
    }
}
