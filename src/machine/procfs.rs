//! Reads processes from `/proc`: identity, command line, memory, threads, descriptors.
//!
//! Formats are those of proc(5). Never signals a process.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use crate::machine::pseudo_files::{read_bytes, read_text};
use crate::process::file;
use crate::process::procfs_parsers::{self, ProcessStat, ProcessStatus};
pub use crate::readings::{HeldSocket, ProcessId};

/// The most bytes of a command line or environment that are read.
const MAX_COMMAND_LINE_BYTES: u64 = 1 << 20;
/// The most bytes of a command line that are read for the program's name.
const MAX_PROGRAM_BYTES: usize = 4096;
/// The most bytes of `/proc/stat` that are read: it has a line a CPU, and a number an interrupt.
const MAX_STAT_BYTES: u64 = 1 << 20;
/// The most bytes of `/proc/PID/maps` that are read.
const MAX_MAPS_BYTES: u64 = 8 << 20;
/// The most processes of a machine.
const MAX_PROCESSES: usize = 65_536;
/// The most descriptors of a process.
const MAX_DESCRIPTORS: usize = 65_536;

/// A procfs: `/proc`, or where the host's is mounted (`--procfs`).
#[derive(Clone, Debug)]
pub struct Procfs(PathBuf);

impl Procfs {
    /// The procfs mounted at `root`.
    pub fn new(root: &Path) -> Procfs {
        Procfs(root.to_owned())
    }

    /// The path of a file below the root.
    pub fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// The path of a file of the process `pid`.
    pub fn process_path(&self, pid: u32, name: &str) -> PathBuf {
        self.0.join(pid.to_string()).join(name)
    }

    /// The process that has this PID now.
    pub fn process_id(&self, pid: u32) -> Option<ProcessId> {
        let started = self.stat(pid)?.started;
        Some(ProcessId { pid, started })
    }

    /// Reads `/proc/PID/stat`; `None` if the process has ended, zombies included.
    pub fn stat(&self, pid: u32) -> Option<ProcessStat> {
        ProcessStat::parse(&read_text(&self.process_path(pid, "stat")).ok()?)
    }

    /// When the machine booted, in seconds since 1970.
    pub fn boot_time(&self) -> Option<f64> {
        let text = read_bytes(&self.path("stat"), MAX_STAT_BYTES).ok()?;
        procfs_parsers::boot_time(&String::from_utf8_lossy(&text))
    }

    /// Reads `/proc/PID/status`.
    pub fn status(&self, pid: u32) -> Option<ProcessStatus> {
        let text = read_text(&self.process_path(pid, "status")).ok()?;
        Some(ProcessStatus::parse(&text))
    }

    /// The command line, program name first. Empty for kernel threads.
    ///
    /// # Errors
    /// The process has ended.
    pub fn command_line(&self, pid: u32) -> io::Result<Vec<String>> {
        let path = self.process_path(pid, "cmdline");
        Ok(words(&read_bytes(&path, MAX_COMMAND_LINE_BYTES)?))
    }

    /// The first two words of the command line, each cut off after 4 KiB in all. Empty for kernel
    /// threads and ended processes.
    pub fn program(&self, pid: u32) -> Vec<String> {
        let mut bytes = [0; MAX_PROGRAM_BYTES];
        let path = self.process_path(pid, "cmdline");
        // One read: this is done for every process of the machine.
        let length = File::open(path).and_then(|mut file| file.read(&mut bytes));
        let bytes = bytes.get(..length.unwrap_or(0)).unwrap_or_default();
        let first = bytes.split(|byte| *byte == 0).take(2);
        first
            .map(|word| String::from_utf8_lossy(word).into_owned())
            .collect()
    }

