//! Finds the llama-servers among the processes of this machine, by their names.
//!
//! A look reads the command line of new processes, and of a few older ones: a process may
//! become another program later (an entrypoint script does). Linux only.

use std::collections::{BTreeMap, BTreeSet};
use std::mem;
use std::ops::Bound::{Excluded, Unbounded};
use std::sync::{Arc, Mutex, MutexGuard, TryLockError};
use std::thread;
use std::time::{Duration, Instant};

use crate::machine::local_address::{self, OwnSockets};
use crate::machine::model_runner_store;
use crate::machine::ollama_store;
use crate::machine::process_lookup::{self, Connect};
use crate::machine::procfs::{HeldSocket, Procfs};
use crate::machine::server_arguments::ServerArguments;
use crate::machine::server_key;
use crate::process::threads::lock;
use crate::readings::{LocalAddress, LocalServer};
use crate::settings::{Secret, Settings};

/// How long to wait for another thread that looks.
const LONGEST_WAIT: Duration = Duration::from_millis(250);
/// The most llama-servers that are listed.
const MAX_SERVERS: usize = 256;
/// The most ancestors of a process.
const MAX_ANCESTORS: usize = 32;
/// How often a new process is read: between `fork` and `exec` it has the name of its parent.
const READS_OF_NEW: u8 = 3;
/// The number of other processes that each look reads again.
const READ_AGAIN: usize = 16;
/// The most shells that each look reads again: the entrypoint of a container is one until it
/// becomes the server by `exec`.
const MAX_SHELLS: usize = 64;
/// The most servers whose address a look searches, those first that have waited longest: a process
/// may have tens of thousands of descriptors.
const MAX_SEARCHES: usize = 64;

/// The llama-servers of this machine. All pollers share one list.
pub struct LocalServers {
    procfs: Procfs,
    scan: Mutex<ProcessScan>,
    list: Mutex<Arc<[LocalServer]>>,
}

impl LocalServers {
    /// The servers in the procfs of `settings`; none yet.
    pub fn new(settings: &Settings) -> LocalServers {
        let procfs = Procfs::new(&settings.procfs);
        LocalServers {
            scan: Mutex::new(ProcessScan::new(procfs.clone(), process_lookup::connect)),
            procfs,
            list: Mutex::default(),
        }
    }

    /// The servers, found in this call, or within the last half of `interval`. If another thread
    /// has been looking for long, what was found before.
    pub fn list(&self, interval: Duration) -> Arc<[LocalServer]> {
        let waiting_since = Instant::now();
        loop {
            match self.scan.try_lock() {
                Ok(scan) => return self.list_with(scan, interval),
                Err(TryLockError::Poisoned(scan)) => {
                    return self.list_with(scan.into_inner(), interval);
                }
                // Reading a process may block.
                Err(TryLockError::WouldBlock) if waiting_since.elapsed() > LONGEST_WAIT => {
                    return Arc::clone(&lock(&self.list));
                }
                Err(TryLockError::WouldBlock) => thread::sleep(Duration::from_millis(5)),
            }
        }
    }

    /// A check whether the process of `server` still has its socket open. Its argument is the process
    /// that listens on a Unix socket, as the kernel says of a new connection.
    pub fn peer_check(
        &self,
        server: &LocalServer,
    ) -> impl Fn(Option<u32>) -> bool + Send + Sync + use<> {
        let (procfs, id, socket) = (
            self.procfs.clone(),
            server.process_id(),
            server.socket.clone(),
        );
        let is_unix = matches!(server.address, Ok(LocalAddress::Unix { .. }));
        move |peer| {
            procfs.process_id(id.pid) == Some(id)
                && socket.as_ref().is_none_or(HeldSocket::is_open)
                && (!is_unix || peer == Some(id.pid))
        }
    }

    /// The API key that `server` was started with, if it can be read, and if the address is certain
    /// to be that of the same process.
    pub fn api_key(&self, server: &LocalServer) -> Option<Secret> {
        server.socket.as_ref()?;
        let key = server_key::read(&self.procfs, server.pid)?;
        (self.procfs.process_id(server.pid) == Some(server.process_id())).then_some(key)
    }

