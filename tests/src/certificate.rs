//! Certificates for a provider that speaks TLS: good ones and ones with a flaw.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use rcgen::{BasicConstraints, Certificate, CertificateParams, DnType, IsCa, Issuer, KeyPair, date_time_ymd};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::server::{ClientHello, NoServerSessionStorage, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::{RootCertStore, ServerConfig};
use tempfile::TempDir;

use crate::TestDir;

/// A certificate authority of the test's own, which no system trusts.
#[derive(Debug)]
pub struct Authority {
    certificate: Certificate,
    issuer: Issuer<'static, KeyPair>,
    directory: TempDir,
}

/// The flaw of a server's certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flaw {
    /// Nothing.
    None,
    /// It was valid, years ago.
    Expired,
    /// It is another host's.
    WrongHost,
    /// Its own key signed it.
    SelfSigned,
}

impl Authority {
    /// A new authority with a key of its own.
    pub fn new() -> Self {
        let mut params = CertificateParams::new([]).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, "tokend test authority");
        let key = KeyPair::generate().unwrap();
        let certificate = params.self_signed(&key).unwrap();
        let directory = TempDir::new().unwrap();
        std::fs::write(directory.path().join("ca.pem"), certificate.pem()).unwrap();
        Self { certificate, issuer: Issuer::new(params, key), directory }
    }

    /// The authority's own certificate as a PEM file, for `ca_file`.
    pub fn ca_file(&self) -> PathBuf {
        self.path().join("ca.pem")
    }

    /// What a server on a loopback address needs to speak TLS with a certificate of this authority.
    pub fn server(&self, flaw: Flaw) -> Arc<ServerConfig> {
        Shown::new(self, flaw).server()
    }

    /// The settings of a TLS server that accepts only clients with a certificate of this authority.
    pub fn server_for_clients(&self) -> Arc<ServerConfig> {
        let mut roots = RootCertStore::empty();
        roots.add(self.certificate.der().clone()).unwrap();
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), cryptography());
        let builder = ServerConfig::builder_with_provider(cryptography());
        let builder = builder.with_safe_default_protocol_versions().unwrap();
        let builder = builder.with_client_cert_verifier(verifier.build().unwrap());
        Arc::new(builder.with_cert_resolver(Arc::new(Shown::new(self, Flaw::None))))
    }

    /// A certificate of this authority for a name, and its key.
    pub fn issue(&self, name: &str) -> Identity {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new([name.to_owned()]).unwrap();
        Identity { certificate: params.signed_by(&key, &self.issuer).unwrap(), key }
    }

    fn certified(&self, flaw: Flaw) -> CertifiedKey {
        let names = match flaw {
            Flaw::WrongHost => vec!["elsewhere.example".to_owned()],
            Flaw::None | Flaw::Expired | Flaw::SelfSigned => {
                vec!["localhost".to_owned(), "127.0.0.1".to_owned()]
            }
        };
        let mut params = CertificateParams::new(names).unwrap();
        if flaw == Flaw::Expired {
            params.not_before = date_time_ymd(2019, 1, 1);
            params.not_after = date_time_ymd(2020, 1, 1);
        }
        let key = KeyPair::generate().unwrap();
        let chain = if flaw == Flaw::SelfSigned {
            vec![params.self_signed(&key).unwrap().der().clone()]
        } else {
            let certificate = params.signed_by(&key, &self.issuer).unwrap();
            vec![certificate.der().clone(), self.certificate.der().clone()]
        };
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        CertifiedKey::from_der(chain, key, &cryptography()).unwrap()
    }

    fn path(&self) -> &Path {
        self.directory.path()
    }
}

/// A certificate with its private key.
#[derive(Debug)]
pub struct Identity {
    /// The certificate.
    pub certificate: Certificate,
    /// Its key.
    pub key: KeyPair,
}

impl Identity {
    /// A certificate for a name that its own key has signed.
    pub fn self_signed(name: &str) -> Self {
        let key = KeyPair::generate().unwrap();
        let certificate = CertificateParams::new([name.to_owned()]).unwrap().self_signed(&key).unwrap();
        Self { certificate, key }
    }

    /// Writes the certificate and the key to a folder of a test: the lines of a provider's section.
    pub fn configure(&self, home: &TestDir, name: &str) -> String {
        let certificate = home.path().join(format!("{name}.pem"));
        std::fs::write(&certificate, self.certificate.pem()).unwrap();
        let key = home.secret(&format!("{name}.key"), &self.key.serialize_pem());
        format!("client_certificate = \"{}\"\nprivate_key = {key}\n", certificate.display())
    }
}

/// The certificate that a server shows, which can be replaced while it runs.
#[derive(Clone, Debug)]
pub struct Shown(Arc<Mutex<Arc<CertifiedKey>>>);

impl Shown {
    /// A new certificate of an authority.
    pub fn new(authority: &Authority, flaw: Flaw) -> Self {
        Self(Arc::new(Mutex::new(Arc::new(authority.certified(flaw)))))
    }

    /// Shows another one from the next connection on.
    pub fn replace(&self, authority: &Authority, flaw: Flaw) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(authority.certified(flaw));
    }

    /// What a server needs to show it. No session is ever resumed, so every connection looks at it anew.
    pub fn server(&self) -> Arc<ServerConfig> {
        let builder = ServerConfig::builder_with_provider(cryptography());
        let builder = builder.with_safe_default_protocol_versions().unwrap().with_no_client_auth();
        let mut config = builder.with_cert_resolver(Arc::new(self.clone()));
        config.send_tls13_tickets = 0;
        config.session_storage = Arc::new(NoServerSessionStorage {});
        Arc::new(config)
    }
}

impl ResolvesServerCert for Shown {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0.lock().unwrap_or_else(PoisonError::into_inner)))
    }
}

fn cryptography() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

impl Default for Authority {
    fn default() -> Self {
        Self::new()
    }
}
