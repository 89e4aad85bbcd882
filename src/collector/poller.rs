//! One poll of one base URL: reads the upstream, computes counters, and adds the readings of the
//! machine and the request latencies.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::iter;
use std::mem;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::bounds::{self, BoundedDuration};
use crate::collector::clock::Clock;
use crate::collector::last_levels::LastLevels;
use crate::collector::monitored_server::MonitoredServer;
use crate::collector::request_sources::RequestSources;
use crate::collector::source_table::SourceTable;
use crate::collector::state_log::{LEFT_OUT, StateLog};
use crate::collector::{llama_server_families, poll_loop, schedule};
use crate::counters::ModelTracker;
use crate::counters::integrals::Integrator;
use crate::machine::Machine;
use crate::machine::discovery::LocalServers;
use crate::machine::gpus::Gpus;
use crate::machine::other_servers::OtherServers;
use crate::machine::started_servers::StartedServers;
use crate::process::container::Container;
use crate::readings::{LocalServer, ModelKey, ModelReading};
use crate::settings::{BaseUrl, Settings};
use crate::snapshot::{
    Absence, Model, PollFailure, Polls, Reason, Snapshot, SnapshotCell, SourceKind,
};
use crate::upstream::advice::Advice;
use crate::upstream::detection::DetectedServer;
use crate::upstream::http::exchange::Exchange;
use crate::upstream::http::peer_check::PeerCheck;
use crate::upstream::http::request_log::FailedRequest;
use crate::upstream::reading::Reading;

/// Polls one base URL.
pub struct Poller {
    base: BaseUrl,
    /// The label `server`.
    server: String,
    interval: Duration,
    /// How long one poll may take.
    limit: Duration,
    exchange: Exchange,
    upstream: DetectedServer,
    /// By name and mode.
    models: BTreeMap<ModelKey, TrackedModel>,
    /// Of the model that its server has not named yet.
    unnamed: TrackedModel,
    /// The models that the last poll with an answer found, without their values.
    known: Vec<Model>,
    machine: Machine,
    /// The servers of this machine that the user may have meant; `None`: they are watched anyway.
    others: Option<OtherServers>,
    container: Option<Container>,
    /// The process of a discovered server: its PID, and whether it listens.
    process: Option<(u32, PeerCheck)>,
    requests: RequestSources,
    polls: Polls,
    /// Whether the server was up at the last poll, and since when it is so.
    since: Option<(bool, Instant)>,
    state_log: StateLog,
    levels: LastLevels,
    sources: SourceTable,
    /// Whether llama-server's own families are exported.
    exports_llama_server: bool,
    /// Whether it is a discovered server that Ollama has started.
    is_of_ollama: bool,
    /// How long the server is idle before it sleeps, by the command line of its process.
    idle_timeout: Option<BoundedDuration>,
}

impl Poller {
    /// A poller of `base`, before its first poll.
    ///
    /// # Errors
    /// A setting cannot be used; the error names it.
    pub fn new(base: &BaseUrl, settings: &Settings) -> Result<Poller, String> {
        Ok(Poller {
            base: base.clone(),
            interval: settings.interval,
            limit: schedule::poll_limit(settings.interval, settings.timeout),
            exchange: Exchange::new(base, settings)?,
            upstream: DetectedServer::new(base, settings),
            models: BTreeMap::new(),
            unnamed: TrackedModel::default(),
            known: Vec::new(),
            machine: Machine::new(base, settings),
            others: None,
            container: Container::of_this_process(),
            process: None,
            requests: RequestSources::new(base, settings),
            polls: Polls::default(),
            since: None,
            server: settings.server_label(base),
            state_log: StateLog::new(settings.server_label(base)),
            levels: LastLevels::default(),
            sources: SourceTable::new(base, settings),
            exports_llama_server: settings.llama_server_metrics,
            is_of_ollama: false,
            idle_timeout: None,
        })
    }

    /// Reads these GPUs at every poll.
    pub fn with_gpus(mut self, gpus: &Arc<Gpus>) -> Poller {
        self.machine = self.machine.with_gpus(gpus);
        self
    }

