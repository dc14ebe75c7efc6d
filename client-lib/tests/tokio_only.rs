//! What only the async client can do.

mod fake;

use std::sync::{Arc, Barrier, Mutex};

use fake::{Answer, FakeDaemon, TOKEN, name, token};
use tempfile::TempDir;
use tokend_client::{Client, Options, VersionReply};
use tokend_protocol::{Reply, Request};

fn version() -> Reply {
    Reply::Version(VersionReply { daemon: "9.8.7".to_owned(), oldest: 1, newest: 1, highest_request: 8 })
}

#[tokio::test]
async fn answers_out_of_order_on_one_connection_find_their_calls() {
    let place = TempDir::new().unwrap();
    let socket = place.path().join("tokend.sock");
    let first = Mutex::new(None);
    let daemon = FakeDaemon::start(&socket, move |frame| {
        let mut first = first.lock().unwrap();
        match (first.take(), frame.message) {
            (None, request) => {
                *first = Some((frame.id, request));
                Vec::new()
            }
            (Some((id, earlier)), request) => {
                let reply = |request| if request == Request::Version { version() } else { token() };
                vec![Answer::Reply(reply(request)), Answer::Under(id, reply(earlier))]
            }
        }
    });
    let client = Client::new(Options::new(&socket));
    let psb = name("psb");
    let (got, told) = tokio::join!(client.get(&psb), client.version());
    assert_eq!(got.unwrap().token.expose(), TOKEN);
    assert_eq!(told.unwrap().daemon, "9.8.7");
    assert_eq!(daemon.connections(), 1);
}

#[tokio::test]
async fn a_dropped_call_leaves_the_connection_in_order() {
    let place = TempDir::new().unwrap();
    let socket = place.path().join("tokend.sock");
    let (asked, go_on) = (Arc::new(Barrier::new(2)), Arc::new(Barrier::new(2)));
    let (daemon_asked, daemon_go_on) = (Arc::clone(&asked), Arc::clone(&go_on));
    let daemon = FakeDaemon::start(&socket, move |frame| match frame.message {
        Request::Get(_) => {
            daemon_asked.wait();
            daemon_go_on.wait();
            vec![Answer::Reply(token())]
        }
        _ => vec![Answer::Reply(version())],
    });
    let client = Client::new(Options::new(&socket));
    let call = tokio::spawn({
        let client = client.clone();
        async move { client.get(&name("psb")).await }
    });
    tokio::task::spawn_blocking(move || asked.wait()).await.unwrap();
    call.abort();
    assert!(call.await.unwrap_err().is_cancelled());
    go_on.wait();
    for _ in 0..3 {
        client.version().await.unwrap();
    }
    assert_eq!(daemon.connections(), 1);
}

#[test]
fn a_client_outlives_its_runtime() {
    let place = TempDir::new().unwrap();
    let socket = place.path().join("tokend.sock");
    let daemon = FakeDaemon::answering(&socket, |_| token());
    let client = Client::new(Options::new(&socket));
    for _ in 0..2 {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(client.get(&name("psb"))).unwrap();
    }
    assert_eq!(daemon.connections(), 2);
}

#[tokio::test]
async fn dropping_the_client_closes_its_connection() {
    let place = TempDir::new().unwrap();
    let socket = place.path().join("tokend.sock");
    let listener = tokio::net::UnixListener::bind(&socket).unwrap();
    let client = Client::new(Options::new(&socket));
    let call = tokio::spawn(async move { client.get(&name("psb")).await });
    let (mut stream, _) = listener.accept().await.unwrap();
    let mut request = [0; 10];
    tokio::io::AsyncReadExt::read_exact(&mut stream, &mut request).await.unwrap();
    call.abort();
    assert!(call.await.unwrap_err().is_cancelled());
    let mut rest = Vec::new();
    tokio::io::AsyncReadExt::read_to_end(&mut stream, &mut rest).await.unwrap();
    // Nor does anybody read any more: more than fits into the socket does not go through.
    let late = fake::frame(999, version()).repeat(200_000);
    assert!(tokio::io::AsyncWriteExt::write_all(&mut stream, &late).await.is_err());
}
