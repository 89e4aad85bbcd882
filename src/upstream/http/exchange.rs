//! Asking the questions of one poll, and remembering those that are still open.

use std::net::IpAddr;
use std::time::Instant;

use crate::process::log;
use crate::settings::{BaseUrl, Settings};
use crate::snapshot::Reason;
use crate::upstream::http::allowed_addresses::AllowedAddresses;
use crate::upstream::http::client::{Client, HttpResponse, RequestError, SPEAKS_TLS};
use crate::upstream::http::open_requests::OpenRequests;
use crate::upstream::reading::{FailedRequest, Reading, Target};

/// One thing to ask for: its path, which is also the label `endpoint`, and the
/// most bytes that its answer may have.
#[derive(Clone, Copy, Debug)]
pub struct Endpoint {
    /// Begins with a slash.
    pub path: &'static str,
    /// In bytes.
    pub limit: u64,
}

impl Endpoint {
    /// The endpoint at `path`, whose answer has at most `limit` bytes.
    pub const fn new(path: &'static str, limit: u64) -> Endpoint {
        Endpoint { path, limit }
    }
}

const POLL_TOO_LONG: &str = "not asked: the poll has taken too long already";

/// What came of a question.
#[derive(Debug)]
pub enum RequestOutcome<T> {
    /// It was answered.
    Ok(T),
    /// There is nothing to ask there.
    NotServed(NotServed),
    /// The model is being loaded, or not loaded.
    NotLoaded,
    /// A proxy answered that it cannot reach the server behind it; that was counted.
    BadGateway,
    /// A document of another kind was answered; that was counted.
    Unrecognized,
    /// It failed otherwise, and was counted; or it is still open from an earlier poll.
    Failed(Reason),
}

/// Why there is nothing to ask at an endpoint; no failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotServed {
    /// The server has it, and was told not to serve it (status 501).
    Disabled,
    /// There is no such thing at this address (status 404).
    NotFound,
}

impl<T> RequestOutcome<T> {
    /// The answer, if there is one.
    pub fn ok(self) -> Option<T> {
        match self {
            RequestOutcome::Ok(answer) => Some(answer),
            _ => None,
        }
    }

    /// The same without the answer itself.
    pub fn without_answer(&self) -> RequestOutcome<()> {
        match *self {
            RequestOutcome::Ok(_) => RequestOutcome::Ok(()),
            RequestOutcome::NotServed(why) => RequestOutcome::NotServed(why),
            RequestOutcome::NotLoaded => RequestOutcome::NotLoaded,
            RequestOutcome::BadGateway => RequestOutcome::BadGateway,
            RequestOutcome::Unrecognized => RequestOutcome::Unrecognized,
            RequestOutcome::Failed(reason) => RequestOutcome::Failed(reason),
        }
    }

    /// Why there is nothing to ask, if that is so.
    pub fn not_served(&self) -> Option<NotServed> {
        match self {
            RequestOutcome::NotServed(missing) => Some(*missing),
            _ => None,
        }
    }

    /// Whether the answer has not come in time.
    pub fn timed_out(&self) -> bool {
        matches!(self, RequestOutcome::Failed(Reason::Timeout))
    }

    /// Whether nobody is there who would answer.
    pub fn is_unanswered(&self) -> bool {
        matches!(
            self,
            RequestOutcome::Failed(Reason::Connect | Reason::Timeout)
        )
    }

    fn label(&self) -> &'static str {
        match self {
            RequestOutcome::Ok(_) => "answer",
            RequestOutcome::NotServed(NotServed::Disabled) => "switched_off",
            RequestOutcome::NotServed(NotServed::NotFound) => "not_served",
            RequestOutcome::NotLoaded => "not_loaded",
            RequestOutcome::BadGateway => "unreachable",
            RequestOutcome::Unrecognized => "foreign",
            RequestOutcome::Failed(reason) => reason.label(),
        }
    }
}

/// A client, the questions that it has open, and what became of those of this poll.
pub struct Exchange {
    client: Client,
    /// Those of earlier polls, and of this one, that were not answered in time.
    open: OpenRequests,
    failures: Vec<FailedRequest>,
    answered: Vec<Target>,
    /// The model whose server is asked now, where the base URL leads to several.
    model: Option<String>,
    /// By when all requests of this poll must have ended.
    deadline: Instant,
    /// Whether there was no time left for a request of this poll.
    is_out_of_time: bool,
    /// Whether an API key is sent.
    has_key: bool,
    /// Whether a user and password are sent.
    has_user: bool,
}

