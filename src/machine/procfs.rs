//! What `/proc` tells of processes: who they are, how they were called, what they hold.
//!
//! Formats as proc(5) describes them. Nothing here changes or signals anything.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use crate::process::file;
use crate::process::procfs_stat::ProcessStat;

/// A process, and when it started: its number alone may be given to another one later.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Process {
    /// Its number in the PID namespace of the procfs that is read.
    pub pid: u32,
    /// When it started, in ticks since boot.
    pub started: u64,
}

/// The most bytes of a command line or an environment that are looked at.
const LONGEST_CALL: u64 = 1 << 20;
/// The most bytes of a list of what is mapped that are looked at.
const LONGEST_MAPS: u64 = 8 << 20;
/// The most processes that are looked at.
const MOST_PROCESSES: usize = 65_536;
/// The most descriptors of a process that are looked at.
const MOST_DESCRIPTORS: usize = 65_536;

/// `/proc`, or where the host's is mounted.
#[derive(Clone, Debug)]
pub struct Procfs(PathBuf);

impl Procfs {
    /// The procfs that is mounted at `root`.
    pub fn new(root: &Path) -> Procfs {
        Procfs(root.to_owned())
    }

    /// A path of one process.
    pub fn of(&self, pid: u32, name: &str) -> PathBuf {
        self.0.join(pid.to_string()).join(name)
    }

    /// A path below the root.
    pub fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// The process that has this number now.
    pub fn process(&self, pid: u32) -> Option<Process> {
        self.stat(pid).map(|stat| Process {
            pid,
            started: stat.started,
        })
    }

    /// `/proc/PID/stat`; `None` once the process is gone, or dead and not yet buried.
    pub fn stat(&self, pid: u32) -> Option<ProcessStat> {
        ProcessStat::parse(&read_text(&self.of(pid, "stat"), 4096).ok()?)
    }

    /// `/proc/PID/status`.
    pub fn status(&self, pid: u32) -> Option<Status> {
        // Masks of many processors and memory nodes make it long.
        Some(Status::parse(
            &read_text(&self.of(pid, "status"), 64 << 10).ok()?,
        ))
    }

    /// How the process was called: its arguments, the program's name first.
    ///
    /// # Errors
    /// The process is gone.
    pub fn arguments(&self, pid: u32) -> io::Result<Vec<String>> {
        Ok(words(&read(&self.of(pid, "cmdline"), LONGEST_CALL)?))
    }

    /// The variables that llama.cpp heeds. Others may be secrets and are not looked at.
    ///
    /// # Errors
    /// Only the process's own user and root may read them.
    pub fn variables(&self, pid: u32) -> io::Result<Vec<(String, String)>> {
        let all = words(&read(&self.of(pid, "environ"), LONGEST_CALL)?);
        Ok(all
            .iter()
            .filter(|variable| variable.starts_with("LLAMA_ARG_"))
            .filter_map(|variable| variable.split_once('='))
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .collect())
    }

    /// Whether the process is in the user namespace in which only root may make network
    /// namespaces: in others everybody may.
    pub fn is_in_first_user_namespace(&self, pid: u32) -> bool {
        match read_text(&self.of(pid, "uid_map"), 4096) {
            Ok(map) => map.split_whitespace().eq(["0", "0", "4294967295"]),
            // A kernel without user namespaces.
            Err(error) => error.kind() == io::ErrorKind::NotFound,
        }
    }

    /// Whether the process has a device open whose name under `/dev` begins so.
    pub fn has_device(&self, pid: u32, name: &str) -> bool {
        let entries = fs::read_dir(self.of(pid, "fd")).into_iter().flatten();
        entries.take(MOST_DESCRIPTORS).flatten().any(|entry| {
            let target = fs::read_link(entry.path()).unwrap_or_default();
            let target = target.to_str().and_then(|path| path.strip_prefix("/dev/"));
            target.is_some_and(|device| device.starts_with(name))
        })
    }

    /// The numbers of all processes, in order.
    pub fn pids(&self) -> Vec<u32> {
        let entries = fs::read_dir(&self.0).into_iter().flatten().flatten();
        let mut pids: Vec<u32> = entries
            .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
            .take(MOST_PROCESSES)
            .collect();
        pids.sort_unstable();
        pids
    }

