//! How often, in which order and by which requests a llama-server is polled.

use std::time::{Duration, Instant};

use crate::most_waiting;
use crate::support::recordings::{self, MIDDLE, NEW, OLD, Stage};
use crate::support::{Answer, Exporter, Server, wait_until};

#[test]
fn each_endpoint_is_polled_once_an_interval() {
    let server = Server::recorded(NEW, Stage::Busy);
    let start = Instant::now();
    let exporter = Exporter::watching(&server).interval("300ms").start();
    exporter.after_polls(6);
    let requests = server.requests();
    let ticks = start.elapsed().as_millis() as usize / 300 + 1;
    for path in ["/health", "/props", "/metrics", "/slots"] {
        let asked = requests.iter().filter(|request| request.path == path);
        let asked = asked.count();
        assert!(asked >= 6, "{path} is asked at every poll");
        assert!(asked <= ticks, "{path}: {asked} times in {ticks} ticks");
    }
}

#[test]
fn polls_longer_than_the_interval_do_not_overlap() {
    let server = Server::recorded(NEW, Stage::Busy);
    for path in ["/health", "/props", "/metrics", "/slots"] {
        server.answer(
            path,
            server.answer_of(path).delayed(Duration::from_millis(100)),
        );
    }
    let exporter = Exporter::watching(&server).start();
    exporter.after_polls(4);
    assert_eq!(most_waiting(&server.requests()), 1);
}

#[test]
fn the_models_are_read_once() {
    let server = Server::recorded(NEW, Stage::Busy);
    let exporter = Exporter::watching(&server).start();
    exporter.after_polls(10);
    assert!(
        server.count("/v1/models") <= 2,
        "{} times",
        server.count("/v1/models")
    );
}

#[test]
fn a_load_is_counted_whose_model_has_no_name_yet() {
    let server = Server::recorded(NEW, Stage::Idle);
    server.answer_everything(Answer::error(503, "Loading model"));
    let exporter = Exporter::watching(&server).start();
    exporter
        .after_polls(3)
        .assert_absent(&["llamacpp_model_loads_total"]);
    server.answer_by_script();
    let scrape = exporter.until("idle", |scrape| scrape.status() == Some("idle"));
    scrape.assert_value("llamacpp_model_loads_total", 1.0);
    let loading = scrape.get("llamacpp_status_seconds_total", &[("status", "loading")]);
    assert!(loading > Some(0.1), "two polls and more: {loading:?}");
}

#[test]
fn slots_are_read_only_while_requests_are_processed() {
    for build in [OLD, MIDDLE, NEW] {
        let server = Server::recorded(build, Stage::Idle);
        let exporter = Exporter::watching(&server).start();
        exporter.after_polls(2);
        let at_rest = server.count("/slots");
        exporter.after_polls(5);
        assert_eq!(server.count("/slots"), at_rest, "{build}: nothing goes on");
        server.replay(build, Stage::Busy);
        exporter.after_polls(5);
        let busy = server.count("/slots");
        assert!(
            busy >= at_rest + 5,
            "{build}: every poll while something goes on"
        );
        server.replay(build, Stage::After);
        let changed = server.count("/slots");
        exporter.after_polls(2);
        let after = server.count("/slots");
        // (The poll that was under way may have been busy still.)
        assert!(
            after > busy && after <= changed + 2,
            "{build}: once more for the end"
        );
        exporter.after_polls(5);
        assert_eq!(server.count("/slots"), after, "{build}: at rest again");
    }
}

#[test]
fn slots_are_read_right_after_metrics() {
    let server = Server::recorded(NEW, Stage::Busy);
    let exporter = Exporter::watching(&server).start();
    exporter.after_polls(5);
    let requests = server.requests();
    let pairs = requests.windows(2).filter(|pair| pair[1].path == "/slots");
    assert!(pairs.clone().count() >= 5);
    for pair in pairs {
        assert_eq!(pair[0].path, "/metrics");
    }
}

