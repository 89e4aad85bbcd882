//! Reads the machine that the models of one base URL run on, if that is this machine. Linux only.
//!
//! A poll reads the GPUs, finds the process of each model and reads its metrics. It reads the
//! header of the model file and computes the KV cache. Sends no HTTP requests: the server's report
//! on a model is passed in as a [`ModelReading`]. Uncertain values are left out, with a note that
//! explains why.

pub mod cgroup;
pub mod discovery;
mod docker_proxy;
pub mod drm;
mod energy;
pub mod gpus;
mod host_lookup;
mod kv_cache_metrics;
mod local_address;
mod model_file;
mod model_runner_store;
pub mod nvidia;
pub mod ollama_store;
pub mod other_servers;
mod pid_file;
pub mod process_lookup;
pub mod procfs;
mod pseudo_files;
pub mod server_arguments;
mod server_key;
mod server_process;
pub mod sockets;
pub mod started_servers;
pub mod url_listener;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::bounds::{BoundedDuration, deadline};
use crate::machine::gpus::Gpus;
use crate::machine::host_lookup::HostLookup;
use crate::machine::pid_file::PidFile;
use crate::machine::process_lookup::{
    Connect, LookupResult, NotFound, ProcessLookup, unix_listener,
};
use crate::machine::procfs::{HeldSocket, ProcessId, Procfs};
use crate::machine::server_process::ServerProcess;
use crate::process::log;
use crate::readings::{LocalServer, ModelKey, ModelReading};
use crate::settings::{BaseUrl, ServerAddress, Settings};
use crate::snapshot::{Absence, Gpu, Model, Source, SourceKind};

/// How long to wait after the first lookup that found no process; doubled each time.
const FIRST_RETRY_DELAY: Duration = Duration::from_secs(5);
const MAX_RETRY_DELAY: Duration = Duration::from_secs(300);
/// The most models whose process is looked up in one poll; the others follow in the next.
const MAX_LOOKUPS_PER_POLL: usize = 32;
/// The most notes that are logged. No real server has as many.
const MAX_LOGGED_NOTES: usize = 100;

/// The machine that the models of one base URL run on.
pub struct Machine {
    procfs: Procfs,
    sysfs: PathBuf,
    gpus: Arc<Gpus>,
    pid_file: Option<PidFile>,
    /// The label `server`.
    server: String,
    address: ServerAddress,
    port: u16,
    addresses: HostLookup,
    connect: Connect,
    /// The process of the server's only model, if it is known beforehand.
    known: Option<(ProcessId, Option<HeldSocket>)>,
    /// The processes of this machine, if listed in this poll.
    lookup: Option<ProcessLookup>,
    /// The number of processes looked up in this poll.
    lookups: usize,
    models: BTreeMap<ModelKey, ModelProcess>,
    /// The process of a model that its server has not named yet.
    unnamed: Option<ModelProcess>,
    logged_notes: BTreeSet<String>,
}

/// The process of a model, or the time of the next lookup.
#[derive(Default)]
struct ModelProcess {
    process: Option<ServerProcess>,
    retry_at: Option<Instant>,
    retry_delay: Duration,
    /// Whether the server has no other model.
    is_only_model: bool,
    /// Why the process was not found, if the user can fix it.
    not_found: Option<NotFound>,
    /// When the process was read last, and how long that took.
    read: Option<(Instant, Duration)>,
}

impl ModelProcess {
    fn notes(&self) -> impl Iterator<Item = String> {
        let process = self.process.iter().flat_map(ServerProcess::notes);
        let not_found = self.not_found.as_ref().map(NotFound::note);
        not_found.into_iter().chain(process)
    }

