//! Which models of a server are shown: at most 500, the loaded ones first.

/// The most models of one server that are shown.
pub const MOST_MODELS: usize = 500;

/// Takes models one by one and holds no more than are shown, so that a list of any length
/// can be read without holding it.
#[derive(Debug)]
pub struct LimitedModels<T> {
    loaded: Vec<T>,
    others: Vec<T>,
    left_out: bool,
}

impl<T> Default for LimitedModels<T> {
    fn default() -> LimitedModels<T> {
        LimitedModels {
            loaded: Vec::new(),
            others: Vec::new(),
            left_out: false,
        }
    }
}

impl<T> LimitedModels<T> {
    /// Takes one more model; where there is no room left, a loaded one takes the place of one
    /// that is not.
    pub fn take(&mut self, model: T, is_loaded: bool) {
        let is_full = self.loaded.len().saturating_add(self.others.len()) >= MOST_MODELS;
        self.left_out |= is_full;
        if is_full && !(is_loaded && self.others.pop().is_some()) {
            return;
        }
        if is_loaded {
            self.loaded.push(model);
        } else {
            self.others.push(model);
        }
    }

    /// The models, the loaded ones first, and whether there were more than are shown.
    pub fn finish(mut self) -> (Vec<T>, bool) {
        self.loaded.append(&mut self.others);
        (self.loaded, self.left_out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The numbers that are shown of `models`, of which those below zero are loaded.
    fn shown(models: impl Iterator<Item = i32>) -> (Vec<i32>, bool) {
        let mut shown = LimitedModels::default();
        for model in models {
            shown.take(model, model < 0);
        }
        shown.finish()
    }

    #[test]
    fn all_are_shown_where_there_is_room() {
        assert_eq!(shown([3, -1, 2].into_iter()), (vec![-1, 3, 2], false));
        let (models, left_out) = shown(0..500);
        assert_eq!((models.len(), left_out), (500, false));
    }

    #[test]
    fn the_loaded_ones_come_first_wherever_they_stand() {
        let (models, left_out) = shown((0..700).chain(-3..0));
        assert!(left_out);
        assert_eq!((models.len(), models.capacity() < 2000), (500, true));
        assert_eq!(models[..5], [-3, -2, -1, 0, 1]);
    }

    #[test]
    fn more_loaded_ones_than_there_is_room_for_are_cut_as_well() {
        let (models, left_out) = shown((0..10).chain(-600..0));
        assert_eq!((models.len(), left_out), (500, true));
        assert_eq!((models[0], models[499]), (-600, -101));
    }
}
