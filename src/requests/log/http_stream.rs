//! A log that comes over HTTP, as a response without end: its lines, and which of them are new.

use std::io::{BufRead, ErrorKind};
use std::time::Instant;

use crate::requests::log::ServerLog;
use crate::requests::log::lines::LineSplitter;

/// The most bytes of a line that are kept. llama-server's own lines about requests have 200, and
/// Docker Model Runner adds 100.
const MAX_LINE_BYTES: usize = 16 << 10;
/// The most bytes of repeated lines that are skipped at one connection.
const MAX_REPEATED: u64 = 256 << 20;

/// Where a log over HTTP begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogBeginning {
    /// With the lines that are written once the connection is open.
    Now,
    /// With all lines so far. Each begins with its time, in brackets, by the clock of the server
    /// that sends the log.
    Everything,
}

/// Why a log cannot be followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogStreamError {
    /// It does not tell which of its lines are new.
    WithoutTime,
    /// It has more than [`MAX_REPEATED`] bytes of lines that are not new.
    TooLong,
}

/// Which lines of a log over HTTP are new. Keeps its state over connections: no line between two
/// of them is lost, and none is taken twice.
#[derive(Debug)]
pub struct NewLines {
    beginning: LogBeginning,
    /// The time of the last line that is not new; empty before the first connection. Times are
    /// compared as text: they have the same number of digits before the point.
    until: String,
    /// Whether lines of this connection are repeated so far.
    are_repeated: bool,
    skipped: u64,
}

impl NewLines {
    /// For a log with this beginning, before its first connection.
    pub fn new(beginning: LogBeginning) -> NewLines {
        NewLines {
            beginning,
            until: String::new(),
            are_repeated: false,
            skipped: 0,
        }
    }

    /// Takes that a connection was opened; `date` is the header of its response.
    ///
    /// # Errors
    /// It does not tell when.
    pub fn connected(&mut self, date: Option<&str>) -> Result<(), LogStreamError> {
        self.are_repeated = self.beginning == LogBeginning::Everything;
        self.skipped = 0;
        if self.are_repeated && self.until.is_empty() {
            let second = date
                .and_then(second_of)
                .ok_or(LogStreamError::WithoutTime)?;
            // After every fraction of this second.
            self.until = format!("{second}~");
        }
        Ok(())
    }

    /// Whether lines between two connections are lost.
    pub fn may_lack_lines(&self) -> bool {
        self.beginning == LogBeginning::Now
    }

    /// Whether a line is new.
    fn take(&mut self, line: &[u8]) -> bool {
        if self.beginning == LogBeginning::Now {
            return true;
        }
        let time = time_of(line);
        if self.are_repeated {
            // With its end.
            let bytes = (line.len() as u64).saturating_add(1);
            self.skipped = self.skipped.saturating_add(bytes);
            self.are_repeated = time.is_none_or(|time| time <= self.until.as_str());
        }
        if let Some(time) = time
            && !self.are_repeated
            && time > self.until.as_str()
        {
            time.clone_into(&mut self.until);
        }
        !self.are_repeated
    }
}

impl ServerLog {
    /// Takes the lines of one connection, until it ends.
    ///
    /// # Errors
    /// The log cannot be followed.
    pub fn read(&self, body: &mut dyn BufRead, new: &mut NewLines) -> Result<(), LogStreamError> {
        let mut lines = LineSplitter::with_limit(MAX_LINE_BYTES);
        loop {
            let bytes = match body.fill_buf() {
                Ok(bytes) => bytes,
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(_) => return Ok(()),
            };
            if bytes.is_empty() {
                return Ok(());
            }
            lines.take(bytes, |line| {
                if new.take(line) {
                    self.line(line, Instant::now(), false);
                }
            });
            let count = bytes.len();
            body.consume(count);
            if new.skipped > MAX_REPEATED {
                return Err(LogStreamError::TooLong);
            }
        }
    }
}

/// `2026-11-26T11:38:12.899808289` of `[2026-11-26T11:38:12.899808289Z] …`.
fn time_of(line: &[u8]) -> Option<&str> {
    let rest = line.strip_prefix(b"[")?;
    let end = rest.iter().take(40).position(|byte| *byte == b']')?;
    let time = str::from_utf8(rest.get(..end)?).ok()?.strip_suffix('Z')?;
    let is_digit = |byte: u8| byte.is_ascii_digit() || b"-:.T".contains(&byte);
    (time.len() >= 19 && time.bytes().all(is_digit)).then_some(time)
}

