//! The readings of one model at one poll, as plain data, for all kinds of servers.
//!
//! Knows neither how they are read nor what is computed from them.

mod completion;
pub mod counters;
mod ended_request;
pub mod llama_server_family;
mod local_server;
mod logged_tasks;
mod server_kind;
pub mod slots;
pub mod stats;
mod status;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

pub use completion::Completion;
pub use counters::Counters;
pub use ended_request::{EndedRequest, EndedRequests, RequestResult};
pub use llama_server_family::LlamaServerFamily;
pub use local_server::{HeldSocket, LocalAddress, LocalServer, ProcessId};
pub use logged_tasks::{EndedTask, LoggedTasks, RunningTask, TaskTokens};
pub use server_kind::{LogSource, ServerKind};
pub use slots::{Slot, Slots};
pub use stats::Stats;
pub use status::ModelStatus;

/// Identifies a model within its server: its name and mode.
pub type ModelKey = (String, Option<String>);

/// The readings of one model at one poll.
#[derive(Debug, Default)]
pub struct ModelReading {
    /// The label `model`.
    pub name: String,
    /// The mode that it runs in (`completion`, `embedding`), where the kind of server has modes.
    pub mode: Option<String>,
    /// Its state.
    pub state: ModelState,
    /// Values that do not change while it is loaded.
    pub facts: ModelFacts,
    /// Data for finding its process and file.
    pub process: ProcessHints,
    /// `/metrics`.
    pub counters: Update<CountersReading>,
    /// `/slots`.
    pub slots: Update<SlotsReading>,
    /// Whether its server was started without `/metrics`.
    pub lacks_metrics: bool,
    /// Whether its server has been restarted since the last poll, as it served `/metrics` until then.
    pub has_lost_metrics: bool,
    /// What its server's log said since the last poll, if that is followed.
    pub logged_tasks: Option<LoggedTasks>,
    /// The tokens of single requests, added up, if nothing else reports the model's tokens.
    pub token_totals: Option<TokenTotals>,
    /// `/stats`, if it is served.
    pub stats: Option<Stats>,
}

impl ModelReading {
    /// Its name and mode.
    pub fn key(&self) -> ModelKey {
        (self.name.clone(), self.mode.clone())
    }

    /// Whether its server is there and has loaded it, as far as the poll tells.
    pub fn is_loaded(&self) -> bool {
        use ModelStatus::{Idle, Running, Sleeping};
        match self.state {
            ModelState::Loading | ModelState::Waking | ModelState::Unknown => false,
            ModelState::Asleep(_) | ModelState::Busy | ModelState::Ready => true,
            ModelState::Reported(status) => matches!(status, Idle | Running | Sleeping),
        }
    }

    /// Whether its server reports that it is not loaded.
    pub fn is_unloaded(&self) -> bool {
        self.state == ModelState::Reported(ModelStatus::Unloaded)
    }

    /// A reading with only the state.
    pub fn new(name: &str, state: ModelState) -> ModelReading {
        ModelReading {
            name: name.to_owned(),
            state,
            ..ModelReading::default()
        }
    }
}

/// Values that do not change while a model is loaded.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ModelFacts {
    /// Number of slots.
    pub slots: Option<f64>,
    /// The context size of one slot, in tokens.
    pub max_context_size: Option<f64>,
    /// The context size that the model was trained with, in tokens.
    pub training_context: Option<f64>,
    /// Bytes of weights.
    pub size: Option<f64>,
    /// Number of parameters.
    pub parameters: Option<f64>,
    /// The quantization of the weights, as the server names it (`Q4_K - Medium`).
    pub quantization: Option<String>,
    /// The architecture, as GGUF names it.
    pub architecture: Option<String>,
    /// The engine that runs it, if the server has several.
    pub backend: Option<String>,
    /// The model's file, as the server names it.
    pub path: Option<String>,
    /// Whether quantization, architecture or backend may become known later, while the model is
    /// the same.
    pub is_description_pending: bool,
}

