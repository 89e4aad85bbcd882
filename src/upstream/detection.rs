//! Finding out what answers at a base URL, by asking.
//!
//! It is found out anew after every reconnect, so that one address may change
//! from one kind of server to another.

use std::time::{Duration, Instant};

use crate::bounds::BoundedDuration;
use crate::settings::{BaseUrl, Settings};
use crate::upstream::api::Props;
use crate::upstream::http::client::HttpResponse;
use crate::upstream::http::exchange::{Endpoint, Exchange, RequestOutcome};
use crate::upstream::identification::{Product, ask_models};
use crate::upstream::llama_server::{Asked, HEALTH, LlamaServer, PROPS, ask_health, ask_props};
use crate::upstream::llama_swap::LlamaSwap;
use crate::upstream::model_runner::{ModelRunner, TakeRecords};
use crate::upstream::reading::Reading;
use crate::upstream::router::Router;
use crate::upstream::telemetry::ServerUrl;

/// What stands before every other path.
const ROOT: Endpoint = Endpoint {
    path: "/",
    limit: 64 << 10,
};

/// How long a product that has named itself is asked nothing but `/v1/models`. Other questions
/// may cost it something: LiteLLM's `/health` has every model behind it complete a prompt, and
/// LM Studio logs an error for each path that it does not have.
const PRODUCT_AGE: Duration = Duration::from_secs(600);

/// Whatever answers at one base URL.
pub struct Upstream {
    base: BaseUrl,
    settings: Settings,
    /// What answered last; a server that is down is not forgotten, it may be the same again.
    kind: Kind,
    connected: bool,
    /// llama-swap, where something else has answered since: a proxy that says that it is gone.
    last_swap: Option<Box<LlamaSwap>>,
    /// What answered last where it is no known server, and when that was found out.
    product: Option<(Product, Instant)>,
}

enum Kind {
    LlamaServer(Box<LlamaServer>),
    Router(Router),
    ModelRunner(Box<ModelRunner>),
    LlamaSwap(Box<LlamaSwap>),
}

/// What came of asking for what only one kind of server answers.
enum Found {
    Kind(Kind),
    /// It is none of the servers of many models.
    Other,
    /// An answer has not come in time: it may be any, and is asked again at the next poll.
    Late,
}

/// What was asked to find out what answers, and whether that is certain now.
struct Detected {
    asked: Asked,
    is_sure: bool,
}

impl Upstream {
    /// The upstream at `base`, not asked yet.
    pub fn new(base: &BaseUrl, settings: &Settings) -> Upstream {
        Upstream {
            base: base.clone(),
            settings: settings.clone(),
            kind: Kind::LlamaServer(Box::new(LlamaServer::new(base, settings))),
            connected: false,
            last_swap: None,
            product: None,
        }
    }

    /// When it is worth a look though no poll is due.
    pub fn next_look(&self) -> Option<Instant> {
        match &self.kind {
            Kind::LlamaServer(server) => server.next_look(),
            Kind::Router(router) => router.next_look(),
            Kind::LlamaSwap(swap) => swap.next_look(),
            Kind::ModelRunner(_) => None,
        }
    }

    /// Takes the word of the server's own command line on how long it takes to fall asleep.
    /// A router tells that of its children itself.
    pub fn may_sleep_after(&mut self, time: BoundedDuration) {
        if let Kind::LlamaServer(server) = &mut self.kind {
            server.may_sleep_after(time);
        }
    }

    /// Asks all that may be asked now.
    pub fn read(&mut self, exchange: &mut Exchange, reading: &mut Reading) {
        let mut asked = Asked::default();
        let mut is_sure = true;
        if !self.connected {
            if self.is_still_product(exchange, reading) {
                return;
            }
            match self.detect(exchange) {
                Some(detected) => (asked, is_sure) = (detected.asked, detected.is_sure),
                None => return,
            }
        }
        let is_late = asked.health.as_ref().is_some_and(RequestOutcome::timed_out);
        match &mut self.kind {
            Kind::LlamaServer(server) => server.read(exchange, asked, reading),
            Kind::Router(router) => router.read(exchange, reading),
            Kind::ModelRunner(runner) => runner.read(exchange, reading),
            Kind::LlamaSwap(swap) => swap.read(exchange, reading),
        }
        if reading.up {
            self.product = None;
        } else if !self.connected && !is_late {
            self.name_product(exchange, reading);
        }
        // What is loading has not shown yet what it is, nor has a router without its models.
        let is_told = !reading.loading && (self.is_of_many() || !reading.models.is_empty());
        self.connected = is_sure && reading.up && is_told;
    }

    /// Whether this kind of server may have no model.
    fn is_of_many(&self) -> bool {
        !matches!(self.kind, Kind::LlamaServer(_))
    }

