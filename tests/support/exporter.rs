//! The exporter as a child process: started, scraped, listened to, and ended with its test.

use super::exposition::Scrape;
use super::server::Server;
use super::{LONGEST_WAIT, eventually};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

/// The program, without anything of our own environment.
pub fn program() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_llamacpp-exporter"));
    command.env_clear().stdin(Stdio::null());
    // The scripted server is a thread of the test, which has its own: the machine under it would
    // be the test itself, looked through again after every reconnect of dozens of exporters.
    command.env("LLAMACPP_PROCFS", "/nonexistent");
    command
}

/// What a run of the program that ended by itself left.
pub struct Ended {
    pub status: ExitStatus,
    pub stdout: String,
    pub stderr: String,
}

/// Runs a command to its end, for which it has [`LONGEST_WAIT`].
pub fn run(command: &mut Command) -> Ended {
    let mut child = command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let stdout = read_in_background(child.stdout.take().unwrap());
    let stderr = read_in_background(child.stderr.take().unwrap());
    let deadline = Instant::now() + LONGEST_WAIT;
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        if Instant::now() >= deadline {
            let _ = child.kill();
            let _ = child.wait();
            panic!("{command:?} did not end within {LONGEST_WAIT:?}");
        }
        thread::sleep(Duration::from_millis(2));
    };
    Ended {
        status,
        stdout: stdout.join().unwrap(),
        stderr: stderr.join().unwrap(),
    }
}

fn read_in_background(mut pipe: impl Read + Send + 'static) -> thread::JoinHandle<String> {
    thread::spawn(move || {
        let mut text = String::new();
        pipe.read_to_string(&mut text).expect("output is UTF-8");
        text
    })
}

/// How the exporter is to be started. It polls every 50 ms unless told otherwise.
pub struct Start {
    base_url: String,
    interval: String,
    timeout: String,
    arguments: Vec<String>,
    variables: Vec<(String, String)>,
}

impl Start {
    pub fn interval(mut self, interval: &str) -> Self {
        self.interval = interval.into();
        self
    }

    pub fn timeout(mut self, timeout: &str) -> Self {
        self.timeout = timeout.into();
        self
    }

    pub fn arguments(mut self, arguments: &[&str]) -> Self {
        self.arguments
            .extend(arguments.iter().map(|argument| (*argument).to_owned()));
        self
    }

    pub fn variable(mut self, name: &str, value: &str) -> Self {
        self.variables.push((name.into(), value.into()));
        self
    }

    /// Starts it, at a port that the system chooses, and waits until it serves.
    pub fn start(self) -> Exporter {
        let mut command = program();
        command
            .args(["--base-url", &self.base_url, "--addr", "127.0.0.1:0"])
            .args(["--interval", &self.interval, "--timeout", &self.timeout])
            .args(&self.arguments)
            .envs(self.variables);
        Exporter::start(command)
    }
}

/// A running exporter. Ends with its test; then, if that failed, what it logged is shown.
pub struct Exporter {
    child: Child,
    pub address: SocketAddr,
    log: Arc<Mutex<Vec<String>>>,
    stdout: Arc<Mutex<Vec<String>>>,
}

/// An answer of the exporter.
pub struct Response {
    pub status: u16,
    pub head: String,
    pub body: String,
}

impl Exporter {
    pub fn of(base_url: &str) -> Start {
        Start {
            base_url: base_url.into(),
            interval: "50ms".into(),
            timeout: "2s".into(),
            arguments: vec![],
            variables: vec![],
        }
    }

    pub fn watching(server: &Server) -> Start {
        Self::of(&server.url())
    }

    /// Starts the program by a command of the test's own, and waits until it serves.
    pub fn start(mut command: Command) -> Self {
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let log = follow(child.stderr.take().unwrap());
        let stdout = follow(child.stdout.take().unwrap());
        let nowhere = SocketAddr::from(([0, 0, 0, 0], 0));
        let mut exporter = Exporter {
            child,
            address: nowhere,
            log,
            stdout,
        };
        eventually("it says where it serves", || {
            assert!(exporter.is_alive(), "it has ended");
            let lines = exporter.logged(&["serving", "addr="]);
            let address = lines.first().and_then(|line| line.split("addr=").nth(1));
            let address = address.and_then(|rest| rest.split(' ').next()?.parse().ok());
            exporter.address = address.unwrap_or(nowhere);
            address.is_some()
        });
        exporter
    }

    pub fn get(&self, path: &str) -> Response {
        get(self.address, path).unwrap_or_else(|error| panic!("GET {path}: {error}"))
    }

    pub fn scrape(&self) -> Scrape {
        let response = self.get("/metrics");
        assert_eq!(response.status, 200);
        Scrape::parse(&response.body)
    }

    /// Waits for `count` polls that begin after this call, and scrapes.
    pub fn after_polls(&self, count: u64) -> Scrape {
        // The poll under way now may have begun before.
        let end = self.polls() + count + 1;
        let deadline = Instant::now() + LONGEST_WAIT;
        while self.polls() < end {
            assert!(
                Instant::now() < deadline,
                "polls do not go on:\n{:?}",
                self.scrape()
            );
            thread::sleep(Duration::from_millis(5));
        }
        self.scrape()
    }

