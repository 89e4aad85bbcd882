"""Memory, processor time and threads are those of the right process, and of no other."""

import os
import re
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from exporter import BINARY
from router import ALPHA, BETA, Router
from servers import NOBODY, Impostor, as_user, check, pidstat, processor_seconds, resident, status_of


def nobody_may_look():
    can = as_user(NOBODY, ["test", "-x", str(BINARY)])
    return os.geteuid() == 0 and subprocess.run(can).returncode == 0


needs_root = pytest.mark.skipif(
    not nobody_may_look(), reason="only root can run things as another user, who must be able to reach them"
)


def assert_told(values, pid):
    assert values["memory_usage_bytes"] == pytest.approx(resident(pid), rel=0.01)
    assert values["thread_count"] == int(status_of(pid)["Threads"])


def test_memory_and_threads(server):
    server.stream(30).wait()
    _, values = check(server.url)
    assert_told(values, server.process.pid)
    assert values["total_memory_bytes"] > values["memory_usage_bytes"]


SECONDS = 3


def test_processor_time_under_load(one_core, server, start_exporter):
    """Over the same seconds pidstat says the same, to within five points of all processors."""
    exporter = start_exporter(server.url, interval=f"{SECONDS}s")
    enough = threading.Event()

    def load():
        while not enough.is_set():
            server.stream(50).wait()

    loading = threading.Thread(target=load)
    loading.start()
    try:
        first = exporter.poll_begun_after(time.monotonic())
        measured = pidstat(server.process.pid, SECONDS)
        second = exporter.wait_for(lambda poll: poll.number == first.number + 1)
    finally:
        enough.set()
        loading.join()
    assert measured > 10, "the server was not at work"
    told = second.value("cpu_utilization_percent")
    expected = measured / len(os.sched_getaffinity(server.process.pid))
    print(f"told {told:.1f} %, pidstat {expected:.1f} %")
    assert told == pytest.approx(expected, abs=5)
    spent = second.value("process_cpu_seconds_total") - first.value("process_cpu_seconds_total")
    assert spent == pytest.approx(measured / 100 * SECONDS, abs=0.3)


def test_gone_at_once_and_not_taken_over(start_program, start_exporter):
    server = start_program("-c", "2048", "-np", "1")
    exporter = start_exporter(server.url, interval="500ms")
    exporter.wait_for(lambda poll: poll.value("memory_usage_bytes"))
    server.kill()
    killed = time.monotonic()
    of_process = ("memory_usage", "thread_count", "cpu", "kv_cache_limit")
    # Something else answers at its port as a llama-server does, and holds no model.
    with Impostor(server.port):
        began = exporter.poll_begun_after(killed)
        taken_over = exporter.wait_for(lambda poll: poll.number > began.number and poll.value("up") == 1)
        later = exporter.wait_for(lambda poll: poll.number >= taken_over.number + 3)
    assert taken_over.value("slots") == 1
    for poll in [began, *exporter.between(began, later)]:
        assert not {name for name in poll.model_series if any(part in name for part in of_process)}
    assert "holds no model" in exporter.log
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
        assert "2 processes are called with the server's port" in report
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


def child_of(router, model):
    """The process that holds one of a router's models, by the port that it was told."""
    words = router.models()[model]["args"]
    port = words[words.index("--port") + 1]
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            called = (process / "cmdline").read_text().split("\0")
        except OSError:
            continue
        if called[0].endswith("llama-server") and ["--port", port] in [called[i : i + 2] for i in range(len(called))]:
            found.append(int(process.name))
    assert len(found) == 1
    return found[0]


def test_each_model_of_a_router_has_a_process_of_its_own(tmp_path, start_exporter):
    router = Router(tmp_path / "router")
    try:
        router.start()
        for model in (ALPHA, BETA):
            router.stream(model, 5 if model == ALPHA else 50).wait()
        exporter = start_exporter(router.url)
        named = [{"model": ALPHA}, {"model": BETA}]
        told = exporter.wait_for(
            lambda poll: all(poll.value("kv_cache_limit_bytes", **model) is not None for model in named)
        )
        for model in named:
            pid = child_of(router, model["model"])
            assert told.value("memory_usage_bytes", **model) == pytest.approx(resident(pid), rel=0.01)
            assert told.value("thread_count", **model) == int(status_of(pid)["Threads"])
            spent = told.value("process_cpu_seconds_total", **model)
            assert spent == pytest.approx(processor_seconds(pid), abs=0.2)
            # -c 8192 -np 2: 3 layers of 8192 cells, 15 of 2 x 1024, 1 KiB a cell and layer.
            assert told.value("kv_cache_limit_bytes", **model) == (3 * 8192 + 15 * 2048) * 1024
    finally:
        router.kill()


def run_as_number(pid, command):
    """Runs a command as the process of that number, which must be free."""
    for _ in range(200):
        try:
            with open("/proc/sys/kernel/ns_last_pid", "w") as last:
                last.write(str(pid - 1))
        except OSError as error:
            pytest.skip(f"the number of the next process cannot be chosen here: {error}")
        process = subprocess.Popen(command)
        if process.pid == pid:
            return process
        process.kill()
        process.wait()
    pytest.skip("others take the number each time")


