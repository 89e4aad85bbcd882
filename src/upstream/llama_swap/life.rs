//! One life of a ready model: its process, from when llama-swap says that it is ready until it
//! says otherwise.

use std::time::Instant;

use crate::readings::{ModelReading, ModelState, ModelStatus, Update};
use crate::settings::{ApiKeys, BaseUrl, Settings};
use crate::upstream::http::allowed_addresses::AllowedAddresses;
use crate::upstream::http::exchange::{Exchange, RequestOutcome};
use crate::upstream::llama_server::{Asked, LlamaServer, PROPS, ask_props};
use crate::upstream::reading::Reading;
use crate::upstream::telemetry::ServerUrl;

/// One life of a model, and what is known of the server that runs it.
pub struct Life {
    /// Where llama-swap says that the server is.
    proxy: Option<String>,
    /// Where llama-swap itself is.
    reach: Option<AllowedAddresses>,
    access: Access,
    /// Chosen once: two sources, mixed within one life, would make its counters jump and fall.
    tokens: Option<TokenSource>,
}

/// How the server of a model is read.
pub enum Access {
    /// At its own address.
    Server(Box<Direct>),
    /// It is no llama-server.
    OtherEngine,
    /// It cannot be reached from here, or must not be.
    OutOfReach,
}

/// What tells a model's tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TokenSource {
    /// Its own server.
    Server,
    /// llama-swap's list of ended requests.
    Activity,
}

/// The server of a model, at its own address.
pub struct Direct {
    exchange: Exchange,
    place: ServerUrl,
    server: LlamaServer,
    /// Whether it has shown that it is a llama-server.
    is_known: bool,
}

/// What came of asking a server.
enum Read {
    Model(Box<ModelReading>),
    /// It has not answered yet.
    Late,
    /// This poll had no time left for it.
    NotAsked,
    /// It is no llama-server.
    Other,
    /// Nobody is there.
    Nobody,
}

impl Life {
    /// The life of a model whose server is at `proxy`, if that is within `reach`.
    pub fn new(
        name: &str,
        proxy: Option<&str>,
        reach: Option<AllowedAddresses>,
        settings: &Settings,
    ) -> Life {
        let direct = proxy
            .zip(reach)
            .and_then(|(proxy, reach)| Direct::new(name, proxy, reach, settings));
        Life {
            proxy: proxy.map(str::to_owned),
            reach,
            access: direct.map_or(Access::OutOfReach, |direct| {
                Access::Server(Box::new(direct))
            }),
            tokens: None,
        }
    }

    /// Whether a server at `proxy` is still this one.
    pub fn is_at(&self, proxy: Option<&str>, reach: Option<AllowedAddresses>) -> bool {
        self.proxy.as_deref() == proxy && self.reach == reach
    }

    /// Whether the model's own server is asked.
    pub fn is_asked(&self) -> bool {
        matches!(self.access, Access::Server(_))
    }

    /// Whether it is known what the model's own server is.
    pub fn is_known(&self) -> bool {
        match &self.access {
            Access::Server(direct) => direct.is_known,
            Access::OtherEngine | Access::OutOfReach => true,
        }
    }

    /// How the server is read.
    pub fn access(&self) -> &Access {
        &self.access
    }

    /// What tells the model's tokens, once that is known.
    pub fn token_source(&self) -> Option<TokenSource> {
        self.tokens
    }

    /// When it is worth a look though no poll is due.
    pub fn next_look(&self) -> Option<Instant> {
        match &self.access {
            Access::Server(direct) => direct.server.next_look(),
            Access::OtherEngine | Access::OutOfReach => None,
        }
    }

