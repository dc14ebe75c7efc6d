//! A daemon for the tests of a service: it hands out the tokens that the test sets, over a real socket.

use std::collections::HashMap;
use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;
use std::net::Shutdown;
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, SystemTime};

use tokend_protocol::{
    BootInstant, CallOptions, CallerHeader, ErrorCode, ErrorReply, EventReply, Fingerprint, Frame,
    GetRequest, Header, HeadersReply, HeldToken, ListEntry, ListReply, Message, RejectOutcome, RejectedReply,
    Reply, Request, Secret, State, Timestamp, TokenInfo, TokenReply, VERSION, VersionReply, WatchedToken,
    read_frame, write_frame,
};

use crate::{Options, now};

/// A daemon in this process, with a socket of its own in a new directory. It ends when dropped.
///
/// It answers `get`, `headers`, `reject`, `list`, `version` and the watches of sources, for clients of either kind. It has no
/// rules, and every scope, resource and audience gets the same token.
///
/// ```
/// use std::time::Duration;
/// use tokend_client::{blocking::Client, testing::FakeDaemon};
///
/// let daemon = FakeDaemon::start()?;
/// daemon.set("psb", "first", Duration::from_secs(60));
/// daemon.set_after_reject("psb", "second", Duration::from_secs(60));
///
/// let token = Client::new(daemon.options()).token("psb")?;
/// let first = token.get()?;
/// assert_eq!(first.token.expose(), "first");
/// token.reject(first.info.fingerprint)?;
/// assert_eq!(token.get()?.token.expose(), "second");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct FakeDaemon {
    directory: PathBuf,
    shared: Arc<Shared>,
    acceptor: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Shared {
    is_stopping: AtomicBool,
    state: Mutex<FakeState>,
}

#[derive(Debug, Default)]
struct FakeState {
    tokens: HashMap<String, Entry>,
    rejected: Vec<Fingerprint>,
    connections: Vec<UnixStream>,
    watches: Vec<FakeWatch>,
}

#[derive(Debug, Default)]
struct Entry {
    token: Option<TokenReply>,
    after_reject: Option<TokenReply>,
}

/// A watch that events are sent to.
#[derive(Debug)]
struct FakeWatch {
    connection: UnixStream,
    id: u32,
    tokens: Vec<WatchedToken>,
}

impl FakeDaemon {
    /// Starts without a token.
    ///
    /// # Errors
    /// If the directory or the socket in it cannot be made.
    pub fn start() -> io::Result<Self> {
        let directory = new_directory()?;
        let listener = UnixListener::bind(directory.join("tokend.sock"))?;
        let shared = Arc::new(Shared::default());
        let serving = Arc::clone(&shared);
        let acceptor = Some(thread::spawn(move || serving.accept(&listener)));
        Ok(Self { directory, shared, acceptor })
    }

    /// The socket.
    pub fn socket(&self) -> PathBuf {
        self.directory.join("tokend.sock")
    }

    /// The options of a client of this daemon.
    pub fn options(&self) -> Options {
        Options::new(self.socket())
    }

    /// Hands out this token from now on, and sends it to the sources that have the name.
    pub fn set(&self, name: &str, token: &str, lifetime: Duration) {
        let mut state = self.shared.state();
        state.tokens.entry(name.to_owned()).or_default().token = Some(reply(token, lifetime));
        state.publish(name);
    }

    /// Replaces the token by this one when a caller rejects it. Otherwise a rejection changes nothing.
    pub fn set_after_reject(&self, name: &str, token: &str, lifetime: Duration) {
        let mut state = self.shared.state();
        state.tokens.entry(name.to_owned()).or_default().after_reject = Some(reply(token, lifetime));
    }

    /// Refuses the token from now on, as without a rule.
    pub fn refuse(&self, name: &str) {
        let mut state = self.shared.state();
        state.tokens.remove(name);
        state.publish(name);
    }

    /// The fingerprints of the tokens that were rejected, in order.
    pub fn rejected(&self) -> Vec<Fingerprint> {
        self.shared.state().rejected.clone()
    }

    /// Closes all connections, as a restart does.
    pub fn disconnect(&self) {
        let mut state = self.shared.state();
        state.watches.clear();
        for connection in state.connections.drain(..) {
            let _ = connection.shutdown(Shutdown::Both);
        }
    }
}

