//! Running a program to its end within a bound.

use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use crate::{secrets, wait};

/// The exit code and the output of a program.
#[derive(Clone, Debug)]
pub struct Finished {
    /// Its exit code, or 128 and the signal's number, as a shell counts.
    pub code: i32,
    /// What it wrote to standard output.
    pub stdout: String,
    /// What it wrote to standard error.
    pub stderr: String,
}

impl Finished {
    /// Standard output, once it is sure that the program succeeded.
    pub fn expect_success(self) -> String {
        assert_eq!(self.code, 0, "the program failed: {}{}", self.stderr, self.stdout);
        self.stdout
    }

    /// Standard error, once it is sure that the program failed with this code and printed nothing.
    pub fn expect_code(self, code: i32) -> String {
        assert_eq!(self.code, code, "another exit code was expected: {}{}", self.stderr, self.stdout);
        assert_eq!(self.stdout, "", "a program that fails prints nothing to standard output");
        self.stderr
    }
}

/// Runs a program to its end and searches what it wrote to standard error for secrets.
///
/// # Panics
/// When it cannot be started, or takes longer than `limit`, at which it is killed.
pub fn run(command: &mut Command, limit: Duration) -> Finished {
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let stdout = collect(child.stdout.take());
    let stderr = collect(child.stderr.take());
    let Some(code) = exit_code_within(&mut child, limit) else {
        child.kill().expect("our own child can be killed");
        child.wait().expect("our own child can be waited for");
        panic!("{command:?} took longer than {limit:?}");
    };
    let finished = Finished { code, stdout: stdout.join().unwrap(), stderr: stderr.join().unwrap() };
    secrets::assert_absent("standard error of a program", &finished.stderr);
    finished
}

/// Waits for a child's end: its exit code as [`Finished::code`], or `None` when it outlives the limit.
pub fn exit_code_within(child: &mut Child, limit: Duration) -> Option<i32> {
    use std::os::unix::process::ExitStatusExt;

    let status = wait::within(limit, || child.try_wait().expect("our own child can be waited for"))?;
    Some(status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or_default()))
}

/// A program in the background. It is killed when it is dropped.
#[derive(Debug)]
pub struct Background(Child);

impl Background {
    /// Starts a program, whose output is appended to a file.
    ///
    /// # Panics
    /// When it cannot be started.
    pub fn start(command: &mut Command, output: &Path) -> Self {
        let log = File::options().create(true).append(true).open(output).expect("the output can be written");
        command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        Self(command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}")))
    }

    /// Whether it still runs.
    pub fn is_running(&mut self) -> bool {
        self.0.try_wait().expect("our own child can be waited for").is_none()
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn collect(stream: Option<impl Read + Send + 'static>) -> JoinHandle<String> {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        if let Some(mut stream) = stream {
            let _ = stream.read_to_end(&mut bytes);
        }
        String::from_utf8_lossy(&bytes).into_owned()
    })
}
