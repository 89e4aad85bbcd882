//! What the slots show of the work between two readings of `/slots`.
//!
//! A slot has one task at a time and shows it until its next one. Read off the builds in
//! `upstream.md`: `n_decoded`, the tokens generated, moves while a task runs. After its end
//! it stays before b10566, and `has_next_token` then tells a task whose client hung up: it
//! is still true, and the server does not count its tokens. From b10566 both are reset, but
//! `n_prompt_tokens` stays, the prompt and all of the answer but its last token; and
//! everything is counted. Prompt tokens are counted once the prompt is done;
//! `n_prompt_tokens_processed` is their number (from b9294; from b10566 reset at the end).
//!
//! A slot that shows another task than before may have had more in between. Each call of
//! `llama_decode()` gives every slot past its prompt one token, so where one slot generated
//! all the while, no other can have hidden more than that one has got.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use crate::counters::count::Step;
use crate::readings::Slot;

/// What came between two readings.
#[derive(Clone, Copy, Debug, Default)]
pub struct Steps {
    /// Tokens generated.
    pub generated: Step,
    /// Prompt tokens computed.
    pub prompt: Step,
    /// Decode calls.
    pub calls: Step,
    /// Whether a task was at work at both.
    pub same_task: bool,
}

impl Steps {
    /// The same where more may have come.
    pub fn with_more(mut self) -> Steps {
        for step in [&mut self.generated, &mut self.prompt, &mut self.calls] {
            step.hidden = f64::INFINITY;
        }
        self
    }
}

/// The slots as they were read last.
#[derive(Debug, Default)]
pub struct Slots {
    last: Option<(Instant, BTreeMap<u64, Shown>)>,
    any_ended: bool,
    had_any_ended: bool,
}

impl Slots {
    /// When they were read last in this life of the server.
    pub fn read_at(&self) -> Option<Instant> {
        self.last.as_ref().map(|(at, _)| *at)
    }

    /// Whether any task had ended by the reading before the last: it is counted by now, if ever.
    pub fn had_any_ended(&self) -> bool {
        self.had_any_ended
    }

    /// Takes the slots as they were read.
    pub fn read(&mut self, at: Instant, slots: &[Slot]) -> Steps {
        let shown = slots.iter().enumerate();
        let shown = shown.map(|(index, slot)| (slot_id(index, slot), Shown::of(slot)));
        self.step(at, shown.collect())
    }

    /// Takes that no slot is at work.
    pub fn rest(&mut self, at: Instant) -> Steps {
        let slots = self.last.iter().flat_map(|(_, slots)| slots);
        let resting = slots.map(|(id, slot)| (*id, slot.at_rest()));
        self.step(at, resting.collect())
    }

    fn step(&mut self, at: Instant, mut now: BTreeMap<u64, Shown>) -> Steps {
        self.had_any_ended = self.any_ended;
        // What is there at the first reading is history, but for the tasks at work.
        let then = self
            .last
            .take()
            .map_or_else(|| now.clone(), |(_, slots)| slots);
        for (id, slot) in &mut now {
            // Whatever is answered, a running task loses nothing.
            if let Some(then) = then.get(id).filter(|then| then.runs_on(slot)) {
                slot.generated = slot.generated.max(then.generated);
            }
        }
        let empty = Shown::default();
        let ids: BTreeSet<&u64> = then.keys().chain(now.keys()).collect();
        let pairs = ids.into_iter().map(|id| {
            (
                then.get(id).unwrap_or(&empty),
                now.get(id).unwrap_or(&empty),
            )
        });
        let pairs: Vec<(&Shown, &Shown)> = pairs.collect();
        let calls = calls(&pairs);
        let exact_calls = (calls.hidden == 0.0).then_some(calls.known);
        let mut steps = Steps {
            calls,
            ..Steps::default()
        };
        for (then, now) in pairs {
            steps.generated.add(&generated(then, now, exact_calls));
            steps.prompt.add(&prompt(then, now));
            steps.same_task |= then.runs_on(now);
            self.any_ended |= then.running && !then.runs_on(now);
        }
        self.last = Some((at, now));
        steps
    }
}

/// What one slot shows.
#[derive(Clone, Copy, Debug, Default)]
struct Shown {
    task: Option<u64>,
    running: bool,
    generated: f64,
    /// Whether the task has more to generate, or had when it ended.
    unfinished: bool,
    /// Prompt tokens computed.
    computed: Option<f64>,
    /// Tokens in the slot.
    held: Option<f64>,
    /// Whether one call may give it several tokens.
    speculative: bool,
}

impl Shown {
    fn of(slot: &Slot) -> Shown {
        Shown {
            task: slot.id_task.map(|id| id as u64),
            running: slot.is_processing,
            generated: slot.decoded(),
            unfinished: slot.has_next_token(),
            computed: slot.n_prompt_tokens_processed,
            held: slot.n_prompt_tokens,
            speculative: slot.speculative == Some(true),
        }
    }

