//! A server on a Unix socket is watched like one on a port.

use std::fs;
use std::io;
use std::net::{Shutdown, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::thread;

use crate::support::recordings::{NEW, Stage};
use crate::support::{Exporter, Scrape, Server};
use crate::{assert_down, kind};

/// Passes connections to the socket on to the scripted server, until the listener is shut down.
fn relay(socket: &Path, server: &Server) {
    let listener = UnixListener::bind(socket).unwrap();
    let authority = server.authority();
    thread::spawn(move || {
        for client in listener.incoming() {
            let (Ok(client), Ok(server)) = (client, TcpStream::connect(&authority)) else {
                return;
            };
            let back = (server.try_clone().unwrap(), client.try_clone().unwrap());
            thread::spawn(move || copy(&client, &server));
            thread::spawn(move || {
                let _ = io::copy(&mut &back.0, &mut &back.1);
                let _ = back.1.shutdown(Shutdown::Both);
            });
        }
    });
}

fn copy(mut client: &UnixStream, mut server: &TcpStream) {
    let _ = io::copy(&mut client, &mut server);
    let _ = server.shutdown(Shutdown::Both);
}

fn socket_in(folder: &tempfile::TempDir) -> (PathBuf, String) {
    let path = folder.path().join("a b.sock");
    let url = format!("unix:{}", path.display());
    (path, url)
}

#[test]
fn every_endpoint_is_read_over_a_socket_below_its_prefix() {
    let (folder, server) = (
        tempfile::tempdir().unwrap(),
        Server::recorded(NEW, Stage::Busy),
    );
    let (path, url) = socket_in(&folder);
    for endpoint in crate::ENDPOINTS {
        server.answer(&format!("/llm{endpoint}"), server.answer_of(endpoint));
        server.answer_404(endpoint);
    }
    relay(&path, &server);
    let exporter = Exporter::with_url(&format!("{url}:/llm/v1"))
        .interval("20ms")
        .start();
    let scrape = exporter.until("up", Scrape::up);
    assert_eq!(kind(&scrape), Some("llama-server"));
    assert_eq!(scrape.label("llamacpp_up", "server"), Some(url.as_str()));
    assert_eq!(
        scrape.label("llamacpp_server_info", "server"),
        Some(url.as_str())
    );
    assert!(scrape.has("llamacpp_generated_tokens_total"));
    let host = server.requests().pop().unwrap();
    assert_eq!(host.header("Host"), Some("localhost"));
    exporter.after_polls(5).assert_errors(0);
    // As with a port, the connection of a poll is closed at its end.
    assert!(server.open_connections() <= 1);
}

#[test]
fn a_socket_that_is_absent_or_refuses_is_explained() {
    let folder = tempfile::tempdir().unwrap();
    let (path, url) = socket_in(&folder);
    let explained = |advice| {
        let exporter = Exporter::with_url(&url).interval("20ms").start();
        assert_down(&exporter.until("down", Scrape::down));
        exporter.wait_for_log(&["the server is down", "reason=connect", advice]);
        exporter
    };
    explained("there is no socket at this path");
    fs::write(&path, "a file").unwrap();
    explained("there is no socket at this path");
    fs::remove_file(&path).unwrap();
    // A server that was killed leaves its socket behind.
    drop(UnixListener::bind(&path).unwrap());
    let exporter = explained("nothing listens on the socket");
    fs::remove_file(&path).unwrap();
    let server = Server::recorded(NEW, Stage::Busy);
    relay(&path, &server);
    exporter.until("up", Scrape::up);
}

#[test]
fn a_socket_without_permission_is_explained() {
    let folder = tempfile::tempdir().unwrap();
    let (path, url) = socket_in(&folder);
    let _listener = UnixListener::bind(&path).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o000)).unwrap();
    if UnixStream::connect(&path).is_ok() {
        eprintln!("skipped: root may connect to every socket");
        return;
    }
    let exporter = Exporter::with_url(&url).interval("20ms").start();
    exporter.wait_for_log(&[
        "the server is down",
        "no permission to connect to the socket",
    ]);
}

#[test]
fn a_socket_whose_queue_is_full_delays_no_poll_beyond_the_timeout() {
    let folder = tempfile::tempdir().unwrap();
    let (path, url) = socket_in(&folder);
    let listener = UnixListener::bind(&path).unwrap();
    rustix::net::listen(&listener, 0).unwrap();
    let _waiting = UnixStream::connect(&path).unwrap();
    let exporter = Exporter::with_url(&url)
        .interval("20ms")
        .timeout("100ms")
        .start();
    let scrape = exporter.after_polls(5);
    assert!(
        scrape.errors_of("/health").contains_key("timeout"),
        "{scrape:?}"
    );
}
