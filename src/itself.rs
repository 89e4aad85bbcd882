//! The exporter as a process: what every Prometheus client tells of itself;
//! and the GPUs of the machine that it runs on.
//!
//! Read from `/proc/self`; elsewhere, or where that is not mounted, nothing is told.

use std::fs;
use std::sync::OnceLock;

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

/// `USER_HZ`: what Linux counts in `/proc/PID/stat`, 100 on every architecture that Rust has.
const TICKS_PER_SECOND: f64 = 100.0;

impl Itself {
    /// Reads `/proc/self`.
    pub fn read() -> Itself {
        static CONSTANT: OnceLock<Constant> = OnceLock::new();
        let constant = CONSTANT.get_or_init(Constant::read);
        let stat = Stat::read();
        let pages = fs::read_to_string("/proc/self/statm").ok();
        let pages = pages.and_then(|text| text.split(' ').nth(1)?.parse::<f64>().ok());
        // The directory that is being listed is one of its own entries.
        let open_fds = fs::read_dir("/proc/self/fd")
            .ok()
            .map(|fds| fds.count().saturating_sub(1));
        Itself {
            cpu_seconds: stat.as_ref().map(|stat| stat.cpu_ticks / TICKS_PER_SECOND),
            resident_bytes: pages
                .zip(constant.page_bytes)
                .map(|(pages, bytes)| pages * bytes),
            open_fds: open_fds.map(|count| count as f64),
            max_fds: constant.max_fds,
            start_time: constant.start_time,
            gpus: Vec::new(),
        }
    }
}

/// What does not change while the process lives.
struct Constant {
    page_bytes: Option<f64>,
    max_fds: Option<f64>,
    start_time: Option<f64>,
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
        let started = Stat::read().map(|stat| stat.start_ticks / TICKS_PER_SECOND);
        let max_fds = fs::read_to_string("/proc/self/limits")
            .ok()
            .and_then(|text| {
                let line = text
                    .lines()
                    .find_map(|line| line.strip_prefix("Max open files"))?;
                line.split_whitespace().next()?.parse::<f64>().ok()
            });
        Constant {
            page_bytes: fs::read("/proc/self/auxv")
                .ok()
                .and_then(|auxv| page_bytes(&auxv)),
            max_fds,
            start_time: booted
                .zip(started)
                .map(|(booted, started)| booted + started),
        }
    }
}

/// Finds `AT_PAGESZ` (6) in the auxiliary vector: pairs of machine words.
fn page_bytes(auxv: &[u8]) -> Option<f64> {
    const WORD: usize = size_of::<usize>();
    auxv.chunks_exact(2 * WORD).find_map(|pair| {
        let (key, value) = pair.split_at(WORD);
        let key = usize::from_ne_bytes(key.try_into().ok()?);
        let value = usize::from_ne_bytes(value.try_into().ok()?);
        (key == 6).then_some(value as f64)
    })
}

struct Stat {
    cpu_ticks: f64,
    start_ticks: f64,
}

impl Stat {
    fn read() -> Option<Stat> {
        Stat::parse(&fs::read_to_string("/proc/self/stat").ok()?)
    }

    fn parse(text: &str) -> Option<Stat> {
        // The program's name, in parentheses, may itself hold spaces and parentheses.
        let (_, fields) = text.rsplit_once(") ")?;
        let fields: Vec<&str> = fields.split_whitespace().collect();
        let field = |number: usize| fields.get(number - 3)?.parse::<f64>().ok();
        Some(Stat {
            cpu_ticks: field(14)? + field(15)?,
            start_ticks: field(22)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_parentheses_does_not_shift_the_fields() {
        let text = "7 (a) b (c)) S 1 7 7 0 -1 4194304 100 0 0 0 12 30 0 0 20 0 3 0 500 1000 200";
        let stat = Stat::parse(text).unwrap();
        assert_eq!((stat.cpu_ticks, stat.start_ticks), (42.0, 500.0));
    }

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
    }
}
