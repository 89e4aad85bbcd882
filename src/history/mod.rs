//! The last 15 minutes of the busiest models and of each GPU, for the status page. Plain data:
//! the poll threads add each reading.

mod latency;
mod load;
mod ring;

use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use crate::bounds;
use crate::history::latency::LatencyWindow;
use crate::history::load::{Candidates, Load};
use crate::metrics::value;
use crate::readings::ModelKey;
use crate::snapshot::{Gpu, Model, Snapshot};

pub use latency::WINDOW_SECONDS;
pub use ring::{POINT_SECONDS, POINTS, Ring};

/// The most models whose history is kept.
pub const MOST_MODELS: usize = 8;
/// The most GPUs whose history is kept.
pub const MOST_GPUS: usize = 16;
/// How much busier than the least busy model another one must be to take its place: less would
/// make two models of about the same load take turns.
const BUSIER: f64 = 2.0;
const BUSIER_REQUESTS: f64 = 0.05;
/// The time after which the history of a model or GPU that is gone is empty, in seconds.
const FORGET_SECONDS: f64 = POINTS as f64 * POINT_SECONDS;

/// The values of a model that a poll reads, as the catalogue has them.
const OF_MODEL: [&str; 7] = [
    "llamacpp_tokens_per_second",
    "llamacpp_prompt_tokens_per_second",
    "llamacpp_requests_processing",
    "llamacpp_requests_deferred",
    "llamacpp_kv_cache_usage_ratio",
    "llamacpp_cpu_utilization_percent",
    "llamacpp_memory_usage_bytes",
];

/// The history of one model.
#[derive(Clone, Debug)]
pub struct ModelHistory {
    /// The label `server`.
    pub server: String,
    /// Its name and mode.
    pub key: ModelKey,
    /// In the order of [`OF_MODEL`].
    rings: [Ring; OF_MODEL.len()],
    /// Seconds to the first token: p50 and p95 over [`WINDOW_SECONDS`], and the last of both.
    first_token: [Ring; 2],
    last_first_token: Option<[f64; 2]>,
    window: LatencyWindow,
    load: Load,
    last_seen: f64,
}

impl ModelHistory {
    /// The values of the `family`, one of [`OF_MODEL`].
    pub fn ring(&self, family: &str) -> Option<&Ring> {
        let index = OF_MODEL.iter().position(|name| *name == family)?;
        self.rings.get(index)
    }

    /// The seconds to the first token: p50 and p95 over the last [`WINDOW_SECONDS`].
    pub fn first_token(&self) -> &[Ring; 2] {
        &self.first_token
    }

    /// The last of them, if a request had its first token then.
    pub fn last_first_token(&self) -> Option<[f64; 2]> {
        self.last_first_token
    }
}

/// The history of one GPU.
#[derive(Clone, Debug)]
pub struct GpuHistory {
    /// The label `gpu`.
    pub index: String,
    /// Percentage of time that it was busy.
    pub utilization: Ring,
    /// Bytes of memory in use, of all kinds.
    pub memory_used: Ring,
    last_seen: f64,
}

/// The history of all servers and GPUs. Poll threads add to it, the status page reads it.
#[derive(Debug)]
pub struct History {
    start: Instant,
    /// The lock is held while readings are added or copied: microseconds.
    kept: Mutex<Kept>,
}

#[derive(Debug, Default)]
struct Kept {
    models: Vec<ModelHistory>,
    candidates: Candidates,
    gpus: Vec<GpuHistory>,
}

/// A copy of the history, to be read without a lock.
#[derive(Clone, Debug, Default)]
pub struct HistoryView {
    /// Seconds since the start of the history.
    pub now: f64,
    /// The busiest models, sorted by server and name.
    pub models: Vec<ModelHistory>,
    /// The GPUs, sorted by their index.
    pub gpus: Vec<GpuHistory>,
}

impl History {
    /// An empty history that begins at `start`.
    pub fn new(start: Instant) -> History {
        History {
            start,
            kept: Mutex::default(),
        }
    }

    fn seconds(&self, at: Instant) -> f64 {
        at.saturating_duration_since(self.start).as_secs_f64()
    }

    /// Adds what a poll that ended at `now` has read. It stands for the time since `since`, when
    /// the poll before has ended; `None` if that is not known.
    pub fn add_poll(&self, snapshot: &Snapshot, since: Option<Instant>, now: Instant) {
        let (since, now) = (self.seconds(since.unwrap_or(now)), self.seconds(now));
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.forget(now);
        for model in &snapshot.models {
            if let Some(history) = kept.history_of(&snapshot.server, model, now) {
                history.add(snapshot, model, since, now);
            }
        }
        let of_server = |of: &&mut ModelHistory| of.server == snapshot.server;
        for gone in kept.models.iter_mut().filter(of_server) {
            if gone.last_seen < now {
                gone.add_nothing(now);
            }
        }
    }

