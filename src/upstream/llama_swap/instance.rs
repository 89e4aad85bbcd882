//! One process of a model, while llama-swap reports it as ready.

use std::time::Instant;

use crate::readings::{ModelReading, ModelState, ModelStatus, Update};
use crate::settings::{ApiKeys, BaseUrl, Settings};
use crate::upstream::api::Props;
use crate::upstream::endpoints::{PROPS, read_props};
use crate::upstream::http::allowed_addresses::AllowedAddresses;
use crate::upstream::http::exchange::{Exchange, RequestOutcome};
use crate::upstream::llama_server::LlamaServer;
use crate::upstream::reading::Reading;
use crate::upstream::server_url::ServerUrl;
use crate::upstream::{DetectionAnswers, Upstream};

const UNREACHABLE: &str = "a model's own server cannot be reached: its tokens are counted at the end of each request, and its \
     status is idle even while it is running";
const OTHER_ENGINE: &str = "a model's own server is not a llama-server: its tokens are counted at the end of each request, and \
     its status is idle even while it is running";

/// One process of a model.
pub struct ModelInstance {
    /// The server's address, as llama-swap reports it.
    proxy: Option<String>,
    /// The addresses that the server may have.
    reach: Option<AllowedAddresses>,
    /// Its server, or a note on why that is not polled.
    server: Result<Box<DirectServer>, &'static str>,
    /// Chosen once: changing the source within one process would make its counters jump or fall.
    token_source: Option<TokenSource>,
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
struct DirectServer {
    exchange: Exchange,
    url: ServerUrl,
    server: LlamaServer,
    /// Whether it was identified as a llama-server.
    is_identified: bool,
}

/// Why a poll of a server failed.
enum PollError {
    /// In this poll, only this state is known.
    Now(ModelState),
    /// The server cannot be polled, as this note explains.
    Always(&'static str),
}

impl ModelInstance {
    /// The process of a model whose server is at `proxy`, if that is within `reach`.
    pub fn new(
        name: &str,
        proxy: Option<&str>,
        reach: Option<AllowedAddresses>,
        settings: &Settings,
    ) -> ModelInstance {
        let server = proxy
            .zip(reach)
            .and_then(|(proxy, reach)| DirectServer::new(name, proxy, reach, settings));
        ModelInstance {
            proxy: proxy.map(str::to_owned),
            reach,
            server: server.map(Box::new).ok_or(UNREACHABLE),
            token_source: None,
        }
    }

    /// Whether `proxy` and `reach` are unchanged.
    pub fn is_at(&self, proxy: Option<&str>, reach: Option<AllowedAddresses>) -> bool {
        self.proxy.as_deref() == proxy && self.reach == reach
    }

    /// Why its server is not polled, for the user.
    pub fn note(&self) -> Option<&'static str> {
        self.server.as_ref().err().copied()
    }

    /// Whether the model's own server is polled.
    pub fn has_server(&self) -> bool {
        self.server.is_ok()
    }

    /// Whether the model's own server was identified.
    pub fn is_identified(&self) -> bool {
        self.server
            .as_ref()
            .map_or(true, |direct| direct.is_identified)
    }

    /// What counts the model's tokens, once that is known.
    pub fn token_source(&self) -> Option<TokenSource> {
        self.token_source
    }

    /// When to poll before the next regular poll, if at all.
    pub fn extra_poll_at(&self) -> Option<Instant> {
        self.server.as_ref().ok()?.server.extra_poll_at()
    }

    /// Polls the server until `deadline`; adds the outcomes of its requests to `reading`.
    pub fn poll(&mut self, name: &str, deadline: Instant, reading: &mut Reading) -> ModelReading {
        let result = match &mut self.server {
            Ok(server) => server.poll(name, deadline, reading),
            Err(note) => Err(PollError::Always(note)),
        };
        let mut model = result.unwrap_or_else(|error| {
            let state = match error {
                PollError::Now(state) => state,
                PollError::Always(note) => {
                    self.server = Err(note);
                    // It is loaded; whether it is running is unknown.
                    ModelState::Reported(ModelStatus::Idle)
                }
            };
            ModelReading::new(name, state)
        });
        self.token_source = self.token_source.or(match &self.server {
            Err(_) => Some(TokenSource::Activity),
            Ok(_) if matches!(model.counters, Update::New(_)) => Some(TokenSource::Server),
            Ok(direct) => direct
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
    /// The server at the host and port of `proxy`; the rest of that URL is ignored. Connects only
    /// to addresses in `reach`. Sends no API key: the key is llama-swap's.
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
        let requests = self.exchange.finish_poll();
        if model.is_ok() {
            reading.requests.append(requests);
            reading.requests.append(own.requests);
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
        // If a request was not sent, the server is not necessarily busy.
        let model = own.models.pop().filter(|_| !self.exchange.is_out_of_time());
        model.ok_or(PollError::Now(ModelState::Unknown))
    }

    /// Reads `/props`, if the server is a llama-server.
    fn identify(&mut self) -> Result<RequestOutcome<Props>, PollError> {
        let props = read_props(&mut self.exchange, &self.url);
        match &props {
            RequestOutcome::Ok(_) | RequestOutcome::NotLoaded => Ok(props),
            _ if self.exchange.is_out_of_time() => Err(PollError::Now(ModelState::Unknown)),
            _ if props.timed_out() && self.exchange.is_pending(&self.url.of(PROPS)) => {
                Err(PollError::Now(ModelState::Busy))
            }
            _ if props.is_unanswered() => Err(PollError::Always(UNREACHABLE)),
            _ => Err(PollError::Always(OTHER_ENGINE)),
        }
    }
}
