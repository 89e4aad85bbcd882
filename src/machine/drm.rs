//! AMD and Intel GPUs, as sysfs and fdinfo tell of them.
//!
//! The files of amdgpu are those of the kernel's `Documentation/gpu/amdgpu/`
//! (`driver-misc.rst`, `thermal.rst`): `gpu_busy_percent`, `mem_info_vram_*` and
//! `mem_info_gtt_*`, and hwmon's `temp1_input` and `power1_average` or `power1_input`. Those of
//! i915 and xe are hwmon's, of
//! `Documentation/ABI/testing/sysfs-driver-intel-{i915,xe}-hwmon`. A process's
//! share is in `/proc/PID/fdinfo`, after `Documentation/gpu/drm-usage-stats.rst`.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use crate::machine::procfs::{Procfs, read_text};
use crate::snapshot::{Gpu, GpuMemory};

const AMD: &str = "0x1002";
const INTEL: &str = "0x8086";
/// The most cards that are looked at.
const MOST_CARDS: usize = 256;
/// The most descriptors of a process that are looked at.
const MOST_DESCRIPTORS: usize = 4096;

/// The cards of this machine.
#[derive(Debug)]
pub struct Cards {
    cards: Vec<Card>,
}

#[derive(Debug)]
struct Card {
    /// The label `gpu`.
    index: String,
    /// Its folder in sysfs.
    device: PathBuf,
    /// Its address on the bus, as fdinfo has it.
    address: String,
    driver: String,
    /// Microjoules and when they were read, where only they are told.
    energy: Option<(Instant, f64)>,
}

impl Cards {
    /// The cards that sysfs shows. They are counted from 0 in their order;
    /// beside NVIDIA's, which count for themselves, each keeps its own name.
    pub fn find(sysfs: &Path, beside_others: bool) -> Cards {
        let number = |name: &str| name.strip_prefix("card")?.parse::<u32>().ok();
        let class = sysfs.join("class/drm");
        let mut found: Vec<(u32, Card)> = fs::read_dir(&class)
            .into_iter()
            .flatten()
            .flatten()
            .filter_map(|entry| {
                let number = number(entry.file_name().to_str()?)?;
                Some((number, Card::at(entry.path().join("device"))?))
            })
            .take(MOST_CARDS)
            .collect();
        found.sort_unstable_by_key(|(number, _)| *number);
        let mut cards = Vec::new();
        for (position, (number, mut card)) in found.into_iter().enumerate() {
            card.index = if beside_others {
                format!("card{number}")
            } else {
                position.to_string()
            };
            cards.push(card);
        }
        Cards { cards }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.cards.is_empty()
    }

    /// What the cards tell now. One that is powered down is not woken, and not shown.
    pub fn read(&mut self) -> Vec<Gpu> {
        self.cards.iter_mut().filter_map(Card::read).collect()
    }

    /// GPU memory of the process `pid`, by card.
    pub fn memory_of(&self, procfs: &Procfs, pid: u32) -> Vec<(String, GpuMemory)> {
        if !self.cards.iter().any(|card| card.driver == "amdgpu") {
            return Vec::new();
        }
        let texts = fs::read_dir(procfs.of(pid, "fd"))
            .into_iter()
            .flatten()
            .flatten()
            .take(MOST_DESCRIPTORS)
            .filter(|entry| {
                fs::read_link(entry.path()).is_ok_and(|target| target.starts_with("/dev/dri"))
            })
            .filter_map(|entry| {
                let name = entry.file_name();
                let path = procfs.of(pid, "fdinfo").join(name);
                read_text(&path, 64 << 10).ok()
            });
        let by_address = memory_by_address(texts);
        self.cards
            .iter()
            .filter_map(|card| Some((card.index.clone(), *by_address.get(&card.address)?)))
            .collect()
    }
}

impl Card {
    fn at(device: PathBuf) -> Option<Card> {
        let vendor = word(&device, "vendor")?;
        if vendor != AMD && vendor != INTEL {
            return None;
        }
        let name = |path: PathBuf| Some(path.file_name()?.to_str()?.to_owned());
        Some(Card {
            index: String::new(),
            address: fs::canonicalize(&device).ok().and_then(name)?,
            driver: fs::read_link(device.join("driver")).ok().and_then(name)?,
            device,
            energy: None,
        })
    }

