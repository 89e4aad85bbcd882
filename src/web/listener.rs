//! The address that the exporter serves at: reading it, listening at it, and
//! asking what is served there.

use std::fmt;
use std::fs;
use std::io::{self, BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, ToSocketAddrs};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::{self as unix, UnixDatagram, UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use crate::process::os;
use crate::web::stream::Stream;

/// Connections that may wait to be accepted. Four times as many were slower
/// under a burst, an eighth made clients wait for a retry.
const BACKLOG: i32 = 1024;

/// How long the system may keep a connection to itself that has not sent anything.
/// Clients that connect and are silent then take nobody's time, and one that was
/// held up between connecting and asking is not taken for one of them.
const DEFER_ACCEPT_SECONDS: i32 = 1;

/// The most that is read of an answer to [`Address::get`].
const ANSWER_LIMIT: u64 = 64 << 10;

/// Where to serve.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// `:9100`: every address of the machine, IPv6 and IPv4.
    Any(u16),
    /// `127.0.0.1:9100`, `[::1]:9100`.
    Ip(SocketAddr),
    /// `localhost:9100`: all addresses that the name has when it is needed.
    Name(String, u16),
    /// `unix:/run/x.sock`: a socket in the file system, by its absolute path.
    Unix(PathBuf),
}

/// A text that is no [`Address`]; says which forms are accepted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AddressError(&'static str);

impl fmt::Display for AddressError {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(self.0)
    }
}

impl std::error::Error for AddressError {}

impl FromStr for Address {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        const FORMS: AddressError = AddressError(
            "expected :PORT (every address), IP:PORT, [IPV6]:PORT, NAME:PORT or unix:/PATH, \
             like :9100, 127.0.0.1:9100, [::1]:9100, localhost:9100 or unix:/run/exporter.sock",
        );
        if let Some(path) = text.strip_prefix("unix:") {
            return unix_path(path).map(Self::Unix);
        }
        let (host, port) = text.rsplit_once(':').ok_or(FORMS)?;
        if !port.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(FORMS); // `parse` would take a sign.
        }
        let port = port.parse().map_err(|_| FORMS)?;
        if host.is_empty() {
            return Ok(Self::Any(port));
        }
        if let Ok(address) = text.parse() {
            return Ok(Self::Ip(address));
        }
        let of_a_name = |byte: u8| byte.is_ascii_alphanumeric() || b"-._".contains(&byte);
        // A name has a letter; 1.2.3 and 300.1.1.1 are addresses gone wrong.
        if host.bytes().all(of_a_name) && host.bytes().any(|byte| byte.is_ascii_alphabetic()) {
            return Ok(Self::Name(host.to_owned(), port));
        }
        Err(FORMS)
    }
}

fn unix_path(path: &str) -> Result<PathBuf, AddressError> {
    if !path.starts_with('/') {
        // A relative path would be another file to a process elsewhere.
        return Err(AddressError(
            "expected an absolute path after unix:, like unix:/run/exporter.sock",
        ));
    }
    if unix::SocketAddr::from_pathname(path).is_err() {
        return Err(AddressError(
            "the path after unix: is too long for a socket: at most 107 bytes on Linux, \
             103 elsewhere",
        ));
    }
    Ok(PathBuf::from(path))
}

impl fmt::Display for Address {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Any(port) => write!(out, ":{port}"),
            Self::Ip(address) => write!(out, "{address}"),
            Self::Name(name, port) => write!(out, "{name}:{port}"),
            Self::Unix(path) => write!(out, "unix:{}", path.display()),
        }
    }
}

/// A socket that listens.
#[derive(Debug)]
pub enum Listener {
    /// For TCP.
    Tcp(TcpListener),
    /// For a Unix socket.
    Unix(UnixListener),
}

impl Listener {
    /// Waits for a client.
    ///
    /// # Errors
    /// What the system says: out of descriptors, most of all.
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

