//! The machine under a model: the process that holds it, and what that uses.
//!
//! Only for a server on this machine, and only on Linux. The process is found
//! once and kept as long as it lives; what cannot be told for certain is left
//! out, and why is said once.

pub mod arguments;
pub mod cards;
pub mod gpus;
pub mod limits;
pub mod nvidia;
pub mod process;
#[cfg(test)]
mod tree;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Display;
use std::io;
use std::net::{IpAddr, Ipv6Addr, ToSocketAddrs, UdpSocket};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::{Duration, Instant};

use self::arguments::Arguments;
use self::gpus::Gpus;
use self::limits::Limits;
use self::process::{Listener, Process, Procfs, Status, socket_at};
use crate::gguf::kv::{self, Slots};
use crate::gguf::{self, Header};
use crate::log;
use crate::settings::{BaseUrl, Settings};
use crate::snapshot::{Model, Status as ModelStatus};

/// `USER_HZ`: what Linux counts processor time in, 100 on every architecture that Rust has.
const TICKS_PER_SECOND: f64 = 100.0;
/// How long to wait before a process that was not found is looked for again.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// How long limits, and a header that could not be read, stand.
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
    /// The user has said that the processes are to be looked for there.
    given_procfs: bool,
    pid_file: Option<PathBuf>,
    server: String,
    host: String,
    port: u16,
    here: Here,
    watched: BTreeMap<String, Watched>,
    gpus: Arc<Gpus>,
    /// What was said in the log.
    said: BTreeSet<String>,
}

