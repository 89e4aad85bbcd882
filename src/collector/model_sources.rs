//! Which source reports the requests of each model of Docker Model Runner: its log or its records.
//! Both report the same requests, so one is chosen for each model when it is loaded.
//!
//! The log is better: it has all requests, and tokens while they are generated. But its lines name
//! no model. Once a second llama-server runs, the records take over, until the model is unloaded.

use std::collections::BTreeMap;

use crate::readings::{ModelKey, ModelReading, ModelState, ModelStatus, TokenTotals, Update};
use crate::requests::records::{Records, RecordsUse};

const LOG_USED: &str = "tokens and requests of a model are read from Docker Model Runner's log (GET /logs): the tokens \
     of a running request every 3 s; tokens_per_second is not known";
const RECORDS_USED: &str = "tokens and requests of a model are read from Docker Model Runner's records: the tokens at the \
     end of each request; tokens_per_second is not known. With one llama.cpp model loaded at a \
     time, the log of Docker Model Runner (GET /logs, from April 2026) is used instead";

/// The backend of models that a llama-server runs.
const LLAMA_CPP: &str = "llama.cpp";

/// Where the requests of a model are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RequestsFrom {
    Log,
    Records,
}

/// The sources of all models that a llama-server has loaded.
#[derive(Debug, Default)]
pub(super) struct ModelSources(BTreeMap<ModelKey, ModelSource>);

#[derive(Debug)]
struct ModelSource {
    from: RequestsFrom,
    /// Whether the records have taken over at this poll: they have requests that the log has
    /// reported as well.
    has_changed: bool,
    /// Whether the log has reported any request.
    log_has_reported: bool,
    /// Whether its counters were read since it was loaded; `None` until a poll has told. Tokens
    /// counted elsewhere until then would go on from another number.
    has_counters: Option<bool>,
    /// The tokens of its records when they became its source.
    before: TokenTotals,
}

impl ModelSource {
    fn lacks_counters(&self) -> bool {
        self.has_counters == Some(false)
    }
}

impl ModelSources {
    /// Takes the models that a poll has found, and the one whose requests the log reports, if there
    /// is such a log. `has_reported`: the log has reported any request.
    pub fn update(
        &mut self,
        models: &[ModelReading],
        logged: Option<&ModelKey>,
        has_reported: bool,
        records: &Records,
    ) {
        let is_llama_cpp = |model: &&ModelReading| {
            model.facts.backend.as_deref() == Some(LLAMA_CPP) && !model.is_unloaded()
        };
        let loaded = models.iter().filter(is_llama_cpp);
        let loaded: BTreeMap<ModelKey, &ModelReading> =
            loaded.map(|model| (model.key(), model)).collect();
        self.0.retain(|key, _| loaded.contains_key(key));
        for (key, model) in loaded {
            let is_logged = logged == Some(&key);
            let before = || records.tokens(&key.0, key.1.as_deref());
            let source = self.0.entry(key.clone());
            let source = source.or_insert_with(|| ModelSource {
                from: match is_logged {
                    true => RequestsFrom::Log,
                    false => RequestsFrom::Records,
                },
                has_changed: false,
                log_has_reported: false,
                has_counters: None,
                before: before(),
            });
            source.log_has_reported = has_reported;
            let has_ended = source.from == RequestsFrom::Log && !is_logged;
            source.has_changed = has_ended && has_reported;
            if has_ended {
                source.from = RequestsFrom::Records;
            }
            if source.has_changed {
                source.before = before();
            }
            let is_loading = model.state == ModelState::Reported(ModelStatus::Loading);
            let has_counters = match model.counters {
                Update::New(_) => Some(true),
                Update::Absent if !is_loading => Some(false),
                _ => None,
            };
            source.has_counters = source.has_counters.max(has_counters);
        }
    }

    /// Where the requests of this model are read; `None` if no llama-server has loaded it.
    pub fn of(&self, model: &str, mode: Option<&str>) -> Option<RequestsFrom> {
        Some(self.get(model, mode)?.from)
    }

    /// What to do with the records of this model. Until the log has reported a request, it is not
    /// certain to report them.
    pub fn records_use(&self, model: &str, mode: &str) -> RecordsUse {
        let Some(source) = self.get(model, Some(mode)) else {
            return RecordsUse::Count;
        };
        match source.from {
            RequestsFrom::Log if !source.log_has_reported => RecordsUse::Later,
            RequestsFrom::Records if !source.has_changed => RecordsUse::Count,
            _ => RecordsUse::Skip,
        }
    }

    /// Whether the tokens of this model are counted by its log.
    pub fn counts_by_log(&self, model: &str, mode: Option<&str>) -> bool {
        self.get(model, mode)
            .is_some_and(|source| source.from == RequestsFrom::Log && source.lacks_counters())
    }

    /// Adds the tokens in the records to the models whose tokens nothing else reports, and notes on
    /// where requests are read.
    pub fn complete(
        &self,
        models: &mut [ModelReading],
        records: &Records,
        notes: &mut Vec<&'static str>,
    ) {
        for model in models {
            let Some(source) = self.get(&model.name, model.mode.as_deref()) else {
                continue;
            };
            if !source.lacks_counters() {
                continue;
            }
            if source.from == RequestsFrom::Log {
                notes.push(LOG_USED);
            } else {
                notes.push(RECORDS_USED);
                let tokens = records.tokens(&model.name, model.mode.as_deref());
                model.token_totals = Some(tokens.without(&source.before));
            }
        }
    }

    fn get(&self, model: &str, mode: Option<&str>) -> Option<&ModelSource> {
        self.0.get(&(model.to_owned(), mode.map(str::to_owned)))
    }
}