    /// Owner and group may connect, whatever the umask. The file is removed at
    /// the end, unless it is another one by then.
    fn unix(path: &Path) -> io::Result<Self> {
        const NOT_FOR_OTHERS: u16 = 0o117;
        let listener = os::with_umask(NOT_FOR_OTHERS, || UnixListener::bind(path))?;
        os::set_backlog(&listener, BACKLOG)?;
        let (ours, path) = (FileId::of(path)?, path.to_owned());
        os::before_end(move || {
            let _gone = ours.remove(&path);
        })?;
        Ok(Self::Unix(listener))
    }
}

/// The real address, with the port that the system chose for port 0.
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

impl Address {
    /// Listens: one socket for most addresses, two where IPv6 and IPv4 need one
    /// each, one for each address of a name. A socket file is removed when a
    /// signal ends the process (see [`os::exit_on_signals`]).
    ///
    /// # Errors
    /// A sentence for people, with the address in it: it is in use, it is not
    /// of this machine, the port needs a privilege, the name is unknown, the
    /// path holds a file that is not a stale socket.
    pub fn bind(&self) -> io::Result<Vec<Listener>> {
        match self {
            Self::Any(port) => bind_any(*port),
            Self::Ip(address) => Listener::tcp(*address).map(|listener| vec![listener]),
            Self::Name(name, port) => bind_each((name.as_str(), *port).to_socket_addrs()?),
            Self::Unix(path) => bind_unix(path).map(|listener| vec![listener]),
        }
        .map_err(|error| {
            let reason = match error.kind() {
                // The bare error of the system, which ends in its number.
                ErrorKind::AddrInUse if error.get_ref().is_none() => {
                    "address in use: another process listens there".to_owned()
                }
                ErrorKind::AddrNotAvailable => "that is no address of this machine".to_owned(),
                _ => error.to_string(),
            };
            io::Error::new(error.kind(), format!("cannot listen on {self}: {reason}"))
        })
    }

    /// Asks what is served at this address, on this machine, for `path`, and
    /// gives the answer after no more than `time` in all. `:9100` is asked over
    /// loopback, with IPv6 and then with IPv4.
    ///
    /// # Errors
    /// Nobody listens, no answer in time, or an answer that is not HTTP.
    pub fn get(&self, path: &str, time: Duration) -> io::Result<Answer> {
        let (sender, receiver) = mpsc::channel();
        let (address, path) = (self.clone(), path.to_owned());
        // Names are resolved and Unix sockets connected without a time-out of
        // their own; on a thread of its own the whole has one.
        thread::Builder::new().spawn(move || {
            let answer = address
                .connect(time)
                .and_then(|stream| ask(&stream, &path, time));
            let _nobody_waits = sender.send(answer);
        })?;
        receiver
            .recv_timeout(time)
            .unwrap_or_else(|_| Err(io::Error::new(ErrorKind::TimedOut, "no answer in time")))
    }

    fn connect(&self, time: Duration) -> io::Result<Stream> {
        let v6 = |port| SocketAddr::from((Ipv6Addr::LOCALHOST, port));
        let v4 = |port| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let candidates = match self {
            Self::Unix(path) => return UnixStream::connect(path).map(Stream::Unix),
            Self::Any(port) => vec![v6(*port), v4(*port)],
            Self::Ip(address) => match address.ip() {
                IpAddr::V6(Ipv6Addr::UNSPECIFIED) => vec![v6(address.port()), v4(address.port())],
                IpAddr::V4(Ipv4Addr::UNSPECIFIED) => vec![v4(address.port())],
                _ => vec![*address],
            },
            Self::Name(name, port) => (name.as_str(), *port).to_socket_addrs()?.collect(),
        };
        let mut result = Err(ErrorKind::AddrNotAvailable.into());
        for address in candidates {
            result = TcpStream::connect_timeout(&address, time).map(Stream::Tcp);
            if result.is_ok() {
                break;
            }
        }
        result
    }
}

