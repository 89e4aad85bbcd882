//! Follows the tasks of one server through the events of its log, and finds the requests that
//! end. Rejects events that the server cannot have written.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::mem;
use std::time::{Duration, Instant};

use crate::readings::RunningTask;
use crate::requests::log::Rejection;
use crate::requests::log::clock::LogClock;
use crate::requests::log::parser::{LogEvent, LogLine, LoggedSlots, SlotTask};
use crate::requests::{PhaseTiming, RequestEnd, RequestTimings};

/// The most slots that are tracked: of a server whose number of slots a poll has found, and of
/// one that only the log names.
const MAX_SLOTS: usize = 1024;
const MAX_LOGGED_SLOTS: usize = 64;
/// How many ended tasks are remembered: a task may be cancelled right after its end.
const MAX_ENDED: usize = 256;
/// How long after a task has left its slot its timings may come (in builds before b7376; since
/// then they come before it).
pub const RELEASE_TIMEOUT: Duration = Duration::from_secs(1);
/// By how many microseconds the times in a line may differ from the time of the line.
const ROUNDING: u64 = 10_000;
/// How many lines without a time show that an earlier one with a time was forged.
const MAX_UNTIMED: u32 = 32;

/// A request that has ended.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LoggedRequest {
    /// The ID of its task; `None` if it never became one.
    pub task: Option<u64>,
    /// How it ended.
    pub end: RequestEnd,
    /// When its launch was read; `None` where that may have been before the log was followed.
    pub launched: Option<Instant>,
    /// When its last line was read.
    pub read: Instant,
}

impl LoggedRequest {
    /// Whether it ended in an error.
    pub fn is_error(&self) -> bool {
        matches!(self.end, RequestEnd::Failed(_))
    }

    /// The same, and whether llama-server says that its completion is truncated.
    fn truncated(mut self, value: bool) -> LoggedRequest {
        if let RequestEnd::Completed { is_truncated, .. } = &mut self.end {
            *is_truncated = value;
        }
        self
    }
}

/// What is known of one server from its log.
#[derive(Debug, Default)]
pub struct Tracker {
    /// Its slots, as reported since its last start.
    pub slots: LoggedSlots,
    format: Option<LineFormat>,
    clock: LogClock,
    /// Whether a task was launched since its start: it reports its slots before that.
    has_begun: bool,
    /// Whose timings the next lines have, on builds that name the task once, and the time of the
    /// line that named it.
    timings_of: Option<(SlotTask, Option<u64>)>,
    /// The last task of each slot, while it is on it.
    tasks: BTreeMap<u64, TrackedTask>,
    /// Slots that any line was about, and how many there may be.
    known_slots: BTreeSet<u64>,
    max_slots: usize,
    /// IDs of the last tasks that ended.
    ended: VecDeque<u64>,
    /// Requests whose timings are known, until the release of their slot says whether they are
    /// truncated.
    unreleased: Vec<(SlotTask, LoggedRequest)>,
    /// Whether the server ends or falls asleep: then it is the server that cancels tasks, not their
    /// clients.
    cancels_tasks: bool,
}

/// Whether the lines have llama-server's own time and level.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum LineFormat {
    /// They do not (before b9294, or with `--no-log-timestamps`).
    Untimed,
    /// They do, from the first line on.
    Timed,
    /// They do since a server loaded its model; so many lines without came since the last one.
    TimedSinceLoading(u32),
}

#[derive(Debug)]
struct TrackedTask {
    task: SlotTask,
    /// Its launch, if that was read.
    launch: Option<Launch>,
    /// Whether it may have been launched before the log was followed.
    may_be_older: bool,
    prompt: Option<PhaseTiming>,
    generation: Option<PhaseTiming>,
    /// Whether any timings of it were printed: then it is not an embedding.
    has_timings: bool,
    /// Tokens generated so far.
    generated: u64,
    /// When it left the slot, and how many tokens were in it, where its timings may still come.
    released: Option<(Instant, u64)>,
    /// Whether the release of its slot, where that came first, says that it is truncated.
    is_truncated: Option<bool>,
}

#[derive(Clone, Copy, Debug)]
struct Launch {
    read: Instant,
    /// llama-server's own time, in microseconds.
    time: Option<u64>,
    is_child: bool,
}

