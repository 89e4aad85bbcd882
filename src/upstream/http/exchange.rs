//! The exchange of one poll: sends its requests, classifies the responses, and tracks requests that
//! are still open.

use std::mem;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use crate::process::log;
use crate::settings::{BaseUrl, Settings};
use crate::snapshot::{Absence, Reason};
use crate::upstream::http::allowed_addresses::AllowedAddresses;
use crate::upstream::http::client::Client;
use crate::upstream::http::endpoint::Endpoint;
use crate::upstream::http::open_requests::OpenRequests;
use crate::upstream::http::peer_check::PeerCheck;
use crate::upstream::http::request_error::{RequestError, RequestErrorKind};
use crate::upstream::http::request_log::{
    AnsweredRequest, FailedRequest, RequestLog, RequestTarget,
};
use crate::upstream::http::response::HttpResponse;

/// The outcome of a request.
#[derive(Debug)]
pub enum RequestOutcome<T> {
    /// The endpoint's document.
    Ok(T),
    /// The endpoint is not served; not a failure.
    NotServed(NotServed),
    /// The model is loading, or not loaded; not a failure.
    NotLoaded,
    /// A proxy cannot reach the server behind it; counted as a failure.
    BadGateway,
    /// The document of another endpoint or program; counted as a failure.
    Unrecognized,
    /// Another failure, already counted; or the request is still open from an earlier poll.
    Failed(Reason),
}

/// Why an endpoint is not served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotServed {
    /// The server was started without it (status 501).
    Disabled,
    /// There is no such path (status 404).
    NotFound,
}

impl NotServed {
    /// The same as a reason for what is missing.
    pub fn absence(self, endpoint: Endpoint) -> Absence {
        match (endpoint.path, self) {
            ("/metrics", NotServed::Disabled) => Absence::MetricsOff,
            ("/metrics", NotServed::NotFound) => Absence::MetricsNotServed,
            ("/slots", NotServed::Disabled) => Absence::SlotsOff,
            ("/slots", NotServed::NotFound) => Absence::SlotsNotServed,
            _ => Absence::NotServed,
        }
    }
}

impl<T> RequestOutcome<T> {
    /// The document, if there is one.
    pub fn ok(self) -> Option<T> {
        match self {
            RequestOutcome::Ok(document) => Some(document),
            _ => None,
        }
    }

    /// The outcome without the document.
    pub fn without_document(&self) -> RequestOutcome<()> {
        match *self {
            RequestOutcome::Ok(_) => RequestOutcome::Ok(()),
            RequestOutcome::NotServed(why) => RequestOutcome::NotServed(why),
            RequestOutcome::NotLoaded => RequestOutcome::NotLoaded,
            RequestOutcome::BadGateway => RequestOutcome::BadGateway,
            RequestOutcome::Unrecognized => RequestOutcome::Unrecognized,
            RequestOutcome::Failed(reason) => RequestOutcome::Failed(reason),
        }
    }

    /// Why the endpoint is not served; `None` if it is.
    pub fn not_served(&self) -> Option<NotServed> {
        match self {
            RequestOutcome::NotServed(why) => Some(*why),
            _ => None,
        }
    }

    /// Whether there was no response in time.
    pub fn timed_out(&self) -> bool {
        matches!(self, RequestOutcome::Failed(Reason::Timeout))
    }

    /// Whether there was no response at all.
    pub fn is_unanswered(&self) -> bool {
        matches!(
            self,
            RequestOutcome::Failed(Reason::Connect | Reason::Timeout)
        )
    }

    /// Why the endpoint has no document, if that is no failure.
    fn absence(&self, endpoint: Endpoint) -> Option<Absence> {
        match self {
            RequestOutcome::NotLoaded => Some(Absence::ModelLoading),
            RequestOutcome::NotServed(why) => Some(why.absence(endpoint)),
            _ => None,
        }
    }

    fn label(&self) -> &'static str {
        match self {
            RequestOutcome::Ok(_) => "ok",
            RequestOutcome::NotServed(NotServed::Disabled) => "disabled",
            RequestOutcome::NotServed(NotServed::NotFound) => "not_found",
            RequestOutcome::NotLoaded => "not_loaded",
            RequestOutcome::BadGateway => "bad_gateway",
            RequestOutcome::Unrecognized => "unrecognized",
            RequestOutcome::Failed(reason) => reason.label(),
        }
    }
}

