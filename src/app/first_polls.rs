//! Logs once, after the first polls, how many metrics have values and what would give more.

use std::cmp::Reverse;
use std::fmt::Display;
use std::io;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use crate::app::ServedSite;
use crate::metrics::catalogue::{Family, Scope};
use crate::metrics::overview::Remedy;
use crate::process::{log, threads};
use crate::snapshot::Snapshot;

/// Time between two looks at the polls.
const PAUSE: Duration = Duration::from_millis(200);
/// How long to wait until every server has been polled twice.
const LONGEST_WAIT: Duration = Duration::from_secs(60);
/// The most remedies that are named, and how many metrics of models each gives at least.
const MOST_REMEDIES: usize = 2;
const FEWEST_METRICS: usize = 5;

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
    threads::start("summary", run)
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
    let with_values = overview
        .families
        .iter()
        .filter(|state| state.series.count > 0);
    let values = with_values.count();
    let mut remedies = overview.remedies();
    remedies.retain(|remedy| remedy.is_fixable && gain(remedy) >= FEWEST_METRICS);
    remedies.sort_by_key(|remedy| Reverse(gain(remedy)));
    remedies.truncate(MOST_REMEDIES);
    let named: Vec<_> = remedies.iter().map(|remedy| remedy.text).collect();
    let named = named.join("; ");
    let for_more = [("for_more", &named as &dyn Display)];
    log::info(
        &format!(
            "{values} of {count} metrics have values; the page and --check say why the others are \
             missing"
        ),
        if named.is_empty() { &[] } else { &for_more },
    );
}

/// How many metrics of models `remedy` gives. Those of GPUs do not count: most machines without
/// them lack nothing.
fn gain(remedy: &Remedy) -> usize {
    let is_of_models =
        |family: &&&'static Family| matches!(family.scope, Scope::Model(_) | Scope::Requests(_));
    remedy.families.iter().filter(is_of_models).count()
}
