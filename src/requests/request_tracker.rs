//! From lines to requests: which of them belong together, and what ended how.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::{Duration, Instant};

use crate::requests::log_clock::LogClock;
use crate::requests::log_parser::{Event, LogLine, Span, Task};
use crate::snapshot::Rejection;

/// What a line of the log brought to its end.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Outcome {
    /// A request was answered. Its launch was read at `launched`; `None` where it may have been
    /// before the log was followed.
    Finished {
        /// What its lines say.
        timings: Timings,
        /// When its launch was read.
        launched: Option<Instant>,
    },
    /// A request without generation, an embedding for one, was answered: tokens of its prompt.
    Embedded(u64),
    /// The client of a request went away.
    Cancelled,
    /// A server loads a model: the one before it is over.
    Restarted,
    /// How the server is set up.
    Fact(Fact),
}

/// One thing that the log tells of the server itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fact {
    /// How many slots there are.
    Slots(u64),
    /// Tokens that fit one slot.
    SlotContext(u64),
    /// Whether all slots share one KV cache.
    Unified(bool),
}

/// Time and tokens of one request.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Timings {
    /// The prompt, as far as it was computed.
    pub prompt: Span,
    /// The generation.
    pub generation: Span,
    /// Milliseconds of both.
    pub total_ms: f64,
    /// Whether the prompt is another request's, and was computed for that one.
    pub is_child: bool,
}

/// The most slots of a server that are kept in mind: where a poll has said how many there are,
/// and where only the log names them.
const MOST_SLOTS: usize = 1024;
const MOST_NAMED_SLOTS: usize = 64;
/// How many tasks that have ended are remembered: a cancellation may come on their heels.
const ENDED: usize = 256;
/// How long the timings of a task may take that has left its slot (they come before it from
/// b7376 on, and right behind it in builds before that).
const AFTER_RELEASE: Duration = Duration::from_secs(1);
/// By how many microseconds the times in a line may differ from the time of the line.
const ROUNDING: u64 = 10_000;
/// How many lines without a time make one that had one the odd one out.
const MOST_PLAIN: u32 = 32;

/// What must be remembered of one server between two lines of its log.
#[derive(Debug, Default)]
pub struct Tracker {
    form: Option<Form>,
    clock: LogClock,
    /// Slots, as the log of this life said.
    slots: Option<u64>,
    /// Whether a task was launched in this life: what a server says of itself comes before.
    has_begun: bool,
    /// Whose timings the next lines tell, on builds that do not repeat it, and the time of the
    /// line that said so.
    timings_of: Option<(Task, Option<u64>)>,
    /// The last task of each slot, while it is on it.
    open: BTreeMap<u64, Open>,
    /// Slots of which anything was said, and how many there may be.
    known_slots: BTreeSet<u64>,
    most_slots: usize,
    ended: VecDeque<u64>,
}

/// Whether the lines have llama-server's own time and level.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    /// They have not (before b9294, or with `--no-log-timestamps`); lines with a time came so
    /// often between.
    Plain,
    /// They have, and had from the first line on.
    Timed,
    /// They have since a server loaded its model; so many lines without came since the last.
    TimedSince(u32),
}

#[derive(Debug)]
struct Open {
    task: Task,
    /// Its beginning, if it was seen.
    launched: Option<Launch>,
    /// Whether it may have begun before the log was followed.
    may_be_older: bool,
    prompt: Option<Span>,
    generation: Option<Span>,
    /// Whether any of its timings were printed: then it is no embedding.
    has_timings: bool,
    /// When it left the slot, and with how many tokens, where its timings may still come.
    released: Option<(Instant, u64)>,
}

#[derive(Clone, Copy, Debug)]
struct Launch {
    read: Instant,
    /// llama-server's own time, in microseconds.
    time: Option<u64>,
    is_child: bool,
}

