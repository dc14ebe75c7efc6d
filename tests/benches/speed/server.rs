//! The servers that are compared, each a process of its own with a Unix socket, and what their clients say.

use std::env;
use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use tokend_tests::{RealDaemon, ServiceManager, TestDir, raw_peer, wait};

use crate::load::connect;
use crate::tokend::Tokens;

/// Characters of each token.
pub(crate) const TOKEN_LENGTH: usize = 1200;

/// Tokens of one provider.
const TOKENS_PER_PROVIDER: usize = 2500;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Tokend,
    Floor,
    Redis,
    Memcached,
    /// tokend over HTTP.
    Http,
}

/// A running server. It ends when it is dropped.
pub(crate) struct Server {
    pub(crate) kind: Kind,
    pub(crate) socket: PathBuf,
    pub(crate) pid: u32,
    _process: Process,
}

/// The parts of a running server. They end in this order.
#[expect(dead_code, reason = "they are held until the server is dropped")]
enum Process {
    Tokend(RealDaemon, ServiceManager, Tokens),
    Other(Ended, TestDir),
    /// Another server's.
    Shared,
}

/// A process that is killed when this is dropped.
pub(crate) struct Ended(pub(crate) Child);

impl Kind {
    pub(crate) const ALL: [Self; 5] = [Self::Tokend, Self::Floor, Self::Redis, Self::Memcached, Self::Http];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Tokend => "tokend",
            Self::Floor => "floor",
            Self::Redis => "redis",
            Self::Memcached => "memcached",
            Self::Http => "http",
        }
    }

    pub(crate) fn named(name: &str) -> Self {
        Self::ALL.into_iter().find(|kind| kind.name() == name).unwrap()
    }

    /// The program of Debian's package.
    pub(crate) fn program(self) -> Option<&'static str> {
        match self {
            Self::Tokend | Self::Floor | Self::Http => None,
            Self::Redis => Some("redis-server"),
            Self::Memcached => Some("memcached"),
        }
    }

    /// A request for a token, or for the value of this name.
    pub(crate) fn get(self, name: &str) -> Vec<u8> {
        match self {
            Self::Tokend | Self::Floor => raw_peer::wire(1, raw_peer::get(name)),
            Self::Redis => format!("*2\r\n$3\r\nGET\r\n${}\r\n{name}\r\n", name.len()).into_bytes(),
            Self::Memcached => format!("get {name}\r\n").into_bytes(),
            Self::Http => format!("GET /v1/tokens/{name} HTTP/1.1\r\nHost: localhost\r\n\r\n").into_bytes(),
        }
    }

    /// The request that stores a value of this name, and the reply to it.
    fn put(self, name: &str) -> (Vec<u8>, &'static [u8]) {
        let value = value();
        match self {
            Self::Tokend | Self::Floor | Self::Http => unreachable!("nothing is stored there"),
            Self::Redis => {
                let length = name.len();
                let request =
                    format!("*3\r\n$3\r\nSET\r\n${length}\r\n{name}\r\n${TOKEN_LENGTH}\r\n{value}\r\n");
                (request.into_bytes(), b"+OK\r\n")
            }
            Self::Memcached => {
                (format!("set {name} 0 0 {TOKEN_LENGTH}\r\n{value}\r\n").into_bytes(), b"STORED\r\n")
            }
        }
    }

    /// Asks for a token, or for the value of this name, and returns the reply.
    pub(crate) fn call(self, stream: &mut UnixStream, name: &str) -> Vec<u8> {
        stream.write_all(&self.get(name)).unwrap();
        if self == Self::Http {
            return http_reply(stream);
        }
        let mut reply = vec![0; 4];
        stream.read_exact(&mut reply).unwrap();
        let size = match self {
            Self::Tokend | Self::Floor => {
                let length = u32::from_be_bytes(*reply.first_chunk().unwrap());
                4 + usize::try_from(length).unwrap()
            }
            Self::Http => unreachable!("it is read above"),
            Self::Redis => format!("${TOKEN_LENGTH}\r\n\r\n").len() + TOKEN_LENGTH,
            Self::Memcached => format!("VALUE {name} 0 {TOKEN_LENGTH}\r\n\r\nEND\r\n").len() + TOKEN_LENGTH,
        };
        reply.resize(size, 0);
        stream.read_exact(&mut reply[4..]).unwrap();
        assert!(reply.len() > TOKEN_LENGTH, "{} does not hold {name}", self.name());
        reply
    }

    fn command(self, home: &TestDir) -> Option<Command> {
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "--", self.program()?]);
        let words = match self {
            Self::Redis => "--port 0 --maxclients 12000 --appendonly no --daemonize no --unixsocket",
            _ => "-u root -c 12000 -m 1024 -s",
        };
        command.args(words.split(' ')).arg(home.path().join("socket"));
        if self == Self::Redis {
            command.args(["--save", ""]);
        }
        Some(command)
    }
}

