//! Reads the head of a request within limits, and checks it.

use std::io::{self, ErrorKind, Read};

use crate::settings::AllowedHosts;

/// The most bytes of a request's head.
pub const HEAD_LIMIT: usize = 8 << 10;

/// The part of a request that is passed on to the backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RequestLine<'a> {
    /// `GET` or `HEAD`.
    pub method: &'a str,
    /// The path, and the query if there is one: printable ASCII.
    pub target: &'a str,
}

/// Why a request is rejected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RequestRejection {
    /// Not HTTP, an unsupported version, or a target that is not a path.
    Malformed,
    /// A method other than `GET` and `HEAD`.
    Method,
    /// The head is longer than [`HEAD_LIMIT`].
    TooLarge,
    /// The head did not arrive in time.
    TooSlow,
    /// A `Host` that is not allowed.
    Host,
}

impl RequestRejection {
    /// The complete HTTP response.
    pub fn response(self) -> Vec<u8> {
        let (status, header, text) = match self {
            Self::Malformed => ("400 Bad Request", "", "not an HTTP/1.1 request"),
            Self::Method => (
                "405 Method Not Allowed",
                "Allow: GET, HEAD\r\n",
                "only GET and HEAD are allowed",
            ),
            Self::TooLarge => (
                "431 Request Header Fields Too Large",
                "",
                "the head of the request is larger than 8 KB",
            ),
            Self::TooSlow => (
                "408 Request Timeout",
                "",
                "the head of the request took longer than 5 s",
            ),
            Self::Host => (
                "421 Misdirected Request",
                "",
                "this Host is not among --allowed-hosts",
            ),
        };
        let body = format!("{text}\n");
        let length = body.len();
        format!(
            "HTTP/1.1 {status}\r\n{header}Content-Type: text/plain; charset=utf-8\r\n\
             Content-Length: {length}\r\nConnection: close\r\n\r\n{body}"
        )
        .into_bytes()
    }
}

/// Reads up to the end of the head. Ignores all headers but `Host`, and everything after the head.
/// `buffer` has [`HEAD_LIMIT`] bytes.
///
/// # Errors
/// The client disconnected, or the connection was closed.
pub fn read_head<'a>(
    mut stream: impl Read,
    buffer: &'a mut [u8],
    hosts: &AllowedHosts,
) -> io::Result<Result<RequestLine<'a>, RequestRejection>> {
    let mut first_line = None;
    let mut length = 0;
    while length < buffer.len() {
        let start = length;
        let count = match stream.read(&mut buffer[start..]) {
            Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
            Ok(count) => count,
            Err(error) if error.kind() == ErrorKind::TimedOut => {
                return Ok(Err(RequestRejection::TooSlow));
            }
            Err(error) => return Err(error),
        };
        length = start.saturating_add(count);
        // Each byte is checked once, however small the pieces are.
        for end in start.saturating_add(1)..=length {
            match &buffer[..end] {
                [.., b'\n', b'\n'] | [.., b'\n', b'\r', b'\n'] | [b'\n'] | [b'\r', b'\n'] => {
                    let request = check_request_line(&buffer[..first_line.unwrap_or_default()]);
                    let is_allowed = hosts.allow(&buffer[..end]);
                    return Ok(request.and_then(|request| {
                        is_allowed.then_some(request).ok_or(RequestRejection::Host)
                    }));
                }
                [line @ .., b'\n'] if first_line.is_none() => first_line = Some(line.len()),
                [.., byte] if first_line.is_none() && !is_text(*byte) && *byte != b'\r' => {
                    // Respond now: a TLS client sends no more before it gets a response.
                    return Ok(Err(RequestRejection::Malformed));
                }
                _ => {}
            }
        }
    }
    Ok(Err(RequestRejection::TooLarge))
}

fn is_text(byte: u8) -> bool {
    (b' '..=b'~').contains(&byte)
}

