//! Docker Model Runner.
//!
//! None of its GET requests loads a model or keeps one loaded. `/engines/ps` reports the states of
//! the models, `/models` their facts. Live values come from the llama-servers of the models, where
//! their processes can be seen. Else from its `/metrics`, which passes on that of the llama-servers,
//! but only for models that were loaded by ID (as of v1.2.6).

mod model_names;
mod runner_servers;
mod store;

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use serde::Deserialize;
use serde::de::IgnoredAny;

use crate::bounds::lenient::{flag, text};
use crate::readings::{
    Counters, CountersReading, LocalServer, ModelReading, ModelState, ModelStatus, ProcessHints,
    Update,
};
use crate::settings::{BaseUrl, Settings};
use crate::snapshot::{Absence, Reason, SourceKind};
use crate::upstream::api::counters_by_model::CountersByModel;
use crate::upstream::api::exposition_reader::Sample;
use crate::upstream::endpoints::{HEALTH, PROPS};
use crate::upstream::http::endpoint::Endpoint;
use crate::upstream::http::exchange::{Exchange, NotServed, RequestOutcome};
use crate::upstream::http::request_error::RequestError;
use crate::upstream::http::response::HttpResponse;
use crate::upstream::identification;
use crate::upstream::model_limit::LimitedModels;
use crate::upstream::model_runner::runner_servers::{RunnerKey, RunnerServers, key};
use crate::upstream::model_runner::store::Store;
use crate::upstream::reading::{Reading, ServedLog};
use crate::upstream::server_url::ServerUrl;
use crate::upstream::telemetry::{INVALID_LINES, SLOTS};
use crate::upstream::version::read_version;
use crate::upstream::{DetectionAnswers, RecordsReader, ServerKind, Upstream};

const PS: Endpoint = Endpoint::new("/engines/ps", 4 << 20);
const METRICS: Endpoint = Endpoint::new("/metrics", 16 << 20);
/// The last ten requests of each model, with their responses; never held as a whole.
const REQUESTS: Endpoint = Endpoint::new("/engines/requests", 32 << 20);
const VERSION: Endpoint = Endpoint::new("/version", 64 << 10);

/// The log of Model Runner and its engines, from its beginning on, in standalone mode (from April
/// 2026).
const LOG: &str = "/logs";
const FOLLOWED_LOG: &str = "/logs?follow=true";

/// The backend whose runners are llama-servers.
const LLAMA_CPP: &str = "llama.cpp";

/// The counters of each runner, by the label of its model and its mode.
type CountersByRunner = BTreeMap<RunnerKey, Counters>;

/// The mode of a runner that says none, and of a model that has not run yet: Docker Model Runner
/// runs a model for completions unless a request asks for something else.
const DEFAULT_MODE: &str = "completion";

/// The most modes of one model.
const MOST_MODES: usize = 8;

/// The modes that each model was seen to run in, by its label.
type ModesByModel = BTreeMap<String, BTreeSet<String>>;

/// Docker Model Runner.
pub struct ModelRunner {
    url: ServerUrl,
    /// Whether the records of the last requests are read.
    reads_records: bool,
    log_path: &'static str,
    /// Whether the families of `/metrics` are kept as text.
    keeps_text: bool,
    version: Option<String>,
    store: Store,
    servers: RunnerServers,
    modes: ModesByModel,
    metrics_missing: Option<NotServed>,
    /// Whether the last `/metrics` was not an exposition.
    has_unrecognized_metrics: bool,
    /// Whether the log is followed: since a llama-server was found that is not read itself.
    follows_log: bool,
    /// The time of the last poll that found one llama.cpp runner, with its model and `last_used`.
    used: Option<(Instant, (String, String))>,
    /// Two polls between which that has changed.
    requests_between: Option<(Instant, Instant)>,
    /// Whether lines of the last `/metrics` could not be parsed.
    has_invalid_lines: bool,
    /// Whether the last `/metrics` had several samples for one runner.
    has_ambiguous_samples: bool,
}

