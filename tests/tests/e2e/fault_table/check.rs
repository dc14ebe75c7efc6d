//! What must hold of all that is seen, and how it is shown.

use std::fmt;
use std::time::Duration;

use tokend_client::Error;
use tokend_protocol::{ErrorClass, State, TokenStatus};

use super::rows::Comes;
use super::subject::{Callers, Seen, Situation};

/// The exit code where a retry may help.
const RETRY: i32 = 6;
/// The exit code where an operator is needed.
const OPERATOR: i32 = 7;

/// A refusal is not repeated sooner than this.
const REFUSAL_GAP: Duration = Duration::from_secs(20);

/// No failure, and nothing that a provider says, puts the next attempt off for longer.
const LONGEST_WAIT: Duration = Duration::from_secs(20 * 60);

/// What a provider may ask for and gets.
const LONG_QUIET: Duration = Duration::from_secs(5 * 60);

/// What a busy machine may add to a recovery, one attempt that was under way included.
const SLACK: Duration = Duration::from_secs(25);

/// The bounds that a fault exceeds, as sentences.
pub(super) fn complaints(seen: &Seen) -> Vec<String> {
    let mut complaints = Complaints { seen, found: Vec::new() };
    complaints.callers();
    match seen.row.comes {
        Comes::Token => complaints.no_trouble(),
        Comes::Passes(class) | Comes::Quiet(class) => complaints.trouble(class),
        Comes::Refusal => complaints.trouble(ErrorClass::Refused),
        Comes::Distrust => complaints.trouble(ErrorClass::Tls),
    }
    complaints.cost();
    complaints.recovery();
    complaints.found
}

struct Complaints<'a> {
    seen: &'a Seen,
    found: Vec<String>,
}

impl Complaints<'_> {
    fn expect(&mut self, holds: bool, what: &str) {
        if !holds {
            self.found.push(format!("{what}: {}", self.seen));
        }
    }

    /// Whoever asks for what is held gets it, and nobody else gets anything.
    fn callers(&mut self) {
        let callers = &self.seen.callers;
        self.expect(callers.odd.is_empty(), &format!("callers met {:?}", callers.odd));
        if self.seen.situation == Situation::Held {
            let all_served = callers.tokens > 0 && callers.classes.is_empty() && callers.pending == 0;
            self.expect(all_served, "a valid token was not served at once");
        }
        if self.seen.row.comes != Comes::Token {
            self.expect(callers.other_tokens == 0, "a token came from nowhere");
        }
    }

    fn no_trouble(&mut self) {
        let status = &self.seen.status;
        self.expect(self.seen.exit_code == 0, "a token was expected");
        self.expect(status.state == State::Fresh && status.last_error.is_none(), "the status is not good");
        self.expect(matches!(self.seen.callers.first, Some(Ok(_))), "a patient caller got no token");
    }

    fn trouble(&mut self, class: ErrorClass) {
        let Seen { status, callers, situation, .. } = self.seen;
        let needs_operator = matches!(self.seen.row.comes, Comes::Refusal | Comes::Distrust);
        let (state, exit_code) = match (situation, needs_operator) {
            (Situation::Held, _) => (State::Degraded, 0),
            (Situation::Empty, true) => (State::NeedsOperator, OPERATOR),
            (Situation::Empty, false) => (State::Unavailable, RETRY),
        };
        self.expect(status.state == state, "the status has another state");
        self.expect(class_of(status) == Some(class), "the status has another class");
        self.expect(
            status.held.is_some() == (*situation == Situation::Held),
            "the status errs about the token",
        );
        self.expect(self.seen.exit_code == exit_code, "another exit code");
        self.expect(callers.classes.iter().all(|met| *met == class), "callers were told another class");
        let right_kind = matches!(&callers.first, Some(Err(Error::NeedsOperator { .. }))) == needs_operator;
        self.expect(
            right_kind && self.seen.told() == Some(class),
            "whoever waited for the answer was told another class",
        );
        // Between an attempt's end and the note of what it brought, the two may differ by one.
        let failures = u64::from(status.failures);
        let counted = failures >= 1 && (failures..=failures + 1).contains(&self.seen.attempts);
        self.expect(counted, "failures and requests do not agree");
    }

    fn cost(&mut self) {
        let Seen { attempts, requests, lasted, row, .. } = self.seen;
        let most = match row.comes {
            Comes::Token | Comes::Quiet(_) => 1,
            Comes::Refusal => 1 + lasted.as_secs() / REFUSAL_GAP.as_secs(),
            // Each wait is twice as long as the one before, and the first is almost a second.
            Comes::Passes(_) | Comes::Distrust => 3 + u64::from((lasted.as_secs() + 1).ilog2()),
        };
        self.expect(*attempts <= most, &format!("more than {most} attempts in {lasted:?}"));
        self.expect(*requests as u64 <= most, &format!("more than {most} requests in {lasted:?}"));
    }

    fn recovery(&mut self) {
        let Seen { row, recovered, next_attempt_in, status, lasted, .. } = self.seen;
        let held_back =
            status.next_attempt.zip(status.last_error.as_ref()).map_or(Duration::ZERO, |(next, last)| {
                next.to_system_time().duration_since(last.at.to_system_time()).unwrap_or_default()
            });
        // One may be an attempt that was under way.
        self.expect(self.seen.requests_to_recover <= 2, "too many requests to recover");
        self.expect(row.comes == Comes::Token || held_back <= LONGEST_WAIT, "it is put off for too long");
        match row.comes {
            Comes::Token => (),
            Comes::Quiet(_) => self.expect(held_back >= LONG_QUIET, "the provider was not given its quiet"),
            Comes::Refusal => {
                self.expect(held_back >= REFUSAL_GAP, "a refusal is asked for again too soon");
                self.expect(recovered.is_some(), "an operator's refresh did not help");
            }
            Comes::Passes(_) | Comes::Distrust => {
                self.expect(held_back <= *lasted * 2 + Duration::from_secs(10), "the back-off is too long");
                let limit = *next_attempt_in + SLACK;
                let in_time = recovered.is_some_and(|after| after <= limit);
                self.expect(in_time, &format!("not recovered within {limit:?}"));
            }
        }
    }
}