/// Whether the base URL's host is this machine.
enum Here {
    NotAsked,
    /// A name is being looked up, which may take long.
    Asked(Receiver<bool>),
    Known(bool),
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

/// A process, and the descriptor and the number of the socket that it was found by.
type Held = (Process, Option<(PathBuf, u64)>);

struct Found {
    process: Process,
    /// The socket that it was found by, and the descriptor that is it.
    socket: Option<(PathBuf, u64)>,
    arguments: io::Result<Arguments>,
    limits: Limits,
    limits_at: Instant,
    cpu: Option<(Instant, u64)>,
    header: Option<(String, Result<Header, gguf::Error>, Instant)>,
}

const ADVICE: &str = "memory and CPU are not shown; let the exporter run as root or as the \
                      server's user, or name the process with --pid-file";

impl Machine {
    /// The machine that `base` may be on.
    pub fn new(base: &BaseUrl, settings: &Settings) -> Machine {
        Machine {
            procfs: Procfs::new(&settings.procfs),
            sysfs: settings.sysfs.clone(),
            given_procfs: settings.procfs != Path::new("/proc"),
            pid_file: settings.pid_file.clone(),
            server: base.server(),
            host: base.host().to_owned(),
            port: base.port(),
            here: Here::NotAsked,
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
    pub fn refresh(&self) {
        self.gpus.refresh();
    }

    /// Puts what the machine tells of a model's process into `model`, in place of
    /// what its server tells. Called once a poll for every model that is loaded.
    pub fn fill(&mut self, model: &mut Model, hints: &Hints) {
        if !cfg!(target_os = "linux") {
            return;
        }
        let mut watched = self.watched.remove(&model.name).unwrap_or_default();
        self.keep_or_find(&mut watched, hints);
        if let Some(found) = &mut watched.found {
            found.fill(self, model);
        }
        self.fill_cache(&mut watched, model, hints);
        self.say(&watched);
        self.watched.insert(model.name.clone(), watched);
    }

    /// After how long without work the model's server falls asleep, if its arguments say that.
    pub fn sleep_idle(&self, model: &str) -> Option<Duration> {
        let found = self.watched.get(model)?.found.as_ref()?;
        found.arguments.as_ref().ok()?.sleep_idle()
    }

    /// Forgets the processes of all models but these: the server is down, or has unloaded them.
    pub fn forget_all_but(&mut self, models: &[Model]) {
        self.watched
            .retain(|name, _| models.iter().any(|model| model.name == *name));
        if models.is_empty() {
            self.here = Here::NotAsked;
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
        let now = Instant::now();
        if watched.search_at.is_some_and(|at| now < at) {
            return;
        }
        match self.find(hints) {
            Ok((process, socket)) => {
                watched.found = Some(Found::new(self, process, socket));
                watched.note = None;
                let pairs: [(&str, &dyn Display); 2] =
                    [("pid", &process.pid), ("server", &self.server)];
                log::info("the process that holds the model is found", &pairs);
            }
            Err(note) => {
                watched.note = note;
                watched.pause = (watched.pause * 2).clamp(FIRST_PAUSE, LONGEST_PAUSE);
                watched.search_at = Some(now + watched.pause);
            }
        }
    }

    fn is_still(&self, found: &Found, hints: &Hints) -> bool {
        let Process { pid, .. } = found.process;
        self.procfs.process(pid) == Some(found.process)
            && found
                .socket
                .as_ref()
                .is_none_or(|(path, inode)| socket_at(path) == Some(*inode))
            && (hints.arguments.is_some() || self.said_pid().is_none_or(|said| said == pid))
    }

    /// What the PID file says.
    fn said_pid(&self) -> Option<u32> {
        let text = process::read_text(self.pid_file.as_ref()?, 64).ok()?;
        text.trim().parse().ok()
    }

    /// Finds the process, or says why not where there is something to be done about it.
    fn find(&mut self, hints: &Hints) -> Result<Held, Option<String>> {
        let child = hints.arguments.map(|words| Arguments::new(words, &[]));
        if child.is_none()
            && let Some(file) = &self.pid_file
        {
            let process = self.said_pid().and_then(|pid| self.procfs.process(pid));
            return match process {
                Some(process) => Ok((process, None)),
                None => Err(Some(format!(
                    "no process has the number in {}",
                    file.display()
                ))),
            };
        }
        if let Some(part) = hints.file_part {
            let is_it = |arguments: &Arguments| {
                arguments.are_a_llama_servers()
                    && arguments.model().is_some_and(|path| path.contains(part))
            };
            return self.only(is_it, &[], "called with the model's file");
        }
        let port = match &child {
            Some(arguments) => arguments.port().ok_or(None)?,
            None => self.port,
        };
        if self.is_here() {
            let socket = child.as_ref().and_then(Arguments::socket);
            let listeners = match socket {
                Some(path) => self.procfs.unix_listeners(path),
                None => self.procfs.tcp_listeners(port),
            };
            if listeners.is_empty() {
                return Err(None);
            }
            let (holders, all_seen) = self.holders(&listeners);
            match holders.len() {
                0 if all_seen => Err(None),
                0 => self.by_command_line(port, &listeners),
                _ => self.one_of(holders),
            }
        } else if self.given_procfs {
            // In another network: what it is called with tells.
            let model = hints.model_path;
            let is_it = |arguments: &Arguments| {
                arguments.are_a_llama_servers()
                    && match (model, arguments.model()) {
                        (Some(path), Some(given)) => path == given,
                        _ => arguments.port() == Some(port),
                    }
            };
            self.only(is_it, &[], "called with this port and model")
        } else {
            Err(None)
        }
    }

    /// The processes that hold one of the sockets, and whether every process could be looked at.
    fn holders(&self, listeners: &[Listener]) -> (Vec<Held>, bool) {
        let inodes: Vec<u64> = listeners.iter().map(|listener| listener.inode).collect();
        let mut holders = Vec::new();
        let mut all_seen = true;
        for pid in self.procfs.pids() {
            match self.procfs.holds(pid, &inodes) {
                Ok(Some(socket)) => {
                    let process = self.procfs.process(pid);
                    holders.extend(process.map(|process| (process, Some(socket))));
                }
                Ok(None) => {}
                Err(error) => all_seen &= error.kind() != io::ErrorKind::PermissionDenied,
            }
        }
        (holders, all_seen)
    }

    /// The one holder of a socket; of several, which inherited it, the one that is a llama-server.
    fn one_of(&self, mut holders: Vec<Held>) -> Result<Held, Option<String>> {
        if holders.len() > 1 {
            holders.retain(|(process, _)| {
                let words = self.procfs.arguments(process.pid).unwrap_or_default();
                Arguments::new(&words, &[]).are_a_llama_servers()
            });
        }
        match holders.pop() {
            Some(held) if holders.is_empty() => Ok(held),
            _ => Err(Some(format!(
                "several processes hold the server's socket: {ADVICE}"
            ))),
        }
    }

    fn by_command_line(&self, port: u16, listeners: &[Listener]) -> Result<Held, Option<String>> {
        let uids: Vec<u32> = listeners.iter().filter_map(|l| l.uid).collect();
        let is_it = |arguments: &Arguments| {
            arguments.name_port(port)
                || (arguments.are_a_llama_servers() && arguments.port() == Some(port))
        };
        self.only(is_it, &uids, "called with this port")
    }

    /// The only process that was called so, by one of the users `uids` where that is known.
    fn only(
        &self,
        is_it: impl Fn(&Arguments) -> bool,
        uids: &[u32],
        which: &str,
    ) -> Result<Held, Option<String>> {
        let of_user = |pid: &u32| {
            uids.is_empty() || {
                let uid = self.procfs.status(*pid).and_then(|status| status.uid);
                uid.is_some_and(|uid| uids.contains(&uid))
            }
        };
        let called = |pid: &u32| {
            let words = self.procfs.arguments(*pid).unwrap_or_default();
            is_it(&Arguments::new(&words, &[]))
        };
        let own = std::process::id();
        let mut found = self.procfs.pids();
        found.retain(|pid| *pid != own && called(pid) && of_user(pid));
        match found[..] {
            [pid] => match self.procfs.process(pid) {
                Some(process) => Ok((process, None)),
                None => Err(None),
            },
            [] => Err(Some(format!("no process is {which}: {ADVICE}"))),
            _ => Err(Some(format!(
                "{} processes are {which}: {ADVICE}",
                found.len()
            ))),
        }
    }

    fn is_here(&mut self) -> bool {
        match &self.here {
            Here::Known(here) => return *here,
            Here::Asked(answer) => match answer.try_recv() {
                Ok(here) => self.here = Here::Known(here),
                Err(mpsc::TryRecvError::Empty) => return false,
                Err(mpsc::TryRecvError::Disconnected) => self.here = Here::Known(false),
            },
            Here::NotAsked => {
                let host = self.host.trim_matches(['[', ']']);
                if host == "localhost" {
                    self.here = Here::Known(true);
                } else if let Ok(address) = host.parse::<IpAddr>() {
                    self.here = Here::Known(is_own(address));
                } else {
                    self.here = Here::Asked(look_up(host));
                }
            }
        }
        matches!(self.here, Here::Known(true))
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
            .and_then(|found| found.arguments.as_ref().ok()?.cache());
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
                .and_then(|path| watched.found.as_mut()?.header(self, path)),
        };
        let tokens: Vec<u64> = model
            .context_tokens
            .iter()
            .filter_map(|(_, tokens)| whole(Some(*tokens)))
            .collect();
        let known = !tokens.is_empty();
        let trained = header.and_then(kv::trained_context);
        if let Some(cells) = kv::cells(options.as_ref(), slots, trained)
            && known
        {
            let used: u64 = tokens.iter().sum();
            let all = (cells.each * cells.streams) as f64;
            model.kv_cache_ratio = Some((used as f64 / all).min(1.0));
        }
        if let (Some(header), Some(options)) = (header, &options)
            && let Some(cache) = kv::cache(header, options, slots)
        {
            model.kv_cache_limit = Some(cache.limit_bytes() as f64);
            model.kv_cache_usage = known.then(|| cache.used_bytes(&tokens) as f64);
        }
    }
}

impl Watched {
    fn notes(&self) -> impl Iterator<Item = String> {
        let file = self.found.as_ref().and_then(|found| {
            let (_, result, _) = found.header.as_ref()?;
            let error = result.as_ref().err()?;
            Some(format!(
                "the size of the KV cache is not known: the model's file {error}"
            ))
        });
        let rights = self.found.as_ref().and_then(|found| {
            let error = found.arguments.as_ref().err()?;
            Some(format!(
                "the size of the KV cache is not known, as the server's variables may set it, and \
                 cannot be read: {error}; let the exporter run as root or as the server's user"
            ))
        });
        self.note.clone().into_iter().chain(rights).chain(file)
    }
}

impl Found {
    fn new(machine: &Machine, process: Process, socket: Option<(PathBuf, u64)>) -> Found {
        let procfs = &machine.procfs;
        let arguments = || {
            let words = procfs.arguments(process.pid)?;
            Ok(Arguments::new(&words, &procfs.variables(process.pid)?))
        };
        Found {
            process,
            socket,
            arguments: arguments(),
            limits: limits::of_process(procfs, &machine.sysfs, process.pid),
            limits_at: Instant::now(),
            cpu: None,
            header: None,
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
            self.limits = limits::of_process(&machine.procfs, &machine.sysfs, pid);
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
        let there = limits::processors(&machine.sysfs, status.cpus.as_deref())?;
        Some(
            self.limits
                .quota_cpus
                .map_or(there, |quota| quota.min(there)),
        )
    }

    /// The header of the model's file, as this process sees the file.
    fn header(&mut self, machine: &Machine, path: &str) -> Option<&Header> {
        let known = self.header.as_ref().is_some_and(|(of, result, at)| {
            of == path && (result.is_ok() || at.elapsed() < SECOND_LOOK)
        });
        if !known {
            let pid = self.process.pid;
            let part = gguf::first_part(Path::new(path));
            let file = match part.strip_prefix("/") {
                Ok(below) => machine.procfs.of(pid, "root").join(below),
                Err(_) => machine.procfs.of(pid, "cwd").join(part),
            };
            let result = Header::read(&file);
            self.header = Some((path.to_owned(), result, Instant::now()));
        }
        self.header.as_ref()?.1.as_ref().ok()
    }
}

/// Whether `address` is one of this machine's own.
fn is_own(address: IpAddr) -> bool {
    let any = match address {
        IpAddr::V4(address) => address.is_unspecified(),
        IpAddr::V6(address) => address == Ipv6Addr::UNSPECIFIED,
    };
    // Only an own address can be bound to.
    any || UdpSocket::bind((address, 0)).is_ok()
}

/// Looks up a name in a thread of its own: the system's resolver cannot be interrupted.
fn look_up(host: &str) -> Receiver<bool> {
    let (sender, receiver) = mpsc::channel();
    let host = host.to_owned();
    // Without a thread the answer is no.
    let _ = thread::Builder::new()
        .name("where".to_owned())
        .spawn(move || {
            let mut addresses = (host.as_str(), 0).to_socket_addrs().into_iter().flatten();
            let _ = sender.send(addresses.any(|address| is_own(address.ip())));
        });
    receiver
}

#[cfg(all(test, target_os = "linux"))]
mod tests;