/// Checks the first line of a head.
fn check_request_line(line: &[u8]) -> Result<RequestLine<'_>, RequestRejection> {
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    let line = str::from_utf8(line).unwrap_or_default();
    if !line.bytes().all(is_text) {
        return Err(RequestRejection::Malformed);
    }
    let mut parts = line.split(' ');
    let (Some(method), Some(target), Some("HTTP/1.0" | "HTTP/1.1"), None) =
        (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return Err(RequestRejection::Malformed);
    };
    match method {
        "" => Err(RequestRejection::Malformed),
        "GET" | "HEAD" if target.starts_with('/') => Ok(RequestLine { method, target }),
        "GET" | "HEAD" => Err(RequestRejection::Malformed),
        _ => Err(RequestRejection::Method),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The result for a head that arrives as a whole; an error if it is incomplete.
    fn read(head: &[u8]) -> io::Result<Result<RequestLine<'static>, RequestRejection>> {
        read_head(head, vec![0; HEAD_LIMIT].leak(), &AllowedHosts::default())
    }

    #[track_caller]
    fn passes(head: &str, method: &str, target: &str) {
        let expected = Ok(RequestLine { method, target });
        assert_eq!(read(head.as_bytes()).unwrap(), expected, "{head:?}");
    }

    #[track_caller]
    fn is_rejected(head: impl AsRef<[u8]>, rejection: RequestRejection) {
        let head = head.as_ref();
        let text = String::from_utf8_lossy(head);
        assert_eq!(read(head).unwrap(), Err(rejection), "{text:?}");
    }

    #[test]
    fn requests_of_scrapers_and_browsers_are_accepted() {
        passes("GET / HTTP/1.0\r\n\r\n", "GET", "/");
        passes(
            "HEAD /metrics HTTP/1.1\r\nHost: a\r\n\r\n",
            "HEAD",
            "/metrics",
        );
        passes(
            "GET /metrics?a=b&c[]=%20 HTTP/1.1\nHost: a\n\n",
            "GET",
            "/metrics?a=b&c[]=%20",
        );
        passes("GET / HTTP/1.1\r\nCookie: a=\u{e9}\r\n\r\n", "GET", "/");
        passes("GET / HTTP/1.1\r\n\r\nGET /next HTTP/1.1\r\n", "GET", "/");
        // A body is not read, so its length, however large, does not matter.
        passes(
            "GET / HTTP/1.1\r\nContent-Length: 18446744073709551615\r\n\r\n",
            "GET",
            "/",
        );
    }

    #[test]
    fn an_incomplete_head_waits_for_the_rest() {
        let head = b"GET /metrics HTTP/1.1\r\nHost: exporter:9100\r\nAccept: */*\r\n\r\n";
        for length in 0..head.len() {
            assert!(read(&head[..length]).is_err(), "{length}");
        }
        assert!(read(head).unwrap().is_ok());
    }

    #[test]
    fn other_methods_are_rejected() {
        for method in ["POST", "PUT", "OPTIONS", "get", "BREW", "GETT"] {
            is_rejected(
                format!("{method} / HTTP/1.1\r\n\r\n"),
                RequestRejection::Method,
            );
        }
        is_rejected("OPTIONS * HTTP/1.1\r\n\r\n", RequestRejection::Method);
        let response = String::from_utf8(RequestRejection::Method.response()).unwrap();
        assert!(response.starts_with("HTTP/1.1 405 "));
        assert!(response.contains("\r\nAllow: GET, HEAD\r\n"));
    }

    #[test]
    fn malformed_requests_are_rejected() {
        for line in [
            "GET",
            "GET /",
            "GET / HTTP/1.1 ",
            "GET  / HTTP/1.1",
            " GET / HTTP/1.1",
            " / HTTP/1.1",
            "GET / HTTP/2.0",
            "GET / HTTP/0.9",
            "GET / HTTP/1.10",
            "GET / http/1.1",
            "GET metrics HTTP/1.1",
            "GET http://host/metrics HTTP/1.1",
            "GET /a b HTTP/1.1",
            "PRI * HTTP/2.0",
        ] {
            is_rejected(format!("{line}\r\n\r\n"), RequestRejection::Malformed);
        }
    }

    #[test]
    fn bytes_that_are_not_http_are_rejected_immediately() {
        is_rejected(b"\x16\x03\x01\x02\x00\x01", RequestRejection::Malformed); // TLS
        is_rejected("GET /\t", RequestRejection::Malformed);
        is_rejected("GET /\0", RequestRejection::Malformed);
        is_rejected("GET /\u{e9}", RequestRejection::Malformed);
        is_rejected("GET /\rX HTTP/1.1\r\n\r\n", RequestRejection::Malformed);
        is_rejected("\r\n", RequestRejection::Malformed);
        is_rejected("\n", RequestRejection::Malformed);
    }

    #[test]
    fn a_head_may_arrive_in_pieces_up_to_the_limit() {
        fn head_of(length: usize) -> String {
            let start = "GET / HTTP/1.1\r\nX: ";
            start.to_owned() + &"x".repeat(length - start.len() - 4) + "\r\n\r\n"
        }
        /// Gives one byte at a time.
        struct Drip<'a>(&'a [u8]);
        impl Read for Drip<'_> {
            fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
                self.0.read(&mut buffer[..1])
            }
        }
        // Not on the stack, whose pages each worker would hold permanently.
        let mut buffer = vec![0; HEAD_LIMIT];
        let request = RequestLine {
            method: "GET",
            target: "/",
        };
        for length in [23, 1000, HEAD_LIMIT] {
            let head = head_of(length);
            assert_eq!(head.len(), length);
            assert_eq!(
                read_head(head.as_bytes(), &mut buffer, &AllowedHosts::default()).unwrap(),
                Ok(request)
            );
            assert_eq!(
                read_head(Drip(head.as_bytes()), &mut buffer, &AllowedHosts::default()).unwrap(),
                Ok(request)
            );
        }
        let head = head_of(HEAD_LIMIT + 1);
        assert_eq!(
            read_head(head.as_bytes(), &mut buffer, &AllowedHosts::default()).unwrap(),
            Err(RequestRejection::TooLarge)
        );
        assert!(
            read_head(
                &b"GET / HTTP/1.1\r\n"[..],
                &mut buffer,
                &AllowedHosts::default()
            )
            .is_err()
        );
    }

    #[test]
    fn rejections_have_the_right_content_length() {
        for rejection in [
            RequestRejection::Malformed,
            RequestRejection::Method,
            RequestRejection::TooLarge,
            RequestRejection::TooSlow,
            RequestRejection::Host,
        ] {
            let response = String::from_utf8(rejection.response()).unwrap();
            let (head, body) = response.split_once("\r\n\r\n").unwrap();
            assert!(
                head.contains(&format!("\r\nContent-Length: {}\r\n", body.len())),
                "{head}"
            );
            assert!(head.ends_with("\r\nConnection: close"), "{head}");
        }
    }
}
