//! Checks of names and paths that need the host: users and groups that it lacks, secret files and
//! `ca_file`s that cannot be used, and rules that need what the daemon cannot find out about callers.

use std::io::ErrorKind;
use std::path::Path;

use nix::unistd::{Group, User, geteuid};
use rustls::RootCertStore;
use rustls::crypto::ring;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::sign::CertifiedKey;

use super::fault::{PrivateKeyFile, Sink, quoted};
use super::files::content;
use crate::access::Abilities;
use crate::secret_source::{SecretSourceError, check_file};
use crate::signing_key::{KeyError, SigningKey, read_pem};

/// Warns, once each, of kinds of rules that need what cannot be found out about callers.
pub(super) fn warn_of_inabilities(abilities: Abilities, sink: &Sink) {
    let mentions = sink.mentions.borrow();
    for (is_able, kinds, message) in [
        (
            abilities.users,
            &["user", "group"][..],
            "the daemon sees all users and groups as one, so no rule with a user or group matches; remove \
             PrivateUsers=yes from its unit",
        ),
        (
            abilities.units,
            &["unit"],
            "the daemon cannot find out the units of callers, so no rule with a unit matches; remove \
             ProtectProc=invisible from its unit, and let systemd use the unified hierarchy of control groups",
        ),
        (
            abilities.executables,
            &["exe"],
            "matches processes of other users only if the daemon may see their executables: with \
             AmbientCapabilities=CAP_SYS_PTRACE and CapabilityBoundingSet=CAP_SYS_PTRACE in a drop-in of its unit",
        ),
    ] {
        let places = mentions.iter().filter(|((kind, _), _)| kinds.contains(kind)).map(|(_, place)| place);
        if let Some((place, key)) = places.min().filter(|_| !is_able) {
            sink.warn(place, key, message);
        }
    }
}

/// Reports files that this process's user cannot read, with the commands that mend it, and warns of rules whose user,
/// group or executable does not match on this host. Asks the name service about each name, which may take long.
pub(super) fn look_up(sink: &Sink) {
    let uid = geteuid();
    let user = User::from_uid(uid).ok().flatten().map_or_else(|| uid.to_string(), |user| user.name);
    for ((kind, name), (place, key)) in sink.mentions.borrow().iter() {
        let path = Path::new(name);
        let absent = || sink.warn(place, key, format!("this host has no {kind} {} at present", quoted(name)));
        let unreadable = |error: SecretSourceError| {
            let message = match error.kind {
                ErrorKind::PermissionDenied => format!(
                    "user {user} cannot read {name}: chown {user} {name}; chmod 0400 {name}; and let {user} search \
                     the folders above it"
                ),
                _ => format!("user {user} cannot read {name}: {error}"),
            };
            // The daemon starts without it, and takes it into use when it appears.
            let report = if error.kind == ErrorKind::NotFound { Sink::warn } else { Sink::fault };
            report(sink, place, key, &message);
        };
        match *kind {
            "user" | "group" if name.bytes().all(|byte| byte.is_ascii_digit()) => {}
            "user" if User::from_name(name).is_ok_and(|user| user.is_none()) => absent(),
            "group" if Group::from_name(name).is_ok_and(|group| group.is_none()) => absent(),
            "exe" => {
                if let Some(target) = path.canonicalize().ok().filter(|target| target != path) {
                    let (path, target) = (quoted(name), quoted(&target.to_string_lossy()));
                    let message = format!(
                        "{path} is a symbolic link to {target}, and the kernel names only that; write that"
                    );
                    sink.warn(place, key, message);
                }
            }
            "file" => check_file(path).unwrap_or_else(unreadable),
            "ca_file" => {
                if let Err(reason) = trust_ca_file(path, &mut RootCertStore::empty()) {
                    let remedy = format!("the provider is not reached until user {user} can use the file");
                    sink.warn(place, key, format!("{name}: {reason}; {remedy}"));
                }
            }
            "certificate" => {
                if let Err(reason) = read_certificates(path) {
                    let remedy = format!("no token is requested until user {user} can use the file");
                    sink.warn(place, key, format!("{name}: {reason}; {remedy}"));
                }
            }
            _ => {}
        }
    }
    try_private_keys(sink);
}

/// Reports private keys that cannot sign.
fn try_private_keys(sink: &Sink) {
    for (place, path, key) in sink.private_keys.borrow().iter() {
        // A file that cannot be read is reported already.
        let Ok(bytes) = content(&key.file) else { continue };
        let Ok(text) = String::from_utf8(bytes) else {
            sink.fault(place, path, format!("{}: {}", key.file.display(), KeyError::NotAKey));
            continue;
        };
        if text.trim_start().starts_with('{') && key.certificate.is_some() {
            let message =
                format!("{}: a JWK; the key of a client_certificate has to be PEM", key.file.display());
            sink.fault(place, path, message);
        } else if let Err(error) = check_key(&text, key) {
            sink.fault(place, path, format!("{}: {error}", key.file.display()));
        } else if let Err(reason) = check_certificate(&text, key) {
            sink.fault(place, path, reason);
        }
    }
}

/// Whether a private key can sign. One with a passphrase is not opened.
fn check_key(text: &str, key: &PrivateKeyFile) -> Result<(), KeyError> {
    match SigningKey::read(text, None) {
        Err(KeyError::Encrypted) if key.has_passphrase => Ok(()),
        read => read?.alg(key.alg).map(drop),
    }
}

/// Whether a private key is that of its certificate. A certificate that cannot be read is reported already.
fn check_certificate(text: &str, key: &PrivateKeyFile) -> Result<(), String> {
    let chain = key.certificate.as_deref().and_then(|path| read_certificates(path).ok());
    let (Some(chain), Ok(private)) = (chain, read_pem(text, None)) else { return Ok(()) };
    let certified = CertifiedKey::from_der(chain, private, &ring::default_provider());
    certified.map(drop).map_err(|error| mismatch(&error))
}

/// The certificates of a PEM file, of which there is at least one, or says why it cannot be used.
pub fn read_certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let pem = content(path).map_err(|error| format!("it cannot be read: {error}"))?;
    let certificates: Vec<_> =
        CertificateDer::pem_slice_iter(&pem).collect::<Result<_, _>>().map_err(|_| "it is not valid PEM")?;
    if certificates.is_empty() { Err("it has no certificate".to_owned()) } else { Ok(certificates) }
}

/// Why TLS takes no certificate with this key.
pub fn mismatch(error: &rustls::Error) -> String {
    match error {
        rustls::Error::InconsistentKeys(_) => {
            "the private_key is not that of the client_certificate".to_owned()
        }
        error => format!("the client_certificate and the private_key cannot be used: {error}"),
    }
}

/// Adds the certificates of a `ca_file` to the roots, or says why it cannot be used.
pub fn trust_ca_file(path: &Path, roots: &mut RootCertStore) -> Result<(), String> {
    for (index, certificate) in read_certificates(path)?.into_iter().enumerate() {
        roots.add(certificate).map_err(|_| format!("its certificate {} is not valid", index + 1))?;
    }
    Ok(())
}
