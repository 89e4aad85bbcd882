"""Memory, CPU time and threads are those of the server's process, and of no other."""

import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from support import MODEL_NAME
from support.exporter import run_check
from support.process import NOBODY, cpu_seconds, needs_root, pidstat_percent, proc_status, resident_bytes
from support.replay import OK, Response
from support.router import ALPHA, BETA
from support.wait import wait_for

# A llama-server that runs inside this process.
FAKE_SERVER = {
    "/health": Response(OK),
    "/props": Response('{"total_slots":1,"default_generation_settings":{"n_ctx":1024},"model_path":"/m.gguf"}'),
    "/v1/models": Response('{"data":[{"id":"gemma-3-270m"}]}'),
    "/slots": Response('[{"id":0,"n_ctx":1024,"is_processing":false}]'),
}
SMALL = ("-c", "2048", "-np", "1")


def assert_process(exposition, pid, **labels):
    assert exposition.value("memory_usage_bytes", **labels) == pytest.approx(resident_bytes(pid), rel=0.01)
    assert exposition.value("thread_count", **labels) == int(proc_status(pid)["Threads"])


def test_memory_and_threads(server):
    server.stream(30).wait()
    report = run_check(server.url)
    assert_process(report, server.pid)
    assert report.value("total_memory_bytes") > report.value("memory_usage_bytes")


def test_start_time(start_program, start_exporter):
    """Within two seconds, as the kernel gives its boot time in whole ones; and another after a restart."""
    before = time.time()
    server = start_program(*SMALL)
    exporter = start_exporter(server.url, interval="250ms")
    first = exporter.wait_for_status("idle")
    started = first.value("process_start_time_seconds", model=MODEL_NAME)
    assert before - 2 <= started <= time.time() + 2
    server.kill()
    down = exporter.wait_for(lambda poll: poll.value("up") == 0)
    restarted = time.time()
    server.start().wait_until_loaded()
    second = exporter.wait_for_status("idle", since=down.ended_after)
    started_again = second.value("process_start_time_seconds", model=MODEL_NAME)
    assert restarted - 2 <= started_again <= time.time() + 2
    assert started_again > started


SECONDS = 3


def test_cpu_time_under_load(one_core, server, start_exporter):
    """Within five percent of all CPUs of what pidstat measures over the same seconds."""
    exporter = start_exporter(server.url, interval=f"{SECONDS}s")
    stop = threading.Event()

    def send_requests():
        while not stop.is_set():
            server.stream(50).wait()

    client = threading.Thread(target=send_requests)
    client.start()
    try:
        first = exporter.poll_started_after(time.monotonic())
        measured = pidstat_percent(server.pid, SECONDS)
        second = exporter.wait_for_polls(1, since=first)
    finally:
        stop.set()
        client.join()
    assert measured > 10, "the server was idle"
    percent = second.value("cpu_utilization_percent")
    expected = measured / len(os.sched_getaffinity(server.pid))
    print(f"exported {percent:.1f} %, pidstat {expected:.1f} %")
    assert percent == pytest.approx(expected, abs=5)
    increase = second.value("process_cpu_seconds_total") - first.value("process_cpu_seconds_total")
    assert increase == pytest.approx(measured / 100 * SECONDS, abs=0.3)


def test_a_killed_process_has_no_series_and_no_successor(start_program, replay, start_exporter):
    server = start_program(*SMALL)
    exporter = start_exporter(server.url, interval="500ms")
    exporter.wait_for(lambda poll: poll.value("memory_usage_bytes"))
    server.kill()
    killed_at = time.monotonic()
    of_process = ("memory_usage", "thread_count", "cpu", "kv_cache_limit")
    # A process without a model answers at the same port as a llama-server does.
    fake = replay(FAKE_SERVER, port=server.port)
    first = exporter.poll_started_after(killed_at)
    up = exporter.wait_for(lambda poll: poll.number > first.number and poll.value("up") == 1)
    last = exporter.wait_for_polls(3, since=up)
    fake.close()
    assert up.value("slots") == 1
    for poll in [first, *exporter.between(first, last)]:
        assert not {name for name in poll.model_series if any(part in name for part in of_process)}
    assert "has no model loaded" in exporter.log
    server.start().wait_until_loaded()
    restarted = exporter.wait_for(lambda poll: poll.number > last.number and poll.value("memory_usage_bytes"))
    assert restarted.value("thread_count") > 0


