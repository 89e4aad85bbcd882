//! The tracker with single readings.

use std::time::{Duration, Instant};

use super::ModelTracker;
use crate::readings::{
    Counters, CountersReading, EndedTask, LoggedTasks, ModelReading, ModelState, Slots,
    SlotsReading, TaskTokens, Update,
};
use crate::snapshot::{Absence, Model};

fn reading(second: u64, counters: Counters, slots: Option<&str>) -> ModelReading {
    // The same start for all readings of a test.
    thread_local!(static START: Instant = Instant::now());
    let at = START.with(|start| *start) + Duration::from_secs(second);
    ModelReading {
        state: ModelState::Ready,
        counters: Update::New(CountersReading {
            at,
            process: None,
            counters,
        }),
        slots: slots.map_or(Update::Absent, |json| {
            let Slots(slots) = serde_json::from_str(json).unwrap();
            Update::New(SlotsReading { at, slots })
        }),
        ..ModelReading::default()
    }
}

/// Counters of a server that has counted nothing but `calls`.
fn calls(calls: f64, processing: f64) -> Counters {
    Counters {
        prompt_tokens: Some(0.0),
        prompt_seconds: Some(0.0),
        generated_tokens: Some(0.0),
        decode_calls: Some(calls),
        requests_processing: Some(processing),
        requests_deferred: Some(0.0),
        busy_slots_per_decode: Some(1.0),
        ..Counters::default()
    }
}

fn exports_prompts(model: &Model) -> bool {
    let values = [
        model.live.prompt_tokens,
        model.counters.prompt_seconds,
        model.rates.prompt_tokens_per_second,
    ];
    values.iter().any(Option::is_some)
}

#[test]
fn prompt_tokens_are_absent_if_the_server_does_not_count_them() {
    // Six embeddings, as b10068 reports them.
    let mut state = ModelTracker::default();
    let before = state.update(&reading(0, calls(0.0, 0.0), None));
    assert_eq!(before.live.prompt_tokens, Some(0.0));
    let after = state.update(&reading(1, calls(6.0, 0.0), None));
    assert!(!exports_prompts(&after), "{after:?}");
    assert_eq!(after.notes, [Absence::PromptsUncounted]);
    assert_eq!(after.live.decode_calls, Some(6.0));
    // Nor while the next one is running.
    let busy = state.update(&reading(2, calls(7.0, 1.0), None));
    assert!(!exports_prompts(&busy), "{busy:?}");
    // A request that is counted shows that they are.
    let counted = Counters {
        prompt_tokens: Some(62.0),
        ..calls(9.0, 0.0)
    };
    let counted = state.update(&reading(3, counted, None));
    assert_eq!(counted.live.prompt_tokens, Some(62.0));
    assert!(counted.notes.is_empty());
}

#[test]
fn uncounted_prompts_are_detected_under_constant_load() {
    let slots = |task: u32| {
        format!(
            r#"[{{"id":0,"is_processing":true,"id_task":{task},"next_token":[{{"n_decoded":0}}]}}]"#
        )
    };
    let mut state = ModelTracker::default();
    let mut see = |second: u64, task| {
        let counters = calls(second as f64 * 9.0, 1.0);
        state.update(&reading(second, counters, Some(&slots(task))))
    };
    assert!(exports_prompts(&see(1, 0)));
    // A long prompt is not counted before it is done.
    assert!(exports_prompts(&see(2, 0)));
    // The slots show its end, and at the next reading it is still not counted.
    see(3, 40);
    assert!(!exports_prompts(&see(4, 40)));
}

#[test]
fn any_input_gives_finite_values() {
    let large = 9_007_199_254_740_992.0;
    let inputs = [None, Some(0.0), Some(1.0), Some(1e6), Some(large)];
    let mut state = ModelTracker::default();
    let mut second = 0;
    for a in inputs {
        for b in inputs {
            for c in inputs {
                let counters = Counters {
                    prompt_tokens: a,
                    generated_tokens: b,
                    decode_calls: c,
                    requests_processing: a,
                    requests_deferred: c,
                    busy_slots_per_decode: b,
                    ..Counters::default()
                };
                let slots = format!(
                    r#"[{{"id":{0},"is_processing":true,"id_task":{0},"n_prompt_tokens":{1},
                        "n_prompt_tokens_processed":{1},"next_token":[{{"n_decoded":{1}}}]}},
                        {{"id":{0},"is_processing":false,"id_task":7}}]"#,
                    a.unwrap_or(-1.0),
                    c.unwrap_or(1e308),
                );
                second += 1;
                let model = state.update(&reading(second / 2, counters, Some(&slots)));
                let values = [
                    model.rates.tokens_per_second,
                    model.rates.prompt_tokens_per_second,
                    model.live.generated_tokens,
                    model.live.prompt_tokens,
                    model.live.decode_calls,
                    model.rates.batch_size,
                ];
                for value in values.into_iter().flatten() {
                    assert!(value.is_finite() && value >= 0.0, "{value}: {model:?}");
                }
            }
        }
    }
}

#[test]
fn the_batch_latency_begins_at_0_where_calls_are_counted() {
    let latency = |counters| ModelTracker::default().update(&reading(0, counters, None));
    let counts = |model: Model| model.rates.batch_latency.map(|latency| latency.count());
    assert_eq!(counts(latency(calls(100.0, 0.0))), Some(0));
    assert_eq!(counts(latency(Counters::default())), None);
}

