//! Runs tiny_http with a single connection, from the exporter itself.
//!
//! tiny_http stops permanently at an error of `accept`, starts a thread for each connection, trusts
//! any Content-Length, and reads without a time-out. It is therefore given a listener whose queue
//! holds one connection, the exporter's own, and which is already shut down: the queued connection
//! is still accepted, later ones are refused. Only the [workers](crate::web::worker) send requests
//! to it, valid ones and one at a time.

use std::env;
use std::fs;
use std::io::{self, BufRead, BufReader, ErrorKind, Write};
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Mutex;
use std::time::Duration;

use tiny_http::{Response, Server};

#[cfg(target_os = "linux")]
use crate::process::os;
use crate::web::stream::Stream;

/// A response takes microseconds. If it takes this long, the main loop hangs, and the process ends.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(30);

/// The workers' end of the connection.
#[derive(Debug)]
pub struct Backend(Mutex<BufReader<Stream>>);

impl Backend {
    /// Starts tiny_http with its one connection. The server is never dropped: dropping it makes it
    /// connect to itself.
    ///
    /// # Errors
    /// A system call failed, for example because no file descriptor is available.
    pub fn start() -> io::Result<(&'static Server, Self)> {
        Self::over(Pair::in_no_file().or_else(|_| Pair::in_private_folder())?)
    }

    fn over(pair: Pair) -> io::Result<(&'static Server, Self)> {
        let Pair {
            listener,
            connection,
            is_shut_down,
        } = pair;
        connection.set_read_timeout(Some(RESPONSE_TIMEOUT))?;
        connection.set_write_timeout(Some(RESPONSE_TIMEOUT))?;
        let mut connection = BufReader::new(Stream::Unix(connection));
        let server = Server::from_listener(listener, None).map_err(io::Error::other)?;
        let server: &Server = Box::leak(Box::new(server));

        if is_shut_down {
            // After our connection, the next `accept` fails, which ends tiny_http's accept loop.
            match server.recv_timeout(RESPONSE_TIMEOUT) {
                Err(_) => {}
                Ok(None) => return Err(io::Error::other("tiny_http still accepts connections")),
                Ok(Some(_)) => return Err(io::Error::other("another process connected first")),
            }
        }
        // Only an accepted connection gets a response.
        write_request(connection.get_ref(), "HEAD", "/")?;
        server.recv()?.respond(Response::empty(200))?;
        read_response(&mut connection, false)?;
        Ok((server, Self(Mutex::new(connection))))
    }

    /// Sends a request to tiny_http, and returns the complete response for the client. `method` is
    /// `GET` or `HEAD`, `target` is printable ASCII without spaces. Waits for the requests of other
    /// workers first. Returns `None` if the response is no longer wanted after that.
    ///
    /// # Errors
    /// The connection failed, and cannot be used any more.
    pub fn request(
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
        read_response(&mut *connection, method != "HEAD").map(Some)
    }
}

fn write_request(mut connection: &Stream, method: &str, target: &str) -> io::Result<()> {
    connection.write_all(format!("{method} {target} HTTP/1.1\r\n\r\n").as_bytes())
}

/// Reads one response and adds `Connection: close`, which tiny_http does not allow its users to
/// set.
fn read_response(connection: &mut impl BufRead, has_body: bool) -> io::Result<Vec<u8>> {
    let mut response = Vec::new();
    let mut length = None;
    loop {
        let start = response.len();
        connection.read_until(b'\n', &mut response)?;
        match &response[start..] {
            b"" => return Err(ErrorKind::UnexpectedEof.into()),
            b"\r\n" => break response.truncate(start),
            line => length = length.or(content_length(line)),
        }
    }
    response.extend_from_slice(b"Connection: close\r\n\r\n");
    if has_body {
        let length = length.ok_or_else(|| io::Error::other("a response without a length"))?;
        let start = response.len();
        response.resize(start.saturating_add(length), 0);
        connection.read_exact(&mut response[start..])?;
    }
    Ok(response)
}

fn content_length(line: &[u8]) -> Option<usize> {
    let (name, value) = str::from_utf8(line).ok()?.split_once(':')?;
    name.eq_ignore_ascii_case("Content-Length")
        .then(|| value.trim().parse().ok())?
}

/// A listener that accepts only one connection, the exporter's own, and that connection.
struct Pair {
    listener: UnixListener,
    connection: UnixStream,
    /// Whether the next `accept` fails; otherwise it blocks permanently.
    is_shut_down: bool,
}

