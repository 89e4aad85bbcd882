//! NVIDIA GPUs, as `nvidia-smi` tells of them.
//!
//! It takes up to seconds to start, and then answers for as long as it is let: so one runs all
//! the time for the GPUs, and one for the memory of processes, each with a thread that reads
//! it; another thread starts and ends them ([`runtime_power`] says why they end). A poll only
//! looks at what they said last.

mod command;
mod runtime_power;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use crate::machine::nvidia::command::Query;
use crate::machine::nvidia::runtime_power::{Ask, RuntimePower};
use crate::machine::procfs::{self, Procfs};
use crate::process::log;
use crate::settings::Settings;
use crate::snapshot::{Gpu, GpuMemory};

/// What is asked of each GPU.
const GPU_FIELDS: &str = "index,uuid,driver_version,utilization.gpu,temperature.gpu,\
                          memory.used,memory.total,power.draw,name";
/// What is asked of each process.
const PROCESS_FIELDS: &str = "pid,gpu_uuid,used_gpu_memory";
/// The most GPUs, and processes, that are kept.
const MOST_GPUS: usize = 256;
const MOST_PROCESSES: usize = 4096;
/// How often it is looked at which GPUs may be asked, at least.
const LONGEST_LOOK: Duration = Duration::from_secs(5);
/// `nvidia-smi` counts memory in units of this.
const MIB: f64 = 1048576.0;
/// Less memory of a GPU than any model takes; a display that does nothing has some in use.
const UNUSED_BYTES: f64 = 64.0 * MIB;

/// What the running `nvidia-smi`s said last.
#[derive(Debug)]
pub struct Nvidia {
    said: Arc<Mutex<Said>>,
    /// How long a line counts.
    fresh: Duration,
    /// Whether its PIDs are the machine's.
    has_pids_of_machine: bool,
}

#[derive(Debug, Default)]
struct Said {
    gpus: BTreeMap<u32, (Gpu, Instant)>,
    processes: BTreeMap<(u32, String), (f64, Instant)>,
    /// GPUs that are not asked, by their PCI address; `None`: that is not known yet.
    left_alone: Option<Vec<String>>,
}

impl Nvidia {
    /// Has it run from now on where it is installed.
    ///
    /// # Errors
    /// The folders in which it was looked for in vain; no thread runs then.
    pub fn start(settings: &Settings) -> Result<Nvidia, Vec<PathBuf>> {
        let program = command::find(std::env::var_os("PATH").as_deref())?;
        let second = Duration::from_secs(1);
        let period = settings.interval.clamp(second, Duration::from_secs(3600));
        let procfs = Procfs::new(&settings.procfs);
        let nvidia = Nvidia {
            said: Arc::default(),
            fresh: period
                .saturating_mul(3)
                .saturating_add(Duration::from_secs(2)),
            has_pids_of_machine: procfs::is_in_initial_namespace(),
        };
        let query = |argument, take| Query::new(&program, argument, period, &nvidia.said, take);
        let mut queries = [
            query(
                format!("--query-gpu={GPU_FIELDS}"),
                Said::take_gpu as fn(&mut Said, &str),
            ),
            query(
                format!("--query-compute-apps={PROCESS_FIELDS}"),
                Said::take_process,
            ),
        ];
        let mut power = RuntimePower::new(&settings.sysfs, &procfs);
        let (said, fresh) = (Arc::clone(&nvidia.said), nvidia.fresh);
        let supervise = move || {
            loop {
                let now = Instant::now();
                let ask = power.ask(now, |uuid| lock(&said).is_used(uuid, fresh));
                lock(&said).leave_alone(power.left_alone(), ask == Ask::Nothing);
                for query in &mut queries {
                    query.supervise(&ask, now);
                }
                thread::sleep(period.min(LONGEST_LOOK));
            }
        };
        let thread = thread::Builder::new().name("nvidia".to_owned());
        if let Err(error) = thread.spawn(supervise) {
            log::warn("there is no thread for nvidia-smi", &[("detail", &error)]);
        }
        Ok(nvidia)
    }

