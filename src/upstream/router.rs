//! llama-server in router mode: many models, each with its own server.
//!
//! `/models` reports the state of every model and affects none. A model that is loaded and awake is
//! read through the router, always with `autoload=false`, so that the request cannot load a model.
//! A sleeping model is not read.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use crate::bounds::BoundedDuration;
use crate::readings::{ModelReading, ModelState, ModelStatus, ProcessHints, Update};
use crate::settings::{BaseUrl, Settings};
use crate::upstream::api::{ModelEntry, Props, RouterStatus};
use crate::upstream::endpoints::{PROPS, read_props};
use crate::upstream::http::endpoint::Endpoint;
use crate::upstream::http::exchange::{Exchange, NotServed, RequestOutcome};
use crate::upstream::idle_guard::IdleGuard;
use crate::upstream::llama_server::facts;
use crate::upstream::model_limit::LimitedModels;
use crate::upstream::reading::Reading;
use crate::upstream::rotation::Rotation;
use crate::upstream::server_url::{ServerUrl, percent_encoded};
use crate::upstream::telemetry::{METRICS, SLOTS, TelemetryReader};
use crate::upstream::{DetectionAnswers, ServerKind, Upstream};

/// A router may list thousands of models, with the command line of each.
const MODELS: Endpoint = Endpoint::new("/models", 32 << 20);

/// A router, and the servers of its models.
pub struct Router {
    url: ServerUrl,
    version: Option<String>,
    /// How long a model is idle before it sleeps, if set by the user.
    sleep_idle: Option<BoundedDuration>,
    /// Whether the families of `/metrics` are kept as text.
    keeps_text: bool,
    children: BTreeMap<String, RouterChild>,
    rotation: Rotation,
}

/// The server of one loaded model.
struct RouterChild {
    url: ServerUrl,
    telemetry: TelemetryReader,
    props: Option<Props>,
}

impl RouterStatus {
    /// How long the child is idle before it sleeps, as its command line says.
    fn sleep_idle(&self) -> Option<BoundedDuration> {
        let mut flag = self
            .args
            .iter()
            .skip_while(|arg| *arg != "--sleep-idle-seconds");
        let seconds = flag.nth(1)?.parse().ok();
        seconds
            .filter(|seconds| *seconds > 0)
            .map(BoundedDuration::from_secs)
    }

    fn status(&self) -> Option<ModelStatus> {
        match self.value.as_deref()? {
            _ if self.failed == Some(true) => Some(ModelStatus::Failed),
            // Downloaded, and not loaded since.
            "unloaded" | "downloaded" => Some(ModelStatus::Unloaded),
            "loading" => Some(ModelStatus::Loading),
            "sleeping" => Some(ModelStatus::Sleeping),
            "downloading" => Some(ModelStatus::Downloading),
            _ => None,
        }
    }

    /// Whether the model's server is running and awake.
    pub fn is_loaded(&self) -> bool {
        self.value.as_deref() == Some("loaded")
    }

    /// Whether the model's server is running, possibly asleep.
    fn has_child(&self) -> bool {
        self.is_loaded() || self.value.as_deref() == Some("sleeping")
    }
}

impl Router {
    /// The router at `base`, not polled yet.
    pub fn new(base: &BaseUrl, settings: &Settings) -> Router {
        Router {
            url: ServerUrl::new(base.root()),
            version: None,
            sleep_idle: settings.sleep_idle,
            keeps_text: settings.llama_server_metrics,
            children: BTreeMap::new(),
            rotation: Rotation::new(settings),
        }
    }

    /// The listed models, each once, and whether there are more. `None` if no entry is a router's:
    /// a llama-server with one model may have replaced the router.
    fn list(&self, exchange: &mut Exchange) -> Option<(Vec<ModelEntry>, bool)> {
        let models = exchange.get(MODELS, &self.url.of(MODELS), |answer| {
            let mut models = LimitedModels::default();
            answer.for_each_in("data", |entry: ModelEntry| {
                let status = entry.status.as_ref();
                let is_loaded = status.is_some_and(|status| {
                    status.has_child() || status.value.as_deref() == Some("loading")
                });
                models.push(entry, is_loaded);
            })?;
            Ok(models.finish())
        });
        let (mut models, is_truncated) = models.ok()?;
        if !models.is_empty() && models.iter().all(|entry| entry.status.is_none()) {
            return None;
        }
        // If a model is listed twice, the loaded one counts, else the first.
        let mut listed = BTreeSet::new();
        models.retain(|entry| listed.insert(entry.id.clone()));
        Some((models, is_truncated))
    }

    /// A model that is not loaded, or asleep: only the router's list is read.
    fn listed_model(
        &mut self,
        id: &str,
        status: &RouterStatus,
        entry: &ModelEntry,
    ) -> ModelReading {
        let status = status.status();
        let mut model = new_model(id, entry);
        model.state = status.map_or(ModelState::Unknown, ModelState::Reported);
        if status == Some(ModelStatus::Sleeping)
            && let Some(child) = self.children.get_mut(id)
        {
            let now = Instant::now();
            child.telemetry.idle_guard.record_sleep(now, true);
            model.state = ModelState::Asleep(now);
            model.facts = facts(child.props.as_ref(), Some(entry));
            child.telemetry.skip(&mut model);
            model.slots = Update::Absent;
        }
        model
    }

