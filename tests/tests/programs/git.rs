//! git with a server of its own over HTTP, which accepts one token at a time.

use std::collections::HashMap;
use std::fs;
use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use tokend_tests::test_support::{Scene, token_table};
use tokend_tests::{Finished, process, program, requirement, wait};

use super::{LIMIT, provider_of_one_token};

/// The answer to a request without the token.
const REFUSAL: &str = "HTTP/1.1 401 Unauthorized\r\nWWW-Authenticate: Bearer realm=\"t\"\r\n\
                       WWW-Authenticate: Basic realm=\"t\"\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";

/// Runs git in a directory, without the settings of this machine and user.
fn git(home: &Path, directory: &Path, arguments: &[&str]) -> Finished {
    let mut command = Command::new("git");
    command
        .args(["-c", "user.name=t", "-c", "user.email=t@git.example"])
        .args(arguments)
        .current_dir(directory);
    command.env("HOME", home).env("GIT_CONFIG_NOSYSTEM", "1").env("GIT_TERMINAL_PROMPT", "0");
    process::run(command.env_remove("XDG_CONFIG_HOME"), LIMIT)
}

/// A server of the repositories in a directory.
struct Server {
    repositories: PathBuf,
    /// The only token that it accepts.
    accepted: Arc<Mutex<String>>,
    /// The authentication scheme of each accepted request.
    schemes: Mutex<Vec<String>>,
}

impl Server {
    /// Starts it, on threads that end with the test. Returns its URL.
    fn start(self: &Arc<Self>) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a loopback port is free");
        let address = listener.local_addr().expect("a socket that listens has an address");
        let server = Arc::clone(self);
        thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let server = Arc::clone(&server);
                thread::spawn(move || server.answer(stream));
            }
        });
        format!("http://{address}")
    }

    /// Answers the one request of a connection.
    fn answer(&self, mut stream: TcpStream) -> io::Result<()> {
        let request = Request::read(&mut stream)?;
        if !self.accepts(request.header("authorization")) {
            return stream.write_all(REFUSAL.as_bytes());
        }
        stream.write_all(b"HTTP/1.1 200 OK\r\nConnection: close\r\n")?;
        stream.write_all(&request.run(&self.repositories)?)
    }

    /// Whether this is the token, as a Bearer token or as a password.
    fn accepts(&self, authorization: &str) -> bool {
        let token = self.accepted.lock().unwrap().clone();
        let password = BASE64_STANDARD.encode(format!("oauth2:{token}"));
        let Some((scheme, value)) = authorization.split_once(' ') else { return false };
        let is_accepted =
            matches!(scheme, "Bearer" if value == token) || matches!(scheme, "Basic" if value == password);
        if is_accepted {
            self.schemes.lock().unwrap().push(scheme.to_owned());
        }
        is_accepted
    }
}

struct Request {
    method: String,
    target: String,
    headers: HashMap<String, String>,
    body: Vec<u8>,
}

impl Request {
    fn read(stream: &mut TcpStream) -> io::Result<Self> {
        let mut bytes = Vec::new();
        loop {
            if let Some((mut request, length)) = Self::parse(&bytes)? {
                let rest = length.saturating_sub(request.body.len());
                stream.take(rest as u64).read_to_end(&mut request.body)?;
                return Ok(request);
            }
            let mut some = [0; 4096];
            match stream.read(&mut some)? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                length => bytes.extend(&some[..length]),
            }
        }
    }

    /// The request, with as much of its body as there is, and the length of the whole body.
    fn parse(bytes: &[u8]) -> io::Result<Option<(Self, usize)>> {
        let mut fields = [httparse::EMPTY_HEADER; 32];
        let mut head = httparse::Request::new(&mut fields);
        let parsed = head.parse(bytes).map_err(io::Error::other)?;
        let httparse::Status::Complete(end) = parsed else { return Ok(None) };
        let field = |field: &mut httparse::Header<'_>| {
            (field.name.to_ascii_lowercase(), String::from_utf8_lossy(field.value).into_owned())
        };
        let request = Self {
            method: head.method.unwrap_or_default().to_owned(),
            target: head.path.unwrap_or_default().to_owned(),
            headers: head.headers.iter_mut().map(field).collect(),
            body: bytes[end..].to_vec(),
        };
        let length = request.header("content-length").parse().unwrap_or_default();
        Ok(Some((request, length)))
    }

    fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", String::as_str)
    }

    /// Runs git's own server, by the Common Gateway Interface (git-http-backend(1)).
    fn run(&self, repositories: &Path) -> io::Result<Vec<u8>> {
        let (path, query) = self.target.split_once('?').unwrap_or((&self.target, ""));
        let mut backend = Command::new("git");
        backend.arg("http-backend").env("GIT_PROJECT_ROOT", repositories).env("GIT_HTTP_EXPORT_ALL", "1");
        backend.env("REQUEST_METHOD", &self.method).env("PATH_INFO", path).env("QUERY_STRING", query);
        backend.env("REMOTE_USER", "t").env("CONTENT_LENGTH", self.body.len().to_string());
        backend.env("CONTENT_TYPE", self.header("content-type"));
        backend.env("HTTP_CONTENT_ENCODING", self.header("content-encoding"));
        backend.env("GIT_PROTOCOL", self.header("git-protocol"));
        let mut backend = backend.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        if let Some(mut input) = backend.stdin.take() {
            input.write_all(&self.body)?;
        }
        Ok(backend.wait_with_output()?.stdout)
    }
}

