"""deploy/systemd in a real systemd: the machine's own, booted in a container that sees /usr and nothing
that it could change (systemd-nspawn --volatile=yes)."""

import os
import platform
import re
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from support import BINARY, LLAMA_CPP, LLAMA_SERVER, MODEL, MODEL_NAME, RECORDINGS, ROOT
from support.http_client import free_port, request
from support.nspawn import Machine
from support.process import proc_status
from support.wait import wait_for

UNITS = ROOT / "deploy" / "systemd"
UNIT = "llamacpp-exporter.service"
# The same unit again, with discover.conf in place of the settings.
DISCOVERING = "llamacpp-discovering.service"
KEY = "sk-systemd-test"
# Where the container has what it needs of this checkout.
FOLDER = Path("/srv")
# CLD_EXITED: how a process ended.
EXITED = 1
# The journal's priorities.
WARNING, INFO = "4", "6"

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 or not shutil.which("apt-get") or platform.machine() != "x86_64",
    reason="booting systemd needs root, Debian, and the llama-server of scripts/setup router (x86-64)",
)


@pytest.fixture(scope="module")
def ports():
    return {name: free_port() for name in ("exporter", "discovering", "server")}


@pytest.fixture(scope="module")
def machine(debian, ports, tmp_path_factory):
    nspawn = debian("systemd-nspawn", package="systemd-container")
    subprocess.run([ROOT / "scripts" / "setup", "router", "10068"], check=True)
    folder = tmp_path_factory.mktemp("systemd")
    defaults = (UNITS / "llamacpp-exporter.default").read_text()
    defaults, count = re.subn("http://localhost:8080", f"http://localhost:{ports['server']}", defaults)
    assert count == 1
    (folder / "default").write_text(defaults + f"LLAMACPP_EXPORTER_ADDR=:{ports['exporter']}\n")
    (folder / "key").write_text(KEY)
    (folder / "key").chmod(0o600)
    # Sooner than the unit's own time.
    (folder / "watchdog.conf").write_text("[Service]\nWatchdogSec=2s\n")
    smi = RECORDINGS / "nvidia" / "h200-580.159.04"
    (folder / "nvidia-smi").write_text(
        f'#!/bin/sh\ncase "$*" in *compute-apps*) name=compute-apps ;; *) name=gpu-busy ;; esac\n'
        f"cat {FOLDER}/nvidia-smi/query-$name.csv; exec sleep infinity\n"
    )
    (folder / "nvidia-smi").chmod(0o755)
    (folder / "discovering.conf").write_text(
        f"[Service]\nEnvironmentFile=\nEnvironment=LLAMACPP_EXPORTER_ADDR=:{ports['discovering']}\n"
    )
    system = Path("/etc/systemd/system")
    binds = [
        (BINARY.resolve(), "/usr/local/bin/llamacpp-exporter"),
        (folder / "nvidia-smi", "/usr/local/bin/nvidia-smi"),
        (UNITS / UNIT, system / UNIT),
        (UNITS / f"{UNIT}.d" / "api-key.conf", system / f"{UNIT}.d" / "api-key.conf"),
        (folder / "watchdog.conf", system / f"{UNIT}.d" / "watchdog.conf"),
        (folder / "default", "/etc/default/llamacpp-exporter"),
        (folder / "key", "/etc/llamacpp-exporter/api-key"),
        (UNITS / UNIT, system / DISCOVERING),
        (UNITS / f"{UNIT}.d" / "discover.conf", system / f"{DISCOVERING}.d" / "discover.conf"),
        (folder / "discovering.conf", system / f"{DISCOVERING}.d" / "more.conf"),
        ("/etc/hosts", "/etc/hosts"),
        (LLAMA_CPP.resolve(), FOLDER / "llama.cpp"),
        (smi, FOLDER / "nvidia-smi"),
    ]
    options = [f"--bind-ro={source}:{target}" for source, target in binds]
    options += ["--directory=/", "--volatile=yes", "--tmpfs=/usr/local/bin"]
    machine = Machine(nspawn, folder, options, UNIT)
    yield machine
    machine.kill()


