//! llama-server's own families, for `--llama-server-metrics`.

use crate::readings::LlamaServerFamily;
use crate::readings::counters::FamilyType;
use crate::readings::llama_server_family::SampleText;
use crate::snapshot::Model;

/// llama.cpp dropped it in July 2025; autoscalers still ask for it.
const KV_CACHE_USAGE: &str = "llamacpp:kv_cache_usage_ratio";

/// The families that are known of `model` now, the use of its KV cache among them.
pub fn of_model(model: &Model) -> Vec<LlamaServerFamily> {
    let mut families = model.counters.families.to_vec();
    if let Some(ratio) = model.kv_cache_usage_ratio()
        && families.iter().all(|family| family.name != KV_CACHE_USAGE)
    {
        families.push(LlamaServerFamily {
            name: KV_CACHE_USAGE.to_owned(),
            help: "KV-cache usage. 1 means 100 percent usage.".to_owned(),
            family_type: Some(FamilyType::Gauge),
            samples: vec![SampleText {
                labels: Vec::new(),
                value: ratio.to_string(),
            }],
        });
    }
    families
}