/// What [`Address::get`] heard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The HTTP status, 200 for instance.
    pub status: u16,
    /// The first line of the body, without its end.
    pub line: String,
}

fn ask(stream: &Stream, path: &str, time: Duration) -> io::Result<Answer> {
    let mut stream = stream.within(time);
    let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes())?;
    read_answer(BufReader::new(stream.take(ANSWER_LIMIT)))
}

fn read_answer(answer: impl BufRead) -> io::Result<Answer> {
    let not_http = || io::Error::new(ErrorKind::InvalidData, "the answer is not HTTP");
    let mut lines = answer.lines();
    let first = lines.next().ok_or_else(not_http)??;
    let status = first
        .strip_prefix("HTTP/1.")
        .and_then(|rest| rest.split(' ').nth(1))
        .and_then(|status| status.parse().ok())
        .ok_or_else(not_http)?;
    let mut body = lines.skip_while(|line| line.as_ref().is_ok_and(|line| !line.is_empty()));
    body.next().ok_or_else(not_http)??; // The empty line after the head.
    let line = body.next().transpose()?.unwrap_or_default();
    Ok(Answer { status, line })
}

fn bind_any(port: u16) -> io::Result<Vec<Listener>> {
    let v4 = |port| Listener::tcp((Ipv4Addr::UNSPECIFIED, port).into());
    let v6 = match Listener::tcp((Ipv6Addr::UNSPECIFIED, port).into()) {
        Ok(listener) => listener,
        Err(error) if error.kind() == ErrorKind::AddrInUse => return Err(error),
        Err(_) => return v4(port).map(|listener| vec![listener]), // IPv6 is off.
    };
    // Where the system keeps IPv6 sockets to IPv6 alone, IPv4 needs its own.
    // Elsewhere the port is taken, by the very socket that we have.
    match v4(port_of(&v6).unwrap_or(port)) {
        Ok(v4) => Ok(vec![v6, v4]),
        Err(error) if error.kind() == ErrorKind::AddrInUse && is_v6_only() => Err(error),
        Err(_) => Ok(vec![v6]),
    }
}

fn is_v6_only() -> bool {
    fs::read_to_string("/proc/sys/net/ipv6/bindv6only").is_ok_and(|value| value.trim() == "1")
}

/// The addresses of a name that this machine does not have, an IPv6 one where
/// IPv6 is off for instance, are passed over while another one works.
fn bind_each(addresses: impl Iterator<Item = SocketAddr>) -> io::Result<Vec<Listener>> {
    let mut listeners = Vec::new();
    let mut failure = ErrorKind::AddrNotAvailable.into();
    for mut address in addresses {
        if let Some(port) = listeners.first().and_then(port_of) {
            address.set_port(port); // One port for all, also when any will do.
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

fn port_of(listener: &Listener) -> Option<u16> {
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
                    "a file that is not a socket is in the way",
                ));
            }
            // Another process may be replacing the stale one as well: then this one is
            // gone, and the other's has its place.
            if is_live(path)? || !found.remove(path)? {
                return Err(error);
            }
            Listener::unix(path)
        }
        result => result,
    }
}

/// Which file it is that a path names, not followed where it is a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct FileId {
    device: u64,
    inode: u64,
    /// A file system may give the inode of a removed file to the next one at once.
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

    /// Removes the file, unless `path` names another one by now; says whether it was this one.
    fn remove(self, path: &Path) -> io::Result<bool> {
        let is_this = Self::of(path).is_ok_and(|now| now == self);
        if is_this {
            fs::remove_file(path)?;
        }
        Ok(is_this)
    }
}

