"""Small model files with random weights that a real llama-server loads.

Their output is noise; their KV caches have the shapes of their architectures. Written with PyPI's gguf,
in the layout of llama.cpp's converters.
"""

import gguf
import numpy as np

EMBEDDING = 128
FEED_FORWARD = 256
CONTEXT = 8192


def write(path, architecture, layers=6, heads=4, kv_heads=2, head_size=32, window=None):
    """Writes a model; `heads` and `kv_heads` may be lists with a number for each layer."""
    writer = gguf.GGUFWriter(str(path), architecture)
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(EMBEDDING)
    writer.add_block_count(layers)
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_key_length(head_size)
    writer.add_value_length(head_size)
    writer.add_rope_dimension_count(head_size)
    writer.add_feed_forward_length([FEED_FORWARD] * layers if isinstance(heads, list) else FEED_FORWARD)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_layer_norm_eps(1e-5)
    if architecture == "cohere2":
        writer.add_logit_scale(0.25)
    if window:
        writer.add_sliding_window(window)

    tokens = ["<unk>", "<s>", "</s>"] + [f"<0x{byte:02X}>" for byte in range(256)] + ["a", "b"]
    kinds = [2, 3, 3] + [6] * 256 + [1, 1]
    writer.add_tokenizer_model("llama")
    writer.add_token_list([token.encode() for token in tokens])
    writer.add_token_scores([0.0] * len(tokens))
    writer.add_token_types(kinds)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)

    random = np.random.default_rng(1)

    def matrix(name, rows, columns):
        writer.add_tensor(name, (random.standard_normal((rows, columns)) * 0.05).astype(np.float16))

    def vector(name, size):
        writer.add_tensor(name, np.ones(size, dtype=np.float32))

    def of(number, layer):
        return number[layer] if isinstance(number, list) else number

    matrix("token_embd.weight", len(tokens), EMBEDDING)
    vector("output_norm.weight", EMBEDDING)
    if architecture in ("llama", "qwen3", "olmo2"):
        matrix("output.weight", len(tokens), EMBEDDING)
    for layer in range(layers):
        block = f"blk.{layer}."
        n_heads, n_kv = of(heads, layer), of(kv_heads, layer)
        if architecture != "olmo2":
            vector(block + "attn_norm.weight", EMBEDDING)
        if architecture == "openelm":
            matrix(block + "attn_qkv.weight", (n_heads + 2 * n_kv) * head_size, EMBEDDING)
        else:
            matrix(block + "attn_q.weight", n_heads * head_size, EMBEDDING)
            matrix(block + "attn_k.weight", n_kv * head_size, EMBEDDING)
            matrix(block + "attn_v.weight", n_kv * head_size, EMBEDDING)
        matrix(block + "attn_output.weight", EMBEDDING, n_heads * head_size)
        if architecture in ("qwen3", "openelm"):
            vector(block + "attn_q_norm.weight", head_size)
            vector(block + "attn_k_norm.weight", head_size)
        if architecture == "olmo2":
            vector(block + "attn_q_norm.weight", n_heads * head_size)
            vector(block + "attn_k_norm.weight", n_kv * head_size)
        if architecture in ("gemma2", "olmo2"):
            vector(block + "post_attention_norm.weight", EMBEDDING)
            vector(block + "post_ffw_norm.weight", EMBEDDING)
        if architecture not in ("cohere2", "olmo2"):
            vector(block + "ffn_norm.weight", EMBEDDING)
        matrix(block + "ffn_gate.weight", FEED_FORWARD, EMBEDDING)
        matrix(block + "ffn_up.weight", FEED_FORWARD, EMBEDDING)
        matrix(block + "ffn_down.weight", EMBEDDING, FEED_FORWARD)

    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
