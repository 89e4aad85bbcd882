//! The timer thread: read, derive, publish, at every interval.

mod log_context;
mod probe_thread;
mod published;
mod schedule;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Display;
use std::io;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::bounds;
pub use crate::collector::published::{Watch, health, readiness};
pub use crate::collector::schedule::Heart;
use crate::collector::schedule::Schedule;
use crate::counters::{ModelState, is_loaded};
use crate::machine::gpus::Gpus;
use crate::machine::{Hints, Machine};
use crate::process::log;
use crate::requests::Requests;
use crate::requests::records::Records;
use crate::settings::{BaseUrl, Settings};
use crate::snapshot::{Cell, Failed, Model, Polls, Reason, ServerInfo, Snapshot, Status};
use crate::upstream::advice::Advice;
use crate::upstream::completion::Completions;
use crate::upstream::detection::Upstream;
use crate::upstream::http::exchange::Asker;
use crate::upstream::reading::{FailedRequest, ModelReading, Reading, Target};

/// Said where a server has more models than are shown.
const LEFT_OUT: &str = "it has more than 500 models: 500 are shown, the loaded ones first";

/// A log that is followed in vain.
const LOG_OF_NOBODY: &str = "--log-file counts nothing here: only of a llama-server or its router is it known whose \
     requests the lines of a log are about";

/// Polls one base URL.
pub struct Poller {
    base: BaseUrl,
    /// The label `server`.
    server: String,
    interval: Duration,
    /// How long one poll may take.
    limit: Duration,
    asker: Asker,
    upstream: Upstream,
    /// What is remembered of each model, by name and mode.
    models: BTreeMap<(String, Option<String>), ModelState>,
    machine: Machine,
    requests: Arc<Requests>,
    /// Docker Model Runner's, unless the user wants none of them.
    records: Option<Records>,
    /// Whether the user gave a log for this server.
    has_log: bool,
    polls: Polls,
    said: Said,
}

impl Poller {
    /// A poller of `base` that has not asked anything yet.
    ///
    /// # Errors
    /// When a setting cannot be used; the text names it.
    pub fn new(base: &BaseUrl, settings: &Settings) -> Result<Poller, String> {
        Ok(Poller {
            base: base.clone(),
            interval: settings.interval,
            limit: schedule::poll_limit(settings.interval, settings.timeout),
            asker: Asker::new(base, settings)?,
            upstream: Upstream::new(base, settings),
            models: BTreeMap::new(),
            machine: Machine::new(base, settings),
            requests: Arc::default(),
            records: settings.request_records.then(Records::default),
            has_log: settings.log_file_of(base).is_some(),
            polls: Polls::default(),
            server: settings.server_label(base),
            said: Said::new(settings.server_label(base)),
        })
    }

    /// Has the GPUs of this machine read with every poll.
    pub fn with_gpus(mut self, gpus: &Arc<Gpus>) -> Poller {
        self.machine = self.machine.with_gpus(gpus);
        self
    }

    /// What is known before the first poll.
    pub fn unpolled(&self) -> Snapshot {
        Snapshot {
            server: self.server.clone(),
            ..Snapshot::default()
        }
    }

    /// Polls once.
    pub fn poll(&mut self) -> Snapshot {
        let started = Instant::now();
        let mut reading = Reading::default();
        let deadline = bounds::deadline(started, self.limit);
        self.asker.begin(deadline);
        self.upstream.read(&mut self.asker, &mut reading);
        reading.keep_first_of_each();
        self.read_records();
        self.asker.finish(&mut reading);
        let kind = reading.info.as_ref().map(|info| info.kind);
        if self.has_log && matches!(kind, Some("model-runner" | "llama-swap")) {
            reading.notes.push(LOG_OF_NOBODY);
        }
        let up = reading.up;
        let mut models = self.derive(&reading);
        self.look_at_machine(&reading, &mut models, deadline);
        self.take_requests(&reading, &mut models);
        reading
            .notes
            .extend(self.requests.log_notes(Instant::now()));
        for note in models.iter().flat_map(|model| &model.notes) {
            if !reading.notes.contains(note) {
                reading.notes.push(note);
            }
        }

        self.count_errors(&reading);
        self.polls.total = self.polls.total.saturating_add(1);
        self.polls.duration = started.elapsed();
        if up {
            let now = SystemTime::now().duration_since(UNIX_EPOCH);
            self.polls.last_success = now.ok().map(|since| since.as_secs_f64());
        }
        let snapshot = Snapshot {
            server: self.server.clone(),
            up: Some(up),
            info: reading.info.clone(),
            models,
            requests: self.requests.figures(),
            log_lines_rejected: self.requests.log_lines_rejected(),
            models_disk_usage: reading.disk_usage,
            polls: self.polls.clone(),
            failures: failed(&reading.failures),
            notes: reading
                .notes
                .iter()
                .chain(reading.left_out.then_some(&LEFT_OUT))
                .map(|note| (*note).to_owned())
                .chain(self.machine.notes())
                .chain((!up).then(|| Advice::on(&self.base, &reading).text))
                .collect(),
        };
        self.said.say(&self.base, &reading, &snapshot);
        snapshot
    }

