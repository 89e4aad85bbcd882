//! What a KV cache costs: cells, and bytes a cell, as llama.cpp allocates them.
//!
//! The arithmetic is that of llama.cpp's `llama_kv_cache` and
//! `llama_kv_cache_iswa` (`src/llama-kv-cache*.cpp`), with the sizes that
//! `src/llama-context.cpp` and `tools/server` give them; it is held against the
//! sizes that a real server prints. What is not known to follow it (recurrent
//! and hybrid models, latent attention, unknown windows) has no layout.

use crate::gguf::{Header, Value};

/// What decides about a cache besides the model: the server's arguments.
#[derive(Clone, Debug, PartialEq)]
pub struct Options {
    /// `--ctx-size`, where given and not 0.
    pub ctx_size: Option<u64>,
    /// `--parallel`, where given and not automatic.
    pub parallel: Option<u64>,
    /// `--kv-unified-per-slot`, where given and not 0.
    pub per_slot: Option<u64>,
    /// `--kv-unified`, or its opposite.
    pub unified: bool,
    /// `--cache-type-k`.
    pub type_k: CacheType,
    /// `--cache-type-v`.
    pub type_v: CacheType,
    /// `--swa-full`.
    pub swa_full: bool,
    /// `--batch-size`.
    pub batch: u64,
    /// `--ubatch-size`.
    pub ubatch: u64,
    /// `--flash-attn off`: V is then stored transposed.
    pub transposed: bool,
}

impl Default for Options {
    /// llama-server without arguments.
    fn default() -> Options {
        Options {
            ctx_size: None,
            parallel: None,
            per_slot: None,
            unified: false,
            type_k: CacheType::F16,
            type_v: CacheType::F16,
            swa_full: false,
            batch: 2048,
            ubatch: 512,
            transposed: false,
        }
    }
}

/// How the server says that it has divided its context.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slots {
    /// Slots there are (`total_slots`).
    pub count: u64,
    /// Tokens that fit one of them (`n_ctx`).
    pub n_ctx: u64,
}

/// A type that a cache's values may have (`ggml/src/ggml-common.h` has the blocks).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum CacheType {
    F32,
    F16,
    Bf16,
    Q8_0,
    Q5_0,
    Q5_1,
    Q4_0,
    Q4_1,
    Iq4Nl,
}

impl CacheType {
    /// The type that llama-server's arguments name so.
    pub fn named(name: &str) -> Option<CacheType> {
        Some(match name {
            "f32" => CacheType::F32,
            "f16" => CacheType::F16,
            "bf16" => CacheType::Bf16,
            "q8_0" => CacheType::Q8_0,
            "q5_0" => CacheType::Q5_0,
            "q5_1" => CacheType::Q5_1,
            "q4_0" => CacheType::Q4_0,
            "q4_1" => CacheType::Q4_1,
            "iq4_nl" => CacheType::Iq4Nl,
            _ => return None,
        })
    }

    /// Bytes of `values` values; only whole blocks can be stored.
    fn row_bytes(self, values: u64) -> Option<u64> {
        let (block, bytes): (u64, u64) = match self {
            CacheType::F32 => (1, 4),
            CacheType::F16 | CacheType::Bf16 => (1, 2),
            CacheType::Q8_0 => (32, 34),
            CacheType::Q5_0 => (32, 22),
            CacheType::Q5_1 => (32, 24),
            CacheType::Q4_0 | CacheType::Iq4Nl => (32, 18),
            CacheType::Q4_1 => (32, 20),
        };
        let blocks = values.checked_div(block)?;
        values
            .is_multiple_of(block)
            .then(|| blocks.saturating_mul(bytes))
    }
}

/// Cells, and what one of them costs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    /// Cells of one stream.
    pub cells: u64,
    /// Bytes of one cell, over all the layers of this part.
    pub cell_bytes: u64,
}

impl Part {
    /// Bytes of so many of its cells.
    fn bytes(self, cells: u64) -> u64 {
        cells.saturating_mul(self.cell_bytes)
    }
}

/// The sum, or the largest number where it is larger.
pub fn sum(numbers: impl Iterator<Item = u64>) -> u64 {
    numbers.fold(0, u64::saturating_add)
}

