//! The commands: each asks the daemon and prints the answer for a person or a program.

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::process;
use std::time::{Duration, Instant, SystemTime};

use tokend_client::blocking::{Client, Token};
use tokend_client::{
    CallerHeaders, Error, ErrorClass, EventReply, Fingerprint, HeadersReply, Options, PROTOCOL_VERSION,
    RejectOutcome, Subject, TokenInfo, TokenName,
};
use tokend_protocol::documents::{self, Dialect, Metrics};

use crate::args::{Args, Command, Condition};
use crate::failure::Failure;
use crate::table::{Cell, Colours, Table};
use crate::{explanation, exporter, helper, human, json, manual, output, status, sync, top};

pub(crate) type Done = Result<(), Failure>;

/// Runs the command.
pub(crate) fn run(args: &Args) -> Done {
    let client = || Client::new(Options::new(args.socket()).deadline(args.deadline));
    let form = if args.json { Form::Json } else { Form::Text };
    match &args.command {
        Command::Get { name, min_ttl, variant } => {
            get(&client().with_min_ttl(*min_ttl).variant(name, variant.into()), form, name)
        }
        Command::Headers { name, supplied, lines, without, min_ttl, variant } => {
            let client = client().with_min_ttl(*min_ttl);
            let caller = caller_headers(supplied.iter().chain(lines), without);
            headers(&client.variant(name, variant.into()), form, name, &caller)
        }
        Command::Exec { name, env, min_ttl, variant, command } => {
            exec(&client().with_min_ttl(*min_ttl).variant(name, variant.into()), name, env, command)
        }
        Command::Sync(args) => sync::sync(&client(), args),
        Command::Metrics { listen: None } => metrics(&client()),
        Command::Metrics { listen: Some(address) } => exporter::serve(&client(), *address),
        Command::Helper(helper) => helper::answer(&client(), helper),
        Command::List => list(&client(), form),
        Command::Status { name: Some(name), exit_status, .. } => {
            status_of(&client(), form, name, *exit_status)
        }
        Command::Status { name: None, verbose, exit_status } => {
            status_of_all(&client(), form, *verbose, *exit_status)
        }
        Command::Top if form == Form::Json => Err(Failure::terminal(top::NO_TERMINAL)),
        Command::Top => top::top(&client(), colours()),
        Command::Refresh { name, variant } => refresh(&client().variant(name, variant.into()), form, name),
        Command::Reject { name, fingerprint, variant } => {
            reject(&client().variant(name, variant.into()), form, name, *fingerprint)
        }
        Command::Watch { names } => watch(&client(), form, names),
        Command::Wait { name, condition } => wait(&client(), form, name, *condition, args.deadline),
        Command::Explain { name, subject, variant } => {
            explain(&client().variant(name, variant.into()), form, name, &subject.into())
        }
        Command::Version => version(&client(), form),
        Command::Completions { shell } => print(manual::completions(*shell)),
        Command::Man { dir: None } => print(manual::page()),
        Command::Man { dir: Some(dir) } => {
            manual::pages(dir).map_err(|(path, error)| Failure::file(&path, &error))
        }
    }
}

/// The form of the output: for a person or for a program.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Form {
    Text,
    Json,
}

/// The failure of a call about one token.
pub(crate) fn about(name: &TokenName) -> impl Fn(Error) -> Failure {
    move |error| Failure::of_call(&error, name.as_str())
}

/// The failure of a call that is not about one token.
pub(crate) fn in_general() -> impl Fn(Error) -> Failure {
    |error| Failure::of_call(&error, "")
}

fn get(token: &Token, form: Form, name: &TokenName) -> Done {
    output::refuse_the_journal()?;
    let reply = token.get().map_err(about(name))?;
    match form {
        Form::Json => output::write(&json::line(&json::token(name, &reply))),
        Form::Text => output::write(&format!("{}\n", reply.token.expose())),
    }
}

/// Becomes the command. Returns only if that fails.
fn exec(token: &Token, name: &TokenName, variable: &str, command: &[OsString]) -> Done {
    let [program, args @ ..] = command else { return Ok(()) };
    let reply = token.get().map_err(about(name))?;
    let error = process::Command::new(program).args(args).env(variable, reply.token.expose()).exec();
    Err(Failure::exec(program, &error))
}