    /// An environment variable of the process, which may be a secret.
    pub fn variable(&self, pid: u32, name: &str) -> Option<String> {
        let path = self.process_path(pid, "environ");
        let all = words(&read_bytes(&path, MAX_COMMAND_LINE_BYTES).ok()?);
        let mut values = all
            .iter()
            .filter_map(|word| word.strip_prefix(name)?.strip_prefix('='));
        values.next().map(str::to_owned)
    }

    /// The environment variables `LLAMA_ARG_*`. Discards all others, which may be secrets.
    ///
    /// # Errors
    /// Only root and the process's own user may read them.
    pub fn llama_variables(&self, pid: u32) -> io::Result<Vec<(String, String)>> {
        let path = self.process_path(pid, "environ");
        let all = words(&read_bytes(&path, MAX_COMMAND_LINE_BYTES)?);
        let llama = all.iter().filter(|word| word.starts_with("LLAMA_ARG_"));
        let pairs = llama.filter_map(|word| word.split_once('='));
        Ok(pairs
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .collect())
    }

    /// Whether the process is in the initial user namespace, where only root can create network
    /// namespaces. In others, any user can.
    pub fn is_in_initial_user_namespace(&self, pid: u32) -> bool {
        match read_text(&self.process_path(pid, "uid_map")) {
            Ok(map) => map.split_whitespace().eq(["0", "0", "4294967295"]),
            // A kernel without user namespaces.
            Err(error) => error.kind() == io::ErrorKind::NotFound,
        }
    }

    /// Whether its PIDs are those that the kernel gives us, of our own PID namespace.
    pub fn has_own_pids(&self) -> bool {
        let own = fs::read_link(self.path("self"));
        own.is_ok_and(|own| own.as_os_str() == std::process::id().to_string().as_str())
    }

    /// All PIDs, ascending.
    pub fn pids(&self) -> Vec<u32> {
        let entries = fs::read_dir(&self.0).into_iter().flatten().flatten();
        let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        let mut pids: Vec<u32> = pids.take(MAX_PROCESSES).collect();
        pids.sort_unstable();
        pids
    }

    /// The open descriptors of a process: path in `/proc/PID/fd`, and what it links to.
    ///
    /// # Errors
    /// Only root with `CAP_SYS_PTRACE` and the process's own user may read them.
    pub fn descriptors(&self, pid: u32) -> io::Result<impl Iterator<Item = (PathBuf, PathBuf)>> {
        let entries = fs::read_dir(self.process_path(pid, "fd"))?;
        let mut paths = entries.take(MAX_DESCRIPTORS).flatten().peekable();
        // Root without the capability may list the folder, but read none of its links.
        let first = paths.peek().map(|entry| fs::read_link(entry.path()));
        if let Some(Err(error)) = first
            && error.kind() == io::ErrorKind::PermissionDenied
        {
            return Err(error);
        }
        Ok(paths.filter_map(|entry| {
            let target = fs::read_link(entry.path()).ok()?;
            Some((entry.path(), target))
        }))
    }

    /// Whether the process has a device open whose path below `/dev/` starts with `name`.
    pub fn has_device_open(&self, pid: u32, name: &str) -> bool {
        let mut descriptors = self.descriptors(pid).into_iter().flatten();
        descriptors.any(|(_, target)| {
            let device = target.to_str().and_then(|path| path.strip_prefix("/dev/"));
            device.is_some_and(|device| device.starts_with(name))
        })
    }

    /// The sockets of `inodes` that the process has open, each with one of its descriptors.
    ///
    /// # Errors
    /// Only root and the process's own user may list them.
    pub fn sockets(&self, pid: u32, inodes: &BTreeSet<u64>) -> io::Result<Vec<HeldSocket>> {
        let mut wanted = inodes.clone();
        let mut held = Vec::new();
        for (descriptor, target) in self.descriptors(pid)? {
            if wanted.is_empty() {
                break;
            }
            if let Some(inode) = socket_inode(&target).filter(|inode| wanted.remove(inode)) {
                held.push(HeldSocket { descriptor, inode });
            }
        }
        Ok(held)
    }