/// One object of `/engines/ps`.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Runner {
    #[serde(deserialize_with = "text")]
    backend_name: Option<String>,
    /// As spelled by the request that loaded it.
    #[serde(deserialize_with = "text")]
    model_name: Option<String>,
    #[serde(deserialize_with = "text")]
    mode: Option<String>,
    /// The time of its last request.
    #[serde(deserialize_with = "text")]
    last_used: Option<String>,
    #[serde(deserialize_with = "flag")]
    in_use: Option<bool>,
    #[serde(deserialize_with = "flag")]
    loading: Option<bool>,
}

impl Runner {
    fn status(&self) -> ModelStatus {
        match (self.loading, self.in_use) {
            (Some(true), _) => ModelStatus::Loading,
            (_, Some(true)) => ModelStatus::Running,
            _ => ModelStatus::Idle,
        }
    }

    fn mode(&self) -> &str {
        self.mode.as_deref().unwrap_or(DEFAULT_MODE)
    }

    fn is_llama_cpp(&self) -> bool {
        self.backend_name.as_deref() == Some(LLAMA_CPP)
    }
}

/// Parses `/engines/ps`: an array, even if nothing runs. Other servers may send null, or an array
/// of something else.
fn runners(answer: HttpResponse) -> Result<Vec<Runner>, RequestError> {
    let has_name = |runner: &Runner| runner.model_name.is_some();
    let are_runners = |runners: &Vec<_>| runners.is_empty() || runners.iter().any(has_name);
    answer
        .list()?
        .filter(are_runners)
        .ok_or_else(|| RequestError::unrecognized("it is not an array of runners"))
}

impl ModelRunner {
    /// Docker Model Runner at `base`, without a path from `/engines` on; not polled yet.
    pub fn new(base: &BaseUrl, settings: &Settings) -> ModelRunner {
        ModelRunner {
            url: ServerUrl::new(base.before_engines()),
            reads_records: !settings.no_request_records,
            log_path: match settings.reads_logs_once {
                true => LOG,
                false => FOLLOWED_LOG,
            },
            keeps_text: settings.llama_server_metrics,
            version: None,
            store: Store::default(),
            servers: RunnerServers::new(settings),
            modes: ModesByModel::default(),
            metrics_missing: None,
            has_unrecognized_metrics: false,
            follows_log: false,
            used: None,
            requests_between: None,
            has_invalid_lines: false,
            has_ambiguous_samples: false,
        }
    }

    /// Whether the server responds to any request with a list. Then an empty list of runners is no
    /// evidence.
    fn answers_a_list_to_anything(&self, exchange: &mut Exchange) -> bool {
        let list = exchange.get_optional(VERSION, &self.url.of(VERSION), |answer| {
            answer.for_each(|_: IgnoredAny| {})
        });
        matches!(list, RequestOutcome::Ok(_))
    }

    /// Reads `/metrics`; returns the time of the reading too.
    fn read_metrics(&mut self, exchange: &mut Exchange) -> Update<(Instant, CountersByRunner)> {
        if self.metrics_missing.is_some() {
            return Update::Absent;
        }
        let metrics = exchange.get(METRICS, &self.url.of(METRICS), |answer| {
            answer.stream(|body| {
                let is_llama_cpp = |sample: &Sample| sample.label("backend") == Some(LLAMA_CPP);
                CountersByModel::read(body, self.keeps_text, is_llama_cpp)
            })
        });
        if metrics.timed_out() {
            // Docker Model Runner is waiting for a busy runner.
            return Update::Stale;
        }
        self.metrics_missing = metrics.not_served();
        self.has_unrecognized_metrics = matches!(metrics, RequestOutcome::Failed(Reason::Parse));
        let Some(metrics) = metrics.ok() else {
            return Update::Absent;
        };
        let at = Instant::now();
        self.has_invalid_lines = metrics.skipped_lines > 0;
        self.has_ambiguous_samples = false;
        let mut by_runner = CountersByRunner::new();
        for (model, mode, counters) in metrics.by_label() {
            self.has_ambiguous_samples |= counters.is_none();
            let mode = mode.unwrap_or_else(|| DEFAULT_MODE.to_owned());
            match by_runner.entry((self.store.label(&model), mode)) {
                Entry::Vacant(entry) => drop(entry.insert(counters.unwrap_or_default())),
                // Two names of one model have two runners, of which one is exported.
                Entry::Occupied(mut entry) => {
                    self.has_ambiguous_samples = true;
                    entry.insert(Counters::default());
                }
            }
        }
        Update::New((at, by_runner))
    }

