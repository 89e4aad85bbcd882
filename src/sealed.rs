//! The one connection that tiny_http ever serves.
//!
//! tiny_http ends for good at an error of `accept`, starts a thread for each
//! connection, believes any length that it is told and waits for ever. So it
//! gets a listener that nobody else knows, accepts a single connection from
//! it, ours, and then stops accepting. What it is asked afterwards comes from
//! the [gate](crate::gate) alone, well formed and one at a time.

use std::io::{self, BufRead, BufReader, ErrorKind, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::sync::Mutex;
use std::time::Duration;

use tiny_http::{Listener, Response, Server};

use crate::os;
use crate::stream::Stream;

/// An answer is a matter of microseconds. A main loop that takes this long is
/// stuck, and the process ends rather than look alive.
const PATIENCE: Duration = Duration::from_secs(30);

/// The gate's end of the connection.
#[derive(Debug)]
pub struct Sealed(Mutex<BufReader<Stream>>);

impl Sealed {
    /// Starts tiny_http behind a sealed connection. The server lives as long as
    /// the process: dropping it makes it connect to itself.
    ///
    /// # Errors
    /// What the system says: out of descriptors, for instance.
    pub fn new() -> io::Result<(&'static Server, Self)> {
        // An abstract Unix socket where there are such and they are allowed,
        // else a port of the loopback interface.
        Self::over(abstract_listener().or_else(|_| loopback_listener())?)
    }

    fn over(listener: Listener) -> io::Result<(&'static Server, Self)> {
        let handle = try_clone(&listener)?;
        let server = Server::from_listener(listener, None).map_err(io::Error::other)?;
        let server: &Server = Box::leak(Box::new(server));
        let mut connection = BufReader::new(connect(&handle)?);

        // Only what has been accepted can be answered.
        write_request(connection.get_ref(), "HEAD", "/")?;
        server.recv()?.respond(Response::empty(200))?;
        read_answer(&mut connection, false)?;

        // A connection that we drop wakes tiny_http from its wait, and the next
        // wait ends its accept loop. (Set any earlier, "non-blocking" would
        // pass to the connection on systems other than Linux.)
        set_nonblocking(&handle)?;
        drop(connect(&handle)?);
        match server.recv() {
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
            Ok(_) => return Err(io::Error::other("a stranger came in at the start")),
        }
        Ok((server, Self(Mutex::new(connection))))
    }

    /// Asks tiny_http, and gives the whole answer, ready to be sent on to a
    /// client. `method` is `GET` or `HEAD`, `target` printable ASCII without
    /// spaces. Others may be asking: `is_wanted` is looked at when it is our
    /// turn, and `None` is what comes of it when it says no.
    ///
    /// # Errors
    /// The connection is of no more use after any error.
    pub fn ask(
        &self,
        method: &str,
        target: &str,
        is_wanted: impl FnOnce() -> bool,
    ) -> io::Result<Option<Vec<u8>>> {
        let mut connection = self.0.lock().map_err(|_| ErrorKind::BrokenPipe)?;
        if !is_wanted() {
            return Ok(None);
        }
        write_request(connection.get_ref(), method, target)?;
        read_answer(&mut *connection, method != "HEAD").map(Some)
    }
}

fn write_request(mut connection: &Stream, method: &str, target: &str) -> io::Result<()> {
    connection.write_all(format!("{method} {target} HTTP/1.1\r\n\r\n").as_bytes())
}

/// Reads one answer and adds the header that tiny_http does not let us set.
fn read_answer(connection: &mut impl BufRead, has_body: bool) -> io::Result<Vec<u8>> {
    let mut answer = Vec::new();
    let mut length = None;
    loop {
        let start = answer.len();
        connection.read_until(b'\n', &mut answer)?;
        match &answer[start..] {
            b"" => return Err(ErrorKind::UnexpectedEof.into()),
            b"\r\n" => break answer.truncate(start),
            line => length = length.or(content_length(line)),
        }
    }
    answer.extend_from_slice(b"Connection: close\r\n\r\n");
    if has_body {
        let length = length.ok_or_else(|| io::Error::other("an answer without a length"))?;
        let start = answer.len();
        answer.resize(start + length, 0);
        connection.read_exact(&mut answer[start..])?;
    }
    Ok(answer)
}

fn content_length(line: &[u8]) -> Option<usize> {
    let (name, value) = str::from_utf8(line).ok()?.split_once(':')?;
    name.eq_ignore_ascii_case("Content-Length")
        .then(|| value.trim().parse().ok())?
}

#[cfg(target_os = "linux")]
fn abstract_listener() -> io::Result<Listener> {
    use std::hash::{BuildHasher, RandomState};
    use std::os::linux::net::SocketAddrExt;
    use std::os::unix::net::{SocketAddr, UnixListener};

    // The keys of a new `RandomState` come from the system's random numbers.
    let name = format!("{:016x}", RandomState::new().hash_one(()));
    let address = SocketAddr::from_abstract_name(name)?;
    Ok(UnixListener::bind_addr(&address)?.into())
}

#[cfg(not(target_os = "linux"))]
fn abstract_listener() -> io::Result<Listener> {
    Err(ErrorKind::Unsupported.into())
}

fn loopback_listener() -> io::Result<Listener> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    // An answer comes in pieces, and each would wait for the last one's receipt.
    os::set_nodelay(&listener)?;
    Ok(listener.into())
}

