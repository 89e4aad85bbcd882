//! One process of a model, while llama-swap reports it as ready.

use std::time::Instant;

use crate::readings::{ModelReading, ModelState, ModelStatus, Update};
use crate::settings::{BaseUrl, Settings};
use crate::snapshot::Absence;
use crate::upstream::child_server::{ChildPollError, ChildServer};
use crate::upstream::http::allowed_addresses::AllowedAddresses;
use crate::upstream::reading::Reading;

/// One process of a model.
pub struct ModelInstance {
    /// The server's address, as llama-swap reports it.
    proxy: Option<String>,
    /// The addresses that the server may have.
    reach: Option<AllowedAddresses>,
    /// Its server, or why that is not polled.
    server: Result<Box<ChildServer>, Absence>,
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

impl ModelInstance {
    /// The process of a model whose server is at `proxy`, if that is within `reach`.
    pub fn new(
        name: &str,
        proxy: Option<&str>,
        reach: Option<AllowedAddresses>,
        settings: &Settings,
    ) -> ModelInstance {
        // The host and port of its address; the rest of that URL is ignored.
        let base = proxy.and_then(|proxy| Some(proxy.parse::<BaseUrl>().ok()?.bare()));
        let server = base
            .zip(reach)
            .and_then(|(base, reach)| ChildServer::new(name, &base, reach, settings));
        ModelInstance {
            proxy: proxy.map(str::to_owned),
            reach,
            server: server.map(Box::new).ok_or(Absence::SwapServerUnreachable),
            token_source: None,
        }
    }

    /// Whether `proxy` and `reach` are unchanged.
    pub fn is_at(&self, proxy: Option<&str>, reach: Option<AllowedAddresses>) -> bool {
        self.proxy.as_deref() == proxy && self.reach == reach
    }

    /// Why its server is not polled.
    pub fn absence(&self) -> Option<Absence> {
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
            .map_or(true, |server| server.is_identified())
    }

    /// What counts the model's tokens, once that is known.
    pub fn token_source(&self) -> Option<TokenSource> {
        self.token_source
    }

    /// When to poll before the next regular poll, if at all.
    pub fn extra_poll_at(&self) -> Option<Instant> {
        self.server.as_ref().ok()?.extra_poll_at()
    }

    /// Polls the server until `deadline`; adds the outcomes of its requests to `reading`.
    pub fn poll(&mut self, name: &str, deadline: Instant, reading: &mut Reading) -> ModelReading {
        let idle = ModelState::Reported(ModelStatus::Idle);
        let result = match &mut self.server {
            Ok(server) => server.poll(name, deadline, reading).map_err(Some),
            Err(_) => Err(None),
        };
        let mut model = result.unwrap_or_else(|error| {
            self.server = match error {
                Some(ChildPollError::Now(state)) => return ModelReading::new(name, state),
                Some(ChildPollError::Unreachable) => Err(Absence::SwapServerUnreachable),
                Some(ChildPollError::OtherEngine) => Err(Absence::SwapOtherEngine),
                None => return ModelReading::new(name, idle),
            };
            // It is loaded; whether it is running is unknown.
            ModelReading::new(name, idle)
        });
        self.token_source = self.token_source.or(match &self.server {
            Err(_) => Some(TokenSource::Activity),
            Ok(_) if matches!(model.counters, Update::New(_)) => Some(TokenSource::Server),
            Ok(server) => server.lacks_metrics().then_some(TokenSource::Activity),
        });
        if self.token_source == Some(TokenSource::Activity) {
            model.counters = Update::Absent;
            model.lacks_metrics = true;
        }
        model
    }
}
