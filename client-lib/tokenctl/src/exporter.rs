//! The metrics over HTTP, for Prometheus: one thread, one request on a connection, and nothing but `GET /metrics`.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use tokend_client::Status;
use tokend_client::blocking::Client;
use tokend_protocol::documents::{Dialect, Metrics};

use crate::commands::Done;
use crate::ending::Ending;
use crate::failure::Failure;
use crate::notify::ServiceManager;
use crate::output;

/// How long one connection may take, without the daemon's answer. A slow one delays the next.
const CONNECTION_MAX: Duration = Duration::from_secs(5);

/// The longest head of a request.
const HEAD_MAX: usize = 8 * 1024;

/// How long to wait if no connection can be accepted, because too many files are open for example.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Serves the metrics until a signal ends the program.
pub(crate) fn serve(client: &Client, address: SocketAddr) -> Done {
    let failed = |error| Failure::listen(address, &error);
    let listener = TcpListener::bind(address).map_err(failed)?;
    let _ending = Ending::at_signals().map_err(|error| Failure::signals(&error))?;
    output::complain(&format!("serving http://{}/metrics", listener.local_addr().map_err(failed)?));
    ServiceManager::from_env().notify("READY=1");
    let mut reported = None;
    let mut metrics = |dialect| {
        let status = client.status();
        let reason = status.as_ref().err().map(ToString::to_string);
        if let Some(reason) = reason.as_ref().filter(|_| reason != reported) {
            output::complain(reason);
        }
        reported = reason;
        Metrics::render(status.ok().map(collected).as_ref(), dialect)
    };
    loop {
        match listener.accept() {
            // A connection that fails ends, and Prometheus opens the next.
            Ok((stream, _)) => drop(answer(&stream, &mut metrics)),
            Err(_) => thread::sleep(ACCEPT_PAUSE),
        }
    }
}

/// The status, for the metrics.
pub(crate) fn collected(status: Status) -> Metrics {
    let mut metrics = Metrics::new(status.daemon);
    metrics.add(status.tokens);
    metrics
}

fn answer(stream: &TcpStream, metrics: impl FnOnce(Dialect) -> String) -> io::Result<()> {
    let head = head(Timed::new(stream))?;
    let (status, kind, body) = respond(&head, metrics);
    let length = body.len();
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n"
    );
    Timed::new(stream).write_all((head + &body).as_bytes())
}

/// The status, type and body of the answer to a request with this head.
fn respond(head: &str, metrics: impl FnOnce(Dialect) -> String) -> (&'static str, &'static str, String) {
    let mut words = head.split(' ');
    let (method, target) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let plain = Dialect::Prometheus.media_type();
    match (method, target.split('?').next()) {
        ("GET", Some("/metrics")) => {
            let fields = head.lines().filter_map(|line| line.split_once(':'));
            let accept = fields.filter(|(name, _)| name.eq_ignore_ascii_case("accept"));
            let dialect = Dialect::of_accept(accept.map(|(_, value)| value));
            ("200 OK", dialect.media_type(), metrics(dialect))
        }
        ("GET", _) => ("404 Not Found", plain, "see /metrics\n".to_owned()),
        _ => ("405 Method Not Allowed", plain, "only GET\n".to_owned()),
    }
}

/// Reads the head of a request, up to the empty line.
fn head(mut stream: Timed<'_>) -> io::Result<String> {
    let mut head = Vec::new();
    let mut part = [0; 1024];
    while !head.windows(4).any(|window| window == b"\r\n\r\n") {
        let length = stream.read(&mut part)?;
        if length == 0 || head.len() + length > HEAD_MAX {
            return Err(io::ErrorKind::InvalidData.into());
        }
        head.extend(part.iter().take(length));
    }
    String::from_utf8(head).map_err(|_| io::ErrorKind::InvalidData.into())
}

/// A connection with a limit for all reads and writes together.
struct Timed<'a> {
    stream: &'a TcpStream,
    end: Instant,
}

impl<'a> Timed<'a> {
    fn new(stream: &'a TcpStream) -> Self {
        Self { stream, end: Instant::now() + CONNECTION_MAX }
    }

    fn left(&self) -> io::Result<Option<Duration>> {
        let left = self.end.saturating_duration_since(Instant::now());
        if left.is_zero() { Err(io::ErrorKind::TimedOut.into()) } else { Ok(Some(left)) }
    }
}

impl Read for Timed<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.stream.set_read_timeout(self.left()?)?;
        self.stream.read(buffer)
    }
}

impl Write for Timed<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.stream.set_write_timeout(self.left()?)?;
        self.stream.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answered(head: &str) -> (&'static str, String) {
        let name = |dialect| if dialect == Dialect::OpenMetrics { "open" } else { "prometheus" }.to_owned();
        let (status, _, body) = respond(head, name);
        (status, body)
    }

    #[test]
    fn only_the_metrics_are_served() {
        let get = |rest: &str| answered(&format!("GET {rest} HTTP/1.1\r\nHost: localhost:9464\r\n\r\n"));
        assert_eq!(get("/metrics"), ("200 OK", "prometheus".to_owned()));
        assert_eq!(get("/metrics?name[]=tokend_up"), ("200 OK", "prometheus".to_owned()));
        for path in ["/", "/metrics/", "/metricsx", "", "*"] {
            assert_eq!(get(path).0, "404 Not Found", "{path}");
        }
        for head in
            ["POST /metrics HTTP/1.1\r\n\r\n", "HEAD /metrics HTTP/1.1\r\n\r\n", "\r\n\r\n", "get /metrics"]
        {
            assert_eq!(answered(head).0, "405 Method Not Allowed", "{head}");
        }
    }

    #[test]
    fn a_client_chooses_the_format() {
        let get = |field: &str| answered(&format!("GET /metrics HTTP/1.1\r\n{field}\r\n\r\n")).1;
        // As Prometheus 2.42 sends it.
        let accept = "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,\
                      text/plain;version=0.0.4;q=0.5,*/*;q=0.1";
        assert_eq!(get(&format!("ACCEPT: {accept}")), "open");
        assert_eq!(get("Accept: text/plain"), "prometheus");
        assert_eq!(get(&format!("X-Accept: {accept}")), "prometheus");
    }
}
