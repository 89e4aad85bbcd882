//! Latencies from Docker Model Runner's records of the last requests (`GET /engines/requests`).
//!
//! A record holds a whole request and its response. Only numbers leave this file: a text is held
//! no longer than it takes to find them in it. How the records are fetched is passed in.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{BufReader, Read};
use std::marker::PhantomData;
use std::mem;

use serde::Deserialize;
use serde::de::{DeserializeOwned, Deserializer, IgnoredAny, SeqAccess, Visitor};

use crate::bounds;
use crate::bounds::json::{LimitedJson, StringLimits};
use crate::bounds::label_enum::label_enum;
use crate::bounds::lenient::count_32;
use crate::readings::TokenTotals;
use crate::requests::{
    PhaseTiming, RequestEnd, RequestSource, RequestTimings, Requests, increment, zero_completions,
};
use crate::snapshot::{Outcome, RequestFigures};

/// The records' entry among the sources.
pub static SOURCE: RequestSource = RequestSource {
    label: "records",
    zero: || RequestFigures {
        outcomes: [Outcome::Ok, Outcome::Error]
            .map(|outcome| (outcome, 0))
            .into(),
        errors: USUAL_ERRORS.map(|status| (status, 0)).into(),
        record_gaps: Some(0),
        ..zero_completions()
    },
};

/// The statuses that Docker Model Runner and llama-server give a completion that fails. They
/// count from zero, others from their first.
pub(super) const USUAL_ERRORS: [u16; 6] = [400, 404, 429, 500, 502, 503];
/// What an error without a valid status counts as.
const UNKNOWN_ERROR: u16 = 500;
/// How many records of a model the server keeps.
const SERVER_LIMIT: usize = 10;
/// The most models, and records of each, that are read.
const MAX_MODELS: usize = 500;
const MAX_RECORDS: usize = 50;
/// The most pairs of label and mode whose tokens are added up.
const MAX_TOTALS: usize = 1000;
/// The middle of a longer response is not read: the `usage` of an embedding is before its
/// numbers, and the timings of a completion are at its end.
const RESPONSE_LIMITS: StringLimits = StringLimits {
    head: 64 << 10,
    tail: 64 << 10,
};

/// What to do with the records of a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RecordsUse {
    /// Count those that are new.
    Count,
    /// Count none: another source has counted them.
    Skip,
    /// Nothing yet: those that are new now are still new later.
    Later,
}

/// Counts the requests of the records that are new.
#[derive(Debug, Default)]
pub struct Records {
    /// The records of each model when the server last had any of it.
    known: BTreeMap<String, KnownRecords>,
    /// Whether records were read before: those that were there at the start are not counted.
    has_started: bool,
    /// The tokens of the requests that were counted, by label and mode.
    tokens: BTreeMap<(String, RequestMode), TokenTotals>,
}

/// Records of one model, and whether the request of each had ended, and so was counted.
type KnownRecords = HashMap<RecordId, bool>;

