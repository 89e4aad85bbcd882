//! The exporter's metrics about itself, as plain data.

/// Which build of the exporter runs, and what its process uses now.
#[derive(Clone, Debug, Default)]
pub struct OwnMetrics {
    /// The version of the exporter.
    pub version: &'static str,
    /// The commit it was built from, or `unknown`.
    pub revision: &'static str,
    /// User and system CPU time, in seconds.
    pub cpu_seconds: Option<f64>,
    /// Bytes of resident memory.
    pub resident_bytes: Option<f64>,
    /// Open file descriptors.
    pub open_fds: Option<f64>,
    /// The limit of open file descriptors.
    pub max_fds: Option<f64>,
    /// The number of discovered servers; `None` without discovery.
    pub discovered_servers: Option<f64>,
    /// When the process started, in seconds since 1970.
    pub start_time: Option<f64>,
}
