//! libtokend with the real daemon, from C and from Go. `tests/run` installs the compilers, valgrind and cbindgen.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "a panic is how a test fails"
)]

use std::collections::HashSet;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokend_tests::test_support::{Scene, token_table};
use tokend_tests::{Answer, Finished, Provider, RealDaemon, TestDir, process, program, requirement};

const LIMIT: Duration = Duration::from_secs(300);

/// The library as it is installed: programs find it with pkg-config.
struct Installed(TestDir);

impl Installed {
    fn new() -> Self {
        let (home, library) = (TestDir::new(), program::libtokend());
        let mut install = Command::new(program::workspace().join("systemd/install"));
        install.env("DESTDIR", home.path()).env("PREFIX", "/usr").env("C_LIBRARY", library);
        install.env("TARGET_DIR", program::tokend().parent().expect("a program is in a directory"));
        process::run(&mut install, LIMIT).expect_success();
        Self(home)
    }

    /// A command that finds the library, to build with it and to run with it.
    fn command(&self, program: impl AsRef<std::ffi::OsStr>, home: &Path) -> Command {
        let usr = self.0.path().join("usr");
        let mut command = Command::new(program);
        command.current_dir(home).env("PKG_CONFIG_PATH", usr.join("lib/pkgconfig"));
        command.env("PKG_CONFIG_SYSROOT_DIR", self.0.path()).env("LD_LIBRARY_PATH", usr.join("lib"));
        command
    }

    fn compile(&self, source: &Path, home: &Path) -> PathBuf {
        let mut cc = self.command("sh", home);
        cc.args(["-c", "cc -std=c11 -D_POSIX_C_SOURCE=200809L -Wall -Wextra -Werror \"$1\" -o program $(pkg-config --cflags --libs tokend)"]);
        process::run(cc.arg("sh").arg(source), LIMIT).expect_success();
        home.join("program")
    }
}

fn folder() -> PathBuf {
    program::workspace().join("client-lib/c")
}

fn has_compiler() -> bool {
    requirement::program("cc") && requirement::program("pkg-config")
}

/// A daemon with a token, and an API that refuses the tokens in the set.
struct Bank {
    scene: Scene,
    api: Provider,
    refused: Arc<Mutex<HashSet<String>>>,
}

impl Bank {
    fn open() -> Self {
        let refused: Arc<Mutex<HashSet<String>>> = Arc::default();
        let known = Arc::clone(&refused);
        let api = Provider::start_answering(move |request| {
            let token = request.header("authorization").and_then(|value| value.strip_prefix("Bearer "));
            let is_refused = token.is_none_or(|token| known.lock().unwrap().contains(token));
            Answer::status(if is_refused { 401 } else { 200 })
        });
        // No token is renewed by its schedule during a test.
        let provider = Provider::start_answering(|_| Answer::token(86_400));
        Self { scene: Scene::start(provider, &token_table("t", "")), api, refused }
    }

    fn fingerprint(&self) -> String {
        let status = self.scene.tokenctl().status_of("t");
        status["held"]["fingerprint"].as_str().expect("a token is held").to_owned()
    }

    /// Runs a program that calls the API with a token.
    fn run(&self, command: &mut Command, token: &str) -> Finished {
        let url = self.api.url("/accounts");
        process::run(command.args([token, &url]).env("TOKEND_SOCKET", self.scene.socket()), LIMIT)
    }

    /// Runs a program as it is, through a refusal by the API, and without a token.
    fn check(&self, command: impl Fn() -> Command) {
        let first = self.fingerprint();
        let shown = self.run(&mut command(), "t").expect_success();
        assert_eq!(shown, format!("200, with the token {first}\n"));
        self.scene.tokenctl().run(&["refresh", "t"]).expect_success();
        self.refused.lock().unwrap().insert(self.scene.tokenctl().get("t"));
        let refused = self.fingerprint();
        // The daemon asks for no other token within seconds of the last one.
        let shown = tokend_tests::wait::until("another token after a 401", || {
            let run = self.run(&mut command(), "t");
            (run.code == 0).then_some(run.stdout)
        });
        let newer = self.fingerprint();
        assert!(newer != refused && shown == format!("200, with the token {newer}\n"), "{shown}");
        let unknown = self.run(&mut command(), "u");
        assert!(unknown.code != 0 && unknown.stderr.contains("no such token"), "{unknown:?}");
    }
}

