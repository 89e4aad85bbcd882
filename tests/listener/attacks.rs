//! What must be borne: each attack runs for some seconds, with honest scrapes
//! beside it, all of which must be answered, and without waiting for the attacker.

use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Child, Command};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use socket2::{Domain, Socket, Type};

use crate::exporter::{Exporter, PATIENCE, Stranger, alone};

const TIME: Duration = Duration::from_secs(2);
const BETWEEN_SCRAPES: Duration = Duration::from_millis(150);

/// Leaves the processors something for the exporter, which shares them.
const BETWEEN_ROUNDS: Duration = Duration::from_millis(10);

/// An attack is judged by no fewer honest scrapes, however slow the machine.
const FEWEST_SCRAPES: usize = 8;

/// For so long may a client hold on to what serves it (see `src/gate.rs`): a scrape that has to
/// wait until an attacker is given up takes as long.
const LONGEST_VISIT: Duration = Duration::from_secs(5);
const MEMORY_KB: u64 = 16 << 10;

/// One round of an attack. Rounds follow each other until the time is over.
type Attack = fn(SocketAddr, &Over);

/// Whether the time is over; long rounds look.
struct Over(AtomicBool);

impl Over {
    fn is_it(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    /// Sleeps, but not beyond the end.
    fn sleep(&self, time: Duration) {
        let end = Instant::now() + time;
        while Instant::now() < end && !self.is_it() {
            thread::sleep(Duration::from_millis(10));
        }
    }
}

fn bears(attacks: &[Attack]) {
    let _alone = alone();
    withstands(Exporter::start(), attacks);
}

#[track_caller]
fn withstands(mut exporter: Exporter, attacks: &[Attack]) {
    let address = exporter.address;
    let over = Over(AtomicBool::new(false));
    let honest = thread::scope(|scope| {
        for attack in attacks {
            scope.spawn(|| {
                while !over.is_it() {
                    attack(address, &over);
                    over.sleep(BETWEEN_ROUNDS);
                }
            });
        }
        let honest = scrape_for(TIME, &mut exporter);
        over.0.store(true, Ordering::Relaxed);
        honest
    });
    honest.unwrap_or_else(|error| panic!("{error}\nstderr: {}", exporter.stderr()));

    for _ in 0..20 {
        exporter.scrape().expect("a scrape after the attack");
    }
}

fn scrape_for(time: Duration, exporter: &mut Exporter) -> Result<(), String> {
    let start = Instant::now();
    let mut times = Vec::new();
    while start.elapsed() < time || times.len() < FEWEST_SCRAPES {
        let took = exporter
            .scrape()
            .map_err(|error| format!("scrape {} failed: {error}", times.len()))?;
        times.push(took);
        if !exporter.is_alive() {
            return Err("the exporter ended".into());
        }
        let memory = exporter.resident_kb();
        if memory > MEMORY_KB {
            return Err(format!("{memory} KB resident"));
        }
        thread::sleep(BETWEEN_SCRAPES.saturating_sub(took));
    }
    times.sort();
    let (median, slowest) = (times[times.len() / 2], times[times.len() - 1]);
    println!(
        "{} scrapes: median {median:?}, slowest {slowest:?}; {} KB",
        times.len(),
        exporter.resident_kb()
    );
    match median < LONGEST_VISIT / 2 {
        true => Ok(()),
        false => Err(format!("median {median:?}, slowest {slowest:?}")),
    }
}

/// How many connections a test may hold: 1,000 where the limit of descriptors,
/// which the tests share with all their threads, allows it.
fn crowd() -> usize {
    let limits = fs::read_to_string("/proc/self/limits").unwrap();
    let line = limits
        .lines()
        .find_map(|l| l.strip_prefix("Max open files"));
    let limit = line.and_then(|line| line.split_whitespace().next()?.parse().ok());
    limit.unwrap_or(usize::MAX).saturating_sub(150).min(1000)
}

/// A connection, unless the exporter is too busy with others to take it.
fn connect(address: SocketAddr) -> Option<TcpStream> {
    let stream = TcpStream::connect_timeout(&address, Duration::from_secs(1)).ok()?;
    stream
        .set_write_timeout(Some(Duration::from_millis(100)))
        .ok()?;
    stream
        .set_read_timeout(Some(Duration::from_millis(100)))
        .ok()?;
    Some(stream)
}

fn connect_all(address: SocketAddr, count: usize) -> Vec<TcpStream> {
    (0..count).filter_map(|_| connect(address)).collect()
}

/// Sends; an exporter that has cut the connection is no failure of the attack.
fn send(mut stream: &TcpStream, bytes: &[u8]) -> bool {
    stream.write_all(bytes).is_ok()
}

/// The same to many connections, which are then held for some time.
fn send_and_hold(address: SocketAddr, over: &Over, count: usize, bytes: &[u8]) {
    let held = connect_all(address, count);
    for stream in &held {
        send(stream, bytes);
    }
    over.sleep(Duration::from_millis(500));
}

fn idle_crowd(address: SocketAddr, over: &Over) {
    send_and_hold(address, over, crowd(), b"");
}

/// Three times the descriptors of a process that may have 64.
fn idle_group(address: SocketAddr, over: &Over) {
    send_and_hold(address, over, 200, b"");
}

fn endless_header(address: SocketAddr, over: &Over) {
    let Some(stream) = connect(address) else {
        return;
    };
    send(&stream, b"GET /metrics HTTP/1.1\r\nX: ");
    while send(&stream, &[b'x'; 64 << 10]) && !over.is_it() {}
}

fn endless_headers(address: SocketAddr, over: &Over) {
    let Some(stream) = connect(address) else {
        return;
    };
    send(&stream, b"GET /metrics HTTP/1.1\r\n");
    while send(&stream, "X: y\r\n".repeat(1000).as_bytes()) && !over.is_it() {}
}

fn bodies_never_sent(address: SocketAddr, over: &Over) {
    for method in ["POST", "GET"] {
        let head = format!("{method} /metrics HTTP/1.1\r\nContent-Length: 100000\r\n\r\n");
        send_and_hold(address, over, 100, head.as_bytes());
    }
}

fn huge_lengths(address: SocketAddr, over: &Over) {
    for length in [
        "1000000000000",
        "18446744073709551615",
        "-1",
        "99999999999999999999",
    ] {
        for method in ["POST", "GET", "HEAD"] {
            let head =
                format!("{method} /metrics HTTP/1.1\r\nContent-Length: {length}\r\n\r\nbody");
            for stream in connect_all(address, 10) {
                send(&stream, head.as_bytes());
            }
        }
    }
    let chunked = "GET / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\n";
    send_and_hold(address, over, 10, chunked.as_bytes());
}

fn requests_then_resets(address: SocketAddr, over: &Over) {
    for method in ["GET", "POST", "GET"].iter().cycle().take(150) {
        let Some(stream) = connect(address) else {
            return;
        };
        let socket = Socket::from(stream);
        socket.set_linger(Some(Duration::ZERO)).unwrap(); // Closing resets.
        let stream = TcpStream::from(socket);
        send(
            &stream,
            format!("{method} /metrics HTTP/1.1\r\n\r\n").as_bytes(),
        );
        if over.is_it() {
            return;
        }
    }
}

fn newer_versions_of_http(address: SocketAddr, over: &Over) {
    for line in ["GET / HTTP/2.0", "GET / HTTP/3.0", "PRI * HTTP/2.0"] {
        let head = format!("{line}\r\n\r\nSM\r\n\r\n");
        send_and_hold(address, over, 50, head.as_bytes());
    }
}

fn pipelining_without_reading(address: SocketAddr, over: &Over) {
    let held = connect_all(address, 10);
    let requests = "GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n".repeat(1000);
    for _ in 0..20 {
        for stream in &held {
            send(stream, requests.as_bytes());
        }
        over.sleep(BETWEEN_ROUNDS);
    }
}

/// With a small window, so that as little as possible of an answer leaves.
fn slow_readers(address: SocketAddr, over: &Over) {
    let connect = |_| {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).ok()?;
        socket.set_recv_buffer_size(1).ok()?;
        socket
            .connect_timeout(&address.into(), Duration::from_secs(1))
            .ok()?;
        let stream = TcpStream::from(socket);
        send(&stream, b"GET /metrics HTTP/1.1\r\n\r\n");
        Some(stream)
    };
    let mut held: Vec<_> = (0..200).filter_map(connect).collect();
    for _ in 0..10 {
        over.sleep(Duration::from_millis(100));
        held.retain_mut(|stream| stream.read(&mut [0]).is_ok());
    }
}

