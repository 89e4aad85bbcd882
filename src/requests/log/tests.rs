//! The log as a whole: from lines and polls to counted requests.

use super::*;
use crate::readings::Counters;
use crate::snapshot::ModelRequests;
use crate::snapshot::histogram::Histogram;

/// Lines of a request of 7 prompt tokens and 20 generated ones, 1.25 s in all.
fn request(task: u64) -> Vec<String> {
    let timings = [
        "prompt eval time =     250.00 ms /     7 tokens (x)",
        "       eval time =    1000.00 ms /    20 tokens (x)",
        "      total time =    1250.00 ms /    27 tokens",
    ];
    let lines = timings.map(|timing| format!("slot print_timing: id  0 | task {task} | {timing}"));
    let launch = format!("slot launch_slot_: id  0 | task {task} | processing task, is_child = 0");
    let release = format!(
        "slot      release: id  0 | task {task} | stop processing: n_tokens = 26, truncated = 0"
    );
    [vec![launch], lines.into(), vec![release]].concat()
}

const SERVER: Option<LogWriter> = Some(LogWriter::Server);
const LOADING: &str = "srv    load_model: loading model 'm.gguf'";

struct Watched {
    requests: Arc<Requests>,
    log: ServerLog,
    start: Instant,
}

impl Watched {
    /// A log is followed, and a poll has found a server of one model without counters.
    fn new() -> Watched {
        let requests = Arc::<Requests>::default();
        let watched = Watched {
            log: ServerLog::new(Arc::clone(&requests)),
            requests,
            start: Instant::now(),
        };
        watched.log.found();
        watched.polled(0.0, "m", SERVER, Update::Absent);
        watched
    }

    fn at(&self, seconds: f64) -> Instant {
        self.start + Duration::from_secs_f64(seconds)
    }

    fn polled(
        &self,
        seconds: f64,
        model: &str,
        writer: Option<LogWriter>,
        counters: Update<CountersReading>,
    ) {
        let polled = PolledModel {
            model,
            mode: None,
            writer,
            slots: Some(2),
            counters: &counters,
        };
        self.poll(self.at(seconds), &[polled]);
    }

    fn poll(&self, now: Instant, models: &[PolledModel]) {
        let names = models
            .iter()
            .map(|model| (model.model, model.writer.is_some()));
        self.requests.polled(now, names);
        self.log.polled(now, models);
    }

    /// A poll that reads so many prompt tokens, generated ones, and seconds of each.
    fn counters(&self, seconds: f64, process: &str, values: [f64; 3]) {
        let counters = Counters {
            prompt_tokens: Some(values[0]),
            generated_tokens: Some(values[1]),
            prompt_seconds: Some(values[2]),
            generation_seconds: Some(values[2]),
            ..Counters::default()
        };
        let reading = CountersReading {
            at: self.at(seconds),
            process: Some(process.to_owned()),
            counters,
        };
        self.polled(seconds, "m", SERVER, Update::New(reading));
    }

    fn lines(&self, seconds: f64, lines: &[impl AsRef<str>]) {
        for line in lines {
            let line = line.as_ref().as_bytes();
            self.log.line(line, self.at(seconds), false);
        }
    }

    /// How many requests were counted of each model.
    fn counts(&self) -> Vec<(String, u64)> {
        let figures = self.requests.figures();
        let count = |of: &ModelRequests| of.figures.duration.as_ref().map_or(0, Histogram::count);
        figures
            .iter()
            .map(|of| (of.model.clone(), count(of)))
            .collect()
    }

    fn rejected(&self) -> Vec<(&'static str, u64)> {
        let all = self.log.lines_rejected().unwrap();
        all.into_iter().filter(|(_, count)| *count > 0).collect()
    }
}

fn counted(model: &str, count: u64) -> (String, u64) {
    (model.to_owned(), count)
}

