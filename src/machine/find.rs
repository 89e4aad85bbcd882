//! Which process holds a model.
//!
//! The tables of sockets say whether anything listens there on this machine, and
//! only then its owner is looked for: first among the processes that are called
//! as llama.cpp's server is. To look through all descriptors of all processes
//! costs much beside servers with thousands of them.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;

use super::Hints;
use super::arguments::Arguments;
use super::net::{Listener, Net};
use super::process::{Process, Procfs};

/// What people can do where the process is not found.
const ADVICE: &str = "memory and CPU are not shown; let the exporter run as root or as the \
                      server's user, or name the process with --pid-file";

const LOOPBACK: [IpAddr; 2] = [
    IpAddr::V4(Ipv4Addr::LOCALHOST),
    IpAddr::V6(Ipv6Addr::LOCALHOST),
];

/// A process, and the descriptor and the number of the socket that it was found by.
pub type Held = (Process, Option<(PathBuf, u64)>);

/// The process, or why it is not found, where there is something to be done about it.
pub type Outcome = Result<Held, Option<String>>;

/// Looks for processes behind one base URL.
pub struct Search<'a> {
    procfs: &'a Procfs,
    /// The base URL's.
    addresses: &'a [IpAddr],
    port: u16,
    /// All processes but our own, those called as llama.cpp's server is first.
    pids: Vec<u32>,
    /// How many of them are called so.
    servers: usize,
}

impl<'a> Search<'a> {
    /// A search for what is behind `port` of `addresses`.
    pub fn new(procfs: &'a Procfs, addresses: &'a [IpAddr], port: u16) -> Search<'a> {
        let own = std::process::id();
        let (mut pids, mut others) = (Vec::new(), Vec::new());
        for pid in procfs.pids() {
            // The kernel's own threads were called with nothing.
            match procfs.arguments(pid) {
                Ok(words) if Arguments::new(&words, &[]).are_a_llama_servers() => pids.push(pid),
                Ok(words) if !words.is_empty() && pid != own => others.push(pid),
                _ => {}
            }
        }
        let servers = pids.len();
        pids.append(&mut others);
        Search {
            procfs,
            addresses,
            port,
            pids,
            servers,
        }
    }

    /// The process of the model of which `hints` speak.
    pub fn find(&self, hints: &Hints) -> Outcome {
        if let Some(part) = hints.file_part {
            return self.by_file(part, hints.mode);
        }
        // None: it is not here, or behind what is no process, as a firewall's rule.
        let (net, listeners) = self
            .nets()
            .filter(|net| self.leads_to(net))
            .find_map(|net| {
                let listeners = net.tcp_listeners(self.port, self.addresses);
                (!listeners.is_empty()).then_some((net, listeners))
            })
            .ok_or(None)?;
        let Some(words) = hints.arguments else {
            return self.holder(&listeners, |called| called.mean_port(self.port));
        };
        // A router's own server listens beside it.
        let child = Arguments::new(words, &[]);
        if let Some(path) = child.socket() {
            let called = |called: &Arguments| called.socket() == Some(path);
            self.holder(&net.unix_listeners(path), called)
        } else {
            let port = child.port().ok_or(None)?;
            let listeners = net.tcp_listeners(port, &LOOPBACK);
            self.holder(&listeners, |called| called.mean_port(port))
        }
    }

    fn leads_to(&self, net: &Net) -> bool {
        self.addresses.iter().any(|address| net.has(*address))
    }

    /// Where the base URL may lead: to our own network, and where the processes of more than
    /// our own container are shown, to the machine's or that of another container.
    fn nets(&self) -> impl Iterator<Item = Net> {
        let own = Net::at(self.procfs.path("net"), true);
        let others = [1].into_iter().chain(self.servers().iter().copied());
        [own].into_iter().chain(others.map(|pid| self.net_of(pid)))
    }

    fn net_of(&self, pid: u32) -> Net {
        Net::at(self.procfs.of(pid, "net"), false)
    }

    /// The processes that are called as llama.cpp's server is.
    fn servers(&self) -> &[u32] {
        &self.pids[..self.servers]
    }

    fn called(&self, pid: u32) -> Arguments {
        let words = self.procfs.arguments(pid).unwrap_or_default();
        Arguments::new(&words, &[])
    }

    /// The one process that holds the sockets and a model, or where that cannot be seen
    /// the one that `is_called` so.
    fn holder(&self, listeners: &[Listener], is_called: impl Fn(&Arguments) -> bool) -> Outcome {
        let inodes: Vec<u64> = listeners.iter().map(|listener| listener.inode).collect();
        if inodes.is_empty() {
            return Err(None);
        }
        let mut holders: Vec<Held> = Vec::new();
        let mut unseen = Vec::new();
        for (index, pid) in self.pids.iter().enumerate() {
            match self.procfs.holds(*pid, &inodes) {
                Ok(sockets) => {
                    let process = self.procfs.process(*pid);
                    let sockets = sockets.into_iter();
                    holders.extend(sockets.filter_map(|socket| Some((process?, Some(socket)))));
                }
                Err(error) if error.kind() == io::ErrorKind::PermissionDenied => unseen.push(*pid),
                Err(_) => {}
            }
            // Any other program may have handed it down to one that has not been looked at.
            if index < self.servers && accounted_for(&inodes, &holders) {
                break;
            }
        }
        if holders.is_empty() {
            return self.by_command_line(listeners, &unseen, is_called);
        }
        holders.dedup_by_key(|(process, _)| *process);
        let mut holding = holders.clone();
        holding.retain(|(Process { pid, .. }, _)| {
            self.servers().contains(pid) || self.procfs.has_llama_cpp(*pid)
        });
        let pid = holders[0].0.pid;
        match holding.len() {
            1 => holding.pop().ok_or(None),
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
            is_called(&self.called(*pid)) && listeners.iter().any(|of| is_its(*pid, of))
        };
        let found: Vec<u32> = pids.iter().copied().filter(is_it).collect();
        self.only(&found, "called with the server's port")
    }

    /// The only llama-server whose model's file has `part` in its path, for what is run as `mode`.
    fn by_file(&self, part: &str, mode: Option<&str>) -> Outcome {
        if !self.nets().any(|net| self.leads_to(&net)) {
            return Err(None);
        }
        let is_it = |pid: &u32| {
            let arguments = self.called(*pid);
            arguments.model().is_some_and(|path| path.contains(part))
                && mode.is_none_or(|mode| mode == arguments.mode())
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

/// Whether each of the sockets has a holder.
fn accounted_for(inodes: &[u64], holders: &[Held]) -> bool {
    let held = |inode: &u64| {
        let mut sockets = holders.iter().filter_map(|(_, socket)| socket.as_ref());
        sockets.any(|(_, of)| of == inode)
    };
    inodes.iter().all(held)
}