fn dripping(address: SocketAddr, over: &Over) {
    let held = connect_all(address, crowd() / 2);
    for byte in b"GET /" {
        for stream in &held {
            send(stream, &[*byte]);
        }
        over.sleep(Duration::from_secs(1));
    }
}

fn bursts(address: SocketAddr, over: &Over) {
    drop(connect_all(address, crowd()));
    over.sleep(Duration::from_millis(200));
}

fn half_closed(address: SocketAddr, over: &Over) {
    for stream in connect_all(address, 100) {
        send(&stream, b"GET /metrics HTTP/1.1\r\n");
        let _gone = stream.shutdown(Shutdown::Write);
    }
    over.sleep(Duration::from_millis(50));
}

#[test]
fn bears_a_crowd_of_idle_connections() {
    bears(&[idle_crowd]);
}

#[test]
fn bears_headers_without_end() {
    bears(&[endless_header, endless_headers]);
}

#[test]
fn bears_bodies_that_never_come() {
    bears(&[bodies_never_sent]);
}

#[test]
fn bears_lengths_beyond_all_memory() {
    bears(&[huge_lengths]);
}

#[test]
fn bears_requests_followed_by_a_reset() {
    bears(&[requests_then_resets, requests_then_resets]);
}

#[test]
fn bears_newer_versions_of_http() {
    bears(&[newer_versions_of_http]);
}

