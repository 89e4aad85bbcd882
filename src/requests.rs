//! The latency of every request, from three sources that measure slightly
//! different things: the server's log, Docker Model Runner's records, and a
//! probe of our own.
//!
//! The figures are the exporter's own counters: they outlive a restart of the
//! server, and go when their model has been gone for an hour.

pub mod follow;
mod lines;
pub mod log_lines;
pub mod probe;
pub mod records;
pub mod tally;

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use self::tally::{Fact, Outcome, Tally, Timings};
use crate::histogram::{Histogram, LATENCY_SECONDS, PER_TOKEN_SECONDS, TOKENS};
use crate::snapshot::{Reason, RequestFigures, RequestSource, RequestsOf};

/// How long the figures of a model that is gone are kept.
const KEPT_FOR: Duration = Duration::from_secs(3600);
/// The most models that figures are kept of.
const MOST_MODELS: usize = 1000;

/// Whose requests a log speaks of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Speaker {
    /// The log is the one of this model's server.
    Server,
    /// The log is a router's, and this model's child listens on this port.
    Child(u16),
    /// No log speaks of it.
    Nobody,
}

/// What the log says of how a server is set up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// How many slots there are.
    pub slots: Option<u64>,
    /// Tokens that fit one slot.
    pub slot_context: Option<u64>,
    /// Whether all slots share one KV cache.
    pub kv_unified: Option<bool>,
}

impl Facts {
    /// Cells of the KV cache, where it is known how the slots share it.
    pub fn cells(&self) -> Option<u64> {
        let (slots, each) = (self.slots?, self.slot_context?);
        let shared = slots == 1 || self.kv_unified?;
        Some(if shared {
            each
        } else {
            each.saturating_mul(slots)
        })
        .filter(|cells| *cells > 0)
    }
}

/// The figures of all requests of one base URL. Each source has one writer.
#[derive(Debug, Default)]
pub struct Requests(Mutex<Inner>);

#[derive(Debug, Default)]
struct Inner {
    figures: BTreeMap<(String, RequestSource), Kept>,
    log: BTreeMap<Option<u16>, Spoken>,
    /// Whether a log is followed.
    follows: bool,
}

#[derive(Debug)]
struct Kept {
    figures: Arc<RequestFigures>,
    /// When the model was there last.
    seen: Instant,
}

/// What the log of one server has told.
#[derive(Debug, Default)]
struct Spoken {
    /// The model that it holds, once that is known.
    model: Option<String>,
    facts: Facts,
    /// What came while the model was not known.
    waiting: Option<RequestFigures>,
}

impl Requests {
    /// Takes which models there are, and which server's log speaks of each.
    pub fn models_are<'a>(
        &self,
        now: Instant,
        models: impl IntoIterator<Item = (&'a str, Speaker)>,
    ) {
        let mut inner = self.lock();
        for (model, speaker) in models {
            let child = match speaker {
                Speaker::Server => Some(None),
                Speaker::Child(port) => Some(Some(port)),
                Speaker::Nobody => None,
            };
            if let Some(child) = child.filter(|_| inner.follows) {
                inner.speaks_of(child, model, now);
            }
            for source in RequestSource::ALL {
                if let Some(kept) = inner.figures.get_mut(&(model.to_owned(), source)) {
                    kept.seen = now;
                }
            }
        }
        inner
            .figures
            .retain(|_, kept| now.saturating_duration_since(kept.seen) < KEPT_FOR);
    }

    /// What is known of every request so far, by model and source.
    pub fn figures(&self) -> Vec<RequestsOf> {
        let inner = self.lock();
        let figures = inner
            .figures
            .iter()
            .map(|((model, source), kept)| RequestsOf {
                model: model.clone(),
                source: *source,
                figures: Arc::clone(&kept.figures),
            });
        figures.collect()
    }

