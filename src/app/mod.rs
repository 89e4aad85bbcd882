//! The commands of the program, assembled from collectors and web server.

mod check;
mod first_polls;
pub mod report;

pub use check::run as check;

use std::fmt::Display;
use std::io::Write as _;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::bounds::escape::Escaped;
use crate::collector::clock::{Clock as _, SystemClock};
use crate::collector::discovery::Discovery;
use crate::collector::{Poller, ServerList};
use crate::history::History;
use crate::machine::{self, discovery::LocalServers, gpus::Gpus};
use crate::metrics::exposition;
use crate::metrics::overview::{self, Overview};
#[cfg(unix)]
use crate::process::service_manager;
use crate::process::{build_info, log, os, own_metrics};
use crate::settings::Settings;
use crate::snapshot::{OwnMetrics, Source};
use crate::web::routes::{self, Site};
use crate::web::status_page::{self, PageView, StatusPage};
use crate::web::{healthcheck as health_request, listener, worker};

/// The time-out of `--healthcheck`.
const HEALTHCHECK_TIMEOUT: Duration = Duration::from_secs(3);
/// What is said of a base URL that gets secrets over plain HTTP.
const EXPOSED: &str = "a key or password is sent over http, unencrypted, to another host: use https if the \
                       server or a proxy in front of it offers it";

/// An error that ends the program.
pub struct Fatal {
    /// 1: the program cannot run; 2: usage error.
    pub exit_code: u8,
    /// One line for people.
    pub message: String,
}

impl Fatal {
    /// A setting cannot be used.
    pub fn usage(message: String) -> Fatal {
        Fatal {
            exit_code: 2,
            message,
        }
    }

    fn cannot_run(message: impl Into<String>) -> Fatal {
        Fatal {
            exit_code: 1,
            message: message.into(),
        }
    }
}

/// Polls and serves until a signal ends the process.
///
/// # Errors
/// A setting cannot be used, the address is unavailable, or no thread can be started.
pub fn serve(settings: &Settings) -> Result<ExitCode, Fatal> {
    os::return_freed_memory();
    os::exit_on_signals()
        .map_err(|error| Fatal::cannot_run(format!("cannot handle signals: {error}")))?;
    let gpus = Arc::new(Gpus::start(settings));
    let local_servers = Arc::new(LocalServers::new(settings));
    let pollers = pollers(settings, &gpus, &local_servers)?;
    let listeners = listener::bind(&settings.addr)
        .map_err(|error| Fatal::cannot_run(format!("--addr: {error}")))?;
    let port = listeners.first().and_then(listener::port_of);
    let url = port.and_then(|port| settings.addr.url(port));
    let addresses = join(&listeners);
    let web_server = worker::start(listeners, settings.allowed_hosts.clone())
        .map_err(|error| Fatal::cannot_run(format!("cannot serve: {error}")))?;
    log_serving(settings, &addresses, url.as_deref());
    let history = Arc::new(History::new(Instant::now()));
    let mut servers = Vec::new();
    for poller in pollers {
        let server = poller.monitored_server(Instant::now());
        let server = server.with_history(&history);
        poller
            .watch_requests(settings, &server.cell)
            .map_err(Fatal::cannot_run)?;
        poller
            .start(server.clone(), SystemClock)
            .map_err(|error| Fatal::cannot_run(format!("cannot start the poll thread: {error}")))?;
        servers.push(server);
    }
    let discover = settings.discover.then_some(settings.interval);
    let servers = Arc::new(ServerList::new(servers, discover, Instant::now()));
    if settings.discover {
        Discovery::new(settings, &gpus, &local_servers)
            .with_history(&history)
            .start(Arc::clone(&servers))
            .map_err(|error| Fatal::cannot_run(format!("cannot start a thread: {error}")))?;
    }
    let site = Arc::new(ServedSite {
        servers,
        gpus,
        history,
        settings: settings.clone(),
    });
    first_polls::summarize(Arc::clone(&site))
        .map_err(|error| Fatal::cannot_run(format!("cannot start a thread: {error}")))?;
    // Not over HTTP: clients that use up the connections must not make the service manager restart us.
    #[cfg(unix)]
    service_manager::start({
        let served = site.clone();
        move || served.health()
    });
    let error = routes::run(web_server, &*site);
    Err(Fatal::cannot_run(format!("cannot serve: {error}")))
}

