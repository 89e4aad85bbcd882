//! One process of a model, from when llama-swap reports it as ready until it does not any more.

use std::time::Instant;

use crate::readings::{ModelReading, ModelState, ModelStatus, Update};
use crate::settings::{ApiKeys, BaseUrl, Settings};
use crate::upstream::Upstream;
use crate::upstream::api::Props;
use crate::upstream::detection::DetectionAnswers;
use crate::upstream::http::allowed_addresses::AllowedAddresses;
use crate::upstream::http::exchange::{Exchange, RequestOutcome};
use crate::upstream::llama_server::{LlamaServer, PROPS, read_props};
use crate::upstream::reading::Reading;
use crate::upstream::server_url::ServerUrl;

/// One process of a model.
pub struct ModelInstance {
    /// Where llama-swap says that the server is.
    proxy: Option<String>,
    /// Where llama-swap itself is.
    reach: Option<AllowedAddresses>,
    server: ModelServer,
    /// Chosen once: two sources, mixed within one process, would make its counters jump and fall.
    token_source: Option<TokenSource>,
}

/// The server of a model.
pub enum ModelServer {
    /// It is polled at its own address.
    LlamaServer(Box<DirectServer>),
    /// It is no llama-server.
    OtherEngine,
    /// It cannot be reached from here, or must not be.
    Unreachable,
}

/// What counts a model's tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TokenSource {
    /// Its own server.
    Server,
    /// llama-swap's list of ended requests.
    Activity,
}

/// A model's server, polled at its own address.
pub struct DirectServer {
    exchange: Exchange,
    url: ServerUrl,
    server: LlamaServer,
    /// Whether it has shown that it is a llama-server.
    is_identified: bool,
}

/// Why a poll of a server brought nothing.
enum PollError {
    /// It has not answered yet.
    TimedOut,
    /// This poll had no time left for it.
    NotPolled,
    /// It is no llama-server.
    OtherEngine,
    /// Nothing answers.
    NoServer,
}

impl ModelInstance {
    /// The process of a model whose server is at `proxy`, if that is within `reach`.
    pub fn new(
        name: &str,
        proxy: Option<&str>,
        reach: Option<AllowedAddresses>,
        settings: &Settings,
    ) -> ModelInstance {
        let direct = proxy
            .zip(reach)
            .and_then(|(proxy, reach)| DirectServer::new(name, proxy, reach, settings));
        ModelInstance {
            proxy: proxy.map(str::to_owned),
            reach,
            server: direct.map_or(ModelServer::Unreachable, |direct| {
                ModelServer::LlamaServer(Box::new(direct))
            }),
            token_source: None,
        }
    }

    /// Whether a server at `proxy` is still this one.
    pub fn is_at(&self, proxy: Option<&str>, reach: Option<AllowedAddresses>) -> bool {
        self.proxy.as_deref() == proxy && self.reach == reach
    }

    /// The server of the model.
    pub fn server(&self) -> &ModelServer {
        &self.server
    }

    /// Whether the model's own server is polled.
    pub fn has_server(&self) -> bool {
        matches!(self.server, ModelServer::LlamaServer(_))
    }

    /// Whether it is known what the model's own server is.
    pub fn is_identified(&self) -> bool {
        match &self.server {
            ModelServer::LlamaServer(direct) => direct.is_identified,
            ModelServer::OtherEngine | ModelServer::Unreachable => true,
        }
    }

    /// What counts the model's tokens, once that is known.
    pub fn token_source(&self) -> Option<TokenSource> {
        self.token_source
    }

    /// When to poll even if the interval has not passed.
    pub fn extra_poll_at(&self) -> Option<Instant> {
        match &self.server {
            ModelServer::LlamaServer(direct) => direct.server.extra_poll_at(),
            ModelServer::OtherEngine | ModelServer::Unreachable => None,
        }
    }

