//! Finds the exporter's own probes among the requests of the log, to exclude them from the figures.
//!
//! The log does not name clients. A probe is identified by its response: the log has the same token
//! counts, and the same time to a hundredth of a millisecond.

use std::collections::BTreeMap;
use std::mem;
use std::time::{Duration, Instant};

use crate::bounds::deadline;
use crate::readings::Completion;
use crate::requests::RequestEnd;
use crate::snapshot::Reason;

/// How long after its answer the log may report a probe: of one that got none, llama-server notices
/// only once a slot is free that its client has gone.
const LOG_DELAY: Duration = Duration::from_secs(600);
/// How long after that it may report one that was refused: any error may be the probe's.
const REFUSAL_DELAY: Duration = Duration::from_secs(60);
/// How long before its answer the log may report it.
const ANSWER_DELAY: Duration = Duration::from_secs(10);
/// The most requests that wait for the answer of a probe, and answers that wait for the log.
const MAX_HELD: usize = 1000;
const MAX_ANSWERED: usize = 100;
/// By how many milliseconds the log's times differ from the answer's: it rounds them.
const ROUNDING_MS: f64 = 0.0051;

/// The probes of all models of one base URL.
#[derive(Debug, Default)]
pub struct OwnProbes(BTreeMap<String, ModelProbes>);

/// The probes of one model.
#[derive(Debug, Default)]
struct ModelProbes {
    /// When the one was sent that has no answer yet.
    sent: Option<Instant>,
    /// Requests that the log has reported since, and that may be this one, and when.
    held: Vec<(RequestEnd, Instant)>,
    /// Answers of probes that the log has not reported yet.
    answered: Vec<ProbeAnswer>,
}

#[derive(Debug)]
struct ProbeAnswer {
    sent: Instant,
    /// Until when the log may report it.
    until: Instant,
    result: ProbeResult,
}

#[derive(Debug)]
enum ProbeResult {
    Completed(Completion),
    /// The server answered with an error.
    Refused,
    /// The prober closed the connection.
    Abandoned,
}

impl OwnProbes {
    /// Takes that a probe is about to be sent.
    pub fn sent(&mut self, model: &str, now: Instant) {
        self.0.retain(|_, probes| {
            probes.answered.retain(|answer| answer.until > now);
            probes.sent.is_some() || !probes.answered.is_empty()
        });
        self.0.entry(model.to_owned()).or_default().sent = Some(now);
    }

    /// Takes the answer of the probe, or why it failed, maybe before it was sent. Returns the
    /// requests that waited for it and are not the probe.
    pub fn answered(
        &mut self,
        model: &str,
        now: Instant,
        result: Option<Result<Completion, Reason>>,
    ) -> Vec<RequestEnd> {
        let Some(probes) = self.0.get_mut(model) else {
            return Vec::new();
        };
        let sent = probes.sent.take();
        let held = mem::take(&mut probes.held);
        let result = match result {
            Some(Ok(completion)) => Some(ProbeResult::Completed(completion)),
            Some(Err(Reason::Status)) => Some(ProbeResult::Refused),
            Some(Err(Reason::Timeout | Reason::Parse | Reason::TooLarge)) => {
                Some(ProbeResult::Abandoned)
            }
            // It did not reach the server, or got no further than the check of its key.
            Some(Err(Reason::Connect | Reason::Unauthorized)) | None => None,
        };
        if let (Some(result), Some(sent)) = (result, sent)
            && probes.answered.len() < MAX_ANSWERED
        {
            let delay = match result {
                ProbeResult::Completed(_) | ProbeResult::Abandoned => LOG_DELAY,
                ProbeResult::Refused => REFUSAL_DELAY,
            };
            let until = deadline(now, delay);
            probes.answered.push(ProbeAnswer {
                sent,
                until,
                result,
            });
        }
        let others = held.into_iter().map(|(end, _)| end);
        others.filter(|end| !probes.remove(*end, now)).collect()
    }

    /// Returns the requests that have waited for the answer of a probe for too long to be it, with
    /// their models.
    pub fn overdue(&mut self, now: Instant) -> Vec<(String, RequestEnd)> {
        let is_over = |read: Instant| now.saturating_duration_since(read) >= ANSWER_DELAY;
        let models = self.0.iter_mut().flat_map(|(model, probes)| {
            let others = probes.held.extract_if(.., move |(_, read)| is_over(*read));
            others.map(|(end, _)| (model.clone(), end))
        });
        models.collect()
    }

    /// Takes a request that the log reports, in a line read at that moment. Returns it if it is to
    /// be counted now.
    pub fn logged(&mut self, model: &str, end: RequestEnd, read: Instant) -> Option<RequestEnd> {
        let Some(probes) = self.0.get_mut(model) else {
            return Some(end);
        };
        if probes.remove(end, read) {
            return None;
        }
        let may_be_probe = match end {
            RequestEnd::Completed { timings, .. } => timings.generation.tokens <= 1,
            RequestEnd::Failed(_) => true,
            // The prober has not closed the connection.
            RequestEnd::Cancelled | RequestEnd::PromptOnly(_) => false,
        };
        let is_in_flight = probes.sent.is_some_and(|sent| sent <= read);
        if may_be_probe && is_in_flight && probes.held.len() < MAX_HELD {
            probes.held.push((end, read));
            return None;
        }
        Some(end)
    }
}

