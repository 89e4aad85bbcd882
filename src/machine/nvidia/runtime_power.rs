//! Which NVIDIA GPUs may be asked without waking them or keeping them awake.
//!
//! A running `nvidia-smi` opens the GPUs that it reads, and an open GPU does not power down
//! (runtime D3, "RTD3"); one that has powered down is woken by it. Both cost a laptop watts.
//! The kernel tells the state of a PCI device without touching it:
//! `power/runtime_status` and `power/control` of `Documentation/ABI/testing/sysfs-devices-power`;
//! the driver tells in `/proc/driver/nvidia/gpus/ADDRESS/power` whether it powers the GPU down
//! at all. So a GPU that may sleep is left alone once nothing has run on it for a while, and
//! is asked again when something else has woken it, or has kept it awake all the same.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::bounds::deadline;
use crate::machine::procfs::{Procfs, read_text};

/// The most devices that are looked at, and the most GPUs.
const MOST_DEVICES: usize = 4096;
const MOST_GPUS: usize = 256;
/// How often the bus is looked through for GPUs.
const RESCAN: Duration = Duration::from_secs(60);
/// How long a GPU must have been unused before it is left alone.
const FIRST_PATIENCE: Duration = Duration::from_secs(20);
/// The same for one that has not fallen asleep when it was left alone.
const LONGEST_PATIENCE: Duration = Duration::from_secs(3600);
const PATIENCE_GROWTH: u32 = 8;
/// How long it is left alone: drivers take 10 to 120 seconds to power it down.
const REST: Duration = Duration::from_secs(150);

/// What `nvidia-smi` may be asked about now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ask {
    /// All GPUs: none of them could sleep, or none is on the PCI bus of this `/sys`.
    All,
    /// Those at these PCI addresses.
    Only(Vec<String>),
    /// None: asking would wake them or keep them awake.
    Nothing,
}

/// The GPUs on the PCI bus, and what is known of their sleep.
#[derive(Debug)]
pub struct RuntimePower {
    sysfs: PathBuf,
    procfs: Procfs,
    gpus: Vec<Gpu>,
    scanned: Option<Instant>,
}

#[derive(Debug)]
struct Gpu {
    /// As in `0000:01:00.0`.
    address: String,
    folder: PathBuf,
    /// As the driver tells it; `nvidia-smi` has the same.
    uuid: Option<String>,
    /// Whether the driver powers it down when it is unused; `None`: it does not say.
    sleeps: Option<bool>,
    state: State,
    patience: Duration,
}

/// What is done about a GPU.
#[derive(Clone, Copy, Debug, PartialEq)]
enum State {
    /// It is asked; when something was last seen to run on it.
    Asked { used: Instant },
    /// It is awake and left alone until then, so that it can fall asleep.
    LeftAlone { until: Instant },
    /// It has powered down.
    Asleep,
}

impl RuntimePower {
    /// The GPUs that `sysfs` shows.
    pub fn new(sysfs: &Path, procfs: &Procfs) -> RuntimePower {
        RuntimePower {
            sysfs: sysfs.to_owned(),
            procfs: procfs.clone(),
            gpus: Vec::new(),
            scanned: None,
        }
    }

    /// What may be asked now. `is_used` tells whether anything ran lately on the GPU with
    /// this UUID, or on any where there is none. To be called every few seconds.
    pub fn ask(&mut self, now: Instant, is_used: impl Fn(Option<&str>) -> bool) -> Ask {
        let due = |at: Instant| now.saturating_duration_since(at) >= RESCAN;
        if self.scanned.is_none_or(due) {
            self.scan(now);
        }
        for gpu in &mut self.gpus {
            gpu.step(now, &is_used);
        }
        let asked: Vec<String> = self
            .gpus
            .iter()
            .filter(|gpu| matches!(gpu.state, State::Asked { .. }))
            .map(|gpu| gpu.address.clone())
            .collect();
        if asked.len() == self.gpus.len() {
            Ask::All
        } else if asked.is_empty() {
            Ask::Nothing
        } else {
            Ask::Only(asked)
        }
    }

    /// The PCI addresses of the GPUs that are not asked.
    pub fn left_alone(&self) -> Vec<String> {
        let gpus = self.gpus.iter();
        gpus.filter(|gpu| !matches!(gpu.state, State::Asked { .. }))
            .map(|gpu| gpu.address.clone())
            .collect()
    }

