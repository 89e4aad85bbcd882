//! What the tracker may report of a simulated llama-server: the truth and bounds of every poll.

use proptest::prelude::*;
use proptest::test_runner::RngSeed;

use super::*;
use crate::counters::ModelTracker;
use crate::snapshot::Model;

/// The exporter, and what it reported in this run of the server.
struct SimulatedExporter {
    state: ModelTracker,
    model: Model,
    run: u32,
    /// The time and the truth of each complete poll.
    polled: Vec<(Instant, Truth)>,
    /// Truth as of the last two reads of `/metrics`.
    last_counters: Option<Counters>,
}

impl SimulatedExporter {
    fn new() -> SimulatedExporter {
        SimulatedExporter {
            state: ModelTracker::default(),
            model: Model::default(),
            run: 0,
            polled: Vec::new(),
            last_counters: None,
        }
    }

    fn poll(&mut self, server: &mut Server, between: u32, outcome: PollOutcome) {
        if outcome == PollOutcome::Missed {
            return;
        }
        // A restart shows in the counters, if they are read.
        if self.run != server.run && outcome != PollOutcome::LateMetrics {
            self.run = server.run;
            self.polled.clear();
            self.model = Model::default();
            self.last_counters = None;
        }
        let setup = server.setup.clone();
        let mut reading = ModelReading {
            state: ModelState::Ready,
            ..ModelReading::default()
        };
        let before = server.truth();
        let counters = server.metrics();
        let counters_at = server.now;
        // Without slots, the reading ends here.
        for _ in 0..if setup.has_slots { between } else { 0 } {
            server.call();
        }
        if self.polled.is_empty() {
            // What disconnected before the slots were read is never known.
            if server.setup.build < Build::From10566 {
                server.truth.unknowable += server.truth.disconnected;
            }
            server.truth.prompt_unknowable += server.truth.prompt_disconnected;
        }
        let truth = server.truth();
        let unchanged = self.last_counters.as_ref().is_some_and(|then| {
            *then == counters
                && !counters.is_busy()
                && half_step(counters.decode_calls.unwrap()) == 0.0
        });
        let late_slots = outcome == PollOutcome::LateSlots && setup.has_slots;
        reading.counters = match outcome {
            _ if !setup.has_metrics => Update::Absent,
            PollOutcome::LateMetrics => Update::Stale,
            _ => Update::New(CountersReading {
                at: counters_at,
                process: Some(server.run.to_string()),
                counters: counters.clone(),
            }),
        };
        reading.slots = match outcome {
            _ if !setup.has_slots => Update::Absent,
            PollOutcome::LateMetrics | PollOutcome::LateSlots => Update::Stale,
            _ if unchanged && setup.has_metrics => Update::Unchanged,
            _ => Update::New(SlotsReading {
                at: server.now,
                slots: server.slots(),
            }),
        };
        // What is reset at the end of a task is lost with this reading of the slots.
        let truth = Truth {
            prompt_unknowable: server.truth.prompt_unknowable,
            ambiguous: server.truth.ambiguous,
            prompt_ambiguous: server.truth.prompt_ambiguous,
            ..truth
        };
        // Unread tokens are not always distinguished from those that came right after.
        // Where the counter is rounded, they may be missing for as long as it stands.
        let is_rounded = half_step(truth.generated) > 0.0;
        let polls = if is_rounded { usize::MAX } else { 3 };
        let news = self.polled.iter().rev().take(polls);
        let truth = Truth {
            unread_lately: truth.unread + news.clone().map(|(_, t)| t.unread).sum::<f64>(),
            prompt_unread_lately: truth.prompt_unread
                + news.map(|(_, t)| t.prompt_unread).sum::<f64>(),
            ..truth
        };
        let model = self.state.update(&reading);
        let whole = outcome == PollOutcome::Whole
            || (outcome == PollOutcome::LateSlots && !setup.has_slots);
        let name = format!("{setup:?}, {outcome:?}, {truth:?}, {counters:?}, {model:?}");
        self.assert_never_falls(&model, &name);
        if whole && setup.has_metrics && setup.has_slots && !server.is_busy() {
            Self::assert_equals_idle_server(&model, &before, &truth, &name);
        }
        if setup.has_metrics && (whole || late_slots) {
            self.assert_within_bounds(&setup, &model, &before, &truth, whole, &name);
        }
        if whole {
            self.last_counters = Some(counters);
            self.assert_rates(&setup, &model, server.now, &truth, &name);
            self.polled.push((server.now, truth));
        } else {
            assert_eq!(model.rates.tokens_per_second, None, "{name}");
            assert_eq!(model.rates.prompt_tokens_per_second, None, "{name}");
        }
        if let Some(latency) = &model.rates.batch_latency
            && latency.count() > 0
            && !server.was_ambiguous
        {
            let mean = latency.sum() / latency.count() as f64 / setup.call.as_secs_f64();
            assert!(
                (0.88..1.14).contains(&mean),
                "a batch took {mean} of its time: {name}"
            );
        }
        self.model = model;
    }

