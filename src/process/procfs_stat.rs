//! The parser of `/proc/PID/stat`, in the format of proc_pid_stat(5). Reads no file itself.

/// Clock ticks a second (`USER_HZ`): 100 on every Linux architecture that Rust supports.
pub const TICKS_PER_SECOND: f64 = 100.0;

/// The fields of `/proc/PID/stat` that are used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProcessStat {
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
            cpu_ticks: ticks(14)?.checked_add(ticks(15)?)?,
            started: ticks(22)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_with_parentheses_are_parsed_and_zombies_are_not() {
        let text = "7 (a) b (c)) S 1 7 7 0 -1 4194304 100 0 0 0 12 30 0 0 20 0 3 0 500 1000 200";
        let stat = ProcessStat::parse(text).unwrap();
        assert_eq!((stat.cpu_ticks, stat.started), (42, 500));
        assert_eq!(ProcessStat::parse(&text.replace(") S", ") Z")), None);
        assert_eq!(ProcessStat::parse("7 (a"), None);
    }
}
