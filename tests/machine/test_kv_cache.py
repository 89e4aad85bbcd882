"""The size of the KV cache is what the same server prints of it."""

import models
import pytest
from llama import prompt_of_tokens, server_post
from servers import check

MIB = 1 << 20

ARGUMENTS = {
    "two slots apart": "-c 4096 -np 2",
    "four slots, one cache": "-c 4096",
    "one slot": "-c 2048 -np 1",
    "three slots, one cache": "-c 3000 -np 3 -kvu",
    "three slots apart, odd": "-c 3000 -np 3",
    "window as large as the context": "-c 4096 -np 2 --swa-full",
    "8 bits": "-c 4096 -np 2 -ctk q8_0 -ctv q8_0",
    "4 and 5 bits": "-c 4096 -np 2 -ctk q4_0 -ctv q5_1 -ub 128",
    "32 bits, no flash attention": "-c 2048 -np 2 -ctk f32 -fa off",
    "small batch": "-c 8192 -np 2 -b 64",
    "more than the model was trained for": "-c 40000 -np 1 -ctk q4_0 -ctv q4_0",
    "the model's own context": "-np 2 -ctk q4_0 -ctv iq4_nl",
}

MODELS = {
    "llama": {},
    "llama, as many keys as heads": {"kv_heads": 4},
    "qwen3": {"kv_heads": 1, "head_size": 64},
    "gemma2": {"window": 300},
    "cohere2": {"layers": 9, "window": 512},
    "olmo2": {"layers": 9, "window": 512},
    "openelm": {"heads": [2, 4, 4, 8, 2, 4], "kv_heads": [1, 2, 2, 4, 1, 2]},
}


def assert_equal(server, values):
    sizes = server.cache_sizes()
    assert sizes, "the server has printed no size"
    # Each line is rounded to a hundredth.
    rounding = 0.005 * len(sizes) + 1e-6
    assert values["kv_cache_limit_bytes"] / MIB == pytest.approx(sum(sizes), abs=rounding)
    print(f"printed {sum(sizes):.2f} MiB, told {values['kv_cache_limit_bytes'] / MIB:.4f} MiB")


@pytest.mark.parametrize("arguments", ARGUMENTS.values(), ids=ARGUMENTS.keys())
def test_gemma_under_many_arguments(start_program, arguments):
    server = start_program("-lv", "4", *arguments.split())
    assert_equal(server, check(server.url)[1])


def test_variables_count_as_arguments_do(start_program):
    variables = {
        "LLAMA_ARG_CTX_SIZE": "2048",
        "LLAMA_ARG_N_PARALLEL": "4",
        "LLAMA_ARG_KV_UNIFIED": "1",
        "LLAMA_ARG_CACHE_TYPE_K": "q8_0",
    }
    server = start_program("-lv", "4", environment=variables)
    assert_equal(server, check(server.url)[1])


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("arguments", ["-c 4096 -np 2", "-c 4096 -np 3 -kvu -ctk q8_0", "-c 2048 -np 2 -fa off"])
def test_other_architectures(start_program, tmp_path, name, arguments):
    architecture = name.split(",")[0]
    models.write(tmp_path / "model.gguf", architecture, **MODELS[name])
    # A path as given on the command line: below the server's own folder.
    server = start_program("-lv", "4", *arguments.split(), model="model.gguf")
    assert_equal(server, check(server.url)[1])


def test_what_cannot_be_computed_is_absent(start_program, tmp_path):
    """A window in a file of an architecture that has none, as far as is known."""
    models.write(tmp_path / "model.gguf", "qwen3", window=512)
    server = start_program("-c", "4096", "-np", "2", model="model.gguf")
    server_post(server, "/completion", {"prompt": "aaaa", "n_predict": 2})
    _, values = check(server.url)
    assert "kv_cache_limit_bytes" not in values
    assert 0 < values["kv_cache_usage_ratio"] < 0.01
    assert values["memory_usage_bytes"] > 0


def test_tokens_in_the_slots_are_what_is_used(start_program):
    server = start_program("-c", "4096", "-np", "2")
    server.stream(60, prompt=prompt_of_tokens(server, 640)).wait()
    _, values = check(server.url)
    tokens = values["context_size_tokens"]
    assert tokens > 600
    # 3 layers see all of the context, 15 a window that is larger than that; 1 KiB a layer.
    assert values["kv_cache_usage_bytes"] == tokens * 18 * 1024
    assert values["kv_cache_usage_ratio"] == pytest.approx(tokens / 4096)
