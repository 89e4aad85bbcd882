"""A poll that never ends: its server is reported down, and the other servers are still polled.

Every wait of a poll has a deadline, so the test stops the poll's thread with ptrace.
"""

import ctypes
from contextlib import contextmanager

import pytest

from support import RECORDINGS
from support.process import threads_named
from support.replay import OK, Response, from_file
from support.wait import wait_for

PTRACE_DETACH, PTRACE_SEIZE, PTRACE_INTERRUPT = 17, 0x4206, 0x4207


@contextmanager
def stopped(thread):
    """Stops one thread; the rest of the process runs."""
    ptrace = ctypes.CDLL(None, use_errno=True).ptrace
    if ptrace(PTRACE_SEIZE, thread, None, None):
        pytest.skip("ptrace is not permitted")
    ptrace(PTRACE_INTERRUPT, thread, None, None)
    try:
        yield
    finally:
        ptrace(PTRACE_DETACH, thread, None, None)


def responses():
    folder = RECORDINGS / "llama-server" / "b7376"
    files = {
        "/props": "props.json",
        "/v1/models": "models.json",
        "/slots": "slots-busy.json",
        "/metrics": "metrics-busy.txt",
    }
    return {"/health": Response(OK)} | {path: from_file(folder / file) for path, file in files.items()}


@pytest.mark.parametrize("number", [1, 2])
def test_only_the_server_with_the_blocked_poll_is_down(number, replay, start_exporter):
    urls = [replay(responses()).url for _ in range(number)]
    exporter = start_exporter(",".join(urls), "--timeout", "500ms", interval="200ms", record_polls=False)

    def down():
        return [sample for sample in exporter.exposition().find("up") if sample.value == 0]

    def with_tokens():
        return exporter.exposition().find("generated_tokens_total")

    wait_for(lambda: len(with_tokens()) == number, "tokens of every server")
    with stopped(int(threads_named(exporter.pid, "poll")[0].name)):
        wait_for(down, "a server to be down")
        assert len(down()) == 1
        assert len(with_tokens()) == number - 1, exporter.scrape()
        assert exporter.get("/healthz")[0] == (503 if number == 1 else 200)
    wait_for(lambda: len(with_tokens()) == number and not down(), "every server to be up")
    assert exporter.get("/healthz")[0] == 200
