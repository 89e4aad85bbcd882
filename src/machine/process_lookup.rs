//! Finds the process that serves a model: by its listening socket, or else by its command line; for
//! Docker Model Runner, by its model file. Of a Unix socket, the kernel says who listens on it.
//!
//! The socket tables show whether anything listens on the port on this machine. If so, the process
//! that owns the socket is looked up, first among the llama-servers. Listing all descriptors of all
//! processes is expensive on machines with thousands of connections, so one poll does it at most
//! once for all models.

use std::cell::OnceCell;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::path::Path;
use std::time::Duration;

use crate::machine::procfs::{HeldSocket, ProcessId, Procfs};
use crate::machine::server_arguments::ServerArguments;
use crate::machine::sockets::{ListeningSocket, ListeningSockets, NetworkNamespace};
use crate::process::os;
use crate::readings::ModelReading;
use crate::snapshot::Absence;

const LOOPBACK: [IpAddr; 2] = [
    IpAddr::V4(Ipv4Addr::LOCALHOST),
    IpAddr::V6(Ipv6Addr::LOCALHOST),
];
/// The most bytes of command lines that are kept during one poll.
const MAX_COMMAND_LINES_BYTES: usize = 8 << 20;
/// The shortest digest that identifies a model file.
const MIN_DIGEST_LENGTH: usize = 12;
/// The most other network namespaces that are checked for the base URL's address.
const MAX_NAMESPACES: usize = 8;
/// How long connecting may take: the server has just responded.
const CONNECT_TIMEOUT: Duration = Duration::from_millis(500);

/// Opens a connection. Returns its local address, and the stream that keeps it open (`None` in
/// tests).
pub type Connect = fn(SocketAddr) -> Option<(SocketAddr, Option<TcpStream>)>;

/// Opens a TCP connection, and sends nothing.
pub fn connect(server: SocketAddr) -> Option<(SocketAddr, Option<TcpStream>)> {
    let stream = TcpStream::connect_timeout(&server, CONNECT_TIMEOUT).ok()?;
    Some((stream.local_addr().ok()?, Some(stream)))
}

/// Whether connections to `server` reach the namespace of `pid`, which has its address. Any user can
/// create a namespace with any address. So the namespace must list a connection that we open now,
/// and must be in the initial user namespace, where only root can create network namespaces.
pub fn receives_our_connections(
    procfs: &Procfs,
    pid: u32,
    namespace: &NetworkNamespace,
    server: SocketAddr,
    connect: Connect,
) -> bool {
    procfs.is_in_initial_user_namespace(pid)
        && connect(server).is_some_and(|(local, _stream)| {
            // The stream stays open until here.
            namespace.has_connection(server, local)
        })
}

/// The process, with the socket if that identified it. The error explains why none was found, if
/// the user can fix it.
pub type LookupResult = Result<(ProcessId, Option<HeldSocket>), Option<NotFound>>;

/// Why the process of a model was not found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NotFound {
    /// The reason.
    pub why: Absence,
    /// What was found instead.
    pub detail: String,
}

impl NotFound {
    /// There are other processes, or none.
    pub fn new(why: Absence, detail: impl Into<String>) -> NotFound {
        NotFound {
            why,
            detail: detail.into(),
        }
    }

    /// Both, with what to do, for the user.
    pub fn note(&self) -> String {
        let (detail, remedy) = (&self.detail, self.why.remedy());
        match self.why {
            Absence::ProcessShared => format!("{detail}: {remedy}"),
            _ => format!("{detail}: memory and CPU are unavailable; {remedy}"),
        }
    }
}

/// The PID of the process that listens on the Unix socket `path`. Connects, and sends nothing.
///
/// # Errors
/// Explains why it is not known, if the user can fix it.
pub fn unix_listener(procfs: &Procfs, path: &Path) -> Result<u32, Option<NotFound>> {
    let stream = os::connect_unix(path, CONNECT_TIMEOUT).map_err(|_| None)?;
    let pid = os::listener_pid(&stream)
        .ok()
        .filter(|_| procfs.has_own_pids());
    pid.ok_or_else(|| {
        let detail = format!(
            "the process that listens on {} is in another PID namespace",
            path.display()
        );
        Some(NotFound::new(Absence::ProcessInOtherNamespace, detail))
    })
}

