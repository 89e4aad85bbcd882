//! Discovers the llama.cpp servers of this machine, and polls each of them as long as it runs.
//!
//! A server that is shown already is left out: that of a base URL, and the processes of a router
//! or another server of many models.

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::io;
use std::sync::Arc;
use std::sync::mpsc::{self, Sender};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::collector::clock::StoppableClock;
use crate::collector::monitored_server::MonitoredServer;
use crate::collector::poller::Poller;
use crate::collector::server_list::ServerList;
use crate::history::History;
use crate::machine::discovery::LocalServers;
use crate::machine::gpus::Gpus;
use crate::machine::url_listener::UrlListener;
use crate::process::{log, threads};
use crate::readings::{LocalAddress, LocalServer, ProcessId};
use crate::settings::{BaseUrl, Settings};
use crate::snapshot::Snapshot;
use crate::upstream::http::peer_check::PeerCheck;

/// The most discovered servers that are polled, and the most poll threads, those included that are
/// ending their last poll.
const MAX_SERVERS: usize = 64;
const TOO_MANY: &str = "64 servers are watched already: watch it with --base-url";
/// The most servers that cannot be reached of which that is logged.
const MAX_LOGGED: usize = 100;
/// How often the first look checks whether the base URLs have been polled.
const FIRST_LOOK_PAUSE: Duration = Duration::from_millis(20);

/// What to do with a process that is a llama-server.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Decision {
    /// Poll it.
    Poll,
    /// It is shown under this label `server`, or is about to be.
    ShownAs(String),
    /// It does not listen yet.
    NotListening,
    /// It cannot be reached, for this reason.
    Unreachable(String),
}

/// What is known of the server at a base URL.
#[derive(Clone, Debug, Default)]
struct GivenServer {
    /// The label `server`.
    label: String,
    /// Whether its first poll has not ended.
    is_unpolled: bool,
    /// Whether its models have processes of their own.
    has_children: bool,
    /// The process that listens there, if that is known.
    listener: Option<u32>,
    /// The processes whose memory is shown as that of one of its models.
    shown: BTreeSet<u32>,
}

/// Decides about `server`, one of `all`. `given` are the servers at base URLs.
fn decide(server: &LocalServer, all: &[LocalServer], given: &[GivenServer]) -> Decision {
    let label = label(server);
    let is_shown_by = |given: &&GivenServer| {
        let is_below = |pid: u32| server.ancestors.contains(&pid);
        given.listener == Some(server.pid)
            || given.label == label
            || given.shown.contains(&server.pid)
            || (given.has_children || given.is_unpolled) && given.listener.is_some_and(is_below)
    };
    if let Some(given) = given.iter().find(is_shown_by) {
        return Decision::ShownAs(given.label.clone());
    }
    // Of all llama-servers, only a router has others as its children.
    let is_parent =
        |other: &&LocalServer| other.address.is_ok() && server.ancestors.contains(&other.pid);
    if let Some(router) = all.iter().find(is_parent) {
        return Decision::ShownAs(self::label(router));
    }
    match &server.address {
        Ok(_) => match all.iter().find(|other| shares_address(other, server)) {
            Some(other) => Decision::Unreachable(format!(
                "process {} listens at {label}, too, and the kernel chooses which of them answers: \
                 give each a port of its own",
                other.pid
            )),
            None => Decision::Poll,
        },
        Err(None) => Decision::NotListening,
        Err(Some(why)) => Decision::Unreachable(why.clone()),
    }
}

/// Whether `other` listens at the address of `server`, and neither has started the other: with
/// `SO_REUSEPORT` (b7710 sets it, b8672 does not), the kernel divides the connections between them.
fn shares_address(other: &LocalServer, server: &LocalServer) -> bool {
    other.pid != server.pid
        && other.address == server.address
        && !other.ancestors.contains(&server.pid)
}

/// The label `server` of a server that listens.
fn label(server: &LocalServer) -> String {
    match &server.address {
        Ok(LocalAddress::Tcp(address)) => address.to_string(),
        Ok(LocalAddress::Unix { seen_as, .. }) => format!("unix:{seen_as}"),
        Err(_) => format!("process {}", server.pid),
    }
}

