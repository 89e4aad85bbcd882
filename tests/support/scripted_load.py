"""A fixed plan of requests to three real servers, and what their clients measured.

- `single`: the server of b11549, with a log, GPU and probes. Requests of all kinds, all slots at work for
  over a minute, then sleep and wake.
- `program`: llama-server of b10068 with --log-file. It is stuck for a while, it is shut down during a
  request, it is restarted.
- `router`: b10068. A model is loaded, unloaded and loaded again by a request; then another one.

All times are Unix times in seconds.
"""

import contextlib
import itertools
import re
import signal
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from support import MODEL_NAME
from support.llama_server import LlamaServerProgram, XllamacppServer
from support.process import cpu_seconds, resident_bytes
from support.router import ALPHA, BETA, Router
from support.stream import Stream
from support.wait import wait_for

BUILD = 11549
# Seconds between two polls of the exporter.
POLL = 1
SLEEP_IDLE = 16
SLOT_TOKENS = 512
# Prompt tokens that a server computes at once. It answers a poll in between, on a busy machine too.
BATCH_TOKENS = 64
SATURATED = 80
# Slots of `single` and of `program`.
SINGLE_SLOTS, PROGRAM_SLOTS = 4, 2
# Clients of `single` while its slots are saturated: from the beginning to the end, and in the beginning only.
CLIENTS, EARLY_CLIENTS = SINGLE_SLOTS + 4, 4
GPU_WATTS, GPU_PERCENT = 400.0, 95.0

# The counters of llama-server that say how many tokens a decode call computes.
COUNTERS = ("prompt_tokens_total", "tokens_predicted_total", "n_decode_total")

TOO_LONG = " ".join(f"word{number}" for number in range(SLOT_TOKENS))
NEARLY_FULL = " ".join(["rain"] * 440)
SHARED = "The weather report says: " + " ".join(["wind", "rain", "sun"] * 40)


@dataclass
class Request:
    """What the client of one request saw."""

    server: str
    model: str
    # ok, truncated, cancelled, error; None for a request that its server did not survive.
    outcome: str | None
    code: int | None
    sent: float
    ended: float
    # When each token arrived.
    tokens: list = field(repr=False)
    # The server's own figures for it.
    timings: dict | None = field(repr=False)

    @property
    def on_slot(self):
        """When it got a slot. The first token arrives when its prompt has been processed."""
        return self.tokens[0] - self.timings["prompt_ms"] / 1000

    @property
    def wait(self):
        """Seconds until it got a slot."""
        return max(self.on_slot - self.sent, 0)

    @property
    def duration(self):
        """Seconds on its slot."""
        return (self.timings["prompt_ms"] + self.timings["predicted_ms"]) / 1000


