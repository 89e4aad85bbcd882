"""What the tests on real servers share: the exporter, and the machine's cores."""

import fcntl
import os
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import pytest

# The exporter, the servers and the clients that all of them use.
sys.path.insert(0, str(Path(__file__).with_name("real")))

from exporter import Exporter  # noqa: E402
from llama import INSTALLED  # noqa: E402

# What takes longest, most of it waiting, begins first; what wants the machine for itself comes last.
FIRST = ("test_sleep.py", "test_router.py", "test_log.py", "test_probe.py", "test_process.py", "test_long_prompt.py")
LAST = ("test_observer_cost.py",)


def pytest_collection_modifyitems(items):
    def turn(item):
        name = item.path.name
        return FIRST.index(name) if name in FIRST else len(FIRST) + (name in LAST)

    items.sort(key=turn)


def pytest_terminal_summary(terminalreporter):
    """Adds the tests that were run again to the file that scripts/test tells of at its end."""
    reruns = [report.nodeid for report in terminalreporter.stats.get("rerun", [])]
    if file := os.environ.get("RERUNS"):
        with open(file, "a") as list_of_reruns:
            list_of_reruns.writelines(f"{name}\n" for name in reruns)


@pytest.fixture
def start_exporter(tmp_path):
    """Starts an exporter of one base URL or of several, separated by commas, and keeps what it
    says at each poll."""
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
    return [INSTALLED / f".core-{number}" for number in range(min(count, 4))]


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
        for file in [INSTALLED / ".all-cores", *cores()]:
            lock = held.enter_context(open(file, "w"))
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield
