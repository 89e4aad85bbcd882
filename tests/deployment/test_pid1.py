"""The static binary as the first process of a PID namespace, with nothing else in its root: what it
is in a container."""

import os
import re
import select
import shutil
import signal
import subprocess
import time
import urllib.request
from pathlib import Path

import pytest
import static_binary

NAME = "upstream.example"
NOBODY = 65534
PATIENCE = 60


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A root with the binary in it, and the one file that a container's runtime adds."""
    if os.geteuid() != 0:
        pytest.skip("a PID namespace and chroot need root")
    folder = tmp_path_factory.mktemp("root")
    # Readable for the user that it runs as.
    folder.chmod(0o755)
    shutil.copy2(static_binary.build(), folder / "llamacpp-exporter")
    (folder / "etc").mkdir()
    (folder / "etc" / "hosts").write_text(f"127.0.0.1 {NAME}\n")
    return folder


class First:
    """The exporter as PID 1."""

    def __init__(self, root, port, upstream):
        self.url = f"http://127.0.0.1:{port}"
        self.outside = subprocess.Popen(
            ["unshare", "--fork", "--pid", "chroot", f"--userspec={NOBODY}:{NOBODY}", root, "/llamacpp-exporter"]
            + ["--addr", f"127.0.0.1:{port}", "--base-url", upstream, "--interval", "200ms"],
            stderr=subprocess.PIPE,
            text=True,
            env={"PATH": os.environ["PATH"]},
        )

    @property
    def pid(self):
        """Its number out here. None once it has ended."""
        children = Path(f"/proc/{self.outside.pid}/task/{self.outside.pid}/children")
        pids = children.read_text().split() if children.exists() else []
        return int(pids[0]) if pids else None

    def get(self, path):
        try:
            with urllib.request.urlopen(self.url + path, timeout=2) as answer:
                return answer.read().decode()
        except OSError:
            return None

    def wait_for(self, condition):
        deadline = time.monotonic() + PATIENCE
        while not condition():
            if self.outside.poll() is not None or time.monotonic() > deadline:
                self.end()
                pytest.fail(f"not what was waited for; its log:\n{self.outside.stderr.read()}")
            time.sleep(0.02)

    def end(self):
        if pid := self.pid:
            os.kill(pid, signal.SIGKILL)
        self.outside.wait(10)

    def status(self, key):
        return re.search(rf"^{key}:\s+(.*)$", Path(f"/proc/{self.pid}/status").read_text(), re.M)[1].split()


@pytest.fixture
def first(root, free_port, llama_server):
    started = First(root, free_port(), llama_server.url.replace("127.0.0.1", NAME))
    started.wait_for(lambda: started.get("/readyz") is not None)
    yield started
    started.end()


def test_the_binary_is_alone_in_its_root(root):
    assert {str(path.relative_to(root)) for path in root.rglob("*")} == {"llamacpp-exporter", "etc", "etc/hosts"}


def test_it_is_process_1_of_nobody(first):
    assert first.status("NSpid")[-1] == "1"
    assert first.status("Uid") == [str(NOBODY)] * 4


def test_it_serves_what_a_server_named_in_etc_hosts_says(first):
    first.wait_for(lambda: re.search(r"^llamacpp_up 1$", first.get("/metrics"), re.M))
    assert re.search(r"^llamacpp_slots\{.*\} 2$", first.get("/metrics"), re.M)
    assert first.get("/healthz") is not None


@pytest.mark.parametrize("signal_", [signal.SIGTERM, signal.SIGINT])
def test_it_ends_when_asked_to(first, signal_):
    pid = first.pid
    process = os.pidfd_open(pid)
    ended = select.poll()
    ended.register(process, select.POLLIN)
    os.kill(pid, signal_)
    assert ended.poll(PATIENCE * 1000), "it runs on"
    os.close(process)
    assert first.outside.wait(PATIENCE) == 0
