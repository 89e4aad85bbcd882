//! When a question may be asked without doing harm.
//!
//! `/slots` counts as work on every build of llama-server, and `/metrics`
//! before b10566: each wakes a server that sleeps and starts its idle timer
//! anew. So a server that may fall asleep is left alone while it is idle, until
//! it wakes, or until it should have fallen asleep by now and has not: then
//! there was work.

use std::time::{Duration, Instant};

use crate::bounds::{BoundedDuration, deadline};
use crate::readings::Counters;
use crate::readings::counters::rounding_step;

/// From this build on `/metrics` neither wakes a sleeper nor resets its timer.
const METRICS_ARE_HARMLESS: u32 = 10_566;
/// How much later than due a server may fall asleep; measured: 0.06 s.
const GRACE: Duration = Duration::from_millis(500);
/// How many reads after a wake may find nothing and are not believed.
const READS_AFTER_WAKE: u8 = 3;
/// How long to leave a server alone of which only is known that it sleeps at times.
const FIRST_PATIENCE: BoundedDuration = BoundedDuration::from_secs(60);
const LONGEST_PATIENCE: BoundedDuration = BoundedDuration::from_secs(3600);

/// What is known of one server's sleep, and of what went on when it was last read.
#[derive(Debug)]
pub struct IdleGuard {
    /// The number of the build, where the server tells it.
    build: Option<u32>,
    /// Whether its `/metrics` has what only builds from [`METRICS_ARE_HARMLESS`] on have.
    has_new_metrics: bool,
    /// How long it takes to fall asleep; `None`: it never does, as far as is known.
    patience: Option<BoundedDuration>,
    asleep: bool,
    /// Reads that may find nothing before a server that woke counts as idle: it wakes for
    /// work, but answers what came in while it was loading before it begins with that.
    waking: u8,
    /// When the last read that counts as work found nothing going on.
    quiet_since: Option<Instant>,
    /// What `/metrics` said last.
    counters: Option<Counters>,
    /// What `/metrics` said before `/slots` was read last.
    counters_at_slots: Option<Counters>,
    slots_read: bool,
}

impl IdleGuard {
    /// Nothing is known yet but, where the user said so, how long the server takes to fall asleep.
    pub fn new(sleep_idle: Option<BoundedDuration>) -> IdleGuard {
        IdleGuard {
            build: None,
            has_new_metrics: false,
            patience: sleep_idle,
            asleep: false,
            waking: 0,
            quiet_since: None,
            counters: None,
            counters_at_slots: None,
            slots_read: false,
        }
    }

    /// Takes from elsewhere how long the server takes to fall asleep. What the user
    /// said, or what was seen, stands.
    pub fn told(&mut self, sleep_idle: BoundedDuration) {
        self.patience.get_or_insert(sleep_idle);
    }

    /// Forgets what the last life of the server was doing; keeps what is known of its sleep.
    pub fn reconnected(&mut self) {
        *self = IdleGuard::new(self.patience);
    }

    /// Takes the number of the server's build, where it tells one.
    pub fn saw_build(&mut self, build: Option<u32>) {
        self.build = build;
    }

    /// Whether a read of `/metrics` counts as work. Where the build does not tell its number,
    /// what `/metrics` holds tells; until it was read, it is taken for work.
    fn metrics_are_work(&self) -> bool {
        match self.build {
            Some(build) => build < METRICS_ARE_HARMLESS,
            None => !self.has_new_metrics,
        }
    }

    /// Takes whether the server sleeps at `now`.
    pub fn saw_sleep(&mut self, now: Instant, asleep: bool) {
        let woke = self.asleep && !asleep;
        if asleep && !self.asleep {
            // It cannot have taken longer to fall asleep than since the last read.
            let took = self
                .quiet_since
                .map(|since| BoundedDuration::new(now.duration_since(since)));
            self.patience = took
                .into_iter()
                .chain(self.patience)
                .min()
                .or(Some(FIRST_PATIENCE));
        }
        if woke {
            self.waking = READS_AFTER_WAKE;
        }
        if asleep || woke {
            self.quiet_since = None;
            self.slots_read &= !asleep;
        }
        self.asleep = asleep;
    }

    /// When a server that is left alone should be asleep, and is worth a look if it is not.
    pub fn next_look(&self) -> Option<Instant> {
        let (patience, since) = self.patience.zip(self.quiet_since)?;
        // Where /metrics is no work it is read at every poll, and tells all that there is to see.
        let blind = self.metrics_are_work() || self.counters.is_none();
        (blind && !self.asleep).then(|| deadline(deadline(since, patience), GRACE))
    }

