//! Turns the readings of one model into live counters, rates and batch figures.
//!
//! Does no I/O and reads no clock: readings come in with their times, a [`Model`] comes out.

mod batches;
mod in_flight;
pub mod integrals;
mod live_counter;
mod optimal_batch;
mod rates;
mod server_run;
mod slot_tracker;
mod task_counter;

use std::time::Instant;

use crate::counters::server_run::{ServerRun, SlotUpdate};
use crate::counters::slot_tracker::{active_tokens, are_unused, context_tokens};
use crate::counters::task_counter::TaskCounter;
use crate::readings::{
    CountersReading, LoggedTasks, ModelReading, ModelState, ModelStatus, TokenTotals, Update,
};
use crate::snapshot::histogram::{Histogram, PER_TOKEN_SECONDS};
use crate::snapshot::{Absence, Model};

/// What is remembered of one model between two readings.
#[derive(Debug)]
pub struct ModelTracker {
    run: ServerRun,
    /// Whether the last reading came from a restarted server.
    has_restarted: bool,
    /// Whether the server may have been restarted since its counters were read: those of before
    /// are not its own.
    may_have_restarted: bool,
    batch_latency: Histogram,
}

impl Default for ModelTracker {
    fn default() -> ModelTracker {
        ModelTracker {
            run: ServerRun::default(),
            has_restarted: false,
            may_have_restarted: false,
            batch_latency: Histogram::new(PER_TOKEN_SECONDS),
        }
    }
}

impl ModelTracker {
    /// Takes one reading of the model; returns what is known of it now.
    pub fn update(&mut self, reading: &ModelReading) -> Model {
        let mut model = Model {
            name: reading.name.clone(),
            mode: reading.mode.clone(),
            facts: reading.facts.clone(),
            stats: reading.stats.clone().unwrap_or_default(),
            ..Model::default()
        };
        self.has_restarted =
            matches!(&reading.counters, Update::New(read) if self.run.is_restarted(read));
        if self.has_restarted {
            self.run = ServerRun::default();
        }
        // A sleeping server that wakes up loads its model, too, and keeps its counters.
        self.may_have_restarted |= reading.state == ModelState::Loading || reading.has_lost_metrics;
        if self.may_have_restarted && reading.lacks_metrics && self.run.counters.is_some() {
            // It served `/metrics` until it was restarted.
            self.run = ServerRun::default();
        }
        self.may_have_restarted &= !matches!(reading.counters, Update::New(_));
        let slots = self.run.update_slots(reading);
        match &reading.counters {
            Update::New(read) => self.take_counters(&mut model, read, &slots),
            Update::Unchanged | Update::Stale if self.may_have_restarted => {}
            Update::Unchanged | Update::Stale => {
                self.run.add_slots(&slots);
                if let Some(counters) = &self.run.counters {
                    model.counters = counters.without_gauges();
                }
                self.take_live_counts(&mut model);
            }
            Update::Absent => {
                self.run.add_slots(&slots);
                if reading.state == ModelState::Ready && reading.logged_tasks.is_none() {
                    // What ends while its log is not used is missing: the counter starts again.
                    self.run.tasks = TaskCounter::default();
                }
                if reading.lacks_metrics
                    && let Some(logged) = &reading.logged_tasks
                    && self.run.counters.is_none()
                {
                    self.take_logged_tasks(&mut model, logged, reading);
                } else if let (SlotUpdate::Read(deltas, seconds), Update::New(_)) =
                    (&slots, &reading.slots)
                {
                    // Requests that began and ended between two polls are missing.
                    let rate = deltas.generated_tokens.known / seconds;
                    model.rates.tokens_per_second = Some(rate).filter(|rate| rate.is_finite());
                }
            }
        }
        self.take_slots(&mut model, reading);
        if let Some(totals) = &reading.token_totals {
            take_token_totals(&mut model, totals);
        }
        if let ModelState::Asleep(at) = reading.state {
            self.take_sleep(&mut model, at);
        }
        model.status = status(reading, &model);
        self.take_stats(&mut model);
        if model.is_loaded() {
            model.rates.optimal_batch_size = self.run.batches.optimal_size();
            let latency = &self.batch_latency;
            // From 0 on, so that the first busy interval is in its increase.
            let is_measured = latency.count() > 0 || model.counters.decode_calls.is_some();
            model.rates.batch_latency = is_measured.then(|| latency.clone());
        } else {
            // When it is loaded again, its counters start again, whatever their values are.
            self.run = ServerRun::default();
        }
        model
    }

    /// Whether the last reading came from a server that was restarted after the one before.
    pub fn has_restarted(&self) -> bool {
        self.has_restarted
    }

    /// The server is not there: when it is there again, it may have been restarted.
    pub fn server_gone(&mut self) {
        self.may_have_restarted = true;
    }

    fn take_counters(&mut self, model: &mut Model, read: &CountersReading, slots: &SlotUpdate) {
        let run = &mut self.run;
        model.counters = read.counters.clone();
        if run.update(read, slots, &mut self.batch_latency) {
            model.rates.tokens_per_second = run.history.rate(|point| point.generated_tokens);
            if !run.prompts_uncounted {
                model.rates.prompt_tokens_per_second =
                    run.history.rate(|point| point.prompt_tokens);
            }
            model.rates.batch_size = run.batches.size;
        }
        self.take_live_counts(model);
    }

