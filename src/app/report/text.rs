//! The report of `--check` for people, read from top to bottom: each server, this machine, the
//! running exporter, Prometheus, the result.

use crate::app::report::columns::{cut_names, padded, widest};
use crate::app::report::missing_lines;
use crate::app::report::style::{Lines, Style, Tone};
use crate::app::report::value_lines;
use crate::app::report::{
    CheckReport, ExporterReport, ModelReport, PrometheusReport, ScrapeReport, ServerReport,
    SourceReport,
};
use crate::units;

/// The most characters of a model's name in a column, and of names that are the same otherwise.
const NAME_WIDTHS: [usize; 3] = [40, 60, 80];
/// Of a server with several models, the values of this many loaded ones are listed.
const MOST_MODELS_WITH_VALUES: usize = 3;
/// The most targets of a Prometheus that are listed.
const MOST_TARGETS: usize = 10;

/// The report as text. `now` is in seconds since 1970.
pub fn write(report: &CheckReport, style: Style, now: f64) -> String {
    let mut lines = Lines::new(style);
    for server in &report.servers {
        write_server(&mut lines, server, now);
        lines.end_part();
    }
    for other in &report.not_watched {
        let text = format!("process {}: not watched: {}", other.pid, other.why);
        lines.line(0, 2, &[(Tone::Minor, &text)]);
    }
    lines.end_part();
    write_machine(&mut lines, report, now);
    for note in &report.notes {
        note_line(&mut lines, 0, note);
    }
    lines.end_part();
    missing_lines::write(&mut lines, report);
    lines.end_part();
    write_exporter(&mut lines, &report.exporter);
    write_prometheus(&mut lines, &report.prometheus);
    lines.end_part();
    write_result(&mut lines, report);
    lines.into_text()
}

fn write_server(lines: &mut Lines, server: &ServerReport, now: f64) {
    let state = match (server.up, server.is_refused()) {
        (true, false) => (Tone::Good, "up"),
        (true, true) => (Tone::Bad, "up, but it refuses the key or requires one"),
        (false, _) => (Tone::Bad, "down"),
    };
    let discovered = server.discovered_pid;
    let discovered = discovered.map(|pid| format!(" (discovered, process {pid})"));
    let title = format!("{}{}: ", server.url, discovered.unwrap_or_default());
    lines.line(0, 2, &[(Tone::Heading, &title), state]);
    if let Some(kind) = &server.kind {
        let version = server.version.as_deref().unwrap_or("of unknown version");
        let text = format!(
            "server: {kind} {version}, label server=\"{}\"",
            server.server
        );
        lines.line(2, 4, &[(Tone::Plain, &text)]);
    }
    if !server.addresses.is_empty() {
        let text = format!("address: {}", server.addresses.join(", "));
        lines.line(2, 4, &[(Tone::Minor, &text)]);
    }
    write_models(lines, server, now);
    for note in server
        .notes
        .iter()
        .filter(|note| !server.is_said_below(note))
    {
        note_line(lines, 2, note);
    }
    for failed in &server.failures {
        let of_model = failed.model.as_ref().map(|model| format!(" of {model}"));
        let text = format!(
            "{}{} ({}): {}",
            failed.endpoint,
            of_model.unwrap_or_default(),
            failed.reason,
            failed.detail
        );
        lines.line(2, 4, &[(Tone::Bad, "failed: "), (Tone::Plain, &text)]);
    }
    write_sources(lines, &server.sources);
    write_values(lines, server, now);
    if !server.up && !server.missing.is_empty() {
        let text = format!(
            "missing: all {} metrics until it answers",
            server.missing.len()
        );
        lines.line(2, 4, &[(Tone::Minor, &text)]);
    }
}

/// One line a model: its name, status, and what it does now.
fn write_models(lines: &mut Lines, server: &ServerReport, now: f64) {
    let names: Vec<&str> = server
        .models
        .iter()
        .map(|model| model.model.as_str())
        .collect();
    let has_many = names.len() > 1;
    let shown = match has_many {
        true => cut_names(&names, &NAME_WIDTHS),
        false => names.iter().map(|name| (*name).to_owned()).collect(),
    };
    let width = if has_many {
        widest(shown.iter().map(String::as_str))
    } else {
        0
    };
    if has_many {
        let count = format!("models: {}", names.len());
        lines.line(2, 4, &[(Tone::Plain, &count)]);
    }
    for (model, name) in server.models.iter().zip(&shown) {
        let status = model.status.unwrap_or("unknown");
        let tone = match status {
            "idle" | "running" => Tone::Good,
            "failed" => Tone::Bad,
            _ => Tone::Minor,
        };
        let mode = model.mode.as_ref().map(|mode| format!(" ({mode})"));
        let about = value_lines::summary(server, model, now);
        let name = format!("{}{} ", padded(name, width), mode.unwrap_or_default());
        let start = if has_many { "" } else { "model: " };
        let parts = [
            (Tone::Plain, start),
            (Tone::Plain, &name),
            (tone, status),
            (Tone::Minor, &about),
        ];
        lines.line(if has_many { 4 } else { 2 }, 6, &parts);
    }
}

