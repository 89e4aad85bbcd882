//! Docker Model Runner's records of requests: each is counted once, and its text is never exported.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::BufReader;

use crate::support::{Answer, Exporter, Server};
use llamacpp_exporter::requests::Requests;
use llamacpp_exporter::requests::records::{Records, RecordsUse};
use llamacpp_exporter::snapshot::RequestFigures;
use serde_json::{Value, json};

/// In every prompt and answer, and in no output of the exporter.
const MARKER: &str = "XqzzyMarkerOfTheText";

fn runner() -> Server {
    let server = Server::start();
    for (path, answer) in [
        (
            "/engines/ps",
            json!([{"backend_name": "llama.cpp", "model_name": "ai/m", "mode": "completion"}]),
        ),
        (
            "/models",
            json!([{"id": "sha256:0123456789abcdef", "tags": ["docker.io/ai/m:latest"], "config": {}}]),
        ),
        ("/engines/_configure", json!([])),
        ("/engines/df", json!({"models_disk_usage": 1})),
        ("/version", json!({"version": "v1.2.6"})),
    ] {
        server.answer_json(path, answer);
    }
    server.answer("/metrics", Answer::exposition("# No active runners\n"));
    server
}

fn record(id: usize, status: u16) -> Value {
    let response = json!({
        "choices": [{"message": {"content": format!("{MARKER} \"timings\":")}}],
        "timings": {"cache_n": 0, "prompt_n": 20, "prompt_ms": 40.25, "predicted_n": 10, "predicted_ms": 100.5},
    });
    let failed = json!({"error": {"message": MARKER}});
    json!({
        "id": format!("ai/m_{id}"), "model": "ai/m", "method": "POST", "url": "/v1/chat/completions",
        "request": format!("{{\"messages\":[{{\"content\":\"{MARKER}\"}}]}}"),
        "response": if status == 200 { response } else { failed }.to_string(),
        "error": if status == 200 { "" } else { MARKER },
        "timestamp": 1_764_000_000, "status_code": status, "user_agent": MARKER,
    })
}

fn keep(server: &Server, records: &[Value]) {
    let kept = json!([{"count": records.len(), "model": "ai/m", "config": {}, "records": records}]);
    server.answer_json("/engines/requests", kept);
}

const RECORDS: &[(&str, &str)] = &[("model", "docker.io/ai/m:latest"), ("source", "records")];

#[test]
fn each_record_is_counted_once_without_its_text() {
    let server = runner();
    keep(&server, &[record(1, 200), record(2, 200)]);
    let mut exporter = Exporter::watching(&server)
        .args(&["--log-level", "debug"])
        .start();
    let count = "llamacpp_request_duration_seconds_count";
    let scrape = exporter.until("it has looked at the records", |scrape| {
        scrape.get(count, RECORDS).is_some()
    });
    assert_eq!(
        scrape.get(count, RECORDS),
        Some(0.0),
        "what was there is history"
    );

    keep(
        &server,
        &[
            record(2, 200),
            record(3, 200),
            record(4, 503),
            record(5, 200),
        ],
    );
    let scrape = exporter.until("the new ones are counted", |scrape| {
        scrape.get(count, RECORDS) == Some(2.0)
    });
    for (name, value) in [
        ("llamacpp_first_token_latency_seconds_sum", 0.0805),
        ("llamacpp_request_duration_seconds_sum", 0.2815),
        ("llamacpp_time_per_output_token_seconds_sum", 0.201 / 9.0),
        ("llamacpp_request_prompt_tokens_sum", 40.0),
        ("llamacpp_request_generated_tokens_sum", 20.0),
        ("llamacpp_request_record_gaps_total", 0.0),
    ] {
        let shown = scrape.get(name, RECORDS).unwrap();
        assert!(
            (shown - value).abs() < 1e-12,
            "{name} is {shown}, not {value}"
        );
    }
    // The usual codes count from zero.
    for (code, count) in [("503", 1.0), ("429", 0.0), ("500", 0.0)] {
        let failed = [RECORDS, &[("code", code)]].concat();
        let shown = scrape.get("llamacpp_request_errors_total", &failed);
        assert_eq!(shown, Some(count), "{code}");
    }

    let ten: Vec<_> = (20..30).map(|id| record(id, 200)).collect();
    keep(&server, &ten);
    exporter.until("all are new: some may be lost", |scrape| {
        scrape.get(count, RECORDS) == Some(12.0)
            && scrape.get("llamacpp_request_record_gaps_total", RECORDS) == Some(1.0)
    });
    server.answer(
        "/engines/requests",
        Answer::json(format!(
            "[{{\"model\":\"ai/m\",\"records\":[{{\"id\":\"{MARKER}\",\"response\":{MARKER}"
        )),
    );
    exporter.wait_for_log(&["/engines/requests"]);
    let polls = exporter.scrape().polls();
    exporter.after_polls(polls + 3);

    assert!(exporter.is_alive());
    let page = exporter.get("/").body;
    let metrics = exporter.get("/metrics").body;
    for text in [metrics, page, exporter.output()] {
        assert!(!text.is_empty() && !text.contains(MARKER), "{text}");
    }
}

