//! What the one-token completion of a probe brings.

use std::time::Duration;

/// The completion that a probe was answered with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Completion {
    /// From sending the request to its first token.
    pub first_token: Duration,
    /// Prompt tokens computed for it, as far as the server says.
    pub prompt_tokens: u64,
    /// Tokens generated for it.
    pub generated_tokens: u64,
}
