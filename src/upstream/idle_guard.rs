//! Decides when a server may be read without waking it or keeping it awake.
//!
//! Reading `/slots` (in every build of llama-server), or `/metrics` (before b10566), counts as a
//! request: it wakes a sleeping server and restarts its idle timer. A server that may fall asleep
//! is therefore not read while it is idle. Reading resumes when it wakes, when its log reports
//! requests, or when it is still awake after its idle timeout: then it had requests.

use std::time::{Duration, Instant};

use crate::bounds::{BoundedDuration, deadline};
use crate::readings::Counters;
use crate::readings::counters::rounding_step;

/// From this build on, `/metrics` neither wakes a sleeping server nor restarts its idle timer.
const FIRST_BUILD_WITH_PASSIVE_METRICS: u32 = 10_566;
/// The largest delay with which a server falls asleep; measured: 0.06 s.
const GRACE: Duration = Duration::from_millis(500);
/// How many reads after a wake must find no requests before the server counts as idle.
const READS_AFTER_WAKE: u8 = 3;
/// The idle timeout of a server that sleeps at times, if nothing else is known.
const ASSUMED_TIMEOUT: BoundedDuration = BoundedDuration::from_secs(60);
const LONGEST_TIMEOUT: BoundedDuration = BoundedDuration::from_secs(3600);

/// The idle guard of one server.
#[derive(Debug)]
pub struct IdleGuard {
    /// The build number, if the server reports it.
    build: Option<u32>,
    /// Whether its `/metrics` has a family that came with [`FIRST_BUILD_WITH_PASSIVE_METRICS`].
    has_new_metrics: bool,
    /// How long it is idle before it sleeps; `None` if it never sleeps, as far as is known.
    timeout: Option<BoundedDuration>,
    is_asleep: bool,
    /// Reads that must still find no requests before a server that woke counts as idle. It wakes
    /// for a request, but first responds to the reads that arrived while it was loading.
    reads_after_wake: u8,
    /// When the last read that restarts the idle timer found the server idle.
    idle_since: Option<Instant>,
    /// The last `/metrics`.
    counters: Option<Counters>,
    /// The last `/metrics` before the last `/slots`.
    counters_at_slots: Option<Counters>,
    has_read_slots: bool,
}

impl IdleGuard {
    /// Only the idle timeout may be known, if set by the user.
    pub fn new(timeout: Option<BoundedDuration>) -> IdleGuard {
        IdleGuard {
            build: None,
            has_new_metrics: false,
            timeout,
            is_asleep: false,
            reads_after_wake: 0,
            idle_since: None,
            counters: None,
            counters_at_slots: None,
            has_read_slots: false,
        }
    }

    /// Sets the idle timeout, unless the user set it or it was measured.
    pub fn set_timeout(&mut self, timeout: BoundedDuration) {
        self.timeout.get_or_insert(timeout);
    }

    /// Resets the state of a server that has restarted; keeps its idle timeout.
    pub fn reset(&mut self) {
        *self = IdleGuard::new(self.timeout);
    }

    /// Sets the build number, if the server reports one.
    pub fn set_build(&mut self, build: Option<u32>) {
        self.build = build;
    }

    /// Whether reading `/metrics` restarts the idle timer. If the build number is unknown, the
    /// content of `/metrics` decides; before the first reading, the answer is yes.
    fn metrics_restart_timer(&self) -> bool {
        match self.build {
            Some(build) => build < FIRST_BUILD_WITH_PASSIVE_METRICS,
            None => !self.has_new_metrics,
        }
    }

    /// Records whether the server was asleep at `now`.
    pub fn record_sleep(&mut self, now: Instant, is_asleep: bool) {
        let woke = self.is_asleep && !is_asleep;
        if is_asleep && !self.is_asleep {
            // Its timeout cannot be longer than the time since the last read.
            let measured = self
                .idle_since
                .map(|since| BoundedDuration::new(now.duration_since(since)));
            let shortest = measured.into_iter().chain(self.timeout).min();
            self.timeout = shortest.or(Some(ASSUMED_TIMEOUT));
        }
        if woke {
            self.reads_after_wake = READS_AFTER_WAKE;
        }
        if is_asleep || woke {
            self.idle_since = None;
            self.has_read_slots &= !is_asleep;
        }
        self.is_asleep = is_asleep;
    }

    /// Records that the server's log has reported requests since the last read: they have restarted
    /// its idle timer.
    pub fn record_logged_requests(&mut self) {
        self.idle_since = None;
    }

