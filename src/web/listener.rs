//! Listens at the exporter's address: TCP or a Unix socket.

use std::fmt;
use std::fs;
use std::io::{self, ErrorKind};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, ToSocketAddrs};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::{self as unix, UnixDatagram, UnixListener};
use std::path::Path;

use crate::process::os;
use crate::settings::ListenAddress;
use crate::web::stream::Stream;

/// Connections that may wait to be accepted. Four times as many were slower in a burst; with an
/// eighth, clients had to retry.
const BACKLOG: i32 = 1024;

/// How long the system holds back a connection that has not sent anything. Silent clients then
/// occupy no worker at first, and a client that is slow to send its request is not closed as one.
const DEFER_ACCEPT_SECONDS: i32 = 1;

/// A listening socket.
#[derive(Debug)]
pub enum Listener {
    /// TCP.
    Tcp(TcpListener),
    /// A Unix socket.
    Unix(UnixListener),
}

impl Listener {
    /// Waits for a client.
    ///
    /// # Errors
    /// The system call failed, usually because no file descriptor is available.
    pub fn accept(&self) -> io::Result<Stream> {
        match self {
            Self::Tcp(listener) => listener.accept().map(|(stream, _)| Stream::Tcp(stream)),
            Self::Unix(listener) => listener.accept().map(|(stream, _)| Stream::Unix(stream)),
        }
    }

    fn tcp(address: SocketAddr) -> io::Result<Self> {
        let listener = TcpListener::bind(address)?;
        os::set_backlog(&listener, BACKLOG)?;
        os::set_defer_accept(&listener, DEFER_ACCEPT_SECONDS)?;
        Ok(Self::Tcp(listener))
    }

    /// Owner and group may connect, whatever the umask is. The file is removed at exit, unless it
    /// has been replaced.
    fn unix(path: &Path) -> io::Result<Self> {
        const NOT_FOR_OTHERS: u16 = 0o117;
        let listener = os::with_umask(NOT_FOR_OTHERS, || UnixListener::bind(path))?;
        os::set_backlog(&listener, BACKLOG)?;
        let (ours, path) = (FileId::of(path)?, path.to_owned());
        os::before_exit(move || {
            // There is nothing left to do if this fails.
            let _ = ours.remove(&path);
        })?;
        Ok(Self::Unix(listener))
    }
}

/// Displays the actual address, with the port that the system chose for port 0.
impl fmt::Display for Listener {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(listener) => match listener.local_addr() {
                Ok(address) => write!(out, "{address}"),
                Err(_) => out.write_str("tcp"),
            },
            Self::Unix(listener) => {
                let address = listener.local_addr().ok();
                match address.as_ref().and_then(unix::SocketAddr::as_pathname) {
                    Some(path) => write!(out, "unix:{}", path.display()),
                    None => out.write_str("unix"),
                }
            }
        }
    }
}

/// Listens at `address`: with one socket, with two if IPv6 and IPv4 need one each, or with one for
/// each address of a name. A socket file is removed when a signal ends the process (see
/// [`os::exit_on_signals`]).
///
/// # Errors
/// A message with the address: it is in use, it is not an address of this machine, the port needs a
/// privilege, the name does not resolve, or the path is a file other than a stale socket.
pub fn bind(address: &ListenAddress) -> io::Result<Vec<Listener>> {
    match address {
        ListenAddress::Any(port) => bind_any(*port),
        ListenAddress::Ip(address) => Listener::tcp(*address).map(|listener| vec![listener]),
        ListenAddress::Name(name, port) => bind_each((name.as_str(), *port).to_socket_addrs()?),
        ListenAddress::Unix(path) => bind_unix(path).map(|listener| vec![listener]),
    }
    .map_err(|error| {
        let reason = match error.kind() {
            // An error of the system itself, whose text ends with its number.
            ErrorKind::AddrInUse if error.get_ref().is_none() => {
                "address in use: another process listens on it".to_owned()
            }
            ErrorKind::AddrNotAvailable => "it is not an address of this machine".to_owned(),
            _ => error.to_string(),
        };
        io::Error::new(
            error.kind(),
            format!("cannot listen on {address}: {reason}"),
        )
    })
}

