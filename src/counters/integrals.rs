//! Counters that the exporter keeps of a model: levels integrated over the polls, and loads.
//!
//! They are right at any interval of scrapes, and survive a restart of the model's server. The
//! number of requests between two readings is taken as the mean of both: a request that begins or
//! ends in between does so in the middle on average. A status holds from the poll that found it to
//! the next one; but the poll that finds a model no longer asleep has waited for it to load. A time
//! in which the server was down adds nothing. One in which it answered too late adds no status, and
//! as many requests as any other time between two readings: an overloaded server is at work.

use std::time::Instant;

use crate::readings::ModelStatus::{self, Idle, Loading, Running, Sleeping};
use crate::readings::{CountersReading, ModelReading, ModelState, Update};
use crate::snapshot::{Integrals, Model};

/// Integrates the levels of one model.
#[derive(Debug, Default)]
pub struct Integrator {
    deferred: Integral,
    processing: Integral,
    /// The last status, and when it was found.
    status: Option<(Instant, ModelStatus)>,
    /// Whether the model was not loaded when its status was known last.
    was_unloaded: bool,
    /// Whether a load was counted since the server's counters were read last.
    is_load_counted: bool,
    totals: Integrals,
}

/// A level integrated over time.
#[derive(Debug, Default)]
struct Integral {
    last: Option<(Instant, f64)>,
    seconds: Option<f64>,
}

impl Integral {
    fn add(&mut self, at: Instant, level: Option<f64>) {
        let Some(level) = level else { return };
        let (then, before) = self.last.replace((at, level)).unwrap_or((at, level));
        let seconds = at.saturating_duration_since(then).as_secs_f64();
        let total = self.seconds.unwrap_or(0.0) + seconds * (before + level) / 2.0;
        self.seconds = Some(total);
    }
}

impl Integrator {
    /// Takes what is known of the model at a poll from `began` to `at`. `has_restarted`: its counters
    /// show that the server has been restarted.
    pub fn update(
        &mut self,
        began: Instant,
        at: Instant,
        reading: &ModelReading,
        model: &Model,
        has_restarted: bool,
    ) -> Integrals {
        let read_at = match (&reading.counters, &reading.slots, reading.state) {
            (_, _, ModelState::Asleep(at)) => Some(at),
            (Update::New(read), ..) => Some(read.at),
            (_, Update::New(read), _) => Some(read.at),
            _ => None,
        };
        let is_loading = model.status == Some(Loading);
        if has_restarted || is_loading || !model.is_loaded() {
            (self.deferred.last, self.processing.last) = (None, None);
        }
        if let Some(read_at) = read_at {
            let counters = &model.counters;
            self.deferred.add(read_at, counters.requests_deferred);
            self.processing.add(read_at, counters.requests_processing);
        }
        self.totals.requests_deferred_seconds = self.deferred.seconds;
        self.totals.requests_processing_seconds = self.processing.seconds;
        if let Some((_, Sleeping)) = self.status
            && let Some(Loading | Idle | Running) = model.status
        {
            self.add_status(began, Some(Loading));
        }
        self.add_status(at, model.status);
        self.count_loads(model.status, &reading.counters, has_restarted);
        self.totals.clone()
    }

    /// The server did not answer the poll. Unless it `is_late`, nothing is known of its requests
    /// since the last reading.
    pub fn interrupt(&mut self, is_late: bool) {
        self.status = None;
        if !is_late {
            (self.deferred.last, self.processing.last) = (None, None);
        }
    }

    fn add_status(&mut self, at: Instant, status: Option<ModelStatus>) {
        if let Some((since, status)) = self.status
            && let Some(totals) = &mut self.totals.status_seconds
            && let Some(seconds) = totals.get_mut(status as usize)
        {
            *seconds += at.saturating_duration_since(since).as_secs_f64();
        }
        self.status = status.map(|status| (at, status));
        if status.is_some() {
            self.totals.status_seconds.get_or_insert_default();
        }
    }

