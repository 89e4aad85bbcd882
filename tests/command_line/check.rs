//! `--check`: the report and its exit code.

use std::net::TcpListener;

use serde_json::json;

use crate::support::exporter::Output;
use crate::support::recordings::{NEW, Stage};
use crate::support::{Answer, Server, assert_contains};

/// A check with a short time between its polls.
fn check(arguments: &[&str]) -> Output {
    let interval = ["--check", "--no-gpu", "--interval", "100ms"];
    crate::called(&[&interval, arguments].concat(), &[])
}

#[test]
fn check_reports_the_server_and_its_metrics() {
    let server = Server::recorded(NEW, Stage::After);
    let ended = check(&["--base-url", &server.url()]);
    ended.assert_code(0);
    for word in [
        server.url().as_str(),
        "llama-server",
        "/models/gemma-3-270m-it-Q4_K_M.gguf",
        "idle",
        "llamacpp_generated_tokens_total",
        "120",
        "llamacpp_prompt_tokens_total",
        "122",
        "llamacpp_model_parameters",
        // It needs two polls.
        "llamacpp_prompt_tokens_per_second",
    ] {
        assert!(
            ended.stdout.contains(word),
            "{word} is not in\n{}",
            ended.stdout
        );
    }
    // It polls twice, and serves nothing.
    assert_eq!(server.count("/health"), 2);
    assert_eq!(server.count("/metrics"), 2);
}

#[test]
fn check_names_the_flag_of_a_disabled_endpoint() {
    let server = Server::recorded(NEW, Stage::After);
    server.answer(
        "/metrics",
        Answer::error(501, "This server does not support metrics endpoint."),
    );
    let ended = check(&["--base-url", &server.url()]);
    ended.assert_code(0);
    assert_contains(&ended.stdout, &["--metrics"]);
    let server = Server::recorded(NEW, Stage::After);
    server.answer(
        "/slots",
        Answer::error(501, "This server does not support slots endpoint."),
    );
    let ended = check(&["--base-url", &server.url()]);
    ended.assert_code(0);
    assert_contains(&ended.stdout, &["--slots"]);
}

#[test]
fn check_reports_a_missing_key() {
    let server = Server::recorded(NEW, Stage::After);
    for path in ["/props", "/metrics", "/slots"] {
        server.answer(path, Answer::error(401, "Invalid API Key"));
    }
    let ended = check(&["--base-url", &server.url()]);
    ended.assert_code(1);
    assert_contains(
        &ended.stdout,
        &["LLAMACPP_API_KEY", "result: failed", "the key"],
    );
}

#[test]
fn check_fails_when_no_server_answers() {
    let nobody = Server::stopped();
    let ended = check(&["--base-url", &nobody.url()]);
    ended.assert_code(1);
    let report = ended.stdout + &ended.stderr;
    assert!(report.contains(&nobody.url()), "{report}");
    assert!(report.contains("refused"), "no reason: {report}");
}

#[test]
fn check_ends_although_an_endpoint_never_answers() {
    for path in ["/metrics", "/slots", "/props"] {
        let server = Server::recorded(NEW, Stage::Busy);
        server.answer(path, Answer::never());
        let ended = check(&["--base-url", &server.url(), "--timeout", "300ms"]);
        assert_eq!(server.count(path), 1, "{path}: it is not requested again");
        ended.assert_code(0);
    }
}

#[test]
fn check_does_not_bind_the_address() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let server = Server::recorded(NEW, Stage::After);
    let ended = check(&["--base-url", &server.url(), "--addr", &address]);
    ended.assert_code(0);
}

/// It would end the log for the exporter that runs: Docker Model Runner sends new lines to no other
/// reader once one has left.
#[test]
fn check_does_not_follow_the_log_of_docker_model_runner() {
    let server = Server::start();
    let runner = json!({"backend_name": "llama.cpp", "model_name": "ai/a", "mode": "completion"});
    for (path, answer) in [
        ("/engines/ps", json!([runner])),
        ("/models", json!([{"id": "sha256:a", "tags": ["ai/a"]}])),
        ("/engines/_configure", json!([])),
        ("/engines/df", json!({})),
        ("/engines/requests", json!([])),
    ] {
        server.answer_json(path, answer);
    }
    server.answer("/metrics", Answer::exposition("# No active runners\n"));
    server.answer("/logs", Answer::new(200, "text/plain", "a line\n"));
    let ended = check(&["--base-url", &server.url()]);
    assert_contains(&ended.stdout, &["model-runner"]);
    let read = server.requests_to("/logs");
    assert!(!read.is_empty());
    assert!(
        read.iter().all(|request| request.query.is_empty()),
        "{read:?}"
    );
}
