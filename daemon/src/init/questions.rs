//! The answers about a new token: from the command line, or asked on the terminal.

use std::error::Error;
use std::io::{IsTerminal, Write, read_to_string, stderr, stdin};
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, SigmaskHow, Signal};
use nix::sys::signalfd::SignalFd;
use nix::sys::termios::{LocalFlags, SetArg, tcgetattr, tcsetattr};
use tokend_protocol::Secret;

use super::InitArgs;
use super::plan::{Answers, SecretFrom};
use crate::config::{ShippedPreset, shipped_presets};

type Answered<T> = Result<T, Box<dyn Error>>;

/// Whether there is somebody to ask.
pub(super) fn is_interactive() -> bool {
    stdin().is_terminal() && stderr().is_terminal()
}

pub(super) fn answers(args: &InitArgs) -> Answered<Answers> {
    let name = match &args.name {
        Some(name) => name.clone(),
        None => required("NAME", None, "Name of the token")?.parse()?,
    };
    let presets = shipped_presets();
    let known: Vec<&str> = presets.keys().map(String::as_str).collect();
    let question = format!("Provider ({}, the URL of a token endpoint, or issuer:URL)", known.join(", "));
    let chosen = required("--provider", args.provider.as_ref(), &question)?;
    let preset = presets.get(&chosen);
    let provider = provider(&chosen, preset, args)?;
    let client_id = required("--client-id", args.client_id.as_ref(), "Client id")?;
    let secret = secret(args.secret_from.as_deref())?;
    let mut params = args.params.clone();
    for param in preset.map(|preset| &preset.required_params).into_iter().flatten() {
        if !params.iter().any(|(name, _)| name == param) {
            let value = required(&format!("--param {param}="), None, &format!("Form field {param}"))?;
            params.push((param.clone(), value));
        }
    }
    let mut allow = args.allow.clone();
    if allow.is_empty() {
        let question = "Who may have the token, as in unit:billing.service user:ann (none: only root)";
        allow = required("--allow", None, question)?.split_whitespace().map(str::to_owned).collect();
    }
    allow.retain(|rule| rule != "none");
    Ok(Answers { name, provider, client_id, secret, scope: args.scope.clone(), params, allow })
}

/// The keys that say what the provider is.
fn provider(
    chosen: &str,
    preset: Option<&ShippedPreset>,
    args: &InitArgs,
) -> Answered<Vec<(&'static str, String)>> {
    let mut keys = match chosen.strip_prefix("issuer:") {
        Some(issuer) => vec![("issuer", issuer.to_owned())],
        None if chosen.contains("://") => vec![("token_endpoint", chosen.to_owned())],
        None => vec![("preset", chosen.to_owned())],
    };
    keys.extend(args.environment.clone().map(|environment| ("environment", environment)));
    let needs_endpoint = preset.is_some_and(|preset| preset.needs_endpoint);
    if needs_endpoint || args.token_endpoint.is_some() {
        let question = "URL of the token endpoint";
        keys.push(("token_endpoint", required("--token-endpoint", args.token_endpoint.as_ref(), question)?));
    }
    keys.extend(args.auth_method.clone().map(|method| ("token_endpoint_auth_method", method)));
    Ok(keys)
}

fn secret(given: Option<&str>) -> Answered<SecretFrom> {
    let Some(given) = given else {
        if !is_interactive() {
            return Err("--secret-from is missing".into());
        }
        return typed().map(SecretFrom::Typed);
    };
    match given.split_once(':') {
        _ if given == "-" => typed().map(SecretFrom::Typed),
        Some(("encrypted", path)) => Ok(SecretFrom::Encrypted(file(path)?)),
        Some(("file", path)) => Ok(SecretFrom::DaemonsFile(file(path)?)),
        Some(("credential", name)) => Ok(SecretFrom::Credential(name.to_owned())),
        _ => {
            let path = file(given)?;
            let mode = path.metadata()?.mode() & 0o7777;
            if mode & 0o077 != 0 {
                let shown = path.display();
                writeln!(stderr(), "warning: mode {mode:04o} is open to other users; chmod 0400 {shown}")?;
            }
            Ok(SecretFrom::File(path))
        }
    }
}

/// A path that a unit can name. An operator may give the secret itself by mistake, so no error repeats it.
fn file(path: &str) -> Answered<PathBuf> {
    let is_plain = |c: char| !c.is_whitespace() && !c.is_control() && !"\"'\\:".contains(c);
    if !path.starts_with('/') || !path.chars().all(is_plain) {
        let expected = "- or the absolute path of a file, without spaces and quotes; the secret itself is never an argument";
        return Err(format!("--secret-from: expected {expected}").into());
    }
    if !Path::new(path).is_file() {
        return Err("--secret-from: there is no file with this name".into());
    }
    Ok(path.into())
}

/// The secret from standard input. A terminal does not show it.
fn typed() -> Answered<Secret> {
    let text = if stdin().is_terminal() { hidden()? } else { read_to_string(stdin())? };
    let secret = text.trim_end_matches(['\r', '\n']);
    if secret.is_empty() || secret.contains(char::is_control) {
        return Err("the client secret is empty or has control characters".into());
    }
    Ok(Secret::from(secret.to_owned()))
}

/// A line that the terminal does not show. A signal ends the process only when the terminal shows lines again.
fn hidden() -> Answered<String> {
    let signals: SigSet =
        [Signal::SIGHUP, Signal::SIGINT, Signal::SIGQUIT, Signal::SIGTERM].into_iter().collect();
    let unblocked = signals.thread_swap_mask(SigmaskHow::SIG_BLOCK)?;
    let arrived = SignalFd::new(&signals)?;
    let before = tcgetattr(stdin())?;
    let mut hidden = before.clone();
    // As a character of the line, Ctrl-C cannot leave a terminal that shows nothing.
    hidden.local_flags.remove(LocalFlags::ECHO | LocalFlags::ISIG);
    tcsetattr(stdin(), SetArg::TCSAFLUSH, &hidden)?;
    let line = prompt("Client secret (not shown)").and_then(|()| {
        let stdin = stdin();
        let mut ready = [arrived.as_fd(), stdin.as_fd()].map(|end| PollFd::new(end, PollFlags::POLLIN));
        poll(&mut ready, PollTimeout::NONE)?;
        if ready[0].any() == Some(true) { Err("interrupted".into()) } else { line() }
    });
    // A second line must not answer the next question.
    tcsetattr(stdin(), SetArg::TCSAFLUSH, &before)?;
    let _ = writeln!(stderr());
    unblocked.thread_set_mask()?;
    line
}

/// A value from the command line. Without one, it is asked for until there is an answer.
fn required(flag: &str, given: Option<&String>, question: &str) -> Answered<String> {
    if let Some(given) = given {
        return Ok(given.clone());
    }
    if !is_interactive() {
        return Err(format!("{flag} is missing").into());
    }
    loop {
        let answer = ask(question)?;
        if !answer.trim().is_empty() {
            return Ok(answer.trim().to_owned());
        }
    }
}

/// One line from the terminal.
pub(super) fn ask(question: &str) -> Answered<String> {
    prompt(question)?;
    line()
}

fn prompt(question: &str) -> Answered<()> {
    write!(stderr(), "{question}: ")?;
    Ok(stderr().flush()?)
}

fn line() -> Answered<String> {
    let mut line = String::new();
    if stdin().read_line(&mut line)? == 0 {
        return Err("no answer".into());
    }
    Ok(line.trim_end_matches('\n').to_owned())
}
