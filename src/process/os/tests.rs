use super::*;
use std::net::{TcpListener, TcpStream};

#[test]
#[cfg(target_os = "linux")]
fn a_silent_connection_is_accepted_later() {
    use std::io::{ErrorKind, Read as _, Write as _};
    use std::time::{Duration, Instant};

    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    set_defer_accept(&listener, 1).unwrap();
    listener.set_nonblocking(true).unwrap();
    let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    assert_eq!(listener.accept().unwrap_err().kind(), ErrorKind::WouldBlock);
    client.write_all(b"x").unwrap();
    let start = Instant::now();
    let mut accepted = loop {
        match listener.accept() {
            Ok((accepted, _)) => break accepted,
            Err(_) => assert!(start.elapsed() < Duration::from_secs(10)),
        }
    };
    accepted.read_exact(&mut [0]).unwrap();
}

#[test]
fn errors_are_reported() {
    let (connected, _peer) = std::os::unix::net::UnixStream::pair().unwrap();
    assert!(set_backlog(&connected, 10).is_err());
    assert_eq!(
        detect_lost_peer(&connected).is_err(),
        cfg!(any(target_os = "linux", target_os = "macos"))
    );
    assert_eq!(
        set_defer_accept(&connected, 1).is_err(),
        cfg!(target_os = "linux")
    );
}

#[test]
fn the_umask_applies_to_new_files() {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("socket");
    let listener = with_umask(0o117, || std::os::unix::net::UnixListener::bind(&path));
    listener.unwrap();
    let mode = std::fs::metadata(&path).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o660, "{mode:o}");
}

#[test]
#[cfg(target_os = "linux")]
fn connecting_to_a_full_queue_does_not_wait() {
    use std::os::linux::net::SocketAddrExt;
    use std::os::unix::net::{SocketAddr, UnixListener};

    let name = format!("os-test-{}", std::process::id());
    let refused = connect_without_waiting(name.as_bytes()).unwrap_err();
    assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
    let address = SocketAddr::from_abstract_name(&name).unwrap();
    let listener = UnixListener::bind_addr(&address).unwrap();
    set_backlog(&listener, 0).unwrap();
    let _first = connect_without_waiting(name.as_bytes()).unwrap();
    let second = connect_without_waiting(name.as_bytes()).unwrap_err();
    assert_eq!(second.kind(), io::ErrorKind::WouldBlock);
    assert!(connect_without_waiting(&[b'x'; 108]).is_err());
}

#[test]
#[cfg(target_os = "linux")]
fn connecting_to_a_path_waits_for_a_place_in_its_queue_until_the_timeout() {
    use std::os::unix::net::UnixListener;

    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("socket");
    let time = Duration::from_millis(50);
    let absent = connect_unix(&path, time).unwrap_err();
    assert_eq!(absent.kind(), io::ErrorKind::NotFound);
    let listener = UnixListener::bind(&path).unwrap();
    set_backlog(&listener, 0).unwrap();
    let first = connect_unix(&path, time).unwrap();
    assert_eq!(listener_pid(&first).unwrap(), std::process::id());
    let late = connect_unix(&path, time).unwrap_err();
    assert_eq!(late.kind(), io::ErrorKind::WouldBlock);
    drop(listener);
    let refused = connect_unix(&path, time).unwrap_err();
    assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
    let long = folder.path().join("x".repeat(108));
    assert_eq!(
        connect_unix(&long, time).unwrap_err().kind(),
        io::ErrorKind::InvalidInput
    );
}
