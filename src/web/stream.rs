//! A connection over TCP or a Unix socket, with an optional deadline.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::{Duration, Instant};

use crate::bounds::deadline;

/// A connection. It is read, written and shut down through a shared reference, so that one thread
/// can close a connection on which another one waits.
#[derive(Debug)]
pub struct Stream(TcpStream);

impl From<TcpStream> for Stream {
    fn from(stream: TcpStream) -> Stream {
        Stream(stream)
    }
}

/// `TcpStream` works with any stream socket.
#[cfg(unix)]
impl From<std::os::unix::net::UnixStream> for Stream {
    fn from(stream: std::os::unix::net::UnixStream) -> Stream {
        Stream(std::os::fd::OwnedFd::from(stream).into())
    }
}

impl Stream {
    /// The same connection, limited to `time` from now for all reads and writes together.
    pub fn within(&self, time: Duration) -> TimeLimited<'_> {
        TimeLimited {
            stream: self,
            end: deadline(Instant::now(), time),
        }
    }

    /// Sets how long a single read may wait; `None` is without limit.
    ///
    /// # Errors
    /// The time is zero, or the system call failed.
    pub fn set_read_timeout(&self, time: Option<Duration>) -> io::Result<()> {
        self.0.set_read_timeout(time)
    }

    /// Sets how long a single write may wait; `None` is without limit.
    ///
    /// # Errors
    /// The time is zero, or the system call failed.
    pub fn set_write_timeout(&self, time: Option<Duration>) -> io::Result<()> {
        self.0.set_write_timeout(time)
    }

    /// Whether the peer has reset the connection. Reported only once.
    pub fn is_reset(&self) -> bool {
        !matches!(self.0.take_error(), Ok(None))
    }

    /// Shuts down one direction or both. Wakes threads that wait on it. Ignores errors: the peer
    /// may have disconnected already.
    pub fn shutdown(&self, how: Shutdown) {
        let _ = self.0.shutdown(how);
    }
}

impl Read for &Stream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        (&self.0).read(buffer)
    }
}

impl Read for Stream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        (&*self).read(buffer)
    }
}

impl Write for &Stream {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        (&self.0).write(buffer)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A [`Stream`] with a deadline for all calls together, so a peer that sends single bytes cannot
/// extend it. After the deadline, every call fails with [`ErrorKind::TimedOut`].
#[derive(Debug)]
pub struct TimeLimited<'a> {
    stream: &'a Stream,
    end: Instant,
}

impl TimeLimited<'_> {
    fn left(&self) -> io::Result<Option<Duration>> {
        match self.end.saturating_duration_since(Instant::now()) {
            Duration::ZERO => Err(ErrorKind::TimedOut.into()),
            left => Ok(Some(left)),
        }
    }
}

/// The system reports the time-out of a socket as "would block".
fn timed_out(error: io::Error) -> io::Error {
    match error.kind() {
        ErrorKind::WouldBlock => ErrorKind::TimedOut.into(),
        _ => error,
    }
}

impl Read for TimeLimited<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.stream.set_read_timeout(self.left()?)?;
        let mut stream = self.stream;
        stream.read(buffer).map_err(timed_out)
    }
}

impl Write for TimeLimited<'_> {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        self.stream.set_write_timeout(self.left()?)?;
        let mut stream = self.stream;
        stream.write(buffer).map_err(timed_out)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;

    fn pair() -> (Stream, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        (ours.into(), theirs)
    }

    #[test]
    fn a_peer_that_sends_single_bytes_does_not_extend_the_deadline() {
        let (ours, mut theirs) = pair();
        theirs.write_all(b"x").unwrap();
        // It ends even if every byte extends the deadline, so that the test fails.
        let drip = std::thread::spawn(move || {
            let mut drops = 0;
            while drops < 500 && theirs.write_all(b"x").is_ok() {
                std::thread::sleep(Duration::from_millis(20));
                drops += 1;
            }
        });
        let start = Instant::now();
        let mut all = Vec::new();
        let error = ours
            .within(Duration::from_millis(200))
            .read_to_end(&mut all)
            .unwrap_err();
        assert_eq!(error.kind(), ErrorKind::TimedOut);
        assert!(!all.is_empty(), "what came in time was read");
        let took = start.elapsed();
        assert!(took >= Duration::from_millis(200), "{took:?}");
        drop(ours);
        drip.join().unwrap();
    }

    #[test]
    fn a_write_to_a_peer_that_does_not_read_times_out() {
        let (ours, _theirs) = pair();
        let error = ours
            .within(Duration::from_millis(100))
            .write_all(&vec![0; 10 << 20])
            .unwrap_err();
        assert_eq!(error.kind(), ErrorKind::TimedOut);
    }

    #[test]
    fn a_shutdown_wakes_the_reader() {
        let (ours, _theirs) = pair();
        std::thread::scope(|scope| {
            let reader = scope.spawn(|| ours.within(Duration::from_secs(30)).read(&mut [0]));
            std::thread::sleep(Duration::from_millis(50));
            ours.shutdown(Shutdown::Both);
            assert_eq!(reader.join().unwrap().unwrap(), 0);
        });
    }
}
