//! Refuses what would break the daemon or send a secret elsewhere, before anything is written.

use std::process::{Command, Stdio};

use nix::unistd::geteuid;

use super::plan::{Answers, SecretFrom, credential};

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
