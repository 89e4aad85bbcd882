//! What is known now: one [`Snapshot`] per base URL, and the cell it is published in.
//!
//! A value that is not known, or not fresh, is `None`, and is then not exported.

pub mod histogram;
mod own_metrics;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crate::bounds;
use crate::readings::ModelStatus;
use crate::snapshot::histogram::Histogram;
pub use crate::snapshot::own_metrics::OwnMetrics;

/// What the last poll of one base URL left behind.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// `host:port` of the base URL.
    pub server: String,
    /// Whether the last poll got an answer; `None` before the first poll has ended.
    pub up: Option<bool>,
    /// What answers there; `None` while nothing does.
    pub info: Option<ServerInfo>,
    /// The models that it holds, sorted by name; empty while it is down.
    pub models: Vec<Model>,
    /// Bytes of the server's store of models.
    pub models_disk_usage: Option<f64>,
    /// Figures of requests by model and source, sorted by both. They are the exporter's own
    /// counters, and outlive a server that is down.
    pub requests: Vec<ModelRequests>,
    /// Rejected lines of the server's log, by the label `reason`; `None` without a log.
    pub log_lines_rejected: Option<Vec<(&'static str, u64)>>,
    /// How the polling itself went.
    pub polls: Polls,
    /// Requests of the last poll that failed.
    pub failures: Vec<Failed>,
    /// What this server cannot tell and why, in sentences for people.
    pub notes: Vec<String>,
}

impl Snapshot {
    /// The same of a server of which nothing is known any more: it counts as down. What the
    /// exporter itself has counted stays.
    #[must_use]
    pub fn without_values(&self) -> Snapshot {
        Snapshot {
            server: self.server.clone(),
            up: Some(false),
            requests: self.requests.clone(),
            polls: self.polls.clone(),
            ..Snapshot::default()
        }
    }
}

impl Snapshot {
    /// Leaves one series of those that would have the same labels: the first model of each name
    /// and mode, the first figures of each model and source, the first slot of each number and
    /// the first GPU of each index. Names count as they are shown: [cut](bounds::cut).
    fn keep_first_of_each(&mut self) {
        let mut seen = BTreeSet::new();
        self.models.retain_mut(|model| {
            model.keep_first_of_each();
            let mode = model.mode.as_deref().filter(|_| model.mode_tells);
            seen.insert((cut(&model.name), mode.map(cut)))
        });
        let mut seen = BTreeSet::new();
        self.requests
            .retain(|of| seen.insert((cut(&of.model), of.source)));
    }
}

/// What answers at a base URL.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerInfo {
    /// The kind of server, as the label `kind` spells it.
    pub kind: &'static str,
    /// Its version as it gives it (llama-server: `build_info` of `/props`).
    pub version: Option<String>,
}

/// How the polling of one base URL went so far.
#[derive(Clone, Debug, Default)]
pub struct Polls {
    /// Polls that have ended.
    pub total: u64,
    /// Length of the last one.
    pub duration: Duration,
    /// When the last successful one ended, in seconds since 1970.
    pub last_success: Option<f64>,
    /// Requests that failed, by endpoint and reason.
    pub errors: BTreeMap<(&'static str, Reason), u64>,
}

/// A request that failed.
#[derive(Clone, Debug)]
pub struct Failed {
    /// The path that was asked for.
    pub endpoint: &'static str,
    /// The model whose server was asked, where the base URL leads to several.
    pub model: Option<String>,
    /// The kind of failure.
    pub reason: Reason,
    /// What happened and what to do, for people.
    pub detail: String,
}

/// Why a request failed, as the label `reason` spells it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reason {
    /// No connection, or one that broke before the answer was whole.
    Connect,
    /// No whole answer within the deadline.
    Timeout,
    /// An HTTP status that is no answer.
    Status,
    /// More bytes or items than any real server sends.
    TooLarge,
    /// An answer that is not what this endpoint answers.
    Parse,
    /// The server wants a key that it was not given.
    Unauthorized,
}

impl Reason {
    /// Every reason, in the order of the exposition.
    pub const ALL: [Reason; 6] = [
        Reason::Connect,
        Reason::Timeout,
        Reason::Status,
        Reason::TooLarge,
        Reason::Parse,
        Reason::Unauthorized,
    ];

