import pytest
from llama import LlamaServer

BUILDS = (7710, 8672, 10068, 11549)


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
