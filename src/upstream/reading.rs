//! What one poll of a base URL brought, whatever kind of server answers there.

use std::collections::BTreeSet;

use crate::readings::slots::MOST_SLOTS;
use crate::readings::{ModelReading, Update};
use crate::snapshot::{Reason, ServerInfo};
use crate::upstream::ServerKind;
use crate::upstream::http::request_error::RequestError;
use crate::upstream::http::request_log::{FailedRequest, RequestLog, RequestTarget};
use crate::upstream::products::Product;

/// What one poll brought.
#[derive(Debug, Default)]
pub struct Reading {
    /// Whether something answered as one of the known servers does.
    pub up: bool,
    /// What answers that is no known server: then it is not up.
    pub product: Option<Product>,
    /// The kind of server, once that is known.
    pub kind: Option<ServerKind>,
    /// Its version as it gives it.
    pub version: Option<String>,
    /// The models that it holds, in no order, no more than are [shown](crate::upstream::model_limit).
    pub models: Vec<ModelReading>,
    /// Whether it has more models than are shown.
    pub is_truncated: bool,
    /// Bytes of the server's store of models.
    pub disk_usage: Option<f64>,
    /// What came of the requests of the poll.
    pub requests: RequestLog,
    /// What the server cannot tell, for people.
    pub notes: Vec<&'static str>,
}

impl Reading {
    /// Marks the server as up.
    pub fn set_up(&mut self, kind: ServerKind, version: Option<String>) {
        self.up = true;
        self.kind = Some(kind);
        self.version = version;
    }

    /// What is exported of the server itself.
    pub fn server_info(&self) -> Option<ServerInfo> {
        let kind = self.kind?.label();
        let version = self.version.clone();
        Some(ServerInfo { kind, version })
    }

    /// Adds a model; without its slots, where all models together have more than one server may.
    pub fn add(&mut self, mut model: ModelReading) {
        let slots = |model: &ModelReading| match &model.slots {
            Update::New(read) => read.slots.len(),
            _ => 0,
        };
        let held: usize = self.models.iter().map(slots).sum();
        if held.saturating_add(slots(&model)) > MOST_SLOTS {
            model.slots = Update::Absent;
            let why = "the models have more slots together than any real server";
            let error = RequestError::new(Reason::TooLarge, why);
            let target = RequestTarget {
                endpoint: "/slots",
                model: Some(model.name.clone()),
            };
            self.requests.failures.push(FailedRequest {
                target,
                error,
                is_pending: false,
            });
        }
        self.models.push(model);
    }

    /// Leaves the first of each model and mode: a server may name one twice in an answer.
    pub fn keep_first_of_each(&mut self) {
        let mut seen = BTreeSet::new();
        self.models
            .retain(|model| seen.insert((model.name.clone(), model.mode.clone())));
    }
}
