//! Computes the size of a KV cache as llama.cpp allocates it. Does no I/O.
//!
//! Follows `llama_kv_cache` and `llama_kv_cache_iswa` (`src/llama-kv-cache*.cpp`), with the sizes
//! that `src/llama-context.cpp` and `tools/server` pass to them:
//!
//! - A cache has one stream for all slots (unified), or one stream per slot. Numbers of cells are
//!   rounded up to multiples of 256.
//! - Layers with full attention have `ctx_size` cells per stream (unified), or `ctx_size / slots`.
//!   Without `--ctx-size`, it is the context size that the model was trained for.
//! - Layers with a sliding window have `min(window × slots of the stream + ubatch, full)` cells.
//! - A cell has, for each layer, `kv_heads × key_length` values of K and `kv_heads ×
//!   value_length` values of V, in the blocks of their types.
//!
//! Tests compare the results with the sizes that real servers print. Models that may not follow
//! these formulas (recurrent and hybrid models, latent attention, unknown windows) have no size.

use crate::gguf::header::{HeaderValue, ModelHeader};

/// The arguments of a server that determine its cache. The default is that of a server without
/// arguments.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct CacheOptions {
    /// `--ctx-size`, if given and not 0.
    pub ctx_size: Option<u64>,
    /// `--parallel`, if given and not automatic.
    pub parallel: Option<u64>,
    /// `--kv-unified-per-slot`, if given and not 0.
    pub unified_per_slot: Option<u64>,
    /// Whether `--kv-unified` is given.
    pub unified: bool,
    /// `--cache-type-k`.
    pub type_k: CacheType,
    /// `--cache-type-v`.
    pub type_v: CacheType,
    /// `--swa-full`.
    pub swa_full: bool,
    /// `--batch-size`, if given; 2048 by default.
    pub batch: Option<u64>,
    /// `--ubatch-size`, if given; 512 by default, and 0 is as many as `--batch-size`.
    pub ubatch: Option<u64>,
    /// `--flash-attn off`, with which V is stored transposed.
    pub transposed_v: bool,
}

/// How the server divides its context.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SlotLayout {
    /// Number of slots (`total_slots`).
    pub count: u64,
    /// Tokens that fit one slot (`n_ctx`).
    pub n_ctx: u64,
}

/// A type of cached values: the values and bytes of a block (`ggml/src/ggml-common.h`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CacheType {
    block_values: u64,
    block_bytes: u64,
}

impl Default for CacheType {
    /// F16, llama-server's default.
    fn default() -> CacheType {
        CacheType {
            block_values: 1,
            block_bytes: 2,
        }
    }
}

impl CacheType {
    /// The type with this name in llama-server's arguments.
    pub fn named(name: &str) -> Option<CacheType> {
        let (block_values, block_bytes) = match name {
            "f32" => (1, 4),
            "f16" | "bf16" => (1, 2),
            "q8_0" => (32, 34),
            "q5_0" => (32, 22),
            "q5_1" => (32, 24),
            "q4_0" | "iq4_nl" => (32, 18),
            "q4_1" => (32, 20),
            _ => return None,
        };
        Some(CacheType {
            block_values,
            block_bytes,
        })
    }

    /// Bytes of this number of values; `None` if it is not a whole number of blocks.
    fn bytes_of(self, values: u64) -> Option<u64> {
        let blocks = values.checked_div(self.block_values)?;
        let is_whole = values.is_multiple_of(self.block_values);
        is_whole.then(|| blocks.saturating_mul(self.block_bytes))
    }
}

/// The number of cells of a cache; does not need the model file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CellLayout {
    /// Number of streams: one for all slots, or one per slot.
    pub streams: u64,
    /// Cells of each stream, for layers with full attention.
    pub cells: u64,
}

