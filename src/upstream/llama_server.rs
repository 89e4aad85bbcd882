//! Reading a llama-server that holds one model.
//!
//! One [`LlamaServer::read`] is one poll: `/health` first, then `/props`, and
//! then only what may be asked without doing harm (see [`crate::upstream::idle_guard`]).
//! Whether the server is up is judged by the answers of that poll alone (see
//! [`crate::upstream::identification`]): what is remembered may be of a server that is dead behind
//! its proxy.

use std::time::Instant;

use crate::bounds::BoundedDuration;
use crate::bounds::lenient::Object;
use crate::readings::{ModelFacts, ModelReading, ModelState, Stats, Update};
use crate::settings::{BaseUrl, DEFAULT_MODEL, Settings};
use crate::snapshot::{Reason, ServerInfo};
use crate::upstream::api::{Health, ModelEntry, Props};
use crate::upstream::http::exchange::{Endpoint, Exchange, RequestOutcome, recognized};
use crate::upstream::identification::{Evidence, Product, ask_models};
use crate::upstream::idle_guard::IdleGuard;
use crate::upstream::reading::Reading;
use crate::upstream::telemetry::{Read, ServerUrl, TelemetryReader};

/// `GET /health`.
pub const HEALTH: Endpoint = Endpoint {
    path: "/health",
    limit: 64 << 10,
};
/// `GET /props`. The chat template in it can be tens of KB.
pub const PROPS: Endpoint = Endpoint {
    path: "/props",
    limit: 4 << 20,
};
const STATS: Endpoint = Endpoint {
    path: "/stats",
    limit: 1 << 20,
};

/// A llama-server, and what must be remembered of it between two polls.
pub struct LlamaServer {
    place: ServerUrl,
    /// Where `/stats` may be: below the URL as given, and below its `/v1`.
    stats_candidates: Vec<String>,
    stats_url: Option<String>,
    work: TelemetryReader,
    connected: bool,
    asked_stats: bool,
    /// What to say where little but `/v1` is passed on to it.
    only_passed_on: Option<&'static str>,
    props: Option<Props>,
    entry: Option<ModelEntry>,
    /// The name that the user gave.
    named: Option<String>,
    /// The name that the server gave last.
    said: Option<String>,
}

/// Said where a proxy passes on nothing but `/v1`.
const ONLY_V1: &str = "neither /health nor /props is passed on to the server, only /v1/models is: have the proxy \
     pass on /health, /props, /metrics and /slots to see more";
const ONLY_V1_AND_HEALTH: &str = "/props is not passed on to the server, only /health and /v1/models are: have the proxy \
     pass on /props, /metrics and /slots to see more";

/// Said where a router tells nothing but its list of models.
const ONLY_A_LIST: &str = "a router answers, but not at /props: have the proxy before it pass on /health, /props, /models, \
     /metrics and /slots, or give the API key, to see its models";

/// Who answered, by the answers of one poll.
enum Answered {
    /// A llama-server, whose model is in this state.
    As(ModelState),
    /// A router: one that tells nothing but its list of models, or one that is to be read as such
    /// from the next poll on.
    AsRouter { is_only_a_list: bool },
    /// Another product.
    AsOther(Product),
    /// Nobody that is known.
    Nobody,
}

impl Answered {
    /// A server that leaves a question for later, if it is known to be llama.cpp.
    fn busy_if(is_known: bool, busy: ModelState) -> Answered {
        if is_known {
            Answered::As(busy)
        } else {
            Answered::Nobody
        }
    }
}

/// What was asked already in this poll, to find out what answers.
#[derive(Debug, Default)]
pub struct Asked {
    /// `/health`.
    pub health: Option<RequestOutcome<Health>>,
    /// `/props`.
    pub props: Option<RequestOutcome<Props>>,
}

impl LlamaServer {
    /// A server at `base`, not asked yet.
    pub fn new(base: &BaseUrl, settings: &Settings) -> LlamaServer {
        let root = base.root();
        let mut stats_candidates = vec![format!("{}/stats", base.as_given())];
        let below_v1 = format!("{root}/v1/stats");
        if !stats_candidates.contains(&below_v1) {
            stats_candidates.insert(0, below_v1);
        }
        LlamaServer {
            place: ServerUrl {
                root,
                query: String::new(),
                model_names: Vec::new(),
            },
            stats_candidates,
            stats_url: None,
            work: TelemetryReader::new(IdleGuard::new(settings.sleep_idle)),
            connected: false,
            asked_stats: false,
            only_passed_on: None,
            props: None,
            entry: None,
            named: settings.model.clone(),
            said: None,
        }
    }