@dataclass
class Record:
    """What was sent, and what was seen of it. Servers are named as in the label `server`."""

    single: str
    program: str
    router: str
    requests: list = field(default_factory=list)
    # Start and end, by name.
    phases: dict = field(default_factory=dict)
    # Tasks of `program` that were cancelled before they had a slot, by its log. No client of the load does that;
    # another exporter of this machine that ends during its poll does, as this build answers polls between batches.
    cancelled_polls: int = 0
    # The requests that woke `single`: the last one, and on a busy machine the first one, by its log.
    waking: list = field(default_factory=list)
    # Of phases in which nothing changes: when a poll had seen them. Each Prometheus has scraped after that.
    seen: dict = field(default_factory=dict)
    # Of `single`: pairs of time, and CPU seconds or resident bytes.
    cpu: list = field(default_factory=list)
    memory: list = field(default_factory=list)
    # At the end: the counters of `single`, the slots of `program`.
    counters: dict = field(default_factory=dict)
    slots: list = field(default_factory=list)

    @property
    def models(self):
        """Server and model of all series about a model."""
        return [(self.single, MODEL_NAME), (self.program, MODEL_NAME), (self.router, ALPHA), (self.router, BETA)]

    def of(self, server, model=None):
        """The requests to a server, or to one of its models, that their server survived."""
        return [r for r in self.requests if r.server == server and r.outcome and model in (None, r.model)]

    def answered(self, server, model=None):
        return [r for r in self.of(server, model) if r.outcome in ("ok", "truncated")]

    def ended_between(self, server, start, end):
        return [r for r in self.of(server) if start < r.ended <= end]

    def tokens_between(self, server, start, end):
        """The number of tokens that clients received."""
        return sum(start < moment <= end for r in self.of(server) for moment in r.tokens)

    def seconds_waited(self, server, start, end):
        """Seconds that requests waited for a slot, added up."""
        return sum(overlap(r.sent, r.on_slot, start, end) for r in self.of(server) if r.tokens)

    def seconds_processed(self, server, start, end):
        """Seconds that requests were on a slot, added up."""
        return sum(overlap(r.on_slot, r.ended, start, end) for r in self.of(server) if r.tokens)

    def seconds_busy(self, server, start, end):
        """Seconds in which at least one request was on a slot."""
        busy, until = 0.0, start
        for begin, finish in sorted((r.on_slot, r.ended) for r in self.of(server) if r.tokens):
            busy += overlap(max(begin, until), finish, start, end)
            until = max(until, finish)
        return busy

    def tokens_in_slots(self, server, slots, moment):
        """The tokens of the requests that were on so many slots: at least, and at most. No client sees when its prompt
        begins to be processed, nor what happens on the slot after the last token."""

        def tokens(r):
            return r.timings["prompt_n"] + r.timings["cache_n"] + sum(at <= moment for at in r.tokens)

        pending = [r for r in self.of(server) if r.tokens and r.sent <= moment < r.ended]
        answering = sum(tokens(r) for r in pending if r.tokens[0] <= moment < r.tokens[-1])
        return answering, sum(sorted(map(tokens, pending))[-slots:])

    def cpu_between(self, start, end):
        """CPU seconds that `single` used, evenly between two samples."""

        def used(moment):
            pairs = itertools.pairwise(self.cpu)
            (at, value), (then, later) = next(pair for pair in pairs if pair[1][0] >= moment)
            return value + (later - value) * (moment - at) / (then - at)

        return used(end) - used(start)


def overlap(begin, finish, start, end):
    """Seconds of the one span of time that lie in the other."""
    return max(min(finish, end) - max(begin, start), 0.0)


