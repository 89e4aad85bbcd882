//! Checks ended requests against the server's own counters.
//!
//! A request is in the server's counters before its lines are in the log. So the requests that
//! the log reports cannot have more tokens, or take more time, than the counters have grown by.
//! Lines that exceed this are forged.

use std::ops::Range;
use std::time::{Duration, Instant};

use crate::readings::CountersReading;
use crate::readings::counters::{Counters, six_digit_step};
use crate::requests::RequestEnd;
use crate::requests::log::tracker::LoggedRequest;

/// The counters that requests are checked against: one index each.
const COUNTERS: usize = 6;
const PROMPT_TOKENS: usize = 0;
const GENERATED_TOKENS: usize = 1;
const PROMPT_SECONDS: usize = 2;
const GENERATION_SECONDS: usize = 3;
/// Prompt tokens computed and taken from the cache.
const WHOLE_PROMPT: usize = 4;
/// Calls of `llama_decode()`.
const DECODE_CALLS: usize = 5;

/// How long after the first reading of the counters the lines of a request may be read that was
/// in that reading already.
const MAX_DELAY: Duration = Duration::from_secs(2);
/// The counters' clock differs from the log's (b11549: 4.3249 s for 4.3269 s).
const SECONDS_FACTOR: f64 = 0.9;
const SECONDS_SLACK: f64 = 0.1;
/// How many requests are checked against each other at a time.
const CHUNK: usize = 32;

/// The values of the counters at one poll, by index.
fn values(counters: &Counters) -> [Option<f64>; COUNTERS] {
    let whole_prompt = counters.prompt_tokens.zip(counters.prompt_tokens_cached);
    [
        counters.prompt_tokens,
        counters.generated_tokens,
        counters.prompt_seconds,
        counters.generation_seconds,
        whole_prompt.map(|(prompt, cached)| prompt + cached),
        counters.decode_calls,
    ]
}

/// By how much one request must have moved the counters.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Claim {
    amounts: [f64; COUNTERS],
    /// The most requests that one call of `llama_decode()` can serve.
    slots: f64,
    /// Whether another request claims the same prompt: it was computed once.
    is_child: bool,
    /// When its launch was read; `None` where that may have been before the log was followed.
    launched: Option<Instant>,
    /// When its last line was read.
    ended: Instant,
}

impl Claim {
    /// The claim of a request at a server with so many slots; `None` if it is in no counter.
    pub fn new(request: &LoggedRequest, slots: u64) -> Option<Claim> {
        let slots = slots.max(1) as f64;
        let seconds = |ms: f64| (ms / 1000.0 * SECONDS_FACTOR - SECONDS_SLACK).max(0.0);
        let mut amounts = [0.0; COUNTERS];
        let mut is_child = false;
        match &request.end {
            RequestEnd::Completed { timings, .. } => {
                amounts[PROMPT_TOKENS] = timings.prompt.tokens as f64;
                amounts[WHOLE_PROMPT] = timings.prompt.tokens as f64;
                amounts[GENERATED_TOKENS] = timings.generation.tokens as f64;
                amounts[PROMPT_SECONDS] = seconds(timings.prompt.ms);
                amounts[GENERATION_SECONDS] = seconds(timings.generation.ms);
                is_child = timings.is_child;
            }
            RequestEnd::PromptOnly(tokens) => {
                // Before b10566 no counter has its prompt, but it takes a share of a call.
                amounts[WHOLE_PROMPT] = *tokens as f64;
                amounts[DECODE_CALLS] = 1.0 / slots;
            }
            RequestEnd::Cancelled | RequestEnd::Failed(_) => return None,
        }
        Some(Claim {
            amounts,
            slots,
            is_child,
            launched: request.launched,
            ended: request.read,
        })
    }
}

/// How much of the counters' growth the requests of a server's log have used up.
#[derive(Clone, Debug, Default)]
pub struct CounterBudget {
    /// When the counters were read first.
    first_read: Option<Instant>,
    process: Option<String>,
    now: [Option<f64>; COUNTERS],
    /// Their values at the first reading; zero after a restart.
    base: [f64; COUNTERS],
    /// Used up by requests that ended after the first reading.
    used: [f64; COUNTERS],
    /// Used up by requests that the first reading may have counted.
    used_before: [f64; COUNTERS],
}

impl CounterBudget {
    /// Takes the counters that a poll has read; returns whether the server has restarted.
    pub fn update(&mut self, reading: &CountersReading) -> bool {
        let values = values(&reading.counters);
        let fell = |(now, then): (&Option<f64>, &Option<f64>)| {
            now.zip(*then).is_some_and(|(now, then)| now < then)
        };
        let processes = reading.process.as_ref().zip(self.process.as_ref());
        let has_restarted = processes.is_some_and(|(now, then)| now != then)
            || values.iter().zip(&self.now).any(fell);
        if self.first_read.is_none() || has_restarted {
            let base = match has_restarted {
                true => [0.0; COUNTERS],
                false => values.map(Option::unwrap_or_default),
            };
            *self = CounterBudget {
                first_read: Some(reading.at),
                base,
                ..CounterBudget::default()
            };
        } else {
            for (counter, value) in values.iter().enumerate() {
                if self.now[counter].is_none() {
                    self.base[counter] = value.unwrap_or(self.base[counter]);
                }
            }
        }
        self.process.clone_from(&reading.process);
        self.now = values;
        // What was counted while the counters were not read may exceed them: that is let pass.
        for counter in 0..COUNTERS {
            let growth = self.growth(counter).unwrap_or(0.0);
            self.used[counter] = self.used[counter].min(growth);
        }
        has_restarted
    }