/// A KV cache as it is allocated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cache {
    /// Caches of equal size: one a slot, or one for all.
    pub streams: u64,
    /// Layers that see all of the context.
    pub full: Part,
    /// Layers that see a window of it.
    pub window: Part,
}

impl Cache {
    /// Bytes allocated.
    pub fn limit_bytes(&self) -> u64 {
        [self.full, self.window]
            .iter()
            .map(|part| part.bytes(part.cells).saturating_mul(self.streams))
            .fold(0, u64::saturating_add)
    }

    /// Bytes of the cells that hold tokens, from the tokens in each slot. A
    /// window's cells are all in use once it is full.
    pub fn used_bytes(&self, slots: &[u64]) -> u64 {
        let part = |part: Part| {
            let used = if self.streams == 1 {
                sum(slots.iter().copied()).min(part.cells)
            } else {
                sum(slots.iter().map(|tokens| (*tokens).min(part.cells)))
            };
            part.bytes(used)
        };
        // A server may tell of more slots than it says there are.
        let used = part(self.full).saturating_add(part(self.window));
        used.min(self.limit_bytes())
    }
}

/// How the cells are shared out: known without the model's file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cells {
    /// Caches of equal size.
    pub streams: u64,
    /// Cells of each, for layers that see all of the context.
    pub each: u64,
}

/// The number of cells; `trained` is the model's own context size, where known.
///
/// `None` where the arguments do not say it, or contradict what the server says.
pub fn cells(options: Option<&Options>, slots: Slots, trained: Option<u64>) -> Option<Cells> {
    if slots.count == 0 || slots.n_ctx == 0 {
        return None;
    }
    let unified = match options {
        _ if slots.count == 1 => true,
        None => return None,
        Some(options) => match options.parallel {
            Some(parallel) if parallel != slots.count => return None,
            Some(_) => options.unified,
            // Left to itself, llama-server takes four slots over one cache.
            None => true,
        },
    };
    let streams = if unified { 1 } else { slots.count };
    // Without a size of its own, the cache holds so many tokens for each slot.
    let per_slot = options.and_then(|options| options.per_slot);
    let given = options.and_then(|options| options.ctx_size);
    let given = given.or_else(|| per_slot?.checked_mul(slots.count));
    let by_arguments = given.map(|given| {
        let all = padded(given);
        if unified {
            all
        } else {
            padded(all.checked_div(slots.count).unwrap_or(0))
        }
    });
    // A slot is never told to hold more than the model was trained for, or than it may.
    let most = trained.unwrap_or(u64::MAX);
    let shown = |each: u64| each.min(most).min(per_slot.unwrap_or(u64::MAX));
    let each = match by_arguments {
        Some(each) if shown(each) == slots.n_ctx || each == slots.n_ctx => each,
        Some(_) => return None,
        None if trained.is_none_or(|trained| slots.n_ctx != trained) => slots.n_ctx,
        // All of the model's own context, shared out.
        None if unified => padded(slots.n_ctx),
        None => return None,
    };
    Some(Cells { streams, each })
}

/// The cache of the model that `header` tells of, on a server so called.
pub fn cache(header: &Header, options: &Options, slots: Slots) -> Option<Cache> {
    let layers = layers(header, options)?;
    let trained = trained_context(header);
    let Cells { streams, each } = cells(Some(options), slots, trained)?;
    let sequences = if streams == 1 { slots.count } else { 1 };
    let window_cells = match layers.window {
        None => 0,
        Some(_) if options.swa_full => each,
        Some(window) => {
            let ubatch = match options.ubatch {
                0 => options.batch,
                ubatch => ubatch.min(options.batch),
            };
            let needed = window.checked_mul(sequences)?.checked_add(ubatch)?;
            padded(needed.min(each))
        }
    };
    let cache = Cache {
        streams,
        full: Part {
            cells: each,
            cell_bytes: layers.full_bytes,
        },
        window: Part {
            cells: window_cells,
            cell_bytes: layers.window_bytes,
        },
    };
    // Nothing real is near the limit of the arithmetic.
    let bytes = layers.full_bytes.saturating_add(layers.window_bytes);
    let whole = (streams as f64) * (each as f64) * bytes as f64;
    (whole < 1e18).then_some(cache)
}

