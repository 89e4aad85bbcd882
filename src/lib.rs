//! Watches a llama.cpp server and serves what it sees as Prometheus metrics.
//!
//! The way of the data, left to right and never back: [`settings`] say what to
//! watch; [`poll`] asks it through [`upstream`], has [`derive`] turn answers
//! into live counters and rates, and publishes a [`snapshot`]; [`serve`] writes
//! that snapshot through the [`catalogue`] as an [`exposition`].

// A number from outside must neither overflow nor divide by zero; the tests may.
#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects))]

pub mod bounds;
pub mod catalogue;
pub mod check;
pub mod derive;
pub mod escape;
pub mod exposition;
pub mod gate;
pub mod gguf;
pub mod histogram;
pub mod itself;
pub mod json_limits;
pub mod listen;
pub mod log;
pub mod machine;
pub mod open;
pub mod os;
pub mod poll;
pub mod requests;
pub mod sealed;
pub mod serve;
pub mod settings;
pub mod snapshot;
pub mod stream;
pub mod upstream;
