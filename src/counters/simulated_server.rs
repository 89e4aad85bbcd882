//! A simulated llama-server with random histories.
//!
//! The server does what real ones were measured to do: `n_decode_total` grows with each call, the
//! other counters when a prompt is done or a request ends; a request whose client disconnected is
//! not counted before b10566; a slot keeps the counts of its last task before b10566, until its next
//! one has begun, and only its tokens from then on; it reports no prompt tokens before b9294. From
//! b10566 on, prompt tokens are counted with the next batch that has output. `/metrics` prints six
//! significant digits. It is polled as the exporter polls: `/metrics`, and a moment later
//! `/slots`, either of which may be late, switched off or not requested.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::readings::{
    Counters, CountersReading, ModelReading, ModelState, Slots, SlotsReading, Update,
};
use crate::upstream::api::counters_by_model::CountersByModel;

/// Prompt tokens that one call takes.
const BATCH: u64 = 512;

#[derive(Clone, Copy, Debug, PartialEq, PartialOrd)]
enum Build {
    /// Its slots report no prompt tokens.
    Before9294,
    Before10566,
    From10566,
}

#[derive(Clone, Debug)]
struct Setup {
    build: Build,
    slots: usize,
    /// The first value of its counters.
    counted: f64,
    has_slots: bool,
    has_metrics: bool,
    call: Duration,
}

#[derive(Clone, Debug)]
enum Event {
    Request {
        prompt: u64,
        answer: u64,
        disconnects_after: Option<u64>,
    },
    /// This number of calls, and a poll.
    Poll {
        calls: u32,
        between: u32,
        outcome: PollOutcome,
    },
    /// This time without requests, and a poll.
    Pause {
        seconds: u64,
    },
    Restart,
    Sleep,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum PollOutcome {
    Whole,
    LateMetrics,
    LateSlots,
    Missed,
}

#[derive(Clone, Debug)]
struct Request {
    id: u64,
    prompt: u64,
    answer: u64,
    disconnects_after: Option<u64>,
}

/// A task on its slot, also after its end.
#[derive(Clone, Debug)]
struct Task {
    request: Request,
    running: bool,
    computed: u64,
    generated: u64,
    /// What the last poll read of it.
    last_polled: (u64, u64),
    /// What the slot still shows of the task before, before b10566.
    before: Shown,
    /// Whether its prompt was done, and whether it ended, after `/metrics` was read last.
    prompt_is_unread: bool,
    end_is_unread: bool,
}

/// The counts that a slot shows.
#[derive(Clone, Copy, Debug, Default)]
struct Shown {
    computed: u64,
    tokens: u64,
    generated: u64,
    is_complete: bool,
}

struct Server {
    setup: Setup,
    now: Instant,
    run: u32,
    next_id: u64,
    waiting: VecDeque<Request>,
    slots: Vec<Option<Task>>,
    prompt: f64,
    /// Prompt tokens of batches without output.
    queued: f64,
    predicted: f64,
    calls: f64,
    busy_slots: f64,
    truth: Truth,
    /// Prompt and generated tokens of tasks that were replaced since `/metrics` was read, as
    /// far as `/metrics` cannot have had them.
    replaced: (f64, f64),
    /// Whether any counts were ambiguous in this run or an earlier one.
    was_ambiguous: bool,
    /// The task of each slot and its counts when it was read last.
    last_shown: Vec<(u64, Shown)>,
    /// Those of all tasks that were replaced since `/slots` was read.
    lost: (f64, f64),
}

/// What happened in one run of the server.
#[derive(Clone, Copy, Debug, Default)]
struct Truth {
    generated: f64,
    prompt: f64,
    calls: f64,
    /// Of disconnected requests, and neither counted nor read by any poll.
    unknowable: f64,
    /// Of disconnected requests whose end no poll read: the exporter cannot know of the drop.
    unproven: f64,
    /// The same of prompts.
    prompt_unknowable: f64,
    prompt_unproven: f64,
    /// Of a previous task, on a slot whose own task cannot be told from it.
    ambiguous: f64,
    prompt_ambiguous: f64,
    /// Of disconnected requests.
    disconnected: f64,
    prompt_disconnected: f64,
    /// Batches of prompt.
    batches: f64,
    /// Of requests that have ended, as the server counts them.
    predicted: f64,
    /// Of prompts that are done, as the server counts them.
    prompt_counted: f64,
    /// Tokens that neither `/metrics` nor `/slots` had at this poll, but will at the next.
    prompt_unread: f64,
    unread: f64,
    /// Those of the last polls.
    prompt_unread_lately: f64,
    unread_lately: f64,
}

impl Server {
    fn new(setup: Setup) -> Server {
        let setup_slots = setup.slots;
        let mut server = Server {
            slots: vec![None; setup.slots],
            setup,
            now: Instant::now(),
            run: 0,
            next_id: 0,
            waiting: VecDeque::new(),
            prompt: 0.0,
            queued: 0.0,
            predicted: 0.0,
            calls: 0.0,
            busy_slots: 0.0,
            truth: Truth::default(),
            replaced: (0.0, 0.0),
            lost: (0.0, 0.0),
            was_ambiguous: false,
            last_shown: vec![(0, Shown::default()); setup_slots],
        };
        server.begin(server.setup.counted);
        server
    }

