//! The limit on models of one server: 500 are exported, the loaded ones first.

/// The most models of one server that are exported.
pub const MOST_MODELS: usize = 500;

/// Collects models one by one and holds at most [`MOST_MODELS`], so that a list of any length can
/// be read.
#[derive(Debug)]
pub struct LimitedModels<T> {
    loaded: Vec<T>,
    others: Vec<T>,
    is_truncated: bool,
}

impl<T> Default for LimitedModels<T> {
    fn default() -> LimitedModels<T> {
        LimitedModels {
            loaded: Vec::new(),
            others: Vec::new(),
            is_truncated: false,
        }
    }
}

impl<T> LimitedModels<T> {
    /// Adds a model. At the limit, a loaded model replaces one that is not loaded.
    pub fn push(&mut self, model: T, is_loaded: bool) {
        let is_full = self.loaded.len().saturating_add(self.others.len()) >= MOST_MODELS;
        self.is_truncated |= is_full;
        if is_full && !(is_loaded && self.others.pop().is_some()) {
            return;
        }
        let list = if is_loaded {
            &mut self.loaded
        } else {
            &mut self.others
        };
        list.push(model);
    }

    /// The models, the loaded ones first, and whether some were left out.
    pub fn finish(mut self) -> (Vec<T>, bool) {
        self.loaded.append(&mut self.others);
        (self.loaded, self.is_truncated)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The models that are kept; numbers below zero are loaded.
    fn kept(models: impl Iterator<Item = i32>) -> (Vec<i32>, bool) {
        let mut kept = LimitedModels::default();
        for model in models {
            kept.push(model, model < 0);
        }
        kept.finish()
    }

    #[test]
    fn all_models_are_kept_up_to_the_limit() {
        assert_eq!(kept([3, -1, 2].into_iter()), (vec![-1, 3, 2], false));
        let (models, is_truncated) = kept(0..500);
        assert_eq!((models.len(), is_truncated), (500, false));
    }

    #[test]
    fn loaded_models_come_first_wherever_they_are_listed() {
        let (models, is_truncated) = kept((0..700).chain(-3..0));
        assert!(is_truncated);
        assert_eq!((models.len(), models.capacity() < 2000), (500, true));
        assert_eq!(models[..5], [-3, -2, -1, 0, 1]);
    }

    #[test]
    fn loaded_models_beyond_the_limit_are_dropped_too() {
        let (models, is_truncated) = kept((0..10).chain(-600..0));
        assert_eq!((models.len(), is_truncated), (500, true));
        assert_eq!((models[0], models[499]), (-600, -101));
    }
}
