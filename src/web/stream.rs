//! A connection of either kind, TCP or Unix, and what bounds it in time.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use crate::bounds::deadline;

/// A connection. Reading, writing and shutting down work through a shared
/// reference, so one thread can cut a connection that another one waits on.
#[derive(Debug)]
pub enum Stream {
    /// Over TCP.
    Tcp(TcpStream),
    /// Over a Unix socket.
    Unix(UnixStream),
}

impl Stream {
    /// The same connection for no longer than `time`, counted from now and over
    /// all reads and writes together.
    pub fn within(&self, time: Duration) -> TimeLimited<'_> {
        TimeLimited {
            stream: self,
            end: deadline(Instant::now(), time),
        }
    }

    /// How long a single read may wait; `None` is for ever.
    ///
    /// # Errors
    /// A time of zero, or what the system says.
    pub fn set_read_timeout(&self, time: Option<Duration>) -> io::Result<()> {
        match self {
            Self::Tcp(stream) => stream.set_read_timeout(time),
            Self::Unix(stream) => stream.set_read_timeout(time),
        }
    }

    /// How long a single write may wait; `None` is for ever.
    ///
    /// # Errors
    /// A time of zero, or what the system says.
    pub fn set_write_timeout(&self, time: Option<Duration>) -> io::Result<()> {
        match self {
            Self::Tcp(stream) => stream.set_write_timeout(time),
            Self::Unix(stream) => stream.set_write_timeout(time),
        }
    }

    /// Whether the peer has reset the connection. Told once.
    pub fn is_reset(&self) -> bool {
        let error = match self {
            Self::Tcp(stream) => stream.take_error(),
            Self::Unix(stream) => stream.take_error(),
        };
        !matches!(error, Ok(None))
    }

    /// Ends one direction or both. Whoever waits on it is woken. That the peer
    /// is gone already is no error.
    pub fn shutdown(&self, how: Shutdown) {
        let _gone = match self {
            Self::Tcp(stream) => stream.shutdown(how),
            Self::Unix(stream) => stream.shutdown(how),
        };
    }
}

impl Read for &Stream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Stream::Tcp(stream) => (&*stream).read(buffer),
            Stream::Unix(stream) => (&*stream).read(buffer),
        }
    }
}

impl Read for Stream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        (&*self).read(buffer)
    }
}

impl Write for &Stream {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        match self {
            Stream::Tcp(stream) => (&*stream).write(buffer),
            Stream::Unix(stream) => (&*stream).write(buffer),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A [`Stream`] up to a moment. Each call waits for what is left of the time,
/// so a peer that drips byte by byte gains nothing; after it every call fails
/// with [`ErrorKind::TimedOut`].
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

/// The system reports the end of a socket's time-out as "would block".
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
    use super::*;

    fn pair() -> (Stream, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        (Stream::Unix(ours), theirs)
    }

    #[test]
    fn a_dripping_peer_does_not_prolong_the_time() {
        let (ours, mut theirs) = pair();
        theirs.write_all(b"x").unwrap();
        // It ends, for a reader whose time every byte prolongs.
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
    fn a_peer_that_does_not_read_ends_the_write() {
        let (ours, _theirs) = pair();
        let error = ours
            .within(Duration::from_millis(100))
            .write_all(&vec![0; 10 << 20])
            .unwrap_err();
        assert_eq!(error.kind(), ErrorKind::TimedOut);
    }

    #[test]
    fn a_cut_wakes_the_reader() {
        let (ours, _theirs) = pair();
        std::thread::scope(|scope| {
            let reader = scope.spawn(|| ours.within(Duration::from_secs(30)).read(&mut [0]));
            std::thread::sleep(Duration::from_millis(50));
            ours.shutdown(Shutdown::Both);
            assert_eq!(reader.join().unwrap().unwrap(), 0);
        });
    }
}
