//! `tokend init`: a token is set up in one command, or nothing is written.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use nix::poll::{PollFd, PollFlags, poll};
use nix::sys::signal::{Signal, kill};
use nix::sys::termios::{LocalFlags, tcgetattr};
use nix::unistd::Pid;
use tokend_tests::{Answer, Finished, Provider, TestDir, process, program, secrets, wait};

/// The longest wait for a question, in milliseconds.
const PATIENCE_MS: u16 = 60_000;

/// The directories of a host without a configuration.
struct Host {
    home: TestDir,
    provider: Provider,
    secret: String,
}

impl Host {
    fn new() -> Self {
        let host = Self {
            home: TestDir::new(),
            provider: Provider::start(),
            secret: secrets::invent("client-secret"),
        };
        let path = host.path("secret");
        fs::write(&path, &host.secret).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        host
    }

    fn path(&self, name: &str) -> PathBuf {
        self.home.path().join(name)
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(program::tokend());
        command.arg("init").args(args).arg("--config").arg(self.home.config());
        command.arg("--unit-dir").arg(self.path("unit.d")).arg("--secret-dir").arg(self.path("credstore"));
        command
    }

    /// Runs it with everything that it needs to know.
    fn init(&self, name: &str, more: &[&str]) -> Finished {
        let (endpoint, secret) = (self.provider.token_endpoint(), self.path("secret"));
        let mut command = self.command(&[name, "--provider", &endpoint, "--client-id", "me"]);
        command.arg("--secret-from").arg(secret).args(["--allow", "user:root", "--allow", "unit:a.service"]);
        let finished = process::run(command.args(more), wait::PATIENCE);
        secrets::assert_absent("standard output of tokend init", &finished.stdout);
        finished
    }

    /// All files, hidden ones too.
    fn files(&self) -> Vec<String> {
        let mut found = Vec::new();
        let mut folders = vec![self.home.path().to_owned()];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                let name = path.strip_prefix(self.home.path()).unwrap().to_str().unwrap().to_owned();
                if path.is_dir() {
                    folders.push(path);
                }
                found.push(name);
            }
        }
        found.sort();
        found
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap()
    }
}

#[test]
fn a_token_is_set_up_in_one_command() {
    let host = Host::new();
    let shown =
        host.init("psb", &["--auth-method", "client_secret_post", "--scope", "a b", "--fetch", "--yes"]);
    let shown = shown.expect_success();
    let dir = host.home.path().display().to_string();
    for part in [
        &format!("{dir}/unit.d/psb.conf:\n    [Service]\n    LoadCredential=psb.secret:{dir}/secret\n"),
        &format!("{dir}/tokend.toml.d/psb.toml:\n    [provider.psb]\n    token_endpoint = "),
        &format!("the secret goes to {}\n", host.provider.token_endpoint()),
        "no faults, 1 token(s)\nthe provider gave a token, valid for 1h\nwritten; next:\n    systemctl daemon-reload",
    ] {
        assert!(shown.contains(part), "{part}: {shown}");
    }
    let files =
        ["secret", "tokend.toml", "tokend.toml.d", "tokend.toml.d/psb.toml", "unit.d", "unit.d/psb.conf"];
    assert_eq!(host.files(), files);
    assert_eq!(host.read("unit.d/psb.conf"), format!("[Service]\nLoadCredential=psb.secret:{dir}/secret\n"));
    let config = host.read("tokend.toml.d/psb.toml");
    assert!(config.ends_with("scope = \"a b\"\nallow = [\"user:root\", \"unit:a.service\"]\n"), "{config}");
    let mut check = Command::new(program::tokend());
    let checked = process::run(check.arg("check").arg("--config").arg(host.home.config()), wait::PATIENCE);
    assert!(checked.expect_success().contains("no faults, 1 token(s)"));
    let requests = host.provider.requests();
    let [request] = &requests[..] else { panic!("{requests:?}") };
    let fields = ["client_secret", "client_id", "scope"].map(|name| request.field(name).unwrap());
    assert_eq!(fields, [host.secret.as_str(), "me", "a b"]);
    // A second token beside it.
    host.init("other", &["--yes"]).expect_success();
    assert!(host.read("unit.d/other.conf").starts_with("[Service]\nLoadCredential=other.secret:"));
}