fn bind_any(port: u16) -> io::Result<Vec<Listener>> {
    let v4 = |port| Listener::tcp((Ipv4Addr::UNSPECIFIED, port).into());
    let v6 = match Listener::tcp((Ipv6Addr::UNSPECIFIED, port).into()) {
        Ok(listener) => listener,
        Err(error) if error.kind() == ErrorKind::AddrInUse => return Err(error),
        Err(_) => return v4(port).map(|listener| vec![listener]), // IPv6 is off.
    };
    // If the system limits IPv6 sockets to IPv6, IPv4 needs a socket of its own. Otherwise the port
    // is already in use, by our own IPv6 socket.
    match v4(port_of(&v6).unwrap_or(port)) {
        Ok(v4) => Ok(vec![v6, v4]),
        Err(error) if error.kind() == ErrorKind::AddrInUse && is_v6_only() => Err(error),
        Err(_) => Ok(vec![v6]),
    }
}

fn is_v6_only() -> bool {
    fs::read_to_string("/proc/sys/net/ipv6/bindv6only").is_ok_and(|value| value.trim() == "1")
}

/// Listens on each address. Skips those that this machine does not have (such as an IPv6 address
/// while IPv6 is off) if another one works.
fn bind_each(addresses: impl Iterator<Item = SocketAddr>) -> io::Result<Vec<Listener>> {
    let mut listeners = Vec::new();
    let mut failure = ErrorKind::AddrNotAvailable.into();
    for mut address in addresses {
        if let Some(port) = listeners.first().and_then(port_of) {
            address.set_port(port); // Port 0 becomes the same port for all addresses.
        }
        match Listener::tcp(address) {
            Ok(listener) => listeners.push(listener),
            Err(error) if error.kind() == ErrorKind::AddrInUse => return Err(error),
            Err(error) => failure = error,
        }
    }
    match listeners.is_empty() {
        true => Err(failure),
        false => Ok(listeners),
    }
}

pub(super) fn port_of(listener: &Listener) -> Option<u16> {
    match listener {
        Listener::Tcp(listener) => Some(listener.local_addr().ok()?.port()),
        Listener::Unix(_) => None,
    }
}

fn bind_unix(path: &Path) -> io::Result<Listener> {
    match Listener::unix(path) {
        Err(error) if error.kind() == ErrorKind::AddrInUse => {
            let found = FileId::of(path)?;
            if !found.is_socket {
                return Err(io::Error::new(
                    ErrorKind::AlreadyExists,
                    "a file that is not a socket exists at that path",
                ));
            }
            // Another process may replace the stale socket at the same time: then it is already
            // gone, and the other process's socket is in its place.
            if is_live(path)? || !found.remove(path)? {
                return Err(error);
            }
            Listener::unix(path)
        }
        result => result,
    }
}

/// Identifies the file at a path. Symbolic links are not followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct FileId {
    device: u64,
    inode: u64,
    /// A file system may reuse the inode of a removed file immediately.
    created_or_changed: (i64, i64),
    is_socket: bool,
}

impl FileId {
    fn of(path: &Path) -> io::Result<Self> {
        let file = fs::symlink_metadata(path)?;
        Ok(Self {
            device: file.dev(),
            inode: file.ino(),
            created_or_changed: (file.ctime(), file.ctime_nsec()),
            is_socket: file.file_type().is_socket(),
        })
    }

    /// Removes the file, unless another one is at `path` now. Returns whether it was removed.
    fn remove(self, path: &Path) -> io::Result<bool> {
        let is_this = Self::of(path).is_ok_and(|now| now == self);
        if is_this {
            fs::remove_file(path)?;
        }
        Ok(is_this)
    }
}

