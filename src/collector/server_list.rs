//! All servers that are served: those at base URLs, and those that are discovered now.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::collector::discovery::DiscoveredServers;
use crate::collector::monitored_server::MonitoredServer;
use crate::collector::watchdog::Watchdog;
use crate::process::threads::lock;
use crate::snapshot::{Absence, Snapshot, Source, SourceKind};
use crate::units;

/// How long a look for servers may take.
const LOOK_LIMIT: Duration = Duration::from_secs(10);

/// The servers that are served.
#[derive(Debug)]
pub struct ServerList {
    /// At base URLs.
    given: Vec<MonitoredServer>,
    discovery: Option<SearchState>,
}

#[derive(Debug)]
struct SearchState {
    /// The lock is held only to swap or clone a pointer.
    found: Mutex<Arc<DiscoveredServers>>,
    interval: Duration,
    watchdog: Watchdog,
    /// Whether the first look has ended.
    has_looked: AtomicBool,
}

impl ServerList {
    /// The servers at base URLs. With `discover`, others are looked for at this interval, and the
    /// first time at `now`.
    pub fn new(
        given: Vec<MonitoredServer>,
        discover: Option<Duration>,
        now: Instant,
    ) -> ServerList {
        ServerList {
            given,
            discovery: discover.map(|interval| SearchState {
                found: Mutex::default(),
                interval,
                watchdog: Watchdog::new(now, interval, LOOK_LIMIT),
                has_looked: AtomicBool::new(false),
            }),
        }
    }

    /// The newest snapshots of the servers at base URLs.
    pub(super) fn given_snapshots(&self) -> Vec<Arc<Snapshot>> {
        self.given.iter().map(|server| server.cell.load()).collect()
    }

    /// Sets what a look, which ended at `now`, has found.
    pub(super) fn set_discovered(&self, found: DiscoveredServers, now: Instant) {
        if let Some(discovery) = &self.discovery {
            *lock(&discovery.found) = Arc::new(found);
            discovery
                .watchdog
                .reset(now, discovery.interval, LOOK_LIMIT);
            discovery.has_looked.store(true, Ordering::Release);
        }
    }

    fn found(&self) -> Arc<DiscoveredServers> {
        let found = self.discovery.as_ref().map(|discovery| &discovery.found);
        found.map_or_else(Arc::default, |found| Arc::clone(&lock(found)))
    }

    /// The newest snapshot of each server, at the time `now`.
    pub fn snapshots(&self, now: Instant) -> Vec<Arc<Snapshot>> {
        let found = self.found();
        let all = self.given.iter().chain(&found.polled);
        all.map(|server| server.snapshot(now)).collect()
    }

    /// The number of discovered servers; `None` without discovery, or while a look is overdue.
    pub fn discovered_count(&self, now: Instant) -> Option<usize> {
        let discovery = self.discovery.as_ref()?;
        let is_known = discovery.has_looked.load(Ordering::Acquire)
            && discovery.watchdog.overdue(now).is_none();
        is_known.then(|| self.found().polled.len())
    }

    /// The search for servers, as a source. Says which servers are not watched, and why.
    pub fn discovery(&self, now: Instant) -> Source {
        let found = self.found();
        let unreachable = found.unreachable.iter().map(|(why, pids)| {
            let pids: Vec<String> = pids.iter().map(u32::to_string).collect();
            format!("not watched: process {}: {why}", pids.join(", "))
        });
        let unreachable: Vec<String> = unreachable.collect();
        let source = Source::new(SourceKind::Discovery);
        let source = match unreachable.is_empty() {
            true => source,
            false => source.with_error(&unreachable.join("; ")),
        };
        let absence = match (&self.discovery, self.discovered_count(now)) {
            (None, _) => Some(Absence::DiscoveryOff),
            (Some(_), None) => Some(Absence::DiscoveryLate),
            (Some(_), Some(_)) => None,
        };
        Source { absence, ..source }
    }

    /// Whether polls are on time at `now`: one stuck poll does not stop the others.
    ///
    /// # Errors
    /// Every poll is overdue, and so is the look for servers; the text names the first.
    pub fn health(&self, now: Instant) -> Result<(), String> {
        let found = self.found();
        let polls = self.given.iter().chain(&found.polled);
        let polls = polls.map(|server| {
            let late = server.watchdog.overdue(now)?;
            let label = &server.cell.load().server;
            Some(format!(
                "no poll is on time: that of {label} is {} overdue",
                units::age(late.as_secs_f64())
            ))
        });
        let look = self.discovery.iter().map(|discovery| {
            let late = discovery.watchdog.overdue(now)?;
            Some(format!(
                "nothing is on time: looking for servers is {} overdue",
                units::age(late.as_secs_f64())
            ))
        });
        match polls.chain(look).collect::<Option<Vec<_>>>() {
            Some(overdue) => overdue.into_iter().next().map_or(Ok(()), Err),
            None => Ok(()),
        }
    }