    /// Whether it may still tell something for the first time.
    pub fn is_awaited(&self) -> bool {
        let said = lock(&self.said);
        said.gpus.is_empty() && said.left_alone.as_ref().is_none_or(Vec::is_empty)
    }

    /// What is to be said of the GPUs that are not shown.
    pub fn notes(&self) -> Vec<String> {
        let said = lock(&self.said);
        let left_alone = said.left_alone.clone().unwrap_or_default();
        let mut notes = Vec::new();
        if !left_alone.is_empty() {
            notes.push(format!(
                "NVIDIA GPUs that sleep, or are left alone so that they can, are not read: {}",
                left_alone.join(", ")
            ));
        } else if said.gpus.is_empty() {
            notes.push("nvidia-smi tells of no GPU".to_owned());
        }
        if !self.has_pids_of_machine && said.processes.is_empty() {
            notes.push(
                "nvidia-smi tells of no process: in a container it may tell of its own alone; \
                 share the machine's PID namespace (--pid=host)"
                    .to_owned(),
            );
        }
        notes
    }

    /// The GPUs that it told of lately, by index.
    pub fn gpus(&self) -> Vec<Gpu> {
        let said = lock(&self.said);
        let fresh = |at: &Instant| at.elapsed() < self.fresh;
        said.gpus
            .values()
            .filter(|(_, at)| fresh(at))
            .map(|(gpu, _)| gpu.clone())
            .collect()
    }

    /// Bytes of GPU memory of the process `pid`, by the index of the GPU.
    pub fn memory_of(&self, procfs: &Procfs, pid: u32) -> Vec<(String, f64)> {
        if !self.has_pids_of(procfs) {
            return Vec::new();
        }
        let said = lock(&self.said);
        let index = |uuid: &str| {
            let mut gpus = said.gpus.values().map(|(gpu, _)| gpu);
            let gpu = gpus.find(|gpu| gpu.uuid.as_deref() == Some(uuid))?;
            Some(gpu.index.clone())
        };
        let mut memory: Vec<_> = said
            .processes
            .range((pid, String::new())..)
            .take_while(|((of, _), _)| *of == pid)
            .filter(|(_, (_, at))| at.elapsed() < self.fresh)
            .filter_map(|((_, uuid), (bytes, _))| Some((index(uuid)?, *bytes)))
            .collect();
        memory.sort_unstable_by(|a, b| a.0.cmp(&b.0));
        memory
    }

    /// Whether its PIDs are those of `procfs`. In a container with a PID namespace of its own,
    /// older drivers give the machine's PIDs; newer ones (580 was seen to) give the container's,
    /// and leave out the processes of others. There it is one of these only if every process
    /// that it names is here and has an NVIDIA device open.
    fn has_pids_of(&self, procfs: &Procfs) -> bool {
        let named: BTreeSet<u32> = match self.has_pids_of_machine {
            // What --procfs names is the machine's.
            true => return true,
            false => {
                let said = lock(&self.said);
                let fresh = |at: &Instant| at.elapsed() < self.fresh;
                let named = said.processes.iter().filter(|(_, (_, at))| fresh(at));
                named.map(|((pid, _), _)| *pid).collect()
            }
        };
        named.iter().all(|pid| procfs.has_device(*pid, "nvidia"))
    }
}