/// Whether somebody listens at a socket file. A datagram cannot connect to a
/// stream socket, but is told apart from nobody, and never waits in a queue.
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
    use std::env;
    use std::process;
    use std::sync::atomic::{AtomicU32, Ordering};

    #[test]
    fn addresses_are_read_and_written_alike() {
        let ip = |text: &str| Address::Ip(text.parse().unwrap());
        let name = |name: &str, port| Address::Name(name.into(), port);
        for (text, address) in [
            (":9100", Address::Any(9100)),
            (":0", Address::Any(0)),
            ("127.0.0.1:9100", ip("127.0.0.1:9100")),
            ("0.0.0.0:65535", ip("0.0.0.0:65535")),
            ("[::1]:9100", ip("[::1]:9100")),
            ("[::]:9100", ip("[::]:9100")),
            ("localhost:9100", name("localhost", 9100)),
            ("my-host.example_1:80", name("my-host.example_1", 80)),
            ("unix:/run/x.sock", Address::Unix("/run/x.sock".into())),
            ("unix:/a:1/b c", Address::Unix("/a:1/b c".into())),
        ] {
            assert_eq!(text.parse(), Ok(address.clone()), "{text}");
            assert_eq!(address.to_string(), text);
        }
    }

    #[test]
    fn what_is_no_address_is_told_the_forms() {
        for text in [
            "",
            ":",
            "9100",
            ":65536",
            ":-1",
            ":+1",
            ":9100x",
            "localhost",
            "localhost:",
            "127.0.0.1",
            "127.0.0.256:9100",
            "1.2.3:9100",
            "::1:9100",
            "[::1]",
            "[::g]:9100",
            "http://localhost:9100",
            "a b:9100",
            "*:9100",
        ] {
            let error = text.parse::<Address>().unwrap_err().to_string();
            assert!(error.contains("expected :PORT"), "{text}: {error}");
        }
    }

    #[test]
    fn paths_that_cannot_be_sockets_are_told_apart() {
        let error = |text: &str| text.parse::<Address>().unwrap_err().to_string();
        assert!(error("unix:").contains("absolute path"));
        assert!(error("unix:run/x.sock").contains("absolute path"));
        assert!(error(&format!("unix:/{}", "x".repeat(200))).contains("too long"));
    }

    /// A path that no other test has, removed at the end.
    struct Scratch(PathBuf);

    impl Scratch {
        fn new() -> Self {
            static COUNT: AtomicU32 = AtomicU32::new(0);
            let number = COUNT.fetch_add(1, Ordering::Relaxed);
            Self(env::temp_dir().join(format!("listen-{}-{number}", process::id())))
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            let _absent = fs::remove_file(&self.0);
        }
    }

    #[test]
    fn a_stale_socket_is_replaced_and_a_live_one_is_not() {
        let path = Scratch::new();
        let address = Address::Unix(path.0.clone());
        drop(address.bind().unwrap()); // Leaves its file.
        assert!(path.0.exists());

        let listeners = address.bind().unwrap();
        assert_eq!(listeners[0].to_string(), address.to_string());
        let error = address.bind().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::AddrInUse);
        assert!(error.to_string().contains("address in use"), "{error}");
        let _client = UnixStream::connect(&path.0).unwrap();
        listeners[0].accept().unwrap();
    }

    /// Two exporters that start at once find the same stale socket.
    #[test]
    fn what_has_replaced_a_stale_socket_is_left_alone() {
        let path = Scratch::new();
        drop(UnixListener::bind(&path.0).unwrap());
        let stale = FileId::of(&path.0).unwrap();
        fs::remove_file(&path.0).unwrap();
        assert!(!stale.remove(&path.0).unwrap());
        // On many file systems it has the inode of the stale one. Their times differ once the
        // clock of the kernel has ticked.
        thread::sleep(Duration::from_millis(50));
        let _other = UnixListener::bind(&path.0).unwrap();
        assert!(!stale.remove(&path.0).unwrap());
        assert!(path.0.exists());
        assert!(FileId::of(&path.0).unwrap().remove(&path.0).unwrap());
        assert!(!path.0.exists());
    }

    #[test]
    fn a_live_socket_with_a_full_queue_does_not_hold_us_up() {
        let path = Scratch::new();
        let listener = UnixListener::bind(&path.0).unwrap();
        os::set_backlog(&listener, 0).unwrap();
        let _queued = UnixStream::connect(&path.0).unwrap();
        let error = Address::Unix(path.0.clone()).bind().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::AddrInUse);
    }

    #[test]
    fn a_file_or_link_in_the_way_is_left_alone() {
        let file = Scratch::new();
        fs::write(&file.0, "precious").unwrap();
        let error = Address::Unix(file.0.clone()).bind().unwrap_err();
        assert!(error.to_string().contains("not a socket"), "{error}");
        assert_eq!(fs::read_to_string(&file.0).unwrap(), "precious");

        let (socket, link) = (Scratch::new(), Scratch::new());
        drop(UnixListener::bind(&socket.0).unwrap());
        std::os::unix::fs::symlink(&socket.0, &link.0).unwrap();
        assert!(Address::Unix(link.0.clone()).bind().is_err());
        assert!(link.0.is_symlink() && socket.0.exists());
    }

    /// Serves one connection with fixed bytes.
    fn answer_once(listener: Listener, answer: &'static str) {
        thread::spawn(move || {
            let mut stream = listener.accept().unwrap();
            let _request = stream.read(&mut [0; 1000]).unwrap();
            (&stream).write_all(answer.as_bytes()).unwrap();
        });
    }

    const WAIT: Duration = Duration::from_secs(5);

    #[test]
    fn every_address_that_can_be_served_can_be_asked() {
        let path = Scratch::new();
        let unix = format!("unix:{}", path.0.display());
        for text in [":0", "127.0.0.1:0", "0.0.0.0:0", "localhost:0", &unix] {
            let mut listeners = text.parse::<Address>().unwrap().bind().unwrap();
            let port = port_of(&listeners[0]).map_or(String::new(), |port| port.to_string());
            let address: Address = text.replace(":0", &format!(":{port}")).parse().unwrap();
            for listener in listeners.drain(..) {
                answer_once(
                    listener,
                    "HTTP/1.1 503 No\r\nA: b\r\n\r\nno poll for 9 s\nmore",
                );
            }
            let answer = address.get("/healthz", WAIT).unwrap();
            assert_eq!(answer.status, 503, "{text}");
            assert_eq!(answer.line, "no poll for 9 s", "{text}");
        }
    }

    #[test]
    fn every_address_means_ipv4_too() {
        let listeners = Address::Any(0).bind().unwrap();
        let port = port_of(&listeners[0]).unwrap();
        assert!(TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_ok());
        assert_eq!(
            Address::Any(port).bind().unwrap_err().kind(),
            ErrorKind::AddrInUse
        );
    }

    #[test]
    fn a_server_that_never_answers_is_not_waited_for() {
        let listeners = "127.0.0.1:0".parse::<Address>().unwrap().bind().unwrap();
        let address: Address = listeners[0].to_string().parse().unwrap();
        let error = address.get("/", Duration::from_millis(100)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::TimedOut);
        drop(listeners);
        let error = address.get("/", WAIT).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
    }

    #[test]
    fn answers_that_are_not_http_are_errors() {
        for text in [
            "",
            "SSH-2.0\r\n",
            "HTTP/1.1\r\n\r\n",
            "HTTP/1.1 OK\r\n\r\n",
            "HTTP/1.1 200 OK\r\n",
        ] {
            assert!(read_answer(text.as_bytes()).is_err(), "{text:?}");
        }
        let answer = read_answer(&b"HTTP/1.0 204 None\r\n\r\n"[..]).unwrap();
        assert_eq!((answer.status, answer.line.as_str()), (204, ""));
    }

    #[test]
    fn an_address_of_another_machine_is_told_so() {
        let error = "192.0.2.1:0".parse::<Address>().unwrap().bind();
        let error = error.unwrap_err().to_string();
        assert!(
            error.starts_with("cannot listen on 192.0.2.1:0: "),
            "{error}"
        );
        assert!(error.contains("no address of this machine"), "{error}");
    }
}
