//! Latencies of single requests, counted by model and source.
//!
//! ```text
//! log       a llama-server's log, without our probes ──┐
//! records   Docker Model Runner's records ─────────────┼──▶ Requests ──▶ snapshot
//! activity  llama-swap's list of ended requests ───────┤
//! probe     completions of our own, timed ─────────────┘
//! ```
//!
//! Each source is one file or folder here, with a `SOURCE` that declares its figures. To add one,
//! write such a file, declare it below, and start it in the collector. Sends no HTTP requests: the
//! results of polls are passed in.

pub mod activity;
pub mod log;
mod own_probes;
pub mod probe;
pub mod records;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use crate::process::threads;
use crate::readings::Completion;
use crate::requests::own_probes::OwnProbes;
use crate::snapshot::histogram::{
    DURATION_SECONDS, FIRST_TOKEN_SECONDS, Histogram, PER_TOKEN_SECONDS, TOKENS,
};
use crate::snapshot::{ModelRequests, Outcome, Reason, RequestFigures};

/// How long figures are kept after their model is gone.
const RETENTION: Duration = Duration::from_secs(3600);
/// The most pairs of model and source with figures.
const MAX_ENTRIES: usize = 1000;

/// A source of request latencies.
#[derive(Debug)]
pub struct RequestSource {
    /// The label `source`.
    pub label: &'static str,
    /// The figures of a model before its first request: zero if the source can report a figure,
    /// `None` if it cannot.
    pub zero: fn() -> RequestFigures,
}

/// The figures of every source that reports whole completions.
fn zero_completions() -> RequestFigures {
    RequestFigures {
        first_token: Some(Histogram::new(FIRST_TOKEN_SECONDS)),
        duration: Some(Histogram::new(DURATION_SECONDS)),
        per_token: Some(Histogram::new(PER_TOKEN_SECONDS)),
        prompt_tokens: Some(Histogram::new(TOKENS)),
        generated_tokens: Some(Histogram::new(TOKENS)),
        ..RequestFigures::default()
    }
}

/// The figures of all requests of one base URL. They are the exporter's own counters: they
/// outlive a restart of the server, and go when their model has been gone for an hour.
#[derive(Debug, Default)]
pub struct Requests(Mutex<FigureStore>);

#[derive(Debug, Default)]
struct FigureStore {
    /// By model, mode (where the kind of server has modes) and the source's label.
    entries: BTreeMap<(String, Option<&'static str>, &'static str), Entry>,
    /// Sources that report the requests of a llama-server's models.
    started: Vec<&'static RequestSource>,
    own_probes: OwnProbes,
}

#[derive(Debug)]
struct Entry {
    figures: Arc<RequestFigures>,
    /// When a poll last found the model.
    last_seen: Instant,
}

impl Requests {
    /// Makes this source's figures start at zero for each model of a llama-server.
    pub fn start(&self, source: &'static RequestSource) {
        let started = &mut self.lock().started;
        if started.iter().all(|known| known.label != source.label) {
            started.push(source);
        }
    }

