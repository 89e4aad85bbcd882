//! Reads the header of a model file on a thread of its own.
//!
//! Opening or reading a file on an unresponsive network mount may block permanently. A poll must
//! not block, so a thread reads the file. The number of threads is limited.

use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use crate::bounds;
use crate::gguf::header::{HeaderError, ModelHeader, first_part};
use crate::machine::procfs::Procfs;
use crate::process::threads;
use crate::snapshot::{Absence, Source, SourceKind};

/// How long the first poll waits: long enough for a file on a local disk.
const FIRST_WAIT: Duration = Duration::from_millis(200);
/// How often it looks whether another file may be read.
const PAUSE: Duration = Duration::from_millis(5);
/// The most threads that read model files, for all servers.
const MAX_READERS: usize = 4;
/// How long after an error the file is read again.
const RETRY_AFTER: Duration = Duration::from_secs(30);

static READERS: AtomicUsize = AtomicUsize::new(0);

/// A model file and its header.
pub struct ModelFile {
    path: String,
    state: HeaderState,
}

enum HeaderState {
    /// Too many files are being read: that of each server, if many are found at once.
    Waiting,
    Reading(Receiver<Result<ModelHeader, HeaderError>>),
    Read(Result<ModelHeader, HeaderError>, Instant),
}

impl ModelFile {
    /// Starts reading the header of the file at `path`, as the process `pid` sees the path. Waits
    /// for it only if no file was read `before`.
    pub fn read(procfs: &Procfs, pid: u32, path: &str, before: Option<ModelFile>) -> ModelFile {
        let part = first_part(Path::new(path));
        let procfs = procfs.clone();
        let read = move || {
            let file = procfs.open_as_seen_by(pid, &part)?;
            ModelHeader::read(file)
        };
        let wait = before.map_or(FIRST_WAIT, |_| Duration::ZERO);
        let deadline = bounds::deadline(Instant::now(), wait);
        let mut file = ModelFile {
            path: path.to_owned(),
            state: match in_background(read, deadline) {
                Ok(Some(result)) => HeaderState::Reading(result),
                Ok(None) => HeaderState::Waiting,
                Err(error) => HeaderState::Read(Err(error.into()), Instant::now()),
            },
        };
        file.wait(deadline.saturating_duration_since(Instant::now()));
        file
    }

    /// Whether the file at `path` must be read again.
    pub fn is_outdated(&self, path: &str) -> bool {
        let is_over = match &self.state {
            HeaderState::Waiting => true,
            HeaderState::Read(Err(_), at) => at.elapsed() > RETRY_AFTER,
            HeaderState::Read(Ok(_), _) | HeaderState::Reading(_) => false,
        };
        is_over || self.path != path
    }

    /// The header, once it is read.
    pub fn header(&mut self) -> Option<&ModelHeader> {
        self.wait(Duration::ZERO);
        match &self.state {
            HeaderState::Read(result, _) => result.as_ref().ok(),
            HeaderState::Waiting | HeaderState::Reading(_) => None,
        }
    }

    /// Why there is no header. The text follows the words "the model file".
    pub fn problem(&self) -> Option<String> {
        match &self.state {
            HeaderState::Read(result, _) => result.as_ref().err().map(ToString::to_string),
            HeaderState::Waiting => Some("waits until others are read".to_owned()),
            HeaderState::Reading(_) => {
                Some("is being read: if this lasts, its file system does not answer".to_owned())
            }
        }
    }

    /// The file as a source.
    pub fn source(&self) -> Source {
        let mut source = Source::new(SourceKind::ModelFile(bounds::cut(&self.path).into()));
        if let HeaderState::Read(_, at) = &self.state {
            source.read_at = Some(*at);
        }
        match self.problem() {
            Some(problem) => {
                source.absence = Some(Absence::ModelFileUnreadable);
                source.with_error(&problem)
            }
            None => source,
        }
    }

