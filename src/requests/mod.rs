//! The latency of every request, from three sources that measure slightly
//! different things: the server's log, Docker Model Runner's records, and a
//! probe of our own.
//!
//! The figures are the exporter's own counters: they outlive a restart of the
//! server, and go when their model has been gone for an hour.

mod line_splitter;
mod log_clock;
mod log_envelope;
pub mod log_parser;
pub mod log_plausibility;
pub mod log_tail;
pub mod probe;
pub mod records;
pub mod request_tracker;
pub mod server_log;

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use crate::requests::request_tracker::Timings;
use crate::requests::server_log::{Ended, Polled, ServerLog};
use crate::snapshot::histogram::{Histogram, LATENCY_SECONDS, PER_TOKEN_SECONDS, TOKENS};
use crate::snapshot::{Reason, Rejection, RequestFigures, RequestSource, RequestsOf};

/// How long the figures of a model that is gone are kept.
const KEPT_FOR: Duration = Duration::from_secs(3600);
/// The most models that figures are kept of.
const MOST_MODELS: usize = 1000;

/// Whose requests a log speaks of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Speaker {
    /// The log is the one of this model's server.
    Server,
    /// The log is a router's, and this model's child listens on this port.
    Child(u16),
    /// No log speaks of it.
    Nobody,
}

/// What the log says of how a server is set up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// How many slots there are.
    pub slots: Option<u64>,
    /// Tokens that fit one slot.
    pub slot_context: Option<u64>,
    /// Whether all slots share one KV cache.
    pub kv_unified: Option<bool>,
}

impl Facts {
    /// Cells of the KV cache, where it is known how the slots share it.
    pub fn cells(&self) -> Option<u64> {
        let (slots, each) = (self.slots?, self.slot_context?);
        let shared = slots == 1 || self.kv_unified?;
        Some(if shared {
            each
        } else {
            each.saturating_mul(slots)
        })
        .filter(|cells| *cells > 0)
    }
}

/// The figures of all requests of one base URL. Each source has one writer.
#[derive(Debug, Default)]
pub struct Requests(Mutex<Inner>);

#[derive(Debug, Default)]
struct Inner {
    figures: BTreeMap<(String, RequestSource), Kept>,
    /// The log, once there is one to follow.
    log: Option<ServerLog>,
    /// Whether models are probed.
    probes: bool,
}

#[derive(Debug)]
struct Kept {
    figures: Arc<RequestFigures>,
    /// When the model was there last.
    seen: Instant,
}

impl Requests {
    /// Takes which models a poll found, and what it tells of those that the log speaks of.
    pub fn polled(&self, now: Instant, models: &[Polled]) {
        let mut inner = self.lock();
        for polled in models {
            // From now on they count from zero.
            let sources = [
                (RequestSource::Log, inner.log.is_some()),
                (RequestSource::Probe, inner.probes),
            ];
            for (source, _) in sources.into_iter().filter(|(_, is_there)| *is_there) {
                if polled.speaker != Speaker::Nobody {
                    inner.count(polled.model, source, now, |_| {});
                }
            }
            for source in RequestSource::ALL {
                if let Some(kept) = inner.figures.get_mut(&(polled.model.to_owned(), source)) {
                    kept.seen = now;
                }
            }
        }
        inner.with_log(|log, count| log.polled(now, models, count));
        inner
            .figures
            .retain(|_, kept| now.saturating_duration_since(kept.seen) < KEPT_FOR);
    }

    /// What is known of every request so far, by model and source.
    pub fn figures(&self) -> Vec<RequestsOf> {
        let inner = self.lock();
        let figures = inner
            .figures
            .iter()
            .map(|((model, source), kept)| RequestsOf {
                model: model.clone(),
                source: *source,
                figures: Arc::clone(&kept.figures),
            });
        figures.collect()
    }

    /// What the log says of the server that holds `model`.
    pub fn facts(&self, model: &str) -> Facts {
        let inner = self.lock();
        let facts = inner.log.as_ref().map(|log| log.facts(model));
        facts.unwrap_or_default()
    }

