//! GGUF model files: what the header says, and the size of the KV cache that follows from it.

pub mod header;
pub mod kv_cache;
