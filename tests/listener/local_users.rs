//! Other users of the machine, who may connect to whatever listens on it.

use std::collections::HashSet;
use std::env;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::AsRawFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::{SocketAddr, UnixStream};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use crate::exporter::{Exporter, Stranger, alone, signal};

/// Said once when the racer is ready, and then for each answer that it gets.
const READY: &str = "racer: ready";
const ANSWERED: &str = "racer: answered by ";

/// The variable that makes a racer of the process.
const RACER: &str = "LISTENER_TEST_RACER";

const RACES: usize = 15;

/// The abstract socket of the start is seen by every process in the network
/// namespace. Whoever gets through it talks to an HTTP server that believes any length.
#[test]
fn no_other_user_gets_in_during_the_start() {
    let Some(stranger) = Stranger::new() else {
        return;
    };
    let _alone = alone();
    let mut racer = Racer::start(&stranger);
    let mut exporters = HashSet::new();
    for race in 0..RACES {
        let mut exporter = Exporter::start();
        exporter.scrape().unwrap();
        thread::sleep(Duration::from_millis(50));
        assert!(exporter.is_alive(), "race {race}: {}", exporter.stderr());
        exporter.scrape().unwrap();
        exporters.insert(exporter.pid());
    }
    // The machine may run other programs that have such sockets.
    let mut answered = racer.end();
    answered.retain(|server| exporters.contains(server));
    assert!(answered.is_empty(), "answered by {answered:?}");
}

/// Its environment may hold a key, and so may a core.
#[test]
fn no_other_process_of_the_same_user_reads_its_memory() {
    let Some(stranger) = Stranger::new() else {
        return;
    };
    let mut exporter = Exporter::start_by(stranger.exporter("ulimit -c unlimited"));
    for file in ["environ", "mem", "auxv"] {
        let path = format!("/proc/{}/{file}", exporter.pid());
        let owner = fs::metadata(&path).unwrap().uid();
        assert_eq!(owner, 0, "{path}");
        let mut read = stranger.command("", Path::new("head"));
        let read = read.args(["-c", "1", &path]).output().unwrap();
        assert!(!read.status.success(), "{path}");
    }
    // What it says of itself, it can still read.
    let metrics = exporter.get("/metrics").unwrap().body;
    for name in [
        "process_cpu_seconds_total",
        "process_resident_memory_bytes",
        "process_open_fds",
        "process_max_fds",
        "process_start_time_seconds",
    ] {
        let told = metrics.lines().any(|line| {
            let value = line.strip_prefix(name).map(str::trim);
            value.is_some_and(|value| value.parse::<f64>().is_ok())
        });
        assert!(told, "{name} in:\n{metrics}");
    }
    signal("ABRT", exporter.pid());
    let status = exporter.wait();
    assert_eq!(status.signal(), Some(6));
    assert!(!status.core_dumped());
}

/// Run by another user, from a copy of this file: see [`Racer`].
#[test]
#[ignore = "a part of another test"]
fn racer() {
    if env::var_os(RACER).is_none() {
        return;
    }
    // Ends with the test, whose end of the pipe is closed then.
    thread::spawn(|| {
        let _end = std::io::stdin().read_to_end(&mut Vec::new());
        std::process::exit(0);
    });
    let tried = Mutex::new(HashSet::new());
    println!("\n{READY}");
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| race(&tried));
        }
    });
}

fn race(tried: &Mutex<HashSet<String>>) {
    loop {
        let sockets = fs::read_to_string("/proc/net/unix").unwrap();
        let names = sockets.lines().filter_map(|line| line.split_once('@'));
        for (_, name) in names.filter(|(_, name)| name.len() == 16) {
            // Until it listens, or while another one has the only place, it refuses.
            let address = SocketAddr::from_abstract_name(name).unwrap();
            let Ok(mut stream) = UnixStream::connect_addr(&address) else {
                continue;
            };
            if !tried.lock().unwrap().insert(name.to_owned()) {
                continue;
            }
            thread::spawn(move || {
                let _gone = stream.write_all(b"not HTTP\r\n\r\n");
                let _ = stream.set_read_timeout(Some(Duration::from_secs(1)));
                if matches!(stream.read(&mut [0; 100]), Ok(1..)) {
                    println!("\n{ANSWERED}{}", server_of(&stream));
                }
            });
        }
    }
}

/// The number of the process that listens at the other end.
#[allow(unsafe_code)]
fn server_of(stream: &UnixStream) -> u32 {
    unsafe extern "C" {
        fn getsockopt(
            descriptor: i32,
            level: i32,
            name: i32,
            value: *mut [u32; 3],
            length: *mut u32,
        ) -> i32;
    }
    const SOL_SOCKET: i32 = 1;
    const SO_PEERCRED: i32 = 17;
    let mut credentials = [0; 3];
    let mut length = size_of_val(&credentials) as u32;
    // SAFETY: both pointers are of variables that live through the call, and the length is right.
    unsafe {
        getsockopt(
            stream.as_raw_fd(),
            SOL_SOCKET,
            SO_PEERCRED,
            &mut credentials,
            &mut length,
        )
    };
    credentials[0]
}

/// A process of another user that connects to all there is.
struct Racer {
    child: Child,
    answers: Arc<Mutex<Vec<u32>>>,
}

impl Racer {
    fn start(stranger: &Stranger) -> Self {
        // The original may be out of the stranger's reach.
        let program = stranger.directory().join("racer");
        fs::copy(env::current_exe().unwrap(), &program).unwrap();
        let mut command = stranger.command("", &program);
        command.args(["--ignored", "--exact", "local_users::racer", "--nocapture"]);
        command.env(RACER, "1");
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let is_ready = lines.any(|line| line.is_ok_and(|line| line == READY));
        assert!(is_ready, "the racer did not start");
        let answers = Arc::new(Mutex::new(Vec::new()));
        let told = Arc::clone(&answers);
        thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                if let Some(server) = line.strip_prefix(ANSWERED) {
                    told.lock().unwrap().push(server.parse().unwrap());
                }
            }
        });
        Self { child, answers }
    }

    /// The processes that answered it.
    fn end(&mut self) -> Vec<u32> {
        thread::sleep(Duration::from_millis(300)); // The last answer is on its way.
        let _ended = self.child.kill();
        let _status = self.child.wait();
        self.answers.lock().unwrap().clone()
    }
}

impl Drop for Racer {
    fn drop(&mut self) {
        self.end();
    }
}
