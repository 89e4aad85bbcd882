//! What the server's own counters allow the log to say.
//!
//! A request that has ended is in the server's counters before its lines are in the log, so
//! no more tokens, and no more time, can have come to an end by the log than the counters
//! have grown by. Whatever is beyond that was not written by the server.

use std::ops::Range;
use std::time::{Duration, Instant};

use crate::requests::request_tracker::Timings;

/// What is compared. The last but one is the prompt with what was taken from the cache, the
/// last the calls of `llama_decode()`.
const DIMENSIONS: usize = 6;
const PROMPT_TOKENS: usize = 0;
const GENERATED_TOKENS: usize = 1;
const PROMPT_SECONDS: usize = 2;
const GENERATION_SECONDS: usize = 3;
const WHOLE_PROMPT: usize = 4;
const DECODE_CALLS: usize = 5;

/// How late a line may be read whose request was in the counters already when they were read
/// for the first time.
const LATE: Duration = Duration::from_secs(2);
/// The clock of the counters is not quite that of the log (b11549: 4.3249 s for 4.3269 s).
const SHARE_OF_SECONDS: f64 = 0.9;
const SECONDS_MORE: f64 = 0.1;

/// llama-server's counters of ended requests, as one poll read them.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ServerCounters {
    /// The identity of this life of the server, where it tells one.
    pub life: Option<String>,
    /// Prompt tokens computed.
    pub prompt_tokens: Option<f64>,
    /// Prompt tokens taken from the cache (from b10566).
    pub cached_tokens: Option<f64>,
    /// Tokens generated.
    pub generated_tokens: Option<f64>,
    /// Time spent on prompts.
    pub prompt_seconds: Option<f64>,
    /// Time spent generating.
    pub generation_seconds: Option<f64>,
    /// Calls of `llama_decode()`.
    pub decode_calls: Option<f64>,
}

impl ServerCounters {
    fn values(&self) -> [Option<f64>; DIMENSIONS] {
        let whole = self.prompt_tokens.zip(self.cached_tokens);
        [
            self.prompt_tokens,
            self.generated_tokens,
            self.prompt_seconds,
            self.generation_seconds,
            whole.map(|(prompt, cached)| prompt + cached),
            self.decode_calls,
        ]
    }
}

/// What one request must have added to the counters.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Claim {
    amounts: [f64; DIMENSIONS],
    /// How many requests a call of `llama_decode()` may have been shared by.
    slots: f64,
    /// Whether another request claims the prompt as well: it was computed once.
    is_child: bool,
}

impl Claim {
    /// Of a request that ran to its end, at a server with so many slots.
    pub fn of_timings(timings: &Timings, slots: u64) -> Claim {
        let seconds = |ms: f64| (ms / 1000.0 * SHARE_OF_SECONDS - SECONDS_MORE).max(0.0);
        let mut amounts = [0.0; DIMENSIONS];
        amounts[PROMPT_TOKENS] = timings.prompt.tokens as f64;
        amounts[WHOLE_PROMPT] = timings.prompt.tokens as f64;
        amounts[GENERATED_TOKENS] = timings.generation.tokens as f64;
        amounts[PROMPT_SECONDS] = seconds(timings.prompt.ms);
        amounts[GENERATION_SECONDS] = seconds(timings.generation.ms);
        Claim {
            amounts,
            slots: slots.max(1) as f64,
            is_child: timings.is_child,
        }
    }

    /// Of a request without generation, of so many tokens, at a server with so many slots.
    /// Before b10566 its prompt is in no counter, but it takes a share of a call.
    pub fn of_prompt(tokens: u64, slots: u64) -> Claim {
        let slots = slots.max(1) as f64;
        let mut amounts = [0.0; DIMENSIONS];
        amounts[WHOLE_PROMPT] = tokens as f64;
        amounts[DECODE_CALLS] = 1.0 / slots;
        Claim {
            amounts,
            slots,
            is_child: false,
        }
    }

