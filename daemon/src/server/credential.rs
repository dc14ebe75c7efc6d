//! Credentials of units (systemd.exec(5), `LoadCredential=ID:PATH`): the service manager connects while it starts a unit, and the
//! unit gets a token although it knows nothing of this daemon.
//!
//! The service manager connects as root from the abstract address `RANDOM/unit/UNIT/ID`. The unit in it is the only fact of which
//! the decision is made. The protocol has no refusal: a unit without an answer gets an empty file. So every failure is logged.

use std::io::{self, ErrorKind};
use std::os::fd::AsRawFd;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use nix::sys::socket::{UnixAddr, getpeername};
use tokend_protocol::{
    CallOptions, ErrorCode, ErrorReply, GetRequest, HeadersRequest, Reply, Request, TokenName, Variant,
};
use tokio::io::Interest;
use tokio::task::yield_now;
use tokio::time::{sleep_until, timeout};

use super::accept::{Acceptor, Arrival, Listener};
use super::http::reply;
use super::http::request::Form;
use super::log_throttle::LogThrottle;
use super::session::Session;
use super::stream::registered;
use crate::access::NO_ID;
use crate::clock::Instant;
use crate::peer::Peer;
use crate::server::ServerState;

/// How long a unit's start may wait for a token. Units have 90 seconds to start (systemd-system.conf(5)).
const DEADLINE: Duration = Duration::from_secs(30);

/// The shortest time between two attempts to get a token for a unit.
const PAUSE: Duration = Duration::from_millis(100);

/// How long the service manager may take to read an answer.
const WRITE_TIMEOUT: Duration = Duration::from_secs(5);

/// The form of a credential: the end of its ID.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Format {
    /// The token and nothing else.
    Token,
    /// The headers of an API call, one per line.
    Headers,
    /// The document of `GET /v1/tokens/NAME` over HTTP.
    Json,
}

/// The credential that the service manager asks for.
#[derive(Debug, PartialEq, Eq)]
struct Asked {
    unit: String,
    name: TokenName,
    format: Format,
}

/// Serves the service manager. Ends when the daemon stops.
pub async fn serve(listener: Listener, shared: Arc<ServerState>) -> io::Result<()> {
    let ready = registered(listener.try_clone()?, Interest::READABLE)?;
    // There is no way to say why.
    // Its connections are no user's: no program of root can take their places.
    let mut acceptor = Acceptor::new(listener, |_| Vec::new(), |_| NO_ID);
    let strangers = Arc::new(Mutex::new(LogThrottle::default()));
    loop {
        let mut ready = tokio::select! {
            ready = ready.readable() => ready?,
            () = shared.stop.cancelled() => return Ok(()),
        };
        let may_be_more = acceptor.accept(&shared, |arrival| {
            let (shared, strangers) = (Arc::clone(&shared), Arc::clone(&strangers));
            drop(tokio::spawn(async move { serve_manager(arrival, &shared, &strangers).await }));
        });
        if !may_be_more {
            ready.clear_ready();
        }
        match acceptor.paused_until.take() {
            Some(until) => sleep_until(until).await,
            None => yield_now().await,
        }
    }
}

async fn serve_manager(arrival: Arrival, shared: &Arc<ServerState>, strangers: &Mutex<LogThrottle>) {
    let address = getpeername::<UnixAddr>(arrival.stream.as_raw_fd());
    let address = address.as_ref().ok().filter(|_| arrival.is_of_root()).and_then(UnixAddr::as_abstract);
    let Some((unit, id)) = address.and_then(unit_and_id) else {
        let mut throttle = strangers.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(times) = throttle.record(shared.clock.now()) {
            tracing::warn!(
                times,
                "callers that are not the service manager got nothing on the credential socket"
            );
        }
        return;
    };
    let given = match asked(unit, id) {
        Ok(asked) => tokio::select! {
            given = credential(&asked, shared) => given,
            () = shared.end_of_waits() => Err("the daemon stopped".to_owned()),
        },
        Err(message) => Err(message),
    };
    let written = match given {
        Ok(bytes) => {
            let written = timeout(WRITE_TIMEOUT, arrival.stream.write_all(&bytes)).await;
            written.unwrap_or_else(|_| Err(ErrorKind::TimedOut.into())).map_err(|error| error.to_string())
        }
        Err(message) => Err(message),
    };
    if let Err(reason) = written {
        tracing::warn!(
            unit,
            credential = id,
            token = id.rsplit_once('.').map(|(name, _)| name),
            reason,
            "{unit} got an empty file as credential {id}: {reason}"
        );
    }
}