    /// The model of a runner, without its counters.
    fn running_model(&self, runner: &Runner, name: &str) -> ModelReading {
        // Of a runner of another engine, only the state is known.
        let stored = self.store.find(name).filter(|_| runner.is_llama_cpp());
        let mut facts = stored
            .map(|stored| self.store.facts(stored))
            .unwrap_or_default();
        facts.backend.clone_from(&runner.backend_name);
        facts.is_description_pending = stored.is_none() && runner.is_llama_cpp();
        ModelReading {
            name: self.store.label(name),
            mode: Some(runner.mode().to_owned()),
            state: ModelState::Reported(runner.status()),
            facts,
            process: ProcessHints {
                behind_proxy: true,
                // Its llama-servers have no port to find them by, but the paths of their model
                // files contain the model's digest.
                file_part: stored.and_then(|stored| stored.digest().map(str::to_owned)),
                header: stored.and_then(|stored| stored.header.clone()),
                ..ProcessHints::default()
            },
            ..ModelReading::default()
        }
    }

    /// The models of the runners, each model and mode once.
    fn running_models(&self, runners: &[Runner]) -> Vec<ModelReading> {
        let mut models: BTreeMap<_, ModelReading> = BTreeMap::new();
        for runner in runners {
            let Some(name) = &runner.model_name else {
                continue;
            };
            let model = self.running_model(runner, name);
            // Of two spellings of one model in one mode, the busy runner is exported.
            let idle = ModelState::Reported(ModelStatus::Idle);
            let key = key(&model);
            if models.get(&key).is_none_or(|shown| shown.state == idle) {
                models.insert(key, model);
            }
        }
        models.into_values().collect()
    }

    /// Reads the models that have loaded from their own llama-servers, as far as those can be
    /// reached, and the others from `/metrics`, unless a response is late already. Returns whether
    /// `/metrics` lacks one of them.
    fn read_counters(
        &mut self,
        models: &mut [ModelReading],
        is_late: bool,
        exchange: &mut Exchange,
        reading: &mut Reading,
    ) -> bool {
        let mut loaded: Vec<_> = models.iter_mut().filter(|model| is_loaded(model)).collect();
        self.servers.poll(&mut loaded, exchange.deadline(), reading);
        for model in models.iter_mut().filter(|model| !is_loaded(model)) {
            self.servers.set_process(model);
        }
        let mut others: Vec<_> = models
            .iter_mut()
            .filter(|model| is_llama_cpp(model) && !self.servers.reads(&key(model)))
            .collect();
        if others.is_empty() && self.servers.reads_any() {
            return false;
        }
        let metrics = match is_late {
            true => Update::Stale,
            false => self.read_metrics(exchange),
        };
        let mut is_left_out = false;
        for model in &mut others {
            model.counters = match &metrics {
                Update::New((at, by_runner)) => match by_runner.get(&key(model)) {
                    Some(counters) => Update::New(CountersReading {
                        at: *at,
                        process: None,
                        counters: counters.clone(),
                    }),
                    None => {
                        if is_loaded(model) {
                            is_left_out = true;
                            let kind = SourceKind::Endpoint(METRICS.path);
                            reading.lacks(kind, Some(&model.name), Absence::RunnerLeftOut);
                        }
                        Update::Absent
                    }
                },
                Update::Unchanged | Update::Stale => Update::Stale,
                Update::Absent => Update::Absent,
            };
        }
        is_left_out
    }

