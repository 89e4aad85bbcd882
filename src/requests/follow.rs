//! Following a file as `tail -F` does: from its end at the start, and from the
//! beginning of whatever later takes its place.

use std::fs::{self, File, Metadata};
use std::io::{self, ErrorKind, Read};
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use super::lines::Lines;
use crate::log;

/// Takes one line, and whether it was there before we were: history counts nothing.
pub trait Sink: FnMut(&[u8], bool) {}
impl<F: FnMut(&[u8], bool)> Sink for F {}

/// Time between two looks at a file that does not grow.
const PAUSE: Duration = Duration::from_millis(250);
/// How long a file that was replaced is read on after it has grown last.
const FAREWELL: Duration = Duration::from_secs(10);
/// How much of what was there before is looked through for what the server said of itself.
const HISTORY: u64 = 64 << 20;
/// How many of the bytes read last are compared, to see whether the file was written anew.
const MARK: usize = 64;

/// Follows `path` for ever, `-` being the standard input, and says that it is there.
pub fn follow(path: &Path, found: impl Fn(), sink: &mut impl Sink) {
    if path == Path::new("-") {
        found();
        drain(&mut io::stdin().lock(), sink);
        log::info("the log on the standard input has ended", &[]);
        return;
    }
    let mut follower = Follower::new(path);
    loop {
        match follower.step(sink) {
            Ok(()) => found(),
            Err(error) => follower.say(Some(&error)),
        }
        thread::sleep(PAUSE);
    }
}

