"""Requests on slots, and requests that wait for one."""


def test_four_requests_on_two_slots(one_core, start_server, start_exporter):
    # Each request holds a thread of the server's HTTP side, and on b7710 four of them hold
    # all that it has by itself on a machine with few cores: then it answers nobody else.
    server = start_server(parallel=2, threads_http=8)
    tokens = server.tokens_for(seconds=0.6)
    exporter = start_exporter(server.url, interval="250ms")
    idle = exporter.wait_for_status("idle")

    streams = [server.stream(tokens, prompt=f"Story number {number}") for number in range(4)]
    for stream in streams:
        stream.wait()
    done = exporter.poll_begun_after(max(stream.ended_at for stream in streams))

    begun = sorted(stream.first_at for stream in streams)
    ended = sorted(stream.last_at for stream in streams)
    assert begun[2] > ended[0], "the third request did not wait for a slot"
    polls = exporter.between(idle, done)
    full = polls_within(polls, begun[1], ended[0])
    assert full
    for poll in full:
        assert poll.status == "running"
        assert poll.value("requests_processing") == 2
        assert poll.value("requests_deferred") == 2
        assert poll.value("slots_busy") == 2
        assert poll.value("slots") == 2
    for poll in polls_within(polls, begun[3], ended[2]):
        assert poll.status == "running"
        assert poll.value("requests_processing") == 2
        assert poll.value("requests_deferred") == 0
        assert poll.value("slots_busy") == 2

    assert done.status == "idle"
    assert done.value("requests_processing") == 0
    assert done.value("requests_deferred") == 0
    assert done.value("slots_busy") == 0
    assert done.value("generated_tokens_total") - idle.value("generated_tokens_total") == 4 * tokens


def polls_within(polls, begin, end):
    """Those that began and ended between these moments."""
    return [poll for before, poll in zip(polls, polls[1:]) if before.after > begin and poll.seen < end]