#[test]
fn bears_pipelining_without_reading() {
    bears(&[pipelining_without_reading, pipelining_without_reading]);
}

#[test]
fn bears_slow_readers() {
    bears(&[slow_readers]);
}

#[test]
fn bears_dripping() {
    bears(&[dripping]);
}

#[test]
fn bears_bursts_of_connects() {
    bears(&[bursts, half_closed]);
}

#[test]
fn bears_several_attacks_at_once() {
    bears(&[
        dripping,
        endless_header,
        bodies_never_sent,
        huge_lengths,
        requests_then_resets,
        newer_versions_of_http,
        pipelining_without_reading,
        half_closed,
    ]);
}

#[test]
fn bears_a_crowd_with_few_descriptors() {
    let _alone = alone();
    withstands(Exporter::start_after("ulimit -n 64"), &[idle_group]);
}

/// Ended when dropped.
struct Sleeper(Child);

impl Drop for Sleeper {
    fn drop(&mut self) {
        let _ended = self.0.kill();
        let _status = self.0.wait();
    }
}

#[test]
fn bears_a_user_who_may_start_no_more_threads() {
    let _alone = alone();
    let Some(stranger) = Stranger::new() else {
        return;
    };
    let exporter = Exporter::start_by(stranger.exporter("prlimit --pid $$ --nproc=64"));
    let sleeper = |_| {
        let mut command: Command = stranger.command("", Path::new("sleep"));
        Sleeper(command.arg("60").spawn().unwrap())
    };
    let _sleepers: Vec<_> = (0..64).map(sleeper).collect();
    withstands(exporter, &[idle_crowd, requests_then_resets]);
}

/// A random number generator that needs no more than to be varied and repeatable.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % limit as u64) as usize
    }

    /// Real requests with some bytes changed, cut out, doubled or cut off.
    fn request(&mut self) -> Vec<u8> {
        const SEEDS: [&str; 6] = [
            "GET /metrics HTTP/1.1\r\nHost: a\r\nAccept: */*\r\n\r\n",
            "HEAD / HTTP/1.0\r\n\r\n",
            "POST /metrics HTTP/1.1\r\nContent-Length: 10\r\n\r\n0123456789",
            "GET /metrics?x=y#z HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
            "GET / HTTP/1.1\r\nConnection: upgrade\r\nUpgrade: websocket\r\nExpect: x\r\n\r\n",
            "GET / HTTP/1.1\r\nTE: trailers;q=nan\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n",
        ];
        let mut bytes = SEEDS[self.below(SEEDS.len())].as_bytes().to_vec();
        for _ in 0..self.below(6) {
            let (at, length) = (self.below(bytes.len()), 1 + self.below(8));
            match self.below(4) {
                0 => bytes[at] = self.below(256) as u8,
                1 => drop(bytes.drain(at..(at + length).min(bytes.len()))),
                2 => {
                    let part = bytes[at..(at + length).min(bytes.len())].to_vec();
                    bytes.splice(at..at, part);
                }
                _ => bytes.truncate(at + 1),
            }
            bytes.push(self.below(256) as u8);
        }
        bytes
    }
}

#[test]
fn bears_thousands_of_malformed_requests() {
    let _alone = alone();
    let mut exporter = Exporter::start();
    let start = Instant::now();
    let mut random = Random(0x5DEE_CE66);
    let (mut answered, mut closed) = (0, 0);
    for _ in 0..5000 {
        let request = random.request();
        let mut stream = TcpStream::connect_timeout(&exporter.address, PATIENCE).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.write_all(&request).unwrap();
        let _gone = stream.shutdown(Shutdown::Write);
        let mut answer = Vec::new();
        match stream.read_to_end(&mut answer) {
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::ConnectionReset => {}
            Err(error) => panic!("{error}: {:?}", String::from_utf8_lossy(&request)),
        }
        match answer.is_empty() {
            true => closed += 1,
            false => {
                answered += 1;
                assert!(answer.starts_with(b"HTTP/1.1 "), "{request:?}");
            }
        }
    }
    println!(
        "{answered} answered, {closed} closed, {:?}",
        start.elapsed()
    );
    assert!(
        answered > 1000 && closed > 100,
        "{answered} answered, {closed} closed"
    );
    assert!(exporter.is_alive());
    assert!(exporter.resident_kb() < MEMORY_KB);
    exporter.scrape().unwrap();
}
