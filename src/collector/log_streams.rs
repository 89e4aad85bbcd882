//! The logs that a server serves over HTTP: one thread and one connection for each.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

use crate::process::log as own_log;
use crate::process::threads::lock;
use crate::requests::Requests;
use crate::requests::log::http_stream::{LogBeginning, NewLines};
use crate::requests::log::{PolledModel, ServerLog};
use crate::settings::{BaseUrl, Settings};
use crate::snapshot::{Absence, Reason, Source, SourceKind};
use crate::upstream::http::allowed_addresses::AllowedAddresses;
use crate::upstream::http::client::Client;
use crate::upstream::http::request_error::{RequestError, RequestErrorKind};
use crate::upstream::http::transport::LastConnection;
use crate::upstream::reading::ServedLog;

/// The most streams of one server.
const MAX_STREAMS: usize = 64;
/// The most streams that are opened at one poll: so many more connections and buffers at a time.
const MAX_OPENED: usize = 16;
/// Bytes of the stack of a thread that reads a stream.
const STACK_BYTES: usize = 256 << 10;
/// The first and the longest pause before a stream is opened again.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// A request without an answer for so long is not refused.
const REFUSAL_TIME: Duration = Duration::from_secs(2);
/// How long after a request at the latest a log has lines of it.
const SILENCE: Duration = Duration::from_secs(5);
/// How long a log is left alone after an answer that it is not served.
const NOT_SERVED_PAUSE: Duration = Duration::from_secs(3600);

/// The streams of one server, by URL.
pub(super) struct LogStreams {
    base: BaseUrl,
    settings: Settings,
    requests: Arc<Requests>,
    streams: BTreeMap<String, LogStream>,
    /// Rejected lines of streams that have ended, by reason.
    rejected: BTreeMap<&'static str, u64>,
}

/// One stream. Dropping it ends its connection and its thread.
struct LogStream {
    log: Arc<ServerLog>,
    connection: LastConnection,
    state: Arc<Mutex<StreamState>>,
    thread: Thread,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum StreamState {
    /// The request is being sent since then. llama-swap answers it with the first line of the log.
    Opening(Instant),
    /// The response has begun at that time.
    Open(Instant),
    /// The connection has failed or ended.
    Closed,
    /// The server does not serve this log, or not so that it can be followed. The thread has ended
    /// at that time.
    Unusable(Instant, Absence),
}

impl LogStreams {
    /// No streams yet. Their requests are counted in `requests`.
    pub fn new(base: &BaseUrl, settings: &Settings, requests: &Arc<Requests>) -> LogStreams {
        LogStreams {
            base: base.clone(),
            settings: settings.clone(),
            requests: Arc::clone(requests),
            streams: BTreeMap::new(),
            rejected: BTreeMap::new(),
        }
    }

    /// Opens the streams of these logs, and ends those of others.
    pub fn update(&mut self, logs: &[ServedLog]) {
        let logs = logs.get(..MAX_STREAMS).unwrap_or(logs);
        let is_served = |url: &str| logs.iter().any(|log| log.url == url);
        self.streams.retain(|url, stream| {
            let is_served = is_served(url);
            if !is_served {
                add_counts(&mut self.rejected, &stream.log);
            }
            is_served
        });
        for log in logs {
            let stream = self.streams.get(&log.url);
            if let Some(stream) = stream.filter(|stream| stream.is_silent(log)) {
                *lock(&stream.state) = StreamState::Unusable(Instant::now(), Absence::LogSilent);
                stream.end();
            }
        }
        let is_new = |log: &&ServedLog| {
            let stream = self.streams.get(&log.url);
            stream.is_none_or(LogStream::may_be_opened_again)
        };
        let new: Vec<_> = logs.iter().filter(is_new).take(MAX_OPENED).collect();
        for log in new {
            match self.open(log) {
                Ok(stream) => drop(self.streams.insert(log.url.clone(), stream)),
                Err(error) => own_log::warn(
                    "cannot read a log over HTTP",
                    &[("url", &log.url), ("reason", &error)],
                ),
            }
        }
    }

    /// Whether the server serves this log, as far as is known.
    pub fn is_usable(&self, log: &ServedLog) -> bool {
        let stream = self.streams.get(&log.url);
        stream.is_some_and(|stream| !matches!(*lock(&stream.state), StreamState::Unusable(..)))
    }

    /// The log that is read from there.
    pub fn log(&self, log: &ServedLog) -> Option<&ServerLog> {
        Some(&self.streams.get(&log.url)?.log)
    }

    /// Passes the results of a poll of its model to a log.
    pub fn polled(&self, log: &ServedLog, now: Instant, models: &[PolledModel]) {
        if let Some(stream) = self.streams.get(&log.url) {
            let is_open = match *lock(&stream.state) {
                StreamState::Opening(since) => {
                    stream.connection.is_open()
                        && now.saturating_duration_since(since) > REFUSAL_TIME
                }
                StreamState::Open(_) => true,
                StreamState::Closed | StreamState::Unusable(..) => false,
            };
            if is_open {
                stream.log.found();
            }
            stream.log.polled(now, models);
        }
    }

