//! The two polls of each server, all servers at once.

use std::env;
use std::io::{IsTerminal as _, stderr};
use std::sync::Arc;
use std::thread;
use std::time::Instant;

use crate::app::Fatal;
use crate::collector::Poller;
use crate::collector::clock::SystemClock;
use crate::collector::discovery::DiscoveredServer;
use crate::settings::{BaseUrl, Settings};
use crate::snapshot::{Snapshot, SnapshotCell};

/// The most servers that are polled at a time.
const MOST_THREADS: usize = 64;

/// One server of a check.
pub struct Polled {
    /// Its base URL; `None` if it was discovered.
    pub base: Option<BaseUrl>,
    /// Its PID, if it was discovered.
    pub pid: Option<u32>,
    /// How the report calls it.
    pub title: String,
    /// What the poll before the last one found.
    pub before: Arc<Snapshot>,
    poller: Poller,
    cell: Arc<SnapshotCell>,
}

impl Polled {
    /// The server at `base`, whose log is followed from now on.
    ///
    /// # Errors
    /// A setting cannot be used, or no thread can be started.
    pub fn given(base: &BaseUrl, poller: Poller, settings: &Settings) -> Result<Polled, Fatal> {
        let polled = Polled::new(Some(base.clone()), None, base.to_string(), poller);
        polled
            .poller
            .watch_requests(settings, &polled.cell)
            .map_err(Fatal::cannot_run)?;
        Ok(polled)
    }

    /// A server that was discovered.
    pub fn discovered(found: DiscoveredServer) -> Polled {
        Polled::new(None, Some(found.pid), found.label, found.poller)
    }

    fn new(base: Option<BaseUrl>, pid: Option<u32>, title: String, poller: Poller) -> Polled {
        let cell = poller.monitored_server(Instant::now()).cell;
        Polled {
            base,
            pid,
            title,
            before: cell.load(),
            poller,
            cell,
        }
    }

    fn poll(&mut self) {
        self.before = self.cell.load();
        let snapshot = self.poller.poll(&SystemClock);
        self.cell.publish(Arc::new(snapshot));
    }

    /// What the last poll found, as it would be served.
    pub fn snapshot(&self) -> Arc<Snapshot> {
        self.cell.load()
    }
}

/// Polls each server once.
///
/// # Errors
/// No thread can be started.
pub fn poll_all(servers: &mut [Polled]) -> Result<(), Fatal> {
    let share = servers.len().div_ceil(MOST_THREADS).max(1);
    thread::scope(|scope| {
        for servers in servers.chunks_mut(share) {
            let poll = move || servers.iter_mut().for_each(Polled::poll);
            thread::Builder::new()
                .name("poll".to_owned())
                .spawn_scoped(scope, poll)?;
        }
        Ok(())
    })
    .map_err(|error: std::io::Error| {
        Fatal::cannot_run(format!("cannot start the poll thread: {error}"))
    })
}

/// One line on stderr that says what is going on, if that is a terminal.
pub struct Progress(bool);

impl Progress {
    /// Shows nothing yet.
    pub fn new() -> Progress {
        let is_dumb = env::var_os("TERM").is_none_or(|term| term.is_empty() || term == "dumb");
        Progress(stderr().is_terminal() && !is_dumb)
    }

    /// Replaces the line.
    pub fn show(&self, text: &str) {
        if self.0 {
            eprint!("\r\u{1b}[K{text} …");
        }
    }

    /// Removes the line.
    pub fn end(&self) {
        if self.0 {
            eprint!("\r\u{1b}[K");
        }
    }
}