impl Server {
    /// A daemon that holds so many tokens, under a service manager.
    pub(crate) fn tokend(tokens: usize) -> Self {
        let tokens = Tokens::configure(tokens, tokens.div_ceil(TOKENS_PER_PROVIDER), "");
        let manager = ServiceManager::new(&tokens.home);
        let daemon = manager.launch_logging(&tokens.home, "info").start();
        tokens.wait_until_asked(daemon.socket());
        let (socket, pid) = (daemon.socket().to_owned(), daemon.pid());
        Self { kind: Kind::Tokend, socket, pid, _process: Process::Tokend(daemon, manager, tokens) }
    }

    /// The HTTP socket of a daemon.
    pub(crate) fn http(tokend: &Self) -> Self {
        let socket = http_socket(&tokend.socket);
        Self { kind: Kind::Http, socket, pid: tokend.pid, _process: Process::Shared }
    }

    /// The floor, which answers as that server does.
    pub(crate) fn floor(tokend: &Self) -> Self {
        let home = TestDir::new();
        let reply = home.path().join("reply");
        fs::write(&reply, tokend.kind.call(&mut connect(&tokend.socket), "t0")).unwrap();
        let mut command = Command::new(env::current_exe().unwrap());
        command.arg("floor").arg(reply).arg(home.path().join("socket"));
        Self::of(Kind::Floor, command, home)
    }

    /// One that is installed, which holds a value; `None` if it is not installed.
    pub(crate) fn installed(kind: Kind) -> Option<Self> {
        Command::new(kind.program()?).arg("--version").output().ok()?;
        let home = TestDir::new();
        let server = Self::of(kind, kind.command(&home)?, home);
        server.put(1);
        Some(server)
    }

    fn of(kind: Kind, mut command: Command, home: TestDir) -> Self {
        // The floor ends with its input, which this process holds.
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        let child = Ended(command.spawn().unwrap());
        let (socket, pid) = (home.path().join("socket"), child.0.id());
        wait::until(kind.name(), || UnixStream::connect(&socket).ok());
        Self { kind, socket, pid, _process: Process::Other(child, home) }
    }

    /// Stores so many values.
    pub(crate) fn put(&self, values: usize) {
        let mut stream = connect(&self.socket);
        for number in 0..values {
            let (request, expected) = self.kind.put(&format!("t{number}"));
            stream.write_all(&request).unwrap();
            let mut reply = vec![0; expected.len()];
            stream.read_exact(&mut reply).unwrap();
            assert_eq!(reply, expected, "{} stores no value", self.kind.name());
        }
    }
}

/// The path of the HTTP socket beside the other one.
pub(crate) fn http_socket(socket: &Path) -> PathBuf {
    socket.with_file_name("http.sock")
}

fn http_reply(stream: &mut UnixStream) -> Vec<u8> {
    let (mut reply, mut byte) = (Vec::new(), [0]);
    while !reply.ends_with(b"\r\n\r\n") {
        stream.read_exact(&mut byte).unwrap();
        reply.push(byte[0]);
    }
    let head = String::from_utf8(reply.clone()).unwrap();
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
    let mut body = vec![0; length.unwrap().parse().unwrap()];
    stream.read_exact(&mut body).unwrap();
    reply.extend(body);
    assert!(reply.len() > TOKEN_LENGTH, "{head}");
    reply
}

fn value() -> String {
    "v".repeat(TOKEN_LENGTH)
}

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