    /// The name to show while the server has not said its own.
    #[must_use]
    pub fn called(mut self, name: &str) -> LlamaServer {
        self.named = Some(name.to_owned());
        self
    }

    /// Whether it has said that it serves no `/metrics`.
    pub fn lacks_metrics(&self) -> bool {
        self.work.lacks_metrics()
    }

    /// When it is worth a look though no poll is due: see [`IdleGuard::next_look`].
    pub fn next_look(&self) -> Option<Instant> {
        self.work.idle_guard.next_look()
    }

    /// Takes from elsewhere than the server itself that it falls asleep after so long without work.
    pub fn may_sleep_after(&mut self, idle: BoundedDuration) {
        self.work.idle_guard.told(idle);
    }

    /// Asks all that may be asked now.
    pub fn read(&mut self, exchange: &mut Exchange, asked: Asked, reading: &mut Reading) {
        let mut model = ModelReading::default();
        let state = match self.ask_all(exchange, asked, &mut model) {
            Answered::As(state) => state,
            Answered::AsRouter { is_only_a_list } => {
                reading.up = true;
                reading.info = Some(ServerInfo {
                    kind: "router",
                    version: None,
                });
                reading.notes.extend(is_only_a_list.then_some(ONLY_A_LIST));
                return self.disconnect();
            }
            Answered::AsOther(product) => {
                reading.product = Some(product);
                return self.disconnect();
            }
            Answered::Nobody => return self.disconnect(),
        };
        reading.up = true;
        model.state = state;
        reading.loading = state == ModelState::Loading;
        if reading.loading {
            self.disconnect();
        }
        if reading.loading || self.props.is_some() || self.entry.is_some() || self.connected {
            let version = |props: &Props| props.build_info.clone();
            reading.info = Some(ServerInfo {
                kind: "llama-server",
                version: self.props.as_ref().and_then(version),
            });
        }
        model.name = self.name(&model);
        model.facts = self.facts();
        let rest_is_missing = self.work.lacks_metrics() && self.work.lacks_slots();
        reading
            .notes
            .extend(self.only_passed_on.filter(|_| rest_is_missing));
        reading.notes.extend(self.work.notes(model.stats.is_some()));
        reading.models.push(model);
    }