    fn list_with(
        &self,
        mut scan: MutexGuard<ProcessScan>,
        interval: Duration,
    ) -> Arc<[LocalServer]> {
        let max_age = interval.checked_div(2).unwrap_or_default();
        if scan.looked_at.is_none_or(|at| at.elapsed() >= max_age) {
            let found = scan.look();
            *lock(&self.list) = found;
        }
        Arc::clone(&lock(&self.list))
    }
}

/// The processes that the last look found.
struct ProcessScan {
    procfs: Procfs,
    connect: Connect,
    looked_at: Option<Instant>,
    /// The number of looks.
    looks: u64,
    servers: BTreeMap<u32, KnownServer>,
    others: BTreeMap<u32, OtherProcess>,
    /// The last of the others that was read again.
    last_read_again: u32,
}

/// A process that was no llama-server when it was read last.
#[derive(Clone, Copy, Default)]
struct OtherProcess {
    /// How often it was read.
    reads: u8,
    is_shell: bool,
}

impl ProcessScan {
    fn new(procfs: Procfs, connect: Connect) -> ProcessScan {
        ProcessScan {
            procfs,
            connect,
            looked_at: None,
            looks: 0,
            servers: BTreeMap::new(),
            others: BTreeMap::new(),
            last_read_again: 0,
        }
    }

    /// Looks at the processes; returns the llama-servers.
    fn look(&mut self) -> Arc<[LocalServer]> {
        self.looked_at = Some(Instant::now());
        self.looks = self.looks.saturating_add(1);
        self.remove_ended();
        let pids = match cfg!(target_os = "linux") {
            true => self.procfs.pids(),
            false => Vec::new(),
        };
        let read_again = self.read_again();
        let known = mem::take(&mut self.others);
        for pid in pids {
            if self.servers.contains_key(&pid) {
                continue;
            }
            let mut other = known.get(&pid).copied().unwrap_or_default();
            if other.reads < READS_OF_NEW || read_again.contains(&pid) {
                let program = self.procfs.program(pid);
                if self.add_server(pid, &program) {
                    continue;
                }
                let name = program.first().map_or("", String::as_str);
                other.reads = other.reads.saturating_add(1);
                other.is_shell = name.ends_with("sh");
            }
            self.others.insert(pid, other);
        }
        self.search_addresses();
        let servers = self.servers.values();
        servers.map(|known| known.server.clone()).collect()
    }

    /// Finds the addresses of servers of which no open socket is known.
    fn search_addresses(&mut self) {
        let (procfs, connect, look) = (&self.procfs, self.connect, self.looks);
        let own_sockets = OwnSockets::default();
        let unknown = self.servers.values_mut();
        let mut unknown: Vec<&mut KnownServer> = unknown.filter_map(KnownServer::closed).collect();
        unknown.sort_by_key(|known| known.searched_at);
        let searched = unknown.into_iter().take(MAX_SEARCHES);
        let others = searched.filter_map(|known| {
            let is_server = known.search(procfs, connect, &own_sockets, look);
            (!is_server).then_some(known.server.pid)
        });
        for pid in others.collect::<Vec<u32>>() {
            self.servers.remove(&pid);
        }
    }

    /// Removes the servers whose process has ended, or is another program now.
    fn remove_ended(&mut self) {
        let procfs = &self.procfs;
        self.servers
            .retain(|pid, known| procfs.process_id(*pid) == Some(known.server.process_id()));
    }

    /// The other processes to read again: the next ones in turn, and shells.
    fn read_again(&mut self) -> BTreeSet<u32> {
        let after = (Excluded(self.last_read_again), Unbounded);
        let next = self.others.range(after).map(|(pid, _)| *pid);
        let next: Vec<u32> = next.take(READ_AGAIN).collect();
        self.last_read_again = next.last().copied().unwrap_or(0);
        let shells = self.others.iter().filter(|(_, other)| other.is_shell);
        let shells = shells.map(|(pid, _)| *pid).take(MAX_SHELLS);
        next.into_iter().chain(shells).collect()
    }

    /// Adds the process, whose command line begins with `program`, if it is a llama-server.
    fn add_server(&mut self, pid: u32, program: &[String]) -> bool {
        let program = ServerArguments::new(program, &[]);
        if !program.is_llama_server() || self.servers.len() >= MAX_SERVERS {
            return false;
        }
        let server = KnownServer::read(&self.procfs, pid);
        self.servers.extend(server.map(|server| (pid, server)));
        self.servers.contains_key(&pid)
    }
}

