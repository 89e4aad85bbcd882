import pytest


@pytest.fixture(params=["llama-server", "python"])
def server(request, start_program, start_build):
    """A server that is a program of its own, and one inside a Python process."""
    if request.param == "llama-server":
        return start_program("-c", "4096", "-np", "2")
    return start_build(10068)