    fn ask_all(
        &mut self,
        exchange: &mut Exchange,
        asked: Asked,
        model: &mut ModelReading,
    ) -> Answered {
        let mut evidence = Evidence::default();
        let url = self.place.url(HEALTH);
        let health = asked.health.unwrap_or_else(|| ask_health(exchange, &url));
        match health {
            RequestOutcome::NotLoaded => return Answered::As(ModelState::Loading),
            // In ik_llama.cpp it waits behind a prompt: the others tell whether the server is there.
            _ if health.is_unanswered() && !exchange.is_pending(&url) => return Answered::Nobody,
            _ => evidence.saw_health(&health),
        }

        let busy = if self.work.idle_guard.is_asleep() {
            ModelState::Waking
        } else {
            ModelState::Busy
        };
        let props = asked
            .props
            .unwrap_or_else(|| ask_props(exchange, &self.place));
        if matches!(props, RequestOutcome::NotLoaded) {
            return Answered::As(ModelState::Loading);
        }
        if props.timed_out() {
            // It reloads after a sleep, or has no thread left: more questions would take more of them.
            self.take(model, self.work.unread(true));
            return Answered::busy_if(evidence.are_enough(), busy);
        }
        // Before, one model's server was at this address.
        if matches!(&props, RequestOutcome::Ok(props) if props.is_router()) {
            return Answered::AsRouter {
                is_only_a_list: false,
            };
        }
        evidence.saw_props(&props);
        let is_told = evidence.are_enough();
        let is_unreachable = matches!(props, RequestOutcome::BadGateway);
        let tells_its_role = matches!(props, RequestOutcome::Ok(_));
        // A refused key is not among these: the server itself may refuse it.
        let is_proxys_page = matches!(
            props,
            RequestOutcome::Unrecognized
                | RequestOutcome::NotServed(_)
                | RequestOutcome::Failed(Reason::Status | Reason::TooLarge | Reason::Parse)
        );
        let new_facts = self.take_props(props.ok());
        let is_unknown = self.entry.as_ref().is_none_or(|entry| entry.meta.is_none());
        let mut is_list_own = false;
        // Whose models they are tells who answers where nothing else has.
        if new_facts || is_unknown || !evidence.are_own() {
            let models = ask_models(exchange, &self.place);
            if matches!(models, RequestOutcome::NotLoaded) {
                return Answered::As(ModelState::Loading);
            }
            if models.timed_out() {
                self.take(model, self.work.unread(true));
                return Answered::busy_if(evidence.are_enough(), busy);
            }
            if is_unreachable && matches!(models, RequestOutcome::BadGateway) {
                // Whatever else is answered, /health too, is the proxy's own.
                return Answered::Nobody;
            }
            evidence.saw_models(&models);
            if let RequestOutcome::Ok(list) = models {
                is_list_own = list.is_own;
                if list.is_router && !tells_its_role {
                    if !is_told {
                        self.forgive_proxy(exchange, &health);
                    }
                    return Answered::AsRouter {
                        is_only_a_list: true,
                    };
                }
                self.entry = list.first;
            }
        }
        self.place.model_names = self.model_names();
        let has_health = matches!(health, RequestOutcome::Ok(_));
        let only_passed_on = match () {
            () if health.timed_out() => None,
            () if has_health && is_proxys_page && is_list_own => Some(ONLY_V1_AND_HEALTH),
            () if !is_told && evidence.are_own() => Some(ONLY_V1),
            () => None,
        };
        if self.only_passed_on.is_some() && only_passed_on.is_none() {
            // What was not passed on may be by now.
            self.work.restarted();
        }
        self.only_passed_on = only_passed_on;

        let read = self.work.read(exchange, &self.place);
        let late = read.late;
        let rest_is_gone = !late
            && matches!(
                (&read.counters, &read.slots),
                (Update::Absent, Update::Absent)
            );
        // Where the rest is passed on, /props is broken, and not the way to it.
        if only_passed_on == Some(ONLY_V1) || (only_passed_on.is_some() && rest_is_gone) {
            self.forgive_proxy(exchange, &health);
        }
        self.take(model, read);
        if !late {
            model.stats = self.ask_stats(exchange);
        }
        evidence.saw_own(
            model.stats.is_some()
                || matches!(model.counters, Update::New(_))
                || matches!(&model.slots, Update::New(read) if !read.slots.is_empty()),
        );
        if !evidence.are_enough() {
            return evidence
                .product()
                .map_or(Answered::Nobody, Answered::AsOther);
        }
        self.connected = true;
        Answered::As(match () {
            () if late => ModelState::Busy,
            () if self.work.idle_guard.is_asleep() => ModelState::Asleep(Instant::now()),
            () => ModelState::Ready,
        })
    }

    /// Takes back what failed in this poll because a proxy passes on nothing but `/v1`.
    fn forgive_proxy(&mut self, exchange: &mut Exchange, health: &RequestOutcome<Health>) {
        // llama-server refuses nobody at /health: where that is refused, the proxy refuses the others.
        let proxy_refuses = matches!(health, RequestOutcome::Failed(Reason::Unauthorized));
        let is_proxys = |reason| match reason {
            Reason::Connect | Reason::Timeout => false,
            Reason::Unauthorized => proxy_refuses,
            Reason::Status | Reason::TooLarge | Reason::Parse => true,
        };
        exchange.discard_failures_where(HEALTH, |_| true);
        exchange.discard_failures_where(PROPS, is_proxys);
        self.work.not_passed_on(exchange, is_proxys);
    }

    fn take(&self, model: &mut ModelReading, read: Read) {
        model.counters = read.counters;
        model.slots = read.slots;
    }

