//! The real `tokenctl`, run as the user that a test wants.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde_json::Value;

use crate::{Finished, process, program, secrets};

/// No command of a test waits longer than this.
const LIMIT: Duration = Duration::from_secs(300);

/// Runs `tokenctl` against one socket.
#[derive(Clone, Debug)]
pub struct Tokenctl {
    socket: PathBuf,
    program: PathBuf,
    user: Option<User>,
}

/// The ids to run with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct User {
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
    /// Supplementary groups.
    pub groups: Vec<u32>,
}

impl User {
    /// A user with a group of the same number and no further groups.
    pub fn new(id: u32) -> Self {
        Self { uid: id, gid: id, groups: Vec::new() }
    }

    /// With another group.
    #[must_use]
    pub fn in_group(mut self, gid: u32) -> Self {
        self.gid = gid;
        self
    }

    /// With supplementary groups.
    #[must_use]
    pub fn with_groups(mut self, groups: &[u32]) -> Self {
        self.groups = groups.to_vec();
        self
    }

    /// The supplementary groups, as `setpriv` wants to be told.
    pub(crate) fn groups_argument(&self) -> String {
        if self.groups.is_empty() {
            return "--clear-groups".to_owned();
        }
        let groups: Vec<String> = self.groups.iter().map(u32::to_string).collect();
        format!("--groups={}", groups.join(","))
    }
}

impl Tokenctl {
    /// As the user that runs the test.
    pub fn new(socket: &Path) -> Self {
        Self { socket: socket.to_owned(), program: program::tokenctl(), user: None }
    }

    /// As another user, which root can become. The program is copied beside the socket.
    #[must_use]
    pub fn as_user(&self, user: User) -> Self {
        let copy = self.socket.with_file_name("tokenctl");
        if !copy.exists() {
            program::copy(&program::tokenctl(), &copy);
        }
        Self { socket: self.socket.clone(), program: copy, user: Some(user) }
    }

    /// Runs a command and searches what it prints for secrets, unless the command is one that prints them.
    pub fn run(&self, arguments: &[&str]) -> Finished {
        let finished = process::run(self.command().args(arguments), LIMIT);
        if !matches!(arguments.first(), Some(&("get" | "headers"))) {
            secrets::assert_absent("standard output of tokenctl", &finished.stdout);
        }
        finished
    }

    /// Runs `get NAME`, which must succeed: the token.
    pub fn get(&self, name: &str) -> String {
        let printed = self.run(&["get", name]).expect_success();
        let token = printed.strip_suffix('\n').expect("a newline follows the token");
        assert!(!token.contains(char::is_whitespace), "nothing but the token is printed");
        token.to_owned()
    }

    /// Runs a command with `--json`, which must succeed: the document.
    pub fn json(&self, arguments: &[&str]) -> Value {
        let printed = self.run(&[arguments, &["--json"]].concat()).expect_success();
        serde_json::from_str(&printed).unwrap_or_else(|error| panic!("{arguments:?} is not JSON: {error}"))
    }

    /// The entry of a token in `status --json`.
    pub fn status_of(&self, name: &str) -> Value {
        let status = self.json(&["status"]);
        let tokens = status["tokens"].as_array().expect("a status has tokens");
        tokens
            .iter()
            .find(|token| token["name"] == name)
            .unwrap_or_else(|| panic!("{name} is not in the status: {status:#}"))
            .clone()
    }

    /// The program with its socket, for a test that runs it in a way of its own.
    pub fn command(&self) -> Command {
        let mut command = match &self.user {
            None => Command::new(&self.program),
            Some(user) => {
                let mut command = Command::new("setpriv");
                command.arg(format!("--reuid={}", user.uid)).arg(format!("--regid={}", user.gid));
                command.arg(user.groups_argument()).arg("--").arg(&self.program);
                command
            }
        };
        command.env_remove("TOKEND_SOCKET").env_remove("RUST_LOG").arg("--socket").arg(&self.socket);
        command
    }
}
