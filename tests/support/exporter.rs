//! The exporter as a child process: started, scraped, and killed at the end of its test.

use std::ffi::OsStr;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::thread;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use super::exposition::Scrape;
use super::server::Server;
use super::{LONGEST_WAIT, try_for, wait_for, wait_until};

pub const BINARY: &str = env!("CARGO_BIN_EXE_llamacpp-exporter");

/// The program with an empty environment.
pub fn program() -> Command {
    let mut command = Command::new(BINARY);
    command.env_clear().stdin(Stdio::null());
    // A scripted server is a thread of the test process, whose /proc entries are of no interest.
    command.env("LLAMACPP_PROCFS", "/nonexistent");
    command
}

/// The exit status and the output of a program that has ended.
pub struct Output {
    pub status: ExitStatus,
    pub stdout: String,
    pub stderr: String,
}

impl Output {
    #[track_caller]
    pub fn assert_code(&self, code: i32) {
        let Output { stdout, stderr, .. } = self;
        assert_eq!(
            self.status.code(),
            Some(code),
            "stdout:\n{stdout}\nstderr:\n{stderr}"
        );
    }
}

/// Runs a command to its end.
pub fn run(command: &mut Command) -> Output {
    let child = command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let pid = child.id();
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || sender.send(child.wait_with_output()));
    let Ok(output) = receiver.recv_timeout(LONGEST_WAIT) else {
        send_signal(pid, Signal::KILL);
        panic!("{command:?} did not end within {LONGEST_WAIT:?}");
    };
    let output = output.unwrap();
    let text = |bytes| String::from_utf8(bytes).expect("output is UTF-8");
    Output {
        status: output.status,
        stdout: text(output.stdout),
        stderr: text(output.stderr),
    }
}

pub fn send_signal(pid: u32, signal: Signal) {
    let pid = Pid::from_raw(pid.try_into().unwrap()).unwrap();
    kill_process(pid, signal).unwrap();
}

/// The settings of an exporter that polls every 50 ms unless set otherwise.
pub struct Builder {
    command: Command,
    interval: String,
    timeout: String,
}

impl Builder {
    pub fn interval(mut self, interval: &str) -> Self {
        self.interval = interval.into();
        self
    }

    pub fn timeout(mut self, timeout: &str) -> Self {
        self.timeout = timeout.into();
        self
    }

    pub fn args(mut self, arguments: impl IntoIterator<Item: AsRef<OsStr>>) -> Self {
        self.command.args(arguments);
        self
    }

    pub fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.command.env(name, value);
        self
    }

    pub fn envs<'a>(mut self, variables: impl IntoIterator<Item = (&'a str, &'a str)>) -> Self {
        self.command.envs(variables);
        self
    }

    /// Starts it on a port that the system chooses, and waits until it serves.
    pub fn start(mut self) -> Exporter {
        self.command.args(["--addr", "127.0.0.1:0"]);
        self.command
            .args(["--interval", &self.interval, "--timeout", &self.timeout]);
        Exporter::spawn(self.command)
    }
}

/// A running exporter. It is killed at the end of its test; if that failed, its log is printed.
pub struct Exporter {
    child: Child,
    /// Where it serves: `127.0.0.1:9100` or `unix:/run/x.sock`.
    pub address: String,
    log: Arc<Mutex<Vec<String>>>,
    stdout: Arc<Mutex<Vec<String>>>,
}

impl Exporter {
    pub fn with_url(base_url: &str) -> Builder {
        Self::with_args(&["--base-url", base_url])
    }

    pub fn with_args(arguments: &[&str]) -> Builder {
        let mut command = program();
        command.args(arguments);
        Builder {
            command,
            interval: "50ms".into(),
            timeout: "2s".into(),
        }
    }

    pub fn watching(server: &Server) -> Builder {
        Self::with_url(&server.url())
    }

    /// Starts a command, and waits until it serves.
    pub fn spawn(mut command: Command) -> Self {
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let log = collect_lines(child.stderr.take().unwrap());
        let stdout = collect_lines(child.stdout.take().unwrap());
        let mut exporter = Exporter {
            child,
            address: String::new(),
            log,
            stdout,
        };
        exporter.address = wait_for("the log line with the address", || {
            assert!(exporter.is_alive(), "it has ended: {}", exporter.output());
            let line = exporter.logged(&["serving", "addr="]).into_iter().next()?;
            let (_, address) = line.split_once("addr=")?;
            Some(address.split(' ').next()?.trim_matches('"').to_owned())
        });
        exporter
    }

