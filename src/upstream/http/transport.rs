//! The TCP connection below HTTP: as ureq's own, but one that can be kept open
//! after its question has timed out, and closed when a poll is over.

use std::io::{self, Read, Write};
use std::net::{IpAddr, Shutdown, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use ureq::unversioned::transport::{
    Buffers, ConnectionDetails, Connector, LazyBuffers, NextTimeout, Transport,
};
use ureq::{Error, Timeout};

use crate::process::os;

/// A question that timed out and is kept open, so that the server's late answer
/// tells when it may be asked again.
///
/// Closing it would not take it back: llama-server leaves it in its queue, and
/// one of its HTTP threads with it, until the batch at hand is done.
#[derive(Clone, Debug)]
pub struct PendingConnection(Arc<TcpStream>);

impl PendingConnection {
    /// Watches `stream`, also for a peer that is gone without a word: then the connection ends
    /// with an error within about a minute.
    pub fn new(stream: Arc<TcpStream>) -> PendingConnection {
        // Where the system cannot, a lost connection is noticed by other requests' answers.
        let _ = os::detect_lost_peer(&stream);
        PendingConnection(stream)
    }

    /// Whether the server has answered by now, or closed the connection.
    pub fn is_over(&self) -> bool {
        if self.0.set_nonblocking(true).is_err() {
            return true;
        }
        match self.0.peek(&mut [0]) {
            Ok(_) => true,
            Err(error) => error.kind() != io::ErrorKind::WouldBlock,
        }
    }
}

/// The connection that the last question went over.
#[derive(Clone, Debug, Default)]
pub struct LastConnection(Arc<Mutex<Used>>);

#[derive(Debug, Default)]
struct Used {
    stream: Option<Arc<TcpStream>>,
    /// Whether every address of the server refused the connection.
    refused: bool,
}

impl LastConnection {
    /// Forgets which connection it was, before a new question.
    pub fn put_down(&self) {
        // What is forgotten here stays open in ureq's pool; see `hang_up`.
        *self.used() = Used::default();
    }

    /// The address at the other end of the connection that the last question went over.
    pub fn peer(&self) -> Option<IpAddr> {
        let address = self.used().stream.as_ref()?.peer_addr().ok()?;
        Some(address.ip())
    }

    /// Takes the connection of a question that timed out after it was sent.
    pub fn keep_waiting(&self) -> Option<PendingConnection> {
        self.swap(None).map(PendingConnection::new)
    }

    /// Whether nobody listens at the server's address.
    pub fn is_refused(&self) -> bool {
        self.used().refused
    }

    /// Ends the connection of the last question; the pool notices.
    pub fn hang_up(&self) {
        if let Some(stream) = self.swap(None) {
            // An error means that it is closed already.
            let _ = stream.shutdown(Shutdown::Both);
        }
    }

    fn swap(&self, stream: Option<Arc<TcpStream>>) -> Option<Arc<TcpStream>> {
        std::mem::replace(&mut self.used().stream, stream)
    }

    fn used(&self) -> MutexGuard<'_, Used> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Opens TCP connections and tells `LastConnection` which one is in use.
#[derive(Debug)]
pub struct TcpConnector {
    line: LastConnection,
}

impl TcpConnector {
    /// A connector whose connections are seen on `line`.
    pub fn new(line: LastConnection) -> TcpConnector {
        TcpConnector { line }
    }
}

impl Connector for TcpConnector {
    type Out = TcpTransport;

    fn connect(
        &self,
        details: &ConnectionDetails,
        _: Option<()>,
    ) -> Result<Option<TcpTransport>, Error> {
        let started = Instant::now();
        let mut last = Error::HostNotFound;
        let mut all_refused = true;
        for (tried, address) in details.addrs.iter().enumerate() {
            // Each address gets an even share of the time that is left.
            let left = details.addrs.len().saturating_sub(tried);
            let left = u32::try_from(left).unwrap_or(u32::MAX);
            let time = details.timeout.after.saturating_sub(started.elapsed());
            let share = time.checked_div(left).unwrap_or(time);
            if share.is_zero() {
                return Err(Error::Timeout(Timeout::Connect));
            }
            match TcpStream::connect_timeout(address, share) {
                Ok(stream) => {
                    stream.set_nodelay(true)?;
                    let config = details.config;
                    return Ok(Some(TcpTransport {
                        stream: Arc::new(stream),
                        buffers: LazyBuffers::new(
                            config.input_buffer_size(),
                            config.output_buffer_size(),
                        ),
                        line: self.line.clone(),
                    }));
                }
                Err(error) => {
                    all_refused &= error.kind() == io::ErrorKind::ConnectionRefused;
                    last = match error.kind() {
                        io::ErrorKind::TimedOut => Error::Timeout(Timeout::Connect),
                        _ => error.into(),
                    };
                }
            }
        }
        self.line.used().refused = all_refused && !details.addrs.is_empty();
        Err(last)
    }
}

/// One TCP connection.
#[derive(Debug)]
pub struct TcpTransport {
    stream: Arc<TcpStream>,
    buffers: LazyBuffers,
    line: LastConnection,
}

impl Transport for TcpTransport {
    fn buffers(&mut self) -> &mut dyn Buffers {
        &mut self.buffers
    }

    fn transmit_output(&mut self, amount: usize, timeout: NextTimeout) -> Result<(), Error> {
        self.line.swap(Some(Arc::clone(&self.stream)));
        self.stream.set_write_timeout(Some(remaining(timeout)?))?;
        let output = &self.buffers.output()[..amount];
        (&*self.stream)
            .write_all(output)
            .map_err(|error| timed(error, timeout))
    }

    fn await_input(&mut self, timeout: NextTimeout) -> Result<bool, Error> {
        self.stream.set_read_timeout(Some(remaining(timeout)?))?;
        let input = self.buffers.input_append_buf();
        if input.is_empty() {
            // A read of nothing would look like the end of the answer.
            let size = self.buffers.input().len();
            return Err(Error::LargeResponseHeader(size, size));
        }
        let amount = loop {
            match (&*self.stream).read(input) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                other => break other.map_err(|error| timed(error, timeout))?,
            }
        };
        self.buffers.input_appended(amount);
        Ok(amount > 0)
    }

    fn is_open(&mut self) -> bool {
        // Between two answers nothing is to come: bytes, an end or an error all mean no.
        let quiet = |stream: &TcpStream| -> io::Result<bool> {
            stream.set_nonblocking(true)?;
            let quiet =
                matches!(stream.peek(&mut [0]), Err(e) if e.kind() == io::ErrorKind::WouldBlock);
            stream.set_nonblocking(false)?;
            Ok(quiet)
        };
        quiet(&self.stream).unwrap_or(false)
    }
}

/// What is left of the deadline; a socket takes no time-out of zero.
fn remaining(timeout: NextTimeout) -> Result<Duration, Error> {
    let left = *timeout.after;
    if left.is_zero() {
        Err(Error::Timeout(timeout.reason))
    } else {
        Ok(left)
    }
}

fn timed(error: io::Error, timeout: NextTimeout) -> Error {
    match error.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => Error::Timeout(timeout.reason),
        _ => error.into(),
    }
}
