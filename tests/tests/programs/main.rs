//! Real programs that get their tokens from tokend. `tests/run` installs them.

#![expect(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::unwrap_used,
    reason = "a panic is how a test fails"
)]

mod git;
mod kubectl;
mod registry;

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, poll};
use nix::pty::openpty;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokend_tests::daemon::Launch;
use tokend_tests::standin::{Kind, StandIn};
use tokend_tests::test_support::{Scene, token_table};
use tokend_tests::{
    Answer, Finished, Provider, RealDaemon, TestDir, process, program, requirement, secrets, wait,
};

const LIMIT: Duration = Duration::from_secs(120);

/// A provider, and the newest of its tokens, the only one that a server of a test accepts.
fn provider_of_one_token() -> (Provider, Arc<Mutex<String>>) {
    let accepted = Arc::new(Mutex::new(String::new()));
    let newest = Arc::clone(&accepted);
    let provider = Provider::start_answering(move |_| {
        let token = secrets::invent("access-token");
        token.clone_into(&mut newest.lock().unwrap());
        Answer::this_token(&token, 3600)
    });
    (provider, accepted)
}

/// Runs `git credential`, which asks the helpers, without the settings of this machine and user.
fn git_credential(home: &Path, operation: &str, question: &str) -> Finished {
    fs::write(home.join("question"), question).expect("the question can be written");
    let mut command = Command::new("sh");
    command.args(["-c", "git credential \"$1\" <question", "sh", operation]).current_dir(home);
    command.env("HOME", home).env("GIT_CONFIG_NOSYSTEM", "1").env("GIT_TERMINAL_PROMPT", "0");
    process::run(&mut command, LIMIT)
}

#[test]
fn git_asks_for_a_token_and_reports_one_that_a_server_refuses() {
    if !requirement::program("git") {
        return;
    }
    let scene = Scene::start(Provider::start(), &token_table("t", "allow = [\"any\"]"));
    let home = scene.home.path();
    let (program, socket) = (program::tokenctl(), scene.socket());
    let helper = format!("!{} --socket {} helper git t", program.display(), socket.display());
    fs::write(
        home.join(".gitconfig"),
        format!("[credential \"https://git.example\"]\nhelper = \"{helper}\"\n"),
    )
    .expect("git can be configured");
    let token = scene.tokenctl().get("t");
    let question = "capability[]=authtype\nprotocol=https\nhost=git.example\n";

    let credential = git_credential(home, "fill", question).expect_success();
    let has = |line: String| credential.lines().any(|known| known == line);
    // Since 2.46 git sends a Bearer token.
    let is_bearer = has("authtype=Bearer".to_owned()) && has(format!("credential={token}"));
    assert!(is_bearer || has(format!("password={token}")), "{credential}");
    let elsewhere = git_credential(home, "fill", "protocol=https\nhost=other.example\n");
    assert!(elsewhere.code != 0 && elsewhere.stdout.is_empty(), "the token is for one host: {elsewhere:?}");

    git_credential(home, "approve", &credential).expect_success();
    git_credential(home, "reject", &credential).expect_success();
    scene.daemon.wait_for_log(&["verb=\"reject\""]);
}

/// A shell that finds `tokenctl` and the daemon, and none of the user's settings.
fn shell(name: &str, scene: &Scene) -> Command {
    let programs = program::tokenctl().parent().expect("it is in a directory").to_owned();
    let path = std::env::var("PATH").expect("a machine has programs");
    let mut command = Command::new(name);
    command.env("PATH", format!("{}:{path}", programs.display())).env("HOME", scene.home.path());
    command.env("TOKEND_SOCKET", scene.socket()).env("TERM", "xterm");
    command
}

#[test]
fn fish_completes_the_names_of_tokens() {
    if !requirement::program("fish") {
        return;
    }
    let scene = Scene::start(Provider::start(), &(token_table("psb", "") + &token_table("bnp", "")));
    let completed = |words: &str| {
        let mut fish = shell("fish", &scene);
        fish.args(["-c", &format!("tokenctl completions fish | source; complete -C '{words}'")]);
        process::run(&mut fish, LIMIT).expect_success()
    };
    for command in ["get", "headers", "exec", "sync", "status", "watch", "explain", "helper kubectl"] {
        assert_eq!(completed(&format!("tokenctl {command} p")), "psb\n", "{command}");
    }
    let all = completed("tokenctl get ");
    assert!(all.contains("bnp\n") && all.contains("psb\n"), "{all}");
    assert!(!completed("tokenctl version p").contains("psb"));
}

/// The output of a shell on its terminal after these keys.
fn typed(command: &mut Command, keys: &str, until: &str) -> String {
    let pty = openpty(None, None).expect("there is a terminal");
    let side = || Stdio::from(pty.slave.try_clone().expect("a terminal can be shared"));
    let child = command.stdin(side()).stdout(side()).stderr(side()).spawn().expect("the shell starts");
    let _child = Killed(child);
    let mut terminal = File::from(pty.master);
    terminal.write_all(keys.as_bytes()).expect("a terminal takes keys");
    let mut shown = Vec::new();
    while !String::from_utf8_lossy(&shown).contains(until) {
        let ready = poll(&mut [PollFd::new(terminal.as_fd(), PollFlags::POLLIN)], 60_000_u16);
        assert_eq!(ready, Ok(1), "{}", String::from_utf8_lossy(&shown));
        let mut bytes = [0; 1024];
        let read = terminal.read(&mut bytes).unwrap_or_default();
        assert!(read > 0, "{}", String::from_utf8_lossy(&shown));
        shown.extend(bytes.iter().take(read));
    }
    String::from_utf8_lossy(&shown).into_owned()
}

