//! The machine under a model: the process that holds it, and what that uses.
//!
//! Only for a server on this machine, and only on Linux. The process is found
//! once and kept as long as it lives; what cannot be told for certain is left
//! out, and why is said once.

pub mod cgroup;
pub mod drm;
pub mod gpus;
mod local_addresses;
mod model_file;
pub mod nvidia;
pub mod process_lookup;
pub mod procfs;
pub mod server_arguments;
pub mod sockets;
#[cfg(test)]
mod test_files;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Display;
use std::fs;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use crate::bounds::BoundedDuration;
use crate::bounds::deadline;
use crate::gguf::Header;
use crate::gguf::kv_cache::{self, Slots};
use crate::machine::cgroup::Limits;
use crate::machine::gpus::Gpus;
use crate::machine::local_addresses::Addresses;
use crate::machine::model_file::ModelFile;
use crate::machine::process_lookup::{Connect, Outcome, Search};
use crate::machine::procfs::{Process, Procfs, Status, socket_at};
use crate::machine::server_arguments::Arguments;
use crate::process::file;
use crate::process::log;
use crate::process::procfs_stat::TICKS_PER_SECOND;
use crate::readings::ModelStatus;
use crate::settings::{BaseUrl, Settings};
use crate::snapshot::Model;

/// How long to wait before a process that was not found is looked for again.
const FIRST_PAUSE: Duration = Duration::from_secs(5);
const LONGEST_PAUSE: Duration = Duration::from_secs(300);
/// The most models whose process is looked for in one poll; the others' turn comes at the next.
const MOST_SEARCHES: usize = 32;
/// How long limits stand.
const SECOND_LOOK: Duration = Duration::from_secs(30);

/// What is known of a model from elsewhere that helps to find its process and its file.
#[derive(Clone, Copy, Debug, Default)]
pub struct Hints<'a> {
    /// The model's file, as on its server's command line (`model_path` of `/props`).
    pub model_path: Option<&'a str>,
    /// Slots there are (`total_slots`).
    pub slots: Option<f64>,
    /// Tokens that fit one slot (`n_ctx`).
    pub n_ctx: Option<f64>,
    /// The command line of its server, where a router tells it.
    pub arguments: Option<&'a [String]>,
    /// What it is run for, where the server says so.
    pub mode: Option<&'a str>,
    /// A part of the path of its file that no other model's has, for a server that
    /// listens on nothing that could be found: Docker Model Runner's.
    pub file_part: Option<&'a str>,
    /// The header of its file in words, where that is told: Docker Model Runner's `config.gguf`.
    pub header: Option<&'a BTreeMap<String, String>>,
}

/// The machine under the models of one base URL.
pub struct Machine {
    procfs: Procfs,
    sysfs: PathBuf,
    pid_file: Option<PathBuf>,
    /// The process that the PID file spoke of, and when the file was written.
    said_by_file: Option<(Option<SystemTime>, Process)>,
    server: String,
    host: String,
    port: u16,
    addresses: Addresses,
    connect: Connect,
    /// All processes, once this poll has looked for one.
    search: Option<Search>,
    /// How often this poll has looked for one.
    searches: usize,
    watched: BTreeMap<Key, Watched>,
    gpus: Arc<Gpus>,
    /// What was said in the log.
    said: BTreeSet<String>,
}

/// A model by its name, and what it is run for.
type Key = (String, Option<String>);

fn key(model: &Model) -> Key {
    (model.name.clone(), model.mode.clone())
}

/// What is known of the process of one model.
#[derive(Default)]
struct Watched {
    found: Option<Found>,
    search_at: Option<Instant>,
    pause: Duration,
    /// Why it is not found, where there is something to be done about it.
    note: Option<String>,
}

struct Found {
    process: Process,
    /// The socket that it was found by, and the descriptor that is it.
    socket: Option<(PathBuf, u64)>,
    arguments: Arguments,
    /// Why its variables cannot be read, which may have set what the arguments do not.
    unread: Option<io::Error>,
    limits: Limits,
    limits_at: Instant,
    cpu: Option<(Instant, u64)>,
    file: Option<ModelFile>,
}

/// What is wrong with where the machine's processes are said to be, for people.
pub fn note_on_procfs(settings: &Settings) -> Option<String> {
    let is_empty = cfg!(target_os = "linux") && Procfs::new(&settings.procfs).pids().is_empty();
    is_empty.then(|| {
        let folder = settings.procfs.display();
        format!("no process is in {folder} (--procfs): memory, CPU and threads are not shown")
    })
}

