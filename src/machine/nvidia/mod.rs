//! NVIDIA GPUs, from `nvidia-smi`.
//!
//! `nvidia-smi` may take seconds to start, and then prints at an interval. So two instances keep
//! running, one for the GPUs and one for the memory of processes. Each has a thread that reads its
//! output; another thread starts and stops them ([`runtime_power`] explains why). A poll only uses
//! the last readings.

mod query;
mod runtime_power;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use crate::machine::energy::EnergyMeter;
use crate::machine::nvidia::query::Query;
use crate::machine::nvidia::runtime_power::{GpuSelection, RuntimePower};
use crate::machine::procfs::{self, Procfs};
use crate::process::log;
use crate::process::threads::{self, lock};
use crate::settings::Settings;
use crate::snapshot::{Absence, Gpu, GpuMemory, Source, SourceKind};

const GPU_FIELDS: &str = "index,uuid,driver_version,utilization.gpu,temperature.gpu,\
                          memory.used,memory.total,memory.free,power.draw,name";
const PROCESS_FIELDS: &str = "pid,gpu_uuid,used_gpu_memory";
/// How often the GPUs are read: recent ones report the mean power of the last second, so their
/// energy is known only from readings of every second. One costs 0.5 ms of CPU time on an H200.
const GPU_INTERVAL: Duration = Duration::from_secs(1);
/// The most GPUs and processes that are kept.
const MAX_GPUS: usize = 256;
const MAX_PROCESSES: usize = 4096;
/// How often to check which GPUs may be read, at least.
const MAX_CHECK_INTERVAL: Duration = Duration::from_secs(5);
/// The unit of memory in the output.
const MIB: f64 = 1048576.0;
/// How long `nvidia-smi` may report no GPU before it is restarted, at least.
const MAX_SILENCE: Duration = Duration::from_secs(60);
/// GPU memory in use up to which no model is loaded: an idle display has some.
const UNUSED_BYTES: f64 = 64.0 * MIB;

/// The running instances of `nvidia-smi`, and their last readings.
#[derive(Debug)]
pub struct NvidiaSmi {
    readings: Arc<Mutex<NvidiaReadings>>,
    /// How long a reading is fresh.
    fresh_for: Duration,
    /// Whether it reports the PIDs of the machine.
    has_host_pids: bool,
    started: Instant,
}

#[derive(Debug, Default)]
struct NvidiaReadings {
    /// By index.
    gpus: BTreeMap<u32, (Gpu, Instant)>,
    energy: EnergyMeter,
    /// When the last GPU was reported, and whether the log says that they are read.
    gpu_at: Option<Instant>,
    is_read: bool,
    /// Bytes of GPU memory by PID and UUID of the GPU.
    processes: BTreeMap<(u32, String), (f64, Instant)>,
    /// The PCI addresses of GPUs that are not read; `None` before the first check.
    unread: Option<Vec<String>>,
}

impl NvidiaSmi {
    /// Keeps `nvidia-smi` running from now on.
    ///
    /// # Errors
    /// It is not installed; the text says where it was searched.
    pub fn start(settings: &Settings) -> Result<NvidiaSmi, String> {
        let program = query::find_program(std::env::var_os("PATH").as_deref())?;
        let (second, hour) = (Duration::from_secs(1), Duration::from_secs(3600));
        let interval = settings.interval.clamp(second, hour);
        let margin = Duration::from_secs(2);
        let nvidia = NvidiaSmi {
            readings: Arc::default(),
            fresh_for: interval.saturating_mul(3).saturating_add(margin),
            has_host_pids: procfs::is_in_initial_pid_namespace(),
            started: Instant::now(),
        };
        let (readings, fresh_for) = (Arc::clone(&nvidia.readings), nvidia.fresh_for);
        type TakeLine = fn(&mut NvidiaReadings, &str, Instant, Duration);
        let query = |argument: String, interval: Duration, take_line: TakeLine| {
            let readings = Arc::clone(&readings);
            let take_line =
                move |line: &str| take_line(&mut lock(&readings), line, Instant::now(), fresh_for);
            let take_line = Arc::new(take_line);
            Query::new(&program, argument, interval, take_line)
        };
        let mut queries = [
            query(
                format!("--query-gpu={GPU_FIELDS}"),
                GPU_INTERVAL,
                NvidiaReadings::take_gpu,
            ),
            query(
                format!("--query-compute-apps={PROCESS_FIELDS}"),
                interval,
                NvidiaReadings::take_process,
            ),
        ];
        let mut power = RuntimePower::new(&settings.sysfs, &Procfs::new(&settings.procfs));
        let supervise = move || {
            loop {
                let now = Instant::now();
                let selection = power.select(now, |uuid| lock(&readings).is_used(uuid, fresh_for));
                let mut known = lock(&readings);
                known.set_unread(power.unread(), selection == GpuSelection::None);
                known.log_state(now, fresh_for, &selection);
                let silent_since = known.silent_since(now, fresh_for);
                drop(known);
                for query in &mut queries {
                    if let Some(time) = silent_since {
                        query.end_if_started_before(time);
                    }
                    query.supervise(&selection, now);
                }
                thread::sleep(interval.min(MAX_CHECK_INTERVAL));
            }
        };
        if let Err(error) = threads::start("nvidia", supervise) {
            log::warn("cannot start the nvidia-smi thread", &[("detail", &error)]);
        }
        Ok(nvidia)
    }

