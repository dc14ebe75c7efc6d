//! The test harness of tokend: everything that a suite needs to watch the real daemon from outside.
//!
//! A scripted authorization server that records every request and can misbehave, strict stand-ins for the
//! five providers, the real programs run as processes, a peer that writes any bytes, and a register of
//! every secret, which is searched for in whatever a program of ours writes.
//!
//! The harness never sleeps for time to pass where it can wait for a condition, and every wait is bounded.
//! What cannot go on panics: that is how a test fails.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::missing_panics_doc,
    reason = "the harness is test code: a panic is how a test fails"
)]

pub mod audit;
pub mod bench;
pub mod capture;
pub mod certificate;
pub mod daemon;
pub mod egress;
pub mod fd_donor;
pub mod http;
pub mod in_process;
pub mod machine;
pub mod memory;
pub mod notify;
pub mod package;
pub mod process;
pub mod program;
pub mod provider;
pub mod raw_peer;
pub mod requirement;
pub mod scale;
pub mod secrets;
pub mod service_manager;
pub mod standin;
pub mod test_dir;
pub mod test_support;
pub mod tokenctl;
pub mod wait;

pub use capture::Capture;
pub use certificate::{Authority, Flaw, Identity, Shown};
pub use daemon::RealDaemon;
pub use egress::EgressSocket;
pub use fd_donor::FdDonor;
pub use in_process::InProcess;
pub use machine::Machine;
pub use process::Finished;
pub use provider::{Answer, Fault, Gate, Provider, Recorded};
pub use raw_peer::RawPeer;
pub use scale::{report, size};
pub use service_manager::ServiceManager;
pub use standin::{Kind, StandIn};
pub use test_dir::TestDir;
pub use test_support::Scene;
pub use tokenctl::Tokenctl;