    /// Before b10566 a sleeping server is not polled.
    fn poll_asleep(&mut self, server: &mut Server) {
        if self.run != server.run {
            return;
        }
        let mut reading = ModelReading {
            state: ModelState::Asleep(server.now),
            ..ModelReading::default()
        };
        reading.counters = match server.setup.build {
            _ if !server.setup.has_metrics => Update::Absent,
            Build::From10566 => Update::New(CountersReading {
                at: server.now,
                process: Some(server.run.to_string()),
                counters: server.metrics(),
            }),
            _ => Update::Unchanged,
        };
        let model = self.state.update(&reading);
        let name = format!("asleep, {:?}, {model:?}", server.truth());
        self.assert_never_falls(&model, &name);
        assert_eq!(model.rates.tokens_per_second, Some(0.0), "{name}");
        self.polled.push((server.now, server.truth()));
        self.model = model;
    }

    fn assert_never_falls(&self, model: &Model, name: &str) {
        let counters: [fn(&Model) -> Option<f64>; 3] = [
            |model| model.live.generated_tokens,
            |model| model.live.prompt_tokens,
            |model| model.live.decode_calls,
        ];
        for counter in counters {
            if let (Some(then), Some(now)) = (counter(&self.model), counter(model)) {
                assert!(then <= now, "from {then} to {now}: {name}");
            }
        }
    }

    /// When the server is idle, the counters are its own, and the tokens that it dropped.
    fn assert_equals_idle_server(model: &Model, counted: &Truth, truth: &Truth, name: &str) {
        let assert_close = |value: Option<f64>, counted: f64, truth: f64, slack: f64| {
            let (value, half) = (value.unwrap(), half_step(truth));
            let (least, most) = (counted - slack - half, truth + slack + half);
            assert!(
                (least..=most).contains(&value),
                "{value} is not in {least}..={most} when idle: {name}"
            );
        };
        let live = &model.live;
        let (counted, counted_prompt) = (counted.predicted, counted.prompt_counted);
        assert_close(
            live.generated_tokens,
            counted,
            truth.generated,
            truth.ambiguous,
        );
        if live.prompt_tokens.is_some() {
            assert_close(
                live.prompt_tokens,
                counted_prompt,
                truth.prompt,
                truth.prompt_ambiguous,
            );
        }
    }

