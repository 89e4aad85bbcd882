//! Reads single values of the catalogue, for the status page: what it shows is what `/metrics` says.

use crate::metrics::catalogue::{FAMILIES, Label, Scope, SeriesSink};
use crate::snapshot::Model;
use crate::snapshot::histogram::Histogram;

/// The value of the metric `name` of `model`: its one series, if it is known.
pub fn of_model(name: &str, model: &Model) -> Option<f64> {
    let family = FAMILIES.iter().find(|family| family.name == name)?;
    let mut series = SeriesCount::default();
    if let Scope::Model(read) = family.scope {
        read(model, &mut series);
    }
    series.first
}

/// Counts series as the exposition writes them, and takes the value of the first.
#[derive(Debug, Default)]
pub struct SeriesCount {
    /// The number of series.
    pub count: usize,
    /// The first value that is not a histogram's.
    pub first: Option<f64>,
}

impl SeriesSink for SeriesCount {
    fn series(&mut self, _: &[Label], value: f64) {
        self.count = self.count.saturating_add(1);
        self.first.get_or_insert(value);
    }

    fn histogram(&mut self, histogram: &Option<Histogram>) {
        if let Some(histogram) = histogram {
            let series = histogram.cumulative().count().saturating_add(2);
            self.count = self.count.saturating_add(series);
        }
    }
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