impl CellLayout {
    /// The layout for the server's arguments and the slots that it reports. `trained_context` is
    /// the context size that the model was trained for. `None` if the arguments are insufficient or
    /// contradict the reported slots.
    pub fn new(
        options: Option<&CacheOptions>,
        slots: SlotLayout,
        trained_context: Option<u64>,
    ) -> Option<CellLayout> {
        if slots.count == 0 || slots.n_ctx == 0 {
            return None;
        }
        let unified = slots.count == 1
            || match options?.parallel {
                Some(parallel) if parallel != slots.count => return None,
                Some(_) => options?.unified,
                // llama-server's default is four slots with one cache.
                None => true,
            };
        let per_slot = options.and_then(|options| options.unified_per_slot);
        let ctx_size = options.and_then(|options| options.ctx_size);
        let ctx_size = ctx_size.or_else(|| per_slot?.checked_mul(slots.count));
        let cells = match ctx_size {
            Some(ctx_size) => {
                let cells = match unified {
                    true => padded(ctx_size),
                    false => padded(padded(ctx_size).checked_div(slots.count)?),
                };
                // A slot reports at most the trained context, and at most its own limit.
                let limit = trained_context.into_iter().chain(per_slot).min();
                let reported = cells.min(limit.unwrap_or(u64::MAX));
                if slots.n_ctx != reported && slots.n_ctx != cells {
                    return None;
                }
                cells
            }
            None if trained_context != Some(slots.n_ctx) => slots.n_ctx,
            // The model's whole context, shared by all slots.
            None if unified => padded(slots.n_ctx),
            None => return None,
        };
        Some(CellLayout {
            streams: if unified { 1 } else { slots.count },
            cells,
        })
    }

    /// The share of all cells that hold tokens, 0 to 1.
    pub fn used_ratio(&self, slot_tokens: &[u64]) -> f64 {
        let used = saturating_sum(slot_tokens.iter().copied());
        (used as f64 / (self.cells as f64 * self.streams as f64)).min(1.0)
    }
}

/// The cells of one stream for a group of layers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LayerGroup {
    /// Cells of one stream.
    pub cells: u64,
    /// Bytes of one cell, over all layers of the group.
    pub cell_bytes: u64,
}

/// The KV cache of a model on a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KvCache {
    /// Number of streams: one for all slots, or one per slot.
    pub streams: u64,
    /// Layers with full attention.
    pub full: LayerGroup,
    /// Layers with a sliding window.
    pub sliding: LayerGroup,
}

impl KvCache {
    /// The cache of the model with `header` on a server with `options`; `None` if unknown.
    pub fn new(header: &ModelHeader, options: &CacheOptions, slots: SlotLayout) -> Option<KvCache> {
        let layer_count = integer(header, "block_count");
        let layer_count = layer_count.filter(|count| (1..=MAX_LAYERS).contains(count))?;
        let window = sliding_window(header, layer_count)?;
        let [full_bytes, sliding_bytes] = cell_bytes(header, options, layer_count, window)?;
        let CellLayout { streams, cells } =
            CellLayout::new(Some(options), slots, trained_context(header))?;
        let sliding_cells = match window {
            None => 0,
            Some(_) if options.swa_full => cells,
            Some(window) => {
                let batch = options.batch.unwrap_or(2048);
                let ubatch = match options.ubatch.unwrap_or(512) {
                    0 => batch,
                    ubatch => ubatch.min(batch),
                };
                let slots_per_stream = if streams == 1 { slots.count } else { 1 };
                let needed = window.tokens.checked_mul(slots_per_stream)?;
                padded(needed.checked_add(ubatch)?.min(cells))
            }
        };
        // Far larger than any real cache, and far below the range of u64.
        let bytes = full_bytes.saturating_add(sliding_bytes);
        let total = streams as f64 * cells as f64 * bytes as f64;
        (total < 1e18).then_some(KvCache {
            streams,
            full: LayerGroup {
                cells,
                cell_bytes: full_bytes,
            },
            sliding: LayerGroup {
                cells: sliding_cells,
                cell_bytes: sliding_bytes,
            },
        })
    }

    /// Bytes allocated.
    pub fn total_bytes(&self) -> u64 {
        let bytes = |group: LayerGroup| {
            let stream = group.cells.saturating_mul(group.cell_bytes);
            stream.saturating_mul(self.streams)
        };
        bytes(self.full).saturating_add(bytes(self.sliding))
    }

