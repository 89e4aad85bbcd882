//! SIGTERM and SIGINT end the process with status 0 at once. The benchmark measures how soon.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::Command;

use rustix::process::Signal;

use crate::support::exporter::{BINARY, send_signal};
use crate::support::recordings::{NEW, Stage};
use crate::support::{Answer, ENDLESS, Exporter, LONGEST_WAIT, Server, wait_until};

#[test]
fn a_signal_during_a_poll_exits_with_status_0() {
    for signal in [Signal::TERM, Signal::INT] {
        let server = Server::recorded(NEW, Stage::Busy);
        server.answer("/props", Answer::never());
        let mut exporter = Exporter::watching(&server).timeout(ENDLESS).start();
        wait_until("the request", || server.count("/props") == 1);
        assert_eq!(exporter.signal(signal).code(), Some(0), "{signal:?}");
    }
}

#[test]
fn a_signal_while_a_client_waits_exits_with_status_0() {
    for signal in [Signal::TERM, Signal::INT] {
        let mut exporter = Exporter::watching(&Server::stopped())
            .interval("1h")
            .start();
        exporter.scrape();
        let mut client = TcpStream::connect(&exporter.address).unwrap();
        client.write_all(b"GET /metrics").unwrap();
        assert_eq!(exporter.signal(signal).code(), Some(0), "{signal:?}");
        // A client whose request does not come in time is answered 408.
        client.set_read_timeout(Some(LONGEST_WAIT)).unwrap();
        let mut answer = Vec::new();
        let _closed_or_reset = client.read_to_end(&mut answer);
        assert!(answer.is_empty(), "{signal:?}: it waited for the client");
    }
}

/// The kernel ignores signals to process 1 that it does not handle.
#[test]
fn a_signal_ends_process_1_of_a_container() {
    let namespace = ["--pid", "--fork", "--kill-child"];
    let allowed = Command::new("unshare").args(namespace).arg("true").output();
    if !allowed.is_ok_and(|output| output.status.success()) {
        eprintln!("skipped: cannot make a PID namespace");
        return;
    }
    let mut unshare = Command::new("unshare");
    unshare.args(namespace).arg(BINARY);
    unshare.args([
        "--addr",
        "127.0.0.1:0",
        "--base-url",
        &Server::stopped().url(),
    ]);
    let mut exporter = Exporter::spawn(unshare);
    let unshare = exporter.pid();
    let children = fs::read_to_string(format!("/proc/{unshare}/task/{unshare}/children")).unwrap();
    send_signal(children.trim().parse().unwrap(), Signal::TERM);
    assert_eq!(exporter.wait().code(), Some(0));
}
