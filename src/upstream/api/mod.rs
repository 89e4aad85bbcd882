//! What llama-server (and whoever serves `/stats`) answers, as far as it is used.
//!
//! Every field may be missing or of another type in some build: a number that
//! is no number is then simply not known, and the rest of the answer counts.

pub mod exposition;

use std::collections::BTreeMap;
use std::fmt;
use std::io::Read;
use std::marker::PhantomData;

use serde::Deserialize;
use serde::de::{
    DeserializeOwned, DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor,
};

use crate::bounds;
use crate::upstream::api::exposition::Sample;

/// The most slots that an answer may hold; a real server has at most some hundreds.
pub const MOST_SLOTS: usize = 16_384;
/// The most objects of a list that are looked at.
const MOST_LISTED: usize = 20_000;
/// The most objects of a list that are kept, where all of them are: a real server shows some
/// tens of models, and keeps a thousand requests.
const MOST_KEPT: usize = 1000;
/// The most texts of one list, such as a command line, and their bytes altogether.
const MOST_TEXTS: (usize, usize) = (256, 8 << 10);
/// The most texts of one map, such as a model's header, and their bytes altogether.
const MOST_MAPPED: (usize, usize) = (64, 4 << 10);

/// `GET /health` (`tools/server/server-http.cpp`).
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct Health {
    /// `ok` where all is well; in ik_llama.cpp `no slot available` where every slot is at work.
    #[serde(deserialize_with = "text")]
    pub status: Option<String>,
    /// Slots that have nothing to do; in ik_llama.cpp, and in llama.cpp before September 2024.
    #[serde(deserialize_with = "count")]
    pub slots_idle: Option<f64>,
}

impl Health {
    /// Whether this is what llama-server answers, and not any JSON object.
    pub fn is_recognizable(&self) -> bool {
        matches!(self.status.as_deref(), Some("ok" | "no slot available"))
    }
}

/// `GET /props` (`tools/server/server-context.cpp`).
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct Props {
    /// `b11434-abc`; `b0-unknown` where the builder did not say.
    #[serde(deserialize_with = "text")]
    pub build_info: Option<String>,
    /// What the server calls its model.
    #[serde(deserialize_with = "text")]
    pub model_alias: Option<String>,
    /// The model's file, as on the server's command line.
    #[serde(deserialize_with = "text")]
    pub model_path: Option<String>,
    /// `Q4_K - Medium`; from b10068.
    #[serde(deserialize_with = "text")]
    pub model_ftype: Option<String>,
    /// `router` in router mode.
    #[serde(deserialize_with = "text")]
    pub role: Option<String>,
    /// Slots there are.
    #[serde(deserialize_with = "count")]
    pub total_slots: Option<f64>,
    /// Whether the model is put away; from b7551.
    #[serde(deserialize_with = "flag")]
    pub is_sleeping: Option<bool>,
    /// Holds the context size.
    #[serde(deserialize_with = "object")]
    pub default_generation_settings: Option<GenerationSettings>,
}

/// `default_generation_settings` of [`Props`].
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct GenerationSettings {
    /// Tokens that fit one slot.
    #[serde(deserialize_with = "count")]
    pub n_ctx: Option<f64>,
}

impl Props {
    /// Whether this is an answer of llama-server at all, and not any JSON object.
    pub fn is_recognizable(&self) -> bool {
        self.total_slots.is_some()
            || self.default_generation_settings.is_some()
            || self.build_info.is_some()
            || self.role.is_some()
    }

    /// Whether it is the answer of a router.
    pub fn is_router(&self) -> bool {
        self.role.as_deref() == Some("router")
    }

    /// The number of the build, where `build_info` tells a believable one.
    ///
    /// Builders without the repository at hand leave `b0-unknown` or `b1-…`.
    pub fn build(&self) -> Option<u32> {
        let digits = self.build_info.as_deref()?.strip_prefix('b')?;
        let digits = digits.split('-').next()?;
        digits.parse().ok().filter(|build| *build > 1)
    }
}

/// One model of `GET /v1/models` (also `/models`).
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct ModelEntry {
    /// The alias, or the model's file.
    #[serde(deserialize_with = "text")]
    pub id: Option<String>,
    /// `llamacpp`; other products name themselves or a company.
    #[serde(deserialize_with = "text")]
    pub owned_by: Option<String>,
    /// Facts of the model; null while it loads.
    #[serde(deserialize_with = "object")]
    pub meta: Option<ModelMeta>,
    /// The state of the model, in router mode only.
    #[serde(deserialize_with = "object")]
    pub status: Option<RouterStatus>,
}

/// `status` of a [`ModelEntry`] (`tools/server/server-models.cpp`).
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct RouterStatus {
    /// `unloaded`, `loading`, `loaded`, `sleeping`, `downloading`.
    #[serde(deserialize_with = "text")]
    pub value: Option<String>,
    /// Whether the child ended by an error.
    #[serde(deserialize_with = "flag")]
    pub failed: Option<bool>,
    /// The child's command line.
    #[serde(deserialize_with = "texts")]
    pub args: Vec<String>,
}