    fn count_loads(
        &mut self,
        status: Option<ModelStatus>,
        counters: &Update<CountersReading>,
        has_restarted: bool,
    ) {
        let Some(status) = status else { return };
        let loads = self.totals.loads.get_or_insert_default();
        let is_loaded = matches!(status, Idle | Running);
        let has_loaded = is_loaded && self.was_unloaded;
        self.was_unloaded = !is_loaded;
        if has_loaded || has_restarted && !self.is_load_counted {
            *loads = loads.saturating_add(1);
        }
        self.is_load_counted |= has_loaded;
        if matches!(counters, Update::New(_)) {
            self.is_load_counted = false;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::readings::Counters;
    use std::time::Duration;

    /// How long each poll takes.
    const POLL: Duration = Duration::from_millis(250);

    /// An integrator that is told of polls, one a second.
    #[derive(Default)]
    struct Polls {
        integrator: Integrator,
        start: Option<Instant>,
    }

    impl Polls {
        fn at(&mut self, second: u64) -> Instant {
            *self.start.get_or_insert_with(Instant::now) + Duration::from_secs(second)
        }

        /// A poll that read how many requests wait, if any counters.
        fn poll(&mut self, second: u64, status: ModelStatus, deferred: Option<f64>) -> Integrals {
            self.poll_of(second, status, deferred, false)
        }

        fn poll_of(
            &mut self,
            second: u64,
            status: ModelStatus,
            deferred: Option<f64>,
            has_restarted: bool,
        ) -> Integrals {
            let at = self.at(second);
            let counters = Counters {
                requests_deferred: deferred,
                requests_processing: deferred.map(|_| 2.0),
                ..Counters::default()
            };
            let model = Model {
                status: Some(status),
                counters: counters.clone(),
                ..Model::default()
            };
            let reading = ModelReading {
                state: ModelState::Ready,
                counters: deferred.map_or(Update::Stale, |_| {
                    let process = None;
                    Update::New(CountersReading {
                        at,
                        process,
                        counters,
                    })
                }),
                ..ModelReading::default()
            };
            let began = at - POLL;
            self.integrator
                .update(began, at, &reading, &model, has_restarted)
        }
    }

    fn status_seconds(totals: &Integrals, status: ModelStatus) -> f64 {
        totals.status_seconds.unwrap()[status as usize]
    }

    use ModelStatus::{Failed, Unloaded};

    #[test]
    fn waiting_requests_add_the_mean_of_both_polls() {
        let mut polls = Polls::default();
        let totals = polls.poll(0, Running, Some(4.0));
        assert_eq!(totals.requests_deferred_seconds, Some(0.0));
        let totals = polls.poll(2, Running, Some(0.0));
        assert_eq!(totals.requests_deferred_seconds, Some(4.0));
        assert_eq!(totals.requests_processing_seconds, Some(4.0));
        // A late response is bridged: the server was at work all the time.
        polls.poll(4, Running, None);
        let totals = polls.poll(6, Running, Some(3.0));
        assert_eq!(totals.requests_deferred_seconds, Some(10.0));
    }

    #[test]
    fn requests_of_a_server_that_does_not_tell_them_are_absent() {
        let totals = Polls::default().poll(0, Idle, None);
        assert_eq!(totals.requests_deferred_seconds, None);
        assert_eq!(totals.requests_processing_seconds, None);
    }

    #[test]
    fn a_status_holds_until_the_next_poll() {
        let mut polls = Polls::default();
        let totals = polls.poll(0, Loading, None);
        assert_eq!(totals.status_seconds, Some([0.0; ModelStatus::ALL.len()]));
        polls.poll(3, Running, Some(0.0));
        let totals = polls.poll(4, Idle, Some(0.0));
        assert_eq!(status_seconds(&totals, Loading), 3.0);
        assert_eq!(status_seconds(&totals, Running), 1.0);
        assert_eq!(status_seconds(&totals, Idle), 0.0);
    }

    #[test]
    fn the_poll_that_finds_a_model_awake_waited_for_its_load() {
        for found in [Running, Loading] {
            let mut polls = Polls::default();
            polls.poll(0, Sleeping, None);
            polls.poll(1, Sleeping, None);
            let totals = polls.poll(5, found, None);
            assert_eq!(status_seconds(&totals, Sleeping), 4.75, "{found:?}");
            assert_eq!(status_seconds(&totals, Loading), 0.25);
        }
        let mut polls = Polls::default();
        polls.poll(0, Sleeping, None);
        let totals = polls.poll(5, Unloaded, None);
        assert_eq!(status_seconds(&totals, Sleeping), 5.0);
    }

    #[test]
    fn a_time_without_an_answer_adds_no_status_and_requests_only_of_a_late_server() {
        for (is_late, has_restarted, waited) in
            [(false, false, 0.0), (true, true, 0.0), (true, false, 120.0)]
        {
            let mut polls = Polls::default();
            polls.poll(0, Running, Some(2.0));
            polls.integrator.interrupt(is_late);
            let totals = polls.poll_of(60, Running, Some(2.0), has_restarted);
            assert_eq!(totals.requests_deferred_seconds, Some(waited));
            assert_eq!(status_seconds(&totals, Running), 0.0);
            let totals = polls.poll(61, Running, Some(2.0));
            assert_eq!(totals.requests_deferred_seconds, Some(waited + 2.0));
            assert_eq!(status_seconds(&totals, Running), 1.0);
        }
    }

    #[test]
    fn each_load_counts_once() {
        let cases: [(&[(ModelStatus, bool)], u64); 7] = [
            (&[(Idle, false), (Running, false)], 0),
            (&[(Loading, false), (Loading, false), (Idle, false)], 1),
            (&[(Idle, false), (Sleeping, false), (Running, false)], 1),
            (&[(Sleeping, false), (Loading, false), (Idle, false)], 1),
            (
                &[
                    (Unloaded, false),
                    (Running, false),
                    (Failed, false),
                    (Idle, false),
                ],
                2,
            ),
            // The counters of a restarted server, with or without a poll while it loaded.
            (&[(Idle, false), (Idle, true), (Idle, false)], 1),
            (&[(Idle, false), (Loading, false), (Idle, true)], 1),
        ];
        for (steps, loads) in cases {
            let mut polls = Polls::default();
            let mut totals = Integrals::default();
            for (second, (status, has_restarted)) in steps.iter().enumerate() {
                totals = polls.poll_of(second as u64, *status, Some(0.0), *has_restarted);
            }
            assert_eq!(totals.loads, Some(loads), "{steps:?}");
        }
    }

    #[test]
    fn a_restart_that_the_counters_show_later_counts_once() {
        let mut polls = Polls::default();
        polls.poll(0, Idle, Some(0.0));
        polls.poll(1, Loading, None);
        assert_eq!(polls.poll(2, Running, None).loads, Some(1));
        let totals = polls.poll_of(3, Running, Some(0.0), true);
        assert_eq!(totals.loads, Some(1));
        assert_eq!(polls.poll_of(4, Idle, Some(0.0), true).loads, Some(2));
    }
}
