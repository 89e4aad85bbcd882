//! One server whose lines are in the log, and its ended requests while they wait for a poll to
//! confirm them.

use std::collections::VecDeque;
use std::mem;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::readings::{CountersReading, EndedTask, LoggedTasks, TaskTokens, Update};
use crate::requests::RequestEnd;
use crate::requests::log::plausibility::{Claim, CounterBudget};
use crate::requests::log::tracker::{LoggedRequest, Tracker};
use crate::requests::log::{LogWriter, MAX_WAITING, PolledModel, Rejection, UNKNOWN_MODEL_TIMEOUT};

/// How long a request waits for a poll that reads the counters again.
const COUNTERS_TIMEOUT: Duration = Duration::from_secs(30);
/// How much later than a line the counters may confirm it.
const COUNTERS_DELAY: Duration = Duration::from_secs(3);
/// The assumed number of slots if neither poll nor log reports it.
const ASSUMED_SLOTS: u64 = 64;

/// One server whose lines are in the log.
#[derive(Debug, Default)]
pub struct LoggedServer {
    /// What its lines so far add up to.
    pub tracker: Tracker,
    /// The model that it holds, once a poll has found it.
    pub model: Option<LoggedModel>,
    /// Number of slots, as the last poll found it.
    pub slots: Option<u64>,
    /// What its counters let the log report.
    pub budget: CounterBudget,
    /// Whether a poll has found that it has no counters.
    pub has_no_counters: bool,
    /// How often it was started while the log was followed.
    pub starts: u64,
    /// Ended requests that wait for a poll.
    pub waiting: VecDeque<WaitingRequest>,
    /// Tasks that have ended since the last poll.
    ended_tasks: Vec<EndedTask>,
    /// When its last line was read.
    pub last_line: Option<Instant>,
    /// Whether a task was launched or has left its slot since that was asked last.
    pub had_tasks: bool,
}

/// The labels of a model whose requests are in the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoggedModel {
    /// The label `model`.
    pub name: Arc<str>,
    /// The label `mode`, where the kind of server has modes.
    pub mode: Option<&'static str>,
}

impl LoggedModel {
    /// Its labels `model` and `mode`.
    pub fn labels(&self) -> (&str, Option<&'static str>) {
        (&self.name, self.mode)
    }
}

/// An ended request that waits for a poll.
#[derive(Clone, Debug)]
pub struct WaitingRequest {
    /// The model that was loaded when it ended, where that was known.
    pub model: Option<LoggedModel>,
    /// How it ended.
    pub request: LoggedRequest,
    /// How often the server had been started by then.
    pub starts: u64,
    /// Whether the counters did not cover it at an earlier poll.
    pub was_checked: bool,
}

impl LoggedServer {
    /// Takes the results of a poll of its model.
    pub fn polled(&mut self, polled: &PolledModel) {
        if !self.has_model(polled) {
            self.model = Some(LoggedModel {
                name: polled.model.into(),
                mode: polled.mode,
            });
        }
        self.slots = polled.slots;
        self.has_no_counters = *polled.counters == Update::Absent && !self.budget.is_known();
    }

    /// Takes that a request has ended.
    pub fn task_ended(&mut self, request: &LoggedRequest) {
        if let Some(id) = request.task
            && self.ended_tasks.len() < MAX_WAITING
        {
            let tokens = match request.end {
                RequestEnd::Completed { timings, .. } => {
                    Some((timings.prompt.tokens, timings.generation.tokens))
                }
                RequestEnd::PromptOnly(tokens) => Some((tokens, 0)),
                RequestEnd::Cancelled | RequestEnd::Failed(_) => None,
            };
            self.ended_tasks.push(EndedTask {
                starts: self.starts,
                id,
                tokens: tokens.map(|(prompt, generated)| TaskTokens { prompt, generated }),
                is_child: matches!(request.end, RequestEnd::Completed { timings, .. } if timings.is_child),
            });
        }
    }

