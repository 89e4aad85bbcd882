//! What is watched: a client with limits, and one file per kind of server.

pub mod advice;
pub mod answers;
pub mod asker;
pub mod client;
pub mod completion;
pub mod detect;
pub mod llama_server;
pub mod llama_swap;
mod model_names;
pub mod model_runner;
mod open;
pub mod reach;
pub mod reading;
mod resolve;
pub mod restraint;
pub mod router;
pub mod samples;
pub mod shown;
pub mod signs;
#[cfg(feature = "tls")]
mod tls;
mod transport;
pub mod turns;
pub mod work;