/// `meta` of a [`ModelEntry`].
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct ModelMeta {
    /// Parameters.
    #[serde(deserialize_with = "count")]
    pub n_params: Option<f64>,
    /// Bytes of weights.
    #[serde(deserialize_with = "count")]
    pub size: Option<f64>,
    /// `Q4_K - Medium`; from b9873.
    #[serde(deserialize_with = "text")]
    pub ftype: Option<String>,
}

/// One object of `GET /slots`.
#[derive(Clone, Debug, Deserialize)]
#[serde(try_from = "SlotDocument")]
pub struct Slot {
    /// Number of the slot.
    pub id: Option<f64>,
    /// Tokens that fit it.
    pub n_ctx: Option<f64>,
    /// Whether it is at work.
    pub is_processing: bool,
    /// The task it has, or had last; none before the first.
    pub id_task: Option<f64>,
    /// How far generation is.
    pub next_token: Option<NextToken>,
    /// Tokens now in the slot, generated ones included; from b9294.
    pub n_prompt_tokens: Option<f64>,
    /// Prompt tokens computed for the task; from b9294.
    pub n_prompt_tokens_processed: Option<f64>,
    /// Whether it drafts: then one decode call may give it several tokens.
    pub speculative: Option<bool>,
}

/// A [`Slot`] as it is written. Its counts are `int32_t` in llama.cpp.
#[derive(Default, Deserialize)]
#[serde(default)]
struct SlotDocument {
    #[serde(deserialize_with = "count_32")]
    id: Option<f64>,
    #[serde(deserialize_with = "count_32")]
    n_ctx: Option<f64>,
    #[serde(deserialize_with = "flag")]
    is_processing: Option<bool>,
    /// 0: idle, 1: processing; in ik_llama.cpp, and in llama.cpp before November 2024, in place
    /// of `is_processing`.
    #[serde(deserialize_with = "count_32")]
    state: Option<f64>,
    /// −1 for none in ik_llama.cpp.
    #[serde(deserialize_with = "count_32")]
    id_task: Option<f64>,
    /// In an array of one in every recorded build, an object before them and in ik_llama.cpp.
    #[serde(deserialize_with = "object_or_first")]
    next_token: Option<NextToken>,
    #[serde(deserialize_with = "count_32")]
    n_prompt_tokens: Option<f64>,
    #[serde(deserialize_with = "count_32")]
    n_prompt_tokens_processed: Option<f64>,
    #[serde(deserialize_with = "flag")]
    speculative: Option<bool>,
}

impl TryFrom<SlotDocument> for Slot {
    type Error = &'static str;

    fn try_from(document: SlotDocument) -> Result<Slot, &'static str> {
        let by_state = document.state.map(|state| state != 0.0);
        let is_processing = document.is_processing.or(by_state);
        Ok(Slot {
            id: document.id,
            n_ctx: document.n_ctx,
            is_processing: is_processing.ok_or("neither `is_processing` nor `state` is in it")?,
            id_task: document.id_task,
            next_token: document.next_token,
            n_prompt_tokens: document.n_prompt_tokens,
            n_prompt_tokens_processed: document.n_prompt_tokens_processed,
            speculative: document.speculative,
        })
    }
}

impl Slot {
    /// Tokens generated for the task at hand, or the last one (before b10566).
    pub fn decoded(&self) -> f64 {
        self.next_token
            .as_ref()
            .and_then(|token| token.n_decoded)
            .unwrap_or(0.0)
    }

    /// Whether the task at hand has more to generate, or the last one had when it ended.
    pub fn has_next_token(&self) -> bool {
        let next = self.next_token.as_ref();
        next.and_then(|token| token.has_next_token) == Some(true)
    }
}

/// `next_token` of a [`Slot`].
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct NextToken {
    /// Tokens generated.
    #[serde(deserialize_with = "count_32")]
    pub n_decoded: Option<f64>,
    /// Whether there are more to come.
    #[serde(deserialize_with = "flag")]
    pub has_next_token: Option<bool>,
}

/// `GET /slots`: all of them, or an error where there are more than [`MOST_SLOTS`].
#[derive(Debug)]
pub struct Slots(pub Vec<Slot>);

impl<'de> Deserialize<'de> for Slots {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Slots, D::Error> {
        struct All;
        impl<'de> Visitor<'de> for All {
            type Value = Slots;
            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("an array of slots")
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Slots, A::Error> {
                let mut slots = Vec::new();
                while let Some(Object(slot)) = seq.next_element()? {
                    if slots.len() == MOST_SLOTS {
                        return Err(serde::de::Error::custom(
                            "more slots than any real server has",
                        ));
                    }
                    slots.push(slot);
                }
                Ok(Slots(slots))
            }
        }
        deserializer.deserialize_seq(All)
    }
}

