//! The exporter as a process: what every Prometheus client tells of itself;
//! and the GPUs of the machine that it runs on.
//!
//! Read from `/proc/self`; elsewhere, or where that is not mounted, nothing is told.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::sync::OnceLock;

use crate::machine::procfs::{Stat, TICKS_PER_SECOND};
use crate::process::os;
use crate::snapshot::Gpu;

/// The version of this program.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");
/// The commit that it was built from, or `unknown`.
pub const REVISION: &str = env!("EXPORTER_REVISION");
/// The target triple that it was built for.
pub const TARGET: &str = env!("EXPORTER_TARGET");

/// What `--version` prints.
pub fn version() -> String {
    let features = if cfg!(feature = "tls") { "tls" } else { "none" };
    format!(
        "llamacpp-exporter {VERSION}\nrevision: {REVISION}\ntarget: {TARGET}\nfeatures: {features}\n"
    )
}

/// What this process uses now.
#[derive(Clone, Debug, Default)]
pub struct Itself {
    /// User and system time, in seconds.
    pub cpu_seconds: Option<f64>,
    /// Bytes resident.
    pub resident_bytes: Option<f64>,
    /// Open file descriptors.
    pub open_fds: Option<f64>,
    /// The limit of open file descriptors.
    pub max_fds: Option<f64>,
    /// When it started, in seconds since 1970.
    pub start_time: Option<f64>,
    /// The GPUs of this machine, which belong to no one server.
    pub gpus: Vec<Gpu>,
}

impl Itself {
    /// Reads `/proc/self`.
    pub fn read() -> Itself {
        static CONSTANT: OnceLock<Constant> = OnceLock::new();
        let constant = CONSTANT.get_or_init(Constant::read);
        let stat = constant.stat.as_ref().and_then(Kept::read);
        let stat = stat.and_then(|text| Stat::parse(&text));
        // Not from stat, whose number of pages is a rough one: see proc(5).
        let pages = constant.statm.as_ref().and_then(Kept::read);
        let pages = pages.and_then(|text| text.split(' ').nth(1)?.parse::<f64>().ok());
        // The directory that is being listed is one of its own entries. Its size, which some
        // kernels give as the number of descriptors, was seen to be 64 too high.
        let open_fds = fs::read_dir("/proc/self/fd")
            .ok()
            .map(|fds| fds.count().saturating_sub(1));
        Itself {
            cpu_seconds: stat.map(|stat| stat.cpu_ticks as f64 / TICKS_PER_SECOND),
            resident_bytes: pages
                .zip(constant.page_bytes)
                .map(|(pages, bytes)| pages * bytes),
            open_fds: open_fds.map(|count| count as f64),
            max_fds: constant.max_fds,
            start_time: constant
                .booted
                .zip(stat)
                .map(|(booted, stat)| booted + stat.started as f64 / TICKS_PER_SECOND),
            gpus: Vec::new(),
        }
    }
}

/// A file of one line that says something else each time. It stays open: every scrape reads it,
/// and to open and close it takes the system much longer than to read it.
struct Kept(File);

impl Kept {
    fn open(path: &str) -> Option<Kept> {
        File::open(path).ok().map(Kept)
    }

    fn read(&self) -> Option<String> {
        let mut line = [0; 1024];
        let length = self.0.read_at(&mut line, 0).ok()?;
        Some(String::from_utf8_lossy(&line[..length]).into_owned())
    }
}

/// How many descriptors this process may have open, where that is told and limited.
pub fn most_descriptors() -> Option<usize> {
    let limits = fs::read_to_string("/proc/self/limits").ok()?;
    let mut lines = limits.lines();
    let limit = lines.find_map(|line| line.strip_prefix("Max open files"))?;
    limit.split_whitespace().next()?.parse().ok()
}

/// What does not change while the process lives.
struct Constant {
    stat: Option<Kept>,
    statm: Option<Kept>,
    page_bytes: Option<f64>,
    max_fds: Option<f64>,
    /// When the machine started, in seconds since 1970.
    booted: Option<f64>,
}

impl Constant {
    fn read() -> Constant {
        let booted = fs::read_to_string("/proc/stat").ok().and_then(|text| {
            text.lines()
                .find_map(|line| line.strip_prefix("btime "))?
                .trim()
                .parse::<f64>()
                .ok()
        });
        Constant {
            stat: Kept::open("/proc/self/stat"),
            statm: Kept::open("/proc/self/statm"),
            // Not from /proc/self/auxv, which a process without dumps may not read.
            page_bytes: os::page_bytes().map(|bytes| bytes as f64),
            max_fds: most_descriptors().map(|count| count as f64),
            booted,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(target_os = "linux")]
    #[test]
    fn this_process_has_all_of_it() {
        let itself = Itself::read();
        let now = std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .unwrap();
        let age = now.as_secs_f64() - itself.start_time.unwrap();
        assert!((-2.0..3600.0).contains(&age), "{age}");
        assert!(itself.resident_bytes.unwrap() > 100_000.0);
        assert!(itself.open_fds.unwrap() >= 3.0 && itself.max_fds.unwrap() >= 3.0);
        assert!(itself.cpu_seconds.unwrap() >= 0.0);
        assert!(most_descriptors().unwrap() > 10);
    }
}
