//! What is logged of a server: a state when it changes, a failure when it begins and when it ends.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Display;

use crate::process::log;
use crate::readings::ModelStatus;
use crate::settings::BaseUrl;
use crate::snapshot::{Reason, ServerInfo, Snapshot};
use crate::upstream::advice::Advice;
use crate::upstream::http::request_log::{FailedRequest, RequestTarget};
use crate::upstream::reading::Reading;

/// Logged and noted where a server has more models than are exported.
pub(super) const LEFT_OUT: &str =
    "it has more than 500 models: 500 are shown, the loaded ones first";

/// What was logged of a server, so that each state is logged when it changes, and not on every poll.
pub(super) struct StateLog {
    server: String,
    up: Option<bool>,
    /// The status of each model, by name and mode.
    statuses: BTreeMap<(String, Option<String>), ModelStatus>,
    failing: BTreeMap<RequestTarget, Reason>,
    notes: Vec<&'static str>,
    /// Whether it was logged that models are left out: once and for all.
    left_out: bool,
}

impl StateLog {
    pub fn new(server: String) -> StateLog {
        StateLog {
            server,
            up: None,
            statuses: BTreeMap::new(),
            failing: BTreeMap::new(),
            notes: Vec::new(),
            left_out: false,
        }
    }

    /// Logs what has changed since the poll before.
    pub fn log_changes(&mut self, base: &BaseUrl, reading: &Reading, snapshot: &Snapshot) {
        let server: &dyn Display = &self.server.clone();
        self.log_failures(server, reading);
        let up = snapshot.up == Some(true);
        if self.up != Some(up) {
            self.up = Some(up);
            if up {
                log_up(server, &snapshot.info, snapshot);
            } else {
                log_down(server, &Advice::on(base, reading));
                self.notes.clear();
                self.statuses.clear();
            }
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
            .filter_map(|model| Some(((model.name.clone(), model.mode.clone()), model.status?)))
            .collect();
        for (key, status) in &shown {
            if let Some(before) = self.statuses.get(key).filter(|before| *before != status) {
                log_status(server, &key.0, *before, *status);
            }
        }
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
                    "no answer in time; it is not asked again before this request has ended",
                    target,
                    &pairs,
                );
            } else {
                log_target(log::warn, "a request failed", target, &pairs);
            }
        }
        for target in &reading.requests.answered {
            if self.failing.remove(target).is_some() {
                log_target(log::info, "it answers again", target, &[("server", server)]);
            }
        }
        if reading.up {
            // Nothing will be logged of a model that is gone.
            let there: BTreeSet<_> = reading.models.iter().map(|model| &model.name).collect();
            let is_there = |name: &String| there.contains(name);
            self.failing
                .retain(|target, _| target.model.as_ref().is_none_or(is_there));
        }
    }
}

/// Logs what a request came to, with its endpoint, and its model where there are several.
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
    // Between idle and running a model goes all day long.
    if working(before) && working(status) {
        log::debug("the model's status has changed", &pairs);
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
    let model = snapshot.models.first();
    let name = model.map_or("", |model| &model.name);
    let status = model
        .and_then(|model| model.status)
        .map_or("unknown", ModelStatus::label);
    log::info(
        "the server is up",
        &[
            ("server", server),
            ("kind", &kind),
            ("version", &version),
            ("model", &name),
            ("status", &status),
        ],
    );
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
