//! The answers about a new token: from the command line, or asked on the terminal.

use std::error::Error;
use std::io::{IsTerminal, Read, Write, stderr, stdin};
use std::path::{Path, PathBuf};

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
        _ => Ok(SecretFrom::File(file(given)?)),
    }
}

/// A path that a unit can name. An operator may give the secret itself by mistake, so no error repeats it.
fn file(path: &str) -> Answered<PathBuf> {
    let is_plain = |c: char| !c.is_whitespace() && !c.is_control() && !"\"'\\:".contains(c);
    if !path.starts_with('/') || !path.chars().all(is_plain) {
        let expected = "- or the absolute path of a file, without spaces and quotes; the secret itself is never an argument";
        return Err(format!("--secret-from: expected {expected}").into());
    }
    if !Path::new(path).exists() {
        return Err(format!("--secret-from: {path} does not exist").into());
    }
    Ok(path.into())
}

/// The secret from standard input. A terminal does not show it.
fn typed() -> Answered<Secret> {
    let mut text = String::new();
    if stdin().is_terminal() {
        let before = tcgetattr(stdin())?;
        let mut hidden = before.clone();
        // As a character of the line, Ctrl-C cannot leave a terminal that shows nothing.
        hidden.local_flags.remove(LocalFlags::ECHO | LocalFlags::ISIG);
        tcsetattr(stdin(), SetArg::TCSAFLUSH, &hidden)?;
        let line = ask("Client secret (not shown)");
        tcsetattr(stdin(), SetArg::TCSADRAIN, &before)?;
        let _ = writeln!(stderr());
        text = line?;
    } else {
        stdin().read_to_string(&mut text)?;
    }
    let secret = text.trim_end_matches(['\r', '\n']);
    if secret.is_empty() || secret.contains(char::is_control) {
        return Err("the client secret is empty or has control characters".into());
    }
    Ok(Secret::from(secret.to_owned()))
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
    write!(stderr(), "{question}: ")?;
    stderr().flush()?;
    let mut line = String::new();
    if stdin().read_line(&mut line)? == 0 {
        return Err("no answer".into());
    }
    Ok(line.trim_end_matches('\n').to_owned())
}
