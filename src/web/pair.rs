//! The listener that tiny_http is given, and the one connection to it: a Unix socket where the
//! system has them, else TCP.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};

use crate::web::stream::Stream;

/// A listener that accepts only one connection, the exporter's own, and that connection.
pub struct Pair {
    /// For tiny_http.
    pub listener: tiny_http::Listener,
    /// For the workers.
    pub connection: Stream,
    /// The connection's own address; `None` for a Unix socket.
    pub own_address: Option<SocketAddr>,
    /// What keeps other processes from connecting.
    pub closing: Closing,
}

/// What keeps other processes from connecting to tiny_http.
#[cfg_attr(not(target_os = "linux"), allow(dead_code))]
pub enum Closing {
    /// The listener is shut down: after the queued connection, `accept` fails.
    IsShutDown,
    /// The listener has no name any more; `accept` blocks permanently.
    IsUnreachable,
    /// Nothing, until this handle of the listener is passed to [`close`] after the first response.
    After(TcpListener),
}

impl Pair {
    /// A pair of the safest kind that works on this system.
    ///
    /// # Errors
    /// A system call failed, for example because no file descriptor is available.
    pub fn new() -> io::Result<Pair> {
        #[cfg(target_os = "linux")]
        if let Ok(pair) = unix::in_no_file() {
            return Ok(pair);
        }
        #[cfg(unix)]
        if let Ok(pair) = unix::in_private_folder() {
            return Ok(pair);
        }
        on_loopback()
    }
}

/// Uses a TCP port of this machine, which every process can connect to until it is closed.
fn on_loopback() -> io::Result<Pair> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let connection = TcpStream::connect(listener.local_addr()?)?;
    connection.set_nodelay(true)?;
    Ok(Pair {
        own_address: Some(connection.local_addr()?),
        closing: Closing::After(listener.try_clone()?),
        listener: listener.into(),
        connection: connection.into(),
    })
}

/// Makes `accept` fail on every handle of the listener, also where it is waiting now: it accepts a
/// last connection, and no further one.
///
/// # Errors
/// A system call failed.
pub fn close(listener: &TcpListener) -> io::Result<()> {
    listener.set_nonblocking(true)?;
    TcpStream::connect(listener.local_addr()?).map(drop)
}

#[cfg(unix)]
mod unix {
    use std::env;
    use std::fs;
    use std::io::ErrorKind;
    use std::os::unix::fs::DirBuilderExt;
    use std::os::unix::net::{UnixListener, UnixStream};

    use super::*;
    #[cfg(target_os = "linux")]
    use crate::process::os;

    fn pair(listener: UnixListener, connection: UnixStream, closing: Closing) -> Pair {
        Pair {
            listener: listener.into(),
            connection: connection.into(),
            own_address: None,
            closing,
        }
    }

    /// Uses an abstract socket, which needs no file system. Every process in the network namespace
    /// can connect to it, so its queue holds one connection, which must be the exporter's own; then
    /// the socket is shut down.
    #[cfg(target_os = "linux")]
    pub fn in_no_file() -> io::Result<Pair> {
        use std::os::linux::net::SocketAddrExt;
        use std::os::unix::net::SocketAddr;

        /// To make an attempt fail, another process must connect within microseconds.
        const TRIES: usize = 100;
        let mut result = Err(ErrorKind::AddrInUse.into());
        for _ in 0..TRIES {
            let name = random_name();
            let address = SocketAddr::from_abstract_name(&name)?;
            let listener = UnixListener::bind_addr(&address)?;
            os::set_backlog(&listener, 0)?;
            match os::connect_without_waiting(name.as_bytes()) {
                Ok(connection) => {
                    os::refuse_connections(&listener)?;
                    return Ok(pair(listener, connection, Closing::IsShutDown));
                }
                // Another process connected first; its connection is dropped with this listener.
                Err(error) if error.kind() == ErrorKind::WouldBlock => result = Err(error),
                Err(error) => return Err(error),
            }
        }
        result
    }

    /// Uses a socket in a folder that only this user may enter. Both are removed before tiny_http
    /// gets the listener, so no other process can connect.
    pub fn in_private_folder() -> io::Result<Pair> {
        let mut result = Err(ErrorKind::NotFound.into());
        for parent in [env::temp_dir(), "/dev/shm".into(), "/run".into()] {
            let folder = parent.join(format!("llamacpp-exporter-{}", random_name()));
            // Fails if anything with that name exists.
            result = fs::DirBuilder::new().mode(0o700).create(&folder);
            if result.is_err() {
                continue;
            }
            let path = folder.join("socket");
            let pair = UnixListener::bind(&path).and_then(|listener| {
                let connection = UnixStream::connect(&path)?;
                Ok(pair(listener, connection, Closing::IsUnreachable))
            });
            let _ = fs::remove_file(&path);
            fs::remove_dir(&folder)?;
            return pair;
        }
        Err(result.err().unwrap_or(ErrorKind::NotFound.into()))
    }

    fn random_name() -> String {
        use std::hash::{BuildHasher, RandomState};
        // The keys of a new `RandomState` come from the system's random numbers.
        format!("{:016x}", RandomState::new().hash_one(()))
    }
}

#[cfg(test)]
pub mod tests {
    use std::io::{ErrorKind, Read as _, Write as _};
    use std::os::unix::net::UnixStream;

    use super::*;

    /// Whether a process can connect to tiny_http.
    pub type IsReachable = Box<dyn Fn() -> bool>;

    /// A pair of every kind that works here.
    pub fn of_every_kind() -> Vec<(Pair, IsReachable)> {
        let kinds = [
            #[cfg(target_os = "linux")]
            unix::in_no_file(),
            unix::in_private_folder(),
            on_loopback(),
        ];
        let kinds = kinds.into_iter().flatten();
        let with_reach = |pair: Pair| {
            let is_reachable = reachable(&pair.listener);
            (pair, is_reachable)
        };
        kinds.map(with_reach).collect()
    }

    fn reachable(listener: &tiny_http::Listener) -> IsReachable {
        match listener {
            tiny_http::Listener::Tcp(listener) => {
                let address = listener.local_addr().unwrap();
                Box::new(move || TcpStream::connect(address).is_ok())
            }
            tiny_http::Listener::Unix(listener) => {
                let address = listener.local_addr().unwrap();
                Box::new(move || UnixStream::connect_addr(&address).is_ok())
            }
        }
    }

    /// While the listener's handle is open, the test sees what other processes see.
    #[test]
    #[cfg(target_os = "linux")]
    fn an_abstract_socket_refuses_other_connections() {
        let pair = unix::in_no_file().unwrap();
        let tiny_http::Listener::Unix(listener) = &pair.listener else {
            panic!("not a Unix socket");
        };
        let address = listener.local_addr().unwrap();
        for _ in 0..3 {
            let other = UnixStream::connect_addr(&address);
            assert_eq!(other.unwrap_err().kind(), ErrorKind::ConnectionRefused);
        }
        let (accepted, _) = listener.accept().unwrap();
        (&accepted).write_all(b"ours").unwrap();
        let mut start = [0; 4];
        (&pair.connection).read_exact(&mut start).unwrap();
        assert_eq!(&start, b"ours");
        assert!(listener.accept().is_err());
    }
}