/// Sends the requests of a poll, one at a time, and collects their outcomes.
pub struct Exchange {
    client: Client,
    /// Requests of this poll and earlier ones that got no response in time.
    open: OpenRequests,
    /// The outcomes of this poll's requests.
    log: RequestLog,
    /// The model whose server receives the next requests, if the base URL has several.
    model: Option<String>,
    /// When all requests of this poll must have ended.
    deadline: Instant,
    /// Whether the poll had no time left for a request.
    is_out_of_time: bool,
    /// Whether the server was discovered, so that its key is its own.
    is_discovered: bool,
    /// Whether an API key is sent.
    has_key: bool,
    /// Whether a user and password are sent.
    has_user: bool,
}

impl Exchange {
    /// An exchange with the server at `base`; fails as [`Client::new`].
    pub fn new(base: &BaseUrl, settings: &Settings) -> Result<Exchange, String> {
        Exchange::restricted_to(AllowedAddresses::Any, base, settings)
    }

    /// An exchange that connects only to `allowed` addresses.
    pub fn restricted_to(
        allowed: AllowedAddresses,
        base: &BaseUrl,
        settings: &Settings,
    ) -> Result<Exchange, String> {
        Ok(Exchange {
            client: Client::new(allowed, base, settings)?,
            open: OpenRequests::new(settings.timeout),
            log: RequestLog::default(),
            model: None,
            deadline: Instant::now(),
            is_out_of_time: false,
            is_discovered: settings.discovered.is_some(),
            has_key: settings.api_key_of(base).is_some(),
            has_user: base.userinfo().is_some(),
        })
    }

    /// Checks each new connection before anything is sent over it.
    pub fn check_peer(&mut self, check: PeerCheck) {
        self.client.connection.check_peer(check);
    }

    /// The address of the server that responded last in this poll.
    pub fn peer(&self) -> Option<IpAddr> {
        self.client.connection.peer()
    }

    /// Begins a poll whose requests must all have ended by `deadline`.
    pub fn begin_poll(&mut self, deadline: Instant) {
        self.open.remove_ended(Instant::now());
        self.model = None;
        self.deadline = deadline;
        self.is_out_of_time = false;
    }

    /// Ends a poll; returns the outcomes of its requests.
    pub fn finish_poll(&mut self) -> RequestLog {
        self.client.connection.close();
        mem::take(&mut self.log)
    }

    /// When all requests of this poll must have ended.
    pub fn deadline(&self) -> Instant {
        self.deadline
    }

    /// Whether a request of this poll was not sent because no time was left.
    pub fn is_out_of_time(&self) -> bool {
        self.is_out_of_time
    }

    /// Sets the model of the next requests, for their failures.
    pub fn set_model(&mut self, model: Option<&str>) {
        self.model = model.map(str::to_owned);
    }

    /// Discards the failures at `endpoint` in this poll: this kind of server serves something else
    /// there.
    pub fn discard_failures(&mut self, endpoint: Endpoint) {
        self.discard_failures_where(endpoint, |_| true);
    }

    /// Discards the failures at `endpoint` in this poll whose reason matches; returns whether there
    /// were any.
    pub fn discard_failures_where(
        &mut self,
        endpoint: Endpoint,
        is_discarded: impl Fn(Reason) -> bool,
    ) -> bool {
        let before = self.log.failures.len();
        self.log.failures.retain(|failed| {
            failed.target.endpoint != endpoint.path || !is_discarded(failed.error.reason)
        });
        self.log.failures.len() < before
    }

    /// Discards all failures of this poll: the server cannot be watched.
    pub fn discard_all_failures(&mut self) {
        self.log.failures.clear();
    }

    #[cfg(test)]
    pub(crate) fn suspect_after(&mut self, age: std::time::Duration) {
        self.open.suspect_after(age);
    }

    /// Whether a request for `url` was sent, in this poll or before, and its response is pending.
    pub fn is_pending(&self, url: &str) -> bool {
        self.open.contains(url)
    }

    /// Whether a request waits in the queue of the server of `endpoint` at `url`, so that another
    /// one would wait too.
    pub fn is_queue_blocked(&self, endpoint: Endpoint, url: &str) -> bool {
        self.open.is_queue_blocked(endpoint.path, url)
    }

    /// Whether exactly one request waits there, for so long that it may be lost.
    pub fn may_be_lost(&self, endpoint: Endpoint, url: &str) -> bool {
        self.open.may_be_lost(endpoint.path, url, Instant::now())
    }

