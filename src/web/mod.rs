//! The web server: listeners, worker threads that bound every connection, and tiny_http behind them.

pub(crate) mod backend;
mod connections;
mod host;
pub mod listener;
mod request_head;
pub mod routes;
pub mod stream;
pub mod worker;