impl Tracker {
    /// Takes one line that was read at that moment, of a server with so many slots, where that
    /// is known from elsewhere. Hands on what it brings to an end, or why it is not believed.
    pub fn take(
        &mut self,
        line: &LogLine,
        read: Instant,
        slots: Option<u64>,
        tell: &mut impl FnMut(Result<Outcome, Rejection>),
    ) {
        let Some(event) = line.event else {
            if let Some(time) = line.time {
                self.clock.believes(time, read);
            }
            return;
        };
        self.most_slots = match slots {
            Some(_) => MOST_SLOTS,
            None => MOST_NAMED_SLOTS,
        };
        if let Err(rejection) = self.check(line, event, read, slots) {
            return tell(Err(rejection));
        }
        if !matches!(
            event,
            Event::TimingsOf(_) | Event::Prompt(..) | Event::Generation(..) | Event::Total(..)
        ) {
            self.settle(None, &mut |outcome| tell(Ok(outcome)));
        }
        match event {
            Event::Loading => {
                *self = Tracker {
                    form: self.form,
                    clock: std::mem::take(&mut self.clock),
                    known_slots: std::mem::take(&mut self.known_slots),
                    most_slots: self.most_slots,
                    ..Tracker::default()
                };
                tell(Ok(Outcome::Restarted));
            }
            Event::Slots {
                count,
                context,
                unified,
            } => {
                self.slots = Some(count);
                let facts = [
                    Some(Fact::Slots(count)),
                    context.map(Fact::SlotContext),
                    unified.map(Fact::Unified),
                ];
                for fact in facts.into_iter().flatten() {
                    tell(Ok(Outcome::Fact(fact)));
                }
            }
            Event::SlotContext(context) => tell(Ok(Outcome::Fact(Fact::SlotContext(context)))),
            Event::Unified(unified) => tell(Ok(Outcome::Fact(Fact::Unified(unified)))),
            _ => {
                if let Some(outcome) = self.of_task(event, line.time, read) {
                    tell(outcome);
                }
            }
        }
    }

    /// Takes it that no timings come any more of what left its slot a while ago.
    pub fn settle(&mut self, now: Option<Instant>, tell: &mut impl FnMut(Outcome)) {
        let is_due = |open: &Open| {
            let at = open.released.map(|(at, _)| at);
            at.is_some_and(|at| {
                now.is_none_or(|now| now.saturating_duration_since(at) > AFTER_RELEASE)
            })
        };
        if !self.open.values().any(is_due) {
            return;
        }
        let mut due = Vec::new();
        self.open.retain(|_, open| {
            let released = open.released.filter(|_| is_due(open));
            due.extend(released.map(|(_, tokens)| (open.task.id, tokens)));
            released.is_none()
        });
        for (id, tokens) in due {
            if self.end(id) {
                tell(Outcome::Embedded(tokens));
            }
        }
    }

    /// Whether a line can be this server's.
    fn check(
        &mut self,
        line: &LogLine,
        event: Event,
        read: Instant,
        slots: Option<u64>,
    ) -> Result<(), Rejection> {
        let is_bare = matches!(
            event,
            Event::Prompt(None, _) | Event::Generation(None, _) | Event::Total(None, _)
        );
        // Builds between b9093 and b9294 put the time before the first of four lines only.
        if !(is_bare && line.time.is_none()) {
            self.check_form(line.time.is_some(), event)?;
        }
        if let Some(time) = line.time
            && !self.clock.believes(time, read)
        {
            if event != Event::Loading {
                return Err(Rejection::Time);
            }
            self.clock.restart(time, read);
        }
        let task = match event {
            Event::Launched(task, _) | Event::TimingsOf(task) | Event::Released(task, _) => {
                Some(task)
            }
            Event::Prompt(task, _) | Event::Generation(task, _) | Event::Total(task, _) => task,
            Event::Slots { .. } | Event::SlotContext(_) | Event::Unified(_) if self.has_begun => {
                return Err(Rejection::Slot);
            }
            _ => None,
        };
        let slots = slots.or(self.slots);
        match (task, slots) {
            (Some(task), Some(slots)) if task.slot >= slots => Err(Rejection::Slot),
            _ => Ok(()),
        }
    }

    fn check_form(&mut self, is_timed: bool, event: Event) -> Result<(), Rejection> {
        let form = match (self.form, is_timed) {
            (None, true) => Form::Timed,
            (None, false) => Form::Plain,
            // A newer build was started.
            (Some(Form::Plain), true) if event == Event::Loading => Form::TimedSince(0),
            (Some(Form::TimedSince(_)), true) => Form::TimedSince(0),
            (Some(Form::TimedSince(MOST_PLAIN)), false) => Form::Plain,
            (Some(Form::TimedSince(plain)), false) => {
                self.form = Some(Form::TimedSince(plain.saturating_add(1)));
                return Err(Rejection::Format);
            }
            (Some(Form::Plain), true) | (Some(Form::Timed), false) => {
                return Err(Rejection::Format);
            }
            (Some(form), _) => form,
        };
        self.form = Some(form);
        Ok(())
    }