impl Said {
    /// Whether something ran lately on the GPU with this UUID; on any, where it is not known.
    fn is_used(&self, uuid: Option<&str>, lately: Duration) -> bool {
        let fresh = |at: &Instant| at.elapsed() < lately;
        let is_it = |of: Option<&str>| uuid.is_none_or(|uuid| of == Some(uuid));
        let gpus = || self.gpus.values().filter(|(_, at)| fresh(at));
        let is_known = gpus().any(|(gpu, _)| is_it(gpu.uuid.as_deref()));
        let works = |gpu: &Gpu| {
            gpu.utilization.is_some_and(|percent| percent > 0.0)
                || gpu
                    .memory_used
                    .vram
                    .is_some_and(|bytes| bytes > UNUSED_BYTES)
        };
        let mut of_it = gpus().filter(|(gpu, _)| !is_known || is_it(gpu.uuid.as_deref()));
        let mut processes = self.processes.iter();
        of_it.any(|(gpu, _)| works(gpu))
            || processes.any(|((_, of), (_, at))| fresh(at) && (!is_known || is_it(Some(of))))
    }

    /// Takes note of the GPUs that are not asked. What was said is gone with the last of them.
    fn leave_alone(&mut self, addresses: Vec<String>, nothing_is_asked: bool) {
        if nothing_is_asked {
            self.gpus.clear();
            self.processes.clear();
        }
        self.left_alone = Some(addresses);
    }

    fn take_gpu(&mut self, line: &str) {
        if let Some((index, gpu)) = gpu(line)
            && (self.gpus.len() < MOST_GPUS || self.gpus.contains_key(&index))
        {
            self.gpus.insert(index, (gpu, Instant::now()));
        }
    }

    fn take_process(&mut self, line: &str) {
        let Some((pid, uuid, bytes)) = process(line) else {
            return;
        };
        if self.processes.len() >= MOST_PROCESSES {
            let minute = Duration::from_secs(60);
            self.processes.retain(|_, (_, at)| at.elapsed() < minute);
        }
        if self.processes.len() < MOST_PROCESSES {
            self.processes.insert((pid, uuid), (bytes, Instant::now()));
        }
    }
}

/// One GPU of `--query-gpu`. A line without an index is none.
fn gpu(line: &str) -> Option<(u32, Gpu)> {
    // The name comes last, and may hold the separator.
    let fields: Vec<&str> = line.splitn(9, ", ").map(str::trim).collect();
    let [
        index,
        uuid,
        driver,
        utilization,
        temperature,
        used,
        total,
        power,
        name,
    ] = fields[..]
    else {
        return None;
    };
    let index: u32 = index.parse().ok()?;
    let gpu = Gpu {
        index: index.to_string(),
        name: word(name),
        uuid: word(uuid),
        driver: word(driver),
        utilization: number(utilization).filter(|percent| *percent <= 100.0),
        temperature: number(temperature),
        memory_used: GpuMemory::of_one_kind(number(used).map(|mib| mib * MIB)),
        memory_total: GpuMemory::of_one_kind(number(total).map(|mib| mib * MIB)),
        power: number(power),
    };
    Some((index, gpu))
}

/// One process of `--query-compute-apps`.
fn process(line: &str) -> Option<(u32, String, f64)> {
    let fields: Vec<&str> = line.split(',').map(str::trim).collect();
    let [pid, uuid, memory] = fields[..] else {
        return None;
    };
    Some((pid.parse().ok()?, word(uuid)?, number(memory)? * MIB))
}

/// `[N/A]`, `[Not Supported]`, `[Unknown Error]` and whatever else is no number is not known.
fn number(field: &str) -> Option<f64> {
    let plain = |byte: u8| byte.is_ascii_digit() || byte == b'.';
    (!field.is_empty() && field.bytes().all(plain))
        .then(|| field.parse().ok())
        .flatten()
}

fn word(field: &str) -> Option<String> {
    let told = !field.is_empty() && !field.starts_with('[') && field != "N/A";
    told.then(|| field.chars().take(128).collect())
}

