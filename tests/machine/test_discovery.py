"""`--discover` with real llama-servers: alone on a port, on a socket, in a network namespace, and a router's."""

import contextlib
import os
import random
import shutil
import subprocess
import threading
import time
from pathlib import Path

import pytest
from support import BINARY, MODEL
from support.exporter import Exporter
from support.llama_server import LlamaServerProgram
from support.process import needs_root, threads_named
from support.router import ALPHA
from support.wait import wait_for

# Two minutes with DISCOVERY_SECONDS=120.
SECONDS = float(os.environ.get("DISCOVERY_SECONDS", "12"))
# Several processes of pytest-xdist may run these tests at once.
WORKER = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
NAMESPACE, LINK = f"llamacpp-discovery-{WORKER}", f"lcx{WORKER}"
OUTSIDE, INSIDE = f"10.231.{73 + WORKER}.1", f"10.231.{73 + WORKER}.2"


class SomeProcesses:
    """A folder that shows some processes of /proc: other tests run servers at the same time."""

    def __init__(self, folder):
        self.folder = folder
        self.roots = set()
        self.stopping = threading.Event()
        folder.mkdir()
        (folder / "net").symlink_to("/proc/self/net")
        for name in ("stat", "meminfo"):
            (folder / name).symlink_to(f"/proc/{name}")
        # The exporter's own PID must be in it, as in any /proc.
        self.binary = folder.with_suffix(".sh")
        self.binary.write_text(f'#!/bin/sh\nln -sfn $$ {folder}/self\nexec {BINARY} "$@"\n')
        self.binary.chmod(0o755)
        threading.Thread(target=self.update, daemon=True).start()

    def update(self):
        """Keeps the folder up to date with the servers and their children."""
        while not self.stopping.wait(0.02):
            shown = set()
            for root in list(self.roots):
                shown.add(root)
                with contextlib.suppress(OSError):
                    shown |= set(map(int, Path(f"/proc/{root}/task/{root}/children").read_text().split()))
            shown = {pid for pid in shown if Path(f"/proc/{pid}").exists()}
            present = {int(path.name): path for path in self.folder.iterdir() if path.name.isdigit()}
            for pid in shown - present.keys():
                (self.folder / str(pid)).symlink_to(f"/proc/{pid}")
            for pid in present.keys() - shown:
                present[pid].unlink()


@pytest.fixture
def processes(tmp_path):
    processes = SomeProcesses(tmp_path / "proc")
    yield processes
    processes.stopping.set()


@pytest.fixture
def discover(request, log_path, processes):
    """Starts an exporter that sees only `processes`."""

    def start(*options):
        exporter = Exporter(
            None, log_path("exporter"), "--discover", *options, binary=processes.binary,
            environment={"LLAMACPP_PROCFS": str(processes.folder)}, interval="500ms", record_polls=False,
        )  # fmt: skip

        def finish():
            print(exporter.log)
            exporter.stop()

        request.addfinalizer(finish)
        return exporter

    return start


@pytest.fixture
def namespace():
    """A network namespace whose address INSIDE can be reached from here."""
    if os.geteuid() != 0 or not shutil.which("ip"):
        pytest.skip("a network namespace needs root and ip")

    def ip(*words, check=True):
        subprocess.run(["ip", *words], check=check, capture_output=True)

    ip("netns", "del", NAMESPACE, check=False)
    ip("netns", "add", NAMESPACE)
    ip("link", "add", LINK, "type", "veth", "peer", "name", "eth0", "netns", NAMESPACE)
    ip("addr", "add", f"{OUTSIDE}/24", "dev", LINK)
    ip("link", "set", LINK, "up")
    ip("-n", NAMESPACE, "addr", "add", f"{INSIDE}/24", "dev", "eth0")
    for device in ("lo", "eth0"):
        ip("-n", NAMESPACE, "link", "set", device, "up")
    yield NAMESPACE
    ip("netns", "del", NAMESPACE)


class DiscoveredServer(LlamaServerProgram):
    """A llama-server as a user starts it, with its label `server`."""

    def __init__(self, log_path, alias, label, *arguments, namespace=None, environment=None):
        super().__init__(log_path, "-c", "512", "-np", "1", *arguments, environment=environment)
        self.label, self.alias = label or f"127.0.0.1:{self.port}", alias
        self.command[self.command.index("--alias") + 1] = alias
        if namespace:
            self.command = ["ip", "netns", "exec", namespace, *self.command]
            self.label = f"{INSIDE}:{self.port}"


@pytest.fixture
def servers(request, log_path, tmp_path, namespace):
    """A server on a socket, two on ports, each with a key, and one in a network namespace; not started."""
    socket = tmp_path / "s.sock"
    servers = [
        DiscoveredServer(log_path("socket"), "on-socket", f"unix:{socket}", "--host", "s.sock"),
        DiscoveredServer(log_path("one"), "one", None, "--api-key", "key-of-one"),
        DiscoveredServer(log_path("two"), "two", None, environment={"LLAMA_API_KEY": "key-of-two"}),
        DiscoveredServer(log_path("inside"), "inside", None, "--host", "0.0.0.0", namespace=namespace),
    ]
    for server in servers:
        request.addfinalizer(server.kill)
    return servers


def names(exposition):
    """The label `model` of each label `server`, of all series about models."""
    found = {}
    for name in ("status", "generated_tokens_total", "slots", "memory_usage_bytes"):
        for sample in exposition.find(name):
            found.setdefault(sample.labels["server"], set()).add(sample.labels["model"])
    return found


