//! One connection of the scripted provider: requests in, scripted answers out.

use std::fmt::Write;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use rustls::ServerConfig;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

use super::answer::{Answer, Fault};
use super::{Door, Recorded, Shared};

/// No request of a token needs more.
const REQUEST_MAX: usize = 1024 * 1024;

/// How a connection ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Close,
    Reset,
}

/// Takes connections until it is dropped.
pub(super) async fn accept(listener: TcpListener, tls: Option<Arc<ServerConfig>>, shared: Arc<Shared>) {
    while let Ok((stream, _)) = listener.accept().await {
        shared.connections.fetch_add(1, Ordering::Relaxed);
        let door = shared.lock().door;
        tokio::spawn(meet(stream, door, tls.clone(), Arc::clone(&shared)));
    }
}

async fn meet(stream: TcpStream, door: Door, tls: Option<Arc<ServerConfig>>, shared: Arc<Shared>) {
    match door {
        Door::Open => serve(stream, tls, &shared).await,
        Door::Resets => reset(&stream),
        Door::Silent => {
            std::future::pending::<()>().await;
            drop(stream);
        }
    }
}

async fn serve(mut stream: TcpStream, tls: Option<Arc<ServerConfig>>, shared: &Shared) {
    // An answer in two parts would otherwise wait for the acknowledgement of the first, some 40 ms.
    let _ = stream.set_nodelay(true);
    let Some(config) = tls else {
        if converse(&mut stream, shared).await.is_ok_and(|end| end == End::Reset) {
            reset(&stream);
        }
        return;
    };
    // A client that does not trust the certificate ends the handshake; that is its answer.
    let Ok(mut stream) = TlsAcceptor::from(config).accept(stream).await else { return };
    if converse(&mut stream, shared).await.is_ok_and(|end| end == End::Reset) {
        reset(stream.get_ref().0);
        return;
    }
    let _ = stream.shutdown().await;
}

/// Makes the kernel reset the connection when it is closed, which is at once.
fn reset(stream: &TcpStream) {
    let _ = stream.set_zero_linger();
}

async fn converse<S: AsyncRead + AsyncWrite + Unpin>(stream: &mut S, shared: &Shared) -> io::Result<End> {
    let mut unread = Vec::new();
    while let Some(request) = read_request(stream, &mut unread).await? {
        let last = request.header("connection").is_some_and(|value| value.eq_ignore_ascii_case("close"));
        let answer = shared.take_request(request);
        if let Some(gate) = &answer.gate {
            gate.passed().await;
        }
        tokio::time::sleep(answer.delay).await;
        if let Some(end) = write_answer(stream, &answer, shared).await? {
            return Ok(end);
        }
        if last {
            break;
        }
    }
    Ok(End::Close)
}

/// The next request, or `None` where the client closes between two.
async fn read_request<S: AsyncRead + Unpin>(
    stream: &mut S,
    unread: &mut Vec<u8>,
) -> io::Result<Option<Recorded>> {
    loop {
        if let Some((request, length)) = parse(unread)? {
            unread.drain(..length);
            return Ok(Some(request));
        }
        if unread.len() > REQUEST_MAX {
            return Err(io::ErrorKind::InvalidData.into());
        }
        if stream.read_buf(unread).await? == 0 {
            return Ok(None);
        }
    }
}

