"""A server that is killed and started again: its second life is a new one."""

import time

INTERVAL = 0.25
TIMEOUT = 1.0
PROMPT_TOKENS = 5


def test_killed_and_restarted(one_core, start_server, start_exporter):
    server = start_server()
    tokens = server.tokens_for(seconds=1)
    exporter = start_exporter(server.url, interval=f"{INTERVAL}s", timeout=f"{TIMEOUT}s")
    idle = exporter.wait_for_status("idle")
    whole = server.stream(tokens).wait()
    exporter.wait_for(lambda poll: poll.value("generated_tokens_total") == 24 + tokens)

    # In the middle of a stream, so that there are rates and live tokens to forget.
    cut = server.stream(3000).wait_for_tokens(20)
    killed_at = time.monotonic()
    server.kill()
    down = exporter.poll_begun_after(killed_at)
    assert down.value("up") == 0
    assert down.model_series == set()

    server.start()
    loading = exporter.wait_for_status("loading", since=down.seen)
    assert loading.value("up") == 1
    assert loading.value("generated_tokens_total") is None
    back = exporter.wait_for_status("idle", since=loading.seen)
    assert back.value("up") == 1
    assert back.value("generated_tokens_total") == 0
    for poll in exporter.between(down, loading):
        assert poll is loading or (poll.value("up"), poll.model_series) == (0, set())

    renewed = server.stream(10).wait()
    done = exporter.poll_begun_after(renewed.ended_at)
    assert done.value("generated_tokens_total") == 10
    assert done.status == "idle"

    # Between two polls a busy machine may let the server catch up.
    fastest = 5 * max(whole.tokens_per_second, cut.tokens_per_second, renewed.tokens_per_second)
    polls = exporter.between(idle, done)
    for previous, poll in zip([idle, *polls], polls):
        assert 0 <= (poll.value("tokens_per_second") or 0) <= fastest
        # Read at some moments within each of two polls, which are at least so far from each other.
        apart = max(poll.begun - previous.seen, 0)
        assert 0 <= (poll.value("prompt_tokens_per_second") or 0) * apart <= PROMPT_TOKENS
        for counter in ("generated_tokens_total", "prompt_tokens_total", "decode_calls_total"):
            assert (poll.value(counter) or 0) >= 0
