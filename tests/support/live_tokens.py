"""Compares the token counter and rate of each poll with the tokens of a stream."""


def follow(exporter, stream, idle, tolerance=0, **labels):
    """Checks each poll from `idle`, before the stream, to the first that started after its end. The counter of
    the model with these labels may be off by `tolerance` tokens while the stream runs. Returns the last poll,
    what it has counted since `idle`, and the highest count."""
    done = exporter.poll_started_after(stream.ended_at)
    base = idle.value("generated_tokens_total", **labels)
    polls = exporter.between(idle, done)
    during = [poll for poll in polls if stream.streaming_during(poll, poll)]
    assert len(during) >= 3
    highest = 0
    for previous, poll in zip([idle, *polls], polls):
        counted = poll.value("generated_tokens_total", **labels) - base
        fewest, most = stream.received(previous.ended_after), stream.generated(poll.ended_before)
        allowed = tolerance if poll.ended_after < stream.last_at else 0
        # A counter never falls, even where it was too high.
        assert fewest - allowed <= counted <= max(most + allowed, highest), describe(poll, stream)
        if poll in during:
            if previous in during:
                slowest, fastest = stream.rates_generated(previous, poll)
                rate = poll.value("tokens_per_second", **labels)
                assert 0.85 * slowest <= rate <= 1.15 * fastest, describe(poll, stream)
            assert poll.value("status", status="running", **labels) == 1
            assert poll.value("requests_processing", **labels) == 1
        highest = max(highest, counted)
    return done, counted, highest


def describe(poll, stream):
    return (
        f"poll {poll.number} ended {poll.ended_after - stream.sent_at:.3f} to"
        f" {poll.ended_before - stream.sent_at:.3f} s after the request; by then the client had received {stream.received(poll.ended_after)} to"
        f" {stream.received(poll.ended_before)} tokens, and the server had sent {stream.generated(poll.ended_after)} to"
        f" {stream.generated(poll.ended_before)}"
    )
