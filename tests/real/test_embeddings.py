"""An embedding server. Before b10566 its counters leave out the tokens of embeddings."""

from support.llama_server import ANSWERS_WHILE_BUSY

WARNING = "/metrics does not count the prompt tokens"


def test_prompt_tokens_are_exported_where_the_server_counts_them(build, one_core, start_server, start_exporter):
    server = start_server("--embeddings")
    exporter = start_exporter(server.url, interval="250ms")
    exporter.wait_for_status("idle")
    for number in range(6):
        server.post("/v1/embeddings", {"input": f"Sentence number {number} of six, which nobody reads"})
    counted = server.counter("prompt_tokens_total")
    assert server.counter("n_decode_total") > 0
    done = exporter.wait_for(lambda poll: poll.status == "idle" and poll.value("decode_calls_total"))
    done = exporter.poll_started_after(done.ended_before)

    if build < ANSWERS_WHILE_BUSY:
        assert counted == 0
        for name in ("prompt_tokens_total", "prompt_seconds_total", "prompt_tokens_per_second"):
            assert done.value(name) is None, name
        assert WARNING in exporter.log
    else:
        assert done.value("prompt_tokens_total") == counted > 0
        assert WARNING not in exporter.log