    /// The process and what belongs to it, as sources.
    fn sources(&self) -> Vec<Source> {
        let mut source = Source::new(SourceKind::Process(None));
        if let Some((at, duration)) = self.read {
            (source.read_at, source.duration) = (Some(at), Some(duration));
        }
        match (&self.process, &self.not_found) {
            (Some(process), _) => {
                source.kind = SourceKind::Process(Some(process.id.pid));
                let mut sources = vec![source];
                sources.extend(process.sources());
                sources
            }
            (None, Some(not_found)) => {
                source.absence = Some(not_found.why);
                vec![source.with_error(&not_found.detail)]
            }
            (None, None) => {
                source.absence = Some(match cfg!(target_os = "linux") {
                    true => Absence::ProcessNotFound,
                    false => Absence::NotLinux,
                });
                vec![source]
            }
        }
    }
}

/// The sources of this machine as a whole: its processes and the drivers of its GPUs.
pub fn sources(settings: &Settings, gpus: &Gpus) -> Vec<Source> {
    let mut procfs = Source::new(SourceKind::Procfs);
    if !cfg!(target_os = "linux") {
        procfs.absence = Some(Absence::NotLinux);
    } else if Procfs::new(&settings.procfs).pids().is_empty() {
        procfs.absence = Some(Absence::ProcfsEmpty);
        procfs = procfs.with_error(&settings.procfs.display().to_string());
    }
    let mut sources = vec![procfs];
    sources.extend(gpus.sources());
    sources
}

/// What cannot be read of this machine because of its system, for the user; `None` on Linux.
pub fn note_on_system() -> Option<&'static str> {
    (!cfg!(target_os = "linux")).then_some(
        "memory, CPU, threads, GPUs and KV cache bytes are read on Linux only, and not on this system",
    )
}

/// A note if `--procfs` has no processes, for the user.
pub fn note_on_procfs(settings: &Settings) -> Option<String> {
    let is_empty = cfg!(target_os = "linux") && Procfs::new(&settings.procfs).pids().is_empty();
    is_empty.then(|| {
        let folder = settings.procfs.display();
        format!("no processes in {folder} (--procfs): memory, CPU and threads are unavailable")
    })
}

impl Machine {
    /// The machine of `base`.
    pub fn new(base: &BaseUrl, settings: &Settings) -> Machine {
        Machine {
            procfs: Procfs::new(&settings.procfs),
            sysfs: settings.sysfs.clone(),
            gpus: Arc::default(),
            pid_file: settings.pid_file.clone().map(PidFile::new),
            server: settings.server_label(base),
            address: base.address().clone(),
            port: base.port(),
            addresses: HostLookup::Idle,
            connect: process_lookup::connect,
            known: None,
            lookup: None,
            lookups: 0,
            models: BTreeMap::new(),
            unnamed: None,
            logged_notes: BTreeSet::new(),
        }
    }

    /// Sets the GPUs to read.
    pub fn with_gpus(mut self, gpus: &Arc<Gpus>) -> Machine {
        self.gpus = Arc::clone(gpus);
        self
    }

    /// The fresh readings of the GPUs.
    pub fn gpus(&self) -> Vec<Gpu> {
        self.gpus.known()
    }

    /// Sets the process of a server that listens at the base URL.
    pub fn with_process(mut self, server: &LocalServer) -> Machine {
        self.known = Some((server.process_id(), server.socket.clone()));
        self
    }

    /// Starts a poll: reads the GPUs, and discards the list of processes.
    pub fn begin_poll(&mut self) {
        self.gpus.refresh();
        self.lookup = None;
        self.lookups = 0;
    }

    /// Sets the values of `model` that this machine knows. Call it once per poll for each loaded
    /// model.
    pub fn fill(&mut self, model: &mut Model, reading: &ModelReading) {
        let key = model.key();
        // Removed, so that `models` holds only the processes of other models.
        let mut entry = self.models.remove(&key).unwrap_or_default();
        entry.is_only_model = is_only_model(reading);
        if cfg!(target_os = "linux") {
            self.find_process(&mut entry, reading);
        }
        if let Some(process) = &mut entry.process {
            let began = Instant::now();
            process.fill(&self.procfs, &self.sysfs, &self.gpus, model);
            entry.read = Some((began, began.elapsed()));
        }
        kv_cache_metrics::fill(model, reading, entry.process.as_mut(), &self.procfs);
        self.log_new_notes(&entry);
        self.models.insert(key, entry);
    }