impl Exchange {
    /// Asks the server at `base`.
    ///
    /// # Errors
    /// As [`Client::new`].
    pub fn new(base: &BaseUrl, settings: &Settings) -> Result<Exchange, String> {
        Exchange::restricted_to(AllowedAddresses::Any, base, settings)
    }

    /// The same, over no connection that leaves `reach`.
    ///
    /// # Errors
    /// As [`Client::new`].
    pub fn restricted_to(
        reach: AllowedAddresses,
        base: &BaseUrl,
        settings: &Settings,
    ) -> Result<Exchange, String> {
        Ok(Exchange {
            client: Client::within(reach, base, settings)?,
            open: OpenRequests::new(settings.timeout),
            failures: Vec::new(),
            answered: Vec::new(),
            model: None,
            deadline: Instant::now(),
            is_out_of_time: false,
            has_key: settings.api_key_of(base).is_some(),
            has_user: base.userinfo().is_some(),
        })
    }

    /// The address of whoever answered last in this poll.
    pub fn peer(&self) -> Option<IpAddr> {
        self.client.peer()
    }

    /// Begins a poll, all of whose requests must have ended by `deadline`: sees which open
    /// requests have been answered by now.
    pub fn begin_poll(&mut self, deadline: Instant) {
        self.open.refresh(Instant::now());
        self.model = None;
        self.deadline = deadline;
        self.is_out_of_time = false;
    }

    /// Ends a poll, and adds to `reading` what became of its questions.
    pub fn finish_poll(&mut self, reading: &mut Reading) {
        self.client.hang_up();
        reading.failures.append(&mut self.failures);
        reading.answered.append(&mut self.answered);
    }

    /// By when all requests of this poll must have ended.
    pub fn deadline(&self) -> Instant {
        self.deadline
    }

    /// Whether a request of this poll was not sent because there was no time left for it.
    pub fn is_out_of_time(&self) -> bool {
        self.is_out_of_time
    }

    /// Names the model whose server is asked from now on, for what is said of its failures.
    pub fn set_model(&mut self, model: Option<&str>) {
        self.model = model.map(str::to_owned);
    }

    /// Takes back what failed at `endpoint` in this poll: what answers is of a kind that
    /// answers something else there.
    pub fn discard_failures(&mut self, endpoint: Endpoint) {
        self.discard_failures_where(endpoint, |_| true);
    }

    /// Takes back what failed at `endpoint` in this poll for such a reason; gives whether
    /// anything did.
    pub fn discard_failures_where(
        &mut self,
        endpoint: Endpoint,
        is_discarded: impl Fn(Reason) -> bool,
    ) -> bool {
        let before = self.failures.len();
        self.failures.retain(|failed| {
            failed.target.endpoint != endpoint.path || !is_discarded(failed.error.reason)
        });
        self.failures.len() < before
    }

    /// Takes back all that failed in this poll: what answers is no server to be watched.
    pub fn discard_all_failures(&mut self) {
        self.failures.clear();
    }

    /// Doubts a request that waits alone at this age.
    #[cfg(test)]
    pub(crate) fn suspect_after(&mut self, age: std::time::Duration) {
        self.open.suspect_after(age);
    }

    /// Whether the request for `url` was sent, in this poll or before, and is still waiting for
    /// its answer.
    pub fn is_pending(&self, url: &str) -> bool {
        self.open.contains(url)
    }

    /// Whether a request of ours waits behind the work of the server of `endpoint` at `url`, so
    /// that another would wait as well.
    pub fn is_queue_blocked(&self, endpoint: Endpoint, url: &str) -> bool {
        self.open.is_queue_blocked(endpoint.path, url)
    }

    /// Whether that request waits alone, and for so long that it may have got lost.
    pub fn may_be_lost(&self, endpoint: Endpoint, url: &str) -> bool {
        self.open.may_be_lost(endpoint.path, url, Instant::now())
    }