class ScriptedLoad:
    """Starts the servers, sends the requests, and keeps what it saw."""

    def __init__(self, folder):
        self._lock = threading.Lock()
        self._threads = ThreadPoolExecutor(32)
        self._wait_for_scrapes = None
        self._clock = time.time() - time.monotonic()
        self._numbers = itertools.count()
        self.log = folder / "program-server.log"
        self.single = XllamacppServer(
            BUILD, folder / "single.log", "--sleep-idle-seconds", SLEEP_IDLE, "--batch-size", BATCH_TOKENS,
            parallel=SINGLE_SLOTS, ctx_size=SINGLE_SLOTS * SLOT_TOKENS,
        )  # fmt: skip
        self.program = LlamaServerProgram(
            folder / "program.log", "--log-file", self.log, "-np", PROGRAM_SLOTS,
            "-c", PROGRAM_SLOTS * SLOT_TOKENS, "-b", BATCH_TOKENS,
        )  # fmt: skip
        self.router = Router(folder / "router.log")
        self.gpu = folder / "gpu"
        self._write_nvidia_smi()
        self.record = Record(*(f"127.0.0.1:{server.port}" for server in self.servers))

    def _write_nvidia_smi(self):
        """A GPU at a constant power: a program that prints what nvidia-smi does."""
        (self.gpu / "sys").mkdir(parents=True)
        line = f"0, GPU-0, 580.159.04, {GPU_PERCENT}, 39, 8173, 143771, 134984, {GPU_WATTS}, NVIDIA H200"
        program = self.gpu / "nvidia-smi"
        program.write_text(
            f"#!/bin/sh\ncase $1 in --query-gpu=*) line='{line}' ;; *) line='1, GPU-0, 10' ;; esac\n"
            f'while :; do echo "$line"; sleep {POLL}; done\n'
        )
        program.chmod(0o755)

    @property
    def servers(self):
        return [self.single, self.program, self.router]

    @property
    def exporter_options(self):
        logs = {self.single: self.single.log_path, self.program: self.log, self.router: self.router.log_path}
        options = ["--probe-interval", "10s"]
        for server, log in logs.items():
            options += ["--log-file", f"{server.url}={log}"]
        return options

    @property
    def exporter_environment(self):
        return {"PATH": f"{self.gpu}:/usr/bin:/bin", "LLAMACPP_SYSFS": str(self.gpu / "sys")}

    def kill(self):
        for server in self.servers:
            server.kill()

    def start(self):
        for server in self.servers:
            server.start()
        for server in self.servers:
            server.wait_until_loaded()

    @contextlib.contextmanager
    def phase(self, name):
        started = time.time()
        yield
        self.record.phases[name] = (started, time.time())

    def send(self, server, tokens, model=None, **settings):
        """Sends a request and waits for its end."""
        stream = Stream(server, tokens, **({"model": model} if model else {}), **settings)
        wait_for(lambda: stream.ended_at, "a request to end", timeout=300)
        return self._keep(server, model, stream, disconnected="disconnect_after" in settings)

    def _keep(self, server, model, stream, disconnected=False, lost=False):
        code = None
        if lost:
            outcome = None
        elif stream.status != 200:
            if not stream.status:
                raise stream.error
            code = stream.status
            outcome = "error"
        elif disconnected:
            outcome = "cancelled"
        else:
            outcome = "truncated" if stream.truncated else "ok"
            assert len(stream.arrivals) == stream.timings["predicted_n"], stream.error
        request = Request(
            f"127.0.0.1:{server.port}", model or MODEL_NAME, outcome, code, stream.sent_at + self._clock,
            stream.ended_at + self._clock, [moment + self._clock for moment in stream.arrivals], stream.timings,
        )  # fmt: skip
        with self._lock:
            self.record.requests.append(request)
        return request

    def _start_clients(self, server, number, seconds):
        """Clients that send one request after the other for so long. Returns their futures."""

        def client():
            ends = time.monotonic() + seconds
            while time.monotonic() < ends:
                self._mixed(server)

        return [self._threads.submit(client) for _ in range(number)]

    def _mixed(self, server):
        """Prompts and answers of several lengths; one in four prompts may come from the cache."""
        with self._lock:
            number = next(self._numbers)
        tokens = (4, 8, 16, 32)[number % 4]
        if number % 4 == 1:
            self.send(server, tokens, prompt=f"{SHARED} {number}", cache_prompt=True)
        else:
            words = (1, 20, 60, 300)[number // 4 % 4] if number % 4 == 3 else 10
            self.send(server, tokens, prompt=f"{number} " + " ".join(["storm"] * words))

    def run(self, wait_for_scrapes):
        """Returns the record. `wait_for_scrapes(*servers)` returns once each Prometheus has scraped a poll of these
        servers, or of all of them, that began later; it returns when that poll had ended."""
        self._wait_for_scrapes = wait_for_scrapes
        wait_for_scrapes()
        ended = threading.Event()

        def sample_cpu():
            while not ended.wait(0.5):
                self.record.cpu.append((time.time(), cpu_seconds(self.single.pid)))
                self.record.memory.append((time.time(), resident_bytes(self.single.pid)))

        with self._threads:
            sampler = self._threads.submit(sample_cpu)
            try:
                plans = [self._threads.submit(plan) for plan in (self._run_single, self._run_program, self._run_router)]
                wait_for_all(plans)
                wait_for_scrapes()
            finally:
                ended.set()
            sampler.result()
        self.record.counters = {name: self.single.counter(name) for name in COUNTERS}
        self.record.cancelled_polls = sum(map(cancelled_polls, self.program.log.split("loading model")))
        self.record.slots = self.program.get_json("/slots")
        *_, last = of_single = self.record.of(self.record.single)
        wakes = self.single.log.count("server is exiting sleeping state")
        self.record.waking = {1: [last], 2: [of_single[0], last]}[wakes]
        return self.record

    def _run_single(self):
        server = self.single
        for tokens in (1, 2, 5, 12):
            self.send(server, tokens)
        for number in range(3):
            self.send(server, 8, prompt=f"{SHARED} {number}", cache_prompt=True)
        for _ in range(3):
            self.send(server, 8, prompt=TOO_LONG)
        for _ in range(2):
            self.send(server, 400, disconnect_after=8)
        with self.phase("saturated"):
            clients = self._start_clients(server, CLIENTS, SATURATED)
            clients += self._start_clients(server, EARLY_CLIENTS, SATURATED / 5)
            wait_for_all(clients)
        wait_for(server.is_sleeping, "the server to sleep", interval=0.3)
        with self.phase("asleep"):
            self.record.seen["asleep"] = self._wait_for_scrapes(server)
        self.send(server, 5)

    def _run_program(self):
        server = self.program
        # Together they are longer than those after the restart: of counters that grew beyond their old values
        # between two scrapes, Prometheus cannot tell that they were reset.
        for tokens in (1, 4, 16):
            self.send(server, tokens)
        self.send(server, 60, prompt=NEARLY_FULL)
        # More clients than slots. The server then listens and answers nothing, as one that is overloaded.
        clients = self._start_clients(server, PROGRAM_SLOTS + 2, 6)
        time.sleep(4)
        server.signal(signal.SIGSTOP)
        with self.phase("stuck"):
            self.record.seen["stuck"] = self._wait_for_scrapes(server)
        server.signal(signal.SIGCONT)
        wait_for_all(clients)
        # Where one request follows another on a slot, the exporter may count a prompt twice until the server's counter
        # is above that (`ignore_counts_of_previous_task`).
        self.send(server, 4, prompt=NEARLY_FULL)
        # No token is counted between a last scrape and the end of the server, except of this request.
        self._wait_for_scrapes(server)
        cut = Stream(server, 2000).wait_for_tokens(20)
        time.sleep(2)
        with self.phase("cut"):
            server.signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                server.process.wait(3)
            server.kill()
        with self.phase("down"):
            wait_for(lambda: cut.ended_at, "the request to end")
            self._keep(server, None, cut, lost=True)
            self.record.seen["down"] = self._wait_for_scrapes(server)
        with self.phase("restart"):
            server.start().wait_until_loaded()
        for _ in range(3):
            self.send(server, 3)
        self.send(server, 400, prompt=NEARLY_FULL)

    def _run_router(self):
        server = self.router
        with self.phase("load"):
            server.post("/models/load", {"model": ALPHA})
            wait_for(lambda: server.model_status(ALPHA) == "loaded", "the model to be loaded")
        self._wait_for_scrapes(server)
        # Prompts of different lengths: with equal ones the exporter may take a request that has as many tokens as
        # the one before it on the slot for that one (`ignore_counts_of_previous_task`), and its counter is too high
        # until the server's passes it. This model is unloaded before that.
        for tokens in (30, 20, 40):
            self.send(server, tokens, model=ALPHA, prompt=" ".join(["wind"] * tokens))
        # Nothing happens between a last scrape and the end of the model's process.
        self._wait_for_scrapes(server)
        with self.phase("unload"):
            server.post("/models/unload", {"model": ALPHA})
            wait_for(lambda: server.model_status(ALPHA) == "unloaded", "the model to be unloaded")
        with self.phase("unloaded"):
            self.record.seen["unloaded"] = self._wait_for_scrapes(server)
        with self.phase("reload"):
            self.send(server, 10, model=ALPHA)
        with self.phase("load beta"):
            self.send(server, 10, model=BETA)


def cancelled_polls(log):
    """The number of tasks that were cancelled before they had a slot, by the log of one run of a server."""
    launched = re.findall(r"launch_slot_: id +\d+ \| task (\d+) ", log)
    return len(set(re.findall(r"cancel task, id_task = (\d+)", log)) - set(launched))


def wait_for_all(futures):
    """Raises the first exception of one of them."""
    for future in futures:
        future.result()
