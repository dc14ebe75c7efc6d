//! Who may have what.

/// One entry of an `allow` list.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Rule {
    /// `user:NAME` or `user:UID`: the peer's effective user.
    User(Principal),
    /// `group:NAME` or `group:GID`: the peer's effective group or one of its supplementary groups.
    Group(Principal),
    /// `unit:NAME`: the systemd system unit that the peer runs in.
    Unit(String),
}

/// A user or a group, by name or by number.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Principal {
    /// Looked up in the host's name service when it is needed.
    Name(String),
    /// Taken as it is.
    Id(u32),
}
