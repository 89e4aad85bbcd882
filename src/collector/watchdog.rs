//! Detects a poll thread that is late. Reads no clock.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// How late a poll may end: reading `/proc` and `/sys` on a busy machine takes time.
const GRACE: Duration = Duration::from_secs(5);

/// The time by which a poll thread must end its next poll.
#[derive(Debug)]
pub struct Watchdog {
    start: Instant,
    /// Milliseconds after `start`.
    due: AtomicU64,
}

impl Watchdog {
    /// A watchdog for a thread whose first poll must end within `interval` plus `limit` after
    /// `now`.
    pub fn new(now: Instant, interval: Duration, limit: Duration) -> Watchdog {
        let watchdog = Watchdog {
            start: now,
            due: AtomicU64::new(0),
        };
        watchdog.reset(now, interval, limit);
        watchdog
    }

    /// Records that a poll ended at `now`: the next one must end within `interval` plus `limit`.
    pub fn reset(&self, now: Instant, interval: Duration, limit: Duration) {
        let within = interval.saturating_add(limit).saturating_add(GRACE);
        let due = now
            .saturating_duration_since(self.start)
            .saturating_add(within);
        let due = u64::try_from(due.as_millis()).unwrap_or(u64::MAX);
        self.due.store(due, Ordering::Relaxed);
    }

    /// How long the poll is overdue at `now`, if it is.
    pub fn overdue(&self, now: Instant) -> Option<Duration> {
        let due = Duration::from_millis(self.due.load(Ordering::Relaxed));
        let late = now.saturating_duration_since(self.start).checked_sub(due)?;
        Some(late).filter(|late| !late.is_zero())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_whose_poll_has_not_ended_in_time_is_overdue() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let watchdog = Watchdog::new(start, Duration::from_secs(60), Duration::from_secs(1));
        assert_eq!(watchdog.overdue(at(66)), None);
        assert_eq!(watchdog.overdue(at(67)), Some(Duration::from_secs(1)));
        watchdog.reset(at(70), Duration::from_secs(60), Duration::from_secs(1));
        assert_eq!(watchdog.overdue(at(136)), None);
        watchdog.reset(at(70), Duration::MAX, Duration::MAX);
        assert_eq!(watchdog.overdue(at(1 << 30)), None);
    }
}
