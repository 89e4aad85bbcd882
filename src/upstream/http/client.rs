//! HTTP questions with limits: one deadline over all of a request, a limit on
//! every body, and no redirect followed.
//!
//! A connection is kept for the questions of one poll and then closed: between
//! polls it would hold one of the server's few HTTP threads (cpp-httplib gives
//! each open connection one of its own).

use std::fmt;
use std::io::{self, BufRead, Read};
use std::marker::PhantomData;
use std::net::IpAddr;
use std::time::Duration;

use serde::de::{DeserializeOwned, DeserializeSeed};
use ureq::Agent;
use ureq::config::AutoHeaderValue;
use ureq::http::header::{AUTHORIZATION, HeaderMap, HeaderName, HeaderValue, LOCATION};
use ureq::unversioned::transport::Connector;

use crate::bounds;
use crate::bounds::json::{LimitedJson, StringLimits};
use crate::settings::{BaseUrl, Settings};
use crate::snapshot::Reason;
use crate::upstream::api::list::{Each, EachIn, keep};
use crate::upstream::http::allowed_addresses::AllowedAddresses;
use crate::upstream::http::resolver::TimedResolver;
pub use crate::upstream::http::transport::PendingConnection;
use crate::upstream::http::transport::{LastConnection, TcpConnector};

/// Why a question got no answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequestError {
    /// The kind of failure that the metrics count.
    pub reason: Reason,
    /// What happened, for people; may quote the server.
    pub detail: String,
    /// Whether a proxy says that it cannot reach the server behind it.
    pub is_bad_gateway: bool,
    /// Whether it is a document of another kind than the endpoint answers.
    pub is_unrecognized: bool,
}

impl RequestError {
    /// A failure for `reason`, told in `detail`.
    pub fn new(reason: Reason, detail: impl Into<String>) -> RequestError {
        let mut detail = detail.into();
        detail.truncate(bounds::cut_at(&detail, LONGEST_DETAIL).len());
        RequestError {
            reason,
            detail,
            is_bad_gateway: false,
            is_unrecognized: false,
        }
    }
}

/// Whether a proxy answers this where it cannot reach the server behind it: llama-server itself
/// says 503 only while it loads, and from 520 on they are Cloudflare's own.
fn is_bad_gateway(status: u16) -> bool {
    matches!(status, 502..=504 | 520..=530)
}

impl fmt::Display for RequestError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.detail)
    }
}

/// The most bytes of what is told of a failure: it may quote the server.
const LONGEST_DETAIL: usize = 1024;
/// The most bytes of a body that explains a status.
const LONGEST_EXPLANATION: u64 = 64 << 10;

/// Asks one upstream, one question at a time.
pub struct Client {
    agent: Agent,
    line: LastConnection,
    credentials: Vec<(HeaderName, HeaderValue)>,
}

impl Client {
    /// A client for the upstream at `base`, with the deadline, key and roots of `settings`.
    ///
    /// # Errors
    /// Names `--ca-file` when it holds no certificate.
    pub fn new(base: &BaseUrl, settings: &Settings) -> Result<Client, String> {
        Client::within(AllowedAddresses::Any, base, settings)
    }

    /// The same, of which no connection leaves `reach`.
    ///
    /// # Errors
    /// As [`Client::new`].
    pub fn within(
        reach: AllowedAddresses,
        base: &BaseUrl,
        settings: &Settings,
    ) -> Result<Client, String> {
        let line = LastConnection::default();
        let config = Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .timeout_global(Some(settings.timeout))
            // The upstream is the one that was named; a proxy for the outside is not the way to it.
            .proxy(None)
            // llama.cpp issue 29104: a server stopped working when asked for compression.
            .accept_encoding(AutoHeaderValue::None)
            .user_agent(concat!("llamacpp-exporter/", env!("CARGO_PKG_VERSION")))
            .max_response_header_size(16 * 1024)
            .input_buffer_size(32 * 1024)
            .output_buffer_size(4 * 1024)
            .max_idle_connections(1)
            .max_idle_connections_per_host(1);
        let tcp = TcpConnector::new(line.clone());
        #[cfg(feature = "tls")]
        let (config, connector) = (
            config.tls_config(crate::upstream::http::tls::config(settings)?),
            tcp.chain(ureq::unversioned::transport::RustlsConnector::default()),
        );
        #[cfg(not(feature = "tls"))]
        let connector = ().chain(tcp);
        let agent = Agent::with_parts(config.build(), connector, TimedResolver::within(reach));
        Ok(Client {
            agent,
            line,
            credentials: credentials(base, settings)?,
        })
    }