    /// The descriptors through which the process holds sockets of `inodes`, as paths.
    ///
    /// # Errors
    /// Only the process's own user and root may look.
    pub fn holds(&self, pid: u32, inodes: &BTreeSet<u64>) -> io::Result<Vec<(PathBuf, u64)>> {
        let mut held: Vec<(PathBuf, u64)> = Vec::new();
        for entry in fs::read_dir(self.of(pid, "fd"))?.take(MOST_DESCRIPTORS) {
            let path = entry?.path();
            let new = |inode: &u64| {
                inodes.contains(inode) && !held.iter().any(|(_, known)| known == inode)
            };
            if let Some(inode) = socket_at(&path).filter(new) {
                held.push((path, inode));
                if held.len() == inodes.len() {
                    break;
                }
            }
        }
        Ok(held)
    }

    /// Whether the process has a model's file mapped, or what llama.cpp is made of: one
    /// that only hands on what it is asked (a container's port, a tunnel) has neither.
    pub fn has_llama_cpp(&self, pid: u32) -> bool {
        let maps = read_text(&self.of(pid, "maps"), LONGEST_MAPS).unwrap_or_default();
        maps.lines().any(|line| {
            // What has no file has no path: no slash then.
            let file = line.rsplit_once('/').map_or("", |(_, file)| file);
            file.ends_with(".gguf")
                || ["ggml", "libllama", "llama_cpp", "llamacpp", "llamafile"]
                    .iter()
                    .any(|part| file.contains(part))
        })
    }

    /// Opens the regular file at `path` as the process sees it: from its own root and working
    /// folder, and never out of that root, wherever symbolic links in it point.
    ///
    /// # Errors
    /// There is no such file, or only the process's own user and root may look.
    pub fn open_as_seen_by(&self, pid: u32, path: &Path) -> io::Result<File> {
        let root = self.of(pid, "root");
        if path.is_absolute() {
            return file::regular_file_in_root(&root, path);
        }
        let folder = fs::read_link(self.of(pid, "cwd"))?;
        // Both are told as seen from here; that of a container is its own `/`.
        let below = folder.strip_prefix(fs::read_link(&root)?);
        let below = below.map_err(io::Error::other)?.join(path);
        file::regular_file_in_root(&root, &below)
    }
}

/// The socket that the descriptor at `path` is, if it is one.
pub fn socket_at(path: &Path) -> Option<u64> {
    let target = fs::read_link(path).ok()?;
    let inode = target.to_str()?.strip_prefix("socket:[")?;
    inode.strip_suffix(']')?.parse().ok()
}

/// Whether this process is in the initial PID namespace, where every process has the PID that
/// the kernel itself knows it by. False also where that cannot be told.
pub fn is_in_initial_namespace() -> bool {
    /// `PROC_PID_INIT_INO` of `linux/proc_ns.h`.
    const INITIAL: &str = "pid:[4026531836]";
    fs::read_link("/proc/self/ns/pid").is_ok_and(|own| own.as_os_str() == INITIAL)
}

/// What `/proc/PID/status` says.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Status {
    /// Bytes resident.
    pub resident_bytes: Option<f64>,
    /// Threads.
    pub threads: Option<f64>,
    /// The user whose rights it has.
    pub uid: Option<u32>,
    /// The processors that it may run on.
    pub cpus: Option<Vec<(u32, u32)>>,
}

impl Status {
    /// Reads it.
    pub fn parse(text: &str) -> Status {
        let mut status = Status::default();
        for line in text.lines() {
            let Some((key, value)) = line.split_once(':') else {
                continue;
            };
            let value = value.trim();
            match key {
                "VmRSS" => {
                    let kilobytes = value.strip_suffix("kB").map(str::trim);
                    let kilobytes = kilobytes.and_then(|number| number.parse::<f64>().ok());
                    status.resident_bytes = kilobytes.map(|number| number * 1024.0);
                }
                "Threads" => status.threads = value.parse().ok(),
                // Real, effective, saved, file system.
                "Uid" => {
                    let effective = value.split_whitespace().nth(1);
                    status.uid = effective.and_then(|uid| uid.parse().ok());
                }
                "Cpus_allowed_list" => status.cpus = ranges(value),
                _ => {}
            }
        }
        status
    }
}

