//! Answers requests: each by a task of its own, no more at once than there are descriptors for, and nobody waits for
//! a place.

use std::io;
use std::os::fd::AsFd;
use std::time::Duration;

use tokio::net::{UnixListener, UnixStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::channel::Channel;
use crate::connect::connect_within;
use crate::network;
use crate::wire::{Failure, Reply, Request, decode, encode};

/// How many requests are answered at once. Each takes up to three descriptors, the request's own and one for either
/// version of IP, so that these and the look-ups of names stay below the 1024 that a process has unless it is given more.
pub const REQUESTS_MOST: usize = 256;

/// How long a client may take to say what it wants.
pub const REQUEST_DEADLINE: Duration = Duration::from_secs(5);

/// How long a connection may take. It is less than who asks for it waits for the answer, who so hears that it is the host
/// which does not answer ([`connect::TIMEOUT`](crate::connect::TIMEOUT)).
pub const CONNECT_TIMEOUT: Duration = Duration::from_millis(2600);

/// The rest after a failed accept, when most likely no descriptor is left. The kernel would report the same connection
/// again at once.
const ACCEPT_REST: Duration = Duration::from_millis(100);

/// Counts changes of the network, or says why they cannot be noticed.
type Changes = watch::Receiver<Option<Failure>>;

/// Serves a socket of type `SOCK_SEQPACKET`. Runs until it is dropped, and what it has begun ends with it.
pub async fn serve(listener: UnixListener) {
    let (noticed, changes) = watch::channel(None);
    tokio::select! {
        // First, so that the kernel is listened to before anybody is told that it is.
        biased;
        () = notice(noticed) => (),
        () = accept(&listener, changes) => (),
    }
}

/// One watch for all who want to know.
async fn notice(noticed: watch::Sender<Option<Failure>>) {
    if let Err(error) = network::watch(|| noticed.send_modify(|_| ())).await {
        tracing::warn!(%error, "changes of the network will not be noticed");
        noticed.send_replace(Some(Failure::from(&error)));
    }
    std::future::pending::<()>().await;
}

async fn accept(listener: &UnixListener, changes: Changes) {
    let mut requests = Requests { running: JoinSet::new(), changes, is_full: false };
    let mut is_failing = false;
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => {
                    is_failing = false;
                    requests.begin(stream);
                }
                Err(error) => {
                    if !is_failing {
                        tracing::warn!(%error, "requests could not be accepted");
                    }
                    is_failing = true;
                    tokio::time::sleep(ACCEPT_REST).await;
                }
            },
            Some(ended) = requests.running.join_next() => requests.end(ended),
        }
    }
}

struct Requests {
    running: JoinSet<()>,
    changes: Changes,
    is_full: bool,
}

impl Requests {
    fn begin(&mut self, stream: UnixStream) {
        let channel = Channel::accepted(stream);
        if self.running.len() < REQUESTS_MOST {
            self.running.spawn(answer(channel, self.changes.clone()));
            return;
        }
        if !self.is_full {
            tracing::warn!(
                at_once = REQUESTS_MOST,
                "there are too many requests; more are refused until some end"
            );
        }
        self.is_full = true;
        // Whoever cannot be told learns it from the closed connection.
        let _ = encode(&Reply::Refused).map(|refused| channel.end_with(&refused));
    }

    fn end(&mut self, ended: Result<(), tokio::task::JoinError>) {
        self.is_full &= self.running.len() > REQUESTS_MOST / 2;
        if let Err(error) = ended {
            tracing::error!(%error, "a request broke off");
        }
    }
}

/// One request, from its message to its end.
async fn answer(channel: Channel, changes: Changes) {
    let ended = match tokio::time::timeout(REQUEST_DEADLINE, request(&channel)).await {
        Ok(Ok(Request::Connect { host, port })) => connect(&channel, &host, port).await,
        Ok(Ok(Request::WatchNetwork)) => tell_of_changes(&channel, changes).await,
        Ok(Err(error)) => Err(error),
        Err(elapsed) => Err(elapsed.into()),
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "a request came to nothing");
    }
}

async fn request(channel: &Channel) -> io::Result<Request> {
    let received = channel.receive().await?.ok_or(io::ErrorKind::UnexpectedEof)?;
    if received.descriptor.is_some() {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "a request with a descriptor"));
    }
    Ok(decode(&received.bytes)?)
}

async fn connect(channel: &Channel, host: &str, port: u16) -> io::Result<()> {
    let connected = tokio::select! {
        biased;
        connected = connect_within(CONNECT_TIMEOUT, host, port) => connected,
        end = end(channel) => return Err(end),
    };
    match connected {
        Ok(stream) => {
            tracing::debug!(host, port, "connected");
            channel.send(&encode(&Reply::Connected)?, Some(stream.as_fd())).await
        }
        Err(error) => {
            tracing::debug!(host, port, %error, "not connected");
            channel.send(&encode(&Reply::from(&error))?, None).await
        }
    }
}

async fn tell_of_changes(channel: &Channel, mut changes: Changes) -> io::Result<()> {
    let mut reply = Reply::Watching;
    loop {
        let failure = changes.borrow_and_update().clone();
        if let Some(failure) = failure {
            return channel.send(&encode(&Reply::Failed(failure))?, None).await;
        }
        let told = async {
            channel.send(&encode(&reply)?, None).await?;
            changes.changed().await.map_err(io::Error::other)
        };
        tokio::select! {
            told = told => told?,
            end = end(channel) => return Err(end),
        }
        reply = Reply::Changed;
    }
}