/// The sources, those together that differ by their model only.
fn write_sources(lines: &mut Lines, sources: &[SourceReport]) {
    let mut groups: Vec<Vec<&SourceReport>> = Vec::new();
    let is_alike = |a: &SourceReport, b: &SourceReport| {
        let name = |source: &SourceReport| match source.kind {
            "endpoint" | "GPU driver" => source.name.clone(),
            _ if source.model.is_none() => source.name.clone(),
            _ => String::new(),
        };
        (a.kind, name(a), a.state, a.reason, &a.error)
            == (b.kind, name(b), b.state, b.reason, &b.error)
    };
    for source in sources {
        let group = groups
            .iter_mut()
            .find(|group| group.first().is_some_and(|first| is_alike(first, source)));
        match group {
            Some(group) => group.push(source),
            None => groups.push(vec![source]),
        }
    }
    if !groups.is_empty() {
        lines.line(2, 4, &[(Tone::Plain, "sources:")]);
    }
    for group in groups {
        write_source(lines, &group);
    }
}

fn write_source(lines: &mut Lines, group: &[&SourceReport]) {
    let Some(first) = group.first() else {
        return;
    };
    let of_models = match (group.len(), &first.model) {
        (1, Some(model)) => format!("of {model}"),
        (1, None) => String::new(),
        (count, _) => format!("of {count} models"),
    };
    let name = match group.len() {
        1 => first.name.as_str(),
        _ if first.kind == "endpoint" => first.name.as_str(),
        _ => "",
    };
    let kind = if first.kind == "endpoint" {
        ""
    } else {
        first.kind
    };
    let what = [kind, name, &of_models];
    let what: Vec<_> = what.into_iter().filter(|part| !part.is_empty()).collect();
    let what = what.join(" ");
    let tone = match first.state {
        "read" => Tone::Good,
        "failed" | "refused" => Tone::Bad,
        "off" => Tone::Attention,
        _ => Tone::Minor,
    };
    let longest = |read: fn(&SourceReport) -> Option<f64>| {
        group
            .iter()
            .filter_map(|source| read(source))
            .reduce(f64::max)
    };
    let age = longest(|source| source.age_seconds);
    let age = age.filter(|age| *age >= 1.0);
    let age = age.map(|age| format!(", {} ago", units::age(age)));
    let took = longest(|source| source.duration_seconds);
    let took = took.map(|took| format!(", took {}", units::duration(took)));
    let error = first.error.as_deref().or(first.why);
    let error = error.map(|error| format!(": {error}"));
    let times = took.unwrap_or_default() + &age.unwrap_or_default();
    let state = padded(&first.state.replace('_', " "), 10);
    let parts = [
        (tone, state.as_str()),
        (Tone::Plain, &what),
        (Tone::Minor, &times),
        (Tone::Plain, error.as_deref().unwrap_or_default()),
    ];
    lines.line(4, 14, &parts);
}

fn write_values(lines: &mut Lines, server: &ServerReport, now: f64) {
    let is_of_server = |value: &&_| !value_lines::is_of_a_model(value);
    let of_server: Vec<_> = server.values.iter().filter(is_of_server).collect();
    let loaded: Vec<&ModelReport> = server
        .models
        .iter()
        .filter(|model| model.is_loaded())
        .collect();
    let listed: &[&ModelReport] = match server.models.len() {
        0 | 1 => &loaded,
        _ if loaded.len() <= MOST_MODELS_WITH_VALUES => &loaded,
        _ => &[],
    };
    if !of_server.is_empty() && listed.len() != 1 {
        lines.line(2, 4, &[(Tone::Plain, "values:")]);
        value_lines::write(lines, &of_server, now);
    }
    for model in listed {
        let of_model = server
            .values
            .iter()
            .filter(|value| value_lines::is_of(value, model));
        let mut values: Vec<_> = of_model.collect();
        if listed.len() == 1 {
            values.extend(&of_server);
        }
        let title = match (server.models.len(), &model.mode) {
            (0 | 1, _) => "values:".to_owned(),
            (_, Some(mode)) => format!("values of {} ({mode}):", model.model),
            (_, None) => format!("values of {}:", model.model),
        };
        lines.line(2, 4, &[(Tone::Plain, &title)]);
        value_lines::write(lines, &values, now);
    }
    if listed.len() < loaded.len() {
        let text = format!(
            "values of {} loaded models: --check --json, or /metrics",
            loaded.len()
        );
        lines.line(2, 4, &[(Tone::Minor, &text)]);
    }
}

fn write_machine(lines: &mut Lines, report: &CheckReport, now: f64) {
    let gpus = &report.machine;
    let none = if gpus.gpus.is_empty() { " none" } else { "" };
    lines.line(
        0,
        2,
        &[(Tone::Heading, "this machine's GPUs:"), (Tone::Plain, none)],
    );
    value_lines::write(lines, &gpus.values.iter().collect::<Vec<_>>(), now);
    for note in &gpus.notes {
        note_line(lines, 2, note);
    }
    // The notes say of GPU drivers that are not read what their sources do.
    let is_said = |source: &&SourceReport| source.kind == "GPU driver" && source.state != "read";
    let sources: Vec<_> = gpus
        .sources
        .iter()
        .filter(|source| !is_said(source))
        .cloned()
        .collect();
    write_sources(lines, &sources);
}