    /// Lines of the log that were not believed, where one is followed.
    pub fn log_lines_rejected(&self) -> Option<BTreeMap<Rejection, u64>> {
        self.lock().log.as_ref().map(ServerLog::rejected)
    }

    /// What is wrong with the log, for people.
    pub fn log_notes(&self, now: Instant) -> Vec<&'static str> {
        let inner = self.lock();
        let notes = inner.log.as_ref().map(|log| log.notes(now));
        notes.unwrap_or_default()
    }

    /// Counts something of a model that is there.
    pub fn count(
        &self,
        model: &str,
        source: RequestSource,
        change: impl FnOnce(&mut RequestFigures),
    ) {
        self.lock().count(model, source, Instant::now(), change);
    }

    /// Says that there is a log: from now on its models count from zero.
    pub fn log_is_followed(&self) {
        self.lock().log.get_or_insert_default();
    }

    /// Says that models are probed: from now on their probes count from zero.
    pub fn models_are_probed(&self) {
        self.lock().probes = true;
    }

    /// Follows the log at `path` from now on, in a thread of its own.
    ///
    /// # Errors
    /// The system has no thread to give.
    pub fn follow_log(self: &Arc<Self>, path: &Path) -> io::Result<()> {
        let requests = Arc::clone(self);
        let path = path.to_owned();
        let follow = move || {
            let found = || requests.log_is_followed();
            log_tail::follow(&path, found, &mut |line: &[u8], history: bool| {
                requests.log_line(line, Instant::now(), history);
            });
        };
        thread::Builder::new()
            .name("log".to_owned())
            .spawn(follow)
            .map(drop)
    }

    /// Takes a line of the log that was read at that moment; what is `history` counts no request.
    pub fn log_line(&self, line: &[u8], read: Instant, history: bool) {
        let mut inner = self.lock();
        inner.log.get_or_insert_default();
        inner.with_log(|log, count| log.line(line, read, history, count));
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn count(
        &mut self,
        model: &str,
        source: RequestSource,
        now: Instant,
        change: impl FnOnce(&mut RequestFigures),
    ) {
        let key = (model.to_owned(), source);
        if self.figures.len() >= MOST_MODELS && !self.figures.contains_key(&key) {
            return;
        }
        let kept = self.figures.entry(key).or_insert_with(|| Kept {
            figures: Arc::new(empty(source)),
            seen: now,
        });
        // What a snapshot still holds stays as it is.
        change(Arc::make_mut(&mut kept.figures));
    }

    /// Has the log, where there is one, count what it tells of requests.
    fn with_log(&mut self, work: impl FnOnce(&mut ServerLog, &mut dyn FnMut(server_log::Counted))) {
        let Some(mut log) = self.log.take() else {
            return;
        };
        work(&mut log, &mut |(model, ended)| {
            self.count(&model, RequestSource::Log, Instant::now(), |figures| {
                count_ended(figures, ended);
            });
        });
        self.log = Some(log);
    }
}

/// Counts a request that the log tells of.
fn count_ended(figures: &mut RequestFigures, ended: Ended) {
    match ended {
        Ended::Finished(timings) => finished(figures, timings),
        Ended::Embedded(tokens) => observe(&mut figures.prompt_tokens, tokens as f64),
        Ended::Cancelled => add_one(figures.cancellations.get_or_insert(0)),
    }
}

fn add_one(count: &mut u64) {
    *count = count.saturating_add(1);
}

/// What a source can tell, and has not told yet.
fn empty(source: RequestSource) -> RequestFigures {
    let first_token = Some(Histogram::new(LATENCY_SECONDS));
    if source == RequestSource::Probe {
        return RequestFigures {
            first_token,
            probe_tokens: Some(0),
            probe_prompt_tokens: Some(0),
            probe_failures: Reason::ALL.map(|reason| (reason, 0)).into(),
            ..RequestFigures::default()
        };
    }
    RequestFigures {
        first_token,
        duration: Some(Histogram::new(LATENCY_SECONDS)),
        per_token: Some(Histogram::new(PER_TOKEN_SECONDS)),
        prompt_tokens: Some(Histogram::new(TOKENS)),
        generated_tokens: Some(Histogram::new(TOKENS)),
        cancellations: (source == RequestSource::Log).then_some(0),
        record_gaps: (source == RequestSource::Records).then_some(0),
        ..RequestFigures::default()
    }
}

