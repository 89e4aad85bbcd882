//! Reading llama-server's router mode: many models, each in a server of its own.
//!
//! `/models` tells the state of each and disturbs none. What is loaded and
//! awake is asked through the router, always with `autoload=false`: without it
//! a question would load a model. A sleeping one is asked nothing at all.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use crate::bounds::BoundedDuration;
use crate::readings::{ModelReading, ModelState, ModelStatus, ProcessHints};
use crate::settings::Settings;
use crate::snapshot::ServerInfo;
use crate::upstream::api::{ModelEntry, Props, RouterStatus};
use crate::upstream::http::exchange::{Endpoint, Exchange};
use crate::upstream::idle_guard::IdleGuard;
use crate::upstream::llama_server::{ask_props, facts};
use crate::upstream::model_limit::LimitedModels;
use crate::upstream::reading::Reading;
use crate::upstream::rotation::Rotation;
use crate::upstream::telemetry::{ServerUrl, TelemetryReader};

/// A router may list thousands of models with the command line of each.
const MODELS: Endpoint = Endpoint {
    path: "/models",
    limit: 32 << 20,
};

/// A router, and what must be remembered of its loaded models between two polls.
pub struct Router {
    root: String,
    version: Option<String>,
    sleep_idle: Option<BoundedDuration>,
    children: BTreeMap<String, Child>,
    rotation: Rotation,
}

/// The server of one loaded model.
struct Child {
    place: ServerUrl,
    work: TelemetryReader,
    props: Option<Props>,
}

impl RouterStatus {
    /// How long the child takes to fall asleep, by its own command line.
    fn sleep_idle(&self) -> Option<BoundedDuration> {
        let after = self
            .args
            .iter()
            .skip_while(|arg| *arg != "--sleep-idle-seconds")
            .nth(1)?;
        after
            .parse::<u64>()
            .ok()
            .filter(|seconds| *seconds > 0)
            .map(BoundedDuration::from_secs)
    }

    fn status(&self) -> Option<ModelStatus> {
        match self.value.as_deref()? {
            _ if self.failed == Some(true) => Some(ModelStatus::Failed),
            // It was downloaded, and not loaded since.
            "unloaded" | "downloaded" => Some(ModelStatus::Unloaded),
            "loading" => Some(ModelStatus::Loading),
            "sleeping" => Some(ModelStatus::Sleeping),
            "downloading" => Some(ModelStatus::Downloading),
            _ => None,
        }
    }

    /// Whether its child is there and awake.
    pub fn is_loaded(&self) -> bool {
        self.value.as_deref() == Some("loaded")
    }

    /// Whether there is nothing to see of it but its state.
    fn is_unloaded(&self) -> bool {
        let value = self.value.as_deref();
        !matches!(value, Some("loading" | "loaded" | "sleeping"))
    }
}

impl Router {
    /// The router below `root`, whose `/props` told its version.
    pub fn new(root: String, version: Option<String>, settings: &Settings) -> Router {
        Router {
            root,
            version,
            sleep_idle: settings.sleep_idle,
            children: BTreeMap::new(),
            rotation: Rotation::new(settings),
        }
    }

    /// When it is worth a look though no poll is due.
    pub fn next_look(&self) -> Option<Instant> {
        self.children
            .values()
            .filter_map(|child| child.work.idle_guard.next_look())
            .min()
    }

    /// Asks all that may be asked now.
    pub fn read(&mut self, exchange: &mut Exchange, reading: &mut Reading) {
        let url = format!("{}{}", self.root, MODELS.path);
        let models = exchange.get(MODELS, &url, |answer| {
            let mut models = LimitedModels::default();
            answer.each_in("data", |entry: ModelEntry| {
                let status = entry.status.as_ref();
                let unloaded = status.is_none_or(RouterStatus::is_unloaded);
                models.take(entry, !unloaded);
            })?;
            Ok(models.finish())
        });
        let Some((mut models, left_out)) = models.ok() else {
            return;
        };
        // A llama-server of one model lists it as well, and tells no state: it is at this address now.
        if !models.is_empty() && models.iter().all(|entry| entry.status.is_none()) {
            return;
        }
        // Of a model that is listed twice the loaded one counts, else the first.
        let mut listed = BTreeSet::new();
        models.retain(|entry| listed.insert(entry.id.clone()));
        reading.up = true;
        reading.left_out = left_out;
        reading.info = Some(ServerInfo {
            kind: "router",
            version: self.version.clone(),
        });
        let loaded =
            |entry: &&ModelEntry| entry.status.as_ref().is_some_and(RouterStatus::is_loaded);
        let alive: BTreeSet<_> = models
            .iter()
            .filter(|entry| keeps_child(entry))
            .filter_map(|entry| entry.id.as_ref())
            .collect();
        self.children.retain(|id, _| alive.contains(id));
        for entry in models.iter().filter(|entry| !loaded(entry)) {
            reading.models.extend(self.read_unasked(entry));
        }
        let mut children: Vec<_> = models
            .iter()
            .filter(loaded)
            .filter_map(|entry| Some((entry.id.as_deref()?, entry)))
            .collect();
        let (now, deadline) = (Instant::now(), exchange.deadline());
        self.rotation
            .begin(&mut children, |(id, _)| id, now, deadline);
        for (id, entry) in children {
            let may_ask = self.rotation.may_ask(id, Instant::now());
            exchange.set_model(Some(id));
            if let Some(model) = self.read_child(exchange, entry, may_ask) {
                reading.add(model);
            }
        }
        exchange.set_model(None);
    }

