import fcntl
import os
import time
from contextlib import ExitStack
from pathlib import Path

import pytest
from exporter import Exporter
from llama import LlamaServer

BUILDS = (7710, 8672, 10068, 11549)
LOCKS = Path(__file__).resolve().parents[2] / "target" / "llama.cpp"


def pytest_collection_modifyitems(items):
    """What waits longest begins first; what wants the machine for itself comes last."""

    def turn(item):
        return {"test_sleep.py": 0, "test_long_prompt.py": 1, "test_observer_cost.py": 3}.get(item.path.name, 2)

    items.sort(key=turn)


@pytest.fixture(params=BUILDS, ids=lambda number: f"b{number}")
def build(request):
    """Each of the llama.cpp builds that everything must be right with."""
    return request.param


@pytest.fixture
def start_server(build, tmp_path):
    """Starts a llama.cpp server and waits until its model is loaded."""
    servers = []

    def start(**settings):
        server = LlamaServer(build, tmp_path / f"server-{len(servers)}.log", **settings)
        servers.append(server)
        return server.start().wait_until_loaded()

    yield start
    for server in servers:
        server.kill()


@pytest.fixture
def start_exporter(tmp_path):
    """Starts an exporter, and keeps what it says at each poll."""
    exporters = []

    def start(base_url, **settings):
        exporter = Exporter(base_url, tmp_path / f"exporter-{len(exporters)}.log", **settings)
        exporters.append(exporter)
        return exporter

    yield start
    for exporter in exporters:
        print(exporter.log, exporter.story(), sep="\n")
        exporter.stop()


# The tests run side by side, most of them waiting. What keeps a core busy takes
# one of these locks for as long, so that no more of it runs than there are cores.
# The system lets go of the locks of a process that dies.


def cores():
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return [LOCKS / f".core-{number}" for number in range(min(count, 4))]


def take(file):
    """Locks a file and returns it; None if another test has it."""
    lock = open(file, "w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.close()
        return None
    return lock


@pytest.fixture
def one_core():
    """No other test computes on the core that this one keeps busy."""
    while not (lock := next(filter(None, map(take, cores())), None)):
        time.sleep(0.1)
    with lock:
        yield


@pytest.fixture
def all_cores():
    """No other test computes while this one does."""
    with ExitStack() as held:
        # One test at a time may want all, or two could wait for each other for ever.
        for file in [LOCKS / ".all-cores", *cores()]:
            lock = held.enter_context(open(file, "w"))
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield
