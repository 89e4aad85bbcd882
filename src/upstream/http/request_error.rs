//! The error of a request without a usable response, with a text for the user.

use std::fmt;
use std::io;

use serde_json::error::Category;
use ureq::{Error, Timeout};

use crate::bounds;
use crate::snapshot::Reason;

/// The most bytes of an error's text, which may quote the server.
const MAX_DETAIL_BYTES: usize = 1024;

const TOO_LARGE: &str = "the response is larger than the limit";
const NOT_CONNECTED: &str = "no connection within the time-out";
const TOO_LATE: &str = "no complete response within the time-out";
const NOT_HTTP: &str = "the response is not HTTP";
/// The beginning of the standard library's text.
const LOOKUP_FAILED: &str = "failed to lookup address information";
const USE_HTTPS: &str = "the server speaks TLS: use https:// in --base-url";
const USE_HTTP: &str = "the server does not speak TLS: use http:// in --base-url";

/// Why a request got no usable response.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequestError {
    /// The reason that the metrics count.
    pub reason: Reason,
    /// What happened, for the user. May quote the server.
    pub detail: String,
    /// Determines the advice and the handling.
    pub kind: RequestErrorKind,
}

/// Errors with special handling.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RequestErrorKind {
    /// All others.
    Other,
    /// A proxy reports that it cannot reach the server behind it.
    BadGateway,
    /// The document is not one of a llama.cpp server.
    Unrecognized,
    /// The base URL has `http://` instead of `https://`, or the reverse.
    WrongScheme,
    /// TLS failed.
    Tls,
    /// The name of the host has no address.
    UnknownHost,
    /// Nothing listens at the port.
    Refused,
    /// The server ended the connection, or its response is not HTTP.
    NotHttp,
}

impl RequestError {
    /// An error without special handling. A long `detail` is cut.
    pub fn new(reason: Reason, detail: impl Into<String>) -> RequestError {
        let mut detail = detail.into();
        detail.truncate(bounds::cut_at(&detail, MAX_DETAIL_BYTES).len());
        let kind = RequestErrorKind::Other;
        RequestError {
            reason,
            detail,
            kind,
        }
    }

    /// The same error with another kind.
    #[must_use]
    pub fn of_kind(self, kind: RequestErrorKind) -> RequestError {
        RequestError { kind, ..self }
    }

    /// The body is longer than its limit.
    pub(super) fn too_large() -> RequestError {
        RequestError::new(Reason::TooLarge, TOO_LARGE)
    }

    /// The response reports that plain HTTP was sent to a TLS port.
    pub(super) fn use_https() -> RequestError {
        RequestError::new(Reason::Status, USE_HTTPS).of_kind(RequestErrorKind::WrongScheme)
    }

    /// The document is not one that a llama.cpp server sends.
    pub fn unrecognized(why: &str) -> RequestError {
        let detail = format!("is not the expected document: {why}");
        RequestError::new(Reason::Parse, detail).of_kind(RequestErrorKind::Unrecognized)
    }

    /// The connection failed.
    fn connect(text: String) -> RequestError {
        #[cfg(feature = "tls")]
        if let Some(detail) = super::tls::explain(&text) {
            return RequestError::new(Reason::Connect, detail).of_kind(RequestErrorKind::Tls);
        }
        let is_ended = ["disconnected", "reset"]
            .iter()
            .any(|part| text.contains(part));
        let kind = if is_ended {
            RequestErrorKind::NotHttp
        } else if text.starts_with(LOOKUP_FAILED) {
            RequestErrorKind::UnknownHost
        } else {
            RequestErrorKind::Other
        };
        RequestError::new(Reason::Connect, text).of_kind(kind)
    }
}

impl fmt::Display for RequestError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.detail)
    }
}

impl From<&Error> for RequestError {
    fn from(error: &Error) -> RequestError {
        let not_http = |error: &dyn fmt::Display| {
            let detail = format!("{NOT_HTTP}: {error}");
            RequestError::new(Reason::Parse, detail).of_kind(RequestErrorKind::NotHttp)
        };
        match error {
            Error::Timeout(Timeout::Resolve | Timeout::Connect) => {
                RequestError::new(Reason::Timeout, NOT_CONNECTED)
            }
            Error::Timeout(_) => RequestError::new(Reason::Timeout, TOO_LATE),
            Error::Io(error) => error.into(),
            Error::HostNotFound => {
                RequestError::new(Reason::Connect, "the host name does not resolve")
                    .of_kind(RequestErrorKind::UnknownHost)
            }
            Error::LargeResponseHeader(..) => {
                RequestError::new(Reason::TooLarge, "the response headers are too large")
            }
            Error::BodyExceedsLimit(_) => RequestError::too_large(),
            Error::Protocol(error) => not_http(error),
            Error::Http(error) => not_http(error),
            #[cfg(feature = "tls")]
            Error::Rustls(error) => RequestError::connect(error.to_string()),
            other => RequestError::new(Reason::Connect, other.to_string()),
        }
    }
}

impl From<&io::Error> for RequestError {
    fn from(error: &io::Error) -> RequestError {
        // ureq wraps its own errors, time-outs among them, into those of a reader.
        let inner = error.get_ref();
        match inner.and_then(|inner| inner.downcast_ref::<Error>()) {
            Some(error) => error.into(),
            None if error.kind() == io::ErrorKind::TimedOut => {
                RequestError::new(Reason::Timeout, TOO_LATE)
            }
            // The error of rustls for a response that is not TLS.
            None if error.to_string().contains("InvalidContentType") => {
                RequestError::new(Reason::Connect, USE_HTTP).of_kind(RequestErrorKind::WrongScheme)
            }
            None if error.kind() == io::ErrorKind::ConnectionRefused => {
                RequestError::connect(error.to_string()).of_kind(RequestErrorKind::Refused)
            }
            None => RequestError::connect(error.to_string()),
        }
    }
}

impl From<&serde_json::Error> for RequestError {
    /// Reports what is wrong with the JSON, and where. Omits serde's own text, which may quote the
    /// document.
    fn from(error: &serde_json::Error) -> RequestError {
        let what = match error.classify() {
            Category::Eof => "is cut short",
            Category::Syntax => "is not JSON",
            Category::Data => "is not the expected document",
            // The caller prefers errors of the connection, so only the depth limit remains.
            Category::Io => "is nested too deeply",
        };
        let detail = format!("{what}, line {} column {}", error.line(), error.column());
        RequestError::new(Reason::Parse, detail)
    }
}