    fn begin(&mut self, counted: f64) {
        self.run += 1;
        self.waiting.clear();
        self.slots.fill(None);
        (self.prompt, self.predicted, self.calls) = (counted, counted, counted);
        self.queued = 0.0;
        self.busy_slots = counted;
        self.truth = Truth {
            generated: counted,
            prompt: counted,
            calls: counted,
            ..Truth::default()
        };
    }

    /// Its model is loaded again after a sleep.
    fn reload(&mut self) {
        for slot in &mut self.slots {
            if let Some(task) = slot.take() {
                task.forget(self.setup.build, &mut self.truth);
            }
        }
    }

    fn is_busy(&self) -> bool {
        !self.waiting.is_empty() || self.slots.iter().flatten().any(|task| task.running)
    }

    /// Gives waiting requests to free slots.
    fn launch(&mut self) {
        for slot in &mut self.slots {
            if slot.as_ref().is_none_or(|task| !task.running)
                && let Some(request) = self.waiting.pop_front()
            {
                if let Some(before) = slot.as_ref() {
                    before.forget(self.setup.build, &mut self.truth);
                    let (prompt, generated) = before.unread();
                    self.replaced.0 += prompt;
                    self.replaced.1 += generated;
                    let (prompt, generated) = before.unpolled();
                    self.lost.0 += prompt;
                    self.lost.1 += generated;
                }
                let before = slot.as_ref().map(Task::shown).unwrap_or_default();
                *slot = Some(Task {
                    request,
                    before,
                    running: true,
                    computed: 0,
                    generated: 0,
                    last_polled: (0, 0),
                    prompt_is_unread: false,
                    end_is_unread: false,
                });
            }
        }
    }

