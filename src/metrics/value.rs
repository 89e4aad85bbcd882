//! Reads one value of the catalogue, for the status page: what it shows is what `/metrics` says.

use std::sync::Arc;

use crate::metrics::catalogue::{Exporter, FAMILIES, Family, Label, Scope, SeriesSink};
use crate::snapshot::histogram::Histogram;
use crate::snapshot::{Gpu, Model, OwnMetrics, Snapshot};

/// The value of the metric `name` of `model`: its one series, if it is known.
pub fn of_model(name: &str, model: &Model) -> Option<f64> {
    let family = FAMILIES.iter().find(|family| family.name == name)?;
    let mut first = First(None);
    if let Scope::Model(read) = family.scope {
        read(model, &mut first);
    }
    first.0
}

/// The value of a metric that has a single series.
pub fn single(
    family: &Family,
    servers: &[Arc<Snapshot>],
    gpus: &[Gpu],
    own: &OwnMetrics,
) -> Option<f64> {
    let mut first = First(None);
    for scope in [Some(family.scope), family.second_scope]
        .into_iter()
        .flatten()
    {
        match scope {
            Scope::Exporter(read) => read(
                &Exporter {
                    own: own.clone(),
                    series_dropped: 0,
                },
                &mut first,
            ),
            Scope::Gpu(read) => gpus.iter().for_each(|gpu| read(gpu, &mut first)),
            Scope::Server(read) | Scope::ReportedGpu(read) => {
                servers.iter().for_each(|server| read(server, &mut first));
            }
            Scope::Model(read) => {
                let models = servers.iter().flat_map(|server| &server.models);
                models.for_each(|model| read(model, &mut first));
            }
            Scope::Requests(read) => {
                let requests = servers.iter().flat_map(|server| &server.requests);
                requests.for_each(|of| read(&of.figures, &mut first));
            }
        }
    }
    first.0
}

/// Takes the first series.
struct First(Option<f64>);

impl SeriesSink for First {
    fn series(&mut self, _: &[Label], value: f64) {
        self.0.get_or_insert(value);
    }

    fn histogram(&mut self, _: &Option<Histogram>) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_is_read_by_the_name_of_its_metric() {
        let mut model = Model::default();
        model.process.memory_usage = Some(7.0);
        assert_eq!(of_model("llamacpp_memory_usage_bytes", &model), Some(7.0));
        assert_eq!(of_model("llamacpp_thread_count", &model), None);
        assert_eq!(of_model("llamacpp_batch_latency_seconds", &model), None);
    }
}
