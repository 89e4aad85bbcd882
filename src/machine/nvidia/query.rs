//! Runs `nvidia-smi` in a loop: finds it, starts it, and restarts it when it ends.

use std::ffi::OsStr;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};
use std::{fs, io};

use crate::bounds::deadline;
use crate::machine::nvidia::runtime_power::GpuSelection;
use crate::process::{log, os, threads};

/// The most bytes of a line; a longer one is read in pieces, which cannot be parsed.
const MAX_LINE_BYTES: u64 = 4096;
/// How long to wait before a restart; doubled each time.
const FIRST_RESTART_DELAY: Duration = Duration::from_secs(1);
const MAX_RESTART_DELAY: Duration = Duration::from_secs(300);
/// Folders to search besides `PATH`. WSL2's folder is not in the `PATH` of services; Google
/// Kubernetes Engine mounts the last one.
const MORE_FOLDERS: [&str; 3] = ["/usr/bin", "/usr/lib/wsl/lib", "/usr/local/nvidia/bin"];
/// The only environment variable that it inherits, for its libraries. Others may hold secrets.
const INHERITED_VARIABLE: &str = "LD_LIBRARY_PATH";
/// The `PATH` that it gets, in case it is a wrapper script.
const CHILD_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Finds the program in `path` and some more folders. Ignores relative folders, which depend on the
/// working directory.
///
/// # Errors
/// It is not there; the text says where it was searched.
pub fn find_program(path: Option<&OsStr>) -> Result<PathBuf, String> {
    let of_path = path.into_iter().flat_map(std::env::split_paths);
    let folders = of_path.chain(MORE_FOLDERS.map(PathBuf::from));
    let is_executable = |program: &PathBuf| {
        let found = fs::metadata(program);
        found.is_ok_and(|file| file.is_file() && os::is_executable(&file))
    };
    folders
        .filter(|folder| folder.is_absolute())
        .map(|folder| folder.join("nvidia-smi"))
        .find(is_executable)
        .ok_or_else(|| format!("no nvidia-smi in PATH, {}", MORE_FOLDERS.join(", ")))
}

/// Handles each line of the output, on the thread that reads it.
pub type TakeLine = Arc<dyn Fn(&str) + Send + Sync>;

/// A query that an `nvidia-smi` repeats at every interval.
pub struct Query {
    program: PathBuf,
    /// Such as `--query-gpu=…`.
    argument: String,
    interval: Duration,
    take_line: TakeLine,
    running: Option<RunningQuery>,
    restart_at: Option<Instant>,
    restart_delay: Duration,
    is_failing: bool,
}

struct RunningQuery {
    child: Child,
    selection: GpuSelection,
    started: Instant,
    is_killed: bool,
}

impl Query {
    /// A query that does not run yet.
    pub fn new(program: &Path, argument: String, interval: Duration, take_line: TakeLine) -> Query {
        Query {
            program: program.to_owned(),
            argument,
            interval,
            take_line,
            running: None,
            restart_at: None,
            restart_delay: FIRST_RESTART_DELAY,
            is_failing: false,
        }
    }

    /// Ends the program if it was started before `time`; it is then started again.
    pub fn end_if_started_before(&mut self, time: Instant) {
        if let Some(running) = &mut self.running
            && running.started < time
        {
            running.is_killed = true;
            let _ = running.child.kill();
        }
    }

    /// Starts, stops or restarts the program so that it queries `selection`. Never waits.
    pub fn supervise(&mut self, selection: &GpuSelection, now: Instant) {
        if let Some(running) = &mut self.running {
            if running.selection != *selection && !running.is_killed {
                running.is_killed = true;
                let _ = running.child.kill();
            }
            let started = running.started;
            match running.child.try_wait() {
                // If it does not end (its driver hangs), no second one is started.
                Ok(None) => {
                    let lasted = now.saturating_duration_since(started);
                    if self.is_failing && lasted > self.interval.saturating_mul(10) {
                        self.is_failing = false;
                        self.restart_delay = FIRST_RESTART_DELAY;
                        log::info("nvidia-smi is running again", &[("query", &self.name())]);
                    }
                    return;
                }
                _ if running.is_killed => {}
                ended => self.schedule_restart(ended.err(), now),
            }
            self.running = None;
        }
        if *selection == GpuSelection::None || self.restart_at.is_some_and(|at| now < at) {
            return;
        }
        match self.start(selection) {
            Ok(child) => {
                self.running = Some(RunningQuery {
                    child,
                    selection: selection.clone(),
                    started: now,
                    is_killed: false,
                });
            }
            Err(error) => self.schedule_restart(Some(error), now),
        }
    }

    /// Such as `--query-gpu`.
    fn name(&self) -> &str {
        self.argument.split('=').next().unwrap_or_default()
    }

    fn schedule_restart(&mut self, error: Option<io::Error>, now: Instant) {
        if !std::mem::replace(&mut self.is_failing, true) {
            let detail = error.map_or_else(|| "it ended".to_owned(), |error| error.to_string());
            log::warn(
                "nvidia-smi is not running; retrying",
                &[("query", &self.name()), ("detail", &detail)],
            );
        }
        self.restart_at = Some(deadline(now, self.restart_delay));
        self.restart_delay = self.restart_delay.saturating_mul(2).min(MAX_RESTART_DELAY);
    }

    fn start(&self, selection: &GpuSelection) -> io::Result<Child> {
        let mut command = Command::new(&self.program);
        os::kill_with_parent(&mut command);
        command
            .env_clear()
            .env("LC_ALL", "C")
            .env("PATH", CHILD_PATH);
        if let Some(value) = std::env::var_os(INHERITED_VARIABLE) {
            command.env(INHERITED_VARIABLE, value);
        }
        command
            .arg(&self.argument)
            .arg("--format=csv,noheader,nounits");
        if let GpuSelection::Only(addresses) = selection {
            command.arg(format!("--id={}", addresses.join(",")));
        }
        let mut child = command
            .arg(format!("--loop-ms={}", self.interval.as_millis()))
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()?;
        let output = child.stdout.take().ok_or(io::ErrorKind::BrokenPipe)?;
        let take_line = Arc::clone(&self.take_line);
        if let Err(error) = threads::start("nvidia-smi", move || read_lines(output, &*take_line)) {
            let _ = child.kill();
            let _ = child.wait();
            return Err(error);
        }
        Ok(child)
    }
}

/// Reads lines until the output ends.
fn read_lines(output: impl Read, take_line: &dyn Fn(&str)) {
    let mut output = BufReader::new(output);
    let mut line = Vec::new();
    loop {
        line.clear();
        let mut limited = output.by_ref().take(MAX_LINE_BYTES);
        match limited.read_until(b'\n', &mut line) {
            Ok(0) | Err(_) => return,
            Ok(_) => take_line(&String::from_utf8_lossy(&line)),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn the_program_is_searched_in_absolute_folders_and_then_in_well_known_ones() {
        let folder = tempfile::tempdir().unwrap();
        let program = folder.path().join("nvidia-smi");
        fs::write(&program, "").unwrap();
        let path = format!(".:relative::{}:/usr/bin", folder.path().display());
        let searched = find_program(Some(OsStr::new(&path))).unwrap_err();
        // It is there, and not executable.
        assert_eq!(
            searched,
            "no nvidia-smi in PATH, /usr/bin, /usr/lib/wsl/lib, /usr/local/nvidia/bin"
        );
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
        assert_eq!(find_program(Some(OsStr::new(&path))), Ok(program));
    }
}