#[test]
fn without_yes_and_a_terminal_it_only_shows_the_files() {
    let host = Host::new();
    let finished = host.init("psb", &["--fetch"]);
    assert_eq!(
        (finished.code, finished.stderr.as_str()),
        (1, "tokend: nothing was written; --yes writes the files\n")
    );
    assert!(finished.stdout.contains("tokend.toml.d/psb.toml:\n"), "{}", finished.stdout);
    assert_eq!((host.files(), host.provider.count()), (vec!["secret".to_owned()], 0));
}

#[test]
fn a_missing_value_is_named_by_its_option() {
    let host = Host::new();
    let complete = [
        ("--provider", "cube-connect"),
        ("--client-id", "me"),
        ("--secret-from", "credential:x"),
        ("--param", "acr_values=tenant:acme"),
        ("--allow", "none"),
    ];
    for missing in complete {
        let given = complete.iter().filter(|option| **option != missing);
        let args: Vec<&str> =
            std::iter::once("cube").chain(given.flat_map(|(flag, value)| [*flag, *value])).collect();
        let finished = process::run(host.command(&args).arg("--yes"), wait::PATIENCE);
        let error = finished.expect_code(1);
        assert!(
            error.starts_with(&format!("tokend: {}", missing.0)) && error.contains("is missing"),
            "{error}"
        );
    }
    assert_eq!(host.files(), ["secret"]);
}

#[test]
fn whatever_is_wrong_nothing_is_written() {
    let host = Host::new();
    let refused = |name: &str, more: &[&str], reason: &str| {
        let before = host.files();
        let finished = host.init(name, more);
        assert!(finished.code != 0 && finished.stderr.contains(reason), "{reason}: {finished:?}");
        assert_eq!(host.files(), before, "{reason}");
    };
    refused("psb", &["--yes", "--allow", "ann"], "token.psb.allow");
    host.provider.always(Answer::refusal(401, "invalid_client"));
    refused("psb", &["--yes", "--fetch"], "invalid_client");
    fs::write(host.path("unit.d"), "").unwrap();
    refused("psb", &["--yes"], "unit.d/psb.conf: Not a directory");
    fs::remove_file(host.path("unit.d")).unwrap();
    host.init("psb", &["--yes"]).expect_success();
    refused("psb", &["--yes"], "psb.conf exists; --force replaces it");
    fs::remove_file(host.path("unit.d/psb.conf")).unwrap();
    fs::rename(host.path("tokend.toml.d/psb.toml"), host.path("tokend.toml.d/a.toml")).unwrap();
    refused("psb", &["--yes"], "a.toml:1: provider.psb: the name is in use");
    fs::rename(host.path("tokend.toml.d/a.toml"), host.path("tokend.toml.d/psb.toml")).unwrap();
    host.init("psb", &["--yes", "--force", "--scope", "new"]).expect_success();
    assert!(host.read("tokend.toml.d/psb.toml").contains("scope = \"new\"\n"));
}

#[test]
fn the_secret_is_taken_from_a_file_and_is_no_argument() {
    let host = Host::new();
    let from = |source: &str| {
        let args = ["psb", "--provider", "https://id.example/t", "--client-id", "me", "--allow", "none"];
        process::run(host.command(&args).args(["--secret-from", source]), wait::PATIENCE)
    };
    // No error repeats it: `process::run` searches for it.
    assert!(from(&host.secret).expect_code(1).contains("never an argument"));
    let slash = format!("/{}", host.secret);
    for source in [&slash, &format!("encrypted:{slash}"), &format!("file:{slash}")] {
        let error = from(source).expect_code(1);
        assert_eq!(error, "tokend: --secret-from: there is no file with this name\n");
    }
    let directory = host.home.path().to_str().unwrap();
    assert!(from(directory).expect_code(1).contains("there is no file"));

    let path = host.path("secret");
    let source = path.to_str().unwrap();
    assert!(!from(source).stderr.contains("warning"));
    fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
    let warning = format!("warning: mode 0644 is open to other users; chmod 0400 {source}\n");
    assert!(from(source).stderr.starts_with(&warning));
}

