use super::*;
use crate::snapshot::histogram::{FIRST_TOKEN_SECONDS, Histogram};
use crate::snapshot::{GpuMemory, ModelRequests, RequestFigures};
use std::sync::Arc;
use std::time::Duration;

/// What all that is kept may take, whatever the interval.
const MOST_BYTES: usize = 256 << 10;

fn model(name: &str, requests: f64) -> Model {
    let mut model = Model {
        name: name.to_owned(),
        ..Model::default()
    };
    model.rates.tokens_per_second = Some(requests * 10.0);
    model.counters.requests_processing = Some(requests);
    model
}

fn snapshot(models: Vec<Model>) -> Snapshot {
    Snapshot {
        server: "h:1".to_owned(),
        models,
        ..Snapshot::default()
    }
}

/// A history, and the poll of these models at its second `seconds`, the one before `interval` ago.
fn poll(history: &History, seconds: u64, interval: u64, models: Vec<Model>) {
    let at = |seconds| history.start + Duration::from_secs(seconds);
    let since = Some(at(seconds.saturating_sub(interval)));
    history.add_poll(&snapshot(models), since, at(seconds));
}

fn names(history: &History, seconds: u64) -> Vec<String> {
    let view = history.view(history.start + Duration::from_secs(seconds));
    view.models.into_iter().map(|of| of.key.0).collect()
}

fn letters(text: &str, requests: f64) -> Vec<Model> {
    text.chars()
        .map(|c| model(&c.to_string(), requests))
        .collect()
}

#[test]
fn a_plotted_value_is_that_of_the_metric() {
    let history = History::new(Instant::now());
    poll(&history, 5, 5, vec![model("a", 2.0)]);
    let view = history.view(history.start + Duration::from_secs(9));
    let of_a = view.model("h:1", &model("a", 0.0)).unwrap();
    let last = |family: &str| {
        *of_a
            .ring(family)
            .unwrap()
            .points(view.now, true)
            .last()
            .unwrap()
    };
    assert_eq!(last("llamacpp_tokens_per_second"), 20.0);
    assert_eq!(last("llamacpp_requests_processing"), 2.0);
    assert!(last("llamacpp_memory_usage_bytes").is_nan());
    assert!(OF_MODEL.iter().all(|name| of_a.ring(name).is_some()));
    assert!(view.model("h:2", &model("a", 0.0)).is_none());
}

#[test]
fn the_busiest_models_are_kept() {
    let history = History::new(Instant::now());
    let mut models = letters("abcdefgh", 0.0);
    models[0] = model("a", 1.0);
    poll(&history, 5, 5, models.clone());
    // An idle model takes nobody's place, a busy one that of an idle one, and keeps it.
    models.push(model("i", 0.0));
    poll(&history, 10, 5, models.clone());
    assert_eq!(names(&history, 10).concat(), "abcdefgh");
    models[8] = model("i", 3.0);
    for seconds in [15, 20, 25] {
        poll(&history, seconds, 5, models.clone());
    }
    let kept = names(&history, 25).concat();
    assert!(kept.contains('a') && kept.contains('i'), "{kept}");
    models[8] = model("i", 0.0);
    poll(&history, 30, 5, models);
    assert_eq!(names(&history, 30).concat(), kept);
}

#[test]
fn models_of_the_same_load_do_not_take_turns() {
    let history = History::new(Instant::now());
    let mut changes = 0;
    let mut before = String::new();
    for turn in 1..=360 {
        // Twelve models; each has one or two requests in its turn.
        let mut models = letters("abcdefghijkl", 1.0);
        models[turn % 12] = model(&"abcdefghijkl"[turn % 12..=turn % 12], 2.0);
        poll(&history, 5 * turn as u64, 5, models);
        let now = names(&history, 5 * turn as u64).concat();
        changes += usize::from(now != before);
        before = now;
    }
    assert_eq!(changes, 1);
}

#[test]
fn what_is_gone_leaves_a_gap_and_then_its_place() {
    let history = History::new(Instant::now());
    for seconds in [5, 10] {
        poll(&history, seconds, 5, letters("a", 1.0));
    }
    poll(&history, 30, 20, Vec::new());
    let view = history.view(history.start + Duration::from_secs(60));
    let points = view.models[0].rings[0].points(view.now, true);
    let known = points.iter().filter(|point| !point.is_nan());
    assert_eq!((known.count(), view.models.len()), (3, 1));
    assert!(names(&history, 30 + 900).is_empty());
}

/// The bytes of all that `kept` holds.
fn bytes(history: &History) -> usize {
    let kept = history.kept.lock().unwrap();
    let of_model = |of: &ModelHistory| {
        let name = of.server.capacity() + of.key.0.capacity();
        name + of.key.1.as_ref().map_or(0, String::capacity) + of.window.heap_bytes()
    };
    size_of::<History>()
        + kept.models.capacity() * size_of::<ModelHistory>()
        + kept.models.iter().map(of_model).sum::<usize>()
        + kept.candidates.heap_bytes()
        + kept.gpus.capacity() * size_of::<GpuHistory>()
        + kept
            .gpus
            .iter()
            .map(|gpu| gpu.index.capacity())
            .sum::<usize>()
}

#[test]
fn it_stays_small_whatever_the_interval() {
    for interval in [Duration::from_millis(100), Duration::from_secs(60)] {
        let history = History::new(Instant::now());
        let name = |number| format!("{number:03}{}", "n".repeat(600));
        let models: Vec<_> = (0..100)
            .map(|number| Model {
                mode: Some(name(number)),
                ..model(&name(number), f64::from(number))
            })
            .collect();
        let mut histogram = Histogram::new(FIRST_TOKEN_SECONDS);
        let gpus: Vec<_> = (0..50)
            .map(|number| Gpu {
                index: name(number),
                memory_used: GpuMemory::of_one_kind(Some(1.0)),
                ..Gpu::default()
            })
            .collect();
        let mut now = history.start;
        for _ in 0..300 {
            histogram.observe(0.1, 1);
            let requests = models.iter().map(|model| ModelRequests {
                model: model.name.clone(),
                mode: model.mode.clone(),
                source: "log",
                figures: Arc::new(RequestFigures {
                    first_token: Some(histogram.clone()),
                    ..RequestFigures::default()
                }),
            });
            let snapshot = Snapshot {
                server: "n".repeat(512),
                models: models.clone(),
                requests: requests.collect(),
                ..Snapshot::default()
            };
            let since = now;
            now += interval;
            history.add_poll(&snapshot, Some(since), now);
            history.add_gpus(&gpus, now);
        }
        let view = history.view(now);
        assert_eq!(
            (view.models.len(), view.gpus.len()),
            (MOST_MODELS, MOST_GPUS)
        );
        assert!(view.models.iter().all(|of| of.last_first_token.is_some()));
        let bytes = bytes(&history);
        println!("{bytes} bytes at an interval of {interval:?}");
        assert!(bytes < MOST_BYTES, "{bytes}");
    }
}
