import pytest
from llama import LlamaServer
from servers import LlamaServerProgram


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