impl ModelProbes {
    /// Whether a request is a probe that was answered; each is so only once.
    fn remove(&mut self, end: RequestEnd, read: Instant) -> bool {
        let is_it = |answer: &ProbeAnswer| {
            (answer.sent..=answer.until).contains(&read) && answer.result.is_of(end)
        };
        let index = self.answered.iter().position(is_it);
        index.map(|index| self.answered.remove(index)).is_some()
    }
}

impl ProbeResult {
    fn is_of(&self, end: RequestEnd) -> bool {
        match (self, end) {
            (ProbeResult::Completed(completion), RequestEnd::Completed { timings, .. }) => {
                let tokens = (timings.prompt.tokens, timings.generation.tokens);
                let prompt_ms = completion.prompt_ms;
                tokens == (completion.prompt_tokens, completion.generated_tokens)
                    && prompt_ms.is_some_and(|ms| (ms - timings.prompt.ms).abs() <= ROUNDING_MS)
            }
            (ProbeResult::Refused, RequestEnd::Failed(_))
            | (ProbeResult::Abandoned, RequestEnd::Failed(_) | RequestEnd::Cancelled) => true,
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::requests::{PhaseTiming, RequestTimings};

    fn completion(prompt_ms: f64) -> Completion {
        Completion {
            first_token: Duration::from_millis(80),
            prompt_tokens: 2,
            generated_tokens: 1,
            prompt_ms: Some(prompt_ms),
        }
    }

    fn logged(prompt_ms: f64, generated_tokens: u64) -> RequestEnd {
        let timing = |ms, tokens| PhaseTiming { ms, tokens };
        RequestEnd::Completed {
            timings: RequestTimings {
                prompt: timing(prompt_ms, 2),
                generation: timing(0.0, generated_tokens),
                total_ms: prompt_ms,
                is_child: false,
            },
            is_truncated: false,
        }
    }

    #[test]
    fn a_probe_is_found_whether_the_log_or_the_answer_comes_first() {
        let now = Instant::now();
        let (other, long) = (logged(54.33, 1), logged(54.32, 5));
        let mut probes = OwnProbes::default();
        probes.sent("m", now);
        assert_eq!(probes.logged("m", logged(54.32, 1), now), None);
        assert_eq!(probes.logged("m", other, now), None, "it waits");
        assert_eq!(probes.logged("m", long, now), Some(long));
        assert_eq!(probes.logged("other", other, now), Some(other));
        let rest = probes.answered("m", now, Some(Ok(completion(54.316))));
        assert_eq!(rest, [other]);

        probes.sent("m", now);
        let rest = probes.answered("m", now, Some(Ok(completion(54.316))));
        assert_eq!(rest, []);
        assert_eq!(probes.logged("m", other, now), Some(other));
        assert_eq!(probes.logged("m", logged(54.32, 1), now), None);
        let same = logged(54.32, 1);
        assert_eq!(
            probes.logged("m", same, now),
            Some(same),
            "there was one probe"
        );
    }

    #[test]
    fn a_request_from_before_the_probe_is_counted() {
        let now = Instant::now();
        let mut probes = OwnProbes::default();
        probes.sent("m", now + Duration::from_secs(1));
        let before = logged(54.32, 1);
        assert_eq!(probes.logged("m", before, now), Some(before));
    }

    #[test]
    fn a_probe_that_failed_is_one_error_or_cancellation() {
        let now = Instant::now();
        let (failed, cancelled) = (RequestEnd::Failed(500), RequestEnd::Cancelled);
        let mut probes = OwnProbes::default();
        probes.sent("m", now);
        assert_eq!(probes.logged("m", failed, now), None, "it waits");
        assert_eq!(probes.logged("m", cancelled, now), Some(cancelled));
        let rest = probes.answered("m", now, Some(Err(Reason::Status)));
        assert_eq!(rest, []);
        assert_eq!(probes.logged("m", failed, now), Some(failed));

        probes.sent("m", now);
        probes.answered("m", now, Some(Err(Reason::Timeout)));
        assert_eq!(probes.logged("m", cancelled, now), None);
        assert_eq!(probes.logged("m", cancelled, now), Some(cancelled));

        for result in [None, Some(Err(Reason::Connect))] {
            probes.sent("m", now);
            assert_eq!(probes.logged("m", failed, now), None);
            assert_eq!(probes.answered("m", now, result), [failed]);
        }

        probes.sent("m", now);
        probes.answered("m", now, Some(Err(Reason::Timeout)));
        let late = now + 2 * LOG_DELAY;
        assert_eq!(probes.logged("m", cancelled, late), Some(cancelled));
    }

    #[test]
    fn what_is_remembered_is_limited() {
        let now = Instant::now();
        let mut probes = OwnProbes::default();
        for number in 0..2 * MAX_HELD {
            probes.sent("m", now);
            probes.answered("m", now, Some(Ok(completion(number as f64))));
        }
        probes.sent("m", now);
        for number in 0..2 * MAX_HELD {
            probes.logged("m", logged(number as f64 + 0.5, 1), now);
        }
        let of_model = &probes.0["m"];
        assert_eq!(
            (of_model.answered.len(), of_model.held.len()),
            (MAX_ANSWERED, MAX_HELD)
        );
        let late = now + 2 * LOG_DELAY;
        probes.answered("m", late, None);
        probes.sent("other", late);
        assert_eq!(probes.0.len(), 1);
    }
}
