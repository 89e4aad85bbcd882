import pytest
from watch import Watching


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