    fn assert_within_bounds(
        &self,
        setup: &Setup,
        model: &Model,
        before: &Truth,
        truth: &Truth,
        whole: bool,
        name: &str,
    ) {
        let between = |value: f64, least: f64, most: f64| {
            assert!(
                (least..=most).contains(&value),
                "{value} is not in {least}..={most}: {name}"
            );
        };
        let half = half_step(truth.generated);
        let (least, most) = if !setup.has_slots {
            // Each batch of prompt looks like a token; disconnected requests show no more.
            (
                before.predicted - half,
                truth.generated + truth.batches + half,
            )
        } else if whole {
            let unknown = truth.unknowable + truth.unproven + truth.unread_lately;
            let most = truth.generated + truth.ambiguous + half;
            (truth.generated - unknown - truth.ambiguous - half, most)
        } else {
            (
                before.predicted - 2.0 * half,
                truth.generated + truth.batches + truth.ambiguous + half,
            )
        };
        between(model.live.generated_tokens.unwrap(), least, most);

        let half = half_step(truth.prompt);
        let least = if setup.has_slots && whole && setup.build == Build::Before10566 {
            truth.prompt
                - truth.prompt_unknowable
                - truth.prompt_unproven
                - truth.prompt_unread_lately
                - truth.prompt_ambiguous
        } else {
            before.prompt_counted - if whole { 0.0 } else { half }
        };
        if let Some(prompt) = model.live.prompt_tokens {
            let most = truth.prompt + truth.prompt_ambiguous + half;
            between(prompt, least - half, most);
        }

        let half = half_step(truth.calls);
        // The slots give the calls of a moment later, which cannot be distinguished.
        let moment = if half > 0.0 { 2.0 } else { 0.0 };
        let least = before.calls - truth.ambiguous - moment - if whole { half } else { 2.0 * half };
        let most = truth.calls + truth.ambiguous + half;
        between(model.live.decode_calls.unwrap(), least, most);
    }

    fn assert_rates(&self, setup: &Setup, model: &Model, now: Instant, truth: &Truth, name: &str) {
        let slots = setup.has_slots;
        let rounded = half_step(truth.calls) > 0.0;
        let generated = |a: &Truth, b: &Truth| {
            let unread = a.unread_lately + b.unread_lately;
            // A drop shows late, or is hidden by requests that no poll read.
            let unproven = b.unknowable - a.unknowable + b.unproven + 2.0 * b.ambiguous;
            if slots {
                unread + unproven
            } else {
                // The tokens in flight at the first poll are unknown.
                let met = &self.polled[0].1;
                let in_flight = met.generated - met.disconnected - met.predicted;
                in_flight + setup.slots as f64 + a.batches + b.batches - 2.0 * met.batches
                    + b.disconnected
            }
        };
        let reports_prompt = slots && setup.build > Build::Before9294;
        let prompt = |truth: &Truth| {
            if reports_prompt {
                truth.prompt
            } else {
                truth.prompt_counted
            }
        };
        let prompt_slack = |a: &Truth, b: &Truth| {
            let unread = a.prompt_unread_lately + b.prompt_unread_lately;
            unread + b.prompt_unknowable - a.prompt_unknowable
                + b.prompt_unproven
                + b.prompt_disconnected
                + b.prompt_ambiguous
        };
        if setup.has_metrics {
            self.assert_rate(
                model.rates.tokens_per_second,
                now,
                truth,
                rounded && !slots,
                name,
                &|t| t.generated,
                &generated,
            );
            self.assert_rate(
                model.rates.prompt_tokens_per_second,
                now,
                truth,
                rounded && !slots,
                name,
                &prompt,
                &prompt_slack,
            );
        } else if let (Some(rate), Some((then, before))) =
            (model.rates.tokens_per_second, self.polled.last())
        {
            let last_polled = rate * now.duration_since(*then).as_secs_f64();
            assert!(
                last_polled <= truth.generated - before.generated + truth.ambiguous + 1e-6,
                "{last_polled} last_polled: {name}"
            );
        }
    }

    /// The rate is that of some window up to now, and no poll reads 0 while tokens come.
    #[allow(clippy::too_many_arguments)]
    fn assert_rate(
        &self,
        rate: Option<f64>,
        now: Instant,
        truth: &Truth,
        may_be_blind: bool,
        name: &str,
        count: &dyn Fn(&Truth) -> f64,
        slack: &dyn Fn(&Truth, &Truth) -> f64,
    ) {
        let (Some(rate), Some((_, before))) = (rate, self.polled.last()) else {
            return;
        };
        let grown = count(truth) - count(before);
        if rate == 0.0 {
            assert!(
                may_be_blind || grown <= slack(before, truth),
                "0 while {grown} came: {name}"
            );
            return;
        }
        let windows = self.polled.iter().rev().map(|(at, then)| {
            let seconds = now.duration_since(*at).as_secs_f64();
            let grown = count(truth) - count(then);
            let wrong = (rate * seconds - grown).abs();
            (
                wrong <= grown * 0.12 + slack(then, truth) + 1e-6,
                seconds,
                grown / seconds,
            )
        });
        let windows: Vec<_> = windows.collect();
        assert!(
            windows.iter().any(|(fits, ..)| *fits),
            "{rate} is none of {windows:?}: {name}"
        );
    }
}

