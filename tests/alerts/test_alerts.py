"""Each alert of deploy/prometheus/rules.yml fires when its condition is made to happen to a real server (for one of them, a
recorded one), and none fires for a server beside it that works as it should.

All times in the rules are divided, so that this takes minutes: `for`, ranges, intervals.
"""

import contextlib
import itertools
import re
import signal
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import yaml

from support import MODEL, ROOT
from support.counter_proxy import CounterProxy
from support.exporter import Exporter
from support.http_client import free_port
from support.llama_server import LlamaServerProgram, XllamacppServer
from support.prometheus import Prometheus
from support.replay import NOT_FOUND, ReplayServer, Response, recorded, with_json
from support.router import ALPHA, BETA, BROKEN, Router
from support.wait import wait_for

RULES = ROOT / "deploy" / "prometheus" / "rules.yml"
BUILD = 11549
FASTER = 20
# Seconds until all must have fired.
LONGEST = 900
CONFIG = """
global: {{scrape_interval: 1s, evaluation_interval: 1s}}
rule_files: [rules.yml]
scrape_configs:
  - job_name: llamacpp
    static_configs: [targets: [{targets}]]
  - job_name: llamacpp-many
    scrape_interval: 5s
    static_configs: [targets: [{many}]]
"""

# Where each alert must fire: its labels; `instance` is an exporter, `server` a server.
FIRES = {
    "LlamaCppExporterDown": {"instance": "killed"},
    "LlamaCppServerDown": {"instance": "main", "server": "restarted"},
    "LlamaCppServerTimesOut": {"instance": "main", "server": "stopped"},
    "LlamaCppValuesStale": {"instance": "rare"},
    "LlamaCppPollsFailing": {"instance": "main", "server": "locked", "reason": "unauthorized"},
    "LlamaCppSeriesDropped": {"instance": "many"},
    "LlamaCppMetricsOff": {"instance": "main", "server": "plain"},
    "LlamaCppModelFailed": {"instance": "main", "server": "router", "model": BROKEN},
    "LlamaCppModelStuckLoading": {"instance": "main", "server": "router", "model": BETA},
    "LlamaCppModelThrashing": {"instance": "main", "server": "router", "model": ALPHA},
    "LlamaCppServerRestarting": {"instance": "main", "server": "restarted"},
    "LlamaCppThroughputCollapsed": {"instance": "main", "server": "slow"},
    "LlamaCppStalled": {"instance": "main", "server": "stalled"},
    "LlamaCppRequestsWaiting": {"instance": "main", "server": "busy"},
    "LlamaCppSlotsSaturated": {"instance": "main", "server": "busy"},
    "LlamaCppContextNearlyFull": {"instance": "main", "server": "full"},
    "LlamaCppKvCacheNearlyFull": {"instance": "main", "server": "full"},
    "LlamaCppRequestsTruncated": {"instance": "main", "server": "full"},
    "LlamaCppFirstTokenSlow": {"instance": "main", "server": "long"},
    "LlamaCppRequestErrors": {"instance": "main", "server": "busy"},
    "LlamaCppRequestsCancelled": {"instance": "main", "server": "busy"},
    "LlamaCppProbesFailing": {"instance": "gateway"},
    "LlamaCppSpeculationUseless": {"instance": "main", "server": "drafts"},
    "LlamaCppLogSilent": {"instance": "other", "server": "busy"},
    "LlamaCppRequestsMissed": {"instance": "other"},
    "LlamaCppMemoryNearLimit": {"instance": "other", "server": "busy"},
    "LlamaCppGpuMemoryNearLimit": {"instance": "other"},
    "LlamaCppGpuHot": {"instance": "other"},
    "LlamaCppGpuUnused": {"instance": "other"},
}


def faster(rules):
    units = {"s": 1, "m": 60, "h": 3600, "d": 86400}
    shorter = lambda match: f"{match[1]}{int(match[2]) * units[match[3]] * 1000 // FASTER}ms"  # noqa: E731
    rules = re.sub(r"(\[|for: )(\d+)([smhd])\b", shorter, rules)
    rules = re.sub(r"interval: \w+", "interval: 1s", rules)
    assert rules.count("timestamp_seconds > 120\n") == 1
    return rules.replace("timestamp_seconds > 120\n", f"timestamp_seconds > {120 // FASTER}\n")


class ReadOnlyGateway(CounterProxy):
    """A proxy that refuses what is no GET."""

    def _response(self, method, path):
        return super()._response(method, path) if method == "GET" else Response("forbidden", 403)


