"""A server that does not answer in time: its process is still read, and its counters go on afterwards."""

import contextlib
import itertools
import signal
import socket
import time

import pytest

from support.llama_server import XllamacppServer
from support.process import cpu_seconds, proc_status, resident_bytes

INTERVAL = 0.5
TIMEOUT = 1.0
# Longer than several polls that each wait for their time-outs.
STOPPED = 18
# Newer builds start more HTTP threads than --threads-http while all are busy, up to this number.
MOST_HTTP_THREADS = 1024
PROCESS_FAMILIES = {
    "memory_usage_bytes", "total_memory_bytes", "cpu_utilization_percent", "thread_count", "process_cpu_seconds_total",
    "process_start_time_seconds",
}  # fmt: skip
COUNTERS = ("generated_tokens_total", "prompt_tokens_total", "decode_calls_total")

pytestmark = pytest.mark.parametrize("build", (10068, 11549), ids=lambda build: f"b{build}")


@pytest.fixture
def overloaded_exporter(start_exporter):
    return lambda url: start_exporter(url, "--no-gpu", "--timeout", f"{TIMEOUT}s", interval=f"{INTERVAL}s")


def assert_only_process_values(poll):
    of_model = {name.removeprefix("llamacpp_") for name in poll.model_series}
    assert PROCESS_FAMILIES - of_model <= {"cpu_utilization_percent"}, poll.text
    assert not [name for name in of_model if name in COUNTERS or "slot" in name or "status" in name], poll.text


def assert_counters_go_on(polls):
    """No counter falls, not even across the polls that do not have it."""
    for name in (*COUNTERS, "process_cpu_seconds_total"):
        values = [poll.value(name) for poll in polls if poll.value(name) is not None]
        assert values == sorted(values), name


def test_a_stopped_server_keeps_the_values_of_its_process(one_core, start_server, overloaded_exporter):
    server = start_server()
    tokens = server.tokens_for(seconds=3)
    exporter = overloaded_exporter(server.url)
    first = exporter.wait_for(lambda poll: poll.status == "idle" and poll.value("memory_usage_bytes"))
    base = {name: first.value(name) for name in COUNTERS}
    stream = server.stream(tokens).wait_for_tokens(tokens // 4)
    server.signal(signal.SIGSTOP)
    stopped_at = time.monotonic()
    down = exporter.wait_for(lambda poll: poll.ended_after >= stopped_at and poll.value("up") == 0)
    time.sleep(stopped_at + STOPPED - time.monotonic())
    last_down = exporter.polls[-1]
    memory, threads, cpu = resident_bytes(server.pid), int(proc_status(server.pid)["Threads"]), cpu_seconds(server.pid)
    server.signal(signal.SIGCONT)
    stream.wait()
    done = exporter.wait_for(
        lambda poll: poll.started_after >= stream.ended_at and poll.value("up") == 1 and poll.status == "idle"
    )
    while_stopped = [down, *exporter.between(down, last_down)]
    assert len(while_stopped) >= 5
    for poll in while_stopped:
        assert poll.value("up") == 0
        assert_only_process_values(poll)
        assert poll.value("memory_usage_bytes") == pytest.approx(memory, rel=0.01)
        assert poll.value("thread_count") == threads
        assert poll.value("process_cpu_seconds_total") == pytest.approx(cpu, abs=0.05)
    assert last_down.value("cpu_utilization_percent") == 0
    assert down.errors(endpoint="/health", reason="timeout") >= 1
    assert f"its process {server.pid} is alive: memory and CPU are still read" in exporter.log
    assert exporter.log.count("found the server process") == 1
    # Nothing was lost, and nothing counted twice.
    assert done.value("generated_tokens_total") == base["generated_tokens_total"] + tokens
    # The request was on its slot all the time.
    assert STOPPED <= done.value("requests_processing_seconds_total") <= stream.ended_at - stream.sent_at + 4 * INTERVAL
    assert_counters_go_on([first, *exporter.between(first, done)])


def test_more_clients_than_http_threads(one_core, start_server, overloaded_exporter):
    server = start_server("--threads-http", 2)
    tokens = server.tokens_for(seconds=6)
    exporter = overloaded_exporter(server.url)
    first = exporter.wait_for(lambda poll: poll.status == "idle" and poll.value("memory_usage_bytes"))
    stream = server.stream(tokens).wait_for_tokens(5)
    with contextlib.ExitStack() as clients:
        for _ in range(MOST_HTTP_THREADS + 20):
            client = clients.enter_context(socket.create_connection(("127.0.0.1", server.port)))
            # Its thread waits for the rest.
            client.sendall(b"POST /completion HTTP/1.1\r\nHost: localhost\r\n")
        down = exporter.wait_for(lambda poll: poll.value("up") == 0)
        last_down = exporter.wait_for_polls(3, since=down)
    stream.wait()
    done = exporter.wait_for(
        lambda poll: poll.started_after >= stream.ended_at and poll.value("up") == 1 and poll.status == "idle"
    )
    for poll in [down, *exporter.between(down, last_down)]:
        assert_only_process_values(poll)
    polls = exporter.between(first, done)
    for poll in polls:
        assert poll.value("memory_usage_bytes") and poll.value("thread_count"), poll.text
    assert done.value("generated_tokens_total") == first.value("generated_tokens_total") + tokens
    assert_counters_go_on([first, *polls])


def test_a_stopped_server_that_is_killed_leaves_nothing(start_server, overloaded_exporter):
    server = start_server()
    exporter = overloaded_exporter(server.url)
    exporter.wait_for(lambda poll: poll.value("memory_usage_bytes"))
    server.signal(signal.SIGSTOP)
    exporter.wait_for(lambda poll: poll.value("up") == 0 and poll.value("memory_usage_bytes"))
    server.kill()
    killed_at = time.monotonic()
    gone = exporter.poll_started_after(killed_at)
    for poll in [gone, *exporter.between(gone, exporter.wait_for_polls(3, since=gone))]:
        assert (poll.value("up"), poll.model_series) == (0, set())
    assert exporter.log.count("memory and CPU of the server's process are no longer read") == 1


def test_the_log_and_the_integrals_go_on(build, one_core, start, start_exporter, tmp_path):
    """What the log has counted stays while the server does not answer, and no status is integrated meanwhile."""
    log = tmp_path / "server.log"
    server = start(XllamacppServer(build, log))
    options = ("--no-gpu", "--timeout", f"{TIMEOUT}s", "--log-file", log)
    exporter = start_exporter(server.url, *options, interval=f"{INTERVAL}s")
    logged = lambda poll: poll.value("request_duration_seconds_count", source="log")  # noqa: E731
    integrated = lambda poll: {  # noqa: E731
        status: poll.value("status_seconds_total", status=status) for status in ("idle", "running")
    }
    exporter.wait_for_status("idle")
    server.stream(20).wait()
    before = exporter.wait_for(lambda poll: logged(poll) == 1 and poll.status == "idle")

    server.signal(signal.SIGSTOP)
    down = exporter.wait_for(lambda poll: poll.number > before.number and poll.value("up") == 0)
    last_down = exporter.wait_for_polls(6, since=down)
    assert [logged(poll) for poll in [down, *exporter.between(down, last_down)]] == [1] * 7
    server.signal(signal.SIGCONT)
    resumed = exporter.wait_for(lambda poll: poll.number > last_down.number and poll.status == "idle")
    stream = server.stream(server.tokens_for(seconds=2)).wait()
    done = exporter.wait_for(lambda poll: poll.ended_before > stream.ended_at and logged(poll) == 3)

    grown = {status: seconds - integrated(before)[status] for status, seconds in integrated(done).items()}
    stopped = last_down.ended_after - down.ended_before
    assert sum(grown.values()) <= done.ended_before - before.ended_after - stopped + INTERVAL
    busy = stream.ended_at - stream.sent_at
    assert grown["running"] >= busy - 3 * INTERVAL
    assert done.value("requests_processing_seconds_total") >= busy - 3 * INTERVAL
    for earlier, later in itertools.pairwise((before, resumed, done)):
        assert all(integrated(earlier)[status] <= integrated(later)[status] for status in grown)
