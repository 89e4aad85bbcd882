//! The listener from outside: the real program, its clients and its enemies.

mod attacks;
mod exporter;
#[cfg(target_os = "linux")]
mod local_users;

use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::{Child, Command};
use std::thread;
use std::time::{Duration, Instant};

use exporter::{Answer, BINARY, Directory, Exporter, PATIENCE, Stranger, UPSTREAM};
use exporter::{signal, spawn, wait};

#[test]
fn the_paths_and_their_answers() {
    let exporter = Exporter::start();
    let metrics = exporter.get("/metrics").unwrap();
    assert_eq!(metrics.status, 200);
    assert_eq!(
        metrics.header("Content-Type"),
        Some("text/plain; version=0.0.4; charset=utf-8")
    );
    assert_eq!(metrics.header("Connection"), Some("close"));
    assert_eq!(
        metrics.header("Content-Length"),
        Some(metrics.body.len().to_string().as_str())
    );
    let page = exporter.get("/").unwrap();
    assert_eq!(page.status, 200);
    assert_eq!(
        page.header("Content-Type"),
        Some("text/html; charset=utf-8")
    );
    assert!(page.body.contains("/metrics"));
    assert_eq!(exporter.get("/healthz").unwrap().status, 200);
    for path in ["/metric", "/metrics/", "//metrics", "/favicon.ico", "/%00"] {
        assert_eq!(exporter.get(path).unwrap().status, 404, "{path}");
    }
    assert_eq!(exporter.get("/metrics?name[]=x&y=%20").unwrap().status, 200);
}

#[test]
#[cfg(target_os = "linux")]
fn what_it_says_of_itself_is_what_the_system_says() {
    let exporter = Exporter::start();
    for _ in 0..20 {
        exporter.scrape().unwrap();
    }
    let body = exporter.get("/metrics").unwrap().body;
    let said = |name: &str| {
        let value = body.lines().find_map(|line| line.strip_prefix(name));
        value.and_then(|value| value.trim().parse::<f64>().ok())
    };
    let folder = format!("/proc/{}/fd", exporter.pid());
    let open = fs::read_dir(folder).unwrap().count() as f64;
    // The scrape has a connection of its own, and a poll may have others.
    let fds = said("process_open_fds ").unwrap();
    assert!((fds - open).abs() <= 6.0, "{fds} of {open}");
    let resident = exporter.resident_kb() as f64 * 1024.0;
    let bytes = said("process_resident_memory_bytes ").unwrap();
    let share = bytes / resident;
    assert!((0.98..1.02).contains(&share), "{bytes} of {resident}");
}

#[test]
fn head_has_the_length_and_no_body() {
    let exporter = Exporter::start();
    for path in ["/metrics", "/", "/healthz", "/none"] {
        let full = exporter.get(path).unwrap();
        let head = exporter
            .send(&format!("HEAD {path} HTTP/1.1\r\n\r\n"))
            .unwrap();
        assert_eq!(head.status, full.status, "{path}");
        assert_eq!(head.body, "", "{path}");
        // The length of the exposition may change from one scrape to the next.
        if path != "/metrics" {
            assert_eq!(head.header("Content-Length"), full.header("Content-Length"));
        }
        assert!(
            head.header("Content-Length")
                .is_some_and(|length| length != "0")
        );
    }
    assert!(exporter.scrape().is_ok(), "no byte was left behind");
}

#[test]
fn other_methods_are_told_which_are_allowed() {
    let exporter = Exporter::start();
    for request in [
        "POST /metrics HTTP/1.1\r\nContent-Length: 5\r\n\r\nhello",
        "POST /metrics HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n",
        "DELETE /none HTTP/1.0\r\n\r\n",
        "OPTIONS * HTTP/1.1\r\n\r\n",
    ] {
        let answer = exporter.send(request).unwrap();
        assert_eq!(answer.status, 405, "{request}");
        assert_eq!(answer.header("Allow"), Some("GET, HEAD"));
    }
    // A long upload is answered, not reset.
    let upload = "POST / HTTP/1.1\r\n\r\n".to_owned() + &"x".repeat(50_000);
    assert_eq!(exporter.send(&upload).unwrap().status, 405);
}

#[test]
fn what_is_not_http_is_told_so_at_once() {
    let exporter = Exporter::start();
    // What waits for more is answered 408 in the end.
    for request in [
        "\r\n",
        "\x16\x03\x01",
        "GET / HTTP/2.0\r\n\r\n",
        "hello\n\n",
    ] {
        assert_eq!(exporter.send(request).unwrap().status, 400, "{request:?}");
    }
    let large = format!("GET / HTTP/1.1\r\nX: {}\r\n\r\n", "x".repeat(9000));
    assert_eq!(exporter.send(&large).unwrap().status, 431);
}

