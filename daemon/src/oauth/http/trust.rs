//! Whom connections trust: the host's authorities, and those of a `ca_file`.

use std::path::Path;
use std::sync::Arc;

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{ClientConfig, RootCertStore, crypto};
use tokend_protocol::ErrorClass;

use crate::oauth::Failure;

/// TLS with a closed list of authorities, each read from its file now.
pub(super) fn configuration(ca_file: Option<&Path>) -> Result<ClientConfig, Failure> {
    let mut roots = of_the_host();
    if let Some(path) = ca_file {
        add_private(&mut roots, path).map_err(|reason| {
            let detail = format!("{}: {reason}", path.display());
            Failure::new(ErrorClass::Tls, "the ca_file cannot be used").with_detail(detail)
        })?;
    }
    let versions = ClientConfig::builder_with_provider(Arc::new(crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|_| Failure::new(ErrorClass::Internal, "TLS could not be set up"))?;
    let mut configuration = versions.with_root_certificates(roots).with_no_client_auth();
    configuration.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(configuration)
}

fn of_the_host() -> RootCertStore {
    let found = rustls_native_certs::load_native_certs();
    for error in &found.errors {
        tracing::warn!(%error, "some of the system's trust roots cannot be read");
    }
    let mut roots = RootCertStore::empty();
    // Some hosts have old ones that cannot be parsed. They are passed over, as by every other program.
    roots.add_parsable_certificates(found.certs);
    roots
}

fn add_private(roots: &mut RootCertStore, path: &Path) -> Result<(), String> {
    let pem = std::fs::read(path).map_err(|error| error.kind().to_string())?;
    let private: Vec<_> =
        CertificateDer::pem_slice_iter(&pem).collect::<Result<_, _>>().map_err(|_| "not a PEM bundle")?;
    if private.is_empty() {
        return Err("no certificate in it".to_owned());
    }
    private
        .into_iter()
        .try_for_each(|certificate| roots.add(certificate))
        .map_err(|_| "a certificate in it cannot be used".to_owned())
}
