//! `cargo demo`: the main job end to end, on loopback: five providers, a real daemon, real clients, and what happens when a
//! provider fails, a stranger asks, the daemon is killed or a secret is rotated. It needs no network and leaves nothing behind.

mod renewal;
mod scenes;
mod screen;

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::panic::{self, AssertUnwindSafe};
use std::process::ExitCode;
use std::time::Duration;

use tokend_tests::{Kind, RealDaemon, ServiceManager, StandIn, TestDir, http, program, secrets};

use screen::{Ink, Screen};

/// The provider whose tokens live so briefly that one can watch them being renewed.
const SHORT_LIVED: Kind = Kind::PartnerApi;
const SHORT_LIFE: Duration = Duration::from_secs(3);

const NEXT: [(&str, &str); 4] = [
    ("tokend check --config FILE", "every fault of a configuration, each with its line"),
    ("systemd/tokend.toml", "a configuration to begin with"),
    ("systemd/install", "programs, units and user; then `systemctl start tokend`"),
    ("tests/run", "all tests, on a real systemd and against a real authorization server"),
];

/// What the scenes work with.
struct Stage {
    daemon: RealDaemon,
    manager: ServiceManager,
    standins: Vec<StandIn>,
    home: TestDir,
}

impl Stage {
    fn standin(&self, kind: Kind) -> Result<&StandIn, String> {
        self.standins.iter().find(|standin| standin.kind() == kind).ok_or_else(|| format!("no {kind:?} here"))
    }

    /// How many tokens all providers have issued so far.
    fn issued(&self) -> usize {
        self.standins.iter().map(StandIn::issued).sum()
    }
}

fn main() -> ExitCode {
    let screen = Screen::new();
    // A step that panics is reported as a step that failed.
    panic::set_hook(Box::new(|_| ()));
    screen::line(&screen.paint(Ink::Strong, "tokend: one daemon, five providers, no secret in any service"));
    match perform(&screen) {
        Ok(()) => ExitCode::SUCCESS,
        Err(reason) => {
            screen::line("");
            screen.item(Ink::Bad, &format!("failed: {reason}"));
            ExitCode::FAILURE
        }
    }
}

fn perform(screen: &Screen) -> Result<(), String> {
    step("building the programs", || {
        screen.heading("Programs");
        screen.item(Ink::Faint, "building tokend and tokenctl (a minute or two the first time)");
        let workspace = program::workspace();
        for program in [program::tokend(), program::tokenctl()] {
            screen.item(
                Ink::Plain,
                &program.strip_prefix(&workspace).unwrap_or(&program).display().to_string(),
            );
        }
        Ok(())
    })?;
    let mut stage = step("starting the providers and the daemon", || start(screen))?;
    let played = play(screen, &mut stage);
    let log = stage.daemon.log();
    played
        .and_then(|()| step("stopping", || finish(screen, stage)))
        .map_err(|reason| format!("{reason}\n\nthe daemon's log:\n{log}"))?;
    screen.heading("Next");
    for (what, why) in NEXT {
        screen.item(Ink::Plain, &format!("{what:<32}{}", screen.paint(Ink::Faint, why)));
    }
    Ok(())
}

fn play(screen: &Screen, stage: &mut Stage) -> Result<(), String> {
    step("getting the tokens and calling the APIs", || call_all(screen, stage))?;
    step("showing the status", || {
        screen.heading("$ tokenctl status");
        let status = stage.daemon.tokenctl().run(&["status"]);
        screen.quote(&status.stdout);
        if status.code == 0 { Ok(()) } else { Err(status.stderr) }
    })?;
    step("watching a renewal", || {
        renewal::watch(screen, &stage.daemon, SHORT_LIVED.token_name(), SHORT_LIFE)
    })?;
    step("a provider that fails", || scenes::outage(screen, stage))?;
    step("a stranger", || scenes::stranger(screen, stage))?;
    step("killing the daemon", || scenes::crash(screen, stage))?;
    step("rotating a secret", || scenes::rotation(screen, stage))
}

/// Runs a step; its failure and its panic alike name it.
fn step<T>(name: &str, work: impl FnOnce() -> Result<T, String>) -> Result<T, String> {
    let outcome = panic::catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|payload| {
        let text = payload.downcast_ref::<String>().cloned();
        Err(text.or_else(|| payload.downcast_ref().map(|text: &&str| (*text).to_owned())).unwrap_or_default())
    });
    outcome.map_err(|reason| format!("{name}: {}", reason.trim_end()))
}

