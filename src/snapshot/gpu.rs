//! What is known of one GPU of this machine.

/// What is known of one GPU of this machine.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Gpu {
    /// The label `gpu`.
    pub index: String,
    /// Its name.
    pub name: Option<String>,
    /// Its UUID.
    pub uuid: Option<String>,
    /// The version of its driver, or the driver's name.
    pub driver: Option<String>,
    /// Percentage of time that it was busy.
    pub utilization: Option<f64>,
    /// Its temperature in degrees Celsius.
    pub temperature: Option<f64>,
    /// Bytes of memory in use.
    pub memory_used: GpuMemory,
    /// Bytes of memory.
    pub memory_total: GpuMemory,
    /// Bytes of memory that can still be allocated: NVIDIA's driver reserves some that is neither
    /// in use nor free.
    pub memory_free: GpuMemory,
    /// Its power draw in watts.
    pub power: Option<f64>,
    /// The energy that it has used while its power was known, in joules.
    pub energy: Option<f64>,
}

/// Bytes of GPU memory, by kind.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct GpuMemory {
    /// Dedicated memory; on a GPU that is part of the processor, what the firmware reserves.
    pub vram: Option<f64>,
    /// System memory that the kernel maps for it (AMD's graphics translation table): it
    /// holds the model on a GPU that is part of the processor, and what does not fit on others.
    pub gtt: Option<f64>,
}

impl GpuMemory {
    /// Memory of a GPU that has one kind of memory.
    pub fn of_one_kind(bytes: Option<f64>) -> GpuMemory {
        GpuMemory {
            vram: bytes,
            gtt: None,
        }
    }

    /// What is left of it without `used`.
    pub fn without(self, used: GpuMemory) -> GpuMemory {
        let left = |total: Option<f64>, used: Option<f64>| Some((total? - used?).max(0.0));
        GpuMemory {
            vram: left(self.vram, used.vram),
            gtt: left(self.gtt, used.gtt),
        }
    }

    /// The known values, with the label `memory` if there are two kinds.
    pub fn kinds(self) -> impl Iterator<Item = (Option<&'static str>, f64)> {
        let vram = self.gtt.map(|_| "vram");
        let kinds = [(vram, self.vram), (Some("gtt"), self.gtt)];
        kinds
            .into_iter()
            .filter_map(|(kind, bytes)| Some((kind, bytes?)))
    }
}
