//! The exporter as a process: its log, its own metrics, signals and other calls of the operating system.

pub mod build_info;
pub mod file;
pub mod log;
pub mod os;
pub mod own_metrics;
pub mod procfs_parsers;
