//! llama-swap, a proxy that starts and stops llama-servers.
//!
//! `/running` and `/v1/models` neither load a model nor keep one loaded. Requests through
//! llama-swap to a model do both. So a ready model is read at its own address, if that is
//! reachable. Otherwise only its state is exported, and the tokens of ended requests. The list of
//! ended requests also has their durations and errors, whatever counts the tokens.
//!
//! `/logs/stream/MODEL` is the log of a model's server, over all loads. Reading it loads nothing and
//! keeps nothing loaded (`internal/server/log.go`).

mod activity;
mod instance;
mod listed_request;
mod timestamp;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use serde::Deserialize;

use crate::bounds::lenient::{object, text};
use crate::readings::{ModelReading, ModelState, ModelStatus};
use crate::settings::{BaseUrl, Settings};
use crate::snapshot::{Source, SourceKind};
use crate::upstream::endpoints::{HEALTH, PROPS};
use crate::upstream::http::allowed_addresses::AllowedAddresses;
use crate::upstream::http::endpoint::Endpoint;
use crate::upstream::http::exchange::{Exchange, RequestOutcome};
use crate::upstream::llama_swap::activity::{Activity, ActivityPage};
use crate::upstream::llama_swap::instance::{ModelInstance, TokenSource};
use crate::upstream::model_limit::{LimitedModels, MOST_MODELS};
use crate::upstream::reading::{Reading, ServedLog};
use crate::upstream::rotation::Rotation;
use crate::upstream::server_url::{ServerUrl, percent_encoded};
use crate::upstream::telemetry::{METRICS, SLOTS};
use crate::upstream::version::read_version;
use crate::upstream::{DetectionAnswers, ServerKind, Upstream};

const RUNNING: Endpoint = Endpoint::new("/running", 4 << 20);
const MODELS: Endpoint = Endpoint::new("/v1/models", 16 << 20);
const VERSION: Endpoint = Endpoint::new("/api/version", 64 << 10);
/// The path of a model's log, before its name.
const LOG: &str = "/logs/stream/";
/// Names that mean another log there than that of a model.
const OTHER_LOGS: [&str; 2] = ["proxy", "upstream"];

/// The endpoints of the activity, newest first, with the query for the largest page and the key of
/// the list. Versions before v243 send an array of all kept requests.
const ACTIVITY: [(Endpoint, &str, Option<&str>); 2] = [
    (
        Endpoint::new("/api/metrics/activity", 8 << 20),
        "?limit=999",
        Some("data"),
    ),
    (Endpoint::new("/api/metrics", 8 << 20), "", None),
];

/// The most servers that are polled for the first time in one poll. Limits requests to a list whose
/// addresses change at every poll.
const MOST_FIRST_POLLED: usize = 16;

const GAP: &str = "more requests have ended since the last poll than llama-swap lists: the unlisted ones are not \
     counted";

/// llama-swap.
pub struct LlamaSwap {
    url: ServerUrl,
    version: Option<String>,
    settings: Settings,
    /// The ready models, by name.
    instances: BTreeMap<String, ModelInstance>,
    activity: Activity,
    /// How many of the endpoints in [`ACTIVITY`] are not served.
    missing_activities: usize,
    rotation: Rotation,
}

/// One process of `GET /running`. Its `cmd` may hold secrets and is not read.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct RunningProcess {
    #[serde(deserialize_with = "text")]
    model: Option<String>,
    #[serde(deserialize_with = "text")]
    state: Option<String>,
    #[serde(deserialize_with = "text")]
    proxy: Option<String>,
}

impl RunningProcess {
    fn is_ready(&self) -> bool {
        self.state.as_deref() == Some("ready")
    }

    /// The state of its model, as far as llama-swap reports it.
    fn model_state(&self) -> ModelState {
        match self.state.as_deref() {
            Some("starting") => ModelState::Reported(ModelStatus::Loading),
            Some("stopping" | "stopped" | "shutdown") => {
                ModelState::Reported(ModelStatus::Unloaded)
            }
            // Ready, or in a state of a later version.
            _ => ModelState::Unknown,
        }
    }
}

/// One model of `GET /v1/models`.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct ListedModel {
    #[serde(deserialize_with = "text")]
    id: Option<String>,
    #[serde(deserialize_with = "object")]
    meta: Option<ListedMeta>,
}

/// `meta` of a [`ListedModel`].
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct ListedMeta {
    #[serde(deserialize_with = "object")]
    llamaswap: Option<LlamaSwapMeta>,
}

