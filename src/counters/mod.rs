//! Turning answers into what is exported: live counters, rates, batches.
//!
//! Nothing here asks or waits: readings come in with the times they were taken
//! at, and a [`Model`] comes out.

mod count;
mod decode_calls;
mod history;
mod optimal_batch;
mod slots;

use std::time::Instant;

use crate::counters::count::{Count, Step};
use crate::counters::decode_calls::DecodeCalls;
use crate::counters::history::{Growth, History, Point, Reach, Window};
use crate::counters::optimal_batch::OptimalBatch;
use crate::counters::slots::{Slots, Steps, context_tokens};
use crate::readings::counters::rounding_step;
use crate::readings::{
    Counters, CountersReading, ModelFacts, ModelReading, ModelState, ModelStatus, Slot,
    SlotsReading, Stats, TokenTotals, Update,
};
use crate::snapshot::Model;
use crate::snapshot::histogram::{Histogram, PER_TOKEN_SECONDS};

/// What must be remembered of one model between two readings.
#[derive(Debug)]
pub struct ModelTracker {
    life: Life,
    batch_latency: Histogram,
}

/// What is known within one life of the server, and void with its restart.
#[derive(Debug)]
struct Life {
    identity: Option<String>,
    /// `/metrics` as it was read last.
    counters: Option<Counters>,
    /// `/metrics` of the last reading in `history`.
    counters_then: Option<Counters>,
    /// `/slots` as it was read last.
    shown: Vec<Slot>,
    slots: Slots,
    generated: Count,
    prompt: Count,
    calls: Count,
    decode_calls: DecodeCalls,
    history: History,
    /// Since when the server was at work without a pause, and its calls were not observed.
    busy_since: Option<Instant>,
    batch_size: Option<f64>,
    optimal: OptimalBatch,
    /// Whether requests have ended that the server counts no prompt tokens of.
    prompts_uncounted: bool,
}

impl Default for Life {
    fn default() -> Life {
        Life {
            identity: None,
            counters: None,
            counters_then: None,
            shown: Vec::new(),
            slots: Slots::default(),
            generated: Count::default(),
            prompt: Count::of_all(),
            calls: Count::of_all(),
            decode_calls: DecodeCalls::default(),
            history: History::default(),
            busy_since: None,
            batch_size: None,
            optimal: OptimalBatch::default(),
            prompts_uncounted: false,
        }
    }
}

/// What the slots told at one reading.
enum Told {
    /// What came since they were read before, that long ago.
    Steps(Steps, f64),
    /// They are late: what they hold is not known.
    Late,
    /// There are none to be read.
    Nothing,
}

/// Said of a server that does not count what it computes.
const PROMPTS_UNCOUNTED: &str = "/metrics counts no prompt tokens of the requests that have ended: before \
     b10566 llama-server does not count those of embeddings and reranking; they are not shown, and \
     --log-file has them";

impl Default for ModelTracker {
    fn default() -> ModelTracker {
        ModelTracker {
            life: Life::default(),
            batch_latency: Histogram::new(PER_TOKEN_SECONDS),
        }
    }
}

impl ModelTracker {
    /// Takes one reading of the model.
    pub fn update(&mut self, reading: &ModelReading) -> Model {
        let mut model = Model {
            name: reading.name.clone(),
            mode: reading.mode.clone(),
            ..Model::default()
        };
        take_facts(&mut model, &reading.facts);
        if matches!(&reading.counters, Update::New(read) if self.life.is_over(read)) {
            self.life = Life::default();
        }
        let told = self.life.look_at_slots(reading);
        match &reading.counters {
            Update::New(read) => self.take_counters(&mut model, read, &told),
            Update::Unchanged | Update::Stale => {
                self.life.step(&told);
                self.life.hold(&mut model);
            }
            Update::Absent => {
                self.life.step(&told);
                if let (Told::Steps(steps, seconds), Update::New(_)) = (&told, &reading.slots) {
                    // Requests that came and went between two polls are missing.
                    let rate = steps.generated.known / seconds;
                    model.tokens_per_second = Some(rate).filter(|rate| rate.is_finite());
                }
            }
        }
        self.take_slots(&mut model, reading);
        if let Some(ended) = &reading.token_totals {
            take_ended(&mut model, ended);
        }
        if let ModelState::Asleep(at) = reading.state {
            asleep(&mut model);
            self.life.rested(at);
        }
        model.status = self.status(reading, &model);
        if let Some(stats) = &reading.stats {
            self.take_stats(&mut model, stats);
        }
        if !is_loaded(model.status) {
            // When it is loaded again, that is another life, whatever its counters say.
            self.life = Life::default();
        } else {
            let seen = self.life.optimal.best();
            model.optimal_batch_size = model.optimal_batch_size.or(seen.map(f64::from));
        }
        if self.batch_latency.count() > 0 && is_loaded(model.status) {
            model.batch_latency = Some(self.batch_latency.clone());
        }
        model
    }