#[test]
fn disabled_records_are_not_requested() {
    let server = runner();
    keep(&server, &[]);
    let exporter = Exporter::watching(&server)
        .args(&["--no-request-records"])
        .start();
    exporter.after_polls(3);
    assert_eq!(server.count("/engines/requests"), 0);
}

/// What is counted of the records of a real Docker Model Runner.
fn counted(recording: &str) -> RequestFigures {
    let root = env!("CARGO_MANIFEST_DIR");
    let path = format!("{root}/tests/recordings/model-runner/{recording}/engines-requests.json");
    let file = BufReader::new(File::open(path).unwrap());
    let (mut records, requests) = (Records::default(), Requests::default());
    let name = |_: &str| Some("m".to_owned());
    let all = |_: &str, _: &str| RecordsUse::Count;
    records
        .take(b"[]".as_slice(), &requests, name, all)
        .unwrap();
    records.take(file, &requests, name, all).unwrap();
    (*requests.figures()[0].figures).clone()
}

/// The errors that were counted, by status.
fn errors(figures: &RequestFigures) -> BTreeMap<u16, u64> {
    let mut errors = figures.errors.clone();
    errors.retain(|_, count| *count > 0);
    errors
}

#[test]
fn recorded_requests_are_counted_by_their_own_timings() {
    let figures = counted("requests");
    // Five were answered, one of them to a client that hung up; the sums are the other four's.
    for (what, histogram, sum) in [
        ("first token", &figures.first_token, 0.287832),
        ("duration", &figures.duration, 4.89628),
        ("per token", &figures.per_token, 0.082818984183053),
        ("prompt tokens", &figures.prompt_tokens, 39.0),
        ("generated tokens", &figures.generated_tokens, 200.0),
    ] {
        let histogram = histogram.as_ref().unwrap();
        assert_eq!(histogram.count(), 4, "{what}");
        let shown = histogram.sum();
        assert!((shown - sum).abs() < 1e-9, "{what}: {shown} is not {sum}");
    }
    assert_eq!(errors(&figures), BTreeMap::from([(400, 2)]));
    assert_eq!(figures.record_gaps, Some(0));
}

#[test]
fn recorded_failures_within_a_stream_are_counted_by_their_code() {
    let figures = counted("requests-failed");
    assert_eq!(figures.duration.as_ref().unwrap().count(), 1);
    assert_eq!(errors(&figures), BTreeMap::from([(500, 5), (502, 1)]));
}

#[test]
fn a_log_file_without_effect_is_logged() {
    let server = runner();
    keep(&server, &[]);
    let exporter = Exporter::watching(&server)
        .args(&["--log-file", "/dev/null"])
        .start();
    exporter.until("it has looked twice", |scrape| {
        scrape.get("llamacpp_exporter_polls_total", &[]) >= Some(2.0)
    });
    let lines = exporter.logged(&["--log-file has no effect here"]);
    assert_eq!(lines.len(), 1, "{lines:?}");
}
