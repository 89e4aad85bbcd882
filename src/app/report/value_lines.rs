//! The known values, for people: one line a metric.

use crate::app::report::columns::{padded, widest};
use crate::app::report::style::{Lines, Tone};
use crate::app::report::{ModelReport, ServerReport, ValueReport};
use crate::units;

/// The most series of one metric that are listed.
const MOST_SERIES: usize = 8;
/// Labels that say whose value it is.
const OWNER_LABELS: [&str; 3] = ["server", "model", "mode"];

impl ModelReport {
    /// Whether it is in memory, or may be.
    pub fn is_loaded(&self) -> bool {
        !matches!(self.status, Some("unloaded" | "downloading" | "failed"))
    }
}

/// Whether the value is about a model.
pub fn is_of_a_model(value: &ValueReport) -> bool {
    value.labels.contains_key("model")
}

/// Whether the value is about this model.
pub fn is_of(value: &ValueReport, model: &ModelReport) -> bool {
    value.labels.get("model") == Some(&model.model)
        && value.labels.get("mode") == model.mode.as_ref()
}

/// What a model is and does, after its name and status.
pub fn summary(server: &ServerReport, model: &ModelReport, now: f64) -> String {
    let value = |metric: &str| {
        let mut values = server.values.iter();
        let value = values.find(|value| value.metric == metric && is_of(value, model));
        value.and_then(|value| value.value)
    };
    let with_unit = |metric: &str| value(metric).map(|value| units::of_metric(metric, value, now));
    let slots = value("llamacpp_slots").map(units::number);
    let context = value("llamacpp_max_context_size_tokens").map(units::number);
    let facts = [
        model.pid.map(|pid| format!("process {pid}")),
        slots.map(|slots| format!("{slots} slots")),
        context.map(|context| format!("context {context}")),
        with_unit("llamacpp_model_size_bytes"),
        value("llamacpp_tokens_per_second").map(|rate| format!("{} tokens/s", units::number(rate))),
        with_unit("llamacpp_memory_usage_bytes").map(|memory| format!("memory {memory}")),
    ];
    let facts = facts.into_iter().flatten().map(|fact| format!(", {fact}"));
    facts.collect()
}

/// Writes the values, which are of one model or none.
pub fn write(lines: &mut Lines, values: &[&ValueReport], now: f64) {
    let mut metrics: Vec<(&str, Vec<&ValueReport>)> = Vec::new();
    for value in values {
        match metrics.last_mut() {
            Some((metric, of_metric)) if *metric == value.metric => of_metric.push(value),
            _ => metrics.push((&value.metric, vec![value])),
        }
    }
    let width = widest(metrics.iter().map(|(metric, _)| *metric));
    for (metric, values) in metrics {
        let name = padded(metric, width);
        let text = text_of(metric, &values, now);
        let hanging = width.saturating_add(6);
        lines.line(
            4,
            hanging,
            &[
                (Tone::Plain, &name),
                (Tone::Plain, "  "),
                (Tone::Plain, &text),
            ],
        );
    }
}

/// All series of a metric in one line.
fn text_of(metric: &str, values: &[&ValueReport], now: f64) -> String {
    let is_info = metric.ends_with("_info");
    let texts: Vec<(String, String)> = values
        .iter()
        .map(|value| (labels_of(value, is_info), value_of(metric, value, now)))
        .collect();
    if is_info {
        let infos: Vec<_> = texts.into_iter().map(|(labels, _)| labels).collect();
        return infos.join("; ");
    }
    // Of a set of states, those that are.
    let is_set =
        |value: &&ValueReport| value.labels.contains_key("status") && metric == "llamacpp_status";
    if values.iter().any(is_set) {
        let current = values.iter().filter(|value| value.value == Some(1.0));
        let names = current.filter_map(|value| value.labels.get("status").cloned());
        return names.collect::<Vec<_>>().join(", ");
    }
    if let [(labels, value)] = texts.as_slice() {
        return match labels.as_str() {
            "" => value.clone(),
            labels => format!("{value} ({labels})"),
        };
    }
    let is_zero = |value: &ValueReport| value.value == Some(0.0);
    let not_zero = values
        .iter()
        .zip(texts)
        .filter(|(value, _)| !is_zero(value));
    let mut shown: Vec<_> = not_zero
        .map(|(_, (labels, value))| format!("{labels} {value}"))
        .collect();
    let more = shown.len().saturating_sub(MOST_SERIES);
    shown.truncate(MOST_SERIES);
    if more > 0 {
        shown.push(format!("{more} more"));
    }
    match shown.is_empty() {
        true => "0".to_owned(),
        false => shown.join(", "),
    }
}

fn labels_of(value: &ValueReport, has_names: bool) -> String {
    let labels = value.labels.iter();
    let own = labels.filter(|(name, _)| !OWNER_LABELS.contains(&name.as_str()));
    let texts = own.map(|(name, value)| match (has_names, name.as_str()) {
        (false, "gpu") => format!("GPU {value}"),
        (false, "slot") => format!("slot {value}"),
        (false, "source") => format!("from {value}"),
        (false, _) => value.clone(),
        (true, name) => format!("{name} {value}"),
    });
    texts
        .collect::<Vec<_>>()
        .join(if has_names { ", " } else { " " })
}

fn value_of(metric: &str, value: &ValueReport, now: f64) -> String {
    if let Some(value) = value.value {
        return units::of_metric(metric, value, now);
    }
    let (count, sum) = (value.count.unwrap_or(0.0), value.sum.unwrap_or(0.0));
    match count > 0.0 {
        true => format!(
            "{} observed, mean {}",
            units::number(count),
            units::of_metric(metric, sum / count, now)
        ),
        false => "none observed".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::app::report::{Style, values};

    #[test]
    fn each_metric_has_one_line() {
        let text = "llamacpp_status{model=\"m\",status=\"idle\"} 1\nllamacpp_status{model=\"m\",status=\"loading\"} 0\n\
            llamacpp_memory_usage_bytes{model=\"m\"} 1048576\n\
            llamacpp_request_errors_total{model=\"m\",code=\"400\"} 0\nllamacpp_request_errors_total{model=\"m\",code=\"500\"} 0\n\
            llamacpp_context_tokens{model=\"m\",slot=\"0\"} 3\nllamacpp_context_tokens{model=\"m\",slot=\"1\"} 1200\n\
            llamacpp_model_info{model=\"m\",architecture=\"gemma3\",quantization=\"Q4_K - Medium\"} 1\n\
            # TYPE llamacpp_first_token_latency_seconds histogram\n\
            llamacpp_first_token_latency_seconds_sum{source=\"log\"} 1\nllamacpp_first_token_latency_seconds_count{source=\"log\"} 4\n";
        let values = values::of(text, |_| true);
        let mut lines = Lines::new(Style::default());
        write(&mut lines, &values.iter().collect::<Vec<_>>(), 0.0);
        let text = lines.into_text();
        let line = |metric: &str, value: &str| format!("    {metric:<36}  {value}\n");
        let expected = [
            line("llamacpp_status", "idle"),
            line("llamacpp_memory_usage_bytes", "1 MiB"),
            line("llamacpp_request_errors_total", "0"),
            line("llamacpp_context_tokens", "slot 0 3, slot 1 1,200"),
            line(
                "llamacpp_model_info",
                "architecture gemma3, quantization Q4_K - Medium",
            ),
            line(
                "llamacpp_first_token_latency_seconds",
                "4 observed, mean 250 ms (from log)",
            ),
        ];
        assert_eq!(text, expected.concat());
    }
}
