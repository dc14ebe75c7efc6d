//! Refuses what would break the daemon or send a secret elsewhere, before anything is written.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use nix::unistd::geteuid;

use super::plan::{Answers, Places, SecretFrom, credential, drop_in, new_credential, unit_drop_in};
use crate::config::{self, Source};

/// The settings of a unit that give it a credential.
const SETTINGS: [&str; 4] =
    ["LoadCredential", "LoadCredentialEncrypted", "SetCredential", "SetCredentialEncrypted"];

/// Fails if another file has a section or a credential of this name. The files would be merged: an old `token_endpoint`
/// would get the new secret, or the provider of an old credential would.
pub(super) fn refuse(answers: &Answers, places: &Places, source: &Source) -> Result<(), String> {
    let (name, credential) = (&answers.name, new_credential(answers));
    let own = drop_in(name, places);
    if let Some(conflict) = config::first_conflict(source, &own, name, credential.as_deref()) {
        return Err(conflict.to_string());
    }
    let Some(credential) = credential else { return Ok(()) };
    let own = unit_drop_in(name, places);
    for entry in fs::read_dir(&places.unit_dir).into_iter().flatten().flatten() {
        let path = entry.path();
        if path != own
            && path.extension().is_some_and(|extension| extension == "conf")
            && gives(&path, &credential)
        {
            return Err(format!(
                "{} has the credential {credential} already; use it with --secret-from credential:{credential}, or \
                 choose another name for the token",
                path.display()
            ));
        }
    }
    Ok(())
}

/// Whether a drop-in of a unit gives it this credential.
fn gives(path: &Path, credential: &str) -> bool {
    let text = fs::read_to_string(path).unwrap_or_default();
    let mut settings = text.lines().filter_map(|line| line.split_once('='));
    settings.any(|(key, value)| {
        SETTINGS.contains(&key.trim()) && value.split(':').next().is_some_and(|id| id.trim() == credential)
    })
}

/// Tries whether systemd can decrypt the file of the secret: otherwise it would not start the daemon. A file has the name
/// of its credential in it, and only root can read the key.
pub(super) fn try_to_decrypt(answers: &Answers) -> Result<(), String> {
    let SecretFrom::Encrypted(path) = &answers.secret else { return Ok(()) };
    if !geteuid().is_root() {
        return Ok(());
    }
    let name = credential(&answers.name);
    let mut command = Command::new("systemd-creds");
    command.arg("decrypt").arg(format!("--name={name}")).arg(path).arg("-");
    // It writes the reason to standard error.
    let status = command.stdin(Stdio::null()).stdout(Stdio::null()).status();
    let status = status.map_err(|error| format!("systemd-creds cannot be started: {error}"))?;
    if status.success() {
        return Ok(());
    }
    Err(format!(
        "systemd cannot decrypt {} as the credential {name}, so the daemon would not start; encrypt the secret with \
         `systemd-creds encrypt --name={name} - FILE`; nothing was written",
        path.display()
    ))
}
