"""Memory, processor time and threads are those of the right process, and of no other."""

import os
import socket
import subprocess
import sys
import threading
import time

import pytest
from servers import NOBODY, check, pidstat, resident, status_of, wait_until

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can run things as another user")


def assert_told(values, pid):
    assert values["memory_usage_bytes"] == pytest.approx(resident(pid), rel=0.01)
    assert values["thread_count"] == int(status_of(pid)["Threads"])


def test_memory_and_threads(server):
    server.stream(30).wait()
    _, values = check(server.url)
    assert_told(values, server.process.pid)
    assert values["total_memory_bytes"] > values["memory_usage_bytes"]


def test_processor_time_under_load(server, start_exporter):
    """Over the same seconds pidstat says the same, to within five points of all processors."""
    exporter = start_exporter(server.url, interval="5s")
    enough = threading.Event()

    def load():
        while not enough.is_set():
            server.stream(200).wait()

    loading = threading.Thread(target=load)
    loading.start()
    first = exporter.poll_begun_after(time.monotonic())
    measured = pidstat(server.process.pid, 5)
    second = exporter.wait_for(lambda poll: poll.number == first.number + 1)
    enough.set()
    loading.join()
    assert measured > 10, "the server was not at work"
    told = second.value("cpu_utilization_percent")
    processors = len(os.sched_getaffinity(server.process.pid))
    expected = measured / processors
    print(f"told {told:.1f} %, pidstat {expected:.1f} %")
    assert told == pytest.approx(expected, abs=5)
    spent = second.value("process_cpu_seconds_total") - first.value("process_cpu_seconds_total")
    assert spent == pytest.approx(measured / 100 * 5, abs=0.5)


def test_gone_at_once_and_not_taken_over(start_program, start_exporter, tmp_path):
    server = start_program("-c", "2048", "-np", "1")
    exporter = start_exporter(server.url, interval="500ms")
    exporter.wait_for(lambda poll: poll.value("memory_usage_bytes"))
    server.kill()
    # Someone else listens on the port, and is no llama-server.
    with socket.create_server(("127.0.0.1", server.port), reuse_port=True):
        last = exporter.polls[-1]
        down = exporter.wait_for(lambda poll: poll.number > last.number and poll.value("up") == 0)
        later = exporter.wait_for(lambda poll: poll.number >= down.number + 2)
    for poll in exporter.between(down, later) + [down]:
        assert not {name for name in poll.model_series if "memory" in name or "thread" in name}
    server.start().wait_until_loaded()
    back = exporter.wait_for(lambda poll: poll.number > later.number and poll.value("memory_usage_bytes"))
    assert back.value("thread_count") > 0


@needs_root
def test_the_exporter_as_root_the_server_not(start_program):
    server = start_program("-c", "2048", "-np", "1", uid=NOBODY)
    _, values = check(server.url)
    assert_told(values, server.process.pid)
    assert values["kv_cache_limit_bytes"] > 0


@needs_root
def test_both_unprivileged(start_program):
    server = start_program("-c", "2048", "-np", "1", uid=NOBODY)
    _, values = check(server.url, uid=NOBODY)
    assert_told(values, server.process.pid)
    assert values["kv_cache_limit_bytes"] > 0


@needs_root
def test_the_exporter_unprivileged_the_server_as_root(server):
    """Its descriptors are out of reach: how it was called tells. What its variables set is not guessed."""
    report, values = check(server.url, uid=NOBODY)
    assert_told(values, server.process.pid)
    assert "kv_cache_limit_bytes" not in values


@needs_root
def test_two_that_were_called_alike_are_not_told_apart(start_program):
    server = start_program("-c", "2048", "-np", "1")
    alike = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)", "--port", str(server.port)])
    try:
        report, values = check(server.url, uid=NOBODY)
        assert "memory_usage_bytes" not in values
        assert "2 processes are called with this port" in report
        # Root sees who holds the socket.
        assert_told(check(server.url)[1], server.process.pid)
    finally:
        alike.kill()
        alike.wait()


def test_a_pid_file(start_program, tmp_path):
    server = start_program("-c", "2048", "-np", "1")
    file = tmp_path / "pid"
    file.write_text(f"{server.process.pid}\n")
    assert_told(check(server.url, "--pid-file", str(file))[1], server.process.pid)
    file.write_text("999999999\n")
    report, values = check(server.url, "--pid-file", str(file))
    assert "memory_usage_bytes" not in values and "no process has the number" in report


def test_a_server_that_says_so_on_its_command_line_falls_asleep(start_program, start_exporter):
    """On this build /metrics keeps a server awake, and nobody has told the exporter but its arguments."""
    server = start_program("-c", "2048", "-np", "1", "--sleep-idle-seconds", "4")
    exporter = start_exporter(server.url, interval="1s")
    server.stream(5).wait()
    asleep = exporter.wait_for_status("sleeping", patience=15)
    assert asleep.value("memory_usage_bytes") > 0
    assert asleep.value("kv_cache_limit_bytes") is None


def test_a_poll_costs_little(start_program, start_exporter):
    """Under 5 ms of processor time, with all of this on; the process is looked for once."""
    server = start_program("-c", "4096", "-np", "2")
    exporter = start_exporter(server.url, interval="100ms")
    first = exporter.wait_for(lambda poll: poll.number >= 5)
    exporter._ended.set()  # from here on it only polls
    cpu = lambda: sum(int(n) for n in open(f"/proc/{exporter.process.pid}/stat").read().rsplit(") ", 1)[1].split()[11:13])  # noqa: E731
    before = cpu()
    wait_until(lambda: not threading.Event().wait(10))
    spent = (cpu() - before) / 100
    print(f"{spent / 100 * 1000:.2f} ms a poll")
    assert spent / 100 < 0.005
    assert exporter.log.count("the process that holds the model is found") == 1
    assert first