#[test]
fn nothing_is_merged_with_a_section_of_another_file() {
    let host = Host::new();
    let refused = |more: &[&str], reason: &str| {
        let before = host.files();
        let error = host.init("psb", &[&["--yes", "--fetch"], more].concat()).expect_code(1);
        assert!(error.contains(reason), "{reason}: {error}");
        assert_eq!((host.files(), host.provider.count()), (before, 0), "{reason}");
    };
    // No token uses it, so its endpoint is seen nowhere.
    let unused = "\n[provider.psb]\ntoken_endpoint = \"http://127.0.0.1:9/old\"\n";
    fs::write(host.home.config(), unused).unwrap();
    for more in [&[][..], &["--force"]] {
        refused(more, "/tokend.toml:2: provider.psb: the name is in use; remove this section");
    }
    fs::write(host.home.config(), "").unwrap();
    host.init("psb", &["--yes"]).expect_success();
    let later = host.path("tokend.toml.d/z.toml");
    fs::write(&later, "[token.psb]\nscope = \"old\"\n").unwrap();
    refused(&["--force"], "/z.toml:1: token.psb: the name is in use");
    fs::remove_file(later).unwrap();
    host.init("psb", &["--yes", "--force"]).expect_success();
}

#[test]
fn the_receiver_of_the_secret_is_shown_if_another_section_names_it() {
    let host = Host::new();
    let endpoint = host.provider.token_endpoint();
    let preset = format!("[preset.mine]\nenvironment.production = {{ token_endpoint = \"{endpoint}\" }}\n");
    fs::write(host.home.config(), preset).unwrap();
    let args = ["psb", "--client-id", "me", "--secret-from", "credential:x", "--allow", "none"];
    let mut init = host.command(&args);
    let finished = process::run(init.args(["--provider", "mine"]), wait::PATIENCE);
    assert!(finished.stdout.contains(&format!("\nthe secret goes to {endpoint}\n")), "{finished:?}");
}

#[test]
fn no_two_secrets_have_one_credential() {
    let host = Host::new();
    let refused = |name: &str, reason: &str| {
        let before = host.files();
        let error = host.init(name, &["--yes", "--force"]).expect_code(1);
        assert!(error.contains(reason), "{reason}: {error}");
        assert_eq!(host.files(), before, "{reason}");
    };
    host.init("a:b", &["--yes"]).expect_success();
    refused(
        "a_b",
        "/a:b.toml:4: provider.\"a:b\".client_secret.credential: the name of the credential is in use",
    );
    for (setting, name) in [
        ("LoadCredential=c.secret:/c", "c"),
        ("LoadCredentialEncrypted = d.secret : /d", "d"),
        ("SetCredential=e.secret:e", "e"),
    ] {
        fs::write(host.path("unit.d/secrets.conf"), format!("[Service]\n#{setting}\n")).unwrap();
        host.init(name, &["--yes"]).expect_success();
        fs::write(host.path("unit.d/secrets.conf"), format!("[Service]\n{setting}\n")).unwrap();
        refused(
            name,
            &format!(
                "secrets.conf has the credential {name}.secret already; use it with --secret-from credential:{name}.secret"
            ),
        );
    }
    // A credential that the unit has may have several users.
    let args = ["f", "--provider", "https://id.example/t", "--client-id", "me", "--allow", "none", "--yes"];
    let mut init = host.command(&args);
    process::run(init.args(["--secret-from", "credential:e.secret"]), wait::PATIENCE).expect_success();
}

/// A program with a terminal of its own.
struct Dialogue {
    child: Child,
    terminal: File,
    /// Everything that the terminal showed.
    shown: String,
}

impl Dialogue {
    fn start(command: &mut Command) -> Self {
        let pty = nix::pty::openpty(None, None).unwrap();
        let slave = || Stdio::from(pty.slave.try_clone().unwrap());
        let child = command.stdin(slave()).stdout(slave()).stderr(slave()).spawn().unwrap();
        // The last ends of the other side are closed with the child.
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        Self { child, terminal: File::from(pty.master), shown: String::new() }
    }

