//! What a process may use: its cgroup's limits, the processors, the machine's memory.
//!
//! Files as the kernel's `admin-guide/cgroup-v2.rst` and `cgroup-v1/` describe them.

use std::path::{Component, Path, PathBuf};

use crate::machine::procfs::{Procfs, ranges, read_text};

/// How far up the tree of cgroups is looked; it is never as deep.
const DEEPEST: usize = 64;

/// What a process may use.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Limits {
    /// Bytes of memory.
    pub memory_bytes: Option<f64>,
    /// Processors that its cgroup lets it use at a time; infinite where it limits none.
    pub processors: Option<f64>,
}

/// Reads the limits of the process `pid`. What cannot be seen from here is not known.
pub fn of_process(procfs: &Procfs, sysfs: &Path, pid: u32) -> Limits {
    let machine = read_text(&procfs.path("meminfo"), 16 << 10)
        .ok()
        .and_then(|text| total_memory(&text));
    let Ok(membership) = read_text(&procfs.of(pid, "cgroup"), 64 << 10) else {
        // A kernel without cgroups limits nothing.
        return Limits {
            memory_bytes: machine,
            processors: Some(f64::INFINITY),
        };
    };
    let own = read_text(&procfs.path("self/cgroup"), 64 << 10).unwrap_or_default();
    let tree = sysfs.join("fs/cgroup");
    let limit = |controller, read: &dyn Fn(&Path, Version) -> Option<f64>| {
        limit(&tree, [&membership, &own], controller, read)
    };
    let memory = limit("memory", &|folder, version| {
        let (file, none) = match version {
            Version::Two => ("memory.max", "max"),
            Version::One => ("memory.limit_in_bytes", ""),
        };
        let text = read_text(&folder.join(file), 64).ok()?;
        text.trim()
            .parse::<f64>()
            .ok()
            .filter(|_| text.trim() != none)
    });
    let quota = limit("cpu", &|folder, version| match version {
        Version::Two => {
            let text = read_text(&folder.join("cpu.max"), 64).ok()?;
            let (quota, period) = text.trim().split_once(' ')?;
            share(quota, period)
        }
        Version::One => {
            let read = |file| read_text(&folder.join(file), 64).ok();
            share(
                read("cpu.cfs_quota_us")?.trim(),
                read("cpu.cfs_period_us")?.trim(),
            )
        }
    });
    Limits {
        // A limit that is larger than the machine is none.
        memory_bytes: memory.and_then(|limit| match (limit, machine) {
            (Some(limit), Some(machine)) => Some(limit.min(machine)),
            (limit, machine) => machine.or(limit),
        }),
        processors: quota.map(|quota| quota.unwrap_or(f64::INFINITY)),
    }
}

/// Processors of `cpus` that are there; all that are there where `cpus` is not known.
pub fn processors(sysfs: &Path, cpus: Option<&[(u32, u32)]>) -> Option<f64> {
    let online = read_text(&sysfs.join("devices/system/cpu/online"), 4096)
        .ok()
        .and_then(|text| ranges(&text));
    let count = match (cpus, &online) {
        (Some(cpus), Some(online)) => overlap(cpus, online),
        (Some(one), None) => overlap(one, one),
        (None, Some(one)) => overlap(one, one),
        (None, None) => return None,
    };
    (count > 0).then_some(count as f64)
}

fn overlap(some: &[(u32, u32)], others: &[(u32, u32)]) -> u64 {
    let pair = |a: &(u32, u32), b: &(u32, u32)| {
        let (first, last) = (a.0.max(b.0), a.1.min(b.1));
        if first > last {
            0
        } else {
            u64::from(last.saturating_sub(first)).saturating_add(1)
        }
    };
    let pairs = some.iter().flat_map(|a| others.iter().map(|b| pair(a, b)));
    pairs.fold(0, u64::saturating_add)
}

#[derive(Clone, Copy)]
enum Version {
    One,
    Two,
}

/// The lowest limit of the cgroup and of those that it is in: `None` where the
/// cgroup cannot be seen, `Some(None)` where nothing limits it. The memberships
/// are those of the process and of our own.
fn limit(
    tree: &Path,
    [membership, own]: [&str; 2],
    controller: &str,
    read: &dyn Fn(&Path, Version) -> Option<f64>,
) -> Option<Option<f64>> {
    let mut lowest: Option<f64> = None;
    let mut seen = false;
    let own = groups(tree, own, controller);
    for (version, root, path) in groups(tree, membership, controller) {
        let group = Path::new(&path);
        // Outside the tree that this process can see.
        if group.components().any(|part| part == Component::ParentDir) {
            return None;
        }
        // A container may be shown a tree whose root is its own cgroup.
        let own = own.iter().find(|own| own.1 == root);
        let mut folder = [Some("/"), own.map(|own| own.2.as_str())]
            .into_iter()
            .filter_map(|top| Some(root.join(group.strip_prefix(top?).ok()?)))
            .find(|folder| folder.is_dir())?;
        seen = true;
        for _ in 0..DEEPEST {
            if let Some(limit) = read(&folder, version) {
                lowest = Some(lowest.map_or(limit, |lowest| lowest.min(limit)));
            }
            if folder == root || !folder.pop() {
                break;
            }
        }
    }
    seen.then_some(lowest)
}

