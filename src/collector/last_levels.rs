//! Keeps the levels that load balancers ask for while a model is loaded: queued and running
//! requests, and the use of the KV cache. A family that is missing is an error to them, and where a
//! server answers late, as in a long prompt, it is busiest.

use std::collections::BTreeMap;

use crate::readings::{ModelKey, ModelState, ModelStatus};
use crate::snapshot::Model;

/// The levels of each model at the last poll, by name and mode.
#[derive(Debug, Default)]
pub struct LastLevels(BTreeMap<ModelKey, Levels>);

#[derive(Clone, Copy, Debug, Default)]
struct Levels {
    processing: Option<f64>,
    deferred: Option<f64>,
    kv_cache: Option<f64>,
}

impl LastLevels {
    /// Forgets the models that are not in `models`.
    pub fn keep_only(&mut self, models: &[Model]) {
        let is_there =
            |(name, mode): &ModelKey| models.iter().any(|of| of.name == *name && of.mode == *mode);
        self.0.retain(|key, _| is_there(key));
    }

    /// Fills in the levels that this poll has not read, where they were read before and are known
    /// to be the same, or the server answers late.
    pub fn fill(&mut self, model: &mut Model, state: ModelState) {
        let last = self.0.entry(model.key());
        let last = last.or_default();
        let counters = &mut model.counters;
        let ratio = &mut model.kv_cache.usage_ratio;
        match state {
            // It is processing something, or a request has woken it.
            ModelState::Busy | ModelState::Waking => {
                let processing = counters.requests_processing.or(last.processing);
                counters.requests_processing = processing.map(|count| count.max(1.0));
                counters.requests_deferred = counters.requests_deferred.or(last.deferred);
                *ratio = ratio.or(last.kv_cache);
            }
            // It is not asked while it could fall asleep.
            ModelState::Ready if model.status == Some(ModelStatus::Idle) => {
                let none = |last: Option<f64>| last.map(|_| 0.0);
                let processing = counters.requests_processing.or(none(last.processing));
                counters.requests_processing = processing;
                counters.requests_deferred = counters.requests_deferred.or(none(last.deferred));
                *ratio = ratio.or(last.kv_cache);
            }
            // Its cache is gone.
            ModelState::Asleep(_) => {
                last.kv_cache = last.kv_cache.map(|_| 0.0);
                *ratio = ratio.or(last.kv_cache);
            }
            ModelState::Ready => {}
            ModelState::Loading | ModelState::Reported(_) | ModelState::Unknown => {
                *last = Levels::default();
            }
        }
        last.processing = model.counters.requests_processing.or(last.processing);
        last.deferred = model.counters.requests_deferred.or(last.deferred);
        last.kv_cache = model.kv_cache_usage_ratio().or(last.kv_cache);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;
    use crate::readings::Counters;
    use crate::snapshot::KvCacheUsage;

    fn model(status: ModelStatus, levels: Option<[f64; 3]>) -> Model {
        Model {
            name: "m".to_owned(),
            status: Some(status),
            counters: Counters {
                requests_processing: levels.map(|of| of[0]),
                requests_deferred: levels.map(|of| of[1]),
                ..Counters::default()
            },
            kv_cache: KvCacheUsage {
                usage_ratio: levels.map(|of| of[2]),
                ..KvCacheUsage::default()
            },
            ..Model::default()
        }
    }

    fn filled(last: &mut LastLevels, state: ModelState, mut model: Model) -> Vec<Option<f64>> {
        last.fill(&mut model, state);
        let counters = &model.counters;
        let ratio = model.kv_cache_usage_ratio();
        vec![
            counters.requests_processing,
            counters.requests_deferred,
            ratio,
        ]
    }

    #[test]
    fn levels_are_there_as_long_as_the_model_is_loaded() {
        use ModelStatus::{Idle, Loading, Running, Sleeping};
        let mut last = LastLevels::default();
        let all = |levels: [f64; 3]| levels.map(Some).to_vec();
        let read = model(Idle, Some([0.0, 0.0, 0.25]));
        assert_eq!(
            filled(&mut last, ModelState::Ready, read),
            all([0.0, 0.0, 0.25])
        );
        // Its first batch takes long.
        let late = || model(Running, None);
        assert_eq!(
            filled(&mut last, ModelState::Busy, late()),
            all([1.0, 0.0, 0.25])
        );
        let read = model(Running, Some([2.0, 3.0, 0.5]));
        assert_eq!(
            filled(&mut last, ModelState::Ready, read),
            all([2.0, 3.0, 0.5])
        );
        assert_eq!(
            filled(&mut last, ModelState::Busy, late()),
            all([2.0, 3.0, 0.5])
        );
        // It is idle, and not asked any more.
        let unasked = model(Idle, None);
        assert_eq!(
            filled(&mut last, ModelState::Ready, unasked),
            all([0.0, 0.0, 0.5])
        );
        let asleep = ModelState::Asleep(Instant::now());
        let ratio = filled(&mut last, asleep, model(Sleeping, None))[2];
        assert_eq!(ratio, Some(0.0));
        let waking = model(Loading, None);
        assert_eq!(
            filled(&mut last, ModelState::Waking, waking),
            all([1.0, 0.0, 0.0])
        );
        // Another model may be loaded now.
        let none = vec![None; 3];
        assert_eq!(
            filled(&mut last, ModelState::Loading, model(Loading, None)),
            none
        );
        assert_eq!(filled(&mut last, ModelState::Busy, late()), none);
    }

    #[test]
    fn what_was_never_read_is_absent() {
        let mut last = LastLevels::default();
        for state in [ModelState::Busy, ModelState::Ready] {
            let of_none = filled(&mut last, state, model(ModelStatus::Idle, None));
            assert_eq!(of_none, vec![None; 3]);
        }
        last.keep_only(&[]);
        assert!(last.0.is_empty());
    }
}
