//! The clock of the poll loop; tests replace it, so that they need not wait.

use std::convert::Infallible;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// The clock of the poll loop.
pub trait Clock {
    /// The monotonic time.
    fn now(&self) -> Instant;

    /// Waits. Returns false to end the loop.
    fn sleep(&self, time: Duration) -> bool;

    /// Seconds since 1970; `None` if the system's clock is set to an earlier time.
    fn unix_seconds(&self) -> Option<f64> {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).ok()?;
        Some(since.as_secs_f64())
    }
}

/// The clock of this machine, for a loop that ends when the sender is dropped.
#[derive(Debug)]
pub struct StoppableClock(pub Receiver<Infallible>);

impl Clock for StoppableClock {
    fn now(&self) -> Instant {
        Instant::now()
    }

    fn sleep(&self, time: Duration) -> bool {
        matches!(self.0.recv_timeout(time), Err(RecvTimeoutError::Timeout))
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
