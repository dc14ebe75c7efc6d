//! `tokend init`: sets a token up. It asks for what the command line does not say, checks the result, shows the files, and
//! writes them: all or none.

mod conflicts;
mod fetch;
mod files;
mod plan;
mod questions;

use std::error::Error;
use std::ffi::CString;
use std::fmt::Write as _;
use std::io::{Write, stderr, stdout};
use std::path::PathBuf;
use std::process::ExitCode;

use nix::unistd::{Uid, User, getegid, geteuid, getgroups, initgroups, setegid, seteuid, setgroups};
use tokend_protocol::TokenName;

use crate::access::Abilities;
use crate::config::{self, Endpoint, Loaded, Source};
use files::Drafts;
use plan::{Answers, Content, Places, Planned, SecretFrom};

/// The options of `tokend init`, besides the configuration.
#[derive(Debug, clap::Args)]
pub struct InitArgs {
    /// The name of the token and of its provider in the configuration.
    name: Option<TokenName>,
    /// A preset, the URL of a token endpoint, or `issuer:URL`.
    #[arg(long, value_name = "PROVIDER")]
    provider: Option<String>,
    /// The environment of the preset.
    #[arg(long, value_name = "ENVIRONMENT")]
    environment: Option<String>,
    /// The token endpoint, for a preset that does not know it.
    #[arg(long, value_name = "URL")]
    token_endpoint: Option<String>,
    /// The client identifier.
    #[arg(long, value_name = "ID")]
    client_id: Option<String>,
    /// The client authentication, such as `client_secret_post`.
    #[arg(long, value_name = "METHOD")]
    auth_method: Option<String>,
    /// Where the client secret is. `-`: standard input; it is stored in a file of root. `/PATH`: a file of root.
    /// `encrypted:/PATH`: a file of `systemd-creds`. `credential:NAME`: a credential that the unit has. `file:/PATH`: a file of
    /// the daemon's user.
    #[arg(long, value_name = "SOURCE")]
    secret_from: Option<String>,
    /// The scopes, separated by spaces.
    #[arg(long, value_name = "SCOPES")]
    scope: Option<String>,
    /// A further form field of the token request; may be given several times.
    #[arg(long = "param", value_name = "NAME=VALUE", value_parser = param)]
    params: Vec<(String, String)>,
    /// A rule for the callers that may have the token; may be given several times. `none`: only root.
    #[arg(long, value_name = "RULE")]
    allow: Vec<String>,
    /// Request one token before anything is written.
    #[arg(long)]
    fetch: bool,
    /// Write the files without a question.
    #[arg(long)]
    yes: bool,
    /// Replace the files of the same name.
    #[arg(long)]
    force: bool,
    /// The directory of the drop-ins of the daemon's unit.
    #[arg(long, value_name = "DIR", default_value = "/etc/systemd/system/tokend.service.d")]
    unit_dir: PathBuf,
    /// The directory for a secret from standard input.
    #[arg(long, value_name = "DIR", default_value = "/etc/credstore")]
    secret_dir: PathBuf,
}

fn param(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err("expected NAME=VALUE, as in --param acr_values=tenant:acme".to_owned()),
    }
}

/// Sets a token up. If anything is wrong, nothing is written.
pub fn run(args: &InitArgs, source: &Source, abilities: Abilities) -> Result<ExitCode, Box<dyn Error>> {
    let answers = questions::answers(args)?;
    let config = std::path::absolute(&source.path)?;
    let places = Places {
        has_config: config.symlink_metadata().is_ok(),
        config,
        unit_dir: std::path::absolute(&args.unit_dir)?,
        secret_dir: std::path::absolute(&args.secret_dir)?,
    };
    let files = plan::files(&answers, &places);
    let source = Source { path: places.config.clone(), ..source.clone() };
    conflicts::refuse(&answers, &places, &source)?;
    if let Some(file) = files.iter().find(|file| !args.force && file.path.symlink_metadata().is_ok()) {
        return Err(format!("{} exists; --force replaces it", file.path.display()).into());
    }
    conflicts::try_to_decrypt(&answers)?;
    let drafts = files.iter().filter_map(|file| match &file.content {
        Content::Config(text) => Some((file.path.clone(), text.clone())),
        _ => None,
    });
    let drafts: Vec<_> = drafts.collect();
    let checked = as_daemon(|| config::load_with_drafts(&source, &drafts, abilities))?;
    let loaded = checked.map_err(|faults| {
        let faults: String = faults.iter().fold(String::new(), |text, fault| text + &format!("{fault}\n"));
        format!("{faults}nothing was written, because the configuration would have these faults")
    })?;
    stdout().write_all(shown(&answers.name, &files, &loaded).as_bytes())?;
    if !args.yes {
        confirm()?;
    }
    let drafts = Drafts::write(&files)?;
    if args.fetch {
        let result = fetch_once(&answers, &loaded, &drafts)?;
        writeln!(stdout(), "{result}")?;
    }
    drafts.place(args.force)?;
    stdout().write_all(next_steps(&answers, &files).as_bytes())?;
    Ok(ExitCode::SUCCESS)
}

