//! What was read, and which metrics are missing and why.

use std::collections::BTreeMap;
use std::time::Instant;

use crate::app::report::{MissingReport, SourceReport};
use crate::metrics::overview::{Overview, Subject};
use crate::snapshot::{Missing, Source};

/// The sources, with their ages at the time `now`.
pub fn sources(sources: &[Source], now: Instant) -> Vec<SourceReport> {
    let reports = sources.iter().map(|source| SourceReport {
        kind: source.kind.label(),
        name: source.kind.name(),
        model: source.model.as_deref().map(str::to_owned),
        state: source.state().label(),
        reason: source.absence.map(|absence| absence.id()),
        why: source.absence.map(|absence| absence.why()),
        age_seconds: source
            .read_at
            .map(|at| now.saturating_duration_since(at).as_secs_f64()),
        duration_seconds: source.duration.map(|duration| duration.as_secs_f64()),
        error: source.error.as_deref().map(str::to_owned),
    });
    reports.collect()
}

/// The metrics that are missing of the server with this label, or else of this machine.
pub fn missing(overview: &Overview, server: Option<&str>) -> Vec<MissingReport> {
    let mut reports = Vec::new();
    for state in &overview.families {
        // The models that lack it, by the reason.
        let mut absent = BTreeMap::<&Missing, Vec<String>>::new();
        for of in &state.absent {
            for subject in of
                .subjects
                .iter()
                .filter_map(|index| overview.subjects.get(*index))
            {
                let (of_server, model) = match subject {
                    Subject::Machine => (None, None),
                    Subject::Server(label) => (Some(label), None),
                    Subject::Model(label, (name, _)) => (Some(label), Some(name)),
                };
                if of_server.map(String::as_str) == server {
                    absent
                        .entry(&of.missing)
                        .or_default()
                        .extend(model.cloned());
                }
            }
        }
        reports.extend(absent.into_iter().map(|(missing, models)| MissingReport {
            metric: state.family.name,
            models,
            reason: missing.reason.id(),
            why: missing.why(),
            remedy: missing.remedy().to_owned(),
            is_fixable: missing.reason.is_fixable(),
        }));
    }
    reports
}
