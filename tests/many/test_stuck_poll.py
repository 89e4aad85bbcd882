"""A poll that never ends: its server has no values any more, and the exporter goes on with the others.

What a poll waits for has a deadline each; so its thread is stopped by a debugger's means here.
"""

import ctypes
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
from exporter import PATIENCE, Poll, ask
from replay import RECORDINGS, Answer

PTRACE_DETACH, PTRACE_SEIZE, PTRACE_INTERRUPT = 17, 0x4206, 0x4207


@contextmanager
def stopped(thread):
    """The thread does nothing meanwhile; the process goes on."""
    ptrace = ctypes.CDLL(None, use_errno=True).ptrace
    if ptrace(PTRACE_SEIZE, thread, None, None):
        pytest.skip("no debugger may be attached here")
    ptrace(PTRACE_INTERRUPT, thread, None, None)
    try:
        yield
    finally:
        ptrace(PTRACE_DETACH, thread, None, None)


def poll_threads(exporter):
    tasks = Path(f"/proc/{exporter.process.pid}/task").iterdir()
    return [int(task.name) for task in tasks if (task / "comm").read_text().strip() == "poll"]


def answers():
    recorded = RECORDINGS / "llama-server" / "b7376"
    files = {"/props": "props.json", "/v1/models": "models.json", "/slots": "slots-busy.json"}
    served = {path: Answer((recorded / file).read_text()) for path, file in files.items()}
    metrics = Answer((recorded / "metrics-busy.txt").read_text(), type="text/plain; version=0.0.4")
    return served | {"/health": Answer('{"status":"ok"}'), "/metrics": metrics}


def wait_until(condition):
    deadline = time.monotonic() + PATIENCE
    while not (found := condition()):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    return found


@pytest.mark.parametrize("number", [1, 2])
def test_a_server_whose_poll_is_stuck_is_down_and_the_others_are_not(number, replay, start_exporter):
    servers = [replay(answers()) for _ in range(number)]
    urls = [f"http://127.0.0.1:{server.port}" for server in servers]
    exporter = start_exporter(",".join(urls), interval="200ms", timeout="500ms", unwatched=True)

    def down():
        poll = Poll(0, 0, 0, exporter.scrape())
        return [sample.labels for sample in poll.samples if sample.name == "llamacpp_up" and sample.value == 0]

    def with_tokens():
        poll = Poll(0, 0, 0, exporter.scrape())
        return [sample for sample in poll.samples if sample.name == "llamacpp_generated_tokens_total"]

    wait_until(lambda: len(with_tokens()) == number)
    with stopped(poll_threads(exporter)[0]):
        wait_until(down)
        assert len(down()) == 1
        assert len(with_tokens()) == number - 1, exporter.scrape()
        status = ask(exporter.port, "/healthz").split()[1]
        assert status == ("503" if number == 1 else "200")
    wait_until(lambda: len(with_tokens()) == number and not down())
    assert ask(exporter.port, "/healthz").split()[1] == "200"
