//! From lines to requests: which of them belong together, and what ended how.

use std::collections::{BTreeMap, VecDeque};

use super::log_lines::{Event, Span, Task, parse};

/// Something to count, and the router's child that it came from, if it did.
pub type Counted = (Option<u16>, Outcome);

/// What a line of the log brought to its end.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    /// A request was answered.
    Finished(Timings),
    /// A request without generation, an embedding for one, was answered: tokens of its prompt.
    Embedded(u64),
    /// The client of a request went away.
    Cancelled,
    /// A server loads a model: the one before it is over.
    Restarted,
    /// The router's child on this port holds the model of that name.
    Holds(u16, String),
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
}

/// The most children of a router, and the most tasks at work in each, that are kept in mind.
const MOST_CHILDREN: usize = 512;
const MOST_TASKS: usize = 4096;
/// How many tasks that have ended are remembered: a cancellation may come on their heels.
const ENDED: usize = 256;

/// What must be remembered between two lines.
#[derive(Debug, Default)]
pub struct Tally {
    servers: BTreeMap<Option<u16>, Server>,
}

#[derive(Debug, Default)]
struct Server {
    /// Whose timings the next lines tell, on builds that do not repeat it.
    timings_of: Option<Task>,
    open: Vec<Open>,
    ended: VecDeque<u64>,
}

#[derive(Debug)]
struct Open {
    task: Task,
    /// Its beginning was seen.
    launched: bool,
    prompt: Option<Span>,
    generation: Option<Span>,
}

impl Tally {
    /// Takes one line and hands on what it brings to an end.
    pub fn take(&mut self, line: &[u8], mut count: impl FnMut(Counted)) {
        let Some(line) = parse(line) else { return };
        if self.servers.len() >= MOST_CHILDREN && !self.servers.contains_key(&line.child) {
            self.servers.clear();
        }
        let server = self.servers.entry(line.child).or_default();
        let mut tell = |outcome| count((line.child, outcome));
        match line.event {
            Event::Loading => {
                *server = Server::default();
                tell(Outcome::Restarted);
            }
            Event::Holds { port, model } => tell(Outcome::Holds(port, model.to_owned())),
            Event::Slots {
                count,
                context,
                unified,
            } => {
                tell(Outcome::Fact(Fact::Slots(count)));
                if let Some(context) = context {
                    tell(Outcome::Fact(Fact::SlotContext(context)));
                }
                if let Some(unified) = unified {
                    tell(Outcome::Fact(Fact::Unified(unified)));
                }
            }
            Event::SlotContext(context) => tell(Outcome::Fact(Fact::SlotContext(context))),
            Event::Unified(unified) => tell(Outcome::Fact(Fact::Unified(unified))),
            _ => {
                if let Some(outcome) = server.take(line.event) {
                    tell(outcome);
                }
            }
        }
    }
}

impl Server {
    fn take(&mut self, event: Event) -> Option<Outcome> {
        match event {
            Event::Launched(task) => {
                self.open.retain(|open| open.task.slot != task.slot);
                self.open(task).launched = true;
            }
            Event::TimingsOf(task) => self.timings_of = Some(task),
            Event::Prompt(task, span) => {
                let task = task.or(self.timings_of)?;
                let open = self.open(task);
                open.prompt = Some(span);
                open.generation = None;
            }
            Event::Generation(task, span) => {
                let task = task.or(self.timings_of)?;
                // Without its first line, which came before we did, a request is not known whole.
                let open = self.open.iter_mut().find(|open| open.task == task)?;
                open.prompt?;
                open.generation = Some(span);
            }
            Event::Total(task, total) => {
                let task = task.or_else(|| self.timings_of.take())?;
                let open = self.open.iter_mut().find(|open| open.task == task)?;
                let timings = Timings {
                    prompt: open.prompt.take()?,
                    generation: open.generation.take()?,
                    total_ms: total.ms,
                };
                self.end(task.id);
                return Some(Outcome::Finished(timings));
            }
            Event::Released(task, tokens) => {
                let at = self.open.iter().position(|open| open.task == task)?;
                let open = self.open.swap_remove(at);
                // Neither timings nor an end before its time: there was nothing to generate.
                return (open.launched && self.end(task.id)).then_some(Outcome::Embedded(tokens));
            }
            Event::Cancelled(id) => return self.end(id).then_some(Outcome::Cancelled),
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

    fn open(&mut self, task: Task) -> &mut Open {
        let at = match self.open.iter().position(|open| open.task == task) {
            Some(at) => at,
            None => {
                if self.open.len() >= MOST_TASKS {
                    self.open.clear();
                }
                self.open.push(Open {
                    task,
                    launched: false,
                    prompt: None,
                    generation: None,
                });
                self.open.len() - 1
            }
        };
        &mut self.open[at]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcomes(log: &str) -> Vec<Outcome> {
        let mut tally = Tally::default();
        let mut outcomes = Vec::new();
        for line in log.lines() {
            tally.take(line.as_bytes(), |(_, outcome)| outcomes.push(outcome));
        }
        outcomes
    }

    fn finished(prompt: f64, prompt_n: u64, generation: f64, n: u64, total_ms: f64) -> Outcome {
        Outcome::Finished(Timings {
            prompt: Span {
                ms: prompt,
                tokens: prompt_n,
            },
            generation: Span {
                ms: generation,
                tokens: n,
            },
            total_ms,
        })
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
    fn children_of_a_router_interleave_within_old_timings_too() {
        let log = "\
[1] slot print_timing: id  0 | task 1 |
[2] slot print_timing: id  0 | task 1 |
[1] prompt eval time =      10.00 ms /     5 tokens (x)
[2] prompt eval time =      20.00 ms /     6 tokens (x)
[2]        eval time =     200.00 ms /    60 tokens (x)
[1]        eval time =     100.00 ms /    50 tokens (x)
[1]       total time =     110.00 ms /    55 tokens
[2]       total time =     220.00 ms /    66 tokens
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
    fn what_is_kept_in_mind_has_a_limit() {
        let mut tally = Tally::default();
        for id in 0..100_000u64 {
            let line = format!(
                "[{}] slot launch_slot_: id  {id} | task {id} | processing task",
                id % 2000
            );
            tally.take(line.as_bytes(), |_| {});
        }
        assert!(tally.servers.len() <= MOST_CHILDREN);
        for id in 0..10_000u64 {
            let line = format!("slot launch_slot_: id  {id} | task {id} | processing task");
            tally.take(line.as_bytes(), |_| {});
        }
        assert!(tally.servers[&None].open.len() <= MOST_TASKS);
    }
}