    /// Finds the servers of models in this list: those that the process at the base URL has started.
    pub fn with_local_servers(
        mut self,
        servers: &Arc<LocalServers>,
        settings: &Settings,
    ) -> Poller {
        self.others =
            (!settings.discover).then(|| OtherServers::new(&self.base, settings, servers));
        let (servers, interval) = (Arc::clone(servers), self.interval);
        let mut started = StartedServers::new(&self.base, settings);
        self.upstream
            .list_local_servers(move || started.among(&servers.list(interval)));
        self
    }

    /// Polls only the process of `server`, which listens at the base URL: each connection is
    /// checked to reach it.
    pub fn with_process(mut self, server: &LocalServer, check: PeerCheck) -> Poller {
        self.machine = self.machine.with_process(server);
        self.exchange.check_peer(check.clone());
        self.process = Some((server.pid, check));
        self.is_of_ollama = server.is_of_ollama();
        self
    }

    /// Polls once.
    pub fn poll(&mut self, clock: &impl Clock) -> Snapshot {
        let started = clock.now();
        let mut reading = Reading::default();
        if let Some(timeout) = self.idle_timeout.take() {
            self.upstream.set_idle_timeout(timeout);
        }
        for model in self.requests.take_active_models() {
            self.upstream.requests_logged(&model);
        }
        let deadline = bounds::deadline(started, self.limit);
        self.exchange.begin_poll(deadline);
        self.upstream.poll(&mut self.exchange, &mut reading);
        if self.is_of_ollama {
            reading.explain(Absence::OllamaMetricsOff, Absence::MetricsOff);
        }
        self.machine.begin_poll();
        self.name_model(&mut reading);
        self.requests.find_log_writers(&mut reading, clock.now());
        reading.keep_first_of_each();
        self.requests
            .read_served(&mut self.upstream, &mut self.exchange, &mut reading);
        reading.requests.append(self.exchange.finish_poll());
        self.requests.add_logged_tasks(&mut reading);
        let up = reading.up;
        let mut models = self.derive(&reading, started, clock.now());
        let note_on_processes = self.read_machine(&reading, &mut models, deadline, clock);
        let answered = if up { models.as_mut_slice() } else { &mut [] };
        self.requests.polled(&mut reading, answered, clock.now());
        self.known = models.iter().map(Model::without_values).collect();
        if up {
            self.keep_levels(&reading, &mut models);
        }
        if self.exports_llama_server {
            for model in &mut models {
                model.llama_server = llama_server_families::of_model(model);
            }
        }
        let of_models = models.iter().flat_map(|model| &model.notes);
        reading.notes.extend(of_models.map(|note| note.note()));
        reading.keep_each_note_once();

        self.count_errors(&reading);
        self.polls.total = self.polls.total.saturating_add(1);
        self.polls.duration = clock.now().saturating_duration_since(started);
        if up {
            self.polls.last_success = clock.unix_seconds();
        }
        if self.since.is_none_or(|(was_up, _)| was_up != up) {
            self.since = Some((up, clock.now()));
        }
        let mut sources = self.requests.sources(&reading, clock.now());
        sources.extend(self.machine.sources());
        let advice = (!up).then(|| Advice::on(&self.base, &reading, self.container));
        let others = self
            .others
            .as_ref()
            .filter(|_| !up && !reading.is_unanswered());
        let note_on_others = others.and_then(OtherServers::note);
        let snapshot = Snapshot {
            server: self.server.clone(),
            up: Some(up),
            since: self.since.map(|(_, since)| since),
            info: reading.server_info(),
            models,
            requests: self.requests.figures(),
            log_lines_rejected: self.requests.log_lines_rejected(),
            models_disk_usage: reading.disk_usage,
            polls: self.polls.clone(),
            failures: failed(&reading.requests.failures),
            notes: reading
                .notes
                .iter()
                .chain(reading.is_truncated.then_some(&LEFT_OUT))
                .map(|note| (*note).to_owned())
                .chain(self.machine.notes())
                .chain(advice.as_ref().map(|advice| advice.text.clone()))
                .chain(note_on_others.clone())
                .chain(note_on_processes.clone())
                .collect(),
            down: advice
                .as_ref()
                .map(|advice| self.sources.down(&reading, advice)),
            sources: self.sources.update(&reading, &sources),
        };
        if up || !self.has_ended() {
            self.state_log.log_changes(
                &reading,
                &snapshot,
                advice,
                note_on_others,
                note_on_processes,
            );
        }
        snapshot
    }

