//! The loop of a poll thread: poll, publish, reset the watchdog, wait for the next tick.

use std::io;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::collector::clock::Clock;
use crate::collector::monitored_server::MonitoredServer;
use crate::collector::schedule::Schedule;
use crate::snapshot::Snapshot;

/// The result of a poll: its snapshot, and when to poll before the next tick, if at all.
pub(super) type Polled = (Snapshot, Option<Instant>);

/// Starts the thread that calls `poll` every `interval`, until the clock ends it. One poll takes
/// `limit` at most.
///
/// # Errors
/// The system cannot start a thread.
pub(super) fn start<C: Clock + Send + 'static>(
    server: MonitoredServer,
    interval: Duration,
    limit: Duration,
    clock: C,
    poll: impl FnMut(&C) -> Polled + Send + 'static,
) -> io::Result<JoinHandle<()>> {
    thread::Builder::new()
        .name("poll".to_owned())
        .spawn(move || run(&server, interval, limit, &clock, poll))
}

fn run<C: Clock>(
    server: &MonitoredServer,
    interval: Duration,
    limit: Duration,
    clock: &C,
    mut poll: impl FnMut(&C) -> Polled,
) {
    let mut schedule = Schedule::new(interval, clock.now());
    let mut previous = None;
    loop {
        let (snapshot, extra_poll_at) = poll(clock);
        let now = clock.now();
        server.publish(snapshot, previous.replace(now), now);
        server.watchdog.reset(now, interval, limit);
        if !clock.sleep(schedule.pause(clock.now(), extra_poll_at)) {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;

    const SECOND: Duration = Duration::from_secs(1);

    /// A clock that advances only by `sleep`, and ends the loop after `sleeps` calls.
    struct SimulatedClock {
        now: Cell<Instant>,
        sleeps: Cell<u32>,
    }

    impl Clock for SimulatedClock {
        fn now(&self) -> Instant {
            self.now.get()
        }

        fn sleep(&self, time: Duration) -> bool {
            self.now.set(self.now.get() + time);
            self.sleeps.set(self.sleeps.get() - 1);
            self.sleeps.get() > 0
        }
    }

    #[test]
    fn every_poll_is_published_and_resets_the_watchdog() {
        let start = Instant::now();
        let clock = SimulatedClock {
            now: Cell::new(start),
            sleeps: Cell::new(4),
        };
        let server = MonitoredServer::new(Snapshot::default(), start, 10 * SECOND, 2 * SECOND);
        let mut polled = Vec::new();
        run(&server, 10 * SECOND, 2 * SECOND, &clock, |clock| {
            // What the poll before has published, and whether the thread was on time.
            polled.push((
                (clock.now() - start).as_secs(),
                server.snapshot(clock.now()).polls.total,
            ));
            let mut snapshot = Snapshot::default();
            snapshot.polls.total = polled.len() as u64;
            // The second poll is slow: 23 s pass, two ticks are missed and not made up for.
            if polled.len() == 2 {
                clock.now.set(clock.now() + 23 * SECOND);
            }
            (snapshot, None)
        });
        assert_eq!(polled, [(0, 0), (10, 1), (40, 2), (50, 3)]);
        assert_eq!(server.watchdog.overdue(start + 60 * SECOND), None);
        assert!(server.watchdog.overdue(start + 80 * SECOND).is_some());
    }
}
