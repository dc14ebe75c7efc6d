//! TLS to providers: the trust roots, the certificate of the client, and failures.

use std::path::Path;
use std::sync::Arc;

use rustls::pki_types::PrivateKeyDer;
use rustls::{AlertDescription, CertificateError, ClientConfig, RootCertStore, crypto};
use tokend_protocol::{ErrorClass, Secret};
use tokio::sync::Semaphore;

use crate::config::{TlsSettings, mismatch, read_certificates, trust_ca_file};
use crate::oauth::{CA_FILE_UNUSABLE, Failure, Refusal, redact};
use crate::secret_source::{SecretSource, on_another_thread};
use crate::signing_key::read_pem;

/// TLS that trusts the host's authorities and those of the `ca_file`, each read from its file now, and presents a certificate.
pub(super) fn read_tls(ca_file: Option<&Path>, key: Option<ClientKey>) -> Result<ClientConfig, Failure> {
    let found = rustls_native_certs::load_native_certs();
    for error in &found.errors {
        tracing::warn!(%error, "some of the system's trust roots cannot be read");
    }
    let mut roots = RootCertStore::empty();
    // Unparsable certificates are skipped, as other programs do.
    roots.add_parsable_certificates(found.certs);
    if let Some(path) = ca_file {
        trust_ca_file(path, &mut roots).map_err(|reason| unusable(path, &reason))?;
    }
    let versions = ClientConfig::builder_with_provider(Arc::new(crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|_| Failure::new(ErrorClass::Internal, "TLS cannot be set up"))?;
    let trusting = versions.with_root_certificates(roots);
    let mut tls = match key {
        None => trusting.with_no_client_auth(),
        Some((settings, key)) => {
            let chain = read_certificates(&settings.certificate);
            let chain = chain.map_err(|reason| unusable_key(format!("client_certificate: {reason}")))?;
            trusting.with_client_auth_cert(chain, key).map_err(|error| unusable_key(mismatch(&error)))?
        }
    };
    tls.alpn_protocols = [b"h2".to_vec(), b"http/1.1".to_vec()].into();
    Ok(tls)
}

/// The settings and the key of a client's certificate.
pub(super) type ClientKey = (Arc<TlsSettings>, PrivateKeyDer<'static>);

/// Reads the private key of a client's certificate.
pub(super) async fn client_key(
    settings: &TlsSettings,
    reading: &Arc<Semaphore>,
) -> Result<PrivateKeyDer<'static>, Failure> {
    let read = |name: &'static str, source: SecretSource| async move {
        source.read_in_turn(reading).await.map_err(|error| unusable_key(format!("{name}: {error}")))
    };
    let key = read("private_key", settings.key.clone()).await?;
    let passphrase = match settings.passphrase.clone() {
        None => None,
        Some(source) => Some(read("private_key_passphrase", source).await?),
    };
    if key.expose().trim_start().starts_with('{') {
        return Err(unusable_key(
            "private_key: a JWK; the key of a client_certificate has to be PEM".to_owned(),
        ));
    }
    let permit = Arc::clone(reading).acquire_owned().await.ok();
    let opening = move || read_pem(key.expose(), passphrase.as_ref().map(Secret::expose));
    let opened = on_another_thread(permit, opening).await;
    let opened = opened.map_err(|error| unusable_key(format!("private_key: {error}")))?;
    opened.map_err(|error| unusable_key(format!("private_key: {error}")))
}

pub(super) fn unusable_key(detail: String) -> Failure {
    Failure::new(ErrorClass::Secret, "the client_certificate cannot be used on this host").with_detail(detail)
}

pub(super) fn unusable(ca_file: &Path, reason: &str) -> Failure {
    let detail = format!("{}: {reason}", ca_file.display());
    let failure = Failure::new(ErrorClass::Tls, CA_FILE_UNUSABLE).with_detail(detail);
    Failure { needs_operator: true, ..failure }
}

pub(super) fn tls_failure(fault: &rustls::Error) -> Failure {
    use CertificateError::{
        Expired, ExpiredContext, NotValidForName, NotValidForNameContext, NotValidYet, NotValidYetContext,
        UnknownIssuer,
    };
    use rustls::Error::{self, InvalidCertificate};
    if let Error::AlertReceived(alert) = fault
        && is_about_our_certificate(*alert)
    {
        let message = "TLS: the provider does not accept the client certificate, or wants one";
        let provider_said = Some(redact::printable(&fault.to_string()));
        return Failure {
            refusal: Some(Refusal::Client),
            provider_said,
            ..Failure::new(ErrorClass::Refused, message)
                .with_detail("see client_certificate in the configuration")
        };
    }
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
    Failure {
        // An operator of one of the two hosts, for this one cannot trust the other as it is.
        needs_operator: matches!(fault, InvalidCertificate(_)),
        provider_said: Some(redact::printable(&fault.to_string())),
        ..Failure::new(ErrorClass::Tls, format!("TLS: {reason}"))
    }
}

/// Whether a server refuses the certificate of this client, or its absence (RFC 8446 section 6.2).
fn is_about_our_certificate(alert: AlertDescription) -> bool {
    use AlertDescription::{
        BadCertificate, CertificateExpired, CertificateRequired, CertificateRevoked, CertificateUnknown,
        UnknownCA, UnsupportedCertificate,
    };
    matches!(
        alert,
        BadCertificate
            | CertificateExpired
            | CertificateRequired
            | CertificateRevoked
            | CertificateUnknown
            | UnknownCA
            | UnsupportedCertificate
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_certificate_puts_nothing_into_a_message_and_little_into_a_detail() {
        let presented = (0..10_000).map(|n| format!("\u{202e}{n}.internal.example")).collect();
        let expected = rustls::pki_types::ServerName::try_from("id.example").unwrap();
        let fault = CertificateError::NotValidForNameContext { expected, presented };
        let failure = tls_failure(&rustls::Error::InvalidCertificate(fault));
        assert_eq!(failure.message, "TLS: the provider's certificate is for another host");
        let detail = failure.provider_said.unwrap();
        assert!(detail.contains("1.internal.example") && !detail.contains('\u{202e}'), "{detail}");
        assert!(detail.len() < 500, "{} bytes", detail.len());
    }

    #[test]
    fn each_usual_fault_of_a_certificate_has_a_message_of_its_own() {
        let cases = [
            (CertificateError::Expired.into(), "expired"),
            (CertificateError::NotValidYet.into(), "not valid yet"),
            (CertificateError::UnknownIssuer.into(), "not trusted here"),
            (CertificateError::Revoked.into(), "not valid"),
            (rustls::Error::AlertReceived(AlertDescription::HandshakeFailure), "alert"),
            (
                rustls::Error::AlertReceived(AlertDescription::CertificateRequired),
                "does not accept the client certificate",
            ),
        ];
        for (fault, words) in cases {
            let failure = tls_failure(&fault);
            assert!(failure.message.contains(words), "{fault}: {}", failure.message);
            assert_eq!(failure.provider_said, Some(fault.to_string()));
        }
    }
}
