//! The cells of the matrix.

use super::Cell;
use super::Outcome::{self, Allowed, Denied, NotConnected};
use super::caller::Caller::{
    self, FromManagerOf, Nested, Overlaid, Program, Scope, Service, User, UserService,
};

const NOBODY: &str = "";

/// Users, groups, units, conjunctions and what is denied by default, in a sandbox without any capability.
pub(super) fn of_rules() -> Vec<Cell> {
    const ESCAPED: &str = r"'unit:pay-out@eu\x2dwest.service'";
    const BOTH: &str = r#"{ user = "alice", unit = "billing.service" }"#;
    const OWN_SYNC: &str = r#"{ user = "alice", user_unit = "sync.service" }"#;
    let billing = Service("billing.service", "bob");
    cells([
        // Nobody but root and the daemon.
        (User("alice"), NOBODY, Denied),
        (User("root"), NOBODY, Allowed("root")),
        (User("tokend"), NOBODY, Allowed("the daemon's own user")),
        (User("carol"), r#""user:carol""#, NotConnected),
        // Users.
        (User("alice"), r#""user:alice""#, Allowed("user:alice")),
        (User("bob"), r#""user:alice""#, Denied),
        (User("erin"), r#""user:3001""#, Allowed("user:3001")),
        (User("dave"), r#""user:3001""#, Denied),
        (billing, r#""user:bob""#, Allowed("user:bob")),
        // Groups, a process's own and its further ones.
        (User("alice"), r#""group:alice""#, Allowed("group:alice")),
        (User("dave"), r#""group:payments""#, Allowed("group:payments")),
        (User("alice"), r#""group:payments""#, Denied),
        // Everybody.
        (User("bob"), r#""any""#, Allowed("any")),
        // Units.
        (billing, r#""unit:billing.service""#, Allowed("unit:billing.service")),
        (Service("billing-2.service", "bob"), r#""unit:billing.service""#, Denied),
        (User("bob"), r#""unit:billing.service""#, Denied),
        (Service("pay@eu.service", "bob"), r#""unit:pay@eu.service""#, Allowed("unit:pay@eu.service")),
        (Service("pay@us.service", "bob"), r#""unit:pay@eu.service""#, Denied),
        (Service("pay@us.service", "bob"), r#""unit:pay@*.service""#, Allowed("unit:pay@*.service")),
        (Service("pay.service", "bob"), r#""unit:pay@*.service""#, Denied),
        (Service("payer@us.service", "bob"), r#""unit:pay@*.service""#, Denied),
        (Service(r"pay-out@eu\x2dwest.service", "bob"), ESCAPED, Allowed(r"unit:pay-out@eu\x2dwest.service")),
        (Service("pay-out@eu-west.service", "bob"), ESCAPED, Denied),
        (Service("cpu.service", "bob"), r#""unit:cpu.service""#, Allowed("unit:cpu.service")),
        (Scope("job.scope", "bob"), r#""unit:job.scope""#, Allowed("unit:job.scope")),
        (Scope("job.scope", "bob"), r#""unit:job.service""#, Denied),
        // Below a unit everything is that unit's.
        (Nested("worker", "bob"), r#""unit:nest.service""#, Allowed("unit:nest.service")),
        (Nested("billing.service", "bob"), r#""unit:billing.service""#, Denied),
        // Units of a user's own service manager.
        (UserService("sync.service", "alice"), OWN_SYNC, Allowed("user:alice and user_unit:sync.service")),
        (UserService("other.service", "alice"), OWN_SYNC, Denied),
        (UserService("sync.service", "bob"), OWN_SYNC, Denied),
        (Service("sync.service", "alice"), OWN_SYNC, Denied),
        (FromManagerOf("bob", "alice"), OWN_SYNC, Denied),
        (UserService("billing.service", "alice"), r#""unit:billing.service""#, Denied),
        // Conjunctions.
        (Service("billing.service", "alice"), BOTH, Allowed("user:alice and unit:billing.service")),
        (User("alice"), BOTH, Denied),
        (billing, BOTH, Denied),
        // An executable that cannot be seen is no executable.
        (User("alice"), r#""exe:/usr/bin/tokenctl""#, Denied),
    ])
}

/// Root as everybody else.
pub(super) fn of_root_denied() -> Vec<Cell> {
    cells([
        (User("root"), NOBODY, Denied),
        (User("root"), r#""user:alice""#, Denied),
        (User("root"), r#""user:root""#, Allowed("user:root")),
        (Service("billing.service", "root"), r#""unit:billing.service""#, Allowed("unit:billing.service")),
        (User("tokend"), NOBODY, Allowed("the daemon's own user")),
    ])
}

/// Executables, as far as the daemon may see them.
pub(super) fn of_executables() -> Vec<Cell> {
    const RULE: &str = r#""exe:/usr/bin/tokenctl""#;
    const BOTH: &str = r#"{ user = "alice", exe = "/usr/bin/tokenctl" }"#;
    const THREE: &str = r#"{ user = "bob", unit = "billing.service", exe = "/usr/bin/tokenctl" }"#;
    cells([
        (User("alice"), RULE, Allowed("exe:/usr/bin/tokenctl")),
        (Program("/usr/bin/lookalike", "alice"), RULE, Denied),
        (Overlaid("alice"), RULE, Denied),
        (User("alice"), BOTH, Allowed("user:alice and exe:/usr/bin/tokenctl")),
        (User("bob"), BOTH, Denied),
        (
            Service("billing.service", "bob"),
            THREE,
            Allowed("user:bob and unit:billing.service and exe:/usr/bin/tokenctl"),
        ),
        (Service("other.service", "bob"), THREE, Denied),
    ])
}

/// In a user namespace of its own the daemon is told most users as one, who is nobody.
pub(super) fn of_users_who_are_not_told() -> Vec<Cell> {
    cells([
        (User("alice"), r#""any""#, NotConnected),
        (User("alice"), r#""user:65534""#, NotConnected),
        (User("root"), NOBODY, Allowed("root")),
        (User("tokend"), NOBODY, Allowed("the daemon's own user")),
    ])
}

fn cells<const COUNT: usize>(cells: [(Caller, &'static str, Outcome); COUNT]) -> Vec<Cell> {
    cells.into_iter().map(|(caller, allow, expected)| Cell { caller, allow, expected }).collect()
}
