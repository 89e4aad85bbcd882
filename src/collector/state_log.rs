//! Logs changes of a server's state, and the begin and end of its failures.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Display;
use std::mem;

use crate::process::log;
use crate::readings::{ModelKey, ModelStatus};
use crate::snapshot::{Model, Reason, ServerInfo, Snapshot};
use crate::upstream::advice::Advice;
use crate::upstream::http::request_log::{AnsweredRequest, FailedRequest, RequestTarget};
use crate::upstream::reading::Reading;

/// Logged and noted if a server has more models than are exported.
pub(super) const LEFT_OUT: &str =
    "the server has more than 500 models: 500 are exported, the loaded ones first";

/// The most models that the line on a server that is up lists.
const LISTED_MODELS: usize = 8;

const PROCESSES_GONE: &str = "memory and CPU of the server's process are no longer read";

/// The state of a server that was logged last, so that only changes are logged.
pub(super) struct StateLog {
    server: String,
    up: Option<bool>,
    /// Whether the model had no name at the last poll.
    was_unnamed: bool,
    /// The status of each model, by name and mode.
    statuses: BTreeMap<ModelKey, ModelStatus>,
    failing: BTreeMap<RequestTarget, Reason>,
    notes: Vec<&'static str>,
    /// The last poll's note on the processes of a server that does not answer.
    note_on_processes: Option<String>,
    /// Whether the other servers of this machine were logged since the server is down.
    has_named_others: bool,
    /// Whether these processes are read.
    reads_processes: bool,
    /// Whether it was logged that models are left out. This is logged only once.
    left_out: bool,
}

impl StateLog {
    pub fn new(server: String) -> StateLog {
        StateLog {
            server,
            up: None,
            was_unnamed: false,
            statuses: BTreeMap::new(),
            failing: BTreeMap::new(),
            notes: Vec::new(),
            note_on_processes: None,
            has_named_others: false,
            reads_processes: false,
            left_out: false,
        }
    }

    /// Logs the changes since the previous poll. For a server that is down there are `advice`, and
    /// notes on the other servers of this machine and on its processes.
    pub fn log_changes(
        &mut self,
        reading: &Reading,
        snapshot: &Snapshot,
        advice: Option<Advice>,
        note_on_others: Option<String>,
        note_on_processes: Option<String>,
    ) {
        let server: &dyn Display = &self.server.clone();
        let up = snapshot.up == Some(true);
        let has_changed = self.up != Some(up);
        let failure = advice.as_ref().and_then(|advice| advice.failure);
        let decisive = failure.and_then(|index| reading.requests.failures.get(index));
        // The line on the change has the error itself.
        self.log_failures(server, reading, decisive.filter(|_| has_changed));
        self.log_successes(server, reading, !has_changed);
        if has_changed {
            self.up = Some(up);
            self.has_named_others = false;
            if let Some(advice) = advice {
                let error = decisive.map(|failed| &failed.error);
                let same = reading.requests.failures.iter();
                let same: Vec<_> = same.filter(|failed| Some(&failed.error) == error).collect();
                log_down(server, &advice, &same);
                self.notes.clear();
                self.statuses.clear();
            } else {
                log_up(server, &snapshot.info, snapshot);
                self.was_unnamed = reading.unnamed.is_some();
            }
        }
        // Not again for each server that comes or goes.
        if let Some(note) = note_on_others
            && !mem::replace(&mut self.has_named_others, true)
        {
            log::info(&note, &[("server", server)]);
        }
        if let Some(note) = &note_on_processes
            && self.note_on_processes.as_ref() != Some(note)
        {
            log::info(note, &[("server", server)]);
        }
        self.note_on_processes = note_on_processes;
        let reads_processes = !up && !snapshot.models.is_empty();
        if mem::replace(&mut self.reads_processes, reads_processes) && !reads_processes && !up {
            log::info(PROCESSES_GONE, &[("server", server)]);
        }
        for note in &reading.notes {
            if !self.notes.contains(note) {
                self.notes.push(note);
                log::info(note, &[("server", server)]);
            }
        }
        if reading.is_truncated && !self.left_out {
            self.left_out = true;
            log::warn(LEFT_OUT, &[("server", server)]);
        }
        let shown: Vec<_> = snapshot
            .models
            .iter()
            .filter_map(|model| Some((model.key(), model.status?)))
            .collect();
        for (key, status) in &shown {
            // A model whose name was not known until it had loaded.
            let unnamed = self.was_unnamed.then_some(&ModelStatus::Loading);
            let before = self.statuses.get(key).or(unnamed);
            if let Some(before) = before.filter(|before| *before != status) {
                log_status(server, key, *before, *status);
            }
        }
        self.was_unnamed = up && reading.unnamed.is_some();
        self.statuses = shown.into_iter().collect();
    }

