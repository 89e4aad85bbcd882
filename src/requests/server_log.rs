//! The log of one base URL: a llama-server's, or that of a router and all its children.
//!
//! A user of the model's API can put whole lines into it (an invalid `grammar` is printed as it
//! came), so no line is believed for what it says alone. Which models there are, what they are
//! called, how many slots they have and how much they have done is what the polls found.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::requests::log_envelope::Unwrapper;
use crate::requests::log_parser::{Event, LogLine, parse};
use crate::requests::log_plausibility::{Claim, Claimed, Fence, ServerCounters};
use crate::requests::request_tracker::{Fact, Outcome, Timings, Tracker};
use crate::requests::{Facts, Speaker};
use crate::snapshot::Rejection;

/// A request to count, and the model that it was for.
pub type Counted = (Arc<str>, Ended);

/// How a request ended.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Ended {
    /// It was answered.
    Finished(Timings),
    /// It was answered without generation, with an embedding for one: tokens of its prompt.
    Embedded(u64),
    /// Its client went away.
    Cancelled,
}

/// What a poll found of a model, as far as its log is concerned.
#[derive(Clone, Debug)]
pub struct Polled<'a> {
    /// The label `model`.
    pub model: &'a str,
    /// Which lines are about it.
    pub speaker: Speaker,
    /// How many slots it has.
    pub slots: Option<u64>,
    /// Its counters.
    pub counters: PolledCounters,
}

impl Polled<'_> {
    fn is_of(&self, child: Option<u16>, server: &LoggedServer) -> bool {
        match self.speaker {
            Speaker::Server => server.model.as_deref() == Some(self.model),
            Speaker::Child(port) => Some(port) == child,
            Speaker::Nobody => false,
        }
    }
}

/// What became of a server's counters at a poll.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum PolledCounters {
    /// They were read, at this moment.
    Read(Instant, ServerCounters),
    /// They were not read this time.
    Unread,
    /// The server has none, or could not be asked.
    #[default]
    None,
}

/// Said where a log is of no use.
const NOTHING_UNDERSTOOD: &str = "no line of the log is understood: --log-file wants what llama-server itself writes \
     (b7376 or later), at its default verbosity (-lv 3)";
const NO_REQUEST: &str = "the server answers requests of which its log says nothing: check that --log-file is the log of \
     this server, and that it is written at the default verbosity (-lv 3)";
const SEVERAL_SERVERS: &str = "the log has lines of several servers, and is not counted any longer: give --log-file the \
     log of one server";
const NOT_BELIEVED: &str = "lines of the log were not believed: llamacpp_log_lines_rejected_total says how many, \
     and why";

/// The most requests that wait for a poll; what a server answers in an hour.
const MOST_HELD: usize = 16_384;
/// The most children of a router that lines were read of and that no poll has seen.
const MOST_UNKNOWN: usize = 16;
/// The most children of a router.
const MOST_CHILDREN: usize = 1000;
/// How long a request waits for a poll that reads the counters again.
const LONGEST_WAIT: Duration = Duration::from_secs(30);
/// How long a request waits for a poll that sees its model.
const LONGEST_UNKNOWN: Duration = Duration::from_secs(600);
/// How long the counters may take to bear what the log says.
const COUNTERS_LATE: Duration = Duration::from_secs(3);
/// How long a log may say nothing before that is said.
const SAYS_NOTHING: Duration = Duration::from_secs(5);

/// The log of one base URL.
#[derive(Debug, Default)]
pub struct ServerLog {
    unwrapper: Unwrapper,
    source: Source,
    /// By the port of the router's child; `None` is the server that the log is of.
    servers: BTreeMap<Option<u16>, LoggedServer>,
    held: usize,
    rejected: BTreeMap<Rejection, u64>,
    /// When the first line came.
    first_line: Option<Instant>,
    is_understood: bool,
    /// Whether any line has told of the end of a request.
    tells_of_requests: bool,
    /// Since when the counters grow while no line tells of a request.
    silent_since: Option<Instant>,
}

/// Who writes the log, where whatever has collected it names the writer of each line.
#[derive(Debug, Default)]
enum Source {
    #[default]
    Unknown,
    /// The lines name none.
    Unnamed,
    One(String),
    /// One server after another: the second was started, and the first is over.
    After(String, String),
    Several,
}

