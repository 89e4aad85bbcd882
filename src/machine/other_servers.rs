//! The servers of this machine that the user of a wrong base URL may have meant.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use crate::machine::discovery::LocalServers;
use crate::machine::procfs::Procfs;
use crate::machine::sockets::NetworkNamespace;
use crate::readings::{LocalAddress, LocalServer};
use crate::settings::{BaseUrl, ServerAddress, Settings};

/// Ports that other programs with llama-servers listen on by default.
const KNOWN_PORTS: [(u16, &str); 2] = [(11434, "Ollama"), (12434, "Docker Model Runner")];
/// The most servers that a note names.
const MOST_NAMED: usize = 4;

/// Looks for the servers of this machine, while a base URL of this machine cannot be reached.
pub struct OtherServers {
    servers: Arc<LocalServers>,
    procfs: Procfs,
    interval: Duration,
    /// The base URLs that are watched.
    watched: Vec<BaseUrl>,
    /// Whether the base URL may mean this machine.
    is_here: bool,
}

impl OtherServers {
    /// Those that the user of `base` may have meant, among `servers`.
    pub fn new(base: &BaseUrl, settings: &Settings, servers: &Arc<LocalServers>) -> OtherServers {
        let is_of_docker = |host: &str| host.ends_with(".docker.internal");
        let is_here = match base.address() {
            ServerAddress::Host { host, .. } => base.is_loopback() || is_of_docker(host),
            ServerAddress::Unix(_) => true,
        };
        OtherServers {
            servers: Arc::clone(servers),
            procfs: Procfs::new(&settings.procfs),
            interval: settings.interval,
            watched: settings.base_urls.clone(),
            is_here,
        }
    }

    /// Names the servers that listen and are not watched, for the user. Connects to none of them.
    pub fn note(&self) -> Option<String> {
        if !self.is_here || cfg!(not(target_os = "linux")) {
            return None;
        }
        let own = NetworkNamespace::new(self.procfs.path("net"), true).listening();
        let listens =
            |port: u16| (own.tcp_addresses().iter()).any(|(address, _)| address.port() == port);
        let known = KNOWN_PORTS.into_iter().filter(|(port, _)| listens(*port));
        let known: Vec<_> = known
            .map(|(port, name)| (name, format!("http://localhost:{port}")))
            .collect();
        let servers = self.servers.list(self.interval);
        // The llama-servers of Ollama and Docker Model Runner have another port each time.
        let is_own = |server: &&LocalServer| known.is_empty() || server.stored_names.is_empty();
        let is_child = |server: &LocalServer| {
            let mut all = servers.iter();
            all.any(|other| server.ancestors.contains(&other.pid))
        };
        let found = servers
            .iter()
            .filter(is_own)
            .filter(|server| !is_child(server))
            .filter_map(|server| Some(("llama-server", url(server)?)));
        let mut found: Vec<_> = found.chain(known.iter().cloned()).collect();
        found.retain(|(_, url)| !self.is_watched(url));
        if found.is_empty() {
            return None;
        }
        let more = found.len().saturating_sub(MOST_NAMED);
        found.truncate(MOST_NAMED);
        let named = found.iter().map(|(name, url)| format!("{url} ({name})"));
        let others = (more > 0).then(|| format!("{more} more"));
        let list: Vec<_> = named.chain(others).collect();
        Some(format!(
            "other servers were found on this machine: {}. Give one with --base-url, or watch all \
             llama-servers with --discover",
            list.join(", ")
        ))
    }

    /// Whether `url`, of this machine, is that of a base URL.
    fn is_watched(&self, url: &str) -> bool {
        let url: Option<BaseUrl> = url.parse().ok();
        self.watched.iter().any(|watched| {
            url.as_ref().is_some_and(|url| {
                watched.is_same_server(url)
                    || watched.is_loopback()
                        && watched.socket().is_none()
                        && url.port() == watched.port()
            })
        })
    }
}

/// The base URL of a server that listens.
fn url(server: &LocalServer) -> Option<String> {
    let scheme = if server.is_https { "https" } else { "http" };
    let prefix = &server.api_prefix;
    match server.address.as_ref().ok()? {
        LocalAddress::Tcp(address) => Some(format!("{scheme}://{address}{prefix}")),
        LocalAddress::Unix { seen_as, path } => {
            let path = if Path::new(seen_as).exists() {
                Path::new(seen_as)
            } else {
                path
            };
            Some(BaseUrl::of_socket(path.to_owned(), prefix).to_string())
        }
    }
}
