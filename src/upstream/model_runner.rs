//! Reading Docker Model Runner.
//!
//! None of its GETs loads a model, or counts as use of one. States come from
//! `/engines/ps`, what the models are from `/models`, and tokens from its
//! `/metrics`, which passes on llama.cpp's own: but only of models that were
//! loaded by their ID (v1.2.6 finds no others).

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::de::IgnoredAny;
use serde::{Deserialize, Deserializer};

use crate::bounds::lenient::{Object, count, flag, object, text, text_map, texts};
use crate::readings::{
    Counters, CountersReading, ModelFacts, ModelReading, ModelState, ModelStatus, ProcessHints,
    Update,
};
use crate::settings::BaseUrl;
use crate::snapshot::{Reason, ServerInfo};
use crate::upstream::api::counters_by_model::CountersByModel;
use crate::upstream::api::list::keep;
use crate::upstream::http::client::{HttpResponse, RequestError};
use crate::upstream::http::exchange::{Endpoint, Exchange, NotServed, RequestOutcome, recognized};
use crate::upstream::model_limit::LimitedModels;
use crate::upstream::model_names::{NameIndex, Spellings, canonical, told_id};
use crate::upstream::reading::Reading;
use crate::upstream::telemetry::LINES_PASSED_OVER;

const PS: Endpoint = Endpoint {
    path: "/engines/ps",
    limit: 4 << 20,
};
/// Holds the scalars of every model's GGUF header: some KB a model.
const MODELS: Endpoint = Endpoint {
    path: "/models",
    limit: 128 << 20,
};
const CONFIGURE: Endpoint = Endpoint {
    path: "/engines/_configure",
    limit: 4 << 20,
};
const DISK: Endpoint = Endpoint {
    path: "/engines/df",
    limit: 64 << 10,
};
const METRICS: Endpoint = Endpoint {
    path: "/metrics",
    limit: 16 << 20,
};
/// Whole requests and answers, the last ten of each model; never held as a whole.
const REQUESTS: Endpoint = Endpoint {
    path: "/engines/requests",
    limit: 32 << 20,
};
const VERSION: Endpoint = Endpoint {
    path: "/version",
    limit: 64 << 10,
};

/// How long the list of models stands: each time it is asked for, the runner reads its whole
/// store and writes to its log.
const LIST_AGE: Duration = Duration::from_secs(60);

/// The most names of one model that are kept.
const MOST_NAMES: usize = 8;

/// The backend whose runners are llama-servers.
const LLAMA_CPP: &str = "llama.cpp";

/// Reads the body of `/engines/requests`, given how to label a model by any of its names.
pub type TakeRecords<'a> =
    dyn FnMut(&mut dyn Read, &dyn Fn(&str) -> String) -> Result<(), String> + 'a;

/// Docker Model Runner, and what must be remembered of it between two polls.
pub struct ModelRunner {
    root: String,
    version: Option<String>,
    /// No more than are shown, those that run among them: a store may hold thousands.
    models: Vec<Known>,
    /// Where each is in that list.
    names: NameIndex,
    left_out: bool,
    listed: Option<Instant>,
    /// Names of runners that the list had nothing for: they are no news.
    unlisted: BTreeSet<String>,
    /// The context sizes that somebody configured, by canonical name or ID.
    contexts: BTreeMap<String, f64>,
    disk_usage: Option<f64>,
    no_metrics: Option<NotServed>,
    /// Whether the last `/metrics` was no exposition.
    metrics_are_foreign: bool,
    /// Whether lines of the last `/metrics` were not understood.
    passes_over_lines: bool,
    /// Whether the last `/metrics` had samples of which it is not known whose they are.
    is_ambiguous: bool,
}

/// A model of its store.
#[derive(Clone, Debug)]
struct Known {
    label: String,
    id: String,
    names: Vec<String>,
    facts: ModelFacts,
    header: Option<Arc<BTreeMap<String, String>>>,
}

/// One object of `/engines/ps`: a runner.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Runner {
    #[serde(deserialize_with = "text")]
    backend_name: Option<String>,
    /// As the first request that loaded it spelled it.
    #[serde(deserialize_with = "text")]
    model_name: Option<String>,
    #[serde(deserialize_with = "text")]
    mode: Option<String>,
    #[serde(deserialize_with = "flag")]
    in_use: Option<bool>,
    #[serde(deserialize_with = "flag")]
    loading: Option<bool>,
}

