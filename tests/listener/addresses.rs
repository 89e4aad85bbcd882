//! Addresses to serve at: ports, Unix sockets, and those that cannot be used.

use std::fs;
use std::io::Write;
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::Command;

use rustix::process::Signal;

use crate::other_user::OtherUser;
use crate::support::exporter::{BINARY, Response, run};
use crate::support::{Exporter, assert_contains};
use crate::{NO_SERVER, exporter_at, start};

/// Asserts that the program ends with status 1 and an error with these words.
#[track_caller]
fn assert_fails(command: &mut Command, words: &[&str]) {
    let output = run(command);
    output.assert_code(1);
    assert_contains(&output.stderr, words);
}

#[test]
fn an_address_in_use_is_an_error() {
    let first = start();
    assert_fails(
        &mut exporter_at(&first.address),
        &[&first.address, "address in use"],
    );
    first.scrape();
}

#[test]
fn an_address_of_another_machine_is_an_error() {
    let address = "192.0.2.1:9100";
    assert_fails(
        &mut exporter_at(address),
        &[address, "not an address of this machine"],
    );
}

#[test]
fn too_few_threads_are_an_error() {
    let Some(user) = OtherUser::new() else { return };
    let mut command = user.exporter("prlimit --pid $$ --nproc=6");
    command.args(["--addr", "127.0.0.1:0", "--base-url", NO_SERVER]);
    assert_fails(&mut command, &["cannot start threads"]);
}

#[test]
fn a_port_alone_means_every_address_of_ipv6_and_ipv4() {
    let port = start().socket_address().port(); // Free again now.
    let _exporter = Exporter::spawn(exporter_at(&format!(":{port}")));
    let status = |host: &str| {
        let mut stream = TcpStream::connect((host, port)).unwrap();
        stream.write_all(b"GET /healthz HTTP/1.1\r\n\r\n").unwrap();
        Response::read(stream).unwrap().status
    };
    assert_eq!(status("127.0.0.1"), 200);
    if TcpListener::bind("[::1]:0").is_ok() {
        assert_eq!(status("::1"), 200);
    }
}

fn unix_address(path: &Path) -> String {
    format!("unix:{}", path.display())
}

fn start_at(path: &Path) -> Exporter {
    Exporter::spawn(exporter_at(&unix_address(path)))
}

#[test]
fn a_unix_socket_is_served_and_removed_at_the_end() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("exporter.sock");
    // The first one leaves a stale socket. A listener of this process would not do: processes that
    // other tests start hold it for a moment, too.
    for (signal, code) in [
        (Signal::KILL, None),
        (Signal::TERM, Some(0)),
        (Signal::INT, Some(0)),
    ] {
        let mut exporter = start_at(&path);
        exporter.scrape();
        assert_eq!(exporter.signal(signal).code(), code);
        assert_eq!(path.exists(), code.is_none(), "{signal:?}");
    }
}

#[test]
fn a_unix_socket_is_for_its_owner_and_group_whatever_the_umask() {
    for umask in ["000", "022", "077", "777"] {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("exporter.sock");
        let mut shell = Command::new("sh");
        shell.args(["-c", &format!("umask {umask}; exec \"$0\" \"$@\""), BINARY]);
        shell.args(["--base-url", NO_SERVER, "--addr", &unix_address(&path)]);
        let exporter = Exporter::spawn(shell);
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o7777, 0o660, "umask {umask}: {mode:o}");
        exporter.scrape();
    }
}

#[test]
fn a_file_that_replaced_the_socket_is_not_removed() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("exporter.sock");
    for is_socket in [true, false] {
        let mut exporter = start_at(&path);
        fs::remove_file(&path).unwrap();
        let _other = is_socket.then(|| UnixListener::bind(&path).unwrap());
        if !is_socket {
            fs::write(&path, "precious").unwrap();
        }
        assert_eq!(exporter.signal(Signal::TERM).code(), Some(0));
        assert!(path.exists(), "a socket: {is_socket}");
        fs::remove_file(&path).unwrap();
    }
    // A socket that is already gone is no error.
    let mut exporter = start_at(&path);
    fs::remove_file(&path).unwrap();
    assert_eq!(exporter.signal(Signal::TERM).code(), Some(0));
}

#[test]
fn a_unix_socket_in_use_and_a_regular_file_are_errors() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("exporter.sock");
    let first = start_at(&path);
    let address = unix_address(&path);
    assert_fails(&mut exporter_at(&address), &[&address, "address in use"]);
    first.scrape();

    let file = folder.path().join("notes.txt");
    fs::write(&file, "precious").unwrap();
    let address = unix_address(&file);
    assert_fails(&mut exporter_at(&address), &[&address, "not a socket"]);
    assert_eq!(fs::read_to_string(&file).unwrap(), "precious");
}
