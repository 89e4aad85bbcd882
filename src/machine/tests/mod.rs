//! Tests against a fake `/proc` and `/sys`.

pub mod file_tree;
#[cfg(target_os = "linux")]
mod process_metrics;
