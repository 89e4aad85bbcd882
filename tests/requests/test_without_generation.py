"""Requests that generate nothing: their prompt is counted, and no time per token."""

from support.request_log import log_value
from support.wait import wait_for


def test_an_embedding_counts_its_prompt(start_server, follow):
    server = start_server("program", "--embeddings", "--pooling", "mean")
    exporter = follow(server)
    prompts = [" ".join(["rain"] * number) for number in (1, 5, 40)]
    tokens = [server.post("/v1/embeddings", {"input": text})["usage"]["prompt_tokens"] for text in prompts]
    wait_for(lambda: log_value(exporter, "request_prompt_tokens_count") == 3, "three requests")
    scrape = exporter.exposition()
    assert scrape.value("request_prompt_tokens_sum", source="log") == sum(tokens)
    for name in ("first_token_latency_seconds", "time_per_output_token_seconds", "request_generated_tokens"):
        assert scrape.value(f"{name}_count", source="log") == 0, name
    assert scrape.value("request_cancellations_total", source="log") == 0
    # More tokens than a batch can have.
    code = server.post("/v1/embeddings", {"input": " ".join(["rain"] * 800)})["error"]["code"]
    wait_for(lambda: log_value(exporter, "request_errors_total", code=str(code)) == 1, f"an error {code}")
    scrape = exporter.exposition()
    for outcome, requests in {"ok": 3, "error": 1, "cancelled": 0, "truncated": 0}.items():
        assert scrape.value("requests_total", source="log", outcome=outcome) == requests, outcome


def test_a_request_of_at_most_one_token_has_no_time_per_token(start_server, follow):
    server = start_server()
    exporter = follow(server)
    for number in (0, 1):
        timings = server.post("/completion", {"prompt": "It rains", "n_predict": number})["timings"]
        wait_for(lambda: log_value(exporter, "request_prompt_tokens_count") == number + 1, "the request")  # noqa: B023
        assert timings["predicted_n"] <= 1
    assert log_value(exporter, "time_per_output_token_seconds_count") == 0
    assert log_value(exporter, "request_cancellations_total") == 0
