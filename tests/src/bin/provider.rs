//! A scripted provider as a program of its own, for places that the harness cannot reach into: the network
//! of a machine that was booted for a test.
//!
//! `provider ADDRESS SECRET-FILE LIFETIME [LOG [CA-FILE]]` gives tokens of so many seconds to every request that carries the
//! client secret in the file, and refuses every other as RFC 6749 section 5.2 says. To the log it adds a line for
//! each request: the milliseconds since the host booted, and the scope. With a CA-FILE it speaks TLS, with a certificate
//! of an authority of its own that it writes there.

#![expect(clippy::expect_used, reason = "test code: a panic is how it fails")]

use std::fs::File;
use std::io::Write;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::{env, fs, io, thread};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use tokend::clock::{Clock, ClockChanges};

use tokend_tests::{Answer, Authority, Flaw, Provider, Recorded};

struct Arguments {
    address: SocketAddr,
    secret: String,
    lifetime: u64,
    log: Option<File>,
    ca_file: Option<String>,
}

fn main() -> ExitCode {
    let started = arguments().and_then(|Arguments { address, secret, lifetime, mut log, ca_file }| {
        let clock = Clock::kernel(ClockChanges::default());
        let usual = move |request: &Recorded| {
            if let Some(log) = &mut log {
                let millis = clock.now().to_wire().0;
                let scope = request.field("scope").unwrap_or_default();
                log.write_all(format!("{millis} {scope}\n").as_bytes()).expect("the log can be written");
            }
            answer(request, &secret, lifetime)
        };
        let authority = ca_file.as_ref().map(|_| Authority::new());
        let tls = authority.as_ref().map(|authority| authority.server(Flaw::None));
        let provider = Provider::start_at(address, tls, usual).map_err(|e| e.to_string())?;
        // Written last, so that whoever waits for it finds a server.
        let written = ca_file.zip(authority).map(|(to, authority)| fs::copy(authority.ca_file(), to));
        written.transpose().map_err(|e| e.to_string())?;
        Ok(provider)
    });
    match started {
        // It serves on a thread of its own until it is killed.
        Ok(_provider) => loop {
            thread::park();
        },
        Err(reason) => {
            let _ = io::stderr().write_all(format!("provider: {reason}\n").as_bytes());
            ExitCode::from(2)
        }
    }
}

fn arguments() -> Result<Arguments, String> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let (address, secret, lifetime, rest) = match arguments.as_slice() {
        [address, secret, lifetime, rest @ ..] if rest.len() <= 2 => (address, secret, lifetime, rest),
        _ => return Err("expected ADDRESS SECRET-FILE LIFETIME [LOG [CA-FILE]]".to_owned()),
    };
    let append = |path| {
        let file = File::options().create(true).append(true).open(path);
        file.map_err(|error| format!("{path}: {error}"))
    };
    Ok(Arguments {
        address: address.parse().map_err(|_| format!("{address} is no address and port"))?,
        lifetime: lifetime.parse().map_err(|_| format!("{lifetime} is no number of seconds"))?,
        secret: fs::read_to_string(secret).map_err(|e| format!("{secret}: {e}"))?.trim_end().to_owned(),
        log: rest.first().map(append).transpose()?,
        ca_file: rest.get(1).cloned(),
    })
}

fn answer(request: &Recorded, secret: &str, lifetime: u64) -> Answer {
    if request.field("client_secret").or_else(|| basic_secret(request)).as_deref() == Some(secret) {
        Answer::token(lifetime)
    } else {
        Answer::refusal(401, "invalid_client")
    }
}

/// The secret in an `Authorization` header, joined as it is.
fn basic_secret(request: &Recorded) -> Option<String> {
    let encoded = request.header("authorization")?.strip_prefix("Basic ")?;
    let pair = String::from_utf8(BASE64_STANDARD.decode(encoded).ok()?).ok()?;
    pair.split_once(':').map(|(_, secret)| secret.to_owned())
}