    /// Of one counter, and whether it is used up by it; from b10566, where prompts that are
    /// computed together take their time together (b11549: 0.43 s for two of 0.42 s).
    fn of(&self, dimension: usize, prompts_share_time: bool) -> (f64, bool) {
        let amount = match dimension {
            PROMPT_SECONDS if prompts_share_time => self.amounts[dimension] / self.slots,
            _ => self.amounts[dimension],
        };
        let is_prompt = matches!(dimension, PROMPT_TOKENS | PROMPT_SECONDS | WHOLE_PROMPT);
        (amount, !(is_prompt && self.is_child))
    }
}

/// A request whose end was read at `ended`, and its beginning, where it was seen, at `launched`.
#[derive(Clone, Copy, Debug)]
pub struct Claimed {
    /// What it must have added.
    pub claim: Claim,
    /// When the line of its launch was read; `None` where that may have been before we came.
    pub launched: Option<Instant>,
    /// When its last line was read.
    pub ended: Instant,
}

/// How many requests are weighed against each other at a time.
const AT_A_TIME: usize = 32;

/// How far the counters of one server have been used up by what its log has told.
#[derive(Clone, Debug, Default)]
pub struct Fence {
    /// When they were read first, and last.
    read: Option<(Instant, Instant)>,
    life: Option<String>,
    now: [Option<f64>; DIMENSIONS],
    /// What they said when they were read for the first time in this life.
    base: [f64; DIMENSIONS],
    told: [f64; DIMENSIONS],
    /// What was told of requests that may have been in the counters by then.
    told_of_before: [f64; DIMENSIONS],
}

impl Fence {
    /// Takes what was read at that moment; gives whether the server has begun anew since.
    pub fn saw(&mut self, at: Instant, counters: &ServerCounters) -> bool {
        let values = counters.values();
        let Some((first, _)) = self.read else {
            self.read = Some((at, at));
            self.life.clone_from(&counters.life);
            self.now = values;
            self.base = values.map(Option::unwrap_or_default);
            return false;
        };
        let fell = |(now, then): (&Option<f64>, &Option<f64>)| {
            now.zip(*then).is_some_and(|(now, then)| now < then)
        };
        let other_life =
            counters.life.is_some() && self.life.is_some() && counters.life != self.life;
        let is_new = other_life || values.iter().zip(&self.now).any(fell);
        if is_new {
            *self = Fence::default();
        } else {
            for ((now, then), base) in values.iter().zip(&self.now).zip(&mut self.base) {
                if let (Some(now), None) = (now, then) {
                    *base = *now;
                }
            }
        }
        self.read = Some((if is_new { at } else { first }, at));
        self.life.clone_from(&counters.life);
        self.now = values;
        // What was counted unseen and was not there after all is forgiven.
        for dimension in 0..DIMENSIONS {
            let room = self.growth(dimension);
            self.told[dimension] = self.told[dimension].min(room.unwrap_or(0.0));
        }
        is_new
    }

    /// By how much a counter can have grown.
    fn growth(&self, dimension: usize) -> Option<f64> {
        let base = self.base[dimension];
        let now = self.now[dimension]?;
        Some(now - base + half_step(dimension, now) + half_step(dimension, base))
    }

    /// Whether the build is one that counts the time of a call once, however many prompts are in it.
    fn prompts_share_time(&self) -> bool {
        self.now[WHOLE_PROMPT].is_some()
    }

    /// Whether the counters were ever read.
    pub fn is_known(&self) -> bool {
        self.read.is_some()
    }

    /// Whether the server has generated anything since they were read first.
    pub fn has_grown(&self) -> bool {
        self.now[GENERATED_TOKENS].is_some_and(|now| now > self.base[GENERATED_TOKENS])
    }

    /// Uses the counters up by a request that was counted without being held against them.
    pub fn uses(&mut self, claim: &Claim) {
        let prompts_share_time = self.prompts_share_time();
        for (dimension, told) in self.told.iter_mut().enumerate() {
            if let (amount, true) = claim.of(dimension, prompts_share_time) {
                *told += amount;
            }
        }
    }

