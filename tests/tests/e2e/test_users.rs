//! Users and groups with numbers that no distribution gives out, and a daemon to which they may connect.

use tokend_tests::tokenctl::User;
use tokend_tests::{Provider, Scene};

/// The group that may connect to the socket at all.
pub(crate) const SOCKET: u32 = 61_000;
pub(crate) const ALICE: u32 = 61_001;
pub(crate) const BOB: u32 = 61_002;
pub(crate) const PAYMENTS: u32 = 61_010;

/// A daemon with these tokens.
pub(crate) fn scene(tokens: &str) -> Scene {
    Scene::start_with(Provider::start(), &format!("socket_group = {:?}", SOCKET.to_string()), tokens)
}

/// A user who may connect.
pub(crate) fn user(uid: u32) -> User {
    User::new(uid).with_groups(&[SOCKET])
}