/// A label of `server` that is none of `taken`: two containers may have sockets of the same path.
fn unique_label(server: &LocalServer, taken: &BTreeSet<String>) -> String {
    let short = label(server);
    match &server.address {
        Ok(LocalAddress::Unix { path, .. }) if taken.contains(&short) => {
            format!("unix:{}", path.display())
        }
        _ => short,
    }
}

/// A discovered server, while it is polled.
struct Polled {
    label: String,
    address: LocalAddress,
    server: MonitoredServer,
    /// The thread ends when this is dropped.
    stop: Sender<Infallible>,
    thread: JoinHandle<()>,
}

/// Looks for servers, and starts and stops their pollers.
pub struct Discovery {
    settings: Settings,
    gpus: Arc<Gpus>,
    local_servers: Arc<LocalServers>,
    /// Of each base URL, the process that listens there, and whether the models of the last server
    /// that answered there have processes of their own.
    bases: Vec<(UrlListener, bool)>,
    polled: BTreeMap<ProcessId, Polled>,
    /// Threads that are ending their last poll.
    ending: Vec<JoinHandle<()>>,
    /// Processes that were shown under another label once. They stay left out: if their parent
    /// ends, they are about to end too.
    shown_as: BTreeMap<ProcessId, String>,
    /// The servers that cannot be reached, with the reason that was logged.
    unreachable: BTreeMap<ProcessId, String>,
    logged: usize,
    /// Keeps what the discovered servers publish.
    history: Arc<History>,
}

impl Discovery {
    /// A discovery that has not looked yet.
    pub fn new(
        settings: &Settings,
        gpus: &Arc<Gpus>,
        local_servers: &Arc<LocalServers>,
    ) -> Discovery {
        let bases = settings.base_urls.iter();
        Discovery {
            bases: bases
                .map(|base| (UrlListener::new(base, settings), false))
                .collect(),
            settings: settings.clone(),
            gpus: Arc::clone(gpus),
            local_servers: Arc::clone(local_servers),
            polled: BTreeMap::new(),
            ending: Vec::new(),
            shown_as: BTreeMap::new(),
            unreachable: BTreeMap::new(),
            logged: 0,
            history: Arc::new(History::new(Instant::now())),
        }
    }

    /// The same, with a history that it shares with the servers at base URLs.
    #[must_use]
    pub fn with_history(self, history: &Arc<History>) -> Discovery {
        Discovery {
            history: Arc::clone(history),
            ..self
        }
    }

    /// Starts the thread that looks every interval, and adds to `servers` what it discovers.
    ///
    /// # Errors
    /// The system cannot start a thread.
    pub fn start(mut self, servers: Arc<ServerList>) -> io::Result<()> {
        let run = move || {
            self.await_first_polls(&servers);
            loop {
                let started = Instant::now();
                let found = self.look(&servers.given_snapshots());
                servers.set_discovered(found, Instant::now());
                thread::sleep(self.settings.interval.saturating_sub(started.elapsed()));
            }
        };
        threads::start("discovery", run)
    }

    /// Waits for the first polls of the base URLs, up to an interval: which kind of server answers
    /// there decides what is shown already.
    fn await_first_polls(&self, servers: &ServerList) {
        let started = Instant::now();
        let is_unpolled = || {
            servers
                .given_snapshots()
                .iter()
                .any(|snapshot| snapshot.up.is_none())
        };
        while is_unpolled() && started.elapsed() < self.settings.interval {
            thread::sleep(FIRST_LOOK_PAUSE);
        }
    }