/// What the log tells of one server.
#[derive(Debug, Default)]
struct LoggedServer {
    tracker: Tracker,
    facts: Facts,
    /// The model that it holds, once a poll has said so.
    model: Option<Arc<str>>,
    slots: Option<u64>,
    fence: Fence,
    /// Whether a poll has found that it has no counters.
    has_no_counters: bool,
    /// How often it was started.
    lives: u64,
    held: VecDeque<Held>,
    last_line: Option<Instant>,
}

/// A request that waits for a poll.
#[derive(Clone, Debug)]
struct Held {
    /// The model that was there when it ended, if that was known.
    model: Option<Arc<str>>,
    ended: Ended,
    launched: Option<Instant>,
    read: Instant,
    life: u64,
    was_checked: bool,
}

impl Held {
    fn claimed(&self, slots: u64) -> Option<Claimed> {
        let claim = match &self.ended {
            Ended::Finished(timings) => Claim::of_timings(timings, slots),
            Ended::Embedded(tokens) => Claim::of_prompt(*tokens, slots),
            Ended::Cancelled => return None,
        };
        Some(Claimed {
            claim,
            launched: self.launched,
            ended: self.read,
        })
    }
}

impl ServerLog {
    /// Takes a line that was read at that moment; what is `history` counts no request.
    pub fn line(
        &mut self,
        line: &[u8],
        read: Instant,
        history: bool,
        count: &mut dyn FnMut(Counted),
    ) {
        if !line.is_empty() {
            self.first_line.get_or_insert(read);
        }
        let mut unwrapper = std::mem::take(&mut self.unwrapper);
        unwrapper.take(line, |line| {
            if let Some(mut parsed) = parse(&line.text) {
                parsed.time = line.time.or(parsed.time);
                self.parsed(&parsed, line.source, read, history, count);
            }
        });
        self.unwrapper = unwrapper;
    }

    fn parsed(
        &mut self,
        line: &LogLine,
        source: Option<String>,
        read: Instant,
        history: bool,
        count: &mut dyn FnMut(Counted),
    ) {
        self.is_understood = true;
        let Some(event) = line.event else {
            if let Some(server) = self.servers.get_mut(&line.child) {
                server.tracker.take(line, read, None, &mut |_| {});
            }
            return;
        };
        let is_known =
            self.source.is(source, event == Event::Loading) && self.has_child(line.child);
        if !is_known {
            return self.reject(Rejection::Source, history);
        }
        let server = self.servers.entry(line.child).or_default();
        server.last_line = Some(read);
        let mut tracker = std::mem::take(&mut server.tracker);
        let slots = server.slots;
        tracker.take(line, read, slots, &mut |told| match told {
            Ok(outcome) => self.outcome(line.child, outcome, read, history, count),
            Err(rejection) => self.reject(rejection, history),
        });
        if let Some(server) = self.servers.get_mut(&line.child) {
            server.tracker = tracker;
        }
    }

    /// Whether lines of that child may be believed, as far as is known.
    fn has_child(&mut self, child: Option<u16>) -> bool {
        if child.is_none() || self.servers.contains_key(&child) {
            return !self.is_forged(child);
        }
        let unknown = self.servers.iter();
        let unknown = unknown.filter(|(child, server)| child.is_some() && server.model.is_none());
        !self.is_forged(child)
            && unknown.count() < MOST_UNKNOWN
            && self.servers.len() < MOST_CHILDREN
    }

    /// A single server writes no port before its lines: where some of its lines have none, a line
    /// with one is not its own.
    fn is_forged(&self, child: Option<u16>) -> bool {
        let single = self.servers.get(&None);
        child.is_some()
            && single.is_some_and(|server| server.model.is_some() && server.last_line.is_some())
    }

