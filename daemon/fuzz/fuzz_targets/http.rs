//! Any bytes on the HTTP socket, in pieces of any size: each answer is whole, only whole requests without a body get to a
//! session, every one of them is within the limits of the protocol, and no request of a web page gets there.
#![no_main]

use std::cell::Cell;
use std::convert::Infallible;
use std::io;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures_util::FutureExt;
use http::header::ORIGIN;
use http::{Response, StatusCode};
use http_body_util::Full;
use hyper::body::Body;
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper::service::service_fn;
use libfuzzer_sys::fuzz_target;
use tokend::server::http::request::{Asked, read};
use tokend::server::http::server;
use tokend_protocol::{Frame, encode};

/// A caller whose bytes have all come, and who reads everything.
struct Caller<'a> {
    input: &'a [u8],
    piece: usize,
    output: &'a Cell<Vec<u8>>,
}

// The size of a piece, then the bytes.
fuzz_target!(|input: &[u8]| {
    let Some((piece, input)) = input.split_first() else { return };
    let output = Cell::new(Vec::new());
    let answered = Rc::new(Cell::new(0));
    let caller = Caller { input, piece: usize::from(*piece).max(1), output: &output };
    let service = service_fn(|request: hyper::Request<hyper::body::Incoming>| {
        let has_body = !request.body().is_end_stream();
        let written = match read(request.method(), request.uri(), request.headers(), has_body) {
            Ok(asked) => {
                assert!(!has_body && !request.headers().contains_key(ORIGIN));
                if let Asked::Request(message, _) = asked {
                    // As long as any request of the protocol may be, and it can be sent there.
                    encode(&Frame { id: 1, message }, &mut Vec::new()).expect("it is within the limits");
                }
                Response::new(Full::new(Bytes::from_static(b"served")))
            }
            Err(problem) => {
                assert_ne!(problem.status, StatusCode::OK);
                problem.write().into_response(|body| Full::new(Bytes::from(body)))
            }
        };
        answered.set(answered.get() + 1);
        async move { Ok::<_, Infallible>(written) }
    });
    // Everything is ready, so the connection ends without waiting. hyper pauses now and then between many requests.
    let mut connection = pin!(server().serve_connection(caller, service));
    assert!((0..=input.len()).any(|_| connection.as_mut().now_or_never().is_some()), "it ends");
    let output = output.take();
    assert!(output.is_empty() || output.starts_with(b"HTTP/1."), "an answer begins with its status");
    let answers = output.windows(7).filter(|window| window == b"HTTP/1.").count();
    assert!(answers >= answered.get(), "every request has its answer");
});

impl Read for Caller<'_> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        mut room: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        let size = self.piece.min(self.input.len()).min(room.remaining());
        let (now, later) = self.input.split_at(size);
        room.put_slice(now);
        self.input = later;
        Poll::Ready(Ok(()))
    }
}

impl Write for Caller<'_> {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let mut output = self.output.take();
        output.extend_from_slice(bytes);
        self.output.set(output);
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