/// `2026-11-26T11:38:12` of `Thu, 26 Nov 2026 11:38:12 GMT`.
fn second_of(date: &str) -> Option<String> {
    const MONTHS: [&str; 12] = [
        "Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec",
    ];
    let mut words = date.split_once(", ")?.1.split(' ');
    let (day, month, year) = (words.next()?, words.next()?, words.next()?);
    let (time, zone) = (words.next()?, words.next()?);
    let month = MONTHS
        .iter()
        .position(|name| *name == month)?
        .saturating_add(1);
    let second = format!("{year}-{month:02}-{day}T{time}");
    (zone == "GMT" && second.len() == 19).then_some(second)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    use crate::readings::Update;
    use crate::requests::Requests;
    use crate::requests::log::{LogWriter, PolledModel};

    const DATE: Option<&str> = Some("Thu, 26 Nov 2026 11:38:12 GMT");

    /// A request as Docker Model Runner's log has it, all of it within one second.
    fn request(second: &str, task: u64) -> String {
        let texts = [
            "slot launch_slot_: id  0 | task T | processing task, is_child = 0",
            "slot print_timing: id  0 | task T | prompt eval time =     250.00 ms /     7 tokens (x)",
            "slot print_timing: id  0 | task T |        eval time =     500.00 ms /    20 tokens (x)",
            "slot print_timing: id  0 | task T |       total time =     750.00 ms /    27 tokens",
            "slot      release: id  0 | task T | stop processing: n_tokens = 26, truncated = 0",
        ];
        let lines = texts.iter().enumerate().map(|(index, text)| {
            let text = text.replace('T', &task.to_string());
            format!(
                "[2026-11-26T{second}.{index}00000000Z] time=2026-11-26T{second}.{index}Z level=INFO \
                 msg=\"{text}\"\n"
            )
        });
        lines.collect()
    }

    struct Stream {
        requests: Arc<Requests>,
        log: ServerLog,
        new: NewLines,
    }

    impl Stream {
        fn new(beginning: LogBeginning) -> Stream {
            let requests = Arc::<Requests>::default();
            let log = ServerLog::new(Arc::clone(&requests));
            log.found();
            let polled = PolledModel {
                model: "m",
                mode: Some("completion"),
                writer: Some(LogWriter::Server),
                slots: None,
                counters: &Update::Absent,
            };
            log.polled(Instant::now(), &[polled]);
            Stream {
                requests,
                log,
                new: NewLines::new(beginning),
            }
        }

        /// The number of requests counted after one more connection, which sends this.
        fn connection(&mut self, text: &str) -> u64 {
            self.new.connected(DATE).unwrap();
            self.log.connected(self.new.may_lack_lines());
            // In small pieces, as a slow network delivers them.
            let mut body = std::io::BufReader::with_capacity(7, text.as_bytes());
            self.log.read(&mut body, &mut self.new).unwrap();
            let figures = self.requests.figures();
            assert_eq!(figures.len(), 1, "{figures:?}");
            assert_eq!(figures[0].mode.as_deref(), Some("completion"));
            figures[0].figures.duration.as_ref().unwrap().count()
        }
    }

    #[test]
    fn lines_from_before_the_connection_are_skipped() {
        let mut stream = Stream::new(LogBeginning::Everything);
        let before = format!("{}{}", request("11:38:11", 1), request("11:38:12", 2));
        assert_eq!(stream.connection(&before), 0);
        let after = request("11:38:13", 3);
        assert_eq!(stream.connection(&format!("{before}no time\n{after}")), 1);
        // What came between two connections is counted, and nothing twice.
        let all = format!("{before}{after}{}", request("11:39:20", 4));
        assert_eq!(stream.connection(&all), 2);
        assert_eq!(stream.connection(&all), 2);
    }

    #[test]
    fn every_line_of_a_log_without_history_is_new() {
        let mut stream = Stream::new(LogBeginning::Now);
        assert_eq!(stream.connection(&request("11:38:11", 1)), 1);
        assert_eq!(stream.connection(&request("11:38:11", 2)), 2);
    }

    #[test]
    fn a_line_that_was_cut_by_the_end_of_a_connection_is_left_out() {
        let mut stream = Stream::new(LogBeginning::Now);
        let (first, second) = (request("11:38:11", 1), request("11:38:12", 2));
        let total = first.find("total").unwrap();
        assert_eq!(stream.connection(&first[..total]), 0);
        // Its rest would look like a line of its own.
        assert_eq!(
            stream.connection(&format!("{}{second}", &first[total..])),
            1
        );
    }

    #[test]
    fn an_endless_line_is_cut_and_the_next_one_is_whole() {
        let mut stream = Stream::new(LogBeginning::Now);
        let long = "x".repeat(3 << 20);
        let text = format!("{long}\n{}", request("11:38:11", 1));
        assert_eq!(stream.connection(&text), 1);
    }

    #[test]
    fn a_log_whose_history_cannot_be_told_is_not_followed() {
        for date in [None, Some("now"), Some("Thu, 26 Nov 2026 11:38:12 CET")] {
            let mut new = NewLines::new(LogBeginning::Everything);
            assert_eq!(new.connected(date), Err(LogStreamError::WithoutTime));
        }
        let mut new = NewLines::new(LogBeginning::Everything);
        new.connected(DATE).unwrap();
        let log = ServerLog::new(Arc::<Requests>::default());
        let mut endless = std::io::BufReader::new(std::io::repeat(b'\n'));
        new.skipped = MAX_REPEATED;
        let line = b"[2026-11-26T11:38:12.1Z] x\n".repeat(1000);
        let read = log.read(&mut line.as_slice(), &mut new);
        assert_eq!(read, Err(LogStreamError::TooLong));
        // Lines without a time, and even without text, are some bytes each.
        new.skipped = MAX_REPEATED;
        assert_eq!(
            log.read(&mut endless, &mut new),
            Err(LogStreamError::TooLong)
        );
    }

    #[test]
    fn times_are_read() {
        let line = b"[2026-11-26T11:38:12.899808289Z] time=x";
        assert_eq!(time_of(line), Some("2026-11-26T11:38:12.899808289"));
        for other in [
            "",
            "[",
            "[x] y",
            "[34541] 0.03.7 I srv stop",
            "2026-11-26T11:38:12Z",
        ] {
            assert_eq!(time_of(other.as_bytes()), None, "{other}");
        }
    }
}