    /// Logs the requests that begin to fail, those with the same error in one line. `logged` has an
    /// error that is logged elsewhere.
    fn log_failures(
        &mut self,
        server: &dyn Display,
        reading: &Reading,
        logged: Option<&FailedRequest>,
    ) {
        let failures = &reading.requests.failures;
        let (mut new, mut known): (Vec<&FailedRequest>, Vec<_>) = (Vec::new(), Vec::new());
        for failed in failures {
            let reason = failed.error.reason;
            match self.failing.insert(failed.target.clone(), reason) == Some(reason) {
                true => known.push(failed),
                false => new.push(failed),
            }
        }
        for failed in known {
            log_failure(log::debug, "a request still fails", server, &[failed]);
        }
        while let Some(&first) = new.first() {
            let is_same = |failed: &mut &FailedRequest| {
                failed.error == first.error
                    && failed.is_pending == first.is_pending
                    && failed.target.model == first.target.model
            };
            let same: Vec<_> = new.extract_if(.., is_same).collect();
            if logged.is_some_and(|logged| logged.error == first.error) {
                continue;
            }
            let message = match first.is_pending {
                true => "no response in time; the next request is sent when this one has ended",
                false => "a request failed",
            };
            log_failure(log::warn, message, server, &same);
        }
    }

    /// Logs the requests that succeed again, unless that follows from a line on the server.
    fn log_successes(&mut self, server: &dyn Display, reading: &Reading, is_logged: bool) {
        for AnsweredRequest { target, .. } in &reading.requests.answered {
            if self.failing.remove(target).is_some() && is_logged {
                let mut pairs: Vec<(&str, &dyn Display)> = vec![("endpoint", &target.endpoint)];
                let model = target.model.as_ref();
                pairs.extend(model.map(|model| ("model", model as &dyn Display)));
                pairs.push(("server", server));
                log::info("requests succeed again", &pairs);
            }
        }
        if reading.up {
            // A model that is gone has no failures any more.
            let there: BTreeSet<_> = reading.models.iter().map(|model| &model.name).collect();
            let is_there = |name: &String| there.contains(name);
            self.failing
                .retain(|target, _| target.model.as_ref().is_none_or(is_there));
        }
    }
}

/// The endpoints of `failed`, separated by commas.
fn endpoints(failed: &[&FailedRequest]) -> String {
    let endpoints: Vec<_> = failed.iter().map(|failed| failed.target.endpoint).collect();
    endpoints.join(",")
}

/// Logs the error that all of `failed` have.
fn log_failure(
    log: fn(&str, &[(&str, &dyn Display)]),
    message: &str,
    server: &dyn Display,
    failed: &[&FailedRequest],
) {
    let [first, ..] = failed else { return };
    let endpoints = endpoints(failed);
    let reason = first.error.reason.label();
    let mut pairs: Vec<(&str, &dyn Display)> = vec![("endpoint", &endpoints)];
    let model = first.target.model.as_ref();
    pairs.extend(model.map(|model| ("model", model as &dyn Display)));
    pairs.extend([
        ("reason", &reason as &dyn Display),
        ("server", server),
        ("detail", &first.error),
    ]);
    log(message, &pairs);
}

fn log_status(server: &dyn Display, key: &ModelKey, before: ModelStatus, status: ModelStatus) {
    let (name, mode) = key;
    let status_label = status.label();
    let mut pairs: Vec<(&str, &dyn Display)> = vec![("status", &status_label), ("model", name)];
    pairs.extend(mode.iter().map(|mode| ("mode", mode as &dyn Display)));
    pairs.push(("server", server));
    let working = |status| matches!(status, ModelStatus::Idle | ModelStatus::Running);
    // Changes between idle and running are too frequent for the level info.
    if working(before) && working(status) {
        log::debug("the model's status has changed", &pairs);
    } else if before == ModelStatus::Loading && working(status) {
        log::info("the model has loaded", &pairs);
    } else {
        log::info("the model's status has changed", &pairs);
    }
}

fn log_up(server: &dyn Display, info: &Option<ServerInfo>, snapshot: &Snapshot) {
    let kind = info.as_ref().map_or("unknown", |info| info.kind.label());
    let version = info
        .as_ref()
        .and_then(|info| info.version.as_deref())
        .unwrap_or("unknown");
    let mut pairs: Vec<(&str, &dyn Display)> =
        vec![("server", server), ("kind", &kind), ("version", &version)];
    let status = |model: &Model| model.status.map_or("unknown", ModelStatus::label);
    let (first_status, list);
    match &snapshot.models[..] {
        [] => {}
        [model] => {
            first_status = status(model);
            pairs.extend([
                ("model", &model.name as &dyn Display),
                ("status", &first_status),
            ]);
        }
        models => {
            let shown = models.iter().take(LISTED_MODELS);
            let mut names: Vec<_> = shown
                .map(|model| match &model.mode {
                    Some(mode) => format!("{} ({mode}, {})", model.name, status(model)),
                    None => format!("{} ({})", model.name, status(model)),
                })
                .collect();
            let others = models.len().saturating_sub(LISTED_MODELS);
            names.extend((others > 0).then(|| format!("{others} more")));
            list = names.join(", ");
            pairs.push(("models", &list));
        }
    }
    log::info("the server is up", &pairs);
}

/// Logs that the server is down, with the requests whose error decided the advice.
fn log_down(server: &dyn Display, advice: &Advice, decisive: &[&FailedRequest]) {
    let endpoints = endpoints(decisive);
    let mut pairs: Vec<(&str, &dyn Display)> = vec![("server", server), ("reason", &advice.reason)];
    if let [first, ..] = decisive {
        pairs.push(("endpoint", &endpoints));
        // Some advice is the error's own text.
        if !advice.text.contains(&first.error.detail) {
            pairs.push(("detail", &first.error));
        }
    }
    pairs.push(("advice", &advice.text));
    log::warn("the server is down; retrying", &pairs);
}
