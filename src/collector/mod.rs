//! The poll thread of each base URL: polls, publishes a snapshot, and logs changes.

pub mod clock;
mod monitored_server;
mod poll_loop;
mod poller;
mod request_sources;
mod schedule;
mod state_log;
mod watchdog;

pub use monitored_server::{MonitoredServer, health, readiness};
pub use poller::Poller;
