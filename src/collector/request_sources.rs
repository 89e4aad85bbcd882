//! The sources of request latencies of one server: starts them, and passes them the results of
//! polls.

use std::sync::Arc;
use std::time::Instant;

use crate::collector::served_sources::ServedSources;
use crate::process::log as own_log;
use crate::readings::{
    Completion, LogSource, ModelReading, ModelState, ServerKind, SlotsReading, Update,
};
use crate::requests::log::parser::LoggedSlots;
use crate::requests::log::{LINES_REJECTED, LogWriter, PolledModel, ServerLog, WritersFound};
use crate::requests::probe::Prober;
use crate::requests::{Requests, activity};
use crate::settings::{BaseUrl, Settings};
use crate::snapshot::{
    Absence, Model, ModelRequests, Reason, Snapshot, SnapshotCell, Source, SourceKind,
};
use crate::upstream::completion::CompletionClient;
use crate::upstream::detection::DetectedServer;
use crate::upstream::http::exchange::Exchange;
use crate::upstream::reading::{Reading, ServedLog};

/// The sources of request latencies of one server.
pub(super) struct RequestSources {
    requests: Arc<Requests>,
    log: Arc<ServerLog>,
    /// The path of the log that the settings have for this server.
    log_path: Option<Arc<str>>,
    /// Whether the server was discovered: there are settings for none of these then.
    is_discovered: bool,
    /// Whether the settings switch on the probe.
    has_probe: bool,
    /// What the server itself reports of its requests, unless the settings switch that off.
    served: Option<ServedSources>,
}

impl RequestSources {
    /// The sources that `settings` enable, not started yet.
    pub fn new(base: &BaseUrl, settings: &Settings) -> RequestSources {
        let requests = Arc::<Requests>::default();
        RequestSources {
            log: Arc::new(ServerLog::new(Arc::clone(&requests))),
            served: (!settings.no_request_records)
                .then(|| ServedSources::new(base, settings, &requests)),
            requests,
            log_path: settings
                .log_file_of(base)
                .map(|path| path.display().to_string().into()),
            is_discovered: settings.discovered.is_some(),
            has_probe: settings.probe_interval.is_some(),
        }
    }

    /// Starts the threads that follow the log and probe the models of what `cell` holds.
    ///
    /// # Errors
    /// A setting cannot be used, or the system cannot start a thread.
    pub fn start(
        &self,
        base: &BaseUrl,
        settings: &Settings,
        cell: &Arc<SnapshotCell>,
    ) -> Result<(), String> {
        if let Some(path) = settings.log_file_of(base) {
            self.log
                .follow(path)
                .map_err(|error| format!("cannot start the log thread: {error}"))?;
        }
        if let Some(interval) = settings.probe_interval {
            let completions = CompletionClient::new(base, settings)?;
            let prober = Prober {
                may_probe: |snapshot| kind(snapshot).is_some_and(ServerKind::is_llama_cpp),
                send: move |snapshot: &Snapshot, model: &Model, before_sending: &dyn Fn()| {
                    send_probe(&completions, snapshot, model, before_sending)
                },
                requests: Arc::clone(&self.requests),
                cell: Arc::clone(cell),
                interval,
            };
            prober
                .start()
                .map_err(|error| format!("cannot start the probe thread: {error}"))?;
        }
        Ok(())
    }

    /// Reads what the server itself reports of its requests. Adds the tokens of models for which
    /// nothing else reports them.
    pub fn read_served(
        &mut self,
        upstream: &mut DetectedServer,
        exchange: &mut Exchange,
        reading: &mut Reading,
    ) {
        if let Some(served) = &mut self.served {
            served.read(upstream, exchange, reading, &self.requests);
        }
    }

    /// The models that had requests since this was called last, by the log.
    pub fn take_active_models(&self) -> Vec<Arc<str>> {
        self.log.take_active_models()
    }

    /// Says whose lines are in the log, if they do not say so themselves.
    pub fn find_log_writers(&self, reading: &mut Reading, now: Instant) {
        if self.log_path.is_none()
            || !reading.up
            || log_source(reading) != Some(LogSource::AnyModel)
        {
            return;
        }
        let found = writers_found(reading);
        let is_unused = found == WritersFound::Several;
        reading
            .notes
            .extend(is_unused.then_some(Absence::LogAmbiguous.note()));
        self.log.set_writers(found, now);
    }

    /// Adds what the log said of the tasks of each model since the last poll.
    pub fn add_logged_tasks(&mut self, reading: &mut Reading) {
        let logged: Vec<_> = polled_models(reading)
            .iter()
            .map(|model| self.log.take_tasks(model))
            .collect();
        for (model, logged) in reading.models.iter_mut().zip(logged) {
            model.logged_tasks = logged;
        }
        if let Some(served) = &mut self.served {
            served.add_logged_tasks(reading);
        }
    }

