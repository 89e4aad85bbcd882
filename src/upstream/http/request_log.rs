//! What came of the requests of one poll.

use crate::upstream::http::request_error::RequestError;

/// What a request was for.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct RequestTarget {
    /// The path, as the label `endpoint` has it.
    pub endpoint: &'static str,
    /// The model whose server was asked, where the base URL leads to several.
    pub model: Option<String>,
}

/// A request that failed.
#[derive(Clone, Debug)]
pub struct FailedRequest {
    /// What it was for.
    pub target: RequestTarget,
    /// Why it failed.
    pub error: RequestError,
    /// Whether it was sent and still waits for its answer.
    pub is_pending: bool,
}

/// What came of the requests of one poll.
#[derive(Debug, Default)]
pub struct RequestLog {
    /// Requests that failed.
    pub failures: Vec<FailedRequest>,
    /// What was answered, or is not served.
    pub answered: Vec<RequestTarget>,
}

impl RequestLog {
    /// Adds the requests of another server.
    pub fn append(&mut self, mut other: RequestLog) {
        self.failures.append(&mut other.failures);
        self.answered.append(&mut other.answered);
    }
}