    /// What the log says of the server that holds `model`.
    pub fn facts(&self, model: &str) -> Facts {
        let inner = self.lock();
        let mut spoken = inner.log.values();
        spoken
            .find(|spoken| spoken.model.as_deref() == Some(model))
            .map(|spoken| spoken.facts)
            .unwrap_or_default()
    }

    /// Counts something of a model that is there.
    pub fn count(
        &self,
        model: &str,
        source: RequestSource,
        change: impl FnOnce(&mut RequestFigures),
    ) {
        self.lock().count(model, source, Instant::now(), change);
    }

    /// Says that there is a log: from now on its models count from zero.
    pub fn log_is_followed(&self) {
        self.lock().follows = true;
    }

    /// Follows the log at `path` from now on, in a thread of its own.
    ///
    /// # Errors
    /// The system has no thread to give.
    pub fn follow_log(self: &Arc<Self>, path: &Path) -> io::Result<()> {
        let requests = Arc::clone(self);
        let path = path.to_owned();
        let follow = move || {
            let mut tally = Tally::default();
            let found = || requests.log_is_followed();
            follow::follow(&path, found, &mut |line: &[u8], history: bool| {
                tally.take(line, |counted| requests.log_says(counted, history));
            });
        };
        thread::Builder::new()
            .name("log".to_owned())
            .spawn(follow)
            .map(drop)
    }

