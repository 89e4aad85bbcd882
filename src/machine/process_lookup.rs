//! Which process holds a model.
//!
//! The tables of sockets say whether anything listens there on this machine, and
//! only then its owner is looked for: first among the processes that are called
//! as llama.cpp's server is. To look through all descriptors of all processes
//! costs much beside servers with thousands of them. Whatever is looked at is
//! looked at once a poll, however many models the poll has.

use std::cell::OnceCell;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::path::PathBuf;
use std::time::Duration;

use crate::machine::Hints;
use crate::machine::procfs::{Process, Procfs};
use crate::machine::server_arguments::Arguments;
use crate::machine::sockets::{Listener, Listening, Net};

/// What people can do where the process is not found.
const ADVICE: &str = "memory and CPU are not shown; let the exporter run as root or as the \
                      server's user, or name the process with --pid-file";

const LOOPBACK: [IpAddr; 2] = [
    IpAddr::V4(Ipv4Addr::LOCALHOST),
    IpAddr::V6(Ipv6Addr::LOCALHOST),
];

/// The most bytes of command lines that are kept for one poll.
const MOST_CALLED_BYTES: usize = 8 << 20;
/// The shortest digest that tells one model's file from others'.
const SHORTEST_DIGEST: usize = 12;

/// The most networks besides our own that have the base URL's address and are looked into.
const MOST_NETWORKS: usize = 8;
/// How long to wait for a connection: the server has just answered.
const CONNECT_TIME: Duration = Duration::from_millis(500);

/// A connection of ours, which ends with it.
pub struct Connection {
    /// Our end of it.
    pub local: SocketAddr,
    /// The connection; none in tests.
    pub stream: Option<TcpStream>,
}

/// Opens a connection.
pub type Connect = fn(SocketAddr) -> Option<Connection>;

/// Opens a TCP connection, over which nothing is sent.
pub fn connect(server: SocketAddr) -> Option<Connection> {
    let stream = TcpStream::connect_timeout(&server, CONNECT_TIME).ok()?;
    Some(Connection {
        local: stream.local_addr().ok()?,
        stream: Some(stream),
    })
}

/// A process, and the descriptor and the number of the socket that it was found by.
pub type Held = (Process, Option<(PathBuf, u64)>);

/// The process, or why it is not found, where there is something to be done about it.
pub type Outcome = Result<Held, Option<String>>;

/// All processes, as one poll looks for those behind one base URL among them.
pub struct Search {
    procfs: Procfs,
    /// The base URL's.
    addresses: Vec<IpAddr>,
    port: u16,
    connect: Connect,
    /// All processes but our own, those called as llama.cpp's server is first.
    pids: Vec<u32>,
    /// How many of them are called so.
    servers: usize,
    /// How they were called.
    called: BTreeMap<u32, Arguments>,
    /// What listens in the network that the base URL leads to; `None`: it leads to none here.
    network: OnceCell<Option<Listening>>,
    is_here: OnceCell<bool>,
    held_by_servers: OnceCell<Sockets>,
    held_by_others: OnceCell<Sockets>,
}

/// Who holds the sockets that listen.
#[derive(Default)]
struct Sockets {
    /// By the number of the socket: the processes, and their descriptors.
    holders: BTreeMap<u64, Vec<(u32, PathBuf)>>,
    /// Processes into which we may not look.
    unseen: Vec<u32>,
}

impl Search {
    /// A search for what is behind `port` of `addresses`; `connect` opens a connection to it.
    pub fn new(procfs: &Procfs, addresses: &[IpAddr], port: u16, connect: Connect) -> Search {
        let own = std::process::id();
        let (mut pids, mut others) = (Vec::new(), Vec::new());
        let mut called = BTreeMap::new();
        let mut bytes: usize = 0;
        for pid in procfs.pids() {
            // The kernel's own threads were called with nothing.
            let words = procfs.arguments(pid).unwrap_or_default();
            if words.is_empty() || pid == own {
                continue;
            }
            let arguments = Arguments::new(&words, &[]);
            match arguments.are_a_llama_servers() {
                true => pids.push(pid),
                false => others.push(pid),
            }
            bytes = words.iter().fold(bytes, |sum, word| {
                let size = word.len().saturating_add(size_of::<String>());
                sum.saturating_add(size)
            });
            if bytes <= MOST_CALLED_BYTES {
                called.insert(pid, arguments);
            }
        }
        let servers = pids.len();
        pids.append(&mut others);
        Search {
            procfs: procfs.clone(),
            addresses: addresses.to_owned(),
            port,
            connect,
            pids,
            servers,
            called,
            network: OnceCell::new(),
            is_here: OnceCell::new(),
            held_by_servers: OnceCell::new(),
            held_by_others: OnceCell::new(),
        }
    }