#[test]
fn a_request_between_two_polls_makes_the_slots_read_once() {
    let server = Server::recorded(NEW, Stage::Idle);
    let exporter = Exporter::watching(&server).start();
    exporter.after_polls(2);
    let before = server.count("/slots");
    server.replay(NEW, Stage::After);
    let scrape = exporter.after_polls(3);
    assert_eq!(server.count("/slots"), before + 1);
    scrape.assert_value("llamacpp_context_size_tokens", 241.0);
}

#[test]
fn requests_have_only_the_expected_headers() {
    let server = Server::recorded(OLD, Stage::Busy);
    let exporter = Exporter::watching(&server).start();
    exporter.after_polls(3);
    for request in server.requests() {
        assert_eq!(request.method, "GET");
        assert_eq!(request.header("Host"), Some(server.authority().as_str()));
        assert_eq!(request.header("Accept-Encoding"), None, "{request:?}");
        assert_eq!(request.header("Authorization"), None, "{request:?}");
        assert_eq!(request.header("Cookie"), None, "{request:?}");
        let agent = request.header("User-Agent").unwrap_or_default();
        assert!(agent.starts_with("llamacpp-exporter/"), "{agent}");
    }
}

#[test]
fn the_requests_of_a_poll_share_a_connection() {
    let server = Server::recorded(OLD, Stage::Busy);
    let exporter = Exporter::watching(&server).interval("200ms").start();
    exporter.after_polls(5);
    let requests = server.requests();
    let connections = requests
        .iter()
        .map(|request| request.connection)
        .max()
        .unwrap();
    let polls = server.count("/health");
    assert!(requests.len() >= 4 * (polls - 1), "{requests:?}");
    // The first poll asks for what is not there, too, which may cost it a second one.
    assert!(
        connections <= polls + 1,
        "{connections} connections in {polls} polls: {requests:?}"
    );
    // A connection that is kept open holds one of the server's threads.
    wait_until("no connection is open between two polls", || {
        server.open_connections() == 0
    });
}

#[test]
fn the_key_is_sent_with_every_request() {
    let server = Server::recorded(OLD, Stage::Busy);
    let exporter = Exporter::watching(&server)
        .env("LLAMACPP_API_KEY", "sk-secret")
        .start();
    exporter.after_polls(2);
    for request in server.requests_to("/metrics") {
        assert_eq!(
            request.header("Authorization"),
            Some("Bearer sk-secret"),
            "{request:?}"
        );
    }
}

#[test]
fn base_urls_with_the_same_host_and_port_have_distinct_labels() {
    let server = Server::start();
    for path in ["/a", "/b"] {
        for (endpoint, file) in [
            ("/props", "props.json"),
            ("/v1/models", "models.json"),
            ("/slots", "slots-busy.json"),
        ] {
            let answer = Answer::json(recordings::file(OLD, file));
            server.answer(&format!("{path}{endpoint}"), answer);
        }
        let ok = Answer::json(r#"{"status":"ok"}"#);
        server.answer(&format!("{path}/health"), ok);
        let metrics = Answer::exposition(recordings::metrics(OLD, Stage::Busy));
        server.answer(&format!("{path}/metrics"), metrics);
    }
    let other = Server::recorded(OLD, Stage::Busy);
    let second = server.url() + "/b";
    let arguments = ["--base-url", &second, "--base-url", &other.url()];
    let exporter = Exporter::with_url(&(server.url() + "/a"))
        .args(&arguments)
        .start();
    // A series that stands twice fails every scrape.
    let scrape = exporter.until("all are up", |scrape| {
        let up = scrape.all("llamacpp_up");
        up.len() == 3 && up.iter().all(|sample| sample.value == 1.0)
    });
    let address = server.authority();
    for label in [
        &format!("{address}/a"),
        &format!("{address}/b"),
        &other.authority(),
    ] {
        let labels: &[(&str, &str)] = &[("server", label)];
        let slots = scrape.get("llamacpp_slots", labels);
        assert_eq!(slots, Some(2.0), "{label}: {scrape:?}");
    }
}
