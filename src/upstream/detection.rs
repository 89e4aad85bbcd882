//! Detects the kind of server at a base URL, and polls it.
//!
//! The kind is detected again after every reconnect: the server may have been replaced.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::bounds::BoundedDuration;
use crate::readings::{LocalServer, ModelReading, ModelState};
use crate::settings::{BaseUrl, Settings};
use crate::upstream::endpoints::{HEALTH, PROPS, read_health};
use crate::upstream::http::endpoint::Endpoint;
use crate::upstream::http::exchange::{Exchange, RequestOutcome};
use crate::upstream::http::response::HttpResponse;
use crate::upstream::identification::read_models;
use crate::upstream::products::Product;
use crate::upstream::reading::Reading;
use crate::upstream::server_url::ServerUrl;
use crate::upstream::{DetectionAnswers, RecordsReader, ServerKind, Upstream, all_kinds};

const ROOT: Endpoint = Endpoint::new("/", 64 << 10);

/// How long only `/v1/models` is requested from an identified product. Other requests may be
/// expensive: LiteLLM's `/health` sends a prompt to every model behind it, and LM Studio logs an
/// error for each unknown path.
const PRODUCT_LIFETIME: Duration = Duration::from_secs(600);

/// The server at one base URL, with its detected kind.
pub struct DetectedServer {
    url: ServerUrl,
    kinds: Vec<Box<dyn Upstream>>,
    /// The index of the last detected kind; kept while the server is down.
    current: usize,
    /// Whether the current kind is certain; otherwise it is detected again.
    connected: bool,
    /// The last unsupported product, and when it was identified.
    product: Option<(Product, Instant)>,
    /// Lists the llama-servers of this machine.
    list_local_servers: Option<Box<dyn FnMut() -> Arc<[LocalServer]> + Send>>,
}

impl DetectedServer {
    /// The server at `base`, not polled yet.
    pub fn new(base: &BaseUrl, settings: &Settings) -> DetectedServer {
        let kinds = all_kinds(base, settings);
        DetectedServer {
            url: ServerUrl::new(base.root()),
            current: kinds.len().saturating_sub(1),
            kinds,
            connected: false,
            product: None,
            list_local_servers: None,
        }
    }

    fn server(&mut self) -> &mut dyn Upstream {
        self.kinds[self.current].as_mut()
    }

    /// When to poll before the next regular poll, if at all.
    pub fn extra_poll_at(&self) -> Option<Instant> {
        self.kinds[self.current].extra_poll_at()
    }

    /// Sets how long the server is idle before it sleeps, as its command line says.
    pub fn set_idle_timeout(&mut self, timeout: BoundedDuration) {
        self.server().set_idle_timeout(timeout);
    }

    /// Takes that the log of this model's server has reported requests since the last poll.
    pub fn requests_logged(&mut self, model: &str) {
        self.server().requests_logged(model);
    }

    /// Sets what lists the llama-servers of this machine, for kinds that want them.
    pub fn list_local_servers(
        &mut self,
        list: impl FnMut() -> Arc<[LocalServer]> + Send + 'static,
    ) {
        self.list_local_servers = Some(Box::new(list));
    }

    /// Passes the server's records of its last requests to `read`, if it keeps records.
    pub fn read_records(&mut self, exchange: &mut Exchange, read: &mut RecordsReader) {
        if self.connected {
            self.server().read_records(exchange, read);
        }
    }

