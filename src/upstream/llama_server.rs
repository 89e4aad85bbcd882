//! llama-server with one model.
//!
//! A poll reads `/health`, then `/props`, and then the endpoints that neither wake the server nor
//! keep it awake (see [`crate::upstream::idle_guard`]). Only the responses of the same poll decide
//! whether the server is up (see [`crate::upstream::identification`]): earlier responses may be
//! from a server that has died behind its proxy.

use std::time::Instant;

use crate::bounds::BoundedDuration;
use crate::readings::{ModelFacts, ModelReading, ModelState, Stats, Update};
use crate::settings::{BaseUrl, DEFAULT_MODEL, Settings};
use crate::snapshot::{Absence, SourceKind};
use crate::upstream::api::{Health, ModelEntry, Props};
use crate::upstream::endpoints::{HEALTH, PROPS, read_health, read_props};
use crate::upstream::http::endpoint::Endpoint;
use crate::upstream::http::exchange::{Exchange, RequestOutcome};
use crate::upstream::http::response::HttpResponse;
use crate::upstream::identification::{Evidence, MODELS, PassedOn, read_models};
use crate::upstream::idle_guard::IdleGuard;
use crate::upstream::reading::Reading;
use crate::upstream::server_url::ServerUrl;
use crate::upstream::telemetry::{METRICS, SLOTS, TelemetryReader};
use crate::upstream::{DetectionAnswers, ServerKind, Upstream};

const STATS: Endpoint = Endpoint::new("/stats", 1 << 20);

/// A llama-server with one model.
pub struct LlamaServer {
    url: ServerUrl,
    /// Possible URLs of `/stats`: below the base URL as given, and below its `/v1`.
    stats_candidates: Vec<String>,
    telemetry: TelemetryReader,
    /// How long it is idle before it sleeps, if set by the user.
    sleep_idle: Option<BoundedDuration>,
    /// The state since the last connect.
    session: Session,
    /// The model's name, if set by the user.
    given_name: Option<String>,
    /// The last name that the server reported.
    own_name: Option<String>,
}

/// The state of a server while it is up.
#[derive(Default)]
struct Session {
    /// Whether it was identified as llama.cpp.
    is_identified: bool,
    stats_url: Option<String>,
    has_tried_stats: bool,
    /// What a proxy passes on, if that is not everything.
    passed_on: Option<PassedOn>,
    props: Option<Props>,
    entry: Option<ModelEntry>,
}

/// Why a poll ends early.
enum Stop {
    /// The server is loading its model.
    Loading,
    /// A response is late. Further requests would wait too, and occupy more of the server's
    /// threads.
    TimedOut,
    /// The server is a router. The next poll detects it, unless only its list of models can be
    /// read.
    Router { lists_only: bool },
    /// No server responds.
    NoServer,
}

impl LlamaServer {
    /// The server at `base`, not polled yet.
    pub fn new(base: &BaseUrl, settings: &Settings) -> LlamaServer {
        let below_v1 = format!("{}/v1/stats", base.root());
        let mut stats_candidates = vec![below_v1, format!("{}/stats", base.for_requests())];
        stats_candidates.dedup();
        LlamaServer {
            url: ServerUrl::new(base.root()),
            stats_candidates,
            telemetry: TelemetryReader::new(
                IdleGuard::new(settings.sleep_idle),
                settings.llama_server_metrics,
            ),
            sleep_idle: settings.sleep_idle,
            session: Session::default(),
            given_name: settings.model.clone(),
            own_name: None,
        }
    }

    /// The same server, with this name for its model.
    #[must_use]
    pub fn named(mut self, name: &str) -> LlamaServer {
        self.given_name = Some(name.to_owned());
        self
    }

    /// Whether the server does not serve `/metrics`.
    pub fn lacks_metrics(&self) -> bool {
        self.telemetry.lacks_metrics()
    }