/// Counts a request that ran to its end.
fn finished(figures: &mut RequestFigures, timings: Timings) {
    let Timings {
        prompt,
        generation,
        total_ms,
        is_child: _,
    } = timings;
    observe(&mut figures.duration, total_ms / 1000.0);
    observe(&mut figures.prompt_tokens, prompt.tokens as f64);
    if generation.tokens > 0 {
        observe(&mut figures.first_token, prompt.ms / 1000.0);
        observe(&mut figures.generated_tokens, generation.tokens as f64);
    }
    // The first token comes with the prompt: alone it took no time of its own.
    if generation.tokens > 1 {
        let seconds = generation.ms / 1000.0 / generation.tokens as f64;
        observe(&mut figures.per_token, seconds);
    }
}

fn observe(histogram: &mut Option<Histogram>, value: f64) {
    if let Some(histogram) = histogram {
        histogram.observe(value, 1);
    }
}

/// Counts what came of a probe.
pub fn probed(figures: &mut RequestFigures, result: Result<probe::Answer, Reason>) {
    match result {
        Ok(answer) => {
            observe(&mut figures.first_token, answer.first_token.as_secs_f64());
            let tokens = figures.probe_tokens.get_or_insert(0);
            *tokens = tokens.saturating_add(answer.generated);
            let tokens = figures.probe_prompt_tokens.get_or_insert(0);
            *tokens = tokens.saturating_add(answer.prompt);
        }
        Err(reason) => add_one(figures.probe_failures.entry(reason).or_default()),
    }
}

#[cfg(test)]
mod tests {
    use super::log_plausibility::ServerCounters;
    use super::server_log::PolledCounters;
    use super::*;

    /// Lines of a request of 7 prompt tokens and 20 generated ones, 1.25 s in all.
    fn request(task: u64) -> Vec<String> {
        let timings = [
            "prompt eval time =     250.00 ms /     7 tokens (x)",
            "       eval time =    1000.00 ms /    20 tokens (x)",
            "      total time =    1250.00 ms /    27 tokens",
        ];
        let lines =
            timings.map(|timing| format!("slot print_timing: id  0 | task {task} | {timing}"));
        let launch =
            format!("slot launch_slot_: id  0 | task {task} | processing task, is_child = 0");
        [vec![launch], lines.into()].concat()
    }

    const LOADING: &str = "srv    load_model: loading model 'm.gguf'";

    struct Watched {
        requests: Requests,
        start: Instant,
    }

    impl Watched {
        /// A log is followed, and a poll has found a server of one model without counters.
        fn new() -> Watched {
            let watched = Watched {
                requests: Requests::default(),
                start: Instant::now(),
            };
            watched.requests.log_is_followed();
            watched.polled(0.0, "m", Speaker::Server, PolledCounters::None);
            watched
        }

        fn at(&self, seconds: f64) -> Instant {
            self.start + Duration::from_secs_f64(seconds)
        }

        fn polled(&self, seconds: f64, model: &str, speaker: Speaker, counters: PolledCounters) {
            let polled = Polled {
                model,
                speaker,
                slots: Some(2),
                counters,
            };
            self.requests.polled(self.at(seconds), &[polled]);
        }

        /// A poll that reads so many prompt tokens, generated ones, and seconds of each.
        fn counters(&self, seconds: f64, life: &str, values: [f64; 3]) {
            let counters = ServerCounters {
                life: Some(life.to_owned()),
                prompt_tokens: Some(values[0]),
                generated_tokens: Some(values[1]),
                prompt_seconds: Some(values[2]),
                generation_seconds: Some(values[2]),
                ..ServerCounters::default()
            };
            let counters = PolledCounters::Read(self.at(seconds), counters);
            self.polled(seconds, "m", Speaker::Server, counters);
        }

