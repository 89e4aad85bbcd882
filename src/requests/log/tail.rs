//! Follows a file as `tail -F` does: from its end at the start, and from the beginning of
//! whatever later takes its name.

use std::fs::{self, File};
use std::io::{self, ErrorKind, Read};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use crate::process::{file, log, os};
use crate::requests::log::lines::LineSplitter;

/// Takes one line, and whether it is history: in the file before that was followed.
pub trait LineSink: FnMut(&[u8], bool) {}
impl<F: FnMut(&[u8], bool)> LineSink for F {}

/// Time between two polls of the file.
const POLL_INTERVAL: Duration = Duration::from_millis(250);
/// How long after its last growth a file that was replaced is read on.
const REPLACED_TIMEOUT: Duration = Duration::from_secs(10);
/// How many bytes of history are searched for what the server reported about itself.
const MAX_HISTORY: u64 = 64 << 20;
/// The most bytes that are read at one poll. If the file has grown by more, a part of it is left
/// out. No llama-server writes so much between two polls.
const MAX_GROWTH: u64 = 1 << 30;
/// How many of the bytes read last are compared, to see whether the file was truncated.
const MARK_BYTES: usize = 64;

/// Follows `path` permanently; `-` is standard input. Calls `found` when there is a file, and
/// `polled` with the error after each poll of it.
pub fn follow(
    path: &Path,
    found: impl Fn(),
    polled: impl Fn(Option<&str>),
    sink: &mut impl LineSink,
) {
    if path == Path::new("-") {
        found();
        read_stream(&mut io::stdin().lock(), sink);
        log::info("the log on standard input has ended", &[]);
        return;
    }
    let mut tail = LogTail::new(path);
    loop {
        tail.poll(&found, sink);
        polled(tail.logged.as_ref().and_then(Option::as_deref));
        thread::sleep(POLL_INTERVAL);
    }
}

/// Reads a stream to its end.
fn read_stream(reader: &mut impl Read, sink: &mut impl LineSink) {
    let mut lines = LineSplitter::default();
    let mut buffer = vec![0; 64 << 10];
    loop {
        match reader.read(&mut buffer) {
            Ok(0) => return,
            Ok(count) => lines.take(&buffer[..count], |line| sink(line, false)),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(_) => return,
        }
    }
}

/// A file that is followed by its name.
pub struct LogTail {
    path: PathBuf,
    /// The file that has the name, or had it last.
    current: Option<OpenFile>,
    /// The file that had it before, while its writer may still write to it, and when it has
    /// grown last.
    replaced: Option<(OpenFile, Instant)>,
    /// Whether a file that is found now may have been there at the start.
    is_starting: bool,
    buffer: Vec<u8>,
    /// What was logged last: why the file cannot be read, or that it is (`None`).
    logged: Option<Option<String>>,
}

impl LogTail {
    /// A tail of `path` that has not read anything yet.
    pub fn new(path: &Path) -> LogTail {
        LogTail {
            path: path.to_owned(),
            current: None,
            replaced: None,
            is_starting: true,
            buffer: vec![0; 64 << 10],
            logged: None,
        }
    }

    /// Reads what has been written since the last call. Calls `found` if there is a file.
    pub fn poll(&mut self, found: &impl Fn(), sink: &mut impl LineSink) {
        let read = self.read_open_files(sink);
        let opened = self.open_new_file(found, sink);
        // Nothing was there: whatever comes now is new.
        let is_missing = |error: &io::Error| error.kind() == ErrorKind::NotFound;
        self.is_starting &= opened.as_ref().is_err_and(|error| !is_missing(error));
        // Once another file has the name, an error of the old one no longer matters.
        match opened.and_then(|is_new| if is_new { Ok(()) } else { read }) {
            Ok(()) => {
                self.log_state(None);
                found();
            }
            Err(error) => self.log_state(Some(error.to_string())),
        }
    }

    fn read_open_files(&mut self, sink: &mut impl LineSink) -> io::Result<()> {
        if let Some((replaced, last_growth)) = &mut self.replaced {
            if replaced.read_new(&mut self.buffer, sink).unwrap_or(false) {
                *last_growth = Instant::now();
            }
            // While nothing is in the new file, the writer still uses the old one.
            let is_used = self.current.as_ref().is_some_and(|current| current.at > 0);
            if is_used && last_growth.elapsed() > REPLACED_TIMEOUT {
                self.replaced = None;
            }
        }
        match &mut self.current {
            Some(current) => current.read_new(&mut self.buffer, sink).map(drop),
            None => Ok(()),
        }
    }

    /// Opens and reads the file that has the name now, if that is another one; returns whether it
    /// is.
    fn open_new_file(&mut self, found: &impl Fn(), sink: &mut impl LineSink) -> io::Result<bool> {
        if os::is_fifo(fs::metadata(&self.path)?.file_type()) {
            // It opens once there is a writer, and ends with it.
            let mut stream = file::regular_file_or_fifo(&self.path)?;
            self.log_state(None);
            found();
            read_stream(&mut stream, sink);
            return Ok(true);
        }
        let found_file = os::file_identity_at(&self.path)?;
        let is_found = |file: &OpenFile| file.identity == found_file;
        if self.current.as_ref().is_some_and(is_found) {
            return Ok(false);
        }
        let mut opened = match self.replaced.take_if(|(file, _)| is_found(file)) {
            // Renamed back: its beginning is not new.
            Some((replaced, _)) => replaced,
            None => OpenFile::open(&self.path)?,
        };
        if self.is_starting {
            opened.read_history(&mut self.buffer, sink)?;
        }
        if let Some(mut replaced) = self.current.take() {
            log::info(
                "the log file was replaced",
                &[("file", &self.path.display())],
            );
            let _last_lines = replaced.read_new(&mut self.buffer, sink);
            // A writer that never reopens its log outlives several rotations: the file that it
            // writes to is kept, not the empty ones that came after.
            if replaced.at > 0 || self.replaced.is_none() {
                self.replaced = Some((replaced, Instant::now()));
            }
        }
        opened.read_new(&mut self.buffer, sink)?;
        self.current = Some(opened);
        Ok(true)
    }