    /// The log, if it tells of the runners what nothing else does. It stays open while nothing runs:
    /// so it has the first requests of the next model.
    fn log(&mut self, runners: &[Runner], running: &[ModelReading]) -> Option<ServedLog> {
        let models = runners.iter().filter(|runner| runner.is_llama_cpp());
        let models: Vec<RunnerKey> = models
            .filter_map(|runner| {
                let label = self.store.label(runner.model_name.as_deref()?);
                Some((label, runner.mode().to_owned()))
            })
            .collect();
        self.note_use(runners);
        let needs_log = |model: &ModelReading| match is_loaded(model) {
            true => !self.servers.reads(&key(model)) && model.counters != Update::Stale,
            false => !self.servers.may_read(model),
        };
        let mut running = running.iter().filter(|model| is_llama_cpp(model));
        self.follows_log |= running.any(needs_log);
        let models = models.into_iter().map(|(label, mode)| (label, Some(mode)));
        (self.reads_records && self.follows_log).then(|| ServedLog {
            url: self.url.of_path(self.log_path),
            models: models.collect(),
            repeats_lines: true,
            lacks_errors: false,
            requests_between: self.requests_between,
        })
    }

    /// Notes whether the only llama.cpp runner had requests since the last poll.
    fn note_use(&mut self, runners: &[Runner]) {
        let mut runners = runners.iter().filter(|runner| runner.is_llama_cpp());
        let only = runners.next().filter(|_| runners.next().is_none());
        let used = only.and_then(|only| only.model_name.clone().zip(only.last_used.clone()));
        let now = Instant::now();
        if let (Some((before, (model, time))), Some(used)) = (&self.used, &used)
            && (model == &used.0 && time != &used.1)
        {
            self.requests_between = Some((*before, now));
        }
        self.used = used.map(|used| (now, used));
    }

    /// Remembers the modes that models run in, so that the series of a mode go on when it is
    /// unloaded.
    fn remember_modes(&mut self, running: &[ModelReading]) {
        for model in running {
            let modes = self.modes.entry(model.name.clone()).or_default();
            if let Some(mode) = &model.mode
                && modes.len() < MOST_MODES
            {
                modes.insert(mode.clone());
            }
        }
        let is_running = |label: &String| running.iter().any(|model| model.name == *label);
        let store = &self.store;
        self.modes
            .retain(|label, _| store.has_label(label) || is_running(label));
    }

    /// Each model of the store in each mode that it was seen to run in, unless it runs in it now.
    fn unloaded_models(&self, running: &[ModelReading]) -> Vec<ModelReading> {
        let running: BTreeSet<_> = running
            .iter()
            .map(|model| (model.name.as_str(), model.mode.as_deref()))
            .collect();
        let default = BTreeSet::from([DEFAULT_MODE.to_owned()]);
        let mut unloaded = Vec::new();
        for (label, facts) in self.store.models() {
            for mode in self.modes.get(label).unwrap_or(&default) {
                if running.contains(&(label, Some(mode))) {
                    continue;
                }
                let mut model =
                    ModelReading::new(label, ModelState::Reported(ModelStatus::Unloaded));
                model.mode = Some(mode.clone());
                model.facts = facts.clone();
                // Which engine will run it is not known.
                model.facts.is_description_pending = true;
                unloaded.push(model);
            }
        }
        unloaded
    }

    /// Adds the notes on `/metrics`; `is_left_out`: it lacks the counters of a runner.
    fn note_metrics(&self, is_left_out: bool, reading: &mut Reading) {
        let kind = SourceKind::Endpoint(METRICS.path);
        if self.metrics_missing.is_some() {
            reading.notes.push(Absence::RunnerMetricsOff.note());
            return reading.lacks(kind, None, Absence::RunnerMetricsOff);
        }
        if self.has_ambiguous_samples {
            reading.lacks(kind, None, Absence::RunnerSamplesAmbiguous);
        }
        for (applies, note) in [
            (self.has_invalid_lines, INVALID_LINES),
            (
                self.has_ambiguous_samples,
                Absence::RunnerSamplesAmbiguous.note(),
            ),
            (is_left_out, Absence::RunnerLeftOut.note()),
        ] {
            reading.notes.extend(applies.then_some(note));
        }
    }
}