    /// Where it serves, if that is no Unix socket.
    pub fn socket_address(&self) -> SocketAddr {
        self.address.parse().unwrap()
    }

    /// Sends bytes, and reads until the exporter closes the connection.
    pub fn send(&self, request: impl AsRef<[u8]>) -> io::Result<Response> {
        if let Some(path) = self.address.strip_prefix("unix:") {
            let stream = UnixStream::connect(path)?;
            stream.set_read_timeout(Some(LONGEST_WAIT))?;
            return exchange(stream, request.as_ref());
        }
        let stream = TcpStream::connect(&self.address)?;
        stream.set_read_timeout(Some(LONGEST_WAIT))?;
        exchange(stream, request.as_ref())
    }

    pub fn get(&self, path: &str) -> Response {
        let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n");
        self.send(request)
            .unwrap_or_else(|error| panic!("GET {path}: {error}"))
    }

    /// The body of `/metrics`.
    pub fn metrics(&self) -> String {
        let response = self.get("/metrics");
        assert_eq!(response.status, 200, "{response:?}");
        response.body
    }

    pub fn scrape(&self) -> Scrape {
        Scrape::parse(&self.metrics())
    }

    /// Waits for `count` polls that begin after this call, and scrapes.
    pub fn after_polls(&self, count: u64) -> Scrape {
        // The current poll may have begun before.
        let end = self.polls() + count + 1;
        wait_until("more polls", || self.polls() >= end);
        self.scrape()
    }

    /// Polls that have ended; cheaper than a scrape, which checks the whole exposition.
    pub fn polls(&self) -> u64 {
        let text = self.metrics();
        let polls = text
            .lines()
            .find(|line| line.starts_with("llamacpp_exporter_polls_total{"))
            .and_then(|line| line.rsplit(' ').next());
        polls.map_or(0, |polls| polls.parse().unwrap())
    }

    /// Scrapes until the condition holds.
    pub fn until(&self, what: &str, condition: impl Fn(&Scrape) -> bool) -> Scrape {
        try_for(|| Some(self.scrape()).filter(&condition))
            .unwrap_or_else(|| panic!("timed out waiting for: {what}\n{:?}", self.scrape()))
    }

    pub fn log_lines(&self) -> Vec<String> {
        self.log.lock().unwrap().clone()
    }

    /// The lines of its log with all of these words.
    pub fn logged(&self, words: &[&str]) -> Vec<String> {
        let mut lines = self.log_lines();
        lines.retain(|line| words.iter().all(|word| line.contains(word)));
        lines
    }

    #[track_caller]
    pub fn assert_logged(&self, count: usize, words: &[&str]) {
        assert_eq!(
            self.logged(words).len(),
            count,
            "{words:?} in:\n{}",
            self.output()
        );
    }

    pub fn wait_for_log(&self, words: &[&str]) {
        wait_until(&format!("a log line with {words:?}"), || {
            !self.logged(words).is_empty()
        });
    }

    /// All that it has written to stderr and stdout.
    pub fn output(&self) -> String {
        let mut lines = self.log_lines();
        lines.extend(self.stdout.lock().unwrap().iter().cloned());
        lines.join("\n")
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Its resident memory in bytes.
    pub fn resident_memory(&self) -> u64 {
        self.status_bytes("VmRSS:")
    }

    /// The highest resident memory since its start, in bytes.
    pub fn peak_memory(&self) -> u64 {
        self.status_bytes("VmHWM:")
    }

    /// [`resident_memory`](Exporter::resident_memory) without the pages of its program and libraries:
    /// those of a debug build are several times those of a release.
    pub fn data_memory(&self) -> u64 {
        self.resident_memory()
            .saturating_sub(self.status_bytes("RssFile:"))
    }

    /// [`peak_memory`](Exporter::peak_memory) without these pages.
    pub fn peak_data_memory(&self) -> u64 {
        self.peak_memory()
            .saturating_sub(self.status_bytes("RssFile:"))
    }

    fn status_bytes(&self, field: &str) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
        let value = status
            .lines()
            .find_map(|line| line.strip_prefix(field))
            .unwrap();
        value
            .trim()
            .strip_suffix(" kB")
            .unwrap()
            .parse::<u64>()
            .unwrap()
            * 1024
    }