    /// Polls once: reads everything that may be read now.
    pub fn poll(&mut self, exchange: &mut Exchange, reading: &mut Reading) {
        let mut answers = DetectionAnswers::default();
        let mut is_certain = true;
        if !self.connected {
            if self.is_still_product(exchange, reading) {
                return;
            }
            match self.detect(exchange, &mut answers) {
                Some(certain) => is_certain = certain,
                None => return,
            }
        }
        let timed_out = answers
            .health
            .as_ref()
            .is_some_and(RequestOutcome::timed_out);
        if self.server().wants_local_servers()
            && let Some(list) = &mut self.list_local_servers
        {
            let servers = list();
            self.server().set_local_servers(&servers);
        }
        self.server().poll(exchange, answers, reading);
        if reading.up {
            self.product = None;
            if reading.kind == Some(self.server().kind()) {
                reading.endpoints = self.endpoints();
            }
        } else if !self.connected && !timed_out {
            self.identify_product(exchange, reading);
        }
        // While it loads its model, its kind is not certain.
        let is_loaded = |model: &ModelReading| model.state != ModelState::Loading;
        let mut models = reading.models.iter().chain(&reading.unnamed);
        let is_identified = self.server().kind().holds_many_models() || models.any(is_loaded);
        self.connected = is_certain && reading.up && is_identified;
    }

    /// The endpoints that are requested of the current kind of server, those included that detect
    /// it after a reconnect.
    fn endpoints(&self) -> Vec<&'static str> {
        let current = &self.kinds[self.current];
        let detection = self.kinds[..=self.current].iter();
        let detection = detection.filter_map(|kind| kind.detection_endpoint());
        let all = [HEALTH]
            .into_iter()
            .chain(detection)
            .chain(current.endpoints());
        all.map(|endpoint| endpoint.path).collect()
    }

    /// Detects the kind of server. Returns whether it is certain; `None` if no server responds.
    fn detect(&mut self, exchange: &mut Exchange, answers: &mut DetectionAnswers) -> Option<bool> {
        let health_url = self.url.of(HEALTH);
        let health = read_health(exchange, &health_url);
        // ik_llama.cpp responds to /health only after the current prompt: try the other endpoints.
        if health.is_unanswered() && !exchange.is_pending(&health_url) {
            return None;
        }
        // If /props is still pending too, the server hangs: send no other request.
        if health.timed_out() && exchange.is_pending(&self.url.of(PROPS)) {
            return None;
        }
        let is_healthy = matches!(health, RequestOutcome::Ok(_));
        let is_loading = matches!(health, RequestOutcome::NotLoaded);
        answers.health = Some(health);
        for index in 0..self.kinds.len() {
            let kind = &mut self.kinds[index];
            // Only llama-server reports that it is loading a model.
            if is_loading && kind.kind() != ServerKind::LlamaServer {
                continue;
            }
            let outcome = kind.detect(exchange, answers);
            if let RequestOutcome::Ok(()) = outcome {
                if index != self.current {
                    self.server().replaced();
                    self.current = index;
                }
                return Some(true);
            }
            if outcome.is_unanswered() {
                // It may be busy. Only llama.cpp is recognized by /health.
                return is_healthy.then_some(false);
            }
        }
        None
    }

    /// Whether the product that was identified is still there.
    fn is_still_product(&mut self, exchange: &mut Exchange, reading: &mut Reading) -> bool {
        let is_recent = |(product, identified): &(Product, Instant)| {
            product.is_certain && identified.elapsed() < PRODUCT_LIFETIME
        };
        if !self.product.as_ref().is_some_and(is_recent) {
            return false;
        }
        let models = read_models(exchange, &self.url).ok();
        reading.product = models
            .filter(|list| !list.is_llama_cpp)
            .and_then(|list| list.product)
            .filter(|product| product.is_certain);
        reading.product.is_some()
    }

    /// Identifies an unsupported product.
    fn identify_product(&mut self, exchange: &mut Exchange, reading: &mut Reading) {
        if !reading.product.as_ref().is_some_and(|p| p.is_certain) {
            let page = exchange.get_optional(ROOT, &self.url.of(ROOT), HttpResponse::text);
            let by_page = page.ok().and_then(|page| Product::of_root_page(&page));
            reading.product = by_page.or(reading.product.take());
        }
        if let Some(product) = &reading.product {
            exchange.discard_all_failures();
            self.product = Some((product.clone(), Instant::now()));
        }
    }
}
