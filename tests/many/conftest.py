import importlib.util
import sys
from pathlib import Path

import pytest

REAL = Path(__file__).resolve().parents[1] / "real"
sys.path.insert(0, str(REAL))

from exporter import Exporter  # noqa: E402
from replay import Replay  # noqa: E402
from router import Router  # noqa: E402
from said import story  # noqa: E402

spec = importlib.util.spec_from_file_location("conftest_of_real", REAL / "conftest.py")
of_real = importlib.util.module_from_spec(spec)
spec.loader.exec_module(of_real)
one_core, all_cores = of_real.one_core, of_real.all_cores


def pytest_collection_modifyitems(items):
    """What waits longest begins first."""
    items.sort(key=lambda item: item.path.name != "test_router.py")


@pytest.fixture
def start_exporter(tmp_path):
    """Starts an exporter of one or several base URLs, separated by commas."""
    exporters = []

    def start(base_urls, **settings):
        exporter = Exporter(base_urls, tmp_path / f"exporter-{len(exporters)}.log", **settings)
        exporters.append(exporter)
        return exporter

    yield start
    for exporter in exporters:
        print(exporter.log, story(exporter.polls), sep="\n")
        exporter.stop()


@pytest.fixture
def replay():
    """Starts servers that answer what was recorded."""
    servers = []

    def start(*args, **settings):
        servers.append(Replay(*args, **settings))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


@pytest.fixture
def start_router(tmp_path):
    """Starts a genuine router."""
    routers = []

    def start(**settings):
        router = Router(tmp_path / f"router-{len(routers)}", **settings)
        routers.append(router)
        return router.start()

    yield start
    for router in routers:
        router.kill()
