//! What is known now, as plain data: one [`Snapshot`] per base URL, the GPUs of this machine, and
//! the exporter itself. Knows neither where a value comes from nor how it is exported.
//!
//! A value that is unknown, or not fresh, is `None`, and is not exported.

mod absence;
mod cell;
mod gpu;
pub mod histogram;
mod model;
mod own_metrics;
mod requests;
mod server;
mod source;

use std::collections::BTreeSet;
use std::time::Instant;

pub use absence::Absence;
pub use cell::SnapshotCell;
pub use gpu::{Gpu, GpuMemory};
pub use model::{Integrals, KvCacheUsage, LiveCounts, Model, ProcessUsage, Rates, SlotUsage};
pub use own_metrics::OwnMetrics;
pub use requests::{ModelRequests, Outcome, RequestFigures};
pub use server::{PollFailure, Polls, Reason, ServerInfo};
pub use source::{MOST_SOURCES, Missing, Source, SourceKind, SourceState};

use crate::bounds;

/// What the last poll of one base URL found.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// `host:port` of the base URL.
    pub server: String,
    /// Whether the last poll got an answer; `None` before the first poll has ended.
    pub up: Option<bool>,
    /// When that changed last; `None` if it is not known since when it is so.
    pub since: Option<Instant>,
    /// What answers there; `None` while it is down.
    pub info: Option<ServerInfo>,
    /// The models that it holds, sorted by name. While it does not answer, those whose process is
    /// known and still there, with the values of that process alone; empty if it is down otherwise.
    pub models: Vec<Model>,
    /// Bytes of the server's store of models.
    pub models_disk_usage: Option<f64>,
    /// Figures of requests by model and source, sorted by both. They are the exporter's own
    /// counters, and outlive a server that is down.
    pub requests: Vec<ModelRequests>,
    /// Rejected lines of the server's log, by the label `reason`; `None` without a log.
    pub log_lines_rejected: Option<Vec<(&'static str, u64)>>,
    /// How the polling went so far.
    pub polls: Polls,
    /// Requests of the last poll that failed.
    pub failures: Vec<PollFailure>,
    /// Which values are missing and why, for the user.
    pub notes: Vec<String>,
    /// Why it is down; `None` while it is up, and before the first poll has ended.
    pub down: Option<Missing>,
    /// Where its values come from, at most [`MOST_SOURCES`].
    pub sources: Vec<Source>,
}

impl Snapshot {
    /// The snapshot of the same server as down: only the exporter's own counters remain.
    #[must_use]
    pub fn without_values(&self) -> Snapshot {
        Snapshot {
            server: self.server.clone(),
            up: Some(false),
            requests: self.requests.clone(),
            polls: self.polls.clone(),
            down: Some(Absence::PollOverdue.into()),
            sources: self.sources.clone(),
            ..Snapshot::default()
        }
    }

    /// Leaves one series of those with the same labels: the first model of each name and mode,
    /// slot of each id, GPU of each index, and requests of each model, mode and source. Names are
    /// compared as they are exported: [cut](bounds::cut).
    fn remove_duplicates(&mut self) {
        let cut = |name: &str| bounds::cut(name).to_owned();
        let mut models = BTreeSet::new();
        self.models.retain_mut(|model| {
            model.remove_duplicates();
            models.insert((cut(&model.name), model.mode.as_deref().map(cut)))
        });
        let mut requests = BTreeSet::new();
        self.requests
            .retain(|of| requests.insert((cut(&of.model), of.mode.as_deref().map(cut), of.source)));
    }
}