/// The `/stats` document of forks and adapters.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Stats {
    /// Memory of the server.
    #[serde(deserialize_with = "object")]
    pub memory: Option<StatsMemory>,
    /// How fast and how hard it works.
    #[serde(deserialize_with = "object")]
    pub performance: Option<StatsPerformance>,
    /// What the model is.
    #[serde(deserialize_with = "object")]
    pub model: Option<StatsModel>,
    /// Batches.
    #[serde(deserialize_with = "object")]
    pub batch: Option<StatsBatch>,
    /// The process.
    #[serde(deserialize_with = "object")]
    pub system: Option<StatsSystem>,
}

impl Stats {
    /// Whether this is the document at all, and not any JSON object.
    pub fn is_recognizable(&self) -> bool {
        self.memory.is_some()
            || self.performance.is_some()
            || self.model.is_some()
            || self.batch.is_some()
            || self.system.is_some()
    }
}

/// `memory` of [`Stats`]; bytes.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
#[allow(missing_docs)]
pub struct StatsMemory {
    #[serde(deserialize_with = "count")]
    pub used_bytes: Option<f64>,
    #[serde(deserialize_with = "count")]
    pub total_bytes: Option<f64>,
    #[serde(deserialize_with = "count")]
    pub kv_cache_bytes: Option<f64>,
    #[serde(deserialize_with = "count")]
    pub kv_cache_max_bytes: Option<f64>,
}

/// `performance` of [`Stats`]; utilizations in percent, temperature in degrees Celsius.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
#[allow(missing_docs)]
pub struct StatsPerformance {
    #[serde(deserialize_with = "measure")]
    pub tokens_per_second: Option<f64>,
    #[serde(deserialize_with = "percent")]
    pub cpu_utilization: Option<f64>,
    #[serde(deserialize_with = "percent")]
    pub gpu_utilization: Option<f64>,
    #[serde(deserialize_with = "celsius")]
    pub temperature: Option<f64>,
}

/// `model` of [`Stats`].
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
#[allow(missing_docs)]
pub struct StatsModel {
    #[serde(deserialize_with = "text")]
    pub name: Option<String>,
    #[serde(deserialize_with = "count")]
    pub size_bytes: Option<f64>,
    #[serde(deserialize_with = "count")]
    pub parameters: Option<f64>,
    #[serde(deserialize_with = "count")]
    pub context_size: Option<f64>,
    #[serde(deserialize_with = "count")]
    pub max_context_size: Option<f64>,
}

/// `batch` of [`Stats`]; latency in milliseconds.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
#[allow(missing_docs)]
pub struct StatsBatch {
    #[serde(deserialize_with = "measure")]
    pub size: Option<f64>,
    #[serde(deserialize_with = "measure")]
    pub optimal_size: Option<f64>,
    #[serde(deserialize_with = "measure")]
    pub latency_ms: Option<f64>,
}

/// `system` of [`Stats`]; status is `idle`, `loading` or `running`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
#[allow(missing_docs)]
pub struct StatsSystem {
    #[serde(deserialize_with = "count")]
    pub threads: Option<f64>,
    #[serde(deserialize_with = "text")]
    pub status: Option<String>,
}

/// The counters and gauges of llama-server's `/metrics` that are used.
///
/// Values have six significant digits: a C++ stream's default.
#[derive(Clone, Debug, Default, PartialEq)]
#[allow(missing_docs)]
pub struct Counters {
    pub prompt_tokens: Option<f64>,
    pub prompt_tokens_cached: Option<f64>,
    pub prompt_seconds: Option<f64>,
    pub predicted_tokens: Option<f64>,
    pub predicted_seconds: Option<f64>,
    pub decode_calls: Option<f64>,
    pub tokens_max: Option<f64>,
    pub draft_tokens: Option<f64>,
    pub draft_tokens_accepted: Option<f64>,
    pub requests_processing: Option<f64>,
    pub requests_deferred: Option<f64>,
    pub busy_slots_per_decode: Option<f64>,
    /// In ik_llama.cpp, and in llama.cpp before July 2025.
    pub kv_cache_usage_ratio: Option<f64>,
}

/// How far apart two values near `value` are in six significant digits.
pub fn six_digit_step(value: f64) -> f64 {
    if value > 0.0 {
        10f64.powf(value.log10().floor() - 5.0)
    } else {
        0.0
    }
}

/// How far apart two counts near `count` are as they are printed: 0 below a million, where
/// every whole number has its own six digits.
pub fn printed_step(count: f64) -> f64 {
    if count < 1e6 {
        0.0
    } else {
        six_digit_step(count)
    }
}

/// What llama.cpp's own families begin with.
const PREFIX: &str = "llamacpp:";

/// The labels that say which model a sample is of: those of Docker Model Runner and of proxies
/// that put the texts of several servers together. The first that there is counts.
const MODEL_LABELS: [&str; 3] = ["model", "model_name", "model_id"];

/// The models of which one text may tell.
const MOST_LABELLED: usize = 1000;