#[test]
fn figures_go_when_their_model_has_been_gone_for_an_hour() {
    let watched = Watched::new();
    watched.lines(1.0, &request(1));
    let poll = |minutes: f64, model| {
        let writer = if model == "m" { SERVER } else { None };
        watched.polled(minutes * 60.0, model, writer, Update::Absent);
    };
    poll(50.0, "m");
    poll(109.0, "other");
    assert_eq!(watched.counts(), [counted("m", 1)]);
    poll(110.0, "other");
    assert_eq!(watched.counts(), []);
    // Once it is there again it begins anew.
    poll(111.0, "m");
    assert_eq!(watched.counts(), [counted("m", 0)]);
}

#[test]
fn figures_survive_a_restart_of_the_server() {
    let watched = Watched::new();
    watched.lines(1.0, &request(1));
    watched.poll(watched.at(2.0), &[]);
    watched.lines(3.0, &[LOADING]);
    // The model of the request is unknown before the next poll.
    watched.lines(4.0, &request(1));
    watched.lines(4.0, &["srv  stop: cancel task, id_task = 2"]);
    assert_eq!(watched.counts(), [counted("m", 1)]);
    watched.polled(5.0, "m", SERVER, Update::Absent);
    assert_eq!(watched.counts(), [counted("m", 2)]);
    let figures = &watched.requests.figures()[0].figures;
    assert_eq!(figures.cancellations, Some(1));
    assert_eq!(figures.duration.as_ref().unwrap().sum(), 2.5);
    assert_eq!(figures.per_token.as_ref().unwrap().sum(), 2.0 / 19.0);
}

#[test]
fn another_model_after_a_restart_has_figures_of_its_own() {
    let watched = Watched::new();
    watched.lines(1.0, &request(1));
    watched.lines(2.0, &[LOADING]);
    watched.lines(3.0, &request(1));
    watched.polled(4.0, "n", SERVER, Update::Absent);
    assert_eq!(watched.counts(), [counted("m", 1), counted("n", 1)]);
}

#[test]
fn a_server_may_have_more_slots_after_a_restart() {
    let watched = Watched::new();
    let on_slot = |slot: u64, task| {
        let lines = request(task).into_iter();
        let lines = lines.map(|line| line.replace("id  0", &format!("id  {slot}")));
        lines.collect::<Vec<_>>()
    };
    watched.lines(1.0, &on_slot(2, 1));
    let rejected = watched.rejected();
    assert_eq!(rejected, [("slot", 5)]);
    watched.lines(2.0, &[LOADING]);
    watched.lines(3.0, &on_slot(2, 1));
    watched.polled(4.0, "m", SERVER, Update::Absent);
    assert_eq!(watched.counts(), [counted("m", 1)]);
    assert_eq!(watched.rejected(), rejected);
}

#[test]
fn figures_in_a_snapshot_do_not_change() {
    let watched = Watched::new();
    let before = watched.requests.figures();
    watched.lines(1.0, &request(1));
    assert_eq!(before[0].figures.duration.as_ref().unwrap().count(), 0);
    assert_eq!(watched.counts(), [counted("m", 1)]);
}

#[test]
fn history_counts_no_request_but_gives_the_logged_slots() {
    let watched = Watched::new();
    let facts = "srv    load_model: initializing, n_slots = 4, n_ctx_slot = 2048";
    for line in [vec![facts.to_owned()], request(1), request(7)].concat() {
        let line = line.replace("id  0 | task 7", "id  9 | task 7");
        watched.log.line(line.as_bytes(), watched.at(1.0), true);
    }
    assert_eq!(watched.counts(), [counted("m", 0)]);
    assert_eq!(watched.rejected(), []);
    assert_eq!(watched.log.logged_slots("m").slots, Some(4));
}

#[test]
fn requests_wait_for_the_counters_that_cover_them() {
    let watched = Watched::new();
    watched.counters(0.0, "a", [0.0, 0.0, 0.0]);
    watched.lines(5.0, &request(1));
    assert_eq!(watched.counts(), [counted("m", 0)]);
    // Before a poll can have seen it, and at a poll that reads no counters.
    watched.counters(4.0, "a", [0.0, 0.0, 0.0]);
    watched.polled(6.0, "m", SERVER, Update::Stale);
    assert_eq!(watched.counts(), [counted("m", 0)]);
    watched.counters(7.0, "a", [7.0, 20.0, 1.0]);
    assert_eq!(watched.counts(), [counted("m", 1)]);
    assert_eq!(watched.rejected(), []);
}

