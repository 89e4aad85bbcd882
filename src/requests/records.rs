//! Docker Model Runner's records of the last requests (`GET /engines/requests`).
//!
//! A record holds the whole of a request and its answer. Only numbers leave
//! this file: a text is held no longer than it takes to find them in it.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{BufReader, Read};
use std::marker::PhantomData;
use std::mem;

use serde::Deserialize;
use serde::de::{DeserializeOwned, Deserializer, Error, IgnoredAny, SeqAccess, Visitor};

use crate::bounds;
use crate::bounds::json::{LimitedJson, StringLimits};
use crate::requests::log_parser::Span;
use crate::requests::request_tracker::Timings;
use crate::requests::{Requests, finished, observe};
use crate::snapshot::{RequestFigures, RequestSource};

/// How many records of a model are kept there: before more have come, none is lost.
const KEPT_THERE: usize = 10;
/// The most models, and records of each, that are looked at.
const MOST_MODELS: usize = 500;
const MOST_RECORDS: usize = 50;
/// Of a longer answer the middle is not read: `usage` of an embedding stands before its
/// numbers, and the timings of a completion stand at its end.
const ANSWER: StringLimits = StringLimits {
    head: 64 << 10,
    tail: 64 << 10,
};

/// Which records were counted already.
#[derive(Debug, Default)]
pub struct Records {
    /// The records that each model had when it was last among the answers.
    seen: BTreeMap<String, Seen>,
    /// Whether what is there is not history any more.
    begun: bool,
}

/// Records of one model, and whether each was over, and so counted, by then.
type Seen = HashMap<u64, bool>;

impl Records {
    /// Reads one answer and counts what is new in it. `name` gives the label of a model by
    /// what the records call it; what it does not know is not counted.
    ///
    /// The first answer is history: it was counted before a restart of ours, if ever.
    ///
    /// # Errors
    /// The answer is not what `/engines/requests` answers; says where, and quotes nothing of it.
    pub fn take(
        &mut self,
        answer: impl Read,
        requests: &Requests,
        name: impl Fn(&str) -> Option<String>,
    ) -> Result<(), String> {
        let answer = LimitedJson::new(BufReader::with_capacity(16 << 10, answer), ANSWER);
        let answer: Option<Several<OfModel, MOST_MODELS>> = serde_json::from_reader(answer)
            .map_err(|error| format!("line {} column {}", error.line(), error.column()))?;
        let mut before = mem::take(&mut self.seen);
        for of in answer.map(|models| models.0).unwrap_or_default() {
            if self.seen.contains_key(&of.model) {
                // The same model twice: what it had the first time counts.
                continue;
            }
            let records = of.records.map(|records| records.0).unwrap_or_default();
            let known = before.remove(&of.model).unwrap_or_default();
            if let Some(label) = name(&of.model) {
                // The model is there, though nothing may be new.
                requests.count(&label, RequestSource::Records, |figures| {
                    if self.begun {
                        count_new(&records, &known, figures);
                    }
                });
            }
            let seen = records.iter().map(|record| (record.key, record.is_over()));
            self.seen.insert(of.model, seen.collect());
        }
        // A model that is missing now has no records, or it comes again with the same ones.
        let room = MOST_MODELS.saturating_sub(self.seen.len());
        self.seen.extend(before.into_iter().take(room));
        self.begun = true;
        Ok(())
    }
}

/// Counts the records that were not over when they were seen last, and whether any were lost.
fn count_new(records: &[Record], known: &Seen, figures: &mut RequestFigures) {
    let is_counted = |record: &&Record| known.get(&record.key) == Some(&true);
    for record in records.iter().filter(|record| !is_counted(record)) {
        record.count(figures);
    }
    // The oldest one that is kept is new: there may have been others before it. Or one that was
    // under way has gone before it was over.
    let oldest_is_new = |oldest: &Record| !known.contains_key(&oldest.key);
    let is_kept = |key: &u64| records.iter().any(|record| record.key == *key);
    let more = records.len() >= KEPT_THERE && records.first().is_some_and(oldest_is_new);
    if more || known.iter().any(|(key, over)| !over && !is_kept(key)) {
        crate::requests::add_one(figures.record_gaps.get_or_insert(0));
    }
}

