//! Reading a llama-server that holds one model.
//!
//! One [`LlamaServer::read`] is one poll: `/health` first, then `/props`, and
//! then only what may be asked without doing harm (see [`super::restraint`]).

use std::time::Instant;

use super::answers::{Health, ModelEntry, Object, Props, Stats};
use super::asker::{Asker, Endpoint, Outcome, recognized};
use super::reading::{Facts, ModelReading, Reading, Seen, State};
use super::restraint::Restraint;
use super::work::{Place, Read, Work};
use crate::bounds::BoundedDuration;
use crate::settings::{BaseUrl, DEFAULT_MODEL, Settings};
use crate::snapshot::{Reason, ServerInfo};

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
const MODELS: Endpoint = Endpoint {
    path: "/v1/models",
    limit: 4 << 20,
};
const STATS: Endpoint = Endpoint {
    path: "/stats",
    limit: 1 << 20,
};

/// A llama-server, and what must be remembered of it between two polls.
pub struct LlamaServer {
    place: Place,
    /// Where `/stats` may be: below the URL as given, and below its `/v1`.
    stats_candidates: Vec<String>,
    stats_url: Option<String>,
    work: Work,
    connected: bool,
    props: Option<Props>,
    entry: Option<ModelEntry>,
    /// The name that the user gave.
    named: Option<String>,
    /// The name that the server gave last.
    said: Option<String>,
}

/// What was asked already in this poll, to find out what answers.
#[derive(Debug, Default)]
pub struct Asked {
    /// `/health`.
    pub health: Option<Outcome<Health>>,
    /// `/props`.
    pub props: Option<Outcome<Props>>,
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
            place: Place {
                root,
                query: String::new(),
                model_names: Vec::new(),
            },
            stats_candidates,
            stats_url: None,
            work: Work::new(Restraint::new(settings.sleep_idle)),
            connected: false,
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

    /// When it is worth a look though no poll is due: see [`Restraint::next_look`].
    pub fn next_look(&self) -> Option<Instant> {
        self.work.restraint.next_look()
    }

    /// Takes from elsewhere than the server itself that it falls asleep after so long without work.
    pub fn may_sleep_after(&mut self, idle: BoundedDuration) {
        self.work.restraint.told(idle);
    }

    /// Asks all that may be asked now.
    pub fn read(&mut self, asker: &mut Asker, asked: Asked, reading: &mut Reading) {
        let mut model = ModelReading::default();
        match self.ask_all(asker, asked, &mut model) {
            Some(state) => {
                reading.up = true;
                model.state = state;
                reading.loading = state == State::Loading;
                if reading.loading {
                    self.disconnect();
                    let version = None;
                    reading.info = Some(ServerInfo {
                        kind: "llama-server",
                        version,
                    });
                } else if self.props.is_some() || self.connected {
                    let version = self
                        .props
                        .as_ref()
                        .and_then(|props| props.build_info.clone());
                    reading.info = Some(ServerInfo {
                        kind: "llama-server",
                        version,
                    });
                }
                model.name = self.name(&model);
                model.facts = self.facts();
                reading.notes.extend(self.work.notes(model.stats.is_some()));
                reading.models.push(model);
            }
            None => self.disconnect(),
        }
    }

