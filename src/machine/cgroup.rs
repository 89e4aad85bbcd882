//! Resource limits of a process: its cgroup, its CPUs, the machine's memory.
//!
//! File formats are described in the kernel's `admin-guide/cgroup-v2.rst` and `cgroup-v1/`.

use std::path::{Component, Path, PathBuf};

use crate::machine::procfs::Procfs;
use crate::machine::pseudo_files::{read_text, read_value};
use crate::process::procfs_parsers::{bytes_field, cpu_ranges};

/// The most levels of cgroups that are read; real hierarchies have fewer.
const MAX_DEPTH: usize = 64;

/// The limits of a process; `None` if unknown, because its cgroup is not visible.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct ResourceLimits {
    /// Bytes of memory.
    pub memory_bytes: Option<f64>,
    /// CPUs that its cgroup may use at a time; infinite without a limit.
    pub cpus: Option<f64>,
}

impl ResourceLimits {
    /// Reads the limits of the process `pid`.
    pub fn read(procfs: &Procfs, sysfs: &Path, pid: u32) -> ResourceLimits {
        let meminfo = read_text(&procfs.path("meminfo")).unwrap_or_default();
        let machine = bytes_field(&meminfo, "MemTotal").unwrap_or(f64::INFINITY);
        let Ok(membership) = read_text(&procfs.process_path(pid, "cgroup")) else {
            // A kernel without cgroups limits nothing.
            return ResourceLimits {
                memory_bytes: Some(machine).filter(|bytes| bytes.is_finite()),
                cpus: Some(f64::INFINITY),
            };
        };
        let own = read_text(&procfs.path("self/cgroup")).unwrap_or_default();
        let tree = sysfs.join("fs/cgroup");
        let limit = |controller, read: &dyn Fn(&Path, CgroupVersion) -> Option<f64>| {
            lowest_limit(&tree, [&membership, &own], controller, read)
        };
        let memory = limit("memory", &|group, version| {
            let file = match version {
                CgroupVersion::One => "memory.limit_in_bytes",
                CgroupVersion::Two => "memory.max",
            };
            read_value(&group.join(file))?.parse().ok()
        });
        let cpus = limit("cpu", &|group, version| {
            let (quota, period) = match version {
                CgroupVersion::One => (
                    read_value(&group.join("cpu.cfs_quota_us"))?,
                    read_value(&group.join("cpu.cfs_period_us"))?,
                ),
                CgroupVersion::Two => {
                    let max = read_value(&group.join("cpu.max"))?;
                    let (quota, period) = max.split_once(' ')?;
                    (quota.to_owned(), period.to_owned())
                }
            };
            let (quota, period): (f64, f64) = (quota.parse().ok()?, period.parse().ok()?);
            // Without a limit, version 1 has a quota of -1, and version 2 the word `max`.
            (quota > 0.0 && period > 0.0).then_some(quota / period)
        });
        let memory = memory.map(|limit| limit.min(machine));
        ResourceLimits {
            memory_bytes: memory.filter(|bytes| bytes.is_finite()),
            cpus,
        }
    }
}

/// The number of online CPUs that a process may run on; all online CPUs if `allowed` is unknown.
pub fn online_cpus(sysfs: &Path, allowed: Option<&[(u32, u32)]>) -> Option<f64> {
    let online = read_value(&sysfs.join("devices/system/cpu/online"));
    let online = online.and_then(|text| cpu_ranges(&text));
    let online = online.as_deref().or(allowed)?;
    let allowed = allowed.unwrap_or(online);
    let overlap = |a: &(u32, u32), b: &(u32, u32)| {
        let end = u64::from(a.1.min(b.1)).saturating_add(1);
        end.saturating_sub(a.0.max(b.0).into())
    };
    let pairs = allowed
        .iter()
        .flat_map(|a| online.iter().map(move |b| overlap(a, b)));
    let count = pairs.fold(0, u64::saturating_add);
    (count > 0).then_some(count as f64)
}