/// Whether llama.cpp runs the model.
fn is_llama_cpp(model: &ModelReading) -> bool {
    model.facts.backend.as_deref() == Some(LLAMA_CPP)
}

/// Whether llama.cpp has loaded the model.
fn is_loaded(model: &ModelReading) -> bool {
    is_llama_cpp(model) && model.state != ModelState::Reported(ModelStatus::Loading)
}

impl Upstream for ModelRunner {
    fn kind(&self) -> ServerKind {
        ServerKind::ModelRunner
    }

    fn detection_endpoint(&self) -> Option<Endpoint> {
        Some(PS)
    }

    fn endpoints(&self) -> Vec<Endpoint> {
        let mut endpoints = vec![VERSION, METRICS];
        endpoints.extend(store::ENDPOINTS);
        if self.servers.reads_any() {
            endpoints.extend([PROPS, identification::MODELS, SLOTS]);
        }
        endpoints.extend(self.reads_records.then_some(REQUESTS));
        endpoints
    }

    fn wants_local_servers(&self) -> bool {
        true
    }

    fn set_local_servers(&mut self, servers: &[LocalServer]) {
        self.servers.set_local(servers);
    }

    fn extra_poll_at(&self) -> Option<Instant> {
        self.servers.extra_poll_at()
    }

    /// Keeps the llama-servers, so that counters continue after a reconnect.
    fn detect(&mut self, exchange: &mut Exchange, _: &mut DetectionAnswers) -> RequestOutcome<()> {
        let ps = exchange.get_optional(PS, &self.url.of(PS), runners);
        if let RequestOutcome::Ok(_) = ps {
            self.store = Store::default();
            self.metrics_missing = None;
            self.has_unrecognized_metrics = false;
            self.follows_log = false;
            (self.used, self.requests_between) = (None, None);
            self.has_invalid_lines = false;
            self.has_ambiguous_samples = false;
            self.version = read_version(exchange, &self.url, VERSION);
            exchange.discard_failures(HEALTH);
        }
        ps.without_document()
    }

    fn poll(&mut self, exchange: &mut Exchange, _: DetectionAnswers, reading: &mut Reading) {
        let runners = exchange.get(PS, &self.url.of(PS), runners);
        let Some(runners) = runners.ok() else {
            return;
        };
        let names = runners
            .iter()
            .filter_map(|runner| runner.model_name.as_deref());
        let names: Vec<&str> = names.collect();
        let timed_out =
            self.store.is_outdated(&names) && self.store.read(exchange, &self.url, &names);
        let mut running = self.running_models(&runners);
        let is_left_out = self.read_counters(&mut running, timed_out, exchange, reading);
        if runners.is_empty()
            && self.has_unrecognized_metrics
            && self.answers_a_list_to_anything(exchange)
        {
            return;
        }
        reading.set_up(ServerKind::ModelRunner, self.version.clone());
        reading.disk_usage = self.store.disk_usage;
        self.remember_modes(&running);
        reading.logs.extend(self.log(&runners, &running));
        let mut models = LimitedModels::default();
        for model in self.unloaded_models(&running) {
            models.push(model, false);
        }
        for model in running {
            models.push(model, true);
        }
        let is_truncated;
        (reading.models, is_truncated) = models.finish();
        reading.is_truncated = is_truncated || self.store.is_truncated;
        self.note_metrics(is_left_out, reading);
    }

    fn read_records(&self, exchange: &mut Exchange, read: &mut RecordsReader) {
        let label = |name: &str| self.store.label(name);
        let records = exchange.get(REQUESTS, &self.url.of(REQUESTS), |answer| {
            answer.stream(|body| read(body, &label))
        });
        if records.not_served() == Some(NotServed::NotFound) {
            // It responds with 404 before the first request.
            let _nothing_to_misread = read(&mut b"[]".as_slice(), &label);
        }
    }
}