#[test]
fn requests_beyond_the_counters_are_rejected_with_a_note() {
    let watched = Watched::new();
    watched.counters(0.0, "a", [0.0, 0.0, 0.0]);
    watched.lines(5.0, &request(1));
    watched.lines(5.0, &request(2));
    for (seconds, rejected) in [(6.0, vec![]), (10.0, vec![("counters", 1)])] {
        watched.counters(seconds, "a", [7.0, 20.0, 1.0]);
        assert_eq!(watched.counts(), [counted("m", 1)]);
        assert_eq!(watched.rejected(), rejected);
    }
    let notes = watched.log.notes(watched.at(10.0));
    assert_eq!(notes.len(), 1);
    assert!(notes[0].contains("llamacpp_log_lines_rejected_total"));
    // The next request is counted as usual.
    watched.lines(15.0, &request(3));
    watched.counters(16.0, "a", [14.0, 40.0, 2.0]);
    assert_eq!(watched.counts(), [counted("m", 2)]);
}

#[test]
fn requests_before_a_restart_are_counted() {
    let watched = Watched::new();
    watched.counters(0.0, "a", [0.0, 0.0, 0.0]);
    watched.lines(5.0, &request(1));
    watched.lines(6.0, &[LOADING]);
    watched.lines(8.0, &request(1));
    watched.lines(8.0, &request(2));
    for seconds in [9.0, 13.0] {
        watched.counters(seconds, "b", [7.0, 20.0, 1.0]);
    }
    assert_eq!(watched.counts(), [counted("m", 2)]);
    assert_eq!(watched.rejected(), [("counters", 1)]);
}

#[test]
fn a_forged_restart_does_not_get_requests_counted() {
    let watched = Watched::new();
    watched.counters(0.0, "a", [0.0, 0.0, 0.0]);
    watched.lines(5.0, &request(1));
    watched.lines(5.0, &[LOADING]);
    for seconds in [6.0, 10.0] {
        watched.counters(seconds, "a", [0.0, 0.0, 0.0]);
    }
    assert_eq!(watched.counts(), [counted("m", 0)]);
    assert_eq!(watched.rejected(), [("counters", 1)]);
}

#[test]
fn requests_wait_for_unread_counters_only_for_a_limited_time() {
    let watched = Watched::new();
    watched.counters(0.0, "a", [0.0, 0.0, 0.0]);
    watched.lines(5.0, &request(1));
    for (seconds, count) in [(10.0, 0), (34.0, 0), (36.0, 1)] {
        watched.polled(seconds, "m", SERVER, Update::Stale);
        assert_eq!(watched.counts(), [counted("m", count)], "{seconds}");
    }
    // It has used up its part of the counters by then.
    watched.lines(40.0, &request(2));
    for seconds in [41.0, 45.0] {
        watched.counters(seconds, "a", [7.0, 20.0, 1.0]);
    }
    assert_eq!(watched.counts(), [counted("m", 1)]);
}

#[test]
fn no_label_comes_from_the_log() {
    let watched = Watched::new();
    let polled =
        |port| watched.polled(0.0, "m", Some(LogWriter::RouterChild(port)), Update::Absent);
    let router = Watched::new();
    polled(4000);
    for port in 1..3000u16 {
        let holds =
            format!("srv load: spawning server instance with name=model-{port} on port {port}");
        router.lines(1.0, &[holds]);
        let lines: Vec<_> = request(1)
            .iter()
            .map(|line| format!("[{port}] {line}"))
            .collect();
        router.lines(1.0, &lines);
    }
    assert_eq!(router.counts(), [counted("m", 0)]);
    let log = format!("{:?}", router.log.lock());
    assert!(!log.contains("model-7"), "a name is kept");
    assert!(log.len() < 200_000, "{}", log.len());
}

