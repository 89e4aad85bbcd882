//! The GPUs of this machine, from all vendors. Shared by the pollers of all base URLs.

use std::sync::Mutex;
use std::time::{Duration, Instant};

use crate::bounds::deadline;
use crate::machine::drm::DrmCards;
use crate::machine::energy::EnergyMeter;
use crate::machine::nvidia::NvidiaSmi;
use crate::machine::procfs::Procfs;
use crate::process::threads::lock;
use crate::settings::Settings;
use crate::snapshot::{Absence, Gpu, GpuMemory, Source, SourceKind};

/// All GPUs, and their last readings.
#[derive(Debug, Default)]
pub struct Gpus {
    nvidia: Option<NvidiaSmi>,
    /// Locked only by polls, because reading may be slow.
    cards: Option<Mutex<DrmCards>>,
    /// The last reading of the cards, and when it was taken.
    card_readings: Mutex<Option<(Instant, Vec<Gpu>)>>,
    /// The energy that the cards have used so far.
    energy: Mutex<EnergyMeter>,
    interval: Duration,
    /// The drivers that are not there.
    missing: Vec<Source>,
}

impl Gpus {
    /// Finds the GPUs, and keeps `nvidia-smi` running if it is installed. Finds none with
    /// `--no-gpu`, and on systems other than Linux.
    pub fn start(settings: &Settings) -> Gpus {
        if settings.no_gpu || !cfg!(target_os = "linux") {
            let why = match settings.no_gpu {
                true => Absence::GpuOff,
                false => Absence::NotLinux,
            };
            return Gpus {
                missing: vec![Source::missing(SourceKind::GpuDriver("all"), why)],
                ..Gpus::default()
            };
        }
        let nvidia = NvidiaSmi::start(settings);
        let cards = DrmCards::find(&settings.sysfs, nvidia.is_ok());
        let mut missing = Vec::new();
        if let Err(why) = &nvidia {
            let source = Source::missing(SourceKind::GpuDriver("nvidia-smi"), Absence::NoNvidiaSmi);
            missing.push(source.with_error(why));
        }
        if cards.is_empty() {
            let folder = settings.sysfs.join("class/drm");
            let source = Source::missing(SourceKind::GpuDriver("drm"), Absence::NoGpu);
            let why = format!("no AMD or Intel GPU in {}", folder.display());
            missing.push(source.with_error(&why));
        }
        Gpus {
            nvidia: nvidia.ok(),
            cards: Some(Mutex::new(cards)),
            card_readings: Mutex::default(),
            energy: Mutex::default(),
            interval: settings.interval,
            missing,
        }
    }

    /// Where no GPU was found, and which GPUs are not read, for the user.
    pub fn notes(&self) -> Vec<String> {
        let nvidia = self.nvidia.iter().flat_map(NvidiaSmi::notes);
        let missing = self.missing.iter().map(|source| {
            let why = source.absence.map_or("", Absence::why);
            source.error.as_deref().unwrap_or(why).to_owned()
        });
        missing.chain(nvidia).collect()
    }

    /// The drivers of GPUs, as sources.
    pub fn sources(&self) -> Vec<Source> {
        let nvidia = self.nvidia.iter().flat_map(NvidiaSmi::sources);
        let mut sources: Vec<_> = nvidia.chain(self.missing.iter().cloned()).collect();
        let cards = lock(&self.card_readings);
        let at = cards.as_ref().filter(|(_, gpus)| !gpus.is_empty());
        sources.extend(at.map(|(at, _)| Source {
            read_at: Some(*at),
            ..Source::new(SourceKind::GpuDriver("drm"))
        }));
        sources
    }

    /// Reads the cards, unless another poll has just read them, or is reading them.
    pub fn refresh(&self) {
        let Some(Ok(mut cards)) = self.cards.as_ref().map(Mutex::try_lock) else {
            return;
        };
        let half = self.interval.checked_div(2).unwrap_or_default();
        if self.card_readings_within(half).is_none() {
            let (mut gpus, now) = (cards.read(), Instant::now());
            let mut energy = lock(&self.energy);
            for gpu in &mut gpus {
                energy.measure(gpu, now, self.fresh_for());
            }
            *lock(&self.card_readings) = Some((now, gpus));
        }
    }

    /// How long a reading of the cards is fresh.
    fn fresh_for(&self) -> Duration {
        let margin = Duration::from_secs(2);
        self.interval.saturating_mul(3).saturating_add(margin)
    }

    fn card_readings_within(&self, age: Duration) -> Option<Vec<Gpu>> {
        let readings = lock(&self.card_readings);
        let (at, gpus) = readings.as_ref()?;
        (at.elapsed() < age).then(|| gpus.clone())
    }

    /// Waits for the first output of `nvidia-smi`, for at most `time`.
    pub fn wait(&self, time: Duration) {
        let deadline = deadline(Instant::now(), time);
        while self.nvidia.as_ref().is_some_and(NvidiaSmi::is_starting) && Instant::now() < deadline
        {
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// The fresh readings.
    pub fn known(&self) -> Vec<Gpu> {
        let mut gpus: Vec<Gpu> = self.nvidia.iter().flat_map(NvidiaSmi::gpus).collect();
        let cards = self.card_readings_within(self.fresh_for());
        gpus.extend(cards.unwrap_or_default());
        gpus
    }

    /// GPU memory of the process `pid`, by GPU.
    pub fn memory_of(&self, procfs: &Procfs, pid: u32) -> Vec<(String, GpuMemory)> {
        let nvidia = self
            .nvidia
            .iter()
            .flat_map(|nvidia| nvidia.memory_of(procfs, pid));
        let nvidia = nvidia.map(|(gpu, bytes)| (gpu, GpuMemory::of_one_kind(Some(bytes))));
        let mut memory: Vec<_> = nvidia.collect();
        if let Some(cards) = &self.cards {
            let cards = lock(cards);
            memory.extend(cards.memory_of(procfs, pid));
        }
        memory
    }
}