    fn expect(&mut self, question: &str) {
        while !self.shown.contains(question) {
            let mut bytes = [0; 1024];
            let mut ready = [PollFd::new(self.terminal.as_fd(), PollFlags::POLLIN)];
            assert!(poll(&mut ready, PATIENCE_MS).unwrap() > 0, "{question}: {}", self.shown);
            // The end of the program is an error here.
            let read = self.terminal.read(&mut bytes).unwrap_or_default();
            assert!(read > 0, "{question}: {}", self.shown);
            self.shown.push_str(std::str::from_utf8(&bytes[..read]).unwrap());
        }
    }

    fn end(&mut self) -> i32 {
        let mut rest = Vec::new();
        let _ = self.terminal.read_to_end(&mut rest);
        self.shown.push_str(&String::from_utf8(rest).unwrap());
        process::exit_code_within(&mut self.child, wait::PATIENCE).unwrap()
    }
}

/// Types answers to questions on a terminal, and returns everything that the terminal showed.
fn dialogue(command: &mut Command, answers: &[(&str, &str)]) -> (i32, String) {
    let mut dialogue = Dialogue::start(command);
    for (question, answer) in answers {
        dialogue.expect(question);
        dialogue.terminal.write_all(format!("{answer}\n").as_bytes()).unwrap();
    }
    (dialogue.end(), dialogue.shown)
}

#[test]
fn a_signal_leaves_a_terminal_that_shows_what_is_typed() {
    let host = Host::new();
    let args = ["psb", "--provider", "https://id.example/t", "--client-id", "me", "--allow", "none"];
    for signal in [Signal::SIGHUP, Signal::SIGINT, Signal::SIGTERM] {
        let mut dialogue = Dialogue::start(&mut host.command(&args));
        let terminal = dialogue.terminal.try_clone().unwrap();
        let shows = || tcgetattr(&terminal).unwrap().local_flags.contains(LocalFlags::ECHO);
        dialogue.expect("Client secret (not shown): ");
        assert!(!shows());
        kill(Pid::from_raw(dialogue.child.id().try_into().unwrap()), signal).unwrap();
        assert_ne!(dialogue.end(), 0, "{}", dialogue.shown);
        assert!(shows(), "{signal}");
    }
    assert_eq!(host.files(), ["secret"]);
}

#[test]
fn on_a_terminal_it_asks_for_everything() {
    let host = Host::new();
    let endpoint = host.provider.token_endpoint();
    // The second line answers no question.
    let pasted = format!("{}\nuser:nobody", host.secret);
    let questions = [
        ("Name of the token: ", "bnp"),
        ("Provider (", "bnpparibas-cib"),
        ("URL of the token endpoint: ", endpoint.as_str()),
        ("Client id: ", "me"),
        ("Client secret (not shown): ", pasted.as_str()),
        ("Who may have the token", "user:root unit:a.service"),
        ("Write these files? [y/N]: ", "n"),
    ];
    let (code, shown) = dialogue(&mut host.command(&["--fetch"]), &questions);
    assert!(code == 1 && shown.ends_with("tokend: nothing was written\r\n"), "{shown}");
    assert_eq!(host.files(), ["secret"]);
    let [asked @ .., _] = questions;
    let yes = [&asked[..], &[("Write these files? [y/N]: ", "y")]].concat();
    let (code, shown) = dialogue(&mut host.command(&["--fetch"]), &yes);
    assert_eq!(code, 0, "{shown}");
    secrets::assert_absent("the terminal", &shown);
    assert!(
        shown.contains("(the client secret, for root alone)") && shown.contains("valid for 1h"),
        "{shown}"
    );
    assert_eq!(host.read("credstore/bnp.secret"), host.secret);
    let mode = |name: &str| fs::metadata(host.path(name)).unwrap().permissions().mode() & 0o7777;
    assert_eq!([mode("credstore"), mode("credstore/bnp.secret")], [0o700, 0o400]);
    let config = host.read("tokend.toml.d/bnp.toml");
    assert!(
        config.contains("preset = \"bnpparibas-cib\"\ntoken_endpoint = ")
            && config.contains("\"unit:a.service\"]"),
        "{config}"
    );
    assert_eq!(host.provider.count(), 1);
}