    /// When an idle server should be asleep: it is polled then, to see whether it had requests.
    pub fn extra_poll_at(&self) -> Option<Instant> {
        let (timeout, since) = self.timeout.zip(self.idle_since)?;
        // If /metrics does not restart the timer, every poll reads it, and nothing is missed.
        let is_unread = self.metrics_restart_timer() || self.counters.is_none();
        (is_unread && !self.is_asleep).then(|| deadline(deadline(since, timeout), GRACE))
    }

    /// Whether the server is asleep, by its last `/props`.
    pub fn is_asleep(&self) -> bool {
        self.is_asleep
    }

    /// Whether `/metrics` may be read at `now`.
    pub fn may_read_metrics(&self, now: Instant) -> bool {
        !self.metrics_restart_timer() || self.may_restart_timer(now)
    }

    /// Whether `/slots` may be read at `now`, and there were requests since the last time.
    pub fn may_read_slots(&self, now: Instant) -> bool {
        if self.is_asleep {
            return false;
        }
        match (&self.counters, &self.counters_at_slots) {
            _ if !self.has_read_slots && self.counters.is_some() => true,
            // Without /metrics, only /slots itself shows requests.
            (None, _) => self.may_restart_timer(now),
            // A short request may not change the six printed digits of a large count.
            (Some(now), Some(_)) if self.timeout.is_none() && is_rounded(now) => true,
            (Some(now), Some(then)) => {
                now.is_busy() || then.is_busy() || has_activity_between(now, then)
            }
            (Some(_), None) => true,
        }
    }

    /// Records a reading of `/metrics` at `now`.
    pub fn record_metrics(&mut self, now: Instant, counters: &Counters) {
        // `llamacpp:prompt_tokens_cached_total` was added in the same build.
        self.has_new_metrics = counters.prompt_tokens_cached.is_some();
        let is_unchanged = self
            .counters
            .as_ref()
            .is_some_and(|then| !has_activity_between(counters, then));
        self.record_activity(now, counters.is_busy(), is_unchanged);
        self.counters = Some(counters.clone());
    }

    /// Records a reading of `/slots` at `now`, and whether a slot was busy.
    pub fn record_slots(&mut self, now: Instant, is_busy: bool) {
        self.has_read_slots = true;
        self.counters_at_slots = self.counters.clone();
        if self.counters.is_none() {
            self.record_activity(now, is_busy, !is_busy);
        } else {
            // A request may be on a slot before /metrics counts it.
            let is_idle = !is_busy && self.idle_since.is_some();
            self.idle_since = is_idle.then_some(now);
        }
    }

    fn record_activity(&mut self, now: Instant, is_busy: bool, is_unchanged: bool) {
        // It should be asleep, and had no requests: its timeout is longer.
        let is_late =
            self.idle_since.is_some() && is_unchanged && !is_busy && self.metrics_restart_timer();
        if let Some(timeout) = self.timeout.as_mut().filter(|_| is_late) {
            *timeout = timeout.times(2).min(LONGEST_TIMEOUT.max(*timeout));
        }
        self.reads_after_wake = if is_busy || !is_unchanged {
            0
        } else {
            self.reads_after_wake.saturating_sub(1)
        };
        self.idle_since = (!is_busy && self.reads_after_wake == 0).then_some(now);
    }

    /// Whether a read that restarts the idle timer is allowed at `now`.
    fn may_restart_timer(&self, now: Instant) -> bool {
        let is_idle = self.timeout.is_some() && self.idle_since.is_some();
        !self.is_asleep && (!is_idle || self.extra_poll_at().is_none_or(|at| now >= at))
    }
}

/// Whether a count that grows with every request is rounded when it is printed.
fn is_rounded(counters: &Counters) -> bool {
    let counts = [counters.decode_calls, counters.generated_tokens];
    counts
        .into_iter()
        .flatten()
        .any(|count| rounding_step(count) > 0.0)
}

