//! The program: its command line, its listener and its end.

use std::error::Error;
use std::fs;
use std::io::{self, Write};
use std::net::SocketAddr;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::str::FromStr;
use std::sync::Arc;

use clap::Parser;
use nix::sys::stat::{Mode, umask};
use sd_notify::NotifyState;
use tokend_client::{CallerHeaders, Client, Options, TokenName};
use tokend_proxy::{Connections, Proxy, Upstream};
use tokio::net::{TcpListener, UnixListener};
use tokio::signal::unix::{SignalKind, signal};

/// Adds the headers of a token to each request, and forwards it to one upstream
///
/// The program that sends the requests needs no credential and never sees the token. If the upstream refuses the token (401), it is
/// reported to the daemon, and the request is sent once more with the next one.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    /// The token's name in the daemon's configuration.
    name: TokenName,
    /// Where requests go: https:// and a host, with a port and a path if needed. http:// only on this host.
    #[arg(long, value_name = "URL", env = "TOKEND_PROXY_UPSTREAM")]
    upstream: Upstream,
    /// Where to listen: the path of a Unix socket, or an address of this host such as 127.0.0.1:8080.
    #[arg(long, value_name = "PATH|ADDRESS", env = "TOKEND_PROXY_LISTEN")]
    listen: Listen,
    /// The mode of the Unix socket, in octal. Who may connect may use the token.
    #[arg(long, value_name = "MODE", default_value = "0600", value_parser = mode)]
    mode: u32,
    /// A header that the configuration leaves to the caller, as in `Requestor-ID: 4711`.
    #[arg(short = 'H', long = "header", value_name = "NAME: VALUE", value_parser = header)]
    headers: Vec<(String, String)>,
    /// More certificate authorities to trust, in PEM.
    #[arg(long, value_name = "FILE")]
    ca_file: Option<PathBuf>,
    /// The daemon's socket.
    #[arg(long, value_name = "PATH", env = "TOKEND_SOCKET")]
    socket: Option<PathBuf>,
}

#[derive(Clone, Debug)]
enum Listen {
    Unix(PathBuf),
    Tcp(SocketAddr),
}

impl FromStr for Listen {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text.starts_with('/') {
            return Ok(Self::Unix(text.into()));
        }
        let address: Result<SocketAddr, _> = text.parse();
        match address {
            Ok(address) if address.ip().is_loopback() => Ok(Self::Tcp(address)),
            Ok(_) => {
                Err("other hosts could use the token: listen on 127.0.0.1, [::1] or a Unix socket".to_owned())
            }
            Err(_) => Err("expected an absolute path, or an address such as 127.0.0.1:8080".to_owned()),
        }
    }
}

fn mode(text: &str) -> Result<u32, String> {
    let mode = u32::from_str_radix(text, 8).ok().filter(|mode| mode & !0o666 == 0);
    mode.ok_or_else(|| "expected an octal mode such as 0660".to_owned())
}

fn header(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once(':').ok_or("expected NAME: VALUE")?;
    Ok((name.trim().to_owned(), value.trim().to_owned()))
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    match run(Arguments::parse()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(io::stderr(), "tokend-proxy: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn run(arguments: Arguments) -> Result<(), Box<dyn Error>> {
    let Arguments { name, upstream, listen, mode, headers, ca_file, socket } = arguments;
    let options = socket.map_or_else(Options::from_env, Options::new);
    let supply = |caller: CallerHeaders, (name, value)| caller.supply(name, value);
    let caller = headers.into_iter().fold(CallerHeaders::new(), supply);
    let source = Client::new(options).source(&name).with_caller_headers(caller);
    let proxy = Arc::new(Proxy::new(source, upstream, ca_file.as_deref())?);
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let connections = Connections::default();
    let serving = async {
        match &listen {
            Listen::Unix(path) => {
                let listener = bind(path, mode).map_err(|error| format!("{}: {error}", path.display()))?;
                ready();
                connections
                    .serve(&proxy, || async { listener.accept().await.map(|(stream, _)| stream) })
                    .await
            }
            Listen::Tcp(address) => {
                let listener =
                    TcpListener::bind(address).await.map_err(|error| format!("{address}: {error}"))?;
                ready();
                connections
                    .serve(&proxy, || async { listener.accept().await.map(|(stream, _)| stream) })
                    .await
            }
        }
    };
    tokio::select! {
        ended = serving => ended?,
        _ = terminate.recv() => (),
        _ = interrupt.recv() => (),
    }
    let _ = sd_notify::notify(&[NotifyState::Stopping]);
    connections.finish().await;
    if let Listen::Unix(path) = &listen {
        let _ = fs::remove_file(path);
    }
    Ok(())
}

fn ready() {
    let _ = sd_notify::notify(&[NotifyState::Ready]);
}

/// Makes the socket, in place of one that a killed proxy left.
fn bind(path: &Path, mode: u32) -> io::Result<UnixListener> {
    if fs::symlink_metadata(path).is_ok_and(|metadata| metadata.file_type().is_socket()) {
        if std::os::unix::net::UnixStream::connect(path).is_ok() {
            return Err(io::Error::new(io::ErrorKind::AddrInUse, "another program serves this socket"));
        }
        fs::remove_file(path)?;
    }
    // Nobody else can connect before the socket has its mode.
    let before = umask(Mode::from_bits_truncate(0o177));
    let listener = UnixListener::bind(path);
    umask(before);
    fs::set_permissions(path, fs::Permissions::from_mode(mode))?;
    listener
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_manual_page_names_every_option() {
        let page = include_str!("../../../systemd/tokend-proxy.1").replace('\\', "");
        let command = Arguments::command();
        for option in command.get_arguments().filter_map(|argument| argument.get_long()) {
            assert!(page.contains(&format!("--{option}")), "--{option}");
        }
    }

    #[test]
    fn other_hosts_cannot_use_the_token() {
        for good in ["/run/x.sock", "127.0.0.1:80", "[::1]:80"] {
            assert!(good.parse::<Listen>().is_ok(), "{good}");
        }
        for bad in ["0.0.0.0:80", "[::]:80", "192.0.2.1:80", "x.sock", ":80", "localhost:80"] {
            assert!(bad.parse::<Listen>().is_err(), "{bad}");
        }
        assert!(mode("0660").is_ok() && mode("0777").is_err() && mode("x").is_err());
    }
}