#[test]
fn the_batch_size_is_absent_while_idle() {
    for million in [0.0, 1e6] {
        for has_slots in [false, true] {
            let counters = |tokens: f64, calls: f64, processing| Counters {
                prompt_tokens: Some(0.0),
                generated_tokens: Some(million + tokens),
                decode_calls: Some(million + calls),
                requests_processing: Some(processing),
                requests_deferred: Some(0.0),
                ..Counters::default()
            };
            let slots = r#"[{"id":0,"is_processing":false,"id_task":7}]"#;
            let mut state = ModelTracker::default();
            let mut batch_size = |second, counters| {
                let reading = reading(second, counters, has_slots.then_some(slots));
                state.update(&reading).rates.batch_size
            };
            let name = format!("{million} {has_slots}");
            assert_eq!(batch_size(0, counters(0.0, 0.0, 0.0)), None, "{name}");
            if million == 0.0 {
                let busy = batch_size(1, counters(600.0, 100.0, 0.0));
                assert_eq!(busy, Some(6.0), "{name}");
            } else {
                batch_size(1, counters(600.0, 100.0, 0.0));
            }
            assert_eq!(batch_size(2, counters(600.0, 100.0, 0.0)), None, "{name}");
            assert_eq!(batch_size(3, counters(600.0, 100.0, 0.0)), None, "{name}");
        }
    }
    // Nor is that of the past shown when the server does not answer in time.
    let mut state = ModelTracker::default();
    state.update(&reading(0, calls(0.0, 0.0), None));
    let counters = Counters {
        generated_tokens: Some(600.0),
        ..calls(100.0, 1.0)
    };
    let busy = state.update(&reading(1, counters, None));
    assert_eq!(busy.rates.batch_size, Some(6.0));
    let mut late = reading(2, calls(0.0, 0.0), None);
    late.counters = Update::Stale;
    let late = state.update(&late);
    assert_eq!(late.rates.batch_size, None);
    assert_eq!(late.live.decode_calls, Some(100.0));
}

#[test]
fn only_tokens_in_slots_at_work_are_active() {
    let slots = |busy: bool| {
        format!(
            r#"[{{"id":0,"is_processing":{busy},"id_task":3,"n_prompt_tokens":40}},
                {{"id":1,"is_processing":false,"id_task":2,"n_prompt_tokens":900}},
                {{"id":2,"is_processing":false}}]"#
        )
    };
    let mut state = ModelTracker::default();
    let mut tokens = |reading: &ModelReading| {
        let slots = state.update(reading).slots;
        let all: f64 = slots.context_tokens.iter().map(|(_, tokens)| tokens).sum();
        (slots.active_tokens, all)
    };
    let busy = reading(0, calls(9.0, 1.0), Some(&slots(true)));
    assert_eq!(tokens(&busy), (Some(40.0), 940.0));
    // Not read again, as the server is idle.
    let mut idle = reading(1, calls(9.0, 0.0), None);
    idle.slots = Update::Unchanged;
    assert_eq!(tokens(&idle), (Some(0.0), 940.0));
    let late = ModelReading {
        counters: Update::Stale,
        slots: Update::Stale,
        ..reading(2, calls(9.0, 0.0), None)
    };
    assert_eq!(tokens(&late), (None, 0.0));
    let mut asleep = reading(3, calls(9.0, 0.0), None);
    asleep.counters = Update::Unchanged;
    asleep.state = ModelState::Asleep(Instant::now());
    assert_eq!(tokens(&asleep), (Some(0.0), 0.0));
    // Before b9294, slots do not report their tokens.
    let old = r#"[{"id":0,"is_processing":true,"id_task":3}]"#;
    let old = ModelTracker::default().update(&reading(0, calls(9.0, 1.0), Some(old)));
    assert_eq!((old.slots.active_tokens, old.slots.busy), (None, Some(1.0)));
}

#[test]
fn a_server_that_is_restarted_without_metrics_is_counted_by_its_log() {
    let logged = |tokens| ModelReading {
        lacks_metrics: true,
        logged_tasks: Some(LoggedTasks {
            ended: vec![EndedTask {
                starts: 1,
                id: 0,
                tokens: Some(TaskTokens {
                    prompt: 3,
                    generated: tokens,
                }),
                is_child: false,
            }],
            starts: 1,
            running: Vec::new(),
        }),
        ..ModelReading::default()
    };
    for has_lost_metrics in [false, true] {
        let mut state = ModelTracker::default();
        let counters = Counters {
            generated_tokens: Some(50.0),
            ..calls(9.0, 0.0)
        };
        state.update(&reading(0, counters, None));
        // In one life of the server, the two are not mixed.
        let ready = || ModelReading {
            state: ModelState::Ready,
            ..logged(20)
        };
        assert_eq!(state.update(&ready()).live.generated_tokens, None);
        if !has_lost_metrics {
            state.server_gone();
        }
        let model = state.update(&ModelReading {
            has_lost_metrics,
            ..ready()
        });
        assert_eq!(model.live.generated_tokens, Some(20.0));
    }
}

#[test]
fn counters_of_before_a_restart_are_absent_until_they_are_read_again() {
    let late = || ModelReading {
        state: ModelState::Busy,
        counters: Update::Stale,
        slots: Update::Stale,
        ..ModelReading::default()
    };
    for (second, is_gone) in [(0, false), (10, true)] {
        let mut state = ModelTracker::default();
        state.update(&reading(second, calls(754.0, 1.0), None));
        // A response that is late is no restart.
        assert_eq!(state.update(&late()).live.decode_calls, Some(754.0));
        if is_gone {
            state.server_gone();
        } else {
            state.update(&ModelReading::default());
        }
        let model = state.update(&late());
        assert_eq!(model.live.decode_calls, None, "{is_gone}");
        assert_eq!(model.counters.decode_calls, None, "{is_gone}");
        let model = state.update(&reading(second + 2, calls(81.0, 1.0), None));
        assert_eq!(model.live.decode_calls, Some(81.0), "{is_gone}");
        assert_eq!(state.update(&late()).live.decode_calls, Some(81.0));
    }
}
