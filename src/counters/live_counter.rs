//! A counter of the server, with the requests in flight.
//!
//! llama-server adds the tokens of a request to its counter when the request ends
//! (`server_metrics` in `tools/server/server-context.cpp`), and prints the counter with six
//! significant digits: a printed P stands for anything within H of P, half a rounding step (the
//! step is 10 from a million on, 1,000 from a hundred million on, 0 below a million). Before
//! b10566 it drops the tokens of a request whose client disconnected.
//!
//! So the number T of all tokens of ended requests, dropped ones included, is known between two
//! bounds, low <= T <= high. Let E be the tokens of requests that the slots showed to have ended
//! since the last reading, and D all dropped tokens so far. Each reading sets
//!
//! - low = max(low + E, P - H + D): no less than was shown, and than was printed;
//! - high = min(high + E + what the slots may have hidden, P + H + D + E), as E may have ended
//!   after P was read;
//! - D to more if low - D exceeds P + H: what ended before the slots were read last must be in
//!   the counter by now, so the rest was dropped.
//!
//! The exported sum grows by E, and by more only if it would otherwise be below low, or further
//! than H from high, but not beyond what was printed: max(sum + E, low, min(high - H, P + D)). So
//! it never falls, is never further than H from T, and its growth is exact to the token while the
//! slots show everything. The tokens in flight on the slots are added to it.
//!
//! From b10566 on, prompt tokens are counted by batch, so the counter may already have those of a
//! prompt in progress; or it has them later, as the tokens of batches without output wait for the
//! next one with output (`metrics_flush_prompt`). Then everything that the slots show to have come
//! counts as ended, and P is exceeded by what is in flight at most: by the *unsettled* tokens.

use crate::counters::rates::CountRange;
use crate::readings::counters::rounding_step;

/// What happened to the tokens on the slots between two readings.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct TokenDelta {
    /// Tokens of requests that have ended; at least.
    pub ended: f64,
    /// Of these, tokens that the server drops: the client disconnected (before b10566).
    pub dropped: f64,
    /// Tokens of requests in flight.
    pub in_flight: f64,
    /// How many more may be in flight.
    pub in_flight_error: f64,
    /// Tokens of requests in flight, of which the counter may have any part.
    pub unsettled: f64,
    /// Growth of the tokens of all requests; at least.
    pub known: f64,
    /// How many more may have come without being shown.
    pub hidden: f64,
}

impl TokenDelta {
    /// A delta of which nothing is known.
    pub fn unknown() -> TokenDelta {
        TokenDelta {
            known: f64::NEG_INFINITY,
            hidden: f64::INFINITY,
            ..TokenDelta::default()
        }
    }

    /// The same where the server counts tokens with each batch, and none are dropped.
    #[must_use]
    pub fn counted_by_batch(self) -> TokenDelta {
        TokenDelta {
            ended: self.known.max(0.0),
            dropped: 0.0,
            in_flight: 0.0,
            unsettled: self.in_flight,
            ..self
        }
    }

    /// Adds the delta of another slot.
    pub fn add(&mut self, other: &TokenDelta) {
        self.ended += other.ended;
        self.dropped += other.dropped;
        self.in_flight += other.in_flight;
        self.in_flight_error += other.in_flight_error;
        self.unsettled += other.unsettled;
        self.known += other.known;
        self.hidden += other.hidden;
    }

    /// Appends the delta that came after this one.
    fn append(&mut self, next: &TokenDelta) {
        (self.in_flight, self.in_flight_error, self.unsettled) = (0.0, 0.0, 0.0);
        self.add(next);
    }
}

/// A counter with the requests in flight; the formulas are above.
#[derive(Debug, Default)]
pub struct LiveCounter {
    /// Whether the server counts everything but what it is known to drop. Then what the slots
    /// showed and the counter lacks does not count as dropped.
    counts_all: bool,
    /// Low and high.
    bounds: Option<(f64, f64)>,
    /// The exported sum, without the tokens in flight.
    sum: f64,
    dropped: f64,
    in_flight: f64,
    /// Unsettled tokens when the counter was read.
    unsettled: f64,
    /// The deltas since the counter was read.
    pending: TokenDelta,
    /// What the last of them may have hidden.
    hidden: f64,
    /// The exported value.
    value: f64,
}

impl LiveCounter {
    /// A counter to which the server adds everything.
    pub fn of_all() -> LiveCounter {
        LiveCounter {
            counts_all: true,
            ..LiveCounter::default()
        }
    }

    /// Takes what the slots showed when the counter was not read with them.
    pub fn add_slots(&mut self, delta: &TokenDelta) {
        self.pending.append(delta);
        self.in_flight = delta.in_flight;
    }