/// The processes of this machine during one poll.
pub struct ProcessLookup {
    procfs: Procfs,
    /// The addresses of the base URL.
    addresses: Vec<IpAddr>,
    port: u16,
    connect: Connect,
    /// The process that listens on the base URL's Unix socket, if it has one.
    listener: Option<u32>,
    /// The processes that are llama-servers by their command line.
    servers: Vec<u32>,
    /// All other processes but our own.
    others: Vec<u32>,
    command_lines: BTreeMap<u32, ServerArguments>,
    /// The listening sockets in the base URL's network namespace; `None` if that is not on this
    /// machine.
    listening: OnceCell<Option<ListeningSockets>>,
    is_on_this_machine: OnceCell<bool>,
    held_by_servers: OnceCell<SocketHolders>,
    held_by_others: OnceCell<SocketHolders>,
}

/// The processes that have the listening sockets open.
#[derive(Default)]
struct SocketHolders {
    /// The processes by the socket's inode number.
    by_inode: BTreeMap<u64, Vec<(u32, HeldSocket)>>,
    /// Processes whose descriptors we may not list.
    unreadable: Vec<u32>,
}

impl ProcessLookup {
    /// A lookup of the processes behind `port` of `addresses`.
    pub fn new(
        procfs: &Procfs,
        addresses: Vec<IpAddr>,
        port: u16,
        connect: Connect,
    ) -> ProcessLookup {
        let mut lookup = ProcessLookup {
            procfs: procfs.clone(),
            addresses,
            port,
            connect,
            listener: None,
            servers: Vec::new(),
            others: Vec::new(),
            command_lines: BTreeMap::new(),
            listening: OnceCell::new(),
            is_on_this_machine: OnceCell::new(),
            held_by_servers: OnceCell::new(),
            held_by_others: OnceCell::new(),
        };
        let mut bytes: usize = 0;
        for pid in procfs.pids() {
            let words = procfs.command_line(pid).unwrap_or_default();
            // Kernel threads have no command line.
            if words.is_empty() || pid == std::process::id() {
                continue;
            }
            let arguments = ServerArguments::new(&words, &[]);
            match arguments.is_llama_server() {
                true => lookup.servers.push(pid),
                false => lookup.others.push(pid),
            }
            for word in &words {
                bytes = bytes.saturating_add(word.len());
                bytes = bytes.saturating_add(size_of::<String>());
            }
            if bytes <= MAX_COMMAND_LINES_BYTES {
                lookup.command_lines.insert(pid, arguments);
            }
        }
        lookup
    }

    /// A lookup of the processes behind the Unix socket that the process `pid` listens on.
    pub fn of_listener(procfs: &Procfs, pid: u32) -> ProcessLookup {
        ProcessLookup {
            listener: Some(pid),
            ..ProcessLookup::new(procfs, Vec::new(), 0, connect)
        }
    }

    /// Finds the process of the model that `reading` is about.
    pub fn find(&self, reading: &ModelReading) -> LookupResult {
        if let Some(digest) = &reading.process.file_part {
            return self.by_model_file(digest, reading.mode.as_deref());
        }
        if let (Some(pid), None) = (self.listener, &reading.process.arguments) {
            return self.by_listener(pid);
        }
        // `None`: the server is on another machine, or behind a firewall rule that forwards the
        // port.
        let listening = self.listening().ok_or(None)?;
        let Some(words) = &reading.process.arguments else {
            let sockets = listening.tcp(self.port, &self.addresses);
            return self.by_socket(&sockets, |process| process.may_listen_on(self.port));
        };
        // The server of a router's model listens on the router's machine.
        let child = ServerArguments::new(words, &[]);
        if let Some(path) = child.unix_sockets().next() {
            self.by_socket(&listening.unix(path), |process| {
                process.unix_sockets().any(|socket| socket == path)
            })
        } else {
            let port = child.port().ok_or(None)?;
            let sockets = listening.tcp(port, &LOOPBACK);
            self.by_socket(&sockets, |process| process.may_listen_on(port))
        }
    }

