//! What is said between who needs a connection and `tokend-egress`.
//!
//! # The protocol
//!
//! A Unix socket of type `SOCK_SEQPACKET`. Each connection to it is one request: the client connects, sends one
//! message, and reads what is answered. The end of the connection is the end of the request, from either side: a
//! client that closes it, or its writing half, or sends more, gives up, and what was begun for it is let go.
//!
//! A message is one JSON text of at most [`MESSAGE_MOST`] bytes. A longer one, one that is not understood, or one with
//! another number of descriptors than is said here ends the connection. There is no version: both sides are of one
//! release.
//!
//! | request | meaning |
//! | --- | --- |
//! | `{"connect":{"host":"id.example","port":443}}` | a TCP connection, please. The host is a name or an address, an IPv6 address in brackets or without; `localhost` is this host whatever a name service says |
//! | `"watch_network"` | the host's network is to be watched |
//!
//! A `connect` has one answer, after at most [`CONNECT_TIMEOUT`](crate::server::CONNECT_TIMEOUT):
//!
//! | answer | meaning |
//! | --- | --- |
//! | `"connected"` | the connection is the one descriptor that comes with this message (`SCM_RIGHTS`), with `TCP_NODELAY` set |
//! | `{"unresolved":"REASON"}` | the name service knows no address, or does not answer |
//! | `{"failed":{"errno":111}}` | no address answers, and what the kernel said of the last one |
//! | `{"failed":"timed_out"}` | no address answered in time |
//! | `{"failed":{"other":"REASON"}}` | no connection for another reason |
//! | `"refused"` | there are too many requests at once. Nothing was tried; it may be asked again |
//!
//! A `watch_network` has one or more, until the client closes the connection:
//!
//! | answer | meaning |
//! | --- | --- |
//! | `"watching"` | from here on no change is missed. It comes once and first |
//! | `"changed"` | the network has changed once or several times ([`network::watch`](crate::network::watch)) |
//! | `{"failed":...}` | as above: changes cannot be noticed. It is the last |
//! | `"refused"` | as above |
//!
//! A client sends its request at once: who is silent for [`REQUEST_DEADLINE`](crate::server::REQUEST_DEADLINE) is
//! hung up on. A reason is for people, and is cut at [`REASON_MOST`] characters.

use std::io;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::ConnectError;

/// The longest message. A host name has 255 bytes at most, and a reason is cut.
pub const MESSAGE_MOST: usize = 4096;

/// The longest reason. What says more says it to whoever looks into the name service.
pub const REASON_MOST: usize = 256;

/// What may be asked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Request {
    /// A connection.
    Connect {
        /// Its name or address.
        host: String,
        /// The port of TCP.
        port: u16,
    },
    /// To be told when the network changes.
    WatchNetwork,
}

/// What is answered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Reply {
    /// There is a connection, and this message brings it.
    Connected,
    /// The name leads nowhere.
    Unresolved(String),
    /// There is no connection, or no news of the network.
    Failed(Failure),
    /// There are too many requests at once.
    Refused,
    /// The network is being watched.
    Watching,
    /// It changed.
    Changed,
}

/// What went wrong, as much of an [`io::Error`] as another process can make use of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Failure {
    /// What the kernel said, by its number (errno(3)).
    Errno(i32),
    /// The time was over.
    TimedOut,
    /// Something else.
    Other(String),
}

/// Why a message is none.
#[derive(Debug, thiserror::Error)]
pub enum WireError {
    /// It is too long.
    #[error("a message of more than {MESSAGE_MOST} bytes")]
    TooLong,
    /// It is no JSON, or none of the protocol.
    #[error("a message that is not understood: {0}")]
    NotUnderstood(#[from] serde_json::Error),
}

impl From<WireError> for io::Error {
    fn from(error: WireError) -> Self {
        Self::new(io::ErrorKind::InvalidData, error)
    }
}

/// The bytes of a message.
pub fn encode(message: &impl Serialize) -> Result<Vec<u8>, WireError> {
    let bytes = serde_json::to_vec(message)?;
    if bytes.len() > MESSAGE_MOST { Err(WireError::TooLong) } else { Ok(bytes) }
}

/// The message that these bytes are.
pub fn decode<M: DeserializeOwned>(bytes: &[u8]) -> Result<M, WireError> {
    if bytes.len() > MESSAGE_MOST {
        return Err(WireError::TooLong);
    }
    Ok(serde_json::from_slice(bytes)?)
}

impl From<&ConnectError> for Reply {
    fn from(error: &ConnectError) -> Self {
        match error {
            ConnectError::Unresolved(reason) => Self::Unresolved(plain(reason)),
            ConnectError::Failed(error) => Self::Failed(error.into()),
            ConnectError::Helper { .. } => Self::Failed(Failure::Other(plain(&error.to_string()))),
        }
    }
}

impl From<&io::Error> for Failure {
    fn from(error: &io::Error) -> Self {
        match error.raw_os_error() {
            Some(number) => Self::Errno(number),
            None if error.kind() == io::ErrorKind::TimedOut => Self::TimedOut,
            None => Self::Other(plain(&error.to_string())),
        }
    }
}

impl From<Failure> for io::Error {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Errno(number) => Self::from_raw_os_error(number),
            Failure::TimedOut => io::ErrorKind::TimedOut.into(),
            Failure::Other(reason) => Self::other(plain(&reason)),
        }
    }
}

