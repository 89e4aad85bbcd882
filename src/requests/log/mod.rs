//! Latencies and tokens from llama-server's log: a file (`--log-file`) of a llama-server, or of a
//! router and all its children; or a log that a proxy in front of the llama-server serves over HTTP.
//!
//! ```text
//! tail          follows the file over rotations; cuts it into [lines]
//! http_stream   the same for a response without end; skips what it repeats
//! envelope      takes off what journald, Docker, Kubernetes, … put around a line
//! origin        leaves out the lines of other servers in the same log
//! parser        one line ──▶ one event
//! tracker       the events of one server ──▶ ended requests; rejects impossible lines
//! server        holds an ended request until a poll has read the server's counters
//! plausibility  accepts no more than those counters have grown by ──▶ Requests
//! ```
//!
//! Users of the model's API can write whole lines into the log: llama-server prints an invalid
//! `grammar` as it came. So no line is trusted alone. Which models there are, their names, slots
//! and counters come from the polls ([`PolledModel`]). `SECURITY.md` has the whole picture.

mod clock;
mod envelope;
pub mod http_stream;
mod journal_export;
mod lines;
mod origin;
pub mod parser;
mod plausibility;
mod server;
pub mod tail;
mod tracker;

use std::collections::BTreeMap;
use std::io;
use std::mem;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use crate::bounds::label_enum::label_enum;
use crate::process::threads;
use crate::readings::{CountersReading, LoggedTasks, ProcessId, Update};
use crate::requests::log::envelope::Envelope;
use crate::requests::log::origin::Origin;
use crate::requests::log::parser::{LogEvent, LogLine, LoggedSlots, parse};
use crate::requests::log::server::{LoggedServer, WaitingRequest};
use crate::requests::log::tracker::{LoggedRequest, RELEASE_TIMEOUT, Tracker};
use crate::requests::{RequestSource, Requests, zero_completions};
use crate::snapshot::{Absence, Outcome, RequestFigures, Source, SourceKind};

/// The log's entry among the sources.
pub static SOURCE: RequestSource = RequestSource {
    label: "log",
    zero: || RequestFigures {
        outcomes: Outcome::ALL.map(|outcome| (outcome, 0)).into(),
        errors: parser::STATUSES.map(|status| (status, 0)).into(),
        cancellations: Some(0),
        ..zero_completions()
    },
};

/// Noted while any line was rejected.
pub const LINES_REJECTED: &str =
    "log lines were rejected: llamacpp_log_lines_rejected_total counts them by reason";

/// The most requests that wait for a poll: what a busy server answers in an hour.
const MAX_WAITING: usize = 16_384;
/// How many of these there may be for an error to wait as well.
const MAX_ERRORS: usize = 256;
/// The most children of a router that the log names and no poll has found.
const MAX_UNKNOWN_CHILDREN: usize = 16;
/// The most children of a router.
const MAX_CHILDREN: usize = 1000;
/// How long a request waits for a poll that finds its model, and a child is remembered.
const UNKNOWN_MODEL_TIMEOUT: Duration = Duration::from_secs(600);
/// How long a log may report nothing before a note says so.
const SILENCE: Duration = Duration::from_secs(5);

/// How much later than it was written a line may be read.
const LINES_DELAY: Duration = Duration::from_secs(1);

/// Which process writes the lines about a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogWriter {
    /// The one server that the log is of.
    Server,
    /// The child of a router that listens on this port.
    RouterChild(u16),
}

/// The servers that a poll has found of those that may write into one log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WritersFound {
    /// None.
    None,
    /// One that is loading its model.
    Loading,
    /// One, with this process.
    One(ProcessId),
    /// Several, or some that cannot be told apart.
    Several,
}

/// What a poll found of a model, as far as its log is concerned.
#[derive(Clone, Debug)]
pub struct PolledModel<'a> {
    /// The label `model`.
    pub model: &'a str,
    /// The label `mode`, where the kind of server has modes.
    pub mode: Option<&'static str>,
    /// The writer of its log lines; `None` if no log has them.
    pub writer: Option<LogWriter>,
    /// Number of slots.
    pub slots: Option<u64>,
    /// Its counters.
    pub counters: &'a Update<CountersReading>,
}

