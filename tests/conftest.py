"""Fixtures of all Python tests, and the order in which the tests run."""

import itertools
import os

import pytest

from support import cores
from support.exporter import Exporter
from support.llama_server import LlamaServerProgram, XllamacppServer
from support.replay import ReplayServer
from support.router import Router

# The longest tests, which mostly wait, start first; one that needs the machine for itself comes last.
FIRST = ("test_sleep.py", "test_router.py", "test_log.py", "test_probe.py", "test_process.py", "test_long_prompt.py")
LAST = ("test_observer_cost.py",)


def pytest_collection_modifyitems(items):
    def position(item):
        name = item.path.name
        return FIRST.index(name) if name in FIRST else len(FIRST) + (name in LAST)

    items.sort(key=position)


def pytest_terminal_summary(terminalreporter):
    """Appends the tests that were run again to the file that scripts/test prints at its end."""
    if path := os.environ.get("RERUNS"):
        with open(path, "a") as reruns:
            reruns.writelines(f"{report.nodeid}\n" for report in terminalreporter.stats.get("rerun", []))


@pytest.fixture
def one_core():
    """Holds a core for a test that keeps one busy."""
    with cores.one_core():
        yield


@pytest.fixture
def all_cores():
    """Holds every core, for a test that measures."""
    with cores.all_cores():
        yield


@pytest.fixture
def log_path(tmp_path):
    """Returns a new path for the output of a process."""
    numbers = itertools.count()
    return lambda name: tmp_path / f"{name}-{next(numbers)}.log"


@pytest.fixture
def start_exporter(request, log_path):
    """Starts an exporter of one base URL, or of several separated by commas."""

    def start(base_url, *options, **settings):
        exporter = Exporter(base_url, log_path("exporter"), *options, **settings)

        def finish():
            print(exporter.log, exporter.summary(), sep="\n")
            exporter.stop()

        request.addfinalizer(finish)
        return exporter

    return start


@pytest.fixture
def start(request):
    """Starts a server and waits until its model is loaded."""

    def start(server):
        request.addfinalizer(server.kill)
        return server.start().wait_until_loaded()

    return start


@pytest.fixture
def start_build(start, log_path):
    """Starts the server of a llama.cpp build."""
    return lambda build, *options, **settings: start(XllamacppServer(build, log_path("server"), *options, **settings))


@pytest.fixture
def start_program(start, log_path):
    """Starts the llama-server program."""
    return lambda *arguments, **settings: start(LlamaServerProgram(log_path("server"), *arguments, **settings))


@pytest.fixture
def start_router(start, log_path):
    """Starts llama-server in router mode."""
    return lambda **settings: start(Router(log_path("router"), **settings))


@pytest.fixture
def replay(request):
    """Starts a server that answers with recordings."""

    def start(*args, **settings):
        server = ReplayServer(*args, **settings)
        request.addfinalizer(server.close)
        return server

    return start