    fn read(&mut self) -> Option<Gpu> {
        let device = &self.device;
        let status = word(device, "power/runtime_status");
        if status.is_some_and(|status| status != "active" && status != "unsupported") {
            return None;
        }
        let sensors = self.sensors();
        let sensor = |name: &str| sensors.as_ref().and_then(|folder| number(folder, name));
        let millionth = |value: f64| value / 1e6;
        let mut gpu = Gpu {
            index: self.index.clone(),
            driver: Some(self.driver.clone()),
            // The first is the edge of the die; xe has the package second.
            temperature: sensor("temp1_input")
                .or_else(|| sensor("temp2_input"))
                .map(|thousandths| thousandths / 1000.0),
            power: sensor("power1_average")
                .or_else(|| sensor("power1_input"))
                .map(millionth),
            ..Gpu::default()
        };
        if self.driver == "amdgpu" {
            gpu.name = word(device, "product_name");
            gpu.uuid = word(device, "unique_id");
            gpu.utilization = number(device, "gpu_busy_percent").filter(|busy| *busy <= 100.0);
            let memory = |which: &str| GpuMemory {
                vram: number(device, &format!("mem_info_vram_{which}")),
                gtt: number(device, &format!("mem_info_gtt_{which}")),
            };
            gpu.memory_used = memory("used");
            gpu.memory_total = memory("total");
        }
        if gpu.power.is_none() {
            let energy = sensor("energy1_input").map(|energy| (Instant::now(), energy));
            gpu.power = self.power(energy);
        }
        // A display adapter without a sensor tells nothing.
        [
            gpu.utilization,
            gpu.temperature,
            gpu.memory_total.vram,
            gpu.power,
        ]
        .iter()
        .any(Option::is_some)
        .then_some(gpu)
    }

    /// Watts, from how the energy has grown.
    fn power(&mut self, now: Option<(Instant, f64)>) -> Option<f64> {
        let (then, before) = std::mem::replace(&mut self.energy, now)?;
        let (at, energy) = now?;
        let seconds = at.duration_since(then).as_secs_f64();
        Some((energy - before) / 1e6 / seconds).filter(|watts| watts.is_finite() && *watts >= 0.0)
    }

    fn sensors(&self) -> Option<PathBuf> {
        let folders = fs::read_dir(self.device.join("hwmon")).ok()?;
        folders.flatten().map(|entry| entry.path()).min()
    }
}

/// GPU memory by the card's address: that of each client once, however many descriptors it
/// has.
fn memory_by_address(texts: impl Iterator<Item = String>) -> BTreeMap<String, GpuMemory> {
    let mut clients: BTreeMap<(String, String), GpuMemory> = BTreeMap::new();
    for text in texts {
        let fields: BTreeMap<&str, &str> = text
            .lines()
            .filter_map(|line| line.split_once(':'))
            .map(|(key, value)| (key, value.trim()))
            .collect();
        // The newer name first; `drm-memory-` is also what older kernels have.
        let memory = |of: &str| {
            let names = [format!("drm-resident-{of}"), format!("drm-memory-{of}")];
            names
                .iter()
                .find_map(|name| bytes(fields.get(name.as_str())?))
        };
        if let (Some(address), Some(client)) = (fields.get("drm-pdev"), fields.get("drm-client-id"))
        {
            let memory = GpuMemory {
                vram: memory("vram"),
                gtt: memory("gtt"),
            };
            clients.insert(((*address).to_owned(), (*client).to_owned()), memory);
        }
    }
    let mut cards: BTreeMap<String, GpuMemory> = BTreeMap::new();
    for ((address, _), memory) in clients {
        let sum = cards.entry(address).or_default();
        let add = |sum: &mut Option<f64>, more: Option<f64>| {
            if let Some(more) = more {
                *sum = Some(sum.unwrap_or(0.0) + more);
            }
        };
        add(&mut sum.vram, memory.vram);
        add(&mut sum.gtt, memory.gtt);
    }
    cards.retain(|_, memory| *memory != GpuMemory::default());
    cards
}