@pytest.fixture(scope="module")
def started(machine, ports):
    """The exporter, and a llama-server of another user, with a key, both as services."""
    program, model = (FOLDER / "llama.cpp" / path.relative_to(LLAMA_CPP) for path in (LLAMA_SERVER, MODEL))
    machine.output(
        *["systemd-run", "--unit=llama-server", "--property=DynamicUser=yes", program, "--model", model],
        *["--alias", MODEL_NAME, "--port", str(ports["server"]), "--metrics", "--api-key", KEY, "--threads", "1"],
    )
    # Ends once the exporter has said that it is ready.
    machine.systemctl("start", UNIT)
    assert request(ports["exporter"], "/healthz")[0] == 200
    return machine


def families(port):
    return set(re.findall(r"^(llamacpp_\w+)", request(port, "/metrics")[1], re.MULTILINE))


@pytest.mark.parametrize("drop_in", [None, "api-key.conf", "discover.conf"])
def test_the_exposure_is_low(drop_in, tmp_path):
    unit = tmp_path / UNIT
    text = (UNITS / UNIT).read_text()
    if drop_in:
        text += (UNITS / f"{UNIT}.d" / drop_in).read_text()
    unit.write_text(text.replace("/usr/local/bin/llamacpp-exporter", "/bin/true"))
    command = ["systemd-analyze", "security", "--offline=yes", "--threshold=20", unit]
    checked = subprocess.run(command, capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout + checked.stderr
    print(checked.stdout.strip().splitlines()[-1])
    verified = subprocess.run(["systemd-analyze", "verify", unit], capture_output=True, text=True)
    assert verified.returncode == 0 and not verified.stderr, verified.stderr


def test_it_runs_without_privileges(started):
    status = proc_status(started.outer_pid(started.property("MainPID")))
    assert "0" not in status["Uid"].split()
    assert int(status["CapEff"], 16) == 0
    assert status["NoNewPrivs"] == "1"
    assert status["Seccomp"] == "2"


def test_it_polls_with_the_key(started, ports):
    wait_for(lambda: "llamacpp_slots" in families(ports["exporter"]), lambda: f"the slots:\n{started.journal_text()}")


def test_it_sees_processes_of_others_and_runs_nvidia_smi(started, ports):
    wanted = {"llamacpp_memory_usage_bytes", "llamacpp_process_cpu_seconds_total", "llamacpp_gpu_info"}
    missing = lambda: wanted - families(ports["exporter"])  # noqa: E731
    wait_for(lambda: not missing(), lambda: f"{missing()}:\n{started.journal_text()}")


def test_with_the_drop_in_it_discovers_servers_of_others(started, ports):
    """With their keys, and with the size of the KV cache, which their environment and model file tell."""
    started.systemctl("start", DISCOVERING)
    wanted = {"llamacpp_slots", "llamacpp_memory_usage_bytes", "llamacpp_kv_cache_limit_bytes"}
    missing = lambda: wanted - families(ports["discovering"])  # noqa: E731
    wait_for(lambda: not missing(), lambda: f"{missing()}:\n{started.journal_text()}")
    started.systemctl("stop", DISCOVERING)


def test_the_journal_has_priorities(started):
    lines = {line["MESSAGE"]: line["PRIORITY"] for line in started.journal()}
    serving = [priority for message, priority in lines.items() if message.startswith("serving ")]
    assert serving == [INFO], lines
    assert set(lines.values()) <= {WARNING, INFO}, lines


@pytest.mark.parametrize("number, result", [(signal.SIGKILL, "signal"), (signal.SIGSTOP, "watchdog")])
def test_it_is_restarted(started, ports, number, result):
    """After it was killed, and after it has hung."""
    pid, restarts = started.property("MainPID"), int(started.property("NRestarts"))
    os.kill(started.outer_pid(pid), number)
    wait_for(lambda: int(started.property("NRestarts")) > restarts, started.journal_text)
    wait_for(lambda: started.property("ActiveState") == "active", started.journal_text)
    assert started.property("MainPID") != pid
    assert request(ports["exporter"], "/healthz")[0] == 200
    assert f"Failed with result '{result}'" in started.journal_text()


def test_it_stops(started):
    started.systemctl("stop", UNIT)
    assert started.property("Result") == "success"
    # SIGKILL, sent after TimeoutStopSec, would be another code.
    assert started.property("ExecMainCode") == str(EXITED)
    assert started.property("ExecMainStatus") == "0"
    exited = int(started.property("ExecMainExitTimestampMonotonic"))
    stopping = int(started.property("ActiveExitTimestampMonotonic"))
    print(f"stopped in {(exited - stopping) / 1000:.1f} ms")