class BusyModelRunner(ReplayServer):
    """Docker Model Runner, recorded; each time that it lists its last ten requests, it has ended all ten since."""

    LISTED = 10

    def __init__(self):
        super().__init__(recorded("model-runner", "requests"))
        self.numbers = itertools.count()

    def _response(self, method, path):
        def renew(models):
            for model in models:
                ended = model["records"][0]
                model["records"] = [ended | {"id": f"{model['model']}_{next(self.numbers)}"} for _ in range(self.LISTED)]

        responses = self.responses
        if path == "/engines/requests":
            responses = with_json(responses, path, renew)
        return responses.get(path, NOT_FOUND)


class Scene:
    """The servers, with what is wrong with each, their exporters, and a Prometheus with the rules."""

    def __init__(self, folder):
        self.folder = folder
        self.ended = threading.Event()
        self.deadline = None
        self.threads = ThreadPoolExecutor(64)
        self.conditions = []
        log = lambda name: folder / f"{name}.log"  # noqa: E731
        self.servers = {
            "fine": XllamacppServer(BUILD, log("fine")),
            "busy": XllamacppServer(BUILD, log("busy"), ctx_size=1024),
            "full": LlamaServerProgram(log("full"), "-np", 1, "-c", 4096),
            "long": XllamacppServer(BUILD, log("long"), parallel=16),
            "slow": XllamacppServer(BUILD, log("slow"), parallel=1),
            "stalled": LlamaServerProgram(log("stalled"), "-np", 1, "-c", 8192, "-b", 8192, "-ub", 8192),
            "restarted": LlamaServerProgram(log("restarted")),
            "stopped": LlamaServerProgram(log("stopped")),
            "locked": LlamaServerProgram(log("locked"), "--api-key", "secret"),
            "plain": LlamaServerProgram(log("plain")),
            "drafts": XllamacppServer(BUILD, log("drafts"), "--draft-model", MODEL),
            "router": Router(log("router"), models=(ALPHA, BETA, BROKEN)),
        }
        # Their series are more than an exporter serves.
        names = [f"{number:03}{'-long-name' * 50}" for number in range(500)]
        self.many = [f"many-{number}" for number in range(3)]
        self.servers |= {name: Router(log(name), models=names) for name in self.many}
        self.servers["plain"].command.remove("--metrics")
        self.gateway = None
        self.runner = BusyModelRunner()
        self.exporters = {}
        self.prometheus = None

    def start(self):
        for server in self.servers.values():
            server.start()
        for server in self.servers.values():
            if not isinstance(server, Router):
                server.wait_until_loaded()

        self.gateway = ReadOnlyGateway(self.servers["fine"].port, offset=0)

        def start_exporter(name, *urls, interval="1s", logs=None, **settings):
            options = [f"--log-file={self.servers[server].url}={path}" for server, path in (logs or {}).items()]
            options += ["--probe-interval", "5s"] if name in ("main", "gateway") else []
            self.exporters[name] = Exporter(
                ",".join(urls),
                self.folder / f"exporter-{name}.log",
                *options,
                interval=interval,
                record_polls=False,
                **settings,
            )

        logs = {name: self.servers[name].log_path for name in ("fine", "busy", "full", "long")}
        url = {name: server.url for name, server in self.servers.items()}
        start_exporter("main", *(url[name] for name in self.servers if name not in self.many), logs=logs)
        start_exporter("killed", url["fine"])
        start_exporter("rare", url["fine"], interval="60s")
        start_exporter("many", *(url[name] for name in self.many))
        start_exporter("gateway", self.gateway.url)
        empty = self.folder / "empty.log"
        empty.touch()
        start_exporter("other", url["busy"], self.runner.url, logs={"busy": empty}, environment=self._other_machine())
        addresses = {name: f'"127.0.0.1:{exporter.port}"' for name, exporter in self.exporters.items()}
        many = addresses.pop("many")
        config = self.folder / "prometheus.yml"
        config.write_text(CONFIG.format(targets=", ".join(addresses.values()), many=many))
        (self.folder / "rules.yml").write_text(faster(RULES.read_text()))
        (self.folder / "prometheus").mkdir()
        self.prometheus = Prometheus(self.folder / "prometheus", config, free_port())

    def _other_machine(self):
        """Files as the kernel and nvidia-smi have them: a memory limit that is nearly reached, a GPU that is hot, full
        and unused."""
        pid = self.servers["busy"].pid
        sysfs = self.folder / "sys"
        status = Path(f"/proc/{pid}/status").read_text()
        limit = str(int(int(re.search(r"VmRSS:\s+(\d+)", status)[1]) * 1024 / 0.97))
        for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            version_1 = "memory" in controllers.split(",")
            if version_1 or not controllers:
                cgroup = sysfs / "fs" / "cgroup" / ("memory" if version_1 else "") / path.strip("/")
                cgroup.mkdir(parents=True, exist_ok=True)
                (cgroup / ("memory.limit_in_bytes" if version_1 else "memory.max")).write_text(limit)
        programs = self.folder / "programs"
        programs.mkdir()
        nvidia_smi = programs / "nvidia-smi"
        gpu = "0, GPU-0, 580.159.04, 0, 95, 143000, 143771, 155, 60, NVIDIA H200"
        nvidia_smi.write_text(
            f"#!/bin/sh\ncase $1 in --query-gpu=*) line='{gpu}' ;; *) line='1, GPU-0, 10' ;; esac\n"
            'while :; do echo "$line"; sleep 1; done\n'
        )
        nvidia_smi.chmod(0o755)
        return {"PATH": f"{programs}:/usr/bin:/bin", "LLAMACPP_SYSFS": str(sysfs)}

    def matchers(self, labels):
        def value(label, name):
            if label == "instance":
                return f"127.0.0.1:{self.exporters[name].port}"
            return f"127.0.0.1:{self.servers[name].port}" if label == "server" else name

        return ",".join(f'{label}="{value(label, name)}"' for label, name in labels.items())

    def fired(self, alert):
        """Whether it has fired so far."""
        labels = {"alertname": alert, "alertstate": "firing"} | FIRES[alert]
        return bool(self.prometheus.query(f"last_over_time(ALERTS{{{self.matchers(labels)}}}[1h])"))

    def needed(self, *alerts):
        """Whether the condition of one of the alerts must last."""
        return not self.ended.is_set() and not all(map(self.fired, alerts))

    def start_conditions(self):
        self.deadline = time.monotonic() + LONGEST
        conditions = [
            self.work_well, self.overload, self.fill_the_context, self.send_long_prompts, self.slow_down, self.stall,
            self.restart, self.load_and_unload, self.draft_badly,
        ]  # fmt: skip
        self.conditions = [self.threads.submit(condition) for condition in conditions]
        self.exporters["killed"].kill()
        self.servers["stopped"].signal(signal.SIGSTOP)

    def stop(self):
        self.ended.set()
        for server in self.servers.values():
            server.kill()
        self.threads.shutdown()
        for exporter in self.exporters.values():
            exporter.kill()
        if self.gateway:
            self.gateway.close()
        self.runner.close()
        if self.prometheus:
            self.prometheus.stop()

    def request(self, name, tokens, **settings):
        """Sends a request and waits for its end, whatever that is."""
        stream = self.servers[name].stream(tokens, **settings)
        wait_for(lambda: stream.ended_at, "a request to end", timeout=LONGEST)
        return stream

    def each_second(self):
        return not self.ended.wait(1)

    def work_well(self):
        while not self.ended.wait(5):
            self.request("fine", 8)

    def overload(self):
        alerts = ["LlamaCppRequestsWaiting", "LlamaCppSlotsSaturated", "LlamaCppRequestErrors"]
        alerts += ["LlamaCppRequestsCancelled", "LlamaCppLogSilent", "LlamaCppMemoryNearLimit"]
        alerts += ["LlamaCppGpuMemoryNearLimit", "LlamaCppGpuHot", "LlamaCppGpuUnused"]

        def client():
            while self.needed(*alerts):
                for _ in range(4):
                    self.request("busy", 12)
                    self.request("busy", 200, disconnect_after=2)
                self.request("busy", 8, prompt="too long " * 600)

        clients = [self.threads.submit(client) for _ in range(6)]
        for each in clients:
            each.result()

    def fill_the_context(self):
        prompt = self.servers["full"].prompt_of_tokens(3780)
        while self.needed("LlamaCppContextNearlyFull", "LlamaCppKvCacheNearlyFull", "LlamaCppRequestsTruncated"):
            self.request("full", 1000, prompt=prompt, cache_prompt=True)

    def send_long_prompts(self):
        """Prompts of 16 slots at once, which take about 10 seconds together."""
        measured = self.request("long", 1, prompt="rain " * 200).timings
        words = min(480, max(20, int(10 / 16 * measured["prompt_n"] / measured["prompt_ms"] * 1000)))
        while self.needed("LlamaCppFirstTokenSlow"):
            requests = [self.threads.submit(self.request, "long", 2, prompt="rain " * words) for _ in range(16)]
            for request in requests:
                request.result()

    @contextlib.contextmanager
    def slowed(self, name, share):
        """The server runs for that share of the time."""
        server, over = self.servers[name], threading.Event()

        def hold():
            while not over.wait(0.5 * share) and not self.ended.is_set():
                server.signal(signal.SIGSTOP)
                over.wait(0.5 * (1 - share))
                server.signal(signal.SIGCONT)

        holding = self.threads.submit(hold)
        try:
            yield
        finally:
            over.set()
            holding.result()

    def slow_down(self):
        recorded = "server_model:llamacpp_generated_tokens:rate15m_per_running_second"
        known = f"count_over_time({recorded}{{{self.matchers({'server': 'slow'})}}}[1h]) > 100"
        while not self.prometheus.query(known) and not self.ended.is_set():
            self.request("slow", 32)
        with self.slowed("slow", 0.05):
            while self.needed("LlamaCppThroughputCollapsed"):
                self.request("slow", 8)

    def stall(self):
        """All of a prompt is one decode call, which takes longer than the alert waits."""
        prompt = self.servers["stalled"].prompt_of_tokens(8000)
        with self.slowed("stalled", 0.2):
            while self.needed("LlamaCppStalled"):
                self.request("stalled", 1, prompt=prompt)

    def restart(self):
        server = self.servers["restarted"]
        while self.needed("LlamaCppServerRestarting") and self.each_second():
            server.kill()
            server.start().wait_until_loaded()
            self.ended.wait(3)
        server.kill()

    def load_and_unload(self):
        router = self.servers["router"]
        wait_for(lambda: self.router_serves(router), "the router to serve")
        router.post("/models/load", {"model": BROKEN})
        router.post("/models/load", {"model": BETA})
        wait_for(lambda: "args" in router.models()[BETA], "the model's process", interval=0.01)
        loading = wait_for(lambda: self.pid_of(router, BETA), "the model's process", interval=0.01)
        subprocess.run(["kill", "-STOP", str(loading)], check=True)
        while self.needed("LlamaCppModelThrashing"):
            for action, status in (("load", "loaded"), ("unload", "unloaded")):
                router.post(f"/models/{action}", {"model": ALPHA})
                wait_for(lambda: router.model_status(ALPHA) == status, status)  # noqa: B023
                # So that a poll sees it.
                self.ended.wait(2)

    @staticmethod
    def router_serves(router):
        with contextlib.suppress(OSError):
            return router.models()

    @staticmethod
    def pid_of(router, model):
        with contextlib.suppress(AssertionError):
            return router.model_pid(model)

    def draft_badly(self):
        """The model drafts for itself, but samples what it never drafts."""
        settings = {"temperature": 10, "top_k": 0, "top_p": 1, "min_p": 0, "speculative.p_min": 0}
        while self.needed("LlamaCppSpeculationUseless"):
            self.request("drafts", 64, **settings)


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    subprocess.run([ROOT / "scripts" / "setup", "prometheus", "router", str(BUILD)], check=True)
    scene = Scene(tmp_path_factory.mktemp("scene"))
    try:
        scene.start()
        scene.start_conditions()
        yield scene
    finally:
        scene.stop()


def test_every_alert_is_tried():
    rules = [rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]
    assert {rule["alert"] for rule in rules if "alert" in rule} == FIRES.keys()


@pytest.mark.parametrize("alert", FIRES)
def test_the_alert_fires(scene, alert):
    try:
        timeout = scene.deadline - time.monotonic()
        wait_for(lambda: scene.fired(alert), f"{alert} of {FIRES[alert]}", timeout, interval=0.5)
    except AssertionError:
        for condition in scene.conditions:
            if condition.done():
                condition.result()
        raise


def test_a_server_that_works_as_it_should_has_no_alert(scene):
    matchers = scene.matchers({"instance": "main", "server": "fine"})
    assert scene.prometheus.query(f'last_over_time(ALERTS{{alertstate="firing",{matchers}}}[1h])') == []
    assert scene.prometheus.query(f"llamacpp_up{{{matchers}}} == 1")