/// The context that the model was trained for.
pub fn trained_context(header: &Header) -> Option<u64> {
    number(header, "context_length")
}

fn padded(cells: u64) -> u64 {
    // The largest number is no multiple of 256: one that cannot be rounded up stays as it is.
    cells.checked_next_multiple_of(256).unwrap_or(cells)
}

struct Layers {
    full_bytes: u64,
    window_bytes: u64,
    /// Tokens that the window's layers see.
    window: Option<u64>,
}

/// How the layers of an architecture slide.
enum Sliding {
    /// None do.
    None,
    /// All but the last of so many do.
    Period(u64),
}

impl Sliding {
    fn slides(&self, layer: u64) -> bool {
        match self {
            Sliding::None => false,
            // All but the last of each period.
            Sliding::Period(period) => !layer.saturating_add(1).is_multiple_of(*period),
        }
    }

    /// Whether the file says the same; builds differ in whether they heed it.
    fn agrees(&self, pattern: &Value, layers: u64) -> bool {
        match (self, pattern) {
            (Sliding::Period(period), Value::Number(said)) => period == said,
            (_, Value::List(said)) => {
                said.len() as u64 == layers
                    && (0..)
                        .zip(said)
                        .all(|(layer, said)| self.slides(layer) == (*said != 0))
            }
            _ => false,
        }
    }
}

/// The most layers that llama.cpp takes (`LLAMA_MAX_LAYERS`).
const MOST_LAYERS: u64 = 512;