    /// What its log said of its tasks since this was called last.
    pub fn take_tasks(&mut self) -> LoggedTasks {
        LoggedTasks {
            starts: self.starts,
            ended: mem::take(&mut self.ended_tasks),
            running: self.tracker.running().collect(),
        }
    }

    /// Takes that it was started again: it may hold another model now, with other slots.
    pub fn restart(&mut self) {
        self.model = None;
        self.slots = None;
        self.starts = self.starts.saturating_add(1);
    }

    /// Whether it holds the polled model.
    fn has_model(&self, polled: &PolledModel) -> bool {
        let model = self.model.as_ref().map(LoggedModel::labels);
        model == Some((polled.model, polled.mode))
    }

    /// Whether this server, which writes under that port, is the one with the polled model.
    pub fn is_of(&self, port: Option<u16>, polled: &PolledModel) -> bool {
        match polled.writer {
            Some(LogWriter::Server) => self.has_model(polled),
            Some(LogWriter::RouterChild(child)) => Some(child) == port,
            None => false,
        }
    }

    /// Takes the counters that a poll found. Returns the requests that they cover, or that there
    /// is nothing to check against, and why others are rejected; the rest waits on.
    pub fn check_waiting(
        &mut self,
        now: Instant,
        counters: &Update<CountersReading>,
    ) -> (Vec<(LoggedModel, LoggedRequest)>, Vec<Rejection>) {
        let mut has_restarted = false;
        if let Update::New(reading) = counters {
            has_restarted = self.budget.update(reading);
        }
        let slots = self.slots.or(self.tracker.slots.slots);
        let slots = slots.unwrap_or(ASSUMED_SLOTS);
        let (current_model, budget, starts) = (&self.model, &mut self.budget, self.starts);
        // What a server did before its restart was in no counter that was read.
        let is_of_before = |waiting: &WaitingRequest| has_restarted && waiting.starts < starts;
        let mut covered = match counters {
            Update::New(CountersReading { at, .. }) => {
                let claims = self.waiting.iter().filter(|waiting| {
                    let has_model = waiting.model.is_some() || current_model.is_some();
                    has_model && waiting.request.read <= *at && !is_of_before(waiting)
                });
                let claims: Vec<_> = claims
                    .filter_map(|waiting| Claim::new(&waiting.request, slots))
                    .collect();
                budget.accept(&claims).into_iter()
            }
            _ => Vec::new().into_iter(),
        };
        let (mut confirmed, mut rejected) = (Vec::new(), Vec::new());
        self.waiting.retain_mut(|waiting| {
            let waited = now.saturating_duration_since(waiting.request.read);
            let Some(model) = waiting.model.as_ref().or(current_model.as_ref()) else {
                let is_over = waited > UNKNOWN_MODEL_TIMEOUT;
                let is_rejected = is_over && !waiting.request.is_error();
                rejected.extend(is_rejected.then_some(Rejection::Source));
                return !is_over;
            };
            let is_confirmed = match (Claim::new(&waiting.request, slots), counters) {
                (None, _) => true,
                (_, Update::New(_)) if is_of_before(waiting) => true,
                (_, Update::New(reading)) if waiting.request.read > reading.at => false,
                (_, Update::New(reading)) => {
                    let is_covered = covered.next() == Some(true);
                    let waited = reading.at.saturating_duration_since(waiting.request.read);
                    if !is_covered && waiting.was_checked && waited >= COUNTERS_DELAY {
                        rejected.push(Rejection::Counters);
                        return false;
                    }
                    waiting.was_checked = true;
                    is_covered
                }
                (Some(claim), Update::Unchanged | Update::Stale | Update::Absent) => {
                    let is_accepted = self.has_no_counters || waited > COUNTERS_TIMEOUT;
                    if is_accepted {
                        // The counters will have grown by it when they are read again.
                        budget.spend(&claim);
                    }
                    is_accepted
                }
            };
            if is_confirmed {
                confirmed.push((model.clone(), waiting.request));
            }
            !is_confirmed
        });
        (confirmed, rejected)
    }
}