/// Waits until the client has given up: it has hung up, or says what it has no business to say.
async fn end(channel: &Channel) -> io::Error {
    match channel.receive().await {
        Ok(None) => io::Error::other("the client has given it up"),
        Ok(Some(_)) => io::Error::new(io::ErrorKind::InvalidData, "more than one request"),
        Err(error) => error,
    }
}

#[cfg(test)]
mod tests {
    use std::io::pipe;

    use tokio::time::Instant;

    use super::*;
    use crate::scene::{Scene, Serving, listener, silent};
    use crate::wire::MESSAGE_MOST;

    async fn reply(channel: &Channel) -> Option<Reply> {
        let received = channel.receive().await.unwrap()?;
        Some(decode(&received.bytes).unwrap())
    }

    async fn watch_network(scene: &Scene) -> (Channel, Option<Reply>) {
        let channel = scene.channel();
        // One that is refused may have been hung up on already.
        let _ = channel.send(br#""watch_network""#, None).await;
        let reply = reply(&channel).await;
        (channel, reply)
    }

    #[tokio::test]
    async fn what_is_no_request_is_hung_up_on_and_harms_nobody() {
        let scene = Scene::new();
        let _serving = scene.serve();
        let (_provider, port) = listener("127.0.0.1").await;
        let request = format!(r#"{{"connect":{{"host":"127.0.0.1","port":{port}}}}}"#);
        let wrong = [
            b"\xff".to_vec(),
            b"GET / HTTP/1.1\r\n\r\n".to_vec(),
            request.as_bytes()[..request.len() - 1].to_vec(),
            format!("{request}{request}").into_bytes(),
            br#"{"connect":{"host":"id.example"}}"#.to_vec(),
            br#"{"connect":{"host":"id.example","port":443,"more":1}}"#.to_vec(),
            br#"{"connect":{"host":"id.example","port":65536}}"#.to_vec(),
            br#""connected""#.to_vec(),
            vec![b'a'; MESSAGE_MOST + 1],
        ];
        for wrong in wrong {
            let channel = scene.channel();
            channel.send(&wrong, None).await.unwrap();
            assert_eq!(reply(&channel).await, None, "{}", String::from_utf8_lossy(&wrong));
            scene.helper().connect("127.0.0.1", port).await.unwrap();
        }
        let (_end, descriptor) = pipe().unwrap();
        let channel = scene.channel();
        channel.send(request.as_bytes(), Some(descriptor.as_fd())).await.unwrap();
        assert_eq!(reply(&channel).await, None, "a request with a descriptor");
        drop(scene.channel());
        scene.helper().connect("127.0.0.1", port).await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn who_says_nothing_is_hung_up_on() {
        let scene = Scene::new();
        let _serving = scene.serve();
        let began = Instant::now();
        assert_eq!(reply(&scene.channel()).await, None);
        assert_eq!(began.elapsed(), REQUEST_DEADLINE);
    }

    fn is_being_connected_to(port: u16) -> bool {
        let (remote, syn_sent) = (format!("0100007F:{port:04X}"), "02");
        let sockets = std::fs::read_to_string("/proc/self/net/tcp").unwrap();
        sockets.lines().any(|line| {
            let fields: Vec<&str> = line.split_whitespace().collect();
            fields[2] == remote && fields[3] == syn_sent
        })
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_that_nobody_waits_for_is_given_up() {
        for last_words in [None, Some("never mind")] {
            let scene = Scene::new();
            let _serving = scene.serve();
            let (_silent, port) = silent().await;
            let client = scene.channel();
            let request = Request::Connect { host: "127.0.0.1".to_owned(), port };
            client.send(&encode(&request).unwrap(), None).await.unwrap();
            while !is_being_connected_to(port) {
                // Simulated time stands still as long as there is something to do.
                tokio::task::yield_now().await;
            }
            let began = Instant::now();
            let kept = if let Some(words) = last_words {
                client.send(words.as_bytes(), None).await.unwrap();
                Some(client)
            } else {
                drop(client);
                None
            };
            while is_being_connected_to(port) {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            assert!(began.elapsed() < CONNECT_TIMEOUT / 2, "not by its own time-out");
            drop(kept);
        }
    }

    #[tokio::test]
    async fn what_is_too_much_is_refused_at_once_and_a_place_is_free_when_a_request_ends() {
        let scene = Scene::new();
        let _serving: Serving = scene.serve();
        let mut watching = Vec::new();
        for _ in 0..REQUESTS_MOST {
            let (channel, reply) = watch_network(&scene).await;
            assert_eq!(reply, Some(Reply::Watching));
            watching.push(channel);
        }
        for _ in 0..100 {
            assert_eq!(watch_network(&scene).await.1, Some(Reply::Refused));
        }
        let (_provider, port) = listener("127.0.0.1").await;
        let helper = scene.helper();
        let waiting = helper.connect("127.0.0.1", port);
        let freeing = async {
            tokio::task::yield_now().await;
            watching.pop();
        };
        tokio::join!(waiting, freeing).0.unwrap();
    }

    #[tokio::test]
    async fn where_the_kernel_tells_nothing_those_who_ask_are_told_so() {
        let scene = Scene::new();
        let (listener, _lock) = scene.listen();
        let (noticed, changes) = watch::channel(None);
        let serving = tokio::spawn(async move { accept(&listener, changes).await });
        let (before, watching) = watch_network(&scene).await;
        assert_eq!(watching, Some(Reply::Watching));
        noticed.send_replace(Some(Failure::Errno(97)));
        assert_eq!(reply(&before).await, Some(Reply::Failed(Failure::Errno(97))));
        assert_eq!(watch_network(&scene).await.1, Some(Reply::Failed(Failure::Errno(97))));
        serving.abort();
    }
}