    /// Sets the values of the known process of `model`, whose server does not answer. Returns its
    /// PID; `None`, and sets nothing, if no process is known or the known one no longer serves.
    pub fn fill_known(&mut self, model: &mut Model) -> Option<u32> {
        let entry = self.models.get_mut(&model.key())?;
        let process = entry.process.as_mut()?;
        let pid_file = self.pid_file.as_ref().filter(|_| entry.is_only_model);
        if !process.still_serves(&self.procfs) || !allows(pid_file, process.id) {
            return None;
        }
        let began = Instant::now();
        process.fill(&self.procfs, &self.sysfs, &self.gpus, model);
        entry.read = Some((began, began.elapsed()));
        Some(process.id.pid)
    }

    /// The PID of a server that has not answered yet, so that its model is unknown.
    pub fn find_unanswered(&mut self) -> Option<u32> {
        let mut entry = ModelProcess {
            is_only_model: true,
            ..ModelProcess::default()
        };
        let found = self.look_up(&mut entry, &ModelReading::default())?;
        found.ok().map(|(process, _)| process.pid)
    }

    /// The name that the server will give its unnamed model, as the arguments of its process say.
    /// Call it once per poll, with `None` if the model has a name.
    pub fn model_name(&mut self, unnamed: Option<&ModelReading>) -> Option<String> {
        let before = self.unnamed.take();
        let reading = unnamed?;
        // The server has one model: the process of the last poll may have its name already.
        let known = self.models.pop_first().map(|(_, entry)| entry);
        let mut entry = known.or(before).unwrap_or_default();
        entry.is_only_model = is_only_model(reading);
        if cfg!(target_os = "linux") {
            self.find_process(&mut entry, reading);
        }
        let name = entry.process.as_ref().and_then(ServerProcess::model_name);
        // Else it keeps the name that it had before a restart, if it has one.
        let before = Some(&reading.name).filter(|name| !name.is_empty());
        match name.clone().or(before.cloned()) {
            Some(name) => drop(self.models.insert((name, None), entry)),
            None => self.unnamed = Some(entry),
        }
        name
    }

    /// How long the model's server is idle before it unloads the model, as its arguments say.
    pub fn sleep_idle(&self, model: &Model) -> Option<BoundedDuration> {
        let process = self.models.get(&model.key())?.process.as_ref()?;
        process.arguments.sleep_idle()
    }

    /// Removes the processes of all other models: they are unloaded, or the server is down.
    pub fn keep_only(&mut self, models: &[Model]) {
        let present: BTreeSet<ModelKey> = models.iter().map(Model::key).collect();
        self.models.retain(|known, _| present.contains(known));
        if models.is_empty() && self.unnamed.is_none() {
            self.addresses = HostLookup::Idle;
        }
    }

    /// The processes of the models with what belongs to them, as sources.
    pub fn sources(&self) -> Vec<Source> {
        let of_model = |(key, entry): (&ModelKey, &ModelProcess)| {
            let model = (!entry.is_only_model).then(|| key.0.clone());
            let sources = entry.sources().into_iter();
            sources.map(move |source| source.of_model(model.as_deref()))
        };
        self.models.iter().flat_map(of_model).collect()
    }

    /// Which values of the models are unknown and why, for the user.
    pub fn notes(&self) -> Vec<String> {
        let notes = self.models.values().flat_map(ModelProcess::notes);
        notes.collect::<BTreeSet<_>>().into_iter().collect()
    }

    fn log_new_notes(&mut self, entry: &ModelProcess) {
        for note in entry.notes() {
            if self.logged_notes.len() < MAX_LOGGED_NOTES && self.logged_notes.insert(note.clone())
            {
                log::info(&note, &[("server", &self.server)]);
            }
        }
    }

