//! The `/stats` document that some forks and adapters of llama-server serve.

use serde::Deserialize;

use crate::bounds::lenient::{celsius, count, measure, object, percent, text};

/// The `/stats` document of forks and adapters.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Stats {
    /// Memory of the server.
    #[serde(deserialize_with = "object")]
    pub memory: Option<StatsMemory>,
    /// How fast and how hard it works.
    #[serde(deserialize_with = "object")]
    pub performance: Option<StatsPerformance>,
    /// What the model is.
    #[serde(deserialize_with = "object")]
    pub model: Option<StatsModel>,
    /// Batches.
    #[serde(deserialize_with = "object")]
    pub batch: Option<StatsBatch>,
    /// The process.
    #[serde(deserialize_with = "object")]
    pub system: Option<StatsSystem>,
}

impl Stats {
    /// Whether this is the document at all, and not any JSON object.
    pub fn is_recognizable(&self) -> bool {
        self.memory.is_some()
            || self.performance.is_some()
            || self.model.is_some()
            || self.batch.is_some()
            || self.system.is_some()
    }
}

/// `memory` of [`Stats`]; bytes.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
#[allow(missing_docs)]
pub struct StatsMemory {
    #[serde(deserialize_with = "count")]
    pub used_bytes: Option<f64>,
    #[serde(deserialize_with = "count")]
    pub total_bytes: Option<f64>,
    #[serde(deserialize_with = "count")]
    pub kv_cache_bytes: Option<f64>,
    #[serde(deserialize_with = "count")]
    pub kv_cache_max_bytes: Option<f64>,
}

/// `performance` of [`Stats`]; utilizations in percent, temperature in degrees Celsius.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
#[allow(missing_docs)]
pub struct StatsPerformance {
    #[serde(deserialize_with = "measure")]
    pub tokens_per_second: Option<f64>,
    #[serde(deserialize_with = "percent")]
    pub cpu_utilization: Option<f64>,
    #[serde(deserialize_with = "percent")]
    pub gpu_utilization: Option<f64>,
    #[serde(deserialize_with = "celsius")]
    pub temperature: Option<f64>,
}

/// `model` of [`Stats`].
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
#[allow(missing_docs)]
pub struct StatsModel {
    #[serde(deserialize_with = "text")]
    pub name: Option<String>,
    #[serde(deserialize_with = "count")]
    pub size_bytes: Option<f64>,
    #[serde(deserialize_with = "count")]
    pub parameters: Option<f64>,
    #[serde(deserialize_with = "count")]
    pub context_size: Option<f64>,
    #[serde(deserialize_with = "count")]
    pub max_context_size: Option<f64>,
}

/// `batch` of [`Stats`]; latency in milliseconds.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
#[allow(missing_docs)]
pub struct StatsBatch {
    #[serde(deserialize_with = "measure")]
    pub size: Option<f64>,
    #[serde(deserialize_with = "measure")]
    pub optimal_size: Option<f64>,
    #[serde(deserialize_with = "measure")]
    pub latency_ms: Option<f64>,
}

/// `system` of [`Stats`]; status is `idle`, `loading` or `running`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
#[allow(missing_docs)]
pub struct StatsSystem {
    #[serde(deserialize_with = "count")]
    pub threads: Option<f64>,
    #[serde(deserialize_with = "text")]
    pub status: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stats_out_of_range_are_not_known() {
        let json = r#"{"performance":{"cpu_utilization":101,"gpu_utilization":"99","temperature":-300,"tokens_per_second":12.5},"model":7}"#;
        let stats: Stats = serde_json::from_str(json).unwrap();
        let performance = stats.performance.unwrap();
        assert_eq!(performance.tokens_per_second, Some(12.5));
        assert_eq!(
            (
                performance.cpu_utilization,
                performance.gpu_utilization,
                performance.temperature
            ),
            (None, None, None)
        );
        assert!(stats.model.is_none());
    }
}
