//! A scripted provider as a program of its own, for places that the harness cannot reach into: the network
//! of a machine that was booted for a test.
//!
//! `provider ADDRESS SECRET-FILE LIFETIME` gives tokens of so many seconds to every request that carries the
//! client secret in the file, and refuses every other as RFC 6749 section 5.2 says.

use std::net::SocketAddr;
use std::process::ExitCode;
use std::{env, fs, io, thread};

use tokend_tests::{Answer, Provider, Recorded};

fn main() -> ExitCode {
    let started = arguments().and_then(|(address, secret, lifetime)| {
        Provider::start_at(address, move |request| answer(request, &secret, lifetime))
            .map_err(|e| e.to_string())
    });
    match started {
        // It serves on a thread of its own until it is killed.
        Ok(_provider) => loop {
            thread::park();
        },
        Err(reason) => {
            let _ = io::Write::write_all(&mut io::stderr(), format!("provider: {reason}\n").as_bytes());
            ExitCode::from(2)
        }
    }
}

fn arguments() -> Result<(SocketAddr, String, u64), String> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let [address, secret, lifetime] = arguments.as_slice() else {
        return Err("expected ADDRESS SECRET-FILE LIFETIME".to_owned());
    };
    let address = address.parse().map_err(|_| format!("{address} is no address and port"))?;
    let lifetime = lifetime.parse().map_err(|_| format!("{lifetime} is no number of seconds"))?;
    let secret = fs::read_to_string(secret).map_err(|error| format!("{secret}: {error}"))?;
    Ok((address, secret.trim_end().to_owned(), lifetime))
}

fn answer(request: &Recorded, secret: &str, lifetime: u64) -> Answer {
    if request.field("client_secret").as_deref() == Some(secret) {
        Answer::token(lifetime)
    } else {
        Answer::refusal(401, "invalid_client")
    }
}
