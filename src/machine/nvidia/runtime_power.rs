//! Decides which NVIDIA GPUs may be read without waking them or keeping them awake.
//!
//! A running `nvidia-smi` opens the GPUs that it reads. An open GPU does not suspend (runtime D3,
//! "RTD3"), and opening wakes a suspended one. Both cost a laptop power. The kernel reports the
//! state of a PCI device without waking it, in `power/runtime_status` and `power/control`
//! (`Documentation/ABI/testing/sysfs-devices-power`). The driver reports in
//! `/proc/driver/nvidia/gpus/ADDRESS/power` whether it suspends the GPU at all.
//!
//! A GPU that may suspend is no longer read after it was unused for a while. It is read again when
//! something else wakes it, or if it does not suspend in time.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::bounds::deadline;
use crate::machine::procfs::Procfs;
use crate::machine::pseudo_files::{read_text, read_value};
use crate::process::procfs_parsers::field;

/// The most PCI devices that are checked, and the most GPUs.
const MAX_DEVICES: usize = 4096;
const MAX_GPUS: usize = 256;
/// How often to look for new GPUs.
const SCAN_INTERVAL: Duration = Duration::from_secs(60);
/// How long a GPU must be unused before it is no longer read.
const FIRST_UNUSED_TIME: Duration = Duration::from_secs(20);
/// The same for a GPU that did not suspend; grows by this factor up to this limit.
const UNUSED_TIME_FACTOR: u32 = 8;
const MAX_UNUSED_TIME: Duration = Duration::from_secs(3600);
/// How long to wait for it to suspend: drivers take 10 to 120 seconds.
const SUSPEND_TIME: Duration = Duration::from_secs(150);

/// The GPUs that `nvidia-smi` may read now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GpuSelection {
    /// All: none of them may suspend, or `/sys` has none on its PCI bus.
    All,
    /// Those at these PCI addresses.
    Only(Vec<String>),
    /// None of them.
    None,
}

/// The NVIDIA GPUs on the PCI bus, and whether they are read.
#[derive(Debug)]
pub struct RuntimePower {
    sysfs: PathBuf,
    procfs: Procfs,
    gpus: Vec<PciGpu>,
    scanned_at: Option<Instant>,
}

#[derive(Debug)]
struct PciGpu {
    /// The PCI address, such as `0000:01:00.0`.
    address: String,
    /// Its folder in sysfs.
    folder: PathBuf,
    /// As in the output of `nvidia-smi`, if the driver reports it.
    uuid: Option<String>,
    /// Whether the driver suspends it when it is unused, if known.
    driver_suspends: Option<bool>,
    state: PciGpuState,
    /// How long it must be unused before it is no longer read.
    unused_time: Duration,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum PciGpuState {
    /// It is read. `used_at` is when it was last in use.
    Read { used_at: Instant },
    /// It is awake, and not read before `until`, so that it can suspend.
    Released { until: Instant },
    /// It is suspended.
    Suspended,
}

impl RuntimePower {
    /// The GPUs on the PCI bus of `sysfs`.
    pub fn new(sysfs: &Path, procfs: &Procfs) -> RuntimePower {
        RuntimePower {
            sysfs: sysfs.to_owned(),
            procfs: procfs.clone(),
            gpus: Vec::new(),
            scanned_at: None,
        }
    }

    /// Which GPUs may be read now. Call it every few seconds. `is_used` returns whether the GPU
    /// with this UUID was in use recently, or whether any GPU was if the UUID is `None`.
    pub fn select(&mut self, now: Instant, is_used: impl Fn(Option<&str>) -> bool) -> GpuSelection {
        let is_due = |at: Instant| now.saturating_duration_since(at) >= SCAN_INTERVAL;
        if self.scanned_at.is_none_or(is_due) {
            self.scan(now);
        }
        for gpu in &mut self.gpus {
            gpu.update(now, &is_used);
        }
        let selected = self.addresses(true);
        if selected.len() == self.gpus.len() {
            GpuSelection::All
        } else if selected.is_empty() {
            GpuSelection::None
        } else {
            GpuSelection::Only(selected)
        }
    }

    /// The PCI addresses of the GPUs that are not read.
    pub fn unread(&self) -> Vec<String> {
        self.addresses(false)
    }

    fn addresses(&self, is_read: bool) -> Vec<String> {
        let matches = |gpu: &&PciGpu| matches!(gpu.state, PciGpuState::Read { .. }) == is_read;
        let gpus = self.gpus.iter().filter(matches);
        gpus.map(|gpu| gpu.address.clone()).collect()
    }