/// The lowest limit of a process's cgroup and its ancestors; infinite without a limit, `None` if
/// the cgroup is not visible. `membership` and `own` are the `/proc/PID/cgroup` of that process and
/// of this one.
fn lowest_limit(
    tree: &Path,
    [membership, own]: [&str; 2],
    controller: &str,
    read: &dyn Fn(&Path, CgroupVersion) -> Option<f64>,
) -> Option<f64> {
    let cgroup = Cgroup::find(tree, membership, controller)?;
    let path = Path::new(cgroup.path);
    // The cgroup is outside of the visible hierarchy.
    if path.components().any(|part| part == Component::ParentDir) {
        return None;
    }
    // In a container, the root of the visible hierarchy may be this process's own cgroup.
    let own = Cgroup::find(tree, own, controller).filter(|own| own.root == cgroup.root);
    let tops = [Some("/"), own.as_ref().map(|own| own.path)]
        .into_iter()
        .flatten();
    let folder = tops
        .filter_map(|top| Some(cgroup.root.join(path.strip_prefix(top).ok()?)))
        .find(|folder| folder.is_dir())?;
    let groups = folder
        .ancestors()
        .take_while(|group| group.starts_with(&cgroup.root));
    let limits = groups
        .take(MAX_DEPTH)
        .filter_map(|group| read(group, cgroup.version));
    Some(limits.fold(f64::INFINITY, f64::min))
}

#[derive(Clone, Copy)]
enum CgroupVersion {
    One,
    Two,
}

/// The cgroup of a process for one controller.
struct Cgroup<'a> {
    version: CgroupVersion,
    /// Where the hierarchy is mounted.
    root: PathBuf,
    /// The path below the root.
    path: &'a str,
}

