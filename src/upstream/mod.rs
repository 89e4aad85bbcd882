//! What is watched: the HTTP client, and one file per kind of server.
//!
//! A new kind of server is one file that implements [`Upstream`], with a variant of
//! [`ServerKind`] and an entry in [`all_kinds`] here.

pub mod advice;
pub mod api;
pub mod completion;
pub mod detection;
mod endpoints;
pub mod http;
pub mod identification;
pub mod idle_guard;
pub mod llama_server;
pub mod llama_swap;
mod model_limit;
pub mod model_runner;
pub mod products;
pub mod reading;
pub mod rotation;
pub mod router;
pub mod server_url;
pub mod telemetry;
mod version;

use std::io::Read;
use std::time::Instant;

use crate::bounds::BoundedDuration;
use crate::settings::{BaseUrl, Settings};
use crate::upstream::api::{Health, Props};
use crate::upstream::http::exchange::{Exchange, RequestOutcome};
use crate::upstream::llama_server::LlamaServer;
use crate::upstream::llama_swap::LlamaSwap;
use crate::upstream::model_runner::ModelRunner;
use crate::upstream::reading::Reading;
use crate::upstream::router::Router;

/// One server of each kind at `base`, in the order in which they are detected. What answers as
/// none of the others is taken for the last.
pub fn all_kinds(base: &BaseUrl, settings: &Settings) -> Vec<Box<dyn Upstream>> {
    vec![
        Box::new(ModelRunner::new(base)),
        Box::new(LlamaSwap::new(base, settings)),
        Box::new(Router::new(base, settings)),
        Box::new(LlamaServer::new(base, settings)),
    ]
}

/// A server at one base URL, and what must be remembered of it between two polls.
pub trait Upstream: Send {
    /// The kind of server that this is.
    fn kind(&self) -> ServerKind;

    /// Reads what only this kind of server serves. `Ok`: it is one, and the one that was detected
    /// before is forgotten. Not answered: it may be busy, or of any kind.
    fn detect(
        &mut self,
        exchange: &mut Exchange,
        answers: &mut DetectionAnswers,
    ) -> RequestOutcome<()>;

    /// Polls once: reads all that may be read now. `answers` were read already in this poll.
    fn poll(&mut self, exchange: &mut Exchange, answers: DetectionAnswers, reading: &mut Reading);

    /// When to poll even if the interval has not passed.
    fn extra_poll_at(&self) -> Option<Instant> {
        None
    }

    /// Has the server's records of its last requests read by `read`, if it keeps any.
    fn read_records(&self, _exchange: &mut Exchange, _read: &mut RecordsReader) {}

    /// Sets how long the server is idle before it sleeps, by the command line of its process.
    fn set_idle_timeout(&mut self, _timeout: BoundedDuration) {}

    /// Forgets the server: one of another kind has taken its address.
    fn replaced(&mut self) {}
}

/// What was read already in this poll to detect the kind of server.
#[derive(Debug, Default)]
pub struct DetectionAnswers {
    /// `/health`.
    pub health: Option<RequestOutcome<Health>>,
    /// `/props`.
    pub props: Option<RequestOutcome<Props>>,
}

/// Reads the server's records of its last requests, given how to label a model by any of its names.
pub type RecordsReader<'a> =
    dyn FnMut(&mut dyn Read, &dyn Fn(&str) -> String) -> Result<(), String> + 'a;

/// A kind of server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ServerKind {
    /// llama-server with one model.
    LlamaServer,
    /// llama-server in router mode.
    Router,
    /// Docker Model Runner.
    ModelRunner,
    /// llama-swap.
    LlamaSwap,
}

/// How a line of a server's log tells which model it is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogSource {
    /// All lines are about the server's one model.
    OneModel,
    /// Lines begin with the port of the model's child process.
    ChildPorts,
}

impl ServerKind {
    const ALL: [ServerKind; 4] = [
        ServerKind::LlamaServer,
        ServerKind::Router,
        ServerKind::ModelRunner,
        ServerKind::LlamaSwap,
    ];

    /// The value of the label `kind`.
    pub fn label(self) -> &'static str {
        match self {
            ServerKind::LlamaServer => "llama-server",
            ServerKind::Router => "router",
            ServerKind::ModelRunner => "model-runner",
            ServerKind::LlamaSwap => "llama-swap",
        }
    }

    /// The kind with this label.
    pub fn from_label(label: &str) -> Option<ServerKind> {
        ServerKind::ALL
            .into_iter()
            .find(|kind| kind.label() == label)
    }

    /// Whether the server may hold several models, or none.
    pub fn holds_many_models(self) -> bool {
        self != ServerKind::LlamaServer
    }

    /// Whether a completion can be sent to a loaded model without loading another.
    pub fn may_be_probed(self) -> bool {
        matches!(self, ServerKind::LlamaServer | ServerKind::Router)
    }

    /// How its log tells which model a line is about, if it does.
    pub fn log_source(self) -> Option<LogSource> {
        match self {
            ServerKind::LlamaServer => Some(LogSource::OneModel),
            ServerKind::Router => Some(LogSource::ChildPorts),
            ServerKind::ModelRunner | ServerKind::LlamaSwap => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_server_of_llama_cpp_is_probed() {
        for kind in ServerKind::ALL {
            assert_eq!(ServerKind::from_label(kind.label()), Some(kind));
            let is_llama_cpp = matches!(kind, ServerKind::LlamaServer | ServerKind::Router);
            assert_eq!(kind.may_be_probed(), is_llama_cpp, "{kind:?}");
        }
        assert_eq!(ServerKind::from_label("unknown"), None);
    }
}