/// The records of one model.
#[derive(Deserialize)]
struct OfModel {
    #[serde(deserialize_with = "name")]
    model: String,
    #[serde(default)]
    records: Option<Several<Record, MOST_RECORDS>>,
}

#[derive(Deserialize)]
struct Record {
    /// Its ID, which holds the moment of its beginning to the nanosecond.
    #[serde(rename = "id", deserialize_with = "hashed")]
    key: u64,
    #[serde(default)]
    status_code: u16,
    #[serde(default)]
    error: Failed,
    #[serde(default)]
    response: Response,
}

impl Record {
    /// Whether the request has come to its end: until then it has no status.
    fn is_over(&self) -> bool {
        self.status_code != 0
    }

    fn count(&self, figures: &mut RequestFigures) {
        if !self.is_over() {
            return;
        }
        let refused = (self.status_code >= 400).then_some(self.status_code);
        // A stream has begun with a 200 by the time it fails.
        if let Some(code) = refused.or(self.error.0).or(self.response.failed()) {
            let code = Some(code).filter(|code| (400..600).contains(code));
            let errors = &mut figures.errors;
            crate::requests::add_one(errors.entry(code.unwrap_or(UNKNOWN_ERROR)).or_default());
            return;
        }
        match self.response {
            Response::Timings(timings) => finished(figures, timings),
            Response::Prompt(tokens) => observe(&mut figures.prompt_tokens, tokens as f64),
            Response::Failed(_) | Response::Nothing => {}
        }
    }
}

fn name<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    let name = deserializer.deserialize_option(Text(|name: &str| bounds::cut(name).to_owned()))?;
    name.ok_or_else(|| D::Error::custom("no model"))
}

fn hashed<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    let key = deserializer.deserialize_option(Text(|id: &str| {
        let mut hasher = DefaultHasher::new();
        id.hash(&mut hasher);
        hasher.finish()
    }))?;
    key.ok_or_else(|| D::Error::custom("no id"))
}

/// What an error is counted as that does not say its code.
const UNKNOWN_ERROR: u16 = 500;

/// The code of an error, where there is one; not its text.
#[derive(Default)]
struct Failed(Option<u16>);

impl<'de> Deserialize<'de> for Failed {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Failed, D::Error> {
        #[derive(Deserialize)]
        struct Streaming {
            status_code: u16,
        }
        let code = |text: &str| match serde_json::from_str::<Streaming>(text) {
            Ok(error) => Failed(Some(error.status_code)),
            Err(_) => Failed((!text.is_empty()).then_some(UNKNOWN_ERROR)),
        };
        deserializer
            .deserialize_option(Text(code))
            .map(Option::unwrap_or_default)
    }
}

/// The numbers of an answer.
#[derive(Clone, Copy, Default)]
enum Response {
    #[default]
    Nothing,
    /// A completion: llama.cpp's own timings.
    Timings(Timings),
    /// An answer without generation, such as an embedding: tokens of its prompt.
    Prompt(u64),
    /// An error in the midst of a stream, and its code.
    Failed(u16),
}

impl<'de> Deserialize<'de> for Response {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Response, D::Error> {
        deserializer
            .deserialize_option(Text(Response::of))
            .map(Option::unwrap_or_default)
    }
}