    /// Asks for `url` and gives the answer whatever its status; at most `limit` bytes of it, and
    /// within `time`, or within the client's own time-out where that is shorter.
    ///
    /// # Errors
    /// [`Reason::Connect`] or [`Reason::Timeout`]: nothing answered, or not in time.
    pub fn get(&self, url: &str, limit: u64, time: Duration) -> Result<HttpResponse, RequestError> {
        self.line.put_down();
        let mut request = self
            .agent
            .get(url)
            .config()
            .timeout_global(Some(time.min(self.timeout())))
            .build();
        for (name, value) in &self.credentials {
            request = request.header(name, value);
        }
        let response = request.call().map_err(|error| failure(&error))?;
        HttpResponse::new(response, limit)
    }

    /// Sends `json` to `url` and gives the answer as soon as it begins.
    ///
    /// # Errors
    /// As [`Client::get`].
    pub fn post(&self, url: &str, json: &str, limit: u64) -> Result<HttpResponse, RequestError> {
        self.line.put_down();
        let mut request = self.agent.post(url).content_type("application/json");
        for (name, value) in &self.credentials {
            request = request.header(name, value);
        }
        let response = request.send(json).map_err(|error| failure(&error))?;
        HttpResponse::new(response, limit)
    }

    /// The address of whoever answered last, over the connection that it answered by.
    pub fn peer(&self) -> Option<IpAddr> {
        self.line.peer()
    }

    /// The question that was asked last and timed out, kept open: see [`PendingConnection`].
    pub fn waiting(&self) -> Option<PendingConnection> {
        self.line.keep_waiting()
    }

    /// Whether the last question found nobody who listens.
    pub fn is_refused(&self) -> bool {
        self.line.is_refused()
    }

    /// Ends the connection that the questions of one poll shared.
    pub fn hang_up(&self) {
        self.line.hang_up();
    }
}

/// The headers that carry the URL's userinfo and the key of `base`. Both may be wanted, by a proxy
/// and by the llama-server behind it: that reads the key from `X-Api-Key` where there is no
/// `Authorization`, which the proxy keeps for itself.
fn credentials(
    base: &BaseUrl,
    settings: &Settings,
) -> Result<Vec<(HeaderName, HeaderValue)>, String> {
    const API_KEY: HeaderName = HeaderName::from_static("x-api-key");
    let basic = |userinfo: &str| format!("Basic {}", base64(userinfo.as_bytes()));
    let headers = match (base.userinfo(), settings.api_key_of(base)) {
        (None, None) => vec![],
        (None, Some(key)) => vec![(AUTHORIZATION, format!("Bearer {}", key.reveal()))],
        (Some(user), None) => vec![(AUTHORIZATION, basic(user))],
        (Some(user), Some(key)) => vec![
            (AUTHORIZATION, basic(user)),
            (API_KEY, key.reveal().to_owned()),
        ],
    };
    let mut secret = Vec::new();
    for (name, value) in headers {
        let value = HeaderValue::try_from(value);
        let mut value = value.map_err(|_| format!("the key for {base} fits into no header"))?;
        // Hidden where a request is printed.
        value.set_sensitive(true);
        secret.push((name, value));
    }
    Ok(secret)
}

fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3).saturating_mul(4));
    for chunk in bytes.chunks(3) {
        let mut group = [0; 3];
        group[..chunk.len()].copy_from_slice(chunk);
        let bits = u32::from_be_bytes([0, group[0], group[1], group[2]]);
        for (digit, shift) in [18, 12, 6, 0].into_iter().enumerate() {
            if digit <= chunk.len() {
                text.push(char::from(DIGITS[(bits >> shift) as usize & 63]));
            } else {
                text.push('=');
            }
        }
    }
    text
}

/// What a question was answered.
pub struct HttpResponse {
    /// The HTTP status.
    pub status: u16,
    headers: HeaderMap,
    body: Limited,
}

impl HttpResponse {
    fn new(
        response: ureq::http::Response<ureq::Body>,
        limit: u64,
    ) -> Result<HttpResponse, RequestError> {
        let (head, body) = response.into_parts();
        if body.content_length().is_some_and(|length| length > limit) {
            return Err(RequestError::new(Reason::TooLarge, TOO_LARGE));
        }
        let body = Limited {
            inner: body.into_reader(),
            left: limit,
            failure: None,
        };
        Ok(HttpResponse {
            status: head.status.as_u16(),
            headers: head.headers,
            body,
        })
    }

    /// Has the body read by `take`, which says what is wrong with it, if anything is.
    ///
    /// # Errors
    /// [`Reason::Parse`] with what `take` says, or what broke the reading.
    pub fn stream<T>(
        mut self,
        take: impl FnOnce(&mut dyn Read) -> Result<T, String>,
    ) -> Result<T, RequestError> {
        let taken = take(&mut io::BufReader::with_capacity(16 * 1024, &mut self.body));
        taken.map_err(|why| {
            let known = self.body.failure.take();
            known.unwrap_or_else(|| RequestError::new(Reason::Parse, why))
        })
    }

