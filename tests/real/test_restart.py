"""A server that is killed and started again: its second life is a new one."""

import time

INTERVAL = 0.25
TIMEOUT = 1.0
# For what the machine adds: a process that has to wait for a core, and the time between two scrapes.
GRACE = 0.5


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
    down = exporter.wait_for(lambda poll: poll.value("up") == 0)
    assert down.seen - killed_at <= INTERVAL + TIMEOUT + GRACE
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

    fastest = 2 * max(whole.tokens_per_second, cut.tokens_per_second, renewed.tokens_per_second)
    for poll in exporter.between(idle, done):
        assert 0 <= (poll.value("tokens_per_second") or 0) <= fastest
        # A prompt has 5 tokens, and two polls are hardly ever nearer than a tenth of the interval.
        assert 0 <= (poll.value("prompt_tokens_per_second") or 0) <= 5 / (INTERVAL / 10)
        for counter in ("generated_tokens_total", "prompt_tokens_total", "decode_calls_total"):
            assert (poll.value(counter) or 0) >= 0
