//! A caller that varies all it can: each of its connections comes from a control group of its own, and asks for a token in
//! all variants at once.
//!
//! `flood SOCKET GROUP END TOKEN SCOPE...` makes the control groups below GROUP, which must be this user's own, and asks until
//! the file END is there. It prints how many tokens it got.

#![allow(clippy::print_stdout, clippy::panic, clippy::unwrap_used, reason = "a program of the tests")]

use std::path::Path;
use std::{env, fs, process};

use tokend_protocol::{CallOptions, GetRequest, Reply, Request, TokenName, Variant};
use tokend_tests::{RawPeer, raw_peer};

/// Below the limit of one user. With 31 variants, more kinds of hand-outs than the daemon could ever keep apart.
const CONNECTIONS: usize = 600;

fn main() {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let [socket, group, end, token, scopes @ ..] = arguments.as_slice() else {
        panic!("expected SOCKET GROUP END TOKEN SCOPE...");
    };
    let requests = requests(&token.parse().unwrap(), scopes);
    let mut connections: Vec<RawPeer> =
        (0..CONNECTIONS).map(|number| connect(socket, group, number)).collect();
    let mut got: u64 = 0;
    while !Path::new(end).exists() {
        for connection in &mut connections {
            got += ask(connection, &requests);
        }
    }
    println!("{got}");
}

/// A connection from a new control group: a unit of the user's service manager, to the daemon.
fn connect(socket: &str, group: &str, number: usize) -> RawPeer {
    let unit = Path::new(group).join(format!("flood-{number}.scope"));
    fs::create_dir(&unit).unwrap();
    fs::write(unit.join("cgroup.procs"), process::id().to_string()).unwrap();
    let mut connection = RawPeer::connect(Path::new(socket)).unwrap();
    // The daemon has seen the control group when it answers.
    connection.assert_alive();
    connection
}

/// A request for each subset of the scopes but the empty one.
fn requests(name: &TokenName, scopes: &[String]) -> Vec<Request> {
    let subset = |chosen: u32| -> Vec<String> {
        let numbered = scopes.iter().enumerate();
        numbered.filter(|(place, _)| chosen & (1 << place) != 0).map(|(_, scope)| scope.clone()).collect()
    };
    let options = CallOptions { deadline_ms: 60_000, min_ttl_ms: 0 };
    let get =
        |scope| GetRequest { name: name.clone(), options, variant: Variant { scope, ..Variant::default() } };
    (1..1 << scopes.len()).map(|chosen| Request::Get(get(subset(chosen)))).collect()
}

/// Makes all requests at once. Returns how many were granted, which is all of them.
fn ask(connection: &mut RawPeer, requests: &[Request]) -> u64 {
    let frames = (1..).zip(requests).flat_map(|(id, request)| raw_peer::wire(id, request.clone()));
    connection.write(&frames.collect::<Vec<u8>>()).unwrap();
    // Waiting requests may be answered later than others.
    for _ in requests {
        let reply = connection.receive().unwrap().unwrap().unwrap().message;
        assert!(matches!(reply, Reply::Token(_)), "{reply:?}");
    }
    requests.len() as u64
}
