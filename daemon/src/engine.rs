//! Keeps tokens fresh: which credentials there are, when each asks its provider, and what each holds.

mod actor;
pub mod credential;
pub mod registry;
pub mod schedule;
pub mod throttle;
pub mod variants;
