//! What a reader of the daemon's memory finds at rest: no client secret, password or header secret, and of tokens
//! those alone that are held, once each.

use std::fs;
use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::json;
use tokend_tests::daemon::Launch;
use tokend_tests::memory::{self, Findings, Needles};
use tokend_tests::notify::Manager;
use tokend_tests::raw_peer::get;
use tokend_tests::test_support::token_of;
use tokend_tests::{
    Answer, Authority, Flaw, Provider, RawPeer, RealDaemon, Recorded, TestDir, requirement, secrets, wait,
};

/// A daemon with tokens of a provider with TLS, and every secret that it has to do with.
struct Scene {
    daemon: RealDaemon,
    provider: Provider,
    authority: Authority,
    home: TestDir,
    manager: Manager,
    needles: Needles,
    /// The tokens that the daemon holds, by name.
    held: Vec<(&'static str, String)>,
}

/// Answers with a token, or, to one client, with a refusal that repeats what was sent.
fn answer(request: &Recorded) -> Answer {
    if request.field("client_id").as_deref() != Some("refused") {
        let token = Answer::token(3600);
        // What is unpacked goes through further buffers.
        return if request.field("client_id").as_deref() == Some("post") { token.gzipped() } else { token };
    }
    let body = json!({ "error": "invalid_client", "error_description": request.field("client_secret") });
    Answer::json(401, &body)
}

impl Scene {
    fn start(tokens: &[&'static str]) -> Self {
        let (home, authority) = (TestDir::new(), Authority::new());
        let provider = Provider::start_tls(authority.server(Flaw::None));
        provider.answer_with(answer);
        let mut needles = Needles::default();
        for name in ["api", "basic", "gone", "post", "refused", "password", "header", "state-key"] {
            let secret = secrets::invent(name);
            needles.add(&format!("secret {name}"), &secret);
            let _ = home.secret(name, &secret);
        }
        let credentials = home.path().join("credentials");
        fs::create_dir(&credentials).unwrap();
        fs::copy(home.path().join("password"), credentials.join("password")).unwrap();
        home.configure(&state_key(&home), &configuration(&home, &authority, &provider, tokens));
        let manager = Manager::listen(&home.path().join("notify"));
        let daemon = launch(&home, &manager).start();
        let mut scene = Self { daemon, provider, authority, home, manager, needles, held: Vec::new() };
        for name in tokens {
            scene.hold(name);
        }
        scene
    }

    /// Notes the token that the daemon holds under a name. A former one must not be found any more.
    fn hold(&mut self, name: &'static str) {
        let token = self.daemon.tokenctl().get(name);
        self.needles.add(&format!("token {}", &token[..32]), &token);
        self.held.retain(|(other, _)| *other != name);
        self.held.push((name, token));
    }

    /// Puts a configuration with these tokens in force.
    fn reload(&mut self, tokens: &[&str]) {
        let before = self.daemon.log().matches(" reloaded ").count();
        self.home.configure(
            &state_key(&self.home),
            &configuration(&self.home, &self.authority, &self.provider, tokens),
        );
        self.daemon.signal(Signal::SIGHUP);
        wait::until("the reload", || {
            (self.daemon.log().matches(" reloaded ").count() > before).then_some(())
        });
        self.held.retain(|(name, _)| tokens.contains(name));
    }

    /// Ends the daemon and starts another, which finds what is sealed on the disk.
    fn restart(&mut self) {
        assert_eq!(self.daemon.stop(), 0);
        self.daemon = launch(&self.home, &self.manager).start();
    }

    /// Waits until the daemon is at rest: of all secrets nothing is found but each held token, once in its memory and
    /// once in the memory that outlives it.
    #[expect(clippy::print_stdout, reason = "what was searched and found is for readers of the output")]
    fn assert_clean(&self, when: &str) {
        let mut last = None;
        let clean = wait::within(wait::PATIENCE, || {
            // A service manager that did not listen would hold the daemon up.
            self.manager.heard();
            let pid = self.daemon.pid();
            let found = [memory::search(pid, &self.needles), memory::search_files(pid, &self.needles)];
            let clean = found.iter().all(|findings| self.is_clean(findings));
            last = Some(found);
            clean.then_some(())
        });
        let [mapped, files] = last.expect("it is searched once at least");
        let held = self.held.len();
        assert!(clean.is_some(), "{when}, {held} tokens held\nmemory: {mapped}\nfiles: {files}");
        let (memory, files) = (mapped.searched / 1024, files.searched / 1024);
        println!(
            "{when}: {held} held tokens, each once in the memory ({memory} KiB) and once in what is kept beside it \
             ({files} KiB); of {} secrets and former tokens nothing",
            self.needles.secrets() - held
        );
        let mut on_disk = Findings::default();
        memory::search_directory(&self.home.path().join("state"), &self.needles, &mut on_disk);
        assert!(on_disk.searched > 0 && on_disk.total() == 0, "{when}, on disk: {on_disk}");
    }

    fn is_clean(&self, findings: &Findings) -> bool {
        let once = |(_, token): &(_, String)| findings.count(&format!("token {}, ", &token[..32])) == HALVES;
        self.held.iter().all(once) && findings.total() == HALVES * self.held.len()
    }
}

fn launch(home: &TestDir, manager: &Manager) -> Launch {
    let launch = Launch::new(home).env("CREDENTIALS_DIRECTORY", home.path().join("credentials"));
    launch.env("NOTIFY_SOCKET", manager.path())
}

/// Findings for each copy of a secret: its two halves are searched for separately.
const HALVES: usize = 2;

/// Tokens are to survive a reboot, so they are on disk as well, sealed.
fn state_key(home: &TestDir) -> String {
    format!("state_key = {{ file = \"{}\" }}", home.path().join("state-key").display())
}

/// The configuration with these tokens. Each has its secret kept and sent in another way.
fn configuration(home: &TestDir, authority: &Authority, provider: &Provider, tokens: &[&str]) -> String {
    let file = |name: &str| format!("{{ file = \"{}\" }}", home.path().join(name).display());
    let post = |name: &str| {
        format!("client_secret = {}\ntoken_endpoint_auth_method = \"client_secret_post\"", file(name))
    };
    let table = |name: &&str| {
        let (provider_lines, token_lines) = match *name {
            "api" => (post("api"), format!("headers = {{ X-Key = {} }}", file("header"))),
            "basic" => {
                let path = home.path().join("basic");
                let command = format!("client_secret = {{ command = [\"cat\", \"{}\"] }}", path.display());
                (command, String::new())
            }
            "pass" => ("token_endpoint_auth_method = \"none\"".to_owned(), PASSWORD.to_owned()),
            other => (post(other), String::new()),
        };
        format!(
            "[provider.{name}]\ntoken_endpoint = {:?}\nclient_id = {name:?}\nca_file = \"{}\"\n\
             {provider_lines}\n{}",
            provider.token_endpoint(),
            authority.ca_file().display(),
            token_of(name, name, &token_lines)
        )
    };
    tokens.iter().map(table).collect()
}

const PASSWORD: &str =
    "grant_type = \"password\"\nusername = \"u\"\npassword = { credential = \"password\" }";

#[test]
fn secrets_are_nowhere_in_memory_and_tokens_only_while_they_are_held() {
    if !requirement::root() {
        return;
    }
    let mut scene = Scene::start(&["api", "basic", "gone", "pass", "post"]);
    scene.assert_clean("at rest");

    let tokenctl = scene.daemon.tokenctl();
    for name in ["basic", "pass", "post"] {
        tokenctl.run(&["refresh", name]).expect_success();
        scene.hold(name);
    }
    scene.assert_clean("after tokens were renewed");

    tokenctl.run(&["headers", "api"]).expect_success();
    let mut idle = RawPeer::connect(scene.daemon.socket()).unwrap();
    let _ = idle.ask(1, get("api"));
    let mut deaf = RawPeer::connect(scene.daemon.socket()).unwrap();
    deaf.stream().set_write_timeout(Some(Duration::from_millis(200))).unwrap();
    (0..5000).take_while(|id| deaf.send(*id, get("post")).is_ok()).count();
    drop(deaf);
    scene.assert_clean("after hand-outs, one to a caller that stays and one to a caller that read nothing");

    scene.reload(&["api", "basic", "pass", "post", "refused"]);
    scene.daemon.tokenctl().run(&["get", "refused"]).expect_code(7);
    scene.assert_clean("after a token was removed and another was refused");
    drop(idle);

    let granted = |provider: &Provider| {
        let requests = provider.requests();
        requests.iter().filter(|request| request.field("client_id").as_deref() != Some("refused")).count()
    };
    let before = granted(&scene.provider);
    scene.restart();
    for (name, token) in &scene.held {
        assert_eq!(scene.daemon.tokenctl().get(name), *token);
    }
    assert_eq!(granted(&scene.provider), before, "no token is asked for again");
    scene.assert_clean("after a restart that found its tokens on the disk");
}
