//! Connections by way of `tokend-egress`, for a process that has no network.

use std::convert::Infallible;
use std::io;
use std::mem;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::time::{Instant, sleep, timeout};

use crate::channel::Channel;
use crate::connect::{ConnectError, TIMEOUT};
use crate::connection::Connection;
use crate::network::GAP_FIRST;
use crate::passed;
use crate::wire::{Reply, Request, WireError, decode, encode, plain};

/// How long until it is asked again when it has too much to do.
const BUSY: Duration = Duration::from_millis(50);

/// How long until the first attempt to be told of changes again. A helper that is upgraded is back by then.
const RETURN_FIRST: Duration = Duration::from_secs(1);

/// How long until each further one at most, and how long a subscription must have lasted for the next pause to be short.
const RETURN_MOST: Duration = Duration::from_secs(30);

/// Another process, which listens there and has the network.
#[derive(Clone, Debug)]
pub struct Helper {
    path: PathBuf,
}

impl Helper {
    /// The one that listens on this socket.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into() }
    }

    /// A connection to a host. The other process is asked for it, and what it gives is looked at.
    pub async fn connect(&self, host: &str, port: u16) -> Result<Connection, ConnectError> {
        let answered = timeout(TIMEOUT, self.ask_until_heard(host, port)).await;
        answered.unwrap_or_else(|_| Err(self.fault(io::ErrorKind::TimedOut.into())))
    }

    async fn ask_until_heard(&self, host: &str, port: u16) -> Result<Connection, ConnectError> {
        let request = Request::Connect { host: host.to_owned(), port };
        let request = match encode(&request) {
            Err(WireError::TooLong) => {
                return Err(ConnectError::Unresolved("the name is too long".to_owned()));
            }
            other => other.map_err(|error| self.fault(error.into()))?,
        };
        loop {
            match self.ask_once(&request).await {
                Ok((Reply::Refused, None)) => (),
                Ok((reply, descriptor)) => return self.read(reply, descriptor, host, port),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => (),
                Err(error) => return Err(self.fault(error)),
            }
            sleep(BUSY).await;
        }
    }

    async fn ask_once(&self, request: &[u8]) -> io::Result<(Reply, Option<OwnedFd>)> {
        ask(&Channel::connect(&self.path)?, request).await
    }

    fn read(
        &self,
        reply: Reply,
        descriptor: Option<OwnedFd>,
        host: &str,
        port: u16,
    ) -> Result<Connection, ConnectError> {
        match (reply, descriptor) {
            (Reply::Connected, Some(descriptor)) => {
                let stream = passed::connection(descriptor, host, port).map_err(|error| self.fault(error))?;
                Ok(Connection::new(stream))
            }
            (Reply::Unresolved(reason), None) => Err(ConnectError::Unresolved(plain(&reason))),
            (Reply::Failed(failure), None) => Err(ConnectError::Failed(failure.into())),
            _ => Err(self.fault(unexpected())),
        }
    }

    /// Calls `changed` after each change of the network that the other process tells of, and when it is there again
    /// after it was not: what failed meanwhile may work now. Runs until it is dropped.
    pub async fn watch_network(&self, changed: impl Fn()) -> Infallible {
        let mut absence = Absence::default();
        loop {
            let since = Instant::now();
            let Err(error) = self.subscribe(&mut absence, &changed).await;
            sleep(absence.goes_on(&self.path, &error, since.elapsed())).await;
        }
    }

    async fn subscribe(&self, absence: &mut Absence, changed: impl Fn()) -> io::Result<Infallible> {
        let request = encode(&Request::WatchNetwork)?;
        let channel = Channel::connect(&self.path)?;
        match timeout(TIMEOUT, ask(&channel, &request)).await?? {
            (Reply::Watching, None) => (),
            (Reply::Failed(failure), None) => return Err(failure.into()),
            (Reply::Refused, None) => return Err(io::Error::other("it has too many requests")),
            _ => return Err(unexpected()),
        }
        if absence.ends(&self.path) {
            changed();
        }
        loop {
            match receive(&channel).await? {
                (Reply::Changed, None) => {
                    changed();
                    // No helper tells sooner of the next one. So one that is not itself any more cannot end every
                    // back-off at once.
                    sleep(GAP_FIRST).await;
                }
                (Reply::Failed(failure), None) => return Err(failure.into()),
                _ => return Err(unexpected()),
            }
        }
    }

    fn fault(&self, source: io::Error) -> ConnectError {
        ConnectError::Helper { path: self.path.clone(), source }
    }
}