        fn lines(&self, seconds: f64, lines: &[impl AsRef<str>]) {
            for line in lines {
                let line = line.as_ref().as_bytes();
                self.requests.log_line(line, self.at(seconds), false);
            }
        }

        /// How many requests were counted of each model.
        fn counts(&self) -> Vec<(String, u64)> {
            let figures = self.requests.figures();
            let count = |of: &RequestsOf| of.figures.duration.as_ref().map_or(0, Histogram::count);
            figures
                .iter()
                .map(|of| (of.model.clone(), count(of)))
                .collect()
        }

        fn rejected(&self) -> Vec<(Rejection, u64)> {
            let all = self.requests.log_lines_rejected().unwrap();
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
            let speaker = if model == "m" {
                Speaker::Server
            } else {
                Speaker::Nobody
            };
            watched.polled(minutes * 60.0, model, speaker, PolledCounters::None);
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
        watched.requests.polled(watched.at(2.0), &[]);
        watched.lines(3.0, &[LOADING]);
        // Whose it is, is not known before the next poll.
        watched.lines(4.0, &request(1));
        watched.lines(4.0, &["srv  stop: cancel task, id_task = 2"]);
        assert_eq!(watched.counts(), [counted("m", 1)]);
        watched.polled(5.0, "m", Speaker::Server, PolledCounters::None);
        assert_eq!(watched.counts(), [counted("m", 2)]);
        let figures = &watched.requests.figures()[0].figures;
        assert_eq!(figures.cancellations, Some(1));
        assert_eq!(figures.duration.as_ref().unwrap().sum(), 2.5);
        assert_eq!(figures.per_token.as_ref().unwrap().sum(), 0.1);
    }

    #[test]
    fn another_model_after_a_restart_has_figures_of_its_own() {
        let watched = Watched::new();
        watched.lines(1.0, &request(1));
        watched.lines(2.0, &[LOADING]);
        watched.lines(3.0, &request(1));
        watched.polled(4.0, "n", Speaker::Server, PolledCounters::None);
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
        assert_eq!(rejected, [(Rejection::Slot, 4)]);
        watched.lines(2.0, &[LOADING]);
        watched.lines(3.0, &on_slot(2, 1));
        watched.polled(4.0, "m", Speaker::Server, PolledCounters::None);
        assert_eq!(watched.counts(), [counted("m", 1)]);
        assert_eq!(watched.rejected(), rejected);
    }

    #[test]
    fn what_a_snapshot_holds_does_not_change() {
        let watched = Watched::new();
        let before = watched.requests.figures();
        watched.lines(1.0, &request(1));
        assert_eq!(before[0].figures.duration.as_ref().unwrap().count(), 0);
        assert_eq!(watched.counts(), [counted("m", 1)]);
    }

    #[test]
    fn what_is_history_counts_no_request_and_tells_of_the_server() {
        let watched = Watched::new();
        let facts = "srv    load_model: initializing, n_slots = 4, n_ctx_slot = 2048";
        for line in [vec![facts.to_owned()], request(1), request(7)].concat() {
            let line = line.replace("id  0 | task 7", "id  9 | task 7");
            watched
                .requests
                .log_line(line.as_bytes(), watched.at(1.0), true);
        }
        assert_eq!(watched.counts(), [counted("m", 0)]);
        assert_eq!(watched.rejected(), []);
        assert_eq!(watched.requests.facts("m").slots, Some(4));
    }

    #[test]
    fn requests_wait_for_the_counters_that_bear_them() {
        let watched = Watched::new();
        watched.counters(0.0, "a", [0.0, 0.0, 0.0]);
        watched.lines(5.0, &request(1));
        assert_eq!(watched.counts(), [counted("m", 0)]);
        // Before a poll can have seen it, and at a poll that reads no counters.
        watched.counters(4.0, "a", [0.0, 0.0, 0.0]);
        watched.polled(6.0, "m", Speaker::Server, PolledCounters::Unread);
        assert_eq!(watched.counts(), [counted("m", 0)]);
        watched.counters(7.0, "a", [7.0, 20.0, 1.0]);
        assert_eq!(watched.counts(), [counted("m", 1)]);
        assert_eq!(watched.rejected(), []);
    }

