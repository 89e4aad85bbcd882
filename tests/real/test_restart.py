"""A server that is killed and restarted: its counters start at 0 again."""

import time

INTERVAL = 0.25
TIMEOUT = 1.0
PROMPT_TOKENS = 5


def test_killed_and_restarted(one_core, start_server, start_exporter):
    server = start_server()
    tokens = server.tokens_for(seconds=1)
    exporter = start_exporter(server.url, "--timeout", f"{TIMEOUT}s", interval=f"{INTERVAL}s")
    idle = exporter.wait_for_status("idle")
    whole = server.stream(tokens).wait()
    exporter.wait_for(lambda poll: poll.value("generated_tokens_total") == 24 + tokens)

    # In the middle of a stream, so that there are rates and live tokens to discard.
    interrupted = server.stream(3000).wait_for_tokens(20)
    killed_at = time.monotonic()
    server.kill()
    down = exporter.poll_started_after(killed_at)
    assert down.value("up") == 0
    assert down.model_series == set()

    server.start()
    loading = exporter.wait_for_status("loading", since=down.ended_before)
    assert loading.value("up") == 1
    assert loading.value("generated_tokens_total") is None
    loaded = exporter.wait_for_status("idle", since=loading.ended_before)
    assert loaded.value("up") == 1
    assert loaded.value("generated_tokens_total") == 0
    for poll in exporter.between(down, loading):
        assert poll is loading or (poll.value("up"), poll.model_series) == (0, set())

    after_restart = server.stream(10).wait()
    done = exporter.poll_started_after(after_restart.ended_at)
    assert done.value("generated_tokens_total") == 10
    assert done.status == "idle"

    # On a busy machine a delayed server may catch up between two polls.
    fastest = 5 * max(stream.tokens_per_second for stream in (whole, interrupted, after_restart))
    polls = exporter.between(idle, done)
    for previous, poll in zip([idle, *polls], polls):
        assert 0 <= (poll.value("tokens_per_second") or 0) <= fastest
        # The counters were read at some moment within each of the two polls, at least so far apart.
        apart = max(poll.started_after - previous.ended_before, 0)
        assert 0 <= (poll.value("prompt_tokens_per_second") or 0) * apart <= PROMPT_TOKENS
        for counter in ("generated_tokens_total", "prompt_tokens_total", "decode_calls_total"):
            assert (poll.value(counter) or 0) >= 0
