//! Requests the health of the running exporter, for `--healthcheck`.

use std::io::{self, BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::time::Duration;

use crate::process::{os, threads};
use crate::settings::ListenAddress;
use crate::web::stream::Stream;

/// The most bytes of a response that are read.
const RESPONSE_LIMIT: u64 = 64 << 10;

/// Gets `path` from the exporter at `address` on this machine, within `time`. For `:9100`, connects
/// to the loopback address of IPv6, then of IPv4.
///
/// # Errors
/// No connection, no response in time, or a response that is not HTTP.
pub fn get(address: &ListenAddress, path: &str, time: Duration) -> io::Result<HealthResponse> {
    let (address, path) = (address.clone(), path.to_owned());
    // Name resolution has no time-out.
    let response = threads::call("healthcheck", move || {
        request(&connect(&address, time)?, &path, time)
    })?;
    let response = response.recv_timeout(time);
    response.unwrap_or_else(|_| Err(io::Error::new(ErrorKind::TimedOut, "no response in time")))
}

fn connect(address: &ListenAddress, time: Duration) -> io::Result<Stream> {
    let mut result = Err(ErrorKind::AddrNotAvailable.into());
    for destination in address.destinations() {
        let addresses = match destination {
            ListenAddress::Unix(path) => return os::connect_unix(&path, time).map(Stream::from),
            ListenAddress::Any(_) => Vec::new(),
            ListenAddress::Ip(address) => vec![address],
            ListenAddress::Name(name, port) => (name, port).to_socket_addrs()?.collect(),
        };
        for address in addresses {
            result = TcpStream::connect_timeout(&address, time).map(Stream::from);
            if result.is_ok() {
                return result;
            }
        }
    }
    result
}

/// The exporter's response.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HealthResponse {
    /// The HTTP status, 200 for instance.
    pub status: u16,
    /// The first line of the body, without its end.
    pub line: String,
}

fn request(stream: &Stream, path: &str, time: Duration) -> io::Result<HealthResponse> {
    let mut stream = stream.within(time);
    let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes())?;
    read_response(BufReader::new(stream.take(RESPONSE_LIMIT)))
}

fn read_response(response: impl BufRead) -> io::Result<HealthResponse> {
    let not_http = || io::Error::new(ErrorKind::InvalidData, "the response is not HTTP");
    let mut lines = response.lines();
    let first = lines.next().ok_or_else(not_http)??;
    let status = first
        .strip_prefix("HTTP/1.")
        .and_then(|rest| rest.split(' ').nth(1))
        .and_then(|status| status.parse().ok())
        .ok_or_else(not_http)?;
    let mut body = lines.skip_while(|line| line.as_ref().is_ok_and(|line| !line.is_empty()));
    body.next().ok_or_else(not_http)??; // The empty line after the head.
    let line = body.next().transpose()?.unwrap_or_default();
    Ok(HealthResponse { status, line })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::web::listener::{Listener, bind, port_of};

    /// Serves one connection with fixed bytes.
    fn answer_once(listener: Listener, answer: &'static str) {
        std::thread::spawn(move || {
            let mut stream = listener.accept().unwrap();
            let _request = stream.read(&mut [0; 1000]).unwrap();
            (&stream).write_all(answer.as_bytes()).unwrap();
        });
    }

    const WAIT: Duration = Duration::from_secs(5);

    #[test]
    fn every_listen_address_can_be_checked() {
        let folder = tempfile::tempdir().unwrap();
        let unix = format!("unix:{}", folder.path().join("socket").display());
        for text in [":0", "127.0.0.1:0", "0.0.0.0:0", "localhost:0", &unix] {
            let listeners = bind(&text.parse().unwrap()).unwrap();
            let port = port_of(&listeners[0]).map_or(String::new(), |port| port.to_string());
            let address: ListenAddress = text.replace(":0", &format!(":{port}")).parse().unwrap();
            for listener in listeners {
                answer_once(
                    listener,
                    "HTTP/1.1 503 No\r\nA: b\r\n\r\nno poll for 9 s\nmore",
                );
            }
            let answer = get(&address, "/healthz", WAIT).unwrap();
            assert_eq!(answer.status, 503, "{text}");
            assert_eq!(answer.line, "no poll for 9 s", "{text}");
        }
    }

    #[test]
    fn a_missing_response_times_out() {
        let listeners = bind(&"127.0.0.1:0".parse().unwrap()).unwrap();
        let address: ListenAddress = listeners[0].to_string().parse().unwrap();
        let error = get(&address, "/", Duration::from_millis(100)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::TimedOut);
        drop(listeners);
        let error = get(&address, "/", WAIT).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
    }

    #[test]
    fn responses_that_are_not_http_are_errors() {
        for text in [
            "",
            "SSH-2.0\r\n",
            "HTTP/1.1\r\n\r\n",
            "HTTP/1.1 OK\r\n\r\n",
            "HTTP/1.1 200 OK\r\n",
        ] {
            assert!(read_response(text.as_bytes()).is_err(), "{text:?}");
        }
        let answer = read_response(&b"HTTP/1.0 204 None\r\n\r\n"[..]).unwrap();
        assert_eq!((answer.status, answer.line.as_str()), (204, ""));
    }
}