impl Pair {
    /// Uses an abstract socket, which needs no file system. Every process in the network namespace
    /// can connect to it, so its queue holds one connection, which must be the exporter's own; then
    /// the socket is shut down.
    #[cfg(target_os = "linux")]
    fn in_no_file() -> io::Result<Pair> {
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
                    return Ok(Pair {
                        listener,
                        connection,
                        is_shut_down: true,
                    });
                }
                // Another process connected first; its connection is dropped with this listener.
                Err(error) if error.kind() == ErrorKind::WouldBlock => result = Err(error),
                Err(error) => return Err(error),
            }
        }
        result
    }

    #[cfg(not(target_os = "linux"))]
    fn in_no_file() -> io::Result<Pair> {
        Err(ErrorKind::Unsupported.into())
    }

    /// Uses a socket in a folder that only this user may enter. Both are removed before tiny_http
    /// gets the listener, so no other process can connect.
    fn in_private_folder() -> io::Result<Pair> {
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
                Ok(Pair {
                    listener,
                    connection: UnixStream::connect(&path)?,
                    is_shut_down: false,
                })
            });
            let _ = fs::remove_file(&path);
            fs::remove_dir(&folder)?;
            return pair;
        }
        Err(result.err().unwrap_or(ErrorKind::NotFound.into()))
    }
}

fn random_name() -> String {
    use std::hash::{BuildHasher, RandomState};
    // The keys of a new `RandomState` come from the system's random numbers.
    format!("{:016x}", RandomState::new().hash_one(()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(responses: &str, has_body: bool) -> (io::Result<String>, String) {
        let mut rest = responses.as_bytes();
        let response = read_response(&mut rest, has_body);
        let response = response.map(|bytes| String::from_utf8(bytes).unwrap());
        (response, String::from_utf8(rest.to_vec()).unwrap())
    }

    #[test]
    fn a_response_ends_after_its_content_length() {
        let (response, rest) = read(
            "HTTP/1.1 200 OK\r\ncontent-length: 5\r\nX: y\r\n\r\nhelloHTTP/1.1",
            true,
        );
        assert_eq!(
            response.unwrap(),
            "HTTP/1.1 200 OK\r\ncontent-length: 5\r\nX: y\r\nConnection: close\r\n\r\nhello"
        );
        assert_eq!(rest, "HTTP/1.1");
    }

    #[test]
    fn a_response_to_head_has_a_length_and_no_body() {
        let (response, rest) = read(
            "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nHTTP/1.1",
            false,
        );
        assert_eq!(
            response.unwrap(),
            "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\n\r\n"
        );
        assert_eq!(rest, "HTTP/1.1");
    }

    #[test]
    fn a_response_cut_short_or_without_a_length_is_an_error() {
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

    /// Tests both kinds of pair: the exporter uses only one of them on a given system.
    #[test]
    fn tiny_http_serves_only_one_connection() {
        let kinds = [Pair::in_no_file(), Pair::in_private_folder()];
        for pair in kinds.into_iter().flatten() {
            let address = pair.listener.local_addr().unwrap();
            let (server, backend) = Backend::over(pair).unwrap();
            assert!(UnixStream::connect_addr(&address).is_err());
            std::thread::scope(|scope| {
                for number in 0..3 {
                    let requesting = scope.spawn(|| backend.request("GET", "/x?y", || true));
                    let request = server.recv().unwrap();
                    assert_eq!((request.url(), request.headers().len()), ("/x?y", 0));
                    request
                        .respond(Response::from_string(format!("body {number}")))
                        .unwrap();
                    let response = requesting.join().unwrap().unwrap().unwrap();
                    let response = String::from_utf8(response).unwrap();
                    assert!(response.ends_with(&format!("close\r\n\r\nbody {number}")));
                }
            });
            assert!(backend.request("GET", "/", || false).unwrap().is_none());
            assert!(server.try_recv().unwrap().is_none());
        }
    }

    /// While the listener's handle is open, the test sees what other processes see.
    #[test]
    #[cfg(target_os = "linux")]
    fn a_pair_refuses_other_connections() {
        let pair = Pair::in_no_file().unwrap();
        let address = pair.listener.local_addr().unwrap();
        for _ in 0..3 {
            let other = UnixStream::connect_addr(&address);
            assert_eq!(other.unwrap_err().kind(), ErrorKind::ConnectionRefused);
        }
        let (accepted, _) = pair.listener.accept().unwrap();
        (&accepted).write_all(b"ours").unwrap();
        let mut start = [0; 4];
        io::Read::read_exact(&mut &pair.connection, &mut start).unwrap();
        assert_eq!(&start, b"ours");
        assert!(pair.listener.accept().is_err());
    }
}
