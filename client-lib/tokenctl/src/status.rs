//! The texts of `status` and `watch`.

use std::fmt::Write;
use std::time::{Duration, SystemTime};

use tokend_client::{
    DaemonStatus, ErrorClass, EventReply, HeldToken, LastError, State, Status, Timestamp, TokenStatus,
    Variant,
};

use crate::failure::remedy;
use crate::human::{clean, cut, duration, rfc3339, until};
use crate::table::{Cell, Colours, Table};

/// The longest error in the table on a terminal: with the columns before it, a line of a wide terminal.
const ERROR_MAX: usize = 60;

/// The text of a cell without a value.
const NONE: &str = "-";

/// The text for less than a second.
const NOW: &str = "now";

/// The status of the daemon, and a table of its tokens.
pub(crate) fn table(status: &Status, now: SystemTime, is_terminal: bool, colours: Colours) -> String {
    let mut text = daemon(&status.daemon, now);
    if status.tokens.is_empty() {
        text.push_str("no tokens that you may read\n");
        return text;
    }
    let mut table = Table::new(&["NAME", "STATE", "EXPIRES-IN", "RENEWS-IN", "REQUESTS", "LAST-ERROR"]);
    for token in &status.tokens {
        let error = token.last_error.as_ref().map(|error| failed(error, now));
        let error = error.map(|error| if is_terminal { cut(&error, ERROR_MAX) } else { error });
        let cell = |value: Option<String>| value.unwrap_or_else(|| NONE.to_owned()).into();
        table.row(vec![
            token.name.as_str().into(),
            Cell::state(token.state),
            cell(token.held.map(lifetime)),
            cell(token.next_attempt.map(|at| renewal(at, now))),
            token.requests.into(),
            cell(error),
        ]);
    }
    text.push_str(&table.render(colours));
    for token in status.tokens.iter().filter(|token| !token.deviations.is_empty()) {
        let count: u64 = token.deviations.iter().map(|deviation| deviation.count).sum();
        let deviations = if count == 1 { "deviation" } else { "deviations" };
        let name = &token.name;
        let _ = writeln!(text, "{name}: {count} {deviations} from the RFCs; see `tokenctl status {name}`");
    }
    text
}

/// Everything about the daemon and its tokens.
pub(crate) fn everything(status: &Status, now: SystemTime) -> String {
    let mut text = daemon(&status.daemon, now);
    for fact in &status.daemon.attributes {
        let _ = writeln!(text, "  {}: {}", clean(&fact.name), clean(&fact.value));
    }
    for count in status.daemon.counts.iter().filter(|count| count.name == "resident-bytes") {
        let tenths = count.value * 10 / 1_048_576;
        let _ = writeln!(text, "  resident memory: {}.{} MiB", tenths / 10, tenths % 10);
    }
    text.extend(status.tokens.iter().map(|token| detail(token, now)));
    text
}

/// Everything about one token, a fact on each line.
pub(crate) fn detail(token: &TokenStatus, now: SystemTime) -> String {
    let mut text = format!("{}: {}\n", token.name, token.state.as_str());
    let mut fact = |name: &str, value: String| {
        let _ = writeln!(text, "  {name}: {value}");
    };
    if let Some(error) = &token.last_error {
        fact("last error", failed(error, now));
        fact("failures in a row", token.failures.to_string());
        fact("what to do", remedy(error.class).to_owned());
        let is_operators = matches!(error.class, ErrorClass::Refused | ErrorClass::Secret | ErrorClass::Tls);
        if is_operators || token.state == State::NeedsOperator {
            fact("once put right", format!("`tokenctl refresh {}`", token.name));
        }
    }
    if let Some(held) = token.held {
        let at = rfc3339(held.expires_at_wall.to_system_time());
        fact("expires in", format!("{} ({at})", lifetime(held)));
        fact("fingerprint", held.fingerprint.to_string());
    }
    if let Some(at) = token.next_attempt {
        fact("next attempt in", format!("{} ({})", renewal(at, now), rfc3339(at.to_system_time())));
    }
    fact("provider", clean(&token.provider));
    fact("requests", token.requests.to_string());
    fact("hand-outs", token.hand_outs.to_string());
    for deviation in &token.deviations {
        fact("deviation", format!("{}, {} times", clean(&deviation.kind), deviation.count));
    }
    for attribute in &token.attributes {
        fact(&clean(&attribute.name), clean(&attribute.value));
    }
    for count in &token.counts {
        fact(&clean(&count.name), count.value.to_string());
    }
    if token.variants_held > 0 {
        fact("variants with a valid token", token.variants_held.to_string());
    }
    for status in &token.variants {
        let mut condition = status.state.as_str().to_owned();
        if let Some(held) = status.held {
            let _ = write!(condition, ", expires in {}", lifetime(held));
        }
        if let Some(class) = status.last_error {
            let _ = write!(condition, ", last error: {}", class.as_str());
        }
        fact("variant", format!("{}: {condition}", terms(&status.variant)));
    }
    text
}

/// A variant by its terms, as in `scope aisp, resource r`.
fn terms(variant: &Variant) -> String {
    let kinds = [("scope", &variant.scope), ("resource", &variant.resource), ("audience", &variant.audience)];
    let named = kinds.into_iter().filter(|(_, terms)| !terms.is_empty());
    named.map(|(kind, terms)| format!("{kind} {}", clean(&terms.join(" ")))).collect::<Vec<_>>().join(", ")
}

/// The exit status of `status --exit-status`: 0 if every token is valid.
pub(crate) fn exit_status<'a>(tokens: impl IntoIterator<Item = &'a TokenStatus>) -> u8 {
    let exit = |token: &TokenStatus| match token.state {
        State::NeedsOperator => 7,
        state if state.is_valid() => 0,
        _ => 6,
    };
    tokens.into_iter().map(exit).max().unwrap_or_default()
}

/// The daemon, and whether its last reload failed.
pub(crate) fn daemon(daemon: &DaemonStatus, now: SystemTime) -> String {
    let DaemonStatus { version, pid, started_at, connections, reload_failed_at, attributes: _, counts: _ } =
        daemon;
    let (version, up) = (clean(version), duration(since(*started_at, now)));
    let mut text = match (*pid, *connections) {
        // Only operators see the process.
        (0, _) => format!("tokend {version}, up {up}\n"),
        (_, 1) => format!("tokend {version}, pid {pid}, up {up}, 1 connection\n"),
        _ => format!("tokend {version}, pid {pid}, up {up}, {connections} connections\n"),
    };
    if let Some(at) = reload_failed_at {
        let ago = duration(since(*at, now));
        let _ = writeln!(text, "the reload {ago} ago failed and changed nothing; `tokend check` shows why");
    }
    text
}

/// A failure, with its age.
pub(crate) fn failed(error: &LastError, now: SystemTime) -> String {
    format!("{} {} ago: {}", error.class.as_str(), duration(since(error.at, now)), clean(&error.message))
}

/// The remaining lifetime of a token.
pub(crate) fn lifetime(held: HeldToken) -> String {
    duration(held.remaining(tokend_client::now()))
}

/// The time until the next request.
pub(crate) fn renewal(at: Timestamp, now: SystemTime) -> String {
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
