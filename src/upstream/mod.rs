//! The servers that are watched: the HTTP client, and one file per kind of server.
//!
//! A new kind of server is one file that implements [`Upstream`], with an entry in [`all_kinds`] here
//! and a variant of [`ServerKind`].

mod address_advice;
pub mod advice;
pub mod api;
pub mod child_server;
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
pub mod ollama;
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
use crate::readings::{LocalServer, ServerKind};
use crate::settings::{BaseUrl, Settings};
use crate::upstream::api::{Health, Props};
use crate::upstream::http::endpoint::Endpoint;
use crate::upstream::http::exchange::{Exchange, RequestOutcome};
use crate::upstream::llama_server::LlamaServer;
use crate::upstream::llama_swap::LlamaSwap;
use crate::upstream::model_runner::ModelRunner;
use crate::upstream::ollama::Ollama;
use crate::upstream::reading::Reading;
use crate::upstream::router::Router;

/// One server of each kind at `base`, in the order of detection. The last kind matches whatever is
/// none of the others. A discovered server is a llama-server or its router.
pub fn all_kinds(base: &BaseUrl, settings: &Settings) -> Vec<Box<dyn Upstream>> {
    let llama_cpp: [Box<dyn Upstream>; 2] = [
        Box::new(Router::new(base, settings)),
        Box::new(LlamaServer::new(base, settings)),
    ];
    let others: [Box<dyn Upstream>; 3] = [
        Box::new(ModelRunner::new(base, settings)),
        Box::new(LlamaSwap::new(base, settings)),
        Box::new(Ollama::new(base, settings)),
    ];
    let others = others.into_iter().filter(|_| settings.discovered.is_none());
    others.chain(llama_cpp).collect()
}

/// A server at one base URL, with its state between two polls.
pub trait Upstream: Send {
    /// The kind of server.
    fn kind(&self) -> ServerKind;

    /// The endpoint that [`detect`](Upstream::detect) requests, if any.
    fn detection_endpoint(&self) -> Option<Endpoint>;

    /// The other endpoints that its polls request.
    fn endpoints(&self) -> Vec<Endpoint>;

    /// Detects this kind of server by what only it serves. `Ok`: it is of this kind, and the state
    /// of the previous server is reset. No response: it may be busy, or of any kind.
    fn detect(
        &mut self,
        exchange: &mut Exchange,
        answers: &mut DetectionAnswers,
    ) -> RequestOutcome<()>;

    /// Polls once: reads everything that may be read now. `answers` were already read in this poll.
    fn poll(&mut self, exchange: &mut Exchange, answers: DetectionAnswers, reading: &mut Reading);

    /// When to poll before the next regular poll, if at all.
    fn extra_poll_at(&self) -> Option<Instant> {
        None
    }

    /// Passes the server's records of its last requests to `read`, if it keeps records.
    fn read_records(&self, _exchange: &mut Exchange, _read: &mut RecordsReader) {}

    /// Sets how long the server is idle before it sleeps, as its command line says.
    fn set_idle_timeout(&mut self, _timeout: BoundedDuration) {}

    /// Takes that the log of this model's server has reported requests since the last poll.
    fn requests_logged(&mut self, _model: &str) {}

    /// Whether its models run in processes of their own on this machine, so that
    /// [`set_local_servers`](Upstream::set_local_servers) is called before each poll.
    fn wants_local_servers(&self) -> bool {
        false
    }

    /// Sets the llama-servers among the processes of this machine.
    fn set_local_servers(&mut self, _servers: &[LocalServer]) {}

    /// Resets all state: a server of another kind has replaced this one.
    fn replaced(&mut self) {}
}

/// Responses that detection has already read in this poll.
#[derive(Debug, Default)]
pub struct DetectionAnswers {
    /// `/health`.
    pub health: Option<RequestOutcome<Health>>,
    /// `/props`.
    pub props: Option<RequestOutcome<Props>>,
}

/// Reads the server's records of its last requests. The second argument turns any name of a model
/// into its label.
pub type RecordsReader<'a> =
    dyn FnMut(&mut dyn Read, &dyn Fn(&str) -> String) -> Result<(), String> + 'a;