    /// Takes what a line of the log has told; what is `history` counts no request.
    pub fn log_says(&self, (child, outcome): tally::Counted, history: bool) {
        let mut inner = self.lock();
        match outcome {
            Outcome::Finished(_) | Outcome::Embedded(_) | Outcome::Cancelled if history => {}
            Outcome::Finished(timings) => {
                inner.log_counts(child, |figures| finished(figures, timings))
            }
            Outcome::Embedded(tokens) => inner.log_counts(child, |figures| {
                observe(&mut figures.prompt_tokens, tokens as f64);
            }),
            Outcome::Cancelled => inner.log_counts(child, |figures| {
                *figures.cancellations.get_or_insert(0) += 1;
            }),
            Outcome::Restarted => {
                // It may be another model that is loaded now; the next poll will tell.
                inner.spoken(child).model = None;
                inner.spoken(child).facts = Facts::default();
            }
            Outcome::Holds(port, model) => {
                let now = Instant::now();
                inner.speaks_of(Some(port), &model, now);
            }
            Outcome::Fact(fact) => {
                let facts = &mut inner.spoken(child).facts;
                match fact {
                    Fact::Slots(count) => facts.slots = Some(count),
                    Fact::SlotContext(context) => facts.slot_context = Some(context),
                    Fact::Unified(unified) => facts.kv_unified = Some(unified),
                }
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn count(
        &mut self,
        model: &str,
        source: RequestSource,
        now: Instant,
        change: impl FnOnce(&mut RequestFigures),
    ) {
        let key = (model.to_owned(), source);
        if self.figures.len() >= MOST_MODELS && !self.figures.contains_key(&key) {
            return;
        }
        let kept = self.figures.entry(key).or_insert_with(|| Kept {
            figures: Arc::new(empty(source)),
            seen: now,
        });
        // What a snapshot still holds stays as it is.
        change(Arc::make_mut(&mut kept.figures));
    }

    fn log_counts(&mut self, child: Option<u16>, change: impl FnOnce(&mut RequestFigures)) {
        let own = self.spoken(child).model.clone();
        // What looks like a router's child may be a wrapper's number before a single server's line.
        let model = own.or_else(|| self.log.get(&None)?.model.clone());
        match model {
            Some(model) => self.count(&model, RequestSource::Log, Instant::now(), change),
            None => {
                let spoken = self.spoken(child);
                change(
                    spoken
                        .waiting
                        .get_or_insert_with(|| empty(RequestSource::Log)),
                );
            }
        }
    }

    /// The log of `child` speaks of `model`: what waited for the name is counted now.
    fn speaks_of(&mut self, child: Option<u16>, model: &str, now: Instant) {
        let spoken = self.spoken(child);
        if spoken.model.as_deref() != Some(model) {
            spoken.model = Some(model.to_owned());
        }
        let waiting = spoken.waiting.take();
        self.count(model, RequestSource::Log, now, |figures| {
            if let Some(waiting) = &waiting {
                add(figures, waiting);
            }
        });
    }

    fn spoken(&mut self, child: Option<u16>) -> &mut Spoken {
        if self.log.len() >= MOST_MODELS && !self.log.contains_key(&child) {
            self.log.clear();
        }
        self.log.entry(child).or_default()
    }
}

/// What a source can tell, and has not told yet.
fn empty(source: RequestSource) -> RequestFigures {
    let first_token = Some(Histogram::new(LATENCY_SECONDS));
    if source == RequestSource::Probe {
        return RequestFigures {
            first_token,
            probe_tokens: Some(0),
            probe_prompt_tokens: Some(0),
            ..RequestFigures::default()
        };
    }
    RequestFigures {
        first_token,
        duration: Some(Histogram::new(LATENCY_SECONDS)),
        per_token: Some(Histogram::new(PER_TOKEN_SECONDS)),
        prompt_tokens: Some(Histogram::new(TOKENS)),
        generated_tokens: Some(Histogram::new(TOKENS)),
        cancellations: (source == RequestSource::Log).then_some(0),
        record_gaps: (source == RequestSource::Records).then_some(0),
        ..RequestFigures::default()
    }
}

/// Counts a request that ran to its end.
fn finished(figures: &mut RequestFigures, timings: Timings) {
    let Timings {
        prompt,
        generation,
        total_ms,
    } = timings;
    observe(&mut figures.duration, total_ms / 1000.0);
    observe(&mut figures.prompt_tokens, prompt.tokens as f64);
    if generation.tokens > 0 {
        observe(&mut figures.first_token, prompt.ms / 1000.0);
        observe(&mut figures.generated_tokens, generation.tokens as f64);
    }
    // The first token comes with the prompt: alone it took no time of its own.
    if generation.tokens > 1 {
        let seconds = generation.ms / 1000.0 / generation.tokens as f64;
        observe(&mut figures.per_token, seconds);
    }
}

fn observe(histogram: &mut Option<Histogram>, value: f64) {
    if let Some(histogram) = histogram {
        histogram.observe(value, 1);
    }
}

fn add(to: &mut RequestFigures, from: &RequestFigures) {
    for (to, from) in [
        (&mut to.first_token, &from.first_token),
        (&mut to.duration, &from.duration),
        (&mut to.per_token, &from.per_token),
        (&mut to.prompt_tokens, &from.prompt_tokens),
        (&mut to.generated_tokens, &from.generated_tokens),
    ] {
        if let (Some(to), Some(from)) = (to, from) {
            to.add(from);
        }
    }
    if let (Some(to), Some(from)) = (&mut to.cancellations, from.cancellations) {
        *to += from;
    }
}

/// Counts what came of a probe.
pub fn probed(figures: &mut RequestFigures, result: Result<probe::Answer, Reason>) {
    match result {
        Ok(answer) => {
            observe(&mut figures.first_token, answer.first_token.as_secs_f64());
            *figures.probe_tokens.get_or_insert(0) += answer.generated;
            *figures.probe_prompt_tokens.get_or_insert(0) += answer.prompt;
        }
        Err(reason) => *figures.probe_failures.entry(reason).or_default() += 1,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::requests::log_lines::Span;

    const REQUEST: Timings = Timings {
        prompt: Span {
            ms: 250.0,
            tokens: 7,
        },
        generation: Span {
            ms: 1000.0,
            tokens: 20,
        },
        total_ms: 1250.0,
    };

    /// A log is followed, and a server of one model is there.
    fn followed(now: Instant) -> Requests {
        let requests = Requests::default();
        requests.log_is_followed();
        requests.models_are(now, [("m", Speaker::Server)]);
        requests
    }

    fn say(requests: &Requests, outcome: Outcome) {
        requests.log_says((None, outcome), false);
    }

    /// How many requests were counted of each model.
    fn counts(requests: &Requests) -> Vec<(String, u64)> {
        let figures = requests.figures();
        let count = |of: &RequestsOf| of.figures.duration.as_ref().map_or(0, Histogram::count);
        figures
            .iter()
            .map(|of| (of.model.clone(), count(of)))
            .collect()
    }

    fn counted(model: &str, count: u64) -> (String, u64) {
        (model.to_owned(), count)
    }

    #[test]
    fn figures_go_when_their_model_has_been_gone_for_an_hour() {
        let start = Instant::now();
        let after = |minutes: u64| start + Duration::from_secs(60 * minutes);
        let requests = followed(start);
        say(&requests, Outcome::Finished(REQUEST));
        requests.models_are(after(50), [("m", Speaker::Server)]);
        requests.models_are(after(109), []);
        assert_eq!(counts(&requests), [counted("m", 1)]);
        requests.models_are(after(110), [("other", Speaker::Nobody)]);
        assert_eq!(counts(&requests), []);
        // Once it is there again it begins anew.
        requests.models_are(after(111), [("m", Speaker::Server)]);
        assert_eq!(counts(&requests), [counted("m", 0)]);
    }

    #[test]
    fn figures_survive_a_restart_of_the_server() {
        let now = Instant::now();
        let requests = followed(now);
        say(&requests, Outcome::Finished(REQUEST));
        requests.models_are(now, []);
        say(&requests, Outcome::Restarted);
        // Whose it is, is not known before the next poll.
        say(&requests, Outcome::Finished(REQUEST));
        say(&requests, Outcome::Cancelled);
        assert_eq!(counts(&requests), [counted("m", 1)]);
        requests.models_are(now, [("m", Speaker::Server)]);
        assert_eq!(counts(&requests), [counted("m", 2)]);
        let figures = &requests.figures()[0].figures;
        assert_eq!(figures.cancellations, Some(1));
        assert_eq!(figures.duration.as_ref().unwrap().sum(), 2.5);
        assert_eq!(figures.per_token.as_ref().unwrap().sum(), 0.1);
    }

    #[test]
    fn another_model_after_a_restart_has_figures_of_its_own() {
        let now = Instant::now();
        let requests = followed(now);
        say(&requests, Outcome::Finished(REQUEST));
        say(&requests, Outcome::Restarted);
        say(&requests, Outcome::Finished(REQUEST));
        requests.models_are(now, [("n", Speaker::Server)]);
        assert_eq!(counts(&requests), [counted("m", 1), counted("n", 1)]);
    }

    #[test]
    fn what_a_snapshot_holds_does_not_change() {
        let requests = followed(Instant::now());
        let before = requests.figures();
        say(&requests, Outcome::Finished(REQUEST));
        assert_eq!(before[0].figures.duration.as_ref().unwrap().count(), 0);
        assert_eq!(counts(&requests), [counted("m", 1)]);
    }

    #[test]
    fn what_is_history_counts_no_request_and_tells_of_the_server() {
        let requests = followed(Instant::now());
        for outcome in [
            Outcome::Finished(REQUEST),
            Outcome::Embedded(3),
            Outcome::Cancelled,
            Outcome::Fact(Fact::Slots(4)),
        ] {
            requests.log_says((None, outcome), true);
        }
        assert_eq!(counts(&requests), [counted("m", 0)]);
        assert_eq!(requests.facts("m").slots, Some(4));
    }

    #[test]
    fn models_and_children_have_a_limit() {
        let requests = followed(Instant::now());
        for port in 0..3000 {
            let holds = Outcome::Holds(port, format!("model {port}"));
            say(&requests, holds);
            requests.log_says((Some(port), Outcome::Finished(REQUEST)), false);
        }
        assert_eq!(requests.figures().len(), MOST_MODELS);
        assert!(requests.lock().log.len() <= MOST_MODELS);
    }
}