fn caller_headers<'a>(
    supplied: impl Iterator<Item = &'a (String, String)>,
    without: &[String],
) -> CallerHeaders {
    let headers = supplied.fold(CallerHeaders::new(), |headers, (name, value)| headers.supply(name, value));
    without.iter().fold(headers, CallerHeaders::omit)
}

fn headers(token: &Token, form: Form, name: &TokenName, caller: &CallerHeaders) -> Done {
    output::refuse_the_journal()?;
    let reply = token.headers(caller).map_err(about(name))?;
    match form {
        Form::Json => output::write(&json::line(&json::headers(name, &reply))),
        Form::Text => output::write(&header_lines(&reply)?),
    }
}

/// One header on each line. A line break within a value would look like another header.
fn header_lines(reply: &HeadersReply) -> Result<String, Failure> {
    let mut lines = String::new();
    for header in &reply.headers {
        let value = header.value.expose();
        if header.name.contains(char::is_control) || value.contains(|c: char| c.is_control() && c != '\t') {
            return Err(Failure::protocol("the daemon's answer has a header with a control character"));
        }
        lines.extend([&header.name, ": ", value, "\n"]);
    }
    Ok(lines)
}

fn list(client: &Client, form: Form) -> Done {
    let entries = client.list().map_err(in_general())?;
    if form == Form::Json {
        return output::write(&json::line(&json::list(&entries)));
    }
    if !output::is_terminal() {
        return output::write(
            &entries.iter().flat_map(|entry| [entry.name.as_str(), "\n"]).collect::<String>(),
        );
    }
    if entries.is_empty() {
        return output::write("no tokens that you may read\n");
    }
    let mut table = Table::new(&["NAME", "STATE"]);
    for entry in &entries {
        table.row(vec![entry.name.as_str().into(), Cell::state(entry.state)]);
    }
    output::write(&table.render(colours()))
}

fn status_of_all(client: &Client, form: Form, verbose: bool, exit_status: bool) -> Done {
    let status = client.status().map_err(in_general())?;
    let now = SystemTime::now();
    output::write(&match (form, verbose) {
        (Form::Json, _) => {
            json::line(&documents::page(&status.daemon, &status.tokens, None, tokend_client::now()))
        }
        (Form::Text, false) => status::table(&status, now, output::is_terminal(), colours()),
        (Form::Text, true) => status::everything(&status, now),
    })?;
    exit(if exit_status { status::exit_status(&status.tokens) } else { 0 })
}

fn status_of(client: &Client, form: Form, name: &TokenName, exit_status: bool) -> Done {
    let token = client.status_of(name).map_err(about(name))?;
    output::write(&match form {
        Form::Json => json::line(&documents::token(&token, tokend_client::now())),
        Form::Text => status::detail(&token, SystemTime::now()),
    })?;
    exit(if exit_status { status::exit_status([&token]) } else { 0 })
}

fn exit(exit: u8) -> Done {
    if exit == 0 { Ok(()) } else { Err(Failure::exit_status(exit)) }
}

fn colours() -> Colours {
    if output::takes_colour() { Colours::With } else { Colours::Without }
}

fn refresh(token: &Token, form: Form, name: &TokenName) -> Done {
    let reply = token.refresh().map_err(about(name))?;
    let what = if reply.changed { "a new token" } else { "the provider returned the same token" };
    output::write(&match form {
        Form::Json => json::line(&json::refreshed(name, &reply)),
        Form::Text => format!("{name}: {what}, {}\n", expiry(&reply.info)),
    })
}

fn reject(token: &Token, form: Form, name: &TokenName, fingerprint: Option<Fingerprint>) -> Done {
    let refused = match fingerprint {
        Some(fingerprint) => fingerprint,
        None => token.get().map_err(about(name))?.info.fingerprint,
    };
    let reply = token.reject(refused).map_err(about(name))?;
    let what = match reply.outcome {
        RejectOutcome::Replaced => "replaced by a new token",
        RejectOutcome::Superseded => "the daemon holds another token already, get it and try again",
        RejectOutcome::Unchanged => {
            "the provider returned the same token, so the API has another reason to refuse it"
        }
        RejectOutcome::TooSoon => "not replaced, because the token is new or the last request was too recent",
    };
    output::write(&match form {
        Form::Json => json::line(&json::rejected(name, &reply)),
        Form::Text => format!("{name}: {what}; the current token {}\n", expiry(&reply.info)),
    })?;
    let is_replaced = matches!(reply.outcome, RejectOutcome::Replaced | RejectOutcome::Superseded);
    exit(if is_replaced { 0 } else { 6 })
}

