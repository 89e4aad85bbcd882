//! A counter that includes what is in flight.
//!
//! llama-server adds a request's tokens to its counter when the request ends;
//! until then they are seen on its slot. Their sum is the live count, if three
//! things are minded: a request that ends between the two reads is missing from
//! both for one poll; one whose client hung up may never be added at all (before
//! b10566); and past a million the counter is rounded to six digits.

use std::collections::{BTreeMap, BTreeSet};

use super::slots::{InFlight, Task};

/// How far apart two values near `value` are in six significant digits.
pub fn rounding(value: f64) -> f64 {
    if value < 1e6 {
        0.0
    } else {
        10f64.powf(value.log10().floor() - 5.0)
    }
}

/// A live count: what the server has counted, what is in flight, and what it
/// has dropped.
///
/// Every task that ends is owed to the server's counter. One that ended before
/// the last read of `/slots` must be in the counter by the next read of
/// `/metrics`; what is then missing was dropped, and is carried from there on.
#[derive(Debug, Default)]
pub struct Live {
    begun: bool,
    /// The part of the server's counter that owes nothing to the tasks below.
    settled: f64,
    /// Tokens that the server has dropped.
    dropped: f64,
    /// Tokens of tasks that had ended by the last read, and may not be counted yet.
    owed: f64,
    /// Tokens of the tasks that were at work at the last read.
    running: BTreeMap<Task, f64>,
    /// The tasks that the slots showed last, ended ones included.
    seen: BTreeSet<Task>,
    /// What was given out last: it never falls.
    given: f64,
}

impl Live {
    /// Takes the server's counter, and what the slots showed right after it.
    pub fn with_tasks(&mut self, total: f64, tasks: &[InFlight]) -> f64 {
        let ended = if self.begun { self.ended(tasks) } else { 0.0 };
        if !self.begun {
            self.begun = true;
            self.settled = total;
        }
        let counted = (total - self.settled).max(0.0);
        if self.owed - counted > rounding(total) {
            self.dropped += self.owed - counted;
            self.settled = total;
        } else {
            // What was counted beyond the debt may belong to the tasks that ended since.
            self.settled = total - (counted - self.owed).clamp(0.0, ended);
        }
        self.owed = ended;
        let running = tasks.iter().filter(|task| task.running);
        self.running = running.map(|task| (task.task, task.tokens)).collect();
        if !tasks.is_empty() {
            self.seen = tasks.iter().map(|task| task.task).collect();
        }
        let in_flight: f64 = self.running.values().sum();
        self.give(self.settled + self.dropped + (total - self.settled).max(self.owed) + in_flight)
    }

    /// Takes the server's counter, and an estimate of what is in flight. Where it
    /// runs high it is held until the counter has caught up.
    pub fn with_estimate(&mut self, total: f64, in_flight: f64) -> f64 {
        if !self.begun {
            self.begun = true;
            self.settled = total;
        }
        // Where slots were read before, their last word is the least that is in flight.
        let known: f64 = self.running.values().sum();
        let counted = (total - self.settled).max(self.owed);
        self.give(
            self.settled + self.dropped + counted.max(total - self.settled + in_flight).max(known),
        )
    }

    /// Tokens of tasks that were at work or unknown before, and are over now.
    fn ended(&self, tasks: &[InFlight]) -> f64 {
        let now: BTreeMap<Task, &InFlight> = tasks.iter().map(|now| (now.task, now)).collect();
        let known = self.running.iter().map(|(task, then)| match now.get(task) {
            Some(now) if now.running => 0.0,
            // From b10566 a slot forgets the count with the task: the last one seen is the least.
            Some(now) => now.tokens.max(*then),
            None => *then,
        });
        let came_and_went = tasks
            .iter()
            .filter(|now| !now.running && !self.seen.contains(&now.task))
            .map(|now| now.tokens);
        known.chain(came_and_went).sum()
    }