    /// Which of these requests, in the order of the log, the counters bear; they are used up by
    /// those. Where they do not bear all, the shortest run is left out that makes the others fit:
    /// what one user writes into the log stands there in one piece.
    pub fn bears(&mut self, requests: &[Claimed]) -> Vec<bool> {
        let borne = requests.chunks(AT_A_TIME).map(|some| {
            let left_out = self.leaves_out(some);
            (0..some.len()).map(move |index| !left_out.contains(&index))
        });
        borne.flatten().collect()
    }

    fn leaves_out(&mut self, requests: &[Claimed]) -> Range<usize> {
        let number = requests.len();
        for length in 0..number {
            for start in 0..=number.saturating_sub(length) {
                let run = start..start.saturating_add(length);
                let mut fence = self.clone();
                let mut others = requests.iter().enumerate();
                if others.all(|(index, request)| run.contains(&index) || fence.takes(request)) {
                    *self = fence;
                    return run;
                }
                if length == 0 {
                    break;
                }
            }
        }
        0..number
    }

    /// Whether the counters bear this request as well; if so, they are used up by as much.
    fn takes(&mut self, request: &Claimed) -> bool {
        let Claimed {
            claim,
            launched,
            ended,
        } = *request;
        let Some((first, _)) = self.read else {
            return true;
        };
        let was_before = |moment: Instant| moment.saturating_duration_since(first) <= LATE;
        let ended_before = was_before(ended);
        // A prompt is counted when it is done; the request may go on for long.
        let begun_before = launched.is_none_or(was_before);
        let of_before = |dimension: usize| match dimension {
            GENERATED_TOKENS | GENERATION_SECONDS => ended_before,
            _ => begun_before || ended_before,
        };
        let prompts_share_time = self.prompts_share_time();
        let bears = |dimension: usize| {
            let Some(now) = self.now[dimension] else {
                return true;
            };
            let (amount, is_used_up) = claim.of(dimension, prompts_share_time);
            let (room, told) = match of_before(dimension) {
                true => (
                    now + half_step(dimension, now),
                    self.told_of_before[dimension],
                ),
                false => (self.growth(dimension).unwrap_or(0.0), self.told[dimension]),
            };
            let room = if is_used_up { room - told } else { room };
            // The calls tell of a prompt only where nothing better does.
            amount <= room || (dimension == DECODE_CALLS && self.now[WHOLE_PROMPT].is_some())
        };
        if !(0..DIMENSIONS).all(bears) {
            return false;
        }
        for dimension in 0..DIMENSIONS {
            let told = match of_before(dimension) {
                true => &mut self.told_of_before[dimension],
                false => &mut self.told[dimension],
            };
            if let (amount, true) = claim.of(dimension, prompts_share_time) {
                *told += amount;
            }
        }
        true
    }
}