/// The samples of an upstream's `/metrics` that are used, by the model that they are of.
#[derive(Clone, Debug, Default)]
pub struct CountersByModel {
    /// By the model's label (no label: `None`) and the label `mode`.
    counters: BTreeMap<(Option<String>, Option<String>), Labelled>,
    /// Whether any of llama.cpp's families is there.
    is_llama_cpps: bool,
    /// Lines that are no sample, and were passed over.
    pub passed_over: u64,
}

/// The samples of one model.
#[derive(Clone, Debug, Default)]
struct Labelled {
    counters: Counters,
    /// The families that a sample was taken from.
    families: Vec<&'static str>,
    /// A family that has several samples: which of them is meant is not known.
    ambiguous: Option<&'static str>,
}

impl CountersByModel {
    /// Reads an exposition; of the samples with `llamacpp:` in their name, those that `wanted` says.
    ///
    /// # Errors
    /// It is no exposition, or is cut short; or reading it failed.
    pub fn read(
        text: impl Read,
        wanted: impl Fn(&Sample) -> bool,
    ) -> Result<CountersByModel, String> {
        let mut read = CountersByModel::default();
        read.passed_over = exposition::read(text, |sample| {
            let Some(name) = sample.name.strip_prefix(PREFIX) else {
                return;
            };
            read.is_llama_cpps = true;
            if let Some(family) = USED.iter().find(|family| family.name == name)
                && wanted(sample)
            {
                // In Prometheus' data model an empty label is no label.
                let label = |name| sample.label(name).filter(|value| !value.is_empty());
                let cut = |value: Option<&str>| Some(bounds::cut(value?).to_owned());
                let key = (
                    cut(MODEL_LABELS.into_iter().find_map(label)),
                    cut(label("mode")),
                );
                if read.counters.len() < MOST_LABELLED || read.counters.contains_key(&key) {
                    read.counters
                        .entry(key)
                        .or_default()
                        .take(family, sample.value);
                }
            }
        })?;
        Ok(read)
    }

    /// The counters of a server of one model, which it calls by any of `names`.
    ///
    /// # Errors
    /// None of llama.cpp's families is there; or whose the samples are cannot be told: they are
    /// of other models, or of several that the text does not tell apart.
    pub fn of_server(mut self, names: &[&str]) -> Result<Counters, String> {
        let is_this = |(model, _): &(Option<String>, Option<String>)| {
            model.as_deref().is_none_or(|model| names.contains(&model))
        };
        let (own, others): (Vec<_>, Vec<_>) = self.counters.keys().cloned().partition(is_this);
        match (&own[..], &others[..]) {
            ([], []) if self.is_llama_cpps => Ok(Counters::default()),
            ([], []) => Err("holds no llamacpp: metric".to_owned()),
            ([key], _) if key.0.is_some() || others.is_empty() => {
                self.counters.remove(key).unwrap_or_default().told()
            }
            // Without a name there is nothing that it could contradict.
            ([], [key]) if names.is_empty() => self.counters.remove(key).unwrap_or_default().told(),
            _ => {
                let labels = own.iter().chain(&others).map(|(model, _)| model.as_deref());
                let labels: Vec<_> = labels.map(|l| l.unwrap_or_default()).take(5).collect();
                Err(format!(
                    "holds samples of the models {labels:?}, and not of {} alone: they are not used",
                    names.first().unwrap_or(&"one"),
                ))
            }
        }
    }

    /// The counters of each model and mode that has a label; `None` where it cannot be told
    /// whose they are.
    pub fn by_label(self) -> impl Iterator<Item = (String, Option<String>, Option<Counters>)> {
        let told = |((model, mode), labelled): ((Option<String>, _), Labelled)| {
            Some((model?, mode, labelled.told().ok()))
        };
        self.counters.into_iter().filter_map(told)
    }
}

impl Labelled {
    fn take(&mut self, family: &Used, value: f64) {
        if self.families.contains(&family.name) {
            self.ambiguous = Some(family.name);
        }
        self.families.push(family.name);
        *(family.place)(&mut self.counters) = Some(value).filter(|value| (family.holds)(*value));
    }

    fn told(self) -> Result<Counters, String> {
        match self.ambiguous {
            None => Ok(self.counters),
            Some(family) => Err(format!(
                "holds several samples of {PREFIX}{family} for one model: whose they are cannot \
                 be told"
            )),
        }
    }
}

/// A family of llama-server's `/metrics` that is used.
struct Used {
    /// Behind `llamacpp:`.
    name: &'static str,
    place: fn(&mut Counters) -> &mut Option<f64>,
    /// What holds of its values; others are not known.
    holds: fn(f64) -> bool,
}

const fn used(
    name: &'static str,
    holds: fn(f64) -> bool,
    place: fn(&mut Counters) -> &mut Option<f64>,
) -> Used {
    Used { name, place, holds }
}

