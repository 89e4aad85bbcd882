//! The counters of one model between two restarts of its server.

use crate::counters::batches::Batches;
use crate::counters::in_flight::InFlightEstimator;
use crate::counters::live_counter::{LiveCounter, TokenDelta};
use crate::counters::rates::{CountRange, History, Point};
use crate::counters::slot_tracker::{SlotDeltas, SlotTracker};
use crate::counters::task_counter::TaskCounter;
use crate::readings::counters::rounding_step;
use crate::readings::{Counters, CountersReading, ModelReading, ModelState, Slot, Update};
use crate::snapshot::LiveCounts;
use crate::snapshot::histogram::Histogram;

/// What is known of a server since it was started, and unknown again once it restarts.
#[derive(Debug)]
pub struct ServerRun {
    /// The server's process, where its responses identify it.
    process: Option<String>,
    /// `/metrics` at the last reading.
    pub counters: Option<Counters>,
    /// `/metrics` at the last point of `history`.
    previous: Option<Counters>,
    /// `/slots` at the last reading.
    pub slots: Vec<Slot>,
    pub slot_tracker: SlotTracker,
    /// The tokens of its tasks, where its `/metrics` is off.
    pub tasks: TaskCounter,
    generated_tokens: LiveCounter,
    prompt_tokens: LiveCounter,
    decode_calls: LiveCounter,
    in_flight: InFlightEstimator,
    /// The counts at the last readings.
    pub history: History,
    /// The batch figures.
    pub batches: Batches,
    /// Whether requests have ended of which the server counts no prompt tokens.
    pub prompts_uncounted: bool,
}

/// What the slots showed at one reading.
pub enum SlotUpdate {
    /// What came since they were read before, that many seconds ago.
    Read(Box<SlotDeltas>, f64),
    /// They were not read in time: what they hold is unknown.
    Late,
    /// There are none.
    Absent,
}

impl Default for ServerRun {
    fn default() -> ServerRun {
        ServerRun {
            process: None,
            counters: None,
            previous: None,
            slots: Vec::new(),
            slot_tracker: SlotTracker::default(),
            tasks: TaskCounter::default(),
            generated_tokens: LiveCounter::default(),
            prompt_tokens: LiveCounter::of_all(),
            decode_calls: LiveCounter::of_all(),
            in_flight: InFlightEstimator::default(),
            history: History::default(),
            batches: Batches::default(),
            prompts_uncounted: false,
        }
    }
}

impl ServerRun {
    /// Whether `read` comes from a restarted server: another process, or a counter that fell.
    pub fn is_restarted(&self, read: &CountersReading) -> bool {
        let processes = self.process.as_ref().zip(read.process.as_ref());
        if processes.is_some_and(|(then, now)| then != now) {
            return true;
        }
        let Some(then) = &self.counters else {
            return false;
        };
        let now = &read.counters;
        [
            (then.generated_tokens, now.generated_tokens),
            (then.prompt_tokens, now.prompt_tokens),
            (then.decode_calls, now.decode_calls),
        ]
        .into_iter()
        .filter_map(|(then, now)| then.zip(now))
        .any(|(then, now)| now + rounding_step(then) < then)
    }

