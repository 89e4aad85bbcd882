//! When a server is polled, and by when a poll must have ended. The time is passed in.

use std::time::{Duration, Instant};

use crate::bounds;

/// The most requests of one poll, each of which may take a time-out: `/stats` may have two
/// addresses.
const REQUESTS_A_POLL: u32 = 8;
/// How long a poll may take where the interval is longer.
const LONGEST_POLL: Duration = Duration::from_secs(60);
/// How soon after a poll the next one may be worth a look, where the interval is longer.
const LEAST_PAUSE: Duration = Duration::from_secs(1);

/// How long one poll may take, everything included: as long as all of its requests when each is
/// answered just in time, or the interval, up to a minute.
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

    /// How long to wait after a poll that has ended at `now`: until the next tick, or until
    /// `look`, when it is worth to poll before that: no more than once a second, however many
    /// models there are to look at. Ticks that a slow poll has missed are not made up for.
    pub fn pause(&mut self, now: Instant, look: Option<Instant>) -> Duration {
        // Before its tick comes only a poll that was worth a look: the tick stands.
        if let Some(passed) = now.checked_duration_since(self.due) {
            let nanos = passed.as_nanos().checked_rem(self.interval.as_nanos());
            let nanos = u64::try_from(nanos.unwrap_or(0)).unwrap_or(u64::MAX);
            let left = self.interval.saturating_sub(Duration::from_nanos(nanos));
            self.due = bounds::deadline(now, left);
        }
        let soonest = bounds::deadline(now, LEAST_PAUSE.min(self.interval));
        let next = look
            .filter(|look| *look > now)
            .map_or(self.due, |look| look.max(soonest).min(self.due));
        next.saturating_duration_since(now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    /// The times of the first polls, in milliseconds, of which each ends as soon as it begins,
    /// where after some it is worth to look again a while later.
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
    fn a_look_before_a_tick_does_not_cost_the_tick() {
        let interval = 12 * SECOND;
        assert_eq!(polls(interval, &[]), [0, 12_000, 24_000, 36_000, 48_000]);
        assert_eq!(
            polls(interval, &[(0, 1300), (12_000, 13_300)]),
            [0, 1300, 12_000, 13_300, 24_000]
        );
        // A look that is due at the tick, or after it, is that tick's.
        assert_eq!(
            polls(interval, &[(0, 12_000), (12_000, 30_000)]),
            [0, 12_000, 24_000, 36_000, 48_000]
        );
    }

    #[test]
    fn looks_come_once_a_second_at_most() {
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