    /// Logs why the file cannot be read, or that it is, if that has changed.
    fn log_state(&mut self, error: Option<String>) {
        if self.logged.as_ref() == Some(&error) {
            return;
        }
        let file = self.path.display();
        match &error {
            Some(error) => log::warn(
                "cannot read the log file; retrying",
                &[("file", &file), ("reason", error)],
            ),
            None => log::info("following the log file", &[("file", &file)]),
        }
        self.logged = Some(error);
    }
}

/// An open file, even if it has been renamed.
struct OpenFile {
    file: File,
    /// [`os::file_identity`].
    identity: (u64, u64),
    /// How far it was read.
    at: u64,
    /// The last bytes before that.
    mark: Vec<u8>,
    lines: LineSplitter,
}

impl OpenFile {
    fn open(path: &Path) -> io::Result<OpenFile> {
        let file = file::regular_file(path)?;
        Ok(OpenFile {
            identity: os::file_identity(&file)?,
            file,
            at: 0,
            mark: Vec::new(),
            lines: LineSplitter::default(),
        })
    }

    /// Reads what is new; returns whether anything is.
    fn read_new(&mut self, buffer: &mut [u8], sink: &mut impl LineSink) -> io::Result<bool> {
        let length = self.file.metadata()?.len();
        if length < self.at || (length > self.at && !self.has_mark()?) {
            self.skip_to(0);
            self.lines.clear();
        }
        if length == self.at {
            return Ok(false);
        }
        // No further than was checked: a file that grows all the time may be truncated meanwhile.
        self.read_growth(length, MAX_GROWTH, buffer, sink)?;
        Ok(true)
    }

    /// Reads up to `length`. Beyond `max` bytes, only the end is read.
    fn read_growth(
        &mut self,
        length: u64,
        max: u64,
        buffer: &mut [u8],
        sink: &mut impl LineSink,
    ) -> io::Result<()> {
        let mut each = |line: &[u8]| sink(line, false);
        self.read_to(length, max, buffer, &mut each)?;
        let rest = length.saturating_sub(max / 16);
        if self.at < rest {
            log::warn(
                "the log file grows too fast; a part of it is left out",
                &[("bytes", &rest.saturating_sub(self.at))],
            );
            self.skip_to(rest);
            self.lines.skip_line();
        }
        self.read_to(length, u64::MAX, buffer, &mut each)
    }

    fn read_history(&mut self, buffer: &mut [u8], sink: &mut impl LineSink) -> io::Result<()> {
        let length = self.file.metadata()?.len();
        self.skip_to(length.saturating_sub(MAX_HISTORY));
        self.read_to(length, u64::MAX, buffer, |line| sink(line, true))
    }

    /// Reads up to `end`, and at most `max` bytes; skips holes.
    fn read_to(
        &mut self,
        end: u64,
        mut max: u64,
        buffer: &mut [u8],
        mut each: impl FnMut(&[u8]),
    ) -> io::Result<()> {
        while self.at < end && max > 0 {
            let left = end.saturating_sub(self.at).min(max);
            let part = left.min(buffer.len() as u64) as usize;
            let count = match os::read_at(&self.file, &mut buffer[..part], self.at) {
                Ok(0) => break,
                Ok(count) => count,
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            let bytes = &buffer[..count];
            self.at = self.at.saturating_add(count as u64);
            max = max.saturating_sub(count as u64);
            if bytes.iter().all(|byte| *byte == 0) {
                let data = os::next_data(&self.file, self.at)?;
                self.skip_to(data.clamp(self.at, end.max(self.at)));
                continue;
            }
            self.lines.take(bytes, &mut each);
            self.mark
                .extend_from_slice(&bytes[count.saturating_sub(MARK_BYTES)..]);
            self.mark
                .drain(..self.mark.len().saturating_sub(MARK_BYTES));
        }
        Ok(())
    }

    /// Continues at this position, without reading the bytes before it.
    fn skip_to(&mut self, at: u64) {
        self.at = at;
        self.mark.clear();
    }

    /// Whether the bytes read last are still there: else the file was truncated and has grown.
    fn has_mark(&self) -> io::Result<bool> {
        let mut bytes = [0; MARK_BYTES];
        let bytes = &mut bytes[..self.mark.len()];
        let start = self.at.saturating_sub(self.mark.len() as u64);
        let mut count: usize = 0;
        while count < bytes.len() {
            let at = start.saturating_add(count as u64);
            match os::read_at(&self.file, &mut bytes[count..], at) {
                Ok(0) => return Ok(false),
                Ok(more) => count = count.saturating_add(more),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(*bytes == *self.mark)
    }
}

#[cfg(test)]
mod tests;