fn connect(listener: &Listener) -> io::Result<Stream> {
    let stream = match listener {
        Listener::Tcp(listener) => Stream::Tcp(TcpStream::connect(listener.local_addr()?)?),
        Listener::Unix(listener) => {
            Stream::Unix(UnixStream::connect_addr(&listener.local_addr()?)?)
        }
    };
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    Ok(stream)
}

fn try_clone(listener: &Listener) -> io::Result<Listener> {
    match listener {
        Listener::Tcp(listener) => Ok(listener.try_clone()?.into()),
        Listener::Unix(listener) => Ok(listener.try_clone()?.into()),
    }
}

fn set_nonblocking(listener: &Listener) -> io::Result<()> {
    match listener {
        Listener::Tcp(listener) => listener.set_nonblocking(true),
        Listener::Unix(listener) => listener.set_nonblocking(true),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(answers: &str, has_body: bool) -> (io::Result<String>, String) {
        let mut rest = answers.as_bytes();
        let answer = read_answer(&mut rest, has_body);
        let answer = answer.map(|bytes| String::from_utf8(bytes).unwrap());
        (answer, String::from_utf8(rest.to_vec()).unwrap())
    }

    #[test]
    fn an_answer_ends_where_its_length_says() {
        let (answer, rest) = read(
            "HTTP/1.1 200 OK\r\ncontent-length: 5\r\nX: y\r\n\r\nhelloHTTP/1.1",
            true,
        );
        assert_eq!(
            answer.unwrap(),
            "HTTP/1.1 200 OK\r\ncontent-length: 5\r\nX: y\r\nConnection: close\r\n\r\nhello"
        );
        assert_eq!(rest, "HTTP/1.1");
    }

    #[test]
    fn an_answer_to_head_has_a_length_and_no_body() {
        let (answer, rest) = read(
            "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nHTTP/1.1",
            false,
        );
        assert_eq!(
            answer.unwrap(),
            "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\n\r\n"
        );
        assert_eq!(rest, "HTTP/1.1");
    }

    #[test]
    fn an_answer_cut_short_or_without_a_length_is_an_error() {
        for broken in [
            "",
            "HTTP/1.1 200 OK\r\n",
            "HTTP/1.1 200 OK\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhell",
        ] {
            assert!(read(broken, true).0.is_err(), "{broken:?}");
        }
    }

    /// Both kinds of listener, since a system has only one of them in use.
    #[test]
    fn tiny_http_answers_over_the_sealed_connection_alone() {
        let kinds = [abstract_listener(), loopback_listener()];
        for listener in kinds.into_iter().flatten() {
            let address = try_clone(&listener).unwrap();
            let (server, sealed) = Sealed::over(listener).unwrap();
            // Our own handle keeps the socket open: a stranger may connect, and
            // is never answered.
            let stranger = connect(&address).unwrap();
            write_request(&stranger, "GET", "/stranger").unwrap();
            std::thread::scope(|scope| {
                for number in 0..3 {
                    let asking = scope.spawn(|| sealed.ask("GET", "/x?y", || true));
                    let request = server.recv().unwrap();
                    assert_eq!((request.url(), request.headers().len()), ("/x?y", 0));
                    request
                        .respond(Response::from_string(format!("body {number}")))
                        .unwrap();
                    let answer = asking.join().unwrap().unwrap().unwrap();
                    let answer = String::from_utf8(answer).unwrap();
                    assert!(answer.ends_with(&format!("close\r\n\r\nbody {number}")));
                }
            });
            assert!(sealed.ask("GET", "/", || false).unwrap().is_none());
            assert!(server.try_recv().unwrap().is_none());
        }
    }
}