    /// Whether the server sleeps, as far as `/props` told.
    pub fn is_asleep(&self) -> bool {
        self.asleep
    }

    /// Whether `/metrics` may be asked at `now`.
    pub fn may_ask_metrics(&self, now: Instant) -> bool {
        !self.metrics_are_work() || self.may_disturb(now)
    }

    /// Whether `/slots` may be asked at `now`, and is worth it: something is or was
    /// going on since it was read last.
    pub fn may_ask_slots(&self, now: Instant) -> bool {
        if self.asleep {
            return false;
        }
        match (&self.counters, &self.counters_at_slots) {
            _ if !self.slots_read && self.counters.is_some() => true,
            // Without /metrics only /slots itself tells.
            (None, _) => self.may_disturb(now),
            // A request can come and go without moving six digits of a large count.
            (Some(now), Some(_)) if self.patience.is_none() && is_rounded(now) => true,
            (Some(now), Some(then)) => now.is_busy() || then.is_busy() || work_differs(now, then),
            (Some(_), None) => true,
        }
    }

    /// Takes what `/metrics` said at `now`.
    pub fn saw_metrics(&mut self, now: Instant, counters: &Counters) {
        // `llamacpp:prompt_tokens_cached_total` came with that build.
        self.has_new_metrics = counters.prompt_tokens_cached.is_some();
        let nothing_new = self
            .counters
            .as_ref()
            .is_some_and(|then| !work_differs(counters, then));
        self.saw(now, counters.is_busy(), nothing_new);
        self.counters = Some(counters.clone());
    }

    /// Takes that `/slots` was read at `now`, and whether a slot was at work.
    pub fn saw_slots(&mut self, now: Instant, busy: bool) {
        self.slots_read = true;
        self.counters_at_slots = self.counters.clone();
        if self.counters.is_none() {
            self.saw(now, busy, !busy);
        } else {
            // A request may be on its slot before /metrics counts it.
            self.quiet_since = (!busy)
                .then_some(now)
                .filter(|_| self.quiet_since.is_some());
        }
    }

    fn saw(&mut self, now: Instant, busy: bool, nothing_new: bool) {
        // Not asleep when it should have been, and yet there was no work: it takes longer than thought.
        let in_vain = self.quiet_since.is_some() && nothing_new && !busy && self.metrics_are_work();
        if let Some(patience) = self.patience.as_mut().filter(|_| in_vain) {
            *patience = patience.times(2).min(LONGEST_PATIENCE.max(*patience));
        }
        self.waking = if busy || !nothing_new {
            0
        } else {
            self.waking.saturating_sub(1)
        };
        self.quiet_since = (!busy && self.waking == 0).then_some(now);
    }

    fn may_disturb(&self, now: Instant) -> bool {
        match (self.patience, self.quiet_since) {
            _ if self.asleep => false,
            (None, _) | (_, None) => true,
            (Some(_), Some(_)) => self.next_look().is_none_or(|look| now >= look),
        }
    }
}

/// Whether a count that moves with every request is printed in steps of more than one.
fn is_rounded(counters: &Counters) -> bool {
    let counts = [counters.decode_calls, counters.generated_tokens];
    counts
        .into_iter()
        .flatten()
        .any(|count| rounding_step(count) > 0.0)
}

