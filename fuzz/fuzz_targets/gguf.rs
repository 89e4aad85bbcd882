//! Any bytes are a header or an error, and a header has a cache or none.
#![no_main]

use std::io::Cursor;

use libfuzzer_sys::fuzz_target;
use llamacpp_exporter::gguf::Header;
use llamacpp_exporter::gguf::kv_cache::{self, Options, Slots};

fuzz_target!(|bytes: &[u8]| {
    let length = bytes.len() as u64;
    if let Ok(header) = Header::parse(&mut Cursor::new(bytes), length, None) {
        let slots = Slots {
            count: 4,
            n_ctx: 4096,
        };
        if let Some(cache) = kv::cache(&header, &Options::default(), slots) {
            assert!(cache.used_bytes(&[1, 2, 3, 4]) <= cache.limit_bytes());
        }
    }
});