/// Reads a stream to its end.
fn drain(reader: &mut impl Read, sink: &mut impl Sink) {
    let mut lines = Lines::default();
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
pub struct Follower {
    path: PathBuf,
    /// The file that has the name, or had it last.
    current: Option<Opened>,
    /// The file that had it before, while its writer may still be writing to it.
    former: Option<(Opened, Instant)>,
    /// Whether what is found now was there when we came.
    first: bool,
    buffer: Vec<u8>,
    said: Option<String>,
}

impl Follower {
    /// A follower of `path` that has not looked yet.
    pub fn new(path: &Path) -> Follower {
        Follower {
            path: path.to_owned(),
            current: None,
            former: None,
            first: true,
            buffer: vec![0; 64 << 10],
            said: None,
        }
    }

    /// Reads what has come since the last step.
    ///
    /// # Errors
    /// The file cannot be found or read; a later step may.
    pub fn step(&mut self, sink: &mut impl Sink) -> io::Result<()> {
        let first = std::mem::replace(&mut self.first, false);
        if let Some((former, since)) = &mut self.former {
            let grew = former.read(&mut self.buffer, sink).unwrap_or(false);
            if grew {
                *since = Instant::now();
            }
            // While nothing is in the new file, the writer has not changed over.
            let replaced = self.current.as_ref().is_some_and(|now| now.at > 0);
            if replaced && since.elapsed() > FAREWELL {
                self.former = None;
            }
        }
        if let Some(current) = &mut self.current {
            current.read(&mut self.buffer, sink)?;
        }
        let found = fs::metadata(&self.path)?;
        if found.file_type().is_fifo() || found.file_type().is_char_device() {
            self.say(None);
            drain(&mut File::open(&self.path)?, sink);
            return Ok(());
        }
        if self.current.as_ref().is_some_and(|now| now.is(&found)) {
            return Ok(());
        }
        let mut opened = Opened::open(&self.path)?;
        if first {
            opened.read_history(&mut self.buffer, sink)?;
        }
        self.say(None);
        if let Some(mut former) = self.current.take() {
            log::info(
                "the log file was replaced",
                &[("file", &self.path.display())],
            );
            let _last_words = former.read(&mut self.buffer, sink);
            self.former = Some((former, Instant::now()));
        }
        opened.read(&mut self.buffer, sink)?;
        self.current = Some(opened);
        Ok(())
    }

    /// Says once what hinders the reading, and once that nothing does any longer.
    fn say(&mut self, error: Option<&io::Error>) {
        let now = error.map(ToString::to_string);
        if now == self.said && !(now.is_none() && self.current.is_none()) {
            return;
        }
        let file = self.path.display();
        match &now {
            Some(error) => log::warn(
                "the log file cannot be read; it is looked for again and again",
                &[("file", &file), ("reason", error)],
            ),
            None => log::info("the log file is followed", &[("file", &file)]),
        }
        self.said = now;
    }
}

/// One file, whatever it is called by now.
struct Opened {
    file: File,
    device: u64,
    inode: u64,
    /// How far it was read.
    at: u64,
    /// The last bytes before that.
    mark: Vec<u8>,
    lines: Lines,
}

impl Opened {
    fn open(path: &Path) -> io::Result<Opened> {
        let file = File::open(path)?;
        let found = file.metadata()?;
        if !found.is_file() {
            return Err(io::Error::other("is no file"));
        }
        Ok(Opened {
            file,
            device: found.dev(),
            inode: found.ino(),
            at: 0,
            mark: Vec::new(),
            lines: Lines::default(),
        })
    }

    fn is(&self, found: &Metadata) -> bool {
        (self.device, self.inode) == (found.dev(), found.ino())
    }

    /// Reads what has come; gives whether something has.
    fn read(&mut self, buffer: &mut [u8], sink: &mut impl Sink) -> io::Result<bool> {
        let length = self.file.metadata()?.len();
        if length < self.at || (length > self.at && !self.is_marked()?) {
            self.at = 0;
            self.mark.clear();
            self.lines.clear();
        }
        if length == self.at {
            return Ok(false);
        }
        self.read_to(u64::MAX, buffer, |line| sink(line, false))?;
        Ok(true)
    }

    fn read_history(&mut self, buffer: &mut [u8], sink: &mut impl Sink) -> io::Result<()> {
        let length = self.file.metadata()?.len();
        self.at = length.saturating_sub(HISTORY);
        self.read_to(length, buffer, |line| sink(line, true))
    }

    fn read_to(
        &mut self,
        end: u64,
        buffer: &mut [u8],
        mut each: impl FnMut(&[u8]),
    ) -> io::Result<()> {
        while self.at < end {
            let most = (end - self.at).min(buffer.len() as u64) as usize;
            let count = match self.file.read_at(&mut buffer[..most], self.at) {
                Ok(0) => break,
                Ok(count) => count,
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            let bytes = &buffer[..count];
            self.lines.take(bytes, &mut each);
            self.at += count as u64;
            self.mark
                .extend_from_slice(&bytes[count.saturating_sub(MARK)..]);
            self.mark.drain(..self.mark.len().saturating_sub(MARK));
        }
        Ok(())
    }

    /// Whether what was read last is still there: else the file was cut and has grown again.
    fn is_marked(&self) -> io::Result<bool> {
        let mut there = [0; MARK];
        let there = &mut there[..self.mark.len()];
        match self
            .file
            .read_exact_at(there, self.at - self.mark.len() as u64)
        {
            Ok(()) => Ok(*there == *self.mark),
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => Ok(false),
            Err(error) => Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::sync::atomic::{AtomicU32, Ordering};

    /// A folder of its own for a test, gone with it.
    struct Folder(PathBuf);

    impl Folder {
        fn new() -> Folder {
            static NUMBER: AtomicU32 = AtomicU32::new(0);
            let name = format!(
                "follow-{}-{}",
                std::process::id(),
                NUMBER.fetch_add(1, Ordering::Relaxed)
            );
            let path = std::env::temp_dir().join(name);
            fs::create_dir(&path).unwrap();
            Folder(path)
        }

        fn file(&self, name: &str) -> PathBuf {
            self.0.join(name)
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    fn append(path: &Path, text: &str) {
        let mut file = File::options()
            .append(true)
            .create(true)
            .open(path)
            .unwrap();
        file.write_all(text.as_bytes()).unwrap();
    }

    /// What a step brings: history in brackets.
    fn step(follower: &mut Follower) -> Vec<String> {
        let mut seen = Vec::new();
        let _ = follower.step(&mut |line: &[u8], history: bool| {
            let line = String::from_utf8_lossy(line);
            seen.push(if history {
                format!("[{line}]")
            } else {
                line.into_owned()
            });
        });
        seen
    }

    #[test]
    fn it_begins_at_the_end_and_finishes_the_line_that_has_begun() {
        let folder = Folder::new();
        let log = folder.file("log");
        append(&log, "old\nbeg");
        let mut follower = Follower::new(&log);
        assert_eq!(step(&mut follower), ["[old]"]);
        append(&log, "un\nne");
        assert_eq!(step(&mut follower), ["begun"]);
        append(&log, "w\n");
        assert_eq!(step(&mut follower), ["new"]);
        assert!(step(&mut follower).is_empty());
    }

    #[test]
    fn a_file_that_comes_later_is_read_from_its_beginning() {
        let folder = Folder::new();
        let log = folder.file("log");
        let mut follower = Follower::new(&log);
        assert!(step(&mut follower).is_empty());
        append(&log, "one\n");
        assert_eq!(step(&mut follower), ["one"]);
    }

    #[test]
    fn renamed_and_replaced_both_files_are_read_once() {
        let folder = Folder::new();
        let log = folder.file("log");
        append(&log, "");
        let mut follower = Follower::new(&log);
        step(&mut follower);
        append(&log, "one\n");
        fs::rename(&log, folder.file("log.1")).unwrap();
        append(&folder.file("log.1"), "two\n");
        assert_eq!(step(&mut follower), ["one", "two"]);
        append(&folder.file("log.1"), "three\n");
        append(&log, "four\n");
        assert_eq!(step(&mut follower), ["three", "four"]);
        // A writer that has not changed over yet is still heard.
        append(&folder.file("log.1"), "five\n");
        append(&log, "six\n");
        assert_eq!(step(&mut follower), ["five", "six"]);
        fs::remove_file(&log).unwrap();
        append(&log, "seven\n");
        assert_eq!(step(&mut follower), ["seven"]);
    }

    #[test]
    fn a_file_that_is_cut_is_read_from_its_beginning() {
        let folder = Folder::new();
        let log = folder.file("log");
        append(&log, "a first line\n");
        let mut follower = Follower::new(&log);
        step(&mut follower);
        File::options()
            .write(true)
            .open(&log)
            .unwrap()
            .set_len(0)
            .unwrap();
        append(&log, "one\n");
        assert_eq!(step(&mut follower), ["one"]);
        // Cut and grown beyond where it was, all between two looks.
        File::options()
            .write(true)
            .open(&log)
            .unwrap()
            .set_len(0)
            .unwrap();
        append(&log, "two\nthree\nfour\n");
        assert_eq!(step(&mut follower), ["two", "three", "four"]);
    }

    #[test]
    fn a_writer_that_does_not_append_leaves_a_hole_and_loses_no_line() {
        let folder = Folder::new();
        let log = folder.file("log");
        let mut writer = File::create(&log).unwrap();
        writer.write_all(b"a first line\n").unwrap();
        let mut follower = Follower::new(&log);
        step(&mut follower);
        File::options()
            .write(true)
            .open(&log)
            .unwrap()
            .set_len(0)
            .unwrap();
        assert!(step(&mut follower).is_empty());
        writer.write_all(b"one\n").unwrap();
        assert_eq!(step(&mut follower), ["one"]);
        File::options()
            .write(true)
            .open(&log)
            .unwrap()
            .set_len(0)
            .unwrap();
        writer.write_all(b"two\n").unwrap();
        assert_eq!(step(&mut follower), ["two"]);
    }

    #[test]
    fn a_folder_is_no_log() {
        let folder = Folder::new();
        let mut follower = Follower::new(&folder.0);
        assert!(follower.step(&mut |_: &[u8], _: bool| {}).is_err());
    }
}
