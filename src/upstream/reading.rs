//! What one poll of a base URL brought, whatever kind of server answers there.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Instant;

use crate::snapshot::{Reason, ServerInfo, Status};
use crate::upstream::api::{Counters, MOST_SLOTS, Slot, Stats};
use crate::upstream::http::client::Failure;
use crate::upstream::identification::Product;

/// What one poll brought.
#[derive(Debug, Default)]
pub struct Reading {
    /// Whether something answered as one of the known servers does.
    pub up: bool,
    /// Whether it loads, and has not shown yet what it is.
    pub loading: bool,
    /// What answers where it is no known server: then it is not up.
    pub product: Option<Product>,
    /// What answers.
    pub info: Option<ServerInfo>,
    /// The models that it holds, in no order, no more than are [shown](crate::upstream::model_limit).
    pub models: Vec<ModelReading>,
    /// Whether it has more models than are shown.
    pub left_out: bool,
    /// Bytes of the server's store of models.
    pub disk_usage: Option<f64>,
    /// Requests that failed.
    pub failures: Vec<FailedRequest>,
    /// What answered, or said that it is switched off.
    pub answered: Vec<Target>,
    /// What the server cannot tell, for people.
    pub notes: Vec<&'static str>,
}

/// What a request was for.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Target {
    /// The path, as the label `endpoint` has it.
    pub endpoint: &'static str,
    /// The model whose server was asked, where the base URL leads to several.
    pub model: Option<String>,
}

/// A request that failed.
#[derive(Clone, Debug)]
pub struct FailedRequest {
    /// What it was for.
    pub target: Target,
    /// Why it failed.
    pub failure: Failure,
    /// Whether it was sent and still waits for its answer.
    pub is_pending: bool,
}

impl Reading {
    /// Adds a model; without its slots, where all models together have more than one server may.
    pub fn add(&mut self, mut model: ModelReading) {
        let slots = |model: &ModelReading| match &model.slots {
            Seen::Now(read) => read.slots.len(),
            _ => 0,
        };
        let held: usize = self.models.iter().map(slots).sum();
        if held.saturating_add(slots(&model)) > MOST_SLOTS {
            model.slots = Seen::Gone;
            let why = "the models have more slots together than any real server";
            let failure = Failure::new(Reason::TooLarge, why);
            let target = Target {
                endpoint: "/slots",
                model: Some(model.name.clone()),
            };
            self.failures.push(FailedRequest {
                target,
                failure,
                is_pending: false,
            });
        }
        self.models.push(model);
    }

    /// Leaves the first of each model and mode: a server may name one twice in an answer.
    pub fn keep_first_of_each(&mut self) {
        let mut seen = BTreeSet::new();
        self.models
            .retain(|model| seen.insert((model.name.clone(), model.mode.clone())));
    }
}

/// What one poll brought of one model.
#[derive(Debug, Default)]
pub struct ModelReading {
    /// The label `model`.
    pub name: String,
    /// What it is run for (`completion`, `embedding`), where the server says so.
    pub mode: Option<String>,
    /// The state that it is in.
    pub state: State,
    /// What does not change while it is loaded.
    pub facts: Facts,
    /// What helps to find its process and its file.
    pub host: Host,
    /// `/metrics`.
    pub counters: Seen<CountersAt>,
    /// `/slots`.
    pub slots: Seen<SlotsAt>,
    /// Tokens that ended requests have had, where nothing but a list of requests tells.
    pub ended: Option<Ended>,
    /// `/stats`, where it is served.
    pub stats: Option<Stats>,
}

/// What does not change while a model is loaded.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Facts {
    /// Slots that there are.
    pub slots: Option<f64>,
    /// Tokens that fit one slot.
    pub max_context: Option<f64>,
    /// Bytes of weights.
    pub size: Option<f64>,
    /// Number of parameters.
    pub parameters: Option<f64>,
    /// How the weights are quantized, as the server says it.
    pub quantization: Option<String>,
    /// The architecture, as GGUF names it.
    pub architecture: Option<String>,
    /// The engine that runs it, where the server has several.
    pub backend: Option<String>,
    /// The model's file, as the server names it.
    pub path: Option<String>,
}

/// What a server of many models tells of the process and the file behind one.
#[derive(Clone, Debug, Default)]
pub struct Host {
    /// Whether a proxy listens at the base URL's port, and not the model's own server.
    pub behind_proxy: bool,
    /// The command line of the model's own server.
    pub arguments: Option<Vec<String>>,
    /// A part of its file's path that no other model's has.
    pub file_part: Option<String>,
    /// The scalars of its file's GGUF header, in words.
    pub header: Option<Arc<BTreeMap<String, String>>>,
}

impl Host {
    /// Whether there is anything by which the model's own process could be told.
    pub fn is_findable(&self) -> bool {
        !self.behind_proxy || self.arguments.is_some() || self.file_part.is_some()
    }
}

/// Tokens of requests that have ended, added up.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Ended {
    /// Prompt tokens computed.
    pub prompt_tokens: f64,
    /// Prompt tokens taken from the cache.
    pub cached_tokens: f64,
    /// Tokens generated.
    pub generated_tokens: f64,
}

impl Ended {
    /// Adds the tokens of one more request.
    pub fn add(&mut self, more: &Ended) {
        self.prompt_tokens += more.prompt_tokens;
        self.cached_tokens += more.cached_tokens;
        self.generated_tokens += more.generated_tokens;
    }

    /// What is left without `part` of it.
    #[must_use]
    pub fn less(&self, part: &Ended) -> Ended {
        Ended {
            prompt_tokens: self.prompt_tokens - part.prompt_tokens,
            cached_tokens: self.cached_tokens - part.cached_tokens,
            generated_tokens: self.generated_tokens - part.generated_tokens,
        }
    }
}

/// The state of a model as one poll saw it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum State {
    /// The server loads it.
    #[default]
    Loading,
    /// It was asleep, and is loaded again or at work already.
    Waking,
    /// It was put away, until the next request, at this moment.
    Asleep(Instant),
    /// Its server leaves questions for later: it is at work.
    Busy,
    /// Its server answers; what it is doing is in the counters and slots.
    Ready,
    /// Its server says so itself.
    Told(Status),
    /// What it is doing is not known: this poll had no time to ask, or its server names a state
    /// that is not known here.
    Unknown,
}

/// What is to be made of one source at one poll.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum Seen<T> {
    /// It was read.
    Now(T),
    /// It was not read, and could not have changed since it was.
    Unchanged,
    /// It was not read, and may have changed: only counters still stand.
    Stale,
    /// There is none, or it could not be read: it says nothing.
    #[default]
    Gone,
}

/// `/metrics`, and when and in which life of the server it was read.
#[derive(Clone, Debug, PartialEq)]
pub struct CountersAt {
    /// When the answer was there.
    pub at: Instant,
    /// The identity of this life of the server, where it tells one.
    pub life: Option<String>,
    /// What it said.
    pub counters: Counters,
}

/// `/slots`, and when it was read.
#[derive(Clone, Debug)]
pub struct SlotsAt {
    /// When the answer was there.
    pub at: Instant,
    /// What it said.
    pub slots: Vec<Slot>,
}
