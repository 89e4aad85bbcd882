//! A count of the server, known between two bounds, that includes what is in flight.
//!
//! llama-server adds a request's tokens to its counter when the request ends, and prints
//! the counter with six significant digits: what is printed as P is anything within H of P,
//! half a step (a step is 10 from a million on, 1,000 from a hundred million on; nothing
//! below). So the count T of all tokens, those of ended requests and those that the server
//! drops, is carried as two bounds, low ≤ T ≤ high. With E, the tokens of the requests that
//! the slots showed to have ended since the last reading, and D, all that was dropped so
//! far, each reading makes
//!
//! - low = max(low + E, P − H + D): there is no less than was seen, and than was printed;
//! - high = min(high + E + what the slots may have hidden, P + H + D), where what has ended
//!   after P was read, within E, comes on top;
//! - D larger where low − D exceeds P + H: all that had ended before the last reading of the
//!   slots must be in the counter by now, so the rest never will be.
//!
//! What is exported grows by E, the own sum, and by more only where it would else be below
//! low, or further than H from high: max(sum + E, low, high − H). So it never falls, is never
//! further than H from T, and its growth is true to the token while the slots show all. What
//! is at work on the slots (`in_flight`) comes on top.

use crate::counters::history::Reach;
use crate::readings::counters::rounding_step;

/// What became of the tokens on the slots between two readings.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Step {
    /// Tokens of requests that have ended; no fewer.
    pub ended: f64,
    /// Those of them that the server will never count: their client hung up (before b10566).
    pub dropped: f64,
    /// Tokens of requests at work.
    pub in_flight: f64,
    /// How many more may be in flight.
    pub in_flight_doubt: f64,
    /// By how much the tokens of all requests have grown; no less.
    pub known: f64,
    /// How many more may have come and gone without a trace.
    pub hidden: f64,
}

impl Step {
    /// Of which nothing is known.
    pub fn unknown() -> Step {
        Step {
            known: f64::NEG_INFINITY,
            hidden: f64::INFINITY,
            ..Step::default()
        }
    }

    /// Adds what came on another slot.
    pub fn add(&mut self, other: &Step) {
        self.ended += other.ended;
        self.dropped += other.dropped;
        self.in_flight += other.in_flight;
        self.in_flight_doubt += other.in_flight_doubt;
        self.known += other.known;
        self.hidden += other.hidden;
    }

    /// Takes the step that came after this one.
    fn then(&mut self, next: &Step) {
        self.ended += next.ended;
        self.dropped += next.dropped;
        self.known += next.known;
        self.hidden += next.hidden;
        self.in_flight = next.in_flight;
        self.in_flight_doubt = next.in_flight_doubt;
    }
}

/// See the module's documentation.
#[derive(Debug, Default)]
pub struct Count {
    /// Whether the server counts all but what is known to be dropped: then what was seen and is
    /// not counted is not taken for dropped.
    counts_all: bool,
    bounds: Option<(f64, f64)>,
    /// What is exported of the tokens that are not in flight.
    sum: f64,
    dropped: f64,
    in_flight: f64,
    /// Of the steps since the counter was read.
    since: Step,
    /// What was hidden in the last of them.
    hidden: f64,
    /// What was given out last: it never falls.
    given: f64,
}

impl Count {
    /// A count of what the server counts without exceptions that do not show.
    pub fn of_all() -> Count {
        Count {
            counts_all: true,
            ..Count::default()
        }
    }

    /// Takes what the slots showed, where the counter was not read with them.
    pub fn step(&mut self, step: &Step) {
        self.since.then(step);
        self.in_flight = step.in_flight;
    }

    /// Takes the counter as it was printed, and what the slots showed right after it.
    pub fn read(&mut self, printed: f64, step: &Step) -> Reach {
        self.step(step);
        let mut step = std::mem::take(&mut self.since);
        if self.bounds.is_none() {
            // What has ended by now is in the counter.
            (step.ended, step.dropped) = (0.0, 0.0);
        }
        let half = rounding_step(printed) / 2.0;
        let (mut low, mut high) = self.bounds.unwrap_or((printed - half, printed + half));
        if self.counts_all {
            let most = printed + half + self.dropped;
            (low, high) = (low.min(most), high.min(most));
            self.sum = self.sum.min(most);
        }
        self.dropped = self.dropped.max(low - (printed + half)) + step.dropped;
        let most = printed + half + self.dropped;
        let low = (low + step.ended).max(printed - half + self.dropped);
        // What was hidden before this reading of the slots may be in the next counter only.
        let hidden = step.hidden + std::mem::replace(&mut self.hidden, step.hidden);
        // That something ended after the counter was read is not supposed without need.
        let uncounted = if hidden > 0.0 { 0.0 } else { step.ended };
        let high = (high + step.ended + hidden).min(most + uncounted).max(low);
        self.bounds = Some((low, high));
        self.sum = (self.sum + step.ended).max(low).max(high - half);
        self.given = self.given.max(self.sum + step.in_flight);
        // Of the growth between two readings more is claimed than of the sum: all that may be.
        let most = if half > 0.0 { most + step.ended } else { low };
        Reach {
            low: low + step.in_flight,
            high: most.max(low) + step.in_flight + step.in_flight_doubt,
            known: step.known,
            hidden: step.hidden,
        }
    }

    /// Takes the counter alone, at a reading that the slots are late for: what they hold is
    /// what they held, or in the counter.
    pub fn read_alone(&mut self, printed: f64) {
        let least = printed - rounding_step(printed) / 2.0;
        let (low, _) = self.bounds.unwrap_or((least, least));
        let least = (least + self.dropped).max(low + self.in_flight);
        self.given = self.given.max(least);
    }