impl Machine {
    /// The machine that `base` may be on.
    pub fn new(base: &BaseUrl, settings: &Settings) -> Machine {
        Machine {
            procfs: Procfs::new(&settings.procfs),
            sysfs: settings.sysfs.clone(),
            pid_file: settings.pid_file.clone(),
            said_by_file: None,
            server: settings.server_label(base),
            host: base.host().to_owned(),
            port: base.port(),
            addresses: Addresses::NotAsked,
            connect: process_lookup::connect,
            search: None,
            searches: 0,
            watched: BTreeMap::new(),
            gpus: Arc::default(),
            said: BTreeSet::new(),
        }
    }

    /// Has the GPUs of this machine looked at as well.
    pub fn with_gpus(mut self, gpus: &Arc<Gpus>) -> Machine {
        self.gpus = Arc::clone(gpus);
        self
    }

    /// Reads what belongs to no model. Called once a poll.
    pub fn refresh(&mut self) {
        self.gpus.refresh();
        self.search = None;
        self.searches = 0;
    }

    /// Puts what the machine tells of a model's process into `model`, in place of
    /// what its server tells. Called once a poll for every model that is loaded.
    pub fn fill(&mut self, model: &mut Model, hints: &Hints) {
        let key = key(model);
        let mut watched = self.watched.remove(&key).unwrap_or_default();
        if cfg!(target_os = "linux") {
            self.keep_or_find(&mut watched, hints);
        }
        if let Some(found) = &mut watched.found {
            found.fill(self, model);
        }
        self.fill_cache(&mut watched, model, hints);
        self.say(&watched);
        self.watched.insert(key, watched);
    }

    /// After how long without work the model's server falls asleep, if its arguments say that.
    pub fn sleep_idle(&self, model: &Model) -> Option<BoundedDuration> {
        let found = self.watched.get(&key(model))?.found.as_ref()?;
        found.arguments.sleep_idle()
    }

    /// Forgets the processes of all models but these: the server is down, or has unloaded them.
    pub fn forget_all_but(&mut self, models: &[Model]) {
        let present: BTreeSet<Key> = models.iter().map(key).collect();
        self.watched.retain(|known, _| present.contains(known));
        if models.is_empty() {
            self.addresses = Addresses::NotAsked;
        }
    }

    /// What is not known of the models and why, for people.
    pub fn notes(&self) -> Vec<String> {
        let notes = self.watched.values().flat_map(Watched::notes);
        notes.collect::<BTreeSet<_>>().into_iter().collect()
    }

    fn say(&mut self, watched: &Watched) {
        let server: &dyn Display = &self.server;
        for note in watched.notes() {
            // As many as a server can sensibly have.
            if self.said.len() < 100 && self.said.insert(note.clone()) {
                log::info(&note, &[("server", server)]);
            }
        }
    }

    fn keep_or_find(&mut self, watched: &mut Watched, hints: &Hints) {
        if let Some(found) = &watched.found {
            if self.is_still(found, hints) {
                return;
            }
            *watched = Watched::default();
        }
        match self.find(watched, hints) {
            None => {}
            Some(Ok((process, _))) if self.is_of_another(process) => {
                watched.note = Some(format!(
                    "process {} is said to hold another model as well: its memory and CPU are \
                     shown with that one",
                    process.pid
                ));
            }
            Some(Ok((process, socket))) => {
                watched.found = Some(Found::new(self, process, socket));
                watched.note = None;
                let pairs: [(&str, &dyn Display); 2] =
                    [("pid", &process.pid), ("server", &self.server)];
                log::info("the process that holds the model is found", &pairs);
            }
            Some(Err(note)) => watched.note = note,
        }
    }

    /// Whether the process was found to hold another model. (That of the model that is looked
    /// for is not among those that are watched just now.)
    fn is_of_another(&self, process: Process) -> bool {
        let mut found = self.watched.values().filter_map(|of| of.found.as_ref());
        found.any(|found| found.process == process)
    }

