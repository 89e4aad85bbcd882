//! Time, as the poll loop sees it: passed in, so that tests need not wait.

use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// What the poll loop asks of time.
pub trait Clock {
    /// The monotonic time.
    fn now(&self) -> Instant;

    /// Waits. `false` ends the loop: only the clock of a test does.
    fn sleep(&self, time: Duration) -> bool;

    /// Seconds since 1970, for people; `None` where the system's clock is set to before that.
    fn unix_seconds(&self) -> Option<f64> {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).ok()?;
        Some(since.as_secs_f64())
    }
}

/// The clock of this machine.
#[derive(Clone, Copy, Debug)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> Instant {
        Instant::now()
    }

    fn sleep(&self, time: Duration) -> bool {
        thread::sleep(time);
        true
    }
}
