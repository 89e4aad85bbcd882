"""A server with a disabled or protected endpoint: the exporter reports the rest, and logs what is missing."""

from support import MODEL_PARAMETERS

KEY = "a-key-for-this-test"


def test_api_key(one_core, start_server, start_exporter):
    server = start_server(api_key=KEY)
    without_key = start_exporter(server.url, interval="250ms")
    exporter = start_exporter(server.url, interval="250ms", environment={"LLAMACPP_API_KEY": KEY})
    idle = exporter.wait_for_status("idle")

    tokens = server.tokens_for(seconds=1)
    stream = server.stream(tokens).wait()
    done = exporter.poll_started_after(stream.ended_at)
    assert any(poll.value("tokens_per_second") for poll in exporter.between(idle, done))
    assert done.value("generated_tokens_total") == 24 + tokens
    assert done.errors() == 0
    assert KEY not in exporter.log + done.text

    denied = without_key.poll_started_after(stream.ended_at)
    assert denied.value("up") == 1
    assert denied.value("generated_tokens_total") is None
    assert denied.errors(endpoint="/metrics", reason="unauthorized") > 0
    assert "LLAMACPP_API_KEY" in without_key.log


def test_without_metrics(one_core, start_server, start_exporter):
    server = start_server(metrics=False)
    exporter = start_exporter(server.url, interval="250ms")
    idle, stream, done = run_stream(server, exporter, seconds=1.5)
    pairs = zip(exporter.polls, exporter.polls[1:])
    during = [(before, poll) for before, poll in pairs if stream.streaming_during(before, poll)]
    assert len(during) >= 2
    for before, poll in during:
        assert poll.status == "running"
        assert poll.value("slots_busy") == 1
        slowest, fastest = stream.rates_generated(before, poll)
        assert 0.85 * slowest <= poll.value("tokens_per_second") <= 1.15 * fastest
    assert done.status == "idle"
    for poll in exporter.between(idle, done):
        assert poll.value("up") == 1
        assert poll.value("generated_tokens_total") is None
        assert poll.value("decode_calls_total") is None
        assert poll.errors() == 0
    assert done.value("slots") == 2
    assert done.value("model_parameters") == MODEL_PARAMETERS
    assert "--metrics" in exporter.log


def test_without_slots(one_core, start_server, start_exporter):
    server = start_server("--no-slots")
    exporter = start_exporter(server.url, interval="250ms")
    idle, _, done = run_stream(server, exporter, seconds=1)
    polls = exporter.between(idle, done)
    assert any(poll.value("tokens_per_second") for poll in polls)
    assert any(poll.status == "running" for poll in polls)
    assert done.status == "idle"
    assert done.value("context_size_tokens") is None
    assert done.value("max_context_size_tokens") == 4096
    assert done.errors() == 0
    assert "--slots" in exporter.log or "--no-slots" in exporter.log


def run_stream(server, exporter, seconds):
    """The idle poll before a stream, the stream, and the poll after it."""
    idle = exporter.wait_for_status("idle")
    stream = server.stream(server.tokens_for(seconds)).wait()
    return idle, stream, exporter.poll_started_after(stream.ended_at)