impl Drop for FakeDaemon {
    fn drop(&mut self) {
        self.shared.is_stopping.store(true, Ordering::SeqCst);
        // Wakes the acceptor, which then sees that it has to stop. It sleeps on if the test removed the socket.
        let woken = UnixStream::connect(self.socket()).is_ok();
        if let Some(acceptor) = self.acceptor.take().filter(|_| woken) {
            let _ = acceptor.join();
        }
        self.disconnect();
        let _ = fs::remove_dir_all(Path::new(&self.directory));
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, FakeState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn accept(self: &Arc<Self>, listener: &UnixListener) {
        for connection in listener.incoming() {
            if self.is_stopping.load(Ordering::SeqCst) {
                return;
            }
            let Ok(connection) = connection else {
                // Perhaps the process has too many open files. The next attempt fails at once, until one is closed.
                thread::sleep(Duration::from_millis(10));
                continue;
            };
            if let Ok(kept) = connection.try_clone() {
                self.state().connections.push(kept);
                let shared = Arc::clone(self);
                drop(thread::spawn(move || shared.serve(&connection)));
            }
        }
    }

    fn serve(&self, mut connection: &UnixStream) {
        while let Ok(Some(Ok(Frame { id, message }))) = read_frame::<Request>(&mut connection) {
            // Events of other threads come between answers, not within.
            let mut state = self.state();
            if let Request::Watch(watch) = message {
                let Ok(connection) = connection.try_clone() else { return };
                let watch = FakeWatch { connection, id, tokens: watch.tokens };
                (0..watch.tokens.len()).for_each(|index| state.send(&watch, index));
                state.watches.push(watch);
            } else {
                let message = state.answer(message).unwrap_or_else(Reply::Error);
                let _ = write_frame(&mut connection, &Frame { id, message });
            }
        }
    }
}

impl FakeState {
    fn answer(&mut self, request: Request) -> Result<Reply, ErrorReply> {
        match request {
            Request::Get(GetRequest { name, options, .. }) => {
                Ok(Reply::Token(self.lasting_token(name.as_str(), options)?.clone()))
            }
            Request::Headers(request) => {
                let token = self.lasting_token(request.name.as_str(), request.options)?;
                let TokenReply { info, token, token_type, .. } = token;
                let value = Secret::from(format!("{token_type} {}", token.expose()));
                let supplied = |CallerHeader { name, value }| Header { name, value: Secret::from(value) };
                let authorization = Header { name: "Authorization".to_owned(), value };
                let headers = [authorization].into_iter().chain(request.supplied.into_iter().map(supplied));
                Ok(Reply::Headers(HeadersReply { info: *info, headers: headers.collect() }))
            }
            Request::Reject(request) => self.reject(request.name.as_str(), request.fingerprint),
            Request::List(_) => {
                let named =
                    |name: &String| name.parse().ok().map(|name| ListEntry { name, state: State::Fresh });
                let mut tokens: Vec<ListEntry> = self.tokens.keys().filter_map(named).collect();
                tokens.sort_by(|one, other| one.name.cmp(&other.name));
                Ok(Reply::List(ListReply { tokens, more: false }))
            }
            Request::Version => Ok(Reply::Version(VersionReply {
                daemon: "0.0.0-fake".to_owned(),
                oldest: VERSION,
                newest: VERSION,
                highest_request: Request::HIGHEST,
            })),
            _ => Err(error(ErrorCode::UnknownRequest, "the fake daemon does not know this request")),
        }
    }

    fn token(&self, name: &str) -> Result<&TokenReply, ErrorReply> {
        let entry = self.tokens.get(name);
        let entry = entry.ok_or_else(|| error(ErrorCode::NotAllowed, "not allowed, or no such token"))?;
        let valid = entry.token.as_ref().filter(|token| !token.info.remaining(now()).is_zero());
        valid.ok_or_else(|| error(ErrorCode::Unavailable, "the fake daemon has no valid token"))
    }

    /// The token, if it lasts as long as the caller asks.
    fn lasting_token(&self, name: &str, options: CallOptions) -> Result<&TokenReply, ErrorReply> {
        let token = self.token(name)?;
        let best = u64::try_from(token.info.remaining(now()).as_millis()).unwrap_or(u64::MAX);
        if best < options.min_ttl_ms.into() {
            let refused = error(ErrorCode::MinTtlUnreachable, "the token does not last as long as asked");
            return Err(ErrorReply { best_ttl_ms: Some(best), ..refused });
        }
        Ok(token)
    }

    fn reject(&mut self, name: &str, refused: Fingerprint) -> Result<Reply, ErrorReply> {
        self.rejected.push(refused);
        let present = self.token(name)?.info;
        let entry = self.tokens.entry(name.to_owned()).or_default();
        let outcome = if present.fingerprint != refused {
            RejectOutcome::Superseded
        } else if let Some(newer) = entry.after_reject.take() {
            entry.token = Some(newer);
            self.publish(name);
            RejectOutcome::Replaced
        } else {
            RejectOutcome::TooSoon
        };
        Ok(Reply::Rejected(RejectedReply { outcome, info: self.token(name)?.info }))
    }