    fn wait(&mut self, time: Duration) {
        if let HeaderState::Reading(result) = &self.state {
            let result = match result.recv_timeout(time) {
                Ok(result) => result,
                Err(RecvTimeoutError::Timeout) => return,
                Err(RecvTimeoutError::Disconnected) => {
                    Err(io::Error::other("the reader thread has ended").into())
                }
            };
            self.state = HeaderState::Read(result, Instant::now());
        }
    }
}

/// Runs `read` on a thread; `None` if there are too many up to `deadline`.
fn in_background<T: Send + 'static>(
    read: impl FnOnce() -> T + Send + 'static,
    deadline: Instant,
) -> io::Result<Option<Receiver<T>>> {
    struct ReaderCount;
    impl Drop for ReaderCount {
        fn drop(&mut self) {
            READERS.fetch_sub(1, Ordering::SeqCst);
        }
    }
    let add = |readers: usize| readers.checked_add(1).filter(|more| *more <= MAX_READERS);
    let count = || READERS.fetch_update(Ordering::SeqCst, Ordering::SeqCst, add);
    while count().is_err() {
        if Instant::now() >= deadline {
            return Ok(None);
        }
        thread::sleep(PAUSE);
    }
    let counted = ReaderCount;
    threads::call("model-file", move || {
        let result = read();
        drop(counted);
        result
    })
    .map(Some)
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;
    use crate::machine::tests::file_tree::FileTree;

    /// The readers are counted for the whole process.
    static READERS_LOCK: Mutex<()> = Mutex::new(());

    #[test]
    fn a_file_that_is_not_a_model_is_read_again_later() {
        let _alone = READERS_LOCK.lock().unwrap();
        let tree = FileTree::new(&[("rootfs/m.gguf", "no model")]);
        tree.link("7/root", tree.path("rootfs"));
        let procfs = Procfs::new(&tree.path(""));
        let mut file = ModelFile::read(&procfs, 7, "/m.gguf", None);
        while matches!(file.state, HeaderState::Reading(_)) {
            file.wait(FIRST_WAIT);
        }
        assert_eq!(file.header(), None);
        assert_eq!(file.problem().unwrap(), "is not a GGUF file");
        assert!(!file.is_outdated("/m.gguf") && file.is_outdated("/n.gguf"));
    }

    #[test]
    fn a_file_system_that_hangs_blocks_no_poll_and_takes_few_threads() {
        let _alone = READERS_LOCK.lock().unwrap();
        // Each reader blocks until the sender of its channel is dropped.
        let hang = || {
            let (answer, waiting) = std::sync::mpsc::channel::<()>();
            let wait = move || {
                let _ = waiting.recv();
                Ok(ModelHeader::default())
            };
            let result = in_background(wait, Instant::now()).unwrap();
            result.map(|result| (answer, result))
        };
        let readers: Vec<_> = (0..MAX_READERS).map(|_| hang().unwrap()).collect();
        assert!(hang().is_none(), "there is one more");
        // One that has to wait is read as soon as one of them has ended.
        let tree = FileTree::new(&[("rootfs/m.gguf", "no model")]);
        tree.link("7/root", tree.path("rootfs"));
        let read = |before| ModelFile::read(&Procfs::new(&tree.path("")), 7, "/m.gguf", before);
        let waiting = read(None);
        assert!(waiting.problem().unwrap().contains("waits until others"));
        assert!(waiting.is_outdated("/m.gguf"));
        for (answer, result) in readers {
            let mut file = ModelFile {
                path: "m".to_owned(),
                state: HeaderState::Reading(result),
            };
            assert_eq!(file.header(), None);
            assert!(file.problem().unwrap().contains("is being read"));
            assert!(!file.is_outdated("m"));
            drop(answer);
            while file.header().is_none() {
                file.wait(FIRST_WAIT);
            }
            assert_eq!(file.problem(), None);
        }
        // Their threads have ended.
        while READERS.load(Ordering::SeqCst) > 0 {
            thread::yield_now();
        }
        let mut file = read(Some(waiting));
        while matches!(file.state, HeaderState::Reading(_)) {
            file.wait(FIRST_WAIT);
        }
        assert_eq!(file.problem().unwrap(), "is not a GGUF file");
    }
}