    /// Asks the server what may be asked now, until `deadline`; adds to `reading` what became of that.
    pub fn read(&mut self, name: &str, deadline: Instant, reading: &mut Reading) -> ModelReading {
        let mut model = match &mut self.access {
            Access::OtherEngine | Access::OutOfReach => told(name, ModelStatus::Idle),
            Access::Server(direct) => match direct.read(name, deadline, reading) {
                Read::Model(model) => *model,
                Read::Late => busy(name),
                Read::NotAsked => unread(name),
                Read::Nobody if direct.is_known => unread(name),
                Read::Nobody => {
                    self.access = Access::OutOfReach;
                    told(name, ModelStatus::Idle)
                }
                Read::Other => {
                    self.access = Access::OtherEngine;
                    told(name, ModelStatus::Idle)
                }
            },
        };
        self.tokens = self.tokens.or_else(|| match &self.access {
            Access::OtherEngine | Access::OutOfReach => Some(TokenSource::Activity),
            Access::Server(_) if matches!(model.counters, Update::New(_)) => {
                Some(TokenSource::Server)
            }
            Access::Server(direct) if direct.server.lacks_metrics() => Some(TokenSource::Activity),
            Access::Server(_) => None,
        });
        if self.tokens == Some(TokenSource::Activity) {
            model.counters = Update::Absent;
        }
        model
    }
}

impl Direct {
    /// The server at the host and port of `proxy`: nothing else of that is used, and no
    /// connection leaves `reach`. It is asked without the key, which is llama-swap's.
    fn new(
        name: &str,
        proxy: &str,
        reach: AllowedAddresses,
        settings: &Settings,
    ) -> Option<Direct> {
        let base = proxy.parse::<BaseUrl>().ok()?.bare();
        let settings = Settings {
            api_keys: ApiKeys::default(),
            ..settings.clone()
        };
        Some(Direct {
            exchange: Exchange::restricted_to(reach, &base, &settings).ok()?,
            place: ServerUrl {
                root: base.root(),
                query: String::new(),
                model_names: Vec::new(),
            },
            server: LlamaServer::new(&base, &settings).called(name),
            is_known: false,
        })
    }

    fn read(&mut self, name: &str, deadline: Instant, reading: &mut Reading) -> Read {
        let mut own = Reading::default();
        self.exchange.begin_poll(deadline);
        self.exchange.set_model(Some(name));
        let read = self.ask(&mut own);
        self.exchange.finish_poll(&mut own);
        if let Read::Model(_) = read {
            reading.failures.append(&mut own.failures);
            reading.answered.append(&mut own.answered);
            reading.notes.append(&mut own.notes);
        }
        read
    }

    fn ask(&mut self, own: &mut Reading) -> Read {
        let mut asked = Asked::default();
        if !self.is_known {
            let props = ask_props(&mut self.exchange, &self.place);
            match &props {
                RequestOutcome::Ok(_) | RequestOutcome::NotLoaded => {}
                _ if self.exchange.is_out_of_time() => return Read::NotAsked,
                late if late.timed_out() && self.exchange.is_pending(&self.place.url(PROPS)) => {
                    return Read::Late;
                }
                nobody if nobody.is_unanswered() => return Read::Nobody,
                _ => return Read::Other,
            }
            self.is_known = true;
            asked.props = Some(props);
        }
        self.server.read(&mut self.exchange, asked, own);
        match own.models.pop() {
            // What was not asked is no sign that it is busy.
            _ if self.exchange.is_out_of_time() => Read::NotAsked,
            Some(model) => Read::Model(Box::new(model)),
            None => Read::Nobody,
        }
    }
}

/// A model in a state that llama-swap tells.
pub fn told(name: &str, status: ModelStatus) -> ModelReading {
    of(name, ModelState::Reported(status))
}

/// A model that is loaded, and of which no more is known.
pub fn unread(name: &str) -> ModelReading {
    of(name, ModelState::Unknown)
}

fn busy(name: &str) -> ModelReading {
    of(name, ModelState::Busy)
}

fn of(name: &str, state: ModelState) -> ModelReading {
    ModelReading {
        name: name.to_owned(),
        state,
        ..ModelReading::default()
    }
}