    /// Tells all watches of the name.
    fn publish(&self, name: &str) {
        for watch in &self.watches {
            let is_named = |token: &WatchedToken| token.name.as_str() == name;
            if let Some(index) = watch.tokens.iter().position(is_named) {
                self.send(watch, index);
            }
        }
    }

    /// Sends the condition of a token of a watch, or the end of the watch.
    fn send(&self, watch: &FakeWatch, index: usize) {
        let Some(WatchedToken { name, .. }) = watch.tokens.get(index) else { return };
        let token = match self.token(name.as_str()) {
            Err(refused) if refused.code == ErrorCode::NotAllowed => {
                return watch.send(Reply::Error(refused));
            }
            token => token.ok().cloned(),
        };
        let held = token.as_ref().map(|token| {
            let TokenInfo { issued_at, expires_at, expires_at_wall, fingerprint, .. } = token.info;
            HeldToken { issued_at, expires_at, expires_at_wall, fingerprint }
        });
        let state = if held.is_some() { State::Fresh } else { State::Pending };
        let index = u32::try_from(index).unwrap_or(u32::MAX);
        let event = EventReply {
            index,
            name: name.clone(),
            state,
            held,
            last_error: None,
            next_attempt: None,
            token,
        };
        watch.send(Reply::Event(event));
    }
}

impl FakeWatch {
    fn send(&self, message: Reply) {
        let _ = write_frame(&mut &self.connection, &Frame { id: self.id, message });
    }
}

/// A directory with a new name. An earlier process with the same id may have left directories behind.
fn new_directory() -> io::Result<PathBuf> {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    loop {
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let directory = std::env::temp_dir().join(format!("fake-tokend-{}-{number}", std::process::id()));
        match fs::DirBuilder::new().mode(0o700).create(&directory) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => (),
            made => return made.map(|()| directory),
        }
    }
}

fn reply(token: &str, lifetime: Duration) -> TokenReply {
    let millis = u64::try_from(lifetime.as_millis()).unwrap_or(u64::MAX);
    let mut hasher = DefaultHasher::new();
    token.hash(&mut hasher);
    let wall = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let wall = wall.saturating_add(lifetime);
    let info = TokenInfo {
        issued_at: now(),
        expires_at: BootInstant(now().0.saturating_add(millis)),
        expires_at_wall: Timestamp(u64::try_from(wall.as_millis()).unwrap_or(u64::MAX)),
        state: State::Fresh,
        last_error: None,
        next_attempt: None,
        fingerprint: Fingerprint(hasher.finish().to_be_bytes()),
    };
    TokenReply { info, token: Secret::from(token.to_owned()), token_type: "Bearer".to_owned(), scope: None }
}

fn error(code: ErrorCode, message: &str) -> ErrorReply {
    ErrorReply { code, message: message.to_owned(), class: None, next_attempt: None, best_ttl_ms: None }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::blocking::Client;
    use crate::{Error, Options};

    const HOUR: Duration = Duration::from_secs(3600);

    #[test]
    fn it_ends_without_its_socket() {
        let daemon = FakeDaemon::start().unwrap();
        let directory = daemon.directory.clone();
        fs::remove_file(daemon.socket()).unwrap();
        drop(daemon);
        assert!(!directory.exists());
    }

    #[test]
    fn it_starts_beside_directories_that_were_left_behind() {
        let before = FakeDaemon::start().unwrap();
        // The names end with consecutive numbers, some of which other tests use.
        let (start, number) = before.directory.to_str().unwrap().rsplit_once('-').unwrap();
        let number: u32 = number.parse().unwrap();
        let left: Vec<_> = (1..50).map(|more| PathBuf::from(format!("{start}-{}", number + more))).collect();
        let left: Vec<_> = left.iter().filter(|directory| fs::create_dir(directory).is_ok()).collect();
        let started = FakeDaemon::start();
        for directory in left {
            fs::remove_dir(directory).unwrap();
        }
        let daemon = started.unwrap();
        daemon.set("psb", "first", HOUR);
        assert_eq!(token(daemon.options()).unwrap(), "first");
    }

    #[test]
    fn a_token_can_last_for_ever_or_too_short() {
        let daemon = FakeDaemon::start().unwrap();
        daemon.set("psb", "for ever", Duration::MAX);
        assert_eq!(token(daemon.options().min_ttl(HOUR)).unwrap(), "for ever");
        daemon.set("psb", "short", HOUR);
        match token(daemon.options().min_ttl(2 * HOUR)) {
            Err(Error::MinTtlUnreachable { best: Some(best), .. }) => assert!(best <= HOUR, "{best:?}"),
            other => panic!("{other:?}"),
        }
        assert_eq!(token(daemon.options()).unwrap(), "short");
    }

    fn token(options: Options) -> Result<String, Error> {
        let reply = Client::new(options).token("psb").unwrap().get()?;
        Ok(reply.token.expose().to_owned())
    }
}