    /// Looks once; returns the servers that are polled now, and those that cannot be.
    fn look(&mut self, given: &[Arc<Snapshot>]) -> DiscoveredServers {
        let found = self.local_servers.list(self.settings.interval);
        let decisions = self.decide_all(&found, given);
        self.stop_all_but(&found, &decisions);
        self.ending.retain(|thread| !thread.is_finished());
        let mut unreachable = BTreeMap::<String, Vec<u32>>::new();
        for (server, decision) in found.iter().zip(decisions) {
            let why = match decision {
                Decision::Poll if !self.polled.contains_key(&server.process_id()) => {
                    self.start_polling(server).err()
                }
                Decision::Unreachable(why) => Some(why),
                _ => None,
            };
            if let Some(why) = why {
                self.log_unreachable(server, &why);
                unreachable.entry(why).or_default().push(server.pid);
            }
        }
        let polled = self.polled.values().map(|polled| polled.server.clone());
        DiscoveredServers {
            polled: polled.collect(),
            unreachable,
        }
    }

    fn decide_all(&mut self, found: &[LocalServer], given: &[Arc<Snapshot>]) -> Vec<Decision> {
        let candidates: BTreeSet<u32> = found
            .iter()
            .flat_map(|server| server.ancestors.iter().chain([&server.pid]))
            .copied()
            .collect();
        let given: Vec<GivenServer> = given
            .iter()
            .zip(&mut self.bases)
            .map(|(snapshot, (listener, has_children))| {
                let info = snapshot.info.as_ref();
                *has_children = info.map_or(*has_children, |info| info.kind.holds_many_models());
                let processes = snapshot.models.iter();
                GivenServer {
                    label: snapshot.server.clone(),
                    is_unpolled: snapshot.up.is_none(),
                    has_children: *has_children,
                    listener: listener.among(&candidates),
                    shown: processes.filter_map(|model| model.process.pid).collect(),
                }
            })
            .collect();
        let present: BTreeSet<ProcessId> = found.iter().map(LocalServer::process_id).collect();
        self.shown_as.retain(|key, _| present.contains(key));
        self.unreachable.retain(|key, _| present.contains(key));
        let decisions = found.iter().map(|server| {
            if let Some(label) = self.shown_as.get(&server.process_id()) {
                return Decision::ShownAs(label.clone());
            }
            let decision = decide(server, found, &given);
            let is_certain = !given.iter().any(|given| given.is_unpolled);
            if let Decision::ShownAs(label) = &decision
                && is_certain
            {
                self.shown_as.insert(server.process_id(), label.clone());
            }
            decision
        });
        decisions.collect()
    }

    /// Stops the pollers of servers that are not to be polled any more, or listen elsewhere.
    fn stop_all_but(&mut self, found: &[LocalServer], decisions: &[Decision]) {
        let addresses: BTreeMap<ProcessId, &LocalAddress> = found
            .iter()
            .zip(decisions)
            .filter(|(_, decision)| **decision == Decision::Poll)
            .filter_map(|(server, _)| Some((server.process_id(), server.address.as_ref().ok()?)))
            .collect();
        let is_over = |(key, polled): &(&ProcessId, &Polled)| {
            let address = addresses.get(key);
            address.is_none_or(|address| **address != polled.address)
        };
        let over: Vec<ProcessId> = self
            .polled
            .iter()
            .filter(is_over)
            .map(|(key, _)| *key)
            .collect();
        for polled in over.iter().filter_map(|key| self.polled.remove(key)) {
            log::info(
                "a discovered server has ended, or is shown by its parent",
                &[("server", &polled.label)],
            );
            drop(polled.stop);
            self.ending.push(polled.thread);
        }
    }

    /// Starts to poll it. The error explains why it cannot be polled.
    fn start_polling(&mut self, server: &LocalServer) -> Result<(), String> {
        if self.polled.len().saturating_add(self.ending.len()) >= MAX_SERVERS {
            return Err(TOO_MANY.to_owned());
        }
        let Ok(address) = &server.address else {
            return Ok(());
        };
        let taken = self.polled.values().map(|polled| polled.label.clone());
        let label = unique_label(server, &taken.collect());
        let poller = self.poller(server, label.clone())?;
        let (stop, stopped) = mpsc::channel();
        let monitored = poller.monitored_server(Instant::now());
        let monitored = monitored.with_history(&self.history);
        let thread = poller.start(monitored.clone(), StoppableClock(stopped));
        let thread = thread.map_err(|error| format!("cannot start a thread: {error}"))?;
        log::info(
            "discovered a server",
            &[("pid", &server.pid), ("server", &label)],
        );
        let polled = Polled {
            label,
            address: address.clone(),
            server: monitored,
            stop,
            thread,
        };
        self.polled.insert(server.process_id(), polled);
        Ok(())
    }