    /// The number of its descriptors.
    pub fn descriptors(&self) -> usize {
        let folder = format!("/proc/{}/fd", self.pid());
        std::fs::read_dir(folder).unwrap().count()
    }

    /// The number of its threads.
    pub fn threads(&self) -> usize {
        let folder = format!("/proc/{}/task", self.pid());
        std::fs::read_dir(folder).unwrap().count()
    }

    /// The number of its threads with this name.
    pub fn threads_named(&self, name: &str) -> usize {
        let folder = format!("/proc/{}/task", self.pid());
        let threads = std::fs::read_dir(folder).unwrap().flatten();
        let names = threads.map(|thread| std::fs::read_to_string(thread.path().join("comm")));
        names
            .filter(|found| found.as_ref().is_ok_and(|found| found.trim() == name))
            .count()
    }

    pub fn is_alive(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    /// Waits for its end.
    pub fn wait(&mut self) -> ExitStatus {
        wait_for("the end of the exporter", || self.child.try_wait().unwrap())
    }

    /// Sends a signal, and waits for its end.
    pub fn signal(&mut self, signal: Signal) -> ExitStatus {
        send_signal(self.pid(), signal);
        self.wait()
    }

    /// Scrapes every 20 ms from now on.
    pub fn keep_scraping(&self) -> Scraping {
        let stop = Arc::new(AtomicBool::new(false));
        let (address, end) = (self.socket_address(), stop.clone());
        let thread = thread::spawn(move || {
            let mut scrapes = 0;
            // Fewer scrapes prove too little, however short the test.
            while scrapes < 20 || !end.load(Ordering::SeqCst) {
                let stream = TcpStream::connect(address).unwrap();
                stream.set_read_timeout(Some(LONGEST_WAIT)).unwrap();
                let response =
                    exchange(stream, b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n");
                assert_eq!(response.expect("an answer").status, 200);
                scrapes += 1;
                thread::sleep(Duration::from_millis(20));
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

/// Scrapes in the background of a test.
pub struct Scraping {
    stop: Arc<AtomicBool>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Scraping {
    /// Stops, and asserts that each scrape was answered. The benchmark measures how fast.
    pub fn assert_all_answered(mut self) {
        self.stop().expect("every scrape is answered");
    }

    fn stop(&mut self) -> thread::Result<()> {
        self.stop.store(true, Ordering::SeqCst);
        self.thread.take().map_or(Ok(()), thread::JoinHandle::join)
    }
}

impl Drop for Scraping {
    fn drop(&mut self) {
        // A test that has failed already says why.
        let _ = self.stop();
    }
}

fn collect_lines(pipe: impl Read + Send + 'static) -> Arc<Mutex<Vec<String>>> {
    let lines = Arc::new(Mutex::new(Vec::new()));
    let collected = lines.clone();
    thread::spawn(move || {
        for line in BufReader::new(pipe).lines() {
            collected
                .lock()
                .unwrap()
                .push(line.expect("output is UTF-8"));
        }
    });
    lines
}

/// What the exporter sent until it closed the connection.
#[derive(Debug)]
pub struct Response {
    pub status: u16,
    pub head: String,
    pub body: String,
}

impl Response {
    pub fn read(mut stream: impl Read) -> io::Result<Self> {
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        let parse = || {
            let (head, body) = text.split_once("\r\n\r\n")?;
            let status = head
                .strip_prefix("HTTP/1.1 ")?
                .split(' ')
                .next()?
                .parse()
                .ok()?;
            Some(Response {
                status,
                head: head.to_owned(),
                body: body.to_owned(),
            })
        };
        parse().ok_or_else(|| io::Error::other(format!("not an HTTP response: {text:?}")))
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().skip(1).find_map(|line| {
            let (field, value) = line.split_once(':')?;
            field.eq_ignore_ascii_case(name).then(|| value.trim())
        })
    }
}

fn exchange(mut stream: impl Read + Write, request: &[u8]) -> io::Result<Response> {
    stream.write_all(request)?;
    Response::read(stream)
}