#[test]
fn http_1_0_and_bare_line_ends_are_understood() {
    let exporter = Exporter::start();
    assert_eq!(
        exporter
            .send("GET /metrics HTTP/1.0\r\n\r\n")
            .unwrap()
            .status,
        200
    );
    assert_eq!(
        exporter.send("GET /metrics HTTP/1.1\n\n").unwrap().status,
        200
    );
}

#[test]
fn a_browser_with_many_headers_and_cookies_is_served() {
    let exporter = Exporter::start();
    let cookies: Vec<String> = (0..60).map(|n| format!("c{n}={:0>90}", n)).collect();
    let request = format!(
        "GET / HTTP/1.1\r\nHost: localhost:9100\r\nUser-Agent: Mozilla/5.0 (X11; Linux x86_64)\r\n\
         Accept: text/html,application/xhtml+xml;q=0.9,*/*;q=0.8\r\n\
         Accept-Language: de,en-US;q=0.7,en;q=0.3\r\nAccept-Encoding: gzip, deflate, br, zstd\r\n\
         DNT: 1\r\nConnection: keep-alive\r\nCookie: {}\r\nUpgrade-Insecure-Requests: 1\r\n\
         Sec-Fetch-Dest: document\r\nTE: chunked;q=1.0\r\nReferer: http://localhost/\u{e9}\r\n\r\n",
        cookies.join("; ")
    );
    assert!(request.len() > 6000 && request.len() < 8192);
    let answer = exporter.send(&request).unwrap();
    assert_eq!(answer.status, 200);
    assert_eq!(answer.header("Content-Encoding"), None);
    assert_eq!(answer.header("Transfer-Encoding"), None);
}

#[test]
fn clients_that_keep_connections_or_send_in_pieces_are_served() {
    let exporter = Exporter::start();
    // A client with a pool: it must see that the connection is not to be kept.
    let url = format!("http://{}/metrics", exporter.address);
    let agent = ureq::agent();
    for _ in 0..20 {
        let mut response = agent.get(&url).call().unwrap();
        let body = response.body_mut().read_to_string().unwrap();
        assert!(body.contains("llamacpp_exporter_build_info"));
    }
    // One that sends the next request without waiting gets its first answer whole.
    let twice = "GET /metrics HTTP/1.1\r\n\r\n".repeat(2);
    assert_eq!(exporter.send(&twice).unwrap().status, 200);
    // One that sends byte by byte.
    let mut stream = TcpStream::connect(exporter.address).unwrap();
    stream.set_nodelay(true).unwrap();
    for byte in b"GET /healthz HTTP/1.1\r\n\r\n" {
        stream.write_all(&[*byte]).unwrap();
        thread::sleep(Duration::from_millis(2));
    }
    assert_eq!(Answer::read(stream).unwrap().status, 200);
}

#[test]
fn a_request_that_does_not_come_is_given_up_after_five_seconds() {
    let exporter = Exporter::start();
    let start = Instant::now();
    let answer = exporter.send("GET /metrics HTTP/1.1\r\n").unwrap();
    assert_eq!(answer.status, 408);
    let took = start.elapsed();
    assert!(took >= Duration::from_millis(4900), "{took:?}");
}

fn is_refused_with(mut child: Child, stderr: impl Fn() -> String, words: &[&str]) {
    assert_eq!(wait(&mut child).code(), Some(1));
    // The last line may be on its way.
    let start = Instant::now();
    while !words.iter().all(|word| stderr().contains(word)) {
        assert!(start.elapsed() < PATIENCE, "{words:?} in {}", stderr());
        thread::sleep(Duration::from_millis(5));
    }
}

fn exporter_at(address: &str) -> Command {
    let mut command = Command::new(BINARY);
    command.args(["--addr", address, "--base-url", UPSTREAM]);
    command
}

#[test]
fn an_address_in_use_is_a_clear_error() {
    let first = Exporter::start();
    let address = first.address.to_string();
    let (child, stderr, _lines) = spawn(exporter_at(&address));
    let stderr = || stderr.lock().unwrap().clone();
    is_refused_with(child, stderr, &[&address, "address in use"]);
    assert!(first.scrape().is_ok());
}

#[test]
fn an_address_of_another_machine_is_a_clear_error() {
    let (child, stderr, _lines) = spawn(exporter_at("192.0.2.1:9100"));
    let stderr = || stderr.lock().unwrap().clone();
    is_refused_with(
        child,
        stderr,
        &["192.0.2.1:9100", "no address of this machine"],
    );
}

#[test]
fn too_few_threads_are_a_clear_error() {
    let Some(stranger) = Stranger::new() else {
        return;
    };
    let mut command = stranger.exporter("prlimit --pid $$ --nproc=6");
    command.args(["--addr", "127.0.0.1:0", "--base-url", UPSTREAM]);
    let (child, stderr, _lines) = spawn(command);
    let stderr = || stderr.lock().unwrap().clone();
    is_refused_with(child, stderr, &["cannot start threads"]);
}