/// A llama-server that a look found.
struct KnownServer {
    server: LocalServer,
    arguments: ServerArguments,
    /// The look that searched its address last; 0 if none has.
    searched_at: u64,
}

impl KnownServer {
    fn read(procfs: &Procfs, pid: u32) -> Option<KnownServer> {
        let stat = procfs.stat(pid)?;
        let words = procfs.command_line(pid).ok()?;
        let variables = procfs.llama_variables(pid).unwrap_or_default();
        let arguments = ServerArguments::new(&words, &variables);
        if !arguments.is_llama_server() {
            return None;
        }
        Some(KnownServer {
            server: LocalServer {
                pid,
                started: stat.started,
                address: Err(None),
                socket: None,
                is_https: arguments.is_https(),
                api_prefix: arguments.api_prefix(),
                alias: arguments.alias().map(str::to_owned),
                model_path: arguments.model_path().map(str::to_owned),
                stored_names: Vec::new(),
                sleep_idle: arguments.sleep_idle(),
                mode: arguments.mode(),
                ancestors: ancestors(procfs, stat.parent),
            },
            arguments,
            searched_at: 0,
        })
    }

    /// The server, unless the socket that it is known to listen on is still open.
    fn closed(&mut self) -> Option<&mut KnownServer> {
        let socket = self.server.socket.as_ref();
        if socket.is_some_and(HeldSocket::is_open) {
            return None;
        }
        if self.server.socket.take().is_some() {
            self.server.address = Err(None);
        }
        Some(self)
    }

    /// Finds the address, as part of the look `look`. Returns false if the process is another
    /// program now.
    fn search(&mut self, procfs: &Procfs, connect: Connect, own: &OwnSockets, look: u64) -> bool {
        // Between `fork` and `exec`, the command line is that of the parent.
        let Some(mut read) = KnownServer::read(procfs, self.server.pid) else {
            return false;
        };
        read.searched_at = look;
        let is_known = self.searched_at > 0 && read.server.model_path == self.server.model_path;
        read.server.stored_names = match &read.server.model_path {
            Some(path) if !is_known => stored_names(procfs, self.server.pid, path),
            _ => mem::take(&mut self.server.stored_names),
        };
        let found = local_address::find(procfs, self.server.pid, &read.arguments, connect, own);
        match found {
            Ok((address, socket)) => {
                read.server.address = Ok(address);
                read.server.socket = socket;
            }
            Err(why) => read.server.address = Err(why),
        }
        *self = read;
        true
    }
}

/// The names of the model file `path` in the store of the program that started the process `pid`.
fn stored_names(procfs: &Procfs, pid: u32, path: &str) -> Vec<String> {
    let mut names = ollama_store::names_of_blob(procfs, pid, path);
    names.extend(model_runner_store::tags_of_bundle(procfs, pid, path));
    names
}