label_enum! {
    /// Why a log line was rejected, as the label `reason` spells it.
    pub enum Rejection {
        /// It lacks llama-server's time and level where the log has them, or the reverse.
        Format = "format",
        /// Its time is before that of an earlier line.
        Time = "time",
        /// It names a slot that does not exist.
        Slot = "slot",
        /// Its request took longer than it was on its slot.
        Duration = "duration",
        /// Another server wrote it, or a child that no poll found.
        Source = "source",
        /// It reports more than the server's own counters do.
        Counters = "counters",
    }
}

/// The log of one base URL.
#[derive(Debug)]
pub struct ServerLog(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    /// Where requests are counted.
    requests: Arc<Requests>,
    /// Whether there is a log to follow.
    is_found: bool,
    envelope: Envelope,
    origin: Origin,
    /// By the port of the router's child; `None` is the one server that the log is of.
    servers: BTreeMap<Option<u16>, LoggedServer>,
    /// By [`Rejection`].
    rejected: [u64; 6],
    /// Whether its lines may be about several models.
    is_ambiguous: bool,
    /// How often a line has said that a server loads its model.
    loads: u64,
    /// The one server that the last poll found, and how many loads the log had reported by then.
    last_writer: Option<(ProcessId, u64)>,
    /// When a poll last found several.
    several_at: Option<Instant>,
    /// When the first line came, and the last.
    first_line: Option<Instant>,
    last_line: Option<Instant>,
    /// Why the log cannot be read now.
    read_error: Option<String>,
    is_understood: bool,
    /// Whether any line has reported the end of a request.
    reports_requests: bool,
    /// Whether errors are not counted.
    leaves_out_errors: bool,
    /// Since when the counters grow while no line reports a request.
    unreported_since: Option<Instant>,
}

impl ServerLog {
    /// A log that is not followed yet, and whose requests are counted in `requests`.
    pub fn new(requests: Arc<Requests>) -> ServerLog {
        ServerLog(Mutex::new(State {
            requests,
            ..State::default()
        }))
    }

    /// Follows the log at `path` from now on, in a thread of its own; `-` is standard input.
    ///
    /// # Errors
    /// The system cannot start a thread.
    pub fn follow(self: &Arc<Self>, path: &Path) -> io::Result<()> {
        let log = Arc::clone(self);
        let path = path.to_owned();
        let run = move || {
            tail::follow(
                &path,
                || log.found(),
                |error| log.set_read_error(error),
                &mut |line: &[u8], is_history: bool| log.line(line, Instant::now(), is_history),
            );
        };
        threads::start("log", run)
    }

    /// Says that there is a log: from now on its figures start at zero.
    pub fn found(&self) {
        self.lock().found();
    }

    /// Says that the log is read over a new connection, which may lack lines from before it: then
    /// it is not known how the running tasks have gone on.
    pub fn connected(&self, may_lack_lines: bool) {
        let mut state = self.lock();
        state.found();
        if may_lack_lines {
            state.envelope = Envelope::default();
            for server in state.servers.values_mut() {
                server.tracker = Tracker::default();
            }
        }
    }

    /// Sets whether the log is not used, because its lines may be about several models. Requests
    /// that have not been counted by then are discarded.
    pub fn set_ambiguous(&self, is_ambiguous: bool) {
        let mut state = self.lock();
        state.is_ambiguous = is_ambiguous;
        if is_ambiguous {
            state.servers.clear();
        }
    }

