//! Attacks on the listener. Each runs for some seconds beside regular scrapes, all of which must be
//! answered without waiting for the attacker.

use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Child, Command};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use fastrand::Rng;
use socket2::{Domain, Socket, Type};

use crate::other_user::OtherUser;
use crate::support::exporter::BINARY;
use crate::support::{Exporter, LONGEST_WAIT};
use crate::{sequential, start, start_command};

const TIME: Duration = Duration::from_secs(2);
const BETWEEN_SCRAPES: Duration = Duration::from_millis(150);

/// Leaves some processor time to the exporter.
const BETWEEN_ROUNDS: Duration = Duration::from_millis(10);

/// The fewest scrapes beside an attack, however slow the machine.
const FEWEST_SCRAPES: usize = 8;

/// A worker serves one connection for at most this long (see `src/web/worker.rs`): a scrape that
/// waits until an attacker is disconnected takes as long.
const LONGEST_CONNECTION: Duration = Duration::from_secs(5);
/// What the exporter may have resident at most, besides its program: 16 MiB, 4 of which are for
/// that.
const MEMORY_LIMIT: u64 = 12 << 20;

/// One round of an attack. Rounds are repeated until the time is over.
type Attack = fn(SocketAddr, &Stop);

/// Whether the time is stop; long rounds look.
struct Stop(AtomicBool);

