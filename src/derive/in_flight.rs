//! How many tokens are in flight, told by the decode calls alone.
//!
//! A call of `llama_decode()` gives every busy slot that is past its prompt one
//! token, so `n_busy_slots_per_decode` × `n_decode_total` is the number of
//! tokens generated, plus one for each batch of prompt.

use crate::upstream::answers::Counters;

/// What the decode calls had come to when nothing was in flight.
#[derive(Debug, Default)]
pub struct DecodeCalls {
    base: Option<Base>,
}

#[derive(Debug)]
struct Base {
    product: f64,
    predicted: f64,
}

impl DecodeCalls {
    /// Takes one reading of `/metrics`.
    pub fn saw(&mut self, counters: &Counters) {
        let idle = counters.requests_processing == Some(0.0);
        // A server met at work has no such moment to count from: then from now on.
        let figures = product(counters).zip(counters.predicted_tokens);
        if let Some((product, predicted)) = figures.filter(|_| idle || self.base.is_none()) {
            self.base = Some(Base { product, predicted });
        }
    }

    /// Tokens in flight now, at least zero; good to a few tokens a prompt.
    pub fn in_flight(&self, counters: &Counters) -> f64 {
        let estimate = || {
            let base = self.base.as_ref()?;
            let generated = product(counters)? - base.product;
            let counted = counters.predicted_tokens? - base.predicted;
            // Each request at work has had one batch of prompt, at the least.
            Some(generated - counted - counters.requests_processing?)
        };
        estimate().unwrap_or(0.0).max(0.0).round()
    }
}

fn product(counters: &Counters) -> Option<f64> {
    Some(counters.busy_slots_per_decode? * counters.decode_calls?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counters(per_call: f64, calls: f64, predicted: f64, processing: f64) -> Counters {
        Counters {
            busy_slots_per_decode: Some(per_call),
            decode_calls: Some(calls),
            predicted_tokens: Some(predicted),
            requests_processing: Some(processing),
            ..Counters::default()
        }
    }

    #[test]
    fn calls_tell_the_tokens_of_running_requests() {
        let mut calls = DecodeCalls::default();
        let idle = counters(1.5, 200.0, 290.0, 0.0);
        calls.saw(&idle);
        assert_eq!(calls.in_flight(&idle), 0.0);
        // One request: a batch of prompt, then 41 tokens in as many calls.
        let busy = counters(342.0 / 242.0, 242.0, 290.0, 1.0);
        calls.saw(&busy);
        assert_eq!(calls.in_flight(&busy), 41.0);
    }

    #[test]
    fn a_server_met_at_work_is_counted_from_then_on() {
        let mut calls = DecodeCalls::default();
        let met = counters(1.0, 100.0, 0.0, 1.0);
        calls.saw(&met);
        assert_eq!(calls.in_flight(&met), 0.0);
        let later = counters(1.0, 131.0, 0.0, 1.0);
        calls.saw(&later);
        assert_eq!(calls.in_flight(&later), 30.0);
    }

    #[test]
    fn without_the_figures_nothing_is_in_flight() {
        let mut calls = DecodeCalls::default();
        calls.saw(&Counters::default());
        assert_eq!(calls.in_flight(&Counters::default()), 0.0);
    }
}