    /// Reads the body line by line as it comes.
    ///
    /// # Errors
    /// [`Reason::Parse`] where it is not UTF-8, or what broke the reading.
    pub fn lines(mut self, mut each: impl FnMut(&str)) -> Result<(), RequestError> {
        let mut reader = io::BufReader::new(&mut self.body);
        let mut line = String::new();
        loop {
            line.clear();
            match reader.read_line(&mut line) {
                Ok(0) => return Ok(()),
                Ok(_) => each(line.trim_end()),
                Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                    return Err(RequestError::new(Reason::Parse, "is not valid UTF-8"));
                }
                Err(error) => {
                    let known = self.body.failure.take();
                    return Err(known.unwrap_or_else(|| io_failure(&error)));
                }
            }
        }
    }

    /// A header's value, where it is printable.
    pub fn header(&self, name: &str) -> Option<&str> {
        let name: HeaderName = name.parse().ok()?;
        self.headers.get(name)?.to_str().ok()
    }

    /// Reads the body as JSON without holding all of it.
    ///
    /// # Errors
    /// [`Reason::Parse`], or what broke the reading.
    pub fn json<T: DeserializeOwned>(self) -> Result<T, RequestError> {
        self.json_with(PhantomData)
    }

    /// Reads an array, and hands each object of it to `take`; null is an empty one. Gives whether
    /// it was an array.
    ///
    /// # Errors
    /// As [`HttpResponse::json`]; some objects may have been handed over by then.
    pub fn each<T: DeserializeOwned>(self, take: impl FnMut(T)) -> Result<bool, RequestError> {
        self.json_with(Each::new(take))
    }

    /// Reads an object, and hands each object of its list `key` to `take`.
    ///
    /// # Errors
    /// As [`HttpResponse::json`], or there is no such list.
    pub fn each_in<T: DeserializeOwned>(
        self,
        key: &'static str,
        take: impl FnMut(T),
    ) -> Result<(), RequestError> {
        if self.json_with(EachIn::new(key, take))? {
            Ok(())
        } else {
            let why = format!("is not the expected answer: it has no list `{key}`");
            Err(RequestError::new(Reason::Parse, why))
        }
    }

    /// Reads an array of objects, and keeps the first thousand of them; null is an empty one.
    ///
    /// # Errors
    /// As [`HttpResponse::json`].
    pub fn list<T: DeserializeOwned>(self) -> Result<Vec<T>, RequestError> {
        let mut list = Vec::new();
        self.each(keep(&mut list))?;
        Ok(list)
    }

    /// Reads an object, and keeps the first thousand objects of its list `key`.
    ///
    /// # Errors
    /// As [`HttpResponse::each_in`].
    pub fn list_in<T: DeserializeOwned>(self, key: &'static str) -> Result<Vec<T>, RequestError> {
        let mut list = Vec::new();
        self.each_in(key, keep(&mut list))?;
        Ok(list)
    }

    fn json_with<T, S>(mut self, seed: S) -> Result<T, RequestError>
    where
        S: for<'de> DeserializeSeed<'de, Value = T>,
    {
        let reader = io::BufReader::with_capacity(16 * 1024, &mut self.body);
        let reader = LimitedJson::new(reader, StringLimits::LABEL);
        let mut json = serde_json::Deserializer::from_reader(reader);
        let parsed = seed.deserialize(&mut json);
        let parsed = parsed.and_then(|value| json.end().map(|()| value));
        parsed.map_err(|error| {
            self.body
                .failure
                .take()
                .unwrap_or_else(|| json_failure(&error))
        })
    }

    /// Reads a short body as text: it is held as a whole, up to the limit that was asked for.
    ///
    /// # Errors
    /// [`Reason::Parse`] where it is not UTF-8, or what broke the reading.
    pub fn text(mut self) -> Result<String, RequestError> {
        let mut bytes = Vec::new();
        match self.body.read_to_end(&mut bytes) {
            Ok(_) => String::from_utf8(bytes)
                .map_err(|_| RequestError::new(Reason::Parse, "is not valid UTF-8")),
            Err(error) => Err(self
                .body
                .failure
                .take()
                .unwrap_or_else(|| io_failure(&error))),
        }
    }

    /// The beginning of a body that only explains the status; empty where it cannot be read.
    pub fn explanation(self) -> String {
        let mut bytes = Vec::new();
        // Read to its end where that is near, so that the next question can use the connection.
        let _ = self.body.take(LONGEST_EXPLANATION).read_to_end(&mut bytes);
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// The failure that the status is.
    pub fn status_failure(&self) -> RequestError {
        RequestError {
            is_bad_gateway: is_bad_gateway(self.status),
            ..RequestError::new(Reason::Status, self.status_text())
        }
    }

    /// What the status says to people, with where a redirect points.
    pub fn status_text(&self) -> String {
        match self
            .headers
            .get(LOCATION)
            .and_then(|value| value.to_str().ok())
        {
            Some(target) if (300..400).contains(&self.status) => format!(
                "HTTP status {}, a redirect to {}; redirects are not followed, use the address itself as --base-url",
                self.status,
                redirect_target(target)
            ),
            _ => format!("HTTP status {}", self.status),
        }
    }
}

/// Where a redirect points, less what may be a secret: userinfo, query and fragment.
fn redirect_target(location: &str) -> String {
    let path = location.split(['?', '#']).next().unwrap_or_default();
    BaseUrl::without_secrets(path)
}

/// Where JSON is broken, and how; not in serde's words, which may quote what stands there.
fn json_failure(error: &serde_json::Error) -> RequestError {
    use serde_json::error::Category;
    let what = match error.classify() {
        Category::Eof => "is cut short",
        Category::Syntax => "is no JSON",
        Category::Data => "is not what this endpoint answers",
        // The only reader that fails and is not a connection is the one that limits the depth.
        Category::Io => "is nested too deep",
    };
    let place = format!("{what}, line {} column {}", error.line(), error.column());
    RequestError::new(Reason::Parse, place)
}

