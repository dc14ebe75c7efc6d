//! The condition of daemon and tokens as a person reads it.

use std::fmt::Write;
use std::time::{Duration, SystemTime};

use tokend_client::{
    Attribute, DaemonStatus, EventReply, HeldToken, LastError, Status, Timestamp, TokenStatus,
};

use crate::human::{clean, cut, duration, rfc3339, until};
use crate::table::{Cell, Colours, Table};

/// The longest error in the short form: with the columns before it, a line for a wide terminal.
const ERROR_MAX: usize = 60;

/// What stands in a cell about nothing.
const NONE: &str = "-";

/// What stands for less than a second.
const NOW: &str = "now";

const COLUMNS: [&str; 6] = ["NAME", "STATE", "EXPIRES-IN", "RENEWS-IN", "REQUESTS", "LAST-ERROR"];

/// The short form: what is wrong and what happens next.
pub(crate) fn short(status: &Status, now: SystemTime, colours: Colours) -> String {
    let mut text = daemon(&status.daemon, now);
    let mut table = Table::new(&COLUMNS);
    for token in &status.tokens {
        let error = token.last_error.as_ref().map(|error| cut(&failed(error, now), ERROR_MAX));
        table.row(cells(token, error, now));
    }
    text.push_str(&tokens(status, &table, colours));
    for token in status.tokens.iter().filter(|token| !token.deviations.is_empty()) {
        let count: u64 = token.deviations.iter().map(|deviation| deviation.count).sum();
        let times = if count == 1 { "once".to_owned() } else { format!("{count} times") };
        let _ = writeln!(
            text,
            "{}: the provider departed from the standard {times}; `tokenctl status --verbose` tells how",
            token.name
        );
    }
    text
}

/// The long form: all there is.
pub(crate) fn long(status: &Status, now: SystemTime, colours: Colours) -> String {
    let mut text = daemon(&status.daemon, now);
    text.extend(status.daemon.attributes.iter().map(attribute));
    let mut table = Table::new(
        &[&COLUMNS[..5], &["PROVIDER", "HAND-OUTS", "FAILURES", "FINGERPRINT", "EXPIRES-AT"], &COLUMNS[5..]]
            .concat(),
    );
    for token in &status.tokens {
        let mut row = cells(token, token.last_error.as_ref().map(|error| failed(error, now)), now);
        let error = row.pop();
        row.extend([clean(&token.provider).into(), token.hand_outs.into(), token.failures.into()]);
        row.push(token.held.map_or_else(|| NONE.to_owned(), |held| held.fingerprint.to_string()).into());
        row.push(
            token
                .held
                .map_or_else(|| NONE.to_owned(), |held| rfc3339(held.expires_at_wall.to_system_time()))
                .into(),
        );
        row.extend(error);
        table.row(row);
    }
    text.push_str(&tokens(status, &table, colours));
    for token in &status.tokens {
        for deviation in &token.deviations {
            let _ = writeln!(text, "{}: {} {}x", token.name, clean(&deviation.kind), deviation.count);
        }
        text.extend(token.attributes.iter().map(|fact| format!("{}: {}", token.name, attribute(fact))));
    }
    text
}

fn attribute(attribute: &Attribute) -> String {
    format!("{}: {}\n", clean(&attribute.name), clean(&attribute.value))
}

fn daemon(daemon: &DaemonStatus, now: SystemTime) -> String {
    let DaemonStatus { version, pid, started_at, connections, reload_failed_at, attributes: _ } = daemon;
    let (version, up) = (clean(version), duration(since(*started_at, now)));
    let mut text = match (*pid, *connections) {
        // The daemon tells its process to operators alone.
        (0, _) => format!("tokend {version}, up {up}\n"),
        (_, 1) => format!("tokend {version}, pid {pid}, up {up}, 1 connection\n"),
        _ => format!("tokend {version}, pid {pid}, up {up}, {connections} connections\n"),
    };
    if let Some(at) = reload_failed_at {
        let ago = duration(since(*at, now));
        let _ = writeln!(text, "the reload {ago} ago failed and changed nothing; `tokend check` tells why");
    }
    text
}

fn tokens(status: &Status, table: &Table, colours: Colours) -> String {
    if status.tokens.is_empty() {
        return "no token that you may see\n".to_owned();
    }
    table.render(colours)
}

/// The cells of [`COLUMNS`].
fn cells(token: &TokenStatus, error: Option<String>, now: SystemTime) -> Vec<Cell> {
    vec![
        token.name.as_str().into(),
        Cell::state(token.state),
        token.held.map_or_else(|| NONE.to_owned(), lifetime).into(),
        token.next_attempt.map_or_else(|| NONE.to_owned(), |at| renewal(at, now)).into(),
        token.requests.into(),
        error.unwrap_or_else(|| NONE.to_owned()).into(),
    ]
}

fn failed(error: &LastError, now: SystemTime) -> String {
    format!("{} {} ago: {}", error.class.as_str(), duration(since(error.at, now)), clean(&error.message))
}

fn lifetime(held: HeldToken) -> String {
    duration(held.remaining(tokend_client::now()))
}

fn renewal(at: Timestamp, now: SystemTime) -> String {
    match until(at.to_system_time(), now) {
        wait if wait.as_secs() == 0 => NOW.to_owned(),
        wait => duration(wait),
    }
}

fn since(time: Timestamp, now: SystemTime) -> Duration {
    until(now, time.to_system_time())
}

/// One event of a watch, on one line.
pub(crate) fn event(event: &EventReply, now: SystemTime) -> String {
    let mut text = format!("{} {}: {}", rfc3339(now), event.name, event.state.as_str());
    if let Some(held) = event.held {
        let _ = write!(text, ", expires in {}", lifetime(held));
    }
    if let Some(class) = event.last_error {
        let _ = write!(text, ", last error: {}", class.as_str());
    }
    if let Some(at) = event.next_attempt {
        let _ = match renewal(at, now).as_str() {
            NOW => write!(text, ", renews now"),
            wait => write!(text, ", renews in {wait}"),
        };
    }
    text.push('\n');
    text
}
