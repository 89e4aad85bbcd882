"""The exported KV cache size equals the size that the server prints."""

import pytest

from support import model_files
from support.exporter import run_check

MIB = 1 << 20

ARGUMENTS = {
    "two slots, separate": "-c 4096 -np 2",
    "four slots, one cache": "-c 4096",
    "one slot": "-c 2048 -np 1",
    "three slots, one cache": "-c 3000 -np 3 -kvu",
    "three slots, separate, odd": "-c 3000 -np 3",
    "full-size sliding window": "-c 4096 -np 2 --swa-full",
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


def assert_size_as_printed(server):
    exported = run_check(server.url).value("kv_cache_limit_bytes") / MIB
    sizes = server.kv_cache_mebibytes()
    assert sizes, "the server printed no size"
    # Each line is rounded to a hundredth.
    rounding = 0.005 * len(sizes) + 1e-6
    assert exported == pytest.approx(sum(sizes), abs=rounding)
    print(f"printed {sum(sizes):.2f} MiB, exported {exported:.4f} MiB")


@pytest.mark.parametrize("arguments", ARGUMENTS.values(), ids=ARGUMENTS.keys())
def test_many_arguments(start_program, arguments):
    server = start_program("-lv", "4", *arguments.split())
    assert_size_as_printed(server)


def test_environment_variables(start_program):
    variables = {
        "LLAMA_ARG_CTX_SIZE": "2048",
        "LLAMA_ARG_N_PARALLEL": "4",
        "LLAMA_ARG_KV_UNIFIED": "1",
        "LLAMA_ARG_CACHE_TYPE_K": "q8_0",
    }
    server = start_program("-lv", "4", environment=variables)
    assert_size_as_printed(server)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("arguments", ["-c 4096 -np 2", "-c 4096 -np 3 -kvu -ctk q8_0", "-c 2048 -np 2 -fa off"])
def test_other_architectures(start_program, tmp_path, name, arguments):
    architecture = name.split(",")[0]
    model_files.write(tmp_path / "model.gguf", architecture, **MODELS[name])
    # A path relative to the server's working directory.
    server = start_program("-lv", "4", *arguments.split(), model="model.gguf")
    assert_size_as_printed(server)


def test_an_unknown_size_is_absent(start_program, tmp_path):
    """A sliding window in an architecture that is not known to have one."""
    model_files.write(tmp_path / "model.gguf", "qwen3", window=512)
    server = start_program("-c", "4096", "-np", "2", model="model.gguf")
    server.post("/completion", {"prompt": "aaaa", "n_predict": 2})
    report = run_check(server.url)
    assert report.value("kv_cache_limit_bytes") is None
    assert 0 < report.value("kv_cache_usage_ratio") < 0.01
    assert report.value("memory_usage_bytes") > 0


def test_usage_is_the_tokens_in_the_slots(start_program):
    server = start_program("-c", "4096", "-np", "2")
    server.stream(60, prompt=server.prompt_of_tokens(640)).wait()
    report = run_check(server.url)
    tokens = report.value("context_size_tokens")
    assert tokens > 600
    # 3 layers cache the whole context, 15 a sliding window that is larger than it; 1 KiB a token and layer.
    assert report.value("kv_cache_usage_bytes") == tokens * 18 * 1024
    assert report.value("kv_cache_usage_ratio") == pytest.approx(tokens / 4096)
