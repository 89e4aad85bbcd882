//! The harness of the tests that run the whole program: the exporter as a child process, a scripted
//! server, a strict reader of the exposition, and the recordings of real servers.

// Each test binary uses a part of this.
#![allow(dead_code, unused_imports)]

pub mod answer;
pub mod exporter;
pub mod exposition;
pub mod recordings;
pub mod server;

use std::fmt::Display;
use std::io::Write;
use std::sync::Mutex;
use std::thread;
use std::time::{Duration, Instant};

pub use answer::Answer;
pub use exporter::Exporter;
pub use exposition::Scrape;
pub use server::Server;

/// The deadline of every wait: far longer than anything takes on a busy machine.
pub const LONGEST_WAIT: Duration = Duration::from_secs(60);

/// A time-out or an interval that does not end within a test.
pub const ENDLESS: &str = "10m";

/// Tries every 5 ms until there is a value, for at most [`LONGEST_WAIT`].
pub fn wait_for<T>(what: &str, attempt: impl FnMut() -> Option<T>) -> T {
    try_for(attempt).unwrap_or_else(|| panic!("timed out waiting for: {what}"))
}

fn try_for<T>(mut attempt: impl FnMut() -> Option<T>) -> Option<T> {
    let deadline = Instant::now() + LONGEST_WAIT;
    while Instant::now() < deadline {
        if let Some(value) = attempt() {
            return Some(value);
        }
        thread::sleep(Duration::from_millis(5));
    }
    None
}

/// Waits until the condition holds, for at most [`LONGEST_WAIT`].
pub fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    wait_for(what, || condition().then_some(()));
}

/// Runs the cases, five at a time, each in a thread with its name. They wait more than they compute.
pub fn for_each_case<N: Display, T: Send>(
    cases: impl IntoIterator<Item = (N, T), IntoIter: Send>,
    test: impl Fn(T) + Sync,
) {
    let failed = Mutex::new(Vec::new());
    let cases = Mutex::new(cases.into_iter());
    let next = || {
        let (name, case) = cases.lock().unwrap().next()?;
        Some((name.to_string(), case))
    };
    thread::scope(|scope| {
        for _ in 0..5 {
            scope.spawn(|| {
                while let Some((name, case)) = next() {
                    let thread = thread::Builder::new().name(name.replace('\0', ""));
                    let result = thread::scope(|scope| {
                        thread.spawn_scoped(scope, || test(case)).unwrap().join()
                    });
                    if result.is_err() {
                        failed.lock().unwrap().push(name);
                    }
                }
            });
        }
    });
    let failed = failed.into_inner().unwrap();
    assert!(failed.is_empty(), "failed: {}", failed.join(", "));
}

/// The same with cases that are named by themselves.
pub fn for_each<T: Display + Copy + Send>(
    cases: impl IntoIterator<Item = T, IntoIter: Send>,
    test: impl Fn(T) + Sync,
) {
    for_each_case(cases.into_iter().map(|case| (case, case)), test);
}

/// Asserts that the text has all of these words.
#[track_caller]
pub fn assert_contains(text: &str, words: &[&str]) {
    for word in words {
        assert!(text.contains(word), "{word:?} is not in:\n{text}");
    }
}

pub fn file_with(text: &str) -> tempfile::NamedTempFile {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(text.as_bytes()).unwrap();
    file
}