fn write_exporter(lines: &mut Lines, exporter: &ExporterReport) {
    let state = match exporter.state {
        "running" => (Tone::Good, "running"),
        "none" => (Tone::Minor, "none"),
        "other" => (Tone::Attention, "another program"),
        _ => (Tone::Attention, "unreachable"),
    };
    let title = format!("exporter at {}: ", exporter.addr);
    lines.line(0, 2, &[(Tone::Heading, &title), state]);
    if let Some(version) = &exporter.version {
        let pid = exporter.pid.map(|pid| format!(", process {pid}"));
        let url = exporter.url.as_deref().unwrap_or_default();
        let text = format!("version {version} at {url}{}", pid.unwrap_or_default());
        lines.line(2, 4, &[(Tone::Plain, &text)]);
    }
    if let Some(health) = &exporter.health {
        let tone = if health == "ok" {
            Tone::Good
        } else {
            Tone::Bad
        };
        lines.line(2, 4, &[(Tone::Plain, "health: "), (tone, health)]);
    }
    if exporter.state == "running" {
        let servers = exporter
            .servers
            .iter()
            .map(|(server, is_up)| format!("{server} {}", if *is_up { "up" } else { "down" }));
        let servers: Vec<_> = servers.collect();
        let text = format!("watches: {}", servers.join(", "));
        lines.line(2, 4, &[(Tone::Plain, &text)]);
    }
    if !exporter.unwatched.is_empty() {
        let text = format!(
            "it does not watch {}: start it with the flags or variables of this check",
            exporter.unwatched.join(", ")
        );
        lines.line(2, 4, &[(Tone::Attention, &text)]);
    }
    if let Some(scrape) = &exporter.exposition {
        write_scrape(lines, "serves", scrape);
    }
    if let Some(detail) = &exporter.detail {
        note_line(lines, 2, detail);
    }
    if let Some(log) = &exporter.log {
        let text = format!("log: {log}");
        lines.line(2, 4, &[(Tone::Plain, &text)]);
    }
}

fn write_scrape(lines: &mut Lines, what: &str, scrape: &ScrapeReport) {
    let size = format!(
        "{what}: {} samples, {}, ",
        scrape.samples,
        units::bytes(scrape.bytes as f64)
    );
    match &scrape.error {
        None => lines.line(
            2,
            4,
            &[(Tone::Plain, &size), (Tone::Good, "valid for Prometheus")],
        ),
        Some(error) => {
            let text = format!("Prometheus rejects it: {error}");
            lines.line(2, 4, &[(Tone::Plain, &size), (Tone::Bad, &text)]);
        }
    }
}

fn write_prometheus(lines: &mut Lines, all: &[PrometheusReport]) {
    for prometheus in all {
        let state = match prometheus.state {
            "running" => (Tone::Good, "running"),
            "none" => (Tone::Minor, "none"),
            "other" => (Tone::Minor, "another program"),
            _ => (Tone::Attention, "unreachable"),
        };
        let title = format!("Prometheus at {}: ", prometheus.url);
        let version = prometheus
            .version
            .as_ref()
            .map(|version| format!(", version {version}"));
        let version = (Tone::Plain, version.as_deref().unwrap_or_default());
        lines.line(0, 2, &[(Tone::Heading, &title), state, version]);
        for target in prometheus.targets.iter().take(MOST_TARGETS) {
            let tone = match target.health.as_str() {
                "up" => Tone::Good,
                "down" => Tone::Bad,
                _ => Tone::Minor,
            };
            let start = format!("target {} (job {}): ", target.url, target.job);
            let error = target.last_error.as_ref().map(|error| format!(": {error}"));
            let error = (Tone::Plain, error.as_deref().unwrap_or_default());
            lines.line(
                2,
                4,
                &[(Tone::Plain, &start), (tone, &target.health), error],
            );
        }
        let more = prometheus.targets.len().saturating_sub(MOST_TARGETS);
        if more > 0 {
            let text = format!("and {more} more targets");
            lines.line(2, 4, &[(Tone::Minor, &text)]);
        }
        if let Some(detail) = &prometheus.detail {
            note_line(lines, 2, detail);
        }
    }
}

fn write_result(lines: &mut Lines, report: &CheckReport) {
    if !report.exposition.valid {
        write_scrape(
            lines,
            "an exporter with these settings would serve",
            &report.exposition,
        );
    }
    match report.ok {
        true => lines.line(0, 2, &[(Tone::Heading, "result: "), (Tone::Good, "ok")]),
        false => {
            let text = format!("failed: {}", report.problems.join("; "));
            lines.line(0, 2, &[(Tone::Heading, "result: "), (Tone::Bad, &text)]);
        }
    }
}

fn note_line(lines: &mut Lines, indent: usize, note: &str) {
    lines.line(
        indent,
        indent.saturating_add(2),
        &[(Tone::Attention, "note: "), (Tone::Plain, note)],
    );
}
