//! The result of a probe.

use std::time::Duration;

/// The one-token completion of a probe.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Completion {
    /// From sending the request to its first token.
    pub first_token: Duration,
    /// Prompt tokens computed for it; 0 if the server does not report them.
    pub prompt_tokens: u64,
    /// Tokens generated for it.
    pub generated_tokens: u64,
    /// Milliseconds of its prompt, if the server reports them.
    pub prompt_ms: Option<f64>,
}