fn expiry(info: &TokenInfo) -> String {
    format!("expires in {}", human::duration(info.remaining(tokend_client::now())))
}

/// Prints events until the reader closes the pipe, the watch fails or the user interrupts it.
fn watch(client: &Client, form: Form, names: &[TokenName]) -> Done {
    let subject = names.iter().map(TokenName::as_str).collect::<Vec<_>>().join(", ");
    let failed = |error: Error| Failure::of_call(&error, &subject);
    for event in client.watch(names).map_err(failed)? {
        let event = event.map_err(failed)?;
        output::write(&match form {
            Form::Json => json::line(&json::event(&event)),
            Form::Text => status::event(&event, SystemTime::now()),
        })?;
    }
    Ok(())
}

/// Waits until the token meets the condition.
fn wait(client: &Client, form: Form, name: &TokenName, condition: Condition, deadline: Duration) -> Done {
    let started = Instant::now();
    let left = || deadline.saturating_sub(started.elapsed());
    let mut watch = client.watch(std::slice::from_ref(name)).map_err(about(name))?;
    let mut last = None;
    // The current condition counts, however short the deadline is.
    while last.is_none() || !left().is_zero() {
        let event = match watch.next_within(left()) {
            None | Some(Err(Error::DeadlineExceeded { .. })) => break,
            Some(event) => event.map_err(about(name))?,
        };
        if condition.is_met_by(event.state) {
            return reached(form, &event);
        }
        last = Some(event);
    }
    let state = last.as_ref().map_or("unknown", |event| event.state.as_str());
    let error = last.and_then(|event| event.last_error).map(ErrorClass::as_str);
    let why = error.map(|class| format!(" (last error: {class})")).unwrap_or_default();
    let message = format!("still {state}{why}, not {}", condition.as_str());
    Err(about(name)(Error::DeadlineExceeded { message }))
}

fn reached(form: Form, event: &EventReply) -> Done {
    match form {
        Form::Json => output::write(&json::line(&json::event(event))),
        Form::Text => Ok(()),
    }
}

/// Prints the explanation. A denial has exit status 4 and no message on standard error.
fn explain(token: &Token, form: Form, name: &TokenName, subject: &Subject) -> Done {
    let reply = token.explain(subject).map_err(about(name))?;
    output::write(&match form {
        Form::Json => json::line(&json::explanation(name, &reply)),
        Form::Text => explanation::text(name, subject, &reply),
    })?;
    exit(if reply.allowed { 0 } else { 4 })
}

fn version(client: &Client, form: Form) -> Done {
    let reply = client.version();
    if form == Form::Json {
        output::write(&json::line(&json::versions(reply.as_ref().ok())))?;
        return reply.map(|_| ()).map_err(|error| in_general()(error).without_json());
    }
    // The program's own version appears even without a daemon.
    output::write(&format!("tokenctl {}, protocol {PROTOCOL_VERSION}\n", env!("CARGO_PKG_VERSION")))?;
    let reply = reply.map_err(in_general())?;
    let protocols = match (reply.oldest, reply.newest) {
        (oldest, newest) if oldest == newest => format!("protocol {newest}"),
        (oldest, newest) => format!("protocols {oldest} to {newest}"),
    };
    output::write(&format!("tokend {}, {protocols}\n", human::clean(&reply.daemon)))
}

fn metrics(client: &Client) -> Done {
    let status = client.status().map_err(in_general())?;
    output::write(&Metrics::render(Some(&exporter::collected(status)), Dialect::Prometheus))
}

/// Prints a generated text.
fn print(generated: std::io::Result<Vec<u8>>) -> Done {
    let text = generated.map_err(|error| Failure::output(&error))?;
    output::write(&String::from_utf8_lossy(&text))
}
