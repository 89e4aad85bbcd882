//! Logs changes of a server's state, and the begin and end of its failures.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Display;
use std::mem;

use crate::process::log;
use crate::readings::{ModelKey, ModelStatus};
use crate::snapshot::{Reason, ServerInfo, Snapshot};
use crate::upstream::advice::Advice;
use crate::upstream::http::request_log::{AnsweredRequest, FailedRequest, RequestTarget};
use crate::upstream::reading::Reading;

/// Logged and noted if a server has more models than are exported.
pub(super) const LEFT_OUT: &str =
    "the server has more than 500 models: 500 are exported, the loaded ones first";

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
            reads_processes: false,
            left_out: false,
        }
    }

    /// Logs the changes since the previous poll. `advice` is for a server that is down.
    pub fn log_changes(
        &mut self,
        reading: &Reading,
        snapshot: &Snapshot,
        advice: Option<Advice>,
        note_on_processes: Option<String>,
    ) {
        let server: &dyn Display = &self.server.clone();
        self.log_failures(server, reading);
        let up = snapshot.up == Some(true);
        if self.up != Some(up) {
            self.up = Some(up);
            if let Some(advice) = advice {
                log_down(server, &advice);
                self.notes.clear();
                self.statuses.clear();
            } else {
                log_up(server, &snapshot.info, snapshot);
                self.was_unnamed = reading.unnamed.is_some();
            }
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
                log_status(server, &key.0, *before, *status);
            }
        }
        self.was_unnamed = up && reading.unnamed.is_some();
        self.statuses = shown.into_iter().collect();
    }

    fn log_failures(&mut self, server: &dyn Display, reading: &Reading) {
        for failed in &reading.requests.failures {
            let FailedRequest { target, error, .. } = failed;
            let reason = error.reason;
            let pairs: [(&str, &dyn Display); 3] = [
                ("reason", &reason.label()),
                ("server", server),
                ("detail", error),
            ];
            if self.failing.insert(target.clone(), reason) == Some(reason) {
                log_target(log::debug, "a request still fails", target, &pairs);
            } else if failed.is_pending {
                log_target(
                    log::warn,
                    "no response in time; the next request is sent when this one has ended",
                    target,
                    &pairs,
                );
            } else {
                log_target(log::warn, "a request failed", target, &pairs);
            }
        }
        for AnsweredRequest { target, .. } in &reading.requests.answered {
            if self.failing.remove(target).is_some() {
                log_target(
                    log::info,
                    "requests succeed again",
                    target,
                    &[("server", server)],
                );
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

/// Logs the outcome of a request, with its endpoint, and its model if there are several.
fn log_target(
    log: fn(&str, &[(&str, &dyn Display)]),
    message: &str,
    target: &RequestTarget,
    pairs: &[(&str, &dyn Display)],
) {
    let endpoint: (&str, &dyn Display) = ("endpoint", &target.endpoint);
    let model = target.model.as_ref();
    let model = model.map(|model| ("model", model as &dyn Display));
    let all: Vec<_> = [endpoint].into_iter().chain(model).collect();
    log(message, &[&all, pairs].concat());
}

fn log_status(server: &dyn Display, name: &str, before: ModelStatus, status: ModelStatus) {
    let pairs: [(&str, &dyn Display); 3] = [
        ("status", &status.label()),
        ("model", &name),
        ("server", server),
    ];
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
    let kind = info.as_ref().map_or("unknown", |info| info.kind);
    let version = info
        .as_ref()
        .and_then(|info| info.version.as_deref())
        .unwrap_or("unknown");
    let mut pairs: Vec<(&str, &dyn Display)> =
        vec![("server", server), ("kind", &kind), ("version", &version)];
    let model = snapshot.models.first();
    let status = model
        .and_then(|model| model.status)
        .map_or("unknown", ModelStatus::label);
    if let Some(model) = model {
        pairs.extend([("model", &model.name as &dyn Display), ("status", &status)]);
    }
    log::info("the server is up", &pairs);
}

fn log_down(server: &dyn Display, advice: &Advice) {
    log::warn(
        "the server is down",
        &[
            ("server", server),
            ("reason", &advice.reason),
            ("advice", &advice.text),
        ],
    );
}