fn start(screen: &Screen) -> Result<Stage, String> {
    let (home, standins) = (TestDir::new(), Vec::from(Kind::ALL.map(StandIn::start)));
    screen.heading("Providers");
    for standin in &standins {
        let (title, endpoint) = (standin.kind().title(), standin.token_endpoint());
        if standin.kind() == SHORT_LIVED {
            standin.set_lifetime(SHORT_LIFE);
        }
        screen.item(Ink::Plain, &format!("{title:<30}{}", screen.paint(Ink::Faint, &endpoint)));
    }
    let text: String = standins.iter().map(|standin| standin.configuration(&home, "")).collect();
    home.configure("", &text);
    let manager = ServiceManager::new(&home);
    // As for the members of group tokend on a server: to connect is not to be given anything.
    let everybody = Permissions::from_mode(0o666);
    fs::set_permissions(manager.socket(), everybody).map_err(|error| format!("the socket: {error}"))?;
    let daemon = manager.launch(&home).try_start()?;
    screen.heading("Daemon");
    for (what, path) in [("configuration", home.config()), ("socket", manager.socket().to_owned())] {
        let path = path.display().to_string();
        screen.item(Ink::Plain, &format!("{what:<30}{}", screen.paint(Ink::Faint, &path)));
    }
    Ok(Stage { daemon, manager, standins, home })
}

fn call_all(screen: &Screen, stage: &Stage) -> Result<(), String> {
    screen.heading("Tokens and API calls");
    screen.item(Ink::Faint, &format!("{:<12}{:<30}{:<12}API", "tokenctl get", "", "token"));
    for standin in &stage.standins {
        let name = standin.kind().token_name();
        call(screen, stage, standin, name)?;
        if standin.kind() == Kind::EconnectPsb {
            call(screen, stage, standin, "psb-user")?;
        }
    }
    Ok(())
}

/// Gets a token, calls the API with it, and shows both on one line. Returns the token.
fn call(screen: &Screen, stage: &Stage, standin: &StandIn, name: &str) -> Result<String, String> {
    let tokenctl = stage.daemon.tokenctl();
    let got = tokenctl.run(&["get", name]);
    if got.code != 0 {
        return Err(format!("tokenctl get {name}: {}{}", got.stderr, standin.refusals().join("; ")));
    }
    let mut arguments = vec!["headers", name];
    for header in standin.kind().caller_headers() {
        arguments.extend(["--header", header]);
    }
    let headers = tokenctl.run(&arguments);
    if headers.code != 0 {
        return Err(format!("tokenctl headers {name}: {}", headers.stderr));
    }
    let answer = http::get(&standin.api(), &http::header_lines(&headers.stdout))
        .map_err(|error| format!("the API of {}: {error}", standin.kind().title()))?;
    if answer.status != 200 {
        return Err(format!("the API answered {}: {}", answer.status, answer.body));
    }
    let token = got.stdout.trim_end();
    let (title, start, status) = (standin.kind().title(), beginning(token), screen.paint(Ink::Good, "200"));
    screen.item(Ink::Plain, &format!("{name:<12}{title:<30}{start:<12}{status}"));
    Ok(token.to_owned())
}

/// The first characters of a token. Even a made-up token is not shown in full.
fn beginning(token: &str) -> String {
    token.chars().take(6).chain(['…']).collect()
}

fn finish(screen: &Screen, stage: Stage) -> Result<(), String> {
    let issued = stage.issued();
    let Stage { mut daemon, .. } = stage;
    let code = daemon.stop();
    if code != 0 {
        return Err(format!("tokend ended with {code}"));
    }
    let log = daemon.log();
    let found = secrets::found_in(&log);
    if !found.is_empty() {
        return Err(format!("the daemon's log shows secrets: {}", found.join(", ")));
    }
    let lines = log.lines().count();
    screen.heading("Done");
    screen.item(Ink::Good, &format!("the daemon stopped in good order; {issued} tokens were issued in all"));
    screen.item(Ink::Good, &format!("none of them, and no secret, is in the {lines} lines of its log"));
    Ok(())
}
