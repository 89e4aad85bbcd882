//! Docker Model Runner's store of models: their names and facts.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::{Deserialize, Deserializer};

use crate::bounds::lenient::{count, object, text, text_map, texts};
use crate::readings::ModelFacts;
use crate::upstream::api::units;
use crate::upstream::http::endpoint::Endpoint;
use crate::upstream::http::exchange::Exchange;
use crate::upstream::model_limit::LimitedModels;
use crate::upstream::model_runner::model_names::{NameIndex, Spellings, canonical, digest};
use crate::upstream::server_url::ServerUrl;

/// Contains the scalars of every model's GGUF header: some KB per model.
const MODELS: Endpoint = Endpoint::new("/models", 128 << 20);
const CONFIGURE: Endpoint = Endpoint::new("/engines/_configure", 4 << 20);
const DISK_USAGE: Endpoint = Endpoint::new("/engines/df", 64 << 10);

/// The endpoints that are read.
pub const ENDPOINTS: [Endpoint; 3] = [MODELS, CONFIGURE, DISK_USAGE];

/// How long the list of models is reused: for each request, Docker Model Runner reads its whole
/// store and writes to its log.
const LIST_LIFETIME: Duration = Duration::from_secs(60);

/// The most names of one model that are kept.
const MOST_NAMES: usize = 8;

/// The store at the last reading.
#[derive(Default)]
pub struct Store {
    /// Limited by [`LimitedModels`], running models first: a store may hold thousands.
    models: Vec<StoredModel>,
    /// Finds a model in that list.
    index: NameIndex,
    /// Whether there are more models than the limit.
    pub is_truncated: bool,
    read_at: Option<Instant>,
    /// Names of runners that are not in the list.
    unlisted: BTreeSet<String>,
    /// The configured context sizes, by canonical name or ID.
    context_sizes: BTreeMap<String, f64>,
    /// Bytes.
    pub disk_usage: Option<f64>,
}

/// A model in the store.
#[derive(Clone, Debug)]
pub struct StoredModel {
    /// The label `model`.
    label: String,
    id: String,
    /// Canonical names.
    names: Vec<String>,
    facts: ModelFacts,
    /// The scalars of its GGUF header, as text.
    pub header: Option<Arc<BTreeMap<String, String>>>,
}

/// One object of `/models`.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct ModelDocument {
    #[serde(deserialize_with = "text")]
    id: Option<String>,
    #[serde(deserialize_with = "texts")]
    tags: Vec<String>,
    #[serde(deserialize_with = "object")]
    config: Option<ModelConfig>,
}

/// `config` of a [`ModelDocument`].
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct ModelConfig {
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
struct RunnerConfiguration {
    #[serde(rename = "Model", deserialize_with = "text")]
    model: Option<String>,
    #[serde(rename = "ModelID", deserialize_with = "text")]
    model_id: Option<String>,
    #[serde(rename = "Config", deserialize_with = "object")]
    config: Option<RunnerOptions>,
}

/// `Config` of a [`RunnerConfiguration`].
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct RunnerOptions {
    #[serde(rename = "context-size", deserialize_with = "count")]
    context_size: Option<f64>,
}

/// `GET /engines/df`.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct DiskUsage {
    #[serde(deserialize_with = "count")]
    models_disk_usage: Option<f64>,
}

impl Store {
    /// Whether the list is too old, or lacks one of the `running` names that was not looked up yet.
    pub fn is_outdated(&self, running: &[&str]) -> bool {
        let is_new = |name: &&str| self.find(name).is_none() && !self.unlisted.contains(*name);
        self.read_at.is_none_or(|at| at.elapsed() >= LIST_LIFETIME) || running.iter().any(is_new)
    }

