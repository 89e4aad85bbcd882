//! What the exporter must not do to the server that it watches: load it, wake it, keep it awake,
//! or leave questions waiting in it. The scripted server keeps a record of what it was asked.

mod support;

use serde_json::json;
use std::time::{Duration, Instant};
use support::exporter::Start;
use support::recordings::{self, MIDDLE, NEW, OLD, Stage};
use support::server::{Ending, Request};
use support::{Answer, Exporter, Scrape, Server, all_at_once, eventually};

/// The server's `/props`, with a build number and with the model asleep or awake.
fn props(build_info: &str, is_sleeping: bool) -> Answer {
    let mut props = recordings::props(MIDDLE);
    props["build_info"] = json!(build_info);
    props["is_sleeping"] = json!(is_sleeping);
    Answer::json(props.to_string())
}

/// Which build a server says it is, and whether that lets `/metrics` be read without harm.
const BEFORE: [&str; 3] = ["b7710-2bbe4c2cf", "b10565-abc", "b0-unknown"];
const FROM: [&str; 2] = ["b10566-abc", "b11549-abc"];

fn sleep(duration: Duration) {
    std::thread::sleep(duration);
}

/// The most questions, of these, that waited in the server at one moment.
fn most_waiting(requests: &[Request]) -> usize {
    let mut changes = Vec::new();
    for request in requests {
        changes.push((request.at, 1));
        if let Ending::Answered(end) | Ending::HungUp(end) = request.ending {
            changes.push((end, -1));
        }
    }
    changes.sort();
    let waiting = changes.iter().scan(0_i32, |waiting, (_, change)| {
        *waiting += change;
        Some(*waiting)
    });
    waiting.max().unwrap_or(0) as usize
}

/// Questions that wait behind the model's work.
fn queued(server: &Server) -> Vec<Request> {
    let mut requests = server.requests();
    requests.retain(|request| ["/metrics", "/slots"].contains(&request.path.as_str()));
    requests
}

// How often.

