//! What the slots did between two readings of `/slots`.
//!
//! A slot has one task at a time and shows it until its next one (`server_slot::to_json` in
//! `tools/server/server-context.cpp`). `n_decoded`, the generated tokens, grows while a task runs.
//! Before b10566 it stays after the end, and `has_next_token` is then still true for a task whose
//! client disconnected: the server drops its tokens. From b10566 on both are reset, but
//! `n_prompt_tokens` stays (the prompt, and the answer without its last token), and everything is
//! counted. Prompt tokens are counted once the prompt is done; `n_prompt_tokens_processed` is
//! their number (from b9294 on; reset at the end from b10566 on).
//!
//! Before b10566 a slot that has got its next task shows the counts of the one before: `n_decoded`
//! and `has_next_token` until the prompt is done, the others until it is begun. Where batches take
//! long, most polls find a slot so. These counts are ignored. If the task before was cancelled,
//! they look like counts of the next one, unless the server has not counted the next one's prompt.
//!
//! A slot that shows another task than before may have had more in between. Each call of
//! `llama_decode()` gives every slot past its prompt one token, so while one slot generated all
//! the time, no other slot can have hidden more tokens than that one got.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use crate::counters::live_counter::TokenDelta;
use crate::readings::Slot;
use crate::readings::counters::rounding_step;

/// What came between two readings.
#[derive(Clone, Copy, Debug, Default)]
pub struct SlotDeltas {
    /// Generated tokens.
    pub generated_tokens: TokenDelta,
    /// Prompt tokens computed.
    pub prompt_tokens: TokenDelta,
    /// Decode calls.
    pub decode_calls: TokenDelta,
    /// Whether a task was running at both readings.
    pub same_task: bool,
}

impl SlotDeltas {
    /// The same, with any number of tokens hidden.
    pub fn with_hidden(mut self) -> SlotDeltas {
        self.generated_tokens.hidden = f64::INFINITY;
        self.prompt_tokens.hidden = f64::INFINITY;
        self.decode_calls.hidden = f64::INFINITY;
        self
    }
}

/// The slots at the last reading.
#[derive(Debug, Default)]
pub struct SlotTracker {
    last: Option<(Instant, BTreeMap<u64, Slot>)>,
    /// The same as the server showed them.
    last_shown: BTreeMap<u64, Slot>,
    counted_prompts: CountedPrompts,
    /// Whether a slot was seen without the counts of its task, which had ended: from b10566 on.
    resets_counts: bool,
    any_ended: bool,
    had_any_ended: bool,
}

impl SlotTracker {
    /// When they were read last since the server's start.
    pub fn read_at(&self) -> Option<Instant> {
        self.last.as_ref().map(|(at, _)| *at)
    }

    /// The slots at the last reading, without counts of their previous tasks.
    pub fn slots(&self) -> Vec<Slot> {
        let slots = self.last.iter().flat_map(|(_, slots)| slots.values());
        slots.copied().collect()
    }

    /// Whether any task had ended at the reading before the last: the server has counted it by
    /// now, if it ever does.
    pub fn had_any_ended(&self) -> bool {
        self.had_any_ended
    }

    /// Takes the slots as they were read.
    pub fn update(&mut self, at: Instant, slots: &[Slot]) -> SlotDeltas {
        self.compare(at, by_id(slots))
    }

    /// Takes slots that may show the counts of their previous tasks. `counted_prompts` is the
    /// server's counter of prompt tokens, read right before.
    pub fn update_with_kept_counts(
        &mut self,
        at: Instant,
        slots: &[Slot],
        counted_prompts: Option<f64>,
    ) -> SlotDeltas {
        let shown = by_id(slots);
        self.resets_counts |= shown.iter().any(|(id, slot)| {
            let last = self.last_shown.get(id);
            last.is_some_and(|last| is_reset(last, slot))
        });
        if self.resets_counts {
            return self.compare(at, shown);
        }
        self.counted_prompts.begin_reading(counted_prompts);
        let last = self.last.as_ref().map(|(_, slots)| slots);
        let before = |id| last?.get(id).zip(self.last_shown.get(id));
        let mut now = shown.clone();
        // What the certain ones have computed, the counter has not grown by for the others.
        let (certain, others): (Vec<_>, Vec<_>) = now
            .iter_mut()
            .map(|(id, slot)| (slot, before(id)))
            .partition(|(slot, before)| !is_ambiguous(slot, *before));
        for (slot, before) in certain.into_iter().chain(others) {
            ignore_counts_of_previous_task(slot, before, &self.counted_prompts);
            self.counted_prompts
                .take_slot(before.map(|(then, _)| then), slot);
        }
        self.last_shown = shown;
        self.compare(at, now)
    }

