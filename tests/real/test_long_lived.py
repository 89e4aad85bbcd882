"""A server that has counted millions is told as truly as a young one, though it prints six digits."""

import json

import pytest
from llama import ANSWERS_WHILE_BUSY
from long_lived import LongLived

# The steps of what is printed are 10, 100 and 1,000 there.
COUNTED = (3_000_000, 40_000_000, 700_000_000)


@pytest.fixture
def watch(start_exporter):
    """Watches one server as if it had counted so much more, for each of these numbers."""
    proxies = []

    def start(server):
        watched = []
        for counted in COUNTED:
            proxy = LongLived(server.port, counted)
            proxies.append(proxy)
            watched.append((proxy, start_exporter(proxy.url, interval="500ms")))
        return watched

    yield start
    for proxy in proxies:
        proxy.close()


def test_streams_of_a_long_lived_server(build, one_core, start_server, watch):
    server = start_server()
    tokens = server.tokens_for(seconds=4)
    watched = watch(server)
    idle = [exporter.wait_for_status("idle") for _, exporter in watched]

    stream = server.stream(tokens).wait()
    pair = [server.stream(tokens // 4, prompt=f"Story number {number}") for number in range(2)]
    for other in pair:
        other.wait()
    left = server.stream(2000, hang_up_after=40).wait()
    last = max(exporter.poll_begun_after(left.ended_at).after for _, exporter in watched)
    done = [exporter.wait_for_status("idle", since=last) for _, exporter in watched]
    hung_up = generated_by_the_last(server, build, tokens + 2 * (tokens // 4) + 24)

    for (proxy, exporter), idle, done in zip(watched, idle, done):
        during = [poll for poll in exporter.between(idle, done) if within(stream, poll)]
        assert len(during) >= 4
        before = proxy.counted + 24
        for earlier, poll in zip(during, during[1:]):
            slowest, fastest = stream.rates_generated(earlier, poll)
            rate = poll.value("tokens_per_second")
            assert rate is not None, poll.gist()
            assert 0.85 * slowest <= rate <= 1.15 * fastest, poll.gist()
            counted = poll.value("generated_tokens_total") - before
            assert stream.received(earlier.after) - proxy.half_step <= counted
            assert counted <= stream.generated(poll.seen) + proxy.half_step
        polls = exporter.between(idle, done)
        for name in ("generated_tokens_total", "prompt_tokens_total", "decode_calls_total"):
            values = [poll.value(name) for poll in polls]
            assert values == sorted(values), f"{name} falls: {values}"

        truth = before + tokens + 2 * (tokens // 4) + hung_up
        assert abs(done.value("generated_tokens_total") - truth) <= proxy.half_step
        truth = proxy.counted + server.counter("n_decode_total")
        assert abs(done.value("decode_calls_total") - truth) <= proxy.half_step
        truth = proxy.counted + server.counter("prompt_tokens_total")
        assert abs(done.value("prompt_tokens_total") - truth) <= proxy.half_step

        # A call takes as long as a token of a stream that is alone.
        first, last = during[0], during[-1]
        seconds, calls = (
            last.value(f"batch_latency_seconds_{part}") - (first.value(f"batch_latency_seconds_{part}") or 0)
            for part in ("sum", "count")
        )
        slowest, fastest = stream.rates_generated(first, last)
        assert 0.85 * slowest <= calls / seconds <= 1.15 * fastest
        assert exporter.poll_begun_after(done.seen).value("tokens_per_second") == 0


def test_a_stream_of_a_long_lived_server_without_slots(build, one_core, start_server, watch):
    server = start_server(slots=False)
    tokens = server.tokens_for(seconds=4)
    watched = watch(server)
    idle = [exporter.wait_for_status("idle") for _, exporter in watched]
    stream = server.stream(tokens).wait()
    done = [exporter.poll_begun_after(stream.ended_at) for _, exporter in watched]

    for (proxy, exporter), idle, done in zip(watched, idle, done):
        polls = exporter.between(idle, done)
        for number, poll in enumerate(polls):
            rate = poll.value("tokens_per_second")
            if within(stream, poll):
                # What six digits do not tell is left out.
                assert rate is None or any(
                    0.85 * slowest <= rate <= 1.15 * fastest
                    for slowest, fastest in (stream.rates_generated(earlier, poll) for earlier in polls[:number])
                ), poll.gist()
            counted = poll.value("generated_tokens_total") - proxy.counted - 24
            assert counted <= stream.generated(poll.seen) + proxy.half_step + 3
        truth = proxy.counted + server.counter("tokens_predicted_total")
        assert abs(done.value("generated_tokens_total") - truth) <= proxy.half_step
        values = [poll.value("generated_tokens_total") for poll in polls]
        assert values == sorted(values)


def within(stream, poll):
    return stream.first_at < poll.after and poll.seen < stream.last_at


def generated_by_the_last(server, build, before):
    """How much the stream that was left has got: before b10566 its slot alone tells."""
    if build < ANSWERS_WHILE_BUSY:
        tasks = [slot["next_token"][0] for slot in json.loads(server.get("/slots")[1])]
        return sum(task["n_decoded"] for task in tasks if task["has_next_token"])
    return server.counter("tokens_predicted_total") - before
