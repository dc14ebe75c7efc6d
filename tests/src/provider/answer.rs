//! What a scripted provider answers, and what goes wrong with it.

use std::io::Write;
use std::sync::Arc;
use std::time::Duration;

use flate2::Compression;
use flate2::write::{GzEncoder, ZlibEncoder};
use serde_json::{Value, json};
use tokio::sync::watch;

use crate::secrets;

/// An answer to one request.
#[derive(Clone, Debug)]
pub struct Answer {
    pub(super) status: u16,
    pub(super) headers: Vec<(String, String)>,
    pub(super) body: Vec<u8>,
    pub(super) delay: Duration,
    pub(super) gate: Option<Gate>,
    pub(super) fault: Option<Fault>,
}

/// A fault in the transfer of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// No byte is sent, and the connection stays open.
    HangBeforeHead,
    /// Half of the head is sent, and the connection stays open.
    HangInHead,
    /// The head and half of the body are sent, and the connection stays open.
    HangInBody,
    /// The connection is closed in good order after half of the head.
    CutInHead,
    /// A line of another protocol is sent instead, and the connection is closed.
    NotHttp,
    /// The connection is reset.
    ResetBeforeHead,
    /// The connection is reset after half of the body.
    ResetInBody,
    /// The connection is closed in good order after half of the body.
    CutInBody,
    /// The answer is sent byte by byte, with this pause between two bytes.
    Drip(Duration),
    /// The body is followed by this many bytes of white space.
    Padded(u64),
}

/// Holds answers back until the test lets them go.
#[derive(Clone, Debug)]
pub struct Gate(Arc<watch::Sender<bool>>);

impl Gate {
    /// A closed one.
    pub fn new() -> Self {
        Self(Arc::new(watch::Sender::new(false)))
    }

    /// Lets through what waits and what comes.
    pub fn open(&self) {
        self.0.send_replace(true);
    }

    pub(super) async fn passed(&self) {
        let _ = self.0.subscribe().wait_for(|open| *open).await;
    }
}

impl Default for Gate {
    fn default() -> Self {
        Self::new()
    }
}

impl Answer {
    /// An answer without a body.
    pub fn status(status: u16) -> Self {
        let (headers, body, delay) = (Vec::new(), Vec::new(), Duration::ZERO);
        Self { status, headers, body, delay, gate: None, fault: None }
    }

    /// A JSON document.
    pub fn json(status: u16, document: &Value) -> Self {
        Self::status(status).with_body("application/json", document.to_string())
    }

    /// A new token, registered as a secret, that lives for so many seconds.
    pub fn token(lifetime: u64) -> Self {
        Self::this_token(&secrets::invent("access-token"), lifetime)
    }

    /// The same with a token of the test's choice.
    pub fn this_token(token: &str, lifetime: u64) -> Self {
        Self::json(200, &json!({ "access_token": token, "token_type": "Bearer", "expires_in": lifetime }))
    }

    /// An error of RFC 6749 section 5.2.
    pub fn refusal(status: u16, code: &str) -> Self {
        Self::json(status, &json!({ "error": code }))
    }

    /// With this body.
    #[must_use]
    pub fn with_body(mut self, content_type: &str, body: impl Into<Vec<u8>>) -> Self {
        self.body = body.into();
        self.with_header("Content-Type", content_type)
    }

    /// With this body, and nothing said about its type.
    #[must_use]
    pub fn with_bare_body(mut self, body: impl Into<Vec<u8>>) -> Self {
        self.body = body.into();
        self
    }

    /// With a header field.
    #[must_use]
    pub fn with_header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    /// With a body compressed by gzip.
    #[must_use]
    pub fn gzipped(mut self) -> Self {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
        encoder.write_all(&self.body).unwrap();
        self.body = encoder.finish().unwrap();
        self.with_header("Content-Encoding", "gzip")
    }

    /// With a body compressed by deflate, in the zlib format that RFC 9110 names.
    #[must_use]
    pub fn deflated(mut self) -> Self {
        let mut encoder = ZlibEncoder::new(Vec::new(), Compression::default());
        encoder.write_all(&self.body).unwrap();
        self.body = encoder.finish().unwrap();
        self.with_header("Content-Encoding", "deflate")
    }

    /// Its status, header fields and body.
    pub fn parts(&self) -> (u16, &[(String, String)], &[u8]) {
        (self.status, &self.headers, &self.body)
    }

    /// Whether it arrives as it is: with a usual head, not compressed, and without a fault in its transfer.
    pub fn is_plain(&self) -> bool {
        let is_gzip = |(name, value): &(String, String)| name == "Content-Encoding" && value == "gzip";
        let is_long = self.headers.len() > 64 || self.headers.iter().any(|(_, value)| value.len() > 8192);
        self.fault.is_none() && !is_long && !self.headers.iter().any(is_gzip)
    }

    /// Not before the gate opens.
    #[must_use]
    pub fn behind(mut self, gate: &Gate) -> Self {
        self.gate = Some(gate.clone());
        self
    }

    /// Not before this long has passed.
    #[must_use]
    pub fn after(mut self, delay: Duration) -> Self {
        self.delay = delay;
        self
    }

    /// With a fault.
    #[must_use]
    pub fn with_fault(mut self, fault: Fault) -> Self {
        self.fault = Some(fault);
        self
    }
}