@needs_root
def test_a_privileged_exporter_and_an_unprivileged_server(start_program):
    server = start_program(*SMALL, uid=NOBODY)
    report = run_check(server.url)
    assert_process(report, server.pid)
    assert report.value("kv_cache_limit_bytes") > 0


@needs_root
def test_an_unprivileged_exporter_and_server(start_program):
    server = start_program(*SMALL, uid=NOBODY)
    report = run_check(server.url, uid=NOBODY)
    assert_process(report, server.pid)
    assert report.value("kv_cache_limit_bytes") > 0


@needs_root
def test_an_unprivileged_exporter_and_a_privileged_server(server):
    """Its descriptors cannot be read, so the command line identifies it. Its environment is not guessed."""
    report = run_check(server.url, uid=NOBODY)
    assert_process(report, server.pid)
    assert report.value("kv_cache_limit_bytes") is None


@needs_root
def test_two_processes_with_the_same_port_argument_are_ambiguous(start_program):
    server = start_program(*SMALL)
    other = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)", "--port", str(server.port)])
    try:
        report = run_check(server.url, uid=NOBODY)
        assert report.value("memory_usage_bytes") is None
        assert "2 processes have the server's port on their command lines" in report.notes
        # Root can see which process owns the socket.
        assert_process(run_check(server.url), server.pid)
    finally:
        other.kill()
        other.wait()


def test_a_pid_file(start_program, tmp_path):
    server = start_program(*SMALL)
    pid_file = tmp_path / "pid"
    pid_file.write_text(f"{server.pid}\n")
    assert_process(run_check(server.url, "--pid-file", pid_file), server.pid)
    pid_file.write_text("999999999\n")
    report = run_check(server.url, "--pid-file", pid_file)
    assert report.value("memory_usage_bytes") is None and "no process has the PID" in report.notes


def test_each_model_of_a_router_has_its_own_process(start_router, start_exporter):
    router = start_router()
    for model, tokens in {ALPHA: 5, BETA: 50}.items():
        router.stream(model, tokens).wait()
    exporter = start_exporter(router.url)
    poll = exporter.wait_for(
        lambda poll: all(poll.value("kv_cache_limit_bytes", model=model) is not None for model in (ALPHA, BETA))
    )
    for model in (ALPHA, BETA):
        pid = router.model_pid(model)
        assert_process(poll, pid, model=model)
        assert poll.value("process_cpu_seconds_total", model=model) == pytest.approx(cpu_seconds(pid), abs=0.2)
        # -c 8192 -np 2: 3 layers of 8192 cells, 15 of 2 x 1024, 1 KiB a cell and layer.
        assert poll.value("kv_cache_limit_bytes", model=model) == (3 * 8192 + 15 * 2048) * 1024


def run_with_pid(pid, command):
    """Starts a command with that PID, which must be free."""
    for _ in range(200):
        try:
            with open("/proc/sys/kernel/ns_last_pid", "w") as last:
                last.write(str(pid - 1))
        except OSError as error:
            pytest.skip(f"the next PID cannot be chosen: {error}")
        process = subprocess.Popen(command)
        if process.pid == pid:
            return process
        process.kill()
        process.wait()
    pytest.skip("other processes took the PID each time")


@needs_root
def test_a_pid_file_whose_pid_was_reused(start_program, replay, start_exporter, tmp_path):
    """Another process has the PID from the file, and something answers at the port."""
    server = start_program(*SMALL)
    pid = server.pid
    pid_file = tmp_path / "pid"
    pid_file.write_text(f"{pid}\n")
    exporter = start_exporter(server.url, "--pid-file", pid_file, interval="500ms")
    exporter.wait_for(lambda poll: poll.value("memory_usage_bytes"))
    server.kill()
    other = run_with_pid(pid, ["sleep", "1000"])
    try:
        replay(FAKE_SERVER, port=server.port)
        first = exporter.poll_started_after(time.monotonic())
        last = exporter.wait_for(lambda poll: poll.number >= first.number + 4 and poll.value("up") == 1)
        polls = [first, *exporter.between(first, last)]
        assert [poll.value("memory_usage_bytes") for poll in polls] == [None] * len(polls)
        assert "now belongs to another process" in exporter.log
    finally:
        other.kill()
        other.wait()