    fn ask_stats(&mut self, exchange: &mut Exchange) -> Option<Stats> {
        let parse = |answer: crate::upstream::http::client::HttpResponse| {
            let Object(stats): Object<Stats> = answer.json()?;
            recognized(
                stats.is_recognizable(),
                stats,
                "no section of the document is in it",
            )
        };
        if let Some(url) = self.stats_url.clone() {
            let stats = exchange.get(STATS, &url, parse);
            if stats.not_served().is_some() {
                self.stats_url = None;
            }
            return stats.ok();
        }
        if self.asked_stats {
            // Asked for once after each connect, and not again where it is not there.
            return None;
        }
        self.asked_stats = true;
        for url in self.stats_candidates.clone() {
            // That a server has no such document is no failure, however it says so.
            if let Some(stats) = exchange.get_optional(STATS, &url, parse).ok() {
                self.stats_url = Some(url);
                return Some(stats);
            }
        }
        None
    }

    /// Takes a fresh `/props`; gives whether the model must be asked for again.
    fn take_props(&mut self, props: Option<Props>) -> bool {
        let Some(props) = props else {
            return !self.connected;
        };
        self.work.idle_guard.saw_build(props.build());
        self.work
            .idle_guard
            .saw_sleep(Instant::now(), props.is_sleeping == Some(true));
        let facts = |props: &Props| Props {
            is_sleeping: None,
            ..props.clone()
        };
        let new = !self.connected || self.props.as_ref().map(facts) != Some(facts(&props));
        self.props = Some(props);
        new
    }

    /// What the server may call its model where it says whose numbers are whose.
    fn model_names(&self) -> Vec<String> {
        let id = self.entry.as_ref().and_then(|entry| entry.id.clone());
        let props = self.props.as_ref();
        let alias = props.and_then(|props| props.model_alias.clone());
        let path = props.and_then(|props| props.model_path.clone());
        let file = path
            .as_deref()
            .and_then(|path| path.rsplit(['/', '\\']).next());
        let file = file.map(str::to_owned);
        [self.named.clone(), id, alias, file, path]
            .into_iter()
            .flatten()
            .collect()
    }

    fn name(&mut self, model: &ModelReading) -> String {
        let entry = self.entry.as_ref().and_then(|entry| entry.id.clone());
        let alias = || self.props.as_ref()?.model_alias.clone();
        let stats = || model.stats.as_ref()?.model.as_ref()?.name.clone();
        if let Some(said) = entry.or_else(alias).or_else(stats) {
            self.said = Some(said);
        }
        let name = self.named.as_ref().or(self.said.as_ref());
        name.map_or(DEFAULT_MODEL, String::as_str).to_owned()
    }

    fn facts(&self) -> ModelFacts {
        facts(self.props.as_ref(), self.entry.as_ref())
    }

    fn disconnect(&mut self) {
        self.connected = false;
        self.asked_stats = false;
        self.only_passed_on = None;
        self.props = None;
        self.entry = None;
        self.stats_url = None;
        self.work.restarted();
    }
}

/// Asks for `/health`.
pub fn ask_health(exchange: &mut Exchange, url: &str) -> RequestOutcome<Health> {
    exchange.get(HEALTH, url, |answer| {
        let Object(health): Object<Health> = answer.json()?;
        recognized(
            health.is_recognizable(),
            health,
            "its `status` is none of llama-server's",
        )
    })
}

/// Asks for `/props` at `place`.
pub fn ask_props(exchange: &mut Exchange, place: &ServerUrl) -> RequestOutcome<Props> {
    exchange.get(PROPS, &place.url(PROPS), |answer| {
        let Object(props): Object<Props> = answer.json()?;
        recognized(
            props.is_recognizable(),
            props,
            "no property of llama-server is in it",
        )
    })
}

/// What `/props` and an entry of `/v1/models` tell of a model.
pub fn facts(props: Option<&Props>, entry: Option<&ModelEntry>) -> ModelFacts {
    let meta = entry.and_then(|entry| entry.meta.as_ref());
    let settings = props.and_then(|props| props.default_generation_settings.as_ref());
    ModelFacts {
        slots: props.and_then(|props| props.total_slots),
        max_context_size: settings.and_then(|settings| settings.n_ctx),
        size: meta.and_then(|meta| meta.size),
        parameters: meta.and_then(|meta| meta.n_params),
        quantization: props
            .and_then(|props| props.model_ftype.clone())
            .or_else(|| meta.and_then(|meta| meta.ftype.clone())),
        path: props.and_then(|props| props.model_path.clone()),
        ..ModelFacts::default()
    }
}