fn bytes(text: &str) -> Option<f64> {
    let (number, unit) = text.split_once(' ').unwrap_or((text, ""));
    let factor = match unit.trim() {
        "" => 1.0,
        "KiB" => 1024.0,
        "MiB" => 1048576.0,
        _ => return None,
    };
    Some(number.parse::<u64>().ok()? as f64 * factor)
}

fn word(folder: &Path, name: &str) -> Option<String> {
    let text = read_text(&folder.join(name), 256).ok()?;
    let text = text.trim();
    (!text.is_empty()).then(|| text.to_owned())
}

fn number(folder: &Path, name: &str) -> Option<f64> {
    word(folder, name)?
        .parse()
        .ok()
        .filter(|number: &f64| number.is_finite() && *number >= 0.0)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::machine::test_files::Tree;

    /// An amdgpu card after the kernel's documentation, and an Intel one.
    fn machine() -> Tree {
        let amd = "sys/devices/pci0000:00/0000:03:00.0";
        let intel = "sys/devices/pci0000:00/0000:00:02.0";
        let tree = Tree::new(&[
            ("sys/bus/pci/drivers/amdgpu/x", ""),
            ("sys/bus/pci/drivers/i915/x", ""),
        ]);
        let files = [
            (amd, "vendor", "0x1002\n"),
            (amd, "gpu_busy_percent", "42\n"),
            (amd, "mem_info_vram_used", "4294967296\n"),
            (amd, "mem_info_vram_total", "17163091968\n"),
            (amd, "product_name", "Radeon RX 7800 XT\n"),
            (amd, "unique_id", "b5a1f0c2d3e4f506\n"),
            (amd, "power/runtime_status", "active\n"),
            (amd, "hwmon/hwmon4/temp1_input", "61000\n"),
            (amd, "hwmon/hwmon4/power1_average", "187000000\n"),
            (intel, "vendor", "0x8086\n"),
            (intel, "hwmon/hwmon5/energy1_input", "1000000\n"),
        ];
        for (device, file, text) in files {
            tree.write(&format!("{device}/{file}"), text);
        }
        for (device, driver, card) in [(amd, "amdgpu", "card1"), (intel, "i915", "card0")] {
            let driver = tree.path("sys/bus/pci/drivers").join(driver);
            tree.link(&format!("{device}/driver"), driver);
            let link = format!("sys/class/drm/{card}/device");
            tree.link(&link, tree.path(device));
        }
        tree.write("sys/class/drm/card1-DP-1/status", "connected\n");
        tree.write("sys/class/drm/renderD128/x", "");
        tree
    }

    #[test]
    fn a_card_tells_its_load_memory_temperature_and_power() {
        let tree = machine();
        let mut cards = Cards::find(&tree.path("sys"), false);
        let begun = std::time::Instant::now();
        let gpus = cards.read();
        assert_eq!(gpus.len(), 1, "Intel's power needs a second look");
        let amd = &gpus[0];
        assert_eq!(amd.index, "1");
        assert_eq!(amd.utilization, Some(42.0));
        assert_eq!(amd.temperature, Some(61.0));
        assert_eq!(amd.power, Some(187.0));
        assert_eq!(amd.memory_total.vram, Some(17163091968.0));
        assert_eq!(amd.name.as_deref(), Some("Radeon RX 7800 XT"));
        std::thread::sleep(Duration::from_millis(20));
        let energy = "sys/devices/pci0000:00/0000:00:02.0/hwmon/hwmon5/energy1_input";
        tree.write(energy, "1500000\n");
        let watts = cards.read()[0].power.unwrap();
        // Half a joule, in 20 ms or as long as this machine took.
        let least = 0.5 / begun.elapsed().as_secs_f64();
        assert!((least..26.0).contains(&watts), "{watts}");
        assert_eq!(Cards::find(&tree.path("sys"), true).cards[1].index, "card1");
    }

    #[test]
    fn a_card_that_sleeps_is_not_woken() {
        let tree = machine();
        let status = "sys/devices/pci0000:00/0000:03:00.0/power/runtime_status";
        tree.write(status, "suspended\n");
        assert!(Cards::find(&tree.path("sys"), false).read().is_empty());
    }

    #[test]
    fn fields_that_are_no_numbers_are_absent() {
        let tree = machine();
        let folder = "sys/devices/pci0000:00/0000:03:00.0";
        tree.write(&format!("{folder}/gpu_busy_percent"), "-1\n");
        tree.write(&format!("{folder}/mem_info_vram_used"), "\n");
        tree.write(&format!("{folder}/hwmon/hwmon4/temp1_input"), "warm\n");
        let gpu = &Cards::find(&tree.path("sys"), false).read()[0];
        assert_eq!(
            (gpu.utilization, gpu.memory_used.vram, gpu.temperature),
            (None, None, None)
        );
    }

    #[test]
    fn a_processs_share_counts_each_client_once() {
        let tree = machine();
        let info = |client: u32, field: &str| {
            format!(
                "pos:\t0\nflags:\t02100002\ndrm-driver:\tamdgpu\ndrm-client-id:\t{client}\n\
                 drm-pdev:\t0000:03:00.0\n{field}\n"
            )
        };
        for (fd, text) in [
            (3, info(7, "drm-memory-vram:\t2048 KiB")),
            (4, info(7, "drm-memory-vram:\t2048 KiB")),
            (
                5,
                info(8, "drm-memory-vram:\t1 KiB\ndrm-resident-vram:\t3 MiB"),
            ),
            (6, info(9, "drm-memory-vram:\t1 GiB")),
        ] {
            tree.write(&format!("proc/7/fdinfo/{fd}"), text);
            tree.link(&format!("proc/7/fd/{fd}"), "/dev/dri/renderD128");
        }
        tree.write("proc/7/fdinfo/9", info(10, "drm-memory-vram:\t5 KiB"));
        tree.link("proc/7/fd/9", "/dev/null");
        let cards = Cards::find(&tree.path("sys"), false);
        let memory = cards.memory_of(&Procfs::new(&tree.path("proc")), 7);
        let five = GpuMemory::of_one_kind(Some(5.0 * 1048576.0));
        assert_eq!(memory, [("1".to_owned(), five)]);
    }

    /// A file of `tests/cases`.
    fn case(name: &str) -> String {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cases");
        fs::read_to_string(folder.join(name)).unwrap()
    }

    #[test]
    fn what_lies_in_system_memory_is_told_apart_from_video_memory() {
        let tree = Tree::new(&[("sys/bus/pci/drivers/amdgpu/x", "")]);
        let device = "sys/devices/pci0000:00/0000:c5:00.0";
        for line in case("08-amd-apu-gtt/sysfs.txt").lines() {
            let (file, value) = line.split_once('=').unwrap();
            tree.write(&format!("{device}/{file}"), format!("{value}\n"));
        }
        let driver = tree.path("sys/bus/pci/drivers/amdgpu");
        tree.link(&format!("{device}/driver"), driver);
        tree.link("sys/class/drm/card1/device", tree.path(device));
        tree.write("proc/7/fdinfo/9", case("08-amd-apu-gtt/fdinfo.txt"));
        tree.link("proc/7/fd/9", "/dev/dri/renderD128");
        let mut cards = Cards::find(&tree.path("sys"), false);
        let gpu = &cards.read()[0];
        let memory = |vram, gtt| GpuMemory {
            vram: Some(vram),
            gtt: Some(gtt),
        };
        assert_eq!(gpu.memory_used, memory(477_102_080.0, 67_645_734_912.0));
        assert_eq!(gpu.memory_total, memory(536_870_912.0, 133_143_986_176.0));
        let of_process = cards.memory_of(&Procfs::new(&tree.path("proc")), 7);
        let expected = memory(5348.0 * 1024.0, 25_258_000.0 * 1024.0);
        assert_eq!(of_process, [("0".to_owned(), expected)]);
    }
}
