"""The counter and the rate follow a stream token by token, as its client is sent them."""

import pytest

# Without /slots, what is in flight comes from the decode calls in /metrics, and
# those also count batches of prompt.
CLOSE_ENOUGH = {"slots": 0, "no-slots": 3}


@pytest.mark.parametrize("slots", ["slots", "no-slots"])
def test_one_long_stream(build, slots, one_core, start_server, start_exporter):
    server = start_server(slots=slots == "slots")
    tokens = server.tokens_for(seconds=3)
    exporter = start_exporter(server.url, interval="500ms")
    idle = exporter.wait_for_status("idle")
    base = idle.value("generated_tokens_total")
    assert base == server.counter("tokens_predicted_total") > 0

    stream = server.stream(tokens).wait()
    done = exporter.poll_begun_after(stream.ended_at)

    polls = exporter.between(idle, done)
    during = [poll for poll in polls if stream.first_at < poll.after and poll.seen < stream.last_at]
    assert len(during) >= 3
    highest = 0
    previous = idle
    for poll in polls:
        counted = poll.value("generated_tokens_total") - base
        fewest, most = stream.received(previous.after), stream.generated(poll.seen)
        allowed = CLOSE_ENOUGH[slots] if poll.after < stream.last_at else 0
        # A counter can't take back what it was too high by.
        assert fewest - allowed <= counted <= max(most + allowed, highest), describe(poll, stream)
        if poll in during and previous in during:
            slowest, fastest = stream.rates_generated(previous, poll)
            assert 0.85 * slowest <= poll.value("tokens_per_second") <= 1.15 * fastest, describe(poll, stream)
        if poll in during:
            assert poll.status == "running"
            assert poll.value("requests_processing") == 1
        highest = max(highest, counted)
        previous = poll

    assert counted == max(tokens, highest)
    if slots == "slots":
        assert counted == tokens
    assert done.status == "idle"
    assert exporter.poll_begun_after(done.seen).value("tokens_per_second") == 0


def describe(poll, stream):
    return (
        f"poll {poll.number}, which ended {poll.after - stream.sent_at:.3f} to {poll.seen - stream.sent_at:.3f} s"
        f" after the request; the client had received {stream.received(poll.after)} to"
        f" {stream.received(poll.seen)} tokens by then, and was sent {stream.generated(poll.after)} to"
        f" {stream.generated(poll.seen)}"
    )
