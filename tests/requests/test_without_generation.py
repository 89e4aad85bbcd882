"""Requests that generate nothing: their prompt counts, and no time per token."""

from llama import server_post
from watch import Program, wait_until


def test_an_embedding_counts_its_prompt(start_server, watch, tmp_path):
    log = tmp_path / "server.log"
    server = start_server(Program(log, "--embeddings", "--pooling", "mean"))
    exporter = watch(server.url, "--log-file", log)
    wait_until(exporter.is_following, "the log is followed")
    prompts = [" ".join(["rain"] * number) for number in (1, 5, 40)]
    used = [server_post(server, "/v1/embeddings", {"input": text})["usage"]["prompt_tokens"] for text in prompts]
    wait_until(lambda: exporter.log("request_prompt_tokens_count") == 3, "all are counted")
    values = exporter.values()
    assert values["request_prompt_tokens_sum", "log"] == sum(used)
    for name in ("first_token_latency_seconds", "time_per_output_token_seconds", "request_generated_tokens"):
        assert values[f"{name}_count", "log"] == 0, name
    assert values["request_cancellations_total", "log"] == 0


def test_a_prompt_alone_counts_no_time_per_token(start_server, watch, tmp_path):
    log = tmp_path / "server.log"
    server = start_server(Program(log))
    exporter = watch(server.url, "--log-file", log)
    wait_until(exporter.is_following, "the log is followed")
    for number in (0, 1):
        timings = server_post(server, "/completion", {"prompt": "It rains", "n_predict": number})["timings"]
        wait_until(lambda: exporter.log("request_prompt_tokens_count") == number + 1, "it is counted")  # noqa: B023
        assert timings["predicted_n"] <= 1
    assert exporter.log("time_per_output_token_seconds_count") == 0
    assert exporter.log("request_cancellations_total") == 0
