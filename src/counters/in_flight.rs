//! Estimates the tokens in flight from the decode calls, for servers without `/slots`.
//!
//! A call of `llama_decode()` generates one token for every busy slot past its prompt, so
//! `n_busy_slots_per_decode` * `n_decode_total` is the number of generated tokens, plus one for
//! each batch of prompt. Both factors are printed with six digits, so the error of the product
//! grows with it: less than a token up to a hundred thousand calls, some ten past a million.

use crate::counters::live_counter::TokenDelta;
use crate::readings::Counters;
use crate::readings::counters::{rounding_step, six_digit_step};

/// Compares the decode calls with those when nothing was in flight.
#[derive(Debug, Default)]
pub struct InFlightEstimator {
    base: Option<Base>,
}

#[derive(Debug)]
struct Base {
    product: Estimate,
    generated_tokens: f64,
}

/// A value, and how far it may be off.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Estimate {
    /// The likeliest value.
    pub value: f64,
    /// The largest possible error.
    pub error: f64,
}

impl Estimate {
    /// These tokens in flight as a delta, in which only the certain ones count.
    pub fn delta(self) -> TokenDelta {
        TokenDelta {
            in_flight: (self.value - self.error).max(0.0).round(),
            in_flight_error: 2.0 * self.error,
            ..TokenDelta::unknown()
        }
    }
}

impl InFlightEstimator {
    /// Takes one reading of `/metrics`.
    pub fn update(&mut self, counters: &Counters) {
        let idle = counters.requests_processing == Some(0.0);
        // If the first reading finds the server busy, tokens count from then on.
        if (idle || self.base.is_none())
            && let Some((product, generated_tokens)) =
                product(counters).zip(counters.generated_tokens)
        {
            self.base = Some(Base {
                product,
                generated_tokens,
            });
        }
    }

    /// The tokens in flight, 0 if unknown; a few tokens a prompt off besides the error.
    pub fn in_flight(&self, counters: &Counters) -> Estimate {
        self.estimate(counters).unwrap_or_default()
    }

    fn estimate(&self, counters: &Counters) -> Option<Estimate> {
        let base = self.base.as_ref()?;
        let processing = counters.requests_processing.filter(|count| *count > 0.0)?;
        let product = product(counters)?;
        let counted = counters.generated_tokens?;
        let generated = product.value - base.product.value;
        let ended = counted - base.generated_tokens;
        Some(Estimate {
            // Each request in flight has had one batch of prompt at least.
            value: (generated - ended - processing).max(0.0),
            error: product.error + base.product.error + rounding_step(counted),
        })
    }
}

fn product(counters: &Counters) -> Option<Estimate> {
    let (slots, calls) = (counters.busy_slots_per_decode?, counters.decode_calls?);
    let slots_error = six_digit_step(slots) / 2.0;
    let calls_error = rounding_step(calls) / 2.0;
    Some(Estimate {
        value: slots * calls,
        error: slots * calls_error + slots_error * (calls + calls_error),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counters(per_call: f64, calls: f64, predicted: f64, processing: f64) -> Counters {
        Counters {
            busy_slots_per_decode: Some(per_call),
            decode_calls: Some(calls),
            generated_tokens: Some(predicted),
            requests_processing: Some(processing),
            ..Counters::default()
        }
    }

    #[test]
    fn decode_calls_give_the_tokens_of_running_requests() {
        let mut calls = InFlightEstimator::default();
        let idle = counters(1.5, 200.0, 290.0, 0.0);
        calls.update(&idle);
        assert_eq!(calls.in_flight(&idle), Estimate::default());
        // One request: a batch of prompt, then 41 tokens in as many calls.
        let busy = counters(342.0 / 242.0, 242.0, 290.0, 1.0);
        calls.update(&busy);
        assert_eq!(calls.in_flight(&busy).value.round(), 41.0);
        assert!(calls.in_flight(&busy).error < 0.01);
    }

    #[test]
    fn a_busy_server_counts_from_the_first_reading_on() {
        let mut calls = InFlightEstimator::default();
        let met = counters(1.0, 100.0, 0.0, 1.0);
        calls.update(&met);
        assert_eq!(calls.in_flight(&met).value, 0.0);
        let later = counters(1.0, 131.0, 0.0, 1.0);
        calls.update(&later);
        assert_eq!(calls.in_flight(&later).value, 30.0);
    }

    #[test]
    fn the_error_of_six_digits_grows_with_the_calls() {
        let mut calls = InFlightEstimator::default();
        let busy = |calls| counters(1.5, calls, 0.0, 1.0);
        calls.update(&busy(1e6));
        assert!((15.0..40.0).contains(&calls.in_flight(&busy(1e6)).error));
        let mut calls = InFlightEstimator::default();
        calls.update(&busy(1e8));
        assert!((1_500.0..4_000.0).contains(&calls.in_flight(&busy(1e8)).error));
    }

    #[test]
    fn without_decode_calls_nothing_is_in_flight() {
        let mut calls = InFlightEstimator::default();
        calls.update(&Counters::default());
        assert_eq!(calls.in_flight(&Counters::default()), Estimate::default());
    }
}