def up(exposition):
    return {sample.labels["server"] for sample in exposition.find("up") if sample.value == 1}


def test_each_server_is_shown_once_under_its_own_name(discover, processes, servers, start_router):
    router = start_router()
    router.stream(ALPHA, 4).wait()
    socket = servers[0].label.removeprefix("unix:")
    Path(socket).unlink(missing_ok=True)
    for server in servers:
        server.start()
    processes.roots |= {server.pid for server in [router, *servers]}
    exporter = discover()
    expected = {server.label: {server.alias} for server in servers} | {f"127.0.0.1:{router.port}": set(router.models())}

    def all_shown():
        exposition = exporter.exposition()
        is_read = len(exposition.find("generated_tokens_total")) == len(servers) + 1
        return exposition if is_read and names(exposition) == expected else None

    exposition = wait_for(all_shown, lambda: f"{expected}: {names(exporter.exposition())}\n{exporter.log}")
    assert up(exposition) == set(expected)
    assert exposition.value("discovered_servers") == len(expected)
    assert len(exposition.find("up")) == len(expected)
    for key in ("key-of-one", "key-of-two"):
        assert key not in exporter.log

    # One that is given is not discovered again.
    given = discover("--base-url", f"http://localhost:{servers[1].port}", "--api-key-file", _key_file(processes))
    wait_for(lambda: given.value("discovered_servers") == len(expected) - 1, lambda: given.log)
    wait_for(lambda: len(up(given.exposition())) == len(expected), lambda: given.log)
    assert {f"localhost:{servers[1].port}"} == up(given.exposition()) - set(expected)


@needs_root
def test_without_rights_it_says_once_what_cannot_be_reached_and_what_would_help(discover, processes, servers):
    """Root without CAP_SYS_PTRACE, as in a container with --user 0 alone."""
    on_socket, with_key, without_key, _ = servers
    without_key.environment.pop("LLAMA_API_KEY")
    Path(on_socket.label.removeprefix("unix:")).unlink(missing_ok=True)
    for server in (on_socket, with_key, without_key):
        processes.roots.add(server.start().pid)
    script = processes.binary.read_text()
    processes.binary.write_text(script.replace("exec ", "exec setpriv --bounding-set=-sys_ptrace "))
    exporter = discover()
    wait_for(lambda: up(exporter.exposition()) == {with_key.label, without_key.label}, lambda: exporter.log)
    wait_for(lambda: exporter.value("generated_tokens_total", server=without_key.label) == 0, lambda: exporter.log)
    polls = exporter.poll_counts()
    wait_for(lambda: exporter.poll_counts()[with_key.label] > polls[with_key.label] + 4, lambda: exporter.log)
    assert exporter.value("generated_tokens_total", server=with_key.label) is None
    help = "run the exporter as the server's user or as root with CAP_SYS_PTRACE"
    for text in (f"its socket cannot be found: {help}", f"an API key, which cannot be read: {help}"):
        assert exporter.log.count(text) == 1, exporter.log
    assert f"not watched: process {on_socket.pid}: its socket cannot be found" in exporter.get("/")[1]


def _key_file(processes):
    path = processes.folder.with_suffix(".key")
    path.write_text("key-of-one")
    return path


def test_servers_that_start_and_end_leave_no_series_thread_or_descriptor(discover, processes, servers):
    exporter = discover()
    wait_for(lambda: exporter.value("discovered_servers") == 0, lambda: exporter.log)
    descriptors = min(open_files(exporter) for _ in range(50))
    labels = {server.label: server.alias for server in servers}
    waits = {"appear": [], "disappear": []}

    def check():
        """No series but of these servers, and each with the right name."""
        exposition = exporter.exposition()
        for label, models in names(exposition).items():
            assert models == {labels[label]}, (label, models)
        return {sample.labels["server"] for sample in exposition.find("up")}

    def wait_until_shown(is_shown, server):
        began = time.monotonic()
        wait_for(lambda: (server.label in check()) == is_shown, lambda: f"{server.label}: {exporter.log}")
        waits["appear" if is_shown else "disappear"].append(time.monotonic() - began)

    running = set()
    end = time.monotonic() + SECONDS
    chance = random.Random(1)
    while time.monotonic() < end:
        server = chance.choice(servers)
        if server in running:
            chance.choice((server.kill, server.stop))()
            processes.roots.discard(server.pid)
            running.discard(server)
        else:
            if server.label.startswith("unix:"):
                Path(server.label.removeprefix("unix:")).unlink(missing_ok=True)
            server.start()
            processes.roots.add(server.pid)
            running.add(server)
        # Some end before they were found.
        if chance.random() < 0.5:
            wait_until_shown(server in running, server)
        assert check() <= set(labels)
    for server in running:
        server.kill()
    wait_for(lambda: not check(), lambda: exporter.log)
    print({what: f"{len(times)} times, {max(times):.1f} s at most" for what, times in waits.items() if times})
    assert exporter.value("discovered_servers") == 0
    wait_for(lambda: not threads_named(exporter.pid, "poll"), "the poll threads to end")
    wait_for(lambda: open_files(exporter) <= descriptors, lambda: f"{descriptors} files: {open_files(exporter)}")


def open_files(exporter):
    """The number of open files and sockets, some moments after the last scrape."""
    time.sleep(0.02)
    return len(os.listdir(f"/proc/{exporter.pid}/fd"))
