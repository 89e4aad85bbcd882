import functools

import pytest

# The llama.cpp builds with which everything must be right; scripts/test installs them.
BUILDS = (7710, 8672, 10068, 11549)


@pytest.fixture(params=BUILDS, ids=lambda build: f"b{build}")
def build(request):
    return request.param


@pytest.fixture
def start_server(build, start_build):
    """Starts the server of the build that the test runs with."""
    return functools.partial(start_build, build)