@needs_root
def test_a_number_that_another_process_has_by_now(start_program, start_exporter, tmp_path):
    """The PID file still says it, and something answers at the port."""
    server = start_program("-c", "2048", "-np", "1")
    pid = server.process.pid
    file = tmp_path / "pid"
    file.write_text(f"{pid}\n")
    exporter = start_exporter(server.url, interval="500ms", pid_file=file)
    exporter.wait_for(lambda poll: poll.value("memory_usage_bytes"))
    server.kill()
    other = run_as_number(pid, ["sleep", "1000"])
    try:
        with Impostor(server.port):
            began = exporter.poll_begun_after(time.monotonic())
            last = exporter.wait_for(lambda poll: poll.number >= began.number + 4 and poll.value("up") == 1)
            polls = [began, *exporter.between(began, last)]
            assert [poll.value("memory_usage_bytes") for poll in polls] == [None] * len(polls)
        assert "is another process's by now" in exporter.log
    finally:
        other.kill()
        other.wait()


def test_what_nvidia_smi_says_of_the_process(start_program, start_exporter, tmp_path, monkeypatch):
    """The lines are written by hand: no machine with an NVIDIA GPU was to be had."""
    server = start_program("-c", "2048", "-np", "1")
    program = tmp_path / "bin" / "nvidia-smi"
    program.parent.mkdir()
    program.write_text(
        "#!/bin/sh\n"
        "while :; do\n"
        "    case $1 in\n"
        "    --query-gpu=*) echo '3, GPU-a, 570.124.06, 37, 54, 600, 81559, 287.31, NVIDIA H100 80GB HBM3' ;;\n"
        f"    *) echo '{server.process.pid}, GPU-a, 512'; echo '1, GPU-a, 64' ;;\n"
        "    esac\n"
        "    sleep 0.2\n"
        "done\n"
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent), prepend=os.pathsep)
    exporter = start_exporter(server.url)
    told = exporter.wait_for(lambda poll: poll.value("process_gpu_memory_bytes", gpu="3") is not None)
    assert told.value("process_gpu_memory_bytes", gpu="3") == 512 << 20
    assert told.value("gpu_memory_used_bytes", gpu="3") == 600 << 20


def test_a_server_that_says_so_on_its_command_line_falls_asleep(start_program, start_exporter):
    """On this build /metrics keeps a server awake, and nobody has told the exporter but its arguments."""
    server = start_program("-c", "2048", "-np", "1", "--sleep-idle-seconds", "4")
    exporter = start_exporter(server.url, interval="1s")
    server.stream(5).wait()
    asleep = exporter.wait_for_status("sleeping")
    assert asleep.value("memory_usage_bytes") > 0
    assert asleep.value("kv_cache_limit_bytes") is None


def cost_of_polls(exporter, seconds):
    """Processor time of one poll, from those of some seconds."""
    polls = lambda: int(re.search(r"^llamacpp_exporter_polls_total (\d+)$", exporter.scrape(), re.MULTILINE)[1])  # noqa: E731
    before = processor_seconds(exporter.process.pid), polls()
    time.sleep(seconds)
    after = processor_seconds(exporter.process.pid), polls()
    assert after[1] > before[1] + 10
    cost = (after[0] - before[0]) / (after[1] - before[1])
    print(f"{cost * 1000:.2f} ms a poll, of {after[1] - before[1]}")
    return cost


def test_a_poll_costs_little(start_program, start_exporter):
    """Not much more processor time than without all of this; the process is looked for once."""
    server = start_program("-c", "4096", "-np", "2")
    exporter = start_exporter(server.url, interval="100ms")
    known = exporter.wait_for(lambda poll: poll.number >= 5 and poll.value("kv_cache_limit_bytes"))
    assert known.value("memory_usage_bytes")
    # From here on it only polls.
    unwatched = start_exporter(server.url, interval="100ms", unwatched=True)
    without = start_exporter(server.url, interval="100ms", unwatched=True, procfs="/nonexistent")
    exporter.stop()
    time.sleep(1)
    with ThreadPoolExecutor() as both:
        cost, least = both.map(cost_of_polls, (unwatched, without), (10, 10))
    assert cost < 5 * least
    assert unwatched.log.count("the process that holds the model is found") == 1


DESCRIPTORS = """
import os, resource, sys
resource.setrlimit(resource.RLIMIT_NOFILE, (10100, max(10100, resource.getrlimit(resource.RLIMIT_NOFILE)[1])))
files = [os.open("/dev/null", os.O_RDONLY) for _ in range(10000)]
print("open", flush=True)
sys.stdin.read()
"""


@needs_root
def test_a_search_that_fails_is_not_made_at_every_poll(start_exporter):
    """Beside processes with 30,000 descriptors, through all of which each search has to look."""
    command = [sys.executable, "-c", DESCRIPTORS]
    full = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) for _ in range(3)]
    try:
        assert all(process.stdout.readline() == b"open\n" for process in full)
        with Impostor() as impostor:
            exporter = start_exporter(impostor.url, interval="100ms", unwatched=True)
            while "holds no model" not in exporter.log:
                assert exporter.process.poll() is None, exporter.log
                time.sleep(0.05)
            search = processor_seconds(exporter.process.pid)
            # Looked for at the first poll, after 5 seconds and after 10 more.
            assert cost_of_polls(exporter, 10) < search / 4
            assert exporter.log.count("holds no model") == 1
    finally:
        for process in full:
            process.kill()
            process.wait()