    /// The value of the label `reason`.
    pub fn label(self) -> &'static str {
        match self {
            Reason::Connect => "connect",
            Reason::Timeout => "timeout",
            Reason::Status => "status",
            Reason::TooLarge => "too_large",
            Reason::Parse => "parse",
            Reason::Unauthorized => "unauthorized",
        }
    }
}

/// What is known of one model. The catalogue says what each value means.
#[derive(Clone, Debug, Default)]
pub struct Model {
    /// The label `model`.
    pub name: String,
    /// What it is run for (`completion`, `embedding`), where the server says so.
    pub mode: Option<String>,
    /// Whether the label `mode` must tell it from the same model in another mode.
    pub mode_tells: bool,
    /// The state it is in.
    pub status: Option<ModelStatus>,
    /// The architecture, as GGUF names it.
    pub architecture: Option<String>,
    /// The engine that runs it, where the server has several.
    pub backend: Option<String>,
    /// How its weights are quantized, as the server says it (`Q4_K - Medium`).
    pub quantization: Option<String>,
    /// What its server cannot tell, for people.
    pub notes: Vec<&'static str>,

    /// Tokens per second over the last interval.
    pub tokens_per_second: Option<f64>,
    /// Prompt tokens per second over the last interval.
    pub prompt_tokens_per_second: Option<f64>,
    /// Seconds per `llama_decode()` call.
    pub batch_latency: Option<Histogram>,
    /// Tokens per `llama_decode()` call.
    pub batch_size: Option<f64>,
    /// Busy slots at which generation is fastest.
    pub optimal_batch_size: Option<f64>,

    /// Bytes resident.
    pub memory_usage: Option<f64>,
    /// Bytes that may become resident.
    pub total_memory: Option<f64>,
    /// Percent of every CPU it may run on.
    pub cpu_utilization: Option<f64>,
    /// Percent.
    pub gpu_utilization: Option<f64>,
    /// Degrees Celsius.
    pub temperature: Option<f64>,
    /// Threads of the process.
    pub threads: Option<f64>,
    /// Bytes of KV cache in use.
    pub kv_cache_usage: Option<f64>,
    /// Bytes of KV cache there are.
    pub kv_cache_limit: Option<f64>,
    /// Share of the KV cache's cells in use.
    pub kv_cache_ratio: Option<f64>,
    /// User and system time of the process, in seconds.
    pub process_cpu_seconds: Option<f64>,
    /// GPU memory of the process, by GPU.
    pub process_gpu_memory: Vec<(String, GpuMemory)>,

    /// Bytes of weights.
    pub size: Option<f64>,
    /// Number of parameters.
    pub parameters: Option<f64>,
    /// Tokens in the fullest slot.
    pub context_size: Option<f64>,
    /// Tokens that fit one slot.
    pub max_context_size: Option<f64>,
    /// Tokens in each slot, by the slot's id.
    pub context_tokens: Vec<(u64, f64)>,
    /// Slots there are.
    pub slots: Option<f64>,
    /// Slots at work.
    pub slots_busy: Option<f64>,
    /// Requests on a slot.
    pub requests_processing: Option<f64>,
    /// Requests waiting for a slot.
    pub requests_deferred: Option<f64>,

    /// Prompt tokens computed, in flight included.
    pub prompt_tokens: Option<f64>,
    /// Prompt tokens taken from the cache.
    pub prompt_tokens_cached: Option<f64>,
    /// Seconds spent on prompts.
    pub prompt_seconds: Option<f64>,
    /// Tokens generated, in flight included.
    pub generated_tokens: Option<f64>,
    /// Seconds spent generating.
    pub generation_seconds: Option<f64>,
    /// Calls of `llama_decode()`.
    pub decode_calls: Option<f64>,
    /// Draft tokens proposed.
    pub draft_tokens: Option<f64>,
    /// Draft tokens accepted.
    pub draft_tokens_accepted: Option<f64>,
    /// Longest sequence seen.
    pub max_sequence_tokens: Option<f64>,
}

