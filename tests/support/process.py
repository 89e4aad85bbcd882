"""Child processes of the tests, and what the kernel and pidstat report about a process."""

import contextlib
import os
import subprocess
from pathlib import Path

import pytest

from support import BINARY, PIDSTAT, TIMEOUT

NOBODY = 65534


def clean_environment(**variables):
    """The environment without settings of an exporter, with these variables instead."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("LLAMACPP_", "LLM_"))}
    return kept | variables


def as_user(uid, command):
    """The command, run as another user (which requires root), or unchanged if `uid` is None."""
    if uid is None:
        return command
    return ["setpriv", f"--reuid={uid}", f"--regid={uid}", "--clear-groups", *command]


can_run_as_nobody = os.geteuid() == 0 and subprocess.run(as_user(NOBODY, ["test", "-x", BINARY])).returncode == 0
needs_root = pytest.mark.skipif(not can_run_as_nobody, reason="needs root, and a binary that another user can execute")


class ChildProcess:
    """A program whose output goes to the file `log_path`."""

    def __init__(self, log_path):
        self.log_path = Path(log_path)
        self.process = None

    def spawn(self, command, **options):
        with open(self.log_path, "ab") as output:
            self.process = subprocess.Popen(list(map(str, command)), stdout=output, stderr=output, **options)

    @property
    def log(self):
        return self.log_path.read_text(errors="replace")

    @property
    def pid(self):
        return self.process.pid

    def assert_running(self):
        assert self.process.poll() is None, f"{self.process.args[0]} ended with {self.process.returncode}:\n{self.log}"

    def signal(self, number):
        self.process.send_signal(number)

    def stop(self):
        """Sends SIGTERM and waits. Fails if the process does not end."""
        self.process.terminate()
        try:
            self.process.wait(TIMEOUT)
        except subprocess.TimeoutExpired:
            self.kill()
            raise

    def kill(self):
        if self.process:
            self.process.kill()
            self.process.wait()


def proc_status(pid):
    """The fields of /proc/PID/status."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {key: value.strip() for key, value in (line.split(":", 1) for line in lines)}


def resident_bytes(pid):
    return int(proc_status(pid)["VmRSS"].split()[0]) * 1024


def peak_resident_bytes(pid):
    return int(proc_status(pid)["VmHWM"].split()[0]) * 1024


def cpu_seconds(pid):
    """User and system time of the process, in steps of a clock tick."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(") ", 1)[1].split()
    return sum(int(ticks) for ticks in fields[11:13]) / os.sysconf("SC_CLK_TCK")


def threads_named(pid, name):
    """The /proc folders of the threads with that name."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return [task for task in tasks if (task / "comm").read_text().strip() == name]


def thread_cpu_seconds(pid, name):
    """CPU time of the one thread with that name, in nanosecond steps."""
    [task] = threads_named(pid, name)
    return int((task / "schedstat").read_text().split()[0]) / 1e9


def pidstat_percent(pid, seconds):
    """CPU use over the next seconds as pidstat measures it; 100 is one core."""
    command = [str(PIDSTAT), "-u", "-p", str(pid), str(seconds), "1"]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"LC_ALL": "C"}, check=True)
    # Average: UID PID %usr %system %guest %wait %CPU CPU Command
    return float(done.stdout.strip().splitlines()[-1].split()[7])


def find_llama_server(port):
    """The PID of the llama-server that was started with `--port PORT`."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            words = (process / "cmdline").read_text().split("\0")
            if words[0].endswith("llama-server") and ("--port", str(port)) in zip(words, words[1:]):
                found.append(int(process.name))
    assert len(found) == 1, f"{len(found)} llama-server processes with --port {port}: {found}"
    return found[0]
