import importlib.util
import sys
from pathlib import Path

import pytest

# The exporter, the servers and the clients of the other tests on real servers.
REAL = Path(__file__).resolve().parents[1] / "real"
sys.path.insert(0, str(REAL))

from exporter import Exporter  # noqa: E402
from llama import LlamaServer  # noqa: E402
from servers import LlamaServerProgram  # noqa: E402

spec = importlib.util.spec_from_file_location("conftest_of_real", REAL / "conftest.py")
of_real = importlib.util.module_from_spec(spec)
spec.loader.exec_module(of_real)
one_core, all_cores = of_real.one_core, of_real.all_cores


def pytest_collection_modifyitems(items):
    """What waits longest begins first."""
    items.sort(key=lambda item: item.path.name != "test_process.py")


@pytest.fixture
def start_program(tmp_path):
    """Starts llama-server itself, and waits until its model is loaded."""
    servers = []

    def start(*arguments, **settings):
        server = LlamaServerProgram(tmp_path / f"server-{len(servers)}.log", arguments, **settings)
        servers.append(server)
        return server.start().wait_until_loaded()

    yield start
    for server in servers:
        server.kill()


@pytest.fixture(params=["llama-server", "python"])
def server(request, tmp_path, start_program):
    """A server that is a program of its own, and one inside a Python process."""
    if request.param == "llama-server":
        yield start_program("-c", "4096", "-np", "2")
        return
    server = LlamaServer(10068, tmp_path / "python.log")
    yield server.start().wait_until_loaded()
    server.kill()


@pytest.fixture
def start_exporter(tmp_path):
    exporters = []

    def start(base_url, **settings):
        exporter = Exporter(base_url, tmp_path / f"exporter-{len(exporters)}.log", **settings)
        exporters.append(exporter)
        return exporter

    yield start
    for exporter in exporters:
        exporter.stop()