    /// Gets `url`. If a request for it is still open, that counts as timed out again, but not as
    /// another failure.
    pub fn get<T>(
        &mut self,
        endpoint: Endpoint,
        url: &str,
        parse: impl FnOnce(HttpResponse) -> Result<T, RequestError>,
    ) -> RequestOutcome<T> {
        if self.is_pending(url) {
            self.log.timed_out = true;
            return RequestOutcome::Failed(Reason::Timeout);
        }
        let sent_at = Instant::now();
        let time_left = self.deadline.saturating_duration_since(sent_at);
        if time_left.is_zero() {
            if !self.is_out_of_time {
                self.is_out_of_time = true;
                let why = "not sent: the poll has no time left";
                let error = RequestError::new(Reason::Timeout, why);
                self.add_failure(endpoint, error, None, false);
            }
            return RequestOutcome::Failed(Reason::Timeout);
        }
        let response = self.client.get(url, endpoint.limit, time_left);
        let outcome = match response.and_then(|response| self.classify(endpoint, response, parse)) {
            Ok(outcome) => {
                self.log.answered.push(AnsweredRequest {
                    target: self.target(endpoint),
                    sent_at,
                    duration: sent_at.elapsed(),
                    absence: outcome.absence(endpoint),
                });
                let is_loading = matches!(outcome, RequestOutcome::NotLoaded);
                if is_loading || matches!(outcome, RequestOutcome::Ok(_)) {
                    let now = Instant::now();
                    self.open.remove_lost(endpoint.path, url, now, is_loading);
                }
                outcome
            }
            Err(error) => {
                let (kind, reason) = (error.kind, error.reason);
                if reason == Reason::Timeout {
                    self.log.timed_out = true;
                    // Without a connection, the server has not received the request.
                    if let Some(connection) = self.client.connection.take_pending() {
                        self.open.add(endpoint.path, url, sent_at, connection);
                    }
                } else if reason == Reason::Connect && self.client.connection.is_refused() {
                    // The server that left requests open is gone.
                    self.open.clear();
                }
                let duration = Some(sent_at.elapsed());
                self.add_failure(endpoint, error, duration, self.is_pending(url));
                match kind {
                    RequestErrorKind::BadGateway => RequestOutcome::BadGateway,
                    RequestErrorKind::Unrecognized => RequestOutcome::Unrecognized,
                    _ => RequestOutcome::Failed(reason),
                }
            }
        };
        log::debug(
            "request",
            &[
                ("url", &url),
                ("outcome", &outcome.label()),
                ("ms", &sent_at.elapsed().as_millis()),
            ],
        );
        outcome
    }

    /// Gets `url` to find out whether the endpoint is served. A response with any status or content
    /// is not counted as a failure; a missing one is.
    pub fn get_optional<T>(
        &mut self,
        endpoint: Endpoint,
        url: &str,
        parse: impl FnOnce(HttpResponse) -> Result<T, RequestError>,
    ) -> RequestOutcome<T> {
        let (failures, answered) = (self.log.failures.len(), self.log.answered.len());
        let outcome = self.get(endpoint, url, parse);
        if !outcome.is_unanswered() {
            self.log.failures.truncate(failures);
        }
        self.log.answered.truncate(answered);
        outcome
    }

    fn target(&self, endpoint: Endpoint) -> RequestTarget {
        RequestTarget {
            endpoint: endpoint.path,
            model: self.model.clone(),
        }
    }

    fn add_failure(
        &mut self,
        endpoint: Endpoint,
        error: RequestError,
        duration: Option<Duration>,
        is_pending: bool,
    ) {
        let target = self.target(endpoint);
        self.log.failures.push(FailedRequest {
            target,
            error,
            duration,
            is_pending,
        });
    }

    fn classify<T>(
        &self,
        endpoint: Endpoint,
        response: HttpResponse,
        parse: impl FnOnce(HttpResponse) -> Result<T, RequestError>,
    ) -> Result<RequestOutcome<T>, RequestError> {
        let not_served = match response.status {
            200 => return parse(response).map(RequestOutcome::Ok),
            401 | 403 => return Err(self.unauthorized(endpoint, &response)),
            404 => Some(NotServed::NotFound),
            501 => Some(NotServed::Disabled),
            400 | 500 | 503 => None,
            _ => return Err(response.status_error()),
        };
        let error = response.status_error();
        let body = response.explanation();
        let contains_any = |texts: &[&str]| texts.iter().any(|text| body.contains(text));
        match not_served {
            Some(why) => Ok(RequestOutcome::NotServed(why)),
            None if contains_any(&NOT_LOADED) => Ok(RequestOutcome::NotLoaded),
            None if contains_any(&HTTPS_PORT) => Err(RequestError::use_https()),
            None => Err(error),
        }
    }