/// The PIDs of the process `parent`, its parent, and so on.
fn ancestors(procfs: &Procfs, parent: u32) -> Vec<u32> {
    let mut found = Vec::new();
    let mut next = parent;
    while next != 0 && found.len() < MAX_ANCESTORS {
        found.push(next);
        next = procfs.stat(next).map_or(0, |stat| stat.parent);
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::tests::file_tree::FileTree;

    /// A procfs with the processes that a test adds.
    struct Processes(FileTree);

    impl Processes {
        fn new() -> Processes {
            let tree = FileTree::new(&[("net/tcp", "")]);
            tree.write("net/unix", "");
            Processes(tree)
        }

        /// Adds a process, which listens on 127.0.0.1:8080 if it has a socket.
        fn add(&self, pid: u32, parent: u32, words: &str, socket: Option<u32>) {
            let stat = format!("{pid} (x) S {parent} {}7", "0 ".repeat(17));
            self.0.write(&format!("{pid}/stat"), &stat);
            self.0.write(
                &format!("{pid}/cmdline"),
                format!("{}\0", words.replace(' ', "\0")),
            );
            self.0.write(&format!("{pid}/environ"), "");
            let table = socket.map_or(String::new(), |inode| {
                format!(
                    "0: 0100007F:1F90 00000000:0000 0A 0:0 0:0 0 1000 0 {inode} 1 0 100 0 0 10 0\n"
                )
            });
            self.0.write("net/tcp", &table);
            let net = self.0.path(&format!("{pid}/net"));
            if !net.exists() {
                self.0.link(&format!("{pid}/net"), self.0.path("net"));
            }
            self.0.write(&format!("{pid}/fd/.keep"), "");
            if let Some(inode) = socket {
                self.0
                    .link(&format!("{pid}/fd/3"), format!("socket:[{inode}]"));
            }
        }

        fn scan(&self) -> ProcessScan {
            ProcessScan::new(Procfs::new(&self.0.path("")), |_| None)
        }
    }

    fn found(scan: &mut ProcessScan) -> Vec<u32> {
        scan.look().iter().map(|server| server.pid).collect()
    }

    #[test]
    #[cfg(all(target_os = "linux", target_endian = "little"))]
    fn a_server_is_found_by_its_name_with_its_address_and_its_ancestors() {
        let processes = Processes::new();
        processes.add(1, 0, "/sbin/init", None);
        processes.add(20, 1, "/usr/bin/bash", None);
        processes.add(
            30,
            20,
            "/app/llama-server -m /m/a.gguf --alias tiny,small --api-prefix /llm/",
            Some(77),
        );
        let mut scan = processes.scan();
        let list = scan.look();
        assert_eq!(list.len(), 1);
        let server = &list[0];
        let address = "127.0.0.1:8080".parse().unwrap();
        assert_eq!(server.address, Ok(LocalAddress::Tcp(address)));
        assert_eq!(server.alias.as_deref(), Some("tiny"));
        assert_eq!(server.model_path.as_deref(), Some("/m/a.gguf"));
        assert_eq!(server.api_prefix, "/llm");
        assert_eq!((server.started, &*server.ancestors), (7, &[20, 1][..]));
        std::fs::remove_dir_all(processes.0.path("30")).unwrap();
        assert!(found(&mut scan).is_empty());
    }

    /// A server that first downloads its model listens minutes after its start.
    #[test]
    #[cfg(all(target_os = "linux", target_endian = "little"))]
    fn a_server_that_listens_late_is_found_at_the_next_look() {
        let processes = Processes::new();
        let mut scan = processes.scan();
        let ports = |scan: &mut ProcessScan| -> Vec<bool> {
            scan.look()
                .iter()
                .map(|server| server.address.is_ok())
                .collect()
        };
        processes.add(30, 1, "/app/llama-server", None);
        for _ in 0..20 {
            assert_eq!(ports(&mut scan), [false]);
        }
        processes.add(30, 1, "/app/llama-server", Some(77));
        assert_eq!(ports(&mut scan), [true]);
        std::fs::remove_file(processes.0.path("30/fd/3")).unwrap();
        assert_eq!(ports(&mut scan), [false]);
        // Of many that do not listen, each is searched in turn.
        for pid in 100..100 + 2 * MAX_SEARCHES {
            processes.add(u32::try_from(pid).unwrap(), 1, "/app/llama-server", None);
        }
        assert!(!ports(&mut scan).contains(&true));
        processes.add(30, 1, "/app/llama-server", Some(78));
        let looks: Vec<bool> = (0..3).map(|_| ports(&mut scan).contains(&true)).collect();
        assert!(looks.contains(&true), "{looks:?}");
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn a_process_that_becomes_a_server_is_found_at_any_age() {
        let processes = Processes::new();
        for pid in 1..200 {
            processes.add(pid, 0, "/bin/program", None);
        }
        let mut scan = processes.scan();
        for _ in 0..=READS_OF_NEW {
            assert!(found(&mut scan).is_empty());
        }
        processes.add(150, 0, "/app/llama-server", None);
        let all = 200_usize.div_ceil(READ_AGAIN);
        let looks: Vec<bool> = (0..=all).map(|_| !found(&mut scan).is_empty()).collect();
        assert!(looks.contains(&true), "{looks:?}");
        // A shell is read at each look.
        processes.add(20, 0, "/bin/sh /entrypoint.sh", None);
        let mut scan = processes.scan();
        for _ in 0..=READS_OF_NEW {
            assert_eq!(found(&mut scan), [150]);
        }
        processes.add(20, 0, "/app/llama-server", None);
        assert_eq!(found(&mut scan), [20, 150]);
        processes.add(20, 0, "/bin/true", None);
        // And one that becomes another program is not a server any more.
        processes.add(150, 0, "/bin/true", None);
        assert!(found(&mut scan).is_empty());
    }
}