/// llama-swap's own part of a [`ListedModel`].
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct LlamaSwapMeta {
    /// `model` for a model, another word for an alias.
    #[serde(rename = "type", deserialize_with = "text")]
    kind: Option<String>,
}

impl ListedModel {
    /// Its ID, unless it is an alias.
    fn own_id(self) -> Option<String> {
        let kind = self.meta.and_then(|meta| meta.llamaswap?.kind);
        self.id.filter(|_| kind.is_none_or(|kind| kind == "model"))
    }
}

impl LlamaSwap {
    /// llama-swap at `base`, not polled yet.
    pub fn new(base: &BaseUrl, settings: &Settings) -> LlamaSwap {
        LlamaSwap {
            url: ServerUrl::new(base.root()),
            version: None,
            settings: settings.clone(),
            instances: BTreeMap::new(),
            activity: Activity::default(),
            missing_activities: 0,
            rotation: Rotation::new(settings),
        }
    }

    /// Reads its processes, by model, up to the limit of models.
    fn read_running(&self, exchange: &mut Exchange) -> Option<BTreeMap<String, RunningProcess>> {
        let processes = exchange.get(RUNNING, &self.url.of(RUNNING), |answer| {
            let mut processes = BTreeMap::new();
            answer.for_each_in("running", |process: RunningProcess| {
                if let Some(model) = process.model.clone()
                    && processes.len() < MOST_MODELS
                {
                    processes.entry(model).or_insert(process);
                }
            })?;
            Ok(processes)
        });
        processes.ok()
    }

    /// Reads the names of its models without aliases, up to the limit, those with a process first.
    fn read_names(
        &mut self,
        exchange: &mut Exchange,
        processes: &BTreeMap<String, RunningProcess>,
        reading: &mut Reading,
    ) -> BTreeSet<String> {
        let mut names = LimitedModels::default();
        for name in processes.keys() {
            names.push(name.clone(), true);
        }
        // If this fails, the running ones are still known.
        let listed = exchange.get(MODELS, &self.url.of(MODELS), |answer| {
            answer.for_each_in("data", |model: ListedModel| {
                if let Some(id) = model.own_id().filter(|id| !processes.contains_key(id)) {
                    names.push(id, false);
                }
            })
        });
        let (names, is_truncated) = names.finish();
        reading.is_truncated = is_truncated;
        let names = names.into_iter().collect();
        if listed.ok().is_some() {
            self.activity.retain(&names);
        }
        names
    }

    /// Polls the servers of ready models, in rotation, as long as the poll has time. Returns the
    /// models that were polled.
    fn poll_ready(
        &mut self,
        processes: &BTreeMap<String, RunningProcess>,
        reach: Option<AllowedAddresses>,
        deadline: Instant,
        reading: &mut Reading,
    ) -> BTreeSet<String> {
        let mut ready: Vec<_> = processes
            .iter()
            .filter(|(_, process)| process.is_ready())
            .collect();
        self.instances.retain(|name, instance| {
            let process = processes.get(name).filter(|process| process.is_ready());
            process.is_some_and(|process| instance.is_at(process.proxy.as_deref(), reach))
        });
        self.rotation
            .begin(&mut ready, |(name, _)| name, Instant::now(), deadline);
        let mut first_polled = 0_usize;
        let mut polled = BTreeSet::new();
        for (name, process) in ready {
            let instance = self.instances.entry(name.clone()).or_insert_with(|| {
                ModelInstance::new(name, process.proxy.as_deref(), reach, &self.settings)
            });
            if instance.has_server() {
                let is_first = !instance.is_identified();
                if is_first && first_polled >= MOST_FIRST_POLLED
                    || !self.rotation.may_poll(name, Instant::now())
                {
                    continue;
                }
                first_polled = first_polled.saturating_add(usize::from(is_first));
            }
            let source_before = instance.token_source();
            let model = instance.poll(name, deadline, reading);
            match instance.token_source() {
                source if source == source_before => {}
                Some(TokenSource::Server) => self.activity.counted_by_server(name),
                Some(TokenSource::Activity) => self.activity.counted_by_activity(name),
                None => {}
            }
            reading.add(model);
            polled.insert(name.clone());
        }
        polled
    }

