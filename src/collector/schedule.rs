//! The times of the polls, and the time limit of a poll. Reads no clock.

use std::time::{Duration, Instant};

use crate::bounds;

/// The most requests of one poll, each of which may take a time-out. `/stats` may have two URLs.
const REQUESTS_A_POLL: u32 = 8;
/// The time limit of a poll if the interval is longer.
const LONGEST_POLL: Duration = Duration::from_secs(60);
/// The shortest time between a poll and an extra poll, if the interval is longer.
const LEAST_PAUSE: Duration = Duration::from_secs(1);

/// The time limit of one poll: the time-outs of all of its requests, or the interval (up to a
/// minute), whichever is longer.
pub(super) fn poll_limit(interval: Duration, timeout: Duration) -> Duration {
    timeout
        .saturating_mul(REQUESTS_A_POLL)
        .max(interval.min(LONGEST_POLL))
}

/// The ticks at which a server is polled.
#[derive(Debug)]
pub(super) struct Schedule {
    interval: Duration,
    /// The next tick.
    due: Instant,
}

impl Schedule {
    /// Ticks every `interval`, the first of them `now`.
    pub fn new(interval: Duration, now: Instant) -> Schedule {
        Schedule { interval, due: now }
    }

    /// How long to wait after a poll that ended at `now`: until the next tick, or until the extra
    /// poll at `extra`, but no more than one per second. Ticks that a slow poll missed are skipped.
    pub fn pause(&mut self, now: Instant, extra: Option<Instant>) -> Duration {
        // If the tick is in the future, this was an extra poll, and the tick stays.
        if let Some(passed) = now.checked_duration_since(self.due) {
            let nanos = passed.as_nanos().checked_rem(self.interval.as_nanos());
            let nanos = u64::try_from(nanos.unwrap_or(0)).unwrap_or(u64::MAX);
            let left = self.interval.saturating_sub(Duration::from_nanos(nanos));
            self.due = bounds::deadline(now, left);
        }
        let soonest = bounds::deadline(now, LEAST_PAUSE.min(self.interval));
        let next = extra
            .filter(|extra| *extra > now)
            .map_or(self.due, |extra| extra.max(soonest).min(self.due));
        next.saturating_duration_since(now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    /// The times of the first five polls, in milliseconds. Each ends immediately; `looks` has the
    /// times of polls with those of the extra polls that they request.
    fn polls(interval: Duration, looks: &[(u64, u64)]) -> Vec<u64> {
        let start = Instant::now();
        let mut schedule = Schedule::new(interval, start);
        let mut polls = vec![0];
        let mut at = Duration::ZERO;
        while polls.len() < 5 {
            let millis = at.as_millis() as u64;
            let look = looks.iter().find(|(after, _)| *after == millis);
            let look = look.map(|(_, look)| start + Duration::from_millis(*look));
            at += schedule.pause(start + at, look);
            polls.push(at.as_millis() as u64);
        }
        polls
    }

    #[test]
    fn an_extra_poll_does_not_move_the_tick() {
        let interval = 12 * SECOND;
        assert_eq!(polls(interval, &[]), [0, 12_000, 24_000, 36_000, 48_000]);
        assert_eq!(
            polls(interval, &[(0, 1300), (12_000, 13_300)]),
            [0, 1300, 12_000, 13_300, 24_000]
        );
        // An extra poll at a tick, or after it, coincides with that tick.
        assert_eq!(
            polls(interval, &[(0, 12_000), (12_000, 30_000)]),
            [0, 12_000, 24_000, 36_000, 48_000]
        );
    }

    #[test]
    fn extra_polls_are_limited_to_one_per_second() {
        assert_eq!(
            polls(3 * SECOND, &[(0, 1), (1000, 1500), (2000, 2001)]),
            [0, 1000, 2000, 3000, 6000]
        );
        let often = polls(SECOND / 5, &[(0, 1), (200, 300)]);
        assert_eq!(often, [0, 200, 400, 600, 800]);
    }

    #[test]
    fn a_slow_poll_misses_ticks_and_is_not_followed_by_a_burst() {
        let start = Instant::now();
        let at = |millis| start + Duration::from_millis(millis);
        for (ended, next) in [(20, 1000), (1000, 2000), (3400, 4000)] {
            let mut schedule = Schedule::new(SECOND, start);
            let pause = schedule.pause(at(ended), None);
            assert_eq!(at(ended) + pause, at(next), "{ended}");
        }
    }

    #[test]
    fn no_interval_is_too_long_or_too_short() {
        let start = Instant::now();
        for interval in [Duration::ZERO, Duration::from_nanos(1), Duration::MAX] {
            let mut schedule = Schedule::new(interval, start);
            schedule.pause(start + SECOND, None);
            schedule.pause(start + 3 * SECOND, Some(start + 4 * SECOND));
        }
        assert_eq!(poll_limit(Duration::MAX, Duration::MAX), Duration::MAX);
    }

    #[test]
    fn a_poll_may_take_all_of_its_time_outs_or_the_interval() {
        assert_eq!(poll_limit(5 * SECOND, 3 * SECOND), 24 * SECOND);
        assert_eq!(poll_limit(30 * SECOND, SECOND), 30 * SECOND);
        assert_eq!(poll_limit(3600 * SECOND, SECOND), 60 * SECOND);
    }
}
