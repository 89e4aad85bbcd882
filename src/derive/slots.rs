//! What slots show of the tasks on them.

use std::time::Instant;

use crate::upstream::answers::Slot;

/// One task on one slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Task {
    /// The slot's id.
    pub slot: u64,
    /// The task's id, which no other task of this life of the server has.
    pub id: u64,
}

/// What one task shows on its slot.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct InFlight {
    /// Which task.
    pub task: Task,
    /// Tokens so far.
    pub tokens: f64,
    /// Whether it is at work; else `tokens` is its final count.
    pub running: bool,
}

/// The slots that have or had a task, with it.
fn tasks(slots: &[Slot]) -> impl Iterator<Item = (Task, &Slot)> {
    slots.iter().enumerate().filter_map(|(index, slot)| {
        Some((
            Task {
                slot: slot_id(index, slot),
                id: slot.id_task? as u64,
            },
            slot,
        ))
    })
}

fn slot_id(index: usize, slot: &Slot) -> u64 {
    slot.id.map_or(index as u64, |id| id as u64)
}

/// Tasks that are at work.
pub fn running_tasks(slots: &[Slot]) -> Vec<Task> {
    tasks(slots)
        .filter(|(_, slot)| slot.is_processing)
        .map(|(task, _)| task)
        .collect()
}

/// Generated tokens by task; an ended task keeps its final count before b10566.
pub fn generating(slots: &[Slot]) -> Vec<InFlight> {
    tasks(slots)
        .map(|(task, slot)| InFlight {
            task,
            tokens: slot.decoded(),
            running: slot.is_processing,
        })
        .collect()
}

/// Prompt tokens by task that is still at its prompt: once the first token is
/// there, the server has counted them.
pub fn prompting(slots: &[Slot]) -> Vec<InFlight> {
    tasks(slots)
        .filter(|(_, slot)| slot.is_processing && slot.decoded() == 0.0)
        .filter_map(|(task, slot)| {
            Some(InFlight {
                task,
                tokens: slot.n_prompt_tokens_processed?,
                running: true,
            })
        })
        .collect()
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

/// The rate of a server that has `/slots` and no `/metrics`.
#[derive(Debug, Default)]
pub struct SlotGrowth {
    last: Option<(Instant, Vec<InFlight>)>,
}

impl SlotGrowth {
    /// Tokens per second since the last call; requests that came and went between two
    /// calls count only where the slot still shows them.
    pub fn rate(&mut self, at: Instant, slots: &[Slot]) -> Option<f64> {
        let now = generating(slots);
        let (then, before) = self.last.replace((at, now.clone()))?;
        let seconds = at.duration_since(then).as_secs_f64();
        let grown: f64 = now
            .iter()
            .map(
                |task| match before.iter().find(|before| before.task == task.task) {
                    Some(before) => (task.tokens - before.tokens).max(0.0),
                    None => task.tokens,
                },
            )
            .sum();
        Some(grown / seconds).filter(|rate| rate.is_finite())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn slots(json: &str) -> Vec<Slot> {
        let crate::upstream::answers::Slots(slots) = serde_json::from_str(json).unwrap();
        slots
    }

    #[test]
    fn only_a_slot_still_at_its_prompt_has_prompt_tokens_in_flight() {
        let slots = slots(
            r#"[{"id":0,"is_processing":true,"id_task":1,"n_prompt_tokens_processed":512,"next_token":[{"n_decoded":0}]},
                {"id":1,"is_processing":true,"id_task":2,"n_prompt_tokens_processed":90,"next_token":[{"n_decoded":3}]},
                {"id":2,"is_processing":false,"id_task":3,"n_prompt_tokens_processed":70,"next_token":[{"n_decoded":0}]}]"#,
        );
        let prompting = prompting(&slots);
        assert_eq!(prompting.len(), 1);
        assert_eq!(
            (prompting[0].task, prompting[0].tokens),
            (Task { slot: 0, id: 1 }, 512.0)
        );
    }

    #[test]
    fn a_slot_that_never_had_a_task_is_empty_where_others_tell() {
        let told = slots(
            r#"[{"id":1,"is_processing":false,"n_prompt_tokens":9},{"id":0,"is_processing":false}]"#,
        );
        assert_eq!(context_tokens(&told), [(0, 0.0), (1, 9.0)]);
        let old =
            slots(r#"[{"id":0,"is_processing":false},{"id":1,"is_processing":false,"id_task":4}]"#);
        assert!(context_tokens(&old).is_empty());
    }

    #[test]
    fn the_growth_of_slots_is_a_rate() {
        let at = |n: f64, id: u32| {
            slots(&format!(
                r#"[{{"id":0,"is_processing":true,"id_task":{id},"next_token":[{{"n_decoded":{n}}}]}}]"#
            ))
        };
        let start = Instant::now();
        let mut growth = SlotGrowth::default();
        assert_eq!(growth.rate(start, &at(10.0, 1)), None);
        assert_eq!(
            growth.rate(start + Duration::from_secs(2), &at(50.0, 1)),
            Some(20.0)
        );
        assert_eq!(
            growth.rate(start + Duration::from_secs(4), &at(6.0, 2)),
            Some(3.0)
        );
    }
}