/// What a server with many models reports about the process and file of one of them.
#[derive(Clone, Debug, Default)]
pub struct ProcessHints {
    /// Whether a proxy listens on the base URL's port, instead of the model's own server.
    pub behind_proxy: bool,
    /// The command line of the model's own server.
    pub arguments: Option<Vec<String>>,
    /// Its process.
    pub id: Option<ProcessId>,
    /// A part of its file's path that is unique to the model.
    pub file_part: Option<String>,
    /// The scalars of its file's GGUF header, as text.
    pub header: Option<Arc<BTreeMap<String, String>>>,
}

impl ProcessHints {
    /// Whether anything identifies the model's own process.
    pub fn is_findable(&self) -> bool {
        !self.behind_proxy
            || self.id.is_some()
            || self.arguments.is_some()
            || self.file_part.is_some()
    }
}

/// Token counts of single requests, added up.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct TokenTotals {
    /// Prompt tokens computed.
    pub prompt_tokens: f64,
    /// Tokens generated.
    pub generated_tokens: f64,
    /// Prompt tokens taken from the cache; here and below, `None` if no request has told.
    pub prompt_tokens_cached: Option<f64>,
    /// Draft tokens proposed.
    pub draft_tokens: Option<f64>,
    /// Draft tokens accepted.
    pub draft_tokens_accepted: Option<f64>,
}

impl TokenTotals {
    /// Adds the tokens of one more request.
    pub fn add(&mut self, more: &TokenTotals) {
        self.prompt_tokens += more.prompt_tokens;
        self.generated_tokens += more.generated_tokens;
        for (sum, more) in [
            (&mut self.prompt_tokens_cached, more.prompt_tokens_cached),
            (&mut self.draft_tokens, more.draft_tokens),
            (&mut self.draft_tokens_accepted, more.draft_tokens_accepted),
        ] {
            *sum = match (*sum, more) {
                (Some(sum), Some(more)) => Some(sum + more),
                (sum, more) => sum.or(more),
            };
        }
    }

    /// The totals without those in `part`.
    #[must_use]
    pub fn without(&self, part: &TokenTotals) -> TokenTotals {
        let rest = |all: Option<f64>, part: Option<f64>| all.map(|all| all - part.unwrap_or(0.0));
        TokenTotals {
            prompt_tokens: self.prompt_tokens - part.prompt_tokens,
            generated_tokens: self.generated_tokens - part.generated_tokens,
            prompt_tokens_cached: rest(self.prompt_tokens_cached, part.prompt_tokens_cached),
            draft_tokens: rest(self.draft_tokens, part.draft_tokens),
            draft_tokens_accepted: rest(self.draft_tokens_accepted, part.draft_tokens_accepted),
        }
    }
}

/// The state of a model at one poll.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ModelState {
    /// The server is loading it.
    #[default]
    Loading,
    /// It was asleep, and is being loaded again or already processing.
    Waking,
    /// It is asleep until the next request, as the poll found at this time.
    Asleep(Instant),
    /// Its server responds late: it is processing.
    Busy,
    /// Its server responds; counters and slots show whether it is processing.
    Ready,
    /// The status that its server reports.
    Reported(ModelStatus),
    /// The poll had no time for it, or the server reports an unknown state.
    Unknown,
}

/// The result of one endpoint at one poll.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum Update<T> {
    /// It was read.
    New(T),
    /// It was not read, and cannot have changed since the last time.
    Unchanged,
    /// It was not read, and may have changed: only counters keep their values.
    Stale,
    /// It is not served, or reading failed: its values are unknown.
    #[default]
    Absent,
}

/// `/metrics`, with the time of the reading and the server's process.
#[derive(Clone, Debug, PartialEq)]
pub struct CountersReading {
    /// When the response was read.
    pub at: Instant,
    /// Identifies the server's process, if the response does. A different value means a restart.
    pub process: Option<String>,
    /// The values.
    pub counters: Counters,
}

/// `/slots`, with the time of the reading.
#[derive(Clone, Debug)]
pub struct SlotsReading {
    /// When the response was read.
    pub at: Instant,
    /// The slots.
    pub slots: Vec<Slot>,
}
