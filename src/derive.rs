//! Turning answers into what is exported: live counters, rates, batches.
//!
//! Nothing here asks or waits: readings come in with the times they were taken
//! at, and a [`Model`] comes out.

mod in_flight;
mod live;
mod optimal;
mod slots;

use std::time::Instant;

use self::in_flight::DecodeCalls;
use self::live::Live;
use self::optimal::OptimalBatch;
use self::slots::{SlotGrowth, context_tokens, generating, prompting, running_tasks};
use crate::histogram::{Histogram, PER_TOKEN_SECONDS};
use crate::snapshot::{Model, Status};
use crate::upstream::answers::{Counters, Slot, Stats};
use crate::upstream::reading::{CountersAt, Ended, Facts, ModelReading, Seen, SlotsAt, State};

/// What must be remembered of one model between two readings.
#[derive(Debug)]
pub struct ModelState {
    life: Life,
    batch_latency: Histogram,
}

/// What is known within one life of the server, and void with its restart.
#[derive(Debug, Default)]
struct Life {
    identity: Option<String>,
    counters: Option<Counters>,
    slots: Vec<Slot>,
    generated: Live,
    prompt: Live,
    decode_calls: DecodeCalls,
    growth: SlotGrowth,
    batch_size: Option<f64>,
    optimal: OptimalBatch,
    last: Option<Point>,
}

/// What the next reading is compared with.
#[derive(Clone, Debug)]
struct Point {
    /// When the live counts were taken.
    at: Instant,
    /// When `/metrics` was read.
    counters_at: Instant,
    counters: Counters,
    generated: Option<f64>,
    prompt: Option<f64>,
    /// Generated tokens as of `counters_at`, to compare with decode calls: a token more or
    /// less makes a difference there.
    generated_then: Option<f64>,
    /// Tasks at work, where `/slots` was read.
    tasks: Vec<slots::Task>,
}

impl Default for ModelState {
    fn default() -> ModelState {
        ModelState {
            life: Life::default(),
            batch_latency: Histogram::new(PER_TOKEN_SECONDS),
        }
    }
}

