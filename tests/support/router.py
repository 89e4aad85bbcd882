"""llama-server in router mode, with the same model under several names."""

import contextlib
import os
import signal
from urllib.parse import quote

from support import LLAMA_SERVER, MODEL
from support.llama_server import LlamaServerProgram, Server
from support.process import find_llama_server

ALPHA = "alpha/one:Q4"
BETA = "beta"
# A model whose file does not exist.
BROKEN = "broken"


class Router(Server):
    """Each model's server computes on one thread and has /metrics."""

    environment = LlamaServerProgram.environment

    def __init__(self, log_path, sleep_idle_seconds=None, models=(ALPHA, BETA)):
        LlamaServerProgram.require()
        super().__init__(log_path)
        preset = self.log_path.with_suffix(".ini")
        options = {"metrics": 1, "n-gpu-layers": 0, "fit": "off", "threads": 1, "parallel": 2, "ctx-size": 8192}
        if sleep_idle_seconds:
            options["sleep-idle-seconds"] = sleep_idle_seconds
        lines = ["version = 1"]
        for name in models:
            file = "/nonexistent/model.gguf" if name == BROKEN else MODEL
            lines += [f"[{name}]", f"model = {file}", *(f"{key} = {value}" for key, value in options.items())]
        preset.write_text("\n".join(lines) + "\n")
        self.command = [LLAMA_SERVER, "--port", self.port, "--models-preset", preset]

    def spawn(self, command, **options):
        super().spawn(command, start_new_session=True, **options)

    def kill(self):
        """Kills the router and the servers of its models, which share its session."""
        if self.process:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)
            self.process.wait()

    def models(self):
        """The router's status of each model; the request loads and wakes none."""
        return {model["id"]: model["status"] for model in self.get_json("/models")["data"]}

    def model_status(self, model):
        return self.models()[model]["value"]

    def stream(self, model, tokens, **settings):
        return super().stream(tokens, model=model, **settings)

    def tokens_for(self, model, seconds):
        """The number of tokens that takes about that long to generate. Generates 24 to find out."""
        return max(40, min(3500, int(seconds * self.stream(model, 24).wait().tokens_per_second)))

    def counter(self, model, name):
        """A counter of the model's own server."""
        return super().counter(name, f"/metrics?model={quote(model, safe='')}&autoload=false")

    def model_pid(self, model):
        """The process of the model's server."""
        arguments = self.models()[model]["args"]
        return find_llama_server(arguments[arguments.index("--port") + 1])
