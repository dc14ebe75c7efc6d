//! Callers of every kind that a machine has.

use std::fmt;

use tokend_tests::{Finished, Machine};

/// Somebody who asks for a token.
#[derive(Clone, Copy, Debug)]
pub(super) enum Caller {
    /// A command of this user, outside any service.
    User(&'static str),
    /// A service of this name, as this user.
    Service(&'static str, &'static str),
    /// A scope of this name, as this user.
    Scope(&'static str, &'static str),
    /// A unit of this name of the service manager of this user.
    UserService(&'static str, &'static str),
    /// A process of a service which has made a group within its own, named like a unit.
    Nested(&'static str, &'static str),
    /// A program of this path, as this user.
    Program(&'static str, &'static str),
    /// A program that this user has laid over `/usr/bin/tokenctl` in a file system of its own.
    Overlaid(&'static str),
    /// Another user's command, run from within a unit of this user's service manager.
    FromManagerOf(&'static str, &'static str),
}

impl Caller {
    /// The system unit that the journal must name, where the caller chose it.
    pub(super) fn recorded_unit(&self) -> Option<&'static str> {
        match self {
            Self::Service(unit, _) | Self::Scope(unit, _) => Some(unit),
            Self::Nested(..) => Some("nest.service"),
            _ => None,
        }
    }

    /// As whom it asks.
    pub(super) fn user(&self) -> &'static str {
        match self {
            Self::User(user)
            | Self::Overlaid(user)
            | Self::Service(_, user)
            | Self::Scope(_, user)
            | Self::UserService(_, user)
            | Self::Nested(_, user)
            | Self::Program(_, user)
            | Self::FromManagerOf(_, user) => user,
        }
    }

    /// Asks for a token.
    pub(super) fn ask(&self, machine: &Machine, token: &str) -> Finished {
        let get = ["tokenctl", "get", token];
        match *self {
            Self::User(user) => machine.run_as(user, &get),
            Self::Service(unit, user) => {
                let unit = format!("--unit={unit}");
                let user = format!("--uid={user}");
                run(machine, &["--quiet", "--wait", "--collect", "--pipe", &unit, &user], &get)
            }
            Self::Scope(unit, user) => {
                let unit = format!("--unit={unit}");
                let become_user = become_user(user);
                let become_user: Vec<&str> = become_user.split(' ').collect();
                run(machine, &["--quiet", "--scope", "--collect", &unit], &[&become_user, &get[..]].concat())
            }
            Self::UserService(unit, user) => in_manager_of(machine, user, unit, &get.join(" ")),
            Self::Nested(group, user) => {
                let script = format!(
                    "set -e; own=/sys/fs/cgroup$(sed -n 's/^0:://p' /proc/self/cgroup); mkdir \"$own/{group}\"; \
                     echo 0 >\"$own/{group}/cgroup.procs\"; grep -q '/{group}$' /proc/self/cgroup; \
                     exec {} tokenctl get {token}",
                    become_user(user)
                );
                let options = [
                    "--quiet",
                    "--wait",
                    "--collect",
                    "--pipe",
                    "--unit=nest.service",
                    "--property=Delegate=yes",
                ];
                run(machine, &options, &["sh", "-c", &script])
            }
            Self::Program(path, user) => machine.run_as(user, &[path, "get", token]),
            Self::Overlaid(user) => {
                let script =
                    format!("mount --bind /usr/bin/lookalike /usr/bin/tokenctl && exec tokenctl get {token}");
                machine
                    .run_as(user, &["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", &script])
            }
            Self::FromManagerOf(manager, user) => as_other_in_manager_of(machine, manager, user, token),
        }
    }
}

fn become_user(user: &str) -> String {
    format!("setpriv --reuid={user} --regid={user} --init-groups")
}

fn run(machine: &Machine, options: &[&str], command: &[&str]) -> Finished {
    machine.run(&[&["systemd-run"], options, &["--"], command].concat())
}

/// Runs a command as a unit of a user's own service manager.
fn in_manager_of(machine: &Machine, user: &str, unit: &str, command: &str) -> Finished {
    let script = format!(
        "export XDG_RUNTIME_DIR=/run/user/$(id -u); \
         exec systemd-run --user --quiet --wait --collect --pipe --unit={unit} -- {command}"
    );
    machine.run_as(user, &["sh", "-c", &script])
}

/// Runs a command of one user in the group of a unit of another user's service manager, where root has put it.
fn as_other_in_manager_of(machine: &Machine, manager: &str, user: &str, token: &str) -> Finished {
    let script = format!(
        "id=$(id -u {manager}); own=/sys/fs/cgroup/user.slice/user-$id.slice/user@$id.service/app.slice/sync.service; \
         mkdir \"$own\"; echo 0 >\"$own/cgroup.procs\"; {} tokenctl get {token}; code=$?; \
         echo 0 >/sys/fs/cgroup/init.scope/cgroup.procs; rmdir \"$own\"; exit $code",
        become_user(user)
    );
    machine.run(&["sh", "-c", &script])
}

impl fmt::Display for Caller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::User(user) => f.write_str(user),
            Self::Service(unit, user) | Self::Scope(unit, user) => write!(f, "{user} in {unit}"),
            Self::UserService(unit, user) => write!(f, "{user} in the user unit {unit}"),
            Self::Nested(group, user) => write!(f, "{user} in nest.service/{group}"),
            Self::Program(path, user) => write!(f, "{user} with {path}"),
            Self::Overlaid(user) => write!(f, "{user} with a program laid over"),
            Self::FromManagerOf(manager, user) => write!(f, "{user} in sync.service of {manager}"),
        }
    }
}