    /// The same slot, of which nothing is known but that its task is over.
    fn at_rest(&self) -> Shown {
        if !self.running {
            return *self;
        }
        Shown {
            task: self.task,
            computed: Some(0.0),
            ..Shown::default()
        }
    }

    fn runs_on(&self, now: &Shown) -> bool {
        self.task == now.task && self.running && now.running
    }

    fn is_at_prompt(&self) -> bool {
        self.running && self.generated == 0.0
    }

    fn generating(&self) -> f64 {
        if self.running { self.generated } else { 0.0 }
    }

    fn prompting(&self) -> f64 {
        self.computed.filter(|_| self.is_at_prompt()).unwrap_or(0.0)
    }

    /// Whether the counts of its task were reset when it ended.
    fn has_forgotten(&self) -> bool {
        !self.running && self.generated == 0.0 && self.computed == Some(0.0)
    }
}

/// Tokens generated on one slot; `calls` is the number of decode calls, where it is known.
fn generated(then: &Shown, now: &Shown, calls: Option<f64>) -> Step {
    let before = then.generating();
    let (ended, hidden) = if then.task != now.task {
        // Neither how the one ended was seen, nor what came before the other.
        let shown = if now.running { 0.0 } else { now.generated };
        let hidden = calls.map_or(f64::INFINITY, |calls| {
            (calls + 1.0 - now.generated).max(0.0)
        });
        (before + shown, hidden)
    } else if !then.running || now.running {
        (0.0, 0.0)
    } else if !now.has_forgotten() {
        (now.generated.max(before), 0.0)
    } else {
        match then.held.zip(now.held).map(|(then, now)| now - then) {
            // The last token may be in the slot already, or not yet.
            Some(more) if before > 0.0 && more >= 0.0 => (before + more, 1.0),
            // It was at its prompt, or its beginning was shifted out of the slot.
            _ => (
                before,
                now.held.filter(|_| before == 0.0).unwrap_or(f64::INFINITY),
            ),
        }
    };
    let hung_up = ended > 0.0 && !now.running && now.unfinished;
    Step {
        ended,
        dropped: if hung_up { now.generated } else { 0.0 },
        in_flight: now.generating(),
        known: ended + now.generating() - before,
        hidden,
        ..Step::default()
    }
}

/// Prompt tokens computed on one slot.
fn prompt(then: &Shown, now: &Shown) -> Step {
    let before = then.prompting();
    let computed = now.computed.unwrap_or(0.0);
    let (ended, hidden) = if then.task != now.task {
        let shown = if now.is_at_prompt() { 0.0 } else { computed };
        (before + shown, f64::INFINITY)
    } else if !then.is_at_prompt() || now.is_at_prompt() {
        (0.0, 0.0)
    } else if computed > 0.0 {
        (computed.max(before), 0.0)
    } else {
        (before, now.held.unwrap_or(f64::INFINITY))
    };
    let hung_up = ended > 0.0 && !now.running && now.unfinished && now.generated == 0.0;
    Step {
        ended,
        dropped: if hung_up { computed } else { 0.0 },
        in_flight: now.prompting(),
        known: ended + now.prompting() - before,
        hidden,
        ..Step::default()
    }
}

/// Decode calls: as many as a slot has got tokens that generated all the while.
fn calls(slots: &[(&Shown, &Shown)]) -> Step {
    let plain = |(then, now): &&(&Shown, &Shown)| !then.speculative && !now.speculative;
    let largest = |values: &mut dyn Iterator<Item = f64>| values.reduce(f64::max);
    let throughout = largest(
        &mut slots
            .iter()
            .filter(plain)
            .filter(|(then, now)| then.runs_on(now) && then.generated > 0.0)
            .map(|(then, now)| now.generated - then.generated),
    );
    let idle =
        |(then, now): &(&Shown, &Shown)| then.task == now.task && !then.running && !now.running;
    let (known, hidden) = match throughout {
        Some(tokens) => (tokens, 0.0),
        None if slots.iter().all(idle) => (0.0, 0.0),
        None => {
            let steps = slots.iter().filter(plain);
            let least = steps.map(|(then, now)| generated(then, now, None).known);
            (
                largest(&mut least.into_iter()).unwrap_or(0.0),
                f64::INFINITY,
            )
        }
    };
    Step {
        ended: known,
        known,
        hidden,
        ..Step::default()
    }
}

fn slot_id(index: usize, slot: &Slot) -> u64 {
    slot.id.map_or(index as u64, |id| id as u64)
}

/// Tokens in each slot by its id; empty on builds whose slots do not tell (before b9294).
pub fn context_tokens(slots: &[Slot]) -> Vec<(u64, f64)> {
    if slots.iter().all(|slot| slot.n_prompt_tokens.is_none()) {
        return Vec::new();
    }
    // A slot that never had a task says nothing and holds nothing.
    let mut tokens: Vec<_> = slots
        .iter()
        .enumerate()
        .map(|(index, slot)| (slot_id(index, slot), slot.n_prompt_tokens.unwrap_or(0.0)))
        .collect();
    tokens.sort_unstable_by_key(|(id, _)| *id);
    tokens
}
