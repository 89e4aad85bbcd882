//! Other users of the machine, who may connect to whatever listens on it.

use std::collections::HashSet;
use std::env;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::{SocketAddr, UnixStream};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use rustix::net::sockopt::socket_peercred;
use rustix::process::Signal;

use crate::other_user::OtherUser;
use crate::{sequential, start, start_command};

/// Said once when the racer is ready, and then for each answer that it gets.
const READY: &str = "racer: ready";
const ANSWERED: &str = "racer: answered by ";

/// The variable that makes a racer of the process.
const RACER: &str = "LISTENER_TEST_RACER";

const RACES: usize = 15;

/// The abstract socket of the start is seen by every process in the network
/// namespace. Whoever gets through it talks to an HTTP server that believes any length.
#[test]
fn no_other_user_can_connect_during_the_start() {
    let Some(user) = OtherUser::new() else {
        return;
    };
    let _sequential = sequential();
    let mut racer = Racer::start(&user);
    let mut exporters = HashSet::new();
    for race in 0..RACES {
        let mut exporter = start();
        exporter.scrape();
        thread::sleep(Duration::from_millis(50));
        assert!(exporter.is_alive(), "race {race}: {}", exporter.output());
        exporter.scrape();
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
    let Some(user) = OtherUser::new() else {
        return;
    };
    let mut exporter = start_command(user.exporter("ulimit -c unlimited"));
    for file in ["environ", "mem", "auxv"] {
        let path = format!("/proc/{}/{file}", exporter.pid());
        let owner = fs::metadata(&path).unwrap().uid();
        assert_eq!(owner, 0, "{path}");
        let mut read = user.command("", Path::new("head"));
        let read = read.args(["-c", "1", &path]).output().unwrap();
        assert!(!read.status.success(), "{path}");
    }
    // Its own metrics are still there.
    let scrape = exporter.scrape();
    for name in [
        "process_cpu_seconds_total",
        "process_resident_memory_bytes",
        "process_open_fds",
        "process_max_fds",
        "process_start_time_seconds",
    ] {
        assert!(scrape.value(name).is_some(), "{name} in:\n{scrape:?}");
    }
    let status = exporter.signal(Signal::ABORT);
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
                    println!(
                        "\n{ANSWERED}{}",
                        socket_peercred(&stream).unwrap().pid.as_raw_nonzero()
                    );
                }
            });
        }
    }
}

/// A process of another user that connects to every abstract socket.
struct Racer {
    child: Child,
    answers: Arc<Mutex<Vec<u32>>>,
}

impl Racer {
    fn start(user: &OtherUser) -> Self {
        // The original may be out of the user's reach.
        let program = user.folder().join("racer");
        fs::copy(env::current_exe().unwrap(), &program).unwrap();
        let mut command = user.command("", &program);
        command.args(["--ignored", "--exact", "local_users::racer", "--nocapture"]);
        command.env(RACER, "1");
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let is_ready = lines.any(|line| line.is_ok_and(|line| line == READY));
        assert!(is_ready, "the racer did not start");
        let answers = Arc::new(Mutex::new(Vec::new()));
        let answered = Arc::clone(&answers);
        thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                if let Some(server) = line.strip_prefix(ANSWERED) {
                    answered.lock().unwrap().push(server.parse().unwrap());
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
