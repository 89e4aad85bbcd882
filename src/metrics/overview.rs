//! Which metrics are there, and of the others why not and what to do: for the status page and
//! `--check`. Computed when someone asks, never at a scrape.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::metrics::catalogue::{Exporter, FAMILIES, Family, Scope};
use crate::metrics::need::{self, Context};
use crate::metrics::value::SeriesCount;
use crate::readings::ModelKey;
use crate::snapshot::{Gpu, Missing, Model, OwnMetrics, Snapshot, Source};

/// All metrics of the catalogue, and what each of them is about.
#[derive(Debug, Default)]
pub struct Overview {
    /// What metrics are about.
    pub subjects: Vec<Subject>,
    /// The metrics, in the catalogue's order.
    pub families: Vec<FamilyState>,
}

/// What a series can be about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Subject {
    /// A model of a server: the label `server`, the model's name and mode.
    Model(String, ModelKey),
    /// A server: the label `server`.
    Server(String),
    /// This machine, with its GPUs and the exporter.
    Machine,
}

/// One metric.
#[derive(Debug)]
pub struct FamilyState {
    /// Its row in the catalogue.
    pub family: &'static Family,
    /// How many series it has, and the value of the first.
    pub series: SeriesCount,
    /// The subjects that have none of them, by the reason.
    pub absent: Vec<AbsentIn>,
}

/// A reason that a metric is absent, and where.
#[derive(Debug)]
pub struct AbsentIn {
    /// The reason.
    pub missing: Missing,
    /// The subjects, as indexes of [`Overview::subjects`].
    pub subjects: Vec<usize>,
}

/// What to do, and what that is good for.
#[derive(Debug)]
pub struct Remedy<'a> {
    /// What to do.
    pub text: &'a str,
    /// Whether people can do it; else there is nothing to do.
    pub is_fixable: bool,
    /// The reasons that it is for.
    pub reasons: BTreeSet<&'a Missing>,
    /// The metrics that are absent for these reasons.
    pub families: Vec<&'static Family>,
    /// Where they are absent, as indexes of [`Overview::subjects`].
    pub subjects: BTreeSet<usize>,
}

/// Looks at every metric of the catalogue for each subject. `machine` are the sources of this
/// machine.
pub fn overview(
    servers: &[Arc<Snapshot>],
    gpus: &[Gpu],
    machine: &[Source],
    own: &OwnMetrics,
) -> Overview {
    let exporter = Exporter {
        own: own.clone(),
        series_dropped: 0,
    };
    let mut overview = Overview::default();
    let mut of_subject = Vec::new();
    for server in servers {
        of_subject.extend(subjects_of(server));
    }
    of_subject.push((Subject::Machine, None, None));
    let by_model = sources_by_model(servers);
    let contexts: Vec<_> = of_subject
        .iter()
        .map(|(_, server, model)| Context {
            server: *server,
            model: *model,
            sources: sources_of(&by_model, *server, *model),
            machine,
            gpus,
        })
        .collect();
    for family in FAMILIES {
        let mut state = FamilyState {
            family,
            series: SeriesCount::default(),
            absent: Vec::new(),
        };
        let mut absent = BTreeMap::<Missing, Vec<usize>>::new();
        for (index, ((subject, ..), context)) in of_subject.iter().zip(&contexts).enumerate() {
            let before = state.series.count;
            let series = &mut state.series;
            let is_about = read(family.scope, subject, context, &exporter, series);
            if let Some(second) = family.second_scope {
                read(second, subject, context, &exporter, series);
            }
            if is_about && series.count == before {
                let missing = need::missing(family.needs, context);
                absent.entry(missing).or_default().push(index);
            }
        }
        let absent = absent.into_iter();
        state.absent = absent
            .map(|(missing, subjects)| AbsentIn { missing, subjects })
            .collect();
        overview.families.push(state);
    }
    overview.subjects = of_subject
        .into_iter()
        .map(|(subject, ..)| subject)
        .collect();
    overview
}

