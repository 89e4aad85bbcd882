use super::*;
use serde_json::json;

/// A slot as b10068 and b11549 were seen to show it.
struct Shown {
    task: u32,
    busy: bool,
    computed: u32,
    tokens: u32,
    generated: u32,
    has_next: bool,
}

fn shown(task: u32, busy: bool, counts: [u32; 3], has_next: bool) -> Shown {
    let [computed, tokens, generated] = counts;
    Shown {
        task,
        busy,
        computed,
        tokens,
        generated,
        has_next,
    }
}

fn slot(shown: &Shown) -> Slot {
    let json = json!({
        "id": 0, "id_task": shown.task, "is_processing": shown.busy,
        "n_prompt_tokens": shown.tokens, "n_prompt_tokens_cache": 0,
        "n_prompt_tokens_processed": shown.computed,
        "next_token": [{"n_decoded": shown.generated, "has_next_token": shown.has_next}],
    });
    serde_json::from_value(json).unwrap()
}

#[test]
fn counts_of_the_previous_task_are_not_counted_for_the_next() {
    // What is shown; generated and prompt tokens in flight after it.
    let readings = [
        (shown(1, true, [168, 186, 19], true), (19.0, 0.0)),
        // The next task has the slot, and the counts are still the first one's.
        (shown(2, true, [168, 187, 20], false), (0.0, 0.0)),
        (shown(2, true, [164, 164, 20], false), (0.0, 164.0)),
        (shown(2, true, [168, 168, 1], true), (1.0, 0.0)),
        (shown(2, true, [168, 175, 8], true), (8.0, 0.0)),
        // Cancelled: there is a next token.
        (shown(3, true, [168, 176, 9], true), (0.0, 0.0)),
        (shown(3, true, [168, 176, 9], true), (0.0, 0.0)),
        (shown(3, true, [64, 64, 9], true), (0.0, 64.0)),
        (shown(3, true, [128, 128, 9], true), (0.0, 128.0)),
        // Cancelled at its prompt.
        (shown(3, false, [128, 128, 9], true), (0.0, 0.0)),
        // From b10566 on, the counts are the task's own.
        (shown(4, true, [0, 187, 0], false), (0.0, 0.0)),
        (shown(4, true, [63, 63, 0], false), (0.0, 63.0)),
    ];
    let mut tracker = SlotTracker::default();
    let mut generated_tokens = 0.0;
    for (index, (shown, (generated, computed))) in readings.iter().enumerate() {
        let deltas = tracker.update_with_kept_counts(Instant::now(), &[slot(shown)], None);
        let in_flight = (
            deltas.generated_tokens.in_flight,
            deltas.prompt_tokens.in_flight,
        );
        assert_eq!(in_flight, (*generated, *computed), "reading {index}");
        generated_tokens += deltas.generated_tokens.ended;
    }
    assert_eq!(generated_tokens, 19.0 + 8.0);
}

#[test]
fn a_prompt_is_not_counted_for_a_next_one_that_is_cached() {
    let readings = [
        (shown(1, true, [303, 334, 32], true), 0.0),
        // The next task has the slot, with two cached tokens, and its prompt is not begun.
        (shown(2, true, [303, 2, 32], false), 0.0),
        (shown(2, true, [303, 2, 32], false), 0.0),
        (shown(2, true, [2, 2, 32], false), 2.0),
    ];
    let mut tracker = SlotTracker::default();
    for (shown, computed) in readings {
        let deltas = tracker.update_with_kept_counts(Instant::now(), &[slot(&shown)], None);
        assert_eq!(deltas.prompt_tokens.in_flight, computed);
    }
}

#[test]
fn a_prompt_after_a_single_token_is_counted_once_it_moves() {
    let readings = [
        (shown(1, false, [5, 5, 1], false), 0.0),
        (shown(2, true, [5, 5, 1], false), 0.0),
        (shown(2, true, [64, 64, 1], false), 64.0),
        (shown(2, true, [128, 128, 1], false), 128.0),
    ];
    let mut tracker = SlotTracker::default();
    for (shown, computed) in readings {
        let deltas = tracker.update_with_kept_counts(Instant::now(), &[slot(&shown)], None);
        assert_eq!(deltas.prompt_tokens.in_flight, computed);
        assert_eq!(deltas.generated_tokens.in_flight, 0.0);
    }
}
