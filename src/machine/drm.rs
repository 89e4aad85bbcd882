//! AMD and Intel GPUs, from sysfs and fdinfo.
//!
//! amdgpu: `gpu_busy_percent`, `mem_info_vram_*`, `mem_info_gtt_*`, and hwmon's `temp1_input`,
//! `power1_average` or `power1_input`, as in the kernel's `Documentation/gpu/amdgpu/`
//! (`driver-misc.rst`, `thermal.rst`). i915 and xe: hwmon as in
//! `Documentation/ABI/testing/sysfs-driver-intel-{i915,xe}-hwmon`. The memory of a process:
//! `/proc/PID/fdinfo`, as in `Documentation/gpu/drm-usage-stats.rst`.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use crate::machine::procfs::Procfs;
use crate::machine::pseudo_files::{read_text, read_value};
use crate::process::procfs_parsers::field;
use crate::snapshot::{Gpu, GpuMemory};

const AMD: &str = "0x1002";
const INTEL: &str = "0x8086";
/// The most cards that are read.
const MAX_CARDS: usize = 256;
/// The most descriptors of DRM devices of a process that are read.
const MAX_DRM_DESCRIPTORS: usize = 4096;

/// The DRM cards of this machine.
#[derive(Debug)]
pub struct DrmCards(Vec<DrmCard>);

#[derive(Debug)]
struct DrmCard {
    /// The label `gpu`.
    index: String,
    /// Its device folder in sysfs.
    device: PathBuf,
    /// Its PCI address, as in fdinfo.
    address: String,
    driver: String,
    /// The last reading of its energy counter in microjoules, if it has no power sensor.
    energy: Option<(Instant, f64)>,
}

impl DrmCards {
    /// Finds the cards in sysfs. Their index counts from 0. If there are NVIDIA GPUs, which count
    /// from 0 too, it is the name of the card.
    pub fn find(sysfs: &Path, beside_nvidia: bool) -> DrmCards {
        let entries = fs::read_dir(sysfs.join("class/drm")).into_iter().flatten();
        let cards = entries.flatten().filter_map(|entry| {
            // Connectors, such as `card1-DP-1`, are not cards.
            let number: u32 = entry
                .file_name()
                .to_str()?
                .strip_prefix("card")?
                .parse()
                .ok()?;
            Some((number, DrmCard::find(entry.path().join("device"))?))
        });
        let mut cards: Vec<(u32, DrmCard)> = cards.take(MAX_CARDS).collect();
        cards.sort_unstable_by_key(|(number, _)| *number);
        let cards = cards
            .into_iter()
            .enumerate()
            .map(|(position, (number, card))| {
                let index = match beside_nvidia {
                    true => format!("card{number}"),
                    false => position.to_string(),
                };
                DrmCard { index, ..card }
            });
        DrmCards(cards.collect())
    }

    /// Whether there are no cards.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Reads the cards. Leaves out suspended ones: reading would wake them.
    pub fn read(&mut self) -> Vec<Gpu> {
        self.0.iter_mut().filter_map(DrmCard::read).collect()
    }

    /// GPU memory of the process `pid`, by card.
    pub fn memory_of(&self, procfs: &Procfs, pid: u32) -> Vec<(String, GpuMemory)> {
        if !self.0.iter().any(|card| card.driver == "amdgpu") {
            return Vec::new();
        }
        let descriptors = procfs.descriptors(pid).into_iter().flatten();
        let texts = descriptors
            .filter(|(_, target)| target.starts_with("/dev/dri"))
            .take(MAX_DRM_DESCRIPTORS)
            .filter_map(|(descriptor, _)| {
                let fdinfo = procfs.process_path(pid, "fdinfo");
                read_text(&fdinfo.join(descriptor.file_name()?)).ok()
            });
        let by_address = memory_by_address(texts);
        let memory = |card: &DrmCard| Some((card.index.clone(), *by_address.get(&card.address)?));
        self.0.iter().filter_map(memory).collect()
    }
}

impl DrmCard {
    fn find(device: PathBuf) -> Option<DrmCard> {
        let vendor = read_value(&device.join("vendor"))?;
        if vendor != AMD && vendor != INTEL {
            return None;
        }
        let name = |path: PathBuf| Some(path.file_name()?.to_str()?.to_owned());
        Some(DrmCard {
            index: String::new(),
            address: fs::canonicalize(&device).ok().and_then(name)?,
            driver: fs::read_link(device.join("driver")).ok().and_then(name)?,
            device,
            energy: None,
        })
    }

