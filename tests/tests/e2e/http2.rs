//! A token endpoint that speaks HTTP/2 and nothing else.

use std::sync::Arc;

use h2::server::SendResponse;
use http::{Request, Response};
use rustls::ServerConfig;
use tokend_tests::daemon::Launch;
use tokend_tests::test_support::{provider_table, token_of};
use tokend_tests::{Authority, Flaw, TestDir, secrets};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;
use tokio_rustls::TlsAcceptor;

type Respond = fn() -> (Response<()>, String);

/// Starts a server, and returns the URL of its token endpoint.
fn start(runtime: &Runtime, authority: &Authority, respond: Respond) -> String {
    let mut config = ServerConfig::clone(&authority.server(Flaw::None));
    config.alpn_protocols = vec![b"h2".to_vec()];
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
    let endpoint = format!("https://{}/token", listener.local_addr().unwrap());
    runtime.spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(serve(acceptor.clone(), stream, respond));
        }
    });
    endpoint
}

async fn serve(acceptor: TlsAcceptor, stream: TcpStream, respond: Respond) {
    let Ok(stream) = acceptor.accept(stream).await else { return };
    let Ok(mut connection) = h2::server::handshake(stream).await else { return };
    while let Some(Ok((request, reply))) = connection.accept().await {
        tokio::spawn(answer(request, reply, respond));
    }
}

async fn answer(request: Request<h2::RecvStream>, mut reply: SendResponse<bytes::Bytes>, respond: Respond) {
    let mut body = request.into_body();
    while let Some(Ok(data)) = body.data().await {
        let _ = body.flow_control().release_capacity(data.len());
    }
    let (head, body) = respond();
    if let Ok(mut stream) = reply.send_response(head, false) {
        let _ = stream.send_data(body.into(), true);
    }
}

fn json() -> http::response::Builder {
    Response::builder().header("content-type", "application/json")
}

fn token() -> String {
    let token = secrets::invent("access-token");
    serde_json::json!({ "access_token": token, "token_type": "Bearer", "expires_in": 3600 }).to_string()
}

#[test]
fn a_token_comes_over_http2_and_its_replies_have_the_same_limits() {
    let (home, authority, runtime) = (TestDir::new(), Authority::new(), Runtime::new().unwrap());
    let cases: [(&str, Respond, &str); 4] = [
        ("good", || (json().body(()).unwrap(), token()), ""),
        (
            "refused",
            || (json().status(401).body(()).unwrap(), r#"{"error":"invalid_client"}"#.into()),
            "refused",
        ),
        ("body", || (json().body(()).unwrap(), " ".repeat(2 * 1024 * 1024)), "malformed"),
        (
            "head",
            || (json().header("x-padding", "x".repeat(64 * 1024)).body(()).unwrap(), token()),
            "malformed",
        ),
    ];
    let mut text = String::new();
    for (name, respond, _) in cases {
        let more = format!("ca_file = \"{}\"", authority.ca_file().display());
        text.push_str(&provider_table(&home, name, &start(&runtime, &authority, respond), &more));
        text.push_str(&token_of(name, name, ""));
    }
    home.configure("", &text);
    let daemon = Launch::new(&home).start();
    for (name, _, class) in cases {
        let got = daemon.tokenctl().run(&["get", name]);
        let status = daemon.tokenctl().status_of(name);
        assert_eq!(got.code == 0, class.is_empty(), "{name}: {} {status:#}", got.stderr);
        assert_eq!(status["last_error"]["class"].as_str().unwrap_or_default(), class, "{status:#}");
    }
}
