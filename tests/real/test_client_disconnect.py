"""A client that disconnects in the middle of its stream."""

from support.llama_server import ANSWERS_WHILE_BUSY


def test_tokens_of_a_cancelled_stream_are_counted(build, one_core, start_server, start_exporter):
    server = start_server()
    server.stream(10).wait()
    exporter = start_exporter(server.url, interval="250ms")
    idle = exporter.wait_for_status("idle")

    cancelled = server.stream(2000, disconnect_after=60).wait()
    assert len(cancelled.arrivals) == 60
    settled = exporter.wait_for_status("idle", since=exporter.poll_started_after(cancelled.ended_at).ended_after)

    # The server generates a token or two more before it notices. Before b10566 only the slot keeps
    # their number; from then on the counter includes them.
    if build < ANSWERS_WHILE_BUSY:
        generated = max(task["n_decoded"] for task in server.slot_tasks())
        assert server.counter("tokens_predicted_total") == 10
    else:
        generated = server.counter("tokens_predicted_total") - 10
    assert generated >= 60
    increase = {
        name: settled.value(name) - idle.value(name) for name in ("decode_calls_total", "generated_tokens_total")
    }
    assert increase["decode_calls_total"] < 2000, "the server has not noticed the disconnect"
    assert increase["generated_tokens_total"] == generated

    following = server.stream(20, prompt="And then").wait()
    done = exporter.poll_started_after(following.ended_at)
    assert done.value("generated_tokens_total") - settled.value("generated_tokens_total") == 20

    # The counter does not move while the server is idle.
    later = exporter.poll_started_after(done.ended_before)
    assert later.value("generated_tokens_total") == done.value("generated_tokens_total")