impl Response {
    fn of(text: &str) -> Response {
        let Ok(body) = serde_json::from_str::<Body>(text) else {
            // The chunks of a stream, say: the last timings are the request's.
            let timings = text.rsplit_once("\"timings\":").and_then(first_value);
            // Or a long answer without its middle; that of an embedding begins with its usage.
            let usage = text.split_once("\"usage\":").filter(|_| is_cut(text));
            return match (timings, usage.and_then(first_value)) {
                (Some(timings), _) => Response::timed(timings),
                (None, usage) => Response::used(usage.unwrap_or_default()),
            };
        };
        if let Some(error) = body.error {
            return Response::Failed(error.code.unwrap_or(UNKNOWN_ERROR));
        }
        match body.timings {
            Some(timings) => Response::timed(timings),
            None => Response::used(body.usage.unwrap_or_default()),
        }
    }

    fn used(usage: Usage) -> Response {
        if usage.completion_tokens == 0 && usage.prompt_tokens > 0 {
            Response::Prompt(usage.prompt_tokens)
        } else {
            Response::Nothing
        }
    }

    fn failed(&self) -> Option<u16> {
        match self {
            Response::Failed(code) => Some(*code),
            _ => None,
        }
    }

    fn timed(timings: BodyTimings) -> Response {
        let valid = |ms: f64| ms.is_finite() && ms >= 0.0;
        if !(valid(timings.prompt_ms) && valid(timings.predicted_ms)) {
            return Response::Nothing;
        }
        Response::Timings(Timings {
            prompt: Span {
                ms: timings.prompt_ms,
                tokens: timings.prompt_n,
            },
            generation: Span {
                ms: timings.predicted_ms,
                tokens: timings.predicted_n,
            },
            total_ms: timings.prompt_ms + timings.predicted_ms,
            is_child: false,
        })
    }
}

/// The value that stands behind its key.
fn first_value<T: DeserializeOwned>((_, text): (&str, &str)) -> Option<T> {
    let mut values = serde_json::Deserializer::from_str(text).into_iter();
    values.next()?.ok()
}

/// Whether the middle of a text may be missing.
fn is_cut(text: &str) -> bool {
    text.len() >= ANSWER.tail
}

#[derive(Deserialize)]
struct Body {
    timings: Option<BodyTimings>,
    usage: Option<Usage>,
    error: Option<BodyError>,
}

#[derive(Deserialize)]
struct BodyError {
    code: Option<u16>,
}

#[derive(Deserialize)]
struct BodyTimings {
    prompt_n: u64,
    prompt_ms: f64,
    predicted_n: u64,
    predicted_ms: f64,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Usage {
    prompt_tokens: u64,
    completion_tokens: u64,
}

/// Looks at a text, where there is one, and lets it go.
struct Text<F>(F);

impl<'de, T, F: FnOnce(&str) -> T> Visitor<'de> for Text<F> {
    type Value = Option<T>;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("a text")
    }
    fn visit_none<E>(self) -> Result<Option<T>, E> {
        Ok(None)
    }
    fn visit_unit<E>(self) -> Result<Option<T>, E> {
        Ok(None)
    }
    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Option<T>, D::Error> {
        deserializer.deserialize_str(self)
    }
    fn visit_str<E>(self, text: &str) -> Result<Option<T>, E> {
        Ok(Some((self.0)(text)))
    }
}

/// The first so many of an array.
struct Several<T, const MOST: usize>(Vec<T>);

