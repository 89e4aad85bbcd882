//! Log lines on stderr: `LEVEL message key=value …`, one line each.
//!
//! Under systemd (`JOURNAL_STREAM` set) a line begins with the journal's
//! priority instead of the level's name. Values that come from outside are
//! quoted and escaped, so that nothing can forge a line.

use std::fmt::{self, Display, Write as _};
use std::io::Write as _;
use std::str::FromStr;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU8, Ordering};

/// How much is said, least first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Level {
    /// The program cannot go on.
    Error,
    /// Something is not as it should be; the program goes on.
    Warn,
    /// A state has changed.
    Info,
    /// Every question and what came of it.
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

/// Sets the most that is said from now on.
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
    let line = format_line(level, journal, message, pairs);
    // A log that cannot be written has nobody to be told of it.
    let _ = std::io::stderr().lock().write_all(line.as_bytes());
}

fn format_line(
    level: Level,
    journal: bool,
    message: &str,
    pairs: &[(&str, &dyn Display)],
) -> String {
    let mut line = String::with_capacity(128);
    if journal {
        let _ = write!(line, "<{}>", level.priority());
    } else {
        let _ = write!(line, "{:<5} ", level.name());
    }
    line.push_str(message);
    for (key, value) in pairs {
        let _ = write!(line, " {key}={}", Quoted(&value.to_string()));
    }
    line.push('\n');
    line
}

/// The most characters of a value that a line shows.
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
                c if c.is_control() => write!(f, "{}", c.escape_default())?,
                c => f.write_char(c)?,
            }
        }
        f.write_char('"')
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_level_message_and_pairs() {
        let line = format_line(
            Level::Warn,
            false,
            "server is down",
            &[("reason", &"connect")],
        );
        assert_eq!(line, "WARN  server is down reason=connect\n");
    }

    #[test]
    fn the_journal_gets_a_priority_in_place_of_the_level() {
        assert_eq!(format_line(Level::Error, true, "gone", &[]), "<3>gone\n");
    }

    #[test]
    fn a_value_from_outside_cannot_forge_a_line() {
        let line = format_line(
            Level::Info,
            false,
            "model",
            &[("name", &"a\nERROR b=\"c\"")],
        );
        assert_eq!(line, "INFO  model name=\"a\\nERROR b=\\\"c\\\"\"\n");
        assert_eq!(line.lines().count(), 1);
    }

    #[test]
    fn a_long_value_is_cut() {
        let line = format_line(Level::Info, false, "x", &[("v", &"y".repeat(10_000))]);
        assert!(line.len() < 400, "{}", line.len());
    }
}