    /// Sets which servers a poll has found, where one program starts and stops them and their lines
    /// in its log do not say which they are of: while there is one, they are its.
    pub fn set_writers(&self, found: WritersFound, now: Instant) {
        let is_ambiguous = {
            let mut state = self.lock();
            let loads = state.loads;
            let before = state.last_writer.take();
            let mut has_another_loaded = false;
            match found {
                WritersFound::None => {}
                WritersFound::Loading => state.last_writer = before,
                WritersFound::Several => state.several_at = Some(now),
                WritersFound::One(process) => {
                    state.last_writer = Some((process, loads));
                    // It may have ended by now.
                    has_another_loaded = before.is_some_and(|(known, known_loads)| {
                        let own = u64::from(known != process);
                        loads.saturating_sub(known_loads) > own
                    });
                }
            }
            // Lines are read a moment after they were written.
            let is_late = |at: Instant| now.saturating_duration_since(at) < LINES_DELAY;
            has_another_loaded || state.several_at.is_some_and(is_late)
        };
        self.set_ambiguous(is_ambiguous);
    }

    /// Takes a line that was read at that moment. History, the lines from before the exporter
    /// followed the log, counts no request.
    pub fn line(&self, line: &[u8], read: Instant, is_history: bool) {
        let mut state = self.lock();
        state.found();
        if !line.is_empty() {
            state.last_line = Some(read);
        }
        if state.is_ambiguous {
            return;
        }
        if !line.is_empty() {
            state.first_line.get_or_insert(read);
        }
        for unwrapped in state.envelope.take(line) {
            if let Some(mut parsed) = parse(&unwrapped.text) {
                parsed.time = unwrapped.time.or(parsed.time);
                state.parsed(&parsed, unwrapped.origin, read, is_history);
            }
        }
    }

    /// Takes the results of a poll, and counts the requests that waited for it.
    pub fn polled(&self, now: Instant, models: &[PolledModel]) {
        let mut state = self.lock();
        if state.is_found && !state.is_ambiguous {
            state.polled(now, models);
        }
    }

    /// What the log said of the tasks of a polled model since it was asked last; `None` without a
    /// log of that model alone.
    pub fn take_tasks(&self, polled: &PolledModel) -> Option<LoggedTasks> {
        let mut state = self.lock();
        if !state.is_found || state.is_ambiguous || state.origin.is_several {
            return None;
        }
        let port = state.port(polled)?;
        let server = state.servers.get_mut(&port);
        Some(server.map(LoggedServer::take_tasks).unwrap_or_default())
    }

    /// Whether the lines of this model's server have told of its slots or tasks: with less than
    /// verbosity 3, or of another engine, they never do.
    pub fn shows_tasks(&self, polled: &PolledModel) -> bool {
        let state = self.lock();
        let server = state.port(polled).and_then(|port| state.servers.get(&port));
        server.is_some_and(|server| server.tracker.shows_tasks())
    }

    /// The models that had requests since this was called last.
    pub fn take_active_models(&self) -> Vec<Arc<str>> {
        let mut state = self.lock();
        let servers = state.servers.values_mut();
        let active = servers.filter_map(|server| {
            let model = server.model.as_ref()?;
            mem::take(&mut server.had_tasks).then(|| Arc::clone(&model.name))
        });
        active.collect()
    }

    /// Does not count errors: another source does.
    pub fn without_errors(self) -> ServerLog {
        self.lock().leaves_out_errors = true;
        self
    }

    /// Whether any line has reported the end of a request.
    pub fn reports_requests(&self) -> bool {
        self.lock().reports_requests
    }

    /// When the last line was read.
    pub fn last_line(&self) -> Option<Instant> {
        self.lock().last_line
    }

    /// The slots of the server with this model, as far as the log says.
    pub fn logged_slots(&self, model: &str) -> LoggedSlots {
        let state = self.lock();
        let mut servers = state.servers.values();
        servers
            .find(|server| server.model.as_ref().is_some_and(|of| *of.name == *model))
            .map(|server| server.tracker.slots)
            .unwrap_or_default()
    }

    /// Rejected lines by the label `reason`, zero included; `None` without a log.
    pub fn lines_rejected(&self) -> Option<Vec<(&'static str, u64)>> {
        let state = self.lock();
        let rejected = Rejection::ALL
            .map(Rejection::label)
            .into_iter()
            .zip(state.rejected);
        state.is_found.then(|| rejected.collect())
    }

