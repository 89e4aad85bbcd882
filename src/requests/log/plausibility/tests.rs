use super::*;
use crate::requests::{PhaseTiming, RequestTimings};

fn counters(prompt: f64, generated: f64, seconds: f64) -> Counters {
    Counters {
        prompt_tokens: Some(prompt),
        generated_tokens: Some(generated),
        prompt_seconds: Some(seconds),
        generation_seconds: Some(seconds),
        decode_calls: Some(generated),
        ..Counters::default()
    }
}

fn claim(prompt: u64, generated: u64, seconds: f64) -> Claim {
    let timing = |tokens: u64| PhaseTiming {
        ms: seconds * 1e3,
        tokens,
    };
    let timings = RequestTimings {
        prompt: timing(prompt),
        generation: timing(generated),
        total_ms: seconds * 2e3,
        is_child: false,
    };
    let end = RequestEnd::Completed {
        timings,
        is_truncated: false,
    };
    claim_of(end)
}

fn claim_of(end: RequestEnd) -> Claim {
    let request = LoggedRequest {
        task: None,
        end,
        launched: None,
        read: Instant::now(),
    };
    Claim::new(&request, 2).unwrap()
}

/// A budget whose counters are read so many seconds after the start: first at 0.
struct PolledBudget {
    start: Instant,
    budget: CounterBudget,
}

impl PolledBudget {
    fn new(first: Counters) -> PolledBudget {
        let mut polls = PolledBudget {
            start: Instant::now(),
            budget: CounterBudget::default(),
        };
        polls.update(0.0, first);
        polls
    }

    fn at(&self, seconds: f64) -> Instant {
        self.start + Duration::from_secs_f64(seconds)
    }

    fn update(&mut self, seconds: f64, counters: Counters) -> bool {
        self.update_of("a", seconds, counters)
    }

    fn update_of(&mut self, process: &str, seconds: f64, counters: Counters) -> bool {
        self.budget.update(&CountersReading {
            at: self.at(seconds),
            process: Some(process.to_owned()),
            counters,
        })
    }

    fn covers(&mut self, claim: Claim, launched: f64, ended: f64) -> bool {
        let (launched, ended) = (Some(self.at(launched)), self.at(ended));
        self.budget.covers(&Claim {
            launched,
            ended,
            ..claim
        })
    }
}

#[test]
fn requests_beyond_the_counters_are_not_covered() {
    let mut polls = PolledBudget::new(counters(0.0, 0.0, 0.0));
    polls.update(10.0, counters(100.0, 50.0, 3.0));
    assert!(!polls.covers(claim(100, 51, 1.0), 5.0, 6.0));
    assert!(!polls.covers(claim(101, 50, 1.0), 5.0, 6.0));
    assert!(!polls.covers(claim(1, 1, 200.0), 5.0, 6.0));
    assert!(polls.covers(claim(60, 20, 1.5), 5.0, 6.0));
    assert!(polls.covers(claim(40, 30, 1.5), 5.0, 6.0));
    assert!(!polls.covers(claim(0, 1, 0.0), 5.0, 6.0));
    polls.update(20.0, counters(101.0, 51.0, 3.0));
    assert!(polls.covers(claim(1, 1, 0.0), 15.0, 16.0));
    assert!(!polls.covers(claim(1, 1, 0.0), 15.0, 16.0));
}

#[test]
fn a_request_that_ran_at_the_first_reading_is_covered() {
    let mut polls = PolledBudget::new(counters(5000.0, 900.0, 60.0));
    polls.update(60.0, counters(5000.0, 950.0, 61.0));
    assert!(!polls.covers(claim(3000, 50, 1.0), 30.0, 50.0));
    assert!(polls.covers(claim(3000, 50, 1.0), 0.0, 50.0));
    // Its tokens were counted once it had ended.
    assert!(!polls.covers(claim(1, 1, 0.0), 0.0, 50.0));
    // One whose lines were read late may be in the first reading altogether.
    assert!(polls.covers(claim(10, 10, 1.0), 0.0, 1.0));
}

#[test]
fn forged_requests_between_others_are_found() {
    let genuine = claim(3, 20, 0.1);
    let accepted = |forged: &[Claim]| {
        let mut polls = PolledBudget::new(counters(0.0, 0.0, 0.0));
        polls.update(10.0, counters(12.0, 80.0, 3.0));
        let all = [&[genuine], forged, &[genuine; 3]].concat();
        let all: Vec<_> = all
            .into_iter()
            .map(|claim| Claim {
                launched: Some(polls.at(5.0)),
                ended: polls.at(6.0),
                ..claim
            })
            .collect();
        polls.budget.accept(&all)
    };
    assert_eq!(accepted(&[]), [true; 4]);
    assert_eq!(
        accepted(&[claim(5, 5, 0.1)]),
        [true, false, true, true, true]
    );
    assert_eq!(
        accepted(&[claim(5, 5, 0.1); 3])[..4],
        [true, false, false, false]
    );
    // Nothing fits.
    assert_eq!(accepted(&[claim(500, 500, 0.1); 40])[1..40], [false; 39]);
}

