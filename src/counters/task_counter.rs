//! Counts tokens from a server's log and its slots, where its `/metrics` is off.
//!
//! The log has the tokens of a task when it ends, `/slots` while it runs, and both name it by the
//! same ID. The most that either has said of a task counts, so that a task counts once whichever
//! of its ends is read first; and a log that users of the server have written into takes nothing
//! from what the server itself has shown. Of a cancelled task, which has no timings in the log,
//! what was shown last counts.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use crate::readings::{LoggedTasks, Slot};

/// The most tasks that are remembered, in case more is said of them.
const MAX_TASKS: usize = 4096;

/// Tokens of several tasks, or per second.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Tokens {
    /// Prompt tokens computed.
    pub prompt: f64,
    /// Tokens generated.
    pub generated: f64,
}

/// A task of which anything was said.
#[derive(Clone, Copy, Debug, Default)]
struct Task {
    tokens: Tokens,
    /// Whether its prompt was computed for another task.
    is_child: bool,
}

/// The tokens of one server's tasks since its log was followed.
#[derive(Debug, Default)]
pub struct TaskCounter {
    starts: u64,
    tasks: BTreeMap<u64, Task>,
    /// The tokens of tasks that are no longer remembered.
    settled: Tokens,
    /// The exported tokens, which never fall.
    counted: Tokens,
    /// Tasks that had ended when the slots were read first.
    old: Option<BTreeSet<u64>>,
    /// The time of the last reading of the slots, and the tokens then.
    last: Option<(Instant, Tokens)>,
}

impl TaskCounter {
    /// Takes what the log has said since the last poll, and the slots if they were read, without
    /// counts of previous tasks.
    pub fn update(&mut self, logged: &LoggedTasks, slots: Option<&[Slot]>) {
        for ended in &logged.ended {
            self.begin_run(ended.starts, slots.unwrap_or_default());
            let task = self.tasks.entry(ended.id).or_default();
            task.is_child |= ended.is_child;
            if let Some(tokens) = ended.tokens {
                task.add(tokens.prompt as f64, tokens.generated as f64);
            }
        }
        self.begin_run(logged.starts, slots.unwrap_or_default());
        for running in &logged.running {
            let task = self.tasks.entry(running.id).or_default();
            task.is_child |= running.is_child;
            task.add(0.0, running.generated_tokens as f64);
        }
        if let Some(slots) = slots {
            self.take_slots(slots);
        }
        let total = self.tasks.values().fold(self.settled, |sum, task| Tokens {
            prompt: sum.prompt + task.prompt(),
            generated: sum.generated + task.tokens.generated,
        });
        self.counted.prompt = self.counted.prompt.max(total.prompt);
        self.counted.generated = self.counted.generated.max(total.generated);
        self.forget(slots.unwrap_or_default());
    }

    /// The tokens so far.
    pub fn tokens(&self) -> Tokens {
        self.counted
    }

    /// The tokens per second since the slots were read before; they were read now, `at`.
    pub fn rates(&mut self, at: Instant) -> Option<Tokens> {
        let now = self.counted;
        let (then_at, then) = self.last.replace((at, now))?;
        let seconds = at.saturating_duration_since(then_at).as_secs_f64();
        (seconds > 0.0).then(|| Tokens {
            prompt: (now.prompt - then.prompt) / seconds,
            generated: (now.generated - then.generated) / seconds,
        })
    }

    /// Takes that the server has been started this often. Its IDs begin again, but for tasks that
    /// the slots show to go on: then the line that said so was forged.
    fn begin_run(&mut self, starts: u64, slots: &[Slot]) {
        if starts == std::mem::replace(&mut self.starts, starts) {
            return;
        }
        let goes_on = |id: &u64, task: &Task| {
            slots.iter().any(|slot| {
                slot.is_busy()
                    && task_id(slot) == Some(*id)
                    && slot.generated_tokens() >= task.tokens.generated.max(1.0)
            })
        };
        let settled = &mut self.settled;
        self.tasks.retain(|id, task| {
            let stays = goes_on(id, task);
            settled.add_if(!stays, task);
            stays
        });
    }

