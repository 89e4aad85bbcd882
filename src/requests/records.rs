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
mod tests {
    use super::*;

    fn completion(id: usize) -> serde_json::Value {
        let response = serde_json::json!({
            "choices": [{"message": {"content": "a \"timings\": b"}}],
            "usage": {"prompt_tokens": 12, "completion_tokens": 60},
            "timings": {"cache_n": 5, "prompt_n": 7, "prompt_ms": 42.5, "predicted_n": 60, "predicted_ms": 1387.5},
        });
        serde_json::json!({
            "id": format!("m_{id}"), "model": "ai/m", "method": "POST", "url": "/v1/chat/completions",
            "request": "{\"messages\":[]}", "response": response.to_string(),
            "timestamp": 1_764_000_000, "status_code": 200, "user_agent": "curl",
        })
    }

    fn answer(records: &[serde_json::Value]) -> Vec<u8> {
        let group = serde_json::json!({"count": records.len(), "model": "ai/m", "config": {}, "records": records});
        serde_json::json!([group]).to_string().into_bytes()
    }

    struct Watch {
        records: Records,
        records_use: RecordsUse,
        requests: Requests,
    }

    impl Watch {
        fn new() -> Watch {
            let mut watch = Watch {
                records: Records::default(),
                records_use: RecordsUse::Count,
                requests: Requests::default(),
            };
            watch.poll(&[]);
            watch
        }

        fn poll(&mut self, records: &[serde_json::Value]) -> RequestFigures {
            let answer = answer(records);
            self.records
                .take(
                    answer.as_slice(),
                    &self.requests,
                    |name| Some(name.to_owned()),
                    |_, _| self.records_use,
                )
                .unwrap();
            let figures = self.requests.figures();
            (*figures[0].figures).clone()
        }
    }

    fn counted(figures: &RequestFigures) -> (u64, u64) {
        let count = figures.duration.as_ref().unwrap().count();
        (count, figures.record_gaps.unwrap())
    }

    #[test]
    fn each_record_is_counted_once() {
        let mut watch = Watch::new();
        let all: Vec<_> = (0..15).map(completion).collect();
        assert_eq!(counted(&watch.poll(&all[..3])), (3, 0));
        assert_eq!(counted(&watch.poll(&all[..3])), (3, 0));
        assert_eq!(counted(&watch.poll(&all[..10])), (10, 0));
        let figures = watch.poll(&all[5..15]);
        assert_eq!(counted(&figures), (15, 0));
        let near = |histogram: &Option<crate::snapshot::histogram::Histogram>, sum: f64| {
            let found = histogram.as_ref().unwrap().sum();
            assert!((found - sum).abs() < 1e-9, "{found} {sum}");
        };
        near(&figures.first_token, 15.0 * 0.0425);
        near(&figures.duration, 15.0 * 1.43);
        near(&figures.per_token, 15.0 * 1.3875 / 59.0);
        near(&figures.prompt_tokens, 15.0 * 7.0);
        near(&figures.generated_tokens, 15.0 * 60.0);
    }

    #[test]
    fn records_of_a_model_that_is_not_counted_are_known_later() {
        let mut watch = Watch::new();
        let all: Vec<_> = (0..6).map(completion).collect();
        assert_eq!(counted(&watch.poll(&all[..2])), (2, 0));
        watch.records_use = RecordsUse::Skip;
        assert_eq!(counted(&watch.poll(&all[..4])), (2, 0));
        let tokens = watch.records.tokens("ai/m", Some("completion"));
        assert_eq!(
            (tokens.prompt_tokens, tokens.generated_tokens),
            (14.0, 120.0)
        );
        assert_eq!(tokens.prompt_tokens_cached, Some(10.0));
        assert_eq!(tokens.draft_tokens, None);
        watch.records_use = RecordsUse::Later;
        assert_eq!(counted(&watch.poll(&all[..5])), (2, 0));
        watch.records_use = RecordsUse::Count;
        assert_eq!(counted(&watch.poll(&all)), (4, 0), "two are new");
        let tokens = watch.records.tokens("ai/m", Some("completion"));
        assert_eq!(tokens.generated_tokens, 240.0);
        for unknown in [
            ("other", Some("completion")),
            ("ai/m", Some("x")),
            ("ai/m", None),
        ] {
            let (model, mode) = unknown;
            assert_eq!(watch.records.tokens(model, mode), TokenTotals::default());
        }
    }