    fn take_counters(&mut self, model: &mut Model, read: &CountersReading, told: &Told) {
        let life = &mut self.life;
        life.identity.clone_from(&read.process);
        model.requests_processing = read.counters.requests_processing;
        model.requests_deferred = read.counters.requests_deferred;
        model.slots_busy = read.counters.requests_processing;
        model.kv_cache_ratio = read.counters.kv_cache_usage_ratio;
        life.prompts_uncounted = life.prompts_are_uncounted(&read.counters);
        life.counters = Some(read.counters.clone());
        if let Some(point) = life.count(read, told) {
            let then = life.counters_then.replace(read.counters.clone());
            life.history.push(point);
            model.tokens_per_second = life.rate(|window| window.generated);
            model.prompt_tokens_per_second = life
                .rate(|window| window.prompt)
                .filter(|_| !life.prompts_uncounted);
            life.observe_batches(&mut self.batch_latency);
            if let (Some(slots), true) = (
                read.counters.requests_processing,
                point.busy && then.is_some_and(|then| same_load(&then, &read.counters)),
            ) {
                life.observe_speed(point.at, slots as u32);
            }
        }
        life.hold(model);
    }

    fn take_slots(&mut self, model: &mut Model, reading: &ModelReading) {
        let life = &mut self.life;
        match &reading.slots {
            Update::New(SlotsReading { slots, .. }) => {
                let busy = slots.iter().filter(|slot| slot.is_processing).count();
                model.slots_busy = Some(busy as f64);
                if matches!(reading.counters, Update::Absent) {
                    model.requests_processing = Some(busy as f64);
                }
                life.shown.clone_from(slots);
            }
            Update::Unchanged => {}
            Update::Stale | Update::Absent => return,
        }
        let slots = &life.shown;
        if !slots.is_empty() {
            model.slots = model.slots.or(Some(slots.len() as f64));
        }
        let largest = |values: &mut dyn Iterator<Item = f64>| values.reduce(f64::max);
        let fits = largest(&mut slots.iter().filter_map(|slot| slot.n_ctx));
        model.max_context_size = model.max_context_size.or(fits);
        model.context_tokens = context_tokens(slots);
        model.context_size = largest(&mut model.context_tokens.iter().map(|(_, tokens)| *tokens));
    }

    fn status(&self, reading: &ModelReading, model: &Model) -> Option<ModelStatus> {
        let busy = |value: Option<f64>| value.map(|value| value > 0.0);
        match reading.state {
            ModelState::Loading | ModelState::Waking => Some(ModelStatus::Loading),
            ModelState::Asleep(_) => Some(ModelStatus::Sleeping),
            ModelState::Busy => Some(ModelStatus::Running),
            ModelState::Reported(status) => Some(status),
            ModelState::Unknown => None,
            ModelState::Ready => {
                // A server that is left alone was idle when it was read last.
                let left_alone = matches!(reading.counters, Update::Stale)
                    || matches!(reading.slots, Update::Stale);
                let signs = [
                    busy(model.requests_processing),
                    busy(model.requests_deferred),
                    busy(model.slots_busy),
                    left_alone.then_some(false),
                ];
                let busy = signs.into_iter().flatten().reduce(|a, b| a || b)?;
                Some(if busy {
                    ModelStatus::Running
                } else {
                    ModelStatus::Idle
                })
            }
        }
    }