impl<'a> Cgroup<'a> {
    /// Finds the cgroup in `/proc/PID/cgroup`, whose lines are `ID:CONTROLLERS:PATH`. A controller
    /// is either in a hierarchy of version 1, or in that of version 2.
    fn find(tree: &Path, membership: &'a str, controller: &str) -> Option<Cgroup<'a>> {
        let lines = || {
            membership.lines().filter_map(|line| {
                let (id, rest) = line.split_once(':')?;
                let (controllers, path) = rest.split_once(':')?;
                Some((id, controllers, path))
            })
        };
        let has = |controllers: &str| controllers.split(',').any(|name| name == controller);
        if let Some((_, controllers, path)) = lines().find(|line| has(line.1)) {
            // Controllers that are mounted together share a folder, with a link for each.
            let together = tree.join(controllers);
            let root = if together.is_dir() {
                together
            } else {
                tree.join(controller)
            };
            return Some(Cgroup {
                version: CgroupVersion::One,
                root,
                path,
            });
        }
        let (_, _, path) = lines().find(|line| line.0 == "0" && line.1.is_empty())?;
        // If version 1 is in use too, version 2 is mounted at `unified`.
        let unified = tree.join("unified");
        let root = if unified.is_dir() {
            unified
        } else {
            tree.to_owned()
        };
        Some(Cgroup {
            version: CgroupVersion::Two,
            root,
            path,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::tests::file_tree::FileTree;

    const MACHINE: f64 = 16.0 * 1024.0 * 1024.0 * 1024.0;

    fn tree(files: &[(&str, &str)]) -> (FileTree, ResourceLimits) {
        let tree = FileTree::new(&[("proc/meminfo", "MemTotal:       16777216 kB\n")]);
        for (path, text) in files {
            tree.write(path, text);
        }
        let procfs = Procfs::new(&tree.path("proc"));
        let limits = ResourceLimits::read(&procfs, &tree.path("sys"), 7);
        (tree, limits)
    }

    #[test]
    fn the_lowest_limit_of_version_2_up_to_the_root_counts() {
        let (_tree, limits) = tree(&[
            ("proc/7/cgroup", "0::/a.slice/b.scope\n"),
            ("sys/fs/cgroup/a.slice/memory.max", "1073741824\n"),
            ("sys/fs/cgroup/a.slice/cpu.max", "150000 100000\n"),
            ("sys/fs/cgroup/a.slice/b.scope/memory.max", "max\n"),
            ("sys/fs/cgroup/a.slice/b.scope/cpu.max", "max 100000\n"),
        ]);
        assert_eq!(limits.memory_bytes, Some(1073741824.0));
        assert_eq!(limits.cpus, Some(1.5));
    }

    #[test]
    fn the_root_of_a_container_is_limited_too() {
        let (_tree, limits) = tree(&[
            ("proc/7/cgroup", "0::/\n"),
            ("sys/fs/cgroup/memory.max", "2147483648\n"),
        ]);
        assert_eq!(limits.memory_bytes, Some(2147483648.0));
        assert_eq!(limits.cpus, Some(f64::INFINITY));
    }

    #[test]
    fn version_1_has_a_tree_for_each_controller() {
        let (_tree, limits) = tree(&[
            (
                "proc/7/cgroup",
                "5:memory:/docker/x\n4:cpu,cpuacct:/docker/x\n0::/\n",
            ),
            (
                "sys/fs/cgroup/memory/docker/x/memory.limit_in_bytes",
                "536870912\n",
            ),
            (
                "sys/fs/cgroup/memory/memory.limit_in_bytes",
                "9223372036854771712\n",
            ),
            (
                "sys/fs/cgroup/cpu,cpuacct/docker/x/cpu.cfs_quota_us",
                "50000\n",
            ),
            (
                "sys/fs/cgroup/cpu,cpuacct/docker/x/cpu.cfs_period_us",
                "100000\n",
            ),
            ("sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us", "-1\n"),
            ("sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us", "100000\n"),
        ]);
        assert_eq!(limits.memory_bytes, Some(536870912.0));
        assert_eq!(limits.cpus, Some(0.5));
    }

    #[test]
    fn a_containers_own_cgroup_may_be_the_visible_root() {
        let (_tree, limits) = tree(&[
            ("proc/self/cgroup", "5:memory:/docker/x\n4:cpu:/docker/x\n"),
            ("proc/7/cgroup", "5:memory:/docker/x\n4:cpu:/docker/x/y\n"),
            ("sys/fs/cgroup/memory/memory.limit_in_bytes", "1048576\n"),
            ("sys/fs/cgroup/cpu/y/cpu.cfs_quota_us", "-1\n"),
            ("sys/fs/cgroup/cpu/cpu.cfs_quota_us", "25000\n"),
            ("sys/fs/cgroup/cpu/cpu.cfs_period_us", "100000\n"),
        ]);
        assert_eq!(limits.memory_bytes, Some(1048576.0));
        assert_eq!(limits.cpus, Some(0.25));
    }

    #[test]
    fn without_a_limit_the_machines_memory_is_the_limit() {
        let (_tree, limits) = tree(&[
            ("proc/7/cgroup", "0::/user.slice\n"),
            ("sys/fs/cgroup/user.slice/memory.max", "max\n"),
        ]);
        assert_eq!(limits.memory_bytes, Some(MACHINE));
        let (_tree, limits) = tree(&[("proc/7/comm", "no cgroups\n")]);
        assert_eq!(limits.memory_bytes, Some(MACHINE));
    }

    #[test]
    fn an_invisible_cgroup_leaves_the_limits_unknown() {
        for path in ["0::/../../other\n", "0::/not-mounted\n"] {
            let (_tree, limits) = tree(&[("proc/7/cgroup", path), ("sys/fs/cgroup/x", "")]);
            assert_eq!(limits, ResourceLimits::default(), "{path}");
        }
    }

    #[test]
    fn cpus_count_if_allowed_and_online() {
        let tree = FileTree::new(&[("devices/system/cpu/online", "0-3,6-7\n")]);
        let count = |cpus| online_cpus(&tree.path(""), cpus);
        assert_eq!(count(Some(&[(0, 127)])), Some(6.0));
        assert_eq!(count(Some(&[(1, 1), (5, 6)])), Some(2.0));
        assert_eq!(count(None), Some(6.0));
        assert_eq!(online_cpus(Path::new("/none"), Some(&[(0, 1)])), Some(2.0));
    }
}