    fn outcome(
        &mut self,
        child: Option<u16>,
        outcome: Outcome,
        read: Instant,
        history: bool,
        count: &mut dyn FnMut(Counted),
    ) {
        let Some(server) = self.servers.get_mut(&child) else {
            return;
        };
        let (ended, launched) = match outcome {
            Outcome::Finished { timings, launched } => (Ended::Finished(timings), launched),
            Outcome::Embedded(tokens) => (Ended::Embedded(tokens), Some(read)),
            Outcome::Cancelled => (Ended::Cancelled, Some(read)),
            Outcome::Restarted => {
                // It may be another model that is loaded now, with other slots; the next poll will tell.
                server.model = None;
                server.slots = None;
                server.facts = Facts::default();
                server.lives = server.lives.saturating_add(1);
                return;
            }
            Outcome::Fact(fact) => {
                match fact {
                    Fact::Slots(count) => server.facts.slots = Some(count),
                    Fact::SlotContext(context) => server.facts.slot_context = Some(context),
                    Fact::Unified(unified) => server.facts.kv_unified = Some(unified),
                }
                return;
            }
        };
        if history {
            return;
        }
        self.tells_of_requests = true;
        if let Some(model) = server.model.as_ref().filter(|_| server.has_no_counters) {
            return count((model.clone(), ended));
        }
        if self.held >= MOST_HELD {
            return self.reject(Rejection::Counters, history);
        }
        server.held.push_back(Held {
            model: server.model.clone(),
            ended,
            launched,
            read,
            life: server.lives,
            was_checked: false,
        });
        self.held = self.held.saturating_add(1);
    }

    fn reject(&mut self, reason: Rejection, history: bool) {
        if !history {
            let count = self.rejected.entry(reason).or_default();
            *count = count.saturating_add(1);
        }
    }

    /// Takes what a poll found, and counts what has waited for it.
    pub fn polled(&mut self, now: Instant, models: &[Polled], count: &mut dyn FnMut(Counted)) {
        for polled in models {
            let child = match polled.speaker {
                Speaker::Server => self.only_child(),
                Speaker::Child(port) => Some(port),
                Speaker::Nobody => continue,
            };
            if self.servers.len() >= MOST_CHILDREN && !self.servers.contains_key(&child) {
                continue;
            }
            let server = self.servers.entry(child).or_default();
            if server.model.as_deref() != Some(polled.model) {
                server.model = Some(polled.model.into());
            }
            server.slots = polled.slots;
            server.has_no_counters =
                polled.counters == PolledCounters::None && !server.fence.is_known();
        }
        let mut grows_silently = false;
        let children: Vec<_> = self.servers.keys().copied().collect();
        for child in children {
            let Some(server) = self.servers.get_mut(&child) else {
                continue;
            };
            let mut settled = Vec::new();
            server
                .tracker
                .settle(Some(now), &mut |outcome| settled.push(outcome));
            for outcome in settled {
                self.outcome(child, outcome, now, false, count);
            }
            let Some(server) = self.servers.get_mut(&child) else {
                continue;
            };
            let counters = models
                .iter()
                .find(|polled| polled.is_of(child, server))
                .map(|polled| &polled.counters);
            let before = server.held.len();
            let rejected =
                server.check_held(now, counters.unwrap_or(&PolledCounters::Unread), count);
            self.held = self
                .held
                .saturating_sub(before.saturating_sub(server.held.len()));
            grows_silently |= server.fence.has_grown();
            for reason in rejected {
                self.reject(reason, false);
            }
        }
        self.servers.retain(|child, server| {
            let is_idle = server.held.is_empty()
                && server
                    .last_line
                    .is_none_or(|at| now.saturating_duration_since(at) > LONGEST_UNKNOWN);
            let is_there = models.iter().any(|polled| polled.is_of(*child, server));
            child.is_none() || is_there || !is_idle
        });
        match grows_silently && !self.tells_of_requests {
            true => _ = self.silent_since.get_or_insert(now),
            false => self.silent_since = None,
        }
    }

    /// Where every line of a single server has a number in brackets before it, that is its
    /// wrapper's, and no port.
    fn only_child(&self) -> Option<u16> {
        let mut children = self
            .servers
            .iter()
            .filter(|(_, server)| server.last_line.is_some());
        match (children.next(), children.next()) {
            (Some((child, _)), None) => *child,
            _ => None,
        }
    }

    /// What the log says of the server that holds `model`.
    pub fn facts(&self, model: &str) -> Facts {
        let mut servers = self.servers.values();
        servers
            .find(|server| server.model.as_deref() == Some(model))
            .map(|server| server.facts)
            .unwrap_or_default()
    }

    /// Lines that were not believed, by reason: every reason there is.
    pub fn rejected(&self) -> BTreeMap<Rejection, u64> {
        let count = |reason: Rejection| self.rejected.get(&reason).copied().unwrap_or(0);
        Rejection::ALL.map(|reason| (reason, count(reason))).into()
    }

