//! The `/stats` document that some forks and adapters of llama-server serve.

use serde::{Deserialize, Deserializer};

use crate::bounds::lenient::{celsius, count, measure, object, percent, text};
use crate::readings::ModelStatus;

/// `GET /stats`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Stats {
    #[serde(deserialize_with = "object")]
    memory: Option<StatsMemory>,
    #[serde(deserialize_with = "object")]
    performance: Option<StatsPerformance>,
    #[serde(deserialize_with = "object")]
    model: Option<StatsModel>,
    #[serde(deserialize_with = "object")]
    batch: Option<StatsBatch>,
    #[serde(deserialize_with = "object")]
    system: Option<StatsSystem>,
}

impl Stats {
    /// Whether the document has any known section.
    pub fn has_any_section(&self) -> bool {
        self.memory.is_some()
            || self.performance.is_some()
            || self.model.is_some()
            || self.batch.is_some()
            || self.system.is_some()
    }

    /// Memory of the server.
    pub fn memory(&self) -> StatsMemory {
        self.memory.unwrap_or_default()
    }

    /// Speed and load.
    pub fn performance(&self) -> StatsPerformance {
        self.performance.unwrap_or_default()
    }

    /// The model.
    pub fn model(&self) -> Option<&StatsModel> {
        self.model.as_ref()
    }

    /// Batches.
    pub fn batch(&self) -> StatsBatch {
        self.batch.unwrap_or_default()
    }

    /// The process.
    pub fn system(&self) -> StatsSystem {
        self.system.unwrap_or_default()
    }

    /// Removes the KV cache's values: those computed from the model's file replace them.
    pub fn remove_kv_cache(&mut self) {
        if let Some(memory) = &mut self.memory {
            (memory.kv_cache_bytes, memory.kv_cache_max_bytes) = (None, None);
        }
    }

    /// Removes the GPU's values: those read on this machine replace them.
    pub fn remove_gpu(&mut self) {
        if let Some(performance) = &mut self.performance {
            (performance.gpu_utilization, performance.temperature) = (None, None);
        }
    }
}

/// `memory` of [`Stats`]; bytes.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(default)]
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
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(default)]
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
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(default)]
pub struct StatsBatch {
    #[serde(deserialize_with = "measure")]
    pub size: Option<f64>,
    #[serde(deserialize_with = "measure")]
    pub optimal_size: Option<f64>,
    #[serde(deserialize_with = "measure")]
    pub latency_ms: Option<f64>,
}

/// `system` of [`Stats`]; status is `idle`, `loading` or `running`.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(default)]
pub struct StatsSystem {
    #[serde(deserialize_with = "count")]
    pub threads: Option<f64>,
    #[serde(deserialize_with = "status")]
    pub status: Option<ModelStatus>,
}

fn status<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<ModelStatus>, D::Error> {
    Ok(match text(deserializer)?.as_deref() {
        Some("idle") => Some(ModelStatus::Idle),
        Some("loading") => Some(ModelStatus::Loading),
        Some("running") => Some(ModelStatus::Running),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stats_out_of_range_are_unknown() {
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
