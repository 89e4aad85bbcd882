"""Requests with the same prompt, one after another on one slot: each token counts once, and at once."""

REQUESTS = 14
TOKENS = 25


def test_a_task_that_looks_like_the_one_before_counts(build, one_core, start_server, start_exporter):
    """Most polls find the next task with about as many tokens as the one at the poll before."""
    server = start_server(parallel=1)
    per_second = server.stream(60).wait().tokens_per_second
    # A request takes about one interval.
    exporter = start_exporter(server.url, interval=f"{1000 * TOKENS / per_second:.0f}ms")
    idle = exporter.wait_for_status("idle")
    streams = [server.stream(TOKENS).wait() for _ in range(REQUESTS)]
    done = exporter.wait_for_status("idle", since=exporter.poll_started_after(streams[-1].ended_at).ended_after)

    prompt = streams[0].timings["prompt_n"]
    polls = exporter.between(idle, done)
    alike = 0
    for previous, poll in zip([idle, *polls], polls):
        counted = poll.value("generated_tokens_total") - idle.value("generated_tokens_total")
        fewest = sum(stream.received(previous.ended_after) for stream in streams)
        most = sum(stream.generated(poll.ended_before) for stream in streams)
        assert fewest <= counted <= most, poll.number
        begun = [stream for stream in streams if stream.sent_at < poll.ended_before]
        prompts = poll.value("prompt_tokens_total") - idle.value("prompt_tokens_total")
        assert prompts <= prompt * len(begun), poll.number
        alike += 0 <= most % TOKENS - fewest % TOKENS <= 8
    assert alike >= 3, "no poll found what this test is about"
    assert done.value("generated_tokens_total") == server.counter("tokens_predicted_total")
    assert done.value("prompt_tokens_total") == server.counter("prompt_tokens_total")
