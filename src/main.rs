//! settings → threads → serve.

use std::env;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use llamacpp_exporter::escape::Escaped;
use llamacpp_exporter::gate::{self, AllowedHosts};
use llamacpp_exporter::itself::{self, Itself};
use llamacpp_exporter::machine::{self, gpus::Gpus};
use llamacpp_exporter::poll::{self, Poller, Watch};
use llamacpp_exporter::serve::{self, Site};
use llamacpp_exporter::settings::{self, Command, Settings};
use llamacpp_exporter::{check, exposition, log, os};

/// How long `--healthcheck` waits for an answer.
const HEALTHCHECK_TIMEOUT: Duration = Duration::from_secs(3);

fn main() -> ExitCode {
    if let Err(error) = os::hide_memory() {
        // Nothing depends on it.
        log::warn(
            "a core of this process may hold its keys",
            &[("reason", &error)],
        );
    }
    let (command, settings) =
        match settings::parse(env::args_os().skip(1).collect(), |name| env::var_os(name)) {
            Ok(parsed) => parsed,
            Err(error) => return fail(2, &error),
        };
    log::set_level(settings.log_level);
    match command {
        Command::Help => print(&settings::help(), true),
        Command::Version => print(&itself::version(), true),
        Command::Healthcheck => healthcheck(&settings),
        Command::Check => check(&settings),
        Command::Serve => serve(&settings),
    }
}

fn serve(settings: &Settings) -> ExitCode {
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
    let listeners = match settings.addr.bind() {
        Ok(listeners) => listeners,
        Err(error) => return fail(1, &format!("--addr: {error}")),
    };
    let served: Vec<_> = listeners.iter().map(ToString::to_string).collect();
    let server = match gate::open(listeners, AllowedHosts(settings.allowed_hosts.clone())) {
        Ok(server) => server,
        Err(error) => return fail(1, &format!("cannot serve: {error}")),
    };
    let mut watched = Watched {
        servers: Vec::new(),
        gpus,
    };
    for poller in pollers {
        let watch = Watch::new(poller.unpolled());
        if let Err(error) = poller.watch_requests(settings, &watch.cell) {
            return fail(1, &error);
        }
        if let Err(error) = poller.start(watch.clone()) {
            return fail(1, &format!("cannot start the poll thread: {error}"));
        }
        watched.servers.push(watch);
    }
    log::info(
        "serving",
        &[
            ("addr", &served.join(",")),
            ("version", &itself::VERSION),
            ("watching", &watching(settings)),
        ],
    );
    let error = serve::run(server, &watched);
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

fn check(settings: &Settings) -> ExitCode {
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
        let snapshot = poller.poll();
        all_up &= snapshot.up == Some(true);
        report += &check::report(base, &snapshot);
    }
    if let Some(note) = machine::note_on_procfs(settings) {
        report += &format!("note: {note}\n");
    }
    report += &check::gpus(&gpus.known(), &gpus.notes());
    print(&report, all_up)
}

fn healthcheck(settings: &Settings) -> ExitCode {
    match settings.addr.get("/healthz", HEALTHCHECK_TIMEOUT) {
        Ok(answer) => print(
            &format!("{}\n", Escaped(&answer.line)),
            answer.status == 200,
        ),
        Err(error) => fail(1, &format!("--addr {}: {error}", settings.addr)),
    }
}

/// A closed pipe at the other end of stdout is no failure of ours.
fn print(text: &str, good: bool) -> ExitCode {
    use std::io::Write as _;
    let _ = std::io::stdout().write_all(text.as_bytes());
    ExitCode::from(u8::from(!good))
}

fn fail(status: u8, why: &str) -> ExitCode {
    log::error(why, &[]);
    ExitCode::from(status)
}

/// All that is watched, as it is served.
struct Watched {
    servers: Vec<Watch>,
    gpus: Arc<Gpus>,
}

impl Site for Watched {
    fn metrics(&self) -> String {
        let servers: Vec<_> = self.servers.iter().map(Watch::snapshot).collect();
        let itself = Itself {
            gpus: self.gpus.known(),
            ..Itself::read()
        };
        exposition::render(&servers, &itself)
    }

    fn page(&self) -> String {
        format!(
            "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><title>llamacpp-exporter</title></head>\n\
             <body><h1>llamacpp-exporter {}</h1>\n\
             <ul>\n<li><a href=\"/metrics\">metrics</a></li>\n<li><a href=\"/healthz\">health</a></li>\n\
             <li><a href=\"/readyz\">readiness</a></li>\n</ul></body></html>\n",
            itself::VERSION
        )
    }

    fn health(&self) -> Result<(), String> {
        poll::health(&self.servers)
    }

    fn ready(&self) -> Result<(), String> {
        poll::readiness(&self.servers)
    }
}
