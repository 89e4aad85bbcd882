import importlib.util
import sys
from pathlib import Path

import pytest

REAL = Path(__file__).resolve().parents[1] / "real"
sys.path.insert(0, str(REAL))

from watch import Watching  # noqa: E402

spec = importlib.util.spec_from_file_location("conftest_of_real", REAL / "conftest.py")
of_real = importlib.util.module_from_spec(spec)
spec.loader.exec_module(of_real)
one_core = of_real.one_core


def pytest_collection_modifyitems(items):
    """What takes longest begins first."""
    turns = ["test_log.py", "test_probe.py", "test_without_generation.py", "test_size.py"]
    items.sort(key=lambda item: turns.index(item.path.name))


@pytest.fixture
def start_server():
    """Starts a server and waits until its model is loaded."""
    servers = []

    def start(server):
        servers.append(server)
        return server.start().wait_until_loaded()

    yield start
    for server in servers:
        server.kill()


@pytest.fixture
def watch(tmp_path):
    """Starts an exporter."""
    exporters = []

    def start(base_url, *options, **settings):
        exporter = Watching(base_url, tmp_path / f"exporter-{len(exporters)}.log", *options, **settings)
        exporters.append(exporter)
        return exporter

    yield start
    for exporter in exporters:
        if exporter.process.poll() is None:
            exporter.stop()
