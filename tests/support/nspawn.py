"""A systemd of its own, booted in a container by systemd-nspawn."""

import contextlib
import json
import os
import signal
import subprocess
from pathlib import Path

import pytest

from support import TIMEOUT
from support.process import ChildProcess, proc_status
from support.wait import wait_for


class Machine(ChildProcess):
    """A booted systemd, and the unit in it that is tested."""

    def __init__(self, nspawn, folder, options, unit):
        super().__init__(folder / "console")
        self.unit = unit
        self.spawn(
            [nspawn, "--register=no", "--keep-unit", "--quiet", "--console=pipe"]
            + [f"--machine=exporter-{os.getpid()}", *options, "--boot"]
            + ["systemd.unit=sysinit.target", "systemd.firstboot=no"],
            stdin=subprocess.DEVNULL,
        )
        self.leader = None

        def booted():
            self.assert_running()
            self.leader = self.leader or self.find_leader()
            # "degraded": a unit of the machine has failed, which is of no interest.
            return self.leader and self.run("systemctl", "is-system-running").stdout.strip() in ("running", "degraded")

        try:
            wait_for(booted, lambda: f"systemd to boot:\n{self.log}", interval=0.2)
        except AssertionError as error:
            self.kill()
            pytest.skip(f"systemd cannot be booted in a container here: {error}")

    def find_leader(self):
        """The PID of the container's systemd."""
        children = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()
        names = {int(child): Path(f"/proc/{child}/comm").read_text().strip() for child in children}
        return next((child for child, name in names.items() if name == "systemd"), None)

    def kill(self):
        """Ends the container: with its PID 1, all of its processes end. They would survive systemd-nspawn."""
        with contextlib.suppress(OSError):
            leader = self.leader or self.find_leader()
            if leader:
                os.kill(leader, signal.SIGKILL)
        super().kill()

    def run(self, *command):
        enter = ["nsenter", f"--target={self.leader}", "--mount", "--uts", "--ipc", "--pid", "--cgroup", "--root"]
        return subprocess.run([*enter, *command], capture_output=True, text=True, timeout=TIMEOUT)

    def output(self, *command):
        """What the command prints; fails if the command does."""
        done = self.run(*command)
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}\n{self.journal_text()}"
        return done.stdout.strip()

    def systemctl(self, *arguments):
        return self.output("systemctl", *arguments)

    def property(self, name):
        return self.systemctl("show", "--property", name, "--value", self.unit)

    def journal(self):
        """The exporter's log lines as the journal has them."""
        lines = self.output("journalctl", f"--unit={self.unit}", "--output=json", "--no-pager").splitlines()
        return [line for line in map(json.loads, lines) if line.get("_COMM") == "llamacpp-export"]

    def journal_text(self):
        return self.run("journalctl", "--no-pager", "--lines=50").stdout

    def outer_pid(self, pid):
        """The PID on this machine of a process that has another one in the container."""
        for process in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                inside = os.readlink(process / "ns" / "pid") == os.readlink(f"/proc/{self.leader}/ns/pid")
                if inside and proc_status(process.name)["NSpid"].split()[-1] == pid:
                    return int(process.name)
        raise AssertionError(f"no process {pid}:\n{self.journal_text()}")