    /// Whether the first reading is still missing.
    pub fn is_starting(&self) -> bool {
        let readings = lock(&self.readings);
        readings.gpus.is_empty() && readings.unread.as_ref().is_none_or(Vec::is_empty)
    }

    /// Which GPUs and processes are missing and why, for the user.
    pub fn notes(&self) -> Vec<String> {
        let readings = lock(&self.readings);
        let unread = readings.unread.clone().unwrap_or_default();
        let mut notes = Vec::new();
        if !unread.is_empty() {
            notes.push(format!(
                "NVIDIA GPUs that are suspended or may suspend soon are not read: {}",
                unread.join(", ")
            ));
        } else if readings.gpus.is_empty() {
            notes.push(Absence::GpuSilent.why().to_owned());
        }
        if !self.has_host_pids && readings.processes.is_empty() {
            notes.push(Absence::GpuProcessesHidden.note().to_owned());
        }
        notes
    }

    /// The program as a source, and its list of processes if that is hidden.
    pub fn sources(&self) -> Vec<Source> {
        let readings = lock(&self.readings);
        let mut program = Source::new(SourceKind::GpuDriver("nvidia-smi"));
        program.read_at = readings.gpus.values().map(|(_, at)| *at).max();
        let is_fresh = program.read_at.is_some_and(|at| self.is_fresh(&at));
        let has_unread = readings.unread.as_ref().is_some_and(|of| !of.is_empty());
        program.absence = match is_fresh {
            true => None,
            false if has_unread => Some(Absence::GpuSuspended),
            false if self.is_fresh(&self.started) => Some(Absence::GpuStarting),
            false => Some(Absence::GpuSilent),
        };
        let mut sources = vec![program];
        if !self.has_host_pids && readings.processes.is_empty() {
            let kind = SourceKind::GpuDriver("nvidia-smi --query-compute-apps");
            sources.push(Source::missing(kind, Absence::GpuProcessesHidden));
        }
        sources
    }

    fn is_fresh(&self, at: &Instant) -> bool {
        at.elapsed() < self.fresh_for
    }

    /// The GPUs with a fresh reading, by index.
    pub fn gpus(&self) -> Vec<Gpu> {
        let readings = lock(&self.readings);
        let fresh = readings.gpus.values().filter(|(_, at)| self.is_fresh(at));
        fresh.map(|(gpu, _)| gpu.clone()).collect()
    }

    /// Bytes of GPU memory of the process `pid`, by the index of the GPU.
    pub fn memory_of(&self, procfs: &Procfs, pid: u32) -> Vec<(String, f64)> {
        if !self.has_pids_of(procfs) {
            return Vec::new();
        }
        let readings = lock(&self.readings);
        let index = |uuid: &str| {
            let mut gpus = readings.gpus.values().map(|(gpu, _)| gpu);
            let gpu = gpus.find(|gpu| gpu.uuid.as_deref() == Some(uuid))?;
            Some(gpu.index.clone())
        };
        let own = readings.processes.range((pid, String::new())..);
        let own = own.take_while(|((other, _), _)| *other == pid);
        let fresh = own.filter(|(_, (_, at))| self.is_fresh(at));
        let mut memory: Vec<(String, f64)> = fresh
            .filter_map(|((_, uuid), (bytes, _))| Some((index(uuid)?, *bytes)))
            .collect();
        memory.sort_unstable_by(|a, b| a.0.cmp(&b.0));
        memory
    }

    /// Whether the reported PIDs are those of `procfs`. In a container with its own PID namespace,
    /// older drivers report PIDs of the machine. Newer ones (such as 580) report those of the
    /// container, and omit all other processes. So in a container, every reported process must
    /// exist and have an NVIDIA device open.
    fn has_pids_of(&self, procfs: &Procfs) -> bool {
        if self.has_host_pids {
            // Then --procfs has the machine's PIDs too.
            return true;
        }
        let readings = lock(&self.readings);
        let fresh = readings
            .processes
            .iter()
            .filter(|(_, (_, at))| self.is_fresh(at));
        let pids: BTreeSet<u32> = fresh.map(|((pid, _), _)| *pid).collect();
        drop(readings);
        pids.iter()
            .all(|pid| procfs.has_device_open(*pid, "nvidia"))
    }
}

