//! Following a file as `tail -F` does: from its end at the start, and from the
//! beginning of whatever later takes its place.

use std::fs::{self, File, Metadata};
use std::io::{self, ErrorKind, Read};
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use crate::process::file;
use crate::process::log;
use crate::process::os;
use crate::requests::line_splitter::Lines;

/// Takes one line, and whether it was there before we were: history counts nothing.
pub trait Sink: FnMut(&[u8], bool) {}
impl<F: FnMut(&[u8], bool)> Sink for F {}

/// Time between two looks at a file that does not grow.
const PAUSE: Duration = Duration::from_millis(250);
/// How long a file that was replaced is read on after it has grown last.
const FAREWELL: Duration = Duration::from_secs(10);
/// How much of what was there before is looked through for what the server said of itself.
const HISTORY: u64 = 64 << 20;
/// The most bytes that are read at one look: of a file that has grown by more, the rest is left
/// out. No llama-server writes so much between two looks.
const MOST_A_LOOK: u64 = 1 << 30;
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
        follower.look(&found, sink);
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
    /// Whether what is found now may have been there when we came.
    first: bool,
    buffer: Vec<u8>,
    /// What was said last: why it cannot be read, or that it is (`None`).
    said: Option<Option<String>>,
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

    /// Reads what has come since the last look, and calls `found` where there is a file.
    pub fn look(&mut self, found: &impl Fn(), sink: &mut impl Sink) {
        // What the file that we know says of its end matters no longer once another has its name.
        let read = self.read_known(sink);
        let opened = self.open_new(found, sink);
        // Nothing was there: whatever comes now is new.
        let missing = |error: &io::Error| error.kind() == ErrorKind::NotFound;
        self.first &= opened.as_ref().is_err_and(|error| !missing(error));
        match opened.and_then(|replaced| if replaced { Ok(()) } else { read }) {
            Ok(()) => {
                self.say(None);
                found();
            }
            Err(error) => self.say(Some(error.to_string())),
        }
    }

    /// Reads on in the files that are open.
    fn read_known(&mut self, sink: &mut impl Sink) -> io::Result<()> {
        if let Some((former, since)) = &mut self.former {
            if former.read(&mut self.buffer, sink).unwrap_or(false) {
                *since = Instant::now();
            }
            // While nothing is in the new file, the writer has not changed over.
            let replaced = self.current.as_ref().is_some_and(|now| now.at > 0);
            if replaced && since.elapsed() > FAREWELL {
                self.former = None;
            }
        }
        match &mut self.current {
            Some(current) => current.read(&mut self.buffer, sink).map(drop),
            None => Ok(()),
        }
    }

    /// Turns to the file that has the name now, if that is another one; gives whether it is.
    fn open_new(&mut self, found: &impl Fn(), sink: &mut impl Sink) -> io::Result<bool> {
        let there = fs::metadata(&self.path)?;
        if there.file_type().is_fifo() {
            // It opens once there is a writer, and ends with it.
            let mut stream = file::regular_file_or_fifo(&self.path)?;
            self.say(None);
            found();
            drain(&mut stream, sink);
            return Ok(true);
        }
        if self.current.as_ref().is_some_and(|now| now.is(&there)) {
            return Ok(false);
        }
        let mut opened = match self.former.take_if(|(former, _)| former.is(&there)) {
            // Renamed back: its beginning is not new.
            Some((former, _)) => former,
            None => Opened::open(&self.path)?,
        };
        if self.first {
            opened.read_history(&mut self.buffer, sink)?;
        }
        if let Some(mut former) = self.current.take() {
            log::info(
                "the log file was replaced",
                &[("file", &self.path.display())],
            );
            let _last_words = former.read(&mut self.buffer, sink);
            // A writer that never opens its log anew outlives several rotations: what it
            // writes to is kept, not the empty files that it never wrote to.
            if former.at > 0 || self.former.is_none() {
                self.former = Some((former, Instant::now()));
            }
        }
        opened.read(&mut self.buffer, sink)?;
        self.current = Some(opened);
        Ok(true)
    }

    /// Says once what hinders the reading, and once that nothing does any longer.
    fn say(&mut self, error: Option<String>) {
        if self.said.as_ref() == Some(&error) {
            return;
        }
        let file = self.path.display();
        match &error {
            Some(error) => log::warn(
                "the log file cannot be read; it is looked for again and again",
                &[("file", &file), ("reason", error)],
            ),
            None => log::info("the log file is followed", &[("file", &file)]),
        }
        self.said = Some(error);
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
        let file = file::regular_file(path)?;
        let found = file.metadata()?;
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
        // No further than it was checked: a file that grows all the time may be cut meanwhile.
        self.read_some(length, MOST_A_LOOK, buffer, sink)?;
        Ok(true)
    }

    /// Reads up to there; once so many bytes were read, only the end.
    fn read_some(
        &mut self,
        length: u64,
        most: u64,
        buffer: &mut [u8],
        sink: &mut impl Sink,
    ) -> io::Result<()> {
        let mut each = |line: &[u8]| sink(line, false);
        self.read_to(length, most, buffer, &mut each)?;
        let rest = length.saturating_sub(most / 16);
        if self.at < rest {
            log::warn(
                "the log file has grown faster than it can be read; a part of it is left out",
                &[("bytes", &rest.saturating_sub(self.at))],
            );
            self.skip_to(rest);
            self.lines.leave_out_the_rest();
        }
        self.read_to(length, u64::MAX, buffer, &mut each)
    }

    fn read_history(&mut self, buffer: &mut [u8], sink: &mut impl Sink) -> io::Result<()> {
        let length = self.file.metadata()?.len();
        self.skip_to(length.saturating_sub(HISTORY));
        self.read_to(length, u64::MAX, buffer, |line| sink(line, true))
    }

    /// Reads up to there, but no more than so many bytes.
    fn read_to(
        &mut self,
        end: u64,
        mut most: u64,
        buffer: &mut [u8],
        mut each: impl FnMut(&[u8]),
    ) -> io::Result<()> {
        while self.at < end && most > 0 {
            let left = end.saturating_sub(self.at).min(most);
            let part = left.min(buffer.len() as u64) as usize;
            let count = match self.file.read_at(&mut buffer[..part], self.at) {
                Ok(0) => break,
                Ok(count) => count,
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            let bytes = &buffer[..count];
            self.at = self.at.saturating_add(count as u64);
            most = most.saturating_sub(count as u64);
            if bytes.iter().all(|byte| *byte == 0) {
                let data = os::next_data(&self.file, self.at)?;
                self.skip_to(data.clamp(self.at, end.max(self.at)));
                continue;
            }
            self.lines.take(bytes, &mut each);
            self.mark
                .extend_from_slice(&bytes[count.saturating_sub(MARK)..]);
            self.mark.drain(..self.mark.len().saturating_sub(MARK));
        }
        Ok(())
    }

    /// Goes on there, without having read what is before.
    fn skip_to(&mut self, at: u64) {
        self.at = at;
        self.mark.clear();
    }

    /// Whether what was read last is still there: else the file was cut and has grown again.
    fn is_marked(&self) -> io::Result<bool> {
        let mut there = [0; MARK];
        let there = &mut there[..self.mark.len()];
        match self
            .file
            .read_exact_at(there, self.at.saturating_sub(self.mark.len() as u64))
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

    /// What a look brings: history in brackets.
    fn step(follower: &mut Follower) -> Vec<String> {
        let mut seen = Vec::new();
        follower.look(&|| {}, &mut |line: &[u8], history: bool| {
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
        assert!(step(&mut follower).is_empty());
        assert!(matches!(&follower.said, Some(Some(_))));
        fs::remove_dir(&folder.0).unwrap();
        append(&folder.0, "one\n");
        step(&mut follower);
        assert_eq!(follower.said, Some(None));
        fs::remove_file(&folder.0).unwrap();
    }

    #[test]
    fn only_regular_files_and_fifos_are_opened() {
        let folder = Folder::new();
        let log = folder.file("log");
        for device in ["/dev/zero", "/dev/null", "/dev/tty"] {
            std::os::unix::fs::symlink(device, &log).unwrap();
            let mut follower = Follower::new(&log);
            assert!(step(&mut follower).is_empty());
            let said = follower.said.unwrap().unwrap();
            assert_eq!(said, "it is a device, not a regular file");
            fs::remove_file(&log).unwrap();
        }
    }

    #[test]
    fn holes_of_terabytes_are_skipped() {
        let folder = Folder::new();
        let log = folder.file("log");
        append(&log, "old\n");
        let grow = |by: u64| {
            let file = File::options().write(true).open(&log).unwrap();
            let length = file.metadata().unwrap().len();
            file.set_len(length + by).unwrap();
        };
        // As much as the file system takes.
        const HOLE: u64 = 4 << 40;
        grow(HOLE);
        append(&log, "before\n");
        let mut follower = Follower::new(&log);
        assert_eq!(step(&mut follower), ["[before]"]);
        grow(HOLE);
        assert!(step(&mut follower).is_empty());
        append(&log, "one\ntwo\n");
        assert_eq!(step(&mut follower), ["one", "two"]);
        // A look at a file that does not grow reads nothing more.
        let at = follower.current.as_ref().unwrap().at;
        assert_eq!(at, fs::metadata(&log).unwrap().len());
    }

    #[test]
    fn of_a_file_that_has_grown_too_much_the_beginning_and_the_end_are_read() {
        let folder = Folder::new();
        let log = folder.file("log");
        let lines: String = (0..100_000)
            .map(|number| format!("{number:09}\n"))
            .collect();
        append(&log, &lines);
        let mut opened = Opened::open(&log).unwrap();
        let mut seen: Vec<u32> = Vec::new();
        let mut sink = |line: &[u8], _: bool| {
            seen.push(std::str::from_utf8(line).unwrap().parse().unwrap());
        };
        let length = lines.len() as u64;
        opened
            .read_some(length, 16_000, &mut [0; 4096], &mut sink)
            .unwrap();
        // A line that is cut is none.
        let expected: Vec<u32> = (0..1600).chain(99_901..100_000).collect();
        assert_eq!(seen, expected);
        assert_eq!(opened.at, length);
    }

    #[test]
    fn what_could_not_be_read_at_first_is_history_all_the_same() {
        let folder = Folder::new();
        let (log, real) = (folder.file("log"), folder.file("real"));
        append(&real, "old\n");
        // A loop of links stands for whatever may hinder: root may read every file.
        std::os::unix::fs::symlink(&log, &log).unwrap();
        let mut follower = Follower::new(&log);
        assert!(step(&mut follower).is_empty());
        fs::rename(&real, &log).unwrap();
        assert_eq!(step(&mut follower), ["[old]"]);
        append(&log, "new\n");
        assert_eq!(step(&mut follower), ["new"]);
    }

    #[test]
    fn a_writer_that_never_opens_its_log_anew_is_heard_over_rotations() {
        let folder = Folder::new();
        let (log, older) = (folder.file("log"), folder.file("log.1"));
        let mut writer = File::create(&log).unwrap();
        let mut follower = Follower::new(&log);
        step(&mut follower);
        let mut heard = Vec::new();
        for day in ["one", "two", "three"] {
            writer.write_all(format!("{day}\n").as_bytes()).unwrap();
            heard.extend(step(&mut follower));
            fs::rename(&log, &older).unwrap();
            append(&log, "");
            heard.extend(step(&mut follower));
        }
        assert_eq!(heard, ["one", "two", "three"]);
    }

    #[test]
    fn a_file_that_gets_its_name_back_is_not_read_twice() {
        let folder = Folder::new();
        let (log, older) = (folder.file("log"), folder.file("log.1"));
        append(&log, "");
        let mut follower = Follower::new(&log);
        step(&mut follower);
        append(&log, "one\n");
        step(&mut follower);
        fs::rename(&log, &older).unwrap();
        append(&log, "two\n");
        assert_eq!(step(&mut follower), ["two"]);
        fs::rename(&older, &log).unwrap();
        append(&log, "three\n");
        assert_eq!(step(&mut follower), ["three"]);
    }

    #[test]
    fn a_pipe_is_found_when_it_is_opened_and_read_line_by_line() {
        let folder = Folder::new();
        let pipe = folder.file("pipe");
        let made = std::process::Command::new("mkfifo").arg(&pipe).status();
        assert!(made.unwrap().success());
        let writer = {
            let pipe = pipe.clone();
            thread::spawn(move || append(&pipe, "one\ntwo\nunfinished"))
        };
        let mut follower = Follower::new(&pipe);
        let found = std::cell::Cell::new(false);
        let mut seen = Vec::new();
        follower.look(&|| found.set(true), &mut |line: &[u8], history: bool| {
            assert!(found.get() && !history);
            seen.push(String::from_utf8_lossy(line).into_owned());
        });
        assert_eq!(seen, ["one", "two"]);
        writer.join().unwrap();
    }

    #[test]
    fn what_is_no_text_harms_no_line_after_it() {
        let folder = Folder::new();
        let log = folder.file("log");
        append(&log, "");
        let mut follower = Follower::new(&log);
        step(&mut follower);
        let mut file = File::options().append(true).open(&log).unwrap();
        file.write_all(b"\xff\xfe\x00\n").unwrap();
        file.write_all(&[b'x'; 300_000]).unwrap();
        assert_eq!(step(&mut follower).len(), 1);
        file.write_all(b"\none\n").unwrap();
        assert_eq!(step(&mut follower)[1], "one");
    }
}
