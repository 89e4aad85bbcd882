//! What is watched: a client with limits, and one file per kind of server.

pub mod advice;
pub mod api;
pub mod completion;
pub mod detection;
pub mod http;
pub mod identification;
pub mod idle_guard;
pub mod llama_server;
pub mod llama_swap;
mod model_limit;
mod model_names;
pub mod model_runner;
pub mod reading;
pub mod rotation;
pub mod router;
pub mod telemetry;