    /// Reads in this order: `/health`, `/props`, `/v1/models`, `/metrics` and `/slots`, `/stats`.
    fn read(
        &mut self,
        exchange: &mut Exchange,
        answers: DetectionAnswers,
        evidence: &mut Evidence,
        model: &mut ModelReading,
    ) -> Result<ModelState, Stop> {
        self.read_health(exchange, answers.health, evidence)?;
        let is_same_model = self.read_props(exchange, answers.props, evidence)?;
        self.read_models(exchange, is_same_model, evidence)?;
        if self.read_telemetry(exchange, evidence, model) {
            return Ok(ModelState::Busy);
        }
        model.stats = self.read_stats(exchange);
        evidence.add_llama_cpp(model.stats.is_some());
        Ok(if self.telemetry.idle_guard.is_asleep() {
            ModelState::Asleep(Instant::now())
        } else {
            ModelState::Ready
        })
    }

    fn read_health(
        &self,
        exchange: &mut Exchange,
        answer: Option<RequestOutcome<Health>>,
        evidence: &mut Evidence,
    ) -> Result<(), Stop> {
        let url = self.url.of(HEALTH);
        let health = answer.unwrap_or_else(|| read_health(exchange, &url));
        if matches!(health, RequestOutcome::NotLoaded) {
            return Err(Stop::Loading);
        }
        // ik_llama.cpp responds to /health only after the current prompt: try the other endpoints.
        if health.is_unanswered() && !exchange.is_pending(&url) {
            return Err(Stop::NoServer);
        }
        evidence.add_health(&health);
        Ok(())
    }

    /// Reads `/props`. Returns whether the server still holds the same model, as far as that shows.
    fn read_props(
        &mut self,
        exchange: &mut Exchange,
        answer: Option<RequestOutcome<Props>>,
        evidence: &mut Evidence,
    ) -> Result<bool, Stop> {
        let props = answer.unwrap_or_else(|| read_props(exchange, &self.url));
        match &props {
            RequestOutcome::NotLoaded => return Err(Stop::Loading),
            // It is loading the model again after a sleep, or all of its threads are busy.
            _ if props.timed_out() => return Err(Stop::TimedOut),
            RequestOutcome::Ok(props) if props.is_router() => {
                return Err(Stop::Router { lists_only: false });
            }
            _ => evidence.add_props(&props),
        }
        let Some(props) = props.ok() else {
            return Ok(self.session.is_identified);
        };
        let idle_guard = &mut self.telemetry.idle_guard;
        idle_guard.set_build(props.build());
        let is_asleep = props.is_sleeping == Some(true);
        idle_guard.record_sleep(Instant::now(), is_asleep);
        let props = Props {
            is_sleeping: None,
            ..props
        };
        let is_same = self.session.is_identified && self.session.props.as_ref() == Some(&props);
        self.session.props = Some(props);
        Ok(is_same)
    }

    /// Reads `/v1/models` if its content may be new, or is needed to identify the server.
    fn read_models(
        &mut self,
        exchange: &mut Exchange,
        is_same_model: bool,
        evidence: &mut Evidence,
    ) -> Result<(), Stop> {
        let has_meta = self
            .session
            .entry
            .as_ref()
            .is_some_and(|entry| entry.meta.is_some());
        if is_same_model && has_meta && evidence.is_llama_cpp() {
            return Ok(());
        }
        let models = read_models(exchange, &self.url);
        match models {
            RequestOutcome::NotLoaded => return Err(Stop::Loading),
            _ if models.timed_out() => return Err(Stop::TimedOut),
            // The other responses, to /health too, come from the proxy.
            RequestOutcome::BadGateway if evidence.props_is_bad_gateway() => {
                return Err(Stop::NoServer);
            }
            _ => evidence.add_models(&models),
        }
        let Some(list) = models.ok() else {
            return Ok(());
        };
        if list.is_router && !evidence.has_props() {
            if evidence.is_v1_alone() {
                self.discard_proxys_failures(exchange, evidence);
            }
            return Err(Stop::Router { lists_only: true });
        }
        self.session.entry = list.first;
        Ok(())
    }

