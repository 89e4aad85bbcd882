//! What the two polls of one server found.

use std::net::ToSocketAddrs as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::app::check::{absent, polls::Polled};
use crate::app::report::{FailureReport, ModelReport, ServerReport, ValueReport, values};
use crate::metrics::exposition;
use crate::process::threads;
use crate::settings::{BaseUrl, ServerAddress, Settings};
use crate::snapshot::{OwnMetrics, PollFailure, Reason, Snapshot};

/// The most addresses of a host.
const MOST_ADDRESSES: usize = 16;

/// The report on a server that was polled twice.
pub fn report(polled: &Polled, settings: &Settings) -> ServerReport {
    let snapshot = polled.snapshot();
    let base = polled.base.as_ref();
    ServerReport {
        url: polled.title.clone(),
        server: snapshot.server.clone(),
        discovered_pid: polled.pid,
        up: snapshot.up == Some(true),
        kind: snapshot
            .info
            .as_ref()
            .map(|info| info.kind.label().to_owned()),
        version: snapshot.info.as_ref().and_then(|info| info.version.clone()),
        addresses: base.map_or_else(Vec::new, |base| addresses(base, settings.timeout)),
        models: models(&snapshot),
        sources: absent::sources(&snapshot.sources, Instant::now()),
        failures: failures(&polled.before, &snapshot),
        notes: notes(&polled.before, &snapshot),
        values: known_values(&snapshot),
        missing: Vec::new(),
    }
}

/// The addresses of the host, if the base URL names one.
fn addresses(base: &BaseUrl, time: Duration) -> Vec<String> {
    let ServerAddress::Host { host, .. } = base.address() else {
        return Vec::new();
    };
    if host
        .trim_matches(['[', ']'])
        .parse::<std::net::IpAddr>()
        .is_ok()
    {
        return Vec::new();
    }
    // The system's resolver cannot be interrupted, so it gets a thread of its own.
    let address = (host.clone(), base.port());
    let found = threads::call("resolver", move || {
        let found = address.to_socket_addrs().into_iter().flatten();
        found.map(|found| found.ip().to_string()).collect()
    });
    let found = found.ok().and_then(|found| found.recv_timeout(time).ok());
    let mut found: Vec<String> = found.unwrap_or_default();
    found.dedup();
    found.truncate(MOST_ADDRESSES);
    found
}

fn models(snapshot: &Snapshot) -> Vec<ModelReport> {
    let models = snapshot.models.iter().map(|model| ModelReport {
        model: model.name.clone(),
        mode: model.mode.clone(),
        status: model.status.map(|status| status.label()),
        pid: model.process.pid,
    });
    models.collect()
}

/// The requests of the last poll that failed. One that got no answer in time is not sent again while
/// it is open, so those of the poll before count, too.
fn failures(before: &Snapshot, last: &Snapshot) -> Vec<FailureReport> {
    let is_same =
        |a: &PollFailure, b: &PollFailure| (a.endpoint, &a.model) == (b.endpoint, &b.model);
    let is_open = |failed: &&PollFailure| {
        let is_known = last.failures.iter().any(|other| is_same(failed, other));
        !is_known && (last.up != Some(true) || failed.reason == Reason::Timeout)
    };
    let open = before.failures.iter().filter(is_open);
    let failures = last
        .failures
        .iter()
        .chain(open)
        .map(|failed| FailureReport {
            endpoint: failed.endpoint,
            model: failed.model.clone(),
            reason: failed.reason.label(),
            detail: failed.detail.clone(),
        });
    failures.collect()
}

/// The notes of the last poll, and of a server that is down what the first poll found.
fn notes(before: &Snapshot, last: &Snapshot) -> Vec<String> {
    let is_down = last.up != Some(true) && before.up != Some(true);
    let is_new = |note: &&String| is_down && !last.notes.contains(note);
    let first = before.notes.iter().filter(is_new);
    last.notes.iter().chain(first).cloned().collect()
}

/// The values of a server, without those about the polls: they are this check's own.
fn known_values(snapshot: &Arc<Snapshot>) -> Vec<ValueReport> {
    let scrape = exposition::render(std::slice::from_ref(snapshot), &[], &OwnMetrics::default());
    values::of(&scrape, |name| {
        !name.starts_with("llamacpp_exporter_")
            && !name.starts_with("process_")
            && name != "llamacpp_up"
    })
}