    /// One call of `llama_decode()`.
    fn call(&mut self) {
        self.launch();
        let counts_batches = self.setup.build == Build::From10566;
        let (mut busy, mut has_output) = (0.0, false);
        for task in self.slots.iter_mut().flatten().filter(|task| task.running) {
            busy += 1.0;
            if task.computed < task.request.prompt {
                let batch = BATCH.min(task.request.prompt - task.computed);
                task.computed += batch;
                self.truth.prompt += batch as f64;
                self.truth.batches += 1.0;
                if counts_batches {
                    self.queued += batch as f64;
                }
                if task.computed == task.request.prompt {
                    has_output = true;
                    if !counts_batches {
                        self.prompt += task.request.prompt as f64;
                    }
                    task.prompt_is_unread = true;
                    task.generated = 1;
                    self.truth.generated += 1.0;
                }
            } else {
                has_output = true;
                task.generated += 1;
                self.truth.generated += 1.0;
            }
            let done = task.generated == task.request.answer;
            let disconnected = task
                .request
                .disconnects_after
                .is_some_and(|after| task.generated >= after && !done);
            if done || disconnected {
                task.running = false;
                task.end_is_unread = true;
                if disconnected {
                    self.truth.disconnected += task.generated as f64;
                    if task.computed < task.request.prompt && !counts_batches {
                        self.truth.prompt_disconnected += task.computed as f64;
                    }
                }
                if done || self.setup.build == Build::From10566 {
                    self.predicted += task.generated as f64;
                }
            }
        }
        if has_output || self.slots.iter().flatten().all(|task| !task.running) {
            self.prompt += std::mem::take(&mut self.queued);
        }
        if busy > 0.0 {
            self.calls += 1.0;
            self.truth.calls += 1.0;
            self.busy_slots += busy;
            self.now += self.setup.call;
        }
        self.launch();
    }

    fn metrics(&mut self) -> Counters {
        for task in self.slots.iter_mut().flatten() {
            (task.prompt_is_unread, task.end_is_unread) = (false, false);
        }
        self.replaced = (0.0, 0.0);
        let running = self.slots.iter().flatten().filter(|task| task.running);
        let text = [
            ("prompt_tokens_total", self.prompt),
            ("tokens_predicted_total", self.predicted),
            ("n_decode_total", self.calls),
            ("requests_processing", running.count() as f64),
            ("requests_deferred", self.waiting.len() as f64),
            (
                "n_busy_slots_per_decode",
                self.busy_slots / self.calls.max(1.0),
            ),
        ]
        .map(|(name, value)| format!("llamacpp:{name} {}\n", six_digits(value)))
        .concat();
        let text = match self.setup.build {
            Build::From10566 => text + "llamacpp:prompt_tokens_cached_total 0\n",
            _ => text,
        };
        let read = CountersByModel::read(text.as_bytes(), false, |_| true);
        read.unwrap().of_server(&[]).unwrap()
    }

    /// What happened so far.
    fn truth(&self) -> Truth {
        let (mut prompt_unread, mut unread) = self.replaced;
        let (mut prompt_lost, mut lost) = self.lost;
        for task in self.slots.iter().flatten() {
            let (prompt, generated) = task.unread();
            prompt_unread += prompt;
            unread += generated;
            let (prompt, generated) = task.unpolled();
            prompt_lost += prompt;
            lost += generated;
        }
        // What `/metrics` has gained is hidden if it lacks as much of something else.
        if unread > 0.0 {
            unread += lost;
        }
        if prompt_unread > 0.0 {
            prompt_unread += prompt_lost;
        }
        Truth {
            predicted: self.predicted,
            prompt_counted: self.prompt,
            prompt_unread,
            unread,
            ..self.truth
        }
    }

