//! Who gets what: callers of every kind, in a matrix of rules, with the decision that is expected of each and the
//! one that was made. Each cell is a token of its own, so that its record in the journal is found by a field.

mod caller;
mod cells;

use std::fmt::Write as _;

use serde_json::Value;
use tokend_tests::{Machine, wait};

use self::caller::Caller;
use crate::host::Host;

/// A caller, a rule, and what must come of it.
struct Cell {
    caller: Caller,
    /// The token's `allow` list.
    allow: &'static str,
    expected: Outcome,
}

/// Cells that are tried in one sandbox, each with the name of its token.
struct Phase {
    name: &'static str,
    /// What the sandbox has besides what is installed.
    directives: &'static str,
    /// What the configuration has besides the tokens.
    settings: &'static str,
    /// Somebody who has a token as soon as there is one.
    witness: &'static str,
    cells: Vec<(String, Cell)>,
}

/// What comes of a request for a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    /// It is handed out, by this rule.
    Allowed(&'static str),
    /// It is refused.
    Denied,
    /// The socket is not open to the caller.
    NotConnected,
}

/// A cell that was tried.
struct Tried {
    /// The name of its token.
    token: String,
    cell: Cell,
    /// The number of the caller's user.
    uid: String,
    observed: Option<&'static str>,
    recorded: Record,
}

/// What the journal has about a token.
#[derive(Debug, Default, PartialEq, Eq)]
struct Record {
    count: usize,
    decision: Option<String>,
    rule: Option<String>,
    verb: Option<String>,
    uid: Option<String>,
    unit: Option<String>,
    invocation_id: Option<String>,
}

impl Outcome {
    fn name(self) -> &'static str {
        match self {
            Self::Allowed(_) => "allow",
            Self::Denied => "deny",
            Self::NotConnected => "no connection",
        }
    }
}

impl Tried {
    /// Where the caller chose its unit.
    fn is_recorded_with_its_unit(&self) -> bool {
        let unit = self.cell.caller.recorded_unit();
        unit.is_none() || self.recorded.unit.as_deref() == unit
    }

    /// Whose request it was, and what for, where there is a record at all.
    fn is_recorded_with_its_user(&self) -> bool {
        self.recorded.count == 0
            || (self.recorded.uid.as_ref() == Some(&self.uid) && self.recorded.verb.as_deref() == Some("get"))
    }

    /// A start of a unit where there is a unit, and none where there is none.
    fn is_recorded_with_its_start(&self) -> bool {
        let is_id = |id: &String| id.len() == 32 && id.bytes().all(|byte| byte.is_ascii_hexdigit());
        match (&self.cell.caller, &self.recorded.invocation_id) {
            (Caller::Service(..), id) if self.recorded.count > 0 => id.as_ref().is_some_and(is_id),
            (_, Some(id)) => self.recorded.unit.is_some() && is_id(id),
            (_, None) => true,
        }
    }

    fn is_as_expected(&self) -> bool {
        let (decision, rule) = match self.cell.expected {
            Outcome::Allowed(rule) => (Some("allow"), Some(rule)),
            Outcome::Denied => (Some("deny"), None),
            Outcome::NotConnected => (None, None),
        };
        self.observed == Some(self.cell.expected.name())
            && self.recorded.count == usize::from(decision.is_some())
            && self.recorded.decision.as_deref() == decision
            && self.recorded.rule.as_deref() == rule
            && self.is_recorded_with_its_unit()
            && self.is_recorded_with_its_user()
            && self.is_recorded_with_its_start()
    }
}

#[test]
fn who_gets_what_is_what_the_rules_say() {
    let Some(host) = Host::boot() else { return };
    host.start_provider();
    prepare(&host.machine);
    let mut tried = try_all(&host, "");
    // The same cells over HTTP: the program of all callers is another one, and all else is the same.
    for program in ["/usr/bin/tokenctl", "/usr/bin/lookalike"] {
        host.machine.check(&["install", "-m", "0755", "/usr/bin/http_caller", program]);
    }
    host.machine.check(&["systemctl", "stop", "tokend.service"]);
    host.machine.check(&["systemctl", "start", "tokend-http.socket"]);
    tried.extend(try_all(&host, "http-"));
    // Whatever was counted is written when the daemon stops: by then there is still one record for each decision.
    host.machine.check(&["systemctl", "restart", "tokend"]);
    for cell in &mut tried {
        cell.recorded.count = Record::of(&host.machine, &cell.token).map_or(0, |found| found.count);
    }
    let wrong: Vec<String> = tried.iter().filter(|cell| !cell.is_as_expected()).map(Tried::row).collect();
    assert!(wrong.is_empty(), "not as expected:\n{}", wrong.concat());
    host.stop_cleanly();
}

/// Tries all cells. The names of their tokens begin with `prefix`.
fn try_all(host: &Host, prefix: &str) -> Vec<Tried> {
    let mut tried = Vec::new();
    for mut phase in phases() {
        for (token, _) in &mut phase.cells {
            token.insert_str(0, prefix);
        }
        configure(host, &phase);
        let cells = phase.cells.into_iter();
        let done: Vec<Tried> = cells.map(|(token, cell)| try_out(&host.machine, token, cell)).collect();
        show(&format!("{prefix}{}", phase.name), &done);
        tried.extend(done);
    }
    tried
}