    /// By how much a counter can have grown.
    fn growth(&self, counter: usize) -> Option<f64> {
        let (base, now) = (self.base[counter], self.now[counter]?);
        Some(now - base + rounding(counter, now) + rounding(counter, base))
    }

    /// Whether the counters were ever read.
    pub fn is_known(&self) -> bool {
        self.first_read.is_some()
    }

    /// Whether the server has generated anything since the first reading.
    pub fn has_grown(&self) -> bool {
        self.now[GENERATED_TOKENS].is_some_and(|now| now > self.base[GENERATED_TOKENS])
    }

    /// Uses up what a request claims that was counted without being checked.
    pub fn spend(&mut self, claim: &Claim) {
        for counter in 0..COUNTERS {
            self.used[counter] += self.cost(counter, claim);
        }
    }

    /// Which of these requests, in the order of the log, the counters cover; those use them up.
    /// Where they do not cover all, the shortest run is left out without which they do: what one
    /// user writes into the log is in one piece there.
    pub fn accept(&mut self, claims: &[Claim]) -> Vec<bool> {
        let accepted = claims.chunks(CHUNK).map(|chunk| {
            let rejected = self.shortest_excess(chunk);
            (0..chunk.len()).map(move |index| !rejected.contains(&index))
        });
        accepted.flatten().collect()
    }

    fn shortest_excess(&mut self, claims: &[Claim]) -> Range<usize> {
        for length in 0..claims.len() {
            for start in 0..=claims.len().saturating_sub(length) {
                let run = start..start.saturating_add(length);
                let mut budget = self.clone();
                let mut others = claims.iter().enumerate();
                if others.all(|(index, claim)| run.contains(&index) || budget.covers(claim)) {
                    *self = budget;
                    return run;
                }
                if length == 0 {
                    break;
                }
            }
        }
        0..claims.len()
    }

    /// Whether the counters cover this request as well; if so, it uses them up.
    fn covers(&mut self, claim: &Claim) -> bool {
        let Some(first_read) = self.first_read else {
            return true;
        };
        let may_be_counted =
            |moment: Instant| moment.saturating_duration_since(first_read) <= MAX_DELAY;
        let ended_before = may_be_counted(claim.ended);
        // A prompt is counted when it is done; its request may run much longer.
        let began_before = ended_before || claim.launched.is_none_or(may_be_counted);
        let is_of_before = |counter: usize| match counter {
            GENERATED_TOKENS | GENERATION_SECONDS => ended_before,
            _ => began_before,
        };
        for counter in 0..COUNTERS {
            let Some(now) = self.now[counter] else {
                continue;
            };
            // Calls only count where nothing better covers a prompt.
            if counter == DECODE_CALLS && self.now[WHOLE_PROMPT].is_some() {
                continue;
            }
            let (limit, used) = match is_of_before(counter) {
                true => (now + rounding(counter, now), self.used_before[counter]),
                false => (self.growth(counter).unwrap_or(0.0), self.used[counter]),
            };
            // What costs nothing must still not exceed the counter.
            let used = if is_shared_prompt(counter, claim) {
                0.0
            } else {
                used
            };
            let is_covered = self.amount(counter, claim) <= limit - used;
            if !is_covered {
                return false;
            }
        }
        for counter in 0..COUNTERS {
            let cost = self.cost(counter, claim);
            match is_of_before(counter) {
                true => self.used_before[counter] += cost,
                false => self.used[counter] += cost,
            }
        }
        true
    }

    /// By how much a request must have moved a counter. From b10566 prompts that are computed
    /// together share their time (b11549: 0.43 s for two of 0.42 s).
    fn amount(&self, counter: usize, claim: &Claim) -> f64 {
        let shares_time = counter == PROMPT_SECONDS && self.now[WHOLE_PROMPT].is_some();
        claim.amounts[counter] / if shares_time { claim.slots } else { 1.0 }
    }

    /// How much of a counter a request uses up.
    fn cost(&self, counter: usize, claim: &Claim) -> f64 {
        match is_shared_prompt(counter, claim) {
            true => 0.0,
            false => self.amount(counter, claim),
        }
    }
}

/// Whether a counter is about a prompt that another request claims as well.
fn is_shared_prompt(counter: usize, claim: &Claim) -> bool {
    claim.is_child && matches!(counter, PROMPT_TOKENS | PROMPT_SECONDS | WHOLE_PROMPT)
}

/// By how much a counter may be off: it is printed with six significant digits.
fn rounding(counter: usize, value: f64) -> f64 {
    let is_time = matches!(counter, PROMPT_SECONDS | GENERATION_SECONDS);
    // Below, tokens are exact, and the slack of seconds is larger than their rounding.
    let exact = if is_time { 1e4 } else { 1e6 };
    if value < exact {
        return 1e-6;
    }
    six_digit_step(value) / 2.0
}

#[cfg(test)]
mod tests;
