//! One token through a trouble of its provider, seen as its callers and its operator see it.

use std::thread;
use std::time::{Duration, Instant, SystemTime};

use tokend_client::blocking::Client;
use tokend_client::{Error, Fingerprint, TokenName};
use tokend_protocol::{ErrorClass, ErrorCode, ErrorReply, Reply, Request, State, TokenStatus};
use tokend_tests::{RawPeer, Tokenctl, raw_peer, wait};

use super::rows::{Comes, Row};
use super::server::Server;

/// How long a trouble lasts at the least.
pub(super) const LASTS: Duration = Duration::from_secs(4);

/// How long a caller waits who has no token: longer than any attempt.
const CALLERS_DEADLINE: Duration = Duration::from_secs(25);

/// How long a failure may take to be seen, and a recovery.
const PATIENCE: Duration = Duration::from_secs(60);

/// Between two calls of one caller.
const PAUSE: Duration = Duration::from_millis(250);

/// Whether a valid token is held when the trouble begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Situation {
    Held,
    Empty,
}

/// A row in one situation.
pub(super) struct Subject {
    pub(super) row: Row,
    pub(super) situation: Situation,
    pub(super) server: Server,
    /// For whoever waits.
    pub(super) client: Client,
    /// For whoever asks only for what is held.
    pub(super) peer: RawPeer,
    pub(super) tokenctl: Tokenctl,
}

/// What was seen.
pub(super) struct Seen {
    pub(super) row: Row,
    pub(super) situation: Situation,
    pub(super) callers: Callers,
    /// The exit code of `tokenctl get` at the end of the trouble.
    pub(super) exit_code: i32,
    /// What `status` said at the end of it.
    pub(super) status: TokenStatus,
    /// How many attempts the trouble cost, by the daemon's count.
    pub(super) attempts: u64,
    /// How many requests reached the provider during it.
    pub(super) requests: usize,
    /// How long it lasted, at most.
    pub(super) lasted: Duration,
    /// From the end of the trouble to the next attempt, as the status told.
    pub(super) next_attempt_in: Duration,
    /// From the end of the trouble to a new token, if there was one.
    pub(super) recovered: Option<Duration>,
    /// How many requests reached the provider after the trouble's end, until then.
    pub(super) requests_to_recover: usize,
}

/// What callers saw during a trouble.
#[derive(Debug, Default)]
pub(super) struct Callers {
    /// How many were answered with a token.
    pub(super) tokens: usize,
    /// How many of those with another one than was held.
    pub(super) other_tokens: usize,
    /// The classes with which others were refused.
    pub(super) classes: Vec<ErrorClass>,
    /// How many others were told that a request is under way.
    pub(super) pending: usize,
    /// What others met that says nothing about the provider.
    pub(super) odd: Vec<String>,
    /// The longest that one who asked only for what is held had to wait.
    pub(super) slowest: Duration,
    /// What an operator's `refresh` or the first caller's wait ended with.
    pub(super) first: Option<Result<Fingerprint, Error>>,
}

impl Subject {
    /// Goes through it. `since` is when the trouble of an empty subject began, at the latest.
    pub(super) fn run(mut self, since: Instant) -> Seen {
        let name: TokenName = self.name().parse().unwrap();
        let (held, since, before) = match self.situation {
            Situation::Empty => (None, since, 0),
            Situation::Held => {
                let held = self.client.with_deadline(CALLERS_DEADLINE).get(&name).expect("a first token");
                let since = Instant::now();
                self.server.begin();
                (Some(held.info.fingerprint), since, self.server.count())
            }
        };
        let callers = self.watch_callers(&name, held, since);
        let finished = self.tokenctl.run(&["--deadline", "25s", "get", name.as_str()]);
        let status = self.status(&name);
        let requests = self.server.count() - before;
        let lasted = since.elapsed();

        self.server.end();
        let next = status.next_attempt.unwrap().to_system_time();
        let next_attempt_in = next.duration_since(SystemTime::now()).unwrap_or_default();
        let recovered = self.recover(&name, held);
        Seen {
            callers,
            exit_code: finished.code,
            attempts: status.requests - u64::from(held.is_some()),
            status,
            requests,
            lasted,
            next_attempt_in,
            recovered,
            requests_to_recover: self.server.count() - before - requests,
            row: self.row,
            situation: self.situation,
        }
    }

