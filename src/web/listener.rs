//! Listens at the exporter's address: TCP or a Unix socket.

use std::fmt;
use std::fs;
use std::io::{self, ErrorKind};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, ToSocketAddrs};
#[cfg(unix)]
use std::os::unix::net::{SocketAddr as UnixAddress, UnixListener};

use crate::process::os;
use crate::settings::ListenAddress;
use crate::web::stream::Stream;
#[cfg(unix)]
use crate::web::unix_listener;

/// Connections that may wait to be accepted. Four times as many were slower in a burst; with an
/// eighth, clients had to retry.
pub(super) const BACKLOG: i32 = 1024;

/// How long the system holds back a connection that has not sent anything. Silent clients then
/// occupy no worker at first, and a client that is slow to send its request is not closed as one.
const DEFER_ACCEPT_SECONDS: i32 = 1;

/// A listening socket.
#[derive(Debug)]
pub enum Listener {
    /// TCP.
    Tcp(TcpListener),
    /// A Unix socket.
    #[cfg(unix)]
    Unix(UnixListener),
}

impl Listener {
    /// Waits for a client.
    ///
    /// # Errors
    /// The system call failed, usually because no file descriptor is available.
    pub fn accept(&self) -> io::Result<Stream> {
        match self {
            Self::Tcp(listener) => listener.accept().map(|(stream, _)| stream.into()),
            #[cfg(unix)]
            Self::Unix(listener) => listener.accept().map(|(stream, _)| stream.into()),
        }
    }

    fn tcp(address: SocketAddr) -> io::Result<Self> {
        let listener = TcpListener::bind(address)?;
        os::set_backlog(&listener, BACKLOG)?;
        os::set_defer_accept(&listener, DEFER_ACCEPT_SECONDS)?;
        Ok(Self::Tcp(listener))
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
            #[cfg(unix)]
            Self::Unix(listener) => {
                let address = listener.local_addr().ok();
                match address.as_ref().and_then(UnixAddress::as_pathname) {
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
        #[cfg(unix)]
        ListenAddress::Unix(path) => unix_listener::bind(path).map(|listener| vec![listener]),
        // Settings refuse it.
        #[cfg(not(unix))]
        ListenAddress::Unix(_) => Err(ErrorKind::Unsupported.into()),
    }
    .map_err(|error| {
        let reason = match error.kind() {
            // An error of the system itself, whose text ends with its number.
            ErrorKind::AddrInUse if error.get_ref().is_none() => {
                "address in use: another process listens on it; choose another port, such as :9101"
                    .to_owned()
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

/// The TCP port that it listens on.
pub fn port_of(listener: &Listener) -> Option<u16> {
    match listener {
        Listener::Tcp(listener) => Some(listener.local_addr().ok()?.port()),
        #[cfg(unix)]
        Listener::Unix(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpStream;

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
