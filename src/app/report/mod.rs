//! What `--check` found, as plain data: the document of `--check --json`, whose fields
//! `docs/check.md` describes. [`text`] writes it for people.

mod columns;
mod missing_lines;
mod style;
pub mod text;
mod value_lines;
pub mod values;

use std::collections::BTreeMap;

use serde::Serialize;

pub use style::Style;

/// The version of the document: raised when a field is removed or changes its meaning.
pub const SCHEMA: u32 = 1;

/// The report of one `--check`.
#[derive(Clone, Debug, Default, Serialize)]
pub struct CheckReport {
    /// The version of the document.
    pub schema: u32,
    /// The version of the program that checks.
    pub version: &'static str,
    /// Whether the exit status is 0.
    pub ok: bool,
    /// Why it is 1.
    pub problems: Vec<String>,
    /// Seconds between the two polls.
    pub seconds_between_polls: f64,
    /// Each watched server.
    pub servers: Vec<ServerReport>,
    /// Of `--discover`, each llama-server of this machine that is not watched.
    pub not_watched: Vec<UnwatchedReport>,
    /// This machine and its GPUs.
    pub machine: MachineReport,
    /// What is to be said of the settings.
    pub notes: Vec<String>,
    /// The scrape that an exporter with these settings would serve now.
    pub exposition: ScrapeReport,
    /// The exporter that runs at `--addr`.
    pub exporter: ExporterReport,
    /// The Prometheus that may scrape it.
    pub prometheus: Vec<PrometheusReport>,
}

/// One watched server.
#[derive(Clone, Debug, Default, Serialize)]
pub struct ServerReport {
    /// Its base URL, without secrets.
    pub url: String,
    /// The label `server`.
    pub server: String,
    /// Its PID, if it was discovered.
    pub discovered_pid: Option<u32>,
    /// Whether it answered the last poll.
    pub up: bool,
    /// Its kind.
    pub kind: Option<String>,
    /// Its version.
    pub version: Option<String>,
    /// The addresses of its host; empty if the name does not resolve.
    pub addresses: Vec<String>,
    /// Its models.
    pub models: Vec<ModelReport>,
    /// What was read.
    pub sources: Vec<SourceReport>,
    /// Requests of the last poll that failed.
    pub failures: Vec<FailureReport>,
    /// What else is to be said.
    pub notes: Vec<String>,
    /// The values that are known.
    pub values: Vec<ValueReport>,
    /// The metrics that are missing.
    pub missing: Vec<MissingReport>,
}

/// One model of a server.
#[derive(Clone, Debug, Default, Serialize)]
pub struct ModelReport {
    /// The label `model`.
    pub model: String,
    /// The label `mode`.
    pub mode: Option<String>,
    /// Its status.
    pub status: Option<&'static str>,
    /// The process that holds it.
    pub pid: Option<u32>,
}

/// One source of values.
#[derive(Clone, Debug, Default, Serialize)]
pub struct SourceReport {
    /// What it is: `endpoint`, `log`, `process`.
    pub kind: &'static str,
    /// Which one: the path, the file, the PID.
    pub name: String,
    /// The model whose values it has, if the server has several.
    pub model: Option<String>,
    /// Whether it is read, as one word.
    pub state: &'static str,
    /// The id of the reason why it is not read.
    pub reason: Option<&'static str>,
    /// The reason.
    pub why: Option<&'static str>,
    /// Seconds since it was read last.
    pub age_seconds: Option<f64>,
    /// Seconds that reading it took.
    pub duration_seconds: Option<f64>,
    /// What went wrong.
    pub error: Option<String>,
}

/// A request of the last poll that failed.
#[derive(Clone, Debug, Default, Serialize)]
pub struct FailureReport {
    /// The path that was requested.
    pub endpoint: &'static str,
    /// The model whose server received it, if there are several.
    pub model: Option<String>,
    /// The kind of failure.
    pub reason: &'static str,
    /// What happened and what to do.
    pub detail: String,
}