    /// Reads `/metrics` and `/slots`. Returns whether a response is late.
    fn read_telemetry(
        &mut self,
        exchange: &mut Exchange,
        evidence: &mut Evidence,
        model: &mut ModelReading,
    ) -> bool {
        let passed_on = evidence.passed_on();
        if self.session.passed_on.is_some() && passed_on.is_none() {
            // The proxy may pass on these endpoints now.
            self.telemetry.reset();
        }
        self.session.passed_on = passed_on;
        let names = self.model_names();
        let timed_out = self.telemetry.read(exchange, &self.url, &names, model);
        let is_absent = !timed_out
            && matches!(model.counters, Update::Absent)
            && matches!(model.slots, Update::Absent);
        // If the proxy passes on these, it passes on /props too, which then fails at the server.
        if passed_on == Some(PassedOn::V1) || passed_on.is_some() && is_absent {
            self.discard_proxys_failures(exchange, evidence);
        }
        evidence.add_llama_cpp(
            matches!(model.counters, Update::New(_))
                || matches!(&model.slots, Update::New(read) if !read.slots.is_empty()),
        );
        timed_out
    }

    /// Discards the failures of this poll that are responses of a proxy, not of the server.
    fn discard_proxys_failures(&mut self, exchange: &mut Exchange, evidence: &Evidence) {
        exchange.discard_failures(HEALTH);
        exchange.discard_failures_where(PROPS, |reason| evidence.may_be_proxys(reason));
        self.telemetry
            .not_passed_on(exchange, |reason| evidence.may_be_proxys(reason));
    }

    fn read_stats(&mut self, exchange: &mut Exchange) -> Option<Stats> {
        let parse = HttpResponse::recognized::<Stats>;
        if let Some(url) = &self.session.stats_url {
            let stats = exchange.get(STATS, url, parse);
            if stats.not_served().is_some() {
                self.session.stats_url = None;
            }
            return stats.ok();
        }
        // Few servers have it, so it is requested only once after each connect.
        if self.session.has_tried_stats {
            return None;
        }
        self.session.has_tried_stats = true;
        self.stats_candidates.iter().find_map(|url| {
            let stats = exchange.get_optional(STATS, url, parse).ok()?;
            self.session.stats_url = Some(url.clone());
            Some(stats)
        })
    }

    /// The names that the server may use for its model in the labels of `/metrics`.
    fn model_names(&self) -> Vec<String> {
        let props = self.session.props.as_ref();
        let path = props.and_then(|props| props.model_path.clone());
        let file = path
            .as_ref()
            .and_then(|path| path.rsplit(['/', '\\']).next());
        let file = file.map(str::to_owned);
        [
            self.given_name.clone(),
            self.session
                .entry
                .as_ref()
                .and_then(|entry| entry.id.clone()),
            props.and_then(|props| props.model_alias.clone()),
            file,
            path,
        ]
        .into_iter()
        .flatten()
        .collect()
    }

    /// Finds how the server calls its model; gives whether the name is known, by the user or by
    /// an answer since the last connect.
    fn find_name(&mut self, model: &ModelReading) -> bool {
        let entry = self
            .session
            .entry
            .as_ref()
            .and_then(|entry| entry.id.clone());
        let alias = || self.session.props.as_ref()?.model_alias.clone();
        let stats = || model.stats.as_ref()?.model()?.name.clone();
        let found = entry.or_else(alias).or_else(stats);
        let is_named = found.is_some() || self.given_name.is_some();
        self.own_name = found.or(self.own_name.take());
        is_named
    }

    fn disconnect(&mut self) {
        self.session = Session::default();
        self.telemetry.reset();
    }
}

impl Upstream for LlamaServer {
    fn kind(&self) -> ServerKind {
        ServerKind::LlamaServer
    }

    fn detection_endpoint(&self) -> Option<Endpoint> {
        None
    }

    fn endpoints(&self) -> Vec<Endpoint> {
        let mut endpoints = vec![HEALTH, PROPS, MODELS, METRICS, SLOTS];
        endpoints.extend(self.session.stats_url.as_ref().map(|_| STATS));
        endpoints
    }

    /// A server of no other kind is polled as a llama-server, which then identifies it.
    fn detect(&mut self, _: &mut Exchange, _: &mut DetectionAnswers) -> RequestOutcome<()> {
        RequestOutcome::Ok(())
    }