fn class_of(status: &TokenStatus) -> Option<ErrorClass> {
    status.last_error.as_ref().map(|failed| failed.class)
}

pub(super) fn heading() -> String {
    format!(
        "{:<27} {:<6} {:<48} {:<36} {:<22} {}",
        "fault", "token", "callers saw", "status said", "it cost", "recovered after"
    )
}

impl fmt::Display for Seen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let token = if self.situation == Situation::Held { "held" } else { "none" };
        write!(
            f,
            "{:<27} {token:<6} {:<48} {:<36} {:<22} {}",
            self.row.name,
            self.callers_saw(),
            self.status_said(),
            format!(
                "{} requests in {:.1} s",
                self.attempts.max(self.requests as u64),
                self.lasted.as_secs_f64()
            ),
            self.recovered_after(),
        )
    }
}

impl Seen {
    fn callers_saw(&self) -> String {
        let Callers { tokens, classes, pending, slowest, .. } = &self.callers;
        let got = match self.told().or(classes.first().copied()) {
            _ if *tokens > 0 => format!("{tokens} tokens"),
            Some(class) => format!("{} {} times", class.as_str(), classes.len() + 1),
            None => "nothing".to_owned(),
        };
        let waits = if *pending > 0 { format!(", {pending} not yet") } else { String::new() };
        format!("exit {}, {got}{waits}, in {} ms", self.exit_code, slowest.as_millis())
    }

    /// The class that whoever waited for the provider's answer was told.
    fn told(&self) -> Option<ErrorClass> {
        match &self.callers.first {
            Some(Err(Error::NeedsOperator { class, .. } | Error::Unavailable { class, .. })) => *class,
            _ => None,
        }
    }

    fn status_said(&self) -> String {
        let class = class_of(&self.status).map_or("no error", ErrorClass::as_str);
        format!("{}, {class}, {} failures", self.status.state.as_str(), self.status.failures)
    }

    fn recovered_after(&self) -> String {
        match (self.row.comes, self.recovered) {
            (Comes::Token, _) => "no trouble".to_owned(),
            (Comes::Quiet(_), _) => format!("tries in {} s", self.next_attempt_in.as_secs()),
            (Comes::Refusal, Some(after)) => format!("{:.1} s, by refresh", after.as_secs_f64()),
            (Comes::Passes(_) | Comes::Distrust, Some(after)) => {
                format!("{:.1} s, by itself", after.as_secs_f64())
            }
            (_, None) => "NOT".to_owned(),
        }
    }
}
