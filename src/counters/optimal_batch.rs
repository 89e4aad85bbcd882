//! At how many busy slots a server generates fastest, as far as it was seen.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// After this long, an interval counts half.
const HALF_LIFE: Duration = Duration::from_secs(600);
/// Intervals that a number of slots must have been seen for.
const ENOUGH: u32 = 10;
/// Below this weight a number of slots was seen too long ago to count.
const FAINT: f64 = 1.0;
/// The most numbers of slots that are told apart.
const MOST_GROUPS: usize = 1024;

/// The speed of busy intervals, by the number of slots that were busy.
#[derive(Debug, Default)]
pub struct OptimalBatch {
    groups: BTreeMap<u32, Group>,
}

#[derive(Debug)]
struct Group {
    /// Sum of the intervals' weights, as of `at`.
    weight: f64,
    /// Sum of their speeds, weighted, as of `at`.
    speed: f64,
    intervals: u32,
    at: Instant,
}

impl Group {
    fn age(&mut self, now: Instant) {
        let age = now.duration_since(self.at).as_secs_f64();
        let rest = 0.5f64.powf(age / HALF_LIFE.as_secs_f64());
        self.weight *= rest;
        self.speed *= rest;
        self.at = now;
    }
}

impl OptimalBatch {
    /// Takes an interval that was busy from end to end, with as many slots throughout.
    pub fn saw(&mut self, now: Instant, slots: u32, tokens_per_second: f64) {
        for group in self.groups.values_mut() {
            group.age(now);
        }
        self.groups
            .retain(|_, group| group.intervals < ENOUGH || group.weight >= FAINT);
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
        let known = || {
            self.groups
                .iter()
                .filter(|(_, group)| group.intervals >= ENOUGH)
                .map(|(slots, group)| (*slots, group.speed / group.weight))
        };
        if known().count() < 2 {
            return None;
        }
        // Of equals, the one that needs fewer slots.
        known()
            .reduce(|best, next| if next.1 > best.1 { next } else { best })
            .map(|(slots, _)| slots)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn see(seen: &mut OptimalBatch, from: Instant, slots: u32, times: u32, speed: f64) -> Instant {
        for index in 0..times {
            seen.saw(from + SECOND * index, slots, speed);
        }
        from + SECOND * times
    }

    #[test]
    fn the_fastest_number_of_slots_wins_once_two_were_seen_often_enough() {
        let mut seen = OptimalBatch::default();
        let now = see(&mut seen, Instant::now(), 1, 10, 40.0);
        let now = see(&mut seen, now, 4, 9, 90.0);
        assert_eq!(seen.best(), None);
        let now = see(&mut seen, now, 4, 1, 90.0);
        assert_eq!(seen.best(), Some(4));
        see(&mut seen, now, 8, 10, 80.0);
        assert_eq!(seen.best(), Some(4));
    }

    #[test]
    fn what_was_seen_long_ago_counts_less() {
        let mut seen = OptimalBatch::default();
        let now = see(&mut seen, Instant::now(), 1, 30, 40.0);
        let now = see(&mut seen, now, 2, 30, 70.0);
        // Half an hour later the machine is shared, and two slots are slower than one.
        let now = see(&mut seen, now + SECOND * 1800, 2, 30, 20.0);
        see(&mut seen, now, 1, 30, 39.0);
        assert_eq!(seen.best(), Some(1));
    }

    #[test]
    fn what_was_seen_too_long_ago_does_not_count_at_all() {
        let mut seen = OptimalBatch::default();
        let now = see(&mut seen, Instant::now(), 1, 10, 40.0);
        let now = see(&mut seen, now, 2, 10, 70.0);
        see(&mut seen, now + SECOND * 3600, 1, 10, 40.0);
        assert_eq!(seen.best(), None);
    }
}