#[test]
fn a_child_is_counted_if_a_poll_found_a_model_at_its_port() {
    let requests = Arc::<Requests>::default();
    let log = ServerLog::new(Arc::clone(&requests));
    let start = Instant::now();
    let line = |port: u16, task: u64| {
        for line in request(task) {
            log.line(format!("[{port}] {line}").as_bytes(), start, false);
        }
    };
    log.found();
    line(1, 5);
    line(2, 5);
    let polled = |port: u16, model| PolledModel {
        model,
        mode: None,
        writer: Some(LogWriter::RouterChild(port)),
        slots: None,
        counters: &Update::Absent,
    };
    requests.polled(start, [("one", true), ("three", true)]);
    log.polled(start, &[polled(1, "one"), polled(3, "three")]);
    line(1, 6);
    line(3, 5);
    let counts = |of: &ModelRequests| {
        let count = of.figures.duration.as_ref().map_or(0, Histogram::count);
        (of.model.clone(), count)
    };
    let figures = requests.figures();
    let counts: Vec<_> = figures.iter().map(counts).collect();
    assert_eq!(counts, [counted("one", 2), counted("three", 1)]);
}

#[test]
fn a_port_before_the_line_of_a_single_server_is_forged() {
    let watched = Watched::new();
    let with_port: Vec<_> = request(5)
        .iter()
        .map(|line| format!("[77] {line}"))
        .collect();
    watched.lines(1.0, &request(1));
    watched.lines(2.0, &with_port);
    watched.polled(3.0, "m", SERVER, Update::Absent);
    assert_eq!(watched.counts(), [counted("m", 1)]);
    assert_eq!(watched.rejected(), [("source", 5)]);
    // Where every line has one, it is not a port, but what a wrapper writes.
    let wrapped = Watched::new();
    wrapped.lines(1.0, &with_port);
    wrapped.polled(2.0, "m", SERVER, Update::Absent);
    wrapped.lines(
        3.0,
        &with_port
            .join("\n")
            .replace("task 5", "task 6")
            .split('\n')
            .collect::<Vec<_>>(),
    );
    wrapped.polled(4.0, "m", SERVER, Update::Absent);
    assert_eq!(wrapped.counts(), [counted("m", 2)]);
}

#[test]
fn a_log_of_several_servers_gets_a_note_and_is_not_counted() {
    let of = |unit: &str, line: &str| format!("Nov 24 20:12:22 host llama[{unit}]: {line}");
    let all = |unit: &str, lines: &[String]| -> Vec<_> {
        lines.iter().map(|line| of(unit, line)).collect()
    };
    let watched = Watched::new();
    watched.lines(1.0, &all("7", &request(1)));
    watched.lines(2.0, &all("8", &request(1)));
    watched.lines(3.0, &all("7", &request(2)));
    assert_eq!(watched.counts(), [counted("m", 1)]);
    let notes = watched.log.notes(watched.at(3.0));
    assert!(notes[0].contains("several servers"), "{notes:?}");
    assert_eq!(watched.rejected(), [("source", 10)]);

    // One after another is one server that was started again.
    let watched = Watched::new();
    watched.lines(1.0, &all("7", &request(1)));
    watched.lines(2.0, &[of("8", LOADING)]);
    watched.polled(3.0, "m", SERVER, Update::Absent);
    watched.lines(4.0, &all("8", &request(1)));
    assert_eq!(watched.counts(), [counted("m", 2)]);
    assert!(watched.log.notes(watched.at(4.0)).is_empty());
    watched.lines(5.0, &all("7", &request(2)));
    assert_eq!(watched.rejected(), [("source", 5)]);
}

#[test]
fn a_log_that_is_not_understood_gets_a_note() {
    let watched = Watched::new();
    watched.lines(
        1.0,
        &["GET / 200", "INFO [print_timings] total time = 3 ms"],
    );
    assert!(watched.log.notes(watched.at(2.0)).is_empty());
    let notes = watched.log.notes(watched.at(10.0));
    assert!(
        notes[0].contains("no line of the log is understood"),
        "{notes:?}"
    );
    watched.lines(11.0, &request(1));
    assert!(watched.log.notes(watched.at(20.0)).is_empty());
}

