//! Every fault of a provider that we could think of, with a token held and without: what callers see, what the
//! status says, how many requests it costs, and how soon it is over once the provider is well again.
//!
//! All of them at once, in one daemon, each with a provider of its own. `cargo test fault_table -- --nocapture`
//! prints the table.

mod check;
mod rows;
mod server;
mod simulated;
mod subject;

use std::fmt::Write as _;
use std::sync::Arc;
use std::thread;
use std::time::Instant;

use tokend_client::Options;
use tokend_client::blocking::Client;
use tokend_tests::test_support::{provider_table, token_table};
use tokend_tests::{InProcess, Provider, TestDir, program};

use check::complaints;
use rows::{Row, rows};
use server::{Authorities, Server};
use subject::{Seen, Situation, Subject, name_of};

#[test]
fn no_fault_takes_a_token_away_or_costs_many_requests_and_each_is_recovered_from() {
    // Built before the clock runs.
    program::tokenctl();
    let rows = rows();
    assert!(rows.len() >= 117, "{} rows", rows.len());
    let seen = run(&rows);
    let complaints: Vec<String> = seen.iter().flat_map(complaints).collect();
    print(&seen, &complaints);
    assert!(complaints.is_empty(), "\n{}", complaints.join("\n"));
}

#[test]
fn each_fault_costs_few_requests_and_is_over_in_time_in_simulated_time() {
    simulated::check(&rows());
}

/// Not in the table, because no provider can mend it: a name is corrected in the configuration.
#[test]
fn a_name_that_does_not_resolve_costs_little_and_a_reload_mends_it() {
    // Built before the clock runs.
    program::tokenctl();
    let (home, provider) = (TestDir::new(), Provider::start());
    let configure = |endpoint: &str| {
        home.configure("", &(provider_table(&home, "p", endpoint, "") + &token_table("t", "")));
    };
    configure("https://tokend-test.invalid/token");
    let daemon = InProcess::start(&home);
    daemon.tokenctl().run(&["get", "t"]).expect_code(6);
    let status = daemon.tokenctl().status_of("t");
    assert_eq!(status["state"], "unavailable", "{status:#}");
    // Where the resolver itself is out of reach, no answer comes in time.
    let class = status["last_error"]["class"].as_str().unwrap();
    assert!(["unreachable", "timeout"].contains(&class), "{status:#}");
    let failures = status["failures"].as_u64().unwrap();
    assert!((1..=3).contains(&failures), "{status:#}");
    configure(&provider.token_endpoint());
    daemon.reload();
    daemon.tokenctl().get("t");
    assert_eq!(provider.count(), 1);
}

/// Each row in both situations, side by side.
fn run(rows: &[Row]) -> Vec<Seen> {
    let home = TestDir::new();
    let authorities = Arc::new(Authorities::default());
    let mut servers = Vec::new();
    let mut text = String::new();
    for row in rows {
        for situation in [Situation::Held, Situation::Empty] {
            let mut server = Server::start(&row.trouble, &authorities);
            if situation == Situation::Empty {
                server.begin();
            }
            text.push_str(&tables(&home, row, situation, &server, &authorities));
            servers.push((row.clone(), situation, server));
        }
    }
    home.configure("max_connections = 4096\nmax_connections_per_uid = 4000", &text);
    let since = Instant::now();
    let daemon = InProcess::start(&home);
    let (options, tokenctl) = (Options::new(daemon.socket()), daemon.tokenctl());
    let running: Vec<_> = servers
        .into_iter()
        .map(|(row, situation, server)| {
            let (client, peer, tokenctl) = (Client::new(options.clone()), daemon.peer(), tokenctl.clone());
            let subject = Subject { row, situation, server, client, peer, tokenctl };
            thread::spawn(move || subject.run(since))
        })
        .collect();
    running.into_iter().map(|subject| subject.join().expect("its thread says why")).collect()
}

/// The configuration of a subject: a provider and a token of the same name.
fn tables(
    home: &TestDir,
    row: &Row,
    situation: Situation,
    server: &Server,
    authorities: &Authorities,
) -> String {
    let name = name_of(row, situation);
    let mut text = format!(
        "[provider.{name:?}]\ntoken_endpoint = {:?}\nclient_id = \"client\"\nclient_secret = {}\n\
         token_endpoint_auth_method = \"client_secret_post\"\n",
        server.endpoint(),
        home.secret_once("secret"),
    );
    if row.trouble.needs_tls() {
        let _ = writeln!(text, "ca_file = \"{}\"", authorities.trusted.ca_file().display());
    }
    let scope = scope_keys(row);
    let _ = write!(text, "\n[token.{name:?}]\nprovider = {name:?}\n{scope}\n");
    text
}

/// The keys of the row's token about its scope.
fn scope_keys(row: &Row) -> &'static str {
    match &*row.name {
        "less-scope" | "no-scope" => "scope = \"a b\"\n",
        "less-scope-than-required" => "scope = \"a b\"\nscope_required = true\n",
        _ => "",
    }
}

#[expect(clippy::print_stdout, reason = "the table is for the readers of the output")]
fn print(seen: &[Seen], complaints: &[String]) {
    println!("{}", check::heading());
    for seen in seen {
        println!("{seen}");
    }
    println!("{} rows, {} complaints", seen.len(), complaints.len());
}