    /// Takes that no slot is running a task.
    pub fn idle(&mut self, at: Instant) -> SlotDeltas {
        let slots = self.last.iter().flat_map(|(_, slots)| slots);
        let idle = slots.map(|(id, slot)| (*id, at_idle(slot)));
        self.compare(at, idle.collect())
    }

    fn compare(&mut self, at: Instant, mut now: BTreeMap<u64, Slot>) -> SlotDeltas {
        self.had_any_ended = self.any_ended;
        // At the first reading, only running tasks count.
        let then = self.last.take();
        let then = then.map_or_else(|| now.clone(), |(_, slots)| slots);
        for (id, slot) in &mut now {
            // Whatever the server answers, a running task does not lose tokens.
            if let Some(then) = then.get(id).filter(|then| runs_on(then, slot)) {
                let most = slot.generated_tokens().max(then.generated_tokens());
                slot.set_next_token(most, slot.has_next_token());
            }
        }
        let none = Slot::default();
        let ids: BTreeSet<&u64> = then.keys().chain(now.keys()).collect();
        let state = |slots: &BTreeMap<u64, Slot>, id| *slots.get(id).unwrap_or(&none);
        let pairs: Vec<_> = ids
            .into_iter()
            .map(|id| (state(&then, id), state(&now, id)))
            .collect();
        let decode_calls = decode_calls(&pairs);
        let exact_calls = (decode_calls.hidden == 0.0).then_some(decode_calls.known);
        let mut deltas = SlotDeltas {
            decode_calls,
            ..SlotDeltas::default()
        };
        for (then, now) in &pairs {
            let generated_tokens = generated_tokens(then, now, exact_calls);
            deltas.generated_tokens.add(&generated_tokens);
            deltas.prompt_tokens.add(&prompt_tokens(then, now));
            deltas.same_task |= runs_on(then, now);
            self.any_ended |= then.is_busy() && !runs_on(then, now);
        }
        self.last = Some((at, now));
        deltas
    }
}

/// By how much the server's counter of prompt tokens has grown since the slots were read before.
#[derive(Debug, Default)]
struct CountedPrompts {
    printed: Option<f64>,
    /// The growth without the prompts that the slots show to be done; `None` if unknown.
    unexplained: Option<f64>,
    /// The largest error of the growth.
    error: f64,
    /// Prompts that the slots show to be done in this reading.
    done: f64,
}

impl CountedPrompts {
    fn begin_reading(&mut self, printed: Option<f64>) {
        let then = std::mem::replace(&mut self.printed, printed);
        // A prompt that was done after the counter was read is counted in this one.
        let uncounted = self
            .unexplained
            .map_or(0.0, |rest| (-rest).clamp(0.0, self.done));
        let growth = printed.zip(then).map(|(now, then)| now - then);
        self.unexplained = growth.map(|growth| growth - uncounted);
        self.error = printed.map_or(0.0, rounding_step);
        self.done = 0.0;
    }

    /// Takes one slot, without counts of its previous task.
    fn take_slot(&mut self, then: Option<&Slot>, now: &Slot) {
        let is_new = then.is_some_and(|then| then.id_task != now.id_task || is_at_prompt(then));
        if is_new && now.generated_tokens() > 0.0 {
            let done = now.n_prompt_tokens_processed.unwrap_or(0.0);
            self.done += done;
            self.unexplained = self.unexplained.map(|growth| growth - done);
        }
    }

