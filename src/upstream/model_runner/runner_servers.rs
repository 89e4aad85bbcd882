//! The llama-servers of Docker Model Runner's models, found among the processes of this machine by
//! the digest in the path of their model file, and polled at their own Unix sockets.

use std::collections::BTreeMap;
use std::time::Instant;

use crate::readings::{LocalServer, ModelFacts, ModelReading, ModelState, Update};
use crate::settings::Settings;
use crate::snapshot::Absence;
use crate::upstream::child_server::{ChildPollError, ChildServer};
use crate::upstream::reading::Reading;
use crate::upstream::rotation::Rotation;

const BY_SOCKET: &str =
    "live values of its models come from their own llama-servers, at their Unix sockets";
/// A model's label and mode.
pub type RunnerKey = (String, String);

/// The llama-servers of the models that run.
pub struct RunnerServers {
    settings: Settings,
    /// The llama-servers of this machine that Model Runner may have started.
    local: Vec<LocalServer>,
    known: BTreeMap<RunnerKey, RunnerServer>,
    /// Whether any was ever read: then the next one is likely to be.
    have_been_read: bool,
    rotation: Rotation,
}

/// The llama-server of one model.
struct RunnerServer {
    process: LocalServer,
    /// `None`: it cannot be polled.
    server: Option<Box<ChildServer>>,
}

impl RunnerServers {
    /// None yet.
    pub fn new(settings: &Settings) -> RunnerServers {
        RunnerServers {
            settings: settings.clone(),
            local: Vec::new(),
            known: BTreeMap::new(),
            have_been_read: false,
            rotation: Rotation::new(settings),
        }
    }

    /// Sets the llama-servers of this machine that Model Runner may have started.
    pub fn set_local(&mut self, servers: &[LocalServer]) {
        self.local = servers.to_vec();
    }

    /// Whether the model of this runner is read from its own llama-server.
    pub fn reads(&self, key: &RunnerKey) -> bool {
        let server = self.known.get(key).and_then(|known| known.server.as_ref());
        server.is_some_and(|server| server.is_identified())
    }

    /// Whether any model is.
    pub fn reads_any(&self) -> bool {
        self.known.keys().any(|key| self.reads(key))
    }

    /// When to poll before the next regular poll, if at all.
    pub fn extra_poll_at(&self) -> Option<Instant> {
        let servers = self
            .known
            .values()
            .filter_map(|known| known.server.as_ref());
        servers.filter_map(|server| server.extra_poll_at()).min()
    }

    /// Finds the llama-servers of `models`, which have loaded, polls them until `deadline`, and adds
    /// to each model what its own server reports.
    pub fn poll(
        &mut self,
        models: &mut [&mut ModelReading],
        deadline: Instant,
        reading: &mut Reading,
    ) {
        let keys: Vec<RunnerKey> = models.iter().map(|model| key(model)).collect();
        self.known.retain(|known, _| keys.contains(known));
        self.rotation
            .begin(models, |model| &model.name, Instant::now(), deadline);
        for model in models {
            let key = key(model);
            let process = match self.process_of(model) {
                Ok(process) => process.clone(),
                Err(why) => {
                    self.known.remove(&key);
                    reading.lacks_server(&model.name, why);
                    continue;
                }
            };
            model.process.id = Some(process.process_id());
            let is_same = |known: &RunnerServer| known.process == process;
            if !self.known.get(&key).is_some_and(is_same) {
                let server = ChildServer::of_process(&model.name, &process, &self.settings);
                let server = server.map(Box::new);
                self.known
                    .insert(key.clone(), RunnerServer { process, server });
            }
            if let Some(known) = self.known.get_mut(&key) {
                let may_poll = self.rotation.may_poll(&model.name, Instant::now());
                if let Some(why) = known.poll(model, may_poll, deadline, reading) {
                    reading.lacks_server(&model.name, why);
                }
            }
        }
        self.have_been_read |= self.reads_any();
        reading.notes.extend(self.reads_any().then_some(BY_SOCKET));
    }

    /// Sets the process of a model that is still loading.
    pub fn set_process(&self, model: &mut ModelReading) {
        let process = self.process_of(model).ok();
        model.process.id = process.map(LocalServer::process_id);
    }

    /// Whether a model that is loading is likely to be read from its own llama-server.
    pub fn may_read(&self, model: &ModelReading) -> bool {
        let process = self.process_of(model).ok();
        self.have_been_read
            || process.is_some_and(|process| !matches!(process.address, Err(Some(_))))
    }

    /// The only process that runs the model's file in its mode.
    fn process_of(&self, model: &ModelReading) -> Result<&LocalServer, Absence> {
        let digest = model
            .process
            .file_part
            .as_deref()
            .ok_or(Absence::RunnerNotSeen)?;
        let runs = |server: &&LocalServer| {
            let path = server.model_path.as_deref().unwrap_or_default();
            path.split('/').any(|part| part == digest) && model.mode.as_deref() == Some(server.mode)
        };
        let mut found = self.local.iter().filter(runs);
        match (found.next(), found.next()) {
            (Some(only), None) => Ok(only),
            (None, _) => Err(Absence::RunnerNotSeen),
            _ => Err(Absence::RunnerAmbiguous),
        }
    }
}

impl RunnerServer {
    /// Polls it, and adds what it reports to `model`; returns why it cannot be polled.
    fn poll(
        &mut self,
        model: &mut ModelReading,
        may_poll: bool,
        deadline: Instant,
        reading: &mut Reading,
    ) -> Option<Absence> {
        let Some(server) = &mut self.server else {
            // Without an error to show, it does not listen yet.
            return matches!(self.process.address, Err(Some(_)))
                .then_some(Absence::RunnerNotAllowed);
        };
        model.counters = Update::Stale;
        if !may_poll {
            return None;
        }
        match server.poll(&model.name, deadline, reading) {
            Ok(read) => add(read, model),
            Err(ChildPollError::Now(ModelState::Unknown)) => {}
            Err(ChildPollError::Now(state)) => model.state = state,
            Err(ChildPollError::Unreachable | ChildPollError::OtherEngine) => {
                model.counters = Update::Absent;
                self.server = None;
                return Some(Absence::RunnerNotAllowed);
            }
        }
        None
    }
}

/// Adds what the model's own server reports. Names and the description stay as Model Runner gives
/// them, also while the server cannot be reached.
fn add(read: ModelReading, model: &mut ModelReading) {
    let facts = &read.facts;
    model.state = read.state;
    model.facts = ModelFacts {
        slots: facts.slots,
        max_context_size: facts.max_context_size.or(model.facts.max_context_size),
        training_context: facts.training_context.or(model.facts.training_context),
        size: facts.size.or(model.facts.size),
        parameters: facts.parameters.or(model.facts.parameters),
        path: facts.path.clone(),
        ..model.facts.clone()
    };
    model.counters = read.counters;
    model.slots = read.slots;
    model.stats = read.stats;
}

/// The key of a model that runs.
pub fn key(model: &ModelReading) -> RunnerKey {
    (model.name.clone(), model.mode.clone().unwrap_or_default())
}
