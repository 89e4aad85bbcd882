"""An exporter that follows a log, and servers that write one to a file."""

import os
import re
import subprocess
import time
import urllib.request
from pathlib import Path

from llama import MODEL, MODEL_NAME, LlamaServer, free_port
from program import ENVIRONMENT, llama_server
from prometheus_client.parser import text_string_to_metric_families

ROOT = Path(__file__).resolve().parents[2]
EXPORTER = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")) / "release" / "llamacpp-exporter"


class Program(LlamaServer):
    """llama-server itself, writing its log with --log-file."""

    def __init__(self, log, *options):
        super().__init__(10068, log)
        self.command = [llama_server(), "--port", str(self.port), "--log-file", str(log), "-m", str(MODEL),
                        "--alias", MODEL_NAME, "-np", "2", "-c", "4096", "-t", "1", "-ngl", "0", "--fit", "off",
                        "--metrics"]  # fmt: skip
        self.command += options
        self.output = os.devnull

    def start(self):
        with open(self.output, "ab") as output:
            self.process = subprocess.Popen(self.command, stdout=output, stderr=output, env=ENVIRONMENT)
        return self


class Router(Program):
    """With its output in a file: its models would each begin a --log-file anew."""

    def __init__(self, log, presets):
        super().__init__(log)
        self.command = [llama_server(), "--port", str(self.port), "--models-preset", str(presets)]
        self.output = log


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

    def is_following(self):
        """It shows figures of the log, though there may be none yet."""
        return ("request_duration_seconds_count", "log") in self.values()

    def said(self):
        """Everything that it has to say: to Prometheus, in a browser, and in its own log."""
        return self.text() + self.text("/") + self.stderr.read_text()

    def memory_kib(self, what="VmHWM"):
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(rf"^{what}:\s+(\d+) kB", status, re.MULTILINE)[1])

    def cpu_of_thread(self, name):
        """Seconds that the processor has worked for one of its threads."""
        for task in Path(f"/proc/{self.process.pid}/task").iterdir():
            if (task / "comm").read_text().strip() == name:
                return int((task / "schedstat").read_text().split()[0]) / 1e9
        raise LookupError(name)

    def stop(self):
        self.process.terminate()
        self.process.wait(5)


def check_report(base_url):
    """What --check says of a server, in its report and its log."""
    command = [str(EXPORTER), "--base-url", base_url, "--check", "--log-level", "debug"]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)


def wait_until(true, what, patience=60):
    deadline = time.monotonic() + patience
    while not (value := true()):
        assert time.monotonic() < deadline, f"waited {patience} s in vain until {what}"
        time.sleep(0.05)
    return value