impl Model {
    fn keep_first_of_each(&mut self) {
        let mut slots = BTreeSet::new();
        self.context_tokens.retain(|(slot, _)| slots.insert(*slot));
        let mut gpus = BTreeSet::new();
        self.process_gpu_memory
            .retain(|(gpu, _)| gpus.insert(cut(gpu)));
    }
}

fn cut(text: &str) -> String {
    bounds::cut(text).to_owned()
}

/// What is known of one GPU of this machine.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Gpu {
    /// The label `gpu`.
    pub index: String,
    /// What it is called.
    pub name: Option<String>,
    /// Its identity.
    pub uuid: Option<String>,
    /// The version of its driver, or the driver's name.
    pub driver: Option<String>,
    /// Percent of the time that it was busy.
    pub utilization: Option<f64>,
    /// Degrees Celsius.
    pub temperature: Option<f64>,
    /// Its memory in use.
    pub memory_used: GpuMemory,
    /// Its memory.
    pub memory_total: GpuMemory,
    /// Watts.
    pub power: Option<f64>,
}

/// Bytes of a GPU's memory, by where it lies.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct GpuMemory {
    /// Its own: video memory, and on a GPU that is a part of the processor what the firmware
    /// has set aside for it.
    pub vram: Option<f64>,
    /// System memory that the kernel maps for it (AMD's graphics translation table): where
    /// models lie on a GPU that is a part of the processor, and what does not fit others.
    pub gtt: Option<f64>,
}

impl GpuMemory {
    /// Memory of a kind of GPU that has one kind of memory.
    pub fn of_one_kind(bytes: Option<f64>) -> GpuMemory {
        GpuMemory {
            vram: bytes,
            gtt: None,
        }
    }

    /// What there is, and the label that tells one kind from the other where there are two.
    pub fn kinds(self) -> impl Iterator<Item = (Option<&'static str>, f64)> {
        let vram = self.gtt.map(|_| "vram");
        let kinds = [(vram, self.vram), (Some("gtt"), self.gtt)];
        kinds
            .into_iter()
            .filter_map(|(kind, bytes)| Some((kind, bytes?)))
    }
}

/// The requests of one model, as one source reports them.
#[derive(Clone, Debug)]
pub struct ModelRequests {
    /// The label `model`.
    pub model: String,
    /// The label `source`.
    pub source: &'static str,
    /// What is known of them.
    pub figures: Arc<RequestFigures>,
}

/// What one source reports of the requests of one model; `None` is what it cannot report.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RequestFigures {
    /// Seconds to the first token.
    pub first_token: Option<Histogram>,
    /// Seconds of prompt and generation.
    pub duration: Option<Histogram>,
    /// Seconds of generation per generated token.
    pub per_token: Option<Histogram>,
    /// Prompt tokens that were computed.
    pub prompt_tokens: Option<Histogram>,
    /// Tokens generated.
    pub generated_tokens: Option<Histogram>,
    /// Requests that ended in an error, by HTTP status.
    pub errors: BTreeMap<u16, u64>,
    /// Requests whose client went away.
    pub cancellations: Option<u64>,
    /// How often records may have been missed.
    pub record_gaps: Option<u64>,
    /// Tokens generated for probes.
    pub probe_tokens: Option<u64>,
    /// Prompt tokens computed for probes.
    pub probe_prompt_tokens: Option<u64>,
    /// Probes that failed, by reason.
    pub probe_failures: BTreeMap<Reason, u64>,
}

/// Where one poller publishes and every scrape reads.
///
/// The lock is held only to swap or clone a pointer: neither side waits for the other's work.
#[derive(Debug)]
pub struct Cell(Mutex<Arc<Snapshot>>);

impl Cell {
    /// A cell that holds `snapshot`.
    pub fn new(snapshot: Snapshot) -> Cell {
        Cell(Mutex::new(Arc::new(snapshot)))
    }

    /// Puts a new snapshot in place of the old one. Here and nowhere else it is made sure that
    /// no two series of one server have the same labels.
    pub fn publish(&self, mut snapshot: Arc<Snapshot>) {
        Arc::make_mut(&mut snapshot).keep_first_of_each();
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = snapshot;
    }

    /// The newest snapshot.
    pub fn load(&self) -> Arc<Snapshot> {
        Arc::clone(&self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}