/// One value, or one histogram without its buckets.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct ValueReport {
    /// The name of the metric.
    pub metric: String,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Its value; `None` for a histogram.
    pub value: Option<f64>,
    /// The observations of a histogram.
    pub count: Option<f64>,
    /// Their sum.
    pub sum: Option<f64>,
}

/// A metric that is missing, for one reason.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct MissingReport {
    /// The name of the metric.
    pub metric: &'static str,
    /// The models that lack it; empty if it is not about a model.
    pub models: Vec<String>,
    /// The id of the reason.
    pub reason: &'static str,
    /// The reason.
    pub why: String,
    /// What to do to get it, or why nothing has to be done.
    pub remedy: String,
    /// Whether people can do something about it.
    pub is_fixable: bool,
}

/// A llama-server of this machine that is not watched.
#[derive(Clone, Debug, Default, Serialize)]
pub struct UnwatchedReport {
    /// Its PID.
    pub pid: u32,
    /// Why it is not watched.
    pub why: String,
}

/// This machine and its GPUs.
#[derive(Clone, Debug, Default, Serialize)]
pub struct MachineReport {
    /// What was read.
    pub sources: Vec<SourceReport>,
    /// The indexes of the GPUs.
    pub gpus: Vec<String>,
    /// The values of the GPUs.
    pub values: Vec<ValueReport>,
    /// Where no GPU was found, and which are not read.
    pub notes: Vec<String>,
    /// The metrics that are missing.
    pub missing: Vec<MissingReport>,
}

/// Whether Prometheus accepts a scrape.
#[derive(Clone, Debug, Default, Serialize)]
pub struct ScrapeReport {
    /// Whether it does.
    pub valid: bool,
    /// The first line that it rejects, and why.
    pub error: Option<String>,
    /// Its samples.
    pub samples: usize,
    /// Its bytes.
    pub bytes: usize,
}

/// What answers at `--addr`.
#[derive(Clone, Debug, Default, Serialize)]
pub struct ExporterReport {
    /// The value of `--addr`.
    pub addr: String,
    /// The URL that was requested; `None` if nothing answers.
    pub url: Option<String>,
    /// `running`; `none` if nothing listens there; `other` if another program does; `unreachable`.
    pub state: &'static str,
    /// Its version.
    pub version: Option<String>,
    /// Whether it is healthy, or why not: the answer of `/healthz`.
    pub health: Option<String>,
    /// The servers that it watches: the label `server`, and whether it is up there.
    pub servers: BTreeMap<String, bool>,
    /// Of the servers of this check, those that it does not watch.
    pub unwatched: Vec<String>,
    /// Its process, if that can be seen.
    pub pid: Option<u32>,
    /// The command that shows its log, as far as that is known.
    pub log: Option<String>,
    /// What it serves.
    pub exposition: Option<ScrapeReport>,
    /// What happened, and what to do.
    pub detail: Option<String>,
}

/// What answers where a Prometheus may be.
#[derive(Clone, Debug, Default, Serialize)]
pub struct PrometheusReport {
    /// The URL, without secrets.
    pub url: String,
    /// `running`; `none` if nothing listens there; `other` if another program does; `unreachable`.
    pub state: &'static str,
    /// Its version.
    pub version: Option<String>,
    /// Its targets that are this exporter, or may be.
    pub targets: Vec<TargetReport>,
    /// What happened, and what to do.
    pub detail: Option<String>,
}

/// One target of a Prometheus.
#[derive(Clone, Debug, Default, Serialize)]
pub struct TargetReport {
    /// The URL that is scraped, without secrets.
    pub url: String,
    /// Its job.
    pub job: String,
    /// `up`, `down`, or `unknown` before the first scrape.
    pub health: String,
    /// Why the last scrape failed.
    pub last_error: Option<String>,
    /// When it was scraped last, as Prometheus writes it.
    pub last_scrape: Option<String>,
}