#[test]
fn a_log_without_requests_of_a_busy_server_gets_a_note() {
    for lines in [&["srv  init: model loaded"][..], &[]] {
        assert_note_on_requests(lines);
    }
}

fn assert_note_on_requests(lines: &[&str]) {
    let watched = Watched::new();
    watched.counters(0.0, "a", [0.0, 0.0, 0.0]);
    watched.lines(1.0, lines);
    watched.counters(5.0, "a", [7.0, 20.0, 1.0]);
    assert!(watched.log.notes(watched.at(6.0)).is_empty());
    watched.counters(15.0, "a", [14.0, 40.0, 2.0]);
    let notes = watched.log.notes(watched.at(15.0));
    assert!(
        notes[0].contains("requests that its log does not report"),
        "{notes:?}"
    );
    watched.lines(16.0, &request(1));
    watched.counters(20.0, "a", [21.0, 60.0, 3.0]);
    assert!(watched.log.notes(watched.at(30.0)).is_empty());
}

impl Watched {
    /// A poll of a program that starts and stops servers finds these; `model` is the only one
    /// loaded.
    fn found(&self, seconds: f64, model: &str, found: WritersFound) {
        self.log.set_writers(found, self.at(seconds));
        match found {
            WritersFound::One(_) => self.polled(seconds, model, SERVER, Update::Absent),
            _ => self.poll(self.at(seconds), &[]),
        }
    }

    fn count_of(&self, model: &str) -> u64 {
        let counts = self.counts();
        let found = counts.iter().find(|(name, _)| name == model);
        found.map_or(0, |(_, count)| *count)
    }
}

const A: WritersFound = WritersFound::One(ProcessId {
    pid: 7,
    started: 100,
});
const B: WritersFound = WritersFound::One(ProcessId {
    pid: 8,
    started: 200,
});

#[test]
fn the_first_requests_of_a_model_wait_for_the_poll_that_finds_its_server() {
    let watched = Watched::new();
    watched.found(1.0, "", WritersFound::None);
    watched.lines(2.0, &[LOADING]);
    watched.found(3.0, "", WritersFound::Loading);
    watched.lines(4.0, &request(0));
    watched.found(5.0, "a", A);
    watched.lines(6.0, &request(1));
    assert_eq!(watched.count_of("a"), 2);
    // Another model takes its place between two polls.
    watched.lines(7.0, &[LOADING]);
    watched.lines(8.0, &request(0));
    watched.found(9.0, "b", B);
    assert_eq!((watched.count_of("a"), watched.count_of("b")), (2, 1));
}

#[test]
fn the_lines_of_several_models_are_of_none() {
    let watched = Watched::new();
    watched.lines(1.0, &[LOADING]);
    watched.found(2.0, "a", A);
    watched.lines(3.0, &[LOADING]);
    watched.lines(4.0, &request(0));
    watched.found(5.0, "", WritersFound::Several);
    watched.lines(6.0, &request(1));
    watched.found(6.5, "", WritersFound::Several);
    // The other one has ended, but its last lines are read only now.
    watched.found(7.0, "a", A);
    watched.lines(7.1, &request(2));
    watched.found(7.6, "a", A);
    assert_eq!(watched.count_of("a"), 0);
    watched.lines(8.0, &request(2));
    assert_eq!(watched.count_of("a"), 1);
}

#[test]
fn a_model_that_came_and_went_between_two_polls_is_not_taken_for_another() {
    let watched = Watched::new();
    watched.lines(1.0, &[LOADING]);
    watched.found(2.0, "a", A);
    watched.lines(3.0, &[LOADING]);
    watched.lines(4.0, &request(0));
    watched.found(5.0, "a", A);
    watched.found(6.0, "a", A);
    assert_eq!(watched.count_of("a"), 0);
    watched.lines(7.0, &request(3));
    assert_eq!(watched.count_of("a"), 1);
    assert!(watched.rejected().is_empty(), "{:?}", watched.rejected());
}
