//! The recorded answers of 21 builds of llama-server, December 2025 to October 2026, through the
//! whole program: nothing in them is an error, and what is exported is what they say.

use crate::support::recordings::{BUILDS, MIDDLE, NEW, OLD, Stage};
use crate::support::{Exporter, Scrape, Server};
use std::sync::Mutex;

/// What a scrape must say: `None` is a series that must not be there.
type Expected<'a> = &'a [(&'a str, &'a [(&'a str, &'a str)], Option<f64>)];

fn assert_says(build: &str, stage: Stage, scrape: &Scrape, expected: Expected) {
    for (name, labels, value) in expected {
        let shown = scrape.get(name, labels);
        assert_eq!(
            shown, *value,
            "{name} {labels:?} of {build}, {stage:?}:\n{scrape:?}"
        );
    }
}

/// Plays a build's recording from rest through work to rest, and hands over what was exported.
fn replay(build: &str) -> [Scrape; 3] {
    let server = Server::recorded(build, Stage::Idle);
    let exporter = Exporter::watching(&server).start();
    let scrapes = [Stage::Idle, Stage::Busy, Stage::After].map(|stage| {
        server.replay(build, stage);
        exporter.after_polls(2)
    });
    for scrape in &scrapes {
        scrape.assert_errors(0);
    }
    for path in ["/props", "/v1/models", "/metrics", "/slots"] {
        assert!(server.count(path) > 0, "{path} of {build} was not read");
    }
    scrapes
}

/// What is the same of all builds and at every stage: the model, and the shape of the server.
fn assert_shape(build: &str, stage: Stage, scrape: &Scrape) {
    assert!(scrape.up());
    assert_says(
        build,
        stage,
        scrape,
        &[
            ("llamacpp_model_size_bytes", &[], Some(246_587_904.0)),
            ("llamacpp_model_parameters", &[], Some(268_098_176.0)),
            ("llamacpp_max_context_size_tokens", &[], Some(2048.0)),
            ("llamacpp_slots", &[], Some(2.0)),
            ("llamacpp_requests_deferred", &[], Some(0.0)),
            (
                "llamacpp_server_info",
                &[("kind", "llama-server")],
                Some(1.0),
            ),
        ],
    );
}

#[test]
fn every_file_of_every_build_is_read() {
    // A few at a time: each has an exporter of its own.
    let builds = Mutex::new(BUILDS.iter());
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                loop {
                    let next = builds.lock().unwrap().next();
                    let Some(build) = next else { break };
                    let [idle, busy, after] = replay(build);
                    assert_shape(build, Stage::Idle, &idle);
                    assert_shape(build, Stage::Busy, &busy);
                    assert_shape(build, Stage::After, &after);
                    idle.assert_status("idle");
                    busy.assert_status("running");
                    after.assert_status("idle");
                    // One request: a prompt of 122 tokens, 120 generated.
                    assert_says(
                        build,
                        Stage::After,
                        &after,
                        &[
                            ("llamacpp_prompt_tokens_total", &[], Some(122.0)),
                            ("llamacpp_generated_tokens_total", &[], Some(120.0)),
                            ("llamacpp_requests_processing", &[], Some(0.0)),
                            ("llamacpp_slots_busy", &[], Some(0.0)),
                        ],
                    );
                }
            });
        }
    });
}

#[test]
fn every_build_on_record_is_played() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/recordings/llama-server");
    let mut there: Vec<_> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    there.sort();
    let mut played = BUILDS.map(str::to_owned);
    played.sort();
    assert_eq!(there, played);
}

// The tables below were worked out by hand from the recorded files, by these rules: generated
// tokens are `tokens_predicted_total` and, of slots that are processing, `n_decoded`; prompt
// tokens are `prompt_tokens_total` and, of slots that are processing and have not decoded yet,
// `n_prompt_tokens_processed`; the tokens in a slot are `n_prompt_tokens`.

const NONE: &[(&str, &str)] = &[];

