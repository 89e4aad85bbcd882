"""A real Prometheus with prometheus.yml and the rules scrapes an exporter of a real llama.cpp server under load, with
its log and probes: every query of dashboard.json returns data, and every rule is healthy."""

import os
import re
import shutil
import subprocess
import threading
import time

import pytest

from support import MODEL, RECORDINGS, ROOT, dashboard
from support.exporter import Exporter
from support.http_client import free_port, responds
from support.llama_server import XllamacppServer
from support.prometheus import Prometheus
from support.wait import wait_for

DASHBOARD = dashboard.load()
QUERIES = dashboard.queries(DASHBOARD)
# Seconds from Prometheus's start after which every query must return data: enough for two scrapes and
# for a poll interval with load throughout.
STARTUP_SECONDS = 300
# Its counters of drafts are the newest.
BUILD = 11549
# What this server has not: a panel that needs it is empty here.
MISSING = (
    "Needs Docker Model Runner.",
    "Needs Docker Model Runner's records or llama-swap.",
    "Needs --discover.",
    # The server in xllamacpp has other arguments. tests/machine has the program.
    "Needs llama-server's arguments",
)


class StartingPrometheus(Prometheus):
    """Its queries return data once it has scraped for a while."""

    def __init__(self, folder, config, port):
        super().__init__(folder, config, port)
        self.startup_ends_at = time.monotonic() + STARTUP_SECONDS

    def panel(self, expr, instant):
        """The series that a panel gets, each with its finite values."""
        if instant:
            return [(labels, [value]) for labels, value in self.query(expr)]
        return self.query_range(expr, seconds=600)

    def wait_for(self, expr, instant=True, condition=lambda series: series):
        """The series, once `condition` is true of them."""
        timeout = max(self.startup_ends_at - time.monotonic(), 5)
        matching = lambda: condition(series := self.panel(expr, instant)) and series  # noqa: E731
        return wait_for(matching, lambda: f"{expr}: {self.panel(expr, instant)}", timeout, interval=1)


@pytest.fixture(scope="module")
def ports():
    """The exporter's port and Prometheus's port."""
    return free_port(), free_port()


@pytest.fixture(scope="module")
def config(ports, tmp_path_factory):
    """prometheus.yml and the rules, side by side; the targets are on this machine."""
    text = (ROOT / "prometheus.yml").read_text()
    for target, port in zip(('"llamacpp-exporter:9100"', '"localhost:9090"'), ports, strict=True):
        assert target in text
        text = text.replace(target, f'"localhost:{port}"')
    path = tmp_path_factory.mktemp("config") / "prometheus.yml"
    path.write_text(text)
    shutil.copy(ROOT / "deploy" / "prometheus" / "rules.yml", path.parent)
    return path


@pytest.fixture(scope="session", autouse=True)
def installed():
    subprocess.run([ROOT / "scripts" / "setup", "prometheus"], check=True)


@pytest.fixture(scope="module")
def drafting_server(tmp_path_factory):
    """A llama.cpp server with speculative decoding that has not been started yet."""
    subprocess.run([ROOT / "scripts" / "setup", str(BUILD)], check=True)
    server = XllamacppServer(BUILD, tmp_path_factory.mktemp("llama") / "log", "--draft-model", MODEL)
    yield server
    server.kill()


@pytest.fixture(scope="module")
def nvidia_smi(tmp_path_factory):
    """An nvidia-smi that replays what a real one printed. The process in the file `pid` beside it uses the GPU."""
    recorded = RECORDINGS / "nvidia" / "h200-580.159.04"
    program = tmp_path_factory.mktemp("bin") / "nvidia-smi"
    pid = program.with_name("pid")
    pid.write_text("")
    # 1069 is the recorded llama-server.
    processes = f"s/^1069,/$(cat {pid}),/"
    program.write_text(
        f"#!/bin/sh\nwhile :; do case $1 in --query-gpu=*) cat {recorded}/query-gpu-busy.csv ;; "
        f'*) sed "{processes}" {recorded}/query-compute-apps.csv ;; esac; sleep 1; done\n'
    )
    program.chmod(0o755)
    return program


@pytest.fixture(scope="module")
def busy_exporter(request, ports, drafting_server, nvidia_smi, tmp_path_factory):
    """An exporter whose server has requests of four clients until the tests of this file are over."""
    stop = threading.Event()
    server = drafting_server

    def send_requests(number):
        while not stop.is_set():
            try:
                server.stream(300, prompt=f"Client {number} asks: tell me more").wait()
            except Exception:
                # Expected when the server is killed at the end.
                if not stop.is_set():
                    raise

    # Before its server, so that some of its polls fail.
    log_path = tmp_path_factory.mktemp("exporter") / "log"
    options = ["--log-file", server.log_path, "--probe-interval", "10s"]
    environment = {"PATH": f"{nvidia_smi.parent}:{os.environ['PATH']}"}
    exporter = Exporter(
        server.url, log_path, *options, host="", port=ports[0], record_polls=False, environment=environment
    )
    request.addfinalizer(exporter.stop)
    wait_for(lambda: responds(exporter.port, "/readyz"), lambda: f"the exporter to be ready:\n{exporter.log}")
    server.start().wait_until_loaded()
    nvidia_smi.with_name("pid").write_text(str(server.pid))
    request.addfinalizer(stop.set)

    def start_client(number):
        threading.Thread(target=send_requests, args=(number,), daemon=True).start()

    # One busy slot, then two: llamacpp_optimal_batch_size compares them.
    start_client(0)
    running = {"status": "running"}
    wait_for(lambda: (exporter.value("status_seconds_total", **running) or 0) > 30, "a while of work on one slot")
    for number in (1, 2, 3):
        start_client(number)
    return exporter