    /// Polls the server until `deadline`; adds what became of its requests to `reading`.
    pub fn poll(&mut self, name: &str, deadline: Instant, reading: &mut Reading) -> ModelReading {
        // Whether it is running is not known.
        let loaded = ModelState::Reported(ModelStatus::Idle);
        let polled = match &mut self.server {
            ModelServer::LlamaServer(direct) => match direct.poll(name, deadline, reading) {
                Ok(model) => Ok(model),
                Err(PollError::TimedOut) => Err(ModelState::Busy),
                Err(PollError::NotPolled) => Err(ModelState::Unknown),
                Err(PollError::NoServer) if direct.is_identified => Err(ModelState::Unknown),
                Err(PollError::NoServer) => {
                    self.server = ModelServer::Unreachable;
                    Err(loaded)
                }
                Err(PollError::OtherEngine) => {
                    self.server = ModelServer::OtherEngine;
                    Err(loaded)
                }
            },
            ModelServer::OtherEngine | ModelServer::Unreachable => Err(loaded),
        };
        let mut model = polled.unwrap_or_else(|state| ModelReading::new(name, state));
        self.token_source = self.token_source.or(match &self.server {
            ModelServer::OtherEngine | ModelServer::Unreachable => Some(TokenSource::Activity),
            ModelServer::LlamaServer(_) if matches!(model.counters, Update::New(_)) => {
                Some(TokenSource::Server)
            }
            ModelServer::LlamaServer(direct) => direct
                .server
                .lacks_metrics()
                .then_some(TokenSource::Activity),
        });
        if self.token_source == Some(TokenSource::Activity) {
            model.counters = Update::Absent;
        }
        model
    }
}

impl DirectServer {
    /// The server at the host and port of `proxy`: nothing else of that is used, and no connection
    /// leaves `reach`. It is polled without the key, which is llama-swap's.
    fn new(
        name: &str,
        proxy: &str,
        reach: AllowedAddresses,
        settings: &Settings,
    ) -> Option<DirectServer> {
        let base = proxy.parse::<BaseUrl>().ok()?.bare();
        let settings = Settings {
            api_keys: ApiKeys::default(),
            ..settings.clone()
        };
        Some(DirectServer {
            exchange: Exchange::restricted_to(reach, &base, &settings).ok()?,
            url: ServerUrl::new(base.root()),
            server: LlamaServer::new(&base, &settings).named(name),
            is_identified: false,
        })
    }

    fn poll(
        &mut self,
        name: &str,
        deadline: Instant,
        reading: &mut Reading,
    ) -> Result<ModelReading, PollError> {
        let mut own = Reading::default();
        self.exchange.begin_poll(deadline);
        self.exchange.set_model(Some(name));
        let model = self.read(&mut own);
        self.exchange.finish_poll(&mut own);
        if model.is_ok() {
            reading.failures.append(&mut own.failures);
            reading.answered.append(&mut own.answered);
            reading.notes.append(&mut own.notes);
        }
        model
    }

    fn read(&mut self, own: &mut Reading) -> Result<ModelReading, PollError> {
        let mut answers = DetectionAnswers::default();
        if !self.is_identified {
            answers.props = Some(self.identify()?);
            self.is_identified = true;
        }
        self.server.poll(&mut self.exchange, answers, own);
        if self.exchange.is_out_of_time() {
            // What was not asked is no sign that it is busy.
            return Err(PollError::NotPolled);
        }
        own.models.pop().ok_or(PollError::NoServer)
    }

    /// Gives `/props`, if it is that of a llama-server.
    fn identify(&mut self) -> Result<RequestOutcome<Props>, PollError> {
        let props = read_props(&mut self.exchange, &self.url);
        match &props {
            RequestOutcome::Ok(_) | RequestOutcome::NotLoaded => Ok(props),
            _ if self.exchange.is_out_of_time() => Err(PollError::NotPolled),
            _ if props.timed_out() && self.exchange.is_pending(&self.url.of(PROPS)) => {
                Err(PollError::TimedOut)
            }
            _ if props.is_unanswered() => Err(PollError::NoServer),
            _ => Err(PollError::OtherEngine),
        }
    }
}
