//! The transport below HTTP: a TCP connection or a Unix socket. Unlike ureq's own, a connection can
//! stay open after its request has timed out, and is closed at the end of a poll.

use std::io::{self, Read, Write};
use std::net::{IpAddr, Shutdown, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use ureq::unversioned::transport::{
    Buffers, ConnectionDetails, Connector, LazyBuffers, NextTimeout, Transport,
};
use ureq::{Error, Timeout};

use crate::process::{os, threads};
use crate::upstream::http::peer_check::PeerCheck;

/// The connection of a request that timed out. It stays open: after the late response, the next
/// request may be sent. [`open_requests`](super::open_requests) explains why.
#[derive(Clone, Debug)]
pub struct PendingConnection(Arc<TcpStream>);

impl PendingConnection {
    /// Keeps `stream` open. If the peer disappears without closing it, the connection fails within
    /// about a minute.
    pub fn new(stream: Arc<TcpStream>) -> PendingConnection {
        // If the system does not support this, responses to other requests show the loss.
        let _ = os::detect_lost_peer(&stream);
        PendingConnection(stream)
    }

    /// Whether the server has responded, or closed the connection.
    pub fn is_over(&self) -> bool {
        !is_silent(&self.0)
    }
}

/// Whether the connection is open and has no unread data.
fn is_silent(stream: &TcpStream) -> bool {
    let is_silent = stream.set_nonblocking(true).is_ok()
        && stream
            .peek(&mut [0])
            .is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock);
    is_silent && stream.set_nonblocking(false).is_ok()
}

const OTHER_PEER: &str = "the process has ended, or another one listens at its address";

/// The connection of the last request.
#[derive(Clone, Debug, Default)]
pub struct LastConnection(Arc<Mutex<LastConnectionState>>);

#[derive(Debug, Default)]
struct LastConnectionState {
    stream: Option<Arc<TcpStream>>,
    /// Whether every address of the server refused the connection, or its Unix socket is gone.
    is_refused: bool,
    /// Applied to each new connection.
    check: Option<PeerCheck>,
    /// Whether the response may pause for any time: then only the connection shows that the server
    /// is lost.
    may_be_silent: bool,
    /// Whether no request may be sent any more.
    is_ended: bool,
}

impl LastConnection {
    /// Clears the state before a new request. The connection stays open in ureq's pool.
    pub fn reset(&self) {
        let mut state = self.state();
        *state = LastConnectionState {
            check: state.check.take(),
            is_ended: state.is_ended,
            ..LastConnectionState::default()
        };
    }

    /// Checks each new connection before anything is sent over it.
    pub fn check_peer(&self, check: PeerCheck) {
        self.state().check = Some(check);
    }

    /// Makes the connection of the next request fail within about a minute if the server disappears
    /// without closing it.
    pub fn expect_silence(&self) {
        self.state().may_be_silent = true;
    }

    /// Closes the connection, and fails all later requests. Another thread that is waiting for a
    /// response returns at once, or, while it connects, within its time-out.
    pub fn end(&self) {
        self.state().is_ended = true;
        self.close();
    }

    /// The address of the server; `None` if it has a Unix socket.
    pub fn peer(&self) -> Option<IpAddr> {
        let address = self.state().stream.as_ref()?.peer_addr().ok()?;
        Some(address.ip())
    }

    /// Returns the connection of a request that timed out after it was sent.
    pub fn take_pending(&self) -> Option<PendingConnection> {
        self.state().stream.take().map(PendingConnection::new)
    }

    /// Whether [`LastConnection::end`] was called.
    pub fn is_ended(&self) -> bool {
        self.state().is_ended
    }

    /// Whether the last request was sent, and its connection was not closed here.
    pub fn is_open(&self) -> bool {
        self.state().stream.is_some()
    }

    /// Whether every address of the server refused the connection, or its Unix socket is gone.
    pub fn is_refused(&self) -> bool {
        self.state().is_refused
    }

    /// Closes the connection; ureq's pool notices.
    pub fn close(&self) {
        if let Some(stream) = self.state().stream.take() {
            // An error means that it is closed already.
            let _ = stream.shutdown(Shutdown::Both);
        }
    }

    fn state(&self) -> MutexGuard<'_, LastConnectionState> {
        threads::lock(&self.0)
    }
}

/// Opens connections and keeps [`LastConnection`] up to date.
#[derive(Debug)]
pub struct SocketConnector {
    /// The Unix socket to connect to, instead of the addresses in the URL of a request.
    pub unix_socket: Option<PathBuf>,
    /// The connection of the last request.
    pub last: LastConnection,
}

impl Connector for SocketConnector {
    type Out = SocketTransport;

    fn connect(
        &self,
        details: &ConnectionDetails,
        _: Option<()>,
    ) -> Result<Option<SocketTransport>, Error> {
        let stream = match &self.unix_socket {
            Some(path) => self.connect_unix(path, *details.timeout.after)?,
            None => self.connect_tcp(details)?,
        };
        let check = self.last.state().check.clone();
        if let Some(PeerCheck(check)) = check
            && !check(os::listener_pid(&stream).ok())
        {
            return Err(io::Error::other(OTHER_PEER).into());
        }
        let (input, output) = (
            details.config.input_buffer_size(),
            details.config.output_buffer_size(),
        );
        Ok(Some(SocketTransport {
            stream: Arc::new(stream),
            buffers: LazyBuffers::new(input, output),
            last: self.last.clone(),
        }))
    }
}

