//! A llama.cpp server process of this machine, as `/proc` describes it: plain data.

// `core` has the address, without the sockets: this module does no I/O.
use core::net::SocketAddr;
use std::path::PathBuf;

use crate::bounds::BoundedDuration;

/// A PID with the start time of its process. A PID alone may be reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ProcessId {
    /// The PID, in the PID namespace of the procfs.
    pub pid: u32,
    /// When the process started, in ticks since boot.
    pub started: u64,
}

/// A process of this machine that runs llama-server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocalServer {
    /// Its PID, in the PID namespace of the procfs.
    pub pid: u32,
    /// When it started, in ticks since boot: a PID alone may be reused.
    pub started: u64,
    /// The address to connect to. The error explains why it cannot be reached, if the user can fix
    /// it; `None`: it does not listen yet.
    pub address: Result<LocalAddress, Option<String>>,
    /// The socket at that address, if the descriptors of the process can be listed.
    pub socket: Option<HeldSocket>,
    /// Whether it speaks `https`.
    pub is_https: bool,
    /// The prefix of its endpoints (`--api-prefix`): empty, or begins with a slash.
    pub api_prefix: String,
    /// How it calls its model (`--alias`).
    pub alias: Option<String>,
    /// The model file, as the process sees the path.
    pub model_path: Option<String>,
    /// The names of that file in the store of the program that started the server: Ollama's, the
    /// shortest first, or the tags of Docker Model Runner.
    pub stored_names: Vec<String>,
    /// How long it is idle before it sleeps (`--sleep-idle-seconds`).
    pub sleep_idle: Option<BoundedDuration>,
    /// The mode, as Docker Model Runner names it (`completion`, `embedding`, `reranking`).
    pub mode: &'static str,
    /// The PIDs of its parent, of the parent's parent, and so on.
    pub ancestors: Vec<u32>,
}

impl LocalServer {
    /// Whether it runs a model of Ollama's: its file is a blob in a store of Ollama.
    pub fn is_of_ollama(&self) -> bool {
        let path = self.model_path.as_deref();
        let blob = path.and_then(|path| path.rsplit_once("/blobs/sha256-"));
        blob.is_some_and(|(_, digest)| !digest.contains('/'))
    }
}

impl LocalServer {
    /// Its process.
    pub fn process_id(&self) -> ProcessId {
        ProcessId {
            pid: self.pid,
            started: self.started,
        }
    }
}

/// An address that a process of this machine listens on, as this process can connect to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LocalAddress {
    /// A TCP address that accepts connections from here.
    Tcp(SocketAddr),
    /// A Unix socket.
    Unix {
        /// A path that this process can open (`/proc/PID/cwd/x.sock`).
        path: PathBuf,
        /// The absolute path as the server sees it (`/srv/x.sock`).
        seen_as: String,
    },
}

/// A socket that a process has open.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeldSocket {
    /// Its path in `/proc/PID/fd`.
    pub descriptor: PathBuf,
    /// Its inode number.
    pub inode: u64,
}
