//! The process of a model's server: its memory, CPU, threads, GPU memory and arguments.

use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::gguf::header::ModelHeader;
use crate::gguf::kv_cache::CacheOptions;
use crate::machine::cgroup::{ResourceLimits, online_cpus};
use crate::machine::gpus::Gpus;
use crate::machine::model_file::ModelFile;
use crate::machine::procfs::{HeldSocket, ProcessId, Procfs};
use crate::machine::server_arguments::ServerArguments;
use crate::process::procfs_parsers::TICKS_PER_SECOND;
use crate::snapshot::{Absence, Model, Source, SourceKind};

/// How long resource limits are reused before they are read again.
const LIMITS_VALID_FOR: Duration = Duration::from_secs(30);

/// A process that serves a model.
pub struct ServerProcess {
    /// The process.
    pub id: ProcessId,
    /// When it started, in seconds since 1970. Read once, as the machine's clock may be set later.
    start_time: Option<f64>,
    /// The socket by which it was found.
    socket: Option<HeldSocket>,
    /// Its command line and environment variables.
    pub arguments: ServerArguments,
    /// Why its environment variables are unknown. They may set what the arguments do not.
    variables_error: Option<io::Error>,
    limits: ResourceLimits,
    limits_read_at: Instant,
    /// CPU time at the last poll, in ticks.
    cpu_ticks: Option<(Instant, u64)>,
    model_file: Option<ModelFile>,
}

impl ServerProcess {
    /// Reads the arguments and the resource limits of the process.
    pub fn new(
        procfs: &Procfs,
        sysfs: &Path,
        id: ProcessId,
        socket: Option<HeldSocket>,
    ) -> ServerProcess {
        let words = procfs.command_line(id.pid).unwrap_or_default();
        let (variables, variables_error) = match procfs.llama_variables(id.pid) {
            Ok(variables) => (variables, None),
            Err(error) => (Vec::new(), Some(error)),
        };
        ServerProcess {
            id,
            start_time: procfs
                .boot_time()
                .map(|boot| boot + id.started as f64 / TICKS_PER_SECOND),
            socket,
            arguments: ServerArguments::new(&words, &variables),
            variables_error,
            limits: ResourceLimits::read(procfs, sysfs, id.pid),
            limits_read_at: Instant::now(),
            cpu_ticks: None,
            model_file: None,
        }
    }

    /// Whether it still runs, with its socket open.
    pub fn still_serves(&self, procfs: &Procfs) -> bool {
        procfs.process_id(self.id.pid) == Some(self.id)
            && self.socket.as_ref().is_none_or(HeldSocket::is_open)
    }

    /// Sets the metrics of the process in `model`. They take precedence over those of the server.
    pub fn fill(&mut self, procfs: &Procfs, sysfs: &Path, gpus: &Gpus, model: &mut Model) {
        let pid = self.id.pid;
        let (Some(stat), Some(status)) = (procfs.stat(pid), procfs.status(pid)) else {
            return;
        };
        let now = Instant::now();
        if self.limits_read_at.elapsed() > LIMITS_VALID_FOR {
            self.limits = ResourceLimits::read(procfs, sysfs, pid);
            self.limits_read_at = now;
        }
        let usage = &mut model.process;
        usage.pid = Some(pid);
        usage.memory_usage = status.resident_bytes;
        usage.total_memory = self.limits.memory_bytes;
        usage.thread_count = status.threads;
        usage.start_time = self.start_time;
        usage.cpu_seconds = Some(stat.cpu_ticks as f64 / TICKS_PER_SECOND);
        if let Some((then, before)) = self.cpu_ticks.replace((now, stat.cpu_ticks)) {
            let seconds = now.duration_since(then).as_secs_f64();
            let used = stat.cpu_ticks.saturating_sub(before) as f64 / TICKS_PER_SECOND;
            let cpus = online_cpus(sysfs, status.cpus.as_deref());
            let cpus = cpus
                .zip(self.limits.cpus)
                .map(|(online, limit)| online.min(limit));
            let percent = cpus.map(|cpus| 100.0 * used / seconds / cpus);
            let percent = percent.filter(|percent| percent.is_finite());
            usage.cpu_utilization = percent.map(|p| p.min(100.0));
        }
        usage.gpu_memory = gpus.memory_of(procfs, pid);
        if !gpus.known().is_empty() {
            model.stats.remove_gpu();
        }
    }

    /// The options of its KV cache; `None` if unknown.
    pub fn cache_options(&self) -> Option<CacheOptions> {
        match self.variables_error {
            Some(_) => None,
            None => self.arguments.cache_options(),
        }
    }

    /// How the server calls its model; `None` if unknown.
    pub fn model_name(&self) -> Option<String> {
        match self.variables_error {
            Some(_) => None,
            None => self.arguments.model_name(),
        }
    }

    /// The header of the model file at `path`, once it is read.
    pub fn model_header(&mut self, procfs: &Procfs, path: &str) -> Option<&ModelHeader> {
        let file = match self.model_file.take() {
            Some(file) if !file.is_outdated(path) => file,
            before => ModelFile::read(procfs, self.id.pid, path, before),
        };
        self.model_file.insert(file).header()
    }

    /// Which values of the process are unknown and why, for the user.
    pub fn notes(&self) -> impl Iterator<Item = String> {
        let variables = self.hidden_variables().map(|error| {
            let (why, remedy) = (
                Absence::EnvironmentUnreadable.why(),
                Absence::EnvironmentUnreadable.remedy(),
            );
            format!("{why}: {error}; {remedy}")
        });
        let limits = self.are_limits_unknown();
        let limits = limits.then(|| Absence::LimitsUnknown.note().to_owned());
        let file = self.model_file.as_ref().and_then(ModelFile::problem);
        let file = file.map(|problem| {
            format!("the size of the KV cache is unknown: the model file {problem}")
        });
        [variables, limits, file].into_iter().flatten()
    }

    /// What belongs to the process and says something, as sources.
    pub fn sources(&self) -> Vec<Source> {
        let mut sources = Vec::new();
        if let Some(error) = self.hidden_variables() {
            let source = Source::missing(SourceKind::Environment, Absence::EnvironmentUnreadable);
            sources.push(source.with_error(&error.to_string()));
        }
        if self.are_limits_unknown() {
            sources.push(Source::missing(SourceKind::Cgroup, Absence::LimitsUnknown));
        }
        sources.extend(self.model_file.as_ref().map(ModelFile::source));
        sources
    }

    /// Why its environment variables are unknown, if they may set the size of the KV cache.
    fn hidden_variables(&self) -> Option<&io::Error> {
        let is_server = self.arguments.is_llama_server();
        self.variables_error.as_ref().filter(|_| is_server)
    }

    fn are_limits_unknown(&self) -> bool {
        self.limits == ResourceLimits::default()
    }
}
