"""Requests with the same prompt, one after another on one slot: each token counts once, and at once."""

REQUESTS = 14
MOST_REQUESTS = 10 * REQUESTS
TOKENS = 25
# Polls that find the next task with about as many tokens as the one at the poll before.
FEWEST_ALIKE = 3


def test_a_task_that_looks_like_the_one_before_counts(build, one_core, start_server, start_exporter):
    server = start_server(parallel=1)
    per_second = server.stream(60).wait().tokens_per_second
    # A request takes about one interval.
    exporter = start_exporter(server.url, interval=f"{1000 * TOKENS / per_second:.0f}ms")
    idle = exporter.wait_for_status("idle")
    streams = []
    alike = 0
    # On a busy machine, few polls are as short as that takes.
    while alike < FEWEST_ALIKE and len(streams) < MOST_REQUESTS:
        streams += [server.stream(TOKENS).wait() for _ in range(REQUESTS)]
        done = exporter.wait_for_status("idle", since=exporter.poll_started_after(streams[-1].ended_at).ended_after)
        polls = exporter.between(idle, done)
        tokens = [tokens_between(streams, *pair) for pair in zip([idle, *polls], polls)]
        alike = sum(0 <= most % TOKENS - fewest % TOKENS <= 8 for fewest, most in tokens)
    assert alike >= FEWEST_ALIKE, "no poll found what this test is about"

    prompt = streams[0].timings["prompt_n"]
    for poll, (fewest, most) in zip(polls, tokens):
        counted = poll.value("generated_tokens_total") - idle.value("generated_tokens_total")
        assert fewest <= counted <= most, poll.number
        begun = [stream for stream in streams if stream.sent_at < poll.ended_before]
        prompts = poll.value("prompt_tokens_total") - idle.value("prompt_tokens_total")
        assert prompts <= prompt * len(begun), poll.number
    assert done.value("generated_tokens_total") == server.counter("tokens_predicted_total")
    assert done.value("prompt_tokens_total") == server.counter("prompt_tokens_total")


def tokens_between(streams, previous, poll):
    """The fewest and the most tokens that the server can have generated when the poll read its counters."""
    fewest = sum(stream.received(previous.ended_after) for stream in streams)
    most = sum(stream.generated(poll.ended_before) for stream in streams)
    return fewest, most
