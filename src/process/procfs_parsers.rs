//! Parsers of files in `/proc`, with the formats of proc(5). Reads no files.

/// Clock ticks a second (`USER_HZ`): 100 on every Linux architecture that Rust supports.
pub const TICKS_PER_SECOND: f64 = 100.0;

/// The fields of `/proc/PID/stat` that are used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProcessStat {
    /// The PID of its parent; 0 if that is in another PID namespace, or there is none.
    pub parent: u32,
    /// User and system CPU time, in ticks.
    pub cpu_ticks: u64,
    /// When the process started, in ticks since boot.
    pub started: u64,
}

impl ProcessStat {
    /// Parses the line. `None` also for a zombie or dead process.
    pub fn parse(text: &str) -> Option<ProcessStat> {
        // The program's name, in parentheses, may itself contain spaces and parentheses.
        let (_, fields) = text.rsplit_once(") ")?;
        let fields: Vec<&str> = fields.split_whitespace().collect();
        // proc(5) counts from 1, and the state is field 3.
        let field = |number: usize| fields.get(number.checked_sub(3)?).copied();
        let ticks = |number| field(number)?.parse::<u64>().ok();
        if matches!(field(3)?, "Z" | "X" | "x") {
            return None;
        }
        Some(ProcessStat {
            parent: field(4)?.parse().ok()?,
            cpu_ticks: ticks(14)?.checked_add(ticks(15)?)?,
            started: ticks(22)?,
        })
    }
}

/// When the machine booted, in seconds since 1970, from the text of `/proc/stat`.
pub fn boot_time(text: &str) -> Option<f64> {
    let mut lines = text.lines();
    let seconds = lines.find_map(|line| line.strip_prefix("btime "))?;
    seconds.trim().parse().ok()
}

/// The fields of `/proc/PID/status` that are used.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ProcessStatus {
    /// Bytes of resident memory.
    pub resident_bytes: Option<f64>,
    /// Number of threads.
    pub threads: Option<f64>,
    /// The effective user ID.
    pub uid: Option<u32>,
    /// The real user ID: that of the user who started a set-user-ID program.
    pub real_uid: Option<u32>,
    /// The CPUs that it may run on, as ranges.
    pub cpus: Option<Vec<(u32, u32)>>,
}

impl ProcessStatus {
    /// Parses the file.
    pub fn parse(text: &str) -> ProcessStatus {
        // Real, effective, saved, file system.
        let uid = |index| {
            field(text, "Uid")?
                .split_whitespace()
                .nth(index)?
                .parse()
                .ok()
        };
        ProcessStatus {
            resident_bytes: bytes_field(text, "VmRSS"),
            threads: field(text, "Threads").and_then(|count| count.parse().ok()),
            uid: uid(1),
            real_uid: uid(0),
            cpus: field(text, "Cpus_allowed_list").and_then(cpu_ranges),
        }
    }
}

/// Parses a list of CPUs such as `0-3,8`.
pub fn cpu_ranges(text: &str) -> Option<Vec<(u32, u32)>> {
    let range = |part: &str| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last) = (first.parse().ok()?, last.parse().ok()?);
        (first <= last).then_some((first, last))
    };
    text.trim().split(',').map(range).collect()
}

/// The value of the line `name: value`.
pub fn field<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    let mut lines = text.lines();
    lines.find_map(|line| Some(line.strip_prefix(name)?.strip_prefix(':')?.trim()))
}

/// The bytes of the line `name: value kB`.
pub fn bytes_field(text: &str, name: &str) -> Option<f64> {
    let kib = field(text, name)?.strip_suffix("kB")?;
    Some(kib.trim().parse::<f64>().ok()? * 1024.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_with_parentheses_are_parsed_and_zombies_are_not() {
        let text = "7 (a) b (c)) S 1 7 7 0 -1 4194304 100 0 0 0 12 30 0 0 20 0 3 0 500 1000 200";
        let stat = ProcessStat::parse(text).unwrap();
        assert_eq!((stat.parent, stat.cpu_ticks, stat.started), (1, 42, 500));
        assert_eq!(ProcessStat::parse(&text.replace(") S", ") Z")), None);
        assert_eq!(ProcessStat::parse("7 (a"), None);
    }

    #[test]
    fn a_status_has_memory_threads_user_and_cpus() {
        let text = "Name:\tllama\nUid:\t0\t1000\t0\t0\nVmRSS:\t  2048 kB\nThreads:\t9\nCpus_allowed_list:\t0-1,5\n";
        let status = ProcessStatus::parse(text);
        assert_eq!(status.resident_bytes, Some(2097152.0));
        assert_eq!((status.threads, status.uid), (Some(9.0), Some(1000)));
        assert_eq!(status.real_uid, Some(0));
        assert_eq!(status.cpus, Some(vec![(0, 1), (5, 5)]));
        // A kernel thread has no memory of its own.
        assert_eq!(ProcessStatus::parse("Name:\tx\n").resident_bytes, None);
        assert_eq!(cpu_ranges("3-1"), None);
    }
}