fn lock(said: &Mutex<Said>) -> MutexGuard<'_, Said> {
    said.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::test_files::Tree;

    #[test]
    fn a_gpu_is_a_line_and_what_is_no_number_is_not_known() {
        let (index, whole) = gpu(
            "0, GPU-2ac434d3-1aca-57a0-597d-1d2effdba9f3, 570.124.06, 37, 54, 36537, 81920, 87.31, NVIDIA H100 80GB HBM3\n",
        )
        .unwrap();
        assert_eq!((index, whole.index.as_str()), (0, "0"));
        assert_eq!(whole.utilization, Some(37.0));
        assert_eq!(whole.memory_total.vram, Some(81920.0 * MIB));
        assert_eq!(whole.power, Some(87.31));
        assert_eq!(whole.name.as_deref(), Some("NVIDIA H100 80GB HBM3"));
        for nothing in [
            "[N/A]",
            "N/A",
            "[Not Supported]",
            "[Unknown Error]",
            "[GPU is lost]",
            "",
            "37 %",
            "3,7",
        ] {
            let line = format!("1, GPU-x, 1, {nothing}, 54, 1, 2, {nothing}, A");
            if let Some((_, gpu)) = gpu(&line) {
                assert_eq!(gpu.utilization, None, "{nothing}");
            }
        }
        let (_, comma) = gpu("0, a, b, 1, 1, 2, 3, 4, Graphics Device, 8GB").unwrap();
        assert_eq!(comma.name.as_deref(), Some("Graphics Device, 8GB"));
        // A share above the whole, as drivers are known to give at times.
        let (_, odd) = gpu("0, a, b, 4294967295, 1, 2, 3, 4, c").unwrap();
        assert_eq!(odd.utilization, None);
        for line in [
            "",
            "No devices were found",
            "Unable to determine the device handle for GPU0000:41:00.0: Unknown Error",
            "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver.",
            "Nicht verfügbar, x, x, x, x, x, x, x, x",
        ] {
            assert_eq!(gpu(line), None, "{line}");
        }
    }

    #[test]
    fn a_process_is_told_with_its_gpu() {
        let line = "3095759, GPU-2ac434d3, 10998\n";
        let told = (3095759, "GPU-2ac434d3".to_owned(), 10998.0 * MIB);
        assert_eq!(process(line), Some(told));
        for line in [
            "3095759, GPU-2ac434d3, [N/A]",
            "3095759, GPU-2ac434d3, [Insufficient Permissions]",
            "[Not Supported], GPU-x, 1",
            "No running processes found",
        ] {
            assert_eq!(process(line), None, "{line}");
        }
    }

    #[test]
    fn what_was_said_long_ago_is_forgotten() {
        let nvidia = |fresh| {
            let mut said = Said::default();
            said.take_gpu("0, GPU-a, 1, 5, 6, 7, 8, 9, A");
            said.take_process("77, GPU-a, 3");
            said.take_process("77, MIG-b, 3");
            said.take_process("770, GPU-a, 3");
            let said = Arc::new(Mutex::new(said));
            Nvidia {
                said,
                fresh,
                has_pids_of_machine: true,
            }
        };
        let tree = Tree::new(&[]);
        let procfs = Procfs::new(&tree.path(""));
        let mut now = nvidia(Duration::from_secs(60));
        assert_eq!(now.gpus().len(), 1);
        assert_eq!(now.memory_of(&procfs, 77), [("0".to_owned(), 3.0 * MIB)]);
        assert!(now.memory_of(&procfs, 7).is_empty());
        let stale = nvidia(Duration::ZERO);
        assert!(stale.gpus().is_empty() && stale.memory_of(&procfs, 77).is_empty());
        // In a container, its PIDs may be those of processes that are not here.
        now.has_pids_of_machine = false;
        assert!(now.memory_of(&procfs, 77).is_empty());
        tree.link("77/fd/3", "/dev/nvidia0");
        assert!(now.memory_of(&procfs, 77).is_empty(), "770 is not here");
        tree.link("770/fd/3", "/dev/nvidia-uvm");
        assert_eq!(now.memory_of(&procfs, 77), [("0".to_owned(), 3.0 * MIB)]);
        tree.link("77/fd/3", "/dev/null");
        assert!(now.memory_of(&procfs, 77).is_empty());
    }
}