    /// What is wrong with the log, for people.
    pub fn notes(&self, now: Instant) -> Vec<&'static str> {
        let is_past = |since: Option<Instant>| {
            since.is_some_and(|since| now.saturating_duration_since(since) > SAYS_NOTHING)
        };
        let several = matches!(self.source, Source::Several);
        let notes = [
            (several, SEVERAL_SERVERS),
            (!several && !self.rejected.is_empty(), NOT_BELIEVED),
            (
                !self.is_understood && is_past(self.first_line),
                NOTHING_UNDERSTOOD,
            ),
            (self.is_understood && is_past(self.silent_since), NO_REQUEST),
        ];
        let said = notes.into_iter().filter(|(is_so, _)| *is_so);
        said.map(|(_, note)| note).collect()
    }
}

impl LoggedServer {
    /// Counts the requests that the counters bear, or that there is nothing to hold against; gives
    /// why others were not believed. The rest waits on.
    fn check_held(
        &mut self,
        now: Instant,
        counters: &PolledCounters,
        count: &mut dyn FnMut(Counted),
    ) -> Vec<Rejection> {
        let mut has_begun_anew = false;
        if let PolledCounters::Read(at, counters) = counters {
            has_begun_anew = self.fence.saw(*at, counters);
        }
        let slots = self.slots.or(self.facts.slots).unwrap_or(64);
        let (model, fence, lives) = (&self.model, &mut self.fence, self.lives);
        let has_no_counters = self.has_no_counters;
        // Those that the counters were read after.
        let is_weighed = |held: &Held| match counters {
            PolledCounters::Read(at, _) => {
                let is_of_before = has_begun_anew && held.life < lives;
                !is_of_before && held.read <= *at && (held.model.is_some() || model.is_some())
            }
            _ => false,
        };
        let weighed = self.held.iter().filter(|held| is_weighed(held));
        let claimed: Vec<_> = weighed.filter_map(|held| held.claimed(slots)).collect();
        let mut borne = fence.bears(&claimed).into_iter();
        let mut rejected = Vec::new();
        self.held.retain_mut(|held| {
            let waited = now.saturating_duration_since(held.read);
            let Some(model) = held.model.as_ref().or(model.as_ref()) else {
                let is_over = waited > LONGEST_UNKNOWN;
                if is_over {
                    rejected.push(Rejection::Source);
                }
                return !is_over;
            };
            let Some(Claimed { claim, .. }) = held.claimed(slots) else {
                count((model.clone(), held.ended));
                return false;
            };
            let is_counted = match counters {
                // What it did before it began anew was in no counter that was read.
                PolledCounters::Read(..) if has_begun_anew && held.life < lives => true,
                PolledCounters::Read(at, _) if held.read > *at => false,
                PolledCounters::Read(at, _) => {
                    let bears = borne.next() == Some(true);
                    let late = at.saturating_duration_since(held.read);
                    if !bears && held.was_checked && late >= COUNTERS_LATE {
                        rejected.push(Rejection::Counters);
                        return false;
                    }
                    held.was_checked = true;
                    bears
                }
                PolledCounters::None | PolledCounters::Unread => {
                    // What the counters bear later has been used up by then.
                    let is_counted = has_no_counters || waited > LONGEST_WAIT;
                    if is_counted && fence.is_known() {
                        fence.uses(&claim);
                    }
                    is_counted
                }
            };
            if is_counted {
                count((model.clone(), held.ended));
            }
            !is_counted
        });
        rejected
    }
}

impl Source {
    /// Whether a line of that source is of the server that the log is of.
    fn is(&mut self, source: Option<String>, is_loading: bool) -> bool {
        let Some(source) = source else {
            return match self {
                Source::Unknown => {
                    *self = Source::Unnamed;
                    true
                }
                Source::Unnamed => true,
                _ => false,
            };
        };
        let next = match std::mem::take(self) {
            Source::Unknown => Source::One(source),
            Source::One(one) if one == source => Source::One(one),
            Source::One(one) if is_loading => Source::After(one, source),
            Source::After(one, now) if now == source => Source::After(one, now),
            Source::After(one, now) if is_loading && one != source => Source::After(now, source),
            // A name may be forged there.
            Source::Unnamed => {
                *self = Source::Unnamed;
                return false;
            }
            Source::One(_) | Source::After(..) | Source::Several => Source::Several,
        };
        let is_one = !matches!(next, Source::Several);
        *self = next;
        is_one
    }
}
