//! The GPUs of this machine, whoever made them: read by one poll for all.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::cards::Cards;
use super::nvidia::Nvidia;
use super::process::Procfs;
use crate::settings::Settings;
use crate::snapshot::Gpu;

/// What is known of the GPUs.
#[derive(Debug, Default)]
pub struct Gpus {
    nvidia: Option<Nvidia>,
    /// Only polls take this lock: reading may take a while.
    cards: Option<Mutex<Cards>>,
    /// What the cards told last, and when.
    read: Mutex<Option<(Instant, Vec<Gpu>)>>,
    interval: Duration,
}

impl Gpus {
    /// Looks what there is, and has `nvidia-smi` run from now on where it is installed.
    pub fn start(settings: &Settings) -> Gpus {
        if !cfg!(target_os = "linux") {
            return Gpus::default();
        }
        let nvidia = Nvidia::start(settings.interval);
        let cards = Cards::find(&settings.sysfs, nvidia.is_some());
        Gpus {
            nvidia,
            cards: Some(Mutex::new(cards)),
            read: Mutex::default(),
            interval: settings.interval,
        }
    }

    /// Reads the cards, unless another poll just did, or does.
    pub fn refresh(&self) {
        let Some(Ok(mut cards)) = self.cards.as_ref().map(Mutex::try_lock) else {
            return;
        };
        if self.fresh(self.interval / 2).is_none() {
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
        let deadline = Instant::now() + patience;
        while let Some(nvidia) = &self.nvidia
            && nvidia.gpus().is_empty()
            && Instant::now() < deadline
        {
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// What they told last, as far as it is fresh.
    pub fn known(&self) -> Vec<Gpu> {
        let mut gpus: Vec<Gpu> = self.nvidia.iter().flat_map(Nvidia::gpus).collect();
        let age = self.interval * 3 + Duration::from_secs(2);
        gpus.extend(self.fresh(age).unwrap_or_default());
        gpus
    }

    /// Bytes of GPU memory of the process `pid`, by GPU.
    pub fn memory_of(&self, procfs: &Procfs, pid: u32) -> Vec<(String, f64)> {
        let mut memory: Vec<_> = self
            .nvidia
            .iter()
            .flat_map(|nvidia| nvidia.memory_of(pid))
            .collect();
        if let Some(cards) = &self.cards {
            let cards = cards.lock().unwrap_or_else(PoisonError::into_inner);
            memory.extend(cards.memory_of(procfs, pid));
        }
        memory
    }
}