    fn take_stats(&mut self, model: &mut Model, stats: &Stats) {
        fn fill<T>(place: &mut Option<T>, value: Option<T>) {
            if place.is_none() {
                *place = value;
            }
        }
        if let Some(memory) = &stats.memory {
            fill(&mut model.memory_usage, memory.used_bytes);
            fill(&mut model.total_memory, memory.total_bytes);
            fill(&mut model.kv_cache_usage, memory.kv_cache_bytes);
            fill(&mut model.kv_cache_limit, memory.kv_cache_max_bytes);
        }
        if let Some(performance) = &stats.performance {
            fill(&mut model.tokens_per_second, performance.tokens_per_second);
            fill(&mut model.cpu_utilization, performance.cpu_utilization);
            fill(&mut model.gpu_utilization, performance.gpu_utilization);
            fill(&mut model.temperature, performance.temperature);
        }
        if let Some(said) = &stats.model {
            fill(&mut model.size, said.size_bytes);
            fill(&mut model.parameters, said.parameters);
            fill(&mut model.context_size, said.context_size);
            fill(&mut model.max_context_size, said.max_context_size);
        }
        if let Some(batch) = &stats.batch {
            fill(&mut model.batch_size, batch.size);
            fill(&mut model.optimal_batch_size, batch.optimal_size);
            // Where decode calls are counted they tell it better.
            if let (None, Some(milliseconds)) = (model.decode_calls, batch.latency_ms) {
                self.batch_latency.observe(milliseconds / 1000.0, 1);
            }
        }
        if let Some(system) = &stats.system {
            fill(&mut model.threads, system.threads);
            let status = match system.status.as_deref() {
                Some("idle") => Some(ModelStatus::Idle),
                Some("loading") => Some(ModelStatus::Loading),
                Some("running") => Some(ModelStatus::Running),
                _ => None,
            };
            fill(&mut model.status, status);
        }
    }
}

impl Life {
    /// Whether `read` comes from a later life of the server than what was read before.
    fn is_over(&self, read: &CountersReading) -> bool {
        let named = self.identity.as_ref().zip(read.process.as_ref());
        if named.is_some_and(|(then, now)| then != now) {
            return true;
        }
        let Some(then) = &self.counters else {
            return false;
        };
        let now = &read.counters;
        let fell = |then: Option<f64>, now: Option<f64>| {
            then.zip(now)
                .is_some_and(|(then, now)| now + rounding_step(then) < then)
        };
        fell(then.generated_tokens, now.generated_tokens)
            || fell(then.prompt_tokens, now.prompt_tokens)
            || fell(then.decode_calls, now.decode_calls)
    }

    /// Takes what the slots show, or that nothing is on them.
    fn look_at_slots(&mut self, reading: &ModelReading) -> Told {
        let before = self.slots.read_at();
        let resting_at = match (&reading.counters, reading.state) {
            (Update::New(read), _) => Some(read.at),
            (_, ModelState::Asleep(at)) => Some(at),
            _ => None,
        };
        let (at, steps) = match (&reading.slots, reading.state, resting_at) {
            (Update::New(read), ..) => (read.at, self.slots.read(read.at, &read.slots)),
            (Update::Stale, ..) => return Told::Late,
            _ if before.is_none() => return Told::Nothing,
            (Update::Unchanged, _, Some(at)) => (at, self.slots.rest(at)),
            // What it did before it fell asleep was not seen.
            (Update::Absent, ModelState::Asleep(_), Some(at)) => {
                (at, self.slots.rest(at).with_more())
            }
            _ => return Told::Late,
        };
        let seconds = before.map_or(0.0, |before| at.duration_since(before).as_secs_f64());
        Told::Steps(steps, seconds)
    }

    /// Takes what the slots told, where `/metrics` was not read with them.
    fn step(&mut self, told: &Told) {
        if let Told::Steps(steps, _) = told {
            self.generated.step(&steps.generated);
            self.prompt.step(&steps.prompt);
            self.calls.step(&steps.calls);
        }
    }