    fn poll(&mut self, exchange: &mut Exchange, answers: DetectionAnswers, reading: &mut Reading) {
        let mut model = ModelReading::default();
        let mut evidence = Evidence::default();
        let was_asleep = self.telemetry.idle_guard.is_asleep();
        let result = self.read(exchange, answers, &mut evidence, &mut model);
        model.state = match result {
            Err(Stop::Loading) => ModelState::Loading,
            Err(Stop::NoServer) => return self.disconnect(),
            Err(Stop::Router { lists_only }) => {
                reading.set_up(ServerKind::Router, None);
                reading.is_version_pending = !lists_only;
                if lists_only {
                    reading.lacks(SourceKind::ModelServer, None, Absence::RouterListsOnly);
                    reading.notes.push(Absence::RouterListsOnly.note());
                }
                return self.disconnect();
            }
            _ if !evidence.is_enough() => {
                reading.product = evidence.product();
                return self.disconnect();
            }
            Err(Stop::TimedOut) => {
                self.telemetry.skip(&mut model);
                if was_asleep {
                    ModelState::Waking
                } else {
                    ModelState::Busy
                }
            }
            Ok(state) => {
                self.session.is_identified = true;
                state
            }
        };
        reading.up = true;
        if model.state == ModelState::Loading {
            self.disconnect();
        }
        if model.state == ModelState::Loading
            || self.session.is_identified
            || self.session.props.is_some()
            || self.session.entry.is_some()
        {
            let version = self
                .session
                .props
                .as_ref()
                .and_then(|props| props.build_info.clone());
            reading.is_version_pending = version.is_none() && !self.session.is_identified;
            reading.set_up(ServerKind::LlamaServer, version);
        }
        let is_named = self.find_name(&model) || self.session.is_identified;
        let name = self.given_name.as_ref().or(self.own_name.as_ref());
        model.name = name.cloned().unwrap_or_default();
        if is_named && model.name.is_empty() {
            DEFAULT_MODEL.clone_into(&mut model.name);
        }
        model.facts = facts(self.session.props.as_ref(), self.session.entry.as_ref());
        let is_rest_missing = self.telemetry.lacks_metrics() && self.telemetry.lacks_slots();
        let passed_on = self.session.passed_on.filter(|_| is_rest_missing);
        for (kind, why) in self.telemetry.unread(&model) {
            reading.lacks(kind, None, why);
        }
        if let Some(why) = passed_on.map(PassedOn::absence) {
            reading.notes.push(why.note());
            for endpoint in [PROPS, METRICS, SLOTS] {
                reading.lacks(SourceKind::Endpoint(endpoint.path), None, why);
            }
        }
        reading
            .notes
            .extend(self.telemetry.notes(model.stats.is_some()));
        if is_named {
            reading.models.push(model);
        } else {
            reading.unnamed = Some(model);
        }
    }

    fn extra_poll_at(&self) -> Option<Instant> {
        self.telemetry.idle_guard.extra_poll_at()
    }

    fn set_idle_timeout(&mut self, timeout: BoundedDuration) {
        self.telemetry.idle_guard.set_timeout(timeout);
    }

    fn requests_logged(&mut self, _: &str) {
        self.telemetry.idle_guard.record_logged_requests();
    }

    fn replaced(&mut self) {
        self.disconnect();
        self.own_name = None;
        self.telemetry.idle_guard = IdleGuard::new(self.sleep_idle);
    }
}

/// The facts of a model in `/props` and its entry in `/v1/models`.
pub fn facts(props: Option<&Props>, entry: Option<&ModelEntry>) -> ModelFacts {
    let meta = entry.and_then(|entry| entry.meta.as_ref());
    let settings = props.and_then(|props| props.default_generation_settings.as_ref());
    let file_type = props.and_then(|props| props.model_ftype.clone());
    let unless_zero = |count: Option<f64>| count.filter(|count| *count > 0.0);
    ModelFacts {
        slots: unless_zero(props.and_then(|props| props.total_slots)),
        max_context_size: unless_zero(settings.and_then(|settings| settings.n_ctx)),
        training_context: meta.and_then(|meta| meta.n_ctx_train),
        size: meta.and_then(|meta| meta.size),
        parameters: meta.and_then(|meta| meta.n_params),
        quantization: file_type.or_else(|| meta.and_then(|meta| meta.ftype.clone())),
        path: props.and_then(|props| props.model_path.clone()),
        ..ModelFacts::default()
    }
}