/// A list such as `0-3,8`.
pub fn ranges(text: &str) -> Option<Vec<(u32, u32)>> {
    let text = text.trim();
    if text.is_empty() {
        return None;
    }
    text.split(',')
        .map(|part| {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let range: (u32, u32) = (first.parse().ok()?, last.parse().ok()?);
            (range.0 <= range.1).then_some(range)
        })
        .collect()
}

/// The words of a file in which each ends with a zero byte.
fn words(bytes: &[u8]) -> Vec<String> {
    let bytes = bytes.strip_suffix(&[0]).unwrap_or(bytes);
    if bytes.is_empty() {
        return Vec::new();
    }
    bytes
        .split(|byte| *byte == 0)
        .map(|word| String::from_utf8_lossy(word).into_owned())
        .collect()
}

/// At most `limit` bytes of a file.
///
/// # Errors
/// What the system says.
pub fn read(path: &Path, limit: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(limit).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// At most `limit` bytes of a file, as text.
///
/// # Errors
/// What the system says.
pub fn read_text(path: &Path, limit: u64) -> io::Result<String> {
    Ok(String::from_utf8_lossy(&read(path, limit)?).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::test_files::Tree;

    #[test]
    fn a_status_tells_memory_threads_user_and_processors() {
        let text = "Name:\tllama\nUid:\t0\t1000\t0\t0\nVmRSS:\t  2048 kB\nThreads:\t9\nCpus_allowed_list:\t0-1,5\n";
        let status = Status::parse(text);
        assert_eq!(status.resident_bytes, Some(2097152.0));
        assert_eq!((status.threads, status.uid), (Some(9.0), Some(1000)));
        assert_eq!(status.cpus, Some(vec![(0, 1), (5, 5)]));
        // A kernel thread has no memory of its own.
        assert_eq!(Status::parse("Name:\tx\n").resident_bytes, None);
        assert_eq!(ranges("3-1"), None);
    }

    #[test]
    fn words_end_with_a_zero_byte() {
        assert_eq!(words(b"a\0\0b c\0"), ["a", "", "b c"]);
        assert!(words(b"").is_empty());
    }

    #[test]
    fn a_path_is_followed_as_the_process_sees_it_and_not_out_of_its_root() {
        let tree = Tree::new(&[("rootfs/app/m", "app"), ("rootfs/data/m", "data")]);
        tree.write("outside/m", "outside");
        tree.link("7/root", tree.path("rootfs"));
        tree.link("7/cwd", tree.path("rootfs/app"));
        tree.link("rootfs/app/latest", "/data");
        tree.link("rootfs/app/out", "../../outside/m");
        tree.link("8/root", tree.path("rootfs"));
        tree.link("8/cwd", tree.path("outside"));
        let procfs = Procfs::new(&tree.path(""));
        let seen = |pid, path: &str| {
            let mut text = String::new();
            let mut file = procfs.open_as_seen_by(pid, Path::new(path)).ok()?;
            file.read_to_string(&mut text).unwrap();
            Some(text)
        };
        for (path, real) in [
            ("m", "app"),
            ("/app/m", "app"),
            ("latest/m", "data"),
            ("../../../data/m", "data"),
        ] {
            assert_eq!(seen(7, path).as_deref(), Some(real), "{path}");
        }
        for path in ["out", "none", "/outside/m"] {
            assert_eq!(seen(7, path), None, "{path}");
        }
        // A working folder that is not below the root is not to be reached by a path.
        assert_eq!(seen(8, "m"), None);
    }

    #[test]
    fn a_process_that_has_a_model_mapped_is_told_from_one_that_hands_on() {
        let line = |path: &str| format!("7f00-7f01 r--p 00000000 fe:00 1234   {path}\n");
        let tree = Tree::new(&[
            (
                "1/maps",
                &(line("/usr/bin/docker-proxy") + &line("[heap]") + &line("")),
            ),
            ("2/maps", &line("/m/a model.gguf")),
            (
                "3/maps",
                &line("/lib/xllamacpp.cpython-312-x86_64-linux-gnu.so"),
            ),
            ("4/maps", &line("/home/llama_cpp/nginx")),
        ]);
        let procfs = Procfs::new(&tree.path(""));
        let has: Vec<bool> = (1..6).map(|pid| procfs.has_llama_cpp(pid)).collect();
        assert_eq!(has, [false, true, true, false, false]);
    }
}
