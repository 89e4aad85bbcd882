//! What the log tells a user who starts the exporter for the first time.

use serde_json::json;

use crate::support::recordings::{MIDDLE, NEW, Stage};
use crate::support::{Answer, Exporter, Server, wait_until};

#[test]
fn the_first_line_says_what_is_watched_and_where_to_look() {
    let server = Server::recorded(NEW, Stage::Idle);
    let exporter = Exporter::watching(&server).start();
    let [line] = &exporter.logged(&["serving"])[..] else {
        panic!("{}", exporter.output());
    };
    let address = &exporter.address;
    for part in [
        format!("watching={}", server.url()),
        format!("metrics=http://{address}/metrics"),
        format!("page=http://{address}/"),
    ] {
        assert!(line.contains(&part), "{part} in {line}");
    }
}

#[test]
fn a_misspelled_variable_is_named_with_what_was_meant() {
    let server = Server::recorded(NEW, Stage::Idle);
    let exporter = Exporter::watching(&server)
        .env("LLAMACPP_BASEURL", "http://localhost:8080")
        .env("LLAMACPP_PORT_8080_TCP", "tcp://10.0.0.1:8080")
        .start();
    exporter.assert_logged(1, &["an environment variable is unknown"]);
    exporter.assert_logged(
        1,
        &["variable=LLAMACPP_BASEURL did_you_mean=LLAMACPP_BASE_URL"],
    );
}

#[test]
fn a_server_that_is_down_takes_one_line() {
    let exporter = Exporter::watching(&Server::stopped()).start();
    exporter.after_polls(2);
    let warnings = exporter.logged(&["WARN"]);
    let [line] = &warnings[..] else {
        panic!("{warnings:?}");
    };
    for part in [
        "the server is down",
        "reason=connect",
        "Connection refused",
        "advice=",
    ] {
        assert!(line.contains(part), "{part} in {line}");
    }
}

#[test]
fn requests_that_fail_alike_take_one_line() {
    let server = Server::recorded(MIDDLE, Stage::Idle);
    let refused = || Answer::new(401, "application/json", r#"{"error":{"code":401}}"#);
    for endpoint in ["/props", "/metrics", "/slots"] {
        server.answer(endpoint, refused());
    }
    let exporter = Exporter::watching(&server).start();
    exporter.after_polls(2);
    exporter.assert_logged(1, &["a request failed"]);
    exporter.assert_logged(
        1,
        &["endpoint=/props,/metrics,/slots", "reason=unauthorized"],
    );
}

#[test]
fn a_router_that_is_up_names_its_models() {
    let server = Server::start();
    server.answer_json("/health", r#"{"status":"ok"}"#);
    server.answer_json(
        "/props",
        json!({"role": "router", "build_info": "b10068-abc"}),
    );
    let model = |id: String| json!({"id": id, "status": {"value": "unloaded"}});
    let models: Vec<_> = (0..10).map(|index| model(format!("m{index}"))).collect();
    server.answer_json("/models", json!({"data": models}));
    let exporter = Exporter::watching(&server).start();
    exporter.after_polls(1);
    exporter.assert_logged(
        1,
        &[
            "the server is up",
            "m0 (unloaded), m1 (unloaded)",
            "m7 (unloaded), 2 more",
        ],
    );
}

#[test]
fn an_exporter_is_not_taken_for_a_llama_server() {
    let server = Server::recorded(NEW, Stage::Idle);
    // With llama-server's own families.
    let watched = Exporter::watching(&server)
        .args(["--llama-server-metrics"])
        .start();
    wait_until("its first poll", || watched.polls() > 0);
    let exporter = Exporter::with_url(&format!("http://{}", watched.address)).start();
    let scrape = exporter.after_polls(1);
    assert_eq!(scrape.value("llamacpp_up"), Some(0.0));
    exporter.assert_logged(
        1,
        &[
            "the server is down",
            "has metrics of llamacpp_exporter, not of llama-server",
        ],
    );
}

#[test]
fn after_the_first_polls_one_line_says_what_would_give_more() {
    let server = Server::recorded(NEW, Stage::Idle);
    let exporter = Exporter::watching(&server).start();
    exporter.wait_for_log(&["metrics have values; the page and --check", "--log-file"]);
    exporter.assert_logged(1, &["metrics have values"]);
    let down = Exporter::watching(&Server::stopped()).start();
    down.after_polls(3);
    down.assert_logged(0, &["metrics have values"]);
}
