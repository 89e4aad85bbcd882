//! The commands of the program: serve, `--check`, `--healthcheck`.

pub mod report;

use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::bounds::escape::Escaped;
use crate::collector::clock::SystemClock;
use crate::collector::{self, MonitoredServer, Poller};
use crate::machine::{self, gpus::Gpus};
use crate::metrics::exposition;
use crate::process::{build_info, log, os, own_metrics};
use crate::settings::Settings;
use crate::web::routes::{self, Site};
use crate::web::{healthcheck as health_request, listener, worker};

/// How long `--healthcheck` waits for an answer.
const HEALTHCHECK_TIMEOUT: Duration = Duration::from_secs(3);

/// Polls and serves until the process is ended.
pub fn serve(settings: &Settings) -> ExitCode {
    os::keep_no_spare_memory();
    if let Err(error) = os::exit_on_signals() {
        return fail(1, &format!("cannot take signals: {error}"));
    }
    let gpus = Arc::new(Gpus::start(settings));
    let pollers = match pollers(settings, &gpus) {
        Ok(pollers) => pollers,
        Err(error) => return fail(2, &error),
    };
    warn_of_exposed_secrets(settings);
    let listeners = match listener::bind(&settings.addr) {
        Ok(listeners) => listeners,
        Err(error) => return fail(1, &format!("--addr: {error}")),
    };
    let served: Vec<_> = listeners.iter().map(ToString::to_string).collect();
    let server = match worker::start(listeners, settings.allowed_hosts.clone()) {
        Ok(server) => server,
        Err(error) => return fail(1, &format!("cannot serve: {error}")),
    };
    let mut watched = Watched {
        servers: Vec::new(),
        gpus,
    };
    for poller in pollers {
        let server = poller.monitored_server(Instant::now());
        if let Err(error) = poller.watch_requests(settings, &server.cell) {
            return fail(1, &error);
        }
        if let Err(error) = poller.start(server.clone()) {
            return fail(1, &format!("cannot start the poll thread: {error}"));
        }
        watched.servers.push(server);
    }
    log::info(
        "serving",
        &[
            ("addr", &served.join(",")),
            ("version", &build_info::VERSION),
            ("watching", &watching(settings)),
        ],
    );
    let error = routes::run(server, &watched);
    fail(1, &format!("cannot serve any longer: {error}"))
}

fn pollers(settings: &Settings, gpus: &Arc<Gpus>) -> Result<Vec<Poller>, String> {
    settings
        .base_urls
        .iter()
        .map(|base| Poller::new(base, settings).map(|poller| poller.with_gpus(gpus)))
        .collect()
}

fn warn_of_exposed_secrets(settings: &Settings) {
    for base in settings.exposed() {
        log::warn(
            "a key or password is sent over http to another host, for others on the way to read: \
             use https where the server or a proxy before it offers it",
            &[("base_url", base)],
        );
    }
}

fn watching(settings: &Settings) -> String {
    settings
        .base_urls
        .iter()
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join(",")
}

/// How long `--check` waits for `nvidia-smi`, where that is installed.
const GPU_PATIENCE: Duration = Duration::from_secs(2);

/// Polls once and prints the report.
pub fn check(settings: &Settings) -> ExitCode {
    let gpus = Arc::new(Gpus::start(settings));
    let pollers = match pollers(settings, &gpus) {
        Ok(pollers) => pollers,
        Err(error) => return fail(2, &error),
    };
    warn_of_exposed_secrets(settings);
    gpus.wait(GPU_PATIENCE);
    let mut all_up = true;
    let mut report = String::new();
    for (base, mut poller) in settings.base_urls.iter().zip(pollers) {
        let snapshot = poller.poll(&SystemClock);
        all_up &= snapshot.up == Some(true);
        report += &report::report(base, &snapshot);
    }
    if let Some(note) = machine::note_on_procfs(settings) {
        report += &format!("note: {note}\n");
    }
    report += &report::gpus(&gpus.known(), &gpus.notes());
    print(&report, all_up)
}

/// Asks the running exporter for its health.
pub fn healthcheck(settings: &Settings) -> ExitCode {
    match health_request::get(&settings.addr, "/healthz", HEALTHCHECK_TIMEOUT) {
        Ok(answer) => print(
            &format!("{}\n", Escaped(&answer.line)),
            answer.status == 200,
        ),
        Err(error) => fail(1, &format!("--addr {}: {error}", settings.addr)),
    }
}

/// Prints `text`; a closed pipe at the other end of stdout is no failure of ours.
pub fn print(text: &str, good: bool) -> ExitCode {
    use std::io::Write as _;
    let _ = std::io::stdout().write_all(text.as_bytes());
    ExitCode::from(u8::from(!good))
}

/// Logs why the program ends, and gives its exit code.
pub fn fail(status: u8, why: &str) -> ExitCode {
    log::error(why, &[]);
    ExitCode::from(status)
}

/// All that is watched, as it is served.
struct Watched {
    servers: Vec<MonitoredServer>,
    gpus: Arc<Gpus>,
}

impl Site for Watched {
    fn metrics(&self) -> String {
        let now = Instant::now();
        let servers = self.servers.iter().map(|server| server.snapshot(now));
        let servers: Vec<_> = servers.collect();
        exposition::render(&servers, &self.gpus.known(), &own_metrics::read())
    }

    fn page(&self) -> String {
        format!(
            "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><title>llamacpp-exporter</title></head>\n\
             <body><h1>llamacpp-exporter {}</h1>\n\
             <ul>\n<li><a href=\"/metrics\">metrics</a></li>\n<li><a href=\"/healthz\">health</a></li>\n\
             <li><a href=\"/readyz\">readiness</a></li>\n</ul></body></html>\n",
            build_info::VERSION
        )
    }

    fn health(&self) -> Result<(), String> {
        collector::health(&self.servers, Instant::now())
    }

    fn ready(&self) -> Result<(), String> {
        collector::readiness(&self.servers)
    }
}
