//! Runs tiny_http with a single connection, from the exporter itself.
//!
//! tiny_http stops permanently at an error of `accept`, starts a thread for each connection, trusts
//! any Content-Length, and reads without a time-out. It is therefore given a listener whose queue
//! holds one connection, the exporter's own ([`Pair`]). Only the [workers](crate::web::worker) send
//! requests to it, valid ones and one at a time.

use std::io::{self, BufRead, BufReader, ErrorKind, Read, Write};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tiny_http::{Response, Server};

use crate::web::pair::{self, Closing, Pair};
use crate::web::stream::Stream;

/// A response takes microseconds. If it takes this long, the main loop hangs, and the process ends.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(30);

/// The workers' end of the connection.
#[derive(Debug)]
pub struct Backend {
    connection: Mutex<Connection>,
    /// How many requests wait for the connection.
    waiting: AtomicUsize,
}

#[derive(Debug)]
struct Connection {
    stream: BufReader<Stream>,
    /// The last response, while other requests wait.
    last: Option<LastResponse>,
}

#[derive(Debug)]
struct LastResponse {
    method: String,
    target: String,
    /// When it was requested.
    began: Instant,
    response: Arc<Vec<u8>>,
}

impl LastResponse {
    /// The response, if it is one to this request, which arrived before it was generated.
    fn to(&self, method: &str, target: &str, arrived: Instant) -> Option<&Arc<Vec<u8>>> {
        let is_to = self.method == method && self.target == target && self.began >= arrived;
        is_to.then_some(&self.response)
    }
}

impl Connection {
    /// The response to a request that arrived at this time.
    fn respond(
        &mut self,
        method: &str,
        target: &str,
        arrived: Instant,
    ) -> io::Result<Arc<Vec<u8>>> {
        let last = self.last.as_ref();
        if let Some(response) = last.and_then(|last| last.to(method, target, arrived)) {
            return Ok(Arc::clone(response));
        }
        let began = Instant::now();
        write_request(self.stream.get_ref(), method, target)?;
        let response = Arc::new(read_response(&mut self.stream, method != "HEAD")?);
        self.last = Some(LastResponse {
            method: method.to_owned(),
            target: target.to_owned(),
            began,
            response: Arc::clone(&response),
        });
        Ok(response)
    }
}

impl Backend {
    /// Starts tiny_http with its one connection. The server is never dropped: dropping it makes it
    /// connect to itself.
    ///
    /// # Errors
    /// A system call failed, for example because no file descriptor is available.
    pub fn start() -> io::Result<(&'static Server, Self)> {
        Self::over(Pair::new()?)
    }

    fn over(pair: Pair) -> io::Result<(&'static Server, Self)> {
        let Pair {
            listener,
            connection,
            own_address,
            closing,
        } = pair;
        connection.set_read_timeout(Some(RESPONSE_TIMEOUT))?;
        connection.set_write_timeout(Some(RESPONSE_TIMEOUT))?;
        let mut connection = BufReader::new(connection);
        let server = Server::from_listener(listener, None).map_err(io::Error::other)?;
        let server: &Server = Box::leak(Box::new(server));

        if let Closing::IsShutDown = closing {
            await_closing(server)?;
        }
        // Only an accepted connection gets a response.
        write_request(connection.get_ref(), "HEAD", "/")?;
        let request = server.recv()?;
        if request.remote_addr().copied() != own_address {
            return Err(another_connected());
        }
        request.respond(Response::empty(200))?;
        read_response(&mut connection, false)?;
        if let Closing::After(listener) = closing {
            pair::close(&listener)?;
            await_closing(server)?;
        }
        let connection = Connection {
            stream: connection,
            last: None,
        };
        let backend = Self {
            connection: Mutex::new(connection),
            waiting: AtomicUsize::new(0),
        };
        Ok((server, backend))
    }

    /// Sends a request to tiny_http, and returns the complete response for the client. `method` is
    /// `GET` or `HEAD`, `target` is printable ASCII without spaces. Waits for the requests of other
    /// workers first; equal ones that wait at the same time share one response, so that many clients
    /// do not delay each other. Returns `None` if the response is no longer wanted after the wait.
    ///
    /// # Errors
    /// The connection failed, and cannot be used any more.
    pub fn request(
        &self,
        method: &str,
        target: &str,
        is_wanted: impl FnOnce() -> bool,
    ) -> io::Result<Option<Arc<Vec<u8>>>> {
        let arrived = Instant::now();
        self.waiting.fetch_add(1, Ordering::Relaxed);
        let connection = self.connection.lock();
        let others = self.waiting.fetch_sub(1, Ordering::Relaxed) > 1;
        let mut connection = connection.map_err(|_| ErrorKind::BrokenPipe)?;
        let response = is_wanted().then(|| connection.respond(method, target, arrived));
        connection.last.take_if(|_| !others);
        response.transpose()
    }
}

/// Waits until `accept` fails, which ends tiny_http's accept loop.
fn await_closing(server: &Server) -> io::Result<()> {
    match server.recv_timeout(RESPONSE_TIMEOUT) {
        Err(_) => Ok(()),
        Ok(None) => Err(io::Error::other("tiny_http still accepts connections")),
        Ok(Some(_)) => Err(another_connected()),
    }
}

fn another_connected() -> io::Error {
    io::Error::other("another process connected first")
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
        response.reserve_exact(length);
        let read = connection.take(length as u64).read_to_end(&mut response)?;
        if read < length {
            return Err(ErrorKind::UnexpectedEof.into());
        }
    }
    Ok(response)
}

fn content_length(line: &[u8]) -> Option<usize> {
    let (name, value) = str::from_utf8(line).ok()?.split_once(':')?;
    name.eq_ignore_ascii_case("Content-Length")
        .then(|| value.trim().parse().ok())?
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

    /// Tests every kind of pair: the exporter uses only one of them on a given system.
    #[test]
    fn tiny_http_serves_only_one_connection() {
        for (pair, is_reachable) in pair::tests::of_every_kind() {
            let (server, backend) = Backend::over(pair).unwrap();
            // tiny_http's thread drops a TCP listener just after it has reported the failed accept.
            let is_closed = (0..10_000).any(|_| {
                std::thread::sleep(std::time::Duration::from_millis(1));
                !is_reachable()
            });
            assert!(is_closed);
            std::thread::scope(|scope| {
                for number in 0..3 {
                    let requesting = scope.spawn(|| backend.request("GET", "/x?y", || true));
                    let request = server.recv().unwrap();
                    assert_eq!((request.url(), request.headers().len()), ("/x?y", 0));
                    request
                        .respond(Response::from_string(format!("body {number}")))
                        .unwrap();
                    let response = requesting.join().unwrap().unwrap().unwrap();
                    let response = String::from_utf8_lossy(&response);
                    assert!(response.ends_with(&format!("close\r\n\r\nbody {number}")));
                }
            });
            assert!(backend.request("GET", "/", || false).unwrap().is_none());
            assert!(server.try_recv().unwrap().is_none());
        }
    }

    #[test]
    fn equal_requests_that_wait_together_share_a_response() {
        let began = Instant::now();
        let response = Arc::new(b"response".to_vec());
        let last = LastResponse {
            method: "GET".to_owned(),
            target: "/metrics".to_owned(),
            began,
            response: Arc::clone(&response),
        };
        assert_eq!(last.to("GET", "/metrics", began), Some(&response));
        assert_eq!(last.to("HEAD", "/metrics", began), None);
        assert_eq!(last.to("GET", "/", began), None);
        let later = began + Duration::from_nanos(1);
        assert_eq!(last.to("GET", "/metrics", later), None);
    }
}
