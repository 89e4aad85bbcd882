//! Finds the address that a llama-server of this machine listens on, as this process can connect
//! to it.

use std::cell::OnceCell;
use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};

use crate::machine::process_lookup::{Connect, receives_our_connections};
use crate::machine::procfs::{HeldSocket, Procfs};
use crate::machine::server_arguments::ServerArguments;
use crate::machine::sockets::{ListeningSocket, ListeningSockets, NetworkNamespace, match_rank};
use crate::process::os;
use crate::readings::LocalAddress;

/// The most addresses of another network namespace to which a connection is tried.
const MAX_TRIED: usize = 8;

const FORBIDDEN: &str = "its socket cannot be found: run the exporter as the server's user or as \
                         root with CAP_SYS_PTRACE";
const OTHER_NETWORK: &str = "it is in a network namespace with no address that can be reached from \
                             here: publish its port and give that with --base-url";

const OTHER_PIDS: &str = "it listens on a Unix socket in another PID namespace: run the exporter's \
                          container with --pid=host";

/// An address, and the socket that the process has open there. `None`: its descriptors cannot be
/// listed, and command line, user and port match.
pub type Listening = (LocalAddress, Option<HeldSocket>);

/// The listening sockets of our own network namespace, read once for all processes there: the table
/// may have tens of thousands of connections.
#[derive(Default)]
pub struct OwnSockets(OnceCell<ListeningSockets>);

impl OwnSockets {
    fn get(&self, procfs: &Procfs) -> &ListeningSockets {
        self.0
            .get_or_init(|| NetworkNamespace::new(procfs.path("net"), true).listening())
    }
}

/// Whether the process `pid` is in our own network namespace: each has a file of its own. Unlike the
/// links in `/proc/PID/ns`, everyone may see it.
fn is_here(procfs: &Procfs, pid: u32) -> bool {
    let of_process = os::file_identity_at(&procfs.process_path(pid, "net/tcp")).ok();
    of_process.is_some() && of_process == os::file_identity_at(&procfs.path("net/tcp")).ok()
}

/// The address of the process `pid`, which `arguments` started. The error explains why it cannot be
/// reached, if the user can fix it.
pub fn find(
    procfs: &Procfs,
    pid: u32,
    arguments: &ServerArguments,
    connect: Connect,
    own_sockets: &OwnSockets,
) -> Result<Listening, Option<String>> {
    let namespace = NetworkNamespace::new(procfs.process_path(pid, "net"), false);
    let is_here = is_here(procfs, pid);
    let of_process;
    let listening = if is_here {
        own_sockets.get(procfs)
    } else {
        of_process = namespace.listening();
        &of_process
    };
    let held = match procfs.sockets(pid, &listening.inodes().collect()) {
        Ok(held) => Some(held),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => None,
        Err(_) => return Err(None),
    };
    let search = Search {
        procfs,
        pid,
        arguments,
        connect,
        namespace,
        is_here,
        listening,
        held,
    };
    search.run()
}

/// What is known of a process while its address is looked for.
struct Search<'a> {
    procfs: &'a Procfs,
    pid: u32,
    arguments: &'a ServerArguments,
    connect: Connect,
    namespace: NetworkNamespace,
    /// Whether that is our own.
    is_here: bool,
    /// All listening sockets of its network namespace.
    listening: &'a ListeningSockets,
    /// Those that it has open; `None` if its descriptors cannot be listed.
    held: Option<Vec<HeldSocket>>,
}

impl Search<'_> {
    fn run(&self) -> Result<Listening, Option<String>> {
        let tcp: Vec<_> = self.tcp().collect();
        let address = match self.is_here {
            // Loopback addresses before others, and IPv4 before IPv6. The kernel's order is not that
            // of the server's `--host`, so the lowest address: the same one after a restart.
            true => tcp
                .iter()
                .map(|(bound, socket)| (reachable(*bound), socket.inode))
                .min_by_key(|(address, _)| (!address.ip().is_loopback(), *address)),
            false => self.reached(&tcp),
        };
        if let Some((address, inode)) = address {
            return Ok((LocalAddress::Tcp(address), self.held_socket(inode)));
        }
        if let Some(found) = self.unix() {
            return match self.procfs.has_own_pids() {
                true => Ok(found),
                false => Err(Some(OTHER_PIDS.to_owned())),
            };
        }
        Err(match (&self.held, tcp.is_empty()) {
            (_, false) => Some(OTHER_NETWORK.to_owned()),
            (None, true) => Some(FORBIDDEN.to_owned()),
            (Some(_), true) => None,
        })
    }

    /// The TCP addresses that it listens on. The port of the command line comes first.
    fn tcp(&self) -> impl Iterator<Item = (SocketAddr, ListeningSocket)> {
        let uid = self.procfs.status(self.pid).and_then(|status| status.uid);
        let port = self.arguments.port();
        let all = self.listening.tcp_addresses().iter().copied();
        let is_its_own = move |(bound, socket): &(SocketAddr, ListeningSocket)| match &self.held {
            Some(held) => {
                held.iter().any(|held| held.inode == socket.inode)
                    && port.is_none_or(|port| port == 0 || port == bound.port())
            }
            None => socket.uid == uid && self.arguments.may_listen_on(bound.port()),
        };
        all.filter(is_its_own)
    }

    /// The first address of its network namespace at which our connections arrive there.
    fn reached(&self, tcp: &[(SocketAddr, ListeningSocket)]) -> Option<(SocketAddr, u64)> {
        let local = self.namespace.addresses();
        let candidates = tcp.iter().flat_map(|(bound, socket)| {
            let matching = local
                .iter()
                .filter(|ip| match_rank(bound.ip(), **ip).is_some());
            matching.map(|ip| (SocketAddr::new(*ip, bound.port()), socket.inode))
        });
        candidates.take(MAX_TRIED).find(|(server, _)| {
            let (procfs, connect) = (self.procfs, self.connect);
            receives_our_connections(procfs, self.pid, &self.namespace, *server, connect)
        })
    }

    /// The Unix socket that it listens on, if this process may open its path.
    fn unix(&self) -> Option<Listening> {
        let held = self.held.as_ref()?;
        let (bound, socket) = self
            .listening
            .unix_paths()
            .iter()
            .find_map(|(bound, socket)| {
                let held = held.iter().find(|held| held.inode == socket.inode)?;
                Some((Path::new(bound), held))
            })?;
        let working_directory = || fs::read_link(self.procfs.process_path(self.pid, "cwd"));
        let (path, seen_as) = match bound.strip_prefix("/") {
            Ok(below) => (self.path_below("root", below), bound.to_owned()),
            Err(_) => (
                self.path_below("cwd", bound),
                working_directory().ok()?.join(bound),
            ),
        };
        let seen_as = seen_as.to_str()?.to_owned();
        Some((LocalAddress::Unix { path, seen_as }, Some(socket.clone())))
    }

    fn path_below(&self, link: &str, path: &Path) -> PathBuf {
        self.procfs.process_path(self.pid, link).join(path)
    }

    fn held_socket(&self, inode: u64) -> Option<HeldSocket> {
        let mut held = self.held.iter().flatten();
        held.find(|held| held.inode == inode).cloned()
    }
}

/// The address to connect to for a socket that is bound to `bound` in our own network namespace.
fn reachable(bound: SocketAddr) -> SocketAddr {
    let ip = match bound.ip().to_canonical() {
        IpAddr::V4(Ipv4Addr::UNSPECIFIED) => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(Ipv6Addr::UNSPECIFIED) => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, bound.port())
}
