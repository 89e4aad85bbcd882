//! Reading llama-swap, a proxy that starts and stops llama-servers.
//!
//! `/running` and `/v1/models` neither load nor keep alive anything. Whatever
//! goes through it to a model does both, so a ready model is read at its own
//! address, where that can be reached, and otherwise shown by its state and by
//! the tokens of the requests that have ended.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use serde::Deserialize;

use super::answers::{Object, count, object, text};
use super::asker::{Asker, Endpoint, Outcome};
use super::llama_server::{Asked, LlamaServer};
use super::reading::{Ended, ModelReading, Reading, State};
use super::shown::Shown;
use crate::settings::{ApiKeys, BaseUrl, Settings};
use crate::snapshot::{ServerInfo, Status};

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
/// A ring of 1,000 requests.
const ACTIVITY: Endpoint = Endpoint {
    path: "/api/metrics/activity",
    limit: 8 << 20,
};
const VERSION: Endpoint = Endpoint {
    path: "/api/version",
    limit: 64 << 10,
};

/// llama-swap, and what must be remembered of it between two polls.
pub struct LlamaSwap {
    root: String,
    /// Whether its own `localhost` is ours too.
    is_here: bool,
    version: Option<String>,
    settings: Settings,
    servers: BTreeMap<String, Direct>,
    ended: BTreeMap<String, Ended>,
    last_request: f64,
    /// How long one poll may go on asking the models' own servers.
    time: Duration,
}

/// A ready model's own llama-server.
struct Direct {
    proxy: String,
    asker: Asker,
    server: LlamaServer,
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

/// One request of the activity; −1 means unknown.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Request {
    #[serde(deserialize_with = "count")]
    id: Option<f64>,
    #[serde(deserialize_with = "text")]
    model: Option<String>,
    #[serde(deserialize_with = "object")]
    tokens: Option<Tokens>,
}

