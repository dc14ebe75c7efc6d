//! `tokenctl sync`: a file that has the token, for programs that read one.

use std::ffi::{OsStr, OsString};
use std::fs::{self, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread;
use std::time::Duration;

use tokend_client::blocking::Client;
use tokend_client::{Secret, SourceToken, TokenName};

use crate::args::{Format, SyncArgs};
use crate::commands::{Done, about};
use crate::ending::Ending;
use crate::failure::Failure;
use crate::human::{clean, rfc3339};
use crate::notify::{self, ServiceManager};
use crate::{json, output};

/// The most reasons without a token that are told apart. Each is reported once until there is a token again: while the daemon starts
/// and fails, two alternate.
const REASONS_MAX: usize = 8;

/// Writes each new token, until a signal ends the program or the file cannot be written.
pub(crate) fn sync(client: &Client, args: &SyncArgs) -> Done {
    let SyncArgs { name, file, format, mode, then, variant } = args;
    let target = Target::new(file, *mode)?;
    let ending = Ending::at_signals().map_err(|error| Failure::signals(&error))?;
    let (command, manager) = (runner(then)?, ServiceManager::from_env());
    let source = client.variant(name, variant.into()).source();
    let mut written: Option<Arc<SourceToken>> = None;
    let mut reported = Vec::new();
    let (mut seen, mut wait) = (0, Duration::MAX);
    loop {
        seen = source.changed(seen, wait);
        let token = match source.try_token() {
            Ok(token) => token,
            Err(error) if written.is_none() && !error.is_retryable() => return Err(about(name)(error)),
            Err(error) => {
                wait = Duration::MAX;
                let reason = clean(&error.to_string());
                if !reported.contains(&reason) {
                    report(&manager, name, &reason, written.as_ref().map(|_| file.as_path()));
                    reported.truncate(REASONS_MAX - 1);
                    reported.push(reason);
                }
                continue;
            }
        };
        wait = token.reply.info.remaining(tokend_client::now());
        let is_new = written.as_ref().is_none_or(|last| !is_same(*format, last, &token));
        if is_new {
            let content = content(*format, name, &token)?;
            if !ending.after(|| target.replace(&content)).map_err(|error| Failure::file(file, &error))? {
                return Ok(());
            }
        }
        if is_new || !reported.is_empty() {
            reported.clear();
            let expiry = rfc3339(token.reply.info.expires_at_wall.to_system_time());
            manager.notify(&format!("READY=1\nSTATUS={name}: the token in the file expires at {expiry}"));
        }
        if is_new && let Some(command) = &command {
            // If there is no room, a run is due anyway.
            let _ = command.try_send(());
        }
        written = Some(token);
    }
}

/// Whether a file with the last token needs no other content.
fn is_same(format: Format, last: &SourceToken, token: &SourceToken) -> bool {
    let (last, token) = (&last.reply, &token.reply);
    let is_same_expiry = last.info.expires_at == token.info.expires_at;
    last.token == token.token && (format != Format::Json || is_same_expiry)
}

/// Says why there is no token, or no newer one than in the file.
fn report(manager: &ServiceManager, name: &TokenName, reason: &str, kept: Option<&Path>) {
    let consequence = match kept {
        Some(file) => format!("{} keeps the last token", file.display()),
        None => "waiting for the first token".to_owned(),
    };
    output::complain(&format!("{name}: {reason}; {consequence}"));
    manager.notify(&format!("STATUS={name}: {reason}"));
}

fn content(format: Format, name: &TokenName, token: &SourceToken) -> Result<Secret, Failure> {
    let reply = &token.reply;
    let secret = reply.token.expose();
    Ok(match format {
        Format::Token => reply.token.clone(),
        Format::Header => Secret::from(format!("Authorization: {} {secret}\n", reply.token_type)),
        Format::Json => Secret::from(json::line(&json::token(name, reply))),
        Format::Env if secret.bytes().all(needs_no_quotes) => Secret::from(format!("TOKEN={secret}\n")),
        Format::Env => {
            let message = format!("{name}: the token has characters that an environment file cannot have");
            return Err(Failure::protocol(&message));
        }
    })
}

/// The characters of a Bearer token (RFC 6750, section 2.1), which no reader of an environment file changes.
fn needs_no_quotes(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._~+/=".contains(&byte)
}

/// The file.
struct Target<'a> {
    path: &'a Path,
    /// A name for the next content, in the same directory.
    temporary: PathBuf,
    mode: u32,
}

impl<'a> Target<'a> {
    fn new(path: &'a Path, mode: u32) -> Result<Self, Failure> {
        let Some(name) = path.file_name() else {
            let error = io::Error::from(io::ErrorKind::IsADirectory);
            return Err(Failure::file(path, &error));
        };
        let mut temporary = OsString::from(".");
        temporary.extend([name, OsStr::new(".tmp")]);
        Ok(Self { path, temporary: path.with_file_name(temporary), mode })
    }

    /// Replaces the file at once: a reader gets the old or the new content, and never a part of one.
    fn replace(&self, content: &Secret) -> io::Result<()> {
        self.remove_temporary()?;
        self.write_temporary(content).and_then(|()| fs::rename(&self.temporary, self.path)).inspect_err(
            |_| {
                let _ = self.remove_temporary();
            },
        )
    }

    fn write_temporary(&self, content: &Secret) -> io::Result<()> {
        // Nobody but the owner can open it before it has its mode.
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&self.temporary)?;
        file.write_all(content.expose().as_bytes())?;
        file.set_permissions(Permissions::from_mode(self.mode))?;
        file.sync_all()
    }

    /// A program that was killed may have left one.
    fn remove_temporary(&self) -> io::Result<()> {
        match fs::remove_file(&self.temporary) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }
}

/// Starts a thread that runs the command for each message, so that a write never waits for it.
fn runner(command: &[OsString]) -> Result<Option<SyncSender<()>>, Failure> {
    let [program, args @ ..] = command else { return Ok(None) };
    let (sender, writes) = sync_channel(1);
    let mut command = Command::new(program);
    command.args(args).stdin(Stdio::null()).env_remove(notify::SOCKET_VARIABLE);
    let name = program.display().to_string();
    let run = move || {
        for () in writes {
            let failure = match command.status() {
                Ok(status) if status.success() => continue,
                Ok(status) => status.to_string(),
                Err(error) => error.to_string(),
            };
            output::complain(&format!("the command {name} failed: {failure}"));
        }
    };
    thread::Builder::new().spawn(run).map_err(|error| Failure::exec(program, &error))?;
    Ok(Some(sender))
}
