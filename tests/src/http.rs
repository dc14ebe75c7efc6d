//! One HTTP call, as a service would make it with the headers that it was handed.

use std::fmt::Write as _;
use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(120);

/// The answer of an API.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApiAnswer {
    /// The status code.
    pub status: u16,
    /// The body.
    pub body: String,
}

/// Calls a loopback URL (`http://127.0.0.1:PORT/PATH`) with exactly these headers and `Host`.
pub fn get(url: &str, headers: &[(String, String)]) -> io::Result<ApiAnswer> {
    let rest = url.strip_prefix("http://").ok_or(io::ErrorKind::InvalidInput)?;
    let (host, path) = rest.split_once('/').ok_or(io::ErrorKind::InvalidInput)?;
    let mut request = format!("GET /{path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n");
    for (name, value) in headers {
        let _ = write!(request, "{name}: {value}\r\n");
    }
    request.push_str("\r\n");
    let mut stream = TcpStream::connect(host)?;
    stream.set_read_timeout(Some(LIMIT))?;
    stream.set_write_timeout(Some(LIMIT))?;
    stream.write_all(request.as_bytes())?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    parse(&answer)
}

/// Reads `Name: value` lines, the form in which `tokenctl headers` prints a header set.
pub fn header_lines(text: &str) -> Vec<(String, String)> {
    text.lines()
        .filter_map(|line| line.split_once(": "))
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect()
}

fn parse(answer: &[u8]) -> io::Result<ApiAnswer> {
    let mut fields = [httparse::EMPTY_HEADER; 32];
    let mut head = httparse::Response::new(&mut fields);
    let parsed = head.parse(answer).map_err(io::Error::other)?;
    let httparse::Status::Complete(length) = parsed else { return Err(io::ErrorKind::UnexpectedEof.into()) };
    let status = head.code.ok_or(io::ErrorKind::InvalidData)?;
    Ok(ApiAnswer { status, body: String::from_utf8_lossy(&answer[length..]).into_owned() })
}