    /// Takes the models of a poll, each with whether it is loaded on a llama-server.
    pub fn polled<'a>(&self, now: Instant, models: impl IntoIterator<Item = (&'a str, bool)>) {
        let mut store = self.lock();
        for (model, is_llama_server) in models {
            if is_llama_server {
                for source in store.started.clone() {
                    store.count((model, None), source, now, |_| {});
                }
            }
            let of_model = store.entries.range_mut((model.to_owned(), None, "")..);
            for (_, entry) in of_model.take_while(|((name, ..), _)| name == model) {
                entry.last_seen = now;
            }
        }
        for (model, end) in store.own_probes.overdue(now) {
            store.count((&model, None), &log::SOURCE, now, |of| end.count(of));
        }
        store
            .entries
            .retain(|_, entry| now.saturating_duration_since(entry.last_seen) < RETENTION);
    }

    /// Counts something of a model that is there.
    pub fn count(
        &self,
        model: &str,
        source: &'static RequestSource,
        change: impl FnOnce(&mut RequestFigures),
    ) {
        self.count_in_mode((model, None), source, change);
    }

    /// Counts a request that the log reports, in a line read at that moment, unless it is a probe.
    pub fn count_logged(
        &self,
        (model, mode): (&str, Option<&'static str>),
        end: RequestEnd,
        read: Instant,
    ) {
        let mut store = self.lock();
        if let Some(end) = store.own_probes.logged(model, end, read) {
            store.count((model, mode), &log::SOURCE, Instant::now(), |of| {
                end.count(of)
            });
        }
    }

    /// Takes that a probe is about to be sent to a model.
    pub fn probe_sent(&self, model: &str) {
        self.lock().own_probes.sent(model, Instant::now());
    }

    /// Takes the answer of that probe; `None` if none was sent after all.
    pub fn probe_answered(&self, model: &str, result: Option<Result<Completion, Reason>>) {
        let (mut store, now) = (self.lock(), Instant::now());
        for end in store.own_probes.answered(model, now, result) {
            store.count((model, None), &log::SOURCE, now, |figures| {
                end.count(figures)
            });
        }
    }

    /// Counts something of a model that is there, and of the mode that it was run in.
    pub fn count_in_mode(
        &self,
        (model, mode): (&str, Option<&'static str>),
        source: &'static RequestSource,
        change: impl FnOnce(&mut RequestFigures),
    ) {
        self.lock()
            .count((model, mode), source, Instant::now(), change);
    }

    /// The figures so far, by model, mode and source.
    pub fn figures(&self) -> Vec<ModelRequests> {
        let store = self.lock();
        let figures = store
            .entries
            .iter()
            .map(|((model, mode, source), entry)| ModelRequests {
                model: model.clone(),
                mode: mode.map(str::to_owned),
                source,
                figures: Arc::clone(&entry.figures),
            });
        figures.collect()
    }

    fn lock(&self) -> MutexGuard<'_, FigureStore> {
        threads::lock(&self.0)
    }
}

impl FigureStore {
    fn count(
        &mut self,
        (model, mode): (&str, Option<&'static str>),
        source: &'static RequestSource,
        now: Instant,
        change: impl FnOnce(&mut RequestFigures),
    ) {
        let key = (model.to_owned(), mode, source.label);
        if self.entries.len() >= MAX_ENTRIES && !self.entries.contains_key(&key) {
            return;
        }
        let entry = self.entries.entry(key).or_insert_with(|| Entry {
            figures: Arc::new((source.zero)()),
            last_seen: now,
        });
        // A snapshot that still holds the figures keeps them as they were.
        change(Arc::make_mut(&mut entry.figures));
    }
}

/// How a request ended.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum RequestEnd {
    /// It has a completion, and whether the context was full before that had ended.
    Completed {
        /// Its timings.
        timings: RequestTimings,
        /// Whether llama-server reports that it is truncated.
        is_truncated: bool,
    },
    /// It completed without generation, such as an embedding; its prompt tokens.
    PromptOnly(u64),
    /// Its client disconnected.
    Cancelled,
    /// It failed with this HTTP status.
    Failed(u16),
}

/// llama-server's own timings of one request.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RequestTimings {
    /// The part of the prompt that was computed, not taken from the cache.
    pub prompt: PhaseTiming,
    /// The generation.
    pub generation: PhaseTiming,
    /// Milliseconds of both.
    pub total_ms: f64,
    /// Whether the prompt was computed for another request (`n` > 1: llama-server's `is_child`).
    pub is_child: bool,
}

/// Time and tokens of a request's prompt or generation.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PhaseTiming {
    /// Milliseconds.
    pub ms: f64,
    /// Tokens.
    pub tokens: u64,
}