    /// Whether the process of a discovered server has ended, which discovery logs.
    fn has_ended(&self) -> bool {
        let process = self.process.as_ref();
        process.is_some_and(|(pid, PeerCheck(check))| !check(Some(*pid)))
    }

    /// Names the model that its server has not named since it was started, by the arguments of the
    /// process, else as before the restart. A model without a name is not shown.
    fn name_model(&mut self, reading: &mut Reading) {
        let unnamed = reading.unnamed.as_mut();
        if let Some(name) = self.machine.model_name(unnamed.as_deref())
            && let Some(model) = unnamed
        {
            model.name = name;
        }
        let is_named = |model: &mut ModelReading| !model.name.is_empty();
        reading.models.extend(reading.unnamed.take_if(is_named));
        if reading.unnamed.is_some() {
            reading.lacks(SourceKind::ModelServer, None, Absence::ModelUnnamed);
            reading.notes.push(Absence::ModelUnnamed.note());
        }
    }

    /// Counts failures. Each endpoint that is requested of this kind of server has a counter from 0
    /// for every reason, so that its first failure is an increase.
    fn count_errors(&mut self, reading: &Reading) {
        let errors = &mut self.polls.errors;
        let failed = reading
            .requests
            .failures
            .iter()
            .map(|failed| failed.target.endpoint);
        let answered = reading
            .requests
            .answered
            .iter()
            .map(|answered| answered.target.endpoint);
        let of_kind = reading.endpoints.iter().copied();
        // The first request of each detection.
        let first = iter::once("/health");
        for endpoint in failed.chain(answered).chain(of_kind).chain(first) {
            for reason in Reason::ALL {
                errors.entry((endpoint, reason)).or_insert(0);
            }
        }
        for failed in &reading.requests.failures {
            let count = errors
                .entry((failed.target.endpoint, failed.error.reason))
                .or_insert(0);
            *count = count.saturating_add(1);
        }
    }

    /// Computes the exported model from each reading of the poll from `began` to `now`.
    fn derive(&mut self, reading: &Reading, began: Instant, now: Instant) -> Vec<Model> {
        if !reading.up {
            // Keeps the trackers: the server may return with the same models.
            let failures = &reading.requests.failures;
            let is_gone = failures
                .iter()
                .any(|failed| failed.error.reason == Reason::Connect);
            for model in self.models.values_mut().chain([&mut self.unnamed]) {
                model
                    .integrator
                    .interrupt(reading.is_unanswered() && !is_gone);
                if is_gone {
                    model.tracker.server_gone();
                }
            }
            return Vec::new();
        }
        let present: BTreeSet<_> = reading.models.iter().map(ModelReading::key).collect();
        self.models.retain(|known, _| present.contains(known));
        let mut models: Vec<_> = reading
            .models
            .iter()
            .map(|read| {
                let known = self.models.entry(read.key());
                known
                    .or_insert_with(|| mem::take(&mut self.unnamed))
                    .update(read, began, now)
            })
            .collect();
        match &reading.unnamed {
            Some(read) => _ = self.unnamed.update(read, began, now),
            None => self.unnamed = TrackedModel::default(),
        }
        models.sort_unstable_by(|a, b| (&a.name, &a.mode).cmp(&(&b.name, &b.mode)));
        models
    }

    /// Fills in the levels that are known without having been read.
    fn keep_levels(&mut self, reading: &Reading, models: &mut [Model]) {
        self.levels.keep_only(models);
        for model in models {
            let mut of_poll = reading.models.iter();
            let read = of_poll.find(|read| read.name == model.name && read.mode == model.mode);
            if let Some(read) = read {
                self.levels.fill(model, read.state);
            }
        }
    }