fn phases() -> [Phase; 4] {
    const TRACE: &str = "AmbientCapabilities=CAP_SYS_PTRACE\nCapabilityBoundingSet=CAP_SYS_PTRACE";
    [
        Phase::new("as installed", "", "", "alice", cells::of_rules()),
        Phase::new("root = \"deny\"", "", "[admin]\nroot = \"deny\"\n", "alice", cells::of_root_denied()),
        Phase::new("CAP_SYS_PTRACE", TRACE, "", "alice", cells::of_executables()),
        Phase::new("PrivateUsers=yes", "PrivateUsers=yes", "", "root", cells::of_users_who_are_not_told()),
    ]
}

impl Phase {
    fn new(
        name: &'static str,
        directives: &'static str,
        settings: &'static str,
        witness: &'static str,
        cells: Vec<Cell>,
    ) -> Self {
        // Names that say which phase it was.
        let phase: String = name.chars().filter(char::is_ascii_alphabetic).take(9).collect();
        let named = |(number, cell)| (format!("{}-{number:02}", phase.to_lowercase()), cell);
        Self {
            name,
            directives,
            settings,
            witness,
            cells: cells.into_iter().enumerate().map(named).collect(),
        }
    }
}

/// Users, and what their callers need.
fn prepare(machine: &Machine) {
    machine.check(&["groupadd", "payments"]);
    machine.check(&["useradd", "--no-create-home", "--groups", "tokend,payments", "dave"]);
    machine.check(&["useradd", "--no-create-home", "--groups", "tokend", "--uid", "3001", "erin"]);
    machine.check(&["install", "-m", "0755", "/usr/bin/tokenctl", "/usr/bin/lookalike"]);
    for user in ["alice", "bob"] {
        let uid = machine.check(&["id", "-u", user]);
        machine.check(&["systemctl", "start", &format!("user@{}.service", uid.trim())]);
    }
}

/// Puts a token for each cell in force, in the phase's sandbox.
fn configure(host: &Host, phase: &Phase) {
    let mut more = phase.settings.to_owned();
    for (token, cell) in &phase.cells {
        let _ = writeln!(more, "[token.{token}]\nprovider = \"psb\"\nallow = [{}]", cell.allow);
    }
    host.configure(&more);
    let dropin = format!("[Service]\n{}\n", phase.directives);
    host.machine.write("/etc/systemd/system/tokend.service.d/phase.conf", &dropin);
    host.machine.check(&["systemctl", "daemon-reload"]);
    host.machine.check(&["systemctl", "restart", "tokend"]);
    host.token_for(phase.witness, "psb");
}

fn try_out(machine: &Machine, token: String, cell: Cell) -> Tried {
    let got = cell.caller.ask(machine, &token);
    let observed = match got.code {
        0 => Some("allow"),
        4 => Some("deny"),
        3 => Some("no connection"),
        _ => None,
    };
    assert!(observed.is_some(), "{token}: {got:?}");
    let recorded = match observed {
        Some("no connection") => Record::default(),
        _ => wait::until(&format!("a record about {token}"), || Record::of(machine, &token)),
    };
    let uid = machine.check(&["id", "-u", cell.caller.user()]).trim().to_owned();
    Tried { token, cell, uid, observed, recorded }
}

impl Record {
    /// What a search by field finds.
    fn of(machine: &Machine, token: &str) -> Option<Self> {
        let found = machine.journal(&["-u", "tokend", "--output=json", &format!("TOKEND_TOKEN={token}")]);
        let entries: Vec<Value> = found.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
        let last = entries.last()?;
        let field = |name: &str| last[name].as_str().map(ToOwned::to_owned);
        Some(Self {
            count: entries.len(),
            decision: field("TOKEND_DECISION"),
            rule: field("TOKEND_RULE"),
            verb: field("TOKEND_VERB"),
            uid: field("TOKEND_UID"),
            unit: field("TOKEND_UNIT"),
            invocation_id: field("TOKEND_INVOCATION_ID"),
        })
    }
}

impl Tried {
    fn row(&self) -> String {
        let record = &self.recorded;
        let text = |field: &Option<String>| field.clone().unwrap_or_else(|| "-".to_owned());
        format!(
            "{:12} {:42} {:62} {:13} {:13} {} record, uid {:5} {}\n",
            self.token,
            self.cell.caller.to_string(),
            self.cell.allow,
            self.cell.expected.name(),
            self.observed.unwrap_or("?"),
            record.count,
            text(&record.uid),
            text(&record.rule)
        )
    }
}

#[expect(clippy::print_stdout, reason = "the matrix is for reading")]
fn show(phase: &str, tried: &[Tried]) {
    let equal = tried.iter().filter(|cell| cell.is_as_expected()).count();
    let rows: String = tried.iter().map(Tried::row).collect();
    println!("--- {phase}: {equal} of {} as expected\n{rows}", tried.len());
}