    #[test]
    fn lost_records_are_counted_as_gaps() {
        let mut watch = Watch::new();
        let all: Vec<_> = (0..40).map(completion).collect();
        assert_eq!(
            counted(&watch.poll(&all[..10])),
            (10, 1),
            "ten at once may have been more"
        );
        assert_eq!(
            counted(&watch.poll(&all[9..19])),
            (19, 1),
            "the oldest was known"
        );
        assert_eq!(counted(&watch.poll(&all[25..35])), (29, 2));
    }

    #[test]
    fn a_long_request_among_short_ones_is_a_gap_only_once_it_is_pushed_out() {
        let mut watch = Watch::new();
        let all: Vec<_> = (0..30).map(completion).collect();
        let under_way = |id: usize| {
            let mut record = completion(id);
            record["status_code"] = 0.into();
            record.as_object_mut().unwrap().remove("response");
            record
        };
        let kept = |first: usize, last: usize| {
            let rest = all[first + 1..last].iter().cloned();
            [under_way(first)]
                .into_iter()
                .chain(rest)
                .collect::<Vec<_>>()
        };
        assert_eq!(counted(&watch.poll(&kept(0, 5))), (4, 0));
        assert_eq!(counted(&watch.poll(&kept(0, 10))), (9, 0));
        assert_eq!(
            counted(&watch.poll(&kept(0, 10))),
            (9, 0),
            "the oldest is known"
        );
        assert_eq!(
            counted(&watch.poll(&all[5..15])),
            (14, 1),
            "how it ended is unknown"
        );
    }

    #[test]
    fn a_model_that_is_missing_for_a_while_is_not_counted_again() {
        let mut watch = Watch::new();
        let all: Vec<_> = (0..3).map(completion).collect();
        assert_eq!(counted(&watch.poll(&all)), (3, 0));
        for number in 0..3 * MAX_MODELS {
            let other =
                serde_json::json!([{"model": number.to_string(), "records": [completion(1)]}]);
            let name = |_: &str| None;
            let other = other.to_string();
            watch
                .records
                .take(other.as_bytes(), &watch.requests, name, |_, _| {
                    RecordsUse::Count
                })
                .unwrap();
            assert!(watch.records.known.len() <= MAX_MODELS);
            if number == 1 {
                assert_eq!(counted(&watch.poll(&all)), (3, 0));
            }
        }
        // However many there were: one that is there now is counted once.
        let before = counted(&watch.poll(&all)).0;
        assert_eq!(counted(&watch.poll(&all)).0, before);
    }

    #[test]
    fn a_model_that_is_listed_twice_counts_once() {
        let mut watch = Watch::new();
        let group = serde_json::json!({"model": "ai/m", "records": [completion(1)]});
        for _ in 0..2 {
            let twice = serde_json::json!([group, group]).to_string();
            let name = |name: &str| Some(name.to_owned());
            watch
                .records
                .take(twice.as_bytes(), &watch.requests, name, |_, _| {
                    RecordsUse::Count
                })
                .unwrap();
            let figures = watch.requests.figures();
            assert_eq!(counted(&figures[0].figures), (1, 0));
        }
    }

    #[test]
    fn a_long_response_is_counted_without_its_middle() {
        let mut watch = Watch::new();
        let long = "word \"timings\":{ \\ ".repeat(100_000);
        let mut talk = completion(1);
        let response = serde_json::json!({
            "choices": [{"message": {"content": long}}],
            "timings": {"prompt_n": 7, "prompt_ms": 42.5, "predicted_n": 60, "predicted_ms": 1387.5},
        });
        talk["response"] = response.to_string().into();
        let numbers = vec!["0.123456789"; 200_000].join(",");
        let mut embedding = completion(2);
        embedding["response"] = format!(
            r#"{{"model":"m","object":"list","usage":{{"prompt_tokens":9,"total_tokens":9}},"data":[{{"embedding":[{numbers}]}}]}}"#
        )
        .into();
        let figures = watch.poll(&[talk, embedding]);
        assert_eq!(counted(&figures), (1, 0));
        let prompts = figures.prompt_tokens.as_ref().unwrap();
        assert_eq!((prompts.count(), prompts.sum()), (2, 16.0));
    }

