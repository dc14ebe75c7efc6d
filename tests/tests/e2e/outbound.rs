//! What the daemon sends, and to whom: a secret to its own token endpoint, over TLS that was verified, and to nobody
//! else. Everything that leaves is caught on the way, as bytes.

use std::fmt::Write as _;
use std::fs;
use std::net::UdpSocket;
use std::path::Path;

use serde_json::{Value, json};
use tokend_tests::daemon::Launch;
use tokend_tests::test_support::{provider_table, token_of};
use tokend_tests::{
    Answer, Authority, Capture, Flaw, Provider, RealDaemon, TestDir, requirement, secrets, wait,
};

/// A daemon with a token `bad` that is asked for at `endpoint`, and a token `good` of a sound provider.
struct Pair {
    daemon: RealDaemon,
    _good: Provider,
    _home: TestDir,
}

impl Pair {
    fn start(endpoint: &str, more: &str) -> Self {
        Self::start_by(endpoint, more, |launch| launch)
    }

    fn start_by(endpoint: &str, more: &str, launch: impl FnOnce(Launch) -> Launch) -> Self {
        let (home, good) = (TestDir::new(), Provider::start());
        let mut text = provider_table(&home, "bad", endpoint, more);
        text.push_str(&provider_table(&home, "good", &good.token_endpoint(), ""));
        home.configure("", &(text + &token_of("bad", "bad", "") + &token_of("good", "good", "")));
        let daemon = launch(Launch::new(&home)).start();
        Self { daemon, _good: good, _home: home }
    }

    /// The failure of the bad token. The good one is served before and after it.
    fn failure(&self) -> Value {
        self.daemon.tokenctl().get("good");
        let failure = failure_of(&self.daemon, "bad");
        self.daemon.tokenctl().get("good");
        failure
    }
}

fn failure_of(daemon: &RealDaemon, token: &str) -> Value {
    wait::until(&format!("a failure of {token} in the status"), || {
        let failure = daemon.tokenctl().status_of(token)["last_error"].clone();
        (!failure.is_null()).then_some(failure)
    })
}

/// Asserts that no secret is in what somebody was sent, in any form.
fn assert_nothing_secret(what: &str, heard: &[u8]) {
    let text = String::from_utf8_lossy(heard);
    secrets::assert_absent(what, &text);
    assert!(!text.contains("grant_type"), "{what}: a token request was sent");
}

#[test]
fn a_client_secret_goes_to_its_own_token_endpoint_alone() {
    let (home, one, other) = (TestDir::new(), Provider::start(), Provider::start());
    let mut text = provider_table(&home, "one", &one.token_endpoint(), "");
    text.push_str(&provider_table(&home, "other", &other.token_endpoint(), ""));
    home.configure("", &(text + &token_of("one", "one", "") + &token_of("other", "other", "")));
    let daemon = RealDaemon::start(&home);
    for (name, provider) in [("one", &one), ("other", &other)] {
        daemon.tokenctl().get(name);
        let own = fs::read_to_string(home.path().join(format!("{name}.secret"))).unwrap();
        let requests = provider.requests();
        let [request] = requests.as_slice() else { panic!("{} requests of {name}", requests.len()) };
        assert_eq!(request.field("client_secret"), Some(own), "{name}");
        assert_eq!(
            secrets::found_in(&format!("{request:?}"))
                .iter()
                .filter(|kind| kind.ends_with(".secret"))
                .count(),
            1
        );
    }
}

#[test]
fn no_redirect_is_followed() {
    for status in [301, 302, 303, 307, 308] {
        let (elsewhere, bad) = (Provider::start(), Provider::start());
        bad.always(Answer::status(status).with_header("Location", &elsewhere.token_endpoint()));
        let pair = Pair::start(&bad.token_endpoint(), "");
        let failure = pair.failure();
        let message = failure["message"].as_str().unwrap();
        assert!(message.contains("redirect"), "{status}: the operator is told: {message}");
        pair.daemon.tokenctl().run(&["get", "bad"]).expect_code(6);
        assert_eq!(elsewhere.connections(), 0, "{status}: nothing reached the other host");
    }
}

#[test]
fn no_redirect_of_metadata_is_followed() {
    for status in [301, 302, 303, 307, 308] {
        let (elsewhere, issuer) = (Provider::start(), Provider::start());
        issuer.always(
            Answer::status(status)
                .with_header("Location", &elsewhere.url("/.well-known/openid-configuration")),
        );
        let (daemon, _home) = discovering(&issuer);
        let failure = failure_of(&daemon, "t");
        assert!(failure["message"].as_str().unwrap().contains("redirect"), "{status}: {failure}");
        assert_eq!(elsewhere.connections(), 0, "{status}: nothing reached the other host");
    }
}

