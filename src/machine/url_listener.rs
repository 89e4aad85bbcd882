//! Finds the process that listens at a base URL, of whatever program it is.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::net::IpAddr;

use crate::machine::docker_proxy::ForwardedPort;
use crate::machine::host_lookup::HostLookup;
use crate::machine::procfs::{HeldSocket, ProcessId, Procfs};
use crate::machine::server_arguments::ServerArguments;
use crate::machine::sockets::{ListeningSocket, NetworkNamespace};
use crate::settings::{BaseUrl, ServerAddress, Settings};

/// After this many looks, processes that did not listen at the base URL are looked at again.
const FORGET_AFTER: u32 = 12;
/// Programs that start llama-servers. If their descriptors cannot be listed, name, user and port
/// must do, if no other process of that program has them too.
const PARENTS: [&str; 4] = ["llama-swap", "model-runner", "dmr", "llama"];
/// The command of Ollama's server; its client is the same program.
const OLLAMA_SERVE: [&str; 2] = ["serve", "start"];

/// A process, and its socket at the base URL, if known.
type Holder = (ProcessId, Option<HeldSocket>);

/// The process that listens at one base URL.
pub struct UrlListener {
    procfs: Procfs,
    address: ServerAddress,
    port: u16,
    addresses: HostLookup,
    /// The socket is unknown if the descriptors of the process cannot be listed.
    found: Option<Holder>,
    /// Processes that do not listen there.
    others: BTreeSet<u32>,
    looks: u32,
}

impl UrlListener {
    /// The process that listens at `base`; not known yet.
    pub fn new(base: &BaseUrl, settings: &Settings) -> UrlListener {
        UrlListener {
            procfs: Procfs::new(&settings.procfs),
            address: base.address().clone(),
            port: base.port(),
            addresses: HostLookup::Idle,
            found: None,
            others: BTreeSet::new(),
            looks: 0,
        }
    }

    /// The one of `candidates` that listens at the base URL.
    pub fn among(&mut self, candidates: &BTreeSet<u32>) -> Option<u32> {
        if let Some((process, socket)) = &self.found {
            let is_open = socket.as_ref().is_none_or(HeldSocket::is_open);
            if is_open && self.procfs.process_id(process.pid) == Some(*process) {
                return Some(process.pid);
            }
            self.found = None;
        }
        self.looks = self.looks.saturating_add(1);
        if self.looks >= FORGET_AFTER {
            self.looks = 0;
            self.others.clear();
        }
        let new: Vec<u32> = candidates.difference(&self.others).copied().collect();
        if new.is_empty() {
            return None;
        }
        let ServerAddress::Host { host, .. } = &self.address else {
            // The kernel says who listens on a Unix socket: see `process_lookup`.
            return None;
        };
        let addresses = self.addresses.addresses(host)?;
        let own = NetworkNamespace::new(self.procfs.path("net"), true);
        let here: Vec<_> = addresses
            .iter()
            .copied()
            .filter(|a| own.has_address(*a))
            .collect();
        let sockets_here = match here.is_empty() {
            true => Vec::new(),
            false => own.listening().tcp(self.port, &here),
        };
        let direct = new.iter().filter_map(|pid| {
            if !here.is_empty() {
                return self.holder(*pid, &sockets_here);
            }
            let namespace = NetworkNamespace::new(self.procfs.process_path(*pid, "net"), false);
            let there: Vec<_> = addresses
                .iter()
                .copied()
                .filter(|a| namespace.has_address(*a))
                .collect();
            let sockets = match there.is_empty() {
                true => Vec::new(),
                false => namespace.listening().tcp(self.port, &there),
            };
            self.holder(*pid, &sockets)
        });
        self.found = certain_or_only(direct).or_else(|| self.in_container(&new, &addresses));
        self.others.extend(new);
        self.found.as_ref().map(|(process, _)| process.pid)
    }

    /// The one of `pids` that listens in the container to which Docker forwards the base URL.
    fn in_container(&self, pids: &[u32], addresses: &[IpAddr]) -> Option<Holder> {
        let own = fs::read_link(self.procfs.path("self/ns/net")).ok();
        let leads_here = |proxy: u32, forwarded: &ForwardedPort| {
            let of_proxy = fs::read_link(self.procfs.process_path(proxy, "ns/net")).ok();
            let is_own = own.is_some() && own == of_proxy;
            let namespace = NetworkNamespace::new(self.procfs.process_path(proxy, "net"), is_own);
            addresses.iter().any(|address| {
                forwarded.accepts(*address, self.port) && namespace.has_address(*address)
            })
        };
        let mut all = self.procfs.pids().into_iter();
        all.find_map(|proxy| {
            let forwarded = ForwardedPort::of(&self.procfs, proxy)?;
            if !leads_here(proxy, &forwarded) {
                return None;
            }
            let there = pids.iter().filter_map(|pid| {
                let namespace = NetworkNamespace::new(self.procfs.process_path(*pid, "net"), false);
                let is_there = namespace.has_address(forwarded.ip);
                let listening = is_there.then(|| namespace.listening())?;
                self.holder(*pid, &listening.tcp(forwarded.port, &[forwarded.ip]))
            });
            certain_or_only(there)
        })
    }