/// Whether a process listens on the socket file. Connects with a datagram socket, which never waits
/// in a queue: the error shows whether a stream socket listens.
fn is_live(path: &Path) -> io::Result<bool> {
    match UnixDatagram::unbound()?.connect(path) {
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => Ok(false),
        Err(error) if error.kind() == ErrorKind::PermissionDenied => Err(error),
        _ => Ok(true),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpStream;
    use std::os::unix::net::UnixStream;
    use std::path::PathBuf;
    use std::thread;
    use std::time::Duration;

    /// A folder that is removed at the end, and the path of a socket in it.
    fn scratch() -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        (folder, path)
    }

    #[test]
    fn a_stale_socket_is_replaced_and_a_live_one_is_not() {
        let (_folder, path) = scratch();
        let address = ListenAddress::Unix(path.clone());
        drop(bind(&address).unwrap()); // Leaves its file.
        assert!(path.exists());

        let listeners = bind(&address).unwrap();
        assert_eq!(listeners[0].to_string(), address.to_string());
        let error = bind(&address).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::AddrInUse);
        assert!(error.to_string().contains("address in use"), "{error}");
        let _client = UnixStream::connect(&path).unwrap();
        listeners[0].accept().unwrap();
    }

    /// Two exporters that start at the same time find the same stale socket.
    #[test]
    fn a_socket_that_replaced_a_stale_one_is_not_removed() {
        let (_folder, path) = scratch();
        drop(UnixListener::bind(&path).unwrap());
        let stale = FileId::of(&path).unwrap();
        fs::remove_file(&path).unwrap();
        assert!(!stale.remove(&path).unwrap());
        // On many file systems it has the inode of the stale one. Their times differ after a tick
        // of the kernel's clock.
        thread::sleep(Duration::from_millis(50));
        let _other = UnixListener::bind(&path).unwrap();
        assert!(!stale.remove(&path).unwrap());
        assert!(path.exists());
        assert!(FileId::of(&path).unwrap().remove(&path).unwrap());
        assert!(!path.exists());
    }

    #[test]
    fn a_live_socket_with_a_full_queue_does_not_block() {
        let (_folder, path) = scratch();
        let listener = UnixListener::bind(&path).unwrap();
        os::set_backlog(&listener, 0).unwrap();
        let _queued = UnixStream::connect(&path).unwrap();
        let error = bind(&ListenAddress::Unix(path.clone())).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::AddrInUse);
    }

    #[test]
    fn an_existing_file_or_link_is_not_removed() {
        let (_folder, file) = scratch();
        fs::write(&file, "precious").unwrap();
        let error = bind(&ListenAddress::Unix(file.clone())).unwrap_err();
        assert!(error.to_string().contains("not a socket"), "{error}");
        assert_eq!(fs::read_to_string(&file).unwrap(), "precious");

        let (socket, link) = (file.with_extension("sock"), file.with_extension("link"));
        drop(UnixListener::bind(&socket).unwrap());
        std::os::unix::fs::symlink(&socket, &link).unwrap();
        assert!(bind(&ListenAddress::Unix(link.clone())).is_err());
        assert!(link.is_symlink() && socket.exists());
    }

    #[test]
    fn any_address_includes_ipv4() {
        let listeners = bind(&ListenAddress::Any(0)).unwrap();
        let port = port_of(&listeners[0]).unwrap();
        assert!(TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_ok());
        assert_eq!(
            bind(&ListenAddress::Any(port)).unwrap_err().kind(),
            ErrorKind::AddrInUse
        );
    }

    #[test]
    fn an_address_of_another_machine_is_an_error() {
        let error = bind(&"192.0.2.1:0".parse().unwrap());
        let error = error.unwrap_err().to_string();
        assert!(
            error.starts_with("cannot listen on 192.0.2.1:0: "),
            "{error}"
        );
        assert!(error.contains("not an address of this machine"), "{error}");
    }
}