/// The unit and the ID of the credential in the service manager's address.
fn unit_and_id(address: &[u8]) -> Option<(&str, &str)> {
    let mut parts = str::from_utf8(address).ok()?.splitn(4, '/');
    let (_random, kind, unit, id) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    let is_text = |text: &str| !text.is_empty() && !text.contains(char::is_control);
    (kind == "unit" && is_text(unit) && is_text(id)).then_some((unit, id))
}

fn asked(unit: &str, id: &str) -> Result<Asked, String> {
    let unknown = || format!("{id:?} is not NAME.token, NAME.headers or NAME.json, with the NAME of a token");
    let (name, format) = id.rsplit_once('.').ok_or_else(unknown)?;
    let format = match format {
        "token" => Format::Token,
        "headers" => Format::Headers,
        "json" => Format::Json,
        _ => return Err(unknown()),
    };
    Ok(Asked { unit: unit.to_owned(), name: name.parse().map_err(|_| unknown())?, format })
}

/// The credential, if a rule gives it to the unit.
///
/// # Errors
/// The text is the reason for the log. It says more than a caller may know.
async fn credential(asked: &Asked, shared: &Arc<ServerState>) -> Result<Vec<u8>, String> {
    let invalid = || "this is not the name of a unit".to_owned();
    let peer = Peer::of_unit(asked.unit.clone()).ok_or_else(invalid)?;
    let session = Session::new(Arc::clone(shared), peer);
    let end = shared.clock.now().after(DEADLINE);
    let reply = loop {
        let left = end.since(shared.clock.now());
        let reply = session.answer(request(asked, left)).await;
        match next_attempt(&reply, shared) {
            Some(next) if next < end => shared.clock.sleep_until(next).await,
            _ => break reply,
        }
    };
    match (&reply, asked.format) {
        (Reply::Error(error), _) => {
            Err(session.reason_of_refusal(&asked.name).map_or(error.message.clone(), |why| why.to_string()))
        }
        (Reply::Token(reply), Format::Token) => Ok(reply.token.expose().as_bytes().to_vec()),
        (Reply::Headers(reply), _) => {
            let lines =
                reply.headers.iter().map(|header| format!("{}: {}\n", header.name, header.value.expose()));
            Ok(lines.collect::<String>().into_bytes())
        }
        (reply, _) => {
            let now = shared.clock.now();
            Ok(reply::write(reply, Form::Json, now.to_wire(), shared.clock.timestamp(now)).body)
        }
    }
}

fn request(asked: &Asked, left: Duration) -> Request {
    let deadline_ms = u32::try_from(left.as_millis()).unwrap_or(u32::MAX);
    let options = CallOptions { deadline_ms, min_ttl_ms: 0 };
    let (name, variant) = (asked.name.clone(), Variant::default());
    if asked.format == Format::Headers {
        let (supplied, omitted) = (Vec::new(), Vec::new());
        Request::Headers(HeadersRequest { name, options, supplied, omitted, variant })
    } else {
        Request::Get(GetRequest { name, options, variant })
    }
}

