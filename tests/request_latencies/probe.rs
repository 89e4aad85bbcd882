//! The probe: which answers are a token, which a failure, and how often it is sent.

use std::time::Duration;

use crate::support::recordings::Stage;
use crate::support::{Answer, Exporter, Scrape, Server};

const BUILD: &str = "b10068";
const COMPLETIONS: &str = "/v1/completions";
const TOKEN: &str = r#"data: {"choices":[{"text":"!"}],"timings":{"prompt_n":2,"predicted_n":1}}"#;
const FAILURE: &str = r#"data: {"error":{"code":500,"message":"Context size has been exceeded."}}"#;

/// Why probes failed, and how many; every other reason there is counts from zero.
fn failures(scrape: &Scrape) -> Vec<(String, f64)> {
    let all = scrape.all("llamacpp_probe_failures_total");
    assert!(all.is_empty() || all.len() == 6, "{all:?}");
    all.iter()
        .filter(|sample| sample.value > 0.0)
        .map(|sample| (sample.labels["reason"].clone(), sample.value))
        .collect()
}

fn probing(server: &Server) -> Exporter {
    Exporter::watching(server)
        .args(&["--probe-interval", "100ms", "--log-level", "debug"])
        .start()
}

fn stream(events: &[&str]) -> Answer {
    let events: String = events.iter().map(|event| format!("{event}\n\n")).collect();
    Answer::new(200, "text/event-stream", events).chunked()
}

#[test]
fn a_probe_measures_its_first_token_and_is_counted_separately() {
    let server = Server::recorded(BUILD, Stage::Idle);
    let late = Duration::from_millis(300);
    let answer = stream(&[": ping", TOKEN, "data: [DONE]"]).delayed(late);
    server.answer(COMPLETIONS, answer);
    let exporter = probing(&server);
    let scrape = exporter.until("the probe is counted", |scrape| {
        scrape.value("llamacpp_probe_tokens_total") == Some(1.0)
    });
    scrape.assert_value("llamacpp_probe_first_token_latency_seconds_count", 1.0);
    let took = scrape.value("llamacpp_probe_first_token_latency_seconds_sum");
    let took = took.unwrap();
    assert!(took >= late.as_secs_f64(), "{took}");
    scrape.assert_value("llamacpp_probe_prompt_tokens_total", 2.0);
    for of_requests in [
        "first_token_latency_seconds",
        "request_duration_seconds",
        "requests_total",
    ] {
        assert!(!scrape.has(&format!("llamacpp_{of_requests}")));
    }
    // Nothing but the probe has happened.
    let polls = exporter.scrape().polls();
    exporter.after_polls(polls + 20);
    assert_eq!(server.count(COMPLETIONS), 1);
    let sent = &server.requests_to(COMPLETIONS)[0];
    assert_eq!((sent.method.as_str(), sent.query.as_str()), ("POST", ""));
}

#[test]
fn an_answer_without_a_token_is_a_failure_with_its_reason() {
    let cases = [
        ("status", stream(&[FAILURE])),
        ("status", stream(&[TOKEN, FAILURE])),
        ("status", stream(&[r#"error: {"code":500,"message":"no"}"#])),
        ("status", Answer::error(503, "Loading model")),
        ("unauthorized", Answer::error(401, "Invalid API Key")),
        ("parse", stream(&["data: [DONE]"])),
        ("parse", Answer::html()),
        ("connect", stream(&[TOKEN]).cut_after(20)),
        ("too_large", stream(&[TOKEN]).and_a_gigabyte_more()),
    ];
    for (reason, answer) in cases {
        let server = Server::recorded(BUILD, Stage::Idle);
        server.answer(COMPLETIONS, answer);
        let exporter = probing(&server);
        let scrape = exporter.until(reason, |scrape| !failures(scrape).is_empty());
        assert_eq!(failures(&scrape), [(reason.to_owned(), 1.0)]);
        assert_ne!(scrape.value("llamacpp_probe_tokens_total"), Some(1.0));
    }
}

#[test]
fn a_server_whose_props_are_refused_is_not_probed() {
    let server = Server::recorded(BUILD, Stage::Idle);
    server.answer("/props", Answer::error(401, "Invalid API Key"));
    server.answer(COMPLETIONS, stream(&[TOKEN]));
    let exporter = probing(&server);
    exporter.until("it has tried", |scrape| !failures(scrape).is_empty());
    let polls = exporter.scrape().polls();
    let scrape = exporter.after_polls(polls + 20);
    assert_eq!(failures(&scrape), [("unauthorized".to_owned(), 1.0)]);
    assert_eq!(server.count(COMPLETIONS), 0);
}
