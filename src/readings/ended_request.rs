//! Requests that have ended, as a proxy in front of the model's server lists them.

/// The requests that have ended since the last poll.
#[derive(Debug, Default, PartialEq)]
pub struct EndedRequests {
    /// Those that are listed.
    pub requests: Vec<EndedRequest>,
    /// Whether more have ended than are listed.
    pub has_gap: bool,
    /// Whether the list has requests that failed, too.
    pub has_failures: bool,
}

/// One request that has ended. `None` is what the list does not tell, or not for certain.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct EndedRequest {
    /// The label `model`.
    pub model: String,
    /// How it ended.
    pub result: RequestResult,
    /// Seconds from its arrival to the end of its response.
    pub duration: Option<f64>,
    /// Seconds that its prompt took.
    pub prompt_seconds: Option<f64>,
    /// Seconds of generation per token after the first.
    pub seconds_per_token: Option<f64>,
    /// Prompt tokens computed, not taken from the cache.
    pub prompt_tokens: Option<f64>,
    /// Tokens generated; `None` if there are none.
    pub generated_tokens: Option<f64>,
}

/// How a request ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RequestResult {
    /// The list does not tell.
    #[default]
    Unknown,
    /// It was answered.
    Answered,
    /// It failed with this HTTP status.
    Failed(u16),
}