#[test]
fn december_2025() {
    let [idle, busy, after] = replay(OLD);
    let model = &[("model", "gemma.gguf")];
    assert_says(
        OLD,
        Stage::Idle,
        &idle,
        &[
            (
                "llamacpp_status",
                &[("model", "gemma.gguf"), ("status", "idle")],
                Some(1.0),
            ),
            (
                "llamacpp_status",
                &[("model", "gemma.gguf"), ("status", "running")],
                Some(0.0),
            ),
            ("llamacpp_generated_tokens_total", model, Some(0.0)),
            ("llamacpp_prompt_tokens_total", model, Some(0.0)),
            ("llamacpp_decode_calls_total", model, Some(0.0)),
            ("llamacpp_max_sequence_tokens", model, Some(0.0)),
            ("llamacpp_requests_processing", model, Some(0.0)),
            ("llamacpp_slots_busy", model, Some(0.0)),
            (
                "llamacpp_server_info",
                &[("version", "b7376-380b4c984")],
                Some(1.0),
            ),
        ],
    );
    assert_says(
        OLD,
        Stage::Busy,
        &busy,
        &[
            ("llamacpp_status", &[("status", "running")], Some(1.0)),
            ("llamacpp_status", &[("status", "idle")], Some(0.0)),
            // None has ended; two are in the slot.
            ("llamacpp_generated_tokens_total", model, Some(2.0)),
            ("llamacpp_prompt_tokens_total", model, Some(122.0)),
            ("llamacpp_prompt_seconds_total", model, Some(0.37)),
            ("llamacpp_generation_seconds_total", model, Some(0.0)),
            ("llamacpp_decode_calls_total", model, Some(2.0)),
            ("llamacpp_max_sequence_tokens", model, Some(122.0)),
            ("llamacpp_requests_processing", model, Some(1.0)),
            ("llamacpp_slots_busy", model, Some(1.0)),
        ],
    );
    assert_says(
        OLD,
        Stage::After,
        &after,
        &[
            ("llamacpp_status", &[("status", "idle")], Some(1.0)),
            ("llamacpp_generated_tokens_total", model, Some(120.0)),
            ("llamacpp_prompt_tokens_total", model, Some(122.0)),
            ("llamacpp_prompt_seconds_total", model, Some(0.37)),
            ("llamacpp_generation_seconds_total", model, Some(3.784)),
            ("llamacpp_decode_calls_total", model, Some(121.0)),
            ("llamacpp_max_sequence_tokens", model, Some(241.0)),
            ("llamacpp_requests_processing", model, Some(0.0)),
            ("llamacpp_slots_busy", model, Some(0.0)),
        ],
    );
    for scrape in [&idle, &busy, &after] {
        // This build tells neither what a slot holds, nor cached tokens, nor drafts.
        for family in [
            "llamacpp_context_size_tokens",
            "llamacpp_context_tokens",
            "llamacpp_prompt_tokens_cached_total",
            "llamacpp_draft_tokens_total",
            "llamacpp_draft_tokens_accepted_total",
        ] {
            assert!(!scrape.has(family), "{family} in\n{scrape:?}");
        }
    }
}

#[test]
fn a_build_of_mid_2026() {
    let [idle, busy, after] = replay(MIDDLE);
    let model = &[("model", "/models/gemma-3-270m-it-Q4_K_M.gguf")];
    assert_says(
        MIDDLE,
        Stage::Idle,
        &idle,
        &[
            ("llamacpp_status", &[("status", "idle")], Some(1.0)),
            ("llamacpp_generated_tokens_total", model, Some(0.0)),
            ("llamacpp_prompt_tokens_total", model, Some(0.0)),
            ("llamacpp_decode_calls_total", model, Some(0.0)),
            ("llamacpp_max_sequence_tokens", model, Some(0.0)),
            ("llamacpp_requests_processing", model, Some(0.0)),
            ("llamacpp_slots_busy", model, Some(0.0)),
            (
                "llamacpp_model_info",
                &[("quantization", "Q4_K - Medium")],
                Some(1.0),
            ),
            (
                "llamacpp_server_info",
                &[("version", "b0-unknown")],
                Some(1.0),
            ),
            ("llamacpp_context_size_tokens", NONE, None),
        ],
    );
    assert_says(
        MIDDLE,
        Stage::Busy,
        &busy,
        &[
            ("llamacpp_status", &[("status", "running")], Some(1.0)),
            ("llamacpp_generated_tokens_total", model, Some(1.0)),
            // /metrics was read before the prompt was done, /slots after: the slot tells it.
            ("llamacpp_prompt_tokens_total", model, Some(122.0)),
            ("llamacpp_prompt_seconds_total", model, Some(0.0)),
            ("llamacpp_decode_calls_total", model, Some(1.0)),
            ("llamacpp_max_sequence_tokens", model, Some(118.0)),
            ("llamacpp_requests_processing", model, Some(1.0)),
            ("llamacpp_slots_busy", model, Some(1.0)),
            ("llamacpp_context_tokens", &[("slot", "1")], Some(122.0)),
            ("llamacpp_context_size_tokens", model, Some(122.0)),
        ],
    );
    assert_says(
        MIDDLE,
        Stage::After,
        &after,
        &[
            ("llamacpp_status", &[("status", "idle")], Some(1.0)),
            ("llamacpp_generated_tokens_total", model, Some(120.0)),
            ("llamacpp_prompt_tokens_total", model, Some(122.0)),
            ("llamacpp_prompt_seconds_total", model, Some(0.335)),
            ("llamacpp_generation_seconds_total", model, Some(3.484)),
            ("llamacpp_decode_calls_total", model, Some(121.0)),
            ("llamacpp_max_sequence_tokens", model, Some(241.0)),
            ("llamacpp_requests_processing", model, Some(0.0)),
            ("llamacpp_slots_busy", model, Some(0.0)),
            ("llamacpp_context_tokens", &[("slot", "1")], Some(241.0)),
            ("llamacpp_context_size_tokens", model, Some(241.0)),
            ("llamacpp_prompt_tokens_cached_total", NONE, None),
            ("llamacpp_draft_tokens_total", NONE, None),
        ],
    );
}

