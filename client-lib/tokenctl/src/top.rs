//! `tokenctl top`: a table of all tokens that is kept current on the terminal.

mod screen;

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::mpsc::{Receiver, TryRecvError, sync_channel};
use std::thread;
use std::time::{Duration, SystemTime};

use tokend_client::blocking::Client;
use tokend_client::{State, Status, TokenStatus};

use self::screen::{Screen, Signals, Size};
use crate::commands::{Done, in_general};
use crate::failure::Failure;
use crate::human::{cut, duration};
use crate::status::{daemon, failed, lifetime, renewal};
use crate::table::{Cell, Colours, Table};

/// The message to a program that asks for the table.
pub(crate) const NO_TERMINAL: &str = "top needs a terminal; a program can use `tokenctl status --json`";

/// The time between two requests to the daemon.
const PERIOD: Duration = Duration::from_secs(1);

type Answer = Result<Status, Failure>;

/// Shows the table until a key or a signal ends it. An unreachable daemon does not.
pub(crate) fn top(client: &Client, colours: Colours) -> Done {
    if !screen::is_there() {
        return Err(Failure::terminal(NO_TERMINAL));
    }
    let signals = Signals::register().map_err(|error| Failure::signals(&error))?;
    let answers = ask_repeatedly(client)?;
    let mut screen = Screen::open()?;
    let (mut status, mut failure) = (None, None);
    loop {
        match answers.try_recv() {
            Ok(Ok(answer)) => (status, failure) = (Some(worst_first(answer)), None),
            Ok(Err(error)) => failure = Some(error),
            Err(TryRecvError::Empty) => (),
            Err(TryRecvError::Disconnected) => return Err(Failure::terminal("the requests have ended")),
        }
        let first_line = match (&failure, &status) {
            (Some(failure), _) => format!("{}\n", failure.message),
            (None, Some(status)) => daemon(&status.daemon, SystemTime::now()),
            (None, None) => "waiting for the daemon\n".to_owned(),
        };
        let tokens = status.as_ref().map(|status: &Status| &status.tokens[..]);
        screen.show(&picture(&first_line, tokens, screen::size(), colours))?;
        if screen::is_quit()? || signals.end() {
            return Ok(());
        }
        if signals.suspend() {
            drop(screen);
            screen::suspend()?;
            screen = Screen::open()?;
        }
    }
}

/// Asks for the status in a thread, so that keys and signals need not wait for the daemon.
fn ask_repeatedly(client: &Client) -> Result<Receiver<Answer>, Failure> {
    let (sender, answers) = sync_channel(1);
    let client = client.clone();
    let ask = move || {
        while sender.send(client.status().map_err(in_general())).is_ok() {
            thread::sleep(PERIOD);
        }
    };
    let started = thread::Builder::new().spawn(ask);
    started.map_err(|error| Failure::terminal(&format!("cannot start a thread: {error}")))?;
    Ok(answers)
}

/// Sorts the tokens by state, then by failures and remaining lifetime, so that those that need attention are on a small screen.
fn worst_first(mut status: Status) -> Status {
    status.tokens.sort_by_key(|token| {
        let expires_at = token.held.map(|held| held.expires_at.0);
        (severity(token.state), Reverse(token.failures), expires_at)
    });
    status
}

fn severity(state: State) -> u8 {
    match state {
        State::NeedsOperator => 0,
        State::Unavailable => 1,
        State::Degraded => 2,
        State::Pending => 3,
        State::Refreshing => 4,
        State::Fresh => 5,
    }
}

/// All lines, in the size of the terminal.
fn picture(first_line: &str, tokens: Option<&[TokenStatus]>, size: Size, colours: Colours) -> String {
    let mut text: String = first_line.lines().map(|line| cut(line, size.width) + "\n").collect();
    let Some(tokens) = tokens else { return first_lines(&(text + "q ends"), size) };
    text.extend([cut(&summary(tokens), size.width).as_str(), "\n"]);
    let room = size.height.saturating_sub(text.lines().count() + 1);
    // The last line says how many tokens are not shown.
    let shown = if tokens.len() <= room { tokens.len() } else { room.saturating_sub(1) };
    let mut table = Table::new(&[
        "NAME",
        "STATE",
        "EXPIRES-IN",
        "AGE",
        "RENEWS-IN",
        "HAND-OUTS",
        "FAILURES",
        "LAST-ERROR",
    ]);
    for token in tokens.iter().take(shown) {
        table.row(row(token, SystemTime::now()));
    }
    text.push_str(&table.render_within(size.width, colours));
    if shown < tokens.len() {
        let _ = writeln!(text, "{} more", tokens.len() - shown);
    }
    first_lines(&text, size)
}

/// The lines that the terminal has room for.
fn first_lines(text: &str, size: Size) -> String {
    text.lines().take(size.height).collect::<Vec<_>>().join("\n")
}

/// The number of tokens in each state, as in `3 tokens: 1 unavailable, 2 fresh`.
fn summary(tokens: &[TokenStatus]) -> String {
    let mut counts: BTreeMap<u8, (State, usize)> = BTreeMap::new();
    for token in tokens {
        counts.entry(severity(token.state)).or_insert((token.state, 0)).1 += 1;
    }
    let counts: Vec<_> =
        counts.values().map(|(state, count)| format!("{count} {}", state.as_str())).collect();
    let tokens = if tokens.len() == 1 { "1 token".to_owned() } else { format!("{} tokens", tokens.len()) };
    let separator = if counts.is_empty() { "" } else { ": " };
    format!("{tokens}{separator}{}; q ends", counts.join(", "))
}

fn row(token: &TokenStatus, now: SystemTime) -> Vec<Cell> {
    let cell = |value: Option<String>| value.unwrap_or_else(|| "-".to_owned()).into();
    vec![
        token.name.as_str().into(),
        Cell::state(token.state),
        cell(token.held.map(lifetime)),
        cell(token.held.map(|held| duration(held.age(tokend_client::now())))),
        cell(token.next_attempt.map(|at| renewal(at, now))),
        token.hand_outs.into(),
        token.failures.into(),
        cell(token.last_error.as_ref().map(|error| failed(error, now))),
    ]
}
