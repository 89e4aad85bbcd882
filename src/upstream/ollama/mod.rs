//! Ollama, which runs each loaded model in a llama-server of its own.
//!
//! `/api/ps` reports the loaded models and `/api/tags` all of them; neither loads a model or keeps
//! one loaded. Everything else comes from the llama-servers, which are found among the processes
//! of this machine (see [`models::children`]). Where they cannot be seen or reached, only states
//! and facts are exported.

mod models;

use std::collections::{BTreeMap, BTreeSet};
use std::mem;
use std::time::{Duration, Instant};

use serde::de::IgnoredAny;

use crate::readings::{LocalServer, ModelFacts, ModelReading, ModelState, ModelStatus};
use crate::settings::{BaseUrl, Settings};
use crate::snapshot::Absence;
use crate::upstream::child_server::{ChildPollError, ChildServer};
use crate::upstream::endpoints::{HEALTH, PROPS};
use crate::upstream::http::endpoint::Endpoint;
use crate::upstream::http::exchange::{Exchange, NotServed, RequestOutcome};
use crate::upstream::http::response::HttpResponse;
use crate::upstream::identification::MODELS;
use crate::upstream::model_limit::{LimitedModels, MOST_MODELS};
use crate::upstream::ollama::models::{ListedModel, children, complete};
use crate::upstream::reading::Reading;
use crate::upstream::rotation::Rotation;
use crate::upstream::server_url::ServerUrl;
use crate::upstream::telemetry::{METRICS, SLOTS};
use crate::upstream::version::read_version;
use crate::upstream::{DetectionAnswers, ServerKind, Upstream};

const PS: Endpoint = Endpoint::new("/api/ps", 4 << 20);
const TAGS: Endpoint = Endpoint::new("/api/tags", 16 << 20);
const VERSION: Endpoint = Endpoint::new("/api/version", 64 << 10);
const ROOT: Endpoint = Endpoint::new("/", 4 << 10);

/// The root page. Other servers imitate the rest of Ollama's API.
const ROOT_PAGE: &str = "Ollama is running";

/// How long the list of models is reused: for each request, Ollama reads all of its manifests.
const LIST_LIFETIME: Duration = Duration::from_secs(60);

/// Ollama.
pub struct Ollama {
    url: ServerUrl,
    settings: Settings,
    version: Option<String>,
    /// The facts of all models, as last listed, by name.
    stored: BTreeMap<String, ModelFacts>,
    /// Whether there are more than the limit.
    is_truncated: bool,
    stored_at: Option<Instant>,
    /// The llama-servers of this machine.
    servers: Vec<LocalServer>,
    /// Those of the loaded models, by the model's name.
    children: BTreeMap<String, Child>,
    rotation: Rotation,
}

/// The llama-server of one model.
struct Child {
    process: LocalServer,
    server: Result<Box<ChildServer>, ChildPollError>,
}

impl Child {
    fn new(name: &str, process: &LocalServer, settings: &Settings) -> Child {
        let server = match &process.address {
            Err(None) => Err(ChildPollError::Now(ModelState::Loading)),
            _ => ChildServer::of_process(name, process, settings)
                .map(Box::new)
                .ok_or(ChildPollError::Unreachable),
        };
        Child {
            process: process.clone(),
            server,
        }
    }
}

impl Ollama {
    /// Ollama at `base`, not polled yet.
    pub fn new(base: &BaseUrl, settings: &Settings) -> Ollama {
        Ollama {
            url: ServerUrl::new(base.root()),
            settings: settings.clone(),
            version: None,
            stored: BTreeMap::new(),
            is_truncated: false,
            stored_at: None,
            servers: Vec::new(),
            children: BTreeMap::new(),
            rotation: Rotation::new(settings),
        }
    }

    /// Reads the loaded models, each once.
    fn read_loaded(&self, exchange: &mut Exchange) -> Option<BTreeMap<String, ModelFacts>> {
        let loaded = exchange.get(PS, &self.url.of(PS), |answer| {
            let mut models = BTreeMap::new();
            answer.for_each_in("models", |model: ListedModel| {
                if let Some((name, facts)) = model.loaded()
                    && models.len() < MOST_MODELS
                {
                    models.insert(name, facts);
                }
            })?;
            Ok(models)
        });
        loaded.ok()
    }

    /// Reads all models, unless the list is recent and has the `loaded` ones.
    fn read_stored(&mut self, exchange: &mut Exchange, loaded: &BTreeMap<String, ModelFacts>) {
        let is_recent = |at: Instant| at.elapsed() < LIST_LIFETIME;
        let are_stored = loaded.keys().all(|name| self.stored.contains_key(name));
        if self.stored_at.is_some_and(is_recent) && are_stored {
            return;
        }
        let stored = exchange.get(TAGS, &self.url.of(TAGS), |answer| {
            let mut models = LimitedModels::default();
            answer.for_each_in("models", |model: ListedModel| {
                if let Some((name, facts)) = model.stored() {
                    let is_loaded = loaded.contains_key(&name);
                    models.push((name, facts), is_loaded);
                }
            })?;
            Ok(models.finish())
        });
        if let Some((stored, is_truncated)) = stored.ok() {
            self.stored = stored.into_iter().collect();
            self.is_truncated = is_truncated;
            self.stored_at = Some(Instant::now());
        }
    }