#[test]
fn tokens_are_compared_within_six_digits() {
    let mut polls = PolledBudget::new(counters(0.0, 1.00004e8, 0.0));
    polls.update(10.0, counters(1e3, 1.00005e8, 10.0));
    assert!(polls.covers(claim(1, 1900, 1.0), 5.0, 6.0));
    assert!(!polls.covers(claim(1, 200, 1.0), 5.0, 6.0));
}

#[test]
fn seconds_are_compared_within_six_digits() {
    let mut polls = PolledBudget::new(Counters {
        prompt_seconds: Some(0.0),
        generation_seconds: Some(234_567.0),
        ..counters(0.0, 0.0, 0.0)
    });
    let next = Counters {
        prompt_seconds: Some(1.0),
        generation_seconds: Some(234_567.0),
        ..counters(10.0, 20.0, 0.0)
    };
    polls.update(10.0, next);
    assert!(!polls.covers(claim(10, 20, 1.3), 5.0, 6.0));
    assert!(polls.covers(claim(10, 20, 0.9), 5.0, 6.0));
}

/// Figures of b11549, two prompts in one request; three answers to one prompt.
#[test]
fn prompts_that_are_computed_together_are_covered() {
    let seconds = |seconds: f64, prompt: f64| Counters {
        prompt_seconds: Some(seconds),
        prompt_tokens_cached: Some(0.0),
        ..counters(prompt, 40.0, 100.0)
    };
    let mut polls = PolledBudget::new(Counters {
        prompt_tokens_cached: Some(0.0),
        ..counters(0.0, 0.0, 0.0)
    });
    polls.update(10.0, seconds(4.3, 140.0));
    assert!(!polls.covers(claim(70, 10, 10.0), 5.0, 6.0));
    assert!(polls.covers(claim(70, 10, 4.2), 5.0, 6.0));
    assert!(polls.covers(claim(70, 10, 4.2), 5.0, 6.0));
    assert!(!polls.covers(claim(0, 10, 2.0), 5.0, 6.0));

    let child = |prompt| Claim {
        is_child: true,
        ..claim(prompt, 10, 4.2)
    };
    assert!(polls.covers(child(140), 5.0, 6.0));
    assert!(!polls.covers(child(141), 5.0, 6.0));
    assert!(polls.covers(child(140), 5.0, 6.0));
    assert!(!polls.covers(child(140), 5.0, 6.0), "no generation is left");
}

#[test]
fn a_restart_counts_from_zero() {
    for (process, next) in [
        ("b", counters(600.0, 600.0, 60.0)),
        ("a", counters(20.0, 600.0, 60.0)),
    ] {
        let mut polls = PolledBudget::new(counters(500.0, 500.0, 50.0));
        assert!(!polls.update(5.0, counters(500.0, 500.0, 50.0)));
        assert!(polls.update_of(process, 10.0, next));
        assert!(!polls.covers(claim(20, 601, 1.0), 15.0, 16.0));
        assert!(polls.covers(claim(20, 600, 1.0), 15.0, 16.0));
    }
}

#[test]
fn a_prompt_alone_is_checked_against_what_its_build_counts() {
    let mut old = PolledBudget::new(counters(0.0, 0.0, 0.0));
    old.update(10.0, counters(0.0, 2.0, 0.0));
    let two_slots = |tokens| claim_of(RequestEnd::PromptOnly(tokens));
    for _ in 0..4 {
        assert!(old.covers(two_slots(500), 5.0, 6.0));
    }
    assert!(!old.covers(two_slots(1), 5.0, 6.0));

    let with_cache = |prompt: f64, cached: f64| Counters {
        prompt_tokens_cached: Some(cached),
        ..counters(prompt, 0.0, 0.0)
    };
    let mut new = PolledBudget::new(with_cache(0.0, 0.0));
    new.update(10.0, with_cache(10.0, 90.0));
    assert!(new.covers(two_slots(60), 5.0, 6.0));
    assert!(!new.covers(two_slots(41), 5.0, 6.0));
    assert!(new.covers(two_slots(40), 5.0, 6.0));
}

#[test]
fn without_counters_everything_is_covered() {
    let any = claim(1, 1000, 10.0);
    assert_eq!(CounterBudget::default().accept(&[any; 40]), [true; 40]);
    let mut none = PolledBudget::new(Counters::default());
    none.update(10.0, Counters::default());
    assert!(none.covers(claim(1, 1000, 10.0), 5.0, 6.0));
}