    fn set_read_error(&self, error: Option<&str>) {
        let mut state = self.lock();
        if state.read_error.as_deref() != error {
            state.read_error = error.map(str::to_owned);
        }
    }

    /// The log as a source: when a line was read last, and what is wrong with it.
    pub fn source(&self, kind: SourceKind, now: Instant) -> Source {
        let state = self.lock();
        let mut source = Source::new(kind);
        source.read_at = state.last_line;
        source.absence = match &state.read_error {
            Some(_) => Some(Absence::LogUnreadable),
            None if !state.is_found => Some(Absence::LogWaiting),
            None if state.is_ambiguous => Some(Absence::LogAmbiguous),
            None => state.problems(now).next(),
        };
        match &state.read_error {
            Some(error) => source.with_error(error),
            None => source,
        }
    }

    /// What is wrong with the log, for people.
    pub fn notes(&self, now: Instant) -> Vec<&'static str> {
        let state = self.lock();
        let mut notes: Vec<_> = state.problems(now).map(Absence::note).collect();
        let is_rejecting = state.rejected.iter().any(|count| *count > 0);
        if is_rejecting && !state.origin.is_several {
            notes.insert(0, LINES_REJECTED);
        }
        notes
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        threads::lock(&self.0)
    }
}

impl State {
    /// Why requests are missing although the log can be read.
    fn problems(&self, now: Instant) -> impl Iterator<Item = Absence> {
        let is_over = |since: Option<Instant>| {
            since.is_some_and(|since| now.saturating_duration_since(since) > SILENCE)
        };
        let problems = [
            (self.origin.is_several, Absence::LogOfSeveralServers),
            (
                !self.is_understood && is_over(self.first_line),
                Absence::LogNotUnderstood,
            ),
            (
                // With -lv 1, llama-server writes no line at all.
                (self.is_understood || self.first_line.is_none()) && is_over(self.unreported_since),
                Absence::LogHasNoRequests,
            ),
        ];
        let applicable = problems.into_iter().filter(|(applies, _)| *applies);
        applicable.map(|(_, problem)| problem)
    }

    fn found(&mut self) {
        self.is_found = true;
    }

    fn parsed(&mut self, line: &LogLine, origin: Option<String>, read: Instant, is_history: bool) {
        self.is_understood = true;
        let Some(event) = line.event else {
            if let Some(server) = self.servers.get_mut(&line.port) {
                server.tracker.take_time(line, read);
            }
            return;
        };
        let is_loading = event == LogEvent::Loading;
        self.loads = self.loads.saturating_add(u64::from(is_loading));
        if !(self.origin.accepts(origin, is_loading) && self.accepts_port(line.port)) {
            return self.reject(Rejection::Source, is_history);
        }
        let server = self.servers.entry(line.port).or_default();
        server.last_line = Some(read);
        match server.tracker.take(line, event, read, server.slots) {
            Ok(ended) => {
                let is_task =
                    matches!(event, LogEvent::Launched { .. } | LogEvent::Released { .. });
                server.had_tasks |= is_task && !is_history;
                for request in ended {
                    self.ended(line.port, request, is_history);
                }
                if let Some(server) = self.servers.get_mut(&line.port).filter(|_| is_loading) {
                    server.restart();
                }
            }
            Err(rejection) => self.reject(rejection, is_history),
        }
    }

    /// Whether lines of the child on this port are accepted, as far as is known.
    fn accepts_port(&self, port: Option<u16>) -> bool {
        if port.is_none() {
            return true;
        }
        // A single server writes no port before its lines: where some of its lines have none, a
        // line with one is forged.
        let single = self.servers.get(&None);
        if single.is_some_and(|server| server.model.is_some() && server.last_line.is_some()) {
            return false;
        }
        let is_unknown = |(port, server): &(&Option<u16>, &LoggedServer)| {
            port.is_some() && server.model.is_none()
        };
        self.servers.contains_key(&port)
            || (self.servers.iter().filter(is_unknown).count() < MAX_UNKNOWN_CHILDREN
                && self.servers.len() < MAX_CHILDREN)
    }