/// A program that is killed when dropped.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn zsh_completes_the_names_of_tokens() {
    if !requirement::program("zsh") || !requirement::program("setsid") {
        return;
    }
    let scene = Scene::start(Provider::start(), &(token_table("psb", "") + &token_table("bnp", "")));
    for command in ["get", "headers", "exec", "sync", "status", "watch", "explain", "helper kubectl"] {
        let mut zsh = shell("setsid", &scene);
        zsh.args(["--ctty", "zsh", "-f", "-i"]);
        // The keys after Tab put the completed line into an `echo`.
        let keys = format!(
            "autoload -Uz compinit; compinit -u -D; source <(tokenctl completions zsh); PS1=\n\
             tokenctl {command} p\t\x01echo \"<\x05>\"\n"
        );
        let shown = typed(&mut zsh, &keys, ">\r\n");
        assert!(shown.contains(&format!("\n<tokenctl {command} psb")), "{shown}");
    }
}

/// A bank's daemon, which speaks HTTP too, for everybody.
struct Bank {
    daemon: RealDaemon,
    http: PathBuf,
    provider: StandIn,
    home: TestDir,
}

impl Bank {
    fn open() -> Self {
        let (home, provider) = (TestDir::new(), StandIn::start(Kind::AritmaPsd2));
        home.configure("", &provider.configuration(&home, "allow = [\"any\"]"));
        let http = home.path().join("http.sock");
        let path = http.to_str().expect("the path of a test is text");
        let daemon = Launch::new(&home).argument("--http-socket").argument(path).start();
        daemon.tokenctl().get("aritma");
        Self { daemon, http, provider, home }
    }
}

fn curl(socket: &Path, url: &str) -> Finished {
    let mut command = Command::new("curl");
    command.args(["--silent", "--show-error", "--fail-with-body", "--unix-socket"]).arg(socket).arg(url);
    process::run(&mut command, LIMIT)
}

#[test]
fn curl_gets_a_token() {
    if !requirement::program("curl") {
        return;
    }
    let bank = Bank::open();
    let token = bank.daemon.tokenctl().get("aritma");
    let got = curl(&bank.http, "http://localhost/v1/tokens/aritma").expect_success();
    assert!(got.contains(&format!("\"access_token\":\"{token}\"")), "{got}");
}

#[test]
fn nginx_adds_the_token_to_requests_that_come_without_one() {
    if !requirement::program("curl") || !requirement::program("nginx") {
        return;
    }
    let bank = Bank::open();
    let (home, api, http) = (bank.home.path(), bank.provider.api(), bank.http.display());
    let configuration = format!(
        "daemon off;\nuser root;\npid {home}/nginx.pid;\nerror_log {home}/nginx.log;\nevents {{}}\nhttp {{\n\
         access_log off;\nclient_body_temp_path {home};\nproxy_temp_path {home};\nfastcgi_temp_path {home};\n\
         uwsgi_temp_path {home};\nscgi_temp_path {home};\nserver {{\nlisten unix:{home}/nginx.sock;\n\
         location /api/ {{\nauth_request /token;\nauth_request_set $authorization $upstream_http_authorization;\n\
         proxy_set_header Authorization $authorization;\nproxy_set_header Accept \"\";\n\
         proxy_set_header User-Agent \"\";\nproxy_pass {api};\n}}\n\
         location = /token {{\ninternal;\nproxy_pass http://unix:{http}:/v1/auth/aritma;\n\
         proxy_pass_request_headers off;\n\
         proxy_pass_request_body off;\nproxy_set_header Content-Length \"\";\n}}\n}}\n}}\n",
        home = home.display()
    );
    fs::write(home.join("nginx.conf"), configuration).expect("nginx can be configured");
    let mut command = Command::new("nginx");
    command.arg("-c").arg(home.join("nginx.conf")).arg("-e").arg(home.join("nginx.log"));
    let _nginx = Ended(command.stdin(Stdio::null()).spawn().expect("nginx starts"));
    let socket = home.join("nginx.sock");
    wait::until("nginx", || UnixStream::connect(&socket).ok());
    let before = bank.provider.api_calls();
    let answered = curl(&socket, "http://localhost/api/");
    assert_eq!(answered.code, 0, "{answered:?} {:?}", fs::read_to_string(home.join("nginx.log")));
    assert_eq!(bank.provider.api_calls(), before + 1, "the API took the token");
    let inside = curl(&socket, "http://localhost/token");
    assert!(inside.code != 0 && !inside.stdout.contains("Bearer"), "the token stays inside: {inside:?}");
}

/// A program that is ended when this is dropped.
struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        // It ends its workers too (`SIGTERM`).
        let pid = Pid::from_raw(i32::try_from(self.0.id()).unwrap_or_default());
        let _ = kill(pid, Signal::SIGTERM);
        let _ = self.0.wait();
    }
}