/// One object of `/models`.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Stored {
    #[serde(deserialize_with = "text")]
    id: Option<String>,
    #[serde(deserialize_with = "texts")]
    tags: Vec<String>,
    #[serde(deserialize_with = "object")]
    config: Option<StoredConfig>,
}

/// `config` of a [`Stored`] model.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct StoredConfig {
    #[serde(deserialize_with = "text")]
    quantization: Option<String>,
    #[serde(deserialize_with = "text")]
    parameters: Option<String>,
    #[serde(deserialize_with = "text")]
    architecture: Option<String>,
    #[serde(deserialize_with = "text")]
    size: Option<String>,
    #[serde(deserialize_with = "count")]
    context_size: Option<f64>,
    #[serde(deserialize_with = "header")]
    gguf: Option<BTreeMap<String, String>>,
}

/// One object of `/engines/_configure`.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Configured {
    #[serde(rename = "Model", deserialize_with = "text")]
    model: Option<String>,
    #[serde(rename = "ModelID", deserialize_with = "text")]
    model_id: Option<String>,
    #[serde(rename = "Config", deserialize_with = "object")]
    config: Option<RunConfig>,
}

/// `Config` of a [`Configured`] model.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct RunConfig {
    #[serde(rename = "context-size", deserialize_with = "count")]
    context_size: Option<f64>,
}

/// `GET /engines/df`.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Disk {
    #[serde(deserialize_with = "count")]
    models_disk_usage: Option<f64>,
}

/// `GET /version`.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Version {
    #[serde(deserialize_with = "text")]
    version: Option<String>,
}

/// Reads `/engines/ps`. It is an array though nothing runs, and anybody may answer null, or an
/// array of something else.
fn runners(answer: HttpResponse) -> Result<Vec<Runner>, RequestError> {
    let mut runners = Vec::new();
    let is_array = answer.each(keep(&mut runners))?;
    let are_runners = runners.is_empty()
        || runners
            .iter()
            .any(|runner: &Runner| runner.model_name.is_some());
    recognized(
        is_array && are_runners,
        runners,
        "it is no array of runners",
    )
}

/// The counters of each runner, by its model's label and its mode.
type ByRunner = BTreeMap<(String, Option<String>), Counters>;

impl ModelRunner {
    /// Looks whether Docker Model Runner answers at `base`, or at what stands before its
    /// `/engines`.
    pub fn detect(exchange: &mut Exchange, base: &BaseUrl) -> RequestOutcome<ModelRunner> {
        let root = base.before_engines();
        let ps = exchange.get_optional(PS, &format!("{root}{}", PS.path), runners);
        ps.map(|_| {
            let version =
                exchange.get_optional(VERSION, &format!("{root}{}", VERSION.path), |answer| {
                    let Object(version): Object<Version> = answer.json()?;
                    Ok(version.version)
                });
            ModelRunner {
                root,
                version: version.ok().flatten(),
                models: Vec::new(),
                names: NameIndex::default(),
                left_out: false,
                listed: None,
                unlisted: BTreeSet::new(),
                contexts: BTreeMap::new(),
                disk_usage: None,
                no_metrics: None,
                metrics_are_foreign: false,
                passes_over_lines: false,
                is_ambiguous: false,
            }
        })
    }

    /// Asks all that may be asked now.
    pub fn read(&mut self, exchange: &mut Exchange, reading: &mut Reading) {
        let runners = exchange.get(PS, &self.url(PS), runners);
        let Some(runners) = runners.ok() else {
            return;
        };
        let names: Vec<&str> = runners
            .iter()
            .filter_map(|runner| runner.model_name.as_deref())
            .collect();
        let is_news = |name: &&str| self.find(name).is_none() && !self.unlisted.contains(*name);
        let old = self
            .listed
            .is_none_or(|listed| listed.elapsed() >= LIST_AGE);
        let late = (old || names.iter().any(is_news)) && self.list(exchange, &names);
        let counters = if late {
            Update::Stale
        } else {
            self.counters(exchange)
        };
        if runners.is_empty()
            && self.metrics_are_foreign
            && self.answers_a_list_to_anything(exchange)
        {
            return;
        }
        reading.up = true;
        reading.info = Some(ServerInfo {
            kind: "model-runner",
            version: self.version.clone(),
        });
        self.tell(reading, &runners, &counters);
    }

