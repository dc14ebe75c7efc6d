//! An HTTP reply of a provider, and the header fields that are read of it. Pure functions.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use reqwest::header::HeaderMap;

/// The media types that are repeated. Any other one is a text of the provider's, in which a secret may hide.
const MEDIA_TYPES: [&str; 8] = [
    "application/json",
    "application/problem+json",
    "application/x-www-form-urlencoded",
    "application/xhtml+xml",
    "application/xml",
    "text/html",
    "text/plain",
    "text/xml",
];

/// A byte order mark, which a JSON parser may skip (RFC 8259 section 8.1).
const BYTE_ORDER_MARK: &[u8] = "\u{feff}".as_bytes();

#[derive(Debug, Default)]
pub struct HttpReply {
    pub status: u16,
    pub headers: HeaderMap,
    pub body: Vec<u8>,
}

impl HttpReply {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    /// As in `status 403, text/html`.
    pub fn status_and_type(&self) -> String {
        let named = self.header("content-type").map(|text| text.split(';').next().unwrap_or_default().trim());
        let known = |named: &str| MEDIA_TYPES.into_iter().find(|known| known.eq_ignore_ascii_case(named));
        let media_type = named.map_or("no media type", |named| known(named).unwrap_or("another media type"));
        format!("status {}, {media_type}", self.status)
    }

    /// The body without a byte order mark.
    pub fn text(&self) -> &[u8] {
        self.body.strip_prefix(BYTE_ORDER_MARK).unwrap_or(&self.body)
    }

    /// `Date`, since the Unix epoch.
    pub fn date(&self) -> Option<Duration> {
        http_date(self.header("date")?)
    }

    /// Reads `Retry-After`: seconds, or a date, which is compared with the reply's `Date` where there is one. Anything else,
    /// or a date in the past, is ignored.
    pub fn retry_after(&self, wall: Duration) -> Option<Duration> {
        let text = self.header("retry-after")?.trim();
        if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
            return Some(text.parse().map_or(Duration::MAX, Duration::from_secs));
        }
        http_date(text)?.checked_sub(self.date().unwrap_or(wall))
    }
}

fn http_date(text: &str) -> Option<Duration> {
    let date: SystemTime = httpdate::parse_http_date(text).ok()?;
    date.duration_since(UNIX_EPOCH).ok()
}
