"""The llama-server program of b10068, and readings of it that are not the exporter's."""

import os
import re
import subprocess
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from exporter import BINARY, ROOT
from llama import MODEL, MODEL_NAME, LlamaServer, free_port
from program import ENVIRONMENT, llama_server
from prometheus_client.parser import text_string_to_metric_families

PIDSTAT = ROOT / "target" / "sysstat" / "usr" / "bin" / "pidstat"
NOBODY = 65534


def as_user(uid, command):
    """The command, to be run by another user; root may do that."""
    if uid is None:
        return command
    return ["setpriv", f"--reuid={uid}", f"--regid={uid}", "--clear-groups", *command]


class LlamaServerProgram(LlamaServer):
    """llama-server itself, as its users run it, with its own arguments."""

    def __init__(self, log, arguments=(), model=MODEL, uid=None, environment=None):
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = Path(log)
        self.api_key = None
        self.process = None
        self.environment = ENVIRONMENT | (environment or {})
        self.command = as_user(uid, [
            llama_server(), "-m", str(model), "--alias", MODEL_NAME, "--port", str(self.port),
            "-ngl", "0", "-t", "1", "--no-warmup", "--fit", "off", "--metrics",
            *arguments,
        ])  # fmt: skip

    def start(self):
        with open(self.log, "wb") as log:
            self.process = subprocess.Popen(
                self.command, stdout=log, stderr=log, env=self.environment, cwd=self.log.parent
            )
        return self

    def cache_sizes(self):
        """MiB of each cache, as the server prints them with -lv 4."""
        found = re.findall(r"llama_kv_cache: size = +([\d.]+) MiB", self.log.read_text(errors="replace"))
        return [float(size) for size in found]


def check(url, *arguments, uid=None):
    """The report of --check: its text, and the values in it by name."""
    command = as_user(uid, [str(BINARY), "--base-url", url, "--check", *arguments])
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    lines = [line.strip() for line in done.stdout.splitlines()]
    series = "\n".join(line for line in lines if line.startswith("llamacpp_"))
    values = {
        sample.name.removeprefix("llamacpp_"): sample.value
        for family in text_string_to_metric_families(series + "\n")
        for sample in family.samples
        if "slot" not in sample.labels
    }
    return done.stdout, values


def status_of(pid):
    """What /proc/PID/status says of a process, by key."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return dict(line.split(":", 1) for line in lines)


def resident(pid):
    return int(status_of(pid)["VmRSS"].split()[0]) * 1024


def pidstat(pid, seconds):
    """Percent of one processor over the next seconds, as Debian's sysstat has it."""
    command = [str(PIDSTAT), "-u", "-p", str(pid), str(seconds), "1"]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"LC_ALL": "C"}, check=True)
    fields = done.stdout.strip().splitlines()[-1].split()
    # Average: UID PID %usr %system %guest %wait %CPU CPU Command
    return float(fields[7])


def processor_seconds(pid):
    """Of the process's own threads, in user and in kernel mode."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(") ", 1)[1].split()
    return sum(int(ticks) for ticks in fields[11:13]) / os.sysconf("SC_CLK_TCK")


class Impostor:
    """Answers as a llama-server at rest does, and is none: a thread of this process."""

    ANSWERS = {
        "/health": '{"status":"ok"}',
        "/props": '{"total_slots":1,"default_generation_settings":{"n_ctx":1024},"model_path":"/m.gguf"}',
        "/v1/models": '{"data":[{"id":"gemma-3-270m"}]}',
        "/slots": '[{"id":0,"n_ctx":1024,"is_processing":false}]',
    }

    def __init__(self, port=0):
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                body = Impostor.ANSWERS.get(self.path)
                self.send_response(200 if body else 404)
                self.end_headers()
                self.wfile.write((body or "").encode())

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()