fn setups() -> impl Strategy<Value = Setup> {
    let build = prop_oneof![
        Just(Build::Before9294),
        Just(Build::Before10566),
        Just(Build::From10566)
    ];
    let counted = prop_oneof![Just(0.0), Just(3e6), Just(4e7), Just(7e8)];
    let endpoints = prop_oneof![
        4 => Just((true, true)),
        1 => Just((false, true)),
        1 => Just((true, false)),
    ];
    (build, 1..5usize, counted, endpoints, 2..50u64).prop_map(
        |(build, slots, counted, (has_slots, has_metrics), call)| Setup {
            build,
            slots,
            counted,
            has_slots,
            has_metrics,
            call: Duration::from_millis(call),
        },
    )
}

fn events() -> impl Strategy<Value = Vec<Event>> {
    let outcome = prop_oneof![
        12 => Just(PollOutcome::Whole),
        1 => Just(PollOutcome::LateMetrics),
        1 => Just(PollOutcome::LateSlots),
        1 => Just(PollOutcome::Missed),
    ];
    let disconnects = prop_oneof![4 => Just(None), 1 => (0..200u64).prop_map(Some)];
    // Clients repeat their prompts.
    let prompt = prop_oneof![2 => 1..2000u64, 1 => Just(1), 1 => Just(200)];
    let answer = prop_oneof![3 => 1..400u64, 1 => 1..20u64];
    let request = (prompt, answer, disconnects).prop_map(|(prompt, answer, disconnects_after)| {
        Event::Request {
            prompt,
            answer,
            disconnects_after,
        }
    });
    let event = prop_oneof![
        10 => request,
        20 => (1..150u32, 0..3u32, outcome).prop_map(|(calls, between, outcome)| Event::Poll { calls, between, outcome }),
        2 => (1..100u64).prop_map(|seconds| Event::Pause { seconds }),
        1 => Just(Event::Restart),
        1 => Just(Event::Sleep),
    ];
    prop::collection::vec(event, 1..80)
}

fn simulate(setup: Setup, events: Vec<Event>) {
    let mut server = Server::new(setup);
    let mut exporter = SimulatedExporter::new();
    exporter.poll(&mut server, 0, PollOutcome::Whole);
    for event in events {
        match event {
            Event::Request {
                prompt,
                answer,
                disconnects_after,
            } => {
                let id = server.next_id;
                server.next_id += 1;
                server.waiting.push_back(Request {
                    id,
                    prompt,
                    answer,
                    disconnects_after,
                });
            }
            Event::Poll {
                calls,
                between,
                outcome,
            } => {
                for _ in 0..calls {
                    server.call();
                }
                if !server.is_busy() {
                    // Time passes anyway.
                    server.now += Duration::from_millis(1);
                }
                exporter.poll(&mut server, between, outcome);
            }
            Event::Pause { seconds } => {
                while server.is_busy() {
                    server.call();
                }
                server.now += Duration::from_secs(seconds);
                exporter.poll(&mut server, 0, PollOutcome::Whole);
            }
            Event::Restart => server.begin(0.0),
            Event::Sleep => {
                while server.is_busy() {
                    server.call();
                }
                server.now += Duration::from_secs(5);
                if server.setup.build < Build::From10566 {
                    // What is not read in time is read after the sleep, and seems younger.
                    exporter.poll(&mut server, 0, PollOutcome::Whole);
                }
                exporter.poll_asleep(&mut server);
                server.now += Duration::from_secs(60);
                exporter.poll_asleep(&mut server);
                server.reload();
            }
        }
    }
}

