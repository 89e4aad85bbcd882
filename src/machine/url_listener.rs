//! Finds the process that listens at a base URL, of whatever program it is.

use std::collections::BTreeSet;
use std::io;

use crate::machine::host_lookup::HostLookup;
use crate::machine::procfs::{HeldSocket, ProcessId, Procfs};
use crate::machine::server_arguments::ServerArguments;
use crate::machine::sockets::{ListeningSocket, NetworkNamespace};
use crate::settings::{BaseUrl, ServerAddress, Settings};

/// After this many looks, processes that did not listen at the base URL are looked at again.
const FORGET_AFTER: u32 = 12;
/// Programs that start llama-servers. If their descriptors cannot be listed, name, user and port
/// must do.
const PARENTS: [&str; 5] = ["ollama", "llama-swap", "model-runner", "dmr", "llama"];

/// The process that listens at one base URL.
pub struct UrlListener {
    procfs: Procfs,
    address: ServerAddress,
    port: u16,
    addresses: HostLookup,
    /// The socket is unknown if the descriptors of the process cannot be listed.
    found: Option<(ProcessId, Option<HeldSocket>)>,
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
        self.found = new.iter().find_map(|pid| {
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
        self.others.extend(new);
        self.found.as_ref().map(|(process, _)| process.pid)
    }

    /// The process `pid`, if it has one of `sockets` open.
    fn holder(
        &self,
        pid: u32,
        sockets: &[ListeningSocket],
    ) -> Option<(ProcessId, Option<HeldSocket>)> {
        if sockets.is_empty() {
            return None;
        }
        let inodes = sockets.iter().map(|socket| socket.inode).collect();
        match self.procfs.sockets(pid, &inodes) {
            Ok(held) => Some((self.procfs.process_id(pid)?, Some(held.into_iter().next()?))),
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                let uid = self.procfs.status(pid)?.uid?;
                let is_same_user = sockets.iter().any(|socket| socket.uid == Some(uid));
                let is_holder = is_same_user && self.may_listen(pid);
                Some((self.procfs.process_id(pid).filter(|_| is_holder)?, None))
            }
            Err(_) => None,
        }
    }

    fn may_listen(&self, pid: u32) -> bool {
        let words = self.procfs.command_line(pid).unwrap_or_default();
        let arguments = ServerArguments::new(&words, &[]);
        let program = words.first().map_or("", String::as_str);
        let program = program.rsplit('/').next().unwrap_or_default();
        match arguments.is_llama_server() {
            true => arguments.may_listen_on(self.port),
            false => PARENTS.contains(&program),
        }
    }
}
