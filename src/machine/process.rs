//! What `/proc` tells of processes: who listens, who they are, how they were called.
//!
//! Formats as proc(5) describes them. Nothing here changes or signals anything.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

/// A process, and when it started: its number alone may be given to another one later.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Process {
    /// Its number in the PID namespace of the procfs that is read.
    pub pid: u32,
    /// When it started, in ticks since boot.
    pub started: u64,
}

/// Something that a process listens on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Listener {
    /// The socket's number, which `/proc/PID/fd` has too.
    pub inode: u64,
    /// The user that it belongs to; not told of Unix sockets.
    pub uid: Option<u32>,
}

/// The most bytes of a command line or an environment that are looked at.
const LONGEST_CALL: u64 = 1 << 20;
/// The most bytes of a table of sockets that are looked at.
const LONGEST_TABLE: u64 = 32 << 20;
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
    pub fn stat(&self, pid: u32) -> Option<Stat> {
        Stat::parse(&read_text(&self.of(pid, "stat"), 4096).ok()?)
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

    /// What listens on the TCP port `port` of this network namespace.
    pub fn tcp_listeners(&self, port: u16) -> Vec<Listener> {
        let in_tables = |tables: [&str; 2]| -> Vec<Listener> {
            let text = |table| read_text(&self.path(table), LONGEST_TABLE).unwrap_or_default();
            tables
                .iter()
                .flat_map(|table| tcp_listeners(&text(table), port))
                .collect()
        };
        let found = in_tables(["net/tcp", "net/tcp6"]);
        if found.is_empty() {
            // The network of the machine itself, seen from a container that was given its procfs.
            in_tables(["1/net/tcp", "1/net/tcp6"])
        } else {
            found
        }
    }

    /// What listens on the Unix socket at `path`.
    pub fn unix_listeners(&self, path: &str) -> Vec<Listener> {
        let text = read_text(&self.path("net/unix"), LONGEST_TABLE).unwrap_or_default();
        unix_listeners(&text, path)
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

    /// The descriptor through which the process holds one of `inodes`, as a path.
    ///
    /// # Errors
    /// Only the process's own user and root may look.
    pub fn holds(&self, pid: u32, inodes: &[u64]) -> io::Result<Option<(PathBuf, u64)>> {
        for entry in fs::read_dir(self.of(pid, "fd"))?.take(MOST_DESCRIPTORS) {
            let path = entry?.path();
            if let Some(inode) = socket_at(&path).filter(|inode| inodes.contains(inode)) {
                return Ok(Some((path, inode)));
            }
        }
        Ok(None)
    }
}

/// The socket that the descriptor at `path` is, if it is one.
pub fn socket_at(path: &Path) -> Option<u64> {
    let target = fs::read_link(path).ok()?;
    let inode = target.to_str()?.strip_prefix("socket:[")?;
    inode.strip_suffix(']')?.parse().ok()
}

/// What `/proc/PID/stat` says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stat {
    /// User and system time, in ticks.
    pub cpu_ticks: u64,
    /// When the process started, in ticks since boot.
    pub started: u64,
}

impl Stat {
    /// Reads it; `None` also for a process that has ended and waits to be asked how.
    pub fn parse(text: &str) -> Option<Stat> {
        // The program's name, in parentheses, may itself hold spaces and parentheses.
        let (_, fields) = text.rsplit_once(") ")?;
        let fields: Vec<&str> = fields.split_whitespace().collect();
        if matches!(*fields.first()?, "Z" | "X" | "x") {
            return None;
        }
        let field = |number: usize| fields.get(number - 3)?.parse::<u64>().ok();
        Some(Stat {
            cpu_ticks: field(14)?.checked_add(field(15)?)?,
            started: field(22)?,
        })
    }
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

/// What `/proc/net/tcp` or `tcp6` shows to listen on `port`.
fn tcp_listeners(text: &str, port: u16) -> Vec<Listener> {
    let listening = |line: &str| {
        let fields: Vec<&str> = line.split_whitespace().take(10).collect();
        let [_, local, _, "0A", _, _, _, uid, _, inode] = fields[..] else {
            return None;
        };
        let (_, local_port) = local.rsplit_once(':')?;
        (u16::from_str_radix(local_port, 16).ok()? == port).then_some(())?;
        Some(Listener {
            inode: inode.parse().ok()?,
            uid: uid.parse().ok(),
        })
    };
    text.lines().filter_map(listening).collect()
}

/// What `/proc/net/unix` shows to listen at `path`.
fn unix_listeners(text: &str, path: &str) -> Vec<Listener> {
    /// `__SO_ACCEPTCON`: it waits for connections.
    const ACCEPTS: u32 = 0x10000;
    let listening = |line: &str| {
        let mut fields = line.splitn(8, ' ').filter(|field| !field.is_empty());
        let flags = u32::from_str_radix(fields.nth(3)?, 16).ok()?;
        (flags & ACCEPTS != 0).then_some(())?;
        // The inode is right-aligned, and the path may hold spaces.
        let rest = line.strip_suffix(path)?;
        let inode = rest.strip_suffix(' ')?.rsplit(' ').next()?;
        Some(Listener {
            inode: inode.parse().ok()?,
            uid: None,
        })
    };
    text.lines().filter_map(listening).collect()
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

    #[test]
    fn a_listener_is_found_by_its_port_and_a_connection_is_none() {
        let text = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n   \
             0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000  1000        0 41234 1 0 100 0 0 10 0\n   \
             1: 0100007F:1F90 0100007F:9C40 01 00000000:00000000 00:00000000 00000000  1000        0 41299 1 0 20 4 30 10 -1\n   \
             2: 0100007F:1F91 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 77 1 0 100 0 0 10 0\n";
        let listener = Listener {
            inode: 41234,
            uid: Some(1000),
        };
        assert_eq!(tcp_listeners(text, 8080), [listener]);
        assert!(tcp_listeners(text, 80).is_empty());
        let text6 = "   0: 00000000000000000000000001000000:1F90 00000000000000000000000000000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 5 1 0 100 0 0 10 0\n";
        assert_eq!(tcp_listeners(text6, 8080)[0].inode, 5);
        assert!(tcp_listeners("garbage\n0: x 0A\n", 8080).is_empty());
    }

    #[test]
    fn a_unix_socket_is_found_by_its_path() {
        let text = "Num       RefCount Protocol Flags    Type St Inode Path\n\
             0000000000000000: 00000002 00000000 00010000 0001 01 30001 /tmp/a b/llama.sock\n\
             0000000000000000: 00000003 00000000 00000000 0001 03    77 /tmp/a b/llama.sock\n";
        let inodes = |path| {
            unix_listeners(text, path)
                .iter()
                .map(|l| l.inode)
                .collect::<Vec<_>>()
        };
        assert_eq!(inodes("/tmp/a b/llama.sock"), [30001]);
        assert!(inodes("b/llama.sock").is_empty());
    }

    #[test]
    fn a_process_is_told_by_its_start_too_and_a_dead_one_is_gone() {
        let text = "7 (a) b (c)) S 1 7 7 0 -1 4194304 100 0 0 0 12 30 0 0 20 0 3 0 500 1000 200";
        let stat = Stat::parse(text).unwrap();
        assert_eq!((stat.cpu_ticks, stat.started), (42, 500));
        assert_eq!(Stat::parse(&text.replace(") S", ") Z")), None);
        assert_eq!(Stat::parse("7 (a"), None);
    }

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
}