    pub(super) fn name(&self) -> String {
        name_of(&self.row, self.situation)
    }

    /// Somebody waits for the provider's answer, and others ask again and again meanwhile.
    fn watch_callers(&mut self, name: &TokenName, held: Option<Fingerprint>, since: Instant) -> Callers {
        let mut callers = Callers::default();
        thread::scope(|scope| {
            let patient = self.client.with_deadline(CALLERS_DEADLINE);
            let first = scope.spawn(move || match held {
                Some(_) => patient.refresh(name).map(|reply| reply.info.fingerprint),
                None => patient.get(name).map(|reply| reply.info.fingerprint),
            });
            while !first.is_finished() || since.elapsed() < LASTS {
                callers.note(ask(&mut self.peer, name), held);
                thread::sleep(PAUSE);
            }
            callers.first = first.join().ok();
        });
        callers
    }

    fn status(&self, name: &TokenName) -> TokenStatus {
        let status = self.client.with_deadline(CALLERS_DEADLINE).status().unwrap();
        status.tokens.into_iter().find(|token| token.name == *name).unwrap()
    }

    /// Has an operator help where one is needed, and waits for a token that is as good as new.
    fn recover(&mut self, name: &TokenName, held: Option<Fingerprint>) -> Option<Duration> {
        let since = Instant::now();
        match self.row.comes {
            Comes::Token | Comes::Quiet(_) => return None,
            Comes::Passes(_) | Comes::Distrust => (),
            // A second time where the first was answered by an attempt that was under way.
            Comes::Refusal => {
                let refresh = || self.tokenctl.run(&["refresh", name.as_str()]).code;
                let _ = refresh() == 0 || refresh() == 0;
            }
        }
        wait::within(PATIENCE, || match ask(&mut self.peer, name).0 {
            Reply::Token(reply)
                if reply.info.state == State::Fresh && Some(reply.info.fingerprint) != held =>
            {
                Some(since.elapsed())
            }
            _ => {
                thread::sleep(PAUSE);
                None
            }
        })
    }
}

/// The token's name.
pub(super) fn name_of(row: &Row, situation: Situation) -> String {
    match situation {
        Situation::Held => format!("{}.held", row.name),
        Situation::Empty => format!("{}.empty", row.name),
    }
}

/// Asks for what is held, giving the daemon no time to wait for anything: the answer, and how long it took.
fn ask(peer: &mut RawPeer, name: &TokenName) -> (Reply, Duration) {
    let mut request = raw_peer::get(name.as_str());
    if let Request::Get(get) = &mut request {
        get.options.deadline_ms = 0;
    }
    let began = Instant::now();
    let reply = peer.ask(1, request);
    (reply, began.elapsed())
}

impl Callers {
    fn note(&mut self, (reply, took): (Reply, Duration), held: Option<Fingerprint>) {
        self.slowest = self.slowest.max(took);
        match reply {
            Reply::Token(reply) => {
                self.tokens += 1;
                self.other_tokens += usize::from(Some(reply.info.fingerprint) != held);
            }
            Reply::Error(ErrorReply {
                code: ErrorCode::Unavailable | ErrorCode::NeedsOperator,
                class: Some(class),
                ..
            }) => self.classes.push(class),
            Reply::Error(ErrorReply { code: ErrorCode::DeadlineExceeded, .. }) => self.pending += 1,
            other => self.odd.push(format!("{other:?}")),
        }
    }
}