/// Keys that tell of a cache that is another than the plain one.
const OTHER_CACHES: &[&str] = &[
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

fn layers(header: &Header, options: &Options) -> Option<Layers> {
    let architecture = header.architecture()?;
    let count = number(header, "block_count").filter(|count| (1..=MOST_LAYERS).contains(count))?;
    let is_other = |key: &str| {
        OTHER_CACHES.contains(&key)
            || ["ssm.", "wkv.", "attention.indexer.", "kda."]
                .iter()
                .any(|prefix| key.starts_with(prefix))
    };
    if header.model_keys().any(is_other) {
        return None;
    }
    let (sliding, window) = sliding(header, architecture, count)?;
    let pattern = header.of_model("attention.sliding_window_pattern");
    if !pattern.is_none_or(|pattern| sliding.agrees(pattern, count)) {
        return None;
    }
    let cached = match architecture {
        // The layers after these use the caches of earlier ones.
        "gemma3n" => count.min(20),
        _ => count,
    };

    let heads = per_layer(header, "attention.head_count", count)?;
    let kv_heads = match header.of_model("attention.head_count_kv") {
        None => heads.clone(),
        Some(_) => per_layer(header, "attention.head_count_kv", count)?,
    };
    let embedding = number(header, "embedding_length")?;
    // Where it is not given, it is what the first layer's heads leave.
    let default = || match heads.first() {
        Some(heads) => embedding.checked_div(*heads),
        None => None,
    };
    let length = |key: &str| match header.of_model(key) {
        None => default(),
        Some(_) => number(header, key),
    };
    let key = length("attention.key_length")?;
    let value = length("attention.value_length")?;
    let largest = kv_heads.iter().max()?;

    let mut layers = Layers {
        full_bytes: 0,
        window_bytes: 0,
        window,
    };
    for (index, kv_heads) in (0..cached).zip(&kv_heads) {
        // A transposed V has the same width in every layer.
        let v_heads = if options.transposed {
            largest
        } else {
            kv_heads
        };
        let keys = options.type_k.row_bytes(kv_heads.checked_mul(key)?)?;
        let values = options.type_v.row_bytes(v_heads.checked_mul(value)?)?;
        let sum = match sliding.slides(index) {
            true => &mut layers.window_bytes,
            false => &mut layers.full_bytes,
        };
        *sum = sum.checked_add(keys)?.checked_add(values)?;
    }
    Some(layers)
}

/// Which layers slide, and over how many tokens: fixed for each architecture by
/// llama.cpp's source (`src/models/*.cpp`). `None`: not known.
fn sliding(header: &Header, architecture: &str, layers: u64) -> Option<(Sliding, Option<u64>)> {
    const WINDOW: &str = "attention.sliding_window";
    let given = match header.of_model(WINDOW) {
        None => None,
        Some(_) => Some(number(header, WINDOW)?),
    };
    let some = given.filter(|window| *window > 0);
    let every = |period: u64, window: Option<u64>| {
        window.map(|window| (Sliding::Period(period), Some(window)))
    };
    let full = Some((Sliding::None, None));
    match architecture {
        "gemma2" => every(2, given.or(Some(4096)).filter(|window| *window > 0)),
        "gpt-oss" => every(2, some),
        "gemma3" | "olmo2" | "cohere2" | "gemma3n" => match (architecture, some) {
            ("gemma3", some @ Some(_)) => every(6, some),
            ("olmo2", some @ Some(_)) => every(4, some),
            ("gemma3" | "olmo2", None) => full,
            ("gemma3n", some) => every(5, some),
            (_, some) => every(4, some),
        },
        // Only the model of 32 billion parameters slides.
        "exaone4" if layers == 64 => every(4, given.or(Some(4096)).filter(|window| *window > 0)),
        "exaone4" => full,
        // Its window is in the file and llama.cpp does not use it.
        "phi3" => full,
        "llama" | "qwen2" | "qwen2moe" | "qwen2vl" | "qwen3" | "qwen3moe" | "qwen3vl"
        | "qwen3vlmoe" | "mistral3" | "phi2" | "gemma" | "starcoder" | "starcoder2" | "falcon"
        | "gpt2" | "gptneox" | "stablelm" | "internlm2" | "command-r" | "olmo" | "olmoe"
        | "openelm" | "deci" | "deepseek" | "exaone" | "granite" | "granitemoe" | "smollm3"
        | "arcee" | "ernie4_5" | "hunyuan-dense" | "seed_oss" | "glm4" | "nemotron" | "minicpm"
        | "bloom" | "mpt" | "baichuan" | "chatglm" | "dbrx" | "xverse" | "orion" => match some {
            None => full,
            // A window where none is known of.
            Some(_) => None,
        },
        _ => None,
    }
}

fn number(header: &Header, key: &str) -> Option<u64> {
    match header.of_model(key)? {
        Value::Number(number) => Some(*number).filter(|number| *number < 1 << 40),
        _ => None,
    }
}

/// One number for all layers, or one for each.
fn per_layer(header: &Header, key: &str, layers: u64) -> Option<Vec<u64>> {
    let layers = usize::try_from(layers).ok()?;
    match header.of_model(key)? {
        Value::Number(number) if *number < 1 << 20 => Some(vec![*number; layers]),
        Value::List(list) if list.len() == layers && list.iter().all(|n| *n < 1 << 20) => {
            Some(list.clone())
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn header(architecture: &str, pairs: &[(&str, &str)]) -> Header {
        let pairs: Vec<_> = pairs
            .iter()
            .map(|(key, value)| (format!("{architecture}.{key}"), *value))
            .collect();
        let texts = pairs.iter().map(|(key, value)| (key.as_str(), *value));
        Header::from_texts(texts.chain([("general.architecture", architecture)]))
    }

    /// gemma-3-270m.
    fn gemma() -> Header {
        header(
            "gemma3",
            &[
                ("block_count", "18"),
                ("context_length", "32768"),
                ("embedding_length", "640"),
                ("attention.head_count", "4"),
                ("attention.head_count_kv", "1"),
                ("attention.key_length", "256"),
                ("attention.value_length", "256"),
                ("attention.sliding_window", "512"),
            ],
        )
    }

    fn slots(count: u64, n_ctx: u64) -> Slots {
        Slots { count, n_ctx }
    }

    #[test]
    fn the_sizes_of_gemma_are_those_that_llama_server_prints() {
        let given = Options {
            ctx_size: Some(4096),
            ..Options::default()
        };
        let two = Options {
            parallel: Some(2),
            ..given.clone()
        };
        let cache = |options: &Options, s| cache(&gemma(), options, s).unwrap();
        assert_eq!(cache(&two, slots(2, 2048)).limit_bytes(), 42 * MIB);
        let four = cache(&given, slots(4, 4096));
        assert_eq!(four.limit_bytes(), 12 * MIB + 37 * MIB + MIB / 2);
        assert_eq!((four.streams, four.window.cells), (1, 2560));
        // -c 1000 -np 3 -kvu -ub 64 -ctk q8_0 -ctv q4_0: 1.22 + 6.09 MiB.
        let odd = Options {
            ctx_size: Some(1000),
            parallel: Some(3),
            unified: true,
            ubatch: 64,
            type_k: CacheType::Q8_0,
            type_v: CacheType::Q4_0,
            ..Options::default()
        };
        let bytes = cache(&odd, slots(3, 1024)).limit_bytes();
        assert_eq!(bytes, (272 + 144) * 18 * 1024);
        let full = Options {
            swa_full: true,
            ..two
        };
        assert_eq!(cache(&full, slots(2, 2048)).limit_bytes(), 72 * MIB);
    }

    #[test]
    fn cells_in_use_are_no_more_than_there_are() {
        let options = Options {
            parallel: Some(2),
            ..Options::default()
        };
        let cache = cache(&gemma(), &options, slots(2, 2048)).unwrap();
        assert_eq!(cache.used_bytes(&[0, 0]), 0);
        assert_eq!(cache.used_bytes(&[100, 0]), 100 * 18 * 1024);
        assert_eq!(cache.used_bytes(&[2000, 0]), (2000 * 3 + 1024 * 15) * 1024);
        assert_eq!(cache.used_bytes(&[9999, 9999]), cache.limit_bytes());
    }

    #[test]
    fn layers_may_have_heads_of_their_own_number() {
        let mut texts = header(
            "openelm",
            &[
                ("block_count", "3"),
                ("embedding_length", "64"),
                ("attention.key_length", "16"),
                ("attention.value_length", "16"),
            ],
        );
        let list = |list: &[u64]| Value::List(list.to_vec());
        let key = |key: &str| format!("openelm.attention.{key}");
        texts.values.insert(key("head_count"), list(&[4, 4, 8]));
        texts.values.insert(key("head_count_kv"), list(&[1, 2, 4]));
        let options = Options {
            parallel: Some(1),
            ..Options::default()
        };
        let bytes = |options: &Options| {
            let cache = cache(&texts, options, slots(1, 256));
            cache.unwrap().full.cell_bytes
        };
        assert_eq!(bytes(&options), 7 * 16 * 2 * 2);
        let transposed = Options {
            transposed: true,
            ..options
        };
        assert_eq!(bytes(&transposed), (7 + 12) * 16 * 2);
        texts.values.insert(key("head_count_kv"), list(&[1, 2]));
        assert_eq!(cache(&texts, &transposed, slots(1, 256)), None);
    }

    #[test]
    fn what_cannot_be_computed_has_no_cache() {
        let plain = [
            ("block_count", "2"),
            ("embedding_length", "64"),
            ("attention.head_count", "4"),
        ];
        let cache = |architecture: &str, more: &[(&str, &str)]| {
            let pairs = [&plain[..], more].concat();
            cache(
                &header(architecture, &pairs),
                &Options::default(),
                slots(4, 256),
            )
        };
        assert_eq!(cache("llama", &[]).unwrap().limit_bytes(), 256 * 2 * 256);
        for architecture in ["mamba", "deepseek2", "qwen3next", "gemma4", "no-such"] {
            assert_eq!(cache(architecture, &[]), None, "{architecture}");
        }
        for key in [
            "ssm.state_size",
            "attention.kv_lora_rank",
            "attention.sliding_window",
            "attention.sliding_window_pattern",
            "nextn_predict_layers",
        ] {
            assert_eq!(cache("llama", &[(key, "1")]), None, "{key}");
        }
        // A window that the file does not tell.
        assert_eq!(cache("gpt-oss", &[]), None);
        let rows_of_16 = [("attention.key_length", "16")];
        let options = Options {
            type_k: CacheType::Q8_0,
            ..Options::default()
        };
        let pairs = [&plain[..], &rows_of_16, &[("attention.head_count_kv", "1")]].concat();
        let header = header("llama", &pairs);
        assert_eq!(super::cache(&header, &options, slots(4, 256)), None);
    }

    #[test]
    fn no_number_is_too_large_to_reckon_with() {
        let numbers = [1, 3, 255, 1 << 20, (1 << 40) - 1, u64::MAX - 1, u64::MAX];
        let header = |number: u64| {
            let number = number.to_string();
            let keys = ["context_length", "embedding_length", "attention.head_count"];
            let more = ["attention.head_count_kv", "attention.sliding_window"];
            let pairs = keys.iter().chain(&more).map(|key| (*key, number.as_str()));
            let pairs: Vec<_> = pairs.chain([("block_count", "512")]).collect();
            header("gemma3", &pairs)
        };
        let headers: Vec<Header> = numbers.into_iter().map(header).collect();
        let count = numbers.len();
        for index in 0..count.pow(4) {
            let [a, b, c, d] = [0, 1, 2, 3].map(|digit| numbers[index / count.pow(digit) % count]);
            let options = Options {
                ctx_size: (d % 2 == 0).then_some(a),
                parallel: (a % 2 == 0).then_some(b),
                per_slot: (b % 2 == 0).then_some(c),
                unified: c % 2 == 0,
                batch: d,
                ubatch: c,
                ..Options::default()
            };
            let slots = slots(b, c);
            let _ = cells(Some(&options), slots, Some(d));
            for header in &headers {
                if let Some(cache) = cache(header, &options, slots) {
                    assert!(cache.used_bytes(&[a, b, c, d]) <= cache.limit_bytes());
                }
            }
        }
        let largest = Part {
            cells: u64::MAX,
            cell_bytes: u64::MAX,
        };
        let cache = Cache {
            streams: 1,
            full: largest,
            window: largest,
        };
        assert_eq!(cache.limit_bytes(), u64::MAX);
        assert_eq!(cache.used_bytes(&[u64::MAX, u64::MAX]), u64::MAX);
    }

    #[test]
    fn cells_are_known_from_the_arguments_or_for_a_single_slot() {
        let count = |options: Option<&Options>, s| {
            cells(options, s, Some(32768)).map(|cells| (cells.streams, cells.each))
        };
        assert_eq!(count(None, slots(1, 1024)), Some((1, 1024)));
        assert_eq!(count(None, slots(2, 1024)), None);
        let options = |ctx_size, parallel, unified| Options {
            ctx_size,
            parallel,
            unified,
            ..Options::default()
        };
        let auto = options(None, None, false);
        assert_eq!(count(Some(&auto), slots(4, 32768)), Some((1, 32768)));
        let apart = options(Some(4096), Some(2), false);
        assert_eq!(count(Some(&apart), slots(2, 2048)), Some((2, 2048)));
        // More than the model was trained for is allocated, and not told.
        let large = options(Some(100_000), Some(2), false);
        assert_eq!(count(Some(&large), slots(2, 32768)), Some((2, 50_176)));
        // Of a cache for all, each slot may be given a part.
        let capped = |ctx_size, parallel, unified| Options {
            per_slot: Some(1000),
            ..options(ctx_size, parallel, unified)
        };
        let one = |options: Options, s| count(Some(&options), s);
        assert_eq!(
            one(capped(None, None, false), slots(4, 1000)),
            Some((1, 4096))
        );
        assert_eq!(
            one(capped(None, Some(3), true), slots(3, 1000)),
            Some((1, 3072))
        );
        assert_eq!(
            one(capped(Some(8192), None, false), slots(4, 1000)),
            Some((1, 8192))
        );
        // More than there is: it has no effect.
        assert_eq!(
            one(capped(Some(512), None, false), slots(4, 512)),
            Some((1, 512))
        );
        assert_eq!(
            one(capped(Some(8192), None, false), slots(4, 8192)),
            Some((1, 8192))
        );
        assert_eq!(
            one(capped(None, None, false), slots(4, 4096)),
            Some((1, 4096))
        );
        assert_eq!(one(capped(None, Some(3), true), slots(4, 1000)), None);
        // What contradicts the server is not believed.
        assert_eq!(count(Some(&apart), slots(2, 4096)), None);
        assert_eq!(count(Some(&apart), slots(3, 1365)), None);
        assert_eq!(
            count(Some(&options(None, Some(2), false)), slots(2, 32768)),
            None
        );
    }
}
