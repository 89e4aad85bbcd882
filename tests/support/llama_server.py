"""Real llama.cpp servers."""

import json
import os
import platform
import re
import sys
from pathlib import Path

import pytest

from support import LLAMA_CPP, LLAMA_SERVER, MODEL, MODEL_NAME
from support.http_client import free_port, request, responds
from support.process import ChildProcess, as_user
from support.stream import Stream
from support.wait import wait_for

# From this build on, the server answers /metrics and /slots while it decodes, they do not reset its
# idle timer, and its counters include the tokens of cancelled requests. Before it, none of this.
ANSWERS_WHILE_BUSY = 10566
XLLAMACPP_SERVER = Path(__file__).with_name("xllamacpp_server.py")


class Server(ChildProcess):
    """A server that keeps its port when it restarts. Subclasses set `command`."""

    environment = None
    api_key = None
    cwd = None

    def __init__(self, log_path):
        super().__init__(log_path)
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"

    def start(self):
        """Starts the process and returns at once; the model may still be loading."""
        self.spawn(self.command, env=self.environment, cwd=self.cwd)
        return self

    def wait_until_loaded(self):
        def loaded():
            self.assert_running()
            return responds(self.port, "/health")

        wait_for(loaded, lambda: f"{self.command[0]} to load its model:\n{self.log}", interval=0.02)
        return self

    def headers(self):
        return {"Authorization": f"Bearer {self.api_key}"} if self.api_key else {}

    def get(self, path, timeout=60):
        """Status and text of a request that does not go through the exporter."""
        return request(self.port, path, headers=self.headers(), timeout=timeout)

    def get_json(self, path):
        return json.loads(self.get(path)[1])

    def post(self, path, body):
        return json.loads(request(self.port, path, body, self.headers())[1])

    def is_sleeping(self):
        """/props does not wake the server."""
        return self.get_json("/props")["is_sleeping"]

    def counter(self, name, path="/metrics"):
        """The server's own counter."""
        return float(re.search(rf"^llamacpp:{name} (\S+)$", self.get(path)[1], re.MULTILINE)[1])

    def slot_tasks(self):
        """`next_token` of the last or present task of each slot that had one, by task ID."""
        slots = sorted((slot for slot in self.get_json("/slots") if slot.get("next_token")), key=lambda s: s["id_task"])
        tasks = [slot["next_token"] for slot in slots]
        return [task[0] if isinstance(task, list) else task for task in tasks]

    def stream(self, tokens, **settings):
        return Stream(self, tokens, **settings)

    def tokens_for(self, seconds):
        """The number of tokens that takes about that long to generate, or longer. Generates 24 to find out."""
        return min(3500, int(seconds * max(40, self.stream(24).wait().tokens_per_second)))

    def prompt_of_tokens(self, tokens):
        """A prompt of exactly so many tokens, beginning-of-text included."""
        words = " ".join(f"word{number}" for number in range(tokens))
        return self.post("/tokenize", {"content": words, "add_special": True})["tokens"][:tokens]


class XllamacppServer(Server):
    """The server of any build, inside a Python process.

    It computes on one thread: the tests are about what the exporter reports, not about speed, and one
    thread keeps its pace beside other work.
    """

    def __init__(self, build, log_path, *options, parallel=2, ctx_size=8192, metrics=True, api_key=None):
        super().__init__(log_path)
        self.build = build
        self.api_key = api_key
        self.environment = os.environ | {"PYTHONPATH": str(LLAMA_CPP / f"b{build}")}
        self.command = [
            sys.executable, XLLAMACPP_SERVER, "--model", MODEL, "--alias", MODEL_NAME, "--port", self.port,
            "--parallel", parallel, "--ctx-size", ctx_size, "--threads", 1, *options,
        ]  # fmt: skip
        self.command += ["--metrics"] if metrics else []
        self.command += ["--api-key", api_key] if api_key else []


class LlamaServerProgram(Server):
    """The llama-server program of b10068, with arguments as its users give them. With `socket` it listens
    on that Unix socket, by a path relative to its working directory, and on no port."""

    # Its libraries lie beside it.
    environment = os.environ | {"LD_LIBRARY_PATH": str(LLAMA_SERVER.parent)}

    def __init__(self, log_path, *arguments, model=MODEL, uid=None, environment=None, socket=None, cwd=None):
        self.require()
        super().__init__(log_path)
        self.environment = self.environment | (environment or {})
        self.cwd = cwd or self.log_path.parent
        listen = ["--port", self.port]
        if socket:
            self.port = self.cwd / socket
            self.url = f"unix:{self.port}"
            listen = ["--host", socket]
        self.command = as_user(uid, [
            LLAMA_SERVER, "-m", model, "--alias", MODEL_NAME, *listen,
            "-ngl", 0, "-t", 1, "--no-warmup", "--fit", "off", "--metrics", *arguments,
        ])  # fmt: skip

    @staticmethod
    def require():
        """Skips the test where the program is not available."""
        if (sys.platform, platform.machine()) != ("linux", "x86_64"):
            pytest.skip("the llama-server program is packaged for Linux on x86-64 only")
        assert LLAMA_SERVER.exists(), f"{LLAMA_SERVER} is missing: scripts/setup router"

    def kv_cache_mebibytes(self):
        """The size of each cache in MiB, as printed with -lv 4."""
        return [float(size) for size in re.findall(r"llama_kv_cache: size = +([\d.]+) MiB", self.log)]