#[test]
fn the_example_in_c_gets_uses_and_rejects_a_token_and_leaks_nothing() {
    if !has_compiler() || !requirement::program("valgrind") || !requirement::program("curl") {
        return;
    }
    let (library, bank, home) = (Installed::new(), Bank::open(), TestDir::new());
    let program = library.compile(&folder().join("examples/get.c"), home.path());
    bank.check(|| library.command(&program, home.path()));
    let mut valgrind = library.command("valgrind", home.path());
    valgrind.args(["--quiet", "--error-exitcode=99", "--leak-check=full", "--child-silent-after-fork=yes"]);
    let checked = bank.run(valgrind.arg(&program), "t");
    assert_eq!(checked.code, 0, "{checked:?}");
}

#[test]
fn the_example_in_go_gets_uses_and_rejects_a_token() {
    if !has_compiler() || !requirement::program("go") {
        return;
    }
    let (library, bank, home) = (Installed::new(), Bank::open(), TestDir::new());
    let mut build = library.command("go", &folder().join("examples/go"));
    build.args(["build", "-o"]).arg(home.path().join("program")).arg(".");
    build.env("GOCACHE", home.path().join("cache")).env("GOFLAGS", "-mod=mod").env("CGO_ENABLED", "1");
    process::run(&mut build, LIMIT).expect_success();
    bank.check(|| library.command(home.path().join("program"), home.path()));
}

#[test]
fn the_first_lines_of_the_readme_work() {
    if !has_compiler() {
        return;
    }
    let (library, home) = (Installed::new(), TestDir::new());
    let readme = fs::read_to_string(folder().join("README.md")).expect("there is a README");
    let (_, code) = readme.split_once("```c\n").expect("it begins with code");
    let source = home.path().join("get.c");
    fs::write(&source, code.split("```").next().unwrap_or_default().replace("\"psb\"", "\"t\""))
        .expect("a file");
    let program = library.compile(&source, home.path());
    let scene = Scene::start(Provider::start(), &token_table("t", ""));
    scene.tokenctl().get("t");
    let mut command = library.command(&program, home.path());
    let shown = process::run(command.env("TOKEND_SOCKET", scene.socket()), LIMIT).expect_success();
    assert!(shown.starts_with("a token until "), "{shown}");
}

/// Gets the token twice, with a pause until a line comes. SIGPIPE has its default, which ends the program.
const TWICE: &str = r#"
#include <stdio.h>
#include <tokend.h>

int main(void) {
    tokend_client *client = tokend_client_new(NULL, 0);
    for (int call = 0; call < 2; call++) {
        tokend_error *error = NULL;
        tokend_token *token = tokend_get(client, "t", 0, &error);
        if (token == NULL) { fprintf(stderr, "%s\n", tokend_error_message(error)); return 1; }
        puts(tokend_token_fingerprint(token));
        fflush(stdout);
        tokend_token_free(token);
        if (call == 0) getchar();
    }
    tokend_client_free(client);
    return 0;
}
"#;

#[test]
fn a_program_in_c_outlives_a_restart_of_the_daemon() {
    if !has_compiler() {
        return;
    }
    let (library, mut bank, home) = (Installed::new(), Bank::open(), TestDir::new());
    let source = home.path().join("twice.c");
    fs::write(&source, TWICE).expect("a file");
    let mut command = library.command(library.compile(&source, home.path()), home.path());
    command.env("TOKEND_SOCKET", bank.scene.socket()).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut program = command.spawn().expect("it can be started");
    let mut lines = BufReader::new(program.stdout.take().expect("it is a pipe")).lines();
    assert_eq!(lines.next().expect("a line").unwrap(), bank.fingerprint());
    assert_eq!(bank.scene.daemon.stop(), 0);
    bank.scene.daemon = RealDaemon::start(&bank.scene.home);
    program.stdin.take().expect("it is a pipe").write_all(b"\n").expect("it reads");
    assert_eq!(process::exit_code_within(&mut program, LIMIT), Some(0));
    assert_eq!(lines.next().expect("a second line").unwrap(), bank.fingerprint());
}

#[test]
fn the_header_is_made_of_the_sources() {
    if !requirement::program("cbindgen") {
        return;
    }
    let mut cbindgen = Command::new("cbindgen");
    cbindgen.args(["--quiet", "--config", "cbindgen.toml", "."]).current_dir(folder());
    let made = process::run(&mut cbindgen, LIMIT).expect_success();
    let header = fs::read_to_string(folder().join("include/tokend.h")).expect("there is a header");
    assert!(
        made == header,
        "make it anew: cd client-lib/c; cbindgen --config cbindgen.toml --output include/tokend.h"
    );
}