fn work_differs(a: &Counters, b: &Counters) -> bool {
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

    /// A server of `build` that was read twice at `start` and found idle.
    fn idle_server(build: Option<u32>, sleep_idle: Option<Duration>, start: Instant) -> IdleGuard {
        let mut idle_guard = IdleGuard::new(sleep_idle.map(BoundedDuration::from));
        idle_guard.saw_build(build);
        idle_guard.saw_sleep(start, false);
        idle_guard.saw_metrics(start, &counters(5.0, 0.0));
        idle_guard.saw_slots(start, false);
        idle_guard
    }

    #[test]
    fn where_six_digits_hide_a_request_the_slots_are_read_at_every_poll() {
        let start = Instant::now();
        for (calls, sleeps, asked) in [(5.0, false, false), (3e6, false, true), (3e6, true, false)]
        {
            let sleep_idle = sleeps.then(|| SECOND.into());
            let mut idle_guard = IdleGuard::new(sleep_idle);
            idle_guard.saw_build(Some(11_549));
            idle_guard.saw_sleep(start, false);
            for _ in 0..2 {
                idle_guard.saw_metrics(start, &counters(calls, 0.0));
                idle_guard.saw_slots(start, false);
            }
            assert_eq!(idle_guard.may_ask_slots(start), asked, "{calls}, {sleeps}");
        }
    }

    #[test]
    fn a_server_that_never_sleeps_is_asked_at_every_poll() {
        let start = Instant::now();
        let idle_guard = idle_server(Some(7710), None, start);
        assert!(idle_guard.may_ask_metrics(start + SECOND));
    }

    #[test]
    fn an_idle_server_that_may_sleep_is_left_alone_until_it_should_sleep() {
        let start = Instant::now();
        let idle_guard = idle_server(Some(7710), Some(6 * SECOND), start);
        assert!(!idle_guard.may_ask_metrics(start + 5 * SECOND));
        assert!(!idle_guard.may_ask_slots(start + 5 * SECOND));
        assert!(idle_guard.may_ask_metrics(start + 7 * SECOND));
        assert_eq!(idle_guard.next_look(), Some(start + 6 * SECOND + GRACE));
    }

    #[test]
    fn a_slot_at_work_is_work_though_metrics_do_not_show_it_yet() {
        let start = Instant::now();
        let mut idle_guard = idle_server(Some(7710), Some(6 * SECOND), start);
        idle_guard.saw_metrics(start + 8 * SECOND, &counters(5.0, 0.0));
        idle_guard.saw_slots(start + 8 * SECOND, true);
        assert!(idle_guard.may_ask_metrics(start + 9 * SECOND));
    }

    #[test]
    fn a_build_that_does_not_tell_is_taken_to_be_disturbed() {
        let start = Instant::now();
        assert!(!idle_server(None, Some(6 * SECOND), start).may_ask_metrics(start + SECOND));
        assert!(idle_server(Some(10_566), Some(6 * SECOND), start).may_ask_metrics(start + SECOND));
    }

    #[test]
    fn a_build_that_does_not_tell_is_told_by_what_its_metrics_hold() {
        let start = Instant::now();
        let new = Counters {
            prompt_tokens_cached: Some(0.0),
            ..counters(5.0, 0.0)
        };
        for (build, harmless) in [(None, true), (Some(10_565), false), (Some(10_566), true)] {
            let mut idle_guard = idle_server(build, Some(6 * SECOND), start);
            idle_guard.saw_metrics(start, &new);
            // Every poll takes anew what /props says, and that is nothing.
            idle_guard.saw_build(build);
            assert_eq!(
                idle_guard.may_ask_metrics(start + SECOND),
                harmless,
                "{build:?}"
            );
        }
        // Another server at the same address may be an older one.
        let mut idle_guard = idle_server(None, Some(6 * SECOND), start);
        idle_guard.saw_metrics(start, &new);
        idle_guard.reconnected();
        idle_guard.saw_metrics(start, &counters(5.0, 0.0));
        assert!(!idle_guard.may_ask_metrics(start + SECOND));
    }

    #[test]
    fn a_busy_server_is_asked_though_it_may_sleep() {
        let start = Instant::now();
        let mut idle_guard = idle_server(Some(7710), Some(6 * SECOND), start);
        idle_guard.saw_metrics(start + 8 * SECOND, &counters(9.0, 1.0));
        assert!(idle_guard.may_ask_metrics(start + 9 * SECOND));
        assert!(idle_guard.may_ask_slots(start + 9 * SECOND));
    }

    #[test]
    fn a_sleeper_is_asked_nothing_and_a_waking_one_at_once() {
        let start = Instant::now();
        let mut idle_guard = idle_server(Some(7710), Some(6 * SECOND), start);
        idle_guard.saw_sleep(start + 7 * SECOND, true);
        assert!(!idle_guard.may_ask_metrics(start + 3600 * SECOND));
        assert!(!idle_guard.may_ask_slots(start + 3600 * SECOND));
        idle_guard.saw_sleep(start + 3601 * SECOND, false);
        assert!(idle_guard.may_ask_metrics(start + 3601 * SECOND));
    }

    #[test]
    fn a_server_seen_asleep_is_known_to_sleep() {
        let start = Instant::now();
        let mut idle_guard = idle_server(Some(7710), None, start);
        idle_guard.saw_sleep(start + 4 * SECOND, true);
        idle_guard.saw_sleep(start + 9 * SECOND, false);
        idle_guard.saw_metrics(start + 9 * SECOND, &counters(7.0, 0.0));
        assert!(!idle_guard.may_ask_metrics(start + 13 * SECOND));
        assert!(idle_guard.may_ask_metrics(start + 14 * SECOND));
    }

    #[test]
    fn a_server_that_is_told_to_sleep_is_left_alone_unless_the_user_knows_better() {
        let start = Instant::now();
        let mut told = idle_server(Some(7710), None, start);
        told.told(BoundedDuration::from_secs(6));
        assert!(!told.may_ask_metrics(start + 5 * SECOND));
        assert!(told.may_ask_metrics(start + 8 * SECOND));
        let mut set = idle_server(Some(7710), Some(60 * SECOND), start);
        set.told(BoundedDuration::from_secs(6));
        assert!(!set.may_ask_metrics(start + 50 * SECOND));
    }

    #[test]
    fn a_server_that_woke_is_read_until_its_work_is_seen() {
        let start = Instant::now();
        let mut idle_guard = idle_server(Some(7710), Some(6 * SECOND), start);
        idle_guard.saw_sleep(start + 7 * SECOND, true);
        idle_guard.saw_sleep(start + 20 * SECOND, false);
        idle_guard.saw_metrics(start + 20 * SECOND, &counters(5.0, 0.0));
        idle_guard.saw_slots(start + 20 * SECOND, false);
        assert!(idle_guard.may_ask_metrics(start + 21 * SECOND));
        idle_guard.saw_metrics(start + 21 * SECOND, &counters(30.0, 1.0));
        idle_guard.saw_metrics(start + 22 * SECOND, &counters(50.0, 0.0));
        assert!(!idle_guard.may_ask_metrics(start + 23 * SECOND));
    }

    #[test]
    fn patience_grows_when_a_server_stays_awake_without_work() {
        let start = Instant::now();
        let mut idle_guard = idle_server(Some(7710), Some(6 * SECOND), start);
        idle_guard.saw_metrics(start + 8 * SECOND, &counters(5.0, 0.0));
        assert!(!idle_guard.may_ask_metrics(start + 17 * SECOND));
        assert!(idle_guard.may_ask_metrics(start + 22 * SECOND));
    }

    #[test]
    fn slots_are_read_while_something_goes_on_and_once_more_after_it() {
        let start = Instant::now();
        let mut idle_guard = idle_server(Some(11_434), None, start);
        idle_guard.saw_metrics(start + SECOND, &counters(5.0, 0.0));
        assert!(
            !idle_guard.may_ask_slots(start + SECOND),
            "nothing has happened"
        );
        idle_guard.saw_metrics(start + 2 * SECOND, &counters(9.0, 1.0));
        assert!(
            idle_guard.may_ask_slots(start + 2 * SECOND),
            "a request is at work"
        );
        idle_guard.saw_slots(start + 2 * SECOND, true);
        idle_guard.saw_metrics(start + 3 * SECOND, &counters(9.0, 0.0));
        assert!(
            idle_guard.may_ask_slots(start + 3 * SECOND),
            "it has ended since"
        );
        idle_guard.saw_slots(start + 3 * SECOND, false);
        idle_guard.saw_metrics(start + 4 * SECOND, &counters(9.0, 0.0));
        assert!(
            !idle_guard.may_ask_slots(start + 4 * SECOND),
            "that was read"
        );
        idle_guard.saw_metrics(start + 5 * SECOND, &counters(20.0, 0.0));
        assert!(
            idle_guard.may_ask_slots(start + 5 * SECOND),
            "one came and went between two polls"
        );
    }

    #[test]
    fn without_metrics_slots_are_read_at_every_poll_unless_that_keeps_the_server_awake() {
        let start = Instant::now();
        let mut idle_guard = IdleGuard::new(None);
        idle_guard.saw_build(Some(11_434));
        idle_guard.saw_slots(start, false);
        assert!(idle_guard.may_ask_slots(start + SECOND));
        idle_guard.saw_sleep(start + 4 * SECOND, true);
        idle_guard.saw_sleep(start + 9 * SECOND, false);
        // It is believed to have nothing to do when that was seen three times.
        for second in 9..12 {
            assert!(idle_guard.may_ask_slots(start + second * SECOND));
            idle_guard.saw_slots(start + second * SECOND, false);
        }
        assert!(!idle_guard.may_ask_slots(start + 12 * SECOND));
    }
}
