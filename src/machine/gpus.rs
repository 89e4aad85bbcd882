//! The GPUs of this machine, whoever made them: read by one poll for all.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::bounds::deadline;
use crate::machine::drm::Cards;
use crate::machine::nvidia::Nvidia;
use crate::machine::procfs::Procfs;
use crate::settings::Settings;
use crate::snapshot::{Gpu, GpuMemory};

/// What is known of the GPUs.
#[derive(Debug, Default)]
pub struct Gpus {
    nvidia: Option<Nvidia>,
    /// Only polls take this lock: reading may take a while.
    cards: Option<Mutex<Cards>>,
    /// What the cards told last, and when.
    read: Mutex<Option<(Instant, Vec<Gpu>)>>,
    interval: Duration,
    /// Why there may be none, for people.
    notes: Vec<String>,
}

impl Gpus {
    /// Looks what there is, and has `nvidia-smi` run from now on where it is installed. With
    /// `--no-gpu`, and on other systems than Linux, nothing is looked at.
    pub fn start(settings: &Settings) -> Gpus {
        if settings.no_gpu || !cfg!(target_os = "linux") {
            let why = match settings.no_gpu {
                true => "none is read, as --no-gpu says",
                false => "they are read on Linux alone",
            };
            return Gpus {
                notes: vec![why.to_owned()],
                ..Gpus::default()
            };
        }
        let nvidia = Nvidia::start(settings);
        let cards = Cards::find(&settings.sysfs, nvidia.is_ok());
        let mut notes = Vec::new();
        if let Err(folders) = &nvidia {
            let folders: Vec<_> = folders.iter().map(|path| path.display()).collect();
            let folders: Vec<_> = folders.iter().map(ToString::to_string).collect();
            notes.push(format!("no nvidia-smi is in {}", folders.join(", ")));
        }
        if cards.is_empty() {
            let folder = settings.sysfs.join("class/drm");
            notes.push(format!("no AMD or Intel GPU is in {}", folder.display()));
        }
        Gpus {
            nvidia: nvidia.ok(),
            cards: Some(Mutex::new(cards)),
            read: Mutex::default(),
            interval: settings.interval,
            notes,
        }
    }

    /// Where GPUs were looked for in vain, and why those that there are are not shown.
    pub fn notes(&self) -> Vec<String> {
        let of_nvidia = self.nvidia.iter().flat_map(Nvidia::notes);
        self.notes.iter().cloned().chain(of_nvidia).collect()
    }

    /// Reads the cards, unless another poll just did, or does.
    pub fn refresh(&self) {
        let Some(Ok(mut cards)) = self.cards.as_ref().map(Mutex::try_lock) else {
            return;
        };
        let half = self.interval.checked_div(2).unwrap_or_default();
        if self.fresh(half).is_none() {
            let gpus = cards.read();
            *self.read.lock().unwrap_or_else(PoisonError::into_inner) =
                Some((Instant::now(), gpus));
        }
    }

    fn fresh(&self, age: Duration) -> Option<Vec<Gpu>> {
        let read = self.read.lock().unwrap_or_else(PoisonError::into_inner);
        let (at, gpus) = read.as_ref()?;
        (at.elapsed() < age).then(|| gpus.clone())
    }

    /// Waits, for at most `patience`, for what takes a moment to tell for the first time.
    pub fn wait(&self, patience: Duration) {
        let deadline = deadline(Instant::now(), patience);
        while let Some(nvidia) = &self.nvidia
            && nvidia.is_awaited()
            && Instant::now() < deadline
        {
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// What they told last, as far as it is fresh.
    pub fn known(&self) -> Vec<Gpu> {
        let mut gpus: Vec<Gpu> = self.nvidia.iter().flat_map(Nvidia::gpus).collect();
        let age = self
            .interval
            .saturating_mul(3)
            .saturating_add(Duration::from_secs(2));
        gpus.extend(self.fresh(age).unwrap_or_default());
        gpus
    }

    /// GPU memory of the process `pid`, by GPU.
    pub fn memory_of(&self, procfs: &Procfs, pid: u32) -> Vec<(String, GpuMemory)> {
        let of_nvidia = self
            .nvidia
            .iter()
            .flat_map(|nvidia| nvidia.memory_of(procfs, pid));
        let mut memory: Vec<_> = of_nvidia
            .map(|(gpu, bytes)| (gpu, GpuMemory::of_one_kind(Some(bytes))))
            .collect();
        if let Some(cards) = &self.cards {
            let cards = cards.lock().unwrap_or_else(PoisonError::into_inner);
            memory.extend(cards.memory_of(procfs, pid));
        }
        memory
    }
}