    /// Takes `/metrics` and what the slots told right after it; gives the counts, if they
    /// can be compared with those of other readings.
    fn count(&mut self, read: &CountersReading, told: &Told) -> Option<Point> {
        let counters = &read.counters;
        self.decode_calls.saw(counters);
        let in_flight = self.decode_calls.in_flight(counters);
        let untold = Steps {
            generated: in_flight.step(),
            prompt: Step::unknown(),
            calls: Step::unknown(),
            same_task: false,
        };
        let steps = match told {
            Told::Steps(steps, _) => *steps,
            Told::Nothing if self.has_rested(counters) => Steps::default(),
            Told::Nothing => untold,
            Told::Late => {
                let counted = [
                    (counters.generated_tokens, &mut self.generated),
                    (counters.prompt_tokens, &mut self.prompt),
                    (counters.decode_calls, &mut self.calls),
                ];
                for (printed, count) in counted {
                    if let Some(printed) = printed {
                        count.read_alone(printed);
                    }
                }
                return None;
            }
        };
        let calls_are_exact = counters
            .decode_calls
            .is_some_and(|calls| rounding_step(calls) == 0.0);
        let calls = if calls_are_exact {
            untold.calls
        } else {
            steps.calls
        };
        let generated = counters
            .generated_tokens
            .map(|printed| self.generated.read(printed, &steps.generated));
        let product = counters
            .generated_tokens
            .map(|printed| Reach::around(printed + in_flight.value.round(), in_flight.doubt));
        let at = self.slots.read_at().unwrap_or(read.at);
        Some(Point {
            at,
            calls_at: if calls_are_exact { read.at } else { at },
            generated,
            prompt: counters
                .prompt_tokens
                .map(|printed| self.prompt.read(printed, &steps.prompt)),
            generated_then: if calls_are_exact { product } else { generated },
            calls: counters
                .decode_calls
                .map(|printed| self.calls.read(printed, &calls)),
            busy: self.was_busy_throughout(counters, &steps, matches!(told, Told::Nothing)),
        })
    }

    /// Whether nothing was seen to be done since `/metrics` was read before.
    fn has_rested(&self, now: &Counters) -> bool {
        let idle = |counters: &Counters| counters.requests_processing == Some(0.0);
        self.counters_then.as_ref().is_some_and(|then| {
            idle(then)
                && idle(now)
                && then.generated_tokens == now.generated_tokens
                && then.prompt_tokens == now.prompt_tokens
                && then.decode_calls == now.decode_calls
        })
    }

    /// Whether it is certain that the server was at work all the time since `/metrics` was
    /// read before.
    fn was_busy_throughout(&self, now: &Counters, steps: &Steps, no_slots: bool) -> bool {
        let Some(then) = &self.counters_then else {
            return false;
        };
        let waiting = |counters: &Counters| counters.requests_deferred.unwrap_or(0.0) > 0.0;
        let processing = |counters: &Counters| counters.requests_processing.unwrap_or(0.0) > 0.0;
        // Nothing has ended, and something was and is at work: it is the same.
        let none_ended = no_slots
            && then.generated_tokens == now.generated_tokens
            && now
                .generated_tokens
                .is_none_or(|tokens| rounding_step(tokens) == 0.0);
        processing(then)
            && processing(now)
            && (steps.same_task || none_ended || (waiting(then) && waiting(now)))
    }

    /// Growth per second, over the shortest time in which it is known.
    fn rate(&self, of: fn(&Window) -> Option<Growth>) -> Option<f64> {
        let rate = |window: Window| Some(of(&window)?.value()? / window.seconds);
        self.history
            .windows()
            .find_map(rate)
            .filter(|rate| rate.is_finite())
    }

    /// Observes the calls since they were observed last, once their number is known.
    fn observe_batches(&mut self, latency: &mut Histogram) {
        let counted = self.history.windows().find_map(|window| {
            let tokens = window.generated_then?.and(window.prompt?).value()?;
            Some((tokens, window.calls?.value()?))
        });
        if let Some((tokens, calls)) =
            counted.filter(|(tokens, calls)| *tokens > 0.0 && *calls > 0.0)
        {
            self.batch_size = Some(tokens / calls);
        }
        let Some(last) = self.history.last() else {
            return;
        };
        if !last.busy {
            self.busy_since = Some(last.at);
            return;
        }
        let since = self.busy_since;
        let busy = self
            .history
            .windows()
            .take_while(|window| window.busy && Some(window.since) >= since);
        let unobserved = busy.last();
        let calls = unobserved
            .and_then(|window| window.calls?.value())
            .filter(|calls| *calls > 0.0);
        if let Some((window, calls)) = unobserved.zip(calls) {
            latency.observe(window.calls_seconds / calls, calls as u64);
            self.busy_since = Some(last.at);
        }
    }

