//! The outcomes of one poll's requests.

use crate::upstream::http::request_error::RequestError;

/// The target of a request.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct RequestTarget {
    /// The path: the label `endpoint`.
    pub endpoint: &'static str,
    /// The model whose server received it, if the base URL has several.
    pub model: Option<String>,
}

/// A request that failed.
#[derive(Clone, Debug)]
pub struct FailedRequest {
    /// Its target.
    pub target: RequestTarget,
    /// Why it failed.
    pub error: RequestError,
    /// Whether it was sent, and the response is still pending.
    pub is_pending: bool,
}

/// The outcomes of one poll's requests.
#[derive(Debug, Default)]
pub struct RequestLog {
    /// Requests that failed.
    pub failures: Vec<FailedRequest>,
    /// Targets of requests that got a response, including those that are not served.
    pub answered: Vec<RequestTarget>,
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