    fn scan(&mut self, now: Instant) {
        self.scanned = Some(now);
        let devices = fs::read_dir(self.sysfs.join("bus/pci/devices"));
        let mut found: Vec<Gpu> = Vec::new();
        for entry in devices.into_iter().flatten().flatten().take(MOST_DEVICES) {
            let folder = entry.path();
            let Some(address) = entry.file_name().to_str().map(str::to_owned) else {
                continue;
            };
            if found.len() < MOST_GPUS && is_gpu(&folder) {
                let driver = self.procfs.path("driver/nvidia/gpus").join(&address);
                let known = self.gpus.iter().find(|gpu| gpu.address == address);
                found.push(Gpu {
                    uuid: uuid(&driver),
                    sleeps: sleeps(&driver),
                    state: known.map_or(State::Asked { used: now }, |gpu| gpu.state),
                    patience: known.map_or(FIRST_PATIENCE, |gpu| gpu.patience),
                    address,
                    folder,
                });
            }
        }
        found.sort_unstable_by(|a, b| a.address.cmp(&b.address));
        self.gpus = found;
    }
}

impl Gpu {
    fn step(&mut self, now: Instant, is_used: impl Fn(Option<&str>) -> bool) {
        let status = word(&self.folder, "power/runtime_status");
        // A kernel without runtime power management, or a device without it, never sleeps.
        let is_awake = status.is_none_or(|status| {
            !["suspended", "suspending", "resuming"].contains(&status.as_str())
        });
        if !is_awake {
            self.state = State::Asleep;
            self.patience = FIRST_PATIENCE;
            return;
        }
        match self.state {
            // Something has woken it.
            State::Asleep => self.state = State::Asked { used: now },
            State::LeftAlone { until } if now >= until => {
                // Something else keeps it awake: asking does no harm, for longer each time.
                self.patience = self.patience.saturating_mul(PATIENCE_GROWTH);
                self.patience = self.patience.min(LONGEST_PATIENCE);
                self.state = State::Asked { used: now };
            }
            State::LeftAlone { .. } => {}
            State::Asked { used } => {
                if is_used(self.uuid.as_deref()) || !self.can_sleep() {
                    self.state = State::Asked { used: now };
                } else if now.saturating_duration_since(used) >= self.patience {
                    let until = deadline(now, REST);
                    self.state = State::LeftAlone { until };
                }
            }
        }
    }

    fn can_sleep(&self) -> bool {
        self.sleeps != Some(false) && word(&self.folder, "power/control").as_deref() == Some("auto")
    }
}

/// Whether the PCI device is a GPU of NVIDIA, in the hands of NVIDIA's driver: not its sound
/// device, and not one that is handed to a virtual machine.
fn is_gpu(folder: &Path) -> bool {
    const NVIDIA: &str = "0x10de";
    const DISPLAY_CONTROLLER: &str = "0x03";
    let driver = fs::read_link(folder.join("driver"));
    word(folder, "vendor").as_deref() == Some(NVIDIA)
        && word(folder, "class").is_none_or(|class| class.starts_with(DISPLAY_CONTROLLER))
        && driver.map_or(true, |driver| driver.ends_with("nvidia"))
}

/// Whether the driver powers the GPU down, as its file says:
/// `Runtime D3 status:          Enabled (fine-grained)`.
fn sleeps(driver: &Path) -> Option<bool> {
    let text = read_text(&driver.join("power"), 4096).ok()?;
    let status = field(&text, "Runtime D3 status")?;
    Some(status.starts_with("Enabled") || status.starts_with('?'))
}

fn uuid(driver: &Path) -> Option<String> {
    let text = read_text(&driver.join("information"), 4096).ok()?;
    let uuid = field(&text, "GPU UUID")?;
    (!uuid.contains('?')).then(|| uuid.to_owned())
}

fn field<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    let mut lines = text.lines();
    lines.find_map(|line| Some(line.strip_prefix(name)?.strip_prefix(':')?.trim()))
}