    /// Whether the prompt of this slot's task has been counted; `None` if it cannot be told.
    fn have(&self, slot: &Slot) -> Option<bool> {
        let most = self.unexplained? + self.error;
        match slot.n_prompt_tokens_processed {
            Some(prompt) if prompt > 2.0 * self.error => Some(most >= prompt),
            // Every prompt has a token that is computed.
            None if most < 1.0 => Some(false),
            _ => None,
        }
    }
}

/// Whether a slot has no counts any more of the task that it had at the last reading.
fn is_reset(last: &Slot, now: &Slot) -> bool {
    let is_over = last.id_task != now.id_task || !now.is_busy();
    is_over
        && last.generated_tokens() > 0.0
        && now.generated_tokens() == 0.0
        && now.n_prompt_tokens_processed == Some(0.0)
}

/// The most tokens that a cancelled task is taken to have got since the reading before, if the
/// counter of prompt tokens does not tell its counts from those of the next task.
const MOST_BEFORE_CANCELLATION: f64 = 8.0;

/// A slot at the last reading: without counts of its previous task, and as it was shown.
type Before<'a> = Option<(&'a Slot, &'a Slot)>;

fn has_same_prompt(slot: &Slot, other: &Slot) -> bool {
    slot.n_prompt_tokens_processed == other.n_prompt_tokens_processed
        && slot.n_prompt_tokens_cache == other.n_prompt_tokens_cache
}

/// Whether a slot that generates would hold more tokens: all but the last.
fn lacks_tokens(slot: &Slot) -> bool {
    let after_prompt = slot.tokens_after_prompt();
    after_prompt.is_some_and(|tokens| tokens < slot.generated_tokens() - 1.0)
}

/// Whether its task was at its prompt at the last reading, and the slot shows as many generated
/// tokens as then.
fn is_unchanged(slot: &Slot, before: Before) -> bool {
    before.is_some_and(|(then, shown)| {
        then.id_task == slot.id_task
            && is_at_prompt(then)
            && shown.generated_tokens() == slot.generated_tokens()
            && shown.is_complete() == slot.is_complete()
    })
}

/// Whether its task is a new one, and the counts can be those of the task at the last reading, if
/// that was cancelled.
fn may_be_of_cancelled_task(slot: &Slot, before: Before) -> bool {
    before.is_some_and(|(_, shown)| {
        let more = slot.generated_tokens() - shown.generated_tokens();
        let can_be = if shown.is_busy() {
            more >= 0.0
        } else {
            more == 0.0 && shown.is_complete() == slot.is_complete()
        };
        shown.id_task != slot.id_task && can_be && has_same_prompt(slot, shown)
    })
}

/// Whether only the counter of prompt tokens tells whose counts a slot shows.
fn is_ambiguous(slot: &Slot, before: Before) -> bool {
    let is_told = slot.is_busy() && slot.is_complete() || lacks_tokens(slot);
    !is_told && (is_unchanged(slot, before) || may_be_of_cancelled_task(slot, before))
}

/// Whether the generated tokens that a slot shows are its previous task's.
fn shows_previous_task(slot: &Slot, before: Before, counted_prompts: &CountedPrompts) -> bool {
    if !is_ambiguous(slot, before) {
        return slot.is_busy() && slot.is_complete() || lacks_tokens(slot);
    }
    if let Some(is_counted) = counted_prompts.have(slot) {
        return !is_counted;
    }
    let Some((_, shown)) = before else {
        return false;
    };
    let has_tokens = slot.tokens_after_prompt().is_some();
    let more = slot.generated_tokens() - shown.generated_tokens();
    if is_unchanged(slot, before) {
        !has_tokens || slot.generated_tokens() == 1.0 || has_same_prompt(slot, shown)
    } else if shown.is_busy() {
        slot.is_busy() && has_tokens && more <= MOST_BEFORE_CANCELLATION
    } else {
        slot.is_busy()
    }
}