    /// Adds the readings of the GPUs at `now`.
    pub fn add_gpus(&self, gpus: &[Gpu], now: Instant) {
        let now = self.seconds(now);
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        for gpu in gpus {
            if let Some(history) = kept.gpu(bounds::cut(&gpu.index), now) {
                let since = history.last_seen;
                history.utilization.add(since, now, gpu.utilization);
                let used = gpu.memory_used;
                let memory = used.kinds().map(|(_, bytes)| bytes).reduce(|a, b| a + b);
                history.memory_used.add(since, now, memory);
                history.last_seen = now;
            }
        }
        for gone in kept.gpus.iter_mut().filter(|gpu| gpu.last_seen < now) {
            gone.utilization.add(now, now, None);
            gone.memory_used.add(now, now, None);
        }
    }

    /// A copy of what is kept at `now`.
    pub fn view(&self, now: Instant) -> HistoryView {
        let now = self.seconds(now);
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.forget(now);
        let (mut models, gpus) = (kept.models.clone(), kept.gpus.clone());
        drop(kept);
        models.sort_unstable_by(|a, b| (&a.server, &a.key).cmp(&(&b.server, &b.key)));
        HistoryView { now, models, gpus }
    }
}

impl HistoryView {
    /// The history of a model.
    pub fn model(&self, server: &str, model: &Model) -> Option<&ModelHistory> {
        self.models.iter().find(|of| of.is_of(server, model))
    }
}

impl Kept {
    /// The history of a model, if it is among the busiest ones.
    fn history_of(&mut self, server: &str, model: &Model, now: f64) -> Option<&mut ModelHistory> {
        if let Some(index) = self.models.iter().position(|of| of.is_of(server, model)) {
            return self.models.get_mut(index);
        }
        let requests = load::requests(model);
        let has_room = self.models.len() < MOST_MODELS;
        if !model.is_loaded() || (!has_room && requests <= 0.0) {
            return None;
        }
        let load = match requests > 0.0 {
            true => {
                let name = (server, &model.name, &model.mode);
                self.candidates.add(&name, now, requests)
            }
            false => Load::default(),
        };
        if !has_room {
            let loads = self.models.iter().map(|of| of.load.at(now)).enumerate();
            let (index, least) = loads.min_by(|(_, a), (_, b)| a.total_cmp(b))?;
            if load.at(now) < BUSIER * least + BUSIER_REQUESTS {
                return None;
            }
            self.models.swap_remove(index);
        }
        self.models.push(ModelHistory {
            server: server.to_owned(),
            key: (
                bounds::cut(&model.name).to_owned(),
                model
                    .mode
                    .as_deref()
                    .map(|mode| bounds::cut(mode).to_owned()),
            ),
            rings: Default::default(),
            first_token: Default::default(),
            last_first_token: None,
            window: LatencyWindow::default(),
            load,
            last_seen: now,
        });
        self.models.last_mut()
    }

    /// The history of a GPU, while there are not too many.
    fn gpu(&mut self, index: &str, now: f64) -> Option<&mut GpuHistory> {
        if let Some(at) = self.gpus.iter().position(|gpu| gpu.index == index) {
            return self.gpus.get_mut(at);
        }
        if self.gpus.len() >= MOST_GPUS {
            return None;
        }
        let at = self.gpus.partition_point(|gpu| gpu.index.as_str() < index);
        self.gpus.insert(
            at,
            GpuHistory {
                index: index.to_owned(),
                utilization: Ring::default(),
                memory_used: Ring::default(),
                last_seen: now,
            },
        );
        self.gpus.get_mut(at)
    }

    /// Removes what has been gone for so long that its history is empty.
    fn forget(&mut self, now: f64) {
        let is_kept = |last_seen: f64| now - last_seen < FORGET_SECONDS;
        self.models.retain(|of| is_kept(of.last_seen));
        self.gpus.retain(|of| is_kept(of.last_seen));
    }
}

impl ModelHistory {
    /// Whether it is that of `model` of this server.
    pub fn is_of(&self, server: &str, model: &Model) -> bool {
        let (name, mode) = &self.key;
        let is_mode = mode.as_deref() == model.mode.as_deref().map(bounds::cut);
        self.server == server && name == bounds::cut(&model.name) && is_mode
    }

    fn add(&mut self, snapshot: &Snapshot, model: &Model, since: f64, now: f64) {
        for (ring, family) in self.rings.iter_mut().zip(OF_MODEL) {
            ring.add(since, now, value::of_model(family, model));
        }
        let of_model = snapshot.requests.iter();
        let of_model = of_model.filter(|of| of.model == model.name && of.mode == model.mode);
        let mut histograms =
            of_model.filter_map(|of| Some((of.source, of.figures.first_token.as_ref()?)));
        self.last_first_token = histograms
            .next()
            .and_then(|(source, histogram)| self.window.add(now, source, histogram));
        for (index, ring) in self.first_token.iter_mut().enumerate() {
            let value = self.last_first_token.and_then(|of| of.get(index).copied());
            ring.add(since, now, value);
        }
        self.load.add(now, load::requests(model));
        self.last_seen = now;
    }

    fn add_nothing(&mut self, now: f64) {
        for ring in self.rings.iter_mut().chain(&mut self.first_token) {
            ring.add(now, now, None);
        }
        self.last_first_token = None;
    }
}

#[cfg(test)]
mod tests;
