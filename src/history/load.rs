//! How busy a model is, to choose the models whose history is kept.

use std::hash::{DefaultHasher, Hash, Hasher};

use crate::readings::ModelStatus;
use crate::snapshot::Model;

/// The time constant of the mean, in seconds.
const MEAN_SECONDS: f64 = 300.0;
/// How many models without a history are compared.
const MOST_CANDIDATES: usize = 64;

/// The requests of a model, its mean over some minutes.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Load {
    mean: f64,
    at: f64,
}

impl Load {
    /// Adds a reading at `now`, in seconds.
    pub(super) fn add(&mut self, now: f64, requests: f64) {
        let kept = self.kept(now);
        self.mean = self.mean * kept + requests * (1.0 - kept);
        self.at = now;
    }

    /// The mean at `now`, with no request since the last reading.
    pub(super) fn at(self, now: f64) -> f64 {
        self.mean * self.kept(now)
    }

    fn kept(self, now: f64) -> f64 {
        (-(now - self.at).max(0.0) / MEAN_SECONDS).exp()
    }
}

/// The requests of `model` that are being processed or wait.
pub(super) fn requests(model: &Model) -> f64 {
    let counters = &model.counters;
    let waiting = counters.requests_deferred.unwrap_or(0.0);
    let processing = counters.requests_processing.or(model.slots.busy);
    let is_running = f64::from(model.status == Some(ModelStatus::Running));
    processing.unwrap_or(is_running) + waiting
}

/// The loads of models whose history is not kept, by a hash of their name.
#[derive(Debug, Default)]
pub(super) struct Candidates(Vec<(u64, Load)>);

impl Candidates {
    /// Adds a reading of a model that is busy. Returns its load.
    pub(super) fn add(&mut self, name: &impl Hash, now: f64, requests: f64) -> Load {
        let mut hasher = DefaultHasher::new();
        name.hash(&mut hasher);
        let hash = hasher.finish();
        let mut load = match self.0.iter().position(|(known, _)| *known == hash) {
            Some(index) => self.0.swap_remove(index).1,
            None => Load { mean: 0.0, at: now },
        };
        load.add(now, requests);
        if self.0.len() >= MOST_CANDIDATES {
            let loads = self.0.iter().enumerate();
            let least = loads.min_by(|(_, (_, a)), (_, (_, b))| a.at(now).total_cmp(&b.at(now)));
            if let Some((index, _)) = least {
                self.0.swap_remove(index);
            }
        }
        self.0.push((hash, load));
        load
    }

    /// The bytes that it has allocated.
    #[cfg(test)]
    pub(super) fn heap_bytes(&self) -> usize {
        self.0.capacity() * size_of::<(u64, Load)>()
    }
}