    fn slots(&mut self) -> Vec<crate::readings::Slot> {
        let build = self.setup.build;
        self.lost = (0.0, 0.0);
        let slots = self.slots.iter_mut().enumerate();
        let json = slots.map(|(id, task)| {
            let Some(task) = task else {
                return json!({"id": id, "is_processing": false, "speculative": false});
            };
            let kept = task.running || build < Build::From10566;
            let reports_prompt = build > Build::Before9294;
            if kept {
                task.last_polled = (
                    if reports_prompt { task.computed } else { 0 },
                    task.generated,
                );
            }
            let shown = match build {
                Build::From10566 => task.counts(),
                _ => task.shown(),
            };
            // Nothing tells whose counts these are.
            let is_ambiguous = (build < Build::From10566 || !self.setup.has_metrics)
                && (!shown.is_complete || shown.generated == 1 || !reports_prompt);
            let last = std::mem::replace(&mut self.last_shown[id], (task.request.id, shown));
            let looks_like_last = last.0 != task.request.id
                && task.computed == last.1.computed
                && (0..=8).contains(&task.generated.wrapping_sub(last.1.generated));
            let looks_like_one_before = looks_like_last
                || [task.before.generated, last.1.generated].contains(&task.generated)
                    && last.0 != task.request.id;
            // The counter of prompt tokens tells it, if it has the prompt and was not rounded.
            let is_told = self.setup.has_metrics
                && reports_prompt
                && half_step(self.prompt) == 0.0
                && !task.prompt_is_unread
                && !self.was_ambiguous;
            let looks_like_one_before = looks_like_one_before && !is_told;
            if (task.generated == 0 || looks_like_one_before) && shown.generated > 0 && is_ambiguous
            {
                self.was_ambiguous = true;
                self.truth.ambiguous += shown.generated as f64;
                if task.computed == 0 || shown.generated == 1 || !shown.is_complete {
                    self.truth.prompt_ambiguous += shown.computed.max(task.request.prompt) as f64;
                }
            }
            let mut json = json!({
                "id": id, "is_processing": task.running, "speculative": false,
                "id_task": task.request.id,
                "next_token": [{
                    "n_decoded": if kept { shown.generated } else { 0 },
                    "has_next_token": !shown.is_complete,
                }],
            });
            if reports_prompt {
                json["n_prompt_tokens"] = json!(shown.tokens);
                json["n_prompt_tokens_cache"] = json!(0);
                json["n_prompt_tokens_processed"] = json!(if kept { shown.computed } else { 0 });
            }
            json
        });
        let document = serde_json::Value::from(json.collect::<Vec<_>>()).to_string();
        let Slots(slots) = serde_json::from_str(&document).unwrap();
        slots
    }
}

impl Task {
    /// Its own counts.
    fn counts(&self) -> Shown {
        Shown {
            computed: self.computed,
            tokens: self.computed + self.generated.saturating_sub(1),
            generated: self.generated,
            is_complete: self.generated == self.request.answer,
        }
    }

    /// The counts that its slot shows before b10566.
    fn shown(&self) -> Shown {
        let counts = self.counts();
        if self.computed == 0 {
            self.before
        } else if self.generated == 0 {
            Shown {
                generated: self.before.generated,
                is_complete: self.before.is_complete,
                ..counts
            }
        } else {
            counts
        }
    }

    /// The slot gets another task: what no poll read of this one is lost.
    fn forget(&self, build: Build, truth: &mut Truth) {
        let (computed, generated) = self.last_polled;
        if self.generated < self.request.answer && build < Build::From10566 {
            truth.unknowable += (self.generated - generated) as f64;
            truth.unproven += self.generated as f64;
        }
        if self.computed < self.request.prompt && build < Build::From10566 {
            truth.prompt_unknowable += (self.computed - computed) as f64;
            truth.prompt_unproven += self.computed as f64;
        }
    }

    /// Prompt and generated tokens that no poll read.
    fn unpolled(&self) -> (f64, f64) {
        let (computed, generated) = self.last_polled;
        (
            (self.computed - computed) as f64,
            (self.generated - generated) as f64,
        )
    }

    /// Prompt and generated tokens that came to the counters after /metrics was read.
    fn unread(&self) -> (f64, f64) {
        let (computed, generated) = self.last_polled;
        (
            if self.prompt_is_unread {
                (self.computed - computed) as f64
            } else {
                0.0
            },
            if self.end_is_unread {
                (self.generated - generated) as f64
            } else {
                0.0
            },
        )
    }
}

/// As a C++ stream prints it.
fn six_digits(value: f64) -> f64 {
    format!("{value:.5e}").parse().unwrap()
}

fn half_step(count: f64) -> f64 {
    if count < 1e6 {
        0.0
    } else {
        10f64.powf(count.log10().floor() - 5.0) / 2.0
    }
}

mod tests;