    /// Whether an empty list of runners shows nothing: something answers a list to any question.
    fn answers_a_list_to_anything(&self, exchange: &mut Exchange) -> bool {
        let list = exchange.get_optional(VERSION, &self.url(VERSION), |answer| {
            answer.each(|_: IgnoredAny| {})
        });
        matches!(list, RequestOutcome::Ok(_))
    }

    /// Asks for the last requests of every model, and has them read by `take`.
    pub fn read_records(&self, exchange: &mut Exchange, take: &mut TakeRecords) {
        let label = |name: &str| self.label(name);
        let records = exchange.get(REQUESTS, &self.url(REQUESTS), |answer| {
            answer.stream(|body| take(body, &label))
        });
        if records.not_served() == Some(NotServed::NotFound) {
            // So it says that nobody has asked anything yet.
            let _nothing_to_misread = take(&mut b"[]".as_slice(), &label);
        }
    }

    /// Asks what models there are, besides those that run; gives whether an answer is late,
    /// and no more should be asked.
    fn list(&mut self, exchange: &mut Exchange, running: &[&str]) -> bool {
        let running_names = Spellings::of(running);
        let listed = exchange.get(MODELS, &self.url(MODELS), |answer| {
            let mut models = LimitedModels::default();
            answer.each(|stored: Stored| {
                if let Some(model) = known(stored) {
                    let runs = running_names.mean(&model.id, &model.names);
                    models.take(model, runs);
                }
            })?;
            Ok(models.finish())
        });
        if listed.timed_out() {
            return true;
        }
        if let Some((models, left_out)) = listed.ok() {
            self.models = models;
            let names = self.models.iter();
            let names = names.map(|known| (known.id.as_str(), known.names.as_slice()));
            self.names = NameIndex::new(names);
            self.left_out = left_out;
            self.listed = Some(Instant::now());
            let unlisted = running.iter().filter(|name| self.find(name).is_none());
            self.unlisted = unlisted.map(|name| (*name).to_owned()).collect();
        }
        let configured = exchange.get(CONFIGURE, &self.url(CONFIGURE), |answer| {
            let configured: Vec<Configured> = answer.list()?;
            Ok(configured.iter().flat_map(contexts).collect())
        });
        if let Some(contexts) = configured.ok() {
            self.contexts = contexts;
        }
        let disk = exchange.get(DISK, &self.url(DISK), |answer| {
            let Object(disk): Object<Disk> = answer.json()?;
            Ok(disk)
        });
        self.disk_usage = disk.ok().and_then(|disk| disk.models_disk_usage);
        false
    }

    /// `/metrics` by runner, and when it was read.
    fn counters(&mut self, exchange: &mut Exchange) -> Update<(Instant, ByRunner)> {
        if self.no_metrics.is_some() {
            return Update::Absent;
        }
        let counters = exchange.get(METRICS, &self.url(METRICS), |answer| {
            answer.stream(|body| {
                CountersByModel::read(body, |sample| sample.label("backend") == Some(LLAMA_CPP))
            })
        });
        if counters.timed_out() {
            // A runner is busy, and with it the runner of runners: what it counted stands.
            return Update::Stale;
        }
        self.no_metrics = counters.not_served();
        self.metrics_are_foreign = matches!(counters, RequestOutcome::Failed(Reason::Parse));
        let Some(counters) = counters.ok() else {
            return Update::Absent;
        };
        self.passes_over_lines = counters.passed_over > 0;
        let at = Instant::now();
        let mut by_runner = ByRunner::new();
        self.is_ambiguous = false;
        for (model, mode, counters) in counters.by_label() {
            self.is_ambiguous |= counters.is_none();
            let counters = counters.unwrap_or_default();
            match by_runner.entry((self.label(&model), mode)) {
                Entry::Vacant(place) => drop(place.insert(counters)),
                // Two names of one model are two runners, of which one is shown.
                Entry::Occupied(mut place) => {
                    self.is_ambiguous = true;
                    *place.get_mut() = Counters::default();
                }
            }
        }
        Update::New((at, by_runner))
    }