#[test]
fn october_2026() {
    let [idle, busy, after] = replay(NEW);
    let model = &[("model", "/models/gemma-3-270m-it-Q4_K_M.gguf")];
    assert_says(
        NEW,
        Stage::Idle,
        &idle,
        &[
            ("llamacpp_status", &[("status", "idle")], Some(1.0)),
            ("llamacpp_generated_tokens_total", model, Some(0.0)),
            ("llamacpp_prompt_tokens_total", model, Some(0.0)),
            ("llamacpp_prompt_tokens_cached_total", model, Some(0.0)),
            ("llamacpp_decode_calls_total", model, Some(0.0)),
            ("llamacpp_requests_processing", model, Some(0.0)),
            ("llamacpp_slots_busy", model, Some(0.0)),
            (
                "llamacpp_model_info",
                &[("quantization", "Q4_K - Medium")],
                Some(1.0),
            ),
            (
                "llamacpp_server_info",
                &[("version", "b0-unknown")],
                Some(1.0),
            ),
            ("llamacpp_context_size_tokens", NONE, None),
        ],
    );
    assert_says(
        NEW,
        Stage::Busy,
        &busy,
        &[
            ("llamacpp_status", &[("status", "running")], Some(1.0)),
            // The prompt is still to be read: it takes up its 118 cells, and nothing is computed.
            ("llamacpp_generated_tokens_total", model, Some(0.0)),
            ("llamacpp_prompt_tokens_total", model, Some(0.0)),
            ("llamacpp_decode_calls_total", model, Some(0.0)),
            ("llamacpp_requests_processing", model, Some(1.0)),
            ("llamacpp_slots_busy", model, Some(1.0)),
            ("llamacpp_context_tokens", &[("slot", "1")], Some(118.0)),
            ("llamacpp_context_size_tokens", model, Some(118.0)),
        ],
    );
    assert_says(
        NEW,
        Stage::After,
        &after,
        &[
            ("llamacpp_status", &[("status", "idle")], Some(1.0)),
            ("llamacpp_generated_tokens_total", model, Some(120.0)),
            ("llamacpp_prompt_tokens_total", model, Some(122.0)),
            ("llamacpp_prompt_tokens_cached_total", model, Some(0.0)),
            ("llamacpp_prompt_seconds_total", model, Some(4.32489)),
            ("llamacpp_generation_seconds_total", model, Some(6.97105)),
            ("llamacpp_draft_tokens_total", model, Some(0.0)),
            ("llamacpp_draft_tokens_accepted_total", model, Some(0.0)),
            ("llamacpp_decode_calls_total", model, Some(121.0)),
            ("llamacpp_max_sequence_tokens", model, Some(241.0)),
            ("llamacpp_requests_processing", model, Some(0.0)),
            ("llamacpp_slots_busy", model, Some(0.0)),
            ("llamacpp_context_tokens", &[("slot", "1")], Some(241.0)),
            ("llamacpp_context_size_tokens", model, Some(241.0)),
        ],
    );
}

#[test]
fn without_slots_what_is_in_flight_comes_from_the_decode_calls() {
    // Busy: two calls with one slot busy in each made two tokens; one request is being processed.
    let server = Server::recorded(OLD, Stage::Idle);
    server.answer(
        "/slots",
        crate::support::Answer::error(501, "This server does not support slots endpoint."),
    );
    let exporter = Exporter::watching(&server).start();
    exporter.after_polls(2);
    server.answer("/metrics", recorded_metrics(OLD, Stage::Busy));
    let busy = exporter.after_polls(2);
    // 1 × 2 since the last rest, less 0 ended, less one for the one request at work.
    busy.assert_value("llamacpp_generated_tokens_total", 1.0);
    server.answer("/metrics", recorded_metrics(OLD, Stage::After));
    let after = exporter.after_polls(2);
    after.assert_value("llamacpp_generated_tokens_total", 120.0);
    after.assert_errors(0);
}

fn recorded_metrics(build: &str, stage: Stage) -> crate::support::Answer {
    crate::support::Answer::exposition(crate::support::recordings::metrics(build, stage))
}

#[test]
fn the_same_state_is_always_the_same_text() {
    let server = Server::recorded(NEW, Stage::After);
    let exporter = Exporter::watching(&server).interval("1h").start();
    let first = exporter.until("the first poll", |scrape| scrape.polls() == 1);
    let second = exporter.scrape();
    // All but what is read from the exporter's own process at each scrape.
    let lines = |scrape: &Scrape| {
        let lines = scrape
            .text
            .lines()
            .filter(|line| !line.starts_with("process_"));
        lines.map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(lines(&first), lines(&second));
}