    /// Looks for the process; `None` while it is not worth looking again.
    fn find(&mut self, watched: &mut Watched, hints: &Hints) -> Option<Outcome> {
        if self.pid_file_is_of(hints) {
            return Some(self.find_by_file());
        }
        let now = Instant::now();
        if watched.search_at.is_some_and(|at| now < at) {
            return None;
        }
        if self.searches == MOST_SEARCHES {
            return None;
        }
        let addresses = self.addresses.of(&self.host)?;
        self.searches = self.searches.saturating_add(1);
        let pause = watched.pause.saturating_mul(2);
        watched.pause = pause.clamp(FIRST_PAUSE, LONGEST_PAUSE);
        watched.search_at = Some(deadline(now, watched.pause));
        let (procfs, port, connect) = (&self.procfs, self.port, self.connect);
        let search = || Search::new(procfs, &addresses, port, connect);
        Some(self.search.get_or_insert_with(search).find(hints))
    }

    fn is_still(&self, found: &Found, hints: &Hints) -> bool {
        let Process { pid, .. } = found.process;
        self.procfs.process(pid) == Some(found.process)
            && found
                .socket
                .as_ref()
                .is_none_or(|(path, inode)| socket_at(path) == Some(*inode))
            && (!self.pid_file_is_of(hints) || self.said_pid().map_or(true, |said| said == pid))
    }

    /// Whether the PID file speaks of the process of this model: not of one of many.
    fn pid_file_is_of(&self, hints: &Hints) -> bool {
        self.pid_file.is_some() && hints.arguments.is_none() && hints.file_part.is_none()
    }

    /// What the PID file says.
    fn said_pid(&self) -> io::Result<u32> {
        let path = self.pid_file.as_deref().unwrap_or(Path::new(""));
        let mut text = String::new();
        file::regular_file(path)?
            .take(64)
            .read_to_string(&mut text)?;
        text.trim()
            .parse()
            .map_err(|_| io::Error::other("it holds no PID"))
    }

    fn find_by_file(&mut self) -> Outcome {
        let file = self.pid_file.as_deref().unwrap_or(Path::new(""));
        let written = fs::metadata(file).and_then(|file| file.modified()).ok();
        let said = self.said_pid().map_err(|error| {
            let file = file.display();
            Some(format!("the PID file {file} cannot be used: {error}"))
        })?;
        let Some(process) = self.procfs.process(said) else {
            let file = file.display();
            return Err(Some(format!("no process has the number in {file}")));
        };
        if let Some((then, known)) = self.said_by_file
            && (then, known.pid) == (written, process.pid)
            && known != process
        {
            return Err(Some(format!(
                "the number in {} is another process's by now",
                file.display()
            )));
        }
        self.said_by_file = Some((written, process));
        Ok((process, None))
    }

    fn fill_cache(&self, watched: &mut Watched, model: &mut Model, hints: &Hints) {
        // Of a model that is put away, the cache is gone too.
        if matches!(
            model.status,
            Some(ModelStatus::Sleeping | ModelStatus::Unloaded | ModelStatus::Loading)
        ) {
            return;
        }
        let whole = |value: Option<f64>| value.filter(|v| *v >= 0.0 && *v < 1e12).map(|v| v as u64);
        let (Some(count), Some(n_ctx)) = (whole(hints.slots), whole(hints.n_ctx)) else {
            return;
        };
        let slots = Slots { count, n_ctx };
        let own = watched
            .found
            .as_ref()
            .filter(|found| found.unread.is_none())
            .and_then(|found| found.arguments.cache());
        let options = match (own, hints.arguments) {
            (Some(options), _) => Some(options),
            // Those of the process are not to be had, or it is no llama-server.
            (None, Some(words)) => Arguments::of_child(words).cache(),
            (None, None) => None,
        };
        let told = hints.header.map(|texts| {
            Header::from_texts(
                texts
                    .iter()
                    .map(|(key, text)| (key.as_str(), text.as_str())),
            )
        });
        let header = match &told {
            Some(header) => Some(header),
            None => hints
                .model_path
                .and_then(|path| watched.found.as_mut()?.header(&self.procfs, path)),
        };
        let tokens: Vec<u64> = model
            .context_tokens
            .iter()
            .filter_map(|(_, tokens)| whole(Some(*tokens)))
            .collect();
        let known = !tokens.is_empty();
        let trained = header.and_then(kv_cache::trained_context);
        if let Some(cells) = kv_cache::cells(options.as_ref(), slots, trained)
            && known
        {
            let used = kv_cache::sum(tokens.iter().copied());
            let all = cells.each as f64 * cells.streams as f64;
            model.kv_cache_ratio = Some((used as f64 / all).min(1.0));
        }
        if let (Some(header), Some(options)) = (header, &options)
            && let Some(cache) = kv_cache::cache(header, options, slots)
        {
            model.kv_cache_limit = Some(cache.limit_bytes() as f64);
            model.kv_cache_usage = known.then(|| cache.used_bytes(&tokens) as f64);
        }
    }
}

