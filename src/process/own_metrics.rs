//! The exporter's metrics about its own process, from `/proc/self`. Absent without `/proc`, and on
//! systems other than Linux.

use std::fs::{self, File};
use std::sync::OnceLock;

use crate::process::build_info::{REVISION, VERSION};
use crate::process::os;
use crate::process::procfs_parsers::{self, ProcessStat, ProcessStatus, TICKS_PER_SECOND};
use crate::snapshot::OwnMetrics;

/// Reads the current metrics.
pub fn read() -> OwnMetrics {
    static CONSTANTS: OnceLock<ProcessConstants> = OnceLock::new();
    if !cfg!(target_os = "linux") {
        // Elsewhere /proc may be a folder of any user.
        return OwnMetrics {
            version: VERSION,
            revision: REVISION,
            ..OwnMetrics::default()
        };
    }
    let constants = CONSTANTS.get_or_init(ProcessConstants::read);
    let stat = constants.stat.as_ref().and_then(read_from_start);
    let stat = stat.and_then(|text| ProcessStat::parse(&text));
    // The resident pages in stat are inaccurate, see proc(5).
    let status = constants.status.as_ref().and_then(read_from_start);
    let status = status.map(|text| ProcessStatus::parse(&text));
    // One of the entries is the open directory itself. The size of the directory is not usable: it
    // is the number of descriptors on some kernels, and was 64 too high on others.
    let fds = fs::read_dir("/proc/self/fd");
    let open_fds = fds.ok().map(|fds| fds.count().saturating_sub(1) as f64);
    let started = stat.map(|stat| stat.started as f64 / TICKS_PER_SECOND);
    OwnMetrics {
        version: VERSION,
        revision: REVISION,
        cpu_seconds: stat.map(|stat| stat.cpu_ticks as f64 / TICKS_PER_SECOND),
        resident_bytes: status.and_then(|status| status.resident_bytes),
        open_fds,
        max_fds: constants.max_fds,
        discovered_servers: None,
        start_time: constants.boot_time.zip(started).map(|(at, s)| at + s),
    }
}

/// The limit on open file descriptors; `None` if unlimited or unknown.
pub fn max_fds() -> Option<usize> {
    let limits = fs::read_to_string("/proc/self/limits").ok()?;
    let mut lines = limits.lines();
    let limit = lines.find_map(|line| line.strip_prefix("Max open files"))?;
    limit.split_whitespace().next()?.parse().ok()
}

/// Values and files that do not change while the process runs. The two files are read at every
/// scrape and stay open: opening a file takes much longer than reading it.
struct ProcessConstants {
    stat: Option<File>,
    status: Option<File>,
    max_fds: Option<f64>,
    /// When the machine booted, in seconds since 1970.
    boot_time: Option<f64>,
}

impl ProcessConstants {
    fn read() -> ProcessConstants {
        ProcessConstants {
            stat: File::open("/proc/self/stat").ok(),
            status: File::open("/proc/self/status").ok(),
            max_fds: max_fds().map(|count| count as f64),
            boot_time: fs::read_to_string("/proc/stat")
                .ok()
                .and_then(|text| procfs_parsers::boot_time(&text)),
        }
    }
}

/// Reads a small file from its start.
fn read_from_start(file: &File) -> Option<String> {
    let mut text = [0; 4096];
    let length = os::read_at(file, &mut text, 0).ok()?;
    Some(String::from_utf8_lossy(&text[..length]).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(target_os = "linux")]
    #[test]
    fn every_metric_is_known_on_linux() {
        let own = read();
        let now = std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .unwrap();
        let age = now.as_secs_f64() - own.start_time.unwrap();
        assert!((-2.0..3600.0).contains(&age), "{age}");
        assert!(own.resident_bytes.unwrap() > 100_000.0);
        assert!(own.open_fds.unwrap() >= 3.0 && own.max_fds.unwrap() >= 3.0);
        assert!(own.cpu_seconds.unwrap() >= 0.0);
        assert!(max_fds().unwrap() > 10);
    }
}
