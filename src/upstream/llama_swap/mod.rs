//! Reading llama-swap, a proxy that starts and stops llama-servers.
//!
//! `/running` and `/v1/models` neither load nor keep alive anything. Whatever
//! goes through it to a model does both, so a ready model is read at its own
//! address, where that can be reached, and otherwise shown by its state and by
//! the tokens of the requests that have ended.

mod activity;
mod life;
mod timestamp;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use serde::Deserialize;

use crate::bounds::lenient::{Object, object, text};
use crate::readings::{ModelReading, ModelStatus};
use crate::settings::{BaseUrl, Settings};
use crate::snapshot::ServerInfo;
use crate::upstream::http::allowed_addresses::AllowedAddresses;
use crate::upstream::http::exchange::{Endpoint, Exchange, RequestOutcome};
use crate::upstream::llama_swap::activity::{Activity, Page};
use crate::upstream::llama_swap::life::{Access, Life, TokenSource, told, unread};
use crate::upstream::model_limit::{LimitedModels, MOST_MODELS};
use crate::upstream::reading::Reading;
use crate::upstream::rotation::Rotation;

const RUNNING: Endpoint = Endpoint {
    path: "/running",
    limit: 4 << 20,
};
const MODELS: Endpoint = Endpoint {
    path: "/v1/models",
    limit: 16 << 20,
};
/// The key of the list that it answers at [`RUNNING`].
const RUNNING_LIST: &str = "running";
/// A page of it has at most 999 requests.
const ACTIVITY: Endpoint = Endpoint {
    path: "/api/metrics/activity",
    limit: 8 << 20,
};
/// Where the activity is in versions before v236: an array of all the requests that were kept.
const OLD_ACTIVITY: Endpoint = Endpoint {
    path: "/api/metrics",
    limit: 8 << 20,
};
const VERSION: Endpoint = Endpoint {
    path: "/api/version",
    limit: 64 << 10,
};

/// The most servers that are asked in one poll for the first time, so that a list of ever-new
/// addresses has few of them asked.
const MOST_FIRST_ASKED: usize = 16;

const OUT_OF_REACH: &str = "a model's own server cannot be reached from here: its tokens are \
                            counted when a request has ended, and whether it is at work is not seen";
const OTHER_ENGINE: &str = "a model's own server is no llama-server: its tokens are counted when a \
                            request has ended, and whether it is at work is not seen";
const GAP: &str = "more requests have ended since llama-swap's list of them was read last than it \
                   holds: the tokens of the others are not counted";

/// llama-swap, and what must be remembered of it between two polls.
pub struct LlamaSwap {
    root: String,
    version: Option<String>,
    settings: Settings,
    /// The lives of ready models, by name.
    lives: BTreeMap<String, Life>,
    activity: Activity,
    activity_at: ActivityAt,
    rotation: Rotation,
}

/// Where the activity is served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ActivityAt {
    Unknown,
    New,
    Old,
    Nowhere,
}

/// One process of `GET /running`; its `cmd` may hold secrets and is not even read.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Process {
    #[serde(deserialize_with = "text")]
    model: Option<String>,
    #[serde(deserialize_with = "text")]
    state: Option<String>,
    #[serde(deserialize_with = "text")]
    proxy: Option<String>,
}

impl Process {
    fn is_ready(&self) -> bool {
        self.state.as_deref() == Some("ready")
    }

    /// What is told of its model by its state alone.
    fn told(&self, name: &str) -> ModelReading {
        match self.state.as_deref() {
            Some("ready") => unread(name),
            Some("starting") => told(name, ModelStatus::Loading),
            Some("stopping" | "stopped" | "shutdown") => told(name, ModelStatus::Unloaded),
            // Of a later version: neither loaded nor unloaded is known.
            _ => unread(name),
        }
    }
}

/// One model of `GET /v1/models`.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Entry {
    #[serde(deserialize_with = "text")]
    id: Option<String>,
    #[serde(deserialize_with = "object")]
    meta: Option<Meta>,
}

/// `meta` of an [`Entry`].
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Meta {
    #[serde(deserialize_with = "object")]
    llamaswap: Option<SwapMeta>,
}

