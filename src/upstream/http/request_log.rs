//! The outcomes of one poll's requests.

use std::time::{Duration, Instant};

use crate::snapshot::Absence;
use crate::upstream::http::request_error::RequestError;

/// The target of a request.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct RequestTarget {
    /// The path: the label `endpoint`.
    pub endpoint: &'static str,
    /// The model whose server received it, if the base URL has several.
    pub model: Option<String>,
}

/// A request that got a response.
#[derive(Clone, Debug)]
pub struct AnsweredRequest {
    /// Its target.
    pub target: RequestTarget,
    /// When it was sent.
    pub sent_at: Instant,
    /// How long it took.
    pub duration: Duration,
    /// Why the response has no document; not a failure.
    pub absence: Option<Absence>,
}

/// A request that failed.
#[derive(Clone, Debug)]
pub struct FailedRequest {
    /// Its target.
    pub target: RequestTarget,
    /// Why it failed.
    pub error: RequestError,
    /// How long it took; `None` if it was not sent.
    pub duration: Option<Duration>,
    /// Whether it was sent, and the response is still pending.
    pub is_pending: bool,
}

/// The outcomes of one poll's requests.
#[derive(Debug, Default)]
pub struct RequestLog {
    /// Requests that failed.
    pub failures: Vec<FailedRequest>,
    /// Requests that got a response, including those for what is not served.
    pub answered: Vec<AnsweredRequest>,
    /// Whether an answer was not there in time, be it to a request of an earlier poll.
    pub timed_out: bool,
}

impl RequestLog {
    /// Adds the requests of another server.
    pub fn append(&mut self, mut other: RequestLog) {
        self.failures.append(&mut other.failures);
        self.answered.append(&mut other.answered);
        self.timed_out |= other.timed_out;
    }
}
