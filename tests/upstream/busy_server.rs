//! A server too busy to answer in time: it is up, and no second request waits in its queue.

use std::time::Duration;

use crate::support::recordings::{OLD, Stage};
use crate::support::server::Request;
use crate::support::{Answer, Exporter, Scrape, Server, for_each_case, wait_until};
use crate::{most_waiting, work_requests};

/// What is known of a server that is too busy to answer.
fn assert_busy(scrape: &Scrape) {
    scrape.assert_up();
    scrape.assert_status("running");
    // The last counters stand; no rate is known.
    scrape.assert_values(&[
        ("llamacpp_generated_tokens_total", 2.0),
        ("llamacpp_prompt_tokens_total", 122.0),
        ("llamacpp_decode_calls_total", 2.0),
    ]);
    scrape.assert_absent(&[
        "llamacpp_tokens_per_second",
        "llamacpp_prompt_tokens_per_second",
    ]);
}

#[test]
fn a_request_that_timed_out_stays_open_and_is_the_only_one() {
    let cases = [("/metrics", "/metrics"), ("/slots", "/slots")];
    for_each_case(cases, |path| {
        let server = Server::recorded(OLD, Stage::Busy);
        let healthy = server.answer_of(path);
        let exporter = Exporter::watching(&server).timeout("2s").start();
        exporter.after_polls(2);
        server.answer(path, Answer::never());
        exporter.until("a time-out", |scrape| {
            scrape.errors_of(path).contains_key("timeout")
        });
        let asked = work_requests(&server).len();
        let (health, props) = (server.count("/health"), server.count("/props"));
        let before = exporter.scrape().polls();
        let scrape = exporter.after_polls(15);
        assert_busy(&scrape);
        // Nothing holds the polls up but the one time-out.
        scrape.assert_errors(1);
        assert_eq!(
            work_requests(&server).len(),
            asked,
            "no other request of that kind"
        );
        let open: Vec<_> = server
            .requests()
            .into_iter()
            .filter(Request::is_waiting)
            .collect();
        assert_eq!(open.len(), 1, "{open:?}");
        assert!(
            open[0].path == path && !open[0].was_disconnected(),
            "{open:?}"
        );
        let polls = (scrape.polls() - before) as usize;
        assert!(
            server.count("/health") + 1 >= health + polls,
            "endpoints that always answer are polled"
        );
        assert!(
            server.count("/props") + 1 >= props + polls,
            "endpoints that always answer are polled"
        );
        // The batch is done: the server answers.
        server.answer(path, healthy);
        let scrape = exporter.after_polls(2);
        assert!(scrape.has("llamacpp_tokens_per_second"), "{scrape:?}");
        scrape.assert_errors(1);
        let before = (server.count("/metrics"), server.count("/slots"));
        exporter.after_polls(3);
        assert!(server.count("/metrics") >= before.0 + 3 && server.count("/slots") >= before.1 + 3);
    });
}

#[test]
fn a_slow_server_never_has_two_requests_waiting() {
    let cases = [("/metrics", "/metrics"), ("/slots", "/slots")];
    for_each_case(cases, |path| {
        let server = Server::recorded(OLD, Stage::Busy);
        server.answer(
            path,
            server.answer_of(path).delayed(Duration::from_millis(1800)),
        );
        let exporter = Exporter::watching(&server).timeout("800ms").start();
        wait_until("three requests", || server.count(path) >= 3);
        let scrape = exporter.scrape();
        scrape.assert_up();
        scrape.assert_status("running");
        assert_eq!(most_waiting(&work_requests(&server)), 1);
        assert!(
            !work_requests(&server).iter().any(Request::was_disconnected),
            "{:?}",
            work_requests(&server)
        );
        // A state is logged when it changes.
        exporter.assert_logged(1, &[&format!("endpoint={path}"), "reason=timeout"]);
    });
}