    #[test]
    fn records_from_before_the_start_are_not_counted() {
        let mut watch = Watch {
            records: Records::default(),
            records_use: RecordsUse::Count,
            requests: Requests::default(),
        };
        let all: Vec<_> = (0..12).map(completion).collect();
        assert_eq!(counted(&watch.poll(&all[..10])), (0, 0));
        assert_eq!(counted(&watch.poll(&all[2..12])), (2, 0));
    }

    #[test]
    fn a_running_request_is_counted_at_its_end() {
        let mut watch = Watch::new();
        let mut record = completion(1);
        record["status_code"] = 0.into();
        record["response"] = "".into();
        assert_eq!(counted(&watch.poll(&[record])), (0, 0));
        assert_eq!(counted(&watch.poll(&[completion(1)])), (1, 0));
    }

    #[test]
    fn errors_count_by_status_and_embeddings_by_their_prompt() {
        let mut watch = Watch::new();
        let mut failed = completion(1);
        failed["status_code"] = 503.into();
        failed["error"] = "no room".into();
        let mut embedding = completion(2);
        embedding["response"] =
            r#"{"data":[{"embedding":[0.5]}],"usage":{"prompt_tokens":9,"total_tokens":9}}"#.into();
        let mut streamed = completion(3);
        streamed["response"] = "data: {\"choices\":[]}\n\ndata: {\"timings\":{\"prompt_n\":3,\"prompt_ms\":1.0,\"predicted_n\":1,\"predicted_ms\":0.0}}\n\ndata: [DONE]\n".into();
        let mut foreign = completion(4);
        foreign["response"] = serde_json::Value::Null;
        let mut fails = completion(5);
        fails["response"] = r#"{"choices":[],"error":{"code":500,"message":"Context size has been exceeded."},"object":"chat.completion"}"#.into();
        let mut fails_as_before = completion(6);
        fails_as_before["error"] = r#"{"status_code":429,"message":"streaming error"}"#.into();
        let mut strange = completion(7);
        strange["status_code"] = 65_535.into();
        let all = [
            failed,
            embedding,
            streamed,
            foreign,
            fails,
            fails_as_before,
            strange,
        ];
        let figures = watch.poll(&all);
        let counted_errors = figures.errors.iter().filter(|(_, count)| **count > 0);
        assert!(counted_errors.eq(&BTreeMap::from([(429, 1), (500, 2), (503, 1)])));
        let prompts = figures.prompt_tokens.as_ref().unwrap();
        assert_eq!((prompts.count(), prompts.sum()), (2, 12.0));
        assert_eq!(counted(&figures).0, 1);
        assert_eq!(
            figures.per_token.as_ref().unwrap().count(),
            0,
            "one token alone"
        );
        assert_eq!(figures.first_token.as_ref().unwrap().count(), 1);
    }

    #[test]
    fn an_error_about_an_invalid_response_quotes_nothing() {
        for text in [
            "",
            "{\"secret\":1}",
            "[{\"secret\":2}]",
            "[{\"model\":\"m\",\"records\":[{\"id\":\"secret",
            "[3]",
        ] {
            let error = Records::default()
                .take(
                    text.as_bytes(),
                    &Requests::default(),
                    |_| None,
                    |_, _| RecordsUse::Count,
                )
                .unwrap_err();
            assert!(!error.contains("secret"), "{error}");
        }
        for text in ["null", "[]", "[{\"model\":\"m\",\"records\":null}]"] {
            let requests = Requests::default();
            let taken = Records::default().take(
                text.as_bytes(),
                &requests,
                |_| None,
                |_, _| RecordsUse::Count,
            );
            assert_eq!(taken, Ok(()), "{text}");
        }
    }
}