    fn scan(&mut self, now: Instant) {
        self.scanned_at = Some(now);
        let devices = fs::read_dir(self.sysfs.join("bus/pci/devices"));
        let devices = devices.into_iter().flatten().flatten().take(MAX_DEVICES);
        let gpus = devices.filter_map(|device| {
            let folder = device.path();
            let address = device.file_name().to_str()?.to_owned();
            if !is_nvidia_gpu(&folder) {
                return None;
            }
            let driver = self.procfs.path("driver/nvidia/gpus").join(&address);
            let known = self.gpus.iter().find(|gpu| gpu.address == address);
            Some(PciGpu {
                uuid: uuid(&driver),
                driver_suspends: driver_suspends(&driver),
                state: known.map_or(PciGpuState::Read { used_at: now }, |gpu| gpu.state),
                unused_time: known.map_or(FIRST_UNUSED_TIME, |gpu| gpu.unused_time),
                address,
                folder,
            })
        });
        let mut gpus: Vec<PciGpu> = gpus.take(MAX_GPUS).collect();
        gpus.sort_unstable_by(|a, b| a.address.cmp(&b.address));
        self.gpus = gpus;
    }
}

impl PciGpu {
    fn update(&mut self, now: Instant, is_used: impl Fn(Option<&str>) -> bool) {
        // A kernel or device without runtime power management never suspends.
        let status = read_value(&self.folder.join("power/runtime_status"));
        if matches!(
            status.as_deref(),
            Some("suspended" | "suspending" | "resuming")
        ) {
            self.state = PciGpuState::Suspended;
            self.unused_time = FIRST_UNUSED_TIME;
            return;
        }
        match self.state {
            // Something has woken it.
            PciGpuState::Suspended => self.state = PciGpuState::Read { used_at: now },
            // Something else keeps it awake, so it is read again, for a longer time.
            PciGpuState::Released { until } if now >= until => {
                let longer = self.unused_time.saturating_mul(UNUSED_TIME_FACTOR);
                self.unused_time = longer.min(MAX_UNUSED_TIME);
                self.state = PciGpuState::Read { used_at: now };
            }
            PciGpuState::Released { .. } => {}
            PciGpuState::Read { used_at } => {
                if is_used(self.uuid.as_deref()) || !self.may_suspend() {
                    self.state = PciGpuState::Read { used_at: now };
                } else if now.saturating_duration_since(used_at) >= self.unused_time {
                    let until = deadline(now, SUSPEND_TIME);
                    self.state = PciGpuState::Released { until };
                }
            }
        }
    }