    fn tell(
        &self,
        reading: &mut Reading,
        runners: &[Runner],
        counters: &Update<(Instant, ByRunner)>,
    ) {
        reading.disk_usage = self.disk_usage;
        let mut untold = false;
        let mut models: BTreeMap<_, ModelReading> = BTreeMap::new();
        for runner in runners {
            let Some(name) = &runner.model_name else {
                continue;
            };
            let label = self.label(name);
            let mode = runner.mode.clone();
            let is_llama_cpp = runner.backend_name.as_deref() == Some(LLAMA_CPP);
            let status = match (runner.loading, runner.in_use) {
                (Some(true), _) => ModelStatus::Loading,
                (_, Some(true)) => ModelStatus::Running,
                _ => ModelStatus::Idle,
            };
            // Of other engines' runners nothing but their state is claimed.
            let known = self.find(name).filter(|_| is_llama_cpp);
            let mut facts = known.map(|known| self.facts(known)).unwrap_or_default();
            facts.backend.clone_from(&runner.backend_name);
            let counters = match counters {
                _ if !is_llama_cpp => Update::Absent,
                Update::New((at, by_runner)) => {
                    let counters = by_runner.get(&(label.clone(), mode.clone()));
                    untold |= counters.is_none() && status != ModelStatus::Loading;
                    counters.map_or(Update::Absent, |counters| {
                        Update::New(CountersReading {
                            at: *at,
                            process: None,
                            counters: counters.clone(),
                        })
                    })
                }
                Update::Unchanged | Update::Stale => Update::Stale,
                Update::Absent => Update::Absent,
            };
            let state = ModelState::Reported(status);
            let process = ProcessHints {
                behind_proxy: true,
                // Its llama-servers listen on nothing that could be found; their files are named
                // after the model's digest.
                file_part: known
                    .and_then(|known| told_id(&known.id))
                    .map(str::to_owned),
                header: known.and_then(|known| known.header.clone()),
                ..ProcessHints::default()
            };
            let told = ModelReading {
                name: label,
                mode,
                state,
                facts,
                process,
                counters,
                ..ModelReading::default()
            };
            // Two spellings of one model in one mode are one runner to the eye.
            match models.entry((told.name.clone(), told.mode.clone())) {
                Entry::Occupied(mut same)
                    if same.get().state == ModelState::Reported(ModelStatus::Idle) =>
                {
                    same.insert(told);
                }
                Entry::Occupied(_) => {}
                Entry::Vacant(place) => drop(place.insert(told)),
            }
        }
        let running: BTreeSet<String> = models.keys().map(|(name, _)| name.clone()).collect();
        let mut shown = LimitedModels::default();
        for model in models.into_values() {
            shown.take(model, true);
        }
        for known in self
            .models
            .iter()
            .filter(|known| !running.contains(&known.label))
        {
            let unloaded = ModelReading {
                name: known.label.clone(),
                state: ModelState::Reported(ModelStatus::Unloaded),
                facts: self.facts(known),
                ..ModelReading::default()
            };
            shown.take(unloaded, false);
        }
        let left_out;
        (reading.models, left_out) = shown.finish();
        reading.left_out = left_out || self.left_out;
        if self.passes_over_lines && self.no_metrics.is_none() {
            reading.notes.push(LINES_PASSED_OVER);
        }
        if self.is_ambiguous && self.no_metrics.is_none() {
            reading.notes.push(
                "its /metrics has several samples of one model and mode: whose they are cannot be \
                 told, and they are not used",
            );
        }
        if self.no_metrics.is_some() {
            reading.notes.push(
                "its /metrics is switched off: start Docker Model Runner without DISABLE_METRICS=1 \
                 to get token counters",
            );
        } else if untold {
            reading.notes.push(
                "its /metrics leaves out models that were loaded by name: their state and size are \
                 shown, their tokens are not; a model asked for by its ID (sha256:…) is in it",
            );
        }
    }

    fn url(&self, endpoint: Endpoint) -> String {
        format!("{}{}", self.root, endpoint.path)
    }

    /// The model that `name` means, however it is spelled.
    fn find(&self, name: &str) -> Option<&Known> {
        self.models.get(self.names.find(name)?)
    }

    fn label(&self, name: &str) -> String {
        self.find(name)
            .map_or_else(|| name.to_owned(), |known| known.label.clone())
    }

    fn facts(&self, known: &Known) -> ModelFacts {
        let configured = known
            .names
            .iter()
            .chain([&known.id])
            .find_map(|name| self.contexts.get(name));
        ModelFacts {
            max_context_size: configured.copied().or(known.facts.max_context_size),
            ..known.facts.clone()
        }
    }
}

