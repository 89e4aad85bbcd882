//! The report of `--check`: what one poll found, for people.

use std::fmt::Write as _;
use std::sync::Arc;

use crate::exposition;
use crate::itself::Itself;
use crate::settings::BaseUrl;
use crate::snapshot::{Gpu, Snapshot, Status};

/// The most lines of values that a report lists.
const MOST_VALUES: usize = 200;

/// What one poll of `base` found.
pub fn report(base: &BaseUrl, snapshot: &Snapshot) -> String {
    let mut text = String::new();
    let up = snapshot.up == Some(true);
    let _ = writeln!(text, "{base}: {}", if up { "up" } else { "down" });
    if let Some(info) = &snapshot.info {
        let version = info.version.as_deref().unwrap_or("of unknown version");
        let _ = writeln!(text, "  server: {} {version}", info.kind);
    }
    for model in &snapshot.models {
        let status = model.status.map_or("unknown", Status::label);
        let _ = writeln!(text, "  model: {} ({status})", model.name.escape_debug());
    }
    for note in &snapshot.notes {
        let _ = writeln!(text, "  note: {note}");
    }
    for failed in &snapshot.failures {
        let model = failed.model.as_ref();
        let of_model = model.map(|model| format!(" of {}", model.escape_debug()));
        let _ = writeln!(
            text,
            "  failed: {}{} ({}): {}",
            failed.endpoint,
            of_model.unwrap_or_default(),
            failed.reason.label(),
            failed.detail.escape_debug()
        );
    }
    if up {
        let _ = writeln!(text, "  values (rates need a second poll):");
        let exposition = exposition::render(&[Arc::new(snapshot.clone())], &Itself::default());
        let values = exposition
            .lines()
            .filter(|line| line.starts_with("llamacpp_") && !is_about_itself(line));
        for line in values.take(MOST_VALUES) {
            let _ = writeln!(text, "    {line}");
        }
    }
    text
}

/// What the GPUs of this machine tell, and `notes` on those that do not.
pub fn gpus(gpus: &[Gpu], notes: &[String]) -> String {
    let itself = Itself {
        gpus: gpus.to_vec(),
        ..Itself::default()
    };
    let none = if gpus.is_empty() { " none" } else { "" };
    let mut text = format!("this machine's GPUs:{none}\n");
    let exposition = exposition::render(&[], &itself);
    let values = exposition.lines().filter(|line| line.contains("gpu=\""));
    for line in values.take(MOST_VALUES) {
        let _ = writeln!(text, "    {line}");
    }
    for note in notes {
        let _ = writeln!(text, "  note: {note}");
    }
    text
}

fn is_about_itself(line: &str) -> bool {
    line.starts_with("llamacpp_exporter_") || line.starts_with("llamacpp_up")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::snapshot::Model;

    #[test]
    fn the_gpus_are_told_where_there_are_any() {
        let note = "no nvidia-smi is in /usr/bin".to_owned();
        assert_eq!(
            gpus(&[], &[note]),
            "this machine's GPUs: none\n  note: no nvidia-smi is in /usr/bin\n"
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
    fn a_report_says_what_is_there_and_what_is_missing() {
        let snapshot = Snapshot {
            up: Some(true),
            models: vec![Model {
                name: "m\n".to_owned(),
                slots: Some(2.0),
                ..Model::default()
            }],
            notes: vec!["metrics are off".to_owned()],
            ..Snapshot::default()
        };
        let report = report(&"http://h:1".parse().unwrap(), &snapshot);
        assert!(report.starts_with("http://h:1: up\n"), "{report}");
        assert!(report.contains("  model: m\\n (unknown)\n"), "{report}");
        assert!(report.contains("  note: metrics are off\n"), "{report}");
        assert!(
            report.contains("    llamacpp_slots{model=\"m\\n\"} 2\n"),
            "{report}"
        );
    }
}
