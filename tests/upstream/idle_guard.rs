//! Servers that sleep when idle: they are not woken, and not kept awake.

use std::ffi::OsStr;
use std::fs;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::support::exporter::Builder;
use crate::support::recordings::{self, MIDDLE, NEW, Stage};
use crate::support::{Answer, Exporter, Server, for_each, for_each_case, wait_until};
use crate::work_requests;

/// The server's `/props`, with a build number and with the model asleep or awake.
fn props(build_info: &str, is_sleeping: bool) -> Answer {
    let mut props = recordings::props(MIDDLE);
    props["build_info"] = json!(build_info);
    props["is_sleeping"] = json!(is_sleeping);
    Answer::json(props.to_string())
}

/// `build_info` before and from the build whose `/metrics` does not reset the idle timer.
const BEFORE_B10566: [&str; 3] = ["b7710-2bbe4c2cf", "b10565-abc", "b0-unknown"];
const FROM_B10566: [&str; 2] = ["b10566-abc", "b11549-abc"];

fn sleep(duration: Duration) {
    std::thread::sleep(duration);
}

#[test]
fn a_sleeping_server_is_left_asleep() {
    let cases: Vec<_> = BEFORE_B10566
        .iter()
        .map(|build| (*build, (*build, false)))
        .chain(FROM_B10566.iter().map(|build| (*build, (*build, true))))
        .collect();
    for_each_case(cases, |(build, metrics_are_harmless)| {
        let server = Server::recorded(MIDDLE, Stage::After);
        server.answer("/props", props(build, false));
        let exporter = Exporter::watching(&server).start();
        exporter.after_polls(2);
        server.answer("/props", props(build, true));
        let scrape = exporter.until("sleeping", |scrape| scrape.status() == Some("sleeping"));
        // The sleep began before the poll that noticed it.
        exporter.after_polls(1);
        let (metrics, slots) = (server.count("/metrics"), server.count("/slots"));
        let later = exporter.after_polls(8);
        assert_eq!(server.count("/slots"), slots, "{build}");
        if !metrics_are_harmless {
            assert_eq!(server.count("/metrics"), metrics, "{build}");
        }
        for scrape in [scrape, later] {
            assert!(scrape.up(), "{build}: {scrape:?}");
            scrape.assert_status("sleeping");
            scrape.assert_errors(0);
            // The counters from before its sleep remain.
            scrape.assert_values(&[
                ("llamacpp_generated_tokens_total", 120.0),
                ("llamacpp_decode_calls_total", 121.0),
            ]);
        }
        // A request wakes it.
        server.replay(MIDDLE, Stage::Busy);
        server.answer("/props", props(build, false));
        let scrape = exporter.after_polls(1);
        assert!(server.count("/metrics") > metrics, "{build}: asked at once");
        scrape.assert_status("running");
    });
}

/// While it slept, its rate was 0: tokens generated now are not spread over that time.
#[test]
fn the_first_rate_after_a_sleep_is_of_one_poll() {
    let server = Server::recorded(MIDDLE, Stage::After);
    server.answer("/props", props(BEFORE_B10566[0], false));
    let exporter = Exporter::watching(&server).interval("200ms").start();
    exporter.after_polls(1);
    server.answer("/props", props(BEFORE_B10566[0], true));
    exporter.until("sleeping", |scrape| scrape.status() == Some("sleeping"));
    let asleep = Instant::now();
    let scrape = exporter.after_polls(15);
    scrape.assert_value("llamacpp_tokens_per_second", 0.0);
    let metrics = recordings::metrics(MIDDLE, Stage::After);
    let metrics = recordings::with_values(&metrics, &[("tokens_predicted_total", "1120")]);
    server.answer("/metrics", Answer::exposition(metrics));
    server.answer("/props", props(BEFORE_B10566[0], false));
    let scrape = exporter.until("its work is seen", |scrape| {
        scrape.value("llamacpp_generated_tokens_total") == Some(1120.0)
    });
    let rate = scrape.value("llamacpp_tokens_per_second").unwrap();
    let over_the_whole_sleep = 1000.0 / asleep.elapsed().as_secs_f64();
    // It slept for fifteen polls; the rate is of the time between two.
    assert!(
        rate > 2.0 * over_the_whole_sleep,
        "{rate}, not {over_the_whole_sleep}"
    );
}

#[test]
fn a_server_that_is_asleep_from_the_start_is_left_asleep() {
    for_each(BEFORE_B10566, |build| {
        let server = Server::recorded(MIDDLE, Stage::After);
        server.answer("/props", props(build, true));
        let exporter = Exporter::watching(&server).start();
        let scrape = exporter.after_polls(3);
        scrape.assert_status("sleeping");
        assert_eq!(
            work_requests(&server).len(),
            0,
            "{build}: {:?}",
            work_requests(&server)
        );
    });
}

const SLEEP: Duration = Duration::from_secs(1);

fn with_sleep_timer(server: &Server) -> Builder {
    Exporter::watching(server).args(&["--sleep-idle-seconds", "1"])
}

