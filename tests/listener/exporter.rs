//! The real program as a child, and an honest client of it.

use std::env;
use std::fs;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{self, Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, mpsc};
use std::thread;
use std::time::{Duration, Instant};

pub const BINARY: &str = env!("CARGO_BIN_EXE_llamacpp-exporter");

/// Nobody listens there.
pub const UPSTREAM: &str = "http://[::1]:1";

/// How long to wait for what must come: far longer than anything takes on a busy machine, so
/// that it ends no test but one that waits in vain.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Attacks and measurements would disturb each other.
pub fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(|poison| poison.into_inner())
}

/// A running exporter; killed when dropped.
pub struct Exporter {
    child: Child,
    stderr: Arc<Mutex<String>>,
    pub address: SocketAddr,
}

impl Exporter {
    /// On a free port of 127.0.0.1.
    pub fn start() -> Self {
        Self::start_by(Command::new(BINARY))
    }

    /// The same through a shell that runs `setup` first, `ulimit` for instance.
    pub fn start_after(setup: &str) -> Self {
        let mut shell = Command::new("sh");
        shell.args(["-c", &format!("{setup}; exec \"$0\" \"$@\""), BINARY]);
        Self::start_by(shell)
    }

    /// `program` gets the exporter's arguments after its own.
    pub fn start_by(mut program: Command) -> Self {
        program.args(["--addr", "127.0.0.1:0", "--base-url", UPSTREAM]);
        let (child, stderr, lines) = spawn(program);
        let start = Instant::now();
        while let Ok(line) = lines.recv_timeout(PATIENCE.saturating_sub(start.elapsed())) {
            let port = line.split_once("127.0.0.1:").map(|(_, rest)| {
                rest.chars()
                    .take_while(char::is_ascii_digit)
                    .collect::<String>()
            });
            if let Some(Ok(port)) = port.map(|port| port.parse::<u16>()) {
                return Self {
                    child,
                    stderr,
                    address: ([127, 0, 0, 1], port).into(),
                };
            }
        }
        panic!(
            "no line with the address; stderr: {}",
            stderr.lock().unwrap()
        );
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn stderr(&self) -> String {
        self.stderr.lock().unwrap().clone()
    }

    pub fn is_alive(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    /// Waits for the end.
    pub fn wait(&mut self) -> ExitStatus {
        wait(&mut self.child)
    }

    pub fn resident_kb(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kb = line.and_then(|line| line.split_whitespace().next());
        kb.and_then(|kb| kb.parse().ok()).expect("VmRSS")
    }

    pub fn get(&self, path: &str) -> io::Result<Answer> {
        self.send(&format!("GET {path} HTTP/1.1\r\nHost: exporter\r\n\r\n"))
    }

    /// Sends bytes and reads all that comes back.
    pub fn send(&self, request: &str) -> io::Result<Answer> {
        let mut stream = TcpStream::connect_timeout(&self.address, PATIENCE)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.write_all(request.as_bytes())?;
        Answer::read(stream)
    }

    /// One scrape as Prometheus does it, and how long it took.
    pub fn scrape(&self) -> io::Result<Duration> {
        let start = Instant::now();
        let answer = self.get("/metrics")?;
        let took = start.elapsed();
        if answer.status != 200 || !answer.body.contains("llamacpp_exporter_build_info") {
            return Err(io::Error::other(format!("{answer:?}")));
        }
        Ok(took)
    }
}

impl Drop for Exporter {
    fn drop(&mut self) {
        let _ended = self.child.kill();
        let _status = self.child.wait();
    }
}

/// Starts a program and gathers its stderr, which also comes line by line.
pub fn spawn(mut program: Command) -> (Child, Arc<Mutex<String>>, mpsc::Receiver<String>) {
    let mut child = program.stderr(Stdio::piped()).spawn().unwrap();
    let pipe = BufReader::new(child.stderr.take().unwrap());
    let stderr = Arc::new(Mutex::new(String::new()));
    let (sender, lines) = mpsc::channel();
    let all = Arc::clone(&stderr);
    thread::spawn(move || {
        for line in pipe.lines().map_while(Result::ok) {
            *all.lock().unwrap() += &format!("{line}\n");
            let _nobody_listens = sender.send(line);
        }
    });
    (child, stderr, lines)
}

/// Waits for the end.
pub fn wait(child: &mut Child) -> ExitStatus {
    let start = Instant::now();
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return status;
        }
        if start.elapsed() > PATIENCE {
            child.kill().unwrap();
            panic!("still running after {PATIENCE:?}");
        }
        thread::sleep(Duration::from_millis(1));
    }
}

pub fn signal(name: &str, pid: u32) {
    let pid = pid.to_string();
    let status = Command::new("kill").args(["-s", name, &pid]).status();
    assert!(status.unwrap().success());
}

/// What a server sent until it closed the connection.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub head: String,
    pub body: String,
}

impl Answer {
    pub fn read(mut stream: impl Read) -> io::Result<Self> {
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        let not_http = || io::Error::other(format!("not an answer: {text:?}"));
        let (head, body) = text.split_once("\r\n\r\n").ok_or_else(not_http)?;
        let rest = head.strip_prefix("HTTP/1.1 ").ok_or_else(not_http)?;
        let status = rest
            .split(' ')
            .next()
            .and_then(|status| status.parse().ok());
        Ok(Self {
            status: status.ok_or_else(not_http)?,
            head: head.to_owned(),
            body: body.to_owned(),
        })
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().skip(1).find_map(|line| {
            let (field, value) = line.split_once(':')?;
            field.eq_ignore_ascii_case(name).then(|| value.trim())
        })
    }
}

/// A directory of its own, removed when dropped.
pub struct Directory(pub PathBuf);

impl Directory {
    pub fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = env::temp_dir().join(format!("listener-{}-{number}", process::id()));
        fs::create_dir(&path).unwrap();
        Self(path)
    }

    pub fn join(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _left = fs::remove_dir_all(&self.0);
    }
}

/// Runs programs as a user who runs nothing else, so that a limit of processes
/// counts nothing else. Only root can, and only with util-linux.
pub struct Stranger {
    binary: PathBuf,
    directory: Directory,
}

impl Stranger {
    /// `None`, with a message, where that is not possible.
    pub fn new() -> Option<Self> {
        let directory = Directory::new();
        let binary = directory.join("exporter");
        fs::copy(BINARY, &binary).unwrap(); // The original may be out of reach.
        let stranger = Self { binary, directory };
        let mut version = stranger.exporter("");
        version.arg("--version").stdout(Stdio::null());
        if version.status().is_ok_and(|status| status.success()) {
            return Some(stranger);
        }
        eprintln!("skipped: cannot run a program as another user");
        None
    }

    /// Where files lie that the stranger can reach.
    pub fn directory(&self) -> &Directory {
        &self.directory
    }

    /// The exporter with `setup` run before it.
    pub fn exporter(&self, setup: &str) -> Command {
        self.command(setup, &self.binary)
    }

    pub fn command(&self, setup: &str, program: &Path) -> Command {
        let mut command = Command::new("setpriv");
        command
            .args([
                "--reuid=61327",
                "--regid=61327",
                "--clear-groups",
                "sh",
                "-c",
            ])
            .arg(format!("{setup}\nexec \"$0\" \"$@\""))
            .arg(program);
        command
    }
}