/// What llama-swap says of an [`Entry`]: only `model` is a server of its own, and no alias.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct SwapMeta {
    #[serde(rename = "type", deserialize_with = "text")]
    kind: Option<String>,
}

impl Entry {
    /// Its ID, if it is a model of its own.
    fn own_id(self) -> Option<String> {
        let kind = self.meta.and_then(|meta| meta.llamaswap?.kind);
        self.id.filter(|_| kind.is_none_or(|kind| kind == "model"))
    }
}

/// `GET /api/version`.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Version {
    #[serde(deserialize_with = "text")]
    version: Option<String>,
}

impl LlamaSwap {
    /// Looks whether llama-swap answers at `base`.
    pub fn detect(
        exchange: &mut Exchange,
        base: &BaseUrl,
        settings: &Settings,
    ) -> RequestOutcome<LlamaSwap> {
        let root = base.root();
        let running =
            exchange.get_optional(RUNNING, &format!("{root}{}", RUNNING.path), |answer| {
                answer.each_in(RUNNING_LIST, |_: Process| {})
            });
        running.map(|()| {
            let version =
                exchange.get_optional(VERSION, &format!("{root}{}", VERSION.path), |answer| {
                    let Object(version): Object<Version> = answer.json()?;
                    Ok(version.version)
                });
            LlamaSwap {
                root,
                version: version.ok().flatten(),
                settings: settings.clone(),
                lives: BTreeMap::new(),
                activity: Activity::default(),
                activity_at: ActivityAt::Unknown,
                rotation: Rotation::new(settings),
            }
        })
    }

    /// Goes on where `before`, which was at the same address, was left.
    pub fn go_on_from(&mut self, before: LlamaSwap) {
        self.lives = before.lives;
        self.activity = before.activity;
        self.rotation = before.rotation;
    }

    /// When it is worth a look though no poll is due.
    pub fn next_look(&self) -> Option<Instant> {
        self.lives.values().filter_map(Life::next_look).min()
    }

    /// Asks all that may be asked now.
    pub fn read(&mut self, exchange: &mut Exchange, reading: &mut Reading) {
        let Some(processes) = self.processes(exchange) else {
            return;
        };
        let reach = exchange.peer().map(AllowedAddresses::of_server_at);
        reading.up = true;
        reading.info = Some(ServerInfo {
            kind: "llama-swap",
            version: self.version.clone(),
        });
        let names = self.names(exchange, &processes, reading);
        let read = self.read_ready(&processes, reach, exchange.deadline(), reading);
        self.count_tokens(exchange, &names, reading);
        for name in names.difference(&read) {
            let process = processes.get(name);
            let model = process.map_or_else(
                || told(name, ModelStatus::Unloaded),
                |process| process.told(name),
            );
            reading.add(model);
        }
        for model in &mut reading.models {
            model.process.behind_proxy = true;
        }
    }

