//! The report of `--check`: the results of one poll, for people.

use std::sync::Arc;

use crate::bounds::escape::Escaped;
use crate::metrics::exposition;
use crate::readings::ModelStatus;
use crate::snapshot::{Gpu, OwnMetrics, Snapshot};

/// The most values that a report lists.
const MOST_VALUES: usize = 200;

/// The result of one poll of a server.
pub fn server(title: &str, snapshot: &Snapshot) -> String {
    let mut lines = Vec::new();
    let up = snapshot.up == Some(true);
    lines.push(format!("{title}: {}", if up { "up" } else { "down" }));
    if let Some(info) = &snapshot.info {
        let version = info.version.as_deref().unwrap_or("of unknown version");
        lines.push(format!("  server: {} {version}", info.kind));
    }
    for model in &snapshot.models {
        let status = model.status.map_or("unknown", ModelStatus::label);
        lines.push(format!("  model: {} ({status})", model.name));
    }
    for note in &snapshot.notes {
        lines.push(format!("  note: {note}"));
    }
    for failed in &snapshot.failures {
        let model = failed.model.as_ref();
        let of_model = model.map(|model| format!(" of {}", model));
        lines.push(format!(
            "  failed: {}{} ({}): {}",
            failed.endpoint,
            of_model.unwrap_or_default(),
            failed.reason.label(),
            failed.detail
        ));
    }
    if up || !snapshot.models.is_empty() {
        lines.push("  values (rates need a second poll):".to_owned());
        let exposition =
            exposition::render(&[Arc::new(snapshot.clone())], &[], &OwnMetrics::default());
        let values = exposition
            .lines()
            .filter(|line| line.starts_with("llamacpp_") && !is_about_the_exporter(line));
        for line in values.take(MOST_VALUES) {
            lines.push(format!("    {line}"));
        }
    }
    text_of(&lines)
}

/// How many servers were discovered, and the llama-servers that are not watched.
pub fn discovered(count: usize, others: &[String]) -> String {
    let mut lines = vec![format!("discovered servers: {count}")];
    lines.extend(others.iter().map(|other| format!("  {other}")));
    text_of(&lines)
}

/// The readings of this machine's GPUs, and `notes` on those that cannot be read.
pub fn gpus(gpus: &[Gpu], notes: &[String]) -> String {
    let none = if gpus.is_empty() { " none" } else { "" };
    let mut lines = vec![format!("this machine's GPUs:{none}")];
    let exposition = exposition::render(&[], gpus, &OwnMetrics::default());
    let values = exposition.lines().filter(|line| line.contains("gpu=\""));
    for line in values.take(MOST_VALUES) {
        lines.push(format!("    {line}"));
    }
    for note in notes {
        lines.push(format!("  note: {note}"));
    }
    text_of(&lines)
}

/// The text of a report. Text from outside is escaped here, once, so that it cannot forge a line.
fn text_of(lines: &[String]) -> String {
    let lines = lines.iter().map(|line| format!("{}\n", Escaped(line)));
    lines.collect()
}

fn is_about_the_exporter(line: &str) -> bool {
    line.starts_with("llamacpp_exporter_") || line.starts_with("llamacpp_up{")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::readings::ModelFacts;
    use crate::snapshot::{Model, PollFailure, Reason, ServerInfo};

    #[test]
    fn a_report_lists_the_gpus_of_the_machine() {
        let note = "no nvidia-smi in /usr/bin".to_owned();
        assert_eq!(
            gpus(&[], &[note]),
            "this machine's GPUs: none\n  note: no nvidia-smi in /usr/bin\n"
        );
        let gpu = Gpu {
            index: "0".to_owned(),
            temperature: Some(50.0),
            ..Gpu::default()
        };
        let report = gpus(&[gpu], &[]);
        assert!(
            report.contains("    llamacpp_temperature_celsius{gpu=\"0\"} 50\n"),
            "{report}"
        );
    }

    #[test]
    fn text_from_outside_cannot_forge_a_line() {
        let hostile = "\r\nhttp://h:1: up\n  \u{1b}[2J\u{9b}2J\u{202e}\u{2066}\u{2028}";
        let snapshot = Snapshot {
            up: Some(true),
            info: Some(ServerInfo {
                kind: "llama-server",
                version: Some(hostile.to_owned()),
                is_version_pending: false,
            }),
            models: vec![Model {
                name: hostile.to_owned(),
                facts: ModelFacts {
                    slots: Some(2.0),
                    ..ModelFacts::default()
                },
                ..Model::default()
            }],
            notes: vec![hostile.to_owned()],
            failures: vec![PollFailure {
                endpoint: "/props",
                model: Some(hostile.to_owned()),
                reason: Reason::Parse,
                detail: hostile.to_owned(),
            }],
            ..Snapshot::default()
        };
        let gpu = Gpu {
            index: hostile.to_owned(),
            name: Some(hostile.to_owned()),
            temperature: Some(50.0),
            ..Gpu::default()
        };
        let text = server("http://h:1", &snapshot) + &gpus(&[gpu], &[]);
        let starts = |start: &str| text.lines().filter(|line| line.starts_with(start)).count();
        assert_eq!(starts("http://h:1: up"), 1, "{text}");
        assert_eq!(starts("  server: ") + starts("  model: "), 2, "{text}");
        assert_eq!(starts("  note: ") + starts("  failed: "), 2, "{text}");
        let is_plain =
            |c: char| c == '\n' || !(c.is_control() || "\u{202e}\u{2066}\u{2028}".contains(c));
        assert!(text.chars().all(is_plain), "{text:?}");
    }

    #[test]
    fn a_report_lists_values_and_notes() {
        let snapshot = Snapshot {
            server: "h:1".to_owned(),
            up: Some(true),
            models: vec![Model {
                name: "m\n".to_owned(),
                facts: ModelFacts {
                    slots: Some(2.0),
                    ..ModelFacts::default()
                },
                ..Model::default()
            }],
            notes: vec!["metrics are off".to_owned()],
            ..Snapshot::default()
        };
        let report = server("http://h:1", &snapshot);
        assert!(report.starts_with("http://h:1: up\n"), "{report}");
        assert!(report.contains("  model: m\\n (unknown)\n"), "{report}");
        assert!(report.contains("  note: metrics are off\n"), "{report}");
        assert!(
            report.contains("    llamacpp_slots{model=\"m\\n\",server=\"h:1\"} 2\n"),
            "{report}"
        );
    }
}