def test_gpu_memory_from_nvidia_smi(start_program, start_exporter, tmp_path, monkeypatch):
    """A script stands in for nvidia-smi: this needs no NVIDIA GPU."""
    server = start_program(*SMALL)
    program = tmp_path / "bin" / "nvidia-smi"
    program.parent.mkdir()
    program.write_text(
        "#!/bin/sh\n"
        "while :; do\n"
        "    case $1 in\n"
        "    --query-gpu=*) echo '3, GPU-a, 570.124.06, 37, 54, 600, 81559, 80400, 287.31, NVIDIA H100 80GB HBM3' ;;\n"
        f"    *) echo '{server.pid}, GPU-a, 512'; echo '1, GPU-a, 64' ;;\n"
        "    esac\n"
        "    sleep 0.2\n"
        "done\n"
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent), prepend=os.pathsep)
    exporter = start_exporter(server.url)
    poll = exporter.wait_for(lambda poll: poll.value("process_gpu_memory_bytes", gpu="3") is not None)
    assert poll.value("process_gpu_memory_bytes", gpu="3") == 512 << 20
    assert poll.value("gpu_memory_used_bytes", gpu="3") == 600 << 20


def test_sleep_idle_seconds_is_read_from_the_command_line(start_program, start_exporter):
    """In this build /metrics keeps the server awake, and the exporter has no --sleep-idle-seconds of its own."""
    server = start_program(*SMALL, "--sleep-idle-seconds", "4")
    exporter = start_exporter(server.url)
    server.stream(5).wait()
    asleep = exporter.wait_for_status("sleeping")
    assert asleep.value("memory_usage_bytes") > 0
    assert asleep.value("kv_cache_limit_bytes") is None


def cpu_seconds_per_poll(exporter, seconds):
    """CPU time of one poll, averaged over so many seconds."""
    before = cpu_seconds(exporter.pid), exporter.poll_count()
    time.sleep(seconds)
    after = cpu_seconds(exporter.pid), exporter.poll_count()
    assert after[1] > before[1] + 10
    cost = (after[0] - before[0]) / (after[1] - before[1])
    print(f"{cost * 1000:.2f} ms a poll, of {after[1] - before[1]}")
    return cost


def test_a_poll_costs_little(start_program, start_exporter):
    """Not much more CPU time than without process metrics; the process lookup happens once."""
    server = start_program("-c", "4096", "-np", "2")
    exporter = start_exporter(server.url, interval="100ms")
    known = exporter.wait_for(lambda poll: poll.number >= 5 and poll.value("kv_cache_limit_bytes"))
    assert known.value("memory_usage_bytes")
    # From here on, nothing scrapes them.
    with_process = start_exporter(server.url, interval="100ms", record_polls=False)
    without_process = start_exporter(server.url, "--procfs", "/nonexistent", interval="100ms", record_polls=False)
    exporter.stop()
    time.sleep(1)
    with ThreadPoolExecutor() as pool:
        cost, base_cost = pool.map(cpu_seconds_per_poll, (with_process, without_process), (10, 10))
    assert cost < 5 * base_cost
    assert with_process.log.count("found the server process") == 1


DESCRIPTORS = """
import os, resource, sys
resource.setrlimit(resource.RLIMIT_NOFILE, (10100, max(10100, resource.getrlimit(resource.RLIMIT_NOFILE)[1])))
files = [os.open("/dev/null", os.O_RDONLY) for _ in range(10000)]
print("open", flush=True)
sys.stdin.read()
"""


@needs_root
def test_a_failed_process_lookup_backs_off(replay, start_exporter):
    """Beside processes with 30,000 descriptors, all of which each lookup has to read."""
    command = [sys.executable, "-c", DESCRIPTORS]
    full = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) for _ in range(3)]
    try:
        assert all(process.stdout.readline() == b"open\n" for process in full)
        exporter = start_exporter(replay(FAKE_SERVER).url, interval="100ms", record_polls=False)
        wait_for(lambda: "has no model loaded" in exporter.log, lambda: f"the process lookup:\n{exporter.log}")
        lookup = cpu_seconds(exporter.pid)
        # Lookups: at the first poll, after 5 seconds, and after 10 more.
        assert cpu_seconds_per_poll(exporter, 10) < lookup / 4
        assert exporter.log.count("has no model loaded") == 1
    finally:
        for process in full:
            process.kill()
            process.wait()