impl RequestEnd {
    /// Adds the request to the figures.
    pub fn count(self, figures: &mut RequestFigures) {
        match self {
            RequestEnd::Completed { timings, .. } => timings.count(figures),
            RequestEnd::PromptOnly(tokens) => observe(&mut figures.prompt_tokens, tokens as f64),
            RequestEnd::Cancelled => increment(figures.cancellations.get_or_insert(0)),
            RequestEnd::Failed(status) => increment(figures.errors.entry(status).or_default()),
        }
        increment(figures.outcomes.entry(self.outcome()).or_default());
    }

    fn outcome(self) -> Outcome {
        match self {
            RequestEnd::Completed { is_truncated, .. } if is_truncated => Outcome::Truncated,
            RequestEnd::Completed { .. } | RequestEnd::PromptOnly(_) => Outcome::Ok,
            RequestEnd::Cancelled => Outcome::Cancelled,
            RequestEnd::Failed(_) => Outcome::Error,
        }
    }
}

impl RequestTimings {
    fn count(&self, figures: &mut RequestFigures) {
        let generated_tokens = self.generation.tokens as f64;
        observe(&mut figures.duration, self.total_ms / 1000.0);
        observe(&mut figures.prompt_tokens, self.prompt.tokens as f64);
        if self.generation.tokens > 0 {
            observe(&mut figures.first_token, self.prompt.ms / 1000.0);
            observe(&mut figures.generated_tokens, generated_tokens);
        }
        // The first token belongs to the prompt (OpenTelemetry's time per output token, and
        // llama.cpp's own log from b11434).
        if self.generation.tokens > 1 {
            let seconds = self.generation.ms / 1000.0;
            observe(&mut figures.per_token, seconds / (generated_tokens - 1.0));
        }
    }
}

fn observe(histogram: &mut Option<Histogram>, value: f64) {
    if let Some(histogram) = histogram {
        histogram.observe(value, 1);
    }
}

fn increment(count: &mut u64) {
    *count = count.saturating_add(1);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_number_of_models_is_limited() {
        let requests = Requests::default();
        for number in 0..3000 {
            requests.count(&format!("model {number}"), &records::SOURCE, |_| {});
        }
        assert_eq!(requests.figures().len(), MAX_ENTRIES);
    }

    #[test]
    fn an_error_does_not_wait_long_for_the_answer_of_a_probe() {
        let requests = Requests::default();
        requests.probe_sent("m");
        let read = Instant::now();
        requests.count_logged(("m", None), RequestEnd::Failed(400), read);
        requests.polled(read + Duration::from_secs(1), []);
        assert!(requests.figures().is_empty(), "it may be the probe's");
        requests.polled(read + Duration::from_secs(60), []);
        assert_eq!(requests.figures()[0].figures.errors.get(&400), Some(&1));
    }

    #[test]
    fn counters_whose_labels_are_known_start_at_zero() {
        let requests = Requests::default();
        requests.start(&log::SOURCE);
        requests.start(&probe::SOURCE);
        requests.polled(Instant::now(), [("m", true), ("other", false)]);
        let figures = requests.figures();
        let labels = figures.iter().map(|of| (of.model.as_str(), of.source));
        assert!(labels.eq([("m", "log"), ("m", "probe")]));
        assert_eq!(figures[0].figures.cancellations, Some(0));
        let outcomes = Outcome::ALL.map(|outcome| (outcome, 0)).into();
        assert_eq!(figures[0].figures.outcomes, outcomes);
        let errors = log::parser::STATUSES.map(|status| (status, 0)).into();
        assert_eq!(figures[0].figures.errors, errors);
        let failures = &figures[1].figures.probe_failures;
        assert_eq!(*failures, Reason::ALL.map(|reason| (reason, 0)).into());
        let records = (records::SOURCE.zero)();
        assert_eq!(records.outcomes.get(&Outcome::Ok), Some(&0));
        assert_eq!(records.outcomes.get(&Outcome::Cancelled), None);
        assert_eq!(records.record_gaps, Some(0));
        assert_eq!(records.errors.get(&503), Some(&0));
    }
}
