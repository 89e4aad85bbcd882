//! Running `nvidia-smi`: which one, with what, and again when it ends.

use std::ffi::OsStr;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};
use std::{fs, io};

use crate::bounds::deadline;
use crate::machine::nvidia::runtime_power::Ask;
use crate::machine::nvidia::{Said, lock};
use crate::process::log;
use crate::process::os;

/// The longest line that is looked at.
const LONGEST_LINE: u64 = 4096;
/// How long to wait before it is started again.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(300);
/// Where it is besides `PATH`: WSL2's folder is in no service's `PATH`, and nodes of Google's
/// Kubernetes mount theirs.
const FALLBACKS: [&str; 3] = ["/usr/bin", "/usr/lib/wsl/lib", "/usr/local/nvidia/bin"];
/// What of our environment it gets: where its libraries are. Ours may hold secrets.
const INHERITED: &str = "LD_LIBRARY_PATH";
/// For wrappers that are scripts.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The program, or the folders in which there is none. Relative entries of `path` would lead
/// to whatever is in our working folder, and are not looked at.
pub fn find(path: Option<&OsStr>) -> Result<PathBuf, Vec<PathBuf>> {
    let of_path = path.map(|path| std::env::split_paths(path));
    let mut folders: Vec<PathBuf> = Vec::new();
    for folder in of_path
        .into_iter()
        .flatten()
        .chain(FALLBACKS.map(PathBuf::from))
    {
        if folder.is_absolute() && !folders.contains(&folder) {
            folders.push(folder);
        }
    }
    let mut programs = folders.iter().map(|folder| folder.join("nvidia-smi"));
    programs
        .find(|program| is_executable(program))
        .ok_or(folders)
}

fn is_executable(program: &Path) -> bool {
    fs::metadata(program)
        .is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o111 != 0)
}

/// One question that an `nvidia-smi` in a loop answers.
pub struct Query {
    program: PathBuf,
    /// As in `--query-gpu=…`.
    argument: String,
    period: Duration,
    said: Arc<Mutex<Said>>,
    take: fn(&mut Said, &str),
    running: Option<Running>,
    start_at: Option<Instant>,
    pause: Duration,
    failing: bool,
}

struct Running {
    child: Child,
    ask: Ask,
    started: Instant,
    /// It was told to end.
    stopped: bool,
}

impl Query {
    /// A question that is not asked yet; `take` reads a line of the answer.
    pub fn new(
        program: &Path,
        argument: String,
        period: Duration,
        said: &Arc<Mutex<Said>>,
        take: fn(&mut Said, &str),
    ) -> Query {
        Query {
            program: program.to_owned(),
            argument,
            period,
            said: Arc::clone(said),
            take,
            running: None,
            start_at: None,
            pause: FIRST_PAUSE,
            failing: false,
        }
    }

    /// Sees to it that what `ask` says is asked, and nothing else. Never waits.
    pub fn supervise(&mut self, ask: &Ask, now: Instant) {
        if let Some(running) = &mut self.running {
            if running.ask != *ask && !running.stopped {
                running.stopped = true;
                let _ = running.child.kill();
            }
            match running.child.try_wait() {
                // One that does not end, as its driver hangs, is not joined by another.
                Ok(None) => return,
                _ if running.stopped => {}
                ended => self.ended(ended.map(drop), now),
            }
            self.running = None;
        }
        if *ask == Ask::Nothing || self.start_at.is_some_and(|at| now < at) {
            return;
        }
        match self.start(ask) {
            Ok(child) => {
                self.running = Some(Running {
                    child,
                    ask: ask.clone(),
                    started: now,
                    stopped: false,
                });
            }
            Err(error) => self.ended(Err(error), now),
        }
    }

    /// It is to be started again, later each time.
    fn ended(&mut self, how: io::Result<()>, now: Instant) {
        let started = self.running.as_ref().map(|running| running.started);
        let lasted = started.map(|at| now.saturating_duration_since(at));
        // It lasted: it was well.
        if lasted.is_some_and(|lasted| lasted > self.period.saturating_mul(10)) {
            self.pause = FIRST_PAUSE;
            self.failing = false;
        }
        if !std::mem::replace(&mut self.failing, true) {
            let detail = match how {
                Ok(()) => "it ended".to_owned(),
                Err(error) => error.to_string(),
            };
            let query = self.argument.split('=').next().unwrap_or_default();
            log::warn(
                "nvidia-smi does not run; it is started again from time to time",
                &[("query", &query), ("detail", &detail)],
            );
        }
        self.start_at = Some(deadline(now, self.pause));
        self.pause = self.pause.saturating_mul(2).min(LONGEST_PAUSE);
    }

    fn start(&self, ask: &Ask) -> io::Result<Child> {
        let mut command = Command::new(&self.program);
        os::end_with_us(&mut command);
        command.env_clear().env("LC_ALL", "C").env("PATH", PATH);
        if let Some(value) = std::env::var_os(INHERITED) {
            command.env(INHERITED, value);
        }
        command
            .arg(&self.argument)
            .arg("--format=csv,noheader,nounits");
        if let Ask::Only(addresses) = ask {
            command.arg(format!("--id={}", addresses.join(",")));
        }
        let mut child = command
            .arg(format!("--loop-ms={}", self.period.as_millis()))
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()?;
        let output = child.stdout.take().ok_or(io::ErrorKind::BrokenPipe)?;
        let (said, take) = (Arc::clone(&self.said), self.take);
        let thread = thread::Builder::new().name("nvidia-smi".to_owned());
        let spawned = thread.spawn(move || read(output, &said, take));
        if let Err(error) = spawned {
            let _ = child.kill();
            let _ = child.wait();
            return Err(error);
        }
        Ok(child)
    }
}

fn read(output: impl Read, said: &Mutex<Said>, take: fn(&mut Said, &str)) {
    let mut output = BufReader::new(output);
    let mut line = Vec::new();
    loop {
        line.clear();
        let mut limited = output.by_ref().take(LONGEST_LINE);
        match limited.read_until(b'\n', &mut line) {
            Ok(0) | Err(_) => return,
            // A piece of an endless line is no line either.
            Ok(_) => take(&mut lock(said), &String::from_utf8_lossy(&line)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_absolute_folders_are_looked_in_and_those_that_are_in_no_path_last() {
        let folder = tempfile::tempdir().unwrap();
        let program = folder.path().join("nvidia-smi");
        fs::write(&program, "").unwrap();
        let path = format!(".:relative::{}:/usr/bin", folder.path().display());
        let looked = find(Some(OsStr::new(&path))).unwrap_err();
        let expected: Vec<PathBuf> = [folder.path().to_str().unwrap()]
            .into_iter()
            .chain(FALLBACKS)
            .map(PathBuf::from)
            .collect();
        assert_eq!(looked, expected, "it is there, and cannot be executed");
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
        assert_eq!(find(Some(OsStr::new(&path))), Ok(program));
        assert_eq!(find(None).unwrap_err(), FALLBACKS.map(PathBuf::from));
    }
}
