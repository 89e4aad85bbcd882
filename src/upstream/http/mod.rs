//! HTTP requests to an upstream: a client with limits, its transport, and the exchange of a poll.

pub mod allowed_addresses;
pub mod client;
pub mod endpoint;
pub mod exchange;
mod open_requests;
pub mod peer_check;
pub mod request_error;
pub mod request_log;
mod resolver;
pub mod response;
#[cfg(feature = "tls")]
mod tls;
pub mod transport;