    /// Takes the printed counter, and what the slots showed right after it. Returns the range of
    /// the count at this reading.
    pub fn update(&mut self, printed: f64, delta: &TokenDelta) -> CountRange {
        self.add_slots(delta);
        let mut delta = std::mem::take(&mut self.pending);
        if self.bounds.is_none() {
            // What has ended by now is in the counter.
            (delta.ended, delta.dropped) = (0.0, 0.0);
        }
        let half = rounding_step(printed) / 2.0;
        let (mut low, mut high) = self.bounds.unwrap_or_else(|| {
            // At least what is in flight has been computed, whether it is counted or not.
            let low = (printed - half).max(delta.unsettled);
            (low, low.max(printed + half + delta.unsettled))
        });
        let unsettled = std::mem::replace(&mut self.unsettled, delta.unsettled);
        if self.counts_all && self.bounds.is_some() {
            let most = printed + half + self.dropped + unsettled;
            (low, high) = (low.min(most), high.min(most));
            self.sum = self.sum.min(most);
        }
        let counted = printed + half + unsettled.max(delta.unsettled);
        self.dropped = self.dropped.max(low - counted) + delta.dropped;
        let most = printed + half + self.dropped + delta.unsettled;
        let low = (low + delta.ended).max(printed - half + self.dropped);
        // What was hidden before this reading of the slots may only be in the next counter.
        let hidden = delta.hidden + std::mem::replace(&mut self.hidden, delta.hidden);
        // It may have ended after the counter was read.
        let high = (high + delta.ended + hidden).min(most + delta.ended);
        let high = high.max(low);
        self.bounds = Some((low, high));
        self.sum = (self.sum + delta.ended)
            .max(low)
            .max((high - half).min(printed + self.dropped));
        self.value = self.value.max(self.sum + delta.in_flight);
        // The range for rates is wider than the bounds of the sum: all that is possible.
        let most = if half > 0.0 {
            most + delta.ended
        } else if delta.unsettled > 0.0 {
            high
        } else {
            low
        };
        CountRange {
            low: low + delta.in_flight,
            high: most.max(low) + delta.in_flight + delta.in_flight_error,
            known: delta.known,
            hidden: delta.hidden,
        }
    }

    /// Takes the printed counter when the slots were not read in time: their tokens are still in
    /// flight, or in the counter.
    pub fn update_without_slots(&mut self, printed: f64) {
        let least = printed - rounding_step(printed) / 2.0;
        let (low, _) = self.bounds.unwrap_or((least, least));
        let least = (least + self.dropped).max(low + self.in_flight);
        self.value = self.value.max(least);
    }