    /// Reads the store; keeps the `running` models first. Returns whether a response is late: then
    /// no further request should be sent.
    pub fn read(&mut self, exchange: &mut Exchange, url: &ServerUrl, running: &[&str]) -> bool {
        let spellings = Spellings::of(running);
        let models = exchange.get(MODELS, &url.of(MODELS), |answer| {
            let mut models = LimitedModels::default();
            answer.for_each(|document: ModelDocument| {
                if let Some(model) = StoredModel::new(document) {
                    let is_running = spellings.matches(&model.id, &model.names);
                    models.push(model, is_running);
                }
            })?;
            Ok(models.finish())
        });
        if models.timed_out() {
            return true;
        }
        if let Some((models, is_truncated)) = models.ok() {
            let names = models
                .iter()
                .map(|model| (model.id.as_str(), model.names.as_slice()));
            self.index = NameIndex::new(names);
            self.models = models;
            self.is_truncated = is_truncated;
            self.read_at = Some(Instant::now());
            let unlisted = running.iter().filter(|name| self.find(name).is_none());
            self.unlisted = unlisted.map(|name| (*name).to_owned()).collect();
        }
        let configured = exchange.get(CONFIGURE, &url.of(CONFIGURE), |answer| {
            let configured: Vec<RunnerConfiguration> = answer.list()?.unwrap_or_default();
            Ok(configured.into_iter().flat_map(context_sizes).collect())
        });
        if let Some(context_sizes) = configured.ok() {
            self.context_sizes = context_sizes;
        }
        let disk_usage = exchange.get(DISK_USAGE, &url.of(DISK_USAGE), |answer| {
            answer
                .object()
                .map(|document: DiskUsage| document.models_disk_usage)
        });
        self.disk_usage = disk_usage.ok().flatten();
        false
    }

    /// The model with this name or ID, in any spelling.
    pub fn find(&self, name: &str) -> Option<&StoredModel> {
        self.models.get(self.index.find(name)?)
    }

    /// The label of the model with this name or ID.
    pub fn label(&self, name: &str) -> String {
        self.find(name)
            .map_or(name, |model| &model.label)
            .to_owned()
    }

    /// The facts of a model, with the context size that was configured for it.
    pub fn facts(&self, model: &StoredModel) -> ModelFacts {
        let mut names = model.names.iter().chain([&model.id]);
        let configured = names.find_map(|name| self.context_sizes.get(name));
        ModelFacts {
            max_context_size: configured.copied().or(model.facts.max_context_size),
            ..model.facts.clone()
        }
    }

    /// The label and the facts of each model.
    pub fn models(&self) -> impl Iterator<Item = (&str, ModelFacts)> {
        self.models
            .iter()
            .map(|model| (model.label.as_str(), self.facts(model)))
    }

    /// Whether a model has this label.
    pub fn has_label(&self, label: &str) -> bool {
        self.models.iter().any(|model| model.label == label)
    }
}

impl StoredModel {
    /// `None` if it has no name.
    fn new(document: ModelDocument) -> Option<StoredModel> {
        let id = document.id.unwrap_or_default();
        let config = document.config.unwrap_or_default();
        let label = document.tags.first().unwrap_or(&id).clone();
        let quantization = config.quantization;
        (!label.is_empty()).then(|| StoredModel {
            label,
            header: config.gguf.map(Arc::new),
            names: document
                .tags
                .iter()
                .take(MOST_NAMES)
                .map(|tag| canonical(tag))
                .collect(),
            id,
            facts: ModelFacts {
                size: config.size.as_deref().and_then(units::bytes),
                parameters: config.parameters.as_deref().and_then(units::parameters),
                quantization: quantization.map(|q| q.trim_start_matches("MOSTLY_").to_owned()),
                architecture: config.architecture,
                max_context_size: config.context_size.filter(|size| *size > 0.0),
                ..ModelFacts::default()
            },
        })
    }

    /// The digest in its ID, if it has one.
    pub fn digest(&self) -> Option<&str> {
        digest(&self.id)
    }
}

/// The scalars of a GGUF header that describe the tensors, without general texts and the tokenizer.
fn header<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<BTreeMap<String, String>>, D::Error> {
    let is_used = |key: &str| {
        key == "general.architecture"
            || !key.starts_with("general.") && !key.starts_with("tokenizer.")
    };
    text_map(deserializer, is_used)
}

/// The configured context size, by each name of its model.
fn context_sizes(configured: RunnerConfiguration) -> Vec<(String, f64)> {
    let size = configured.config.and_then(|config| config.context_size);
    let Some(size) = size.filter(|size| *size > 0.0) else {
        return Vec::new();
    };
    let name = configured.model.as_deref().map(canonical);
    let names = [name, configured.model_id].into_iter().flatten();
    names.map(|name| (name, size)).collect()
}