    /// The listening sockets in the base URL's network namespace.
    fn listening(&self) -> Option<&ListeningSockets> {
        let find = || {
            if let Some(pid) = self.listener {
                return Some(self.namespace_of(pid).listening());
            }
            let mut listening = self.namespaces().map(|namespace| namespace.listening());
            listening.find(|sockets| !sockets.tcp(self.port, &self.addresses).is_empty())
        };
        self.listening.get_or_init(find).as_ref()
    }

    /// The possible network namespaces of the base URL: our own, that of the machine (PID 1), and
    /// those of llama-servers in other containers.
    fn namespaces(&self) -> impl Iterator<Item = NetworkNamespace> {
        let has_address = |namespace: &NetworkNamespace| {
            let mut addresses = self.addresses.iter();
            addresses.any(|address| namespace.has_address(*address))
        };
        let own = NetworkNamespace::new(self.procfs.path("net"), true);
        let others = [1].into_iter().chain(self.servers.iter().copied());
        let others = others
            .map(|pid| (pid, self.namespace_of(pid)))
            .filter(move |(_, namespace)| has_address(namespace))
            .take(MAX_NAMESPACES)
            .filter(|(pid, namespace)| self.receives_our_connections(*pid, namespace))
            .map(|(_, namespace)| namespace);
        Some(own).filter(has_address).into_iter().chain(others)
    }

    fn receives_our_connections(&self, pid: u32, namespace: &NetworkNamespace) -> bool {
        self.addresses.iter().any(|address| {
            let server = SocketAddr::new(*address, self.port);
            receives_our_connections(&self.procfs, pid, namespace, server, self.connect)
        })
    }

    fn namespace_of(&self, pid: u32) -> NetworkNamespace {
        NetworkNamespace::new(self.procfs.process_path(pid, "net"), false)
    }