    /// Reads which requests have ended, and adds their tokens to the models whose servers do not
    /// count them.
    fn read_ended_requests(
        &mut self,
        exchange: &mut Exchange,
        names: &BTreeSet<String>,
        reading: &mut Reading,
    ) {
        let is_counted =
            |instance: &ModelInstance| instance.token_source() == Some(TokenSource::Activity);
        // Always read it once: requests that end after that are new for every model.
        if self.settings.no_request_records
            && self.activity.is_read()
            && !self.instances.values().any(is_counted)
        {
            return;
        }
        if let Some(page) = self.read_activity(exchange) {
            let ended = self.activity.add(&page, names);
            if ended.has_gap {
                reading.notes.push(GAP);
            }
            reading.ended_requests = Some(ended);
        }
        for model in &mut reading.models {
            let instance = self.instances.get(&model.name);
            let Some(instance) = instance.filter(|instance| is_counted(instance)) else {
                continue;
            };
            model.token_totals = self.activity.totals(&model.name);
            if let Some(why) = instance.absence() {
                reading.notes.push(why.note());
                let source = Source::missing(SourceKind::ModelServer, why);
                reading.unread.push(source.of_model(Some(&model.name)));
            }
        }
    }

    /// The logs of these models, those that have a process first.
    fn logs(
        &self,
        processes: &BTreeMap<String, RunningProcess>,
        names: &BTreeSet<String>,
    ) -> Vec<ServedLog> {
        if self.settings.no_request_records {
            return Vec::new();
        }
        let others = names.iter().filter(|name| !processes.contains_key(*name));
        let names = processes.keys().chain(others);
        let names = names.filter(|name| !OTHER_LOGS.contains(&name.as_str()));
        let logs = names.map(|name| ServedLog {
            url: self
                .url
                .of_path(&format!("{LOG}{}?no-history", percent_encoded(name))),
            models: vec![(name.clone(), None)],
            repeats_lines: false,
            lacks_errors: true,
            requests_between: None,
        });
        logs.collect()
    }

    fn read_activity(&mut self, exchange: &mut Exchange) -> Option<ActivityPage> {
        while let Some((endpoint, query, key)) = ACTIVITY.get(self.missing_activities) {
            let url = self.url.with_query((*query).to_owned()).of(*endpoint);
            let requests = exchange.get(*endpoint, &url, |answer| {
                let mut page = ActivityPage::default();
                match key {
                    Some(key) => {
                        page.has_failures = true;
                        answer.for_each_in(key, |entry| page.add(entry))?;
                    }
                    None => drop(answer.for_each(|entry| page.add(entry))?),
                }
                Ok(page)
            });
            if requests.not_served().is_none() {
                return requests.ok();
            }
            self.missing_activities = self.missing_activities.saturating_add(1);
        }
        None
    }
}

impl Upstream for LlamaSwap {
    fn kind(&self) -> ServerKind {
        ServerKind::LlamaSwap
    }

    fn detection_endpoint(&self) -> Option<Endpoint> {
        Some(RUNNING)
    }

    fn endpoints(&self) -> Vec<Endpoint> {
        let mut endpoints = vec![VERSION, MODELS];
        let activity = ACTIVITY.get(self.missing_activities);
        endpoints.extend(activity.map(|(endpoint, ..)| *endpoint));
        if self.instances.values().any(ModelInstance::has_server) {
            endpoints.extend([PROPS, METRICS, SLOTS]);
        }
        endpoints
    }

    /// Keeps the instances and the activity, so that counters continue after a reconnect.
    fn detect(&mut self, exchange: &mut Exchange, _: &mut DetectionAnswers) -> RequestOutcome<()> {
        let running = exchange.get_optional(RUNNING, &self.url.of(RUNNING), |answer| {
            answer.for_each_in("running", |_: RunningProcess| {})
        });
        if let RequestOutcome::Ok(()) = running {
            self.version = read_version(exchange, &self.url, VERSION);
            self.missing_activities = 0;
            exchange.discard_failures(HEALTH);
        }
        running
    }

    fn poll(&mut self, exchange: &mut Exchange, _: DetectionAnswers, reading: &mut Reading) {
        let Some(processes) = self.read_running(exchange) else {
            return;
        };
        let reach = exchange.peer().map(AllowedAddresses::of_server_at);
        reading.set_up(ServerKind::LlamaSwap, self.version.clone());
        let names = self.read_names(exchange, &processes, reading);
        let polled = self.poll_ready(&processes, reach, exchange.deadline(), reading);
        self.read_ended_requests(exchange, &names, reading);
        reading.logs = self.logs(&processes, &names);
        for name in names.difference(&polled) {
            let unloaded = ModelState::Reported(ModelStatus::Unloaded);
            let state = processes
                .get(name)
                .map_or(unloaded, RunningProcess::model_state);
            reading.add(ModelReading::new(name, state));
        }
        for model in &mut reading.models {
            model.process.behind_proxy = true;
        }
    }

    fn extra_poll_at(&self) -> Option<Instant> {
        let instances = self.instances.values();
        instances.filter_map(ModelInstance::extra_poll_at).min()
    }
}
