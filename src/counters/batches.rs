//! Batch figures: tokens and seconds per call of `llama_decode()`, and the best number of slots.

use std::time::Instant;

use crate::counters::optimal_batch::OptimalBatch;
use crate::counters::rates::History;
use crate::snapshot::histogram::Histogram;

/// The batch figures since the server's start.
#[derive(Debug, Default)]
pub struct Batches {
    /// Tokens per decode call, prompt and generated, over the shortest window in which they are
    /// known; `None` without such calls.
    pub size: Option<f64>,
    /// Since when the server was busy all the time and its calls were not observed.
    unobserved_since: Option<Instant>,
    optimal: OptimalBatch,
}

impl Batches {
    /// Takes the last reading of `history`: observes the calls since the last observation in
    /// `latency`, once their number is known. Where `busy_slots` were busy all the time since
    /// the reading before, takes the speed of that interval too.
    pub fn update(&mut self, history: &History, latency: &mut Histogram, busy_slots: Option<f64>) {
        let counts = history.windows().find_map(|window| {
            let generated_tokens = window.growth(|point| point.generated_at_calls)?;
            let prompt_tokens = window.growth(|point| point.prompt_tokens)?;
            let calls = window.growth(|point| point.decode_calls)?.value();
            Some((generated_tokens.plus(prompt_tokens).value()?, calls?))
        });
        let counts = counts.filter(|(tokens, calls)| *tokens > 0.0 && *calls > 0.0);
        self.size = counts.map(|(tokens, calls)| tokens / calls);
        let Some(last) = history.last() else {
            return;
        };
        if !last.busy {
            self.unobserved_since = Some(last.at);
            return;
        }
        let since = self.unobserved_since;
        let unobserved = history
            .windows()
            .take_while(|window| window.busy() && Some(window.since()) >= since)
            .last();
        if let Some(window) = unobserved
            && let Some(calls) = window.growth(|point| point.decode_calls)
            && let Some(calls) = calls.value().filter(|calls| *calls > 0.0)
        {
            latency.observe(window.calls_seconds() / calls, calls as u64);
            self.unobserved_since = Some(last.at);
        }
        let last_window = history.windows().next();
        let speed = last_window.and_then(|window| window.rate(|point| point.generated_tokens));
        let speed = speed.filter(|speed| speed.is_finite());
        if let (Some(slots), Some(speed)) = (busy_slots, speed) {
            self.optimal.observe(last.at, slots as u32, speed);
        }
    }

    /// The number of busy slots at which generation is fastest.
    pub fn optimal_size(&self) -> Option<f64> {
        self.optimal.best().map(f64::from)
    }
}
