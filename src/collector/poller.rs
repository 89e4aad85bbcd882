//! One poll of one base URL: ask, turn answers into numbers, add what machine and requests tell.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::bounds::{self, BoundedDuration};
use crate::collector::clock::Clock;
use crate::collector::monitored_server::MonitoredServer;
use crate::collector::state_log::{LEFT_OUT, StateLog};
use crate::collector::{log_context, poll_loop, probe_thread, schedule};
use crate::counters::{ModelTracker, is_loaded};
use crate::machine::Machine;
use crate::machine::gpus::Gpus;
use crate::readings::ModelReading;
use crate::requests::Requests;
use crate::requests::records::Records;
use crate::settings::{BaseUrl, Settings};
use crate::snapshot::{Cell, Failed, Model, Polls, Reason, Snapshot};
use crate::upstream::advice::Advice;
use crate::upstream::completion::Completions;
use crate::upstream::detection::Upstream;
use crate::upstream::http::exchange::Exchange;
use crate::upstream::reading::{FailedRequest, Reading};

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
    exchange: Exchange,
    upstream: Upstream,
    /// What is remembered of each model, by name and mode.
    models: BTreeMap<(String, Option<String>), ModelTracker>,
    machine: Machine,
    requests: Arc<Requests>,
    /// Docker Model Runner's, unless the user wants none of them.
    records: Option<Records>,
    /// Whether the user gave a log for this server.
    has_log: bool,
    polls: Polls,
    state_log: StateLog,
    /// How long the server is idle before it sleeps, by the command line of its process.
    idle_timeout: Option<BoundedDuration>,
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
            exchange: Exchange::new(base, settings)?,
            upstream: Upstream::new(base, settings),
            models: BTreeMap::new(),
            machine: Machine::new(base, settings),
            requests: Arc::default(),
            records: (!settings.no_request_records).then(Records::default),
            has_log: settings.log_file_of(base).is_some(),
            polls: Polls::default(),
            server: settings.server_label(base),
            state_log: StateLog::new(settings.server_label(base)),
            idle_timeout: None,
        })
    }

    /// Has the GPUs of this machine read with every poll.
    pub fn with_gpus(mut self, gpus: &Arc<Gpus>) -> Poller {
        self.machine = self.machine.with_gpus(gpus);
        self
    }

    /// What is known before the first poll.
    fn unpolled(&self) -> Snapshot {
        Snapshot {
            server: self.server.clone(),
            ..Snapshot::default()
        }
    }

    /// Polls once.
    pub fn poll(&mut self, clock: &impl Clock) -> Snapshot {
        let started = clock.now();
        let mut reading = Reading::default();
        if let Some(timeout) = self.idle_timeout.take() {
            self.upstream.may_sleep_after(timeout);
        }
        let deadline = bounds::deadline(started, self.limit);
        self.exchange.begin_poll(deadline);
        self.upstream.read(&mut self.exchange, &mut reading);
        reading.keep_first_of_each();
        self.read_records();
        self.exchange.finish_poll(&mut reading);
        let kind = reading.info.as_ref().map(|info| info.kind);
        if self.has_log && matches!(kind, Some("model-runner" | "llama-swap")) {
            reading.notes.push(LOG_OF_NOBODY);
        }
        let up = reading.up;
        let mut models = self.derive(&reading);
        self.look_at_machine(&reading, &mut models, deadline, clock);
        self.take_requests(&reading, &mut models, clock.now());
        reading.notes.extend(self.requests.log_notes(clock.now()));
        for note in models.iter().flat_map(|model| &model.notes) {
            if !reading.notes.contains(note) {
                reading.notes.push(note);
            }
        }

        self.count_errors(&reading);
        self.polls.total = self.polls.total.saturating_add(1);
        self.polls.duration = clock.now().saturating_duration_since(started);
        if up {
            self.polls.last_success = clock.unix_seconds();
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
        self.state_log.log_changes(&self.base, &reading, &snapshot);
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
    fn look_at_machine(
        &mut self,
        reading: &Reading,
        models: &mut [Model],
        deadline: Instant,
        clock: &impl Clock,
    ) {
        self.machine.begin_poll();
        self.machine.keep_only(models);
        let read: BTreeMap<_, _> = reading
            .models
            .iter()
            .map(|read| (key(read), read))
            .collect();
        for model in models.iter_mut().filter(|model| is_loaded(model.status)) {
            let Some(read) = read.get(&(model.name.clone(), model.mode.clone())) else {
                continue;
            };
            if !read.process.is_findable() {
                continue;
            }
            if clock.now() >= deadline {
                break;
            }
            self.machine.fill(model, read);
            self.idle_timeout = self.machine.sleep_idle(model).or(self.idle_timeout);
        }
    }

    /// Counts the requests that the server keeps records of.
    fn read_records(&mut self) {
        if let Some(records) = &mut self.records {
            let requests = &self.requests;
            self.upstream
                .read_records(&mut self.exchange, &mut |answer, label| {
                    records.take(answer, requests, |name| Some(label(name)))
                });
        }
    }

    /// Says whose requests the log speaks of, and takes what only the log tells of a server.
    fn take_requests(&self, reading: &Reading, models: &mut [Model], now: Instant) {
        self.requests.polled(now, &log_context::polled(reading));
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

    /// The server as it is served, before the first poll.
    pub fn monitored_server(&self, now: Instant) -> MonitoredServer {
        MonitoredServer::new(self.unpolled(), now, self.interval, self.limit)
    }

    /// Starts the thread that polls, and publishes into `server`.
    ///
    /// # Errors
    /// The system has no thread to give.
    pub fn start(mut self, server: MonitoredServer) -> io::Result<()> {
        let (interval, limit) = (self.interval, self.limit);
        poll_loop::start(server, interval, limit, move |clock| {
            let snapshot = self.poll(clock);
            (snapshot, self.upstream.next_look())
        })
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
