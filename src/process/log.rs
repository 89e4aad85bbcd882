//! Log lines on stderr: `TIME LEVEL message key=value …`, one line each.
//!
//! The time is UTC, in RFC 3339 format with milliseconds. Under systemd (`JOURNAL_STREAM` is set),
//! which adds its own time, a line begins with the journal's priority instead of time and level.
//! Values are quoted if necessary, and control characters are escaped, so that no value can forge
//! a line.

use std::fmt::{self, Display, Write as _};
use std::io::Write as _;
use std::str::FromStr;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{Duration, SystemTime};

use crate::bounds::escape::{Escaped, write_escaped};

/// How much is logged, least first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Level {
    /// The program cannot continue.
    Error,
    /// Something is wrong; the program continues.
    Warn,
    /// A state has changed.
    #[default]
    Info,
    /// Every request and its outcome.
    Debug,
}

impl Level {
    fn name(self) -> &'static str {
        match self {
            Level::Error => "ERROR",
            Level::Warn => "WARN",
            Level::Info => "INFO",
            Level::Debug => "DEBUG",
        }
    }

    /// The syslog priority that `journald` reads from the prefix of a line.
    fn priority(self) -> u8 {
        match self {
            Level::Error => 3,
            Level::Warn => 4,
            Level::Info => 6,
            Level::Debug => 7,
        }
    }
}

impl FromStr for Level {
    type Err = String;

    fn from_str(text: &str) -> Result<Level, String> {
        match text.to_ascii_lowercase().as_str() {
            "error" => Ok(Level::Error),
            "warn" | "warning" => Ok(Level::Warn),
            "info" => Ok(Level::Info),
            "debug" => Ok(Level::Debug),
            _ => Err("use error, warn, info or debug".to_owned()),
        }
    }
}

static MAX: AtomicU8 = AtomicU8::new(Level::Info as u8);
static JOURNAL: OnceLock<bool> = OnceLock::new();

/// Sets the highest level that is logged.
pub fn set_level(level: Level) {
    MAX.store(level as u8, Ordering::Relaxed);
}

/// Writes one line at [`Level::Error`].
pub fn error(message: &str, pairs: &[(&str, &dyn Display)]) {
    write(Level::Error, message, pairs);
}

/// Writes one line at [`Level::Warn`].
pub fn warn(message: &str, pairs: &[(&str, &dyn Display)]) {
    write(Level::Warn, message, pairs);
}

/// Writes one line at [`Level::Info`].
pub fn info(message: &str, pairs: &[(&str, &dyn Display)]) {
    write(Level::Info, message, pairs);
}

/// Writes one line at [`Level::Debug`].
pub fn debug(message: &str, pairs: &[(&str, &dyn Display)]) {
    write(Level::Debug, message, pairs);
}

fn write(level: Level, message: &str, pairs: &[(&str, &dyn Display)]) {
    if level as u8 > MAX.load(Ordering::Relaxed) {
        return;
    }
    let journal = *JOURNAL.get_or_init(|| std::env::var_os("JOURNAL_STREAM").is_some());
    let time = (!journal).then(|| {
        let since_1970 = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        // A clock that shows a time before 1970 has not been set.
        since_1970.unwrap_or_default()
    });
    let line = format_line(level, time, message, pairs);
    // There is nowhere to report that the log cannot be written.
    let _ = std::io::stderr().lock().write_all(line.as_bytes());
}

/// `time` is the time since 1970; `None` formats a line for the journal.
fn format_line(
    level: Level,
    time: Option<Duration>,
    message: &str,
    pairs: &[(&str, &dyn Display)],
) -> String {
    let mut line = String::with_capacity(128);
    let _ = match time {
        Some(time) => write!(line, "{} {:<5} ", rfc3339(time), level.name()),
        None => write!(line, "<{}>", level.priority()),
    };
    let _ = write!(line, "{}", Escaped(message));
    for (key, value) in pairs {
        let _ = write!(line, " {key}={}", Quoted(&value.to_string()));
    }
    line.push('\n');
    line
}

