"""A real Prometheus with prometheus.yml scrapes an exporter of a real llama.cpp server under load, and
every query of dashboard.json returns data."""

import re
import shutil
import subprocess
import threading
import time

import pytest

from support import ROOT, dashboard
from support.exporter import Exporter
from support.http_client import free_port, responds
from support.prometheus import Prometheus
from support.wait import wait_for

DASHBOARD = dashboard.load()
QUERIES = dashboard.queries(DASHBOARD)
# Seconds from Prometheus's start after which every query must return data: enough for two scrapes and
# for a poll interval with load throughout.
STARTUP_SECONDS = 180


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
def busy_exporter(request, ports, new_llama_server, tmp_path_factory):
    """An exporter whose server has requests of four clients until the tests of this file are over."""
    stop = threading.Event()
    server = new_llama_server

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
    exporter = Exporter(server.url, log_path, host="", port=ports[0], record_polls=False)
    request.addfinalizer(exporter.stop)
    wait_for(lambda: responds(exporter.port, "/readyz"), lambda: f"the exporter to be ready:\n{exporter.log}")
    server.start().wait_until_loaded()
    for number in range(4):
        threading.Thread(target=send_requests, args=(number,), daemon=True).start()
    request.addfinalizer(stop.set)
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


def test_the_exporter_has_every_metric_of_the_dashboard(prometheus, busy_exporter):
    # Exported once the server was busy for a whole poll interval.
    prometheus.wait_for("llamacpp_batch_latency_seconds_count > 0")
    text = busy_exporter.scrape()
    known = set()
    for name, kind in re.findall(r"^# TYPE (\S+) (\S+)$", text, re.M):
        known |= {name + suffix for suffix in ("_bucket", "_sum", "_count")} if kind == "histogram" else {name}
    queried = set().union(*(dashboard.metrics(query.expr) for query in QUERIES))
    assert queried and queried <= known, queried - known


@pytest.mark.parametrize("choice", ["all", "one"])
@pytest.mark.parametrize("query", QUERIES, ids=str)
def test_every_query_of_the_dashboard_returns_data(prometheus, model, ports, query, choice):
    choices = dict.fromkeys(dashboard.variables(DASHBOARD), dashboard.ALL)
    if choice == "one":
        choices |= {"model": [model], "instance": [f"localhost:{ports[0]}"]}
    expr = dashboard.substitute(query.expr, DASHBOARD, choices)
    assert "$" not in expr
    prometheus.wait_for(expr, query.instant)


def test_the_dashboard_shows_a_busy_server(prometheus):
    def instant_query(title):
        [query] = [query for query in QUERIES if query.panel == title and query.instant]
        choices = dict.fromkeys(dashboard.variables(DASHBOARD), dashboard.ALL)
        return dashboard.substitute(query.expr, DASHBOARD, choices)

    [panel] = [panel for panel in dashboard.panels(DASHBOARD) if panel["title"] == "State" and panel["type"] == "stat"]
    [mapping] = panel["fieldConfig"]["defaults"]["mappings"]
    text = {float(number): option["text"] for number, option in mapping["options"].items()}

    def assert_panel(title, condition):
        prometheus.wait_for(
            instant_query(title), condition=lambda series: len(series) == 1 and condition(series[0][1][0])
        )

    assert_panel("Server", lambda value: value == 1)
    assert_panel("State", lambda value: text[value] == "running")
    assert_panel("Tokens per second", lambda value: value > 1)
    assert_panel("Requests running", lambda value: value == 2)
    assert_panel("Requests waiting", lambda value: value == 2)


@pytest.mark.parametrize("name", ["instance", "model"])
def test_a_variable_lists_the_existing_values(prometheus, model, ports, name):
    query = dashboard.variables(DASHBOARD)[name]["query"]["query"]
    selector, label = re.fullmatch(r"label_values\((.*), (\w+)\)", query).groups()
    selector = dashboard.substitute(selector, DASHBOARD, dict.fromkeys(dashboard.variables(DASHBOARD), dashboard.ALL))
    values = prometheus.get(f"/api/v1/label/{label}/values", **{"match[]": selector})
    assert values == [{"instance": f"localhost:{ports[0]}", "model": model}[name]]