impl ServerReport {
    /// Whether a key was refused where it protects what matters.
    pub fn is_refused(&self) -> bool {
        // `/stats` is a last resort, and no llama.cpp server has it.
        let is_refused =
            |failed: &FailureReport| failed.reason == "unauthorized" && failed.endpoint != "/stats";
        self.failures.iter().any(is_refused)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use serde_json::Value;

    use super::*;

    /// Fields whose parts are described elsewhere in the document, and those with names from
    /// outside.
    const WHOLE: [&str; 4] = [
        "machine.sources[]",
        "machine.values[]",
        "machine.missing[]",
        "exporter.exposition",
    ];
    const NAMED: [&str; 2] = ["servers[].values[].labels", "exporter.servers"];

    /// A report in which no list is empty.
    fn full_report() -> CheckReport {
        let texts = || vec![String::new()];
        let value = ValueReport {
            labels: [("gpu".to_owned(), "0".to_owned())].into(),
            ..ValueReport::default()
        };
        let mut report = CheckReport {
            problems: texts(),
            notes: texts(),
            not_watched: vec![UnwatchedReport::default()],
            servers: vec![ServerReport {
                addresses: texts(),
                models: vec![ModelReport::default()],
                sources: vec![SourceReport::default()],
                failures: vec![FailureReport::default()],
                notes: texts(),
                values: vec![value.clone()],
                missing: vec![MissingReport {
                    models: texts(),
                    ..MissingReport::default()
                }],
                ..ServerReport::default()
            }],
            machine: MachineReport {
                sources: vec![SourceReport::default()],
                gpus: texts(),
                values: vec![value],
                notes: texts(),
                missing: vec![MissingReport::default()],
            },
            ..CheckReport::default()
        };
        report.exporter.servers.insert(String::new(), true);
        report.exporter.unwatched = texts();
        report.prometheus = vec![PrometheusReport {
            targets: vec![TargetReport::default()],
            ..PrometheusReport::default()
        }];
        report
    }

    fn add_fields(value: &Value, path: &str, fields: &mut BTreeSet<String>) {
        let inner: Vec<(String, &Value)> = match value {
            _ if WHOLE.contains(&path) => Vec::new(),
            Value::Object(object) if NAMED.contains(&path) => object
                .values()
                .map(|value| (format!("{path}{{}}"), value))
                .collect(),
            Value::Object(object) => {
                let dot = if path.is_empty() { "" } else { "." };
                let field = |(name, value)| (format!("{path}{dot}{name}"), value);
                object.iter().map(field).collect()
            }
            Value::Array(list) => list
                .iter()
                .map(|value| (format!("{path}[]"), value))
                .collect(),
            _ => Vec::new(),
        };
        if inner.is_empty() {
            fields.insert(path.to_owned());
        }
        for (path, value) in inner {
            add_fields(value, &path, fields);
        }
    }

    #[test]
    fn the_document_describes_each_field() {
        let mut fields = BTreeSet::new();
        add_fields(
            &serde_json::to_value(full_report()).unwrap(),
            "",
            &mut fields,
        );
        let text = include_str!("../../../docs/check.md");
        let (_, table) = text.split_once("| field | type | meaning |").unwrap();
        let rows = table.lines().filter_map(|line| line.strip_prefix("| `"));
        let described: BTreeSet<_> = rows
            .map(|row| row.split('`').next().unwrap().to_owned())
            .collect();
        assert_eq!(fields, described);
    }

    #[test]
    fn a_key_matters_where_it_protects_more_than_stats() {
        let refused = |endpoint, reason| {
            let server = ServerReport {
                failures: vec![FailureReport {
                    endpoint,
                    reason,
                    ..FailureReport::default()
                }],
                ..ServerReport::default()
            };
            server.is_refused()
        };
        assert!(refused("/metrics", "unauthorized"));
        assert!(!refused("/stats", "unauthorized") && !refused("/metrics", "timeout"));
    }
}