impl ModelState {
    /// Takes one reading of the model.
    pub fn update(&mut self, reading: &ModelReading) -> Model {
        let mut model = Model {
            name: reading.name.clone(),
            mode: reading.mode.clone(),
            ..Model::default()
        };
        take_facts(&mut model, &reading.facts);
        match &reading.counters {
            Seen::Now(read) => self.take_counters(&mut model, read, reading),
            Seen::Unchanged | Seen::Stale => self.life.hold(&mut model),
            Seen::Gone => {}
        }
        self.take_slots(&mut model, reading);
        if let Some(ended) = &reading.ended {
            take_ended(&mut model, ended);
        }
        if let State::Asleep(at) = reading.state {
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

    fn take_counters(&mut self, model: &mut Model, read: &CountersAt, reading: &ModelReading) {
        if self.life.is_over(read) {
            self.life = Life::default();
        }
        let life = &mut self.life;
        life.identity.clone_from(&read.life);
        let slots = match &reading.slots {
            Seen::Now(slots) => Some(slots),
            _ => None,
        };
        let point = life.live_counts(read, slots, matches!(reading.slots, Seen::Unchanged));
        if let Some(last) = &life.last {
            let seconds = point.at.duration_since(last.at).as_secs_f64();
            let rate = |now: Option<f64>, then: Option<f64>| {
                Some((now? - then?).max(0.0) / seconds).filter(|rate| rate.is_finite())
            };
            model.tokens_per_second = rate(point.generated, last.generated);
            model.prompt_tokens_per_second = rate(point.prompt, last.prompt);
            if let Some(calls) = growth(point.counters.decode_calls, last.counters.decode_calls) {
                let tokens = growth(point.generated_then, last.generated_then).unwrap_or(0.0)
                    + growth(point.prompt, last.prompt).unwrap_or(0.0);
                life.batch_size = Some(tokens / calls)
                    .filter(|size| *size > 0.0)
                    .or(life.batch_size);
                if was_busy_throughout(last, &point) {
                    let length = point.counters_at.duration_since(last.counters_at);
                    self.batch_latency
                        .observe(length.as_secs_f64() / calls, calls as u64);
                    let slots = |point: &Point| point.counters.requests_processing;
                    if let (Some(slots), Some(rate), true) = (
                        slots(&point),
                        model.tokens_per_second,
                        slots(&point) == slots(last),
                    ) {
                        life.optimal.saw(point.at, slots as u32, rate);
                    }
                }
            }
        }
        life.counters = Some(read.counters.clone());
        life.last = Some(point);
        life.hold(model);
        model.requests_processing = read.counters.requests_processing;
        model.requests_deferred = read.counters.requests_deferred;
        model.slots_busy = read.counters.requests_processing;
        model.kv_cache_ratio = read.counters.kv_cache_usage_ratio;
    }

    fn take_slots(&mut self, model: &mut Model, reading: &ModelReading) {
        let life = &mut self.life;
        match &reading.slots {
            Seen::Now(SlotsAt { at, slots }) => {
                let busy = slots.iter().filter(|slot| slot.is_processing).count();
                model.slots_busy = Some(busy as f64);
                if matches!(reading.counters, Seen::Gone) {
                    model.requests_processing = Some(busy as f64);
                    model.tokens_per_second = life.growth.rate(*at, slots);
                }
                life.slots.clone_from(slots);
            }
            Seen::Unchanged => {}
            Seen::Stale | Seen::Gone => return,
        }
        let slots = &life.slots;
        if !slots.is_empty() {
            model.slots = model.slots.or(Some(slots.len() as f64));
        }
        let largest = |values: &mut dyn Iterator<Item = f64>| values.reduce(f64::max);
        let fits = largest(&mut slots.iter().filter_map(|slot| slot.n_ctx));
        model.max_context_size = model.max_context_size.or(fits);
        model.context_tokens = context_tokens(slots);
        model.context_size = largest(&mut model.context_tokens.iter().map(|(_, tokens)| *tokens));
    }

    fn status(&self, reading: &ModelReading, model: &Model) -> Option<Status> {
        let busy = |value: Option<f64>| value.map(|value| value > 0.0);
        match reading.state {
            State::Loading | State::Waking => Some(Status::Loading),
            State::Asleep(_) => Some(Status::Sleeping),
            State::Busy => Some(Status::Running),
            State::Told(status) => Some(status),
            State::Unknown => None,
            State::Ready => {
                // A server that is left alone was idle when it was read last.
                let left_alone =
                    matches!(reading.counters, Seen::Stale) || matches!(reading.slots, Seen::Stale);
                let signs = [
                    busy(model.requests_processing),
                    busy(model.requests_deferred),
                    busy(model.slots_busy),
                    left_alone.then_some(false),
                ];
                let busy = signs.into_iter().flatten().reduce(|a, b| a || b)?;
                Some(if busy { Status::Running } else { Status::Idle })
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
                Some("idle") => Some(Status::Idle),
                Some("loading") => Some(Status::Loading),
                Some("running") => Some(Status::Running),
                _ => None,
            };
            fill(&mut model.status, status);
        }
    }
}

impl Life {
    /// Whether `read` comes from a later life of the server than what was read before.
    fn is_over(&self, read: &CountersAt) -> bool {
        let named = self.identity.as_ref().zip(read.life.as_ref());
        if named.is_some_and(|(then, now)| then != now) {
            return true;
        }
        let Some(then) = &self.counters else {
            return false;
        };
        let now = &read.counters;
        let fell = |then: Option<f64>, now: Option<f64>| {
            then.zip(now)
                .is_some_and(|(then, now)| now + live::rounding(then) < then)
        };
        fell(then.predicted_tokens, now.predicted_tokens)
            || fell(then.prompt_tokens, now.prompt_tokens)
            || fell(then.decode_calls, now.decode_calls)
    }

    /// The live counts: from `/slots` where it was read, else from the decode calls.
    fn live_counts(
        &mut self,
        read: &CountersAt,
        slots: Option<&SlotsAt>,
        slots_idle: bool,
    ) -> Point {
        let counters = &read.counters;
        let mut point = Point {
            at: slots.map_or(read.at, |slots| slots.at),
            counters_at: read.at,
            counters: counters.clone(),
            generated: None,
            prompt: None,
            generated_then: None,
            tasks: slots
                .map(|slots| running_tasks(&slots.slots))
                .unwrap_or_default(),
        };
        self.decode_calls.saw(counters);
        if let Some(total) = counters.predicted_tokens {
            let in_flight = self.decode_calls.in_flight(counters);
            point.generated_then = Some(total + in_flight);
            point.generated = Some(match slots {
                Some(read) => self.generated.with_tasks(total, &generating(&read.slots)),
                None if slots_idle => self.generated.with_tasks(total, &[]),
                None => self.generated.with_estimate(total, in_flight),
            });
        }
        if let Some(total) = counters.prompt_tokens {
            point.prompt = Some(match slots {
                Some(read) => self.prompt.with_tasks(total, &prompting(&read.slots)),
                None if slots_idle => self.prompt.with_tasks(total, &[]),
                None => self.prompt.with_estimate(total, 0.0),
            });
        }
        point
    }

    /// Nothing was done up to this moment: what the counters grow by is younger.
    fn rested(&mut self, until: Instant) {
        if let Some(last) = &mut self.last {
            last.at = last.at.max(until);
            last.counters_at = last.counters_at.max(until);
        }
    }

    /// Exports the counters as they were read last.
    fn hold(&self, model: &mut Model) {
        let Some(counters) = &self.counters else {
            return;
        };
        model.generated_tokens = self.last.as_ref().and_then(|last| last.generated);
        model.prompt_tokens = self.last.as_ref().and_then(|last| last.prompt);
        model.prompt_tokens_cached = counters.prompt_tokens_cached;
        model.prompt_seconds = counters.prompt_seconds;
        model.generation_seconds = counters.predicted_seconds;
        model.decode_calls = counters.decode_calls;
        model.draft_tokens = counters.draft_tokens;
        model.draft_tokens_accepted = counters.draft_tokens_accepted;
        model.max_sequence_tokens = counters.tokens_max;
        model.batch_size = self.batch_size;
    }
}

fn take_facts(model: &mut Model, facts: &Facts) {
    model.slots = facts.slots;
    model.max_context_size = facts.max_context;
    model.size = facts.size;
    model.parameters = facts.parameters;
    model.quantization.clone_from(&facts.quantization);
    model.architecture.clone_from(&facts.architecture);
    model.backend.clone_from(&facts.backend);
}

/// Where nothing but a list of ended requests tells, that is what the counters count.
fn take_ended(model: &mut Model, ended: &Ended) {
    model.prompt_tokens = model.prompt_tokens.or(Some(ended.prompt_tokens));
    model.prompt_tokens_cached = model.prompt_tokens_cached.or(Some(ended.cached_tokens));
    model.generated_tokens = model.generated_tokens.or(Some(ended.generated_tokens));
}

/// Whether there is anything to see of a model besides its state.
pub fn is_loaded(status: Option<Status>) -> bool {
    !matches!(
        status,
        Some(Status::Unloaded | Status::Downloading | Status::Failed)
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

fn growth(now: Option<f64>, then: Option<f64>) -> Option<f64> {
    Some(now? - then?).filter(|growth| *growth > 0.0)
}

/// Whether it is certain that the server was at work all the time between two readings.
fn was_busy_throughout(then: &Point, now: &Point) -> bool {
    let waiting = |point: &Point| point.counters.requests_deferred.unwrap_or(0.0) > 0.0;
    let processing = |point: &Point| point.counters.requests_processing.unwrap_or(0.0) > 0.0;
    let same_task = then.tasks.iter().any(|task| now.tasks.contains(task));
    // Nothing has ended, and something was and is at work: it is the same.
    let none_ended = then.tasks.is_empty()
        && now.tasks.is_empty()
        && then.counters.predicted_tokens == now.counters.predicted_tokens;
    processing(then)
        && processing(now)
        && (same_task || none_ended || (waiting(then) && waiting(now)))
}
