//! The exporter's own process: its log, its metrics, signals, files and system calls.

pub mod build_info;
pub mod container;
pub mod file;
pub mod log;
#[cfg(unix)]
pub mod os;
#[cfg(windows)]
#[path = "os_windows.rs"]
pub mod os;
pub mod own_metrics;
pub mod procfs_parsers;
#[cfg(unix)]
pub mod service_manager;
pub mod threads;
