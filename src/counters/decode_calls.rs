//! How many tokens are in flight, told by the decode calls alone.
//!
//! A call of `llama_decode()` gives every busy slot that is past its prompt one
//! token, so `n_busy_slots_per_decode` × `n_decode_total` is the number of
//! tokens generated, plus one for each batch of prompt. Both factors are printed
//! with six digits, so the product is the more in doubt the larger it is: by less
//! than a token up to a hundred thousand calls, by some ten past a million.

use crate::counters::count::Step;
use crate::readings::Counters;
use crate::readings::counters::{rounding_step, six_digit_step};

/// What the decode calls had come to when nothing was in flight.
#[derive(Debug, Default)]
pub struct DecodeCalls {
    base: Option<Base>,
}

#[derive(Debug)]
struct Base {
    product: Estimate,
    predicted: f64,
}

/// A value, and by how much it may be wrong.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Estimate {
    /// The likeliest value.
    pub value: f64,
    /// The value is no further away than this.
    pub doubt: f64,
}

impl Estimate {
    /// The same of tokens in flight: those that are certain are counted.
    pub fn step(self) -> Step {
        Step {
            in_flight: (self.value - self.doubt).max(0.0).round(),
            in_flight_doubt: 2.0 * self.doubt,
            ..Step::unknown()
        }
    }
}

impl DecodeCalls {
    /// Takes one reading of `/metrics`.
    pub fn saw(&mut self, counters: &Counters) {
        let idle = counters.requests_processing == Some(0.0);
        // A server met at work has no such moment to count from: then from now on.
        let figures = product(counters).zip(counters.generated_tokens);
        if let Some((product, predicted)) = figures.filter(|_| idle || self.base.is_none()) {
            self.base = Some(Base { product, predicted });
        }
    }

    /// Tokens in flight now, at least zero; good to a few tokens a prompt besides the doubt.
    pub fn in_flight(&self, counters: &Counters) -> Estimate {
        let estimate = || {
            let base = self.base.as_ref()?;
            let processing = counters.requests_processing.filter(|count| *count > 0.0)?;
            let product = product(counters)?;
            let predicted = counters.generated_tokens?;
            let generated = product.value - base.product.value;
            let counted = predicted - base.predicted;
            Some(Estimate {
                // Each request at work has had one batch of prompt, at the least.
                value: (generated - counted - processing).max(0.0),
                doubt: product.doubt + base.product.doubt + rounding_step(predicted),
            })
        };
        estimate().unwrap_or_default()
    }
}

fn product(counters: &Counters) -> Option<Estimate> {
    let (slots, calls) = (counters.busy_slots_per_decode?, counters.decode_calls?);
    let slots_doubt = six_digit_step(slots) / 2.0;
    let calls_doubt = rounding_step(calls) / 2.0;
    Some(Estimate {
        value: slots * calls,
        doubt: slots * calls_doubt + slots_doubt * (calls + calls_doubt),
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
    fn calls_tell_the_tokens_of_running_requests() {
        let mut calls = DecodeCalls::default();
        let idle = counters(1.5, 200.0, 290.0, 0.0);
        calls.saw(&idle);
        assert_eq!(calls.in_flight(&idle), Estimate::default());
        // One request: a batch of prompt, then 41 tokens in as many calls.
        let busy = counters(342.0 / 242.0, 242.0, 290.0, 1.0);
        calls.saw(&busy);
        assert_eq!(calls.in_flight(&busy).value.round(), 41.0);
        assert!(calls.in_flight(&busy).doubt < 0.01);
    }

    #[test]
    fn a_server_met_at_work_is_counted_from_then_on() {
        let mut calls = DecodeCalls::default();
        let met = counters(1.0, 100.0, 0.0, 1.0);
        calls.saw(&met);
        assert_eq!(calls.in_flight(&met).value, 0.0);
        let later = counters(1.0, 131.0, 0.0, 1.0);
        calls.saw(&later);
        assert_eq!(calls.in_flight(&later).value, 30.0);
    }

    #[test]
    fn six_digits_leave_a_doubt_that_grows_with_the_calls() {
        let mut calls = DecodeCalls::default();
        let busy = |calls| counters(1.5, calls, 0.0, 1.0);
        calls.saw(&busy(1e6));
        assert!((15.0..40.0).contains(&calls.in_flight(&busy(1e6)).doubt));
        let mut calls = DecodeCalls::default();
        calls.saw(&busy(1e8));
        assert!((1_500.0..4_000.0).contains(&calls.in_flight(&busy(1e8)).doubt));
    }

    #[test]
    fn without_the_figures_nothing_is_in_flight() {
        let mut calls = DecodeCalls::default();
        calls.saw(&Counters::default());
        assert_eq!(calls.in_flight(&Counters::default()), Estimate::default());
    }
}
