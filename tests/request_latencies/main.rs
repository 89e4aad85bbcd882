//! Latencies of single requests: from llama-server's log, in a file or over HTTP, Docker Model
//! Runner's records, and the probe.

mod changed_logs;
mod log_file;
mod log_streams;
mod model_runner_records;
mod probe;
mod recorded_logs;
mod sample_logs;
#[path = "../support/mod.rs"]
mod support;
