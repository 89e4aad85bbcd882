"""A client that goes away in the middle of its stream."""

from llama import ANSWERS_WHILE_BUSY


def test_tokens_of_a_stream_hung_up_are_counted(build, one_core, start_server, start_exporter):
    server = start_server()
    server.stream(10).wait()
    exporter = start_exporter(server.url, interval="250ms")
    idle = exporter.wait_for_status("idle")
    calls = idle.value("decode_calls_total")

    left = server.stream(2000, hang_up_after=60).wait()
    assert len(left.arrivals) == 60
    settled = exporter.wait_for_status("idle", since=exporter.poll_begun_after(left.ended_at).after)

    # The server generates a token or two more before it notices. Before b10566
    # it keeps their number in the slot alone; from then on it counts them.
    if build < ANSWERS_WHILE_BUSY:
        generated = max(server.tokens_kept_in_slots())
        assert server.counter("tokens_predicted_total") == 10
    else:
        generated = server.counter("tokens_predicted_total") - 10
    assert generated >= 60
    assert settled.value("decode_calls_total") - calls < 2000, "the server has not noticed"
    assert settled.value("generated_tokens_total") - idle.value("generated_tokens_total") == generated

    following = server.stream(20, prompt="And then").wait()
    done = exporter.poll_begun_after(following.ended_at)
    assert done.value("generated_tokens_total") - settled.value("generated_tokens_total") == 20

    # And nothing is lost, or counted again, while nothing happens.
    again = exporter.poll_begun_after(done.seen)
    assert again.value("generated_tokens_total") == done.value("generated_tokens_total")
