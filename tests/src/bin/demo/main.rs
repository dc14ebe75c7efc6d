//! `cargo demo`: five providers on loopback, a real daemon, real clients, from the first token request to the
//! accepted API call. Nothing of it needs the network or leaves anything behind.

mod renewal;
mod screen;

use std::panic::{self, AssertUnwindSafe};
use std::process::ExitCode;
use std::time::Duration;

use tokend_tests::daemon::Launch;
use tokend_tests::{Home, Kind, RealDaemon, StandIn, http, program, secrets};

use screen::{Ink, Screen};

/// The provider whose tokens live so shortly that one can watch them being renewed.
const SHORT_LIVED: Kind = Kind::PartnerApi;
const SHORT_LIFE: Duration = Duration::from_secs(3);

const NEXT: [(&str, &str); 4] = [
    ("tokend check --config FILE", "every fault of a configuration, each with its line"),
    ("systemd/tokend.toml", "a configuration to begin with"),
    ("systemd/install", "programs, units and user; then `systemctl start tokend`"),
    ("tests/run", "all suites, on a real systemd and against a certified server too"),
];

/// What the demonstration works with.
struct Stage {
    daemon: RealDaemon,
    standins: Vec<StandIn>,
    home: Home,
}

fn main() -> ExitCode {
    let screen = Screen::new();
    // A step that panics is reported as any other that fails.
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
        screen.item(Ink::Faint, "cargo build --bin tokend --bin tokenctl");
        screen.item(Ink::Plain, &program::tokend().display().to_string());
        screen.item(Ink::Plain, &program::tokenctl().display().to_string());
        Ok(())
    })?;
    let stage = step("starting the providers and the daemon", || start(screen))?;
    let played = play(screen, &stage);
    let log = stage.daemon.log();
    played
        .and_then(|()| step("stopping", || finish(screen, stage)))
        .map_err(|reason| format!("{reason}\n\nthe daemon's log:\n{log}"))?;
    screen.heading("Next");
    for (what, why) in NEXT {
        screen.item(Ink::Plain, &format!("{what:<46}{}", screen.paint(Ink::Faint, why)));
    }
    Ok(())
}

fn play(screen: &Screen, stage: &Stage) -> Result<(), String> {
    step("getting the tokens and calling the APIs", || call_all(screen, stage))?;
    step("showing the status", || {
        screen.heading("$ tokenctl status");
        let status = stage.daemon.tokenctl().run(&["status"]);
        screen.quote(&status.stdout);
        if status.code == 0 { Ok(()) } else { Err(status.stderr) }
    })?;
    step("watching a renewal", || renewal::watch(screen, &stage.daemon, SHORT_LIVED.token_name(), SHORT_LIFE))
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
    let (home, standins) = (Home::new(), Vec::from(Kind::ALL.map(StandIn::start)));
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
    let daemon = Launch::new(&home).try_start()?;
    screen.heading("Daemon");
    let told = [("configuration", home.config()), ("socket", home.socket())];
    for (what, path) in told {
        screen.item(
            Ink::Plain,
            &format!("{what:<30}{}", screen.paint(Ink::Faint, &path.display().to_string())),
        );
    }
    Ok(Stage { daemon, standins, home })
}

fn call_all(screen: &Screen, stage: &Stage) -> Result<(), String> {
    screen.heading("Tokens and API calls");
    screen.item(Ink::Faint, &format!("{:<12}{:<30}{:<12}API", "tokenctl get", "", "token"));
    for standin in &stage.standins {
        call(screen, stage, standin, standin.kind().token_name())?;
        if standin.kind() == Kind::EconnectPsb {
            call(screen, stage, standin, "psb-user")?;
        }
    }
    Ok(())
}

/// Gets a token by `tokenctl get`, and calls the API with what `tokenctl headers` gives.
fn call(screen: &Screen, stage: &Stage, standin: &StandIn, name: &str) -> Result<(), String> {
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
    let verdict = if answer.status == 200 { Ink::Good } else { Ink::Bad };
    let (title, start) = (standin.kind().title(), beginning(got.stdout.trim_end()));
    let status = screen.paint(verdict, &answer.status.to_string());
    screen.item(Ink::Plain, &format!("{name:<12}{title:<30}{start:<12}{status}"));
    if answer.status == 200 {
        Ok(())
    } else {
        Err(format!("the API answered {}: {}", answer.status, answer.body))
    }
}

/// As much of a token as tells that there is one. Even a made-up one is not shown in full.
fn beginning(token: &str) -> String {
    token.chars().take(6).chain(['…']).collect()
}

fn finish(screen: &Screen, stage: Stage) -> Result<(), String> {
    let Stage { mut daemon, standins, home } = stage;
    let code = daemon.stop();
    if code != 0 {
        return Err(format!("tokend ended with {code}"));
    }
    if home.socket().exists() {
        return Err("tokend left its socket behind".to_owned());
    }
    let log = daemon.log();
    let found = secrets::found_in(&log);
    if !found.is_empty() {
        return Err(format!("the daemon's log shows secrets: {}", found.join(", ")));
    }
    let issued: usize = standins.iter().map(StandIn::issued).sum();
    screen.heading("Done");
    screen.item(Ink::Good, &format!("the daemon stopped in good order; {issued} tokens were issued in all"));
    screen.item(
        Ink::Good,
        &format!("none of them, and no secret, is in the {} lines of its log", log.lines().count()),
    );
    Ok(())
}
