//! A Prometheus exporter for llama.cpp servers.
//!
//! Data flows one way. [`settings`] name the servers to watch. The [`collector`] polls each of
//! them through [`upstream`] and [`machine`], computes live [`counters`], and publishes a
//! [`snapshot`]. [`metrics`] writes that snapshot as an exposition, which [`web`] serves.

// Numbers from outside must not overflow or divide by zero. Tests are exempt.
#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects))]

pub mod app;
pub mod bounds;
pub mod collector;
pub mod counters;
pub mod gguf;
pub mod history;
pub mod machine;
pub mod metrics;
pub mod process;
pub mod readings;
pub mod requests;
pub mod settings;
pub mod snapshot;
pub mod units;
pub mod upstream;
pub mod web;
