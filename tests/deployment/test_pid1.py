"""The static binary as PID 1 of a PID namespace, alone in its root directory: as in a container."""

import os
import re
import select
import shutil
import signal
from pathlib import Path

import pytest

from support import TIMEOUT, static_binary
from support.http_client import free_port, request, responds
from support.process import NOBODY, ChildProcess, proc_status
from support.wait import wait_for

NAME = "upstream.example"


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A root directory with the binary, and with the one file that a container runtime adds."""
    if os.geteuid() != 0:
        pytest.skip("a PID namespace and chroot need root")
    folder = tmp_path_factory.mktemp("root")
    # Readable for the user that the exporter runs as.
    folder.chmod(0o755)
    shutil.copy2(static_binary.build(target=static_binary.musl()), folder / "llamacpp-exporter")
    (folder / "etc").mkdir()
    (folder / "etc" / "hosts").write_text(f"127.0.0.1 {NAME}\n")
    return folder


class NamespacedExporter(ChildProcess):
    """The exporter as PID 1; `process` is the `unshare` outside of the namespace."""

    def __init__(self, root, log_path, upstream):
        super().__init__(log_path)
        self.port = free_port()
        self.spawn(
            ["unshare", "--fork", "--pid", "chroot", f"--userspec={NOBODY}:{NOBODY}", root, "/llamacpp-exporter"]
            + ["--addr", f"127.0.0.1:{self.port}", "--base-url", upstream, "--interval", "200ms"],
            env={"PATH": os.environ["PATH"]},
        )

    @property
    def pid(self):
        """The exporter's PID outside of the namespace; None once it has ended."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        pids = children.read_text().split() if children.exists() else []
        return int(pids[0]) if pids else None

    def metrics(self):
        return request(self.port, "/metrics")[1]

    def kill(self):
        if pid := self.pid:
            os.kill(pid, signal.SIGKILL)
        self.process.wait(10)


@pytest.fixture
def exporter(request, root, tmp_path, llama_server):
    exporter = NamespacedExporter(root, tmp_path / "log", llama_server.url.replace("127.0.0.1", NAME))
    request.addfinalizer(exporter.kill)

    def serves():
        exporter.assert_running()
        return responds(exporter.port, "/metrics")

    wait_for(serves, lambda: f"the exporter to serve:\n{exporter.log}")
    return exporter


def test_the_binary_is_alone_in_its_root(root):
    assert {str(path.relative_to(root)) for path in root.rglob("*")} == {"llamacpp-exporter", "etc", "etc/hosts"}


def test_it_is_pid_1_and_runs_as_nobody(exporter):
    status = proc_status(exporter.pid)
    assert status["NSpid"].split()[-1] == "1"
    assert status["Uid"].split() == [str(NOBODY)] * 4


def test_it_polls_a_server_named_in_etc_hosts(exporter):
    up = lambda: re.search(r"^llamacpp_up\{.*\} 1$", exporter.metrics(), re.MULTILINE)  # noqa: E731
    wait_for(up, lambda: f"the server to be up:\n{exporter.log}")
    assert re.search(r"^llamacpp_slots\{.*\} 2$", exporter.metrics(), re.MULTILINE)
    assert responds(exporter.port, "/healthz")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it(exporter, number):
    pid = exporter.pid
    process = os.pidfd_open(pid)
    ended = select.poll()
    ended.register(process, select.POLLIN)
    os.kill(pid, number)
    assert ended.poll(TIMEOUT * 1000), "it is still running"
    os.close(process)
    assert exporter.process.wait(TIMEOUT) == 0
