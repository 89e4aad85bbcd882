//! Docker Model Runner's records of the last requests (`GET /engines/requests`).
//!
//! A record holds the whole of a request and its answer. Only numbers leave
//! this file: a text is held no longer than it takes to find them in it.

use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::Read;
use std::marker::PhantomData;

use serde::Deserialize;
use serde::de::{Deserializer, IgnoredAny, SeqAccess, Visitor};

use super::log_lines::Span;
use super::tally::Timings;
use super::{Requests, finished, observe};
use crate::snapshot::RequestSource;

/// How many records of a model are kept there: before more have come, none is lost.
const KEPT_THERE: usize = 10;
/// The most models, and records of each, that are looked at.
const MOST_MODELS: usize = 500;
const MOST_RECORDS: usize = 1000;

/// Which records were counted already.
#[derive(Debug, Default)]
pub struct Records {
    /// By model: the records that it had last, as far as they were counted.
    counted: BTreeMap<String, HashSet<u64>>,
    /// Whether what is there is not history any more.
    begun: bool,
}

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
        let answer: Option<Several<OfModel, MOST_MODELS>> = serde_json::from_reader(answer)
            .map_err(|error| format!("line {} column {}", error.line(), error.column()))?;
        for of in answer.map(|groups| groups.0).unwrap_or_default() {
            let label = name(&of.model);
            self.take_model(of, |change| {
                if let Some(label) = &label {
                    requests.count(label, RequestSource::Records, change);
                }
            });
        }
        self.begun = true;
        Ok(())
    }

    fn take_model(
        &mut self,
        of: OfModel,
        count: impl Fn(&mut dyn FnMut(&mut crate::snapshot::RequestFigures)),
    ) {
        let records = of.records.map(|records| records.0).unwrap_or_default();
        let before = self.counted.remove(&of.model).unwrap_or_default();
        let begun = self.begun;
        let is_new = |record: &Record| !before.contains(&record.key());
        // The model is there, though nothing may be new.
        count(&mut |figures| {
            if begun && records.len() >= KEPT_THERE && records.first().is_some_and(is_new) {
                *figures.record_gaps.get_or_insert(0) += 1;
            }
            if begun {
                for record in records
                    .iter()
                    .filter(|record| record.is_over() && is_new(record))
                {
                    record.count(figures);
                }
            }
        });
        // One that is not over yet will be counted once it is.
        let counted = records
            .iter()
            .filter(|record| record.is_over())
            .map(Record::key);
        if self.counted.len() < MOST_MODELS {
            self.counted.insert(of.model, counted.collect());
        }
    }
}

/// The records of one model.
#[derive(Deserialize)]
struct OfModel {
    model: String,
    #[serde(default)]
    records: Option<Several<Record, MOST_RECORDS>>,
}

#[derive(Deserialize)]
struct Record {
    id: String,
    #[serde(default)]
    status_code: i64,
    #[serde(default)]
    error: Presence,
    #[serde(default)]
    response: Response,
}

impl Record {
    fn key(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        self.id.hash(&mut hasher);
        hasher.finish()
    }

    /// Whether the request has come to its end: until then it has no status.
    fn is_over(&self) -> bool {
        self.status_code != 0 || self.error.0
    }

    fn count(&self, figures: &mut crate::snapshot::RequestFigures) {
        if self.error.0 || self.status_code >= 400 {
            let code = u16::try_from(self.status_code).unwrap_or(0);
            *figures.errors.entry(code).or_default() += 1;
            return;
        }
        match self.response {
            Response::Timings(timings) => finished(figures, timings),
            Response::Prompt(tokens) => observe(&mut figures.prompt_tokens, tokens as f64),
            Response::Nothing => {}
        }
    }
}

/// Whether there is a text at all; not the text.
#[derive(Default)]
struct Presence(bool);

impl<'de> Deserialize<'de> for Presence {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Presence, D::Error> {
        deserializer
            .deserialize_option(Text(|text: &str| Presence(!text.is_empty())))
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
            let timings = text.rsplit_once("\"timings\":").and_then(|(_, rest)| {
                let mut values = serde_json::Deserializer::from_str(rest).into_iter();
                values.next()?.ok()
            });
            return timings.map_or(Response::Nothing, Response::timed);
        };
        let usage = body.usage.unwrap_or_default();
        match body.timings {
            Some(timings) => Response::timed(timings),
            None if usage.completion_tokens == 0 && usage.prompt_tokens > 0 => {
                Response::Prompt(usage.prompt_tokens)
            }
            None => Response::Nothing,
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
        })
    }
}

#[derive(Deserialize)]
struct Body {
    timings: Option<BodyTimings>,
    usage: Option<Usage>,
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
    use crate::snapshot::RequestFigures;

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
        let near = |histogram: &Option<crate::histogram::Histogram>, sum: f64| {
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
        let figures = watch.poll(&[failed, embedding, streamed, foreign]);
        assert_eq!(figures.errors, BTreeMap::from([(503, 1)]));
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