    /// Asks for `url`, unless that question is still open: then it is late again, and not
    /// counted again.
    pub fn get<T>(
        &mut self,
        endpoint: Endpoint,
        url: &str,
        parse: impl FnOnce(HttpResponse) -> Result<T, RequestError>,
    ) -> RequestOutcome<T> {
        if self.is_pending(url) {
            return RequestOutcome::Failed(Reason::Timeout);
        }
        let target = Target {
            endpoint: endpoint.path,
            model: self.model.clone(),
        };
        let asked = Instant::now();
        let left = self.deadline.saturating_duration_since(asked);
        if left.is_zero() {
            return self.refuse(target);
        }
        let result = self
            .client
            .get(url, endpoint.limit, left)
            .and_then(|answer| self.sort(endpoint, answer, parse));
        let outcome = match result {
            Ok(outcome) => {
                self.answered.push(target);
                if matches!(outcome, RequestOutcome::Ok(_) | RequestOutcome::NotLoaded) {
                    let is_new = matches!(outcome, RequestOutcome::NotLoaded);
                    self.open
                        .answered(endpoint.path, url, Instant::now(), is_new);
                }
                outcome
            }
            Err(failure) => {
                let reason = failure.reason;
                self.keep_open(endpoint, url, asked, reason);
                let (is_bad_gateway, is_unrecognized) =
                    (failure.is_bad_gateway, failure.is_unrecognized);
                self.failures.push(FailedRequest {
                    target,
                    error: failure,
                    is_pending: self.open.contains(url),
                });
                if is_bad_gateway {
                    RequestOutcome::BadGateway
                } else if is_unrecognized {
                    RequestOutcome::Unrecognized
                } else {
                    RequestOutcome::Failed(reason)
                }
            }
        };
        let milliseconds = asked.elapsed().as_millis();
        log::debug(
            "asked",
            &[
                ("url", &url),
                ("outcome", &outcome.label()),
                ("ms", &milliseconds),
            ],
        );
        outcome
    }

    /// The outcome of a request that is not sent: the poll has taken too long.
    fn refuse<T>(&mut self, target: Target) -> RequestOutcome<T> {
        if !self.is_out_of_time {
            self.is_out_of_time = true;
            let failure = RequestError::new(Reason::Timeout, POLL_TOO_LONG);
            self.failures.push(FailedRequest {
                target,
                error: failure,
                is_pending: false,
            });
        }
        RequestOutcome::Failed(Reason::Timeout)
    }

    /// Asks to see whether there is such a thing at all: any answer that says no is no failure.
    pub fn get_optional<T>(
        &mut self,
        endpoint: Endpoint,
        url: &str,
        parse: impl FnOnce(HttpResponse) -> Result<T, RequestError>,
    ) -> RequestOutcome<T> {
        let (failures, answered) = (self.failures.len(), self.answered.len());
        let outcome = self.get(endpoint, url, parse);
        if !outcome.is_unanswered() {
            self.failures.truncate(failures);
        }
        self.answered.truncate(answered);
        outcome
    }

    /// Tells answers from refusals by their status.
    fn sort<T>(
        &self,
        endpoint: Endpoint,
        answer: HttpResponse,
        parse: impl FnOnce(HttpResponse) -> Result<T, RequestError>,
    ) -> Result<RequestOutcome<T>, RequestError> {
        match answer.status {
            200 => parse(answer).map(RequestOutcome::Ok),
            404 => Ok(missing(answer, NotServed::NotFound)),
            501 => Ok(missing(answer, NotServed::Disabled)),
            401 | 403 => Err(self.refusal(endpoint, answer)),
            400 | 500 | 503 => {
                let failure = answer.status_failure();
                let body = answer.explanation();
                if NOT_LOADED.iter().any(|message| body.contains(message)) {
                    return Ok(RequestOutcome::NotLoaded);
                }
                // So say nginx, Apache and Go's servers where plain HTTP comes to a port for TLS.
                let speaks_tls = ["HTTPS port", "HTTPS server", "SSL-enabled server port"]
                    .iter()
                    .any(|said| body.contains(said));
                if speaks_tls {
                    return Err(RequestError::new(Reason::Status, SPEAKS_TLS));
                }
                Err(failure)
            }
            _ => Err(answer.status_failure()),
        }
    }

