import os
import shutil
import subprocess

import pytest

from support import ROOT
from support.llama_server import XllamacppServer

# The newest build: it has every metric that the dashboard shows.
BUILD = 11549


@pytest.fixture(scope="session")
def debian():
    """Returns the path of a program, whose Debian package is installed if it is missing."""

    def find(program, package):
        if path := shutil.which(program):
            return path
        if os.geteuid() == 0 and shutil.which("apt-get"):
            quiet = {"stdout": subprocess.DEVNULL, "env": os.environ | {"DEBIAN_FRONTEND": "noninteractive"}}
            subprocess.run(["apt-get", "update", "-qq"], **quiet)
            install = ["apt-get", "install", "-qq", "--yes", "--no-install-recommends", package]
            subprocess.run(install, check=True, **quiet)
            if path := shutil.which(program):
                return path
        pytest.fail(f"{program} is missing: install Debian's package {package}, or its equivalent")

    return find


@pytest.fixture(scope="module")
def new_llama_server(tmp_path_factory):
    """A llama.cpp server of two slots that has not been started yet."""
    subprocess.run([ROOT / "scripts" / "setup", str(BUILD)], check=True)
    server = XllamacppServer(BUILD, tmp_path_factory.mktemp("llama") / "log")
    yield server
    server.kill()


@pytest.fixture(scope="module")
def llama_server(new_llama_server):
    return new_llama_server.start().wait_until_loaded()