    /// The process of the model of which `hints` speak.
    pub fn find(&self, hints: &Hints) -> Outcome {
        if let Some(part) = hints.file_part {
            return self.by_file(part, hints.mode);
        }
        // None: it is not here, or behind what is no process, as a firewall's rule.
        let network = self.network().ok_or(None)?;
        let Some(words) = hints.arguments else {
            let listeners = network.tcp(self.port, &self.addresses);
            return self.holder(network, &listeners, |called| called.mean_port(self.port));
        };
        // A router's own server listens beside it.
        let child = Arguments::new(words, &[]);
        if let Some(path) = child.sockets().next() {
            let called = |called: &Arguments| called.sockets().any(|of| of == path);
            self.holder(network, &network.unix(path), called)
        } else {
            let port = child.port().ok_or(None)?;
            let listeners = network.tcp(port, &LOOPBACK);
            self.holder(network, &listeners, |called| called.mean_port(port))
        }
    }

    /// What listens in the network that the base URL leads to.
    fn network(&self) -> Option<&Listening> {
        let find = || {
            self.networks().find_map(|net| {
                let listening = net.listening();
                let here = !listening.tcp(self.port, &self.addresses).is_empty();
                here.then_some(listening)
            })
        };
        self.network.get_or_init(find).as_ref()
    }

    /// Where the base URL may lead: to our own network, and where the processes of more than
    /// our own container are shown, to the machine's or that of another container.
    fn networks(&self) -> impl Iterator<Item = Net> {
        let leads_to = |net: &Net| self.addresses.iter().any(|address| net.has(*address));
        let own = Net::at(self.procfs.path("net"), true);
        let others = [1].into_iter().chain(self.servers().iter().copied());
        let others = others
            .map(|pid| (pid, self.net_of(pid)))
            .filter(move |(_, net)| leads_to(net))
            .take(MOST_NETWORKS)
            .filter(|(pid, net)| self.is_reached(*pid, net))
            .map(|(_, net)| net);
        Some(own).filter(leads_to).into_iter().chain(others)
    }

    /// Whether what we ask at the base URL comes to the network of `pid`, which has its
    /// address. Anybody may make a network with any address in it: so it must show a
    /// connection that we open now, and be of a user namespace in which only root can make
    /// networks.
    fn is_reached(&self, pid: u32, net: &Net) -> bool {
        let shows_ours = |address: &IpAddr| {
            let server = SocketAddr::new(*address, self.port);
            let connection = (self.connect)(server);
            connection.is_some_and(|connection| net.has_connection(server, connection.local))
        };
        self.procfs.is_in_first_user_namespace(pid) && self.addresses.iter().any(shows_ours)
    }

    fn net_of(&self, pid: u32) -> Net {
        Net::at(self.procfs.of(pid, "net"), false)
    }

    /// The processes that are called as llama.cpp's server is.
    fn servers(&self) -> &[u32] {
        self.pids.get(..self.servers).unwrap_or_default()
    }

    fn others(&self) -> &[u32] {
        self.pids.get(self.servers..).unwrap_or_default()
    }