/// The files as they would be, without a secret, and the result of the check.
fn shown(name: &TokenName, files: &[Planned], loaded: &Loaded) -> String {
    let mut text = String::new();
    for file in files {
        let _ = writeln!(text, "{}:", file.path.display());
        match &file.content {
            Content::Config(content) | Content::Unit(content) => {
                let indent =
                    |line: &str| if line.is_empty() { "\n".to_owned() } else { format!("    {line}\n") };
                text.extend(content.lines().map(indent));
            }
            Content::Secret(_) => text.push_str("    (the client secret, for root alone)\n"),
        }
    }
    text.extend(loaded.warnings.iter().map(|warning| format!("warning: {warning}\n")));
    // Settings of other sections decide on it too.
    let to = loaded.config.tokens.get(name).map(|token| match &token.credential.client.endpoint {
        Endpoint::Token(url) => format!("{url}"),
        Endpoint::Issuer(url) => format!("the token endpoint that {url} names"),
    });
    text.extend(to.map(|to| format!("the secret goes to {to}\n")));
    let _ = writeln!(text, "no faults, {} token(s)", loaded.config.tokens.len());
    text
}

fn confirm() -> Result<(), Box<dyn Error>> {
    if !questions::is_interactive() {
        return Err("nothing was written; --yes writes the files".into());
    }
    match questions::ask("Write these files? [y/N]")?.trim() {
        "y" | "Y" | "yes" => Ok(()),
        _ => Err("nothing was written".into()),
    }
}

fn fetch_once(answers: &Answers, loaded: &Loaded, drafts: &Drafts) -> Result<String, Box<dyn Error>> {
    let Some(source) = plan::readable_source(answers, drafts.secret()) else {
        return Err("--fetch: only the daemon can read this credential; nothing was written".into());
    };
    let Some(settings) = loaded.config.tokens.get(&answers.name) else { return Err("no such token".into()) };
    let _ = writeln!(stderr(), "requesting a token");
    let fetch = || fetch::fetch(settings, source, loaded.config.daemon.egress_dir.clone());
    // A file of the daemon's user is refused to any other one.
    let is_daemons = matches!(answers.secret, SecretFrom::DaemonsFile(_));
    let result = if is_daemons { as_daemon(fetch)? } else { fetch() };
    result.map_err(|reason| format!("{reason}\nnothing was written").into())
}

/// Does something as the daemon's user, if root runs this and that user exists. No other thread runs meanwhile.
fn as_daemon<T>(work: impl FnOnce() -> T) -> Result<T, Box<dyn Error>> {
    let user = User::from_name("tokend").map_err(|error| format!("looking up user tokend: {error}"))?;
    let Some(user) = user.filter(|_| geteuid().is_root()) else { return Ok(work()) };
    let (group, groups) = (getegid(), getgroups()?);
    initgroups(&CString::new(user.name)?, user.gid)?;
    setegid(user.gid)?;
    seteuid(user.uid)?;
    let done = work();
    seteuid(Uid::from_raw(0))?;
    setegid(group)?;
    setgroups(&groups)?;
    Ok(done)
}

/// The commands that come next.
fn next_steps(answers: &Answers, files: &[Planned]) -> String {
    // systemd reads credentials only when the unit starts.
    let needs_start = files.iter().any(|file| matches!(file.content, Content::Unit(_)));
    let start = if needs_start {
        "systemctl daemon-reload && systemctl enable tokend && systemctl restart tokend"
    } else {
        "systemctl enable --now tokend && systemctl reload tokend"
    };
    format!("written; next:\n    {start}\n    tokenctl get {}\n", answers.name)
}
