"""A genuine llama-server in router mode, from PyPI, with the model under several names."""

import http.client
import json
import os
import signal
import subprocess
import time
from pathlib import Path
from urllib.parse import quote

from llama import MODEL, Stream, free_port
from program import ENVIRONMENT, llama_server

ALPHA = "alpha/one:Q4"
BETA = "beta"


class Router:
    """Computes on one thread a model; /metrics is on, and a model sleeps if it is told to."""

    def __init__(self, stem, sleep_idle_seconds=None, models=(ALPHA, BETA)):
        self.program = llama_server()
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = Path(f"{stem}.log")
        self.preset = Path(f"{stem}.ini")
        self.process = None
        common = {"metrics": 1, "n-gpu-layers": 0, "fit": "off", "threads": 1, "parallel": 2, "ctx-size": 8192}
        if sleep_idle_seconds:
            common["sleep-idle-seconds"] = sleep_idle_seconds
        lines = ["version = 1"]
        for name in models:
            file = "/nowhere/missing.gguf" if name == "broken" else MODEL
            lines += [f"[{name}]", f"model = {file}", *(f"{key} = {value}" for key, value in common.items())]
        self.preset.write_text("\n".join(lines) + "\n")

    def start(self, patience=60):
        command = [self.program, "--host", "127.0.0.1", "--port", str(self.port), "--models-preset", str(self.preset)]
        with open(self.log, "wb") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, env=ENVIRONMENT, start_new_session=True)
        deadline = time.monotonic() + patience
        while not self._answers():
            assert self.process.poll() is None, f"the router ended: {self.log.read_text()}"
            assert time.monotonic() < deadline, f"the router does not answer: {self.log.read_text()}"
            time.sleep(0.02)
        return self

    def _answers(self):
        try:
            return self.get("/health")[0] == 200
        except (OSError, http.client.HTTPException):
            return False

    def kill(self):
        """The router and its children, which are in its session."""
        if self.process:
            try:
                os.killpg(self.process.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
            self.process.wait()

    def get(self, path, timeout=60):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        try:
            connection.request("GET", path)
            answer = connection.getresponse()
            return answer.status, answer.read().decode()
        finally:
            connection.close()

    def headers(self):
        return {}

    def models(self):
        """What it says of each model; asking loads and wakes none."""
        return {model["id"]: model["status"] for model in json.loads(self.get("/models")[1])["data"]}

    def state(self, model):
        return self.models()[model]["value"]

    def stream(self, model, tokens, **settings):
        return ModelStream(self, model, tokens, **settings)

    def tokens_for(self, model, seconds):
        """How many tokens it takes to keep the model generating about that long."""
        trial = self.stream(model, 24).wait()
        return max(40, min(3500, int(seconds * trial.tokens_per_second)))

    def counter(self, model, name):
        """A counter as the model's own server has it now."""
        text = self.get(f"/metrics?model={quote(model, safe='')}&autoload=false")[1]
        return float(next(line for line in text.splitlines() if line.startswith(f"llamacpp:{name} ")).split()[1])

    def kill_child(self, model):
        """SIGKILL to the process that holds the model."""
        args = self.models()[model]["args"]
        port = args[args.index("--port") + 1]
        for process in Path("/proc").glob("[0-9]*"):
            try:
                words = (process / "cmdline").read_text().split("\0")
            except OSError:
                continue
            if words[0].endswith("llama-server") and ["--port", port] in [words[i : i + 2] for i in range(len(words))]:
                os.kill(int(process.name), signal.SIGKILL)
                return
        raise AssertionError(f"no process of {model} on port {port}")


class ModelStream(Stream):
    """A streamed generation by one of the router's models."""

    def __init__(self, server, model, tokens, prompt="Once upon a time", hang_up_after=None):
        self.model = model
        super().__init__(server, tokens, prompt, hang_up_after)

    def _run(self):
        self._request = json.dumps(json.loads(self._request) | {"model": self.model})
        super()._run()