impl Tracker {
    /// Takes the time of a line without an event.
    pub fn take_time(&mut self, line: &LogLine, read: Instant) {
        if let Some(time) = line.time {
            self.clock.accepts(time, read);
        }
    }

    /// Whether its lines since its start have told of its slots or tasks.
    pub fn shows_tasks(&self) -> bool {
        self.has_begun || self.slots.slots.is_some()
    }

    /// Takes the event of a line that was read at that moment. `slots` is how many slots the
    /// server has, if a poll has found that. Returns the requests that have ended.
    ///
    /// # Errors
    /// Why this server cannot have written the line.
    pub fn take(
        &mut self,
        line: &LogLine,
        event: LogEvent,
        read: Instant,
        slots: Option<u64>,
    ) -> Result<Vec<LoggedRequest>, Rejection> {
        self.max_slots = slots.map_or(MAX_LOGGED_SLOTS, |_| MAX_SLOTS);
        self.check(line, event, read, slots)?;
        let mut ended = match event {
            LogEvent::TimingsOf(_)
            | LogEvent::Generated(..)
            | LogEvent::Prompt(..)
            | LogEvent::Generation(..)
            | LogEvent::Total(..) => Vec::new(),
            _ => self.settle(read, Duration::ZERO),
        };
        match event {
            LogEvent::Loading => {
                ended.extend(self.unreleased.drain(..).map(|(_, request)| request));
                *self = Tracker {
                    format: self.format,
                    clock: mem::take(&mut self.clock),
                    known_slots: mem::take(&mut self.known_slots),
                    max_slots: self.max_slots,
                    ..Tracker::default()
                };
            }
            LogEvent::Slots(slots) => self.slots = self.slots.updated(slots),
            LogEvent::Total(task, total) => {
                let end = self.total(task, total.ms, line.time, read);
                ended.extend(end.transpose()?.flatten());
            }
            _ => ended.extend(self.task_event(event, line.time, read)),
        }
        Ok(ended)
    }

    /// Returns the tasks that left their slot at least `timeout` ago and got no timings: they had
    /// no generation. And those whose release of the slot is missing.
    pub fn settle(&mut self, now: Instant, timeout: Duration) -> Vec<LoggedRequest> {
        let is_over = |since: Instant| now.saturating_duration_since(since) >= RELEASE_TIMEOUT;
        let unreleased = &mut self.unreleased;
        let missing = unreleased.extract_if(.., |(_, request)| is_over(request.read));
        let missing: Vec<_> = missing.map(|(_, request)| request).collect();
        let mut settled = Vec::new();
        self.tasks.retain(|_, tracked| {
            let due = tracked
                .released
                .filter(|(at, _)| now.saturating_duration_since(*at) >= timeout);
            settled.extend(due.map(|(_, tokens)| (tracked.task.id, tokens)));
            due.is_none()
        });
        let ended = settled
            .into_iter()
            .filter_map(|(id, tokens)| self.end(id, RequestEnd::PromptOnly(tokens), now));
        ended.chain(missing).collect()
    }

    /// Whether a line can be this server's.
    fn check(
        &mut self,
        line: &LogLine,
        event: LogEvent,
        read: Instant,
        slots: Option<u64>,
    ) -> Result<(), Rejection> {
        let (task, may_lack_time) = match event {
            LogEvent::Launched { task, .. }
            | LogEvent::TimingsOf(task)
            | LogEvent::Generated(task, _)
            | LogEvent::Released { task, .. } => (Some(task), false),
            // From b9093 to b9294 only the first of the four lines of timings has the time.
            LogEvent::Prompt(task, _)
            | LogEvent::Generation(task, _)
            | LogEvent::Total(task, _) => (task, task.is_none()),
            _ => (None, false),
        };
        if line.time.is_some() || !may_lack_time {
            self.check_format(line.time.is_some(), event == LogEvent::Loading)?;
        }
        if let Some(time) = line.time
            && !self.clock.accepts(time, read)
        {
            if event != LogEvent::Loading {
                return Err(Rejection::Time);
            }
            self.clock.restart(time, read);
        }
        let is_late_report = matches!(event, LogEvent::Slots(_)) && self.has_begun;
        let is_beyond = |slots| task.is_some_and(|task| task.slot >= slots);
        if is_late_report || slots.or(self.slots.slots).is_some_and(is_beyond) {
            return Err(Rejection::Slot);
        }
        Ok(())
    }