/// `tokens` of a [`Request`].
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Tokens {
    #[serde(deserialize_with = "count")]
    cache_tokens: Option<f64>,
    #[serde(deserialize_with = "count")]
    input_tokens: Option<f64>,
    #[serde(deserialize_with = "count")]
    output_tokens: Option<f64>,
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
    pub fn detect(asker: &mut Asker, base: &BaseUrl, settings: &Settings) -> Outcome<LlamaSwap> {
        let root = base.root();
        let running = asker.probe(RUNNING, &format!("{root}{}", RUNNING.path), |answer| {
            answer.each_in(RUNNING_LIST, |_: Process| {})
        });
        running.map(|()| {
            let version = asker.probe(VERSION, &format!("{root}{}", VERSION.path), |answer| {
                let Object(version): Object<Version> = answer.json()?;
                Ok(version.version)
            });
            LlamaSwap {
                root,
                is_here: base.is_loopback(),
                version: version.answer().flatten(),
                settings: settings.clone(),
                servers: BTreeMap::new(),
                ended: BTreeMap::new(),
                last_request: 0.0,
                time: settings.interval.max(2 * settings.timeout),
            }
        })
    }

    /// When it is worth a look though no poll is due.
    pub fn next_look(&self) -> Option<Instant> {
        self.servers
            .values()
            .filter_map(|direct| direct.server.next_look())
            .min()
    }

    /// Asks all that may be asked now.
    pub fn read(&mut self, asker: &mut Asker, reading: &mut Reading) {
        let processes = asker.ask(RUNNING, &self.url(RUNNING), |answer| {
            answer.list_in::<Process>(RUNNING_LIST)
        });
        let Some(processes) = processes.answer() else {
            return;
        };
        reading.up = true;
        reading.info = Some(ServerInfo {
            kind: "llama-swap",
            version: self.version.clone(),
        });
        let names = self.names(asker, &processes, reading);
        let ready = |process: &&Process| process.state.as_deref() == Some("ready");
        let is_ready = |name: &String| {
            processes
                .iter()
                .filter(ready)
                .any(|process| process.model.as_ref() == Some(name))
        };
        self.servers.retain(|name, _| is_ready(name));
        let begun = Instant::now();
        let mut out_of_reach = false;
        for name in names {
            let process = processes
                .iter()
                .find(|process| process.model.as_ref() == Some(&name));
            let mut model = match process.map(|process| (process.state.as_deref(), process)) {
                Some((Some("starting"), _)) => told(&name, Status::Loading),
                Some((Some("ready"), process)) => {
                    let own = (begun.elapsed() <= self.time)
                        .then(|| self.read_directly(&name, process, asker.deadline(), reading))
                        .flatten();
                    out_of_reach |= own.is_none();
                    own.unwrap_or_else(|| told(&name, Status::Idle))
                }
                _ => told(&name, Status::Unloaded),
            };
            model.host.behind_proxy = true;
            reading.models.push(model);
        }
        if out_of_reach {
            self.read_activity(asker);
            for model in &mut reading.models {
                if model.state == State::Told(Status::Idle) {
                    model.ended = self.ended.get(&model.name).copied();
                }
            }
            reading.notes.push(
                "a model's own server cannot be reached from here: its tokens are counted when a \
                 request has ended, and whether it is at work is not seen",
            );
        }
    }

    /// The names of its models, those that have a process first; no aliases.
    fn names(
        &self,
        asker: &mut Asker,
        processes: &[Process],
        reading: &mut Reading,
    ) -> BTreeSet<String> {
        let running: BTreeSet<&String> = processes
            .iter()
            .filter_map(|process| process.model.as_ref())
            .collect();
        let mut names = Shown::default();
        for name in &running {
            names.take((*name).clone(), true);
        }
        // Where this fails, those that run are still known.
        asker.ask(MODELS, &self.url(MODELS), |answer| {
            answer.each_in("data", |entry: Entry| {
                if let Some(id) = entry.own_id().filter(|id| !running.contains(id)) {
                    names.take(id, false);
                }
            })
        });
        let (names, left_out) = names.finish();
        reading.left_out = left_out;
        names.into_iter().collect()
    }

    /// Reads a ready model at its own address, without the key: that is the proxy's.
    fn read_directly(
        &mut self,
        name: &str,
        process: &Process,
        deadline: Instant,
        reading: &mut Reading,
    ) -> Option<ModelReading> {
        let proxy = process.proxy.as_deref()?;
        if self
            .servers
            .get(name)
            .is_none_or(|direct| direct.proxy != proxy)
        {
            let base: BaseUrl = proxy.parse().ok()?;
            // `localhost` there is not `localhost` here, unless both are one machine.
            if base.is_loopback() && !self.is_here {
                return None;
            }
            let settings = Settings {
                // No key of a base URL follows to an address that it names.
                api_keys: ApiKeys::default(),
                ..self.settings.clone()
            };
            let asker = Asker::new(&base, &settings).ok()?;
            let server = LlamaServer::new(&base, &settings).called(name);
            self.servers.insert(
                name.to_owned(),
                Direct {
                    proxy: proxy.to_owned(),
                    asker,
                    server,
                },
            );
        }
        let direct = self.servers.get_mut(name)?;
        let mut own = Reading::default();
        direct.asker.begin(deadline);
        direct.asker.set_model(Some(name));
        direct
            .server
            .read(&mut direct.asker, Asked::default(), &mut own);
        direct.asker.finish(&mut own);
        let model = own.models.pop();
        if model.is_some() {
            reading.failures.append(&mut own.failures);
            reading.answered.append(&mut own.answered);
            reading.notes.append(&mut own.notes);
        }
        model
    }

    /// Adds up the tokens of requests that were not seen yet.
    fn read_activity(&mut self, asker: &mut Asker) {
        let url = format!("{}?limit=999", self.url(ACTIVITY));
        let requests = asker.ask(ACTIVITY, &url, |answer| answer.list_in::<Request>("data"));
        let Some(requests) = requests.answer() else {
            return;
        };
        let newest = requests
            .iter()
            .filter_map(|request| request.id)
            .fold(0.0, f64::max);
        if newest < self.last_request {
            // It was started anew, and counts from the beginning.
            self.last_request = 0.0;
            self.ended.clear();
        }
        for request in requests
            .iter()
            .filter(|r| r.id.is_some_and(|id| id > self.last_request))
        {
            let (Some(model), Some(tokens)) = (&request.model, &request.tokens) else {
                continue;
            };
            let ended = self.ended.entry(model.clone()).or_default();
            ended.prompt_tokens += tokens.input_tokens.unwrap_or(0.0);
            ended.cached_tokens += tokens.cache_tokens.unwrap_or(0.0);
            ended.generated_tokens += tokens.output_tokens.unwrap_or(0.0);
        }
        self.last_request = newest;
    }

    fn url(&self, endpoint: Endpoint) -> String {
        format!("{}{}", self.root, endpoint.path)
    }
}

fn told(name: &str, status: Status) -> ModelReading {
    ModelReading {
        name: name.to_owned(),
        state: State::Told(status),
        ..ModelReading::default()
    }
}