    /// Passes the results of a poll to the sources. Adds values that only the log reports, and
    /// notes on the log.
    pub fn polled(&mut self, reading: &mut Reading, models: &mut [Model], now: Instant) {
        let polled = polled_models(reading);
        let names = polled
            .iter()
            .map(|model| (model.model, model.writer.is_some()));
        self.requests.polled(now, names);
        self.log.polled(now, &polled);
        if let Some(served) = &mut self.served {
            if !reading.up && !reading.is_unanswered() {
                served.streams.update(&[]);
            }
            served.polled(reading, now);
        }
        if let Some(ended) = &reading.ended_requests
            && self.served.is_some()
        {
            let with_process = reading.models.iter();
            let with_process = with_process.filter(|model| !model.is_unloaded());
            let names = with_process.map(|model| model.name.as_str());
            let is_logged = |model: &str| {
                let log = self.stream_of(model, reading);
                log.is_some_and(ServerLog::reports_requests)
            };
            activity::count(&self.requests, ended, names, is_logged);
        }
        for model in models.iter_mut().filter(|model| model.is_loaded()) {
            let slots = self.logged_slots(&model.name, reading);
            let number = |value: Option<u64>| value.map(|value| value as f64);
            let known = &mut model.facts;
            known.slots = known.slots.or(number(slots.slots));
            known.max_context_size = known.max_context_size.or(number(slots.slot_context));
            let context_tokens = &model.slots.context_tokens;
            let is_usage_known = !context_tokens.is_empty() || model.slots.are_unused;
            if model.kv_cache_usage_ratio().is_none() && is_usage_known {
                let used: f64 = context_tokens.iter().map(|(_, tokens)| tokens).sum();
                let cells = number(slots.kv_cells());
                model.kv_cache.usage_ratio = cells.map(|cells| (used / cells).min(1.0));
            }
        }
        let has_source = |kind: ServerKind| kind.log_source().is_some();
        if self.log_path.is_some() && !reading.kind.is_none_or(has_source) {
            reading.notes.push(Absence::LogUnused.note());
        }
        reading.notes.extend(self.log.notes(now));
        let rejected = self.log_lines_rejected().unwrap_or_default();
        if rejected.iter().any(|(_, count)| *count > 0) {
            reading.notes.push(LINES_REJECTED);
        }
    }

    /// The slots of the server with this model, as far as a log says.
    fn logged_slots(&self, model: &str, reading: &Reading) -> LoggedSlots {
        let log = self.stream_of(model, reading);
        log.unwrap_or(&self.log).logged_slots(model)
    }

    /// The log over HTTP of this model alone.
    fn stream_of(&self, model: &str, reading: &Reading) -> Option<&ServerLog> {
        let is_of = |log: &&ServedLog| log.only_model().is_some_and(|(name, _)| name == model);
        let log = reading.logs.iter().find(is_of)?;
        self.served.as_ref()?.streams.log(log)
    }

    /// The sources of requests, with their state.
    pub fn sources(&self, reading: &Reading, now: Instant) -> Vec<Source> {
        let mut sources = Vec::new();
        let has_own_log = |kind: ServerKind| kind.log_source().is_some();
        match &self.log_path {
            Some(path) => {
                let kind = SourceKind::Log(Some(Arc::clone(path)));
                sources.push(match reading.kind.is_none_or(has_own_log) {
                    true => self.log.source(kind, now),
                    false => Source::missing(kind, Absence::LogUnused),
                });
            }
            None if reading.kind.is_some_and(has_own_log) => {
                let why = match (self.is_discovered, reading.kind) {
                    (true, _) => Absence::OnlyForBaseUrls,
                    (false, Some(ServerKind::Ollama)) => Absence::OllamaLogNotGiven,
                    (false, _) => Absence::LogNotGiven,
                };
                sources.push(Source::missing(SourceKind::Log(None), why));
            }
            None => {}
        }
        match &self.served {
            Some(served) => sources.extend(served.streams.sources(&reading.logs, now)),
            None if reading.kind.is_some_and(|kind| !has_own_log(kind)) => {
                let kind = SourceKind::RequestRecords;
                sources.push(Source::missing(kind, Absence::RequestRecordsOff));
            }
            None => {}
        }
        let probe = match (self.has_probe, reading.kind.map(ServerKind::is_llama_cpp)) {
            (_, Some(false)) => Some(Absence::ProbeNotPossible),
            (false, _) if self.is_discovered => Some(Absence::OnlyForBaseUrls),
            (false, _) => Some(Absence::ProbeOff),
            (true, _) => None,
        };
        sources.push(Source {
            absence: probe,
            ..Source::new(SourceKind::Probe)
        });
        sources
    }

    /// The figures so far, by model and source.
    pub fn figures(&self) -> Vec<ModelRequests> {
        self.requests.figures()
    }