    /// Gives the state of the model, or none where nothing answers as llama.cpp does.
    fn ask_all(
        &mut self,
        asker: &mut Asker,
        asked: Asked,
        model: &mut ModelReading,
    ) -> Option<State> {
        let url = self.place.url(HEALTH);
        let health = asked.health.unwrap_or_else(|| ask_health(asker, &url));
        match health {
            Outcome::NotLoaded => return Some(State::Loading),
            // In ik_llama.cpp it waits behind a prompt: the others tell whether the server is there.
            _ if health.is_nobody() && !asker.is_open(&url) => return None,
            _ => {}
        }
        let healthy = matches!(health, Outcome::Answer(_));

        let busy = if self.work.restraint.is_asleep() {
            State::Waking
        } else {
            State::Busy
        };
        let props = asked.props.unwrap_or_else(|| ask_props(asker, &self.place));
        match &props {
            Outcome::NotLoaded => return Some(State::Loading),
            // It reloads after a sleep, or has no thread left: more questions would take more of them.
            props if props.is_late() && health.is_late() => return None,
            props if props.is_late() => {
                self.take(model, self.work.unread(true));
                return Some(busy);
            }
            _ => {}
        }
        let unauthorized = matches!(props, Outcome::Failed(Reason::Unauthorized));
        let new_facts = self.take_props(props.answer());
        if new_facts || self.entry.as_ref().is_none_or(|entry| entry.meta.is_none()) {
            let models = asker.ask(MODELS, &self.place.url(MODELS), |answer| {
                let mut first = None;
                answer.each_in("data", |entry: ModelEntry| {
                    first.get_or_insert(entry);
                })?;
                Ok(first)
            });
            if models.is_late() {
                self.take(model, self.work.unread(true));
                return Some(busy);
            }
            if let Some(first) = models.answer() {
                self.entry = first;
            }
        }
        self.place.model_names = self.model_names();
        let read = self.work.read(asker, &self.place);
        let late = read.late;
        self.take(model, read);
        if !late {
            model.stats = self.ask_stats(asker);
        }

        let alive = healthy
            || unauthorized
            || model.stats.is_some()
            || self.props.is_some()
            || self.entry.is_some()
            || matches!(model.counters, Seen::Now(_))
            || matches!(model.slots, Seen::Now(_));
        if !alive {
            return None;
        }
        self.connected = true;
        Some(match () {
            () if late => State::Busy,
            () if self.work.restraint.is_asleep() => State::Asleep(Instant::now()),
            () => State::Ready,
        })
    }

    fn take(&self, model: &mut ModelReading, read: Read) {
        model.counters = read.counters;
        model.slots = read.slots;
    }

    fn ask_stats(&mut self, asker: &mut Asker) -> Option<Stats> {
        let parse = |answer: super::client::Answer| {
            let Object(stats): Object<Stats> = answer.json()?;
            recognized(
                stats.is_recognizable(),
                stats,
                "no section of the document is in it",
            )
        };
        if let Some(url) = self.stats_url.clone() {
            let stats = asker.ask(STATS, &url, parse);
            if stats.missing().is_some() {
                self.stats_url = None;
            }
            return stats.answer();
        }
        if self.connected {
            // Asked for once after each connect, and not again where it is not there.
            return None;
        }
        for url in self.stats_candidates.clone() {
            // That a server has no such document is no failure, however it says so.
            if let Some(stats) = asker.probe(STATS, &url, parse).answer() {
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
        self.work.restraint.saw_build(props.build());
        self.work
            .restraint
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

    fn facts(&self) -> Facts {
        facts(self.props.as_ref(), self.entry.as_ref())
    }

    fn disconnect(&mut self) {
        self.connected = false;
        self.props = None;
        self.entry = None;
        self.stats_url = None;
        self.work.restarted();
    }
}

/// Asks for `/health`.
pub fn ask_health(asker: &mut Asker, url: &str) -> Outcome<Health> {
    asker.ask(HEALTH, url, |answer| {
        let Object(health): Object<Health> = answer.json()?;
        let known = health.status.is_some() || health.error.is_some();
        recognized(known, health, "neither `status` nor `error` is in it")
    })
}

/// Asks for `/props` at `place`.
pub fn ask_props(asker: &mut Asker, place: &Place) -> Outcome<Props> {
    asker.ask(PROPS, &place.url(PROPS), |answer| {
        let Object(props): Object<Props> = answer.json()?;
        recognized(
            props.is_recognizable(),
            props,
            "no property of llama-server is in it",
        )
    })
}

/// What `/props` and an entry of `/v1/models` tell of a model.
pub fn facts(props: Option<&Props>, entry: Option<&ModelEntry>) -> Facts {
    let meta = entry.and_then(|entry| entry.meta.as_ref());
    let settings = props.and_then(|props| props.default_generation_settings.as_ref());
    Facts {
        slots: props.and_then(|props| props.total_slots),
        max_context: settings.and_then(|settings| settings.n_ctx),
        size: meta.and_then(|meta| meta.size),
        parameters: meta.and_then(|meta| meta.n_params),
        quantization: props
            .and_then(|props| props.model_ftype.clone())
            .or_else(|| meta.and_then(|meta| meta.ftype.clone())),
        path: props.and_then(|props| props.model_path.clone()),
        ..Facts::default()
    }
}