    fn of_task(
        &mut self,
        event: Event,
        time: Option<u64>,
        read: Instant,
    ) -> Option<Result<Outcome, Rejection>> {
        match event {
            Event::Launched(task, is_child) => {
                self.has_begun = true;
                self.open.remove(&task.slot);
                self.open(task)?.launched = Some(Launch {
                    read,
                    time,
                    is_child,
                });
            }
            Event::TimingsOf(task) => {
                self.timings_of = Some((task, time));
                self.has_timings(task)?;
            }
            Event::Prompt(task, span) => {
                let task = task.or(self.timings_of.map(|(task, _)| task))?;
                let open = self.has_timings(task)?;
                open.prompt = Some(span);
                open.generation = None;
            }
            Event::Generation(task, span) => {
                let task = task.or(self.timings_of.map(|(task, _)| task))?;
                let open = self.has_timings(task)?;
                // Without its first line, which came before we did, a request is not known whole.
                open.prompt?;
                open.generation = Some(span);
            }
            Event::Total(task, total) => {
                let (task, time) = match task {
                    Some(task) => (task, time),
                    None => self.timings_of.take()?,
                };
                let open = self.has_timings(task)?;
                let timings = Timings {
                    prompt: open.prompt.take()?,
                    generation: open.generation.take()?,
                    total_ms: total.ms,
                    is_child: open.launched.is_some_and(|launch| launch.is_child),
                };
                let launched = match (open.launched, open.may_be_older) {
                    (Some(launch), _) => Some(launch.read),
                    (None, true) => None,
                    (None, false) => Some(read),
                };
                let began = open.launched.and_then(|launch| launch.time);
                let is_possible = time.is_none_or(|time| {
                    // Of what was launched before we came, the server's start is known.
                    let passed = time.saturating_sub(began.unwrap_or(0));
                    fits(&timings, passed.saturating_add(ROUNDING))
                });
                if !is_possible {
                    return Some(Err(Rejection::Duration));
                }
                let finished = Outcome::Finished { timings, launched };
                return self.end(task.id).then_some(Ok(finished));
            }
            Event::Released(task, tokens) => {
                if self.known_slots.len() < self.most_slots {
                    self.known_slots.insert(task.slot);
                }
                let open = self
                    .open
                    .get_mut(&task.slot)
                    .filter(|open| open.task == task)?;
                let may_be_embedding = open.launched.is_some() && !open.has_timings;
                if may_be_embedding && time.is_none() {
                    open.released = Some((read, tokens));
                    return None;
                }
                self.open.remove(&task.slot);
                // Neither timings nor an end before its time: there was nothing to generate.
                let is_embedding = may_be_embedding && self.end(task.id);
                return is_embedding.then_some(Ok(Outcome::Embedded(tokens)));
            }
            Event::Cancelled(id) => return self.end(id).then_some(Ok(Outcome::Cancelled)),
            Event::Failed(id) => drop(self.end(id)),
            _ => {}
        }
        None
    }

    /// Whether a task had not ended yet.
    fn end(&mut self, id: u64) -> bool {
        if self.ended.contains(&id) {
            return false;
        }
        if self.ended.len() == ENDED {
            self.ended.pop_front();
        }
        self.ended.push_back(id);
        true
    }

    fn has_timings(&mut self, task: Task) -> Option<&mut Open> {
        let open = self.open(task)?;
        open.has_timings = true;
        open.released = None;
        Some(open)
    }

    /// What is known of the task, which is the last one of its slot.
    fn open(&mut self, task: Task) -> Option<&mut Open> {
        let is_known = self
            .open
            .get(&task.slot)
            .is_some_and(|open| open.task == task);
        if !is_known {
            if self.known_slots.len() >= self.most_slots && !self.known_slots.contains(&task.slot) {
                return None;
            }
            let open = Open {
                task,
                launched: None,
                may_be_older: self.known_slots.insert(task.slot),
                prompt: None,
                generation: None,
                has_timings: false,
                released: None,
            };
            self.open.insert(task.slot, open);
        }
        self.open.get_mut(&task.slot)
    }
}