    /// Rejected lines of all logs, by reason; `None` without a log.
    pub fn log_lines_rejected(&self) -> Option<Vec<(&'static str, u64)>> {
        let streams = self.served.as_ref();
        let streams = streams.and_then(|served| served.streams.lines_rejected());
        self.log.lines_rejected().or(streams)
    }
}

fn kind(snapshot: &Snapshot) -> Option<ServerKind> {
    Some(snapshot.info.as_ref()?.kind)
}

/// Sends one completion to a model, after `before_sending`; `None` if it is no longer loaded.
fn send_probe(
    completions: &CompletionClient,
    snapshot: &Snapshot,
    model: &Model,
    before_sending: &dyn Fn(),
) -> Result<Option<Completion>, Reason> {
    let has_many = kind(snapshot).is_some_and(ServerKind::holds_many_models);
    let model_name = has_many.then_some(model.name.as_str());
    let result = completions.one_token(model_name, before_sending);
    result.map_err(|failure| {
        own_log::debug(
            "a probe got no token",
            &[
                ("model", &model.name),
                ("reason", &failure.reason.label()),
                ("detail", &failure),
            ],
        );
        failure.reason
    })
}

/// The results of a poll that the log needs, by model.
fn polled_models(reading: &Reading) -> Vec<PolledModel<'_>> {
    let source = log_source(reading).filter(|source| {
        *source != LogSource::AnyModel || matches!(writers_found(reading), WritersFound::One(_))
    });
    let polled = reading.models.iter().map(|model| PolledModel {
        model: &model.name,
        mode: None,
        writer: log_writer(source, model),
        slots: slots(model),
        counters: &model.counters,
    });
    polled.collect()
}

/// The number of slots of a model's server.
pub(super) fn slots(model: &ModelReading) -> Option<u64> {
    let reported = model.facts.slots.map(|slots| slots as u64);
    let listed = match &model.slots {
        Update::New(SlotsReading { slots, .. }) => u64::try_from(slots.len()).ok(),
        _ => None,
    };
    reported.max(listed).filter(|slots| *slots > 0)
}

fn log_source(reading: &Reading) -> Option<LogSource> {
    reading.kind.and_then(ServerKind::log_source)
}

/// The servers of models that may write into the log of the program that started them.
fn writers_found(reading: &Reading) -> WritersFound {
    let mut models = reading.models.iter();
    let mut next = || models.find(|model| !model.is_unloaded());
    match (next(), next()) {
        (None, _) => WritersFound::None,
        (Some(_), Some(_)) => WritersFound::Several,
        (Some(model), None) => match (model.process.id, model.state) {
            (None, _) => WritersFound::Several,
            (_, ModelState::Loading) => WritersFound::Loading,
            (Some(process), _) => WritersFound::One(process),
        },
    }
}

/// Which process writes the log lines about this model.
fn log_writer(source: Option<LogSource>, model: &ModelReading) -> Option<LogWriter> {
    match source? {
        LogSource::AnyModel if model.is_unloaded() => None,
        // While it loads, its name may still be that of the model before.
        LogSource::OneModel | LogSource::AnyModel
            if !matches!(model.state, ModelState::Loading | ModelState::Waking) =>
        {
            Some(LogWriter::Server)
        }
        // A model that is not loaded has the port of its last child, or 0: by now that may be
        // another model's.
        LogSource::ChildPorts
            if !matches!(model.state, ModelState::Reported(_) | ModelState::Unknown) =>
        {
            let arguments = model.process.arguments.as_deref().unwrap_or_default();
            let mut arguments = arguments.iter().skip_while(|name| *name != "--port");
            let port = arguments.nth(1)?.parse().ok()?;
            Some(LogWriter::RouterChild(port))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;
    use crate::readings::ModelStatus;

    #[test]
    fn a_child_writes_log_lines_while_it_is_loaded() {
        let writer_of = |port: &str, state: ModelState| {
            let arguments = ["llama-server", "--host", "127.0.0.1", "--port", port];
            let mut model = ModelReading {
                state,
                ..ModelReading::default()
            };
            model.process.arguments = Some(arguments.map(str::to_owned).to_vec());
            log_writer(Some(LogSource::ChildPorts), &model)
        };
        for state in [
            ModelState::Loading,
            ModelState::Ready,
            ModelState::Asleep(Instant::now()),
        ] {
            assert_eq!(
                writer_of("34541", state),
                Some(LogWriter::RouterChild(34541))
            );
        }
        for status in [ModelStatus::Unloaded, ModelStatus::Failed] {
            assert_eq!(writer_of("0", ModelState::Reported(status)), None);
            assert_eq!(writer_of("34541", ModelState::Reported(status)), None);
        }
        let single = ModelReading {
            state: ModelState::Loading,
            ..ModelReading::default()
        };
        assert_eq!(log_writer(Some(LogSource::OneModel), &single), None);
    }
}