/// The scalars of a GGUF header that say what its tensors are; not its texts and tokens.
fn header<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<BTreeMap<String, String>>, D::Error> {
    let told = |key: &str| {
        key == "general.architecture"
            || !key.starts_with("general.") && !key.starts_with("tokenizer.")
    };
    text_map(deserializer, told)
}

fn known(stored: Stored) -> Option<Known> {
    let id = stored.id.unwrap_or_default();
    let config = stored.config.unwrap_or_default();
    let label = stored.tags.first().cloned().unwrap_or_else(|| id.clone());
    let quantization = config
        .quantization
        .map(|said| said.trim_start_matches("MOSTLY_").to_owned());
    (!label.is_empty()).then(|| Known {
        label,
        header: config.gguf.map(Arc::new),
        names: stored
            .tags
            .iter()
            .take(MOST_NAMES)
            .map(|tag| canonical(tag))
            .collect(),
        id,
        facts: ModelFacts {
            size: config.size.as_deref().and_then(bytes),
            parameters: config.parameters.as_deref().and_then(parameters),
            quantization,
            architecture: config.architecture,
            backend: None,
            max_context_size: config.context_size.filter(|size| *size > 0.0),
            ..ModelFacts::default()
        },
    })
}

fn contexts(configured: &Configured) -> Vec<(String, f64)> {
    let size = configured
        .config
        .as_ref()
        .and_then(|config| config.context_size);
    let Some(size) = size.filter(|size| *size > 0.0) else {
        return Vec::new();
    };
    let name = configured.model.as_deref().map(canonical);
    name.into_iter()
        .chain(configured.model_id.clone())
        .map(|name| (name, size))
        .collect()
}

/// A number of bytes with its unit: `256.35MiB`, `270.60 MB`, `512B`.
fn bytes(text: &str) -> Option<f64> {
    let (number, unit) = split_unit(text)?;
    match unit.strip_suffix("ib") {
        Some(letter) => scaled(number, letter, 1024.0),
        None => scaled(number, unit.strip_suffix('b').unwrap_or(&unit), 1000.0),
    }
}

/// A number of parameters with its unit: `361.82M`, `1.24 B`.
fn parameters(text: &str) -> Option<f64> {
    let (number, unit) = split_unit(text)?;
    // A billion of them is written with a B.
    scaled(number, if unit == "b" { "g" } else { &unit }, 1000.0)
}

fn split_unit(text: &str) -> Option<(f64, String)> {
    let text = text.trim();
    let digits = text.find(|c: char| !(c.is_ascii_digit() || c == '.'));
    let (number, unit) = text.split_at(digits.unwrap_or(text.len()));
    Some((number.parse().ok()?, unit.trim().to_ascii_lowercase()))
}

fn scaled(number: f64, letter: &str, base: f64) -> Option<f64> {
    let power = match letter {
        "" => 0,
        "k" => 1,
        "m" => 2,
        "g" => 3,
        "t" => 4,
        _ => return None,
    };
    Some((number * base.powi(power)).round())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_spelling_of_a_unit_is_read() {
        for (text, value) in [
            ("256.35MiB", 268_802_458.0),
            ("270.60 MB", 270_600_000.0),
            ("1.50GiB", 1_610_612_736.0),
            ("1.2 GB", 1_200_000_000.0),
            ("1.2GB", 1_200_000_000.0),
            ("0.5 TiB", 549_755_813_888.0),
            ("0.99TB", 990_000_000_000.0),
            ("12 kB", 12_000.0),
            ("12 KiB", 12_288.0),
            ("512B", 512.0),
            ("7", 7.0),
        ] {
            assert_eq!(bytes(text), Some(value), "{text}");
        }
        for (text, value) in [
            ("361.82M", 361_820_000.0),
            ("361.82 M", 361_820_000.0),
            ("512B", 512_000_000_000.0),
            ("1.24B", 1_240_000_000.0),
            ("8.03 B", 8_030_000_000.0),
            ("0.5T", 500_000_000_000.0),
            ("22K", 22_000.0),
        ] {
            assert_eq!(parameters(text), Some(value), "{text}");
        }
        for text in ["", "n/a", "MB", "1.2.3M", "5 parsecs", "-1M"] {
            assert_eq!((bytes(text), parameters(text)), (None, None), "{text}");
        }
    }
}