    /// Takes the speed of the last interval, in which so many slots were busy throughout.
    fn observe_speed(&mut self, at: Instant, slots: u32) {
        let speed = self
            .history
            .windows()
            .next()
            .and_then(|window| Some(window.generated?.value()? / window.seconds));
        if let Some(speed) = speed.filter(|speed| speed.is_finite()) {
            self.optimal.saw(at, slots, speed);
        }
    }

    /// Whether requests have ended, and no token of theirs was ever counted.
    ///
    /// Before b10566 nothing but decode calls is counted of embeddings and reranking. A
    /// request of another kind is counted when it has ended, at the latest.
    fn prompts_are_uncounted(&self, now: &Counters) -> bool {
        let none = |counted: Option<f64>| counted == Some(0.0);
        none(now.prompt_tokens)
            && none(now.generated_tokens)
            && now.decode_calls.is_some_and(|calls| calls > 0.0)
            && (self.prompts_uncounted || !now.is_busy() || self.slots.had_any_ended())
    }

    /// Nothing was done up to this moment: what the counters grow by is younger.
    fn rested(&mut self, until: Instant) {
        self.history.rested(until);
    }

    /// Exports the counters as they were read last.
    fn hold(&self, model: &mut Model) {
        let Some(counters) = &self.counters else {
            return;
        };
        let counted = |printed: Option<f64>, count: &Count| printed.map(|_| count.given());
        model.generated_tokens = counted(counters.generated_tokens, &self.generated);
        model.prompt_tokens_cached = counters.prompt_tokens_cached;
        if self.prompts_uncounted {
            model.notes.push(PROMPTS_UNCOUNTED);
        } else {
            model.prompt_tokens = counted(counters.prompt_tokens, &self.prompt);
            model.prompt_seconds = counters.prompt_seconds;
        }
        model.generation_seconds = counters.generation_seconds;
        model.decode_calls = counted(counters.decode_calls, &self.calls);
        model.draft_tokens = counters.draft_tokens;
        model.draft_tokens_accepted = counters.draft_tokens_accepted;
        model.max_sequence_tokens = counters.max_sequence_tokens;
        model.batch_size = self.batch_size;
    }
}

fn same_load(then: &Counters, now: &Counters) -> bool {
    then.requests_processing == now.requests_processing
}

fn take_facts(model: &mut Model, facts: &ModelFacts) {
    model.slots = facts.slots;
    model.max_context_size = facts.max_context_size;
    model.size = facts.size;
    model.parameters = facts.parameters;
    model.quantization.clone_from(&facts.quantization);
    model.architecture.clone_from(&facts.architecture);
    model.backend.clone_from(&facts.backend);
}

/// Where nothing but a list of ended requests tells, that is what the counters count.
fn take_ended(model: &mut Model, ended: &TokenTotals) {
    model.prompt_tokens = model.prompt_tokens.or(Some(ended.prompt_tokens));
    model.prompt_tokens_cached = model
        .prompt_tokens_cached
        .or(Some(ended.prompt_tokens_cached));
    model.generated_tokens = model.generated_tokens.or(Some(ended.generated_tokens));
}

/// Whether there is anything to see of a model besides its state.
pub fn is_loaded(status: Option<ModelStatus>) -> bool {
    !matches!(
        status,
        Some(ModelStatus::Unloaded | ModelStatus::Downloading | ModelStatus::Failed)
    )
}

/// A model that is put away does nothing, and its cache is gone: that much is known.
fn asleep(model: &mut Model) {
    model.context_size = None;
    model.context_tokens.clear();
    for nothing in [
        &mut model.tokens_per_second,
        &mut model.prompt_tokens_per_second,
        &mut model.requests_processing,
        &mut model.requests_deferred,
        &mut model.slots_busy,
    ] {
        *nothing = Some(0.0);
    }
}

#[cfg(test)]
mod simulated;
#[cfg(test)]
mod tests;
