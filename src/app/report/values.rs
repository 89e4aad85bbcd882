//! The values of a scrape, without the buckets of histograms.

use std::collections::BTreeMap;

use crate::app::report::{ScrapeReport, ValueReport};
use crate::metrics::lint::CheckedScrape;

/// Whether Prometheus accepts this scrape.
pub fn checked(text: &str) -> ScrapeReport {
    let scrape = CheckedScrape::parse(text);
    ScrapeReport {
        valid: scrape.is_ok(),
        samples: scrape.as_ref().map_or(0, |scrape| scrape.samples),
        error: scrape.err().map(|error| error.to_string()),
        bytes: text.len(),
    }
}

/// The values of the families whose names `is_wanted` selects, in the order of the text.
pub fn of(text: &str, is_wanted: impl Fn(&str) -> bool) -> Vec<ValueReport> {
    let scrape = CheckedScrape::parse(text).unwrap_or_default();
    let mut values = Vec::new();
    for family in scrape.families {
        if !is_wanted(family.name) {
            continue;
        }
        let first = values.len();
        for sample in family.samples {
            let labels = sample.labels.iter().filter(|(name, _)| *name != "le");
            let labels: BTreeMap<_, _> = labels
                .map(|(name, value)| ((*name).to_owned(), value.clone()))
                .collect();
            let is_histogram = family.metric_type == "histogram";
            if !is_histogram {
                values.push(ValueReport {
                    metric: family.name.to_owned(),
                    labels,
                    value: Some(sample.value),
                    ..ValueReport::default()
                });
                continue;
            }
            let of_family: &mut [ValueReport] = values.get_mut(first..).unwrap_or_default();
            let at = of_family.iter().position(|value| value.labels == labels);
            let value = match at {
                Some(at) => of_family.get_mut(at),
                None => {
                    values.push(ValueReport {
                        metric: family.name.to_owned(),
                        labels,
                        ..ValueReport::default()
                    });
                    values.last_mut()
                }
            };
            if let Some(value) = value {
                match sample.name.strip_prefix(family.name) {
                    Some("_sum") => value.sum = Some(sample.value),
                    Some("_count") => value.count = Some(sample.value),
                    _ => {}
                }
            }
        }
    }
    values
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_histogram_is_one_value() {
        let text = "# TYPE a gauge\na{model=\"m\"} 1\na{model=\"n\"} 2\n# TYPE h histogram\n\
            h_bucket{model=\"m\",le=\"1\"} 1\nh_bucket{model=\"m\",le=\"+Inf\"} 2\nh_sum{model=\"m\"} 5\n\
            h_count{model=\"m\"} 2\n# TYPE b gauge\nb 3\n";
        let found = of(text, |name| name != "b");
        let names: Vec<_> = found.iter().map(|value| value.metric.as_str()).collect();
        assert_eq!(names, ["a", "a", "h"]);
        assert_eq!(
            (found[2].count, found[2].sum, found[2].value),
            (Some(2.0), Some(5.0), None)
        );
        assert_eq!(found[1].labels["model"], "n");
    }
}