impl NvidiaReadings {
    /// Whether the GPU with this UUID was in use within `time`; any GPU, if the UUID is unknown.
    fn is_used(&self, uuid: Option<&str>, time: Duration) -> bool {
        let fresh = |at: &Instant| at.elapsed() < time;
        let is_it = |other: Option<&str>| uuid.is_none_or(|uuid| other == Some(uuid));
        let gpus = || {
            self.gpus
                .values()
                .filter(|(_, at)| fresh(at))
                .map(|(gpu, _)| gpu)
        };
        let is_known = gpus().any(|gpu| is_it(gpu.uuid.as_deref()));
        let counts = |other: Option<&str>| !is_known || is_it(other);
        let is_busy = |gpu: &Gpu| {
            gpu.utilization.is_some_and(|percent| percent > 0.0)
                || gpu
                    .memory_used
                    .vram
                    .is_some_and(|bytes| bytes > UNUSED_BYTES)
        };
        let mut processes = self.processes.iter();
        gpus().any(|gpu| counts(gpu.uuid.as_deref()) && is_busy(gpu))
            || processes.any(|((_, other), (_, at))| fresh(at) && counts(Some(other)))
    }

    /// Sets which GPUs are not read. If no GPU is read (`is_all`), discards all readings.
    fn set_unread(&mut self, addresses: Vec<String>, is_all: bool) {
        if is_all {
            self.gpus.clear();
            self.processes.clear();
        }
        self.unread = Some(addresses);
    }

    /// Logs when the first GPU is read, and when none is read any more.
    fn log_state(&mut self, now: Instant, fresh_for: Duration, selection: &GpuSelection) {
        let is_fresh = |at: &Instant| now.saturating_duration_since(*at) < fresh_for;
        let is_read = self.gpu_at.as_ref().is_some_and(is_fresh);
        if std::mem::replace(&mut self.is_read, is_read) == is_read {
            return;
        }
        if is_read {
            let mut gpus = self.gpus.values().map(|(gpu, _)| gpu);
            let first = gpus.next().cloned().unwrap_or_default();
            let driver = first.driver.unwrap_or_default();
            log::info(
                "reading NVIDIA GPUs",
                &[
                    ("gpus", &self.gpus.len()),
                    ("first", &first.name.unwrap_or_default()),
                    ("driver", &driver),
                ],
            );
        } else if *selection != GpuSelection::None {
            log::warn(
                "nvidia-smi no longer reports a GPU; their values are absent",
                &[],
            );
        }
    }

    /// If no GPU was reported for a long time: since when, at least.
    fn silent_since(&self, now: Instant, fresh_for: Duration) -> Option<Instant> {
        let time = now.checked_sub(MAX_SILENCE.max(fresh_for))?;
        self.gpu_at.is_none_or(|at| at < time).then_some(time)
    }

    fn take_gpu(&mut self, line: &str, now: Instant, fresh_for: Duration) {
        if let Some((index, mut gpu)) = parse_gpu(line)
            && (self.gpus.len() < MAX_GPUS || self.gpus.contains_key(&index))
        {
            self.energy.measure(&mut gpu, now, fresh_for);
            self.gpus.insert(index, (gpu, now));
            self.gpu_at = Some(now);
        }
    }

    fn take_process(&mut self, line: &str, now: Instant, _: Duration) {
        let Some((pid, uuid, bytes)) = parse_process(line) else {
            return;
        };
        if self.processes.len() >= MAX_PROCESSES {
            let minute = Duration::from_secs(60);
            self.processes.retain(|_, (_, at)| at.elapsed() < minute);
        }
        if self.processes.len() < MAX_PROCESSES {
            self.processes.insert((pid, uuid), (bytes, now));
        }
    }
}

/// Parses a line of `--query-gpu`: the index, and the GPU.
fn parse_gpu(line: &str) -> Option<(u32, Gpu)> {
    // The name comes last, and may contain the separator.
    let fields: Vec<&str> = line.splitn(10, ", ").map(str::trim).collect();
    let [
        index,
        uuid,
        driver,
        utilization,
        temperature,
        used,
        total,
        free,
        power,
        name,
    ] = fields[..]
    else {
        return None;
    };
    let index: u32 = index.parse().ok()?;
    let memory = |mib| GpuMemory::of_one_kind(number(mib).map(|mib| mib * MIB));
    let gpu = Gpu {
        index: index.to_string(),
        name: text(name),
        uuid: text(uuid),
        driver: text(driver),
        utilization: number(utilization).filter(|percent| *percent <= 100.0),
        temperature: number(temperature),
        memory_used: memory(used),
        memory_total: memory(total),
        memory_free: memory(free),
        power: number(power),
        energy: None,
    };
    Some((index, gpu))
}

/// Parses a line of `--query-compute-apps`: PID, UUID of the GPU, bytes of GPU memory.
fn parse_process(line: &str) -> Option<(u32, String, f64)> {
    let fields: Vec<&str> = line.split(',').map(str::trim).collect();
    let [pid, uuid, memory] = fields[..] else {
        return None;
    };
    Some((pid.parse().ok()?, text(uuid)?, number(memory)? * MIB))
}

/// A plain decimal number; `None` for `[N/A]`, `[Not Supported]`, `[Unknown Error]` etc.
fn number(field: &str) -> Option<f64> {
    let is_plain = field
        .bytes()
        .all(|byte| byte.is_ascii_digit() || byte == b'.');
    field.parse().ok().filter(|_| is_plain)
}

fn text(field: &str) -> Option<String> {
    let is_known = !field.is_empty() && !field.starts_with('[') && field != "N/A";
    is_known.then(|| field.chars().take(128).collect())
}

#[cfg(test)]
mod tests;