fn word(folder: &Path, name: &str) -> Option<String> {
    let text = read_text(&folder.join(name), 256).ok()?;
    Some(text.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::test_files::Tree;

    const POWER: &str = "Runtime D3 status:          Enabled (fine-grained)\n\
                         Video Memory:               Active\n";

    /// Two GPUs and a sound device, all of which may sleep; with the driver's files.
    fn machine() -> Tree {
        let tree = Tree::new(&[("proc/driver/nvidia/gpus/0000:01:00.0/power", POWER)]);
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

    fn set(tree: &Tree, address: &str, file: &str, text: &str) {
        tree.write(&format!("sys/bus/pci/devices/{address}/power/{file}"), text);
    }

    fn power(tree: &Tree) -> RuntimePower {
        RuntimePower::new(&tree.path("sys"), &Procfs::new(&tree.path("proc")))
    }

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn a_gpu_that_sleeps_is_not_asked_and_one_that_was_woken_is() {
        let tree = machine();
        let mut power = power(&tree);
        let now = Instant::now();
        let mut ask = |at: u32| power.ask(deadline(now, SECOND * at), |_| true);
        assert_eq!(ask(0), Ask::All);
        set(&tree, "0000:01:00.0", "runtime_status", "suspended\n");
        // That the sound device sleeps, too, says nothing of the GPU.
        set(&tree, "0000:01:00.1", "runtime_status", "suspended\n");
        assert_eq!(ask(1), Ask::Only(vec!["0000:02:00.0".to_owned()]));
        set(&tree, "0000:02:00.0", "runtime_status", "suspended\n");
        assert_eq!(ask(2), Ask::Nothing);
        set(&tree, "0000:02:00.0", "runtime_status", "resuming\n");
        assert_eq!(ask(3), Ask::Nothing);
        set(&tree, "0000:02:00.0", "runtime_status", "active\n");
        assert_eq!(ask(1000), Ask::Only(vec!["0000:02:00.0".to_owned()]));
        assert_eq!(power.left_alone(), ["0000:01:00.0"]);
    }

    #[test]
    fn a_gpu_that_is_unused_is_left_alone_until_it_sleeps() {
        let tree = machine();
        set(&tree, "0000:02:00.0", "control", "on\n");
        let mut power = power(&tree);
        let now = Instant::now();
        let at = |seconds: u32| deadline(now, SECOND * seconds);
        let only_second = Ask::Only(vec!["0000:02:00.0".to_owned()]);
        assert_eq!(power.ask(at(0), |_| false), Ask::All);
        // While it is used, it is asked, for as long as that takes.
        let first_is_used = |uuid: Option<&str>| uuid == Some("GPU-01:00.0");
        assert_eq!(power.ask(at(100), first_is_used), Ask::All);
        assert_eq!(power.ask(at(119), |_| false), Ask::All);
        assert_eq!(power.ask(at(120), |_| false), only_second);
        set(&tree, "0000:01:00.0", "runtime_status", "suspended\n");
        assert_eq!(power.ask(at(200), |_| false), only_second);
        assert_eq!(power.ask(at(9999), |_| false), only_second);
        set(&tree, "0000:01:00.0", "runtime_status", "active\n");
        assert_eq!(power.ask(at(10_000), |_| false), Ask::All);
        assert_eq!(power.ask(at(10_019), |_| false), Ask::All);
        assert_eq!(power.ask(at(10_020), |_| false), only_second);
    }

    #[test]
    fn one_that_something_else_keeps_awake_is_asked_for_longer_each_time() {
        let tree = machine();
        let mut power = power(&tree);
        let now = Instant::now();
        let mut left_alone = 0;
        for second in 0..7200 {
            let ask = power.ask(deadline(now, SECOND * second), |_| false);
            left_alone += u32::from(ask != Ask::All);
        }
        // In two hours, after 20 s, 160 s, 1280 s and an hour, for 150 s each.
        assert_eq!(left_alone, 4 * 150);
    }

    #[test]
    fn a_gpu_that_cannot_sleep_is_asked_all_the_time() {
        let recorded = "tests/recordings/nvidia/h200-580.159.04";
        let recorded = Path::new(env!("CARGO_MANIFEST_DIR")).join(recorded);
        let file = |name: &str| fs::read_to_string(recorded.join(name)).unwrap();
        let information = file("information.txt");
        let uuid = field(&information, "GPU UUID");
        assert_eq!(uuid, Some("GPU-d252b11e-2df0-ced6-abc3-ecadc159b821"));
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
                let ask = power.ask(deadline(now, SECOND * second), |_| false);
                assert_eq!(ask, Ask::All, "{control} {driver}");
            }
        }
    }

    #[test]
    fn what_is_not_nvidias_drivers_is_not_heeded() {
        let tree = machine();
        for address in ["0000:01:00.0", "0000:02:00.0"] {
            set(&tree, address, "runtime_status", "suspended\n");
            let link = format!("sys/bus/pci/devices/{address}/driver");
            tree.link(&link, "../../../bus/pci/drivers/vfio-pci");
        }
        assert_eq!(power(&tree).ask(Instant::now(), |_| true), Ask::All);
        // No PCI bus at all: WSL2, Jetson.
        let none = Tree::new(&[]);
        assert_eq!(power(&none).ask(Instant::now(), |_| true), Ask::All);
    }
}
