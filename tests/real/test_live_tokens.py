"""The token counter and rate follow a stream while it runs, token by token."""

import pytest

from support.live_tokens import describe, follow

# Without /slots the exporter derives live tokens from the decode calls in /metrics, which include
# batches of the prompt: the counter may be off by so many tokens.
TOLERANCE = {"slots": 0, "no-slots": 3}


@pytest.mark.parametrize("slots", ["slots", "no-slots"])
def test_one_long_stream(build, slots, one_core, start_server, start_exporter):
    server = start_server(*(["--no-slots"] if slots == "no-slots" else []))
    tokens = server.tokens_for(seconds=3)
    exporter = start_exporter(server.url, interval="500ms")
    idle = exporter.wait_for_status("idle")
    assert idle.value("generated_tokens_total") == server.counter("tokens_predicted_total") > 0

    stream = server.stream(tokens).wait()
    done, counted, highest = follow(exporter, stream, idle, TOLERANCE[slots])

    assert counted == max(tokens, highest)
    if slots == "slots":
        assert counted == tokens
    assert done.status == "idle"
    assert exporter.poll_started_after(done.ended_before).value("tokens_per_second") == 0


def test_batch_size_and_active_tokens_are_those_of_work(build, one_core, start_server, start_exporter):
    """An idle server has no batch size, and its slots keep tokens that are not active."""
    server = start_server()
    tokens = server.tokens_for(seconds=2)
    exporter = start_exporter(server.url, interval="250ms")
    idle = exporter.wait_for_status("idle")
    stream = server.stream(tokens).wait()
    done = exporter.poll_started_after(stream.ended_at)
    after = exporter.poll_started_after(done.ended_before)

    reports_slot_tokens = build >= 9294
    during = [poll for poll in exporter.between(idle, done) if stream.streaming_during(poll, poll)]
    assert len(during) >= 3
    for previous, poll in zip(during, during[1:]):
        # One token a call, and a prompt of few tokens at most.
        assert 0.8 <= poll.value("batch_size") <= 1.2, describe(poll, stream)
        if reports_slot_tokens:
            received = stream.received(previous.ended_after)
            assert received <= poll.value("context_active_tokens") <= poll.value("context_size_tokens")
    assert after.value("batch_size") is None
    assert after.value("context_active_tokens") == (0 if reports_slot_tokens else None)
    if reports_slot_tokens:
        assert after.value("context_size_tokens") >= tokens
    assert after.value("model_training_context_tokens") == 32768
