//! A scripted provider as a program of its own, for places that the harness cannot reach into: the network
//! of a machine that was booted for a test.
//!
//! `provider ADDRESS SECRET-FILE LIFETIME [LOG]` gives tokens of so many seconds to every request that carries the
//! client secret in the file, and refuses every other as RFC 6749 section 5.2 says. To the log it adds a line for
//! each request: the milliseconds since the host booted, and the scope.

#![expect(clippy::expect_used, reason = "test code: a panic is how it fails")]

use std::fs::File;
use std::io::Write;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::{env, fs, io, thread};

use tokend::clock::{Clock, ClockChanges};

use tokend_tests::{Answer, Provider, Recorded};

struct Arguments {
    address: SocketAddr,
    secret: String,
    lifetime: u64,
    log: Option<File>,
}

fn main() -> ExitCode {
    let started = arguments().and_then(|Arguments { address, secret, lifetime, mut log }| {
        let clock = Clock::kernel(ClockChanges::default());
        let usual = move |request: &Recorded| {
            if let Some(log) = &mut log {
                let millis = clock.now().to_wire().0;
                let scope = request.field("scope").unwrap_or_default();
                log.write_all(format!("{millis} {scope}\n").as_bytes()).expect("the log can be written");
            }
            answer(request, &secret, lifetime)
        };
        Provider::start_at(address, usual).map_err(|e| e.to_string())
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
    let (address, secret, lifetime, log) = match arguments.as_slice() {
        [address, secret, lifetime] => (address, secret, lifetime, None),
        [address, secret, lifetime, log] => (address, secret, lifetime, Some(log)),
        _ => return Err("expected ADDRESS SECRET-FILE LIFETIME [LOG]".to_owned()),
    };
    let append = |path| {
        let file = File::options().create(true).append(true).open(path);
        file.map_err(|error| format!("{path}: {error}"))
    };
    Ok(Arguments {
        address: address.parse().map_err(|_| format!("{address} is no address and port"))?,
        lifetime: lifetime.parse().map_err(|_| format!("{lifetime} is no number of seconds"))?,
        secret: fs::read_to_string(secret).map_err(|e| format!("{secret}: {e}"))?.trim_end().to_owned(),
        log: log.map(append).transpose()?,
    })
}

fn answer(request: &Recorded, secret: &str, lifetime: u64) -> Answer {
    if request.field("client_secret").as_deref() == Some(secret) {
        Answer::token(lifetime)
    } else {
        Answer::refusal(401, "invalid_client")
    }
}