/// Clones, pushes, and fetches after a rotation and after the server has refused the token. Returns the authentication
/// schemes that git used. `TOKENCTL` in the helper stands for the command.
fn exercise(helper: &str) -> Vec<String> {
    let (provider, accepted) = provider_of_one_token();
    let scene = Scene::start(provider, &token_table("t", "allow = [\"any\"]"));
    let (home, socket) = (scene.home.path(), scene.socket().display());
    let repositories = home.join("repositories");
    let server =
        Arc::new(Server { repositories, accepted: Arc::clone(&accepted), schemes: Mutex::default() });
    let url = server.start();
    let tokenctl = format!("{} --socket {socket} helper git t", program::tokenctl().display());
    let helper = helper.replace("TOKENCTL", &tokenctl);
    let settings = format!("[credential \"{url}\"]\nhelper = \"{helper}\"\n");
    fs::write(home.join(".gitconfig"), settings).expect("git can be configured");
    let run = |directory: &str, arguments: &[&str]| git(home, &home.join(directory), arguments);
    let done = |directory: &str, arguments: &[&str]| run(directory, arguments).expect_success();

    done("", &["init", "--quiet", "--bare", "repositories/x"]);
    done("", &["clone", "--quiet", &format!("{url}/x"), "first"]);
    done("", &["clone", "--quiet", &format!("{url}/x"), "second"]);
    done("first", &["commit", "--quiet", "--allow-empty", "--message=one"]);
    done("first", &["push", "--quiet", "origin", "HEAD:main"]);
    let before = accepted.lock().unwrap().clone();
    scene.tokenctl().run(&["refresh", "t"]).expect_success();
    assert_ne!(*accepted.lock().unwrap(), before, "the server accepts another token");
    done("second", &["fetch", "--quiet"]);
    let fetched = done("second", &["log", "--format=%s", "origin/main"]);
    assert_eq!(fetched, "one\n");

    "another one".clone_into(&mut accepted.lock().unwrap());
    let refused = run("second", &["fetch", "--quiet"]);
    assert!(refused.code != 0 && refused.stderr.contains("Authentication failed"), "{refused:?}");
    // Each refused token is reported. The daemon replaces it when it is no longer too new for that.
    wait::until("a fetch with another token", || {
        (run("second", &["fetch", "--quiet"]).code == 0).then_some(())
    });
    server.schemes.lock().unwrap().clone()
}

/// Whether git sends Bearer tokens, which it can since 2.46.
fn knows_bearer() -> bool {
    let version = process::run(Command::new("git").arg("version"), LIMIT).expect_success();
    let mut numbers = version.split(|c: char| !c.is_ascii_digit()).filter_map(|number| number.parse().ok());
    (numbers.next(), numbers.next()) >= (Some(2), Some(46))
}

#[test]
fn git_clones_pushes_and_fetches_through_rotations_and_a_refusal() {
    if !requirement::program("git") {
        return;
    }
    let schemes = exercise("!TOKENCTL");
    let expected = if knows_bearer() { "Bearer" } else { "Basic" };
    assert!(schemes.iter().all(|scheme| scheme == expected), "{schemes:?}");
}

#[test]
fn a_git_that_knows_no_bearer_token_sends_it_as_a_password() {
    if !requirement::program("git") {
        return;
    }
    let schemes = exercise("!f() { grep --invert-match capability | TOKENCTL $1; }; f");
    assert!(schemes.iter().all(|scheme| scheme == "Basic"), "{schemes:?}");
}
