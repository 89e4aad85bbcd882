use super::*;

const MIB: u64 = 1 << 20;

fn header(architecture: &str, pairs: &[(&str, &str)]) -> ModelHeader {
    let pairs: Vec<_> = pairs
        .iter()
        .map(|(key, value)| (format!("{architecture}.{key}"), *value))
        .collect();
    let texts = pairs.iter().map(|(key, value)| (key.as_str(), *value));
    ModelHeader::from_texts(texts.chain([("general.architecture", architecture)]))
}

/// gemma-3-270m.
fn gemma() -> ModelHeader {
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

fn slots(count: u64, n_ctx: u64) -> SlotLayout {
    SlotLayout { count, n_ctx }
}

#[test]
fn sizes_match_those_that_llama_server_prints() {
    let given = CacheOptions {
        ctx_size: Some(4096),
        ..CacheOptions::default()
    };
    let two = CacheOptions {
        parallel: Some(2),
        ..given.clone()
    };
    let cache = |options: &CacheOptions, s| KvCache::new(&gemma(), options, s).unwrap();
    assert_eq!(cache(&two, slots(2, 2048)).total_bytes(), 42 * MIB);
    let four = cache(&given, slots(4, 4096));
    assert_eq!(four.total_bytes(), 12 * MIB + 37 * MIB + MIB / 2);
    assert_eq!((four.streams, four.sliding.cells), (1, 2560));
    // -c 1000 -np 3 -kvu -ub 64 -ctk q8_0 -ctv q4_0: 1.22 + 6.09 MiB.
    let odd = CacheOptions {
        ctx_size: Some(1000),
        parallel: Some(3),
        unified: true,
        ubatch: Some(64),
        type_k: CacheType::named("q8_0").unwrap(),
        type_v: CacheType::named("q4_0").unwrap(),
        ..CacheOptions::default()
    };
    let bytes = cache(&odd, slots(3, 1024)).total_bytes();
    assert_eq!(bytes, (272 + 144) * 18 * 1024);
    let full = CacheOptions {
        swa_full: true,
        ..two
    };
    assert_eq!(cache(&full, slots(2, 2048)).total_bytes(), 72 * MIB);
}

#[test]
fn used_cells_are_limited_to_those_allocated() {
    let options = CacheOptions {
        parallel: Some(2),
        ..CacheOptions::default()
    };
    let cache = KvCache::new(&gemma(), &options, slots(2, 2048)).unwrap();
    assert_eq!(cache.used_bytes(&[0, 0]), 0);
    assert_eq!(cache.used_bytes(&[100, 0]), 100 * 18 * 1024);
    assert_eq!(cache.used_bytes(&[2000, 0]), (2000 * 3 + 1024 * 15) * 1024);
    assert_eq!(cache.used_bytes(&[9999, 9999]), cache.total_bytes());
}

#[test]
fn layers_may_differ_in_their_number_of_heads() {
    let mut texts = header(
        "openelm",
        &[
            ("block_count", "3"),
            ("embedding_length", "64"),
            ("attention.key_length", "16"),
            ("attention.value_length", "16"),
        ],
    );
    let list = |list: &[u64]| HeaderValue::Array(list.to_vec());
    let key = |key: &str| format!("openelm.attention.{key}");
    texts.values.insert(key("head_count"), list(&[4, 4, 8]));
    texts.values.insert(key("head_count_kv"), list(&[1, 2, 4]));
    let options = CacheOptions {
        parallel: Some(1),
        ..CacheOptions::default()
    };
    let bytes = |options: &CacheOptions| {
        let cache = KvCache::new(&texts, options, slots(1, 256));
        cache.unwrap().full.cell_bytes
    };
    assert_eq!(bytes(&options), 7 * 16 * 2 * 2);
    let transposed = CacheOptions {
        transposed_v: true,
        ..options
    };
    assert_eq!(bytes(&transposed), (7 + 12) * 16 * 2);
    texts.values.insert(key("head_count_kv"), list(&[1, 2]));
    assert_eq!(KvCache::new(&texts, &transposed, slots(1, 256)), None);
}

#[test]
fn unknown_layouts_have_no_size() {
    let plain = [
        ("block_count", "2"),
        ("embedding_length", "64"),
        ("attention.head_count", "4"),
    ];
    let cache = |architecture: &str, more: &[(&str, &str)]| {
        let pairs = [&plain[..], more].concat();
        KvCache::new(
            &header(architecture, &pairs),
            &CacheOptions::default(),
            slots(4, 256),
        )
    };
    assert_eq!(cache("llama", &[]).unwrap().total_bytes(), 256 * 2 * 256);
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
    // A window that is missing in the file.
    assert_eq!(cache("gpt-oss", &[]), None);
    let rows_of_16 = [("attention.key_length", "16")];
    let options = CacheOptions {
        type_k: CacheType::named("q8_0").unwrap(),
        ..CacheOptions::default()
    };
    let pairs = [&plain[..], &rows_of_16, &[("attention.head_count_kv", "1")]].concat();
    let header = header("llama", &pairs);
    assert_eq!(KvCache::new(&header, &options, slots(4, 256)), None);
}

#[test]
fn no_number_overflows() {
    let numbers = [1, 3, 255, 1 << 20, (1 << 40) - 1, u64::MAX - 1, u64::MAX];
    let header = |number: u64| {
        let number = number.to_string();
        let keys = ["context_length", "embedding_length", "attention.head_count"];
        let more = ["attention.head_count_kv", "attention.sliding_window"];
        let pairs = keys.iter().chain(&more).map(|key| (*key, number.as_str()));
        let pairs: Vec<_> = pairs.chain([("block_count", "512")]).collect();
        header("gemma3", &pairs)
    };
    let headers: Vec<ModelHeader> = numbers.into_iter().map(header).collect();
    let count = numbers.len();
    for index in 0..count.pow(4) {
        let [a, b, c, d] = [0, 1, 2, 3].map(|digit| numbers[index / count.pow(digit) % count]);
        let options = CacheOptions {
            ctx_size: (d % 2 == 0).then_some(a),
            parallel: (a % 2 == 0).then_some(b),
            unified_per_slot: (b % 2 == 0).then_some(c),
            unified: c % 2 == 0,
            batch: Some(d),
            ubatch: Some(c),
            ..CacheOptions::default()
        };
        let slots = slots(b, c);
        let _ = CellLayout::new(Some(&options), slots, Some(d));
        for header in &headers {
            if let Some(cache) = KvCache::new(header, &options, slots) {
                assert!(cache.used_bytes(&[a, b, c, d]) <= cache.total_bytes());
            }
        }
    }
    let largest = LayerGroup {
        cells: u64::MAX,
        cell_bytes: u64::MAX,
    };
    let cache = KvCache {
        streams: 1,
        full: largest,
        sliding: largest,
    };
    assert_eq!(cache.total_bytes(), u64::MAX);
    assert_eq!(cache.used_bytes(&[u64::MAX, u64::MAX]), u64::MAX);
}

#[test]
fn the_number_of_cells_follows_from_the_arguments() {
    let count = |options: Option<&CacheOptions>, s| {
        CellLayout::new(options, s, Some(32768)).map(|layout| (layout.streams, layout.cells))
    };
    assert_eq!(count(None, slots(1, 1024)), Some((1, 1024)));
    assert_eq!(count(None, slots(2, 1024)), None);
    let options = |ctx_size, parallel, unified| CacheOptions {
        ctx_size,
        parallel,
        unified,
        ..CacheOptions::default()
    };
    let auto = options(None, None, false);
    assert_eq!(count(Some(&auto), slots(4, 32768)), Some((1, 32768)));
    let apart = options(Some(4096), Some(2), false);
    assert_eq!(count(Some(&apart), slots(2, 2048)), Some((2, 2048)));
    // More than the model was trained for is allocated, and not reported.
    let large = options(Some(100_000), Some(2), false);
    assert_eq!(count(Some(&large), slots(2, 32768)), Some((2, 50_176)));
    // With a unified cache, the context of a slot may be limited.
    let capped = |ctx_size, parallel, unified| CacheOptions {
        unified_per_slot: Some(1000),
        ..options(ctx_size, parallel, unified)
    };
    let one = |options: CacheOptions, s| count(Some(&options), s);
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
    // A limit above the cache's size has no effect.
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
    // Arguments that contradict the reported slots give no layout.
    assert_eq!(count(Some(&apart), slots(2, 4096)), None);
    assert_eq!(count(Some(&apart), slots(3, 1365)), None);
    assert_eq!(
        count(Some(&options(None, Some(2), false)), slots(2, 32768)),
        None
    );
}
