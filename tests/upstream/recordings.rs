//! The recorded answers of 21 builds of llama-server, December 2025 to October 2026, through the
//! whole program: nothing in them is an error, and what is exported is what they say.

use crate::support::recordings::{BUILDS, MIDDLE, NEW, OLD, Stage};
use crate::support::{Exporter, Scrape, Server, for_each};
/// Plays the three stages of a recording, and returns a scrape of each.
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

#[test]
fn every_file_of_every_build_is_read() {
    for_each(BUILDS, |build| {
        let scrapes = replay(build);
        for scrape in &scrapes {
            scrape.assert_up();
            scrape.assert_values(&[
                ("llamacpp_model_size_bytes", 246_587_904.0),
                ("llamacpp_model_parameters", 268_098_176.0),
                ("llamacpp_max_context_size_tokens", 2048.0),
                ("llamacpp_slots", 2.0),
                ("llamacpp_requests_deferred", 0.0),
            ]);
            let kind = scrape.label("llamacpp_server_info", "kind");
            assert_eq!(kind, Some("llama-server"));
        }
        let [idle, busy, after] = scrapes;
        idle.assert_status("idle");
        busy.assert_status("running");
        after.assert_status("idle");
        // One request: a prompt of 122 tokens, 120 generated.
        after.assert_values(&[
            ("llamacpp_prompt_tokens_total", 122.0),
            ("llamacpp_generated_tokens_total", 120.0),
            ("llamacpp_requests_processing", 0.0),
            ("llamacpp_slots_busy", 0.0),
        ]);
    });
}

#[test]
fn every_recorded_build_is_replayed() {
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

/// The value of a series that must not be there.
const ABSENT: f64 = -1.0;

/// A metric, with one label besides the model, and its value when idle, busy, and after the
/// request.
type Row<'a> = (&'a str, [f64; 3]);

fn assert_recording(build: &str, model: &str, info: [(&str, &str); 2], rows: &[Row]) {
    let scrapes = replay(build);
    for (metric, label) in ["llamacpp_server_info", "llamacpp_model_info"]
        .iter()
        .zip(info)
    {
        let (label, value) = label;
        let found = scrapes[0].label(metric, label);
        assert_eq!(found.unwrap_or_default(), value, "{metric} {label}");
    }
    for (series, values) in rows {
        let (name, label) = series.split_once(' ').unwrap_or((series, ""));
        let labels = [Some(("model", model)), label.split_once('=')];
        let labels: Vec<_> = labels.into_iter().flatten().collect();
        for (scrape, value) in scrapes.iter().zip(values) {
            let expected = (*value != ABSENT).then_some(*value);
            assert_eq!(
                scrape.get(name, &labels),
                expected,
                "{series} in\n{scrape:?}"
            );
        }
    }
}

#[test]
fn a_build_of_december_2025() {
    let info = [("version", "b7376-380b4c984"), ("quantization", "")];
    let rows = [
        ("llamacpp_status status=idle", [1.0, 0.0, 1.0]),
        ("llamacpp_status status=running", [0.0, 1.0, 0.0]),
        ("llamacpp_requests_processing", [0.0, 1.0, 0.0]),
        ("llamacpp_slots_busy", [0.0, 1.0, 0.0]),
        ("llamacpp_generated_tokens_total", [0.0, 2.0, 120.0]),
        ("llamacpp_prompt_tokens_total", [0.0, 122.0, 122.0]),
        ("llamacpp_decode_calls_total", [0.0, 2.0, 121.0]),
        ("llamacpp_max_sequence_tokens", [0.0, 122.0, 241.0]),
        ("llamacpp_prompt_seconds_total", [0.0, 0.37, 0.37]),
        ("llamacpp_generation_seconds_total", [0.0, 0.0, 3.784]),
        // This build exports neither the tokens in a slot, nor cached tokens, nor drafts.
        ("llamacpp_context_size_tokens", [ABSENT, ABSENT, ABSENT]),
        ("llamacpp_context_tokens slot=1", [ABSENT, ABSENT, ABSENT]),
        (
            "llamacpp_prompt_tokens_cached_total",
            [ABSENT, ABSENT, ABSENT],
        ),
        ("llamacpp_draft_tokens_total", [ABSENT, ABSENT, ABSENT]),
        (
            "llamacpp_draft_tokens_accepted_total",
            [ABSENT, ABSENT, ABSENT],
        ),
    ];
    assert_recording(OLD, "gemma.gguf", info, &rows);
}