    /// Who of `pids` holds what of `network`.
    fn sockets(&self, network: &Listening, pids: &[u32]) -> Sockets {
        let wanted: BTreeSet<u64> = network.inodes().collect();
        let mut sockets = Sockets::default();
        for pid in pids {
            match self.procfs.holds(*pid, &wanted) {
                Ok(held) => {
                    for (path, inode) in held {
                        sockets.holders.entry(inode).or_default().push((*pid, path));
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                    sockets.unseen.push(*pid);
                }
                Err(_) => {}
            }
        }
        sockets
    }

    /// The one process that holds the sockets and a model, or where that cannot be seen
    /// the one that `is_called` so.
    fn holder(
        &self,
        network: &Listening,
        listeners: &[Listener],
        is_called: impl Fn(&Arguments) -> bool,
    ) -> Outcome {
        if listeners.is_empty() {
            return Err(None);
        }
        let of_servers = || self.sockets(network, self.servers());
        let of_others = || self.sockets(network, self.others());
        let mut looked = vec![self.held_by_servers.get_or_init(of_servers)];
        let is_held = |listener: &Listener| looked[0].holders.contains_key(&listener.inode);
        // Any other program may have handed it down to one that has not been looked at.
        if !listeners.iter().all(is_held) {
            looked.push(self.held_by_others.get_or_init(of_others));
        }
        let mut holders: Vec<Held> = Vec::new();
        for listener in listeners {
            let held = looked
                .iter()
                .filter_map(|in_| in_.holders.get(&listener.inode));
            for (pid, path) in held.flatten() {
                if let Some(process) = self.procfs.process(*pid)
                    && !holders.iter().any(|(known, _)| *known == process)
                {
                    holders.push((process, Some((path.clone(), listener.inode))));
                }
            }
        }
        let Some(pid) = holders.first().map(|(process, _)| process.pid) else {
            let unseen: Vec<u32> = looked.iter().flat_map(|in_| &in_.unseen).copied().collect();
            return self.by_command_line(listeners, &unseen, is_called);
        };
        holders.retain(|(Process { pid, .. }, _)| {
            self.servers().contains(pid) || self.procfs.has_llama_cpp(*pid)
        });
        match holders.len() {
            1 => holders.pop().ok_or(None),
            0 => Err(Some(format!(
                "process {pid} answers at the base URL's port, and holds no model: {ADVICE}"
            ))),
            many => Err(Some(format!(
                "{many} processes hold the server's socket: {ADVICE}"
            ))),
        }
    }

    /// The only one of `pids`, into whose descriptors we may not look, that `is_called` so,
    /// belongs to the user of the socket, and lives in its network.
    pub(super) fn by_command_line(
        &self,
        listeners: &[Listener],
        pids: &[u32],
        is_called: impl Fn(&Arguments) -> bool,
    ) -> Outcome {
        let is_its = |pid: u32, listener: &Listener| {
            let uid = self.procfs.status(pid).and_then(|status| status.uid);
            (listener.uid.is_none() || listener.uid == uid)
                && self.net_of(pid).has_socket(listener.inode)
        };
        let is_it = |pid: &u32| {
            self.called.get(pid).is_some_and(&is_called)
                && listeners.iter().any(|of| is_its(*pid, of))
        };
        let mut found: Vec<u32> = pids.iter().copied().filter(is_it).collect();
        let wraps = |pid: &u32, of: &u32| {
            let (outer, inner) = (self.called.get(pid), self.called.get(of));
            outer.zip(inner).is_some_and(|(o, i)| o.wrap(i))
        };
        // `docker-init -- llama-server …`, `sudo llama-server …` stay beside what they started.
        let all = found.clone();
        found.retain(|pid| !all.iter().any(|of| wraps(pid, of)));
        self.only(&found, "called with the server's port")
    }

    /// The only llama-server whose model's file has `part` in its path, for what is run as `mode`.
    fn by_file(&self, part: &str, mode: Option<&str>) -> Outcome {
        // Files are named after digests: nothing, or a word, is in other paths as well.
        let is_digest =
            part.len() >= SHORTEST_DIGEST && part.bytes().all(|byte| byte.is_ascii_hexdigit());
        if !is_digest
            || !*self
                .is_here
                .get_or_init(|| self.networks().next().is_some())
        {
            return Err(None);
        }
        let is_it = |pid: &u32| {
            self.called.get(pid).is_some_and(|arguments| {
                arguments.model().is_some_and(|path| path.contains(part))
                    && mode.is_none_or(|mode| mode == arguments.mode())
            })
        };
        let found: Vec<u32> = self.servers().iter().copied().filter(is_it).collect();
        self.only(&found, "called with the model's file")
    }

    fn only(&self, found: &[u32], which: &str) -> Outcome {
        match found {
            [pid] => match self.procfs.process(*pid) {
                Some(process) => Ok((process, None)),
                None => Err(None),
            },
            [] => Err(Some(format!(
                "no process that can be seen from here is {which}: {ADVICE}"
            ))),
            many => Err(Some(format!(
                "{} processes are {which}: {ADVICE}",
                many.len()
            ))),
        }
    }
}