    fn check_format(&mut self, is_timed: bool, is_loading: bool) -> Result<(), Rejection> {
        use LineFormat::{Timed, TimedSinceLoading, Untimed};
        let (format, is_accepted) = match (self.format, is_timed) {
            (None, true) => (Timed, true),
            (None, false) => (Untimed, true),
            // A newer build was started.
            (Some(Untimed), true) if is_loading => (TimedSinceLoading(0), true),
            (Some(TimedSinceLoading(_)), true) => (TimedSinceLoading(0), true),
            (Some(TimedSinceLoading(MAX_UNTIMED)), false) => (Untimed, true),
            (Some(TimedSinceLoading(untimed)), false) => {
                (TimedSinceLoading(untimed.saturating_add(1)), false)
            }
            (Some(format), is_timed) => (format, is_timed == (format == Timed)),
        };
        self.format = Some(format);
        is_accepted.then_some(()).ok_or(Rejection::Format)
    }

    /// Takes an event of one task; returns the request if that ends it.
    fn task_event(
        &mut self,
        event: LogEvent,
        time: Option<u64>,
        read: Instant,
    ) -> Option<LoggedRequest> {
        match event {
            LogEvent::Launched { task, is_child } => {
                self.has_begun = true;
                self.cancels_tasks = false;
                self.tasks.remove(&task.slot);
                self.track(task)?.launch = Some(Launch {
                    read,
                    time,
                    is_child,
                });
            }
            LogEvent::TimingsOf(task) => {
                self.timings_of = Some((task, time));
                self.track_timings(Some(task))?;
            }
            LogEvent::Generated(task, tokens) => {
                self.track_timings(Some(task))?.generated = tokens;
            }
            LogEvent::Prompt(task, timing) => {
                let tracked = self.track_timings(task)?;
                tracked.prompt = Some(timing);
                tracked.generation = None;
            }
            LogEvent::Generation(task, timing) => {
                let tracked = self.track_timings(task)?;
                // Without the line of its prompt, the request is not known whole.
                tracked.prompt?;
                tracked.generation = Some(timing);
            }
            LogEvent::Released {
                task,
                tokens,
                is_truncated,
            } => {
                if let Some(request) = self.released_request(task, is_truncated) {
                    self.tasks.retain(|_, tracked| tracked.task != task);
                    return Some(request);
                }
                if self.known_slots.len() < self.max_slots {
                    self.known_slots.insert(task.slot);
                }
                let tracked = self.tasks.get_mut(&task.slot);
                let tracked = tracked.filter(|tracked| tracked.task == task)?;
                tracked.is_truncated = Some(is_truncated);
                let is_prompt_only = tracked.launch.is_some() && !tracked.has_timings;
                if is_prompt_only && time.is_none() {
                    tracked.released = Some((read, tokens));
                    return None;
                }
                self.tasks.remove(&task.slot);
                if is_prompt_only {
                    return self.end(task.id, RequestEnd::PromptOnly(tokens), read);
                }
            }
            LogEvent::Cancelled(id) => {
                let end = self.end(id, RequestEnd::Cancelled, read);
                return end.filter(|_| !self.cancels_tasks);
            }
            LogEvent::Failed(id, status) => {
                return self.end(id, RequestEnd::Failed(status), read);
            }
            LogEvent::Refused(status) => {
                return Some(LoggedRequest {
                    task: None,
                    end: RequestEnd::Failed(status),
                    launched: Some(read),
                    read,
                });
            }
            LogEvent::ShuttingDown | LogEvent::FallingAsleep => self.cancels_tasks = true,
            LogEvent::Loading | LogEvent::Idle | LogEvent::Slots(_) | LogEvent::Total(..) => {}
        }
        None
    }