/// ik_llama.cpp answers `/health` behind the prompt at hand; a wedged server of any kind may do so.
#[test]
fn a_server_whose_health_waits_behind_a_prompt_is_up_and_requested_once() {
    let server = Server::recorded(OLD, Stage::Busy);
    let queue = ["/health", "/metrics", "/slots"];
    let healthy = queue.map(|path| server.answer_of(path));
    let exporter = Exporter::watching(&server).timeout("1s").start();
    exporter.after_polls(2);
    let before = queue.map(|path| server.count(path));
    for path in queue {
        server.answer(path, Answer::never());
    }
    exporter.until("a time-out", |scrape| scrape.errors() > 0);
    let scrape = exporter.after_polls(20);
    assert_busy(&scrape);
    let errors = scrape.errors();
    // Where /metrics was the first to wait, /health waits beside it.
    let open = queue.map(|path| server.requests_to(path));
    let open = open.map(|requests| requests.iter().filter(|r| r.is_waiting()).count());
    assert!(open.iter().all(|count| *count <= 1), "{open:?}");
    assert!((1..=2).contains(&open.iter().sum::<usize>()), "{open:?}");
    assert_eq!(errors as usize, open.iter().sum::<usize>(), "{scrape:?}");
    assert!(!server.requests().iter().any(Request::was_disconnected));
    for (path, answer) in queue.into_iter().zip(healthy) {
        server.answer(path, answer);
    }
    let scrape = exporter.until("rates are known again", |scrape| {
        scrape.has("llamacpp_tokens_per_second")
    });
    scrape.assert_errors(errors);
    exporter.after_polls(2);
    for (path, before) in queue.into_iter().zip(before) {
        assert!(server.count(path) > before + 1, "{path} is polled again");
    }
}

/// As when a proxy on the way loses it: the connection stays, and nothing ever comes.
#[test]
fn a_lost_health_request_does_not_make_the_server_down() {
    let server = Server::recorded(OLD, Stage::Busy);
    let healthy = server.answer_of("/health");
    let exporter = Exporter::watching(&server).timeout("1s").start();
    exporter.after_polls(2);
    server.answer("/health", Answer::lost());
    exporter.until("a time-out", |scrape| {
        scrape.errors_of("/health").contains_key("timeout")
    });
    server.answer("/health", healthy);
    let asked = server.count("/health");
    let scrape = exporter.after_polls(5);
    assert_busy(&scrape);
    assert_eq!(server.count("/health"), asked, "it may still wait");
}

#[test]
fn a_server_that_stops_with_a_request_open_is_down_and_found_again() {
    let server = Server::recorded(OLD, Stage::Busy);
    let healthy = server.answer_of("/metrics");
    let exporter = Exporter::watching(&server).timeout("1s").start();
    exporter.after_polls(2);
    server.answer("/metrics", Answer::never());
    exporter.until("a time-out", |scrape| scrape.errors() > 0);
    server.stop();
    let scrape = exporter.until("down", |scrape| scrape.down());
    scrape.assert_absent(&["llamacpp_generated_tokens_total"]);
    server.answer("/metrics", healthy);
    server.restart();
    let before = server.count("/metrics");
    let scrape = exporter.after_polls(2);
    assert!(server.count("/metrics") > before);
    scrape.assert_value("llamacpp_generated_tokens_total", 2.0);
}

#[test]
fn a_server_that_never_answers_is_not_flooded() {
    let server = Server::recorded(OLD, Stage::Busy);
    for path in [
        "/health",
        "/props",
        "/v1/models",
        "/metrics",
        "/slots",
        "/stats",
        "/v1/stats",
    ] {
        server.answer(path, Answer::never());
    }
    let exporter = Exporter::watching(&server).timeout("400ms").start();
    let scrape = exporter.after_polls(5);
    assert!(scrape.down(), "{scrape:?}");
    assert!(most_waiting(&work_requests(&server)) <= 1);
    assert!(most_waiting(&server.requests()) <= 2);
    assert!(!server.requests().iter().any(Request::was_disconnected));
}