    /// The count, which never falls.
    pub fn value(&self) -> f64 {
        self.value
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ended(ended: f64, in_flight: f64) -> TokenDelta {
        TokenDelta {
            ended,
            in_flight,
            ..TokenDelta::default()
        }
    }

    fn value(count: &mut LiveCounter, printed: f64, delta: TokenDelta) -> f64 {
        count.update(printed, &delta);
        count.value()
    }

    #[test]
    fn tokens_count_while_they_stream() {
        let mut count = LiveCounter::default();
        assert_eq!(value(&mut count, 100.0, ended(0.0, 0.0)), 100.0);
        assert_eq!(value(&mut count, 100.0, ended(0.0, 40.0)), 140.0);
        assert_eq!(value(&mut count, 185.0, ended(85.0, 9.0)), 194.0);
        assert_eq!(value(&mut count, 200.0, ended(15.0, 0.0)), 200.0);
    }

    #[test]
    fn tokens_that_ended_before_the_first_reading_count_once() {
        let mut count = LiveCounter::default();
        count.add_slots(&ended(30.0, 0.0));
        assert_eq!(value(&mut count, 120.0, ended(10.0, 5.0)), 125.0);
    }

    #[test]
    fn a_request_that_ends_between_metrics_and_slots_counts_once() {
        let mut count = LiveCounter::default();
        value(&mut count, 0.0, ended(0.0, 50.0));
        // /metrics came before the end, /slots after it.
        assert_eq!(value(&mut count, 0.0, ended(57.0, 0.0)), 57.0);
        assert_eq!(value(&mut count, 57.0, ended(0.0, 3.0)), 60.0);
    }

    #[test]
    fn tokens_of_a_cancelled_request_stay_counted() {
        // The slot may show that the client disconnected, or the counter by lacking the tokens.
        for dropped in [0.0, 61.0] {
            let mut count = LiveCounter::default();
            value(&mut count, 1000.0, ended(0.0, 50.0));
            let disconnected = TokenDelta {
                dropped,
                ..ended(61.0, 0.0)
            };
            assert_eq!(value(&mut count, 1000.0, disconnected), 1061.0);
            assert_eq!(value(&mut count, 1000.0, ended(0.0, 20.0)), 1081.0);
            // What comes after is not swallowed.
            assert_eq!(value(&mut count, 1030.0, ended(30.0, 0.0)), 1091.0);
            assert_eq!(value(&mut count, 1030.0, ended(0.0, 0.0)), 1091.0);
        }
    }

    #[test]
    fn a_cancelled_request_counts_beside_a_completed_one() {
        let mut count = LiveCounter::default();
        value(&mut count, 0.0, ended(0.0, 140.0));
        assert_eq!(value(&mut count, 0.0, ended(60.0, 90.0)), 150.0);
        assert_eq!(value(&mut count, 100.0, ended(100.0, 0.0)), 160.0);
        assert_eq!(value(&mut count, 100.0, ended(0.0, 0.0)), 160.0);
    }

    #[test]
    fn requests_that_no_slot_showed_come_from_the_counter() {
        let mut count = LiveCounter::default();
        value(&mut count, 0.0, ended(0.0, 0.0));
        let hidden = TokenDelta {
            hidden: f64::INFINITY,
            ..ended(30.0, 4.0)
        };
        assert_eq!(value(&mut count, 50.0, hidden), 54.0);
    }

    #[test]
    fn past_a_million_it_grows_by_the_slots_and_stays_within_the_bounds() {
        let mut count = LiveCounter::default();
        // 700,000,499 is printed as 7e+08; the next token makes it 7.00001e+08.
        assert_eq!(value(&mut count, 7e8, ended(0.0, 0.0)), 700_000_000.0);
        assert_eq!(
            value(&mut count, 700_001_000.0, ended(2.0, 0.0)),
            700_000_500.0
        );
        let range = count.update(700_001_000.0, &ended(100.0, 0.0));
        assert_eq!((range.low, range.high), (700_000_600.0, 700_001_600.0));
        // If the slots may have hidden requests, the printed counter decides.
        let hidden = TokenDelta {
            hidden: f64::INFINITY,
            ..TokenDelta::default()
        };
        assert_eq!(value(&mut count, 700_002_000.0, hidden), 700_002_000.0);
    }

    #[test]
    fn past_a_million_it_catches_up_with_tokens_that_the_slots_did_not_show() {
        let mut count = LiveCounter::default();
        // 3,000,004 at first. Twice a request gets 10 tokens, 9 of which are shown, and ends after
        // the counter was read.
        let end = TokenDelta {
            hidden: 1.0,
            ..ended(9.0, 0.0)
        };
        value(&mut count, 3_000_000.0, ended(0.0, 0.0));
        value(&mut count, 3_000_000.0, end);
        value(&mut count, 3_000_010.0, end);
        let value = value(&mut count, 3_000_020.0, ended(0.0, 0.0));
        assert!((value - 3_000_024.0).abs() <= 5.0, "{value}");
    }

    #[test]
    fn an_estimate_that_is_too_high_stands_until_the_counter_catches_up() {
        let mut count = LiveCounter::default();
        assert_eq!(value(&mut count, 0.0, ended(0.0, 33.0)), 33.0);
        assert_eq!(value(&mut count, 30.0, ended(0.0, 0.0)), 33.0);
        assert_eq!(value(&mut count, 30.0, ended(0.0, 10.0)), 40.0);
    }

    #[test]
    fn a_reading_without_slots_loses_nothing() {
        let mut count = LiveCounter::default();
        value(&mut count, 0.0, ended(0.0, 50.0));
        count.update_without_slots(0.0);
        assert_eq!(count.value(), 50.0);
        assert_eq!(value(&mut count, 0.0, ended(0.0, 90.0)), 90.0);
        count.update_without_slots(95.0);
        assert_eq!(count.value(), 95.0);
        assert_eq!(value(&mut count, 95.0, ended(95.0, 0.0)), 95.0);
    }

    #[test]
    fn a_counter_of_everything_is_not_exceeded() {
        let mut count = LiveCounter::of_all();
        value(&mut count, 7e8, ended(0.0, 0.0));
        for _ in 0..10 {
            let value = value(&mut count, 7e8, ended(200.0, 0.0));
            assert!(value <= 700_000_700.0, "{value}");
        }
    }

    #[test]
    fn prompt_tokens_that_are_counted_by_batch_count_once() {
        // The counter, prompt tokens that came, and those of prompts in progress, as b11549 was
        // seen to tell them; what is exported.
        let readings = [
            (399.0, 0.0, 0.0, 399.0),
            // Beside an answer, a batch is counted at once.
            (440.0, 41.0, 104.0, 440.0),
            (568.0, 128.0, 64.0, 568.0),
            (608.0, 40.0, 104.0, 608.0),
            // Batches without output are counted later.
            (608.0, 60.0, 164.0, 668.0),
            (668.0, 4.0, 168.0, 672.0),
            (672.0, 0.0, 0.0, 672.0),
        ];
        let mut count = LiveCounter::of_all();
        for (printed, known, in_flight, expected) in readings {
            let delta = TokenDelta {
                known,
                in_flight,
                ..TokenDelta::default()
            };
            assert_eq!(
                value(&mut count, printed, delta.counted_by_batch()),
                expected
            );
        }
    }

    #[test]
    fn a_prompt_that_is_found_in_progress_counts_at_least_what_is_in_flight() {
        let delta = TokenDelta {
            in_flight: 118.0,
            ..TokenDelta::default()
        };
        let mut count = LiveCounter::of_all();
        assert_eq!(value(&mut count, 0.0, delta.counted_by_batch()), 118.0);
        let next = ended(0.0, 0.0).counted_by_batch();
        assert_eq!(value(&mut count, 122.0, next), 122.0);
    }
}
