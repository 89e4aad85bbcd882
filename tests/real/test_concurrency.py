"""Requests on slots, and requests that wait for a slot."""


def test_four_requests_on_two_slots(one_core, start_server, start_exporter):
    # Each request holds an HTTP thread of the server. On a machine with few cores four requests hold
    # all of the default number of b7710, which then answers nobody else.
    server = start_server("--threads-http", 8)
    tokens = server.tokens_for(seconds=0.6)
    exporter = start_exporter(server.url, interval="250ms")
    idle = exporter.wait_for_status("idle")

    streams = [server.stream(tokens, prompt=f"Story number {number}") for number in range(4)]
    for stream in streams:
        stream.wait()
    done = exporter.poll_started_after(max(stream.ended_at for stream in streams))

    started = sorted(stream.first_at for stream in streams)
    ended = sorted(stream.last_at for stream in streams)
    assert started[2] > ended[0], "the third request did not wait for a slot"
    polls = exporter.between(idle, done)
    two_deferred = polls_within(polls, started[1], ended[0])
    assert two_deferred
    for poll in two_deferred:
        assert load(poll) == ("running", 2, 2, 2)
        assert poll.value("slots") == 2
    for poll in polls_within(polls, started[3], ended[2]):
        assert load(poll) == ("running", 2, 0, 2)
    assert load(done) == ("idle", 0, 0, 0)
    assert done.value("generated_tokens_total") - idle.value("generated_tokens_total") == 4 * tokens


def load(poll):
    return poll.status, *map(poll.value, ("requests_processing", "requests_deferred", "slots_busy"))


def polls_within(polls, start, end):
    """The polls that started and ended between these moments."""
    return [poll for before, poll in zip(polls, polls[1:]) if before.ended_after > start and poll.ended_before < end]