impl Overview {
    /// What can be done about absent metrics, each remedy once: those that people can do first.
    pub fn remedies(&self) -> Vec<Remedy<'_>> {
        let mut remedies = Vec::<Remedy>::new();
        for state in &self.families {
            for AbsentIn { missing, subjects } in &state.absent {
                let text = missing.remedy();
                let known = remedies.iter().position(|remedy| remedy.text == text);
                let at = known.unwrap_or_else(|| {
                    remedies.push(Remedy {
                        text,
                        is_fixable: missing.reason.is_fixable(),
                        reasons: BTreeSet::new(),
                        families: Vec::new(),
                        subjects: BTreeSet::new(),
                    });
                    remedies.len().saturating_sub(1)
                });
                let remedy = &mut remedies[at];
                remedy.reasons.insert(missing);
                if remedy
                    .families
                    .last()
                    .is_none_or(|last| last.name != state.family.name)
                {
                    remedy.families.push(state.family);
                }
                remedy.subjects.extend(subjects);
            }
        }
        remedies.sort_by_key(|remedy| !remedy.is_fixable);
        remedies
    }
}

/// A server, and its models with those whose requests are still counted; without any, one that is
/// not known.
type SubjectOf<'a> = (Subject, Option<&'a Snapshot>, Option<&'a Model>);

fn subjects_of(server: &Arc<Snapshot>) -> Vec<SubjectOf<'_>> {
    let models = server.models.iter().map(|model| (model.key(), Some(model)));
    let mut models: BTreeMap<ModelKey, Option<&Model>> = models.collect();
    for of in &server.requests {
        models
            .entry((of.model.clone(), of.mode.clone()))
            .or_default();
    }
    let known: Option<&Snapshot> = Some(server);
    let only = (models.len() == 1).then(|| server.models.first()).flatten();
    let mut subjects = vec![(Subject::Server(server.server.clone()), known, only)];
    subjects.extend(
        models
            .into_iter()
            .map(|(key, model)| (Subject::Model(server.server.clone(), key), known, model)),
    );
    subjects
}

/// The sources of each server, by the name of the model that they are of: a server of many models
/// has many.
type SourcesByModel<'a> = BTreeMap<(&'a str, Option<&'a str>), Vec<&'a Source>>;

fn sources_by_model(servers: &[Arc<Snapshot>]) -> SourcesByModel<'_> {
    let mut by_model = SourcesByModel::new();
    for server in servers {
        for source in &server.sources {
            let key = (server.server.as_str(), source.model.as_deref());
            by_model.entry(key).or_default().push(source);
        }
    }
    by_model
}

/// The sources of a model, then those of its whole server.
fn sources_of<'a>(
    by_model: &SourcesByModel<'a>,
    server: Option<&Snapshot>,
    model: Option<&Model>,
) -> Vec<&'a Source> {
    let Some(server) = server.map(|server| server.server.as_str()) else {
        return Vec::new();
    };
    let of_model = model.map(|model| (server, Some(model.name.as_str())));
    let keys = of_model.into_iter().chain([(server, None)]);
    let all = keys.filter_map(|key| by_model.get(&key)).flatten();
    all.copied().collect()
}

/// Reads the series of one family about one subject, if it is about such subjects; returns whether
/// it is. A server without models stands for them.
fn read(
    scope: Scope,
    subject: &Subject,
    context: &Context,
    exporter: &Exporter,
    series: &mut SeriesCount,
) -> bool {
    match (scope, subject, context.server) {
        (Scope::Exporter(read), Subject::Machine, _) => read(exporter, series),
        (Scope::Gpu(read), Subject::Machine, _) => {
            for gpu in context.gpus {
                read(gpu, series);
            }
        }
        (Scope::Server(read), Subject::Server(_), Some(server)) => read(server, series),
        (Scope::ReportedGpu(read), Subject::Server(_), Some(server)) => read(server, series),
        (Scope::Model(read), Subject::Model(..), Some(_)) => {
            if let Some(model) = context.model {
                read(model, series);
            }
        }
        (Scope::Requests(read), Subject::Model(_, key), Some(server)) => {
            let of_model = server.requests.iter();
            let of_model = of_model.filter(|of| of.model == key.0 && of.mode == key.1);
            for of in of_model {
                read(&of.figures, series);
            }
        }
        (Scope::Model(_) | Scope::Requests(_), Subject::Server(_), Some(server)) => {
            return server.models.is_empty() && server.requests.is_empty();
        }
        _ => return false,
    }
    true
}

#[cfg(test)]
mod tests;