    /// A model of which the router's own word is all there is to know.
    fn read_unasked(&mut self, entry: &ModelEntry) -> Option<ModelReading> {
        let id = entry.id.as_ref()?;
        let status = entry.status.as_ref()?.status();
        let mut model = ModelReading {
            name: id.clone(),
            state: status.map_or(ModelState::Unknown, ModelState::Reported),
            ..ModelReading::default()
        };
        if let Some(child) = self
            .children
            .get_mut(id)
            .filter(|_| status == Some(ModelStatus::Sleeping))
        {
            let now = Instant::now();
            child.work.idle_guard.saw_sleep(now, true);
            model.state = ModelState::Asleep(now);
            model.facts = facts(child.props.as_ref(), Some(entry));
            model.counters = child.work.unread(false).counters;
        }
        model.process = host(entry);
        Some(model)
    }

    fn read_child(
        &mut self,
        exchange: &mut Exchange,
        entry: &ModelEntry,
        may_ask: bool,
    ) -> Option<ModelReading> {
        let (id, status) = (entry.id.as_ref()?, entry.status.as_ref()?);
        let child = self.children.entry(id.clone()).or_insert_with(|| Child {
            place: ServerUrl {
                root: self.root.clone(),
                query: format!("?model={}&autoload=false", percent_encoded(id)),
                model_names: vec![id.clone()],
            },
            work: TelemetryReader::new(IdleGuard::new(status.sleep_idle().or(self.sleep_idle))),
            props: None,
        });
        child.work.idle_guard.saw_sleep(Instant::now(), false);
        let mut model = ModelReading {
            name: id.clone(),
            ..ModelReading::default()
        };
        let mut late = !may_ask;
        if child.props.is_none() && !late {
            let props = ask_props(exchange, &child.place);
            late = props.timed_out();
            child.props = props.ok();
            child
                .work
                .idle_guard
                .saw_build(child.props.as_ref().and_then(Props::build));
        }
        let read = if late {
            child.work.unread(true)
        } else {
            child.work.read(exchange, &child.place)
        };
        model.state = match read.late {
            // Nothing was seen of it in this poll.
            true if !may_ask || exchange.is_out_of_time() => ModelState::Unknown,
            true => ModelState::Busy,
            false => ModelState::Ready,
        };
        model.counters = read.counters;
        model.slots = read.slots;
        model.facts = facts(child.props.as_ref(), Some(entry));
        model.process = host(entry);
        Some(model)
    }
}

/// A child's own command line tells its process; the port of the base URL is the router's.
fn host(entry: &ModelEntry) -> ProcessHints {
    ProcessHints {
        behind_proxy: true,
        arguments: entry.status.as_ref().map(|status| status.args.clone()),
        ..ProcessHints::default()
    }
}

/// Whether what is remembered of a model's server still holds: it is loaded, or asleep.
fn keeps_child(entry: &ModelEntry) -> bool {
    let value = entry
        .status
        .as_ref()
        .and_then(|status| status.value.as_deref());
    matches!(value, Some("loaded" | "sleeping"))
}

/// `text` as a value in a query.
fn percent_encoded(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            encoded.push_str(&format!("%{byte:02X}"));
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_encoded_for_a_query() {
        assert_eq!(
            percent_encoded("alpha/one:Q4&x=ü"),
            "alpha%2Fone%3AQ4%26x%3D%C3%BC"
        );
    }
}
