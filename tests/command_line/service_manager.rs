//! Messages to the service manager: `READY=1`, `WATCHDOG=1`, `STOPPING=1` (`sd_notify(3)`).

use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};

use rustix::process::Signal;

use crate::support::{Exporter, LONGEST_WAIT, Server};

fn next_message(socket: &UnixDatagram) -> String {
    let mut bytes = [0; 100];
    let length = socket.recv(&mut bytes).expect("a message in time");
    String::from_utf8(bytes[..length].to_vec()).unwrap()
}

#[test]
fn the_service_manager_is_notified() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("notify").display().to_string();
    let name = format!("llamacpp-exporter-test-{}", std::process::id());
    let with_path = UnixDatagram::bind(&path).unwrap();
    let abstract_address = SocketAddr::from_abstract_name(&name).unwrap();
    let with_name = UnixDatagram::bind_addr(&abstract_address).unwrap();
    for (socket, address) in [(with_path, path), (with_name, format!("@{name}"))] {
        socket.set_read_timeout(Some(LONGEST_WAIT)).unwrap();
        let mut exporter = Exporter::watching(&Server::stopped())
            .env("NOTIFY_SOCKET", &address)
            .env("WATCHDOG_USEC", "100000")
            .start();
        assert_eq!(next_message(&socket), "READY=1", "{address}");
        // It serves, although the server is down.
        exporter.scrape();
        assert_eq!(next_message(&socket), "WATCHDOG=1");
        assert_eq!(next_message(&socket), "WATCHDOG=1");
        assert_eq!(exporter.signal(Signal::TERM).code(), Some(0));
        let mut after = std::iter::repeat_with(|| next_message(&socket));
        let last = after.find(|message| message != "WATCHDOG=1");
        assert_eq!(last.as_deref(), Some("STOPPING=1"), "{address}");
    }
}

#[test]
fn the_watchdog_of_another_process_is_not_notified() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("notify");
    let socket = UnixDatagram::bind(&path).unwrap();
    socket.set_read_timeout(Some(LONGEST_WAIT)).unwrap();
    let mut exporter = Exporter::watching(&Server::stopped())
        .env("NOTIFY_SOCKET", &path)
        .env("WATCHDOG_USEC", "20000")
        .env("WATCHDOG_PID", "1")
        .start();
    exporter.after_polls(3);
    exporter.signal(Signal::TERM);
    let messages = [next_message(&socket), next_message(&socket)];
    assert_eq!(messages, ["READY=1", "STOPPING=1"]);
}

#[test]
fn a_socket_that_cannot_be_used_is_logged() {
    for address in ["/nonexistent/notify", "vsock:2:1234"] {
        let exporter = Exporter::watching(&Server::stopped())
            .env("NOTIFY_SOCKET", address)
            .start();
        exporter.wait_for_log(&["WARN", "NOTIFY_SOCKET", address]);
    }
}