    /// Whether every base URL has been polled, and servers have been looked for.
    ///
    /// # Errors
    /// The first poll of one has not ended; the text names it.
    pub fn readiness(&self) -> Result<(), String> {
        let mut snapshots = self.given.iter().map(|server| server.cell.load());
        if let Some(snapshot) = snapshots.find(|snapshot| snapshot.up.is_none()) {
            let server = &snapshot.server;
            return Err(format!("the first poll of {server} has not ended yet"));
        }
        match &self.discovery {
            Some(discovery) if !discovery.has_looked.load(Ordering::Acquire) => {
                Err("the first look for servers has not ended yet".to_owned())
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::snapshot::SourceState;

    const HOUR: Duration = Duration::from_secs(3600);

    fn server(name: &str, is_overdue: bool, up: Option<bool>, now: Instant) -> MonitoredServer {
        let snapshot = Snapshot {
            server: name.to_owned(),
            up,
            ..Snapshot::default()
        };
        let start = if is_overdue { now - 3 * HOUR } else { now };
        MonitoredServer::new(snapshot, start, HOUR, HOUR)
    }

    fn found(server: MonitoredServer) -> DiscoveredServers {
        let polled = vec![server];
        let unreachable = [("no rights".to_owned(), vec![7, 9])].into();
        DiscoveredServers {
            polled,
            unreachable,
        }
    }

    /// A time that has hours before it.
    fn now() -> Instant {
        Instant::now() + 4 * HOUR
    }

    #[test]
    fn one_stuck_poll_does_not_make_the_exporter_unhealthy() {
        let now = now();
        let health = |servers: &[(&str, bool)]| {
            let servers = servers
                .iter()
                .map(|(name, is_overdue)| server(name, *is_overdue, None, now));
            ServerList::new(servers.collect(), None, now).health(now)
        };
        assert_eq!(health(&[("a:1", true), ("b:2", false)]), Ok(()));
        assert_eq!(health(&[("a:1", false)]), Ok(()));
        let error = health(&[("a:1", true), ("b:2", true)]).unwrap_err();
        assert!(
            error.starts_with("no poll is on time: that of a:1 is "),
            "{error}"
        );
        assert_eq!(health(&[]), Ok(()), "nothing to poll");
    }

    #[test]
    fn the_exporter_is_ready_when_every_base_url_was_polled_and_servers_were_looked_for() {
        let now = now();
        let polled = server("a:1", false, Some(true), now);
        let unpolled = server("b:2", false, None, now);
        let ready = |servers: &[&MonitoredServer]| {
            let servers = servers.iter().map(|server| (*server).clone());
            ServerList::new(servers.collect(), None, now).readiness()
        };
        assert_eq!(ready(&[&polled]), Ok(()));
        let error = ready(&[&polled, &unpolled]).unwrap_err();
        assert_eq!(error, "the first poll of b:2 has not ended yet");
        let list = ServerList::new(vec![polled], Some(HOUR), now);
        let error = list.readiness().unwrap_err();
        assert_eq!(error, "the first look for servers has not ended yet");
        // A server that was just discovered does not make the exporter unready.
        list.set_discovered(found(unpolled), now);
        assert_eq!(list.readiness(), Ok(()));
    }

    #[test]
    fn discovered_servers_are_counted_while_looks_are_on_time() {
        let now = now();
        let list = ServerList::new(Vec::new(), Some(HOUR), now);
        assert_eq!(list.discovered_count(now), None);
        list.set_discovered(found(server("a:1", true, Some(true), now)), now);
        let source = list.discovery(now);
        assert_eq!(
            (source.state(), source.error.as_deref()),
            (
                SourceState::Read,
                Some("not watched: process 7, 9: no rights")
            )
        );
        assert_eq!(list.discovered_count(now), Some(1));
        assert_eq!(list.snapshots(now)[0].up, Some(false));
        assert_eq!(list.health(now), Ok(()), "the look is on time");
        assert_eq!(list.discovered_count(now + 3 * HOUR), None);
        assert!(list.health(now + 3 * HOUR).is_err());
        assert_eq!(
            ServerList::new(Vec::new(), None, now).discovered_count(now),
            None
        );
    }
}