    /// Counts what failed. Each endpoint that was asked counts from 0, for every reason, so that
    /// its first failure is an increase.
    fn count_errors(&mut self, reading: &Reading) {
        let errors = &mut self.polls.errors;
        let failed = reading.failures.iter().map(|failed| &failed.target);
        for target in failed.chain(&reading.answered) {
            for reason in Reason::ALL {
                errors.entry((target.endpoint, reason)).or_insert(0);
            }
        }
        for failed in &reading.failures {
            let count = errors
                .entry((failed.target.endpoint, failed.failure.reason))
                .or_insert(0);
            *count = count.saturating_add(1);
        }
    }

    /// Turns what was read of each model into what is shown of it.
    fn derive(&mut self, reading: &Reading) -> Vec<Model> {
        if !reading.up {
            // Its models may be the same when it is there again: what is known of them is kept.
            return Vec::new();
        }
        let present: BTreeSet<_> = reading.models.iter().map(key).collect();
        self.models.retain(|known, _| present.contains(known));
        let mut models: Vec<_> = reading
            .models
            .iter()
            .map(|model| self.models.entry(key(model)).or_default().update(model))
            .collect();
        models.sort_unstable_by(|a, b| (&a.name, &a.mode).cmp(&(&b.name, &b.mode)));
        for same in models.chunk_by_mut(|a, b| a.name == b.name) {
            if same.len() > 1 {
                same.iter_mut().for_each(|model| model.mode_tells = true);
            }
        }
        models
    }

    /// Fills in what the machine tells of each loaded model's process and file, until `deadline`.
    fn look_at_machine(&mut self, reading: &Reading, models: &mut [Model], deadline: Instant) {
        self.machine.refresh();
        self.machine.forget_all_but(models);
        let read: BTreeMap<_, _> = reading
            .models
            .iter()
            .map(|read| (key(read), read))
            .collect();
        for model in models.iter_mut().filter(|model| is_loaded(model.status)) {
            let Some(read) = read.get(&(model.name.clone(), model.mode.clone())) else {
                continue;
            };
            if !read.host.is_findable() {
                continue;
            }
            if Instant::now() >= deadline {
                break;
            }
            self.machine.fill(model, &hints(read));
            if let Some(after) = self.machine.sleep_idle(model) {
                self.upstream.may_sleep_after(after);
            }
        }
    }

    /// Counts the requests that the server keeps records of.
    fn read_records(&mut self) {
        if let Some(records) = &mut self.records {
            let requests = &self.requests;
            self.upstream
                .read_records(&mut self.asker, &mut |answer, label| {
                    records.take(answer, requests, |name| Some(label(name)))
                });
        }
    }

    /// Says whose requests the log speaks of, and takes what only the log tells of a server.
    fn take_requests(&self, reading: &Reading, models: &mut [Model]) {
        self.requests
            .polled(Instant::now(), &log_context::polled(reading));
        for model in models.iter_mut().filter(|model| is_loaded(model.status)) {
            let facts = self.requests.facts(&model.name);
            let number = |fact: Option<u64>| fact.map(|fact| fact as f64);
            model.slots = model.slots.or(number(facts.slots));
            model.max_context_size = model.max_context_size.or(number(facts.slot_context));
            if model.kv_cache_ratio.is_none() && !model.context_tokens.is_empty() {
                let used: f64 = model.context_tokens.iter().map(|(_, tokens)| tokens).sum();
                let cells = facts.cells().map(|cells| cells as f64);
                model.kv_cache_ratio = cells.map(|cells| (used / cells).min(1.0));
            }
        }
    }

    /// Follows the log and probes the models, each in a thread of its own, where `settings`
    /// say so; what this poller publishes goes into `cell`.
    ///
    /// # Errors
    /// A setting cannot be used, or the system has no thread to give.
    pub fn watch_requests(&self, settings: &Settings, cell: &Arc<Cell>) -> Result<(), String> {
        if let Some(path) = settings.log_file_of(&self.base) {
            self.requests
                .follow_log(path)
                .map_err(|error| format!("cannot start the log thread: {error}"))?;
        }
        if let Some(interval) = settings.probe_interval {
            self.requests.models_are_probed();
            let prober = probe_thread::Prober {
                completions: Completions::new(&self.base, settings)?,
                requests: Arc::clone(&self.requests),
                cell: Arc::clone(cell),
                interval,
            };
            prober
                .start()
                .map_err(|error| format!("cannot start the probe thread: {error}"))?;
        }
        Ok(())
    }