/// By how much a counter may be off: it has six significant digits.
fn half_step(dimension: usize, value: f64) -> f64 {
    let is_time = matches!(dimension, PROMPT_SECONDS | GENERATION_SECONDS);
    // Below, tokens are exact, and what seconds lose is in what is taken off them.
    let exact = if is_time { 1e4 } else { 1e6 };
    if value < exact {
        return 1e-6;
    }
    10f64.powf(value.log10().floor() - 5.0) / 2.0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::requests::log_parser::Span;

    fn counters(life: &str, prompt: f64, generated: f64, seconds: f64) -> ServerCounters {
        ServerCounters {
            life: Some(life.to_owned()),
            prompt_tokens: Some(prompt),
            generated_tokens: Some(generated),
            prompt_seconds: Some(seconds),
            generation_seconds: Some(seconds),
            decode_calls: Some(generated),
            cached_tokens: None,
        }
    }

    fn claim(prompt: u64, generated: u64, seconds: f64) -> Claim {
        let span = |tokens: u64| Span {
            ms: seconds * 1e3,
            tokens,
        };
        Claim::of_timings(
            &Timings {
                prompt: span(prompt),
                generation: span(generated),
                total_ms: seconds * 2e3,
                is_child: false,
            },
            2,
        )
    }

    /// A fence whose counters were read so many seconds after the start: first 0, then as given.
    struct Read {
        start: Instant,
        fence: Fence,
    }

    impl Read {
        fn new(first: ServerCounters) -> Read {
            let mut read = Read {
                start: Instant::now(),
                fence: Fence::default(),
            };
            read.saw(0.0, first);
            read
        }

        fn at(&self, seconds: f64) -> Instant {
            self.start + Duration::from_secs_f64(seconds)
        }

        fn saw(&mut self, seconds: f64, counters: ServerCounters) -> bool {
            self.fence.saw(self.at(seconds), &counters)
        }

        fn bears(&mut self, claim: Claim, launched: f64, ended: f64) -> bool {
            let (launched, ended) = (self.at(launched), self.at(ended));
            let launched = Some(launched);
            self.fence.takes(&Claimed {
                claim,
                launched,
                ended,
            })
        }
    }

    #[test]
    fn what_exceeds_the_counters_is_not_borne() {
        let mut read = Read::new(counters("a", 0.0, 0.0, 0.0));
        read.saw(10.0, counters("a", 100.0, 50.0, 3.0));
        assert!(!read.bears(claim(100, 51, 1.0), 5.0, 6.0));
        assert!(!read.bears(claim(101, 50, 1.0), 5.0, 6.0));
        assert!(!read.bears(claim(1, 1, 200.0), 5.0, 6.0));
        assert!(read.bears(claim(60, 20, 1.5), 5.0, 6.0));
        assert!(read.bears(claim(40, 30, 1.5), 5.0, 6.0));
        assert!(!read.bears(claim(0, 1, 0.0), 5.0, 6.0));
        read.saw(20.0, counters("a", 101.0, 51.0, 3.0));
        assert!(read.bears(claim(1, 1, 0.0), 15.0, 16.0));
        assert!(!read.bears(claim(1, 1, 0.0), 15.0, 16.0));
    }

    #[test]
    fn a_request_that_was_under_way_when_the_counters_were_read_first_is_borne() {
        let mut read = Read::new(counters("a", 5000.0, 900.0, 60.0));
        read.saw(60.0, counters("a", 5000.0, 950.0, 61.0));
        assert!(!read.bears(claim(3000, 50, 1.0), 30.0, 50.0));
        assert!(read.bears(claim(3000, 50, 1.0), 0.0, 50.0));
        // Its tokens were counted once it had ended.
        assert!(!read.bears(claim(1, 1, 0.0), 0.0, 50.0));
        // One whose lines were read late may be in the first reading altogether.
        assert!(read.bears(claim(10, 10, 1.0), 0.0, 1.0));
    }

    #[test]
    fn what_was_written_between_others_is_found() {
        let genuine = claim(3, 20, 0.1);
        let bears = |forged: &[Claim]| {
            let mut read = Read::new(counters("a", 0.0, 0.0, 0.0));
            read.saw(10.0, counters("a", 12.0, 80.0, 3.0));
            let all = [&[genuine], forged, &[genuine; 3]].concat();
            let all: Vec<_> = all
                .into_iter()
                .map(|claim| Claimed {
                    claim,
                    launched: Some(read.at(5.0)),
                    ended: read.at(6.0),
                })
                .collect();
            read.fence.bears(&all)
        };
        assert_eq!(bears(&[]), [true; 4]);
        assert_eq!(bears(&[claim(5, 5, 0.1)]), [true, false, true, true, true]);
        assert_eq!(
            bears(&[claim(5, 5, 0.1); 3])[..4],
            [true, false, false, false]
        );
        // Nothing fits.
        assert_eq!(bears(&[claim(500, 500, 0.1); 40])[1..40], [false; 39]);
    }

    #[test]
    fn six_digits_are_borne_with() {
        let mut read = Read::new(counters("a", 0.0, 1.00004e8, 0.0));
        read.saw(10.0, counters("a", 1e3, 1.00005e8, 10.0));
        assert!(read.bears(claim(1, 1900, 1.0), 5.0, 6.0));
        assert!(!read.bears(claim(1, 200, 1.0), 5.0, 6.0));
    }

    #[test]
    fn six_digits_of_a_time_are_borne_with() {
        let mut read = Read::new(ServerCounters {
            prompt_seconds: Some(0.0),
            generation_seconds: Some(234_567.0),
            ..counters("a", 0.0, 0.0, 0.0)
        });
        let next = ServerCounters {
            prompt_seconds: Some(1.0),
            generation_seconds: Some(234_567.0),
            ..counters("a", 10.0, 20.0, 0.0)
        };
        read.saw(10.0, next);
        assert!(!read.bears(claim(10, 20, 1.3), 5.0, 6.0));
        assert!(read.bears(claim(10, 20, 0.9), 5.0, 6.0));
    }

    /// Figures of b11549, two prompts in one request; three answers to one prompt.
    #[test]
    fn prompts_that_are_computed_together_are_borne() {
        let seconds = |seconds: f64, prompt: f64| ServerCounters {
            prompt_seconds: Some(seconds),
            cached_tokens: Some(0.0),
            ..counters("a", prompt, 40.0, 100.0)
        };
        let mut read = Read::new(ServerCounters {
            cached_tokens: Some(0.0),
            ..counters("a", 0.0, 0.0, 0.0)
        });
        read.saw(10.0, seconds(4.3, 140.0));
        assert!(!read.bears(claim(70, 10, 10.0), 5.0, 6.0));
        assert!(read.bears(claim(70, 10, 4.2), 5.0, 6.0));
        assert!(read.bears(claim(70, 10, 4.2), 5.0, 6.0));
        assert!(!read.bears(claim(0, 10, 2.0), 5.0, 6.0));

        let child = |prompt| Claim {
            is_child: true,
            ..claim(prompt, 10, 4.2)
        };
        assert!(read.bears(child(140), 5.0, 6.0));
        assert!(!read.bears(child(141), 5.0, 6.0));
        assert!(read.bears(child(140), 5.0, 6.0));
        assert!(!read.bears(child(140), 5.0, 6.0), "no generation is left");
    }

    #[test]
    fn a_restart_counts_from_zero() {
        for next in [
            counters("b", 600.0, 600.0, 60.0),
            counters("a", 20.0, 600.0, 60.0),
        ] {
            let mut read = Read::new(counters("a", 500.0, 500.0, 50.0));
            assert!(!read.saw(5.0, counters("a", 500.0, 500.0, 50.0)));
            assert!(read.saw(10.0, next));
            assert!(!read.bears(claim(20, 601, 1.0), 15.0, 16.0));
            assert!(read.bears(claim(20, 600, 1.0), 15.0, 16.0));
        }
    }

    #[test]
    fn a_prompt_alone_is_held_against_what_the_build_counts_of_it() {
        let mut old = Read::new(counters("a", 0.0, 0.0, 0.0));
        old.saw(10.0, counters("a", 0.0, 2.0, 0.0));
        let two_slots = |tokens| Claim::of_prompt(tokens, 2);
        for _ in 0..4 {
            assert!(old.bears(two_slots(500), 5.0, 6.0));
        }
        assert!(!old.bears(two_slots(1), 5.0, 6.0));

        let with_cache = |prompt: f64, cached: f64| ServerCounters {
            cached_tokens: Some(cached),
            ..counters("a", prompt, 0.0, 0.0)
        };
        let mut new = Read::new(with_cache(0.0, 0.0));
        new.saw(10.0, with_cache(10.0, 90.0));
        assert!(new.bears(two_slots(60), 5.0, 6.0));
        assert!(!new.bears(two_slots(41), 5.0, 6.0));
        assert!(new.bears(two_slots(40), 5.0, 6.0));
    }

    #[test]
    fn where_nothing_is_read_nothing_is_held_against_it() {
        let now = Instant::now();
        let any = Claimed {
            claim: claim(1, 1000, 10.0),
            launched: None,
            ended: now,
        };
        assert_eq!(Fence::default().bears(&[any; 40]), [true; 40]);
        let mut none = Read::new(ServerCounters::default());
        none.saw(10.0, ServerCounters::default());
        assert!(none.bears(claim(1, 1000, 10.0), 5.0, 6.0));
    }
}