    /// The count, which never falls.
    pub fn given(&self) -> f64 {
        self.given
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ended(ended: f64, in_flight: f64) -> Step {
        Step {
            ended,
            in_flight,
            ..Step::default()
        }
    }

    fn given(count: &mut Count, printed: f64, step: Step) -> f64 {
        count.read(printed, &step);
        count.given()
    }

    #[test]
    fn tokens_count_while_they_stream() {
        let mut count = Count::default();
        assert_eq!(given(&mut count, 100.0, ended(0.0, 0.0)), 100.0);
        assert_eq!(given(&mut count, 100.0, ended(0.0, 40.0)), 140.0);
        assert_eq!(given(&mut count, 185.0, ended(85.0, 9.0)), 194.0);
        assert_eq!(given(&mut count, 200.0, ended(15.0, 0.0)), 200.0);
    }

    #[test]
    fn what_had_ended_at_the_first_reading_is_counted_already() {
        let mut count = Count::default();
        count.step(&ended(30.0, 0.0));
        assert_eq!(given(&mut count, 120.0, ended(10.0, 5.0)), 125.0);
    }

    #[test]
    fn a_request_that_ends_between_the_two_reads_is_missed_by_neither() {
        let mut count = Count::default();
        given(&mut count, 0.0, ended(0.0, 50.0));
        // /metrics came before the end, /slots after it.
        assert_eq!(given(&mut count, 0.0, ended(57.0, 0.0)), 57.0);
        assert_eq!(given(&mut count, 57.0, ended(0.0, 3.0)), 60.0);
    }

    #[test]
    fn tokens_of_a_hung_up_request_stay_counted() {
        // Whether the slot tells that its client hung up, or the counter by lacking them.
        for dropped in [0.0, 61.0] {
            let mut count = Count::default();
            given(&mut count, 1000.0, ended(0.0, 50.0));
            let hung_up = Step {
                dropped,
                ..ended(61.0, 0.0)
            };
            assert_eq!(given(&mut count, 1000.0, hung_up), 1061.0);
            assert_eq!(given(&mut count, 1000.0, ended(0.0, 20.0)), 1081.0);
            // What comes after is not swallowed.
            assert_eq!(given(&mut count, 1030.0, ended(30.0, 0.0)), 1091.0);
            assert_eq!(given(&mut count, 1030.0, ended(0.0, 0.0)), 1091.0);
        }
    }

    #[test]
    fn a_hung_up_request_is_not_hidden_by_one_that_ends_as_it_should() {
        let mut count = Count::default();
        given(&mut count, 0.0, ended(0.0, 140.0));
        assert_eq!(given(&mut count, 0.0, ended(60.0, 90.0)), 150.0);
        assert_eq!(given(&mut count, 100.0, ended(100.0, 0.0)), 160.0);
        assert_eq!(given(&mut count, 100.0, ended(0.0, 0.0)), 160.0);
    }

    #[test]
    fn requests_that_no_slot_showed_are_in_the_counter() {
        let mut count = Count::default();
        given(&mut count, 0.0, ended(0.0, 0.0));
        let hidden = Step {
            hidden: f64::INFINITY,
            ..ended(30.0, 4.0)
        };
        assert_eq!(given(&mut count, 50.0, hidden), 54.0);
    }

    #[test]
    fn past_a_million_it_grows_by_what_was_seen_and_does_not_leave_what_is_possible() {
        let mut count = Count::default();
        // 700,000,499 is printed as 7e+08; the next token makes it 7.00001e+08.
        assert_eq!(given(&mut count, 7e8, ended(0.0, 0.0)), 700_000_000.0);
        assert_eq!(
            given(&mut count, 700_001_000.0, ended(2.0, 0.0)),
            700_000_500.0
        );
        let reach = count.read(700_001_000.0, &ended(100.0, 0.0));
        assert_eq!((reach.low, reach.high), (700_000_600.0, 700_001_600.0));
        // Where requests may have come unseen, what is printed tells the most.
        let hidden = Step {
            hidden: f64::INFINITY,
            ..Step::default()
        };
        assert_eq!(given(&mut count, 700_002_000.0, hidden), 700_002_000.0);
    }

    #[test]
    fn an_estimate_that_ran_high_is_held_until_the_counter_has_caught_up() {
        let mut count = Count::default();
        assert_eq!(given(&mut count, 0.0, ended(0.0, 33.0)), 33.0);
        assert_eq!(given(&mut count, 30.0, ended(0.0, 0.0)), 33.0);
        assert_eq!(given(&mut count, 30.0, ended(0.0, 10.0)), 40.0);
    }

    #[test]
    fn a_reading_that_the_slots_are_late_for_loses_nothing() {
        let mut count = Count::default();
        given(&mut count, 0.0, ended(0.0, 50.0));
        count.read_alone(0.0);
        assert_eq!(count.given(), 50.0);
        assert_eq!(given(&mut count, 0.0, ended(0.0, 90.0)), 90.0);
        count.read_alone(95.0);
        assert_eq!(count.given(), 95.0);
        assert_eq!(given(&mut count, 95.0, ended(95.0, 0.0)), 95.0);
    }

    #[test]
    fn of_what_the_server_counts_without_exception_it_is_believed() {
        let mut count = Count::of_all();
        given(&mut count, 7e8, ended(0.0, 0.0));
        for _ in 0..10 {
            let given = given(&mut count, 7e8, ended(200.0, 0.0));
            assert!(given <= 700_000_700.0, "{given}");
        }
    }
}