    #[test]
    fn what_exceeds_the_counters_is_rejected_and_said() {
        let watched = Watched::new();
        watched.counters(0.0, "a", [0.0, 0.0, 0.0]);
        watched.lines(5.0, &request(1));
        watched.lines(5.0, &request(2));
        for (seconds, told) in [(6.0, vec![]), (10.0, vec![(Rejection::Counters, 1)])] {
            watched.counters(seconds, "a", [7.0, 20.0, 1.0]);
            assert_eq!(watched.counts(), [counted("m", 1)]);
            assert_eq!(watched.rejected(), told);
        }
        let notes = watched.requests.log_notes(watched.at(10.0));
        assert_eq!(notes.len(), 1);
        assert!(notes[0].contains("llamacpp_log_lines_rejected_total"));
        // The next is counted as if nothing had been.
        watched.lines(15.0, &request(3));
        watched.counters(16.0, "a", [14.0, 40.0, 2.0]);
        assert_eq!(watched.counts(), [counted("m", 2)]);
    }

    #[test]
    fn what_a_server_did_before_its_restart_is_counted() {
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
        assert_eq!(watched.rejected(), [(Rejection::Counters, 1)]);
    }

    #[test]
    fn a_forged_restart_lets_nothing_through() {
        let watched = Watched::new();
        watched.counters(0.0, "a", [0.0, 0.0, 0.0]);
        watched.lines(5.0, &request(1));
        watched.lines(5.0, &[LOADING]);
        for seconds in [6.0, 10.0] {
            watched.counters(seconds, "a", [0.0, 0.0, 0.0]);
        }
        assert_eq!(watched.counts(), [counted("m", 0)]);
        assert_eq!(watched.rejected(), [(Rejection::Counters, 1)]);
    }

