//! What the tests of the whole program share: a server that follows a script, the exporter as a
//! child process, a strict reader of what it serves, and the recordings of genuine servers.

// Each test file uses its own part of this.
#![allow(dead_code, unused_imports)]

pub mod exporter;
pub mod exposition;
pub mod recordings;
pub mod server;

use std::sync::Mutex;
use std::thread;
use std::time::{Duration, Instant};

pub use exporter::Exporter;
pub use exposition::Scrape;
pub use server::{Answer, Server};

/// How long to wait for what must come: far longer than anything takes on a busy machine, so
/// that it ends no test but one that waits in vain.
pub const LONGEST_WAIT: Duration = Duration::from_secs(60);

/// A time-out or an interval that does not end while a test goes on.
pub const ENDLESS: &str = "10m";

/// Waits until `condition` holds, for at most [`LONGEST_WAIT`].
pub fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + LONGEST_WAIT;
    while !condition() {
        assert!(Instant::now() < deadline, "waited in vain: {what}");
        thread::sleep(Duration::from_millis(10));
    }
}

/// Runs the cases, a few at a time, each in a thread that bears its name. They wait far more than
/// they compute.
pub fn all_at_once<T: Send>(cases: Vec<(&str, T)>, test: impl Fn(T) + Sync) {
    const AT_A_TIME: usize = 5;
    let failed = Mutex::new(Vec::new());
    let cases = Mutex::new(cases.into_iter());
    thread::scope(|scope| {
        for _ in 0..AT_A_TIME {
            scope.spawn(|| {
                loop {
                    let next = cases.lock().unwrap().next();
                    let Some((name, case)) = next else { break };
                    let thread = thread::Builder::new().name(name.to_owned());
                    let ended = thread::scope(|scope| {
                        let running = thread.spawn_scoped(scope, || test(case)).unwrap();
                        running.join()
                    });
                    if ended.is_err() {
                        failed.lock().unwrap().push(name.to_owned());
                    }
                }
            });
        }
    });
    let failed = failed.into_inner().unwrap();
    assert!(failed.is_empty(), "failed: {}", failed.join(", "));
}