    fn read(&mut self) -> Option<Gpu> {
        let device = &self.device;
        let status = read_value(&device.join("power/runtime_status"));
        if status.is_some_and(|status| status != "active" && status != "unsupported") {
            return None;
        }
        let hwmon = fs::read_dir(device.join("hwmon"))
            .into_iter()
            .flatten()
            .flatten();
        let hwmon = hwmon.map(|entry| entry.path()).min();
        let sensor = |name: &str| number(&hwmon.as_ref()?.join(name));
        // The first sensor is the edge of the die; xe has only the second, the package.
        let millidegrees = sensor("temp1_input").or_else(|| sensor("temp2_input"));
        let microwatts = sensor("power1_average").or_else(|| sensor("power1_input"));
        let mut gpu = Gpu {
            index: self.index.clone(),
            driver: Some(self.driver.clone()),
            temperature: millidegrees.map(|value| value / 1e3),
            power: microwatts.map(|value| value / 1e6),
            ..Gpu::default()
        };
        if self.driver == "amdgpu" {
            let memory = |what: &str| GpuMemory {
                vram: number(&device.join(format!("mem_info_vram_{what}"))),
                gtt: number(&device.join(format!("mem_info_gtt_{what}"))),
            };
            gpu.name = read_value(&device.join("product_name"));
            gpu.uuid = read_value(&device.join("unique_id"));
            let busy = number(&device.join("gpu_busy_percent"));
            gpu.utilization = busy.filter(|percent| *percent <= 100.0);
            gpu.memory_used = memory("used");
            gpu.memory_total = memory("total");
            gpu.memory_free = gpu.memory_total.without(gpu.memory_used);
        }
        if gpu.power.is_none() {
            let energy = sensor("energy1_input").map(|energy| (Instant::now(), energy));
            let before = std::mem::replace(&mut self.energy, energy);
            gpu.power = before
                .zip(energy)
                .and_then(|((then, before), (now, energy))| {
                    let watts = (energy - before) / 1e6 / now.duration_since(then).as_secs_f64();
                    (watts.is_finite() && watts >= 0.0).then_some(watts)
                });
        }
        // A display adapter without any sensor is left out.
        let values = [
            gpu.utilization,
            gpu.temperature,
            gpu.memory_total.vram,
            gpu.power,
        ];
        values.iter().any(Option::is_some).then_some(gpu)
    }
}

/// GPU memory by PCI address, from the texts of fdinfo. A client with several descriptors counts
/// once.
fn memory_by_address(texts: impl Iterator<Item = String>) -> BTreeMap<String, GpuMemory> {
    let mut clients: BTreeMap<(String, String), GpuMemory> = BTreeMap::new();
    for text in texts {
        // `drm-memory-` is the older name; some kernels have both.
        let memory = |kind: &str| {
            let names = [format!("drm-resident-{kind}"), format!("drm-memory-{kind}")];
            names.iter().find_map(|name| bytes(field(&text, name)?))
        };
        if let (Some(address), Some(client)) =
            (field(&text, "drm-pdev"), field(&text, "drm-client-id"))
        {
            let memory = GpuMemory {
                vram: memory("vram"),
                gtt: memory("gtt"),
            };
            clients.insert((address.to_owned(), client.to_owned()), memory);
        }
    }
    let add = |a: Option<f64>, b: Option<f64>| a.map_or(b, |a| Some(a + b.unwrap_or(0.0)));
    let mut cards: BTreeMap<String, GpuMemory> = BTreeMap::new();
    for ((address, _), memory) in clients {
        let sum = cards.entry(address).or_default();
        sum.vram = add(sum.vram, memory.vram);
        sum.gtt = add(sum.gtt, memory.gtt);
    }
    cards.retain(|_, memory| *memory != GpuMemory::default());
    cards
}

/// Parses a number of bytes with an optional unit, such as `2048 KiB`.
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

/// Reads a file that holds one number; `None` if it is invalid or negative.
fn number(path: &Path) -> Option<f64> {
    let number: f64 = read_value(path)?.parse().ok()?;
    (number.is_finite() && number >= 0.0).then_some(number)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::machine::tests::file_tree::FileTree;

    /// An amdgpu card as in the kernel's documentation, and an Intel card.
    fn machine() -> FileTree {
        let amd = "sys/devices/pci0000:00/0000:03:00.0";
        let intel = "sys/devices/pci0000:00/0000:00:02.0";
        let tree = FileTree::new(&[
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
    fn a_card_has_utilization_memory_temperature_and_power() {
        let tree = machine();
        let mut cards = DrmCards::find(&tree.path("sys"), false);
        let begun = std::time::Instant::now();
        let gpus = cards.read();
        assert_eq!(gpus.len(), 1, "Intel's power needs a second reading");
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
        assert_eq!(DrmCards::find(&tree.path("sys"), true).0[1].index, "card1");
    }

    #[test]
    fn a_suspended_card_is_not_read() {
        let tree = machine();
        let status = "sys/devices/pci0000:00/0000:03:00.0/power/runtime_status";
        tree.write(status, "suspended\n");
        assert!(DrmCards::find(&tree.path("sys"), false).read().is_empty());
    }

    #[test]
    fn invalid_numbers_are_absent() {
        let tree = machine();
        let folder = "sys/devices/pci0000:00/0000:03:00.0";
        tree.write(&format!("{folder}/gpu_busy_percent"), "-1\n");
        tree.write(&format!("{folder}/mem_info_vram_used"), "\n");
        tree.write(&format!("{folder}/hwmon/hwmon4/temp1_input"), "warm\n");
        let gpu = &DrmCards::find(&tree.path("sys"), false).read()[0];
        assert_eq!(
            (gpu.utilization, gpu.memory_used.vram, gpu.temperature),
            (None, None, None)
        );
    }

    #[test]
    fn memory_of_a_process_counts_each_client_once() {
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
        let cards = DrmCards::find(&tree.path("sys"), false);
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
    fn system_memory_and_video_memory_are_separate() {
        let tree = FileTree::new(&[("sys/bus/pci/drivers/amdgpu/x", "")]);
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
        let mut cards = DrmCards::find(&tree.path("sys"), false);
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
