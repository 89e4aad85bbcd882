"""A real Prometheus with the real prometheus.yml scrapes the real exporter over a real llama.cpp
server under load, and every query of dashboard.json gets data from it."""

import json
import math
import re
import subprocess
import time
import urllib.parse
import urllib.request
from pathlib import Path

import dashboard
import pytest

ROOT = Path(__file__).resolve().parents[2]
DASHBOARD = dashboard.load()
QUERIES = dashboard.queries(DASHBOARD)
# Seconds from its start: time enough for two scrapes and for a poll interval that was busy from end
# to end. After that everything must be there.
PATIENCE = 180


class Prometheus:
    def __init__(self, url):
        self.url = url
        self.patient_until = time.monotonic() + PATIENCE

    def get(self, path, **parameters):
        url = f"{self.url}{path}?{urllib.parse.urlencode(parameters)}"
        with urllib.request.urlopen(url, timeout=10) as answer:
            return json.load(answer)["data"]

    def ask(self, expr, instant=True):
        """What a panel would be given: the series, each with its finite values."""
        now = time.time()
        if instant:
            data = self.get("/api/v1/query", query=expr, time=now)
        else:
            data = self.get("/api/v1/query_range", query=expr, start=now - 600, end=now, step=5)
        series = []
        for one in data["result"]:
            points = [one["value"]] if "value" in one else one["values"]
            values = [float(value) for _, value in points]
            if finite := [value for value in values if math.isfinite(value)]:
                series.append((one["metric"], finite))
        return series

    def wait_for(self, expr, instant=True, wanted=lambda series: series):
        deadline = max(self.patient_until, time.monotonic() + 5)
        while not wanted(series := self.ask(expr, instant)):
            if time.monotonic() > deadline:
                pytest.fail(f"not what was waited for: {expr}\n{series}")
            time.sleep(1)
        return series


@pytest.fixture(scope="module")
def config(tmp_path_factory, free_port, port_is_free):
    """prometheus.yml as it is. Where one of its ports is taken on this machine: with others."""
    text = (ROOT / "prometheus.yml").read_text()
    for port in re.findall(r'localhost:(\d+)"', text):
        if not port_is_free(int(port)):
            text = text.replace(f"localhost:{port}", f"localhost:{free_port()}")
    path = tmp_path_factory.mktemp("config") / "prometheus.yml"
    path.write_text(text)
    return path


@pytest.fixture(scope="module")
def targets(config):
    """The ports in it: the exporter's, and Prometheus's own."""
    exporter, itself = re.findall(r'localhost:(\d+)"', config.read_text())
    return int(exporter), int(itself)


@pytest.fixture(scope="session")
def program():
    """Prometheus and promtool, by name."""
    subprocess.run([ROOT / "scripts" / "setup", "prometheus"], check=True)
    return lambda name: ROOT / "target" / "prometheus" / "usr" / "bin" / name


@pytest.fixture(scope="module")
def prometheus(config, targets, busy_exporter, program, tmp_path_factory, run):
    folder = tmp_path_factory.mktemp("prometheus")
    url = f"http://127.0.0.1:{targets[1]}"
    run(
        [
            program("prometheus"),
            f"--config.file={config}",
            f"--storage.tsdb.path={folder}",
            f"--web.listen-address=127.0.0.1:{targets[1]}",
        ],
        ready=f"{url}/-/ready",
        log=folder / "log",
    )
    return Prometheus(url)


@pytest.fixture(scope="module")
def busy_exporter(targets, exporter_under_load):
    """The exporter's URL; its server works on requests until the tests of this file are over."""
    return exporter_under_load(port=targets[0])


@pytest.fixture(scope="module")
def model(prometheus):
    return prometheus.wait_for("llamacpp_status")[0][0]["model"]


def test_promtool_accepts_the_configuration(program):
    command = [program("promtool"), "check", "config", ROOT / "prometheus.yml"]
    checked = subprocess.run(command, capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_every_target_is_up(prometheus):
    up = prometheus.wait_for("up == 1", wanted=lambda series: len(series) == 2)
    assert {labels["job"] for labels, _ in up} == {"llamacpp", "prometheus"}


def test_every_metric_of_the_dashboard_is_the_exporters(prometheus, busy_exporter):
    # By then the server has been seen at work for a whole interval.
    prometheus.wait_for("llamacpp_batch_latency_seconds_count > 0")
    with urllib.request.urlopen(f"{busy_exporter}/metrics", timeout=5) as answer:
        text = answer.read().decode()
    known = set()
    for name, kind in re.findall(r"^# TYPE (\S+) (\S+)$", text, re.M):
        known |= {name + suffix for suffix in ("_bucket", "_sum", "_count")} if kind == "histogram" else {name}
    wanted = set().union(*(dashboard.metrics(query.expr) for query in QUERIES))
    assert wanted and wanted <= known, wanted - known


@pytest.mark.parametrize("choice", ["all", "one"])
@pytest.mark.parametrize("query", QUERIES, ids=str)
def test_every_query_of_the_dashboard_returns_data(prometheus, model, targets, query, choice):
    choices = dict.fromkeys(dashboard.variables(DASHBOARD), dashboard.ALL)
    if choice == "one":
        choices |= {"model": [model], "instance": [f"localhost:{targets[0]}"]}
    expr = dashboard.substitute(query.expr, DASHBOARD, choices)
    assert "$" not in expr
    prometheus.wait_for(expr, query.instant)


def test_the_dashboard_shows_a_busy_server(prometheus):
    def now(title):
        [query] = [query for query in QUERIES if query.panel == title and query.instant]
        choices = dict.fromkeys(dashboard.variables(DASHBOARD), dashboard.ALL)
        return dashboard.substitute(query.expr, DASHBOARD, choices)

    [panel] = [panel for panel in dashboard.panels(DASHBOARD) if panel["title"] == "State" and panel["type"] == "stat"]
    [mapping] = panel["fieldConfig"]["defaults"]["mappings"]
    text = {float(number): shown["text"] for number, shown in mapping["options"].items()}

    def shows(title, right):
        prometheus.wait_for(now(title), wanted=lambda series: len(series) == 1 and right(series[0][1][0]))

    shows("Server", lambda value: value == 1)
    shows("State", lambda value: text[value] == "running")
    shows("Tokens per second", lambda value: value > 1)
    shows("Requests running", lambda value: value == 2)
    shows("Requests waiting", lambda value: value == 2)


@pytest.mark.parametrize("name", ["instance", "model"])
def test_a_variable_offers_what_is_there(prometheus, model, targets, name):
    query = dashboard.variables(DASHBOARD)[name]["query"]["query"]
    selector, label = re.fullmatch(r"label_values\((.*), (\w+)\)", query).groups()
    selector = dashboard.substitute(selector, DASHBOARD, dict.fromkeys(dashboard.variables(DASHBOARD), dashboard.ALL))
    values = prometheus.get(f"/api/v1/label/{label}/values", **{"match[]": selector})
    assert values == [{"instance": f"localhost:{targets[0]}", "model": model}[name]]