    #[test]
    fn requests_do_not_wait_for_ever_for_counters_that_are_not_read() {
        let watched = Watched::new();
        watched.counters(0.0, "a", [0.0, 0.0, 0.0]);
        watched.lines(5.0, &request(1));
        for (seconds, count) in [(10.0, 0), (34.0, 0), (36.0, 1)] {
            watched.polled(seconds, "m", Speaker::Server, PolledCounters::Unread);
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
        let polled = |port| watched.polled(0.0, "m", Speaker::Child(port), PolledCounters::None);
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
        let inner = router.requests.lock();
        let log = format!("{:?}", inner.log);
        assert!(!log.contains("model-7"), "a name is kept");
        assert!(log.len() < 200_000, "{}", log.len());
    }

    #[test]
    fn a_child_is_counted_where_a_poll_saw_a_model_at_its_port() {
        let requests = Requests::default();
        let start = Instant::now();
        let line = |port: u16, task: u64| {
            for line in request(task) {
                requests.log_line(format!("[{port}] {line}").as_bytes(), start, false);
            }
        };
        requests.log_is_followed();
        line(1, 5);
        line(2, 5);
        let polled = |port: u16, model| Polled {
            model,
            speaker: Speaker::Child(port),
            slots: None,
            counters: PolledCounters::None,
        };
        requests.polled(start, &[polled(1, "one"), polled(3, "three")]);
        line(1, 6);
        line(3, 5);
        let counts = |of: &RequestsOf| {
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
        watched.polled(3.0, "m", Speaker::Server, PolledCounters::None);
        assert_eq!(watched.counts(), [counted("m", 1)]);
        assert_eq!(watched.rejected(), [(Rejection::Source, 4)]);
        // Where every line has one, it is not a port, but what a wrapper writes.
        let wrapped = Watched::new();
        wrapped.lines(1.0, &with_port);
        wrapped.polled(2.0, "m", Speaker::Server, PolledCounters::None);
        wrapped.lines(
            3.0,
            &with_port
                .join("\n")
                .replace("task 5", "task 6")
                .split('\n')
                .collect::<Vec<_>>(),
        );
        wrapped.polled(4.0, "m", Speaker::Server, PolledCounters::None);
        assert_eq!(wrapped.counts(), [counted("m", 2)]);
    }

    #[test]
    fn a_log_of_several_servers_is_said_to_be_one_and_not_counted() {
        let of = |unit: &str, line: &str| format!("Nov 24 20:12:22 host llama[{unit}]: {line}");
        let all = |unit: &str, lines: &[String]| -> Vec<_> {
            lines.iter().map(|line| of(unit, line)).collect()
        };
        let watched = Watched::new();
        watched.lines(1.0, &all("7", &request(1)));
        watched.lines(2.0, &all("8", &request(1)));
        watched.lines(3.0, &all("7", &request(2)));
        assert_eq!(watched.counts(), [counted("m", 1)]);
        let notes = watched.requests.log_notes(watched.at(3.0));
        assert!(notes[0].contains("several servers"), "{notes:?}");
        assert_eq!(watched.rejected(), [(Rejection::Source, 8)]);

        // One after another is one server that was started again.
        let watched = Watched::new();
        watched.lines(1.0, &all("7", &request(1)));
        watched.lines(2.0, &[of("8", LOADING)]);
        watched.polled(3.0, "m", Speaker::Server, PolledCounters::None);
        watched.lines(4.0, &all("8", &request(1)));
        assert_eq!(watched.counts(), [counted("m", 2)]);
        assert!(watched.requests.log_notes(watched.at(4.0)).is_empty());
        watched.lines(5.0, &all("7", &request(2)));
        assert_eq!(watched.rejected(), [(Rejection::Source, 4)]);
    }

    #[test]
    fn a_log_in_which_nothing_is_understood_is_said_to_be_so() {
        let watched = Watched::new();
        watched.lines(
            1.0,
            &["GET / 200", "INFO [print_timings] total time = 3 ms"],
        );
        assert!(watched.requests.log_notes(watched.at(2.0)).is_empty());
        let notes = watched.requests.log_notes(watched.at(10.0));
        assert!(
            notes[0].contains("no line of the log is understood"),
            "{notes:?}"
        );
        watched.lines(11.0, &request(1));
        assert!(watched.requests.log_notes(watched.at(20.0)).is_empty());
    }

    #[test]
    fn a_log_that_tells_of_no_request_of_a_busy_server_is_said_to_be_so() {
        let watched = Watched::new();
        watched.counters(0.0, "a", [0.0, 0.0, 0.0]);
        watched.lines(1.0, &["srv  init: model loaded"]);
        watched.counters(5.0, "a", [7.0, 20.0, 1.0]);
        assert!(watched.requests.log_notes(watched.at(6.0)).is_empty());
        watched.counters(15.0, "a", [14.0, 40.0, 2.0]);
        let notes = watched.requests.log_notes(watched.at(15.0));
        assert!(
            notes[0].contains("of which its log says nothing"),
            "{notes:?}"
        );
        watched.lines(16.0, &request(1));
        watched.counters(20.0, "a", [21.0, 60.0, 3.0]);
        assert!(watched.requests.log_notes(watched.at(30.0)).is_empty());
    }

    #[test]
    fn models_have_a_limit() {
        let requests = Requests::default();
        for number in 0..3000 {
            requests.count(&format!("model {number}"), RequestSource::Records, |_| {});
        }
        assert_eq!(requests.figures().len(), MOST_MODELS);
    }

    #[test]
    fn counters_whose_labels_are_known_start_at_zero() {
        let watched = Watched::new();
        let rejected = watched.requests.log_lines_rejected().unwrap();
        assert_eq!(rejected, Rejection::ALL.map(|reason| (reason, 0)).into());
        let probe = empty(RequestSource::Probe).probe_failures;
        assert_eq!(probe, Reason::ALL.map(|reason| (reason, 0)).into());
        watched.requests.models_are_probed();
        watched.polled(1.0, "m", Speaker::Server, PolledCounters::None);
        let sources = watched.requests.figures().into_iter().map(|of| of.source);
        assert!(sources.eq([RequestSource::Log, RequestSource::Probe]));
        assert_eq!(empty(RequestSource::Records).record_gaps, Some(0));
        assert_eq!(empty(RequestSource::Log).cancellations, Some(0));
    }
}