#[rustfmt::skip] // a table reads as a table
const USED: &[Used] = &[
    used("prompt_tokens_total", is_count, |c| &mut c.prompt_tokens),
    used("prompt_tokens_cached_total", is_count, |c| &mut c.prompt_tokens_cached),
    used("prompt_seconds_total", is_measure, |c| &mut c.prompt_seconds),
    used("tokens_predicted_total", is_count, |c| &mut c.predicted_tokens),
    used("tokens_predicted_seconds_total", is_measure, |c| &mut c.predicted_seconds),
    used("n_decode_total", is_count, |c| &mut c.decode_calls),
    used("n_tokens_max", is_count, |c| &mut c.tokens_max),
    used("spec_decode_num_draft_tokens_total", is_count, |c| &mut c.draft_tokens),
    used("spec_decode_num_accepted_tokens_total", is_count, |c| &mut c.draft_tokens_accepted),
    used("requests_processing", is_count, |c| &mut c.requests_processing),
    used("requests_deferred", is_count, |c| &mut c.requests_deferred),
    used("n_busy_slots_per_decode", is_measure, |c| &mut c.busy_slots_per_decode),
    used("kv_cache_usage_ratio", is_ratio, |c| &mut c.kv_cache_usage_ratio),
];

impl Counters {
    /// Whether a request is on a slot or waits for one.
    pub fn is_busy(&self) -> bool {
        self.requests_processing.unwrap_or(0.0) > 0.0 || self.requests_deferred.unwrap_or(0.0) > 0.0
    }
}

/// The largest number up to which every whole one is exact: 2^53.
const LARGEST: f64 = 9_007_199_254_740_992.0;

fn is_measure(value: f64) -> bool {
    (0.0..=LARGEST).contains(&value)
}

fn is_ratio(value: f64) -> bool {
    (0.0..=1.0).contains(&value)
}

fn is_count(value: f64) -> bool {
    is_measure(value) && value.fract() == 0.0
}

/// Any JSON value, seen as the one scalar that it may be.
enum Scalar {
    Number(f64),
    Text(String),
    Flag(bool),
    Other,
}

impl<'de> Deserialize<'de> for Scalar {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Scalar, D::Error> {
        struct Any;
        impl<'de> Visitor<'de> for Any {
            type Value = Scalar;
            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("any value")
            }
            fn visit_bool<E>(self, value: bool) -> Result<Scalar, E> {
                Ok(Scalar::Flag(value))
            }
            fn visit_i64<E>(self, value: i64) -> Result<Scalar, E> {
                Ok(Scalar::Number(value as f64))
            }
            fn visit_u64<E>(self, value: u64) -> Result<Scalar, E> {
                Ok(Scalar::Number(value as f64))
            }
            fn visit_f64<E>(self, value: f64) -> Result<Scalar, E> {
                Ok(Scalar::Number(value))
            }
            fn visit_str<E>(self, value: &str) -> Result<Scalar, E> {
                Ok(Scalar::Text(bounds::cut(value).to_owned()))
            }
            fn visit_unit<E>(self) -> Result<Scalar, E> {
                Ok(Scalar::Other)
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Scalar, A::Error> {
                while seq.next_element::<IgnoredAny>()?.is_some() {}
                Ok(Scalar::Other)
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Scalar, A::Error> {
                while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
                Ok(Scalar::Other)
            }
        }
        deserializer.deserialize_any(Any)
    }
}

fn number_where<'de, D: Deserializer<'de>>(
    deserializer: D,
    holds: impl Fn(f64) -> bool,
) -> Result<Option<f64>, D::Error> {
    Ok(match Scalar::deserialize(deserializer)? {
        Scalar::Number(value) if holds(value) => Some(value),
        _ => None,
    })
}

/// See [`Scalar`].
pub fn count<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<f64>, D::Error> {
    number_where(deserializer, is_count)
}

fn count_32<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<f64>, D::Error> {
    number_where(deserializer, |value| {
        is_count(value) && value <= f64::from(i32::MAX)
    })
}

/// See [`Scalar`].
pub fn measure<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<f64>, D::Error> {
    number_where(deserializer, is_measure)
}

/// See [`Scalar`].
pub fn percent<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<f64>, D::Error> {
    number_where(deserializer, |value| (0.0..=100.0).contains(&value))
}

/// See [`Scalar`].
pub fn celsius<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<f64>, D::Error> {
    number_where(deserializer, |value| value.is_finite() && value >= -273.15)
}

/// See [`Scalar`].
pub fn text<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    Ok(match Scalar::deserialize(deserializer)? {
        Scalar::Text(text) if !text.is_empty() => Some(text),
        _ => None,
    })
}

/// See [`Scalar`].
pub fn flag<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<bool>, D::Error> {
    Ok(match Scalar::deserialize(deserializer)? {
        Scalar::Flag(flag) => Some(flag),
        _ => None,
    })
}

/// An answer that must be an object: serde alone would take an array for a struct.
#[derive(Debug)]
pub struct Object<T>(pub T);

impl<'de, T: DeserializeOwned> Deserialize<'de> for Object<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Object<T>, D::Error> {
        struct Strict<T>(PhantomData<T>);
        impl<'de, T: DeserializeOwned> Visitor<'de> for Strict<T> {
            type Value = Object<T>;
            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("an object")
            }
            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Object<T>, A::Error> {
                T::deserialize(serde::de::value::MapAccessDeserializer::new(map)).map(Object)
            }
        }
        deserializer.deserialize_map(Strict(PhantomData))
    }
}

