//! Size and usage of a model's KV cache, from the server's arguments and the header of the model
//! file.

use crate::gguf::header::ModelHeader;
use crate::gguf::kv_cache::{self, CellLayout, KvCache, SlotLayout};
use crate::machine::procfs::Procfs;
use crate::machine::server_arguments::ServerArguments;
use crate::machine::server_process::ServerProcess;
use crate::readings::{ModelReading, ModelStatus};
use crate::snapshot::Model;

/// Sets the size and usage of the KV cache in `model`, as far as they are known.
pub fn fill(
    model: &mut Model,
    reading: &ModelReading,
    mut process: Option<&mut ServerProcess>,
    procfs: &Procfs,
) {
    // A model that is not loaded has no cache.
    let unloaded = [
        ModelStatus::Sleeping,
        ModelStatus::Unloaded,
        ModelStatus::Loading,
    ];
    if model
        .status
        .is_some_and(|status| unloaded.contains(&status))
    {
        return;
    }
    let integer = |value: f64| (0.0..1e12).contains(&value).then_some(value as u64);
    let (Some(count), Some(n_ctx)) = (
        reading.facts.slots.and_then(integer),
        reading.facts.max_context_size.and_then(integer),
    ) else {
        return;
    };
    let slots = SlotLayout { count, n_ctx };
    let options = process.as_ref().and_then(|process| process.cache_options());
    // The arguments of the process may be unreadable, or it may be a wrapper.
    let options = options.or_else(|| {
        let words = reading.process.arguments.as_ref()?;
        ServerArguments::of_router_child(words).cache_options()
    });
    let from_texts = reading.process.header.as_ref().map(|texts| {
        let texts = texts.iter();
        ModelHeader::from_texts(texts.map(|(key, text)| (key.as_str(), text.as_str())))
    });
    let header = from_texts.as_ref().or_else(|| {
        let process = process.as_mut()?;
        process.model_header(procfs, reading.facts.path.as_ref()?)
    });
    let slot_tokens = model.slots.context_tokens.iter();
    let slot_tokens: Vec<u64> = slot_tokens
        .filter_map(|(_, tokens)| integer(*tokens))
        .collect();
    let is_usage_known = !slot_tokens.is_empty() || model.slots.are_unused;
    let trained_context = header.and_then(kv_cache::trained_context);
    let layout = CellLayout::new(options.as_ref(), slots, trained_context);
    if let Some(layout) = layout.filter(|_| is_usage_known) {
        model.kv_cache.usage_ratio = Some(layout.used_ratio(&slot_tokens));
    }
    if let (Some(header), Some(options)) = (header, &options)
        && let Some(cache) = KvCache::new(header, options, slots)
    {
        model.stats.remove_kv_cache();
        model.kv_cache.limit_bytes = Some(cache.total_bytes() as f64);
        model.kv_cache.usage_bytes = is_usage_known.then(|| cache.used_bytes(&slot_tokens) as f64);
    }
}