impl Records {
    /// Reads one response, and counts what is new in it. `label` turns the server's name of a
    /// model into the label `model`; a model without one is not counted, nor is one in a mode that
    /// `is_counted` refuses. What is in the first response is history.
    ///
    /// # Errors
    /// The response is not one of `/engines/requests`. The error has the position, and no quote.
    pub fn take(
        &mut self,
        response: impl Read,
        requests: &Requests,
        label: impl Fn(&str) -> Option<String>,
        use_of: impl Fn(&str, &'static str) -> RecordsUse,
    ) -> Result<(), String> {
        let response = BufReader::with_capacity(16 << 10, response);
        let response = LimitedJson::new(response, RESPONSE_LIMITS);
        let models: Option<FirstItems<ModelRecords, MAX_MODELS>> =
            serde_json::from_reader(response)
                .map_err(|error| format!("line {} column {}", error.line(), error.column()))?;
        let mut before = mem::take(&mut self.known);
        for of_model in models.map(|models| models.0).unwrap_or_default() {
            let name = bounds::cut(&of_model.model).to_owned();
            if self.known.contains_key(&name) {
                // The same model twice: the first counts.
                continue;
            }
            let records = of_model.records.map(|records| records.0);
            let records = records.unwrap_or_default();
            let known = before.remove(&name).unwrap_or_default();
            if let Some(label) = label(&name) {
                let modes: BTreeSet<_> = records.iter().map(|record| record.mode).collect();
                let waits = |mode: &RequestMode| use_of(&label, mode.label()) == RecordsUse::Later;
                if self.has_started && modes.iter().any(waits) {
                    self.known.insert(name, known);
                    continue;
                }
                let gap = self.has_started && may_lack_some(&records, &known);
                let first = modes.first().copied().unwrap_or_default();
                for mode in modes.into_iter().chain([first]).collect::<BTreeSet<_>>() {
                    if use_of(&label, mode.label()) != RecordsUse::Count {
                        continue;
                    }
                    let mut tokens = TokenTotals::default();
                    // The model is there, though nothing may be new.
                    requests.count_in_mode((&label, Some(mode.label())), &SOURCE, |figures| {
                        if self.has_started {
                            tokens = count_new(&records, mode, &known, figures);
                        }
                        if gap && mode == first {
                            increment(figures.record_gaps.get_or_insert(0));
                        }
                    });
                    let key = (label.clone(), mode);
                    if self.tokens.len() < MAX_TOTALS || self.tokens.contains_key(&key) {
                        self.tokens.entry(key).or_default().add(&tokens);
                    }
                }
            }
            let known = records.iter().map(|record| (record.id, record.has_ended()));
            self.known.insert(name, known.collect());
        }
        // A model that is missing now may come again with the same records.
        let room = MAX_MODELS.saturating_sub(self.known.len());
        self.known.extend(before.into_iter().take(room));
        self.has_started = true;
        Ok(())
    }

    /// The tokens of all requests of this model, in this mode, that were counted.
    pub fn tokens(&self, label: &str, mode: Option<&str>) -> TokenTotals {
        let mode = mode.and_then(RequestMode::of_label);
        let key = mode.map(|mode| (label.to_owned(), mode));
        let tokens = key.and_then(|key| self.tokens.get(&key));
        tokens.copied().unwrap_or_default()
    }
}

/// The label of this mode, if requests can have it.
pub fn mode_label(mode: &str) -> Option<&'static str> {
    RequestMode::of_label(mode).map(RequestMode::label)
}

/// Counts the requests of this mode that have ended since the last response; returns their tokens.
fn count_new(
    records: &[Record],
    mode: RequestMode,
    known: &KnownRecords,
    figures: &mut RequestFigures,
) -> TokenTotals {
    let is_new = |record: &&Record| known.get(&record.id) != Some(&true);
    let of_mode = records.iter().filter(|record| record.mode == mode);
    let mut tokens = TokenTotals::default();
    for record in of_mode.filter(is_new) {
        if let Some(end) = record.end() {
            end.count(figures);
            tokens.add(&record.response.tokens);
        }
    }
    tokens
}

/// Whether requests may have ended since the last response that have no record any more.
fn may_lack_some(records: &[Record], known: &KnownRecords) -> bool {
    // If the oldest record is new, others may have come and gone before it.
    let oldest_is_new = |oldest: &Record| !known.contains_key(&oldest.id);
    let is_full = records.len() >= SERVER_LIMIT;
    // Or a request was running when its record went.
    let is_there = |id: &RecordId| records.iter().any(|record| record.id == *id);
    let mut running = known.iter().filter(|(_, has_ended)| !**has_ended);
    is_full && records.first().is_some_and(oldest_is_new) || running.any(|(id, _)| !is_there(id))
}

/// The records of one model.
#[derive(Deserialize)]
struct ModelRecords {
    model: String,
    #[serde(default)]
    records: Option<FirstItems<Record, MAX_RECORDS>>,
}