    /// The poller of a server, with its own key.
    fn poller(&self, server: &LocalServer, label: String) -> Result<Poller, String> {
        let base = base_url(server)?;
        let name = server.stored_names.first().cloned();
        let api_key = self.local_servers.api_key(server);
        let settings = self
            .settings
            .of_discovered(base.clone(), label, name, api_key);
        let check = PeerCheck(Arc::new(self.local_servers.peer_check(server)));
        let poller = Poller::new(&base, &settings)?.with_gpus(&self.gpus);
        Ok(poller.with_process(server, check))
    }

    fn log_unreachable(&mut self, server: &LocalServer, why: &str) {
        let known = self.unreachable.insert(server.process_id(), why.to_owned());
        if known.as_deref() != Some(why) && self.logged < MAX_LOGGED {
            self.logged = self.logged.saturating_add(1);
            log::warn(
                "a llama-server of this machine is not watched",
                &[("pid", &server.pid), ("reason", &why)],
            );
        }
    }

    /// The servers that a first look discovers, for `--check`, and of each other llama-server the PID
    /// and why it is not watched. `given` are the snapshots of the base URLs.
    pub fn first_look(
        &mut self,
        given: &[Arc<Snapshot>],
    ) -> (Vec<DiscoveredServer>, Vec<(u32, String)>) {
        let found = self.local_servers.list(self.settings.interval);
        let decisions = self.decide_all(&found, given);
        let (mut polled, mut others, mut labels) = (Vec::new(), Vec::new(), BTreeSet::new());
        for (server, decision) in found.iter().zip(decisions) {
            let pid = server.pid;
            let why = match decision {
                Decision::Poll if polled.len() < MAX_SERVERS => {
                    let label = unique_label(server, &labels);
                    labels.insert(label.clone());
                    match self.poller(server, label.clone()) {
                        Ok(poller) => {
                            polled.push(DiscoveredServer { pid, label, poller });
                            continue;
                        }
                        Err(why) => why,
                    }
                }
                Decision::Poll => TOO_MANY.to_owned(),
                Decision::ShownAs(label) => format!("it is shown under {label}"),
                Decision::NotListening => "it does not listen yet".to_owned(),
                Decision::Unreachable(why) => why,
            };
            others.push((pid, why));
        }
        (polled, others)
    }
}

/// What a look has found.
#[derive(Debug, Default)]
pub(super) struct DiscoveredServers {
    /// The servers that are polled now.
    pub polled: Vec<MonitoredServer>,
    /// The PIDs of those that cannot be polled, by the reason.
    pub unreachable: BTreeMap<String, Vec<u32>>,
}

/// A discovered server, before its first poll.
pub struct DiscoveredServer {
    /// Its PID.
    pub pid: u32,
    /// The label `server`.
    pub label: String,
    /// Polls it.
    pub poller: Poller,
}

/// The base URL of a server that listens.
fn base_url(server: &LocalServer) -> Result<BaseUrl, String> {
    let scheme = if server.is_https { "https" } else { "http" };
    match &server.address {
        Ok(LocalAddress::Tcp(address)) => {
            format!("{scheme}://{address}{}", server.api_prefix).parse()
        }
        Ok(LocalAddress::Unix { .. }) if server.is_https => {
            Err("it speaks TLS over a Unix socket, which is not supported".to_owned())
        }
        Ok(LocalAddress::Unix { path, .. }) => {
            Ok(BaseUrl::of_socket(path.clone(), &server.api_prefix))
        }
        Err(_) => Err("it does not listen".to_owned()),
    }
}