    /// The request of a task that has left its slot, if its timings are known.
    fn released_request(&mut self, task: SlotTask, is_truncated: bool) -> Option<LoggedRequest> {
        let mut unreleased = self.unreleased.iter();
        let index = unreleased.position(|(of, _)| *of == task)?;
        Some(self.unreleased.remove(index).1.truncated(is_truncated))
    }

    /// Takes the last line of a task's timings. Returns its request, if all of them were read and
    /// it has left its slot, or that the request cannot have taken so long.
    fn total(
        &mut self,
        task: Option<SlotTask>,
        total_ms: f64,
        time: Option<u64>,
        read: Instant,
    ) -> Option<Result<Option<LoggedRequest>, Rejection>> {
        let (task, time) = match task {
            Some(task) => (task, time),
            None => self.timings_of.take()?,
        };
        let tracked = self.track_timings(Some(task))?;
        let (launch, is_truncated) = (tracked.launch, tracked.is_truncated);
        let timings = RequestTimings {
            prompt: tracked.prompt.take()?,
            generation: tracked.generation.take()?,
            total_ms,
            is_child: launch.is_some_and(|launch| launch.is_child),
        };
        let launched = match launch {
            Some(launch) => Some(launch.read),
            None => (!tracked.may_be_older).then_some(read),
        };
        if let Some(time) = time {
            // A launch that was not read was no earlier than the server's start, time 0.
            let launch_time = launch.and_then(|launch| launch.time).unwrap_or(0);
            let passed = time.saturating_sub(launch_time).saturating_add(ROUNDING);
            let phases_ms = timings.prompt.ms + timings.generation.ms;
            if phases_ms.max(total_ms) * 1000.0 > passed as f64 {
                return Some(Err(Rejection::Duration));
            }
        }
        let end = RequestEnd::Completed {
            timings,
            is_truncated: false,
        };
        let ended = LoggedRequest {
            launched,
            ..self.end(task.id, end, read)?
        };
        if is_truncated.is_none() && self.unreleased.len() < self.max_slots {
            self.unreleased.push((task, ended));
            return None;
        }
        Some(Ok(Some(ended.truncated(is_truncated == Some(true)))))
    }

    /// The request of a task that ends, unless it has ended before.
    fn end(&mut self, id: u64, end: RequestEnd, read: Instant) -> Option<LoggedRequest> {
        self.mark_ended(id).then_some(LoggedRequest {
            task: Some(id),
            end,
            launched: Some(read),
            read,
        })
    }

    /// The tasks that have not ended.
    pub fn running(&self) -> impl Iterator<Item = RunningTask> {
        let tasks = self.tasks.values().map(|of| RunningTask {
            id: of.task.id,
            generated_tokens: of.generated,
            is_child: of.launch.is_some_and(|launch| launch.is_child),
        });
        tasks.filter(|task| !self.ended.contains(&task.id))
    }

    /// Whether a task had not ended yet.
    fn mark_ended(&mut self, id: u64) -> bool {
        if self.ended.contains(&id) {
            return false;
        }
        if self.ended.len() == MAX_ENDED {
            self.ended.pop_front();
        }
        self.ended.push_back(id);
        true
    }

    /// What is tracked of a task with timings: this one, or the one that an earlier line named.
    fn track_timings(&mut self, task: Option<SlotTask>) -> Option<&mut TrackedTask> {
        let named = self.timings_of.map(|(task, _)| task);
        let tracked = self.track(task.or(named)?)?;
        tracked.has_timings = true;
        tracked.released = None;
        Some(tracked)
    }

    /// What is tracked of a task, which is the last one of its slot.
    fn track(&mut self, task: SlotTask) -> Option<&mut TrackedTask> {
        let known = self.tasks.get(&task.slot);
        if known.is_none_or(|tracked| tracked.task != task) {
            if self.known_slots.len() >= self.max_slots && !self.known_slots.contains(&task.slot) {
                return None;
            }
            let tracked = TrackedTask {
                task,
                launch: None,
                may_be_older: self.known_slots.insert(task.slot),
                prompt: None,
                generation: None,
                has_timings: false,
                generated: 0,
                released: None,
                is_truncated: None,
            };
            self.tasks.insert(task.slot, tracked);
        }
        self.tasks.get_mut(&task.slot)
    }
}

#[cfg(test)]
mod tests;
