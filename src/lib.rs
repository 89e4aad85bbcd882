//! Watches a llama.cpp server and serves what it sees as Prometheus metrics.
//!
//! Data flows one way: [`settings`] say what to watch; the [`collector`] polls it through
//! [`upstream`] and [`machine`], turns answers into live [`counters`], and publishes a
//! [`snapshot`]; [`web`] serves that snapshot, written by [`metrics`] as an exposition.

// A number from outside must neither overflow nor divide by zero; the tests may.
#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects))]

pub mod app;
pub mod bounds;
pub mod collector;
pub mod counters;
pub mod gguf;
pub mod machine;
pub mod metrics;
pub mod process;
pub mod readings;
pub mod requests;
pub mod settings;
pub mod snapshot;
pub mod upstream;
pub mod web;
