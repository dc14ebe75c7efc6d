//! Answers callers while the configuration has faults.

use std::time::Duration;

use futures_util::future::{OptionFuture, join};
use futures_util::{SinkExt, StreamExt};
use tokend_protocol::{Codec, ErrorCode, Frame, Reply, Request};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::time::{sleep, timeout};
use tokio_util::codec::Framed;
use tokio_util::task::TaskTracker;

use super::sockets::PassedSockets;
use crate::server::http;
use crate::server::session::refusal;
use crate::server::stream::refuse_descriptors;

/// The answer to callers of a daemon whose configuration has faults.
const FAULTY: &str = "the daemon's configuration has faults; an operator must mend it (journalctl -u tokend)";

/// Answers one request of every caller with an error, for five seconds. The service manager starts the daemon for every
/// caller that waits; a daemon that exited at once would start, and log its faults, in a busy loop.
///
/// Units whose credentials systemd asks for wait until the daemon serves: an answer without one would start them without it.
pub async fn answer_with_fault(sockets: PassedSockets) {
    let main = OptionFuture::from(sockets.main.map(|listener| answer(listener, refuse)));
    let http = OptionFuture::from(sockets.http.map(|listener| answer(listener, refuse_over_http)));
    join(main, http).await;
}

async fn answer<F: Future<Output = ()> + Send + 'static>(
    listener: UnixListener,
    refuse: fn(UnixStream) -> F,
) {
    let _ = refuse_descriptors(&listener);
    let answers = TaskTracker::new();
    let accepting = async {
        loop {
            match listener.accept().await {
                Ok((caller, _)) => drop(answers.spawn(refuse(caller))),
                Err(_) => sleep(Duration::from_millis(50)).await,
            }
        }
    };
    let _ended = timeout(Duration::from_secs(5), accepting).await;
    answers.close();
    let _answered = timeout(Duration::from_secs(1), answers.wait()).await;
}

async fn refuse(caller: UnixStream) {
    let mut frames = Framed::new(caller, Codec::<Request, Reply>::new());
    if let Some(Ok(Ok(request))) = frames.next().await {
        let message = Reply::Error(refusal(ErrorCode::Unavailable, FAULTY));
        let _ = frames.send(Frame { id: request.id, message }).await;
    }
}

async fn refuse_over_http(mut caller: UnixStream) {
    // The request, mostly: it is read so that the end of the connection is no error for the caller.
    if let Ok(1..) = caller.read(&mut [0; 8192]).await {
        let _ = caller.write_all(&http::refusal(ErrorCode::Unavailable, FAULTY)).await;
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::IoSlice;
    use std::os::fd::AsRawFd;
    use std::path::Path;

    use futures_util::FutureExt;
    use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};

    use super::*;

    fn client(path: &Path) -> Framed<UnixStream, Codec<Reply, Request>> {
        let stream = std::os::unix::net::UnixStream::connect(path).unwrap();
        stream.set_nonblocking(true).unwrap();
        Framed::new(UnixStream::from_std(stream).unwrap(), Codec::new())
    }

    /// Whether a caller can attach a descriptor to its bytes.
    fn accepts_descriptors(path: &Path) -> bool {
        let caller = std::os::unix::net::UnixStream::connect(path).unwrap();
        let file = File::open("/dev/null").unwrap();
        let (bytes, numbers) = ([IoSlice::new(b"x")], [file.as_raw_fd()]);
        let attached = [ControlMessage::ScmRights(&numbers)];
        sendmsg::<()>(caller.as_raw_fd(), &bytes, &attached, MsgFlags::MSG_NOSIGNAL, None).is_ok()
    }

    fn passed(main: UnixListener) -> PassedSockets {
        PassedSockets { main: Some(main), ..PassedSockets::default() }
    }

    #[tokio::test]
    async fn a_daemon_with_a_faulty_configuration_refuses_descriptors_if_the_kernel_can() {
        let dir = tempfile::tempdir().unwrap();
        let (path, other_path) = (dir.path().join("s.sock"), dir.path().join("other.sock"));
        let other = UnixListener::bind(&other_path).unwrap();
        refuse_descriptors(&other);
        let mut answers = Box::pin(answer_with_fault(passed(UnixListener::bind(&path).unwrap())));
        assert!((&mut answers).now_or_never().is_none());
        assert_eq!(accepts_descriptors(&path), accepts_descriptors(&other_path));
    }

    #[tokio::test(start_paused = true)]
    async fn every_caller_gets_the_reason_and_a_silent_one_delays_nobody() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s.sock");
        let mut sockets = passed(UnixListener::bind(&path).unwrap());
        let http_path = dir.path().join("http.sock");
        sockets.http = Some(UnixListener::bind(&http_path).unwrap());
        let mut over_http = UnixStream::connect(&http_path).await.unwrap();
        over_http.write_all(b"GET /v1/tokens/t HTTP/1.1\r\n\r\n").await.unwrap();
        let _silent = client(&path);
        let mut callers: Vec<_> = (0..30).map(|_| client(&path)).collect();
        for caller in &mut callers {
            caller.send(Frame { id: 7, message: Request::Version }).await.unwrap();
        }
        answer_with_fault(sockets).await;
        let mut answer = String::new();
        over_http.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 503 ") && answer.contains(FAULTY), "{answer}");
        for caller in &mut callers {
            let reply = caller.next().await.unwrap().unwrap().unwrap();
            let Reply::Error(error) = reply.message else { panic!("an error was expected") };
            assert_eq!((reply.id, error.code, error.message.as_str()), (7, ErrorCode::Unavailable, FAULTY));
        }
    }
}
