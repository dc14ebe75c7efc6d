//! The daemon takes the socket that a service manager hands it.

use std::os::unix::net::UnixListener;

use tokend_tests::daemon::Launch;
use tokend_tests::test_support::{provider_table, token_table};
use tokend_tests::{Provider, TestDir, Tokenctl};

#[test]
fn a_socket_that_is_handed_over_is_served_and_outlives_the_daemon() {
    let (home, provider) = (TestDir::new(), Provider::start());
    home.configure("", &(provider_table(&home, "p", &provider.token_endpoint(), "") + &token_table("t", "")));
    let path = home.path().join("activated.sock");
    let listener = UnixListener::bind(&path).unwrap();
    // A caller that comes before the daemon waits in the queue.
    let early = std::thread::spawn({
        let tokenctl = Tokenctl::new(&path);
        move || tokenctl.get("t")
    });
    let mut daemon = Launch::new(&home).activated_by(&path, &listener).start();
    let token = early.join().unwrap();
    assert_eq!(Tokenctl::new(&path).get("t"), token);
    assert!(!home.socket().exists(), "no socket of its own besides");
    assert_eq!(daemon.stop(), 0);
    assert!(path.exists(), "the socket is the service manager's");
}