/// A daemon whose token `t` is of an issuer.
fn discovering(issuer: &Provider) -> (RealDaemon, TestDir) {
    let home = TestDir::new();
    let table = provider_table(&home, "p", &issuer.url(""), "").replace("token_endpoint = ", "issuer = ");
    home.configure("", &(table + &token_of("p", "t", "")));
    (RealDaemon::start(&home), home)
}

/// An issuer vouches for its token endpoint, on whatever host; nobody vouches for another issuer's.
#[test]
fn the_token_endpoint_is_the_one_that_the_issuer_itself_names() {
    for (is_its_own, requests) in [(true, 1), (false, 0)] {
        let (issuer, endpoint) = (Provider::start(), Provider::start());
        let named = if is_its_own { issuer.url("") } else { "https://id.example".to_owned() };
        issuer.always(Answer::json(
            200,
            &json!({ "issuer": named, "token_endpoint": endpoint.token_endpoint() }),
        ));
        let (daemon, _home) = discovering(&issuer);
        let got = daemon.tokenctl().run(&["get", "t"]);
        assert_eq!((got.code == 0, endpoint.count()), (is_its_own, requests), "{}", got.stderr);
        assert!(issuer.requests().iter().all(|request| request.method == "GET" && request.body.is_empty()));
    }
}

#[test]
fn whoever_cannot_prove_to_be_the_provider_is_sent_nothing() {
    let (authority, stranger) = (Authority::new(), Authority::new());
    let trusted = format!("ca_file = \"{}\"", authority.ca_file().display());
    let cases = [
        ("expired", authority.server(Flaw::Expired), trusted.as_str()),
        ("another host's", authority.server(Flaw::WrongHost), trusted.as_str()),
        ("self-signed", authority.server(Flaw::SelfSigned), trusted.as_str()),
        ("of an unknown authority", stranger.server(Flaw::None), trusted.as_str()),
        ("of a private authority without ca_file", authority.server(Flaw::None), ""),
    ];
    for (what, server, more) in cases {
        let bad = Provider::start_tls(server);
        let capture = Capture::before(bad.address());
        let pair = Pair::start(&format!("https://{}/token", capture.address()), more);
        assert_eq!(pair.failure()["class"], "tls", "{what}");
        assert_eq!(bad.count(), 0, "{what}: no request arrived");
        assert!(capture.connections() > 0, "{what}: it was tried");
        assert_nothing_secret(what, &capture.heard());
    }
}