/// Requests the health of the running exporter.
///
/// # Errors
/// It does not respond.
pub fn healthcheck(settings: &Settings) -> Result<ExitCode, Fatal> {
    let answer = health_request::get(&settings.addr, "/healthz", HEALTHCHECK_TIMEOUT)
        .map_err(|error| Fatal::cannot_run(format!("--addr {}: {error}", settings.addr)))?;
    if answer.status == 200 && answer.line != routes::GOOD {
        return Err(Fatal::cannot_run(format!(
            "--addr {}: another program answers there, not the exporter",
            settings.addr
        )));
    }
    let line = format!("{}\n", Escaped(&answer.line));
    Ok(print(&line, answer.status == 200))
}

/// Prints `text`. Returns exit code 0 if `is_good`, else 1. A closed stdout is not an error.
pub fn print(text: &str, is_good: bool) -> ExitCode {
    let _ = std::io::stdout().write_all(text.as_bytes());
    ExitCode::from(u8::from(!is_good))
}

/// The pollers of all base URLs. Warns about secrets that they send unencrypted.
fn pollers(
    settings: &Settings,
    gpus: &Arc<Gpus>,
    local_servers: &Arc<LocalServers>,
) -> Result<Vec<Poller>, Fatal> {
    for base in settings.exposed() {
        log::warn(EXPOSED, &[("base_url", base)]);
    }
    let pollers = settings.base_urls.iter().map(|base| {
        let poller = Poller::new(base, settings).map_err(Fatal::usage)?;
        Ok(poller
            .with_gpus(gpus)
            .with_local_servers(local_servers, settings))
    });
    pollers.collect()
}

/// Logs what is watched, and where to look; `url` is that of this exporter.
fn log_serving(settings: &Settings, addresses: &str, url: Option<&str>) {
    let watched = watched(settings);
    let mut pairs: Vec<(&str, &dyn Display)> = vec![
        ("addr", &addresses),
        ("version", &build_info::VERSION),
        ("watching", &watched),
    ];
    let pages = url.map(|url| (format!("{url}/metrics"), format!("{url}/")));
    if let Some((metrics, page)) = &pages {
        pairs.extend([("metrics", metrics as &dyn Display), ("page", page)]);
    }
    log::info("serving", &pairs);
    if let Some(note) = machine::note_on_system() {
        log::info(note, &[]);
    }
}

/// What is watched, for the log.
fn watched(settings: &Settings) -> String {
    let found = settings.discover.then(|| "discovered servers".to_owned());
    let urls = settings.base_urls.iter().map(ToString::to_string);
    join(&urls.chain(found).collect::<Vec<_>>())
}

fn join(values: &[impl ToString]) -> String {
    let values: Vec<_> = values.iter().map(ToString::to_string).collect();
    values.join(",")
}

/// What the web server serves.
struct ServedSite {
    servers: Arc<ServerList>,
    gpus: Arc<Gpus>,
    history: Arc<History>,
    settings: Settings,
}

impl ServedSite {
    fn machine_sources(&self, now: Instant) -> Vec<Source> {
        let mut machine = machine::sources(&self.settings, &self.gpus);
        machine.push(self.servers.discovery(now));
        machine
    }

    /// Which metrics are there, and why not the others.
    fn overview(&self, now: Instant) -> Overview {
        let (servers, gpus) = (self.servers.snapshots(now), self.gpus.known());
        let own = self.own_metrics(now);
        overview::overview(&servers, &gpus, &self.machine_sources(now), &own)
    }

    fn own_metrics(&self, now: Instant) -> OwnMetrics {
        let discovered = self.servers.discovered_count(now);
        OwnMetrics {
            discovered_servers: discovered.map(|count| count as f64),
            ..own_metrics::read()
        }
    }
}

impl Site for ServedSite {
    fn metrics(&self) -> String {
        let now = Instant::now();
        let own = self.own_metrics(now);
        exposition::render(&self.servers.snapshots(now), &self.gpus.known(), &own)
    }

    fn page(&self, view: PageView) -> String {
        let now = Instant::now();
        let (servers, gpus) = (self.servers.snapshots(now), self.gpus.known());
        let own = self.own_metrics(now);
        let machine = self.machine_sources(now);
        let overview = overview::overview(&servers, &gpus, &machine, &own);
        let page = StatusPage {
            servers: &servers,
            gpus: &gpus,
            history: &self.history.view(now),
            overview: &overview,
            machine: &machine,
            own: &own,
            interval: self.settings.interval,
            now,
            unix_now: SystemClock.unix_seconds(),
        };
        status_page::render(&page, view)
    }

    fn page_headers(&self, view: PageView) -> Vec<(&'static str, String)> {
        status_page::headers(view, self.settings.interval)
    }

    fn health(&self) -> Result<(), String> {
        self.servers.health(Instant::now())
    }

    fn ready(&self) -> Result<(), String> {
        self.servers.readiness()
    }
}