    fn take_slots(&mut self, slots: &[Slot]) {
        let with_task = || slots.iter().filter_map(|slot| Some((task_id(slot)?, slot)));
        let old = self.old.get_or_insert_with(|| {
            let ended = with_task().filter(|(_, slot)| !slot.is_busy());
            ended.map(|(id, _)| id).collect()
        });
        for (id, slot) in with_task() {
            if !old.contains(&id) {
                let prompt = slot.n_prompt_tokens_processed.unwrap_or(0.0);
                let task = self.tasks.entry(id).or_default();
                task.add(prompt, slot.generated_tokens());
            }
        }
        let is_shown = |id: &u64| with_task().any(|(shown, _)| shown == *id);
        old.retain(is_shown);
    }

    /// Forgets tasks beyond [`MAX_TASKS`], the oldest first.
    fn forget(&mut self, slots: &[Slot]) {
        let mut excess = self.tasks.len().saturating_sub(MAX_TASKS);
        let settled = &mut self.settled;
        self.tasks.retain(|id, task| {
            let is_shown = slots.iter().any(|slot| task_id(slot) == Some(*id));
            let is_over = excess > 0 && !is_shown;
            excess = excess.saturating_sub(usize::from(is_over));
            settled.add_if(is_over, task);
            !is_over
        });
    }
}

impl Task {
    fn add(&mut self, prompt: f64, generated: f64) {
        self.tokens.prompt = self.tokens.prompt.max(prompt);
        self.tokens.generated = self.tokens.generated.max(generated);
    }

    fn prompt(&self) -> f64 {
        if self.is_child {
            0.0
        } else {
            self.tokens.prompt
        }
    }
}

impl Tokens {
    fn add_if(&mut self, condition: bool, task: &Task) {
        if condition {
            self.prompt += task.prompt();
            self.generated += task.tokens.generated;
        }
    }
}

