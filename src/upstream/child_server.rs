//! A model's own llama-server, which the server at the base URL has started, polled at its own
//! address.

use std::sync::Arc;
use std::time::Instant;

use crate::readings::{LocalAddress, LocalServer, ModelReading, ModelState};
use crate::settings::{ApiKeys, BaseUrl, Settings};
use crate::upstream::api::Props;
use crate::upstream::endpoints::{PROPS, read_props};
use crate::upstream::http::allowed_addresses::AllowedAddresses;
use crate::upstream::http::exchange::{Exchange, RequestOutcome};
use crate::upstream::http::peer_check::PeerCheck;
use crate::upstream::llama_server::LlamaServer;
use crate::upstream::reading::Reading;
use crate::upstream::server_url::ServerUrl;
use crate::upstream::{DetectionAnswers, Upstream};

/// A model's own llama-server.
pub struct ChildServer {
    exchange: Exchange,
    url: ServerUrl,
    server: LlamaServer,
    /// Whether it was identified as a llama-server.
    is_identified: bool,
}

/// Why a poll of a child server failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChildPollError {
    /// In this poll, only this state is known.
    Now(ModelState),
    /// It does not respond.
    Unreachable,
    /// It is no llama-server.
    OtherEngine,
}

impl ChildServer {
    /// The server of the model `name` at `base`. Connects only to addresses in `reach`. Sends no
    /// API key: the key is that of its parent.
    pub fn new(
        name: &str,
        base: &BaseUrl,
        reach: AllowedAddresses,
        settings: &Settings,
    ) -> Option<ChildServer> {
        let settings = Settings {
            api_keys: ApiKeys::default(),
            ..settings.clone()
        };
        Some(ChildServer {
            exchange: Exchange::restricted_to(reach, base, &settings).ok()?,
            url: ServerUrl::new(base.root()),
            server: LlamaServer::new(base, &settings).named(name),
            is_identified: false,
        })
    }

    /// The server of the model `name` that runs in `process`; `None` if that cannot be reached.
    pub fn of_process(
        name: &str,
        process: &LocalServer,
        settings: &Settings,
    ) -> Option<ChildServer> {
        let scheme = if process.is_https { "https" } else { "http" };
        let prefix = &process.api_prefix;
        let base = match process.address.as_ref().ok()? {
            LocalAddress::Tcp(address) => format!("{scheme}://{address}{prefix}").parse().ok()?,
            LocalAddress::Unix { path, .. } => BaseUrl::of_socket(path.clone(), prefix),
        };
        let mut child = ChildServer::new(name, &base, AllowedAddresses::Any, settings)?;
        if base.socket().is_some() {
            // The path leads through files of that process, which may be links to another socket.
            let pid = process.pid;
            let is_it = move |listener| listener == Some(pid);
            child.exchange.check_peer(PeerCheck(Arc::new(is_it)));
        }
        if let Some(timeout) = process.sleep_idle {
            child.server.set_idle_timeout(timeout);
        }
        Some(child)
    }

    /// Whether it was identified as a llama-server.
    pub fn is_identified(&self) -> bool {
        self.is_identified
    }

    /// Whether it does not serve `/metrics`.
    pub fn lacks_metrics(&self) -> bool {
        self.server.lacks_metrics()
    }

    /// When to poll before the next regular poll, if at all.
    pub fn extra_poll_at(&self) -> Option<Instant> {
        self.server.extra_poll_at()
    }

    /// Polls it until `deadline`; adds the outcomes of its requests to `reading`.
    ///
    /// # Errors
    /// It cannot be polled now, or ever.
    pub fn poll(
        &mut self,
        name: &str,
        deadline: Instant,
        reading: &mut Reading,
    ) -> Result<ModelReading, ChildPollError> {
        let mut own = Reading::default();
        self.exchange.begin_poll(deadline);
        self.exchange.set_model(Some(name));
        let model = self.read(&mut own);
        let requests = self.exchange.finish_poll();
        if model.is_ok() {
            reading.requests.append(requests);
            reading.requests.append(own.requests);
            reading.notes.append(&mut own.notes);
            for source in own.unread {
                reading.unread.push(source.of_model(Some(name)));
            }
        }
        model
    }

    fn read(&mut self, own: &mut Reading) -> Result<ModelReading, ChildPollError> {
        let mut answers = DetectionAnswers::default();
        if !self.is_identified {
            answers.props = Some(self.identify()?);
            self.is_identified = true;
        }
        self.server.poll(&mut self.exchange, answers, own);
        // If a request was not sent, the server is not necessarily busy.
        let model = own.models.pop().filter(|_| !self.exchange.is_out_of_time());
        model.ok_or(ChildPollError::Now(ModelState::Unknown))
    }

    /// Reads `/props`, if the server is a llama-server.
    fn identify(&mut self) -> Result<RequestOutcome<Props>, ChildPollError> {
        let props = read_props(&mut self.exchange, &self.url);
        match &props {
            RequestOutcome::Ok(_) | RequestOutcome::NotLoaded => Ok(props),
            _ if self.exchange.is_out_of_time() => Err(ChildPollError::Now(ModelState::Unknown)),
            _ if props.timed_out() && self.exchange.is_pending(&self.url.of(PROPS)) => {
                Err(ChildPollError::Now(ModelState::Busy))
            }
            _ if props.is_unanswered() => Err(ChildPollError::Unreachable),
            _ => Err(ChildPollError::OtherEngine),
        }
    }
}