/// Removes from a slot the counts that are its previous task's.
fn ignore_counts_of_previous_task(
    slot: &mut Slot,
    before: Before,
    counted_prompts: &CountedPrompts,
) {
    let generates_on = |(then, _): (&Slot, &Slot)| {
        then.id_task == slot.id_task && then.is_busy() && then.generated_tokens() > 0.0
    };
    if slot.generated_tokens() == 0.0
        || before.is_some_and(generates_on)
        || !shows_previous_task(slot, before, counted_prompts)
    {
        return;
    }
    // It may lack tokens before that, too: the server puts a prompt into it that was cached elsewhere.
    let is_previous_prompt = before.is_some_and(|(then, shown)| {
        let was_ignored = then.n_prompt_tokens_processed == Some(0.0);
        has_same_prompt(slot, shown) && (shown.id_task != slot.id_task || was_ignored)
    });
    let is_begun = lacks_tokens(slot) && !is_previous_prompt
        || before.is_some_and(|(then, shown)| {
            let same_task = then.id_task == slot.id_task && then.is_busy();
            let was_begun = same_task && then.n_prompt_tokens_processed != Some(0.0);
            was_begun || is_unchanged(slot, before) && !has_same_prompt(slot, shown)
        });
    slot.set_next_token(0.0, true);
    if !is_begun {
        slot.n_prompt_tokens_processed = slot.n_prompt_tokens_processed.map(|_| 0.0);
    }
}

/// The same slot when nothing is known but that its task has ended.
fn at_idle(slot: &Slot) -> Slot {
    if !slot.is_busy() {
        return *slot;
    }
    Slot {
        id_task: slot.id_task,
        n_prompt_tokens_processed: Some(0.0),
        ..Slot::default()
    }
}

/// Whether the task of `then` is still running at the reading `now`.
fn runs_on(then: &Slot, now: &Slot) -> bool {
    then.id_task == now.id_task && then.is_busy() && now.is_busy()
}

fn is_at_prompt(slot: &Slot) -> bool {
    slot.is_busy() && slot.generated_tokens() == 0.0
}

/// Generated tokens in flight.
fn generated_in_flight(slot: &Slot) -> f64 {
    if slot.is_busy() {
        slot.generated_tokens()
    } else {
        0.0
    }
}

/// Prompt tokens in flight.
fn computed_in_flight(slot: &Slot) -> f64 {
    let computed = slot.n_prompt_tokens_processed;
    computed.filter(|_| is_at_prompt(slot)).unwrap_or(0.0)
}

/// Tokens generated on one slot; `calls` is the number of decode calls, if known.
fn generated_tokens(then: &Slot, now: &Slot, calls: Option<f64>) -> TokenDelta {
    let before = generated_in_flight(then);
    // From b10566 on, the end of a task resets its counts.
    let was_reset = now.generated_tokens() == 0.0 && now.n_prompt_tokens_processed == Some(0.0);
    let (ended, hidden) = if then.id_task != now.id_task {
        // Neither the end of the one was shown, nor what came before the other.
        let of_next = if now.is_busy() {
            0.0
        } else {
            now.generated_tokens()
        };
        let hidden = calls.map_or(f64::INFINITY, |calls| {
            (calls + 1.0 - now.generated_tokens()).max(0.0)
        });
        (before + of_next, hidden)
    } else if !then.is_busy() || now.is_busy() {
        (0.0, 0.0)
    } else if !was_reset {
        (now.generated_tokens().max(before), 0.0)
    } else {
        match then
            .n_prompt_tokens
            .zip(now.n_prompt_tokens)
            .map(|(then, now)| now - then)
        {
            // The last token may be in the slot already, or not yet.
            Some(more) if before > 0.0 && more >= 0.0 => (before + more, 1.0),
            // It was at its prompt, or the context was shifted.
            _ => (
                before,
                now.n_prompt_tokens
                    .filter(|_| before == 0.0)
                    .unwrap_or(f64::INFINITY),
            ),
        }
    };
    let cancelled = ended > 0.0 && !now.is_busy() && now.has_next_token();
    TokenDelta {
        ended,
        dropped: if cancelled {
            now.generated_tokens()
        } else {
            0.0
        },
        in_flight: generated_in_flight(now),
        known: ended + generated_in_flight(now) - before,
        hidden,
        ..TokenDelta::default()
    }
}