async fn ask(channel: &Channel, request: &[u8]) -> io::Result<(Reply, Option<OwnedFd>)> {
    match channel.send(request, None).await {
        // It may have said something before it hung up.
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error),
        _ => receive(channel).await,
    }
}

async fn receive(channel: &Channel) -> io::Result<(Reply, Option<OwnedFd>)> {
    let received = channel.receive().await?.ok_or(io::ErrorKind::UnexpectedEof)?;
    Ok((decode(&received.bytes)?, received.descriptor))
}

fn unexpected() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "it answers what was not asked")
}

/// The time in which nobody tells of changes: reported when it begins and when it ends, however often it is tried to
/// end it.
#[derive(Debug)]
struct Absence {
    is_known: bool,
    pause: Duration,
}

impl Default for Absence {
    fn default() -> Self {
        Self { is_known: false, pause: RETURN_FIRST }
    }
}

impl Absence {
    /// A subscription has failed after this time: how long until the next.
    fn goes_on(&mut self, path: &Path, error: &io::Error, lasted: Duration) -> Duration {
        if !self.is_known {
            let path = path.display();
            tracing::warn!(%path, %error, "tokend-egress tells of no changes of the network: what fails for want of it is tried again by schedule alone");
        }
        self.is_known = true;
        let pause = if lasted > RETURN_MOST { RETURN_FIRST } else { self.pause };
        self.pause = (pause * 2).min(RETURN_MOST);
        pause
    }

    /// There is a subscription: whether there was none before.
    fn ends(&mut self, path: &Path) -> bool {
        let was_known = mem::take(&mut self.is_known);
        if was_known {
            tracing::info!(path = %path.display(), "tokend-egress tells of changes of the network again");
        }
        was_known
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::io::Write;
    use std::os::fd::AsFd;
    use std::sync::{Arc, Mutex};

    use rustix::net::{AddressFamily, SocketType, socket};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpListener, TcpStream, UdpSocket, UnixStream};
    use tokio::sync::Notify;

    use super::*;
    use crate::connect;
    use crate::scene::{Scene, closed, in_own_network, listener, raise_link, silent};
    use crate::wire::MESSAGE_MOST;

    #[tokio::test]
    async fn a_connection_that_is_passed_leads_there() {
        let scene = Scene::new();
        let _serving = scene.serve();
        for (address, host) in [("127.0.0.1", "localhost"), ("127.0.0.1", "127.0.0.1"), ("::1", "[::1]")] {
            let (provider, port) = listener(address).await;
            let mut near = scene.helper().connect(host, port).await.unwrap();
            assert!(near.as_ref().nodelay().unwrap(), "{host}");
            let (mut far, _) = provider.accept().await.unwrap();
            near.write_all(b"there").await.unwrap();
            far.write_all(b"back").await.unwrap();
            let (mut there, mut back) = ([0; 5], [0; 4]);
            far.read_exact(&mut there).await.unwrap();
            near.read_exact(&mut back).await.unwrap();
            assert_eq!((&there, &back), (b"there", b"back"), "{host}");
            // The other process has kept no copy that would hold the connection open.
            drop(near);
            let end = timeout(Duration::from_secs(20), far.read(&mut there)).await;
            assert_eq!(end.expect("a copy is kept").unwrap(), 0, "{host}");
        }
    }

