"""What Kubernetes' endpoint picker asks for is there in every state of a loaded model."""

import time

import pytest

from support.llama_server import ANSWERS_WHILE_BUSY

LEVELS = ("requests_processing", "requests_deferred", "kv_cache_usage_ratio")

# Before b9294, slots do not report their tokens.
pytestmark = pytest.mark.parametrize("build", (10068, 11549), ids=lambda build: f"b{build}")


def test_queue_and_cache_are_there_while_the_model_is_loaded(build, one_core, start_server, start_exporter):
    """Right after loading, in a prompt whose batches take longer than the time-out, generating, idle, asleep."""
    server = start_server("--sleep-idle-seconds", 6, parallel=1)
    exporter = start_exporter(server.url, "--timeout", "300ms", interval="250ms")
    first = exporter.wait_for(lambda poll: poll.status == "idle" and poll.value("memory_usage_bytes") is not None)
    assert [first.value(name) for name in LEVELS] == [0, 0, 0]

    prompt = server.prompt_of_tokens(3000)
    streams = [server.stream(30, prompt=prompt), server.stream(30), server.stream(10)]
    for stream in streams:
        stream.wait()
    ended = exporter.poll_started_after(time.monotonic())
    asleep = exporter.wait_for_status("sleeping", since=ended.ended_after, timeout=60)
    exporter.wait_for_polls(2, since=asleep)

    polls = exporter.between(first, exporter.polls[-1])
    assert {poll.status for poll in polls} >= {"running", "idle", "sleeping"}
    for poll in polls:
        missing = [name for name in LEVELS if poll.value(name) is None]
        assert not missing, f"{missing} in poll {poll.number}, {poll.status}"
    running = [poll for poll in polls if poll.status == "running"]
    assert max(poll.value("requests_deferred") for poll in running) >= 1 or build < ANSWERS_WHILE_BUSY
    assert max(poll.value("kv_cache_usage_ratio") for poll in polls) > 0.2
    assert polls[-1].value("kv_cache_usage_ratio") == 0