    /// Takes what the slots show, or that they are idle.
    pub fn update_slots(&mut self, reading: &ModelReading) -> SlotUpdate {
        let before = self.slot_tracker.read_at();
        let idle_at = match (&reading.counters, reading.state) {
            (Update::New(read), _) => Some(read.at),
            (_, ModelState::Asleep(at)) => Some(at),
            _ => None,
        };
        let counters = match &reading.counters {
            Update::New(read) => Some(&read.counters),
            _ => self.counters.as_ref(),
        };
        let resets_counts = counters.is_some_and(counts_prompts_by_batch);
        let counted_prompts = counters.and_then(|counters| counters.prompt_tokens);
        let tracker = &mut self.slot_tracker;
        let (at, deltas) = match (&reading.slots, reading.state, idle_at) {
            (Update::New(read), ..) => {
                self.slots.clone_from(&read.slots);
                let deltas = if resets_counts {
                    tracker.update(read.at, &read.slots)
                } else {
                    tracker.update_with_kept_counts(read.at, &read.slots, counted_prompts)
                };
                (read.at, deltas)
            }
            (Update::Stale, ..) => return SlotUpdate::Late,
            _ if before.is_none() => return SlotUpdate::Absent,
            (Update::Unchanged, _, Some(at)) => (at, tracker.idle(at)),
            // What it did before it fell asleep was not read.
            (Update::Absent, ModelState::Asleep(_), Some(at)) => {
                (at, tracker.idle(at).with_hidden())
            }
            _ => return SlotUpdate::Late,
        };
        let seconds = before.map_or(0.0, |before| at.duration_since(before).as_secs_f64());
        SlotUpdate::Read(Box::new(deltas), seconds)
    }

    /// Takes what the slots showed when `/metrics` was not read with them.
    pub fn add_slots(&mut self, slots: &SlotUpdate) {
        if let SlotUpdate::Read(deltas, _) = slots {
            let prompt_tokens = match &self.counters {
                Some(counters) if counts_prompts_by_batch(counters) => {
                    deltas.prompt_tokens.counted_by_batch()
                }
                _ => deltas.prompt_tokens,
            };
            self.generated_tokens.add_slots(&deltas.generated_tokens);
            self.prompt_tokens.add_slots(&prompt_tokens);
            self.decode_calls.add_slots(&deltas.decode_calls);
        }
    }

    /// Takes `/metrics` and what the slots showed right after it; observes decode calls in
    /// `latency`. Returns whether rates can be computed from the reading.
    pub fn update(
        &mut self,
        read: &CountersReading,
        slots: &SlotUpdate,
        latency: &mut Histogram,
    ) -> bool {
        let counters = &read.counters;
        self.process.clone_from(&read.process);
        self.prompts_uncounted = self.are_prompts_uncounted(counters);
        self.counters = Some(counters.clone());
        self.in_flight.update(counters);
        let deltas = match slots {
            SlotUpdate::Late => {
                self.update_without_slots(counters);
                return false;
            }
            SlotUpdate::Read(deltas, _) => Some(**deltas),
            SlotUpdate::Absent => None,
        };
        let point = self.point(read, deltas);
        self.history.push(point);
        let previous = self.previous.replace(counters.clone());
        let busy_slots = counters.requests_processing.filter(|now| {
            let then = previous.and_then(|previous| previous.requests_processing);
            point.busy && then == Some(*now)
        });
        self.batches.update(&self.history, latency, busy_slots);
        true
    }

    fn update_without_slots(&mut self, counters: &Counters) {
        for (printed, counter) in [
            (counters.generated_tokens, &mut self.generated_tokens),
            (counters.prompt_tokens, &mut self.prompt_tokens),
            (counters.decode_calls, &mut self.decode_calls),
        ] {
            if let Some(printed) = printed {
                counter.update_without_slots(printed);
            }
        }
    }

    /// The counts at this reading; `slots` is `None` where there are none.
    fn point(&mut self, read: &CountersReading, slots: Option<SlotDeltas>) -> Point {
        let counters = &read.counters;
        let in_flight = self.in_flight.in_flight(counters);
        let mut deltas = slots.unwrap_or_else(|| {
            if self.was_idle(counters) {
                return SlotDeltas::default();
            }
            SlotDeltas {
                generated_tokens: in_flight.delta(),
                prompt_tokens: TokenDelta::unknown(),
                decode_calls: TokenDelta::unknown(),
                same_task: false,
            }
        });
        if counts_prompts_by_batch(counters) {
            deltas.prompt_tokens = deltas.prompt_tokens.counted_by_batch();
        }
        let busy = self.was_busy(counters, slots.as_ref());
        let generated_tokens = counters.generated_tokens;
        let generated_tokens =
            generated_tokens.map(|n| self.generated_tokens.update(n, &deltas.generated_tokens));
        let prompt_tokens = counters.prompt_tokens;
        let prompt_tokens =
            prompt_tokens.map(|n| self.prompt_tokens.update(n, &deltas.prompt_tokens));
        let at = self.slot_tracker.read_at().unwrap_or(read.at);
        // An exact number of calls needs no slots, but is of the moment of `/metrics`.
        let exact_calls = counters.decode_calls.filter(|n| rounding_step(*n) == 0.0);
        let (calls_at, calls_delta, generated_at_calls) = if exact_calls.is_some() {
            let range = |n| CountRange::around(n + in_flight.value.round(), in_flight.error);
            let generated_at_calls = counters.generated_tokens.map(range);
            (read.at, TokenDelta::unknown(), generated_at_calls)
        } else {
            (at, deltas.decode_calls, generated_tokens)
        };
        let decode_calls = counters.decode_calls;
        Point {
            at,
            calls_at,
            generated_tokens,
            prompt_tokens,
            generated_at_calls,
            decode_calls: decode_calls.map(|n| self.decode_calls.update(n, &calls_delta)),
            busy,
        }
    }

    /// Whether nothing seems to have been computed since `/metrics` was read before.
    fn was_idle(&self, now: &Counters) -> bool {
        let idle = |counters: &Counters| counters.requests_processing == Some(0.0);
        self.previous.as_ref().is_some_and(|then| {
            idle(then)
                && idle(now)
                && then.generated_tokens == now.generated_tokens
                && then.prompt_tokens == now.prompt_tokens
                && then.decode_calls == now.decode_calls
        })
    }

    /// Whether the server was certainly busy all the time since `/metrics` was read before.
    fn was_busy(&self, now: &Counters, slots: Option<&SlotDeltas>) -> bool {
        let Some(then) = &self.previous else {
            return false;
        };
        let waiting = |counters: &Counters| counters.requests_deferred.unwrap_or(0.0) > 0.0;
        let processing = |counters: &Counters| counters.requests_processing.unwrap_or(0.0) > 0.0;
        let same_request = match slots {
            Some(deltas) => deltas.same_task,
            // No request has ended, so the one that was processed then is processed now.
            None => {
                let counted = now.generated_tokens;
                then.generated_tokens == counted && counted.is_none_or(|n| rounding_step(n) == 0.0)
            }
        };
        processing(then) && processing(now) && (same_request || (waiting(then) && waiting(now)))
    }

    /// Whether requests have ended of which the server has counted no token.
    ///
    /// Before b10566 it counts nothing but decode calls of embeddings and reranking. A request
    /// of another kind is counted at its end at the latest.
    fn are_prompts_uncounted(&self, now: &Counters) -> bool {
        now.prompt_tokens == Some(0.0)
            && now.generated_tokens == Some(0.0)
            && now.decode_calls.is_some_and(|calls| calls > 0.0)
            && (self.prompts_uncounted || !now.is_busy() || self.slot_tracker.had_any_ended())
    }

    /// The counts of what the server counts, with the requests in flight.
    pub fn live_counts(&self) -> LiveCounts {
        let Some(counters) = &self.counters else {
            return LiveCounts::default();
        };
        LiveCounts {
            prompt_tokens: counters.prompt_tokens.map(|_| self.prompt_tokens.value()),
            generated_tokens: counters
                .generated_tokens
                .map(|_| self.generated_tokens.value()),
            decode_calls: counters.decode_calls.map(|_| self.decode_calls.value()),
        }
    }
}

/// Whether the server counts the prompt tokens of each batch, and not those of each prompt that is
/// done: from b10566 on, which brought `prompt_tokens_cached_total` too, and resets the counts of a
/// slot when its task ends.
fn counts_prompts_by_batch(counters: &Counters) -> bool {
    counters.prompt_tokens_cached.is_some()
}