fn has_activity_between(a: &Counters, b: &Counters) -> bool {
    a.decode_calls != b.decode_calls
        || a.prompt_tokens != b.prompt_tokens
        || a.generated_tokens != b.generated_tokens
        || a.prompt_seconds != b.prompt_seconds
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn counters(calls: f64, processing: f64) -> Counters {
        Counters {
            decode_calls: Some(calls),
            requests_processing: Some(processing),
            ..Counters::default()
        }
    }

    /// A server of `build` that two reads at `start` found idle.
    fn idle_server(build: Option<u32>, sleep_idle: Option<Duration>, start: Instant) -> IdleGuard {
        let mut guard = IdleGuard::new(sleep_idle.map(BoundedDuration::from));
        guard.set_build(build);
        guard.record_sleep(start, false);
        guard.record_metrics(start, &counters(5.0, 0.0));
        guard.record_slots(start, false);
        guard
    }

    #[test]
    fn slots_are_read_at_every_poll_if_rounding_may_hide_a_request() {
        let start = Instant::now();
        for (calls, sleeps, is_read) in
            [(5.0, false, false), (3e6, false, true), (3e6, true, false)]
        {
            let sleep_idle = sleeps.then(|| SECOND.into());
            let mut guard = IdleGuard::new(sleep_idle);
            guard.set_build(Some(11_549));
            guard.record_sleep(start, false);
            for _ in 0..2 {
                guard.record_metrics(start, &counters(calls, 0.0));
                guard.record_slots(start, false);
            }
            assert_eq!(guard.may_read_slots(start), is_read, "{calls}, {sleeps}");
        }
    }

    #[test]
    fn a_server_that_never_sleeps_is_read_at_every_poll() {
        let start = Instant::now();
        let guard = idle_server(Some(7710), None, start);
        assert!(guard.may_read_metrics(start + SECOND));
    }

    #[test]
    fn an_idle_server_that_may_sleep_is_not_read_until_it_should_be_asleep() {
        let start = Instant::now();
        let guard = idle_server(Some(7710), Some(6 * SECOND), start);
        assert!(!guard.may_read_metrics(start + 5 * SECOND));
        assert!(!guard.may_read_slots(start + 5 * SECOND));
        assert!(guard.may_read_metrics(start + 7 * SECOND));
        assert_eq!(guard.extra_poll_at(), Some(start + 6 * SECOND + GRACE));
    }

    #[test]
    fn requests_in_the_log_allow_one_read_of_an_idle_server() {
        let start = Instant::now();
        let mut guard = idle_server(Some(7710), Some(60 * SECOND), start);
        guard.record_logged_requests();
        assert!(guard.may_read_metrics(start + SECOND));
        guard.record_metrics(start + SECOND, &counters(9.0, 0.0));
        assert!(!guard.may_read_metrics(start + 2 * SECOND));

        guard.record_sleep(start + 70 * SECOND, true);
        guard.record_logged_requests();
        assert!(!guard.may_read_metrics(start + 71 * SECOND));
    }

    #[test]
    fn a_busy_slot_counts_before_metrics_show_the_request() {
        let start = Instant::now();
        let mut guard = idle_server(Some(7710), Some(6 * SECOND), start);
        guard.record_metrics(start + 8 * SECOND, &counters(5.0, 0.0));
        guard.record_slots(start + 8 * SECOND, true);
        assert!(guard.may_read_metrics(start + 9 * SECOND));
    }

    #[test]
    fn an_unknown_build_is_not_read_while_it_may_fall_asleep() {
        let start = Instant::now();
        assert!(!idle_server(None, Some(6 * SECOND), start).may_read_metrics(start + SECOND));
        assert!(
            idle_server(Some(10_566), Some(6 * SECOND), start).may_read_metrics(start + SECOND)
        );
    }

    #[test]
    fn an_unknown_build_is_identified_by_its_metrics() {
        let start = Instant::now();
        let new = Counters {
            prompt_tokens_cached: Some(0.0),
            ..counters(5.0, 0.0)
        };
        for (build, harmless) in [(None, true), (Some(10_565), false), (Some(10_566), true)] {
            let mut guard = idle_server(build, Some(6 * SECOND), start);
            guard.record_metrics(start, &new);
            // Every poll sets the build again; /props does not report it.
            guard.set_build(build);
            assert_eq!(
                guard.may_read_metrics(start + SECOND),
                harmless,
                "{build:?}"
            );
        }
        // Another server at the same address may be an older one.
        let mut guard = idle_server(None, Some(6 * SECOND), start);
        guard.record_metrics(start, &new);
        guard.reset();
        guard.record_metrics(start, &counters(5.0, 0.0));
        assert!(!guard.may_read_metrics(start + SECOND));
    }

    #[test]
    fn a_busy_server_is_read_even_if_it_may_sleep() {
        let start = Instant::now();
        let mut guard = idle_server(Some(7710), Some(6 * SECOND), start);
        guard.record_metrics(start + 8 * SECOND, &counters(9.0, 1.0));
        assert!(guard.may_read_metrics(start + 9 * SECOND));
        assert!(guard.may_read_slots(start + 9 * SECOND));
    }

    #[test]
    fn a_sleeping_server_is_not_read_and_a_waking_one_is() {
        let start = Instant::now();
        let mut guard = idle_server(Some(7710), Some(6 * SECOND), start);
        guard.record_sleep(start + 7 * SECOND, true);
        assert!(!guard.may_read_metrics(start + 3600 * SECOND));
        assert!(!guard.may_read_slots(start + 3600 * SECOND));
        guard.record_sleep(start + 3601 * SECOND, false);
        assert!(guard.may_read_metrics(start + 3601 * SECOND));
    }

    #[test]
    fn the_idle_timeout_is_measured_when_a_server_falls_asleep() {
        let start = Instant::now();
        let mut guard = idle_server(Some(7710), None, start);
        guard.record_sleep(start + 4 * SECOND, true);
        guard.record_sleep(start + 9 * SECOND, false);
        guard.record_metrics(start + 9 * SECOND, &counters(7.0, 0.0));
        assert!(!guard.may_read_metrics(start + 13 * SECOND));
        assert!(guard.may_read_metrics(start + 14 * SECOND));
    }

    #[test]
    fn the_users_timeout_overrides_that_of_the_command_line() {
        let start = Instant::now();
        let mut detected = idle_server(Some(7710), None, start);
        detected.set_timeout(BoundedDuration::from_secs(6));
        assert!(!detected.may_read_metrics(start + 5 * SECOND));
        assert!(detected.may_read_metrics(start + 8 * SECOND));
        let mut set = idle_server(Some(7710), Some(60 * SECOND), start);
        set.set_timeout(BoundedDuration::from_secs(6));
        assert!(!set.may_read_metrics(start + 50 * SECOND));
    }

    #[test]
    fn a_server_that_woke_is_read_until_its_request_is_found() {
        let start = Instant::now();
        let mut guard = idle_server(Some(7710), Some(6 * SECOND), start);
        guard.record_sleep(start + 7 * SECOND, true);
        guard.record_sleep(start + 20 * SECOND, false);
        guard.record_metrics(start + 20 * SECOND, &counters(5.0, 0.0));
        guard.record_slots(start + 20 * SECOND, false);
        assert!(guard.may_read_metrics(start + 21 * SECOND));
        guard.record_metrics(start + 21 * SECOND, &counters(30.0, 1.0));
        guard.record_metrics(start + 22 * SECOND, &counters(50.0, 0.0));
        assert!(!guard.may_read_metrics(start + 23 * SECOND));
    }

    #[test]
    fn the_timeout_grows_if_a_server_stays_awake_without_requests() {
        let start = Instant::now();
        let mut guard = idle_server(Some(7710), Some(6 * SECOND), start);
        guard.record_metrics(start + 8 * SECOND, &counters(5.0, 0.0));
        assert!(!guard.may_read_metrics(start + 17 * SECOND));
        assert!(guard.may_read_metrics(start + 22 * SECOND));
    }

    #[test]
    fn slots_are_read_during_requests_and_once_after_them() {
        let start = Instant::now();
        let mut guard = idle_server(Some(11_434), None, start);
        guard.record_metrics(start + SECOND, &counters(5.0, 0.0));
        assert!(!guard.may_read_slots(start + SECOND), "no request since");
        guard.record_metrics(start + 2 * SECOND, &counters(9.0, 1.0));
        assert!(
            guard.may_read_slots(start + 2 * SECOND),
            "a request is running"
        );
        guard.record_slots(start + 2 * SECOND, true);
        guard.record_metrics(start + 3 * SECOND, &counters(9.0, 0.0));
        assert!(
            guard.may_read_slots(start + 3 * SECOND),
            "it has ended since"
        );
        guard.record_slots(start + 3 * SECOND, false);
        guard.record_metrics(start + 4 * SECOND, &counters(9.0, 0.0));
        assert!(!guard.may_read_slots(start + 4 * SECOND), "already read");
        guard.record_metrics(start + 5 * SECOND, &counters(20.0, 0.0));
        assert!(
            guard.may_read_slots(start + 5 * SECOND),
            "a request ran between two polls"
        );
    }

    #[test]
    fn without_metrics_slots_are_read_unless_that_keeps_the_server_awake() {
        let start = Instant::now();
        let mut guard = IdleGuard::new(None);
        guard.set_build(Some(11_434));
        guard.record_slots(start, false);
        assert!(guard.may_read_slots(start + SECOND));
        guard.record_sleep(start + 4 * SECOND, true);
        guard.record_sleep(start + 9 * SECOND, false);
        // It counts as idle after three reads.
        for second in 9..12 {
            assert!(guard.may_read_slots(start + second * SECOND));
            guard.record_slots(start + second * SECOND, false);
        }
        assert!(!guard.may_read_slots(start + 12 * SECOND));
    }
}