    #[tokio::test]
    async fn a_failure_is_the_same_by_either_way() {
        let scene = Scene::new();
        let _serving = scene.serve();
        let (_closed, port) = closed();
        for (host, port) in [("127.0.0.1", port), ("nobody.invalid", 443), ("not a name", 443), ("", 443)] {
            let direct = connect::connect(host, port).await.unwrap_err();
            let passed = scene.helper().connect(host, port).await.unwrap_err();
            assert!(!matches!(passed, ConnectError::Helper { .. }), "{passed}");
            assert_eq!(format!("{direct:?}"), format!("{passed:?}"), "{host}");
        }
        let endless = scene.helper().connect(&"a".repeat(MESSAGE_MOST), 443).await.unwrap_err();
        assert!(matches!(endless, ConnectError::Unresolved(_)), "{endless}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_host_that_is_silent_is_told_from_a_helper_that_is() {
        let scene = Scene::new();
        let (_silent, port) = silent().await;
        let serving = scene.serve();
        let direct = connect::connect("127.0.0.1", port).await.unwrap_err();
        let passed = scene.helper().connect("127.0.0.1", port).await.unwrap_err();
        assert!(matches!(&passed, ConnectError::Failed(error) if error.kind() == io::ErrorKind::TimedOut));
        assert_eq!(format!("{direct:?}"), format!("{passed:?}"));
        drop(serving);

        let other = Scene::new();
        let _listens_and_no_more = other.listen();
        let began = Instant::now();
        assert_eq!(fault_of(&other, "127.0.0.1", port).await, io::ErrorKind::TimedOut);
        assert_eq!(began.elapsed(), TIMEOUT);
    }

    #[tokio::test]
    async fn a_helper_that_is_not_there_is_named() {
        let scene = Scene::new();
        let error = scene.helper().connect("id.example", 443).await.unwrap_err().to_string();
        let path = scene.path().display().to_string();
        assert!(error.contains(&path) && error.contains("systemctl status tokend-egress.socket"), "{error}");
    }

    /// The kind of fault that a helper is found to have.
    async fn fault_of(scene: &Scene, host: &str, port: u16) -> io::ErrorKind {
        match scene.helper().connect(host, port).await {
            Err(ConnectError::Helper { path, source }) => {
                assert_eq!(path, scene.path());
                source.kind()
            }
            other => panic!("the fault is the helper's: {other:?}"),
        }
    }

    /// What becomes of a descriptor that a helper passes as a connection to this host and port.
    async fn passing(descriptor: impl Into<OwnedFd>, host: &str, port: u16) -> Result<(), io::ErrorKind> {
        let scene = Scene::new();
        let mut passed = Some(descriptor.into());
        let _serving = scene.answer(move |channel, _| {
            let passed = passed.take().unwrap();
            async move {
                channel.send(br#""connected""#, Some(passed.as_fd())).await.unwrap();
                None
            }
        });
        match scene.helper().connect(host, port).await {
            Ok(_) => Ok(()),
            Err(ConnectError::Helper { source, .. }) => Err(source.kind()),
            Err(other) => panic!("the fault is the helper's: {other}"),
        }
    }

    #[tokio::test]
    async fn what_is_no_connection_to_that_port_is_refused_and_closed() {
        const REFUSED: Result<(), io::ErrorKind> = Err(io::ErrorKind::InvalidData);
        let (mut end, pipe) = io::pipe().unwrap();
        assert_eq!(passing(pipe, "id.example", 443).await, REFUSED, "a pipe");
        assert_eq!(io::Read::read(&mut end, &mut [0]).unwrap(), 0, "it has been closed");

        let (mut end, local) = UnixStream::pair().unwrap();
        assert_eq!(passing(local.into_std().unwrap(), "id.example", 443).await, REFUSED, "a Unix socket");
        assert_eq!(end.read(&mut [0]).await.unwrap(), 0, "it has been closed");

        let unconnected = socket(AddressFamily::INET, SocketType::STREAM, None).unwrap();
        assert_eq!(passing(unconnected, "id.example", 443).await, REFUSED, "a socket that is not connected");

        let datagrams = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        datagrams.connect(datagrams.local_addr().unwrap()).await.unwrap();
        let port = datagrams.local_addr().unwrap().port();
        assert_eq!(
            passing(datagrams.into_std().unwrap(), "localhost", port).await,
            REFUSED,
            "one for datagrams"
        );

        let (listener, port) = listener("127.0.0.1").await;
        assert_eq!(
            passing(listener.into_std().unwrap(), "localhost", port).await,
            REFUSED,
            "one that listens"
        );
    }

    async fn connected(provider: &TcpListener) -> std::net::TcpStream {
        TcpStream::connect(provider.local_addr().unwrap()).await.unwrap().into_std().unwrap()
    }

    #[tokio::test]
    async fn what_may_be_secret_on_loopback_goes_to_that_address_alone() {
        const ELSEWHERE: Result<(), io::ErrorKind> = Err(io::ErrorKind::InvalidData);
        let (provider, port) = listener("127.0.0.1").await;
        for host in ["localhost", "LocalHost", "127.0.0.1", "id.example"] {
            assert_eq!(passing(connected(&provider).await, host, port).await, Ok(()), "{host}");
        }
        for host in ["127.0.0.2", "[::1]"] {
            assert_eq!(passing(connected(&provider).await, host, port).await, ELSEWHERE, "{host}");
        }
        assert_eq!(passing(connected(&provider).await, "localhost", 1).await, ELSEWHERE, "another port");
        assert_eq!(passing(connected(&provider).await, "id.example", 443).await, ELSEWHERE, "another port");

        let (both, port) = listener("::").await;
        let mapped = TcpStream::connect(("::ffff:127.0.0.1", port)).await.unwrap().into_std().unwrap();
        assert_eq!(passing(mapped, "localhost", port).await, Ok(()), "in the clothes of the other version");
        drop(both);

        let (neighbour, port) = listener("127.0.0.2").await;
        assert_eq!(passing(connected(&neighbour).await, "localhost", port).await, ELSEWHERE);
        assert_eq!(passing(connected(&neighbour).await, "127.0.0.2", port).await, Ok(()));
    }

    #[tokio::test]
    async fn an_answer_that_is_none_is_the_helpers_fault() {
        let scene = Scene::new();
        let (_end, pipe) = io::pipe().unwrap();
        let pipe = Arc::new(pipe);
        let long = format!("{{\"unresolved\":{:?}}}", "a".repeat(MESSAGE_MOST)).into_bytes();
        let wrong: Vec<(Vec<u8>, bool)> = vec![
            (br#""connected""#.to_vec(), false),
            (br#"{"unresolved":"who?"}"#.to_vec(), true),
            (br#"{"failed":"timed_out"}"#.to_vec(), true),
            (br#""refused""#.to_vec(), true),
            (br#""watching""#.to_vec(), false),
            (br#""changed""#.to_vec(), false),
            (br#"{"unresolved":"who?","more":1}"#.to_vec(), false),
            (b"HTTP/1.1 200 OK".to_vec(), false),
            (b"\xff\x00".to_vec(), false),
            (long, false),
        ];
        let asked = wrong.len();
        let mut answers = wrong.clone().into_iter();
        let _serving = scene.answer(move |channel, _| {
            let (answer, with_descriptor) = answers.next().unwrap();
            let pipe = Arc::clone(&pipe);
            async move {
                channel.send(&answer, with_descriptor.then(|| pipe.as_fd())).await.unwrap();
                None
            }
        });
        for (answer, _) in wrong.iter().take(asked) {
            let kind = fault_of(&scene, "id.example", 443).await;
            assert_eq!(kind, io::ErrorKind::InvalidData, "{}", String::from_utf8_lossy(answer));
        }
    }

    #[tokio::test]
    async fn a_helper_that_hangs_up_without_an_answer_is_at_fault() {
        let scene = Scene::new();
        let _serving = scene.answer(|_, _| async { None });
        assert_eq!(fault_of(&scene, "id.example", 443).await, io::ErrorKind::UnexpectedEof);
    }

    #[tokio::test]
    async fn what_a_helper_says_can_do_nothing_to_a_terminal() {
        let scene = Scene::new();
        let _serving = scene.answer(|channel, _| async move {
            channel.send(br#"{"unresolved":"a\u001b[2Jb\u202e\nc"}"#, None).await.unwrap();
            None
        });
        let error = scene.helper().connect("id.example", 443).await.unwrap_err();
        assert!(matches!(&error, ConnectError::Unresolved(reason) if reason == "a?[2Jb??c"), "{error:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_helper_that_is_busy_is_asked_again() {
        let scene = Scene::new();
        let (_provider, port) = listener("127.0.0.1").await;
        let mut refusals = 3;
        let _serving = scene.answer(move |channel, _| {
            let is_busy = refusals > 0;
            refusals -= 1;
            async move {
                if is_busy {
                    channel.end_with(br#""refused""#).unwrap();
                    return None;
                }
                let stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
                channel.send(br#""connected""#, Some(stream.as_fd())).await.unwrap();
                None
            }
        });
        scene.helper().connect("127.0.0.1", port).await.unwrap();
    }

    #[tokio::test]
    async fn a_refusal_is_heard_that_comes_before_the_request() {
        let scene = Scene::new();
        let (listener, _lock) = scene.listen();
        let channel = scene.channel();
        let (accepted, _) = listener.accept().await.unwrap();
        Channel::accepted(accepted).end_with(br#""refused""#).unwrap();
        let request = encode(&Request::WatchNetwork).unwrap();
        assert!(matches!(ask(&channel, &request).await, Ok((Reply::Refused, None))));
    }

    #[tokio::test(start_paused = true)]
    async fn who_does_not_tell_of_changes_is_asked_ever_more_seldom_and_reported_once() {
        let scene = Scene::new();
        let attempts = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&attempts);
        let _serving = scene.answer(move |channel, request| {
            assert_eq!(request, Request::WatchNetwork);
            let began = Instant::now();
            seen.lock().unwrap().push(began);
            let failures = seen.lock().unwrap().len();
            async move {
                if failures > 8 {
                    channel.send(br#""watching""#, None).await.unwrap();
                }
                (failures > 8).then_some(channel)
            }
        });
        let (logged, changed) = (Arc::new(Mutex::new(Vec::new())), Notify::new());
        let log = Arc::clone(&logged);
        let subscriber = tracing_subscriber::fmt().with_writer(move || Log(Arc::clone(&log))).finish();
        let _logging = tracing::subscriber::set_default(subscriber);
        let helper = scene.helper();
        tokio::select! {
            never = helper.watch_network(|| changed.notify_one()) => match never {},
            () = changed.notified() => (),
            () = sleep(Duration::from_secs(3600)) => panic!("its return is not told"),
        }
        let attempts = attempts.lock().unwrap().clone();
        let pauses: Vec<u64> = attempts.windows(2).map(|pair| (pair[1] - pair[0]).as_secs()).collect();
        assert_eq!(pauses, [1, 2, 4, 8, 16, 30, 30, 30]);
        let logged = String::from_utf8(logged.lock().unwrap().clone()).unwrap();
        assert_eq!(logged.matches("WARN").count(), 1, "{logged}");
        assert_eq!(logged.matches("INFO").count(), 1, "{logged}");
    }

    struct Log(Arc<Mutex<Vec<u8>>>);

    impl Write for Log {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            Write::write(&mut *self.0.lock().unwrap(), bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[tokio::test(start_paused = true)]
    async fn changes_are_told_and_so_is_the_return_of_who_tells_of_them() {
        let scene = Scene::new();
        let mut subscriptions = 0;
        let _serving = scene.answer(move |channel, _| {
            subscriptions += 1;
            let changes = if subscriptions == 1 { 2 } else { 0 };
            async move {
                channel.send(br#""watching""#, None).await.unwrap();
                for _ in 0..changes {
                    channel.send(br#""changed""#, None).await.unwrap();
                }
                (changes == 0).then_some(channel)
            }
        });
        let count = Cell::new(0);
        let helper = scene.helper();
        let changed = || count.set(count.get() + 1);
        let long = Duration::from_secs(3600);
        let _ = timeout(long, helper.watch_network(changed)).await;
        assert_eq!(count.get(), 3, "two changes, one return, and none at the start");
    }

    #[tokio::test(start_paused = true)]
    async fn changes_that_are_told_without_end_are_heeded_now_and_then() {
        let scene = Scene::new();
        let _serving = scene.answer(|channel, _| async move {
            channel.send(br#""watching""#, None).await.unwrap();
            for _ in 0..30 {
                channel.send(br#""changed""#, None).await.unwrap();
            }
            Some(channel)
        });
        let count = Cell::new(0);
        let helper = scene.helper();
        let _ = timeout(Duration::from_secs(59), helper.watch_network(|| count.set(count.get() + 1))).await;
        assert_eq!(count.get(), 12, "one in 5 seconds");
    }

    #[test]
    fn a_change_of_the_network_reaches_who_has_none() {
        in_own_network(|| async {
            let scene = Scene::new();
            let _serving = scene.serve();
            let changed = Notify::new();
            let watcher = scene.channel();
            watcher.send(br#""watch_network""#, None).await.unwrap();
            assert_eq!(watcher.receive().await.unwrap().unwrap().bytes, br#""watching""#);
            let raising = async {
                raise_link();
                let told = timeout(Duration::from_secs(20), watcher.receive()).await.unwrap();
                assert_eq!(told.unwrap().unwrap().bytes, br#""changed""#);
                timeout(Duration::from_secs(20), changed.notified()).await.unwrap();
            };
            let helper = scene.helper();
            tokio::select! {
                biased;
                never = helper.watch_network(|| changed.notify_one()) => match never {},
                () = raising => (),
            }
        });
    }
}