/// Takes an object, and anything else for none.
pub fn object<'de, D: Deserializer<'de>, T: DeserializeOwned>(
    deserializer: D,
) -> Result<Option<T>, D::Error> {
    deserializer.deserialize_any(LenientVisitor(ObjectOf {
        first_of_array: false,
        wanted: PhantomData,
    }))
}

/// Takes an object, or the first of an array of them, and anything else for none.
fn object_or_first<'de, D: Deserializer<'de>, T: DeserializeOwned>(
    deserializer: D,
) -> Result<Option<T>, D::Error> {
    deserializer.deserialize_any(LenientVisitor(ObjectOf {
        first_of_array: true,
        wanted: PhantomData,
    }))
}

/// What is made of an array or an object; any other value is nothing.
trait Lenient<'de>: Sized {
    type Value: Default;

    fn array<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
        while seq.next_element::<IgnoredAny>()?.is_some() {}
        Ok(Self::Value::default())
    }

    fn object<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(Self::Value::default())
    }
}

struct LenientVisitor<T>(T);

impl<'de, T: Lenient<'de>> Visitor<'de> for LenientVisitor<T> {
    type Value = T::Value;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("any value")
    }
    fn visit_seq<A: SeqAccess<'de>>(self, seq: A) -> Result<T::Value, A::Error> {
        self.0.array(seq)
    }
    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<T::Value, A::Error> {
        self.0.object(map)
    }
    fn visit_bool<E>(self, _: bool) -> Result<T::Value, E> {
        Ok(T::Value::default())
    }
    fn visit_i64<E>(self, _: i64) -> Result<T::Value, E> {
        Ok(T::Value::default())
    }
    fn visit_u64<E>(self, _: u64) -> Result<T::Value, E> {
        Ok(T::Value::default())
    }
    fn visit_f64<E>(self, _: f64) -> Result<T::Value, E> {
        Ok(T::Value::default())
    }
    fn visit_str<E>(self, _: &str) -> Result<T::Value, E> {
        Ok(T::Value::default())
    }
    fn visit_unit<E>(self) -> Result<T::Value, E> {
        Ok(T::Value::default())
    }
}

struct ObjectOf<T> {
    first_of_array: bool,
    wanted: PhantomData<T>,
}

impl<'de, T: DeserializeOwned> Lenient<'de> for ObjectOf<T> {
    type Value = Option<T>;

    fn object<A: MapAccess<'de>>(self, map: A) -> Result<Option<T>, A::Error> {
        T::deserialize(serde::de::value::MapAccessDeserializer::new(map)).map(Some)
    }
    fn array<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Option<T>, A::Error> {
        let first = if self.first_of_array {
            seq.next_element()?
        } else {
            None
        };
        while seq.next_element::<IgnoredAny>()?.is_some() {}
        Ok(first)
    }
}

/// Hands the objects of an array to `take` as they are read, the first [`MOST_LISTED`] of
/// them, and holds none. Gives whether there was an array, and not null.
pub struct Each<T, F> {
    take: F,
    what: PhantomData<T>,
}

impl<T, F: FnMut(T)> Each<T, F> {
    /// Hands them to `take`.
    pub fn new(take: F) -> Each<T, F> {
        Each {
            take,
            what: PhantomData,
        }
    }
}

impl<'de, T: DeserializeOwned, F: FnMut(T)> DeserializeSeed<'de> for Each<T, F> {
    type Value = bool;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<bool, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de, T: DeserializeOwned, F: FnMut(T)> Visitor<'de> for Each<T, F> {
    type Value = bool;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("an array of objects")
    }
    fn visit_seq<A: SeqAccess<'de>>(mut self, mut seq: A) -> Result<bool, A::Error> {
        for _ in 0..MOST_LISTED {
            match seq.next_element()? {
                Some(Object(object)) => (self.take)(object),
                None => return Ok(true),
            }
        }
        while seq.next_element::<IgnoredAny>()?.is_some() {}
        Ok(true)
    }
    fn visit_unit<E>(self) -> Result<bool, E> {
        Ok(false)
    }
}

/// As [`Each`], for an object that has the array under `key`: `{"data":[…]}`. Gives whether
/// there is such a key; an empty list is null in what is written in Go.
pub struct EachIn<T, F> {
    key: &'static str,
    each: Each<T, F>,
}

impl<T, F: FnMut(T)> EachIn<T, F> {
    /// Hands those under `key` to `take`.
    pub fn new(key: &'static str, take: F) -> EachIn<T, F> {
        EachIn {
            key,
            each: Each::new(take),
        }
    }
}