#[derive(Deserialize)]
struct Record {
    id: RecordId,
    #[serde(default, rename = "url")]
    mode: RequestMode,
    #[serde(default)]
    status_code: u16,
    #[serde(default)]
    error: RecordError,
    #[serde(default)]
    response: Response,
}

/// The hash of a record's ID, which has the time of the request's start in nanoseconds.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, Hash)]
#[serde(from = "String")]
struct RecordId(u64);

impl From<String> for RecordId {
    fn from(id: String) -> RecordId {
        let mut hasher = DefaultHasher::new();
        id.hash(&mut hasher);
        RecordId(hasher.finish())
    }
}

label_enum! {
    /// The mode in which Docker Model Runner ran the model for a request, by the request's path (its
    /// `backendModeForRequest`), as the label `mode` spells it.
    #[derive(Default, Deserialize)]
    #[serde(from = "Option<String>")]
    pub enum RequestMode {
        /// Completions, and whatever is neither of the others.
        #[default]
        Completion = "completion",
        /// Embeddings.
        Embedding = "embedding",
        /// Reranking.
        Reranking = "reranking",
    }
}

impl RequestMode {
    fn of_label(label: &str) -> Option<RequestMode> {
        let mut all = RequestMode::ALL.into_iter();
        all.find(|mode| mode.label() == label)
    }
}

impl From<Option<String>> for RequestMode {
    fn from(path: Option<String>) -> RequestMode {
        let path = path.unwrap_or_default();
        match path.rsplit('/').next() {
            Some("embeddings") => RequestMode::Embedding,
            Some("rerank" | "score") => RequestMode::Reranking,
            _ => RequestMode::default(),
        }
    }
}

impl Record {
    /// Whether the request has ended: until then it has no status.
    fn has_ended(&self) -> bool {
        self.status_code != 0
    }

    /// How the request ended, if it has and its record reports it.
    fn end(&self) -> Option<RequestEnd> {
        // A stream has begun with status 200 by the time it fails.
        let status = (self.status_code >= 400).then_some(self.status_code);
        let end = match (status.or(self.error.0), self.response.end) {
            (Some(status), _) | (None, Some(RequestEnd::Failed(status))) => {
                let is_error = (400..600).contains(&status);
                Some(RequestEnd::Failed(if is_error {
                    status
                } else {
                    UNKNOWN_ERROR
                }))
            }
            (None, end) => end,
        };
        end.filter(|_| self.has_ended())
    }
}

/// The status in the text of an error, if there is one.
#[derive(Default, Deserialize)]
#[serde(from = "Option<String>")]
struct RecordError(Option<u16>);

impl From<Option<String>> for RecordError {
    fn from(text: Option<String>) -> RecordError {
        #[derive(Deserialize)]
        struct StreamError {
            status_code: u16,
        }
        let text = text.filter(|text| !text.is_empty());
        RecordError(text.map(|text| match serde_json::from_str(&text) {
            Ok(StreamError { status_code }) => status_code,
            Err(_) => UNKNOWN_ERROR,
        }))
    }
}

/// What the text of a response tells of its request.
#[derive(Default, Deserialize)]
#[serde(from = "Option<String>")]
struct Response {
    end: Option<RequestEnd>,
    tokens: TokenTotals,
}

impl From<Option<String>> for Response {
    fn from(text: Option<String>) -> Response {
        let text = text.unwrap_or_default();
        let body = match serde_json::from_str(&text) {
            Ok(body) => body,
            // The chunks of a stream, for example: the last timings are the request's. Or a long
            // response without its middle: that of an embedding begins with its usage.
            Err(_) => {
                let is_cut = text.len() >= RESPONSE_LIMITS.tail;
                let usage = text.split_once("\"usage\":").filter(|_| is_cut);
                Body {
                    timings: text.rsplit_once("\"timings\":").and_then(first_value),
                    usage: usage.and_then(first_value),
                    error: None,
                }
            }
        };
        Response {
            tokens: body.tokens(),
            end: body.end(),
        }
    }
}