    /// Polls that have ended; cheaper to ask for than the whole scrape is to check.
    fn polls(&self) -> u64 {
        let text = self.get("/metrics").body;
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix("llamacpp_exporter_polls_total "));
        line.map_or(0, |polls| polls.parse().unwrap())
    }

    /// Scrapes until the condition holds.
    pub fn until(&self, what: &str, condition: impl Fn(&Scrape) -> bool) -> Scrape {
        let deadline = Instant::now() + LONGEST_WAIT;
        loop {
            let scrape = self.scrape();
            if condition(&scrape) {
                return scrape;
            }
            assert!(
                Instant::now() < deadline,
                "waited in vain: {what}\n{scrape:?}"
            );
            thread::sleep(Duration::from_millis(10));
        }
    }

    /// What it has written to stderr.
    pub fn log_lines(&self) -> Vec<String> {
        self.log.lock().unwrap().clone()
    }

    /// The lines of its log with all of these words.
    pub fn logged(&self, words: &[&str]) -> Vec<String> {
        let has_all = |line: &String| words.iter().all(|word| line.contains(word));
        self.log_lines().into_iter().filter(has_all).collect()
    }

    pub fn wait_for_log(&self, words: &[&str]) {
        eventually(&format!("a log line with {words:?}"), || {
            !self.logged(words).is_empty()
        });
    }

    /// Everything it has written so far.
    pub fn output(&self) -> String {
        let mut lines = self.log_lines();
        lines.extend(self.stdout.lock().unwrap().iter().cloned());
        lines.join("\n")
    }

    /// The most memory that it ever had resident, in bytes, where the system tells.
    pub fn most_memory(&self) -> Option<u64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).ok()?;
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix("VmHWM:"))?;
        Some(line.trim().strip_suffix(" kB")?.parse::<u64>().unwrap() * 1024)
    }

    /// The threads that it has now.
    pub fn threads(&self) -> usize {
        let folder = format!("/proc/{}/task", self.child.id());
        std::fs::read_dir(folder).unwrap().count()
    }

    pub fn is_alive(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    /// Sends a signal, and waits for the end.
    pub fn signal(mut self, signal: &str) -> ExitStatus {
        let process = self.child.id().to_string();
        let sent = Command::new("kill")
            .args(["-s", signal, &process])
            .status()
            .unwrap();
        assert!(sent.success());
        let mut ended = None;
        eventually(&format!("SIG{signal} ends it"), || {
            ended = self.child.try_wait().unwrap();
            ended.is_some()
        });
        ended.unwrap()
    }

    /// Scrapes every 20 ms from now on.
    pub fn keep_scraping(&self) -> Scraping {
        const PAUSE: Duration = Duration::from_millis(20);
        let stop = Arc::new(AtomicBool::new(false));
        let (address, end) = (self.address, stop.clone());
        let thread = thread::spawn(move || {
            let mut scrapes = 0;
            // A few are too few to judge by, however short the test.
            while scrapes < 20 || !end.load(Ordering::SeqCst) {
                let response = get(address, "/metrics").expect("it answers throughout");
                assert_eq!(response.status, 200);
                scrapes += 1;
                thread::sleep(PAUSE);
            }
        });
        Scraping {
            stop,
            thread: Some(thread),
        }
    }
}

impl Drop for Exporter {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if thread::panicking() {
            let name = thread::current().name().unwrap_or_default().to_owned();
            eprintln!("the exporter's log ({name}):\n{}", self.output());
        }
    }
}

/// Scrapes that go on beside a test.
pub struct Scraping {
    stop: Arc<AtomicBool>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Scraping {
    /// Ends them, and demands that all of them were answered. How quickly is for the bench to
    /// say; that they wait for no poll is a test of its own.
    pub fn all_were_answered(mut self) {
        self.end().expect("it answers throughout");
    }

    fn end(&mut self) -> thread::Result<()> {
        self.stop.store(true, Ordering::SeqCst);
        self.thread.take().map_or(Ok(()), thread::JoinHandle::join)
    }
}

impl Drop for Scraping {
    fn drop(&mut self) {
        // A test that has failed already says why.
        let _ = self.end();
    }
}

fn follow(pipe: impl Read + Send + 'static) -> Arc<Mutex<Vec<String>>> {
    let lines = Arc::new(Mutex::new(Vec::new()));
    let followed = lines.clone();
    thread::spawn(move || {
        for line in BufReader::new(pipe).lines() {
            followed
                .lock()
                .unwrap()
                .push(line.expect("output is UTF-8"));
        }
    });
    lines
}

pub fn get(address: SocketAddr, path: &str) -> io::Result<Response> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(LONGEST_WAIT))?;
    write!(
        stream,
        "GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n"
    )?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let no_answer = || io::Error::other(format!("not an answer: {answer:?}"));
    let (head, body) = answer.split_once("\r\n\r\n").ok_or_else(no_answer)?;
    let status = head
        .split(' ')
        .nth(1)
        .and_then(|code| code.parse().ok())
        .ok_or_else(no_answer)?;
    Ok(Response {
        status,
        head: head.into(),
        body: body.into(),
    })
}