    /// Starts the thread that polls, publishes into `watch`, and shows there that it does.
    ///
    /// # Errors
    /// The system has no thread to give.
    pub fn start(mut self, watch: Watch) -> io::Result<()> {
        let Watch { cell, heart } = watch;
        let limit = self.limit;
        heart.beat(self.interval, limit);
        let poll_on = move || {
            let mut schedule = Schedule::new(self.interval, Instant::now());
            loop {
                cell.publish(Arc::new(self.poll()));
                heart.beat(self.interval, limit);
                // A server that may fall asleep is looked at in the moment when it should have.
                let look = self.upstream.next_look();
                thread::sleep(schedule.pause(Instant::now(), look));
            }
        };
        thread::Builder::new()
            .name("poll".to_owned())
            .spawn(poll_on)
            .map(drop)
    }
}

/// What tells a model from the others of its base URL: its name and its mode.
fn key(model: &ModelReading) -> (String, Option<String>) {
    (model.name.clone(), model.mode.clone())
}

fn failed(failures: &[FailedRequest]) -> Vec<Failed> {
    let failed = failures.iter().map(|failed| Failed {
        endpoint: failed.target.endpoint,
        model: failed.target.model.clone(),
        reason: failed.failure.reason,
        detail: failed.failure.detail.clone(),
    });
    failed.collect()
}

/// What a reading says that helps to find the model's process and file.
fn hints(reading: &ModelReading) -> Hints<'_> {
    let facts = &reading.facts;
    Hints {
        model_path: facts.path.as_deref(),
        slots: facts.slots,
        n_ctx: facts.max_context,
        arguments: reading.host.arguments.as_deref(),
        mode: reading.mode.as_deref(),
        file_part: reading.host.file_part.as_deref(),
        header: reading.host.header.as_deref(),
    }
}

/// What was said of a server, so that each thing is said once.
struct Said {
    server: String,
    up: Option<bool>,
    /// The status of each model, by name and mode.
    statuses: BTreeMap<(String, Option<String>), Status>,
    failing: BTreeMap<Target, Reason>,
    notes: Vec<&'static str>,
    /// Whether it was said that models are left out: once and for all.
    left_out: bool,
}

impl Said {
    fn new(server: String) -> Said {
        Said {
            server,
            up: None,
            statuses: BTreeMap::new(),
            failing: BTreeMap::new(),
            notes: Vec::new(),
            left_out: false,
        }
    }

    fn say(&mut self, base: &BaseUrl, reading: &Reading, snapshot: &Snapshot) {
        let server: &dyn Display = &self.server.clone();
        self.say_failures(server, reading);
        let up = snapshot.up == Some(true);
        if self.up != Some(up) {
            self.up = Some(up);
            if up {
                say_up(server, &snapshot.info, snapshot);
            } else {
                say_down(server, &Advice::on(base, reading));
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
        if reading.left_out && !self.left_out {
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
                say_status(server, &key.0, *before, *status);
            }
        }
        self.statuses = shown.into_iter().collect();
    }

    fn say_failures(&mut self, server: &dyn Display, reading: &Reading) {
        for failed in &reading.failures {
            let FailedRequest {
                target, failure, ..
            } = failed;
            let reason = failure.reason;
            let pairs: [(&str, &dyn Display); 3] = [
                ("reason", &reason.label()),
                ("server", server),
                ("detail", failure),
            ];
            if self.failing.insert(target.clone(), reason) == Some(reason) {
                log_target(log::debug, "a request still fails", target, &pairs);
            } else if failed.is_open {
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
        for target in &reading.answered {
            if self.failing.remove(target).is_some() {
                log_target(log::info, "it answers again", target, &[("server", server)]);
            }
        }
        if reading.up {
            // Of a model that is gone nothing will be said again.
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
    target: &Target,
    pairs: &[(&str, &dyn Display)],
) {
    let endpoint: (&str, &dyn Display) = ("endpoint", &target.endpoint);
    let model = target.model.as_ref();
    let model = model.map(|model| ("model", model as &dyn Display));
    let all: Vec<_> = [endpoint].into_iter().chain(model).collect();
    log(message, &[&all, pairs].concat());
}

fn say_status(server: &dyn Display, name: &str, before: Status, status: Status) {
    let pairs: [(&str, &dyn Display); 3] = [
        ("status", &status.label()),
        ("model", &name),
        ("server", server),
    ];
    let working = |status| matches!(status, Status::Idle | Status::Running);
    // Between idle and running a model goes all day long.
    if working(before) && working(status) {
        log::debug("the model's status has changed", &pairs);
    } else {
        log::info("the model's status has changed", &pairs);
    }
}

fn say_up(server: &dyn Display, info: &Option<ServerInfo>, snapshot: &Snapshot) {
    let kind = info.as_ref().map_or("unknown", |info| info.kind);
    let version = info
        .as_ref()
        .and_then(|info| info.version.as_deref())
        .unwrap_or("unknown");
    let model = snapshot.models.first();
    let name = model.map_or("", |model| &model.name);
    let status = model
        .and_then(|model| model.status)
        .map_or("unknown", Status::label);
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

fn say_down(server: &dyn Display, advice: &Advice) {
    log::warn(
        "the server is down",
        &[
            ("server", server),
            ("reason", &advice.reason),
            ("advice", &advice.text),
        ],
    );
}