fn task_id(slot: &Slot) -> Option<u64> {
    slot.id_task.map(|id| id as u64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::readings::{EndedTask, RunningTask, TaskTokens};
    use serde_json::json;

    fn slot(task: u64, busy: bool, [prompt, generated]: [u64; 2]) -> Slot {
        let json = json!({
            "id": 0, "id_task": task, "is_processing": busy,
            "n_prompt_tokens_processed": prompt, "next_token": [{"n_decoded": generated}],
        });
        serde_json::from_value(json).unwrap()
    }

    fn ended(starts: u64, id: u64, tokens: Option<[u64; 2]>) -> EndedTask {
        EndedTask {
            starts,
            id,
            tokens: tokens.map(|[prompt, generated]| TaskTokens { prompt, generated }),
            is_child: false,
        }
    }

    fn logged(starts: u64, ended: &[EndedTask]) -> LoggedTasks {
        LoggedTasks {
            starts,
            ended: ended.to_vec(),
            running: Vec::new(),
        }
    }

    fn tokens(counter: &TaskCounter) -> [f64; 2] {
        let Tokens { prompt, generated } = counter.tokens();
        [prompt, generated]
    }

    #[test]
    fn a_task_counts_once_whichever_of_its_ends_is_read_first() {
        let of_7 = [ended(0, 7, Some([12, 60]))];
        // Before b10566, and from then on, when the end of a task resets its slot.
        for at_end in [[12, 60], [0, 0]] {
            for is_log_first in [true, false] {
                let mut counter = TaskCounter::default();
                counter.update(&logged(0, &[]), Some(&[slot(7, true, [12, 0])]));
                assert_eq!(tokens(&counter), [12.0, 0.0]);
                counter.update(&logged(0, &[]), Some(&[slot(7, true, [12, 40])]));
                assert_eq!(tokens(&counter), [12.0, 40.0]);
                let (running, over) = (slot(7, true, [12, 59]), slot(7, false, at_end));
                if is_log_first {
                    counter.update(&logged(0, &of_7), Some(&[running]));
                    counter.update(&logged(0, &[]), Some(&[over]));
                } else {
                    counter.update(&logged(0, &[]), Some(&[over]));
                    assert!(tokens(&counter)[1] >= 40.0);
                    counter.update(&logged(0, &of_7), Some(&[over]));
                }
                assert_eq!(tokens(&counter), [12.0, 60.0]);
                counter.update(&logged(0, &[]), Some(&[slot(9, true, [3, 5])]));
                assert_eq!(tokens(&counter), [15.0, 65.0]);
            }
        }
    }

    #[test]
    fn tasks_that_ended_before_the_log_was_followed_do_not_count() {
        let mut counter = TaskCounter::default();
        let slots = [slot(3, false, [9, 50]), slot(5, true, [9, 20])];
        counter.update(&logged(0, &[]), Some(&slots));
        counter.update(&logged(0, &[]), Some(&slots));
        assert_eq!(tokens(&counter), [9.0, 20.0]);
        // This one ended in between: the log has its end.
        counter.update(&logged(0, &[ended(0, 3, Some([9, 50]))]), Some(&slots));
        assert_eq!(tokens(&counter), [18.0, 70.0]);
    }

    #[test]
    fn of_a_cancelled_task_the_last_tokens_shown_count() {
        let mut counter = TaskCounter::default();
        counter.update(&logged(0, &[]), Some(&[slot(1, true, [9, 20])]));
        counter.update(
            &logged(0, &[ended(0, 1, None)]),
            Some(&[slot(2, true, [4, 1])]),
        );
        assert_eq!(tokens(&counter), [13.0, 21.0]);
    }

    #[test]
    fn without_slots_tasks_count_at_their_end() {
        let mut counter = TaskCounter::default();
        counter.update(
            &logged(0, &[ended(0, 1, Some([9, 20])), ended(0, 2, None)]),
            None,
        );
        assert_eq!(tokens(&counter), [9.0, 20.0]);
        let running = LoggedTasks {
            running: vec![RunningTask {
                id: 3,
                generated_tokens: 100,
                is_child: false,
            }],
            ..LoggedTasks::default()
        };
        counter.update(&running, None);
        assert_eq!(tokens(&counter), [9.0, 120.0]);
        counter.update(&logged(0, &[ended(0, 3, Some([7, 150]))]), None);
        assert_eq!(tokens(&counter), [16.0, 170.0]);
    }

    #[test]
    fn the_prompt_of_several_answers_counts_once() {
        let mut counter = TaskCounter::default();
        let child = LoggedTasks {
            running: vec![RunningTask {
                id: 2,
                generated_tokens: 0,
                is_child: true,
            }],
            ..LoggedTasks::default()
        };
        counter.update(
            &child,
            Some(&[slot(1, true, [9, 1]), slot(2, true, [9, 1])]),
        );
        assert_eq!(tokens(&counter), [9.0, 2.0]);
        counter.update(&logged(0, &[ended(0, 2, Some([9, 8]))]), Some(&[]));
        assert_eq!(tokens(&counter), [9.0, 9.0]);
    }

    #[test]
    fn the_ids_of_a_restarted_server_are_of_other_tasks() {
        let mut counter = TaskCounter::default();
        counter.update(&logged(0, &[ended(0, 0, Some([9, 20]))]), None);
        counter.update(&logged(1, &[ended(1, 0, Some([9, 20]))]), None);
        assert_eq!(tokens(&counter), [18.0, 40.0]);
        // A forged start takes nothing away, and counts nothing twice.
        counter.update(&logged(1, &[]), Some(&[slot(4, true, [9, 100])]));
        counter.update(&logged(2, &[]), Some(&[slot(4, true, [9, 101])]));
        assert_eq!(tokens(&counter), [27.0, 141.0]);
    }

    #[test]
    fn a_forged_end_takes_nothing_from_what_the_slots_show() {
        let mut counter = TaskCounter::default();
        counter.update(&logged(0, &[]), Some(&[slot(4, true, [9, 100])]));
        counter.update(
            &logged(0, &[ended(0, 4, Some([1, 1]))]),
            Some(&[slot(4, true, [9, 150])]),
        );
        counter.update(&logged(0, &[]), Some(&[slot(4, true, [9, 200])]));
        assert_eq!(tokens(&counter), [9.0, 200.0]);
    }

    #[test]
    fn remembered_tasks_are_limited_and_none_is_lost() {
        let mut counter = TaskCounter::default();
        let long = slot(0, true, [5, 7]);
        for id in 1..3 * MAX_TASKS as u64 {
            counter.update(&logged(0, &[ended(0, id, Some([2, 3]))]), Some(&[long]));
        }
        let count = (3 * MAX_TASKS - 1) as f64;
        assert_eq!(tokens(&counter), [5.0 + 2.0 * count, 7.0 + 3.0 * count]);
        assert_eq!(counter.tasks.len(), MAX_TASKS);
    }
}
