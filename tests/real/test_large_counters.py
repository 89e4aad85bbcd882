"""Counters of many millions, which the server prints with six digits, are exported as exactly as small ones."""

import pytest

from support.counter_proxy import CounterProxy
from support.llama_server import ANSWERS_WHILE_BUSY

# The printed values have steps of 10, 100 and 1,000.
OFFSETS = (3_000_000, 40_000_000, 700_000_000)


@pytest.fixture
def watch(request, start_exporter):
    """Starts an exporter for each offset, behind a proxy that adds it to the server's counters."""

    def start(server):
        watched = []
        for offset in OFFSETS:
            proxy = CounterProxy(server.port, offset)
            request.addfinalizer(proxy.close)
            watched.append((proxy, start_exporter(proxy.url, interval="500ms")))
        return watched

    return start


def test_streams(build, one_core, start_server, watch):
    server = start_server()
    tokens = server.tokens_for(seconds=4)
    watched = watch(server)
    idle = [exporter.wait_for_status("idle") for _, exporter in watched]

    stream = server.stream(tokens).wait()
    pair = [server.stream(tokens // 4, prompt=f"Story number {number}") for number in range(2)]
    for other in pair:
        other.wait()
    cancelled = server.stream(2000, disconnect_after=40).wait()
    last = max(exporter.poll_started_after(cancelled.ended_at).ended_after for _, exporter in watched)
    done = [exporter.wait_for_status("idle", since=last) for _, exporter in watched]
    of_completed = tokens + 2 * (tokens // 4)
    of_cancelled = tokens_of_cancelled(server, build, 24 + of_completed)

    for (proxy, exporter), first_poll, last_poll in zip(watched, idle, done):
        during = [poll for poll in exporter.between(first_poll, last_poll) if stream.streaming_during(poll, poll)]
        assert len(during) >= 4
        before = proxy.offset + 24
        for earlier, poll in zip(during, during[1:]):
            slowest, fastest = stream.rates_generated(earlier, poll)
            rate = poll.value("tokens_per_second")
            assert rate is not None, poll.summary()
            assert 0.85 * slowest <= rate <= 1.15 * fastest, poll.summary()
            counted = poll.value("generated_tokens_total") - before
            assert stream.received(earlier.ended_after) - proxy.rounding_error <= counted
            assert counted <= stream.generated(poll.ended_before) + proxy.rounding_error
        polls = exporter.between(first_poll, last_poll)
        for name in ("generated_tokens_total", "prompt_tokens_total", "decode_calls_total"):
            values = [poll.value(name) for poll in polls]
            assert values == sorted(values), f"{name} decreased: {values}"

        exact = before + of_completed + of_cancelled
        assert abs(last_poll.value("generated_tokens_total") - exact) <= proxy.rounding_error
        exact = proxy.offset + server.counter("n_decode_total")
        assert abs(last_poll.value("decode_calls_total") - exact) <= proxy.rounding_error
        exact = proxy.offset + server.counter("prompt_tokens_total")
        assert abs(last_poll.value("prompt_tokens_total") - exact) <= proxy.rounding_error

        # While one stream runs alone, a decode call takes as long as a token.
        first, last = during[0], during[-1]
        seconds, calls = (
            last.value(f"batch_latency_seconds_{part}") - (first.value(f"batch_latency_seconds_{part}") or 0)
            for part in ("sum", "count")
        )
        slowest, fastest = stream.rates_generated(first, last)
        assert 0.85 * slowest <= calls / seconds <= 1.15 * fastest
        assert exporter.poll_started_after(last_poll.ended_before).value("tokens_per_second") == 0


def test_a_stream_without_slots(build, one_core, start_server, watch):
    server = start_server("--no-slots")
    tokens = server.tokens_for(seconds=4)
    watched = watch(server)
    idle = [exporter.wait_for_status("idle") for _, exporter in watched]
    stream = server.stream(tokens).wait()
    done = [exporter.poll_started_after(stream.ended_at) for _, exporter in watched]

    for (proxy, exporter), first_poll, last_poll in zip(watched, idle, done):
        polls = exporter.between(first_poll, last_poll)
        for number, poll in enumerate(polls):
            rate = poll.value("tokens_per_second")
            if stream.streaming_during(poll, poll):
                # The rate is absent where six digits are too few for it.
                assert rate is None or any(
                    0.85 * slowest <= rate <= 1.15 * fastest
                    for slowest, fastest in (stream.rates_generated(earlier, poll) for earlier in polls[:number])
                ), poll.summary()
            counted = poll.value("generated_tokens_total") - proxy.offset - 24
            assert counted <= stream.generated(poll.ended_before) + proxy.rounding_error + 3
        exact = proxy.offset + server.counter("tokens_predicted_total")
        assert abs(last_poll.value("generated_tokens_total") - exact) <= proxy.rounding_error
        values = [poll.value("generated_tokens_total") for poll in polls]
        assert values == sorted(values)


def tokens_of_cancelled(server, build, before):
    """The tokens of the cancelled stream. Before b10566 only its slot keeps their number."""
    if build < ANSWERS_WHILE_BUSY:
        return sum(task["n_decoded"] for task in server.slot_tasks() if task["has_next_token"])
    return server.counter("tokens_predicted_total") - before