    /// Each log as a source.
    pub fn sources(&self, logs: &[ServedLog], now: Instant) -> Vec<Source> {
        let source = |log: &ServedLog| {
            let stream = self.streams.get(&log.url)?;
            let kind = SourceKind::Log(Some(log.url.as_str().into()));
            let mut source = stream.log.source(kind, now);
            if let StreamState::Unusable(_, why) = *lock(&stream.state) {
                source.absence = Some(why);
            }
            let model = log.only_model().map(|(model, _)| model.as_str());
            Some(source.of_model(model))
        };
        logs.iter().filter_map(source).collect()
    }

    /// Rejected lines of all streams, by reason; `None` if no log was open.
    pub fn lines_rejected(&self) -> Option<Vec<(&'static str, u64)>> {
        let mut rejected = self.rejected.clone();
        for stream in self.streams.values() {
            add_counts(&mut rejected, &stream.log);
        }
        (!rejected.is_empty()).then(|| rejected.into_iter().collect())
    }

    fn open(&self, log: &ServedLog) -> Result<LogStream, String> {
        let client = Client::new(AllowedAddresses::Any, &self.base, &self.settings)?;
        let mut server_log = ServerLog::new(Arc::clone(&self.requests));
        if log.lacks_errors {
            server_log = server_log.without_errors();
        }
        let stream = LogReader {
            url: log.url.clone(),
            log: Arc::new(server_log),
            state: Arc::new(Mutex::new(StreamState::Opening(Instant::now()))),
            new: NewLines::new(if log.repeats_lines {
                LogBeginning::Everything
            } else {
                LogBeginning::Now
            }),
            client,
        };
        stream.start().map_err(|error| error.to_string())
    }
}

impl LogStream {
    fn may_be_opened_again(&self) -> bool {
        matches!(*lock(&self.state), StreamState::Unusable(since, _) if since.elapsed() > NOT_SERVED_PAUSE)
    }

    /// Whether it has no line of a request that there was while it was open. Docker Model Runner
    /// sends new lines to the first reader since its start, until any reader leaves (measured with
    /// its snapshot of July 2026).
    fn is_silent(&self, log: &ServedLog) -> bool {
        let (StreamState::Open(since), Some((before, after))) =
            (*lock(&self.state), log.requests_between)
        else {
            return false;
        };
        let last_line = self.log.last_line();
        since <= before && after.elapsed() > SILENCE && last_line.is_none_or(|at| at < before)
    }

    fn end(&self) {
        self.connection.end();
        self.thread.unpark();
    }
}

impl Drop for LogStream {
    fn drop(&mut self) {
        self.end();
    }
}

/// What the thread of a stream has.
struct LogReader {
    url: String,
    client: Client,
    log: Arc<ServerLog>,
    state: Arc<Mutex<StreamState>>,
    new: NewLines,
}

impl LogReader {
    fn start(mut self) -> io::Result<LogStream> {
        let (log, state) = (Arc::clone(&self.log), Arc::clone(&self.state));
        let connection = self.client.connection.clone();
        let thread = thread::Builder::new()
            .name("log stream".to_owned())
            .stack_size(STACK_BYTES)
            .spawn(move || self.run())?;
        Ok(LogStream {
            log,
            connection,
            state,
            thread: thread.thread().clone(),
        })
    }

    fn run(&mut self) {
        let mut pause = FIRST_PAUSE;
        loop {
            let opened = Instant::now();
            let end = self.read_once();
            if self.client.connection.is_ended() {
                return;
            }
            self.client.connection.close();
            let is_unusable = end.as_ref().is_err_and(is_not_served);
            let reason = end.map_or_else(|error| error.to_string(), |()| "it has ended".to_owned());
            own_log::debug(
                "a log over HTTP",
                &[("url", &self.url), ("closed", &reason)],
            );
            if is_unusable {
                return self.set(StreamState::Unusable(Instant::now(), Absence::LogNotServed));
            }
            if opened.elapsed() > LONGEST_PAUSE {
                pause = FIRST_PAUSE;
            }
            self.set(StreamState::Closed);
            // Dropping the stream ends the pause.
            thread::park_timeout(pause);
            if self.client.connection.is_ended() {
                return;
            }
            pause = pause.saturating_mul(2).min(LONGEST_PAUSE);
            self.set(StreamState::Opening(Instant::now()));
        }
    }

    /// Reads the log over one connection.
    fn read_once(&mut self) -> Result<(), RequestError> {
        let response = self.client.get_endless(&self.url)?;
        let unusable = |error| RequestError::new(Reason::TooLarge, format!("{error:?}"));
        self.new
            .connected(response.header("Date"))
            .map_err(unusable)?;
        self.log.connected(self.new.may_lack_lines());
        self.set(StreamState::Open(Instant::now()));
        own_log::debug("a log over HTTP", &[("url", &self.url), ("opened", &true)]);
        let (log, new) = (&self.log, &mut self.new);
        let mut end = Ok(());
        response.stream(|body| {
            end = log.read(body, new);
            Ok(())
        })?;
        end.map_err(unusable)
    }

    fn set(&self, next: StreamState) {
        *lock(&self.state) = next;
    }
}

/// Whether an error is the server's answer that there is no such log, or the log cannot be used.
fn is_not_served(error: &RequestError) -> bool {
    matches!(
        error.reason,
        Reason::TooLarge | Reason::Status | Reason::Parse
    ) && error.kind == RequestErrorKind::Other
}

fn add_counts(counts: &mut BTreeMap<&'static str, u64>, log: &ServerLog) {
    for (reason, count) in log.lines_rejected().into_iter().flatten() {
        let sum = counts.entry(reason).or_default();
        *sum = sum.saturating_add(count);
    }
}
