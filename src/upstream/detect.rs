//! Finding out what answers at a base URL, by asking.
//!
//! It is found out anew after every reconnect, so that one address may change
//! from one kind of server to another.

use std::time::Instant;

use super::answers::Props;
use super::asker::{Asker, Outcome};
use super::llama_server::{Asked, HEALTH, LlamaServer, PROPS, ask_health, ask_props};
use super::llama_swap::LlamaSwap;
use super::model_runner::{ModelRunner, TakeRecords};
use super::reading::Reading;
use super::router::Router;
use super::work::Place;
use crate::bounds::BoundedDuration;
use crate::settings::{BaseUrl, Settings};

/// Whatever answers at one base URL.
pub struct Upstream {
    base: BaseUrl,
    settings: Settings,
    /// What answered last; a server that is down is not forgotten, it may be the same again.
    kind: Kind,
    connected: bool,
}

enum Kind {
    LlamaServer(Box<LlamaServer>),
    Router(Router),
    ModelRunner(ModelRunner),
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
    pub fn read(&mut self, asker: &mut Asker, reading: &mut Reading) {
        let mut asked = Asked::default();
        let mut is_sure = true;
        if !self.connected {
            match self.detect(asker) {
                Some(detected) => (asked, is_sure) = (detected.asked, detected.is_sure),
                None => return,
            }
        }
        match &mut self.kind {
            Kind::LlamaServer(server) => server.read(asker, asked, reading),
            Kind::Router(router) => router.read(asker, reading),
            Kind::ModelRunner(runner) => runner.read(asker, reading),
            Kind::LlamaSwap(swap) => swap.read(asker, reading),
        }
        // What is loading has not shown yet what it is.
        self.connected = is_sure && reading.up && !reading.loading;
    }

    /// Asks for the server's records of the last requests, where it keeps any, and has them
    /// read by `take`, which is given the label of a model by any of its names.
    pub fn read_records(&mut self, asker: &mut Asker, take: &mut TakeRecords) {
        if let Kind::ModelRunner(runner) = &self.kind
            && self.connected
        {
            runner.read_records(asker, take);
        }
    }

    /// Asks for what only one kind of server answers. Gives what was asked on the way, or
    /// none where nobody is there who could be any of them.
    fn detect(&mut self, asker: &mut Asker) -> Option<Detected> {
        let place = Place {
            root: self.base.root(),
            query: String::new(),
            model_names: Vec::new(),
        };
        let url = place.url(HEALTH);
        let health = ask_health(asker, &url);
        // In ik_llama.cpp it waits behind a prompt: the others tell whether the server is there.
        if health.is_nobody() && !asker.is_open(&url) {
            return None;
        }
        // Where neither is answered the server hangs: it is asked nothing else.
        if health.is_late() && asker.is_open(&place.url(PROPS)) {
            return None;
        }
        let is_healthy = matches!(health, Outcome::Answer(_));
        // What is loading answers nothing else.
        let is_loading = matches!(health, Outcome::NotLoaded);
        let mut asked = Asked {
            health: Some(health),
            props: None,
        };
        let found = if is_loading {
            Found::Other
        } else {
            self.find(asker, &place, &mut asked)
        };
        let is_sure = !matches!(found, Found::Late);
        match found {
            Found::Kind(kind) => self.kind = kind,
            Found::Other if matches!(self.kind, Kind::LlamaServer(_)) => {}
            Found::Other => {
                let server = LlamaServer::new(&self.base, &self.settings);
                self.kind = Kind::LlamaServer(Box::new(server));
            }
            // It may be busy. Only llama.cpp's own is known by how it says that it is well.
            Found::Late if !is_healthy => return None,
            Found::Late => {}
        }
        Some(Detected { asked, is_sure })
    }

    fn find(&self, asker: &mut Asker, place: &Place, asked: &mut Asked) -> Found {
        for look in [Upstream::runner, Upstream::swap] {
            let outcome = look(self, asker);
            match outcome {
                Outcome::Answer(kind) => {
                    asker.forgive(HEALTH);
                    return Found::Kind(kind);
                }
                _ if outcome.is_nobody() => return Found::Late,
                _ => {}
            }
        }
        let props = ask_props(asker, place);
        let found = match self.router(&props, place.root.clone()) {
            Some(router) => Found::Kind(router),
            None if props.is_nobody() => Found::Late,
            None => Found::Other,
        };
        asked.props = Some(props);
        found
    }

    fn runner(&self, asker: &mut Asker) -> Outcome<Kind> {
        ModelRunner::detect(asker, &self.base).map(Kind::ModelRunner)
    }

    fn swap(&self, asker: &mut Asker) -> Outcome<Kind> {
        LlamaSwap::detect(asker, &self.base, &self.settings)
            .map(|swap| Kind::LlamaSwap(Box::new(swap)))
    }

    fn router(&self, props: &Outcome<Props>, root: String) -> Option<Kind> {
        let Outcome::Answer(props) = props else {
            return None;
        };
        let is_router = props.role.as_deref() == Some("router");
        is_router.then(|| Kind::Router(Router::new(root, props.build_info.clone(), &self.settings)))
    }
}
