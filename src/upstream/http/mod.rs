//! HTTP to an upstream: a client with limits, its transport, and the requests of one poll.

pub mod allowed_addresses;
pub mod client;
pub mod exchange;
pub(crate) mod open_requests;
mod resolver;
#[cfg(feature = "tls")]
pub(crate) mod tls;
pub(crate) mod transport;