    /// Its processes by model, as many as are shown.
    fn processes(&self, exchange: &mut Exchange) -> Option<BTreeMap<String, Process>> {
        let processes = exchange.get(RUNNING, &self.url(RUNNING), |answer| {
            let mut processes = BTreeMap::new();
            answer.each_in(RUNNING_LIST, |process: Process| {
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

    /// The names of its models, no aliases, as many as are shown: those that have a process first.
    fn names(
        &mut self,
        exchange: &mut Exchange,
        processes: &BTreeMap<String, Process>,
        reading: &mut Reading,
    ) -> BTreeSet<String> {
        let mut names = LimitedModels::default();
        for name in processes.keys() {
            names.take(name.clone(), true);
        }
        // Where this fails, those that run are still known.
        let listed = exchange.get(MODELS, &self.url(MODELS), |answer| {
            answer.each_in("data", |entry: Entry| {
                if let Some(id) = entry.own_id().filter(|id| !processes.contains_key(id)) {
                    names.take(id, false);
                }
            })
        });
        let (names, left_out) = names.finish();
        reading.left_out = left_out;
        let names = names.into_iter().collect();
        if listed.ok().is_some() {
            self.activity.forget_all_but(&names);
        }
        names
    }

    /// Reads the ready models at their own addresses, each in its turn, for as long as one poll
    /// may take; gives which of them were read.
    fn read_ready(
        &mut self,
        processes: &BTreeMap<String, Process>,
        reach: Option<AllowedAddresses>,
        deadline: Instant,
        reading: &mut Reading,
    ) -> BTreeSet<String> {
        self.lives.retain(|name, life| {
            let process = processes.get(name).filter(|process| process.is_ready());
            process.is_some_and(|process| life.is_at(process.proxy.as_deref(), reach))
        });
        let mut ready: Vec<_> = processes
            .iter()
            .filter(|(_, process)| process.is_ready())
            .collect();
        self.rotation
            .begin(&mut ready, |(name, _)| name, Instant::now(), deadline);
        let mut first_asked = 0;
        let mut read = BTreeSet::new();
        for (name, process) in ready {
            let life = self.lives.entry(name.clone()).or_insert_with(|| {
                Life::new(name, process.proxy.as_deref(), reach, &self.settings)
            });
            if life.is_asked() {
                let is_first = !life.is_known();
                if is_first && first_asked >= MOST_FIRST_ASKED
                    || !self.rotation.may_ask(name, Instant::now())
                {
                    continue;
                }
                first_asked = first_asked.saturating_add(usize::from(is_first));
            }
            let before = life.token_source();
            let model = life.read(name, deadline, reading);
            match life.token_source() {
                source if source == before => {}
                Some(TokenSource::Server) => self.activity.told_elsewhere(name),
                Some(TokenSource::Activity) => self.activity.told_here(name),
                None => {}
            }
            reading.add(model);
            read.insert(name.clone());
        }
        read
    }

    /// Counts the tokens of ended requests for the models of which nothing else tells them.
    fn count_tokens(
        &mut self,
        exchange: &mut Exchange,
        names: &BTreeSet<String>,
        reading: &mut Reading,
    ) {
        let is_counted = |life: &Life| life.token_source() == Some(TokenSource::Activity);
        // Asked once in any case: what ends after that is new, whoever needs it first.
        if self.activity.is_read() && !self.lives.values().any(is_counted) {
            return;
        }
        if let Some(page) = self.ask_activity(exchange)
            && self.activity.take(&page, names)
        {
            reading.notes.push(GAP);
        }
        for model in &mut reading.models {
            let life = self.lives.get(&model.name);
            let Some(life) = life.filter(|life| is_counted(life)) else {
                continue;
            };
            model.token_totals = self.activity.of(&model.name);
            match life.access() {
                Access::OutOfReach => reading.notes.push(OUT_OF_REACH),
                Access::OtherEngine => reading.notes.push(OTHER_ENGINE),
                // Its own notes say what it does not tell.
                Access::Server(_) => {}
            }
        }
        reading.notes.sort_unstable();
        reading.notes.dedup();
    }

    fn ask_activity(&mut self, exchange: &mut Exchange) -> Option<Page> {
        if matches!(self.activity_at, ActivityAt::Unknown | ActivityAt::New) {
            let url = format!("{}?limit=999", self.url(ACTIVITY));
            let requests = exchange.get(ACTIVITY, &url, |answer| {
                let mut page = Page::default();
                answer.each_in("data", |entry| page.add(entry))?;
                Ok(page)
            });
            if requests.not_served().is_none() {
                return self.answered_at(ActivityAt::New, requests);
            }
            self.activity_at = ActivityAt::Old;
        }
        if self.activity_at == ActivityAt::Old {
            let requests = exchange.get(OLD_ACTIVITY, &self.url(OLD_ACTIVITY), |answer| {
                let mut page = Page::default();
                answer.each(|entry| page.add(entry))?;
                Ok(page)
            });
            if requests.not_served().is_none() {
                return self.answered_at(ActivityAt::Old, requests);
            }
            self.activity_at = ActivityAt::Nowhere;
        }
        None
    }

    fn answered_at(&mut self, place: ActivityAt, requests: RequestOutcome<Page>) -> Option<Page> {
        let page = requests.ok()?;
        self.activity_at = place;
        Some(page)
    }

    fn url(&self, endpoint: Endpoint) -> String {
        format!("{}{}", self.root, endpoint.path)
    }
}
