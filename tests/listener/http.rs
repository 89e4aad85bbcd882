//! Requests over HTTP: paths, methods, headers, and malformed ones.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::thread;
use std::time::{Duration, Instant};

use crate::support::LONGEST_WAIT;
use crate::support::exporter::{Response, program, run};
use crate::{exporter_at, start, start_command};

#[test]
fn each_path_has_its_answer() {
    let exporter = start();
    let metrics = exporter.get("/metrics");
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
    let page = exporter.get("/");
    assert_eq!(page.status, 200);
    assert_eq!(
        page.header("Content-Type"),
        Some("text/html; charset=utf-8")
    );
    assert!(page.body.contains("/metrics"));
    let policy = page.header("Content-Security-Policy").unwrap();
    assert!(policy.starts_with("default-src 'none'; style-src 'sha256-"));
    assert!(!policy.contains("script"), "{policy}");
    for (name, value) in [
        ("X-Content-Type-Options", "nosniff"),
        ("Referrer-Policy", "no-referrer"),
        ("Cache-Control", "no-store"),
        ("Refresh", "5; url=./"),
    ] {
        assert_eq!(page.header(name), Some(value), "{name}");
    }
    assert_eq!(exporter.get("/?refresh=off").header("Refresh"), None);
    assert_eq!(metrics.header("Refresh"), None);
    assert_eq!(exporter.get("/healthz").status, 200);
    for path in ["/metric", "/metrics/", "//metrics", "/favicon.ico", "/%00"] {
        assert_eq!(exporter.get(path).status, 404, "{path}");
    }
    assert_eq!(exporter.get("/metrics?name[]=x&y=%20").status, 200);
}

#[test]
#[cfg(target_os = "linux")]
fn own_metrics_match_procfs() {
    let exporter = start();
    for _ in 0..20 {
        exporter.scrape();
    }
    let scrape = exporter.scrape();
    let folder = format!("/proc/{}/fd", exporter.pid());
    let open = fs::read_dir(folder).unwrap().count() as f64;
    // The scrape has a connection of its own, and a poll may have others.
    let fds = scrape.value("process_open_fds").unwrap();
    assert!((fds - open).abs() <= 6.0, "{fds} of {open}");
    let resident = exporter.resident_memory() as f64;
    let bytes = scrape.value("process_resident_memory_bytes").unwrap();
    let share = bytes / resident;
    assert!((0.98..1.02).contains(&share), "{bytes} of {resident}");
}

#[test]
fn head_has_the_length_and_no_body() {
    let exporter = start();
    for path in ["/metrics", "/", "/healthz", "/none"] {
        let full = exporter.get(path);
        let head = exporter
            .send(format!("HEAD {path} HTTP/1.1\r\n\r\n"))
            .unwrap();
        assert_eq!(head.status, full.status, "{path}");
        assert_eq!(head.body, "", "{path}");
        // The exposition and the status page may change from one request to the next.
        if !["/metrics", "/"].contains(&path) {
            assert_eq!(head.header("Content-Length"), full.header("Content-Length"));
        }
        assert!(
            head.header("Content-Length")
                .is_some_and(|length| length != "0")
        );
    }
    exporter.scrape();
}

#[test]
fn other_methods_are_answered_405() {
    let exporter = start();
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
fn malformed_requests_are_answered_at_once() {
    let exporter = start();
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
fn http_1_0_and_bare_line_feeds_are_accepted() {
    let exporter = start();
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
    let exporter = start();
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
fn pooled_pipelined_and_slow_clients_are_served() {
    let exporter = start();
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
    let mut stream = TcpStream::connect(&exporter.address).unwrap();
    stream.set_nodelay(true).unwrap();
    for byte in b"GET /healthz HTTP/1.1\r\n\r\n" {
        stream.write_all(&[*byte]).unwrap();
        thread::sleep(Duration::from_millis(2));
    }
    assert_eq!(Response::read(stream).unwrap().status, 200);
}

#[test]
fn an_incomplete_request_is_answered_408_after_five_seconds() {
    let exporter = start();
    let start = Instant::now();
    let answer = exporter.send("GET /metrics HTTP/1.1\r\n").unwrap();
    assert_eq!(answer.status, 408);
    let took = start.elapsed();
    assert!(took >= Duration::from_millis(4900), "{took:?}");
}

/// A page whose own name leads here could read what is answered.
#[test]
fn unknown_host_names_are_answered_421() {
    let mut command = program();
    command.args(["--allowed-hosts", "exporter.example,nas"]);
    let exporter = start_command(command);
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
    let healthcheck = run(exporter_at(&exporter.address).arg("--healthcheck"));
    healthcheck.assert_code(0);
}

/// Whatever else comes over a connection, it is closed after one answer.
#[test]
fn a_connection_is_closed_after_one_response() {
    let exporter = start();
    let mut stream = TcpStream::connect(&exporter.address).unwrap();
    stream
        .write_all(b"GET /healthz HTTP/1.1\r\nConnection: keep-alive\r\n\r\n")
        .unwrap();
    stream.set_read_timeout(Some(LONGEST_WAIT)).unwrap();
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