#[test]
fn an_idle_server_is_not_polled_until_its_sleep_timer_expires() {
    for_each(BEFORE_B10566, |build| {
        let server = Server::recorded(MIDDLE, Stage::Idle);
        server.answer("/props", props(build, false));
        let exporter = with_sleep_timer(&server).start();
        exporter.after_polls(1);
        let last = work_requests(&server).last().unwrap().at;
        let asked = work_requests(&server).len();
        wait_until("a request after the sleep timer", || {
            work_requests(&server).len() > asked
        });
        let gap = work_requests(&server)[asked].at - last;
        assert!(gap >= SLEEP, "{build}: kept awake after {gap:?}");
        assert_eq!(work_requests(&server)[asked].path, "/metrics", "{build}");
        // What does not count as work is asked all the while.
        let polls = exporter.scrape().polls() as usize;
        assert!(server.count("/props") + 1 >= polls && server.count("/health") + 1 >= polls);
    });
}

/// A request has restarted the idle timer itself: one read after it does not keep the server awake.
#[test]
fn requests_in_the_log_end_the_wait() {
    let log = tempfile::NamedTempFile::new().unwrap();
    let server = Server::recorded(MIDDLE, Stage::Idle);
    let exporter = Exporter::watching(&server)
        .args(["--sleep-idle-seconds", "3600", "--log-file"].map(OsStr::new))
        .args([log.path()])
        .start();
    exporter.until("the log is followed", |scrape| {
        scrape.value("llamacpp_request_cancellations_total") == Some(0.0)
    });
    // The answers of the polls from then on are those of an idle server.
    let asked = work_requests(&server).len();
    exporter.after_polls(5);
    assert_eq!(work_requests(&server).len(), asked);

    server.replay(MIDDLE, Stage::After);
    fs::write(&log, recordings::file(MIDDLE, "log.txt")).unwrap();
    let scrape = exporter.until("the requests are counted", |scrape| {
        scrape.value("llamacpp_generated_tokens_total") == Some(120.0)
    });
    scrape.assert_status("idle");
    exporter.after_polls(5);
    let read = server.count("/metrics");
    exporter.after_polls(5);
    assert_eq!(server.count("/metrics"), read, "it may fall asleep again");
}

#[test]
fn requests_during_the_wait_are_counted_after_it() {
    let server = Server::recorded(MIDDLE, Stage::Idle);
    let exporter = with_sleep_timer(&server).start();
    exporter.after_polls(1);
    server.replay(MIDDLE, Stage::After);
    let scrape = exporter.until("the work is seen", |scrape| {
        scrape.value("llamacpp_generated_tokens_total") == Some(120.0)
    });
    scrape.assert_status("idle");
}

#[test]
fn a_server_that_falls_asleep_on_time_is_not_polled_again() {
    let server = Server::recorded(MIDDLE, Stage::After);
    let timer = Duration::from_secs(4);
    let exporter = Exporter::watching(&server)
        .args(&["--sleep-idle-seconds", "4"])
        .start();
    exporter.after_polls(1);
    let asked = work_requests(&server).len();
    // It falls asleep in good time: a machine that is busy may hold this test up.
    wait_until("no request for a while", || {
        let last = work_requests(&server).last().unwrap().at;
        Instant::now() - last >= timer / 4
    });
    server.answer("/props", props("b0-unknown", true));
    sleep(timer + SLEEP);
    assert_eq!(
        work_requests(&server).len(),
        asked,
        "{:?}",
        work_requests(&server)
    );
    let scrape = exporter.scrape();
    scrape.assert_status("sleeping");
    scrape.assert_value("llamacpp_generated_tokens_total", 120.0);
}

#[test]
fn a_busy_server_with_a_sleep_timer_is_read_at_every_poll() {
    let server = Server::recorded(MIDDLE, Stage::Busy);
    let exporter = with_sleep_timer(&server).start();
    exporter.after_polls(1);
    let before = server.count("/metrics");
    exporter.after_polls(6);
    assert!(server.count("/metrics") >= before + 6);
}

#[test]
fn from_b10566_on_metrics_are_read_at_every_poll() {
    for_each(FROM_B10566, |build| {
        let server = Server::recorded(NEW, Stage::Idle);
        server.answer("/props", props(build, false));
        let exporter = with_sleep_timer(&server).start();
        exporter.after_polls(1);
        let (metrics, slots) = (server.count("/metrics"), server.count("/slots"));
        exporter.after_polls(8);
        assert!(server.count("/metrics") >= metrics + 8, "{build}");
        assert_eq!(server.count("/slots"), slots, "{build}");
    });
}

#[test]
fn a_server_that_has_slept_once_may_sleep_again() {
    let server = Server::recorded(MIDDLE, Stage::After);
    server.answer("/props", props("b0-unknown", true));
    let exporter = Exporter::watching(&server).start();
    exporter.until("sleeping", |scrape| scrape.status() == Some("sleeping"));
    server.answer("/props", props("b0-unknown", false));
    exporter.after_polls(1);
    assert!(server.count("/metrics") > 0, "asked at once when it woke");
    // A server wakes for work, which may take a few polls to show.
    exporter.after_polls(10);
    // It is idle: from now on a request would keep it awake.
    let before = work_requests(&server).len();
    exporter.after_polls(10);
    let more = work_requests(&server).len() - before;
    assert!(more <= 1, "asked {more} times in ten polls");
}