    /// Bytes of the cells that hold tokens, from the tokens in each slot. The cells of a sliding
    /// window are all in use once it is full.
    pub fn used_bytes(&self, slot_tokens: &[u64]) -> u64 {
        let bytes = |group: LayerGroup| {
            let tokens = slot_tokens.iter().copied();
            let used = match self.streams {
                1 => saturating_sum(tokens).min(group.cells),
                _ => saturating_sum(tokens.map(|tokens| tokens.min(group.cells))),
            };
            used.saturating_mul(group.cell_bytes)
        };
        // A server may report the tokens of more slots than it has.
        let used = bytes(self.full).saturating_add(bytes(self.sliding));
        used.min(self.total_bytes())
    }
}

/// The context size that the model was trained for, in tokens.
pub fn trained_context(header: &ModelHeader) -> Option<u64> {
    integer(header, "context_length")
}

/// Rounds up to a multiple of 256 cells; on overflow, returns `cells`.
fn padded(cells: u64) -> u64 {
    cells.checked_next_multiple_of(256).unwrap_or(cells)
}

fn saturating_sum(numbers: impl Iterator<Item = u64>) -> u64 {
    numbers.fold(0, u64::saturating_add)
}

/// The most layers that llama.cpp supports (`LLAMA_MAX_LAYERS`).
const MAX_LAYERS: u64 = 512;

/// Keys of models with another kind of cache.
const OTHER_CACHE_KEYS: &[&str] = &[
    "attention.kv_lora_rank",
    "attention.key_length_mla",
    "attention.value_length_mla",
    "attention.key_length_swa",
    "attention.value_length_swa",
    "attention.shared_kv_layers",
    "attention.recurrent_layers",
    "full_attention_interval",
    "nextn_predict_layers",
    "shortconv.l_cache",
];
/// Prefixes of such keys.
const OTHER_CACHE_PREFIXES: &[&str] = &["ssm.", "wkv.", "attention.indexer.", "kda."];

/// Bytes of one cell over all layers: with full attention, and with a sliding window.
fn cell_bytes(
    header: &ModelHeader,
    options: &CacheOptions,
    layer_count: u64,
    window: Option<SlidingWindow>,
) -> Option<[u64; 2]> {
    let is_other = |key: &str| {
        let mut prefixes = OTHER_CACHE_PREFIXES.iter();
        OTHER_CACHE_KEYS.contains(&key) || prefixes.any(|prefix| key.starts_with(prefix))
    };
    if header.model_keys().any(is_other) {
        return None;
    }
    let heads = per_layer(header, "attention.head_count", layer_count)?;
    let kv_heads = match header.model_value("attention.head_count_kv") {
        None => heads.clone(),
        Some(_) => per_layer(header, "attention.head_count_kv", layer_count)?,
    };
    let embedding = integer(header, "embedding_length")?;
    let length = |key: &str| match header.model_value(key) {
        None => embedding.checked_div(*heads.first()?),
        Some(_) => integer(header, key),
    };
    let key_length = length("attention.key_length")?;
    let value_length = length("attention.value_length")?;
    let most_heads = *kv_heads.iter().max()?;
    let cached_layers = match header.architecture()? {
        // The layers after these use the caches of earlier ones.
        "gemma3n" => 20,
        _ => layer_count,
    };
    let [mut full, mut sliding] = [0_u64; 2];
    for (layer, kv_heads) in (0..cached_layers).zip(kv_heads) {
        // A transposed V has the same width in every layer.
        let v_heads = match options.transposed_v {
            true => most_heads,
            false => kv_heads,
        };
        let keys = options.type_k.bytes_of(kv_heads.checked_mul(key_length)?)?;
        let values = options
            .type_v
            .bytes_of(v_heads.checked_mul(value_length)?)?;
        let group = match window.is_some_and(|window| window.has_layer(layer)) {
            true => &mut sliding,
            false => &mut full,
        };
        *group = group.checked_add(keys)?.checked_add(values)?;
    }
    Some([full, sliding])
}