    /// Counts a request that the log reports as ended, or has it wait for a poll.
    fn ended(&mut self, port: Option<u16>, request: LoggedRequest, is_history: bool) {
        if is_history {
            return;
        }
        self.reports_requests = true;
        if request.is_error() && self.leaves_out_errors {
            return;
        }
        let waiting = self.servers.values().map(|server| server.waiting.len());
        let is_full = waiting.fold(0, usize::saturating_add) >= MAX_WAITING;
        let is_routers = port.is_none() && self.servers.keys().any(Option::is_some);
        let Some(server) = self.servers.get_mut(&port) else {
            return;
        };
        server.task_ended(&request);
        match &server.model {
            Some(model) if server.has_no_counters => {
                self.requests
                    .count_logged(model.labels(), request.end, request.read);
            }
            // A router refuses requests in its own name: they are of no model that is known.
            None if request.is_error() && (is_routers || server.waiting.len() >= MAX_ERRORS) => {}
            _ if is_full => self.reject(Rejection::Counters, false),
            model => server.waiting.push_back(WaitingRequest {
                model: model.clone(),
                request,
                starts: server.starts,
                was_checked: false,
            }),
        }
    }

    fn reject(&mut self, reason: Rejection, is_history: bool) {
        if !is_history && let Some(count) = self.rejected.get_mut(reason as usize) {
            *count = count.saturating_add(1);
        }
    }

    fn polled(&mut self, now: Instant, models: &[PolledModel]) {
        for polled in models {
            let Some(port) = self.port(polled) else {
                continue;
            };
            // Its figures start at zero.
            let labels = (polled.model, polled.mode);
            self.requests.count_in_mode(labels, &SOURCE, |_| {});
            if self.servers.len() < MAX_CHILDREN || self.servers.contains_key(&port) {
                self.servers.entry(port).or_default().polled(polled);
            }
        }
        let mut has_growth = false;
        let ports: Vec<_> = self.servers.keys().copied().collect();
        for port in ports {
            let tracker = self
                .servers
                .get_mut(&port)
                .map(|server| &mut server.tracker);
            let settled = tracker.map(|tracker| tracker.settle(now, RELEASE_TIMEOUT));
            for request in settled.unwrap_or_default() {
                self.ended(port, request, false);
            }
            let Some(server) = self.servers.get_mut(&port) else {
                continue;
            };
            let polled = models.iter().find(|model| server.is_of(port, model));
            let counters = polled.map_or(&Update::Stale, |polled| polled.counters);
            let (confirmed, rejected) = server.check_waiting(now, counters);
            has_growth |= server.budget.has_grown();
            for (model, request) in confirmed {
                self.requests
                    .count_logged(model.labels(), request.end, request.read);
            }
            for reason in rejected {
                self.reject(reason, false);
            }
        }
        self.servers.retain(|port, server| {
            let is_recent = server
                .last_line
                .is_some_and(|at| now.saturating_duration_since(at) <= UNKNOWN_MODEL_TIMEOUT);
            let is_polled = models.iter().any(|model| server.is_of(*port, model));
            port.is_none() || is_polled || is_recent || !server.waiting.is_empty()
        });
        if has_growth && !self.reports_requests {
            self.unreported_since.get_or_insert(now);
        } else {
            self.unreported_since = None;
        }
    }

    /// Under which port the lines about a model come; `None` if no log has them.
    fn port(&self, polled: &PolledModel) -> Option<Option<u16>> {
        match polled.writer? {
            LogWriter::Server => Some(self.only_port()),
            LogWriter::RouterChild(port) => Some(Some(port)),
        }
    }

    /// Under which port a single server's lines come: where each has a number in brackets
    /// before it, that is its wrapper's.
    fn only_port(&self) -> Option<u16> {
        let mut writing = self
            .servers
            .iter()
            .filter(|(_, server)| server.last_line.is_some());
        match (writing.next(), writing.next()) {
            (Some((port, _)), None) => *port,
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests;
