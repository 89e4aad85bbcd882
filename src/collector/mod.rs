//! The poll thread of each server: polls, publishes a snapshot, and logs changes. Servers are given
//! by their base URLs, or discovered.

pub mod clock;
pub mod discovery;
mod last_levels;
mod llama_server_families;
mod log_streams;
mod model_sources;
mod monitored_server;
mod poll_loop;
mod poller;
mod request_sources;
mod schedule;
mod served_sources;
mod server_list;
mod source_table;
mod state_log;
mod watchdog;

pub use monitored_server::MonitoredServer;
pub use poller::Poller;
pub use server_list::ServerList;