    /// Adds the readings of the GPUs and of each model's process and file. Returns a note on the
    /// processes of a server that does not answer: nothing but their values is known then.
    fn read_machine(
        &mut self,
        reading: &Reading,
        models: &mut Vec<Model>,
        deadline: Instant,
        clock: &impl Clock,
    ) -> Option<String> {
        let mut pids = Vec::new();
        if reading.is_unanswered() {
            *models = mem::take(&mut self.known);
            models.retain_mut(|model| {
                let pid = self.machine.fill_known(model);
                pids.extend(pid);
                pid.is_some()
            });
        }
        self.machine.keep_only(models);
        self.read_processes(reading, models, deadline, clock);
        if !pids.is_empty() {
            return Some(note_on_processes(&pids, "are still read"));
        }
        if reading.is_unanswered() && self.polls.total == 0 {
            let pid = self.machine.find_unanswered()?;
            return Some(note_on_processes(
                &[pid],
                "will be read once it has answered",
            ));
        }
        None
    }

    /// Adds the readings of each loaded model's process and file, until `deadline`.
    fn read_processes(
        &mut self,
        reading: &Reading,
        models: &mut [Model],
        deadline: Instant,
        clock: &impl Clock,
    ) {
        let read: BTreeMap<_, _> = reading
            .models
            .iter()
            .map(|read| (read.key(), read))
            .collect();
        for model in models.iter_mut().filter(|model| model.is_loaded()) {
            let Some(read) = read.get(&model.key()) else {
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

    /// Starts the sources of request latencies that have a thread of their own, where `settings`
    /// enable them. They read the snapshots in `cell`.
    ///
    /// # Errors
    /// A setting cannot be used, or the system cannot start a thread.
    pub fn watch_requests(
        &self,
        settings: &Settings,
        cell: &Arc<SnapshotCell>,
    ) -> Result<(), String> {
        self.requests.start(&self.base, settings, cell)
    }

    /// The server as it is served, before the first poll.
    pub fn monitored_server(&self, now: Instant) -> MonitoredServer {
        let unpolled = Snapshot {
            server: self.server.clone(),
            ..Snapshot::default()
        };
        MonitoredServer::new(unpolled, now, self.interval, self.limit)
    }

    /// Starts the thread that polls, and publishes into `server`, until `clock` ends it.
    ///
    /// # Errors
    /// The system cannot start a thread.
    pub fn start(
        mut self,
        server: MonitoredServer,
        clock: impl Clock + Send + 'static,
    ) -> io::Result<JoinHandle<()>> {
        let (interval, limit) = (self.interval, self.limit);
        let history = Arc::clone(&server.history);
        poll_loop::start(server, interval, limit, clock, move |clock| {
            let snapshot = self.poll(clock);
            history.add_gpus(&self.machine.gpus(), clock.now());
            (snapshot, self.upstream.extra_poll_at())
        })
    }
}

/// What is remembered of a model from poll to poll.
#[derive(Default)]
struct TrackedModel {
    tracker: ModelTracker,
    integrator: Integrator,
}

impl TrackedModel {
    /// Takes the reading of a poll from `began` to `now`; returns what is exported.
    fn update(&mut self, read: &ModelReading, began: Instant, now: Instant) -> Model {
        let mut model = self.tracker.update(read);
        let has_restarted = self.tracker.has_restarted();
        model.integrals = self
            .integrator
            .update(began, now, read, &model, has_restarted);
        model
    }
}

/// What is known of a server that does not answer, for people; these are its processes.
fn note_on_processes(pids: &[u32], memory_and_cpu: &str) -> String {
    let alive = match pids {
        [pid] => format!("its process {pid} is alive"),
        _ => format!("{} of its processes are alive", pids.len()),
    };
    format!("the server does not answer; {alive}: memory and CPU {memory_and_cpu}")
}

fn failed(failures: &[FailedRequest]) -> Vec<PollFailure> {
    let failed = failures.iter().map(|failed| PollFailure {
        endpoint: failed.target.endpoint,
        model: failed.target.model.clone(),
        reason: failed.error.reason,
        detail: failed.error.detail.clone(),
    });
    failed.collect()
}
