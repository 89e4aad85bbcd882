//! What a server with many models reports of their requests itself: logs over HTTP, and records.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Instant;

use crate::collector::log_streams::LogStreams;
use crate::collector::model_sources::{ModelSources, RequestsFrom};
use crate::collector::request_sources::slots;
use crate::readings::{ModelReading, ModelState, ModelStatus, ServerKind, Update};
use crate::requests::Requests;
use crate::requests::log::{LogWriter, PolledModel, ServerLog};
use crate::requests::records::{self, Records};
use crate::settings::{BaseUrl, Settings};
use crate::upstream::detection::DetectedServer;
use crate::upstream::http::exchange::Exchange;
use crate::upstream::reading::{Reading, ServedLog};

/// What a server with many models reports of their requests.
pub(super) struct ServedSources {
    /// The logs that it serves over HTTP.
    pub streams: LogStreams,
    /// Docker Model Runner's records.
    records: Records,
    /// Docker Model Runner's models.
    models: ModelSources,
    /// llama-swap's models whose tokens their logs count, as long as they are loaded.
    logged: BTreeSet<String>,
}

impl ServedSources {
    /// Nothing read yet. Requests are counted in `requests`.
    pub fn new(base: &BaseUrl, settings: &Settings, requests: &Arc<Requests>) -> ServedSources {
        ServedSources {
            streams: LogStreams::new(base, settings, requests),
            records: Records::default(),
            models: ModelSources::default(),
            logged: BTreeSet::new(),
        }
    }

    /// Opens the logs, and reads the records. Adds the tokens of models for which nothing else
    /// reports them.
    pub fn read(
        &mut self,
        upstream: &mut DetectedServer,
        exchange: &mut Exchange,
        reading: &mut Reading,
        requests: &Requests,
    ) {
        let (streams, models) = (&mut self.streams, &mut self.models);
        let records = &mut self.records;
        // While the server is late, nothing is known about its logs.
        if reading.up {
            streams.update(&reading.logs);
        }
        let has_records = reading.kind == Some(ServerKind::ModelRunner);
        if has_records {
            let usable = reading.logs.iter().find(|log| streams.is_usable(log));
            let logged = usable.and_then(ServedLog::only_model);
            let mut logs = reading.logs.iter().filter_map(|log| streams.log(log));
            let has_reported = logs.any(ServerLog::reports_requests);
            models.update(&reading.models, logged, has_reported, records);
        }
        upstream.read_records(exchange, &mut |response, label| {
            let use_of = |model: &str, mode: &str| models.records_use(model, mode);
            records.take(response, requests, |name| Some(label(name)), use_of)
        });
        if has_records {
            models.complete(&mut reading.models, records, &mut reading.notes);
        }
    }

    /// Adds what the logs say of the tasks of the models whose tokens they count.
    pub fn add_logged_tasks(&mut self, reading: &mut Reading) {
        use ModelStatus::{Loading, Unloaded};
        let is_llama_swap = reading.kind == Some(ServerKind::LlamaSwap);
        if reading.up {
            let may_be_loaded = |model: &&ModelReading| {
                !matches!(model.state, ModelState::Reported(Unloaded | Loading))
            };
            let loaded = reading.models.iter().filter(may_be_loaded);
            let loaded: BTreeSet<_> = loaded.map(|model| model.name.as_str()).collect();
            self.logged.retain(|name| loaded.contains(name.as_str()));
        }
        for model in &mut reading.models {
            let key = model.key();
            let mut logs = reading.logs.iter();
            let log = logs.find(|log| log.only_model() == Some(&key));
            let log = log.and_then(|log| self.streams.log(log));
            let Some((log, polled)) = log.zip(polled_by_stream(model)) else {
                continue;
            };
            if is_llama_swap && model.lacks_metrics && log.shows_tasks(&polled) {
                self.logged.insert(model.name.clone());
            }
            let is_counted =
                self.logged.contains(&key.0) || self.models.counts_by_log(&key.0, key.1.as_deref());
            if is_counted {
                let logged = log.take_tasks(&polled);
                model.lacks_metrics = true;
                model.token_totals = model.token_totals.take().filter(|_| logged.is_some());
                model.logged_tasks = logged;
            } else if matches!(model.counters, Update::New(_)) {
                // Its server counts them: they would only be remembered.
                drop(log.take_tasks(&polled));
            }
        }
    }

    /// Passes the results of a poll to the logs.
    pub fn polled(&self, reading: &Reading, now: Instant) {
        for log in &reading.logs {
            let Some(stream) = self.streams.log(log) else {
                continue;
            };
            let key = log.only_model();
            let model = reading.models.iter().find(|model| {
                key.is_some_and(|(name, mode)| model.name == *name && model.mode == *mode)
            });
            let source = model.and_then(|model| self.models.of(&model.name, model.mode.as_deref()));
            let is_ambiguous = log.models.len() > 1 || source == Some(RequestsFrom::Records);
            stream.set_ambiguous(is_ambiguous);
            let polled = model.filter(|_| !is_ambiguous).and_then(polled_by_stream);
            self.streams.polled(log, now, polled.as_slice());
        }
    }
}

/// The results of a poll that the log of this model, which comes over HTTP, needs.
fn polled_by_stream(model: &ModelReading) -> Option<PolledModel<'_>> {
    let mode = match &model.mode {
        Some(mode) => Some(records::mode_label(mode)?),
        None => None,
    };
    Some(PolledModel {
        model: &model.name,
        mode,
        writer: model.is_loaded().then_some(LogWriter::Server),
        slots: slots(model),
        counters: &model.counters,
    })
}