#[test]
fn it_asks_no_more_often_than_it_was_told_to() {
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
fn polls_that_take_longer_than_the_interval_do_not_pile_up() {
    let server = Server::recorded(NEW, Stage::Busy);
    for path in ["/health", "/props", "/metrics", "/slots"] {
        server.answer(
            path,
            server.script(path).delayed(Duration::from_millis(100)),
        );
    }
    let exporter = Exporter::watching(&server).start();
    exporter.after_polls(4);
    assert_eq!(most_waiting(&server.requests()), 1);
}

#[test]
fn what_the_model_is_does_not_change_and_is_not_asked_again() {
    let server = Server::recorded(NEW, Stage::Busy);
    let exporter = Exporter::watching(&server).start();
    exporter.after_polls(10);
    assert!(
        server.count("/v1/models") <= 2,
        "{} times",
        server.count("/v1/models")
    );
}

// Slots.

#[test]
fn slots_are_read_only_while_something_goes_on() {
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
fn a_request_that_began_and_ended_between_two_polls_is_reason_to_read_the_slots_once() {
    let server = Server::recorded(NEW, Stage::Idle);
    let exporter = Exporter::watching(&server).start();
    exporter.after_polls(2);
    let before = server.count("/slots");
    server.replay(NEW, Stage::After);
    let scrape = exporter.after_polls(3);
    assert_eq!(server.count("/slots"), before + 1);
    assert_eq!(
        scrape.value("llamacpp_context_size_tokens"),
        Some(241.0),
        "{scrape:?}"
    );
}

// Sleep.

#[test]
fn a_sleeping_server_is_left_asleep() {
    let cases: Vec<_> = BEFORE
        .iter()
        .map(|build| (*build, (*build, false)))
        .chain(FROM.iter().map(|build| (*build, (*build, true))))
        .collect();
    all_at_once(cases, |(build, metrics_are_harmless)| {
        let server = Server::recorded(MIDDLE, Stage::After);
        server.answer("/props", props(build, false));
        let exporter = Exporter::watching(&server).start();
        exporter.after_polls(2);

        server.answer("/props", props(build, true));
        let scrape = exporter.until("sleeping", |scrape| scrape.status() == Some("sleeping"));
        // It slept before it could be seen asleep.
        exporter.after_polls(1);
        let (metrics, slots) = (server.count("/metrics"), server.count("/slots"));
        let later = exporter.after_polls(8);
        assert_eq!(server.count("/slots"), slots, "{build}");
        if !metrics_are_harmless {
            assert_eq!(server.count("/metrics"), metrics, "{build}");
        }
        for scrape in [scrape, later] {
            assert!(scrape.up(), "{build}: {scrape:?}");
            assert_eq!(scrape.status(), Some("sleeping"), "{build}: {scrape:?}");
            assert_eq!(scrape.errors(), 0, "{build}: {scrape:?}");
            // What it did before it fell asleep is not forgotten.
            assert_eq!(
                scrape.value("llamacpp_generated_tokens_total"),
                Some(120.0),
                "{scrape:?}"
            );
            assert_eq!(
                scrape.value("llamacpp_decode_calls_total"),
                Some(121.0),
                "{scrape:?}"
            );
        }

        // A request wakes it.
        server.replay(MIDDLE, Stage::Busy);
        server.answer("/props", props(build, false));
        let scrape = exporter.after_polls(1);
        assert!(server.count("/metrics") > metrics, "{build}: asked at once");
        assert_eq!(scrape.status(), Some("running"), "{build}: {scrape:?}");
    });
}

/// It was said to generate nothing as long as it slept: what it generates now is not spread over that time.
#[test]
fn the_first_rate_after_a_sleep_is_of_the_time_since_it_was_seen_asleep() {
    let server = Server::recorded(MIDDLE, Stage::After);
    server.answer("/props", props(BEFORE[0], false));
    let exporter = Exporter::watching(&server).interval("200ms").start();
    exporter.after_polls(1);
    server.answer("/props", props(BEFORE[0], true));
    exporter.until("sleeping", |scrape| scrape.status() == Some("sleeping"));
    let asleep = Instant::now();
    let scrape = exporter.after_polls(15);
    assert_eq!(scrape.value("llamacpp_tokens_per_second"), Some(0.0));

    let metrics = recordings::metrics(MIDDLE, Stage::After);
    let metrics = recordings::with_values(&metrics, &[("tokens_predicted_total", "1120")]);
    server.answer("/metrics", Answer::exposition(metrics));
    server.answer("/props", props(BEFORE[0], false));
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
    all_at_once(BEFORE.map(|build| (build, build)).into(), |build| {
        let server = Server::recorded(MIDDLE, Stage::After);
        server.answer("/props", props(build, true));
        let exporter = Exporter::watching(&server).start();
        let scrape = exporter.after_polls(3);
        assert_eq!(scrape.status(), Some("sleeping"), "{build}: {scrape:?}");
        assert_eq!(queued(&server).len(), 0, "{build}: {:?}", queued(&server));
    });
}

const SLEEP: Duration = Duration::from_secs(1);

fn told_of_sleep(server: &Server) -> Start {
    Exporter::watching(server).arguments(&["--sleep-idle-seconds", "1"])
}

#[test]
fn an_idle_server_that_may_sleep_is_left_alone_for_as_long_as_that_takes() {
    all_at_once(BEFORE.map(|build| (build, build)).into(), |build| {
        let server = Server::recorded(MIDDLE, Stage::Idle);
        server.answer("/props", props(build, false));
        let exporter = told_of_sleep(&server).start();
        exporter.after_polls(1);
        let last = queued(&server).last().unwrap().at;
        let asked = queued(&server).len();
        eventually("it is asked why it did not fall asleep", || {
            queued(&server).len() > asked
        });
        let gap = queued(&server)[asked].at - last;
        assert!(gap >= SLEEP, "{build}: kept awake after {gap:?}");
        assert_eq!(queued(&server)[asked].path, "/metrics", "{build}");
        // What does not count as work is asked all the while.
        let polls = exporter.scrape().polls() as usize;
        assert!(server.count("/props") + 1 >= polls && server.count("/health") + 1 >= polls);
    });
}

#[test]
fn work_that_went_on_meanwhile_is_seen_when_the_server_should_sleep_and_does_not() {
    let server = Server::recorded(MIDDLE, Stage::Idle);
    let exporter = told_of_sleep(&server).start();
    exporter.after_polls(1);
    server.replay(MIDDLE, Stage::After);
    let scrape = exporter.until("the work is seen", |scrape| {
        scrape.value("llamacpp_generated_tokens_total") == Some(120.0)
    });
    assert_eq!(scrape.status(), Some("idle"), "{scrape:?}");
}

#[test]
fn an_idle_server_that_falls_asleep_on_time_is_not_asked_again() {
    let server = Server::recorded(MIDDLE, Stage::After);
    let told = Duration::from_secs(4);
    let exporter = Exporter::watching(&server)
        .arguments(&["--sleep-idle-seconds", "4"])
        .start();
    exporter.after_polls(1);
    let asked = queued(&server).len();
    // It falls asleep in good time: a machine that is busy may hold this test up.
    eventually("it is left alone", || {
        let last = queued(&server).last().unwrap().at;
        Instant::now() - last >= told / 4
    });
    server.answer("/props", props("b0-unknown", true));
    sleep(told + SLEEP);
    assert_eq!(queued(&server).len(), asked, "{:?}", queued(&server));
    let scrape = exporter.scrape();
    assert_eq!(scrape.status(), Some("sleeping"), "{scrape:?}");
    assert_eq!(
        scrape.value("llamacpp_generated_tokens_total"),
        Some(120.0),
        "{scrape:?}"
    );
}

#[test]
fn a_busy_server_that_may_sleep_is_read_at_every_poll() {
    let server = Server::recorded(MIDDLE, Stage::Busy);
    let exporter = told_of_sleep(&server).start();
    exporter.after_polls(1);
    let before = server.count("/metrics");
    exporter.after_polls(6);
    assert!(server.count("/metrics") >= before + 6);
}

#[test]
fn reading_metrics_is_no_work_from_b10566_on() {
    all_at_once(FROM.map(|build| (build, build)).into(), |build| {
        let server = Server::recorded(NEW, Stage::Idle);
        server.answer("/props", props(build, false));
        let exporter = told_of_sleep(&server).start();
        exporter.after_polls(1);
        let (metrics, slots) = (server.count("/metrics"), server.count("/slots"));
        exporter.after_polls(8);
        assert!(server.count("/metrics") >= metrics + 8, "{build}");
        assert_eq!(server.count("/slots"), slots, "{build}");
    });
}

#[test]
fn a_server_that_was_seen_asleep_may_sleep_again() {
    let server = Server::recorded(MIDDLE, Stage::After);
    server.answer("/props", props("b0-unknown", true));
    let exporter = Exporter::watching(&server).start();
    exporter.until("sleeping", |scrape| scrape.status() == Some("sleeping"));
    server.answer("/props", props("b0-unknown", false));
    exporter.after_polls(1);
    assert!(server.count("/metrics") > 0, "asked at once when it woke");
    // A server wakes for work, which may take a few polls to show.
    exporter.after_polls(10);
    // Nothing goes on: from now on a question would keep it awake.
    let before = queued(&server).len();
    exporter.after_polls(10);
    let more = queued(&server).len() - before;
    assert!(more <= 1, "asked {more} times in ten polls");
}

// A busy server.

/// What is known of a server that is too busy to answer.
fn assert_busy(scrape: &Scrape) {
    assert!(scrape.up(), "{scrape:?}");
    assert_eq!(scrape.status(), Some("running"), "{scrape:?}");
    // The last counters stand; no rate is known.
    assert_eq!(
        scrape.value("llamacpp_generated_tokens_total"),
        Some(2.0),
        "{scrape:?}"
    );
    assert_eq!(
        scrape.value("llamacpp_prompt_tokens_total"),
        Some(122.0),
        "{scrape:?}"
    );
    assert_eq!(
        scrape.value("llamacpp_decode_calls_total"),
        Some(2.0),
        "{scrape:?}"
    );
    for rate in [
        "llamacpp_tokens_per_second",
        "llamacpp_prompt_tokens_per_second",
    ] {
        assert!(!scrape.has(rate), "a frozen rate:\n{scrape:?}");
    }
}

#[test]
fn a_question_that_timed_out_stays_open_and_is_the_only_one() {
    let cases = [("/metrics", "/metrics"), ("/slots", "/slots")];
    all_at_once(cases.into(), |path| {
        let server = Server::recorded(OLD, Stage::Busy);
        let healthy = server.script(path);
        let exporter = Exporter::watching(&server).timeout("2s").start();
        exporter.after_polls(2);

        server.answer(path, Answer::never());
        exporter.until("a time-out", |scrape| {
            scrape.errors_of(path).contains_key("timeout")
        });
        let asked = queued(&server).len();
        let (health, props) = (server.count("/health"), server.count("/props"));
        let before = exporter.scrape().polls();
        let scrape = exporter.after_polls(15);
        assert_busy(&scrape);
        // Nothing holds the polls up but the one time-out.
        assert_eq!(scrape.errors(), 1, "{scrape:?}");

        assert_eq!(
            queued(&server).len(),
            asked,
            "no other question of that kind"
        );
        let open: Vec<_> = server
            .requests()
            .into_iter()
            .filter(Request::is_waiting)
            .collect();
        assert_eq!(open.len(), 1, "{open:?}");
        assert!(open[0].path == path && !open[0].was_hung_up(), "{open:?}");
        let polls = (scrape.polls() - before) as usize;
        assert!(
            server.count("/health") + 1 >= health + polls,
            "what always answers is asked"
        );
        assert!(
            server.count("/props") + 1 >= props + polls,
            "what always answers is asked"
        );

        // The batch is done: the server answers.
        server.answer(path, healthy);
        let scrape = exporter.after_polls(2);
        assert!(scrape.has("llamacpp_tokens_per_second"), "{scrape:?}");
        assert_eq!(scrape.errors(), 1, "{scrape:?}");
        let before = (server.count("/metrics"), server.count("/slots"));
        exporter.after_polls(3);
        assert!(server.count("/metrics") >= before.0 + 3 && server.count("/slots") >= before.1 + 3);
    });
}

#[test]
fn a_server_that_is_always_late_never_has_two_questions_waiting() {
    let cases = [("/metrics", "/metrics"), ("/slots", "/slots")];
    all_at_once(cases.into(), |path| {
        let server = Server::recorded(OLD, Stage::Busy);
        server.answer(
            path,
            server.script(path).delayed(Duration::from_millis(1800)),
        );
        let exporter = Exporter::watching(&server).timeout("800ms").start();
        eventually("it goes on to ask", || server.count(path) >= 3);
        let scrape = exporter.scrape();
        assert!(scrape.up(), "{scrape:?}");
        assert_eq!(scrape.status(), Some("running"), "{scrape:?}");
        assert_eq!(most_waiting(&queued(&server)), 1);
        assert!(
            !queued(&server).iter().any(Request::was_hung_up),
            "{:?}",
            queued(&server)
        );
        // A state is told when it changes.
        assert_eq!(
            exporter
                .logged(&[&format!("endpoint={path}"), "reason=timeout"])
                .len(),
            1
        );
    });
}

/// ik_llama.cpp answers `/health` behind the prompt at hand; a wedged server of any kind may do so.
#[test]
fn a_server_whose_health_waits_behind_a_prompt_is_up_and_asked_once() {
    let server = Server::recorded(OLD, Stage::Busy);
    let queue = ["/health", "/metrics", "/slots"];
    let healthy = queue.map(|path| server.script(path));
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
    assert!(!server.requests().iter().any(Request::was_hung_up));

    for (path, answer) in queue.into_iter().zip(healthy) {
        server.answer(path, answer);
    }
    let scrape = exporter.until("rates are known again", |scrape| {
        scrape.has("llamacpp_tokens_per_second")
    });
    assert_eq!(scrape.errors(), errors, "{scrape:?}");
    exporter.after_polls(2);
    for (path, before) in queue.into_iter().zip(before) {
        assert!(server.count(path) > before + 1, "{path} is asked again");
    }
}

/// As when a proxy on the way loses it: the connection stays, and nothing ever comes.
#[test]
fn a_health_request_that_got_lost_does_not_hide_the_server() {
    let server = Server::recorded(OLD, Stage::Busy);
    let healthy = server.script("/health");
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
fn a_server_that_dies_with_a_question_open_is_down_and_found_again() {
    let server = Server::recorded(OLD, Stage::Busy);
    let healthy = server.script("/metrics");
    let exporter = Exporter::watching(&server).timeout("1s").start();
    exporter.after_polls(2);
    server.answer("/metrics", Answer::never());
    exporter.until("a time-out", |scrape| scrape.errors() > 0);

    server.stop();
    let scrape = exporter.until("down", |scrape| scrape.down());
    assert!(!scrape.has("llamacpp_generated_tokens_total"), "{scrape:?}");
    server.answer("/metrics", healthy);
    server.start_again();
    let before = server.count("/metrics");
    let scrape = exporter.after_polls(2);
    assert!(server.count("/metrics") > before);
    assert_eq!(
        scrape.value("llamacpp_generated_tokens_total"),
        Some(2.0),
        "{scrape:?}"
    );
}

#[test]
fn a_server_that_never_answers_health_is_not_flooded() {
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
    assert!(most_waiting(&queued(&server)) <= 1);
    assert!(most_waiting(&server.requests()) <= 2);
    assert!(!server.requests().iter().any(Request::was_hung_up));
}