impl SocketConnector {
    fn connect_tcp(&self, details: &ConnectionDetails) -> Result<TcpStream, Error> {
        let started = Instant::now();
        let mut last_error = Error::HostNotFound;
        let mut all_refused = !details.addrs.is_empty();
        // Each address gets an equal share of the remaining time.
        for (address, remaining) in details.addrs.iter().zip((1..=details.addrs.len()).rev()) {
            let time = details.timeout.after.saturating_sub(started.elapsed());
            let share = u32::try_from(remaining)
                .ok()
                .and_then(|n| time.checked_div(n));
            let share = share.unwrap_or(time);
            if share.is_zero() {
                return Err(Error::Timeout(Timeout::Connect));
            }
            match TcpStream::connect_timeout(address, share) {
                Ok(stream) => {
                    stream.set_nodelay(true)?;
                    if self.last.state().may_be_silent {
                        // If the system does not support this, the connection stays open.
                        let _ = os::detect_lost_peer(&stream);
                    }
                    return Ok(stream);
                }
                Err(error) => {
                    all_refused &= error.kind() == io::ErrorKind::ConnectionRefused;
                    last_error = match error.kind() {
                        io::ErrorKind::TimedOut => Error::Timeout(Timeout::Connect),
                        _ => error.into(),
                    };
                }
            }
        }
        self.last.state().is_refused = all_refused;
        Err(last_error)
    }

    fn connect_unix(&self, path: &Path, time: Duration) -> Result<TcpStream, Error> {
        if time.is_zero() {
            return Err(Error::Timeout(Timeout::Connect));
        }
        match os::connect_unix(path, time) {
            Ok(stream) => Ok(stream),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                Err(Error::Timeout(Timeout::Connect))
            }
            Err(error) => {
                self.last.state().is_refused = matches!(
                    error.kind(),
                    io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound
                );
                Err(io::Error::new(error.kind(), socket_error(path, &error)).into())
            }
        }
    }
}

/// Why connecting to a Unix socket failed, and what to do, for the user.
fn socket_error(path: &Path, error: &io::Error) -> String {
    let is_other = path.is_file() || path.is_dir();
    let advice = match error.kind() {
        io::ErrorKind::ConnectionRefused if !is_other => {
            "nothing listens on the socket: start its server again; llama-server cannot replace a \
             socket that a killed server has left, so remove it first"
        }
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
            "there is no socket at this path: start llama-server with --host PATH, where PATH ends \
             in .sock, or correct --base-url; a container needs the socket's folder as a volume"
        }
        io::ErrorKind::PermissionDenied => {
            "no permission to connect to the socket: run the exporter as the server's user or \
             group, or let it write to the socket and enter its folder"
        }
        _ => return error.to_string(),
    };
    advice.to_owned()
}

/// One connection.
#[derive(Debug)]
pub struct SocketTransport {
    /// A TCP connection or a Unix socket.
    stream: Arc<TcpStream>,
    buffers: LazyBuffers,
    last: LastConnection,
}

impl Transport for SocketTransport {
    fn buffers(&mut self) -> &mut dyn Buffers {
        &mut self.buffers
    }

    fn transmit_output(&mut self, amount: usize, timeout: NextTimeout) -> Result<(), Error> {
        let mut last = self.last.state();
        if last.is_ended {
            return Err(Error::ConnectionFailed);
        }
        last.stream = Some(Arc::clone(&self.stream));
        drop(last);
        self.stream.set_write_timeout(Some(time_left(timeout)?))?;
        let output = &self.buffers.output()[..amount];
        let written = (&*self.stream).write_all(output);
        written.map_err(|error| with_timeout(error, timeout))
    }

    fn await_input(&mut self, timeout: NextTimeout) -> Result<bool, Error> {
        self.stream.set_read_timeout(Some(time_left(timeout)?))?;
        let input = self.buffers.input_append_buf();
        if input.is_empty() {
            // Reading into an empty buffer would look like the end of the response.
            let size = self.buffers.input().len();
            return Err(Error::LargeResponseHeader(size, size));
        }
        let amount = loop {
            match (&*self.stream).read(input) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                other => break other.map_err(|error| with_timeout(error, timeout))?,
            }
        };
        self.buffers.input_appended(amount);
        Ok(amount > 0)
    }

    fn is_open(&mut self) -> bool {
        // Between two responses, no data is expected: data, an end or an error mean it is unusable.
        is_silent(&self.stream)
    }
}

/// The time until the deadline. An error if it is zero, which is no valid time-out of a socket.
fn time_left(timeout: NextTimeout) -> Result<Duration, Error> {
    let left = *timeout.after;
    if left.is_zero() {
        return Err(Error::Timeout(timeout.reason));
    }
    Ok(left)
}

fn with_timeout(error: io::Error, timeout: NextTimeout) -> Error {
    match error.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => Error::Timeout(timeout.reason),
        _ => error.into(),
    }
}
