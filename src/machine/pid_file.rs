//! The process that `--pid-file` names.

use std::fs;
use std::io::{self, Read as _};
use std::path::PathBuf;
use std::time::SystemTime;

use crate::machine::process_lookup::{LookupResult, NotFound};
use crate::machine::procfs::{ProcessId, Procfs};
use crate::process::file;
use crate::snapshot::Absence;

/// A PID file. Its PID may be stale, and may now belong to another process.
pub struct PidFile {
    path: PathBuf,
    /// The modification time of the file at the last reading, and its process.
    last: Option<(Option<SystemTime>, ProcessId)>,
}

impl PidFile {
    /// The PID file at `path`, not read yet.
    pub fn new(path: PathBuf) -> PidFile {
        PidFile { path, last: None }
    }

    /// The PID in the file.
    ///
    /// # Errors
    /// The file cannot be read, or contains no PID.
    pub fn pid(&self) -> io::Result<u32> {
        let mut text = String::new();
        let file = file::regular_file(&self.path)?;
        file.take(64).read_to_string(&mut text)?;
        let pid = text.trim().parse();
        pid.map_err(|_| io::Error::other("it contains no PID"))
    }

    /// The process with the PID in the file, unless the PID was reused since the file was written.
    pub fn find(&mut self, procfs: &Procfs) -> LookupResult {
        let path = self.path.display();
        let written = fs::metadata(&self.path).and_then(|file| file.modified());
        let written = written.ok();
        let pid = self
            .pid()
            .map_err(|error| unusable(format!("cannot use the PID file {path}: {error}")))?;
        let Some(process) = procfs.process_id(pid) else {
            return Err(unusable(format!("no process has the PID in {path}")));
        };
        if let Some((then, known)) = self.last
            && (then, known.pid) == (written, pid)
            && known != process
        {
            let detail = format!("the PID in {path} now belongs to another process");
            return Err(unusable(detail));
        }
        self.last = Some((written, process));
        Ok((process, None))
    }
}

fn unusable(detail: String) -> Option<NotFound> {
    Some(NotFound::new(Absence::PidFileUnusable, detail))
}
