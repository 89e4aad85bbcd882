//! Logs once, after the first polls, how many metrics have values and what would give more.

use std::cmp::Reverse;
use std::io;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use crate::app::ServedSite;
use crate::process::log;
use crate::snapshot::Snapshot;

/// Time between two looks at the polls.
const PAUSE: Duration = Duration::from_millis(200);
/// How long to wait until every server has been polled twice.
const LONGEST_WAIT: Duration = Duration::from_secs(60);
/// The most remedies that are named.
const MOST_REMEDIES: usize = 2;

/// Starts the thread that logs this, and ends.
///
/// # Errors
/// The system cannot start a thread.
pub(super) fn summarize(site: Arc<ServedSite>) -> io::Result<()> {
    let started = Instant::now();
    let run = move || {
        while !is_polled_twice(&site) && started.elapsed() < LONGEST_WAIT {
            thread::sleep(PAUSE);
        }
        log_summary(&site);
    };
    let thread = thread::Builder::new().name("summary".to_owned());
    thread.spawn(run).map(drop)
}

/// Whether every server has been polled twice: rates need two polls.
fn is_polled_twice(site: &ServedSite) -> bool {
    let snapshots = site.servers.snapshots(Instant::now());
    !snapshots.is_empty() && snapshots.iter().all(|snapshot| snapshot.polls.total >= 2)
}

/// Logs nothing if no server is up: the advice has been logged.
fn log_summary(site: &ServedSite) {
    let now = Instant::now();
    let is_up = |snapshot: &Arc<Snapshot>| snapshot.up == Some(true);
    if !site.servers.snapshots(now).iter().any(is_up) {
        return;
    }
    let overview = site.overview(now);
    let count = overview.families.len();
    let with_values = overview.families.iter().filter(|state| state.series > 0);
    let values = with_values.count();
    let mut remedies = overview.remedies();
    remedies.retain(|remedy| remedy.is_fixable);
    remedies.sort_by_key(|remedy| Reverse(remedy.families.len()));
    let remedies: Vec<_> = remedies.iter().map(|remedy| remedy.text).collect();
    let named = remedies
        .get(..MOST_REMEDIES)
        .unwrap_or(&remedies)
        .join("; ");
    log::info(
        &format!(
            "{values} of {count} metrics have values; the page and --check say why the others are \
             missing"
        ),
        &[("for_more", &named)],
    );
}
