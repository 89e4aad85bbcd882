//! NVIDIA GPUs, as `nvidia-smi` tells of them.
//!
//! It takes up to seconds to start, and then answers for as long as it is let:
//! so one runs all the time, with a thread that reads it, and another for the
//! memory of processes. A poll only looks at what they said last.

use std::collections::BTreeMap;
use std::io::{self, BufRead, BufReader, Read};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use crate::log;
use crate::os;
use crate::snapshot::Gpu;

/// What is asked of each GPU.
const GPU_FIELDS: &str = "index,uuid,driver_version,utilization.gpu,temperature.gpu,\
                          memory.used,memory.total,power.draw,name";
/// What is asked of each process.
const PROCESS_FIELDS: &str = "pid,gpu_uuid,used_gpu_memory";
/// The longest line that is looked at.
const LONGEST_LINE: u64 = 4096;
/// The most GPUs, and processes, that are kept.
const MOST_GPUS: usize = 256;
const MOST_PROCESSES: usize = 4096;
/// How long to wait before it is started again.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(300);
/// `nvidia-smi` counts memory in units of this.
const MIB: f64 = 1048576.0;

/// What the running `nvidia-smi`s said last.
#[derive(Debug)]
pub struct Nvidia {
    said: Arc<Mutex<Said>>,
    /// How long a line counts.
    fresh: Duration,
}

#[derive(Debug, Default)]
struct Said {
    gpus: BTreeMap<u32, (Gpu, Instant)>,
    processes: BTreeMap<(u32, String), (f64, Instant)>,
}

impl Nvidia {
    /// Starts it where it is installed; `None`, and no thread, where it is not.
    pub fn start(interval: Duration) -> Option<Nvidia> {
        let program = installed("nvidia-smi", std::env::var_os("PATH")?)?;
        let period = interval.clamp(Duration::from_secs(1), Duration::from_secs(3600));
        let said = Arc::new(Mutex::new(Said::default()));
        let queries = [
            format!("--query-gpu={GPU_FIELDS}"),
            format!("--query-compute-apps={PROCESS_FIELDS}"),
        ];
        for (query, take) in queries
            .into_iter()
            .zip([Said::take_gpu as fn(&mut Said, &str), Said::take_process])
        {
            let follow = Follow {
                program: program.clone(),
                query,
                period,
                said: Arc::clone(&said),
                take,
            };
            let thread = thread::Builder::new().name("nvidia-smi".to_owned());
            if let Err(error) = thread.spawn(move || follow.run()) {
                log::warn("there is no thread for nvidia-smi", &[("detail", &error)]);
                return None;
            }
        }
        Some(Nvidia {
            said,
            fresh: period * 3 + Duration::from_secs(2),
        })
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
    pub fn memory_of(&self, pid: u32) -> Vec<(String, f64)> {
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
}

impl Said {
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
    let fields: Vec<&str> = line.split(',').map(str::trim).collect();
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
        memory_used: number(used).map(|mib| mib * MIB),
        memory_total: number(total).map(|mib| mib * MIB),
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

fn installed(name: &str, path: impl AsRef<std::ffi::OsStr>) -> Option<PathBuf> {
    std::env::split_paths(&path)
        .map(|folder| folder.join(name))
        .find(|file| file.is_file())
}

/// One `nvidia-smi` that is kept running, and read.
struct Follow {
    program: PathBuf,
    query: String,
    period: Duration,
    said: Arc<Mutex<Said>>,
    take: fn(&mut Said, &str),
}

impl Follow {
    fn run(self) {
        let mut pause = FIRST_PAUSE;
        let mut failed = false;
        loop {
            let started = Instant::now();
            let ended = self.start().and_then(|child| self.read(child));
            // It lasted: it was well.
            if started.elapsed() > self.period * 10 {
                pause = FIRST_PAUSE;
                failed = false;
            }
            if !std::mem::replace(&mut failed, true) {
                let detail = match ended {
                    Ok(()) => "it ended".to_owned(),
                    Err(error) => error.to_string(),
                };
                let query = self.query.split('=').next().unwrap_or_default();
                log::warn(
                    "nvidia-smi does not run; it is started again from time to time",
                    &[("query", &query), ("detail", &detail)],
                );
            }
            thread::sleep(pause);
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    fn start(&self) -> io::Result<Child> {
        let mut command = Command::new(&self.program);
        os::end_with_us(&mut command);
        command
            .arg(&self.query)
            .arg("--format=csv,noheader,nounits")
            .arg(format!("--loop-ms={}", self.period.as_millis()))
            .env("LC_ALL", "C")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
    }

    fn read(&self, mut child: Child) -> io::Result<()> {
        let output = child.stdout.take().ok_or(io::ErrorKind::BrokenPipe)?;
        let mut output = BufReader::new(output);
        let mut line = Vec::new();
        let result = loop {
            line.clear();
            match output
                .by_ref()
                .take(LONGEST_LINE)
                .read_until(b'\n', &mut line)
            {
                Ok(0) => break Ok(()),
                // A piece of an endless line is no line either.
                Ok(_) => (self.take)(&mut lock(&self.said), &String::from_utf8_lossy(&line)),
                Err(error) => break Err(error),
            }
        };
        let _ = child.kill();
        let _ = child.wait();
        result
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gpu_is_a_line_and_what_is_no_number_is_not_known() {
        let (index, whole) = gpu(
            "0, GPU-2ac434d3-1aca-57a0-597d-1d2effdba9f3, 570.124.06, 37, 54, 36537, 81920, 87.31, NVIDIA H100 80GB HBM3\n",
        )
        .unwrap();
        assert_eq!((index, whole.index.as_str()), (0, "0"));
        assert_eq!(whole.utilization, Some(37.0));
        assert_eq!(whole.memory_total, Some(81920.0 * MIB));
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
            Nvidia { said, fresh }
        };
        let now = nvidia(Duration::from_secs(60));
        assert_eq!(now.gpus().len(), 1);
        assert_eq!(now.memory_of(77), [("0".to_owned(), 3.0 * MIB)]);
        assert!(now.memory_of(7).is_empty());
        let stale = nvidia(Duration::ZERO);
        assert!(stale.gpus().is_empty() && stale.memory_of(77).is_empty());
    }
}
