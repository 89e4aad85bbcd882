//! Any bytes parse to a header or an error, and a header has a KV cache or none.
#![no_main]

use std::io::Cursor;

use libfuzzer_sys::fuzz_target;
use llamacpp_exporter::gguf::header::ModelHeader;
use llamacpp_exporter::gguf::kv_cache::{CacheOptions, KvCache, SlotLayout};

fuzz_target!(|bytes: &[u8]| {
    let length = bytes.len() as u64;
    if let Ok(header) = ModelHeader::parse(&mut Cursor::new(bytes), length, None) {
        let slots = SlotLayout {
            count: 4,
            n_ctx: 4096,
        };
        if let Some(cache) = KvCache::new(&header, &CacheOptions::default(), slots) {
            assert!(cache.used_bytes(&[1, 2, 3, 4]) <= cache.total_bytes());
        }
    }
});
