//! Restarts of the server, loading, and endpoints that are disabled.

use crate::support::recordings::{self, NEW, OLD, Stage, with_values};
use crate::support::{Answer, Scrape, Server};
use crate::{ENDPOINTS, HEALTH, METRICS, MODELS, Monitored, PROPS, SLOTS, server};

#[test]
fn a_server_that_loads_its_model_is_up() {
    let server = server();
    let loading = Answer::error(503, "Loading model");
    for endpoint in ENDPOINTS {
        server.answer(endpoint, loading.clone());
    }
    let monitored = Monitored::watching(&server);
    let scrape = monitored.exporter.after_polls(2);
    scrape.assert_up();
    scrape.assert_errors(0);
    // Neither the model's name nor the server's version is known.
    scrape.assert_absent(&["llamacpp_status", "llamacpp_server_info"]);
    assert!(
        scrape
            .samples
            .iter()
            .all(|sample| !sample.labels.contains_key("model"))
    );
    monitored.exporter.assert_logged(1, &["the server is up"]);
    monitored
        .exporter
        .assert_logged(0, &["the server is up", "model="]);
    monitored
        .exporter
        .assert_logged(0, &["the model has loaded"]);
    server.answer(HEALTH, Answer::json(r#"{"status":"ok"}"#));
    server.answer(PROPS, Answer::json(recordings::file(OLD, "props.json")));
    server.answer(MODELS, Answer::json(recordings::file(OLD, "models.json")));
    server.replay(OLD, Stage::Busy);
    monitored
        .exporter
        .wait_for_log(&["the model has loaded", "model=gemma.gguf"]);
    monitored.assert_recovered();
}

#[test]
fn a_model_that_loads_again_keeps_its_name() {
    let server = server();
    let monitored = Monitored::watching(&server);
    let before = monitored.exporter.after_polls(1);
    let name = before.label("llamacpp_slots", "model");
    for endpoint in ENDPOINTS {
        server.answer(endpoint, Answer::error(503, "Loading model"));
    }
    let scrape = monitored
        .exporter
        .until("it loads", |scrape| scrape.status() == Some("loading"));
    let labels = [("model", name.unwrap()), ("status", "loading")];
    assert_eq!(
        scrape.get("llamacpp_status", &labels),
        Some(1.0),
        "{scrape:?}"
    );
}

#[test]
fn disabled_metrics_are_no_error_and_the_log_names_the_flag() {
    let server = server();
    server.answer(
        METRICS,
        Answer::error(501, "This server does not support metrics endpoint."),
    );
    let monitored = Monitored::watching(&server);
    let scrape = monitored.exporter.after_polls(3);
    scrape.assert_errors(0);
    scrape.assert_status("running");
    scrape.assert_value("llamacpp_slots_busy", 1.0);
    scrape.assert_absent(&["llamacpp_generated_tokens_total"]);
    scrape.assert_absent(&["llamacpp_decode_calls_total"]);
    monitored.assert_logged_once(&["is switched off", "--metrics"]);
    monitored.assert_served_throughout();
}

#[test]
fn disabled_slots_are_no_error() {
    let server = server();
    server.answer(
        SLOTS,
        Answer::error(501, "This server does not support slots endpoint."),
    );
    let monitored = Monitored::watching(&server);
    let scrape = monitored.exporter.after_polls(3);
    scrape.assert_errors(0);
    scrape.assert_status("running");
    scrape.assert_value("llamacpp_decode_calls_total", 2.0);
    monitored.assert_logged_once(&["--slots"]);
    monitored.assert_served_throughout();
}

#[test]
fn a_restart_resets_the_counters_and_the_rates() {
    let server = Server::recorded(NEW, Stage::After);
    let monitored = Monitored::watching(&server);
    let scrape = monitored.exporter.after_polls(2);
    scrape.assert_value("llamacpp_generated_tokens_total", 120.0);
    server.stop();
    monitored.exporter.until("down", |scrape| scrape.down());
    let low = with_values(
        &recordings::metrics(NEW, Stage::After),
        &[
            ("tokens_predicted_total", "7"),
            ("prompt_tokens_total", "9"),
            ("n_decode_total", "8"),
        ],
    );
    let restarted = Answer::new(200, "text/plain", low).header("Process-Start-Time-Unix", "99999");
    server.answer(METRICS, restarted);
    server.restart();
    let scrape = monitored.exporter.until("up again", Scrape::up);
    for rate in [
        "llamacpp_tokens_per_second",
        "llamacpp_prompt_tokens_per_second",
    ] {
        assert!(
            scrape.value(rate).is_none_or(|rate| rate == 0.0),
            "a rate after a restart: {scrape:?}"
        );
    }
    let scrape = monitored.exporter.after_polls(1);
    scrape.assert_values(&[
        ("llamacpp_generated_tokens_total", 7.0),
        ("llamacpp_prompt_tokens_total", 9.0),
        ("llamacpp_decode_calls_total", 8.0),
        ("llamacpp_tokens_per_second", 0.0),
    ]);
    monitored.assert_served_throughout();
}

#[test]
fn a_restart_between_two_polls_is_detected() {
    let server = Server::recorded(NEW, Stage::After);
    let monitored = Monitored::watching(&server);
    monitored.exporter.after_polls(2);
    // The new process has higher counters than the old one; only its start time differs.
    let more = with_values(
        &recordings::metrics(NEW, Stage::After),
        &[
            ("tokens_predicted_total", "100000"),
            ("n_decode_total", "100000"),
        ],
    );
    let restarted = Answer::new(200, "text/plain", more).header("Process-Start-Time-Unix", "99999");
    server.answer(METRICS, restarted);
    let scrape = monitored
        .exporter
        .until("the counters of the new process", |scrape| {
            scrape.value("llamacpp_generated_tokens_total") == Some(100_000.0)
        });
    let rate = scrape.value("llamacpp_tokens_per_second");
    assert!(
        rate.is_none_or(|rate| rate == 0.0),
        "a rate after a restart: {scrape:?}"
    );
    monitored.assert_served_throughout();
}