/// Whether a request can have taken what its lines say within so many microseconds.
fn fits(timings: &Timings, micros: u64) -> bool {
    let parts = timings.prompt.ms + timings.generation.ms;
    parts.max(timings.total_ms) * 1000.0 <= micros as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    use crate::requests::log_parser::parse;

    /// What is told of the lines of one server with two slots, and then of nothing more.
    fn told(log: &str) -> Vec<Result<Outcome, Rejection>> {
        let now = Instant::now();
        let mut tracker = Tracker::default();
        let mut told = Vec::new();
        let mut tell = |outcome| {
            let outcome = match outcome {
                Ok(Outcome::Finished { timings, .. }) => Ok(Outcome::Finished {
                    timings,
                    launched: None,
                }),
                other => other,
            };
            told.push(outcome);
        };
        for line in log.lines() {
            if let Some(line) = parse(line) {
                tracker.take(&line, now, Some(2), &mut tell);
            }
        }
        tracker.settle(Some(now + 2 * AFTER_RELEASE), &mut |outcome| {
            tell(Ok(outcome))
        });
        told
    }

    fn outcomes(log: &str) -> Vec<Outcome> {
        told(log).into_iter().map(Result::unwrap).collect()
    }

    fn rejections(log: &str) -> Vec<Rejection> {
        told(log).into_iter().filter_map(Result::err).collect()
    }

    fn finished(prompt: f64, prompt_n: u64, generation: f64, n: u64, total_ms: f64) -> Outcome {
        Outcome::Finished {
            timings: Timings {
                prompt: Span {
                    ms: prompt,
                    tokens: prompt_n,
                },
                generation: Span {
                    ms: generation,
                    tokens: n,
                },
                total_ms,
                is_child: false,
            },
            launched: None,
        }
    }

    #[test]
    fn requests_of_two_slots_interleave() {
        let log = "\
slot launch_slot_: id  0 | task 1 | processing task, is_child = 0
slot launch_slot_: id  1 | task 2 | processing task, is_child = 0
slot print_timing: id  0 | task 1 | prompt eval time =      10.00 ms /     5 tokens (x)
slot print_timing: id  1 | task 2 | prompt eval time =      20.00 ms /     6 tokens (x)
slot print_timing: id  1 | task 2 |        eval time =     200.00 ms /    60 tokens (x)
slot print_timing: id  0 | task 1 |        eval time =     100.00 ms /    50 tokens (x)
slot print_timing: id  0 | task 1 |       total time =     110.00 ms /    55 tokens
slot      release: id  0 | task 1 | stop processing: n_tokens = 54, truncated = 0
slot print_timing: id  1 | task 2 |       total time =     220.00 ms /    66 tokens
slot      release: id  1 | task 2 | stop processing: n_tokens = 65, truncated = 0
";
        assert_eq!(
            outcomes(log),
            [
                finished(10.0, 5, 100.0, 50, 110.0),
                finished(20.0, 6, 200.0, 60, 220.0)
            ]
        );
    }

    #[test]
    fn an_embedding_counts_its_prompt() {
        let log = "\
slot launch_slot_: id  1 | task 0 | processing task, is_child = 0
slot      release: id  1 | task 0 | stop processing: n_tokens = 5, truncated = 0
";
        assert_eq!(outcomes(log), [Outcome::Embedded(5)]);
    }

    #[test]
    fn a_cancelled_request_is_counted_as_such_and_once() {
        let log = "\
slot launch_slot_: id  1 | task 2 | processing task, is_child = 0
srv          stop: cancel task, id_task = 2
srv          stop: cancel task, id_task = 2
slot      release: id  1 | task 2 | stop processing: n_tokens = 45, truncated = 0
srv          stop: cancel task, id_task = 24
";
        assert_eq!(outcomes(log), [Outcome::Cancelled, Outcome::Cancelled]);
    }

    #[test]
    fn a_request_that_ended_in_an_error_is_no_cancellation_and_no_embedding() {
        let log = "\
slot launch_slot_: id  0 | task 18 | processing task, is_child = 0
srv    send_error: task id = 18, error: request (3002 tokens) exceeds the available context size
srv          stop: cancel task, id_task = 18
slot      release: id  0 | task 18 | stop processing: n_tokens = 5, truncated = 0
";
        assert_eq!(outcomes(log), []);
    }

    #[test]
    fn a_request_of_which_only_the_end_was_seen_is_not_counted() {
        for log in [
            "slot print_timing: id  0 | task 1 |        eval time =     100.00 ms /    50 tokens (x)\n\
             slot print_timing: id  0 | task 1 |       total time =     110.00 ms /    55 tokens\n\
             slot      release: id  0 | task 1 | stop processing: n_tokens = 54, truncated = 0\n",
            "slot      release: id  0 | task 1 | stop processing: n_tokens = 54, truncated = 0\n",
            "       eval time =     100.00 ms /    50 tokens (x)\n      total time =     110.00 ms /    55 tokens\n",
        ] {
            assert_eq!(outcomes(log), [], "{log}");
        }
    }

    #[test]
    fn a_restart_forgets_what_was_under_way() {
        let log = "\
slot launch_slot_: id  0 | task 1 | processing task, is_child = 0
srv    load_model: loading model '/m.gguf'
slot      release: id  0 | task 1 | stop processing: n_tokens = 54, truncated = 0
";
        assert_eq!(outcomes(log), [Outcome::Restarted]);
    }

    #[test]
    fn a_task_that_printed_timings_is_no_embedding() {
        let launch = "slot launch_slot_: id  0 | task 7 | processing task\n";
        let release =
            "slot      release: id  0 | task 7 | stop processing: n_tokens = 9, truncated = 0\n";
        for lost in [
            "slot print_timing: id  0 | task 7 | \n",
            "slot print_timing: id  0 | task 7 | \\n\",\"stream\":\"stderr\"}\n",
            "slot print_timing: id  0 | task 7 | prompt eval time =      10.00 ms /     5 tokens (x)\n",
            "slot print_timing: id  0 | task 7 |        eval time =      10.00 ms /     5 tokens (x)\n",
            "slot print_timing: id  0 | task 7 |       total time =      10.00 ms /     5 tokens\n",
        ] {
            assert_eq!(outcomes(&format!("{launch}{lost}{release}")), [], "{lost}");
        }
        assert_eq!(
            outcomes(&format!("{launch}{release}")),
            [Outcome::Embedded(9)]
        );
    }

    #[test]
    fn timings_may_come_after_the_task_has_left_its_slot() {
        let release = "\
slot launch_slot_: id  0 | task 35 | processing task
slot      release: id  0 | task 35 | stop processing: n_past = 434, truncated = 0
";
        let timings = "\
slot print_timing: id  0 | task 35 |
prompt eval time =     182.78 ms /   237 tokens (x)
       eval time =     342.29 ms /    13 tokens (x)
      total time =     525.07 ms /   250 tokens
srv  update_slots: all slots are idle
";
        let both = format!("{release}{timings}");
        assert_eq!(outcomes(&both), [finished(182.78, 237, 342.29, 13, 525.07)]);
        let next = "slot launch_slot_: id  0 | task 36 | processing task\n";
        assert_eq!(
            outcomes(&format!("{release}{next}")),
            [Outcome::Embedded(434)]
        );
    }

    #[test]
    fn a_request_is_counted_once_however_often_it_is_told() {
        let log = "\
slot print_timing: id  0 | task 1 | prompt eval time =      10.00 ms /     5 tokens (x)
slot print_timing: id  0 | task 1 |        eval time =     100.00 ms /    50 tokens (x)
slot print_timing: id  0 | task 1 |       total time =     110.00 ms /    55 tokens
";
        assert_eq!(
            outcomes(&log.repeat(3)),
            [finished(10.0, 5, 100.0, 50, 110.0)]
        );
    }

    const TIMED: &str = "\
0.10.000.000 I slot launch_slot_: id  0 | task 1 | processing task
0.12.000.000 I slot print_timing: id  0 | task 1 | prompt eval time =     500.00 ms /     5 tokens (x)
0.12.000.000 I slot print_timing: id  0 | task 1 |        eval time =    1500.00 ms /    50 tokens (x)
0.12.000.000 I slot print_timing: id  0 | task 1 |       total time =    2000.00 ms /    55 tokens
0.12.000.000 I slot      release: id  0 | task 1 | stop processing: n_tokens = 54, truncated = 0
";

    #[test]
    fn lines_without_a_time_are_not_believed_where_lines_have_one() {
        let plain: String = TIMED
            .lines()
            .map(|line| format!("{}\n", &line[15..]))
            .collect();
        let plain = plain.replace("task 1", "task 2");
        let one = finished(500.0, 5, 1500.0, 50, 2000.0);
        assert_eq!(outcomes(TIMED), [one]);
        assert_eq!(outcomes(&plain), [one]);
        let mixed = told(&format!("{TIMED}{plain}"));
        assert_eq!(mixed[0], Ok(one));
        assert_eq!(mixed[1..], [Err(Rejection::Format); 5]);
        // Nor the other way round, until another server is started.
        assert_eq!(
            rejections(&format!("{plain}{TIMED}")),
            [Rejection::Format; 5]
        );
        let loading = "0.00.000.100 I srv    load_model: loading model 'm'\n";
        let upgraded = told(&format!("{plain}{loading}{TIMED}"));
        assert_eq!(upgraded, [Ok(one), Ok(Outcome::Restarted), Ok(one)]);
        // That line may have been forged: then lines without a time go on.
        let forged = format!("{plain}{loading}{}", plain.repeat(8));
        assert_eq!(rejections(&forged).len(), MOST_PLAIN as usize);
    }

    #[test]
    fn lines_that_run_back_in_time_are_not_believed() {
        let early = TIMED
            .replace("0.10.", "0.09.")
            .replace("0.12.", "0.11.")
            .replace("task 1", "task 2");
        assert_eq!(rejections(&format!("{TIMED}{early}")), [Rejection::Time; 5]);
        let restarted =
            format!("{TIMED}0.00.500.000 I srv  load_model: loading model 'm'\n{early}");
        assert_eq!(rejections(&restarted), []);
        assert_eq!(outcomes(&restarted).len(), 3);
    }

    #[test]
    fn no_slot_is_believed_that_does_not_exist() {
        assert_eq!(
            rejections(&TIMED.replace("id  0", "id  2")),
            [Rejection::Slot; 5]
        );
        // What a server says of itself it says before it begins to work.
        let late = format!(
            "{TIMED}0.13.000.000 I srv load_model: initializing, n_slots = 9, n_ctx_slot = 7\n"
        );
        assert_eq!(rejections(&late), [Rejection::Slot]);
    }

    #[test]
    fn no_request_took_longer_than_since_its_launch() {
        let total = "total time =    2000.00 ms";
        for longer in ["total time =    2020.00 ms", "total time =  200000.00 ms"] {
            assert_eq!(
                rejections(&TIMED.replace(total, longer)),
                [Rejection::Duration]
            );
        }
        let parts = TIMED.replace("eval time =     500.00", "eval time =     600.00");
        assert_eq!(rejections(&parts), [Rejection::Duration]);
        // Nor than since the start of the server, where its launch was not seen.
        let (_, unlaunched) = TIMED.split_once('\n').unwrap();
        let longer = unlaunched.replace(total, "total time =   11000.00 ms");
        assert_eq!(outcomes(&longer).len(), 1);
        let longer = unlaunched.replace(total, "total time =   13000.00 ms");
        assert_eq!(rejections(&longer), [Rejection::Duration]);
    }

    #[test]
    fn what_is_kept_in_mind_has_a_limit() {
        for (slots, most) in [(None, MOST_NAMED_SLOTS), (Some(u64::MAX), MOST_SLOTS)] {
            let mut tracker = Tracker::default();
            for id in 0..10_000u64 {
                let launch = format!("slot launch_slot_: id  {id} | task {id} | processing task");
                let cancel = format!("srv  stop: cancel task, id_task = {id}");
                for line in [launch, cancel] {
                    let line = parse(&line).unwrap();
                    tracker.take(&line, Instant::now(), slots, &mut |_| {});
                }
            }
            assert_eq!(tracker.open.len(), most);
            assert_eq!(tracker.known_slots.len(), most);
            assert!(tracker.ended.len() <= ENDED);
        }
    }
}
