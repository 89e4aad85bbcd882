//! What is known of one GPU of this machine.

/// What is known of one GPU of this machine.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Gpu {
    /// The label `gpu`.
    pub index: String,
    /// What it is called.
    pub name: Option<String>,
    /// Its identity.
    pub uuid: Option<String>,
    /// The version of its driver, or the driver's name.
    pub driver: Option<String>,
    /// Percent of the time that it was busy.
    pub utilization: Option<f64>,
    /// Degrees Celsius.
    pub temperature: Option<f64>,
    /// Its memory in use.
    pub memory_used: GpuMemory,
    /// Its memory.
    pub memory_total: GpuMemory,
    /// Watts.
    pub power: Option<f64>,
}

/// Bytes of a GPU's memory, by where it lies.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct GpuMemory {
    /// Its own: video memory, and on a GPU that is a part of the processor what the firmware
    /// has set aside for it.
    pub vram: Option<f64>,
    /// System memory that the kernel maps for it (AMD's graphics translation table): where
    /// models lie on a GPU that is a part of the processor, and what does not fit others.
    pub gtt: Option<f64>,
}

impl GpuMemory {
    /// Memory of a kind of GPU that has one kind of memory.
    pub fn of_one_kind(bytes: Option<f64>) -> GpuMemory {
        GpuMemory {
            vram: bytes,
            gtt: None,
        }
    }

    /// What there is, and the label that tells one kind from the other where there are two.
    pub fn kinds(self) -> impl Iterator<Item = (Option<&'static str>, f64)> {
        let vram = self.gtt.map(|_| "vram");
        let kinds = [(vram, self.vram), (Some("gtt"), self.gtt)];
        kinds
            .into_iter()
            .filter_map(|(kind, bytes)| Some((kind, bytes?)))
    }
}