    fn take_logged_tasks(&mut self, model: &mut Model, logged: &LoggedTasks, read: &ModelReading) {
        let run = &mut self.run;
        let slots = match &read.slots {
            Update::New(slots) => Some((slots.at, run.slot_tracker.slots())),
            _ => None,
        };
        let tasks = &mut run.tasks;
        tasks.update(logged, slots.as_ref().map(|(_, slots)| slots.as_slice()));
        model.live.generated_tokens = Some(tasks.tokens().generated);
        model.live.prompt_tokens = Some(tasks.tokens().prompt);
        if let Some(rates) = slots.and_then(|(at, _)| tasks.rates(at)) {
            model.rates.tokens_per_second = Some(rates.generated);
            model.rates.prompt_tokens_per_second = Some(rates.prompt);
        }
    }

    fn take_live_counts(&self, model: &mut Model) {
        model.live = self.run.live_counts();
        if self.run.prompts_uncounted {
            model.live.prompt_tokens = None;
            model.counters.prompt_seconds = None;
            model.notes.push(Absence::PromptsUncounted);
        }
    }

    fn take_slots(&self, model: &mut Model, reading: &ModelReading) {
        match &reading.slots {
            Update::New(read) => {
                let busy = read.slots.iter().filter(|slot| slot.is_busy()).count();
                model.slots.busy = Some(busy as f64);
                if matches!(reading.counters, Update::Absent) {
                    model.counters.requests_processing = model.slots.busy;
                }
            }
            Update::Unchanged => {}
            Update::Stale | Update::Absent => return,
        }
        let slots = &self.run.slots;
        let count = Some(slots.len() as f64).filter(|_| !slots.is_empty());
        let largest = slots.iter().filter_map(|slot| slot.n_ctx).reduce(f64::max);
        model.facts.slots = model.facts.slots.or(count);
        model.facts.max_context_size = model.facts.max_context_size.or(largest);
        model.slots.context_tokens = context_tokens(slots);
        model.slots.are_unused = are_unused(slots);
        // Slots that were not read again are idle.
        let is_read = matches!(reading.slots, Update::New(_));
        model.slots.active_tokens = active_tokens(slots).map(|n| if is_read { n } else { 0.0 });
    }

    /// A model that is asleep does nothing, and its cache is gone.
    fn take_sleep(&mut self, model: &mut Model, at: Instant) {
        self.run.history.idle_until(at);
        model.slots.context_tokens.clear();
        model.slots.are_unused = false;
        model.slots.busy = Some(0.0);
        model.slots.active_tokens = active_tokens(&self.run.slots).map(|_| 0.0);
        model.counters.requests_processing = Some(0.0);
        model.counters.requests_deferred = Some(0.0);
        model.rates.tokens_per_second = Some(0.0);
        model.rates.prompt_tokens_per_second = Some(0.0);
    }

    fn take_stats(&mut self, model: &mut Model) {
        let stats = &model.stats;
        if let Some(stats) = stats.model() {
            let facts = &mut model.facts;
            facts.size = facts.size.or(stats.size_bytes);
            facts.parameters = facts.parameters.or(stats.parameters);
            facts.max_context_size = facts.max_context_size.or(stats.max_context_size);
        }
        model.status = model.status.or(stats.system().status);
        // Where decode calls are counted, their latency is exact.
        if let (None, Some(milliseconds)) = (model.live.decode_calls, stats.batch().latency_ms) {
            self.batch_latency.observe(milliseconds / 1000.0, 1);
        }
    }
}

/// The tokens of single requests, where nothing else counts tokens.
fn take_token_totals(model: &mut Model, totals: &TokenTotals) {
    let (live, counters) = (&mut model.live, &mut model.counters);
    live.prompt_tokens = live.prompt_tokens.or(Some(totals.prompt_tokens));
    live.generated_tokens = live.generated_tokens.or(Some(totals.generated_tokens));
    for (counter, total) in [
        (
            &mut counters.prompt_tokens_cached,
            totals.prompt_tokens_cached,
        ),
        (&mut counters.draft_tokens, totals.draft_tokens),
        (
            &mut counters.draft_tokens_accepted,
            totals.draft_tokens_accepted,
        ),
    ] {
        *counter = counter.or(total);
    }
}

/// The status of the model; `None` if unknown.
fn status(reading: &ModelReading, model: &Model) -> Option<ModelStatus> {
    match reading.state {
        ModelState::Loading | ModelState::Waking => Some(ModelStatus::Loading),
        ModelState::Asleep(_) => Some(ModelStatus::Sleeping),
        ModelState::Busy => Some(ModelStatus::Running),
        ModelState::Reported(status) => Some(status),
        ModelState::Unknown => None,
        ModelState::Ready => {
            // A server that is not polled was idle when it was polled last.
            let is_unpolled =
                matches!(reading.counters, Update::Stale) || matches!(reading.slots, Update::Stale);
            let counts = [
                model.counters.requests_processing,
                model.counters.requests_deferred,
                model.slots.busy,
                is_unpolled.then_some(0.0),
            ];
            let most = counts.into_iter().flatten().reduce(f64::max)?;
            Some(if most > 0.0 {
                ModelStatus::Running
            } else {
                ModelStatus::Idle
            })
        }
    }
}

#[cfg(test)]
mod simulated_server;
#[cfg(test)]
mod tests;