/// A sliding window, in all layers but the last of each period.
#[derive(Clone, Copy)]
struct SlidingWindow {
    period: u64,
    tokens: u64,
}

impl SlidingWindow {
    fn has_layer(&self, layer: u64) -> bool {
        !layer.saturating_add(1).is_multiple_of(self.period)
    }
}

/// The sliding window of an architecture, fixed by llama.cpp's source (`src/models/*.cpp`);
/// `Some(None)`: all layers have full attention, `None`: unknown.
fn sliding_window(header: &ModelHeader, layer_count: u64) -> Option<Option<SlidingWindow>> {
    const WINDOW: &str = "attention.sliding_window";
    let given = match header.model_value(WINDOW) {
        None => None,
        Some(_) => Some(integer(header, WINDOW)?),
    };
    let given_or_default = given.or(Some(4096));
    let is_given = given.is_some_and(|tokens| tokens > 0);
    let sliding = |period: u64, tokens: Option<u64>| {
        let tokens = tokens.filter(|tokens| *tokens > 0)?;
        Some(Some(SlidingWindow { period, tokens }))
    };
    let window = match header.architecture()? {
        "gemma2" => sliding(2, given_or_default)?,
        "gpt-oss" => sliding(2, given)?,
        "gemma3" | "olmo2" if !is_given => None,
        "gemma3" => sliding(6, given)?,
        "gemma3n" => sliding(5, given)?,
        "olmo2" | "cohere2" => sliding(4, given)?,
        // Only the model of 32 billion parameters has a window.
        "exaone4" if layer_count == 64 => sliding(4, given_or_default)?,
        "exaone4" => None,
        // llama.cpp ignores the window in its file.
        "phi3" => None,
        // These have no window: one in the file is unexpected, and makes the size unknown.
        "llama" | "qwen2" | "qwen2moe" | "qwen2vl" | "qwen3" | "qwen3moe" | "qwen3vl"
        | "qwen3vlmoe" | "mistral3" | "phi2" | "gemma" | "starcoder" | "starcoder2" | "falcon"
        | "gpt2" | "gptneox" | "stablelm" | "internlm2" | "command-r" | "olmo" | "olmoe"
        | "openelm" | "deci" | "deepseek" | "exaone" | "granite" | "granitemoe" | "smollm3"
        | "arcee" | "ernie4_5" | "hunyuan-dense" | "seed_oss" | "glm4" | "nemotron" | "minicpm"
        | "bloom" | "mpt" | "baichuan" | "chatglm" | "dbrx" | "xverse" | "orion"
            if !is_given =>
        {
            None
        }
        _ => return None,
    };
    // Only some builds use the pattern in the file, so it must agree.
    let has_layer = |layer| window.is_some_and(|window| window.has_layer(layer));
    let agrees = match header.model_value("attention.sliding_window_pattern") {
        None => true,
        Some(HeaderValue::Integer(period)) => window.is_some_and(|window| window.period == *period),
        Some(HeaderValue::Array(pattern)) => {
            let pattern = pattern.iter().map(|slides| *slides != 0);
            (0..layer_count).map(has_layer).eq(pattern)
        }
        Some(_) => false,
    };
    agrees.then_some(window)
}

fn integer(header: &ModelHeader, key: &str) -> Option<u64> {
    match header.model_value(key)? {
        HeaderValue::Integer(number) => Some(*number).filter(|number| *number < 1 << 40),
        _ => None,
    }
}

/// A number for each layer; the file has one for all of them, or an array.
fn per_layer(header: &ModelHeader, key: &str, layer_count: u64) -> Option<Vec<u64>> {
    let layer_count = usize::try_from(layer_count).ok()?;
    let numbers = match header.model_value(key)? {
        HeaderValue::Integer(number) => vec![*number; layer_count],
        HeaderValue::Array(numbers) => numbers.clone(),
        _ => return None,
    };
    let is_valid = numbers.len() == layer_count && numbers.iter().all(|number| *number < 1 << 20);
    is_valid.then_some(numbers)
}

#[cfg(test)]
mod tests;
