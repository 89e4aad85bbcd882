//! `--check`: polls every server twice, looks at the exporter and Prometheus that may be running,
//! and prints the report.

mod absent;
mod polls;
mod prometheus;
mod request;
mod running_exporter;
mod server;

use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::app::report::{
    self, CheckReport, MachineReport, ServerReport, Style, UnwatchedReport, ValueReport, text,
    values,
};
use crate::app::{Fatal, print};
use crate::bounds;
use crate::collector::discovery::Discovery;
use crate::machine::{self, discovery::LocalServers, gpus::Gpus};
use crate::metrics::{exposition, overview::overview};
use crate::process::log::{self, Level};
use crate::process::{build_info, own_metrics};
use crate::settings::Settings;
use crate::snapshot::{Absence, Gpu, OwnMetrics, Snapshot, Source, SourceKind};
use crate::units;

use polls::{Polled, Progress};

/// How long to wait for `nvidia-smi`, if that is installed.
const GPU_TIMEOUT: Duration = Duration::from_secs(2);
/// The longest time between the two polls.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// The same with a log to read: only after five seconds is it certain that none of its lines is
/// understood.
const PAUSE_WITH_LOG: Duration = Duration::from_millis(5500);

/// Polls all servers twice and prints the report.
///
/// # Errors
/// A setting cannot be used, or no thread can be started.
pub fn run(settings: &Settings) -> Result<ExitCode, Fatal> {
    let has_probes = settings.probe_interval.is_some();
    let settings = &settings_of_check(settings);
    // The report says what the log would say.
    if settings.log_level < Level::Debug {
        log::set_level(Level::Error);
    }
    let mut report = check(settings, &Progress::new())?;
    if has_probes {
        without_probes(&mut report);
    }
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    let text = match settings.json {
        true => serde_json::to_string_pretty(&report)
            .map(|text| text + "\n")
            .map_err(|error| Fatal::cannot_run(format!("cannot write the report: {error}")))?,
        false => text::write(&report, Style::of_stdout(), now.as_secs_f64()),
    };
    Ok(print(&text, report.ok))
}

/// The settings with an interval that a person waits for, and without probes: a check sends no
/// request that a model has to answer. Nor does it follow a log over HTTP: Docker Model Runner
/// sends no new lines to other readers once one has left.
fn settings_of_check(settings: &Settings) -> Settings {
    let interval = match settings.log_files.is_empty() {
        true => settings.interval.min(LONGEST_PAUSE),
        false => PAUSE_WITH_LOG,
    };
    Settings {
        interval,
        probe_interval: None,
        reads_logs_once: true,
        ..settings.clone()
    }
}

fn check(settings: &Settings, progress: &Progress) -> Result<CheckReport, Fatal> {
    let gpus = Arc::new(Gpus::start(settings));
    let local_servers = Arc::new(LocalServers::new(settings));
    let mut servers: Vec<Polled> = Vec::new();
    let pollers = super::pollers(settings, &gpus, &local_servers)?;
    for (base, poller) in settings.base_urls.iter().zip(pollers) {
        servers.push(Polled::given(base, poller, settings)?);
    }
    gpus.wait(GPU_TIMEOUT);
    progress.show("polling");
    let mut started = Instant::now();
    polls::poll_all(&mut servers)?;
    let mut not_watched = Vec::new();
    if settings.discover {
        let given: Vec<Arc<Snapshot>> = servers.iter().map(Polled::snapshot).collect();
        let (found, others) = Discovery::new(settings, &gpus, &local_servers).first_look(&given);
        let first = servers.len();
        servers.extend(found.into_iter().map(Polled::discovered));
        progress.show("polling");
        started = Instant::now();
        polls::poll_all(servers.get_mut(first..).unwrap_or_default())?;
        not_watched = others
            .into_iter()
            .map(|(pid, why)| UnwatchedReport { pid, why })
            .collect();
    }
    progress.show(&format!(
        "waiting {} for the second poll",
        units::duration(settings.interval.as_secs_f64())
    ));
    let due = bounds::deadline(started, settings.interval);
    std::thread::sleep(due.saturating_duration_since(Instant::now()));
    let pause = started.elapsed();
    progress.show("polling again");
    polls::poll_all(&mut servers)?;

    let snapshots: Vec<Arc<Snapshot>> = servers.iter().map(Polled::snapshot).collect();
    let discovered = settings
        .discover
        .then(|| servers.iter().filter(|server| server.pid.is_some()).count());
    let own = OwnMetrics {
        discovered_servers: discovered.map(|count| count as f64),
        ..own_metrics::read()
    };
    let mut sources = machine::sources(settings, &gpus);
    sources.push(match settings.discover {
        true => Source::new(SourceKind::Discovery),
        false => Source::missing(SourceKind::Discovery, Absence::DiscoveryOff),
    });
    let known = gpus.known();
    let overview = overview(&snapshots, &known, &sources, &own);
    let of_servers = servers.iter().map(|polled| ServerReport {
        missing: absent::missing(&overview, Some(&polled.snapshot().server)),
        ..server::report(polled, settings)
    });
    let mut report = CheckReport {
        schema: report::SCHEMA,
        version: build_info::VERSION,
        seconds_between_polls: pause.as_secs_f64(),
        servers: of_servers.collect(),
        not_watched,
        machine: MachineReport {
            sources: absent::sources(&sources, Instant::now()),
            missing: absent::missing(&overview, None),
            values: gpu_values(&known),
            notes: gpus.notes(),
            gpus: known.iter().map(|gpu| gpu.index.clone()).collect(),
        },
        notes: notes(settings),
        exposition: values::checked(&exposition::render(&snapshots, &known, &own)),
        ..CheckReport::default()
    };
    progress.show("looking at the exporter and Prometheus");
    report.exporter = running_exporter::look(settings, &report.servers);
    report.prometheus = prometheus::look(settings);
    report.problems = problems(&report);
    report.ok = report.problems.is_empty();
    progress.end();
    Ok(report)
}

/// Removes that no probes are sent: with these settings, the exporter sends them.
fn without_probes(report: &mut CheckReport) {
    let off = Some(Absence::ProbeOff.id());
    for server in &mut report.servers {
        server.missing.retain(|missing| Some(missing.reason) != off);
        server.sources.retain(|source| source.reason != off);
    }
    report
        .notes
        .push("no probe was sent: --probe-interval has no effect with --check".to_owned());
}

fn gpu_values(gpus: &[Gpu]) -> Vec<ValueReport> {
    let scrape = exposition::render(&[], gpus, &OwnMetrics::default());
    let mut values = values::of(&scrape, |_| true);
    values.retain(|value| value.labels.contains_key("gpu"));
    values
}

/// What is to be said of the settings.
fn notes(settings: &Settings) -> Vec<String> {
    let exposed = settings
        .exposed()
        .map(|base| format!("{base}: {}", super::EXPOSED));
    let of_system = machine::note_on_system().map(str::to_owned);
    let of_machine = of_system.or_else(|| machine::note_on_procfs(settings));
    exposed.chain(of_machine).collect()
}

/// Why the exit status is 1.
fn problems(report: &CheckReport) -> Vec<String> {
    let of_server = report.servers.iter().filter_map(|server| {
        let url = &server.url;
        match (server.up, server.is_refused()) {
            (false, _) => Some(format!("{url} is down")),
            (true, true) => Some(format!("{url} refuses the key or requires one")),
            (true, false) => None,
        }
    });
    let none = report
        .servers
        .is_empty()
        .then(|| "no server was found".to_owned());
    of_server.chain(none).collect()
}