    fn give(&mut self, value: f64) -> f64 {
        self.given = self.given.max(value);
        self.given
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn task(id: u64, tokens: f64, running: bool) -> InFlight {
        InFlight {
            task: Task { slot: id % 4, id },
            tokens,
            running,
        }
    }

    #[test]
    fn tokens_count_while_they_stream() {
        let mut live = Live::default();
        assert_eq!(live.with_tasks(100.0, &[]), 100.0);
        assert_eq!(live.with_tasks(100.0, &[task(1, 40.0, true)]), 140.0);
        assert_eq!(
            live.with_tasks(100.0, &[task(1, 70.0, true), task(2, 5.0, true)]),
            175.0
        );
        assert_eq!(
            live.with_tasks(185.0, &[task(1, 85.0, false), task(2, 9.0, true)]),
            194.0
        );
        assert_eq!(live.with_tasks(200.0, &[]), 200.0);
    }

    #[test]
    fn a_request_in_flight_at_the_first_read_is_not_counted_twice() {
        let mut live = Live::default();
        assert_eq!(live.with_tasks(0.0, &[task(1, 40.0, true)]), 40.0);
        assert_eq!(live.with_tasks(55.0, &[task(1, 55.0, false)]), 55.0);
        assert_eq!(live.with_tasks(55.0, &[]), 55.0);
    }

    #[test]
    fn what_slots_kept_from_before_the_first_read_is_history() {
        let mut live = Live::default();
        assert_eq!(live.with_tasks(120.0, &[task(1, 120.0, false)]), 120.0);
        assert_eq!(live.with_tasks(120.0, &[task(1, 120.0, false)]), 120.0);
    }

    #[test]
    fn a_request_that_ends_between_the_two_reads_is_missed_by_neither() {
        let mut live = Live::default();
        live.with_tasks(0.0, &[]);
        assert_eq!(live.with_tasks(0.0, &[task(1, 50.0, true)]), 50.0);
        // /metrics came before the end, /slots after it.
        assert_eq!(live.with_tasks(0.0, &[task(1, 57.0, false)]), 57.0);
        assert_eq!(live.with_tasks(57.0, &[]), 57.0);
        assert_eq!(live.with_tasks(57.0, &[task(2, 3.0, true)]), 60.0);
    }

    #[test]
    fn the_same_where_slots_forget_the_count_with_the_task() {
        let mut live = Live::default();
        live.with_tasks(0.0, &[]);
        live.with_tasks(0.0, &[task(1, 50.0, true)]);
        assert_eq!(live.with_tasks(0.0, &[task(1, 0.0, false)]), 50.0);
        assert_eq!(live.with_tasks(57.0, &[]), 57.0);
    }

    #[test]
    fn tokens_of_a_hung_up_request_stay_counted() {
        let mut live = Live::default();
        live.with_tasks(1000.0, &[]);
        live.with_tasks(1000.0, &[task(1, 50.0, true)]);
        assert_eq!(live.with_tasks(1000.0, &[task(1, 61.0, false)]), 1061.0);
        assert_eq!(live.with_tasks(1000.0, &[task(1, 61.0, false)]), 1061.0);
        // What comes after is not swallowed.
        assert_eq!(live.with_tasks(1000.0, &[task(2, 20.0, true)]), 1081.0);
        assert_eq!(live.with_tasks(1030.0, &[task(2, 30.0, false)]), 1091.0);
        assert_eq!(live.with_tasks(1030.0, &[]), 1091.0);
    }

    #[test]
    fn a_hung_up_request_is_not_hidden_by_one_that_ends_as_it_should() {
        let mut live = Live::default();
        live.with_tasks(0.0, &[]);
        live.with_tasks(0.0, &[task(1, 60.0, true), task(2, 80.0, true)]);
        // Task 1 is hung up, task 2 runs on, and ends within the next interval.
        assert_eq!(
            live.with_tasks(0.0, &[task(1, 60.0, false), task(2, 90.0, true)]),
            150.0
        );
        assert_eq!(
            live.with_tasks(100.0, &[task(1, 60.0, false), task(2, 100.0, false)]),
            160.0
        );
        assert_eq!(live.with_tasks(100.0, &[]), 160.0);
        assert_eq!(live.with_tasks(100.0, &[]), 160.0);
    }

    #[test]
    fn a_request_that_came_and_went_unseen_is_not_taken_for_a_dropped_one() {
        let mut live = Live::default();
        live.with_tasks(0.0, &[]);
        assert_eq!(live.with_tasks(30.0, &[task(1, 30.0, false)]), 30.0);
        assert_eq!(live.with_tasks(30.0, &[task(1, 30.0, false)]), 30.0);
        assert_eq!(live.with_tasks(30.0, &[task(2, 4.0, true)]), 34.0);
    }

    #[test]
    fn a_dip_within_six_digits_is_held_and_not_carried() {
        assert_eq!(rounding(999_999.0), 0.0);
        assert_eq!(rounding(1_234_560.0), 10.0);
        assert_eq!(rounding(12_345_600.0), 100.0);
        let mut live = Live::default();
        live.with_tasks(1_000_000.0, &[]);
        assert_eq!(
            live.with_tasks(1_000_000.0, &[task(1, 27.0, true)]),
            1_000_027.0
        );
        // 1,000,027 is printed as 1.00003e+06 or, had it been 24, as 1.00002e+06.
        assert_eq!(
            live.with_tasks(1_000_020.0, &[task(1, 27.0, false)]),
            1_000_027.0
        );
        assert_eq!(live.with_tasks(1_000_020.0, &[]), 1_000_027.0);
        assert_eq!(
            live.with_tasks(1_000_020.0, &[task(2, 30.0, true)]),
            1_000_050.0
        );
    }

    #[test]
    fn an_estimate_that_ran_high_is_held_until_the_counter_has_caught_up() {
        let mut live = Live::default();
        assert_eq!(live.with_estimate(0.0, 0.0), 0.0);
        assert_eq!(live.with_estimate(0.0, 33.0), 33.0);
        assert_eq!(live.with_estimate(30.0, 0.0), 33.0);
        assert_eq!(live.with_estimate(30.0, 10.0), 40.0);
    }

    #[test]
    fn a_poll_without_slots_between_two_with_them_loses_nothing() {
        let mut live = Live::default();
        live.with_tasks(0.0, &[]);
        live.with_tasks(0.0, &[task(1, 50.0, true)]);
        assert_eq!(live.with_estimate(0.0, 0.0), 50.0);
        assert_eq!(live.with_tasks(0.0, &[task(1, 90.0, true)]), 90.0);
        assert_eq!(live.with_tasks(95.0, &[task(1, 95.0, false)]), 95.0);
    }
}