/// The JSON value after its key.
fn first_value<T: DeserializeOwned>((_, text): (&str, &str)) -> Option<T> {
    let mut values = serde_json::Deserializer::from_str(text).into_iter();
    values.next()?.ok()
}

/// The parts of a response that are used.
#[derive(Deserialize)]
struct Body {
    timings: Option<BodyTimings>,
    usage: Option<Usage>,
    error: Option<BodyError>,
}

/// An error in the midst of a stream.
#[derive(Deserialize)]
struct BodyError {
    code: Option<u16>,
}

/// llama.cpp's own timings.
#[derive(Deserialize)]
struct BodyTimings {
    prompt_n: u64,
    prompt_ms: f64,
    predicted_n: u64,
    predicted_ms: f64,
    #[serde(default, deserialize_with = "count_32")]
    cache_n: Option<f64>,
    // Only with speculative decoding.
    #[serde(default, deserialize_with = "count_32")]
    draft_n: Option<f64>,
    #[serde(default, deserialize_with = "count_32")]
    draft_n_accepted: Option<f64>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Usage {
    prompt_tokens: u64,
    completion_tokens: u64,
}

impl Body {
    fn tokens(&self) -> TokenTotals {
        // llama-server counts the tokens of a request in 32 bits.
        let limited = |tokens: u64| f64::from(u32::try_from(tokens).unwrap_or(0));
        let usage = self.usage.as_ref();
        match &self.timings {
            Some(timings) => TokenTotals {
                prompt_tokens: limited(timings.prompt_n),
                generated_tokens: limited(timings.predicted_n),
                prompt_tokens_cached: timings.cache_n,
                draft_tokens: timings.draft_n,
                draft_tokens_accepted: timings.draft_n_accepted,
            },
            None => TokenTotals {
                prompt_tokens: usage.map_or(0.0, |usage| limited(usage.prompt_tokens)),
                ..TokenTotals::default()
            },
        }
    }

    fn end(self) -> Option<RequestEnd> {
        if let Some(error) = self.error {
            return Some(RequestEnd::Failed(error.code.unwrap_or(UNKNOWN_ERROR)));
        }
        let Some(timings) = self.timings else {
            let usage = self.usage?;
            let is_prompt_only = usage.completion_tokens == 0 && usage.prompt_tokens > 0;
            return is_prompt_only.then_some(RequestEnd::PromptOnly(usage.prompt_tokens));
        };
        let is_valid = |ms: f64| ms.is_finite() && ms >= 0.0;
        if !(is_valid(timings.prompt_ms) && is_valid(timings.predicted_ms)) {
            return None;
        }
        let timings = RequestTimings {
            prompt: PhaseTiming {
                ms: timings.prompt_ms,
                tokens: timings.prompt_n,
            },
            generation: PhaseTiming {
                ms: timings.predicted_ms,
                tokens: timings.predicted_n,
            },
            total_ms: timings.prompt_ms + timings.predicted_ms,
            is_child: false,
        };
        Some(RequestEnd::Completed {
            timings,
            is_truncated: false,
        })
    }
}

/// The first `MAX` items of an array; the others are skipped.
struct FirstItems<T, const MAX: usize>(Vec<T>);

impl<'de, T: Deserialize<'de>, const MAX: usize> Deserialize<'de> for FirstItems<T, MAX> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct ItemVisitor<T, const MAX: usize>(PhantomData<T>);
        impl<'de, T: Deserialize<'de>, const MAX: usize> Visitor<'de> for ItemVisitor<T, MAX> {
            type Value = FirstItems<T, MAX>;
            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("an array")
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
                let mut items = Vec::new();
                while items.len() < MAX {
                    match seq.next_element()? {
                        Some(item) => items.push(item),
                        None => return Ok(FirstItems(items)),
                    }
                }
                while seq.next_element::<IgnoredAny>()?.is_some() {}
                Ok(FirstItems(items))
            }
        }
        deserializer.deserialize_seq(ItemVisitor(PhantomData))
    }
}

#[cfg(test)]
mod tests;