@pytest.fixture(scope="module")
def prometheus(request, config, ports, busy_exporter, tmp_path_factory):
    prometheus = StartingPrometheus(tmp_path_factory.mktemp("prometheus"), config, ports[1])
    request.addfinalizer(prometheus.stop)
    return prometheus


@pytest.fixture(scope="module")
def model(prometheus):
    return prometheus.wait_for("llamacpp_status")[0][0]["model"]


def test_every_target_is_up(prometheus):
    up = prometheus.wait_for("up == 1", condition=lambda series: len(series) == 2)
    assert {labels["job"] for labels, _ in up} == {"llamacpp", "prometheus"}


@pytest.mark.parametrize("choice", ["all", "one"])
@pytest.mark.parametrize("query", QUERIES, ids=str)
def test_every_query_of_the_dashboard_returns_data(prometheus, model, ports, query, choice):
    choices = dict.fromkeys(dashboard.variables(DASHBOARD), dashboard.ALL)
    if choice == "one":
        server = prometheus.get("/api/v1/label/server/values")
        choices |= {"model": [model], "instance": [f"localhost:{ports[0]}"], "server": server, "job": ["llamacpp"]}
    expr = dashboard.substitute(query.expr, DASHBOARD, choices)
    assert "$" not in expr
    if any(need in query.description for need in MISSING):
        assert not prometheus.panel(expr, query.instant), "this server has what the panel needs: test it"
    else:
        prometheus.wait_for(expr, query.instant)


def test_the_dashboard_shows_a_busy_server(prometheus):
    def assert_panel(title, condition):
        [query] = [query for query in QUERIES if query.panel == title and query.instant]
        expr = dashboard.substitute(query.expr, DASHBOARD, dict.fromkeys(dashboard.variables(DASHBOARD), dashboard.ALL))
        prometheus.wait_for(expr, condition=lambda series: len(series) == 1 and condition(*series[0]))

    # The number of servers has the same title among the exporter's panels, which are no instant queries.
    assert_panel("Servers up", lambda _, values: values == [1])
    assert_panel("Models by state", lambda labels, values: labels["status"] == "running" and values == [1])
    assert_panel("Tokens per second", lambda _, values: values[0] > 1)
    assert_panel("Requests running", lambda _, values: values == [2])
    assert_panel("Requests waiting", lambda _, values: values[0] >= 2)


def test_the_annotations_are_valid(prometheus):
    for annotation in DASHBOARD["annotations"]["list"]:
        prometheus.query(
            dashboard.substitute(
                annotation["expr"], DASHBOARD, dict.fromkeys(dashboard.variables(DASHBOARD), dashboard.ALL)
            )
        )


@pytest.mark.parametrize("name", ["job", "instance", "server", "model"])
def test_a_variable_lists_the_existing_values(prometheus, model, ports, busy_exporter, name):
    query = dashboard.variables(DASHBOARD)[name]["query"]["query"]
    selector, label = re.fullmatch(r"label_values\((.*), (\w+)\)", query).groups()
    selector = dashboard.substitute(selector, DASHBOARD, dict.fromkeys(dashboard.variables(DASHBOARD), dashboard.ALL))
    values = prometheus.get(f"/api/v1/label/{label}/values", **{"match[]": selector})
    [server] = prometheus.get("/api/v1/label/server/values")
    assert values == [{"job": "llamacpp", "instance": f"localhost:{ports[0]}", "server": server, "model": model}[name]]


def test_every_rule_is_healthy(prometheus):
    def rules():
        groups = prometheus.get("/api/v1/rules")["groups"]
        return [rule for group in groups for rule in group["rules"]]

    unknown = lambda: [rule["name"] for rule in rules() if rule["health"] == "unknown"]  # noqa: E731
    wait_for(lambda: not unknown(), lambda: f"an evaluation of {unknown()}", STARTUP_SECONDS, interval=1)
    assert {rule["health"] for rule in rules()} == {"ok"}, rules()
    assert sum(rule["type"] == "alerting" for rule in rules()) > 20
    # Recorded of the one model, which has no errors.
    prometheus.wait_for("model:llamacpp_generated_tokens:rate5m > 0")
    prometheus.wait_for("model:llamacpp_first_token_latency_seconds:p95_rate5m > 0")


def test_no_scrape_failed_and_no_sample_was_refused(prometheus):
    assert [value for _, value in prometheus.query("min_over_time(up[10m])")] == [1, 1]
    # Out of order, or two samples of a series in one scrape.
    assert "level=warn" not in prometheus.log and "level=error" not in prometheus.log, prometheus.log
    # The load explains the warnings that fire.
    assert not prometheus.query('ALERTS{alertname=~"LlamaCpp.*", alertstate="firing", severity="critical"}')