impl<'de, T: DeserializeOwned, F: FnMut(T)> DeserializeSeed<'de> for EachIn<T, F> {
    type Value = bool;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<bool, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de, T: DeserializeOwned, F: FnMut(T)> Visitor<'de> for EachIn<T, F> {
    type Value = bool;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "an object with a list `{}`", self.key)
    }
    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<bool, A::Error> {
        // Only the first of that name counts.
        let mut each = Some(self.each);
        let mut found = false;
        while let Some(key) = map.next_key::<String>()? {
            match each.take_if(|_| key == self.key) {
                Some(each) => {
                    map.next_value_seed(each)?;
                    found = true;
                }
                None => {
                    map.next_value::<IgnoredAny>()?;
                }
            }
        }
        Ok(found)
    }
}

/// The texts of an object by those of its keys that are `wanted`; other values are passed over.
/// None where there are more than [`MOST_MAPPED`]: a part of them could mean something else.
pub fn text_map<'de, D: Deserializer<'de>>(
    deserializer: D,
    wanted: fn(&str) -> bool,
) -> Result<Option<BTreeMap<String, String>>, D::Error> {
    deserializer.deserialize_any(LenientVisitor(TextMap { wanted }))
}

struct TextMap {
    wanted: fn(&str) -> bool,
}

impl<'de> Lenient<'de> for TextMap {
    type Value = Option<BTreeMap<String, String>>;

    fn object<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut texts = BTreeMap::new();
        let mut room = Room::new(MOST_MAPPED);
        while let Some(key) = map.next_key::<String>()? {
            let value: Scalar = map.next_value()?;
            if let Scalar::Text(text) = value
                && (self.wanted)(&key)
                && room.takes(key.len().saturating_add(text.len()))
            {
                texts.insert(key, text);
            }
        }
        Ok(Some(texts).filter(|_| !room.is_exceeded))
    }
}

/// The texts of an array; what is none of them, and any other value, is passed over. None of
/// them where there are more than [`MOST_TEXTS`]: a part of them could mean something else.
pub fn texts<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    deserializer.deserialize_any(LenientVisitor(Texts))
}

struct Texts;

impl<'de> Lenient<'de> for Texts {
    type Value = Vec<String>;

    fn array<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Vec<String>, A::Error> {
        let mut texts = Vec::new();
        let mut room = Room::new(MOST_TEXTS);
        while let Some(scalar) = seq.next_element()? {
            if let Scalar::Text(text) = scalar
                && room.takes(text.len())
            {
                texts.push(text);
            }
        }
        if room.is_exceeded {
            texts = Vec::new();
        }
        Ok(texts)
    }
}

/// How much more may be kept.
struct Room {
    items: usize,
    bytes: usize,
    is_exceeded: bool,
}

impl Room {
    fn new((items, bytes): (usize, usize)) -> Room {
        Room {
            items,
            bytes,
            is_exceeded: false,
        }
    }

    /// Whether one more item of so many bytes may be kept.
    fn takes(&mut self, bytes: usize) -> bool {
        match (self.items.checked_sub(1), self.bytes.checked_sub(bytes)) {
            (Some(items), Some(bytes)) if !self.is_exceeded => {
                (self.items, self.bytes) = (items, bytes);
                true
            }
            _ => {
                self.is_exceeded = true;
                false
            }
        }
    }
}