    /// Keeps the children that still run their model, and adds the new ones.
    fn update_children(&mut self, names: &[String], loaded: &BTreeMap<String, ModelFacts>) {
        let mut before = mem::take(&mut self.children);
        let processes = children(names, loaded, &self.servers);
        for (name, process) in processes {
            let is_same = |child: &Child| child.process == *process;
            let known = before.remove(name).filter(is_same);
            let child = known.unwrap_or_else(|| Child::new(name, process, &self.settings));
            self.children.insert(name.to_owned(), child);
        }
    }

    /// Polls the llama-server of a model, if the poll has time for it. Else only its state is
    /// known, `loaded` or not.
    fn poll_model(
        &mut self,
        name: &str,
        is_loaded: bool,
        deadline: Instant,
        reading: &mut Reading,
    ) -> ModelReading {
        let Some(child) = self.children.get_mut(name) else {
            if is_loaded {
                reading.lacks_server(name, Absence::OllamaServerNotFound);
            }
            return ModelReading::new(name, without_server(is_loaded));
        };
        let read = match &mut child.server {
            Ok(_) if !self.rotation.may_poll(name, Instant::now()) => {
                Err(ChildPollError::Now(ModelState::Unknown))
            }
            Ok(server) => server.poll(name, deadline, reading),
            Err(error) => Err(*error),
        };
        let mut model = read.unwrap_or_else(|error| {
            let state = match error {
                ChildPollError::Now(state) => state,
                ChildPollError::Unreachable | ChildPollError::OtherEngine => {
                    reading.lacks_server(name, Absence::OllamaServerUnreachable);
                    without_server(is_loaded)
                }
            };
            ModelReading::new(name, state)
        });
        model.process.id = Some(child.process.process_id());
        model
    }
}

/// The state of a model whose llama-server is not polled: whether it is running is unknown.
fn without_server(is_loaded: bool) -> ModelState {
    ModelState::Reported(match is_loaded {
        true => ModelStatus::Idle,
        false => ModelStatus::Unloaded,
    })
}

impl Upstream for Ollama {
    fn kind(&self) -> ServerKind {
        ServerKind::Ollama
    }

    fn detection_endpoint(&self) -> Option<Endpoint> {
        Some(PS)
    }

    fn endpoints(&self) -> Vec<Endpoint> {
        let mut endpoints = vec![VERSION, TAGS];
        if self.children.values().any(|child| child.server.is_ok()) {
            endpoints.extend([PROPS, MODELS, METRICS, SLOTS]);
        }
        endpoints
    }

    fn wants_local_servers(&self) -> bool {
        true
    }

    fn set_local_servers(&mut self, servers: &[LocalServer]) {
        self.servers = servers.to_vec();
    }

    /// Keeps the children, so that counters continue after a reconnect.
    fn detect(&mut self, exchange: &mut Exchange, _: &mut DetectionAnswers) -> RequestOutcome<()> {
        let ps = exchange.get_optional(PS, &self.url.of(PS), |answer| {
            answer.for_each_in("models", |_: IgnoredAny| {})
        });
        if !matches!(ps, RequestOutcome::Ok(())) {
            return ps;
        }
        let page = exchange.get_optional(ROOT, &self.url.of(ROOT), HttpResponse::text);
        match page {
            RequestOutcome::Ok(page) if page.contains(ROOT_PAGE) => {
                self.version = read_version(exchange, &self.url, VERSION);
                self.stored_at = None;
                exchange.discard_failures(HEALTH);
                RequestOutcome::Ok(())
            }
            RequestOutcome::Ok(_) => RequestOutcome::NotServed(NotServed::NotFound),
            page => page.without_document(),
        }
    }

    fn poll(&mut self, exchange: &mut Exchange, _: DetectionAnswers, reading: &mut Reading) {
        let Some(loaded) = self.read_loaded(exchange) else {
            return;
        };
        reading.set_up(ServerKind::Ollama, self.version.clone());
        self.read_stored(exchange, &loaded);
        reading.is_truncated = self.is_truncated;
        let names: BTreeSet<_> = loaded.keys().chain(self.stored.keys()).cloned().collect();
        let mut names: Vec<_> = names.into_iter().collect();
        self.update_children(&names, &loaded);
        let deadline = exchange.deadline();
        self.rotation
            .begin(&mut names, |name| name, Instant::now(), deadline);
        for name in &names {
            let of_loaded = loaded.get(name);
            let mut model = self.poll_model(name, of_loaded.is_some(), deadline, reading);
            let told = [of_loaded, self.stored.get(name)];
            complete(&mut model.facts, told.into_iter().flatten());
            model.process.behind_proxy = true;
            reading.add(model);
        }
        reading.explain(Absence::OllamaMetricsOff, Absence::MetricsOff);
    }

    fn extra_poll_at(&self) -> Option<Instant> {
        let servers = self
            .children
            .values()
            .filter_map(|child| child.server.as_ref().ok());
        servers.filter_map(|server| server.extra_poll_at()).min()
    }
}