    /// Finds the process of a model, unless the known one still serves it.
    fn find_process(&mut self, entry: &mut ModelProcess, reading: &ModelReading) {
        if let Some(process) = &entry.process {
            let pid_file = self.pid_file.as_ref().filter(|_| entry.is_only_model);
            let is_reported = reading.process.id.is_none_or(|id| id == process.id);
            if is_reported && process.still_serves(&self.procfs) && allows(pid_file, process.id) {
                return;
            }
            *entry = ModelProcess {
                is_only_model: entry.is_only_model,
                ..ModelProcess::default()
            };
        }
        let Some(found) = self.look_up(entry, reading) else {
            return;
        };
        let mut others = self
            .models
            .values()
            .filter_map(|other| other.process.as_ref());
        entry.not_found = match found {
            Ok((id, _)) if others.any(|other| other.id == id) => Some(NotFound::new(
                Absence::ProcessShared,
                format!("process {} serves another model too", id.pid),
            )),
            Ok((id, socket)) => {
                entry.process = Some(ServerProcess::new(&self.procfs, &self.sysfs, id, socket));
                log::info(
                    "found the server process; memory and CPU are read from it",
                    &[("pid", &id.pid), ("server", &self.server)],
                );
                None
            }
            Err(why) => why,
        };
    }

    /// Looks up the process of a model; `None` before the next retry is due.
    fn look_up(
        &mut self,
        entry: &mut ModelProcess,
        reading: &ModelReading,
    ) -> Option<LookupResult> {
        if let Some(pid_file) = self.pid_file.as_mut().filter(|_| entry.is_only_model) {
            return Some(pid_file.find(&self.procfs));
        }
        if let Some(id) = reading.process.id {
            let is_alive = self.procfs.process_id(id.pid) == Some(id);
            return Some(is_alive.then_some((id, None)).ok_or(None));
        }
        if let Some(known) = self.known.as_ref().filter(|_| entry.is_only_model) {
            return Some(Ok(known.clone()));
        }
        let now = Instant::now();
        if entry.retry_at.is_some_and(|at| now < at) || self.lookups == MAX_LOOKUPS_PER_POLL {
            return None;
        }
        let addresses = match &self.address {
            ServerAddress::Host { host, .. } => self.addresses.addresses(host)?,
            ServerAddress::Unix(_) => Vec::new(),
        };
        self.lookups = self.lookups.saturating_add(1);
        let delay = entry.retry_delay.saturating_mul(2);
        entry.retry_delay = delay.clamp(FIRST_RETRY_DELAY, MAX_RETRY_DELAY);
        entry.retry_at = Some(deadline(now, entry.retry_delay));
        let lookup = match (&mut self.lookup, &self.address) {
            (Some(lookup), _) => lookup,
            (none, ServerAddress::Unix(path)) => match unix_listener(&self.procfs, path) {
                Ok(listener) => none.insert(ProcessLookup::of_listener(&self.procfs, listener)),
                Err(why) => return Some(Err(why)),
            },
            (none, ServerAddress::Host { .. }) => none.insert(ProcessLookup::new(
                &self.procfs,
                addresses,
                self.port,
                self.connect,
            )),
        };
        Some(lookup.find(reading))
    }
}

/// False if the PID file names another process; true if it cannot be read.
fn allows(pid_file: Option<&PidFile>, process: ProcessId) -> bool {
    let named = pid_file.and_then(|file| file.pid().ok());
    named.is_none_or(|pid| pid == process.pid)
}

/// Whether the server holds only this model, so that the PID file applies to it.
fn is_only_model(reading: &ModelReading) -> bool {
    let hints = &reading.process;
    hints.id.is_none() && hints.arguments.is_none() && hints.file_part.is_none()
}

#[cfg(test)]
mod tests;