impl<'de, T: Deserialize<'de>, const MOST: usize> Deserialize<'de> for Several<T, MOST> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct First<T, const MOST: usize>(PhantomData<T>);
        impl<'de, T: Deserialize<'de>, const MOST: usize> Visitor<'de> for First<T, MOST> {
            type Value = Several<T, MOST>;
            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("an array")
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
                let mut first = Vec::new();
                while first.len() < MOST {
                    match seq.next_element()? {
                        Some(element) => first.push(element),
                        None => return Ok(Several(first)),
                    }
                }
                while seq.next_element::<IgnoredAny>()?.is_some() {}
                Ok(Several(first))
            }
        }
        deserializer.deserialize_seq(First(PhantomData))
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
        requests: Requests,
    }

    impl Watch {
        fn new() -> Watch {
            let mut watch = Watch {
                records: Records::default(),
                requests: Requests::default(),
            };
            watch.poll(&[]);
            watch
        }

        fn poll(&mut self, records: &[serde_json::Value]) -> RequestFigures {
            let answer = answer(records);
            self.records
                .take(answer.as_slice(), &self.requests, |name| {
                    Some(name.to_owned())
                })
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
        near(&figures.per_token, 15.0 * 1.3875 / 60.0);
        near(&figures.prompt_tokens, 15.0 * 7.0);
        near(&figures.generated_tokens, 15.0 * 60.0);
    }

    #[test]
    fn records_that_may_have_been_lost_are_seen() {
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
    fn a_long_request_among_short_ones_is_no_gap_until_it_is_pushed_out() {
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
            "the oldest was seen"
        );
        assert_eq!(
            counted(&watch.poll(&all[5..15])),
            (14, 1),
            "how it ended is not known"
        );
    }

    #[test]
    fn a_model_that_is_missing_for_a_while_is_not_counted_anew() {
        let mut watch = Watch::new();
        let all: Vec<_> = (0..3).map(completion).collect();
        assert_eq!(counted(&watch.poll(&all)), (3, 0));
        for number in 0..3 * MOST_MODELS {
            let other =
                serde_json::json!([{"model": number.to_string(), "records": [completion(1)]}]);
            let name = |_: &str| None;
            let other = other.to_string();
            watch
                .records
                .take(other.as_bytes(), &watch.requests, name)
                .unwrap();
            assert!(watch.records.seen.len() <= MOST_MODELS);
            if number == 1 {
                assert_eq!(counted(&watch.poll(&all)), (3, 0));
            }
        }
        // However many there were: one that is there now is counted once.
        let before = counted(&watch.poll(&all)).0;
        assert_eq!(counted(&watch.poll(&all)).0, before);
    }

    #[test]
    fn a_model_that_is_told_of_twice_counts_once() {
        let mut watch = Watch::new();
        let group = serde_json::json!({"model": "ai/m", "records": [completion(1)]});
        for _ in 0..2 {
            let twice = serde_json::json!([group, group]).to_string();
            let name = |name: &str| Some(name.to_owned());
            watch
                .records
                .take(twice.as_bytes(), &watch.requests, name)
                .unwrap();
            let figures = watch.requests.figures();
            assert_eq!(counted(&figures[0].figures), (1, 0));
        }
    }

    #[test]
    fn a_long_answer_is_counted_without_its_middle() {
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
    fn what_was_there_before_us_is_history() {
        let mut watch = Watch {
            records: Records::default(),
            requests: Requests::default(),
        };
        let all: Vec<_> = (0..12).map(completion).collect();
        assert_eq!(counted(&watch.poll(&all[..10])), (0, 0));
        assert_eq!(counted(&watch.poll(&all[2..12])), (2, 0));
    }

    #[test]
    fn a_record_under_way_is_counted_at_its_end() {
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
        assert_eq!(
            figures.errors,
            BTreeMap::from([(429, 1), (500, 2), (503, 1)])
        );
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
    fn what_is_no_list_of_records_is_an_error_that_quotes_nothing() {
        for text in [
            "",
            "{\"secret\":1}",
            "[{\"secret\":2}]",
            "[{\"model\":\"m\",\"records\":[{\"id\":\"secret",
            "[3]",
        ] {
            let error = Records::default()
                .take(text.as_bytes(), &Requests::default(), |_| None)
                .unwrap_err();
            assert!(!error.contains("secret"), "{error}");
        }
        for text in ["null", "[]", "[{\"model\":\"m\",\"records\":null}]"] {
            let taken = Records::default().take(text.as_bytes(), &Requests::default(), |_| None);
            assert_eq!(taken, Ok(()), "{text}");
        }
    }
}