    /// The process `pid`, if it has one of `sockets` open. The socket is unknown if its descriptors
    /// cannot be listed.
    fn holder(&self, pid: u32, sockets: &[ListeningSocket]) -> Option<Holder> {
        if sockets.is_empty() {
            return None;
        }
        let inodes = sockets.iter().map(|socket| socket.inode).collect();
        match self.procfs.sockets(pid, &inodes) {
            Ok(held) => Some((self.procfs.process_id(pid)?, Some(held.into_iter().next()?))),
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                let program = self.possible_holder(pid, sockets)?;
                let is_another = |other: &u32| *other != pid;
                let mut others = self.procfs.pids().into_iter().filter(is_another);
                let is_same = |other| self.possible_holder(other, sockets) == Some(program.clone());
                let process = self.procfs.process_id(pid)?;
                (!others.any(is_same)).then_some((process, None))
            }
            Err(_) => None,
        }
    }

    /// The program of a process that may have one of `sockets` open, by its command line and user.
    fn possible_holder(&self, pid: u32, sockets: &[ListeningSocket]) -> Option<String> {
        let words = self.procfs.command_line(pid).ok()?;
        let arguments = ServerArguments::new(&words, &[]);
        let program = words.first()?.rsplit('/').next()?;
        let may_listen = match (arguments.is_llama_server(), program) {
            (true, _) => arguments.may_listen_on(self.port),
            (false, "ollama") => OLLAMA_SERVE.contains(&words.get(1)?.as_str()),
            (false, program) => PARENTS.contains(&program),
        };
        if !may_listen {
            return None;
        }
        let uid = self.procfs.status(pid)?.uid?;
        let namespace = NetworkNamespace::new(self.procfs.process_path(pid, "net"), false);
        let may_hold = |socket: &ListeningSocket| {
            socket.uid == Some(uid) && namespace.has_socket(socket.inode)
        };
        let is_possible = sockets.iter().any(may_hold);
        is_possible.then(|| program.to_owned())
    }
}

/// The first one whose socket is known, else the only one: two programs that start llama-servers
/// may run as one user.
fn certain_or_only(holders: impl Iterator<Item = Holder>) -> Option<Holder> {
    let (certain, mut possible): (Vec<_>, Vec<_>) =
        holders.partition(|(_, socket)| socket.is_some());
    let only = possible.pop().filter(|_| possible.is_empty());
    certain.into_iter().next().or(only)
}

#[cfg(test)]
mod tests {
    use std::ffi::OsString;

    use super::*;
    use crate::machine::tests::file_tree::FileTree;

    #[test]
    fn of_two_processes_whose_sockets_are_unknown_neither_is_taken() {
        let tree = FileTree::new(&[]);
        tree.link("9/fd/3", "socket:[90]");
        let procfs = Procfs::new(&tree.path(""));
        let held = procfs.sockets(9, &BTreeSet::from([90])).unwrap().pop();
        assert!(held.is_some());
        let holder = |pid, socket| (ProcessId { pid, started: 1 }, socket);
        let chosen = |holders: Vec<Holder>| {
            certain_or_only(holders.into_iter()).map(|(process, _)| process.pid)
        };
        assert_eq!(chosen(vec![holder(7, None)]), Some(7));
        assert_eq!(chosen(vec![holder(7, None), holder(8, None)]), None);
        let all = vec![holder(7, None), holder(8, None), holder(9, held)];
        assert_eq!(chosen(all), Some(9));
    }

    #[test]
    #[cfg(all(target_os = "linux", target_endian = "little"))]
    fn the_process_in_a_container_is_found_behind_docker_proxy() {
        let listen = |address: &str, inode: u32| {
            format!("0: {address}:3092 00000000:0000 0A 0:0 0:0 0 0 0 {inode} 1 0 100 0 0 10 0\n")
        };
        let tree = FileTree::new(&[
            ("net/tcp", &listen("0100007F", 70)),
            ("7/net/tcp", &listen("0100007F", 70)),
            ("7/status", "Uid:\t0\t0\t0\t0\n"),
            ("9/stat", &format!("9 (x) S 1 {}7", "0 ".repeat(17))),
            ("9/net/tcp", &listen("00000000", 90)),
            ("9/net/fib_trie", "|-- 172.17.0.2\n /32 host LOCAL\n"),
        ]);
        tree.link("self/ns/net", "net:[1]");
        tree.link("7/ns/net", "net:[1]");
        tree.link("9/fd/3", "socket:[90]");
        let forward = |ip: &str| {
            let line = format!(
                "docker-proxy -proto tcp -host-ip 127.0.0.1 -host-port 12434 -container-ip {ip} \
                 -container-port 12434"
            );
            tree.write("7/cmdline", line.replace(' ', "\0") + "\0");
        };
        let arguments = ["--base-url", "http://127.0.0.1:12434"].map(OsString::from);
        let (_, mut settings) = crate::settings::parse(arguments.to_vec(), |_| None).unwrap();
        settings.procfs = tree.path("");
        let found = || {
            let mut listener = UrlListener::new(&settings.base_urls[0], &settings);
            listener.among(&BTreeSet::from([1, 9]))
        };
        forward("172.17.0.2");
        assert_eq!(found(), Some(9));
        forward("172.17.0.3");
        assert_eq!(found(), None, "another container");
        forward("172.17.0.2");
        tree.write("7/status", "Uid:\t1000\t1000\t1000\t1000\n");
        assert_eq!(found(), None, "not Docker's");
    }
}
