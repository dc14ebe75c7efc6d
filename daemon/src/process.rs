//! The daemon as a process: start, signals, reload, drain, and what the operating system gives it.

pub mod daemon;
pub mod fault;
pub mod hardening;
pub mod listener;
pub mod logging;
pub mod network;
pub mod run;
pub mod sockets;
pub mod systemd;
