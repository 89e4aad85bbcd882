//! Whether a poll thread is on time. Time is passed in.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// How much later than due a poll may end: for what it reads of the machine, on a busy one.
const GRACE: Duration = Duration::from_secs(5);

/// By when a poll thread must have ended its next poll.
#[derive(Debug)]
pub struct Watchdog {
    start: Instant,
    /// Milliseconds after `start`.
    due: AtomicU64,
}

impl Watchdog {
    /// A watchdog of a thread whose first poll must end within `interval` and `limit` from `now`.
    pub fn new(now: Instant, interval: Duration, limit: Duration) -> Watchdog {
        let watchdog = Watchdog {
            start: now,
            due: AtomicU64::new(0),
        };
        watchdog.reset(now, interval, limit);
        watchdog
    }

    /// A poll has ended at `now`: the next one ends within `interval` and `limit`.
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