impl Watched {
    fn notes(&self) -> impl Iterator<Item = String> {
        let file = self.found.as_ref().and_then(|found| {
            let problem = found.file.as_ref()?.problem()?;
            Some(format!(
                "the size of the KV cache is not known: the model's file {problem}"
            ))
        });
        let rights = self.found.as_ref().and_then(|found| {
            let error = found.unread.as_ref()?;
            found.arguments.are_a_llama_servers().then(|| {
                format!(
                    "the size of the KV cache is not known, as the server's variables may set it, \
                     and cannot be read: {error}; let the exporter run as root or as the server's \
                     user"
                )
            })
        });
        let limits = self.found.as_ref().and_then(|found| {
            (found.limits == Limits::default()).then(|| {
                "how much memory and CPU the process may use is not known: the limits of its \
                 cgroup cannot be seen from here; in a container, share the machine's cgroup \
                 namespace and give its /sys with --sysfs"
                    .to_owned()
            })
        });
        let notes = self.note.clone().into_iter().chain(rights);
        notes.chain(limits).chain(file)
    }
}

impl Found {
    fn new(machine: &Machine, process: Process, socket: Option<(PathBuf, u64)>) -> Found {
        let procfs = &machine.procfs;
        let words = procfs.arguments(process.pid).unwrap_or_default();
        let (variables, unread) = match procfs.variables(process.pid) {
            Ok(variables) => (variables, None),
            Err(error) => (Vec::new(), Some(error)),
        };
        Found {
            process,
            socket,
            arguments: Arguments::new(&words, &variables),
            unread,
            limits: cgroup::of_process(procfs, &machine.sysfs, process.pid),
            limits_at: Instant::now(),
            cpu: None,
            file: None,
        }
    }

    fn fill(&mut self, machine: &Machine, model: &mut Model) {
        let Process { pid, .. } = self.process;
        let (Some(stat), Some(status)) = (machine.procfs.stat(pid), machine.procfs.status(pid))
        else {
            return;
        };
        let now = Instant::now();
        if self.limits_at.elapsed() > SECOND_LOOK {
            self.limits = cgroup::of_process(&machine.procfs, &machine.sysfs, pid);
            self.limits_at = now;
        }
        let put = |place: &mut Option<f64>, value: Option<f64>| *place = value.or(*place);
        put(&mut model.memory_usage, status.resident_bytes);
        put(&mut model.total_memory, self.limits.memory_bytes);
        put(&mut model.threads, status.threads);
        model.process_cpu_seconds = Some(stat.cpu_ticks as f64 / TICKS_PER_SECOND);
        if let Some((then, before)) = self.cpu.replace((now, stat.cpu_ticks)) {
            let seconds = now.duration_since(then).as_secs_f64();
            let used = stat.cpu_ticks.saturating_sub(before) as f64 / TICKS_PER_SECOND;
            let may_use = self.processors(machine, &status);
            let share = may_use.map(|processors| 100.0 * used / seconds / processors);
            let share = share.filter(|share| share.is_finite());
            put(
                &mut model.cpu_utilization,
                share.map(|share| share.min(100.0)),
            );
        }
        model.process_gpu_memory = machine.gpus.memory_of(&machine.procfs, pid);
        if !machine.gpus.known().is_empty() {
            model.gpu_utilization = None;
            model.temperature = None;
        }
    }

    fn processors(&self, machine: &Machine, status: &Status) -> Option<f64> {
        let there = cgroup::processors(&machine.sysfs, status.cpus.as_deref())?;
        Some(self.limits.processors?.min(there))
    }

    /// The header of the model's file, as this process sees the file.
    fn header(&mut self, procfs: &Procfs, path: &str) -> Option<&Header> {
        let outdated = |file: &ModelFile| file.is_outdated(path);
        if self.file.as_ref().is_none_or(outdated) {
            self.file = Some(ModelFile::read(procfs, self.process.pid, path));
        }
        self.file.as_mut()?.header()
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests;