proptest! {
    // The same histories each time. More of them by hand: PROPTEST_CASES=20000.
    #![proptest_config(ProptestConfig {
        failure_persistence: None,
        rng_seed: RngSeed::Fixed(1),
        ..ProptestConfig::default()
    })]

    #[test]
    fn reported_values_stay_within_bounds_in_any_history(setup in setups(), events in events()) {
        simulate(setup, events);
    }
}

/// One request on a server with counters of this size, polled while it streams.
fn stream(build: Build, counted: f64) {
    let setup = Setup {
        build,
        slots: 2,
        counted,
        has_slots: true,
        has_metrics: true,
        call: Duration::from_millis(20),
    };
    let mut server = Server::new(setup);
    let mut exporter = SimulatedExporter::new();
    exporter.poll(&mut server, 0, PollOutcome::Whole);
    server.waiting.push_back(Request {
        id: 1,
        prompt: 100,
        answer: 1000,
        disconnects_after: None,
    });
    let before = exporter.model.clone();
    for poll in 0..15 {
        for _ in 0..50 {
            server.call();
        }
        exporter.poll(&mut server, 1, PollOutcome::Whole);
        let grown =
            exporter.model.live.generated_tokens.unwrap() - before.live.generated_tokens.unwrap();
        assert_eq!(grown, (poll + 1) as f64 * 51.0, "{build:?} {counted}");
        // With large counters, the first interval may have had another request.
        if poll > 0 {
            assert_eq!(
                exporter.model.rates.tokens_per_second,
                Some(50.0),
                "{build:?} {counted}"
            );
            assert_eq!(
                exporter.model.rates.batch_size,
                Some(1.0),
                "{build:?} {counted}"
            );
        }
    }
    let latency = exporter.model.rates.batch_latency.as_ref().unwrap();
    let calls = latency.sum() / 0.02;
    assert!(
        (calls - latency.count() as f64).abs() < 1e-6,
        "{build:?} {counted}"
    );
    // At any size of the counters, the end of generation shows at once.
    while server.is_busy() {
        server.call();
    }
    for _ in 0..2 {
        server.now += Duration::from_secs(1);
        exporter.poll(&mut server, 0, PollOutcome::Whole);
    }
    assert_eq!(
        exporter.model.rates.tokens_per_second,
        Some(0.0),
        "{build:?} {counted}"
    );
    let grown =
        exporter.model.live.generated_tokens.unwrap() - before.live.generated_tokens.unwrap();
    assert_eq!(grown, 1000.0, "{build:?} {counted}");
}

#[test]
fn the_rate_of_a_stream_is_exact_at_any_size_of_the_counters() {
    for build in [Build::Before9294, Build::Before10566, Build::From10566] {
        for counted in [0.0, 3e6, 4e7, 7e8] {
            stream(build, counted);
        }
    }
}

/// Requests that begin and end between two polls, on a server that has counted 700 million.
#[test]
fn hidden_requests_of_large_counters_give_a_rate_over_a_longer_time() {
    for (has_slots, calls) in [(true, 100), (false, 400)] {
        let setup = Setup {
            build: Build::From10566,
            slots: 4,
            counted: 7e8,
            has_slots,
            has_metrics: true,
            call: Duration::from_millis(10),
        };
        let mut server = Server::new(setup);
        let mut exporter = SimulatedExporter::new();
        exporter.poll(&mut server, 0, PollOutcome::Whole);
        let mut known = 0;
        for poll in 0..200 {
            for _ in 0..calls {
                if server.waiting.len() < 4 {
                    let id = server.next_id;
                    server.next_id += 1;
                    server.waiting.push_back(Request {
                        id,
                        prompt: 1,
                        answer: 10 + id % 20,
                        disconnects_after: None,
                    });
                }
                server.call();
            }
            exporter.poll(&mut server, 0, PollOutcome::Whole);
            // Four slots, and a token each at every call.
            if let Some(rate) = exporter.model.rates.tokens_per_second {
                known += 1;
                assert!((350.0..=450.0).contains(&rate), "{rate} at poll {poll}");
            }
        }
        assert!(known > 120, "{known} rates, /slots: {has_slots}");
    }
}
