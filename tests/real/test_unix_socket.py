"""Real servers that listen on a Unix socket."""

import signal
import tempfile
from pathlib import Path

import pytest

from support.live_tokens import follow
from support.process import proc_status, resident_bytes
from support.wait import wait_for


@pytest.fixture
def folder():
    """A folder whose path leaves room: that of a socket has 107 bytes at most."""
    with tempfile.TemporaryDirectory(prefix="llama-") as path:
        yield Path(path)


@pytest.fixture
def start_on_socket(start_program, folder):
    return lambda *arguments: start_program(*arguments, socket="x.sock", cwd=folder)


def test_everything_of_a_server_is_read_over_its_socket(one_core, start_on_socket, start_exporter):
    server = start_on_socket("-c", "4096", "-np", "2", "-lv", "4")
    exporter = start_exporter(server.url, interval="500ms")
    idle = exporter.wait_for_status("idle")
    assert idle.labels("server_info")["server"] == server.url
    assert idle.value("slots") == 2
    assert idle.value("kv_cache_limit_bytes") == pytest.approx(sum(server.kv_cache_mebibytes()) * 2**20)
    assert idle.value("memory_usage_bytes") == pytest.approx(resident_bytes(server.pid), rel=0.1)
    assert idle.value("thread_count") == pytest.approx(int(proc_status(server.pid)["Threads"]), abs=3)


def test_tokens_are_live_over_a_socket(one_core, start_on_socket, start_exporter):
    server = start_on_socket()
    tokens = server.tokens_for(seconds=3)
    exporter = start_exporter(server.url, interval="500ms")
    idle = exporter.wait_for_status("idle")
    done, counted, _ = follow(exporter, server.stream(tokens).wait(), idle)
    assert counted == tokens
    assert done.status == "idle"
    assert done.errors() == 0


def test_a_server_on_a_socket_falls_asleep_and_its_socket_is_found_again(start_on_socket, start_exporter):
    server = start_on_socket("--sleep-idle-seconds", "4")
    exporter = start_exporter(server.url, interval="500ms")
    exporter.wait_for_status("idle")
    server.stream(5).wait()
    assert exporter.wait_for_status("sleeping").errors() == 0
    server.signal(signal.SIGKILL)
    # The socket stays, and the next server cannot replace it.
    down = exporter.wait_for(lambda poll: poll.value("up") == 0)
    assert down.errors(reason="connect") > 0
    assert not down.model_series
    wait_for(lambda: "nothing listens on the socket" in exporter.log, lambda: exporter.log)
    server.port.unlink()
    server.start().wait_until_loaded()
    assert exporter.wait_for(lambda poll: poll.ended_after > down.ended_before and poll.value("up") == 1)


def test_one_of_several_addresses_may_be_a_socket(start_build, start_exporter, folder):
    """b11549 listens on all addresses of a list."""
    socket = folder / "x.sock"
    server = start_build(11549, "--host", f"127.0.0.1,{socket}")
    server.stream(5).wait()
    exporter = start_exporter(f"unix:{socket}", interval="500ms")
    idle = exporter.wait_for_status("idle")
    assert idle.value("generated_tokens_total") == server.counter("tokens_predicted_total") == 5
    assert idle.value("memory_usage_bytes") > 0