    /// The listening sockets that each of `pids` has open.
    fn holders_among(&self, pids: &[u32]) -> SocketHolders {
        let listening = self.listening().into_iter();
        let inodes: BTreeSet<u64> = listening.flat_map(ListeningSockets::inodes).collect();
        let mut holders = SocketHolders::default();
        for pid in pids {
            match self.procfs.sockets(*pid, &inodes) {
                Ok(held) => {
                    for socket in held {
                        let holders = holders.by_inode.entry(socket.inode).or_default();
                        holders.push((*pid, socket));
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                    holders.unreadable.push(*pid);
                }
                Err(_) => {}
            }
        }
        holders
    }

    /// The process that listens on the base URL's Unix socket, if it has a model loaded.
    fn by_listener(&self, pid: u32) -> LookupResult {
        if self.servers.contains(&pid) || self.procfs.has_llama_cpp_mapped(pid) {
            let process = self.procfs.process_id(pid).ok_or(None)?;
            return Ok((process, None));
        }
        Err(Some(not_told_apart(format!(
            "process {pid} listens on the base URL's socket and has no model loaded"
        ))))
    }

    /// The only process with one of the sockets open and a model loaded. If descriptors cannot be
    /// listed, the only one whose command line matches.
    fn by_socket(
        &self,
        sockets: &[ListeningSocket],
        matches: impl Fn(&ServerArguments) -> bool,
    ) -> LookupResult {
        if sockets.is_empty() {
            return Err(None);
        }
        let servers = self
            .held_by_servers
            .get_or_init(|| self.holders_among(&self.servers));
        let mut searched = vec![servers];
        // Another program may have inherited the socket.
        if !sockets
            .iter()
            .all(|socket| servers.by_inode.contains_key(&socket.inode))
        {
            searched.push(
                self.held_by_others
                    .get_or_init(|| self.holders_among(&self.others)),
            );
        }
        let mut holders: Vec<(ProcessId, HeldSocket)> = Vec::new();
        for socket in sockets {
            let held = searched
                .iter()
                .filter_map(|held| held.by_inode.get(&socket.inode));
            for (pid, socket) in held.flatten() {
                if let Some(process) = self.procfs.process_id(*pid)
                    && !holders.iter().any(|(known, _)| *known == process)
                {
                    holders.push((process, socket.clone()));
                }
            }
        }
        let Some((ProcessId { pid, .. }, _)) = holders.first().cloned() else {
            let unreadable = searched.iter().flat_map(|held| &held.unreadable).copied();
            return self.by_command_line(sockets, &unreadable.collect::<Vec<_>>(), matches);
        };
        holders.retain(|(ProcessId { pid, .. }, _)| {
            self.servers.contains(pid) || self.procfs.has_llama_cpp_mapped(*pid)
        });
        match holders.len() {
            1 => holders
                .pop()
                .map(|(process, socket)| (process, Some(socket)))
                .ok_or(None),
            0 => Err(Some(not_told_apart(format!(
                "process {pid} listens on the base URL's port and has no model loaded"
            )))),
            many => Err(Some(not_told_apart(format!(
                "{many} processes have the server's socket open"
            )))),
        }
    }

    /// The only one of `pids` with a matching command line, in the network namespace of a socket
    /// and with the socket's user. The descriptors of `pids` cannot be listed.
    pub(super) fn by_command_line(
        &self,
        sockets: &[ListeningSocket],
        pids: &[u32],
        matches: impl Fn(&ServerArguments) -> bool,
    ) -> LookupResult {
        let may_hold = |pid: u32, socket: &ListeningSocket| {
            let uid = self.procfs.status(pid).and_then(|status| status.uid);
            (socket.uid.is_none() || socket.uid == uid)
                && self.namespace_of(pid).has_socket(socket.inode)
        };
        let is_candidate = |pid: &u32| {
            self.command_lines.get(pid).is_some_and(&matches)
                && sockets.iter().any(|socket| may_hold(*pid, socket))
        };
        let candidates: Vec<u32> = pids.iter().copied().filter(is_candidate).collect();
        let wraps_another = |pid: &u32| {
            let wrapper = self.command_lines.get(pid);
            let mut others = candidates
                .iter()
                .filter_map(|pid| self.command_lines.get(pid));
            others.any(|other| wrapper.is_some_and(|wrapper| wrapper.wraps(other)))
        };
        // `sudo llama-server …` keeps running next to the server that it started.
        let found: Vec<u32> = candidates
            .iter()
            .copied()
            .filter(|pid| !wraps_another(pid))
            .collect();
        self.only_one(&found, "the server's port")
    }

    /// The only llama-server in `mode` that has `digest` in the path of its model file.
    fn by_model_file(&self, digest: &str, mode: Option<&str>) -> LookupResult {
        // Docker Model Runner names files by digest. An empty or common word would match any file.
        let is_digest = digest.len() >= MIN_DIGEST_LENGTH
            && digest.bytes().all(|byte| byte.is_ascii_hexdigit());
        let is_on_this_machine = || self.listener.is_some() || self.namespaces().next().is_some();
        if !is_digest || !self.is_on_this_machine.get_or_init(is_on_this_machine) {
            return Err(None);
        }
        let matches = |pid: &u32| {
            self.command_lines.get(pid).is_some_and(|arguments| {
                arguments
                    .model_path()
                    .is_some_and(|path| path.contains(digest))
                    && mode.is_none_or(|mode| mode == arguments.mode())
            })
        };
        let found: Vec<u32> = self.servers.iter().copied().filter(matches).collect();
        self.only_one(&found, "the model file")
    }

    fn only_one(&self, found: &[u32], what: &str) -> LookupResult {
        match found {
            [pid] => self
                .procfs
                .process_id(*pid)
                .map(|process| (process, None))
                .ok_or(None),
            [] => Err(Some(not_told_apart(format!(
                "no visible process has {what} on its command line"
            )))),
            many => Err(Some(not_told_apart(format!(
                "{} processes have {what} on their command lines",
                many.len()
            )))),
        }
    }
}

fn not_told_apart(detail: String) -> NotFound {
    NotFound::new(Absence::ProcessNotVisible, detail)
}