#[test]
fn a_server_that_speaks_no_tls_is_sent_nothing() {
    let answers: [&[u8]; 2] = [
        b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 22\r\n\r\n{\"access_token\":\"abc\"}",
        b"220 mail.example ESMTP\r\n",
    ];
    for answer in answers {
        let capture = Capture::answering(answer);
        let pair = Pair::start(&format!("https://{}/token", capture.address()), "");
        assert_eq!(pair.failure()["class"], "tls");
        pair.daemon.tokenctl().run(&["get", "bad"]).expect_code(6);
        assert!(!capture.heard().is_empty(), "a handshake was begun");
        assert_nothing_secret("a server without TLS", &capture.heard());
    }
}

#[test]
fn a_proxy_is_used_only_where_it_is_configured_and_sees_no_secret() {
    const VARIABLES: [&str; 6] =
        ["http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"];
    let authority = Authority::new();
    let trusted = format!("ca_file = \"{}\"", authority.ca_file().display());
    let (of_environment, configured) = (Capture::proxy(), Capture::proxy());
    for (more, connections) in
        [(String::new(), 0), (format!("proxy = \"http://{}\"", configured.address()), 1)]
    {
        let provider = Provider::start_tls(authority.server(Flaw::None));
        let pair = Pair::start_by(&provider.token_endpoint(), &format!("{trusted}\n{more}"), |launch| {
            let proxy = format!("http://{}", of_environment.address());
            let launch = VARIABLES.iter().fold(launch, |launch, name| launch.env(name, &proxy));
            // Nor is there an exception but by the configuration.
            launch.env("no_proxy", "*").env("NO_PROXY", "*")
        });
        pair.daemon.tokenctl().get("bad");
        pair.daemon.tokenctl().get("good");
        assert_eq!(provider.count(), 1);
        assert_eq!((of_environment.connections(), configured.connections()), (0, connections), "{more}");
        if connections > 0 {
            let heard = configured.heard();
            let asked = format!("CONNECT {} HTTP/1.1\r\n", provider.address());
            assert!(heard.starts_with(asked.as_bytes()), "{}", String::from_utf8_lossy(&heard));
            assert_nothing_secret("the proxy", &heard);
        }
    }
}

/// With the keys of a connection, whoever has recorded it reads the secret in it.
#[test]
fn the_keys_of_a_connection_are_written_nowhere() {
    let authority = Authority::new();
    let provider = Provider::start_tls(authority.server(Flaw::None));
    let directory = TestDir::new();
    let keys = directory.path().join("keys");
    let trusted = format!("ca_file = \"{}\"", authority.ca_file().display());
    let pair =
        Pair::start_by(&provider.token_endpoint(), &trusted, |launch| launch.env("SSLKEYLOGFILE", &keys));
    pair.daemon.tokenctl().get("bad");
    assert_eq!(provider.count(), 1);
    assert!(!keys.exists());
}

/// Runs the daemon with some files of `/etc` replaced, for it alone.
fn with_etc(launch: Launch, home: &Path, files: &[(&str, &str)]) -> Launch {
    let mut script = String::new();
    for (name, text) in files {
        let stand_in = home.join(name);
        fs::write(&stand_in, text).unwrap();
        let _ = write!(script, "mount --bind {} /etc/{name} && ", stand_in.display());
    }
    launch.through(&["unshare", "--mount", "sh", "-c", &format!("{script}exec \"$@\""), "sh"])
}

/// Requests to this host may do without TLS, so no name service may say where this host is.
#[test]
fn localhost_is_this_host_whatever_the_name_service_says() {
    if !(requirement::root() && requirement::program("unshare")) {
        return;
    }
    let provider = Provider::start();
    let directory = TestDir::new();
    let hosts = [("hosts", "192.0.2.1 localhost\n"), ("nsswitch.conf", "hosts: files\n")];
    let pair = Pair::start_by(&provider.url_by_name("/token"), "", |launch| {
        with_etc(launch, directory.path(), &hosts)
    });
    pair.daemon.tokenctl().get("bad");
    assert_eq!(provider.count(), 1);
}

#[test]
fn a_name_service_that_hangs_is_given_up_in_time_and_holds_up_nobody_else() {
    if !(requirement::root() && requirement::program("unshare")) {
        return;
    }
    // It takes questions and never answers.
    let Ok(silent) = UdpSocket::bind("127.0.0.153:53") else {
        requirement::met("port 53 of 127.0.0.153", false);
        return;
    };
    let directory = TestDir::new();
    let files = [
        ("resolv.conf", "nameserver 127.0.0.153\noptions timeout:30 attempts:5\n"),
        ("nsswitch.conf", "passwd: files\ngroup: files\nhosts: dns\n"),
    ];
    let pair = Pair::start_by("https://hangs.example/token", "", |launch| {
        with_etc(launch, directory.path(), &files)
    });
    let failure = pair.failure();
    let message = failure["message"].as_str().unwrap();
    assert!(message.ends_with(": the name service does not answer in time"), "{failure}");
    let mut question = [0; 512];
    let length = silent.recv(&mut question).unwrap();
    assert_nothing_secret("the name service", &question[..length]);
}

/// The sockets of a process in one of the kernel's tables, which has their inodes in this column.
fn sockets_of(pid: u32, table: &str, inode: usize) -> Vec<String> {
    let descriptors = fs::read_dir(format!("/proc/{pid}/fd")).unwrap();
    let targets = descriptors.filter_map(|entry| fs::read_link(entry.unwrap().path()).ok());
    let own: Vec<String> = targets.map(|target| target.display().to_string()).collect();
    let is_own = |line: &&str| {
        let inode = line.split_whitespace().nth(inode).unwrap_or_default();
        own.contains(&format!("socket:[{inode}]"))
    };
    let table = fs::read_to_string(format!("/proc/{pid}/net/{table}")).unwrap_or_default();
    table.lines().skip(1).filter(is_own).map(str::to_owned).collect()
}

#[test]
fn it_listens_on_nothing_but_its_unix_socket() {
    let provider = Provider::start();
    let pair = Pair::start(&provider.token_endpoint(), "");
    pair.daemon.tokenctl().get("bad");
    let pid = pair.daemon.pid();
    for table in ["tcp", "tcp6"] {
        let listens = |line: &&String| line.split_whitespace().nth(3) == Some(TCP_LISTEN);
        assert_eq!(sockets_of(pid, table, 9).iter().find(listens), None, "{table}");
    }
    for table in ["udp", "udp6", "udplite", "udplite6", "raw", "raw6", "icmp", "icmp6"] {
        assert_eq!(sockets_of(pid, table, 9), [""; 0], "{table}");
    }
    assert_eq!(sockets_of(pid, "packet", 8), [""; 0]);
    let socket = pair.daemon.socket().display().to_string();
    let (own, others): (Vec<_>, Vec<_>) = sockets_of(pid, "unix", 6)
        .into_iter()
        .filter(|line| line.contains(['/', '@']))
        .partition(|line| line.contains(&socket));
    assert!(!own.is_empty() && others.is_empty(), "{others:?}");
}

/// The state of a socket that takes connections, in `/proc/PID/net/tcp`.
const TCP_LISTEN: &str = "0A";
