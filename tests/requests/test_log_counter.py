"""Where a server's /metrics is off, its log and its slots count its tokens: exactly, and while they stream."""

import itertools
import random
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from support import RECORDINGS
from support.llama_server import XllamacppServer
from support.replay import OK, Response, from_file

BUILDS = (7710, 8672, 10068, 11549)
# From this build on, slots report the prompt tokens that they compute.
REPORTS_PROMPT_TOKENS = 9294


@pytest.fixture(params=BUILDS, ids=lambda build: f"b{build}")
def build(request):
    return request.param


@pytest.fixture
def start_unmetered(build, start, log):
    """Starts a server without --metrics that writes `log`."""
    return lambda *options, **settings: start(XllamacppServer(build, log, *options, metrics=False, **settings))


@pytest.fixture
def count_by_log(start_exporter, log):
    """Starts an exporter that follows the log; returns it with its first poll of an idle server."""

    def start(server, interval="500ms"):
        exporter = start_exporter(server.url, "--log-file", log, interval=interval)
        return exporter, exporter.wait_for(lambda poll: poll.status == "idle" and counted(poll) is not None)

    return start


def counted(poll, name="generated_tokens_total"):
    return poll.value(name)


def test_a_stream_counts_while_it_runs(build, one_core, start_unmetered, count_by_log):
    server = start_unmetered()
    tokens = server.tokens_for(seconds=3)
    exporter, idle = count_by_log(server)
    assert (counted(idle), counted(idle, "prompt_tokens_total")) == (0, 0), "requests of before count"

    stream = server.stream(tokens).wait()
    done = exporter.wait_for_status("idle", since=exporter.poll_started_after(stream.ended_at).ended_after)
    during = []
    polls = exporter.between(idle, done)
    for previous, poll in itertools.pairwise([idle, *polls]):
        fewest, most = stream.received(previous.ended_after), stream.generated(poll.ended_before)
        assert fewest <= counted(poll) <= most, f"poll {poll.number}: {counted(poll)} is not in {fewest}..={most}"
        if stream.streaming_during(poll, poll):
            if during:
                slowest, fastest = stream.rates_generated(previous, poll)
                assert 0.85 * slowest <= poll.value("tokens_per_second") <= 1.15 * fastest
            during.append(poll)
            prompts = stream.timings["prompt_n"] if build >= REPORTS_PROMPT_TOKENS else 0
            assert counted(poll, "prompt_tokens_total") == prompts
    assert len(during) >= 3
    assert counted(done) == tokens
    assert counted(done, "prompt_tokens_total") == stream.timings["prompt_n"]
    assert exporter.poll_started_after(done.ended_before).value("tokens_per_second") == 0
    assert done.value("decode_calls_total") is None


def test_many_requests_count_once(build, one_core, start_unmetered, count_by_log):
    """Requests shorter and longer than an interval, on two slots without a pause."""
    server = start_unmetered()
    exporter, idle = count_by_log(server, interval="200ms")
    rng = random.Random(1)
    sizes = [(rng.choice((1, 2, 5, 60)), rng.choice((1, 3, 8, 20, 45))) for _ in range(24)]
    prompts = {size: server.prompt_of_tokens(size) for size in {prompt for prompt, _ in sizes}}
    with ThreadPoolExecutor(4) as clients:
        streams = list(clients.map(lambda size: server.stream(size[1], prompt=prompts[size[0]]).wait(), sizes))
    done = exporter.wait_for_status("idle", since=exporter.poll_started_after(time.monotonic()).ended_after)

    assert counted(done) == sum(size for _, size in sizes)
    assert counted(done, "prompt_tokens_total") == sum(stream.timings["prompt_n"] for stream in streams)
    for previous, poll in itertools.pairwise([idle, *exporter.between(idle, done)]):
        assert counted(previous) <= counted(poll) <= sum(stream.generated(poll.ended_before) for stream in streams)


def test_a_cancelled_request_counts_as_shown_last(build, one_core, start_unmetered, count_by_log):
    server = start_unmetered()
    exporter, _ = count_by_log(server, interval="250ms")
    cancelled = server.stream(2000, disconnect_after=60).wait()
    settled = exporter.wait_for_status("idle", since=exporter.poll_started_after(cancelled.ended_at).ended_after)
    shown = [poll for poll in exporter.polls if poll.ended_before <= cancelled.ended_at]
    assert cancelled.received(shown[-2].ended_after) <= counted(settled) < 100
    following = server.stream(20, prompt="And then").wait()
    done = exporter.wait_for_status("idle", since=exporter.poll_started_after(following.ended_at).ended_after)
    assert counted(done) - counted(settled) == 20




def test_a_restart_without_metrics_between_two_polls(replay, start_exporter, log):
    """The counters of the process before are not those of this one."""
    log.touch()
    folder = RECORDINGS / "llama-server" / "b11549"
    files = {
        "/props": "props.json", "/v1/models": "models.json", "/metrics": "metrics-after.txt", "/slots": "slots-after.json"
    }  # fmt: skip
    server = replay({"/health": Response(OK)} | {path: from_file(folder / file) for path, file in files.items()})
    exporter = start_exporter(server.url, "--log-file", log, interval="200ms")
    before = exporter.wait_for(lambda poll: counted(poll))
    off = '{"error":{"code":501,"message":"This server does not support metrics endpoint.","type":"not_supported_error"}}'
    server.responses |= {"/metrics": Response(off, 501)}
    exporter.wait_for(lambda poll: poll.number > before.number and counted(poll) == 0)


def test_without_slots_requests_count_at_their_end(one_core, start_unmetered, start_exporter, log):
    server = start_unmetered("--no-slots")
    exporter = start_exporter(server.url, "--log-file", log, interval="250ms")
    idle = exporter.wait_for(lambda poll: counted(poll) == 0)
    stream = server.stream(server.tokens_for(seconds=1.5)).wait()
    done = exporter.wait_for(lambda poll: poll.ended_before >= stream.ended_at and counted(poll) > 24)
    assert counted(done) == 24 + stream.tokens
    for poll in exporter.between(idle, done):
        assert counted(poll) in (0, 24, 24 + stream.tokens)
        assert poll.value("tokens_per_second") is None