/// Where the limits of `controller` may stand: the tree of version 2, and that
/// of version 1 where the controller is still there.
fn groups(tree: &Path, membership: &str, controller: &str) -> Vec<(Version, PathBuf, String)> {
    let mut found = Vec::new();
    for line in membership.lines() {
        let mut fields = line.splitn(3, ':');
        let (Some(number), Some(controllers), Some(path)) =
            (fields.next(), fields.next(), fields.next())
        else {
            continue;
        };
        if controllers.split(',').any(|name| name == controller) {
            // Controllers that are mounted together have one folder and a link each.
            let root = [controllers, controller]
                .map(|name| tree.join(name))
                .into_iter()
                .find(|root| root.is_dir());
            found.push((
                Version::One,
                root.unwrap_or_else(|| tree.join(controller)),
                path.to_owned(),
            ));
        } else if number == "0" && controllers.is_empty() {
            // Beside version 1, the tree of version 2 is mounted elsewhere.
            let unified = tree.join("unified");
            let root = if unified.is_dir() {
                unified
            } else {
                tree.to_owned()
            };
            found.push((Version::Two, root, path.to_owned()));
        }
    }
    // A controller is in one of the two.
    if found.iter().any(|group| matches!(group.0, Version::One)) {
        found.retain(|group| matches!(group.0, Version::One));
    }
    found
}

fn share(quota: &str, period: &str) -> Option<f64> {
    let quota: f64 = quota.parse().ok()?;
    let period: f64 = period.parse().ok()?;
    (quota > 0.0 && period > 0.0).then_some(quota / period)
}

fn total_memory(meminfo: &str) -> Option<f64> {
    let line = meminfo
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kilobytes: f64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kilobytes * 1024.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::test_files::Tree;

    const MACHINE: f64 = 16.0 * 1024.0 * 1024.0 * 1024.0;

    fn tree(files: &[(&str, &str)]) -> (Tree, Limits) {
        let tree = Tree::new(&[("proc/meminfo", "MemTotal:       16777216 kB\n")]);
        for (path, text) in files {
            tree.write(path, text);
        }
        let procfs = Procfs::new(&tree.path("proc"));
        let limits = of_process(&procfs, &tree.path("sys"), 7);
        (tree, limits)
    }

    #[test]
    fn the_lowest_limit_of_version_2_on_the_way_up_counts() {
        let (_tree, limits) = tree(&[
            ("proc/7/cgroup", "0::/a.slice/b.scope\n"),
            ("sys/fs/cgroup/a.slice/memory.max", "1073741824\n"),
            ("sys/fs/cgroup/a.slice/cpu.max", "150000 100000\n"),
            ("sys/fs/cgroup/a.slice/b.scope/memory.max", "max\n"),
            ("sys/fs/cgroup/a.slice/b.scope/cpu.max", "max 100000\n"),
        ]);
        assert_eq!(limits.memory_bytes, Some(1073741824.0));
        assert_eq!(limits.processors, Some(1.5));
    }

    #[test]
    fn the_root_of_a_container_is_limited_too() {
        let (_tree, limits) = tree(&[
            ("proc/7/cgroup", "0::/\n"),
            ("sys/fs/cgroup/memory.max", "2147483648\n"),
        ]);
        assert_eq!(limits.memory_bytes, Some(2147483648.0));
        assert_eq!(limits.processors, Some(f64::INFINITY));
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
        assert_eq!(limits.processors, Some(0.5));
    }

    #[test]
    fn a_containers_own_cgroup_may_be_the_root_of_what_it_sees() {
        let (_tree, limits) = tree(&[
            ("proc/self/cgroup", "5:memory:/docker/x\n4:cpu:/docker/x\n"),
            ("proc/7/cgroup", "5:memory:/docker/x\n4:cpu:/docker/x/y\n"),
            ("sys/fs/cgroup/memory/memory.limit_in_bytes", "1048576\n"),
            ("sys/fs/cgroup/cpu/y/cpu.cfs_quota_us", "-1\n"),
            ("sys/fs/cgroup/cpu/cpu.cfs_quota_us", "25000\n"),
            ("sys/fs/cgroup/cpu/cpu.cfs_period_us", "100000\n"),
        ]);
        assert_eq!(limits.memory_bytes, Some(1048576.0));
        assert_eq!(limits.processors, Some(0.25));
    }

    #[test]
    fn without_a_limit_it_is_the_machines_memory() {
        let (_tree, limits) = tree(&[
            ("proc/7/cgroup", "0::/user.slice\n"),
            ("sys/fs/cgroup/user.slice/memory.max", "max\n"),
        ]);
        assert_eq!(limits.memory_bytes, Some(MACHINE));
        let (_tree, limits) = tree(&[("proc/7/comm", "no cgroups\n")]);
        assert_eq!(limits.memory_bytes, Some(MACHINE));
    }

    #[test]
    fn a_cgroup_that_cannot_be_seen_leaves_the_limit_unknown() {
        for path in ["0::/../../other\n", "0::/not-mounted\n"] {
            let (_tree, limits) = tree(&[("proc/7/cgroup", path), ("sys/fs/cgroup/x", "")]);
            assert_eq!(limits, Limits::default(), "{path}");
        }
    }

    #[test]
    fn processors_are_those_that_it_may_run_on_and_that_are_there() {
        let tree = Tree::new(&[("devices/system/cpu/online", "0-3,6-7\n")]);
        let count = |cpus| processors(&tree.path(""), cpus);
        assert_eq!(count(Some(&[(0, 127)])), Some(6.0));
        assert_eq!(count(Some(&[(1, 1), (5, 6)])), Some(2.0));
        assert_eq!(count(None), Some(6.0));
        assert_eq!(processors(Path::new("/none"), Some(&[(0, 1)])), Some(2.0));
    }
}
