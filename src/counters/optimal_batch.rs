//! The number of busy slots at which a server generates fastest, as observed.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// After this time, an interval has half its weight.
const HALF_LIFE: Duration = Duration::from_secs(600);
/// A number of slots counts after this many intervals.
const FEWEST_INTERVALS: u32 = 10;
/// Below this weight, a number of slots was observed too long ago to count.
const LEAST_WEIGHT: f64 = 1.0;
/// The most numbers of slots that are distinguished.
const MOST_GROUPS: usize = 1024;

/// The speed of busy intervals, by the number of busy slots.
#[derive(Debug, Default)]
pub struct OptimalBatch {
    groups: BTreeMap<u32, Group>,
}

#[derive(Debug)]
struct Group {
    /// Sum of the intervals' weights at `at`.
    weight: f64,
    /// Sum of their weighted speeds at `at`.
    speed: f64,
    intervals: u32,
    at: Instant,
}

impl Group {
    fn age(&mut self, now: Instant) {
        let age = now.duration_since(self.at).as_secs_f64();
        let remaining = 0.5f64.powf(age / HALF_LIFE.as_secs_f64());
        self.weight *= remaining;
        self.speed *= remaining;
        self.at = now;
    }
}

impl OptimalBatch {
    /// Takes an interval during which this number of slots was busy all the time.
    pub fn observe(&mut self, now: Instant, slots: u32, tokens_per_second: f64) {
        self.groups.values_mut().for_each(|group| group.age(now));
        self.groups
            .retain(|_, group| group.intervals < FEWEST_INTERVALS || group.weight >= LEAST_WEIGHT);
        if self.groups.len() == MOST_GROUPS && !self.groups.contains_key(&slots) {
            return;
        }
        let group = self.groups.entry(slots).or_insert(Group {
            weight: 0.0,
            speed: 0.0,
            intervals: 0,
            at: now,
        });
        group.weight += 1.0;
        group.speed += tokens_per_second;
        group.intervals = group.intervals.saturating_add(1);
    }

    /// The number of slots with the highest mean speed, once two can be compared.
    pub fn best(&self) -> Option<u32> {
        let counted = self.groups.iter();
        let counted = counted.filter(|(_, group)| group.intervals >= FEWEST_INTERVALS);
        let means = counted.map(|(slots, group)| (*slots, group.speed / group.weight));
        if means.clone().count() < 2 {
            return None;
        }
        // Of equals, the one with fewer slots.
        let best = means.reduce(|best, next| if next.1 > best.1 { next } else { best });
        best.map(|(slots, _)| slots)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn observe(
        optimal: &mut OptimalBatch,
        from: Instant,
        slots: u32,
        times: u32,
        speed: f64,
    ) -> Instant {
        for index in 0..times {
            optimal.observe(from + SECOND * index, slots, speed);
        }
        from + SECOND * times
    }

    #[test]
    fn the_fastest_number_of_slots_wins_after_ten_intervals_of_two() {
        let mut optimal = OptimalBatch::default();
        let now = observe(&mut optimal, Instant::now(), 1, 10, 40.0);
        let now = observe(&mut optimal, now, 4, 9, 90.0);
        assert_eq!(optimal.best(), None);
        let now = observe(&mut optimal, now, 4, 1, 90.0);
        assert_eq!(optimal.best(), Some(4));
        observe(&mut optimal, now, 8, 10, 80.0);
        assert_eq!(optimal.best(), Some(4));
    }

    #[test]
    fn old_intervals_count_less() {
        let mut optimal = OptimalBatch::default();
        let now = observe(&mut optimal, Instant::now(), 1, 30, 40.0);
        let now = observe(&mut optimal, now, 2, 30, 70.0);
        // Half an hour later the machine is shared, and two slots are slower than one.
        let now = observe(&mut optimal, now + SECOND * 1800, 2, 30, 20.0);
        observe(&mut optimal, now, 1, 30, 39.0);
        assert_eq!(optimal.best(), Some(1));
    }

    #[test]
    fn very_old_intervals_do_not_count() {
        let mut optimal = OptimalBatch::default();
        let now = observe(&mut optimal, Instant::now(), 1, 10, 40.0);
        let now = observe(&mut optimal, now, 2, 10, 70.0);
        observe(&mut optimal, now + SECOND * 3600, 1, 10, 40.0);
        assert_eq!(optimal.best(), None);
    }
}
