"""The token counter and rate follow a stream while it runs, token by token."""

import pytest

# Without /slots the exporter derives live tokens from the decode calls in /metrics, which include
# batches of the prompt: the counter may be off by so many tokens.
TOLERANCE = {"slots": 0, "no-slots": 3}


@pytest.mark.parametrize("slots", ["slots", "no-slots"])
def test_one_long_stream(build, slots, one_core, start_server, start_exporter):
    server = start_server(*(["--no-slots"] if slots == "no-slots" else []))
    tokens = server.tokens_for(seconds=3)
    exporter = start_exporter(server.url, interval="500ms")
    idle = exporter.wait_for_status("idle")
    base = idle.value("generated_tokens_total")
    assert base == server.counter("tokens_predicted_total") > 0

    stream = server.stream(tokens).wait()
    done = exporter.poll_started_after(stream.ended_at)

    polls = exporter.between(idle, done)
    during = [poll for poll in polls if stream.streaming_during(poll, poll)]
    assert len(during) >= 3
    highest = 0
    for previous, poll in zip([idle, *polls], polls):
        counted = poll.value("generated_tokens_total") - base
        fewest, most = stream.received(previous.ended_after), stream.generated(poll.ended_before)
        tolerance = TOLERANCE[slots] if poll.ended_after < stream.last_at else 0
        # A counter never falls, even where it was too high.
        assert fewest - tolerance <= counted <= max(most + tolerance, highest), describe(poll, stream)
        if poll in during:
            if previous in during:
                slowest, fastest = stream.rates_generated(previous, poll)
                assert 0.85 * slowest <= poll.value("tokens_per_second") <= 1.15 * fastest, describe(poll, stream)
            assert poll.status == "running"
            assert poll.value("requests_processing") == 1
        highest = max(highest, counted)

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


def describe(poll, stream):
    return (
        f"poll {poll.number} ended {poll.ended_after - stream.sent_at:.3f} to"
        f" {poll.ended_before - stream.sent_at:.3f} s after the request; by then the client had received {stream.received(poll.ended_after)} to"
        f" {stream.received(poll.ended_before)} tokens, and the server had sent {stream.generated(poll.ended_after)} to"
        f" {stream.generated(poll.ended_before)}"
    )