/// Prompt tokens computed on one slot.
fn prompt_tokens(then: &Slot, now: &Slot) -> TokenDelta {
    let before = computed_in_flight(then);
    let computed = now.n_prompt_tokens_processed.unwrap_or(0.0);
    let (ended, hidden) = if then.id_task != now.id_task {
        let of_next = if is_at_prompt(now) { 0.0 } else { computed };
        (before + of_next, f64::INFINITY)
    } else if !is_at_prompt(then) || is_at_prompt(now) {
        (0.0, 0.0)
    } else if computed > 0.0 {
        (computed.max(before), 0.0)
    } else {
        (before, now.n_prompt_tokens.unwrap_or(f64::INFINITY))
    };
    let cancelled =
        ended > 0.0 && !now.is_busy() && now.has_next_token() && now.generated_tokens() == 0.0;
    TokenDelta {
        ended,
        dropped: if cancelled { computed } else { 0.0 },
        in_flight: computed_in_flight(now),
        known: ended + computed_in_flight(now) - before,
        hidden,
        ..TokenDelta::default()
    }
}

/// Decode calls: as many as a slot got tokens that generated all the time.
fn decode_calls(slots: &[(Slot, Slot)]) -> TokenDelta {
    let plain = || {
        let plain = |(then, now): &&(Slot, Slot)| {
            then.speculative != Some(true) && now.speculative != Some(true)
        };
        slots.iter().filter(plain)
    };
    let throughout = plain()
        .filter(|(then, now)| runs_on(then, now) && then.generated_tokens() > 0.0)
        .map(|(then, now)| now.generated_tokens() - then.generated_tokens())
        .reduce(f64::max);
    let is_idle = |(then, now): &(Slot, Slot)| {
        then.id_task == now.id_task && !then.is_busy() && !now.is_busy()
    };
    let (known, hidden) = match throughout {
        Some(tokens) => (tokens, 0.0),
        None if slots.iter().all(is_idle) => (0.0, 0.0),
        None => {
            let least = plain().map(|(then, now)| generated_tokens(then, now, None).known);
            (least.reduce(f64::max).unwrap_or(0.0), f64::INFINITY)
        }
    };
    TokenDelta {
        ended: known,
        known,
        hidden,
        ..TokenDelta::default()
    }
}

fn by_id(slots: &[Slot]) -> BTreeMap<u64, Slot> {
    let slots = slots.iter().enumerate();
    slots
        .map(|(index, slot)| (slot_id(index, slot), *slot))
        .collect()
}

fn slot_id(index: usize, slot: &Slot) -> u64 {
    slot.id.map_or(index as u64, |id| id as u64)
}

/// Tokens in the slots at work; `None` if no slot reports its tokens (before b9294).
pub fn active_tokens(slots: &[Slot]) -> Option<f64> {
    let is_known = slots.iter().any(|slot| slot.n_prompt_tokens.is_some());
    let busy = slots.iter().filter(|slot| slot.is_busy());
    is_known.then(|| busy.filter_map(|slot| slot.n_prompt_tokens).sum())
}

/// Whether no slot has had a task yet: then none holds tokens, although none reports any.
pub fn are_unused(slots: &[Slot]) -> bool {
    let is_unused = |slot: &Slot| slot.id_task.is_none() && !slot.is_busy();
    !slots.is_empty() && slots.iter().all(is_unused)
}

/// Tokens in each slot by its id; empty if no slot reports them: before b9294, and before the first
/// task.
pub fn context_tokens(slots: &[Slot]) -> Vec<(u64, f64)> {
    if slots.iter().all(|slot| slot.n_prompt_tokens.is_none()) {
        return Vec::new();
    }
    // A slot that never had a task reports none and holds none.
    let tokens = |(id, slot): (u64, Slot)| (id, slot.n_prompt_tokens.unwrap_or(0.0));
    by_id(slots).into_iter().map(tokens).collect()
}

#[cfg(test)]
mod tests;