    /// Whether the process has mapped a GGUF file or a library of llama.cpp. A process that only
    /// forwards connections (docker-proxy, a tunnel) has not.
    pub fn has_llama_cpp_mapped(&self, pid: u32) -> bool {
        const LIBRARIES: [&str; 5] = ["ggml", "libllama", "llama_cpp", "llamacpp", "llamafile"];
        let maps = read_bytes(&self.process_path(pid, "maps"), MAX_MAPS_BYTES).unwrap_or_default();
        String::from_utf8_lossy(&maps).lines().any(|line| {
            // Anonymous mappings have no path, and so no slash.
            let file = line.rsplit_once('/').map_or("", |(_, file)| file);
            file.ends_with(".gguf") || LIBRARIES.iter().any(|part| file.contains(part))
        })
    }

    /// Opens the regular file at `path` as seen by the process: relative to its working directory
    /// and root directory. No symbolic link leads out of that root.
    ///
    /// # Errors
    /// No such file, or only root and the process's own user may open it.
    pub fn open_as_seen_by(&self, pid: u32, path: &Path) -> io::Result<File> {
        let root = self.process_path(pid, "root");
        if path.is_absolute() {
            return file::regular_file_in_root(&root, path);
        }
        let working_directory = fs::read_link(self.process_path(pid, "cwd"))?;
        // Both links are paths in our view; a container sees its own root as `/`.
        let below_root = working_directory.strip_prefix(fs::read_link(&root)?);
        let path = below_root.map_err(io::Error::other)?.join(path);
        file::regular_file_in_root(&root, &path)
    }
}

impl HeldSocket {
    /// Whether the descriptor is still this socket.
    pub fn is_open(&self) -> bool {
        let target = fs::read_link(&self.descriptor);
        target.is_ok_and(|target| socket_inode(&target) == Some(self.inode))
    }
}

/// The inode number of `socket:[INODE]`, the link of a socket's descriptor.
fn socket_inode(target: &Path) -> Option<u64> {
    let inode = target.to_str()?.strip_prefix("socket:[")?;
    inode.strip_suffix(']')?.parse().ok()
}

/// Whether this process is in the initial PID namespace, whose PIDs the kernel itself uses. False
/// if unknown.
pub fn is_in_initial_pid_namespace() -> bool {
    /// `PROC_PID_INIT_INO` of `linux/proc_ns.h`.
    const INITIAL: &str = "pid:[4026531836]";
    fs::read_link("/proc/self/ns/pid").is_ok_and(|own| own.as_os_str() == INITIAL)
}

/// The words of a file, each of which ends with a zero byte.
fn words(bytes: &[u8]) -> Vec<String> {
    let bytes = bytes.strip_suffix(&[0]).unwrap_or(bytes);
    if bytes.is_empty() {
        return Vec::new();
    }
    let words = bytes.split(|byte| *byte == 0);
    words
        .map(|word| String::from_utf8_lossy(word).into_owned())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::tests::file_tree::FileTree;

    #[test]
    fn words_end_with_a_zero_byte() {
        assert_eq!(words(b"a\0\0b c\0"), ["a", "", "b c"]);
        assert!(words(b"").is_empty());
    }

    #[test]
    fn a_path_is_resolved_within_the_root_of_the_process() {
        let tree = FileTree::new(&[("rootfs/app/m", "app"), ("rootfs/data/m", "data")]);
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
        // A working directory outside of the root cannot be reached.
        assert_eq!(seen(8, "m"), None);
    }

    #[test]
    fn a_model_server_is_recognized_by_its_mappings() {
        let line = |path: &str| format!("7f00-7f01 r--p 00000000 fe:00 1234   {path}\n");
        let tree = FileTree::new(&[
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
        let has: Vec<bool> = (1..6).map(|pid| procfs.has_llama_cpp_mapped(pid)).collect();
        assert_eq!(has, [false, true, true, false, false]);
    }
}