/// The request at the front of the bytes with its length, if all of it is there.
fn parse(bytes: &[u8]) -> io::Result<Option<(Recorded, usize)>> {
    let mut fields = [httparse::EMPTY_HEADER; 64];
    let mut head = httparse::Request::new(&mut fields);
    let httparse::Status::Complete(head_length) = head.parse(bytes).map_err(io::Error::other)? else {
        return Ok(None);
    };
    let headers: Vec<(String, String)> = head
        .headers
        .iter()
        .map(|field| (field.name.to_owned(), String::from_utf8_lossy(field.value).into_owned()))
        .collect();
    let length = headers.iter().find(|(name, _)| name.eq_ignore_ascii_case("content-length"));
    let length = length.map_or(Ok(0), |(_, value)| value.parse::<usize>()).map_err(io::Error::other)?;
    let Some(body) = bytes.get(head_length..head_length + length) else { return Ok(None) };
    let request = Recorded {
        method: head.method.unwrap_or_default().to_owned(),
        path: head.path.unwrap_or_default().to_owned(),
        headers,
        body: String::from_utf8_lossy(body).into_owned(),
        at: Instant::now(),
    };
    Ok(Some((request, head_length + length)))
}

/// Writes the answer. `None` where the connection can take another request.
async fn write_answer<S: AsyncWrite + Unpin>(
    stream: &mut S,
    answer: &Answer,
    shared: &Shared,
) -> io::Result<Option<End>> {
    let head = head(answer);
    let (half_head, half_body) = (&head[..head.len() / 2], &answer.body[..answer.body.len() / 2]);
    match answer.fault {
        None => {
            send(stream, &[&head, &answer.body], shared).await?;
            return Ok(None);
        }
        Some(Fault::HangBeforeHead) => hang(stream, &[], shared).await?,
        Some(Fault::HangInHead) => hang(stream, &[half_head], shared).await?,
        Some(Fault::HangInBody) => hang(stream, &[&head, half_body], shared).await?,
        Some(Fault::ResetBeforeHead) => return Ok(Some(End::Reset)),
        Some(Fault::ResetInBody) => {
            send(stream, &[&head, half_body], shared).await?;
            return Ok(Some(End::Reset));
        }
        Some(Fault::CutInHead) => send(stream, &[half_head], shared).await?,
        Some(Fault::NotHttp) => send(stream, &[b"220 mail ready\r\n"], shared).await?,
        Some(Fault::CutInBody) => send(stream, &[&head, half_body], shared).await?,
        Some(Fault::Drip(pause)) => {
            for byte in head.iter().chain(&answer.body) {
                send(stream, &[&[*byte]], shared).await?;
                tokio::time::sleep(pause).await;
            }
        }
        Some(Fault::Padded(size)) => {
            send(stream, &[&head, &answer.body], shared).await?;
            pad(stream, size, shared).await?;
        }
    }
    Ok(Some(End::Close))
}

fn head(answer: &Answer) -> Vec<u8> {
    let padding = match answer.fault {
        Some(Fault::Padded(size)) => size,
        _ => 0,
    };
    let length = answer.body.len() as u64 + padding;
    let mut head = format!("HTTP/1.1 {} Scripted\r\nContent-Length: {length}\r\n", answer.status);
    for (name, value) in &answer.headers {
        let _ = write!(head, "{name}: {value}\r\n");
    }
    head.push_str("\r\n");
    head.into_bytes()
}

async fn send<S: AsyncWrite + Unpin>(stream: &mut S, parts: &[&[u8]], shared: &Shared) -> io::Result<()> {
    for part in parts {
        stream.write_all(part).await?;
        shared.sent.fetch_add(part.len() as u64, Ordering::Relaxed);
    }
    stream.flush().await
}

async fn hang<S: AsyncWrite + Unpin>(stream: &mut S, parts: &[&[u8]], shared: &Shared) -> io::Result<()> {
    send(stream, parts, shared).await?;
    tokio::time::sleep(Duration::from_secs(3600)).await;
    Ok(())
}

async fn pad<S: AsyncWrite + Unpin>(stream: &mut S, size: u64, shared: &Shared) -> io::Result<()> {
    let spaces = vec![b' '; 64 * 1024];
    let mut left = size;
    while left > 0 {
        let chunk = usize::try_from(left).unwrap_or(usize::MAX).min(spaces.len());
        send(stream, &[&spaces[..chunk]], shared).await?;
        left -= chunk as u64;
    }
    Ok(())
}