const MODEL: &str = "/models/gemma-3-270m-it-Q4_K_M.gguf";
const INFO: [(&str, &str); 2] = [("version", "b0-unknown"), ("quantization", "Q4_K - Medium")];

#[test]
fn a_build_of_mid_2026() {
    let rows = [
        // While busy, /metrics was read before the end of the prompt, /slots after it.
        ("llamacpp_status status=idle", [1.0, 0.0, 1.0]),
        ("llamacpp_status status=running", [0.0, 1.0, 0.0]),
        ("llamacpp_requests_processing", [0.0, 1.0, 0.0]),
        ("llamacpp_slots_busy", [0.0, 1.0, 0.0]),
        ("llamacpp_generated_tokens_total", [0.0, 1.0, 120.0]),
        ("llamacpp_prompt_tokens_total", [0.0, 122.0, 122.0]),
        ("llamacpp_decode_calls_total", [0.0, 1.0, 121.0]),
        ("llamacpp_max_sequence_tokens", [0.0, 118.0, 241.0]),
        ("llamacpp_prompt_seconds_total", [0.0, 0.0, 0.335]),
        ("llamacpp_generation_seconds_total", [0.0, 0.0, 3.484]),
        ("llamacpp_context_tokens slot=1", [ABSENT, 122.0, 241.0]),
        ("llamacpp_context_size_tokens", [ABSENT, 122.0, 241.0]),
        (
            "llamacpp_prompt_tokens_cached_total",
            [ABSENT, ABSENT, ABSENT],
        ),
        ("llamacpp_draft_tokens_total", [ABSENT, ABSENT, ABSENT]),
    ];
    assert_recording(MIDDLE, MODEL, INFO, &rows);
}

#[test]
fn a_build_of_october_2026() {
    let rows = [
        // While busy, the prompt is still to be processed: it has its 118 cells, nothing is
        // computed.
        ("llamacpp_status status=idle", [1.0, 0.0, 1.0]),
        ("llamacpp_status status=running", [0.0, 1.0, 0.0]),
        ("llamacpp_requests_processing", [0.0, 1.0, 0.0]),
        ("llamacpp_slots_busy", [0.0, 1.0, 0.0]),
        ("llamacpp_generated_tokens_total", [0.0, 0.0, 120.0]),
        ("llamacpp_prompt_tokens_total", [0.0, 0.0, 122.0]),
        ("llamacpp_decode_calls_total", [0.0, 0.0, 121.0]),
        ("llamacpp_max_sequence_tokens", [0.0, 0.0, 241.0]),
        ("llamacpp_prompt_tokens_cached_total", [0.0, 0.0, 0.0]),
        ("llamacpp_prompt_seconds_total", [0.0, 0.0, 4.32489]),
        ("llamacpp_generation_seconds_total", [0.0, 0.0, 6.97105]),
        ("llamacpp_draft_tokens_total", [0.0, 0.0, 0.0]),
        ("llamacpp_draft_tokens_accepted_total", [0.0, 0.0, 0.0]),
        ("llamacpp_context_tokens slot=1", [ABSENT, 118.0, 241.0]),
        ("llamacpp_context_size_tokens", [ABSENT, 118.0, 241.0]),
    ];
    assert_recording(NEW, MODEL, INFO, &rows);
}

#[test]
fn without_slots_tokens_in_flight_come_from_the_decode_calls() {
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