/// A time since 1970 as `2026-11-26T13:57:41.042Z`.
#[expect(
    clippy::arithmetic_side_effects,
    reason = "days since 1970 are below 2^48, and nothing below subtracts more than there is"
)]
fn rfc3339(since_1970: Duration) -> String {
    let seconds = since_1970.as_secs();
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    // Years start on 1 March, so that a leap day is the last day of its year. An era is 400 years,
    // which always have the same number of days.
    let days_since_0000_03_01 = days + 719_468;
    let era = days_since_0000_03_01 / 146_097;
    let day_of_era = days_since_0000_03_01 % 146_097;
    let year_of_era =
        (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = (month_from_march + 2) % 12 + 1;
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    format!(
        "{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}.{:03}Z",
        second / 3_600,
        second / 60 % 60,
        second % 60,
        since_1970.subsec_millis()
    )
}

/// The most characters of a value in a log line.
const LONGEST_VALUE: usize = 300;

struct Quoted<'a>(&'a str);

impl Display for Quoted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let plain = |c: char| c.is_ascii_graphic() && c != '"' && c != '\\' && c != '=';
        if !self.0.is_empty() && self.0.len() <= LONGEST_VALUE && self.0.chars().all(plain) {
            return f.write_str(self.0);
        }
        f.write_char('"')?;
        for (count, c) in self.0.chars().enumerate() {
            if count == LONGEST_VALUE {
                f.write_char('…')?;
                break;
            }
            match c {
                '"' | '\\' => write!(f, "\\{c}")?,
                c => write_escaped(f, c)?,
            }
        }
        f.write_char('"')
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIME: Option<Duration> = Some(Duration::from_millis(1_795_701_461_042));

    #[test]
    fn a_line_is_time_level_message_and_pairs() {
        let line = format_line(
            Level::Warn,
            TIME,
            "server is down",
            &[("reason", &"connect")],
        );
        assert_eq!(
            line,
            "2026-11-26T13:57:41.042Z WARN  server is down reason=connect\n"
        );
    }

    /// Expected values from `date -u --date=@SECONDS`.
    #[test]
    fn times_are_formatted_as_dates() {
        for (seconds, time) in [
            (0, "1970-01-01T00:00:00.000Z"),
            (951_782_399, "2000-02-28T23:59:59.000Z"),
            (951_782_400, "2000-02-29T00:00:00.000Z"),
            (951_868_800, "2000-03-01T00:00:00.000Z"),
            (1_735_689_599, "2024-12-31T23:59:59.000Z"),
            (1_735_689_600, "2025-01-01T00:00:00.000Z"),
            (4_107_542_399, "2100-02-28T23:59:59.000Z"),
            (4_107_542_400, "2100-03-01T00:00:00.000Z"),
            (253_402_300_799, "9999-12-31T23:59:59.000Z"),
        ] {
            assert_eq!(rfc3339(Duration::from_secs(seconds)), time, "{seconds}");
        }
        assert!(rfc3339(Duration::MAX).ends_with(".999Z"));
    }

    #[test]
    fn the_journal_gets_a_priority_in_place_of_the_level() {
        assert_eq!(format_line(Level::Error, None, "gone", &[]), "<3>gone\n");
    }

    #[test]
    fn a_value_from_outside_cannot_forge_a_line() {
        let line = format_line(
            Level::Info,
            None,
            "model\r\n\u{202e}",
            &[("name", &"a\nERROR b=\"c\"\u{1b}[2J\u{2066}")],
        );
        assert_eq!(
            line,
            "<6>model\\r\\n\\u{202e} name=\"a\\nERROR b=\\\"c\\\"\\u{1b}[2J\\u{2066}\"\n"
        );
        assert_eq!(line.lines().count(), 1);
    }

    #[test]
    fn a_long_value_is_cut() {
        let line = format_line(Level::Info, None, "x", &[("v", &"y".repeat(10_000))]);
        assert!(line.len() < 400, "{}", line.len());
    }
}
