"""Where batches take longer than a poll, no token is counted twice."""

import time
from concurrent.futures import ThreadPoolExecutor

from support.llama_server import ANSWERS_WHILE_BUSY


def test_an_idle_servers_counters_are_exported_as_they_are(build, one_core, start_server, start_exporter):
    """More requests than slots, with prompts of several batches; every answer is complete."""
    server = start_server("--batch-size", 64, parallel=2)
    prompts = [server.prompt_of_tokens(tokens) for tokens in (200, 5, 330, 90, 260, 12, 150, 40)]
    exporter = start_exporter(server.url, interval="100ms")
    idle = exporter.wait_for_status("idle")

    def complete(number):
        request = {"prompt": prompts[number], "n_predict": (7, 20, 31, 12)[number % 4], "cache_prompt": False}
        return server.post("/completion", request)["timings"]

    with ThreadPoolExecutor(6) as clients:
        answers = list(clients.map(complete, range(len(prompts))))
    done = exporter.wait_for_status("idle", since=exporter.poll_started_after(time.monotonic()).ended_before)

    for exported, counted, of_answer in [
        ("prompt_tokens_total", "prompt_tokens_total", "prompt_n"),
        ("generated_tokens_total", "tokens_predicted_total", "predicted_n"),
    ]:
        assert done.value(exported) == server.counter(counted)
        assert done.value(exported) - idle.value(exported) == sum(answer[of_answer] for answer in answers)
    if build >= ANSWERS_WHILE_BUSY:
        # Before that, most polls are late, and what is known is bridged.
        work = sum(answer["prompt_ms"] + answer["predicted_ms"] for answer in answers) / 1000
        assert 0.7 * work <= done.value("requests_processing_seconds_total") <= 1.3 * work + 1
        assert done.value("requests_deferred_seconds_total") > 0