/// Takes the objects of a list and keeps the first [`MOST_KEPT`] of them.
pub fn keep<T>(list: &mut Vec<T>) -> impl FnMut(T) {
    |object| {
        if list.len() < MOST_KEPT {
            list.push(object);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_shapes_of_next_token_are_read() {
        for shape in [r#"[{"n_decoded":7}]"#, r#"{"n_decoded":7}"#] {
            let json =
                format!(r#"[{{"id":0,"is_processing":true,"id_task":3,"next_token":{shape}}}]"#);
            let Slots(slots) = serde_json::from_str(&json).unwrap();
            assert_eq!(slots[0].decoded(), 7.0, "{shape}");
        }
    }

    #[test]
    fn a_slot_without_is_processing_tells_by_its_state() {
        let json = r#"[{"id":0,"id_task":17,"state":1,"next_token":{"n_decoded":136}},
            {"id":1,"id_task":-1,"state":0,"next_token":{"n_decoded":0}},
            {"id":2,"is_processing":true,"state":0}]"#;
        let Slots(slots) = serde_json::from_str(json).unwrap();
        let told = slots
            .iter()
            .map(|slot| (slot.is_processing, slot.id_task, slot.decoded()));
        assert_eq!(
            told.collect::<Vec<_>>(),
            [
                (true, Some(17.0), 136.0),
                (false, None, 0.0),
                (true, None, 0.0)
            ]
        );
    }

    #[test]
    fn a_number_of_another_type_is_not_known_and_the_rest_counts() {
        let json = r#"[{"id":0,"is_processing":false,"n_ctx":"many","id_task":[1,{}],"next_token":3,"n_prompt_tokens":-1,"params":{"a":[{}]}}]"#;
        let Slots(slots) = serde_json::from_str(json).unwrap();
        assert_eq!(
            (slots[0].id, slots[0].n_ctx, slots[0].id_task),
            (Some(0.0), None, None)
        );
        assert_eq!((slots[0].n_prompt_tokens, slots[0].decoded()), (None, 0.0));
    }

    #[test]
    fn what_is_no_array_of_slots_is_refused() {
        for json in [
            "{}",
            "[{}]",
            "[1]",
            "[[0,1,true]]",
            "null",
            r#"[{"is_processing":1}]"#,
        ] {
            assert!(serde_json::from_str::<Slots>(json).is_err(), "{json}");
        }
    }

    #[test]
    fn more_slots_than_any_server_has_are_refused() {
        let slot = r#"{"is_processing":false}"#;
        let json = format!("[{}]", vec![slot; MOST_SLOTS + 1].join(","));
        assert!(serde_json::from_str::<Slots>(&json).is_err());
    }

    #[test]
    fn a_build_is_told_only_by_a_believable_number() {
        for (info, build) in [
            ("b11434-abc", Some(11434)),
            ("b7376", Some(7376)),
            ("b0-unknown", None),
            ("b1-deadbee", None),
            ("v1.2", None),
        ] {
            let props = Props {
                build_info: Some(info.to_owned()),
                ..Props::default()
            };
            assert_eq!(props.build(), build, "{info}");
        }
    }

    #[test]
    fn stats_out_of_range_are_not_known() {
        let json = r#"{"performance":{"cpu_utilization":101,"gpu_utilization":"99","temperature":-300,"tokens_per_second":12.5},"model":7}"#;
        let stats: Stats = serde_json::from_str(json).unwrap();
        let performance = stats.performance.unwrap();
        assert_eq!(performance.tokens_per_second, Some(12.5));
        assert_eq!(
            (
                performance.cpu_utilization,
                performance.gpu_utilization,
                performance.temperature
            ),
            (None, None, None)
        );
        assert!(stats.model.is_none());
    }

    #[test]
    fn values_that_are_no_counts_are_not_known() {
        let counters = of_server(
            "llamacpp:n_decode_total NaN\nllamacpp:prompt_tokens_total -1\n\
             llamacpp:n_tokens_max 0.5\nllamacpp:tokens_predicted_total 5\n",
            &[],
        )
        .unwrap();
        let expected = Counters {
            predicted_tokens: Some(5.0),
            ..Counters::default()
        };
        assert_eq!(counters, expected);
    }

    #[test]
    fn another_programs_metrics_are_not_llama_cpps() {
        assert!(of_server("node_load1 0.5\n", &[]).is_err());
    }

    fn of_server(text: &str, names: &[&str]) -> Result<Counters, String> {
        CountersByModel::read(text.as_bytes(), |_| true)?.of_server(names)
    }

    /// One sample of the tokens generated, with these labels.
    fn generated(labels: &str, tokens: u32) -> String {
        format!("llamacpp:tokens_predicted_total{labels} {tokens}\n")
    }

    #[test]
    fn samples_of_several_models_are_told_apart_by_their_label() {
        let (a, b) = (generated("{model=\"a\"}", 1), generated("{model=\"b\"}", 2));
        let bare = generated("", 3);
        let of_tomorrow = "llamacpp:of_tomorrow{model=\"b\",position=\"0\"} 1\n".to_owned();
        let many: String = (0..3000)
            .map(|number| generated(&format!("{{model=\"m{number}\"}}"), 4))
            .collect();
        for (text, names, tokens) in [
            (bare.clone(), &[][..], Some(3.0)),
            (bare.clone(), &["a"], Some(3.0)),
            (a.clone(), &[], Some(1.0)),
            (a.clone(), &["b", "a"], Some(1.0)),
            (a.clone() + &b, &["b"], Some(2.0)),
            (a.clone() + &b + &bare, &["a"], None),
            (b.clone() + &many, &["b"], Some(2.0)),
            // Another model's number is not shown under this one's name.
            (a.clone(), &["b"], None),
            (a.clone() + &b, &["c"], None),
            (a.clone() + &b, &["a", "b"], None),
            (a.clone() + &b, &[], None),
            (bare.clone() + &b, &["a"], None),
            (bare.clone() + &of_tomorrow, &["a"], Some(3.0)),
            // Nor one of several that nothing tells apart.
            (bare.clone() + &bare, &["a"], None),
            (
                generated("{server=\"x\"}", 1) + &generated("{server=\"y\"}", 2),
                &["a"],
                None,
            ),
            (a.clone() + &a, &["a"], None),
            // Other spellings of the label, and none.
            (
                a.replace("model", "model_name") + &b.replace("model", "model_name"),
                &["b"],
                Some(2.0),
            ),
            (a.replace("model", "model_id"), &["b"], None),
            (generated("{model=\"\"}", 4), &["a"], Some(4.0)),
            (many, &["a"], None),
        ] {
            let told = of_server(&text, names).map(|counters| counters.predicted_tokens);
            assert_eq!(
                told.clone().ok().flatten(),
                tokens,
                "{text:.500} {names:?}: {told:?}"
            );
        }
    }
}
