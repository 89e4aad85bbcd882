"""A server of embeddings: before b10566 it counts none of their tokens."""

from llama import ANSWERS_WHILE_BUSY, server_post


def test_prompt_tokens_are_shown_where_they_are_counted(build, one_core, start_server, start_exporter):
    server = start_server(embeddings=True)
    exporter = start_exporter(server.url, interval="250ms")
    exporter.wait_for_status("idle")
    for number in range(6):
        server_post(server, "/v1/embeddings", {"input": f"Sentence number {number} of six, which nobody reads"})
    counted = server.counter("prompt_tokens_total")
    assert server.counter("n_decode_total") > 0
    done = exporter.wait_for(lambda poll: poll.status == "idle" and poll.value("decode_calls_total"))
    done = exporter.poll_begun_after(done.seen)

    if build < ANSWERS_WHILE_BUSY:
        assert counted == 0
        for name in ("prompt_tokens_total", "prompt_seconds_total", "prompt_tokens_per_second"):
            assert done.value(name) is None, name
        assert "/metrics counts no prompt tokens" in exporter.log
    else:
        assert done.value("prompt_tokens_total") == counted > 0
        assert "/metrics counts no prompt tokens" not in exporter.log