/// A reason as it may be shown, whoever wrote it: neither long nor able to do anything to a terminal.
pub(crate) fn plain(reason: &str) -> String {
    let shown =
        |character: char| if character == ' ' || character.is_ascii_graphic() { character } else { '?' };
    reason.chars().take(REASON_MOST).map(shown).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn messages_are_as_they_are_documented() {
        let connect = Request::Connect { host: "id.example".to_owned(), port: 443 };
        assert_eq!(encode(&connect).unwrap(), br#"{"connect":{"host":"id.example","port":443}}"#);
        assert_eq!(encode(&Request::WatchNetwork).unwrap(), br#""watch_network""#);
        let replies = [
            (Reply::Connected, r#""connected""#),
            (Reply::Unresolved("REASON".to_owned()), r#"{"unresolved":"REASON"}"#),
            (Reply::Failed(Failure::Errno(111)), r#"{"failed":{"errno":111}}"#),
            (Reply::Failed(Failure::TimedOut), r#"{"failed":"timed_out"}"#),
            (Reply::Failed(Failure::Other("REASON".to_owned())), r#"{"failed":{"other":"REASON"}}"#),
            (Reply::Refused, r#""refused""#),
            (Reply::Watching, r#""watching""#),
            (Reply::Changed, r#""changed""#),
        ];
        for (reply, text) in replies {
            assert_eq!(String::from_utf8(encode(&reply).unwrap()).unwrap(), text);
        }
    }

    #[test]
    fn what_is_too_long_is_neither_sent_nor_read() {
        let request = |length| Request::Connect { host: "a".repeat(length), port: 1 };
        let around = encode(&request(0)).unwrap().len();
        let longest = encode(&request(MESSAGE_MOST - around)).unwrap();
        assert_eq!(decode::<Request>(&longest).unwrap(), request(MESSAGE_MOST - around));
        assert!(matches!(encode(&request(MESSAGE_MOST - around + 1)), Err(WireError::TooLong)));
        let padded = [longest.as_slice(), b" "].concat();
        assert!(matches!(decode::<Request>(&padded), Err(WireError::TooLong)));
    }

    #[test]
    fn the_longest_reason_has_room_in_a_message() {
        let endless = ConnectError::Unresolved("\u{1}\\\"".repeat(MESSAGE_MOST));
        assert!(encode(&Reply::from(&endless)).is_ok());
        let endless = ConnectError::Failed(io::Error::other("\\".repeat(MESSAGE_MOST)));
        assert!(encode(&Reply::from(&endless)).is_ok());
    }

    fn failure() -> impl Strategy<Value = Failure> {
        prop_oneof![
            any::<i32>().prop_map(Failure::Errno),
            Just(Failure::TimedOut),
            ".{0,300}".prop_map(Failure::Other)
        ]
    }

    fn reply() -> impl Strategy<Value = Reply> {
        prop_oneof![
            Just(Reply::Connected),
            ".{0,300}".prop_map(Reply::Unresolved),
            failure().prop_map(Reply::Failed),
            Just(Reply::Refused),
            Just(Reply::Watching),
            Just(Reply::Changed),
        ]
    }

    fn request() -> impl Strategy<Value = Request> {
        let connect = (".{0,300}", any::<u16>()).prop_map(|(host, port)| Request::Connect { host, port });
        prop_oneof![connect, Just(Request::WatchNetwork)]
    }

    proptest! {
        #[test]
        fn what_is_sent_is_what_is_read(request in request(), reply in reply()) {
            prop_assert_eq!(decode::<Request>(&encode(&request).unwrap()).unwrap(), request);
            prop_assert_eq!(decode::<Reply>(&encode(&reply).unwrap()).unwrap(), reply);
        }

        #[test]
        fn a_request_is_no_reply(request in request(), reply in reply()) {
            prop_assert!(decode::<Reply>(&encode(&request).unwrap()).is_err());
            prop_assert!(decode::<Request>(&encode(&reply).unwrap()).is_err());
        }

        #[test]
        fn any_bytes_are_a_message_or_an_error(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = (decode::<Request>(&bytes), decode::<Reply>(&bytes));
        }

        #[test]
        fn a_message_that_is_cut_off_is_none(request in request(), reply in reply(), at in any::<prop::sample::Index>()) {
            for whole in [encode(&request).unwrap(), encode(&reply).unwrap()] {
                let part = &whole[..at.index(whole.len())];
                prop_assert!(decode::<Request>(part).is_err() && decode::<Reply>(part).is_err());
            }
        }

        #[test]
        fn any_failure_can_be_shown(failure in failure()) {
            let shown = io::Error::from(failure).to_string();
            prop_assert!(shown.len() <= 2 * REASON_MOST && shown.chars().all(|c| c == ' ' || c.is_ascii_graphic()), "{shown:?}");
        }
    }
}