    /// Whose key is wanted: that of llama-server, or that of a proxy before it.
    fn refusal(&self, endpoint: Endpoint, answer: HttpResponse) -> RequestError {
        let is_json = |kind: &str| kind.starts_with("application/json");
        let is_page = !answer.header("Content-Type").is_some_and(is_json);
        let challenge = answer.header("WWW-Authenticate").unwrap_or_default();
        let wants_user = challenge.to_ascii_lowercase().starts_with("basic");
        // llama-server refuses nobody at /health.
        let refused_health = || {
            let is_so = |failed: &FailedRequest| {
                failed.target.endpoint == "/health" && failed.error.reason == Reason::Unauthorized
            };
            self.failures.iter().any(is_so)
        };
        let is_proxys =
            endpoint.path == "/health" || wants_user && is_page || is_page && refused_health();
        let why = match (is_proxys, self.has_user, self.has_key) {
            (true, true, _) => {
                "a proxy before the server refuses the user and password of --base-url"
            }
            (true, false, false) if !wants_user => {
                "a proxy before the server refuses this, and llama-server wants no key for it: give \
                 the proxy's user and password in --base-url http://USER:PASSWORD@host, or have it \
                 pass this on"
            }
            (true, false, true) if !wants_user => {
                "a proxy before the server refuses this, and llama-server wants no key for it: the \
                 proxy does not take the API key that it was given either"
            }
            (true, false, _) => {
                "a proxy before the server wants a user and password, which is not llama-server's \
                 API key: give them in --base-url http://USER:PASSWORD@host"
            }
            (false, true, true) => {
                "the server refuses the API key, or does not see it: beside the user of --base-url it \
                 goes into X-Api-Key, which llama-server reads only where a proxy keeps \
                 Authorization for itself"
            }
            (false, false, true) => {
                "the server refuses the API key that it was given by LLAMACPP_API_KEY_FILE or \
                 LLAMACPP_API_KEY"
            }
            (false, _, false) => {
                "the server wants an API key: give it in LLAMACPP_API_KEY_FILE or LLAMACPP_API_KEY"
            }
        };
        RequestError::new(Reason::Unauthorized, why)
    }

    fn keep_open(&mut self, endpoint: Endpoint, url: &str, since: Instant, reason: Reason) {
        match reason {
            Reason::Timeout => {
                // Nothing waits in the server where no connection came about in time.
                if let Some(connection) = self.client.waiting() {
                    self.open.keep(endpoint.path, url, since, connection);
                }
            }
            // Whoever left requests unanswered is gone.
            Reason::Connect if self.client.is_refused() => self.open.clear(),
            _ => {}
        }
    }
}

/// What llama-server says while it loads (ik_llama.cpp in small letters), and its router of a
/// model that is not loaded, or of which the server is not there yet or not any more.
const NOT_LOADED: [&str; 5] = [
    "Loading model",
    "loading model",
    "model is not loaded",
    "proxy error: Could not establish connection",
    "proxy error: Failed to read connection",
];

fn missing<T>(answer: HttpResponse, why: NotServed) -> RequestOutcome<T> {
    // Read, so that the next question can use the connection.
    answer.explanation();
    RequestOutcome::NotServed(why)
}

/// Takes an answer that shows whose it is; any JSON would do otherwise.
///
/// # Errors
/// [`Reason::Parse`] where it is not `known`.
pub fn recognized<T>(known: bool, answer: T, why: &str) -> Result<T, RequestError> {
    if known {
        Ok(answer)
    } else {
        Err(RequestError {
            is_unrecognized: true,
            ..RequestError::new(Reason::Parse, format!("is not the expected answer: {why}"))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;
    use std::time::Duration;

    const PATH: Endpoint = Endpoint {
        path: "/props",
        limit: 1 << 10,
    };

    /// An exchange with a server that takes connections and never answers, with a time-out of an hour.
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
    fn nothing_is_asked_when_the_time_of_the_poll_is_over_and_that_is_said_once() {
        let (mut exchange, listener, url) = exchange();
        exchange.begin_poll(Instant::now());
        for _ in 0..3 {
            assert!(exchange.get(PATH, &url, |_| Ok(())).timed_out());
        }
        assert!(exchange.is_out_of_time() && !exchange.is_pending(&url));
        listener.set_nonblocking(true).unwrap();
        assert!(listener.accept().is_err(), "it was asked");
        let mut reading = Reading::default();
        exchange.finish_poll(&mut reading);
        assert_eq!(reading.failures.len(), 1);
    }
}
