//! The web server: listeners, worker threads that limit every connection, and tiny_http behind
//! them.

mod backend;
mod connections;
pub mod healthcheck;
pub mod listener;
mod pair;
mod request_head;
pub mod routes;
pub mod status_page;
pub mod stream;
#[cfg(unix)]
mod unix_listener;
pub mod worker;
