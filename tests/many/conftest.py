import pytest
from replay import Replay
from router import Router


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
