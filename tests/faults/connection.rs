//! Faults of the connection: refused, reset, lost, slow.

use std::collections::BTreeSet;
use std::time::Duration;

use crate::support::{Answer, ENDLESS, Exporter, Scrape, Server, for_each, wait_until};
use crate::{ENDPOINTS, HEALTH, Monitored, assert_fault, assert_fault_at, assert_healthy, server};

const REASONS: [&str; 6] = [
    "connect",
    "timeout",
    "status",
    "too_large",
    "parse",
    "unauthorized",
];

/// The endpoints whose errors are counted from 0.
fn counted_endpoints(scrape: &Scrape) -> BTreeSet<String> {
    let all = scrape.all("llamacpp_exporter_poll_errors_total");
    let endpoints: BTreeSet<_> = all.iter().map(|s| s.labels["endpoint"].clone()).collect();
    assert_eq!(all.len(), endpoints.len() * REASONS.len(), "{scrape:?}");
    for (endpoint, reason) in endpoints.iter().flat_map(|e| REASONS.map(|r| (e, r))) {
        let labels = [("endpoint", endpoint.as_str()), ("reason", reason)];
        let errors = scrape.get("llamacpp_exporter_poll_errors_total", &labels);
        assert_eq!(errors, Some(0.0), "{endpoint} {reason} in\n{scrape:?}");
    }
    endpoints
}

#[test]
fn the_errors_of_every_endpoint_that_will_be_requested_count_from_zero() {
    // The detection of the kind after a reconnect requests /engines/ps, /running and /api/ps as well.
    let swap = "/health /engines/ps /running /api/version /v1/models /api/metrics/activity";
    let cases = [
        (
            server(),
            "/health /engines/ps /running /api/ps /props /v1/models /metrics /slots",
        ),
        (
            Server::recorded_router("models-unloaded.json"),
            "/health /engines/ps /running /api/ps /props /models /metrics /slots",
        ),
        (
            Server::recorded_kind("model-runner", "unloaded"),
            "/health /engines/ps /version /models /engines/_configure /engines/df /metrics \
             /engines/requests",
        ),
        (Server::recorded_kind("llama-swap", "none"), swap),
        (
            Server::recorded_kind("ollama", "none-loaded"),
            "/health /engines/ps /running /api/ps /api/version /api/tags",
        ),
    ];
    for (server, endpoints) in cases {
        let exporter = Exporter::watching(&server).start();
        let scrape = exporter.after_polls(1);
        let expected = endpoints.split_whitespace().map(str::to_owned).collect();
        assert_eq!(counted_endpoints(&scrape), expected);
    }
}

#[test]
fn a_server_that_is_down_from_the_start_has_an_error_counter_of_each_reason() {
    let exporter = Exporter::with_url("http://127.0.0.1:9").start();
    let scrape = exporter.after_polls(1);
    let all = scrape.all("llamacpp_exporter_poll_errors_total");
    assert_eq!(all.len(), REASONS.len(), "{scrape:?}");
    assert!(all.iter().all(|sample| sample.labels["endpoint"] == HEALTH));
}

#[test]
fn a_server_that_refuses_connections_is_down() {
    let server = server();
    let monitored = Monitored::watching(&server);
    assert_healthy(&monitored.exporter.after_polls(1));
    server.stop();
    monitored.exporter.until("down", |scrape| scrape.down());
    let scrape = monitored.exporter.after_polls(3);
    assert!(scrape.errors_of(HEALTH)["connect"] >= 3, "{scrape:?}");
    monitored.assert_logged_once(&["endpoint=/health", "reason=connect"]);
    for family in &scrape.families {
        let of_the_exporter = ["llamacpp_up", "llamacpp_exporter_", "process_"];
        let expected = of_the_exporter
            .iter()
            .any(|start| family.0.starts_with(start));
        assert!(
            expected,
            "{} of a server that is gone:\n{scrape:?}",
            family.0
        );
    }
    server.restart();
    monitored.assert_recovered();
}

#[test]
fn a_server_started_after_the_exporter_is_found() {
    let server = server();
    server.stop();
    let monitored = Monitored::watching(&server);
    let scrape = monitored.exporter.after_polls(3);
    assert!(scrape.down() && scrape.status().is_none(), "{scrape:?}");
    monitored.assert_logged_once(&["endpoint=/health", "reason=connect"]);
    server.restart();
    monitored.assert_recovered();
}

#[test]
fn each_failure_of_a_server_is_logged_once() {
    let server = server();
    let monitored = Monitored::watching(&server);
    for times in 1..=3 {
        assert_healthy(&monitored.exporter.after_polls(1));
        server.stop();
        monitored.exporter.after_polls(3);
        assert_eq!(
            monitored
                .exporter
                .logged(&["endpoint=/health", "reason=connect"])
                .len(),
            times
        );
        server.restart();
    }
    monitored.assert_recovered();
}

#[test]
fn a_host_name_that_does_not_resolve_is_down() {
    let monitored = Monitored::of(Exporter::with_url("http://no-such-host.invalid:8080"));
    let scrape = monitored
        .exporter
        .until("an error", |scrape| scrape.errors() > 0);
    assert!(scrape.down(), "{scrape:?}");
    // A resolver that finds nobody to ask takes its time.
    let errors = scrape.errors_of(HEALTH);
    assert!(
        errors.contains_key("connect") || errors.contains_key("timeout"),
        "{scrape:?}"
    );
    monitored.assert_served_throughout();
}

#[test]
fn a_reset_in_place_of_an_answer() {
    assert_fault_at(&ENDPOINTS, Answer::reset(), "connect");
}

#[test]
fn a_connection_closed_within_the_body() {
    for_each(ENDPOINTS, |endpoint| {
        let answer = server().answer_of(endpoint).cut_after(10);
        assert_fault(endpoint, answer, "connect");
    });
}

#[test]
fn a_scrape_does_not_wait_for_a_poll() {
    for endpoint in ENDPOINTS {
        let server = server();
        server.answer(endpoint, Answer::never());
        let exporter = Exporter::watching(&server).timeout(ENDLESS).start();
        wait_until("the poll waits for its answer", || {
            server.count(endpoint) == 1
        });
        for _ in 0..20 {
            exporter.scrape();
        }
        assert!(server.requests_to(endpoint)[0].is_waiting(), "{endpoint}");
    }
}

#[test]
fn no_answer() {
    assert_fault_at(&ENDPOINTS, Answer::never(), "timeout");
}

#[test]
fn one_byte_per_second() {
    for_each(ENDPOINTS, |endpoint| {
        let answer = server()
            .answer_of(endpoint)
            .dripping(Duration::from_secs(1));
        assert_fault(endpoint, answer, "timeout");
    });
}
