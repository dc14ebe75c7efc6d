//! What happens when things go wrong: a provider fails, a stranger asks, the daemon is killed, a secret is rotated.

use nix::sys::signal::Signal;
use tokend_tests::tokenctl::User;
use tokend_tests::{Kind, StandIn};

use crate::screen::{Ink, Screen};
use crate::{Stage, beginning, call};

/// The token of these scenes.
const PSB: Kind = Kind::EconnectPsb;
const NAME: &str = "psb";

/// A user id that no distribution assigns, for somebody whom no rule lets in.
const STRANGER: u32 = 61_001;

/// The token endpoint fails. The token that is held is served all the same.
pub(crate) fn outage(screen: &Screen, stage: &Stage) -> Result<(), String> {
    screen.heading("The provider fails: every token request is answered with status 503");
    let standin = stage.standin(PSB)?;
    let tokenctl = stage.daemon.tokenctl();
    standin.set_down(true);
    let refreshed = tokenctl.run(&["refresh", NAME]);
    if refreshed.code == 0 {
        return Err("a new token came from a provider that fails".to_owned());
    }
    screen.item(Ink::Faint, "tokenctl refresh psb: fails, as it must; the token that is held stays");
    call(screen, stage, standin, NAME)?;
    screen.item(Ink::Good, "callers notice nothing while the token is valid");
    standin.set_down(false);
    refresh(stage)
}

/// A caller for whom there is no rule.
pub(crate) fn stranger(screen: &Screen, stage: &Stage) -> Result<(), String> {
    screen.heading("A stranger asks: no rule in `allow` matches");
    let tokenctl = stage.daemon.tokenctl();
    if nix::unistd::geteuid().is_root() {
        let refused = tokenctl.as_user(User::new(STRANGER)).run(&["get", NAME]);
        expect_refusal(refused.code, &refused.stderr)?;
        screen.item(Ink::Faint, &format!("tokenctl get psb, as user {STRANGER}"));
        screen.quote(&refused.stderr);
        stage.daemon.wait_for_log(&["deny", &STRANGER.to_string(), NAME]);
        screen.item(Ink::Good, "refused by default, and the refusal is in the audit log with its reason");
        return Ok(());
    }
    // Only root can become another user. The daemon explains the same decision without one.
    let explained = tokenctl.run(&["explain", NAME, "--user", "nobody"]);
    expect_refusal(explained.code, &explained.stderr)?;
    screen.item(Ink::Faint, "tokenctl explain psb --user nobody");
    screen.quote(&explained.stdout);
    screen.item(Ink::Good, "refused by default");
    Ok(())
}

/// The daemon is killed. Its tokens outlive it, in memory that the service manager keeps.
pub(crate) fn crash(screen: &Screen, stage: &mut Stage) -> Result<(), String> {
    screen.heading("The daemon is killed (kill -9) and started again");
    screen.item(Ink::Faint, "a small service manager does here what systemd does on a server");
    let token_before = stage.daemon.tokenctl().get(NAME);
    let requests_before = token_requests(stage.standin(PSB)?);
    stage.daemon.signal(Signal::SIGKILL);
    stage.daemon.wait_for_exit();
    // The manager holds the socket: a caller that connects meanwhile waits and is not refused.
    stage.daemon = stage.manager.launch(&stage.home).try_start()?;
    let standin = stage.standin(PSB)?;
    let token = call(screen, stage, standin, NAME)?;
    if token != token_before || token_requests(standin) != requests_before {
        return Err("the token was lost, or asked for again".to_owned());
    }
    screen.item(Ink::Good, "the same token, and the provider was asked nothing");
    Ok(())
}

/// The client secret is replaced at the provider and in its file.
pub(crate) fn rotation(screen: &Screen, stage: &Stage) -> Result<(), String> {
    screen.heading("A secret is rotated: new at the provider, new in its file, no reload");
    let standin = stage.standin(PSB)?;
    let before = stage.daemon.tokenctl().get(NAME);
    stage.home.secret("psb-client-secret", &standin.replace_secret());
    screen.item(Ink::Faint, "tokenctl refresh psb");
    refresh(stage)?;
    let after = call(screen, stage, standin, NAME)?;
    if before == after {
        return Err("no new token came".to_owned());
    }
    let (before, after) = (beginning(&before), beginning(&after));
    screen.item(Ink::Good, &format!("the new secret brought {after} in place of {before}"));
    Ok(())
}

fn refresh(stage: &Stage) -> Result<(), String> {
    let refreshed = stage.daemon.tokenctl().run(&["refresh", NAME]);
    if refreshed.code == 0 { Ok(()) } else { Err(refreshed.stderr) }
}

fn expect_refusal(code: i32, stderr: &str) -> Result<(), String> {
    if code == 4 { Ok(()) } else { Err(format!("exit code {code} where a refusal was expected: {stderr}")) }
}

fn token_requests(standin: &StandIn) -> usize {
    standin.issued() + standin.refusals().len()
}