    /// A loaded model, read through the router if `may_poll`.
    fn loaded_model(
        &mut self,
        exchange: &mut Exchange,
        (id, status, entry): (&str, &RouterStatus, &ModelEntry),
        may_poll: bool,
    ) -> ModelReading {
        let child = self.children.entry(id.to_owned()).or_insert_with(|| {
            let query = format!("?model={}&autoload=false", percent_encoded(id));
            let timeout = status.sleep_idle().or(self.sleep_idle);
            RouterChild {
                url: self.url.with_query(query),
                telemetry: TelemetryReader::new(IdleGuard::new(timeout), self.keeps_text),
                props: None,
            }
        });
        let telemetry = &mut child.telemetry;
        telemetry.idle_guard.record_sleep(Instant::now(), false);
        let mut timed_out = !may_poll;
        if child.props.is_none() && may_poll {
            let props = read_props(exchange, &child.url);
            timed_out = props.timed_out();
            child.props = props.ok();
            let build = child.props.as_ref().and_then(Props::build);
            telemetry.idle_guard.set_build(build);
        }
        let mut model = new_model(id, entry);
        if timed_out {
            telemetry.skip(&mut model);
        } else {
            timed_out = telemetry.read(exchange, &child.url, &[id.to_owned()], &mut model);
        }
        model.state = match timed_out {
            // It was not read in this poll.
            true if !may_poll || exchange.is_out_of_time() => ModelState::Unknown,
            true => ModelState::Busy,
            false => ModelState::Ready,
        };
        model.facts = facts(child.props.as_ref(), Some(entry));
        model
    }
}

impl Upstream for Router {
    fn kind(&self) -> ServerKind {
        ServerKind::Router
    }

    fn detection_endpoint(&self) -> Option<Endpoint> {
        Some(PROPS)
    }

    fn endpoints(&self) -> Vec<Endpoint> {
        vec![MODELS, METRICS, SLOTS]
    }

    fn detect(
        &mut self,
        exchange: &mut Exchange,
        answers: &mut DetectionAnswers,
    ) -> RequestOutcome<()> {
        let props = answers.props.insert(read_props(exchange, &self.url));
        match props {
            RequestOutcome::Ok(props) if props.is_router() => {
                self.version.clone_from(&props.build_info);
                self.children.clear();
                RequestOutcome::Ok(())
            }
            RequestOutcome::Ok(_) => RequestOutcome::NotServed(NotServed::NotFound),
            other => other.without_document(),
        }
    }

    fn poll(&mut self, exchange: &mut Exchange, _: DetectionAnswers, reading: &mut Reading) {
        let Some((models, is_truncated)) = self.list(exchange) else {
            return;
        };
        reading.set_up(ServerKind::Router, self.version.clone());
        reading.is_truncated = is_truncated;
        let mut loaded = Vec::new();
        let mut with_child = BTreeSet::new();
        for entry in &models {
            let (Some(id), Some(status)) = (entry.id.as_deref(), &entry.status) else {
                continue;
            };
            if status.has_child() {
                with_child.insert(id);
            }
            if status.is_loaded() {
                loaded.push((id, status, entry));
            } else {
                reading.models.push(self.listed_model(id, status, entry));
            }
        }
        self.children
            .retain(|id, _| with_child.contains(id.as_str()));
        let (now, deadline) = (Instant::now(), exchange.deadline());
        self.rotation
            .begin(&mut loaded, |(id, ..)| id, now, deadline);
        for model in loaded {
            let (id, ..) = model;
            let may_poll = self.rotation.may_poll(id, Instant::now());
            exchange.set_model(Some(id));
            let model = self.loaded_model(exchange, model, may_poll);
            let child = self.children.get(id);
            for (kind, why) in child.iter().flat_map(|of| of.telemetry.unread(&model)) {
                reading.lacks(kind, Some(id), why);
            }
            reading.add(model);
        }
        exchange.set_model(None);
    }

    fn requests_logged(&mut self, model: &str) {
        if let Some(child) = self.children.get_mut(model) {
            child.telemetry.idle_guard.record_logged_requests();
        }
    }

    fn extra_poll_at(&self) -> Option<Instant> {
        self.children
            .values()
            .filter_map(|child| child.telemetry.idle_guard.extra_poll_at())
            .min()
    }
}

/// A model with only its process hints: the command line of its own server. The port of the base
/// URL is the router's.
fn new_model(id: &str, entry: &ModelEntry) -> ModelReading {
    let mut model = ModelReading::new(id, ModelState::Unknown);
    model.process = ProcessHints {
        behind_proxy: true,
        arguments: entry.status.as_ref().map(|status| status.args.clone()),
        ..ProcessHints::default()
    };
    model
}