impl Stop {
    fn is_set(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    /// Sleeps, but not beyond the end.
    fn sleep(&self, time: Duration) {
        let end = Instant::now() + time;
        while Instant::now() < end && !self.is_set() {
            thread::sleep(Duration::from_millis(10));
        }
    }
}

fn assert_served_during(attacks: &[Attack]) {
    let _sequential = sequential();
    assert_served_by(start(), attacks);
}

#[track_caller]
fn assert_served_by(mut exporter: Exporter, attacks: &[Attack]) {
    let address = exporter.socket_address();
    let stop = Stop(AtomicBool::new(false));
    let result = thread::scope(|scope| {
        for attack in attacks {
            scope.spawn(|| {
                while !stop.is_set() {
                    attack(address, &stop);
                    stop.sleep(BETWEEN_ROUNDS);
                }
            });
        }
        let result = scrape_for(TIME, &mut exporter);
        stop.0.store(true, Ordering::Relaxed);
        result
    });
    result.unwrap_or_else(|error| panic!("{error}\nlog: {}", exporter.output()));
    for _ in 0..20 {
        timed_scrape(&exporter).expect("a scrape after the attack");
    }
}

fn scrape_for(time: Duration, exporter: &mut Exporter) -> Result<(), String> {
    let start = Instant::now();
    let mut times = Vec::new();
    while start.elapsed() < time || times.len() < FEWEST_SCRAPES {
        let took = timed_scrape(exporter)?;
        times.push(took);
        let memory = exporter.data_memory();
        if memory > MEMORY_LIMIT {
            return Err(format!("{memory} bytes resident"));
        }
        thread::sleep(BETWEEN_SCRAPES.saturating_sub(took));
    }
    if !exporter.is_alive() {
        return Err("the exporter ended".into());
    }
    times.sort();
    let (count, median, slowest) = (times.len(), times[times.len() / 2], times[times.len() - 1]);
    let figures = format!("{count} scrapes: median {median:?}, slowest {slowest:?}");
    println!("{figures}");
    if median < LONGEST_CONNECTION / 2 {
        Ok(())
    } else {
        Err(figures)
    }
}

/// One scrape as Prometheus does it, and how long it took.
fn timed_scrape(exporter: &Exporter) -> Result<Duration, String> {
    let start = Instant::now();
    let response = exporter.send("GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n");
    let response = response.map_err(|error| format!("a scrape failed: {error}"))?;
    match response.status == 200 && response.body.contains("llamacpp_exporter_build_info") {
        true => Ok(start.elapsed()),
        false => Err(format!("{response:?}")),
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
fn send_and_hold(address: SocketAddr, stop: &Stop, count: usize, bytes: &[u8]) {
    let held = connect_all(address, count);
    for stream in &held {
        send(stream, bytes);
    }
    stop.sleep(Duration::from_millis(500));
}

fn idle_crowd(address: SocketAddr, stop: &Stop) {
    send_and_hold(address, stop, crowd(), b"");
}

/// Three times the descriptors of a process that may have 64.
fn idle_group(address: SocketAddr, stop: &Stop) {
    send_and_hold(address, stop, 200, b"");
}

fn endless_header(address: SocketAddr, stop: &Stop) {
    let Some(stream) = connect(address) else {
        return;
    };
    send(&stream, b"GET /metrics HTTP/1.1\r\nX: ");
    while send(&stream, &[b'x'; 64 << 10]) && !stop.is_set() {}
}

fn endless_headers(address: SocketAddr, stop: &Stop) {
    let Some(stream) = connect(address) else {
        return;
    };
    send(&stream, b"GET /metrics HTTP/1.1\r\n");
    while send(&stream, "X: y\r\n".repeat(1000).as_bytes()) && !stop.is_set() {}
}

fn bodies_never_sent(address: SocketAddr, stop: &Stop) {
    for method in ["POST", "GET"] {
        let head = format!("{method} /metrics HTTP/1.1\r\nContent-Length: 100000\r\n\r\n");
        send_and_hold(address, stop, 100, head.as_bytes());
    }
}

fn huge_lengths(address: SocketAddr, stop: &Stop) {
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
    send_and_hold(address, stop, 10, chunked.as_bytes());
}

fn requests_then_resets(address: SocketAddr, stop: &Stop) {
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
        if stop.is_set() {
            return;
        }
    }
}

fn newer_versions_of_http(address: SocketAddr, stop: &Stop) {
    for line in ["GET / HTTP/2.0", "GET / HTTP/3.0", "PRI * HTTP/2.0"] {
        let head = format!("{line}\r\n\r\nSM\r\n\r\n");
        send_and_hold(address, stop, 50, head.as_bytes());
    }
}

fn pipelining_without_reading(address: SocketAddr, stop: &Stop) {
    let held = connect_all(address, 10);
    let requests = "GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n".repeat(1000);
    for _ in 0..20 {
        for stream in &held {
            send(stream, requests.as_bytes());
        }
        stop.sleep(BETWEEN_ROUNDS);
    }
}

/// With a small window, so that as little as possible of an answer leaves.
fn slow_readers(address: SocketAddr, stop: &Stop) {
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
        stop.sleep(Duration::from_millis(100));
        held.retain_mut(|stream| stream.read(&mut [0]).is_ok());
    }
}

fn one_byte_per_second(address: SocketAddr, stop: &Stop) {
    let held = connect_all(address, crowd() / 2);
    for byte in b"GET /" {
        for stream in &held {
            send(stream, &[*byte]);
        }
        stop.sleep(Duration::from_secs(1));
    }
}

fn bursts(address: SocketAddr, stop: &Stop) {
    drop(connect_all(address, crowd()));
    stop.sleep(Duration::from_millis(200));
}

fn half_closed(address: SocketAddr, stop: &Stop) {
    for stream in connect_all(address, 100) {
        send(&stream, b"GET /metrics HTTP/1.1\r\n");
        let _gone = stream.shutdown(Shutdown::Write);
    }
    stop.sleep(Duration::from_millis(50));
}

macro_rules! attack_tests {
    ($($test:ident: $($attack:ident)+;)+) => {
        $(#[test]
        fn $test() {
            assert_served_during(&[$($attack),+]);
        })+
    };
}

attack_tests! {
    answers_during_idle_connections: idle_crowd;
    answers_during_headers_without_end: endless_header endless_headers;
    answers_during_bodies_that_are_never_sent: bodies_never_sent;
    answers_during_content_lengths_beyond_the_memory: huge_lengths;
    answers_during_requests_followed_by_a_reset: requests_then_resets requests_then_resets;
    answers_during_newer_versions_of_http: newer_versions_of_http;
    answers_during_pipelining_without_reading: pipelining_without_reading pipelining_without_reading;
    answers_during_slow_readers: slow_readers;
    answers_during_requests_sent_byte_by_byte: one_byte_per_second;
    answers_during_bursts_of_connections: bursts half_closed;
    answers_during_several_attacks_at_once: one_byte_per_second endless_header bodies_never_sent
        huge_lengths requests_then_resets newer_versions_of_http pipelining_without_reading half_closed;
}

#[test]
fn answers_during_idle_connections_with_few_descriptors() {
    let _sequential = sequential();
    let mut shell = Command::new("sh");
    shell.args(["-c", "ulimit -n 64; exec \"$0\" \"$@\"", BINARY]);
    assert_served_by(start_command(shell), &[idle_group]);
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
fn answers_without_another_thread_for_its_user() {
    let _sequential = sequential();
    let Some(user) = OtherUser::new() else {
        return;
    };
    let exporter = start_command(user.exporter("prlimit --pid $$ --nproc=64"));
    let sleeper = |_| {
        let mut command: Command = user.command("", Path::new("sleep"));
        Sleeper(command.arg("60").spawn().unwrap())
    };
    let _sleepers: Vec<_> = (0..64).map(sleeper).collect();
    assert_served_by(exporter, &[idle_crowd, requests_then_resets]);
}

/// Real requests with some bytes changed, cut out, doubled or cut off.
fn malformed_request(random: &mut Rng) -> Vec<u8> {
    const SEEDS: [&str; 6] = [
        "GET /metrics HTTP/1.1\r\nHost: a\r\nAccept: */*\r\n\r\n",
        "HEAD / HTTP/1.0\r\n\r\n",
        "POST /metrics HTTP/1.1\r\nContent-Length: 10\r\n\r\n0123456789",
        "GET /metrics?x=y#z HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
        "GET / HTTP/1.1\r\nConnection: upgrade\r\nUpgrade: websocket\r\nExpect: x\r\n\r\n",
        "GET / HTTP/1.1\r\nTE: trailers;q=nan\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n",
    ];
    let mut bytes = SEEDS[random.usize(..SEEDS.len())].as_bytes().to_vec();
    for _ in 0..random.usize(..6) {
        let (at, length) = (random.usize(..bytes.len()), 1 + random.usize(..8));
        match random.usize(..4) {
            0 => bytes[at] = random.u8(..),
            1 => drop(bytes.drain(at..(at + length).min(bytes.len()))),
            2 => {
                let part = bytes[at..(at + length).min(bytes.len())].to_vec();
                bytes.splice(at..at, part);
            }
            _ => bytes.truncate(at + 1),
        }
        bytes.push(random.u8(..));
    }
    bytes
}

#[test]
fn answers_after_thousands_of_malformed_requests() {
    let _sequential = sequential();
    let mut exporter = start();
    let start = Instant::now();
    let mut random = Rng::with_seed(0x5DEE_CE66);
    let (mut answered, mut closed) = (0, 0);
    for _ in 0..5000 {
        let request = malformed_request(&mut random);
        let mut stream =
            TcpStream::connect_timeout(&exporter.socket_address(), LONGEST_WAIT).unwrap();
        stream.set_read_timeout(Some(LONGEST_WAIT)).unwrap();
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
    assert!(exporter.data_memory() < MEMORY_LIMIT);
    exporter.scrape();
}