    fn may_suspend(&self) -> bool {
        let control = read_value(&self.folder.join("power/control"));
        self.driver_suspends != Some(false) && control.as_deref() == Some("auto")
    }
}

/// Whether the PCI device is a GPU with NVIDIA's driver. False for its audio device, and for a GPU
/// that is passed through to a virtual machine.
fn is_nvidia_gpu(folder: &Path) -> bool {
    const NVIDIA: &str = "0x10de";
    const DISPLAY_CONTROLLER: &str = "0x03";
    let driver = fs::read_link(folder.join("driver"));
    let class = read_value(&folder.join("class"));
    read_value(&folder.join("vendor")).as_deref() == Some(NVIDIA)
        && class.is_none_or(|class| class.starts_with(DISPLAY_CONTROLLER))
        && driver.map_or(true, |driver| driver.ends_with("nvidia"))
}

/// Whether the driver suspends the GPU, from `Runtime D3 status:  Enabled (fine-grained)`.
fn driver_suspends(driver: &Path) -> Option<bool> {
    let text = read_text(&driver.join("power")).ok()?;
    let status = field(&text, "Runtime D3 status")?;
    Some(status.starts_with("Enabled") || status.starts_with('?'))
}

fn uuid(driver: &Path) -> Option<String> {
    let text = read_text(&driver.join("information")).ok()?;
    let uuid = field(&text, "GPU UUID")?;
    (!uuid.contains('?')).then(|| uuid.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::tests::file_tree::FileTree;

    const POWER: &str = "Runtime D3 status:          Enabled (fine-grained)\n\
                         Video Memory:               Active\n";

    /// Two GPUs and a sound device, all of which may sleep; with the driver's files.
    fn machine() -> FileTree {
        let tree = FileTree::new(&[("proc/driver/nvidia/gpus/0000:01:00.0/power", POWER)]);
        for (address, class) in [
            ("0000:01:00.0", "0x030000\n"),
            ("0000:01:00.1", "0x040300\n"),
            ("0000:02:00.0", "0x030200\n"),
        ] {
            let file = |name: &str| format!("sys/bus/pci/devices/{address}/{name}");
            tree.write(&file("vendor"), "0x10de\n");
            tree.write(&file("class"), class);
            tree.write(&file("power/control"), "auto\n");
            tree.write(&file("power/runtime_status"), "active\n");
            tree.link(&file("driver"), "../../../bus/pci/drivers/nvidia");
            let driver = format!("proc/driver/nvidia/gpus/{address}/information");
            let uuid = address.replace("0000:", "GPU-");
            tree.write(&driver, format!("Model:\t\t X\nGPU UUID: \t {uuid}\n"));
        }
        tree
    }

    fn set(tree: &FileTree, address: &str, file: &str, text: &str) {
        tree.write(&format!("sys/bus/pci/devices/{address}/power/{file}"), text);
    }

    fn power(tree: &FileTree) -> RuntimePower {
        RuntimePower::new(&tree.path("sys"), &Procfs::new(&tree.path("proc")))
    }

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn a_suspended_gpu_is_not_read_until_something_wakes_it() {
        let tree = machine();
        let mut power = power(&tree);
        let now = Instant::now();
        let mut select = |at: u32| power.select(deadline(now, SECOND * at), |_| true);
        assert_eq!(select(0), GpuSelection::All);
        set(&tree, "0000:01:00.0", "runtime_status", "suspended\n");
        // The state of the sound device does not matter.
        set(&tree, "0000:01:00.1", "runtime_status", "suspended\n");
        assert_eq!(
            select(1),
            GpuSelection::Only(vec!["0000:02:00.0".to_owned()])
        );
        set(&tree, "0000:02:00.0", "runtime_status", "suspended\n");
        assert_eq!(select(2), GpuSelection::None);
        set(&tree, "0000:02:00.0", "runtime_status", "resuming\n");
        assert_eq!(select(3), GpuSelection::None);
        set(&tree, "0000:02:00.0", "runtime_status", "active\n");
        assert_eq!(
            select(1000),
            GpuSelection::Only(vec!["0000:02:00.0".to_owned()])
        );
        assert_eq!(power.unread(), ["0000:01:00.0"]);
    }

    #[test]
    fn an_unused_gpu_is_released_until_it_suspends() {
        let tree = machine();
        set(&tree, "0000:02:00.0", "control", "on\n");
        let mut power = power(&tree);
        let now = Instant::now();
        let at = |seconds: u32| deadline(now, SECOND * seconds);
        let only_second = GpuSelection::Only(vec!["0000:02:00.0".to_owned()]);
        assert_eq!(power.select(at(0), |_| false), GpuSelection::All);
        // While it is in use, it is read.
        let first_is_used = |uuid: Option<&str>| uuid == Some("GPU-01:00.0");
        assert_eq!(power.select(at(100), first_is_used), GpuSelection::All);
        assert_eq!(power.select(at(119), |_| false), GpuSelection::All);
        assert_eq!(power.select(at(120), |_| false), only_second);
        set(&tree, "0000:01:00.0", "runtime_status", "suspended\n");
        assert_eq!(power.select(at(200), |_| false), only_second);
        assert_eq!(power.select(at(9999), |_| false), only_second);
        set(&tree, "0000:01:00.0", "runtime_status", "active\n");
        assert_eq!(power.select(at(10_000), |_| false), GpuSelection::All);
        assert_eq!(power.select(at(10_019), |_| false), GpuSelection::All);
        assert_eq!(power.select(at(10_020), |_| false), only_second);
    }

    #[test]
    fn a_gpu_that_stays_awake_is_read_for_longer_each_time() {
        let tree = machine();
        let mut power = power(&tree);
        let now = Instant::now();
        let mut released = 0;
        for second in 0..7200 {
            let selection = power.select(deadline(now, SECOND * second), |_| false);
            released += u32::from(selection != GpuSelection::All);
        }
        // In two hours, after 20 s, 160 s, 1280 s and an hour, for 150 s each.
        assert_eq!(released, 4 * 150);
    }

    #[test]
    fn a_gpu_that_cannot_suspend_is_always_read() {
        let recorded = "tests/recordings/nvidia/h200-580.159.04";
        let recorded = Path::new(env!("CARGO_MANIFEST_DIR")).join(recorded);
        let file = |name: &str| fs::read_to_string(recorded.join(name)).unwrap();
        let information = file("information.txt");
        let uuid = field(&information, "GPU UUID");
        assert_eq!(uuid, Some("GPU-03003391-6e0f-ad9d-1819-0436ef5d7153"));
        for (control, driver) in [
            ("on\n", POWER),
            ("auto\n", &file("power.txt")),
            ("auto\n", "Runtime D3 status:          Not supported\n"),
        ] {
            let tree = machine();
            for address in ["0000:01:00.0", "0000:02:00.0"] {
                set(&tree, address, "control", control);
                let file = format!("proc/driver/nvidia/gpus/{address}/power");
                tree.write(&file, driver);
            }
            let mut power = power(&tree);
            let now = Instant::now();
            for second in 0..1000 {
                let selection = power.select(deadline(now, SECOND * second), |_| false);
                assert_eq!(selection, GpuSelection::All, "{control} {driver}");
            }
        }
    }

    #[test]
    fn gpus_with_another_driver_are_ignored() {
        let tree = machine();
        for address in ["0000:01:00.0", "0000:02:00.0"] {
            set(&tree, address, "runtime_status", "suspended\n");
            let link = format!("sys/bus/pci/devices/{address}/driver");
            tree.link(&link, "../../../bus/pci/drivers/vfio-pci");
        }
        assert_eq!(
            power(&tree).select(Instant::now(), |_| true),
            GpuSelection::All
        );
        // No PCI bus at all: WSL2, Jetson.
        let none = FileTree::new(&[]);
        assert_eq!(
            power(&none).select(Instant::now(), |_| true),
            GpuSelection::All
        );
    }
}
