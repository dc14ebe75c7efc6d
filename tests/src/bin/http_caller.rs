//! Asks for a token over HTTP, and exits as `tokenctl get NAME` does: in place of it in tests of who gets what.

use std::io::{Read, Write, stdout};
use std::os::unix::net::UnixStream;
use std::process::ExitCode;

const SOCKET: &str = "/run/tokend/http.sock";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [command, name] = arguments.as_slice() else { return ExitCode::from(2) };
    let Some(mut connection) = UnixStream::connect(SOCKET).ok().filter(|_| command == "get") else {
        return ExitCode::from(3);
    };
    let mut answer = String::new();
    let request = format!("GET /v1/tokens/{name} HTTP/1.1\r\nConnection: close\r\n\r\n");
    let asked =
        connection.write_all(request.as_bytes()).and_then(|()| connection.read_to_string(&mut answer));
    if asked.is_err() || answer.is_empty() {
        // The daemon does not serve whom it cannot identify.
        return ExitCode::from(3);
    }
    let token = answer.split_once("\"access_token\":\"").and_then(|(_, rest)| rest.split_once('"'));
    match (answer.get(..13), token) {
        (Some("HTTP/1.1 200 "), Some((token, _))) => {
            let _ = writeln!(stdout(), "{token}");
            ExitCode::SUCCESS
        }
        (Some("HTTP/1.1 403 "), _) => ExitCode::from(4),
        (Some("HTTP/1.1 503 " | "HTTP/1.1 504 "), _) => ExitCode::from(6),
        _ => ExitCode::from(1),
    }
}