/// A body that ends with an error once it is larger than allowed, and remembers why it ended.
struct Limited {
    inner: ureq::BodyReader<'static>,
    left: u64,
    failure: Option<RequestError>,
}

impl Read for Limited {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self
            .inner
            .read(buffer)
            .inspect_err(|error| self.failure = Some(io_failure(error)))?;
        match self.left.checked_sub(count as u64) {
            Some(left) => {
                self.left = left;
                Ok(count)
            }
            None => {
                self.failure = Some(RequestError::new(Reason::TooLarge, TOO_LARGE));
                Err(io::Error::other("too large"))
            }
        }
    }
}

fn io_failure(error: &io::Error) -> RequestError {
    // ureq wraps its own errors, time-outs among them, into those of a reader.
    match error
        .get_ref()
        .and_then(|inner| inner.downcast_ref::<ureq::Error>())
    {
        Some(inner) => failure(inner),
        None if error.kind() == io::ErrorKind::TimedOut => {
            RequestError::new(Reason::Timeout, TOO_LATE)
        }
        // What rustls says of an answer that is no TLS at all.
        None if error.to_string().contains("InvalidContentType") => {
            RequestError::new(Reason::Connect, SPEAKS_NO_TLS)
        }
        None => connect_failure(error.to_string()),
    }
}

/// The connection failed; `said` is why.
fn connect_failure(said: String) -> RequestError {
    #[cfg(feature = "tls")]
    let said = crate::upstream::http::tls::explain(&said).unwrap_or(said);
    RequestError::new(Reason::Connect, said)
}

const TOO_LARGE: &str = "the answer is larger than any real server's";
const NOT_CONNECTED: &str = "no connection within the time-out";
const TOO_LATE: &str = "no whole answer within the time-out";

/// Said where plain HTTP was asked for and TLS is spoken.
pub const SPEAKS_TLS: &str = "the server speaks TLS: use https:// in --base-url";
/// Said where the answer is no HTTP at all.
pub const NO_HTTP: &str = "is no HTTP";
/// Said where TLS was asked for and plain HTTP is spoken.
pub const SPEAKS_NO_TLS: &str = "the server speaks no TLS: use http:// in --base-url";

fn failure(error: &ureq::Error) -> RequestError {
    use ureq::Error;
    match error {
        Error::Timeout(ureq::Timeout::Resolve | ureq::Timeout::Connect) => {
            RequestError::new(Reason::Timeout, NOT_CONNECTED)
        }
        Error::Timeout(_) => RequestError::new(Reason::Timeout, TOO_LATE),
        Error::Io(error) => io_failure(error),
        Error::HostNotFound => RequestError::new(Reason::Connect, "the host name is not known"),
        Error::LargeResponseHeader(..) => {
            RequestError::new(Reason::TooLarge, "the answer's headers are too large")
        }
        Error::BodyExceedsLimit(_) => RequestError::new(Reason::TooLarge, TOO_LARGE),
        Error::Protocol(error) => RequestError::new(Reason::Parse, format!("{NO_HTTP}: {error}")),
        Error::Http(error) => RequestError::new(Reason::Parse, format!("{NO_HTTP}: {error}")),
        #[cfg(feature = "tls")]
        Error::Rustls(error) => connect_failure(error.to_string()),
        other => RequestError::new(Reason::Connect, other.to_string()),
    }
}

/// The deadline that [`Client`] was given is over all of a request.
impl Client {
    /// How long one question may take.
    pub fn timeout(&self) -> Duration {
        self.agent
            .config()
            .timeouts()
            .global
            .unwrap_or(Duration::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_pads() {
        assert_eq!(base64(b"martin:secret"), "bWFydGluOnNlY3JldA==");
        assert_eq!(base64(b"abc"), "YWJj");
        assert_eq!(base64(b"ab"), "YWI=");
        assert_eq!(base64(b""), "");
    }
}
