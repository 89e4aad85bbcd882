//! Figures of the requests of one model, by the source that reports them.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::bounds::label_enum::label_enum;
use crate::snapshot::Reason;
use crate::snapshot::histogram::Histogram;

label_enum! {
    /// How a request ended, as the label `outcome` spells it.
    pub enum Outcome {
        /// It was answered whole.
        Ok = "ok",
        /// It was answered with an error.
        Error = "error",
        /// Its client disconnected.
        Cancelled = "cancelled",
        /// The context was full before it had ended.
        Truncated = "truncated",
    }
}

/// The requests of one model, from one source.
#[derive(Clone, Debug)]
pub struct ModelRequests {
    /// The label `model`.
    pub model: String,
    /// The label `mode`, where the kind of server has modes.
    pub mode: Option<String>,
    /// The label `source`.
    pub source: &'static str,
    /// What is known of them.
    pub figures: Arc<RequestFigures>,
}

/// The figures of one model's requests from one source; `None` is what the source does not have.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RequestFigures {
    /// Seconds to the first token.
    pub first_token: Option<Histogram>,
    /// Seconds of prompt processing and generation.
    pub duration: Option<Histogram>,
    /// Seconds of generation per generated token after the first.
    pub per_token: Option<Histogram>,
    /// Prompt tokens computed.
    pub prompt_tokens: Option<Histogram>,
    /// Tokens generated.
    pub generated_tokens: Option<Histogram>,
    /// Requests that ended, by how.
    pub outcomes: BTreeMap<Outcome, u64>,
    /// Requests that ended in an error, by HTTP status.
    pub errors: BTreeMap<u16, u64>,
    /// Requests whose client disconnected.
    pub cancellations: Option<u64>,
    /// How often records may have been missed.
    pub record_gaps: Option<u64>,
    /// Seconds from sending a probe to its first token.
    pub probe_first_token: Option<Histogram>,
    /// Tokens generated for probes.
    pub probe_tokens: Option<u64>,
    /// Prompt tokens computed for probes.
    pub probe_prompt_tokens: Option<u64>,
    /// Probes that failed, by reason.
    pub probe_failures: BTreeMap<Reason, u64>,
}
