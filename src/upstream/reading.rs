//! The readings of one poll of a base URL, for all kinds of servers.

use std::collections::BTreeSet;
use std::time::Instant;

use crate::readings::slots::MOST_SLOTS;
use crate::readings::{EndedRequests, ModelReading, Update};
use crate::snapshot::{Absence, Reason, ServerInfo, Source, SourceKind};
use crate::upstream::ServerKind;
use crate::upstream::http::request_error::RequestError;
use crate::upstream::http::request_log::{FailedRequest, RequestLog, RequestTarget};
use crate::upstream::products::Product;

/// The readings of one poll.
#[derive(Debug, Default)]
pub struct Reading {
    /// Whether a known server responded.
    pub up: bool,
    /// The unsupported product at the base URL, if there is one; `up` is false then.
    pub product: Option<Product>,
    /// The kind of server, if known.
    pub kind: Option<ServerKind>,
    /// Its version, as it reports it.
    pub version: Option<String>,
    /// Whether the version may become known later in this life of the server.
    pub is_version_pending: bool,
    /// Its models, unordered, limited by [`crate::upstream::model_limit`].
    pub models: Vec<ModelReading>,
    /// The model of a server that has not named it since it was started; its name is that from
    /// before, or empty.
    pub unnamed: Option<ModelReading>,
    /// The endpoints that are requested of a server of this kind, once that is known.
    pub endpoints: Vec<&'static str>,
    /// The requests that have ended, if the server keeps a list of them.
    pub ended_requests: Option<EndedRequests>,
    /// The logs that the server serves over HTTP, those that matter most first.
    pub logs: Vec<ServedLog>,
    /// Whether it has more models than the limit.
    pub is_truncated: bool,
    /// Bytes of the server's store of models.
    pub disk_usage: Option<f64>,
    /// The outcomes of the poll's requests.
    pub requests: RequestLog,
    /// Notes on missing data, for the user.
    pub notes: Vec<&'static str>,
    /// The sources that were not read although they may be there, and why.
    pub unread: Vec<Source>,
}

/// The log of llama-servers that the server at the base URL serves over HTTP, in a response that
/// does not end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServedLog {
    /// Its URL.
    pub url: String,
    /// The models, with their modes, whose servers write it now. Its lines name no model: they are
    /// used only if there is one.
    pub models: Vec<(String, Option<String>)>,
    /// Whether the response begins with all earlier lines.
    pub repeats_lines: bool,
    /// Whether requests that failed are reported by the server itself: it answers some of them.
    pub lacks_errors: bool,
    /// Two polls between which a request of the only model began or ended: the log has lines of it.
    pub requests_between: Option<(Instant, Instant)>,
}

impl ServedLog {
    /// The only model that its lines can be about.
    pub fn only_model(&self) -> Option<&(String, Option<String>)> {
        match self.models.as_slice() {
            [model] => Some(model),
            _ => None,
        }
    }
}

impl Reading {
    /// Marks the server as up.
    pub fn set_up(&mut self, kind: ServerKind, version: Option<String>) {
        self.up = true;
        self.kind = Some(kind);
        self.version = version;
    }

    /// Whether the server is not up because its answers are late, and for no other reason known.
    pub fn is_unanswered(&self) -> bool {
        !self.up && self.requests.timed_out && self.product.is_none()
    }

    /// The exported information about the server.
    pub fn server_info(&self) -> Option<ServerInfo> {
        Some(ServerInfo {
            kind: self.kind?,
            version: self.version.clone(),
            is_version_pending: self.is_version_pending,
        })
    }

    /// Adds a model. Drops its slots if all models together have more than the limit for a server.
    pub fn add(&mut self, mut model: ModelReading) {
        let slots = |model: &ModelReading| match &model.slots {
            Update::New(read) => read.slots.len(),
            _ => 0,
        };
        let held: usize = self.models.iter().map(slots).sum();
        if held.saturating_add(slots(&model)) > MOST_SLOTS {
            model.slots = Update::Absent;
            let why = "the models together have more slots than any real server";
            let error = RequestError::new(Reason::TooLarge, why);
            let target = RequestTarget {
                endpoint: "/slots",
                model: Some(model.name.clone()),
            };
            self.requests.failures.push(FailedRequest {
                target,
                error,
                duration: None,
                is_pending: false,
            });
        }
        self.models.push(model);
    }

    /// Adds that a source, of one of several models, was not read.
    pub fn lacks(&mut self, kind: SourceKind, model: Option<&str>, why: Absence) {
        self.unread.push(Source::missing(kind, why).of_model(model));
    }

    /// Adds that the server of one of its models was not read, with a note.
    pub fn lacks_server(&mut self, model: &str, why: Absence) {
        self.lacks(SourceKind::ModelServer, Some(model), why);
        if !self.notes.contains(&why.note()) {
            self.notes.push(why.note());
        }
    }

    /// Explains a source of llama-server that was not read as `why`, not as `instead_of`.
    pub fn explain(&mut self, why: Absence, instead_of: Absence) {
        for note in &mut self.notes {
            if *note == instead_of.note() {
                *note = why.note();
            }
        }
        for source in &mut self.unread {
            if source.absence == Some(instead_of) {
                source.absence = Some(why);
            }
        }
    }

    /// Several models may have the same note.
    pub fn keep_each_note_once(&mut self) {
        let mut seen = BTreeSet::new();
        self.notes.retain(|note| seen.insert(*note));
    }

    /// Keeps the first of each model and mode: a server may list one twice.
    pub fn keep_first_of_each(&mut self) {
        let mut seen = BTreeSet::new();
        self.models.retain(|model| seen.insert(model.key()));
    }
}