/// When to ask again, if there was no token for a reason that may pass: a unit that starts with the host cannot do so itself.
fn next_attempt(reply: &Reply, shared: &ServerState) -> Option<Instant> {
    let Reply::Error(ErrorReply {
        code: ErrorCode::Unavailable | ErrorCode::Overloaded, next_attempt, ..
    }) = reply
    else {
        return None;
    };
    let now = shared.clock.now();
    let wait = next_attempt.map_or(0, |next| next.0.saturating_sub(shared.clock.timestamp(now).0));
    Some(now.after(Duration::from_millis(wait).max(PAUSE)))
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::unix::net::UnixStream;
    use std::path::{Path, PathBuf};

    use nix::sys::socket::{AddressFamily, SockFlag, SockType, bind, connect, socket};
    use tokio::task::spawn_blocking;

    use super::*;
    use crate::quota::Quota;
    use crate::server::accept::QUEUE_MAX;
    use crate::server::accept::tests::{as_user, scene};

    /// Connects from an abstract address, and reads to the end: the number of bytes.
    fn read_as(path: &Path, address: Option<&str>) -> usize {
        let caller = socket(AddressFamily::Unix, SockType::Stream, SockFlag::empty(), None).unwrap();
        if let Some(address) = address {
            bind(caller.as_raw_fd(), &UnixAddr::new_abstract(address.as_bytes()).unwrap()).unwrap();
        }
        connect(caller.as_raw_fd(), &UnixAddr::new(path).unwrap()).unwrap();
        let mut answer = Vec::new();
        UnixStream::from(caller).read_to_end(&mut answer).unwrap();
        answer.len()
    }

    #[tokio::test]
    async fn only_root_is_taken_for_the_service_manager() {
        if !nix::unistd::geteuid().is_root() {
            return;
        }
        let (listener, shared, path, _folder) = scene(Quota::default());
        let serving = tokio::spawn(serve(Listener::new(listener, QUEUE_MAX).unwrap(), Arc::clone(&shared)));
        let unique = std::process::id();
        let (address, of_manager): (_, PathBuf) = (format!("{unique}a/unit/x.service/t.token"), path.clone());
        // Nobody has a token here: the audit tells who was asked about.
        assert_eq!(as_user(61_001, Vec::new(), move || read_as(&path, Some(&address))).await, 0);
        assert!(shared.audit.is_empty(), "the unit was believed although another user named it");
        let (address, path) = (format!("{unique}b/unit/x.service/t.token"), of_manager.clone());
        assert_eq!(spawn_blocking(move || read_as(&path, Some(&address))).await.unwrap(), 0);
        assert!(!shared.audit.is_empty(), "root names the unit");
        assert_eq!(spawn_blocking(move || read_as(&of_manager, None)).await.unwrap(), 0);
        shared.stop.cancel();
        serving.await.unwrap().unwrap();
    }

    #[test]
    fn the_address_of_the_service_manager_names_the_unit_and_the_credential() {
        assert_eq!(unit_and_id(b"a1b2/unit/pay@eu.service/psb.token"), Some(("pay@eu.service", "psb.token")));
        for other in [
            &b""[..],
            b"a1b2",
            b"a1b2/unit/x.service",
            b"a1b2/user/x.service/psb.token",
            b"a/unit//psb.token",
            b"a/unit/x\n.service/psb.token",
            b"\xff/unit/x/y",
        ] {
            assert_eq!(unit_and_id(other), None, "{other:?}");
        }
    }

    #[test]
    fn the_id_of_a_credential_names_the_token_and_the_form() {
        let of = |id| asked("x.service", id).map(|asked| (asked.name.to_string(), asked.format));
        assert_eq!(of("psb.token"), Ok(("psb".to_owned(), Format::Token)));
        assert_eq!(of("psb.eu.headers"), Ok(("psb.eu".to_owned(), Format::Headers)));
        assert_eq!(of("psb.json"), Ok(("psb".to_owned(), Format::Json)));
        for other in ["psb", ".token", "psb.txt", "../x.token", ""] {
            assert!(of(other).is_err_and(|message| message.contains("NAME.token")), "{other}");
        }
    }
}