#[test]
fn every_address_means_ipv6_and_ipv4() {
    let port = Exporter::start().address.port(); // Free again now.
    let (mut child, _stderr, _lines) = spawn(exporter_at(&format!(":{port}")));
    let answers = |host: &str| {
        let start = Instant::now();
        while start.elapsed() < PATIENCE {
            if let Ok(mut stream) = TcpStream::connect((host, port)) {
                stream.write_all(b"GET /healthz HTTP/1.1\r\n\r\n").unwrap();
                return Answer::read(stream).unwrap().status;
            }
            thread::sleep(Duration::from_millis(20));
        }
        0
    };
    assert_eq!(answers("127.0.0.1"), 200);
    if TcpListener::bind("[::1]:0").is_ok() {
        assert_eq!(answers("::1"), 200);
    }
    child.kill().unwrap();
    child.wait().unwrap();
}

/// It waits for no tick of the poll and for no client. How long it takes, the bench measures.
#[test]
fn the_signals_that_end_it_end_it_with_status_0_while_a_client_waits() {
    for name in ["TERM", "INT"] {
        let mut command = Command::new(BINARY);
        command.args(["--interval", "1h"]);
        let mut exporter = Exporter::start_by(command);
        exporter.scrape().unwrap();
        let mut client = TcpStream::connect(exporter.address).unwrap();
        client.write_all(b"GET /metrics").unwrap();
        signal(name, exporter.pid());
        assert_eq!(exporter.wait().code(), Some(0), "SIG{name}");
        // A client that is given up for want of a request is answered 408.
        client.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut answer = Vec::new();
        let _closed_or_reset = client.read_to_end(&mut answer);
        assert!(answer.is_empty(), "SIG{name}: it waited for the client");
    }
}

/// A process with the number 1 ignores signals that it does not handle.
#[test]
fn sigterm_ends_it_as_the_first_process_of_a_container() {
    let namespace = ["--pid", "--fork", "--kill-child"];
    let can = Command::new("unshare").args(namespace).arg("true").output();
    if !can.is_ok_and(|output| output.status.success()) {
        eprintln!("skipped: cannot make a PID namespace");
        return;
    }
    let mut unshare = Command::new("unshare");
    unshare.args(namespace).arg(BINARY);
    let mut exporter = Exporter::start_by(unshare);
    let unshare = exporter.pid();
    let children = fs::read_to_string(format!("/proc/{unshare}/task/{unshare}/children")).unwrap();
    signal("TERM", children.trim().parse().unwrap());
    assert_eq!(exporter.wait().code(), Some(0));
}

fn start_at_socket(path: &Path) -> Child {
    serving_at(exporter_at(&format!("unix:{}", path.display())), path)
}

/// Starts a program, and waits until it serves at this socket.
fn serving_at(program: Command, path: &Path) -> Child {
    let (child, stderr, _lines) = spawn(program);
    let start = Instant::now();
    while UnixStream::connect(path).is_err() {
        assert!(start.elapsed() < PATIENCE, "{}", stderr.lock().unwrap());
        thread::sleep(Duration::from_millis(5));
    }
    child
}

fn scrape_socket(path: &Path) -> u16 {
    let mut stream = UnixStream::connect(path).unwrap();
    stream.write_all(b"GET /metrics HTTP/1.1\r\n\r\n").unwrap();
    Answer::read(stream).unwrap().status
}

#[test]
fn a_unix_socket_is_served_and_removed_at_the_end() {
    let directory = Directory::new();
    let path = directory.join("exporter.sock");
    drop(UnixListener::bind(&path).unwrap()); // A stale one is in the way.
    for (name, code) in [("KILL", None), ("TERM", Some(0)), ("INT", Some(0))] {
        let mut exporter = start_at_socket(&path);
        assert_eq!(scrape_socket(&path), 200);
        signal(name, exporter.id());
        assert_eq!(wait(&mut exporter).code(), code);
        assert_eq!(path.exists(), code.is_none(), "{name}");
    }
}

#[test]
fn a_unix_socket_is_for_its_owner_and_group_whatever_the_umask() {
    for umask in ["000", "022", "077", "777"] {
        let directory = Directory::new();
        let path = directory.join("exporter.sock");
        let mut shell = Command::new("sh");
        shell.args(["-c", &format!("umask {umask}; exec \"$0\" \"$@\""), BINARY]);
        shell.args(["--base-url", UPSTREAM, "--addr"]);
        shell.arg(format!("unix:{}", path.display()));
        let mut exporter = serving_at(shell, &path);
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o7777, 0o660, "umask {umask}: {mode:o}");
        assert_eq!(scrape_socket(&path), 200);
        exporter.kill().unwrap();
        exporter.wait().unwrap();
    }
}

