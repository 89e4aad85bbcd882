import os
import shutil
import socket
import subprocess
import threading
import time
import urllib.request
from pathlib import Path

import pytest
from exporter import BINARY
from llama import LlamaServer, free_port as any_free_port

ROOT = Path(__file__).resolve().parents[2]

# The newest: it has every metric that the dashboard shows.
BUILD = 11549


@pytest.fixture(scope="session")
def free_port():
    return any_free_port


@pytest.fixture(scope="session")
def port_is_free():
    def is_free(port):
        with socket.create_server(("", port)) as probe:
            return bool(probe)

    def asked(port):
        try:
            return is_free(port)
        except OSError:
            return False

    return asked


@pytest.fixture(scope="session")
def debian():
    """The path of a program; its Debian package is installed where it is missing."""

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
        pytest.fail(f"{program} is missing: install Debian's package {package}, or what has it here")

    return find


@pytest.fixture(scope="module")
def run():
    """Starts a program, waits until it answers, and ends it with the tests of the file."""
    started = []

    def start(command, ready, log, patience=20):
        with open(log, "wb") as output:
            process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
        started.append(process)
        deadline = time.monotonic() + patience
        while not answers(ready):
            if process.poll() is not None or time.monotonic() > deadline:
                pytest.fail(f"{command[0]} does not answer at {ready}:\n{Path(log).read_text()}")
            time.sleep(0.05)

    yield start
    for process in reversed(started):
        process.terminate()
    for process in reversed(started):
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def answers(url):
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return answer.status == 200
    except OSError:
        return False


@pytest.fixture(scope="module")
def new_llama_server(tmp_path_factory):
    """A llama.cpp server of two slots that has not been started yet."""
    subprocess.run([ROOT / "scripts" / "setup", str(BUILD)], check=True)
    server = LlamaServer(BUILD, tmp_path_factory.mktemp("llama") / "log")
    yield server
    server.kill()


@pytest.fixture(scope="module")
def llama_server(new_llama_server):
    return new_llama_server.start().wait_until_loaded()


@pytest.fixture(scope="module")
def exporter_under_load(new_llama_server, run, tmp_path_factory):
    """Starts an exporter; four clients keep its server at work until the tests of the file are over."""
    over = threading.Event()

    def start(port):
        url = f"http://127.0.0.1:{port}"
        command = [BINARY, "--base-url", new_llama_server.url, "--addr", f":{port}", "--interval", "1s"]
        # Before its server, so that it has something to say of failed polls.
        run(command, ready=f"{url}/readyz", log=tmp_path_factory.mktemp("exporter") / "log")
        new_llama_server.start().wait_until_loaded()
        for number in range(4):
            threading.Thread(target=ask_again_and_again, args=(number,), daemon=True).start()
        return url

    def ask_again_and_again(number):
        while not over.is_set():
            try:
                new_llama_server.stream(300, prompt=f"Client {number} asks: tell me more").wait()
            except Exception:
                # At the end the server is killed under them.
                if not over.is_set():
                    raise

    yield start
    over.set()
