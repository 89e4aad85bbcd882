//! GGUF model files: the header, and the size of the KV cache that follows from it.

pub mod header;
pub mod kv_cache;
