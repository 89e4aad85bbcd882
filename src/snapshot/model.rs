//! The known values of one model. A value that is unknown, or not fresh, is `None`.

use std::collections::BTreeSet;

use crate::bounds;
use crate::readings::{Counters, LlamaServerFamily, ModelFacts, ModelKey, ModelStatus, Stats};
use crate::snapshot::histogram::Histogram;
use crate::snapshot::{Absence, GpuMemory};

/// What is known of one model.
#[derive(Clone, Debug, Default)]
pub struct Model {
    /// The label `model`.
    pub name: String,
    /// The label `mode`: the mode that it runs in (`completion`, `embedding`), where the kind of
    /// server has modes.
    pub mode: Option<String>,
    /// The status.
    pub status: Option<ModelStatus>,
    /// What does not change while it is loaded.
    pub facts: ModelFacts,
    /// llama-server's `/metrics`. Between two reads, counters keep their values; gauges do not.
    pub counters: Counters,
    /// llama-server's own families as they were read last, if they are exported.
    pub llama_server: Vec<LlamaServerFamily>,
    /// Counters that include the requests in flight.
    pub live: LiveCounts,
    /// Rates over the last interval.
    pub rates: Rates,
    /// What the exporter has counted over its polls.
    pub integrals: Integrals,
    /// What the slots hold.
    pub slots: SlotUsage,
    /// The use of the KV cache.
    pub kv_cache: KvCacheUsage,
    /// The process that holds the model.
    pub process: ProcessUsage,
    /// `/stats`: used for values that are known from nothing else.
    pub stats: Stats,
    /// Why values are missing that its server could report.
    pub notes: Vec<Absence>,
}

/// Counters of the server that include the requests in flight.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct LiveCounts {
    /// Prompt tokens computed.
    pub prompt_tokens: Option<f64>,
    /// Tokens generated.
    pub generated_tokens: Option<f64>,
    /// Calls of `llama_decode()`.
    pub decode_calls: Option<f64>,
}

/// Rates and batch figures over the last interval.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Rates {
    /// Tokens generated per second.
    pub tokens_per_second: Option<f64>,
    /// Prompt tokens computed per second.
    pub prompt_tokens_per_second: Option<f64>,
    /// Seconds per call of `llama_decode()`.
    pub batch_latency: Option<Histogram>,
    /// Tokens per call of `llama_decode()`; `None` while idle.
    pub batch_size: Option<f64>,
    /// The number of busy slots at which generation is fastest.
    pub optimal_batch_size: Option<f64>,
}

/// What the exporter has counted over its polls of a model.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Integrals {
    /// Seconds that requests waited for a slot, summed over requests.
    pub requests_deferred_seconds: Option<f64>,
    /// Seconds that requests were on a slot, summed over requests.
    pub requests_processing_seconds: Option<f64>,
    /// Seconds in each status, in the order of [`ModelStatus::ALL`].
    pub status_seconds: Option<[f64; ModelStatus::ALL.len()]>,
    /// Times that the model became loaded.
    pub loads: Option<u64>,
}

/// What the slots hold.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct SlotUsage {
    /// Slots that process a request.
    pub busy: Option<f64>,
    /// Whether no slot has had a task yet.
    pub are_unused: bool,
    /// Tokens in each slot, by the slot's id.
    pub context_tokens: Vec<(u64, f64)>,
    /// Tokens in the slots that process a request.
    pub active_tokens: Option<f64>,
}

/// The use of the KV cache.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct KvCacheUsage {
    /// Bytes that hold tokens.
    pub usage_bytes: Option<f64>,
    /// Bytes allocated.
    pub limit_bytes: Option<f64>,
    /// The share of its cells that hold tokens, 0 to 1.
    pub usage_ratio: Option<f64>,
}

/// What the process that holds the model uses.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ProcessUsage {
    /// Its PID, if it is a process of this machine.
    pub pid: Option<u32>,
    /// Bytes of resident memory.
    pub memory_usage: Option<f64>,
    /// Bytes of memory that it may use.
    pub total_memory: Option<f64>,
    /// CPU time over the last interval; 100 = all allowed CPUs fully used.
    pub cpu_utilization: Option<f64>,
    /// User and system CPU time, in seconds.
    pub cpu_seconds: Option<f64>,
    /// When it started, in seconds since 1970.
    pub start_time: Option<f64>,
    /// Number of threads.
    pub thread_count: Option<f64>,
    /// GPU memory, by the GPU's index.
    pub gpu_memory: Vec<(String, GpuMemory)>,
}

impl Model {
    /// Its name and mode.
    pub fn key(&self) -> ModelKey {
        (self.name.clone(), self.mode.clone())
    }

    /// The same model, with the labels of its series and no value.
    #[must_use]
    pub fn without_values(&self) -> Model {
        Model {
            name: self.name.clone(),
            mode: self.mode.clone(),
            ..Model::default()
        }
    }

    /// Whether the model may be in memory; an unknown status counts as loaded.
    pub fn is_loaded(&self) -> bool {
        use ModelStatus::{Downloading, Failed, Unloaded};
        !matches!(self.status, Some(Unloaded | Downloading | Failed))
    }

    /// The share of the KV cache's cells that hold tokens, 0 to 1.
    pub fn kv_cache_usage_ratio(&self) -> Option<f64> {
        self.kv_cache
            .usage_ratio
            .or(self.counters.kv_cache_usage_ratio)
    }

    /// Leaves the first slot of each id and the first GPU of each index.
    pub(super) fn remove_duplicates(&mut self) {
        let mut ids = BTreeSet::new();
        self.slots.context_tokens.retain(|(id, _)| ids.insert(*id));
        let mut gpus = BTreeSet::new();
        self.process
            .gpu_memory
            .retain(|(gpu, _)| gpus.insert(bounds::cut(gpu).to_owned()));
    }
}
