//! The header of a model's file, read on a thread of its own.
//!
//! A file may lie on a network mount that does not answer, and opening or reading it then
//! waits for ever: the poll must not. Such a thread stays; there are never many of them.

use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use crate::gguf::{self, Error, Header};
use crate::machine::procfs::Procfs;

/// How long the poll that wants it first waits for it: a file on a disk is read by then.
const FIRST_WAIT: Duration = Duration::from_millis(200);
/// The most threads that read at a time, or wait for a file system, for all servers.
const MOST_READERS: usize = 4;
/// How long an error stands before the file is read again.
const ERROR_STANDS: Duration = Duration::from_secs(30);

static READERS: AtomicUsize = AtomicUsize::new(0);

/// The file of a model, as far as it was read.
pub struct ModelFile {
    path: String,
    state: State,
}

enum State {
    Reading(Receiver<Result<Header, Error>>),
    Known(Result<Header, Error>, Instant),
}

impl ModelFile {
    /// Begins to read the header of the file at `path`, as the process `pid` sees the path.
    pub fn read(procfs: &Procfs, pid: u32, path: &str) -> ModelFile {
        let part = gguf::first_part(Path::new(path));
        let procfs = procfs.clone();
        let read = move || {
            let file = procfs.open_as_seen_by(pid, &part).map_err(Error::Io)?;
            Header::read(file)
        };
        let mut file = ModelFile {
            path: path.to_owned(),
            state: match in_background(read) {
                Ok(result) => State::Reading(result),
                Err(error) => State::Known(Err(Error::Io(error)), Instant::now()),
            },
        };
        file.wait(FIRST_WAIT);
        file
    }

    /// Whether it is worth reading the file at `path` (again).
    pub fn is_outdated(&self, path: &str) -> bool {
        let failed = |at: &Instant| at.elapsed() > ERROR_STANDS;
        self.path != path || matches!(&self.state, State::Known(Err(_), at) if failed(at))
    }

    /// The header, once it was read.
    pub fn header(&mut self) -> Option<&Header> {
        self.wait(Duration::ZERO);
        match &self.state {
            State::Known(result, _) => result.as_ref().ok(),
            State::Reading(_) => None,
        }
    }

    /// Why there is no header: what follows "the model's file".
    pub fn problem(&self) -> Option<String> {
        match &self.state {
            State::Known(result, _) => result.as_ref().err().map(ToString::to_string),
            State::Reading(_) => Some("is on a file system that does not answer".to_owned()),
        }
    }

    fn wait(&mut self, time: Duration) {
        if let State::Reading(result) = &self.state {
            let result = match result.recv_timeout(time) {
                Ok(result) => result,
                Err(RecvTimeoutError::Timeout) => return,
                Err(RecvTimeoutError::Disconnected) => {
                    Err(Error::Io(io::Error::other("its reader has ended")))
                }
            };
            self.state = State::Known(result, Instant::now());
        }
    }
}

/// Does `work` on a thread, unless there are too many already.
fn in_background<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> io::Result<Receiver<T>> {
    struct Place;
    impl Drop for Place {
        fn drop(&mut self) {
            READERS.fetch_sub(1, Ordering::SeqCst);
        }
    }
    let more = |readers: usize| readers.checked_add(1).filter(|more| *more <= MOST_READERS);
    READERS
        .fetch_update(Ordering::SeqCst, Ordering::SeqCst, more)
        .map_err(|_| io::Error::other("too many files are being read that do not answer"))?;
    let place = Place;
    let (sender, receiver) = mpsc::channel();
    let thread = thread::Builder::new().name("model-file".to_owned());
    thread.spawn(move || {
        let result = work();
        drop(place);
        // Whoever wanted it may have gone.
        let _ = sender.send(result);
    })?;
    Ok(receiver)
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;
    use crate::machine::test_files::Tree;

    /// The readers are counted for the whole process.
    static ALONE: Mutex<()> = Mutex::new(());

    #[test]
    fn a_file_that_is_no_model_is_read_again_after_a_while() {
        let _alone = ALONE.lock().unwrap();
        let tree = Tree::new(&[("rootfs/m.gguf", "no model")]);
        tree.link("7/root", tree.path("rootfs"));
        let procfs = Procfs::new(&tree.path(""));
        let mut file = ModelFile::read(&procfs, 7, "/m.gguf");
        while matches!(file.state, State::Reading(_)) {
            file.wait(FIRST_WAIT);
        }
        assert_eq!(file.header(), None);
        assert_eq!(file.problem().unwrap(), "is not a GGUF file");
        assert!(!file.is_outdated("/m.gguf") && file.is_outdated("/n.gguf"));
    }

    #[test]
    fn a_file_system_that_does_not_answer_holds_up_nobody_and_takes_few_threads() {
        let _alone = ALONE.lock().unwrap();
        // Each reads until its end of a channel of its own is dropped.
        let hang = || {
            let (answer, waiting) = mpsc::channel::<()>();
            let result = in_background(move || {
                let _ = waiting.recv();
                Ok(Header::default())
            });
            result.map(|result| (answer, result))
        };
        let readers: Vec<_> = (0..MOST_READERS).map(|_| hang().unwrap()).collect();
        assert!(hang().is_err(), "there is one more");
        for (answer, result) in readers {
            let mut file = ModelFile {
                path: "m".to_owned(),
                state: State::Reading(result),
            };
            assert_eq!(file.header(), None);
            assert!(file.problem().unwrap().contains("does not answer"));
            assert!(!file.is_outdated("m"));
            drop(answer);
            while file.header().is_none() {
                file.wait(FIRST_WAIT);
            }
            assert_eq!(file.problem(), None);
        }
        // Their places are free again.
        while READERS.load(Ordering::SeqCst) > 0 {
            thread::yield_now();
        }
        assert!(hang().is_ok());
    }
}
