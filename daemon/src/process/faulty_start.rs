//! A start with a faulty configuration: callers get an answer that says so. The service manager starts the daemon for every
//! caller that waits; a daemon that exited at once would start, and log its faults, in a busy loop.

use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use tokend_protocol::{Codec, ErrorCode, Frame, Reply, Request};
use tokio::net::{UnixListener, UnixStream};
use tokio::time::{sleep, timeout};
use tokio_util::codec::Framed;
use tokio_util::task::TaskTracker;

use crate::server::session::refusal;

const MESSAGE: &str =
    "the daemon's configuration has faults; an operator must mend it (journalctl -u tokend)";

/// Answers one request of every caller with an error, for five seconds.
pub(super) async fn answer_callers(listener: UnixListener) {
    let answers = TaskTracker::new();
    let accepting = async {
        loop {
            match listener.accept().await {
                Ok((caller, _)) => drop(answers.spawn(answer(caller))),
                Err(_) => sleep(Duration::from_millis(50)).await,
            }
        }
    };
    let _ended = timeout(Duration::from_secs(5), accepting).await;
    answers.close();
    let _answered = timeout(Duration::from_secs(1), answers.wait()).await;
}

async fn answer(caller: UnixStream) {
    let mut frames = Framed::new(caller, Codec::<Request, Reply>::new());
    if let Some(Ok(Ok(request))) = frames.next().await {
        let message = Reply::Error(refusal(ErrorCode::Unavailable, MESSAGE));
        let _ = frames.send(Frame { id: request.id, message }).await;
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn client(path: &Path) -> Framed<UnixStream, Codec<Reply, Request>> {
        let stream = std::os::unix::net::UnixStream::connect(path).unwrap();
        stream.set_nonblocking(true).unwrap();
        Framed::new(UnixStream::from_std(stream).unwrap(), Codec::new())
    }

    #[tokio::test(start_paused = true)]
    async fn every_caller_gets_the_reason_and_a_silent_one_delays_nobody() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s.sock");
        let listener = UnixListener::bind(&path).unwrap();
        let _silent = client(&path);
        let mut callers: Vec<_> = (0..30).map(|_| client(&path)).collect();
        for caller in &mut callers {
            caller.send(Frame { id: 7, message: Request::Version }).await.unwrap();
        }
        answer_callers(listener).await;
        for caller in &mut callers {
            let reply = caller.next().await.unwrap().unwrap().unwrap();
            let Reply::Error(error) = reply.message else { panic!("an error was expected") };
            assert_eq!((reply.id, error.code, error.message.as_str()), (7, ErrorCode::Unavailable, MESSAGE));
        }
    }
}
