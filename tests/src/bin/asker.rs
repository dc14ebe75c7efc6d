//! Asks for a connection where tokend-egress listens, as the daemon does: `asker SOCKET HOST PORT` prints to where it
//! leads, or why there is none. Used by the suite on a real systemd, in a machine of its own.

#![allow(clippy::print_stdout, clippy::unwrap_used, reason = "a program of the tests")]

use std::env;

use tokend_egress::{Egress, Helper};

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let [socket, host, port]: [String; 3] = env::args().skip(1).collect::<Vec<_>>().try_into().unwrap();
    match Egress::Helper(Helper::new(socket)).connect(&host, port.parse().unwrap()).await {
        Ok(connection) => println!("{}", connection.as_ref().peer_addr().unwrap()),
        Err(error) => println!("{error}"),
    }
}