    /// Asks a product that has named itself whether it is still there.
    fn is_still_product(&self, exchange: &mut Exchange, reading: &mut Reading) -> bool {
        let Some((product, since)) = &self.product else {
            return false;
        };
        if !product.is_certain || since.elapsed() >= PRODUCT_AGE {
            return false;
        }
        let models = ask_models(exchange, &self.place());
        let is_still = |named: &Product| named.is_certain;
        reading.product = models
            .ok()
            .filter(|list| !list.is_own)
            .and_then(|list| list.product)
            .filter(is_still);
        reading.product.is_some()
    }

    /// Finds out what answers that is no known server, where `/v1/models` has not told.
    fn name_product(&mut self, exchange: &mut Exchange, reading: &mut Reading) {
        let is_named = |product: &Product| product.is_certain;
        if !reading.product.as_ref().is_some_and(is_named) {
            let url = format!("{}{}", self.base.root(), ROOT.path);
            let text = exchange.get_optional(ROOT, &url, HttpResponse::text).ok();
            let product = text.and_then(|text| Product::of_root(&text));
            reading.product = product.or(reading.product.take());
        }
        if let Some(product) = &reading.product {
            exchange.discard_all_failures();
            self.product = Some((product.clone(), Instant::now()));
        }
    }

    fn place(&self) -> ServerUrl {
        ServerUrl {
            root: self.base.root(),
            query: String::new(),
            model_names: Vec::new(),
        }
    }

    /// Asks for the server's records of the last requests, where it keeps any, and has them
    /// read by `take`, which is given the label of a model by any of its names.
    pub fn read_records(&mut self, exchange: &mut Exchange, take: &mut TakeRecords) {
        if let Kind::ModelRunner(runner) = &self.kind
            && self.connected
        {
            runner.read_records(exchange, take);
        }
    }

    /// Asks for what only one kind of server answers. Gives what was asked on the way, or
    /// none where nobody is there who could be any of them.
    fn detect(&mut self, exchange: &mut Exchange) -> Option<Detected> {
        let place = self.place();
        let url = place.url(HEALTH);
        let health = ask_health(exchange, &url);
        // In ik_llama.cpp it waits behind a prompt: the others tell whether the server is there.
        if health.is_unanswered() && !exchange.is_pending(&url) {
            return None;
        }
        // Where neither is answered the server hangs: it is asked nothing else.
        if health.timed_out() && exchange.is_pending(&place.url(PROPS)) {
            return None;
        }
        let is_healthy = matches!(health, RequestOutcome::Ok(_));
        // What is loading answers nothing else.
        let is_loading = matches!(health, RequestOutcome::NotLoaded);
        let mut asked = Asked {
            health: Some(health),
            props: None,
        };
        let found = if is_loading {
            Found::Other
        } else {
            self.find(exchange, &place, &mut asked)
        };
        let is_sure = !matches!(found, Found::Late);
        match found {
            Found::Kind(kind) => self.take(kind),
            Found::Other if matches!(self.kind, Kind::LlamaServer(_)) => {}
            Found::Other => {
                let server = LlamaServer::new(&self.base, &self.settings);
                self.take(Kind::LlamaServer(Box::new(server)));
            }
            // It may be busy. Only llama.cpp's own is known by how it says that it is well.
            Found::Late if !is_healthy => return None,
            Found::Late => {}
        }
        Some(Detected { asked, is_sure })
    }

    fn find(&self, exchange: &mut Exchange, place: &ServerUrl, asked: &mut Asked) -> Found {
        for look in [Upstream::runner, Upstream::swap] {
            let outcome = look(self, exchange);
            match outcome {
                RequestOutcome::Ok(kind) => {
                    exchange.discard_failures(HEALTH);
                    return Found::Kind(kind);
                }
                _ if outcome.is_unanswered() => return Found::Late,
                _ => {}
            }
        }
        let props = ask_props(exchange, place);
        let found = match self.router(&props, place.root.clone()) {
            Some(router) => Found::Kind(router),
            None if props.is_unanswered() => Found::Late,
            None => Found::Other,
        };
        asked.props = Some(props);
        found
    }

    /// Takes what answers now. llama-swap goes on where it was left when it answered last.
    fn take(&mut self, kind: Kind) {
        if let Kind::LlamaSwap(before) = std::mem::replace(&mut self.kind, kind) {
            self.last_swap = Some(before);
        }
        if let Kind::LlamaSwap(swap) = &mut self.kind
            && let Some(before) = self.last_swap.take()
        {
            swap.go_on_from(*before);
        }
    }

    fn runner(&self, exchange: &mut Exchange) -> RequestOutcome<Kind> {
        ModelRunner::detect(exchange, &self.base).map(|runner| Kind::ModelRunner(Box::new(runner)))
    }

    fn swap(&self, exchange: &mut Exchange) -> RequestOutcome<Kind> {
        LlamaSwap::detect(exchange, &self.base, &self.settings)
            .map(|swap| Kind::LlamaSwap(Box::new(swap)))
    }

    fn router(&self, props: &RequestOutcome<Props>, root: String) -> Option<Kind> {
        let RequestOutcome::Ok(props) = props else {
            return None;
        };
        props
            .is_router()
            .then(|| Kind::Router(Router::new(root, props.build_info.clone(), &self.settings)))
    }
}