    /// Explains which credentials are required, and whether by llama-server or by a proxy.
    fn unauthorized(&self, endpoint: Endpoint, response: &HttpResponse) -> RequestError {
        let header = |name| response.header(name).unwrap_or_default();
        let wants_user = header("WWW-Authenticate")
            .to_ascii_lowercase()
            .starts_with("basic");
        let is_page = !header("Content-Type").starts_with("application/json");
        // llama-server requires no key at /health.
        let is_health_refused = self.log.failures.iter().any(|failed| {
            failed.target.endpoint == "/health" && failed.error.reason == Reason::Unauthorized
        });
        let is_proxy = endpoint.path == "/health" || is_page && (wants_user || is_health_refused);
        let why = match (is_proxy, self.has_user, self.has_key) {
            (true, true, _) => {
                "a proxy in front of the server rejects the user and password in --base-url"
            }
            (true, false, _) if wants_user => {
                "a proxy in front of the server requires a user and password, not llama-server's API \
                 key: give them in --base-url http://USER:PASSWORD@host"
            }
            (true, false, false) => {
                "a proxy in front of the server rejects a request that needs no key on llama-server: \
                 give the proxy's user and password in --base-url http://USER:PASSWORD@host, \
                 or configure it to pass the request on"
            }
            (true, false, true) => {
                "a proxy in front of the server rejects a request that needs no key on llama-server, \
                 and the API key too"
            }
            (false, true, true) => {
                "the server rejects the API key, or does not receive it: as --base-url has a user, \
                 the key is sent in X-Api-Key, which llama-server reads only if the proxy removes \
                 Authorization"
            }
            (false, _, false) if self.is_discovered => {
                "the server requires an API key, which cannot be read: run the exporter as the \
                 server's user or as root with CAP_SYS_PTRACE, or give the server with --base-url"
            }
            (false, false, true) if self.is_discovered => {
                "the server rejects the API key that it was started with"
            }
            (false, false, true) => {
                "the server rejects the API key: check LLAMACPP_API_KEY_FILE or LLAMACPP_API_KEY"
            }
            (false, _, false) => {
                "the server requires an API key: set LLAMACPP_API_KEY_FILE or LLAMACPP_API_KEY"
            }
        };
        RequestError::new(Reason::Unauthorized, why)
    }
}

/// The texts of llama-server while it loads (ik_llama.cpp uses lower case), and of its router for a
/// model that is not loaded, or whose server is starting or has ended.
const NOT_LOADED: [&str; 5] = [
    "Loading model",
    "loading model",
    "model is not loaded",
    "proxy error: Could not establish connection",
    "proxy error: Failed to read connection",
];

/// The texts of nginx, Apache and Go servers when plain HTTP is sent to a TLS port.
const HTTPS_PORT: [&str; 3] = ["HTTPS port", "HTTPS server", "SSL-enabled server port"];

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;
    use std::time::Duration;

    const PATH: Endpoint = Endpoint::new("/props", 1 << 10);

    /// An exchange with a server that accepts connections and never responds, with a time-out of an
    /// hour.
    fn exchange() -> (Exchange, TcpListener, String) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let arguments = ["--base-url", &url, "--timeout", "1h"];
        let arguments = arguments.map(std::ffi::OsString::from).to_vec();
        let (_, settings) = crate::settings::parse(arguments, |_| None).unwrap();
        let exchange = Exchange::new(&settings.base_urls[0], &settings).unwrap();
        (exchange, listener, format!("{url}{}", PATH.path))
    }

    #[test]
    fn a_request_ends_with_its_poll_and_stays_open() {
        let (mut exchange, _listener, url) = exchange();
        exchange.begin_poll(Instant::now() + Duration::from_millis(50));
        assert!(exchange.get(PATH, &url, |_| Ok(())).timed_out());
        assert!(exchange.is_pending(&url));
    }

    #[test]
    fn no_request_is_sent_after_the_deadline_and_one_failure_is_counted() {
        let (mut exchange, listener, url) = exchange();
        exchange.begin_poll(Instant::now());
        for _ in 0..3 {
            assert!(exchange.get(PATH, &url, |_| Ok(())).timed_out());
        }
        assert!(exchange.is_out_of_time() && !exchange.is_pending(&url));
        listener.set_nonblocking(true).unwrap();
        assert!(listener.accept().is_err(), "a request was sent");
        assert_eq!(exchange.finish_poll().failures.len(), 1);
    }
}