#[test]
fn what_has_taken_the_place_of_the_socket_is_left_alone_at_the_end() {
    let directory = Directory::new();
    let path = directory.join("exporter.sock");
    for is_socket in [true, false] {
        let mut exporter = start_at_socket(&path);
        fs::remove_file(&path).unwrap();
        let _others = is_socket.then(|| UnixListener::bind(&path).unwrap());
        if !is_socket {
            fs::write(&path, "precious").unwrap();
        }
        signal("TERM", exporter.id());
        assert_eq!(wait(&mut exporter).code(), Some(0));
        assert!(path.exists(), "a socket: {is_socket}");
        fs::remove_file(&path).unwrap();
    }
    // Nor is it missed where it is gone.
    let mut exporter = start_at_socket(&path);
    fs::remove_file(&path).unwrap();
    signal("TERM", exporter.id());
    assert_eq!(wait(&mut exporter).code(), Some(0));
}

/// A page whose own name leads here could read what is answered.
#[test]
fn only_the_names_that_were_given_are_answered() {
    let mut program = Command::new(BINARY);
    program.args(["--allowed-hosts", "exporter.example,nas"]);
    let exporter = Exporter::start_by(program);
    let status = |host: &str| {
        let request = format!("GET /metrics HTTP/1.1\r\n{host}\r\n\r\n");
        exporter.send(&request).unwrap()
    };
    for host in [
        "exporter.example:9100",
        "NAS",
        "localhost:1",
        "127.0.0.1",
        "[::1]:9100",
    ] {
        assert_eq!(status(&format!("Host: {host}")).status, 200, "{host}");
    }
    for head in [
        "Host: evil.example",
        "Host: nas\r\nHost: evil.example",
        "Accept: */*",
    ] {
        let answer = status(head);
        assert_eq!(answer.status, 421, "{head}");
        assert!(answer.body.contains("--allowed-hosts"), "{answer:?}");
    }
    let mut check = exporter_at(&exporter.address.to_string());
    assert!(check.arg("--healthcheck").status().unwrap().success());
}

#[test]
fn a_unix_socket_in_use_and_a_file_in_the_way_are_clear_errors() {
    let directory = Directory::new();
    let path = directory.join("exporter.sock");
    let mut first = start_at_socket(&path);
    let address = format!("unix:{}", path.display());
    let (child, stderr, _lines) = spawn(exporter_at(&address));
    let text = || stderr.lock().unwrap().clone();
    is_refused_with(child, text, &[&address, "address in use"]);
    assert_eq!(scrape_socket(&path), 200);
    first.kill().unwrap();
    first.wait().unwrap();

    let file = directory.join("notes.txt");
    fs::write(&file, "precious").unwrap();
    let address = format!("unix:{}", file.display());
    let (child, stderr, _lines) = spawn(exporter_at(&address));
    let text = || stderr.lock().unwrap().clone();
    is_refused_with(child, text, &[&address, "not a socket"]);
    assert_eq!(fs::read_to_string(&file).unwrap(), "precious");
}

#[test]
fn the_health_check_asks_the_exporter_that_runs() {
    let check = |address: &str| {
        let mut command = exporter_at(address);
        let output = command.arg("--healthcheck").output().unwrap();
        output.status.code()
    };
    let exporter = Exporter::start();
    let address = exporter.address.to_string();
    assert_eq!(check(&address), Some(0));
    assert_eq!(check(&format!(":{}", exporter.address.port())), Some(0));
    assert_eq!(
        check(&format!("localhost:{}", exporter.address.port())),
        Some(0)
    );
    drop(exporter);
    assert_eq!(check(&address), Some(1));

    let directory = Directory::new();
    let path = directory.join("exporter.sock");
    let mut exporter = start_at_socket(&path);
    assert_eq!(check(&format!("unix:{}", path.display())), Some(0));
    exporter.kill().unwrap();
    exporter.wait().unwrap();
    assert_eq!(check(&format!("unix:{}", path.display())), Some(1));
}

/// Whatever else comes over a connection, it is closed after one answer.
#[test]
fn a_connection_is_closed_even_if_the_client_keeps_it_open() {
    let exporter = Exporter::start();
    let mut stream = TcpStream::connect(exporter.address).unwrap();
    stream
        .write_all(b"GET /healthz HTTP/1.1\r\nConnection: keep-alive\r\n\r\n")
        .unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut all = String::new();
    stream.read_to_string(&mut all).unwrap();
    assert!(all.contains("\r\nConnection: close\r\n"));
    thread::sleep(Duration::from_millis(1500));
    // The exporter's own end is gone too, so writing is answered by a reset.
    let gone = (0..10).any(|_| {
        thread::sleep(Duration::from_millis(20));
        stream.write_all(b"x").is_err()
    });
    assert!(gone);
}
