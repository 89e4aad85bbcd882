"""--check finds a real Prometheus and the exporter that it scrapes, and accepts and rejects the same scrapes."""

import subprocess

import pytest

from support import ROOT
from support.exporter import run_check
from support.http_client import free_port
from support.prometheus import Prometheus
from support.replay import TEXT, Response
from support.wait import wait_for

OURS = '# TYPE llamacpp_exporter_build_info gauge\nllamacpp_exporter_build_info{revision="r",version="9.9.9"} 1\n'
# Appended to a scrape; none of them is accepted.
REJECTED = (
    "2a 1\n", "a\n", "a \n", "a one\n", "a 1 soon\n", 'a{1b=""} 1\n', 'a{b="1",b="2"} 1\n', "a{b=1} 1\n",
    'a{b="x} 1\n', "# TYPE a number\na 1\n",
)  # fmt: skip
ACCEPTED = (
    "", "a 1\n", 'a{b="\\"\\\\\\n}, "} NaN\n', "a +Inf 1700000000000\n", "a{} 1e3\n", "# a comment\n\na:b 1\n",
    '# TYPE h histogram\nh_bucket{le="+Inf"} 2\nh_sum 0.5\nh_count 2\n',
)  # fmt: skip


@pytest.fixture(scope="session", autouse=True)
def installed():
    subprocess.run([ROOT / "scripts" / "setup", "prometheus"], check=True)


@pytest.fixture
def start_prometheus(request, tmp_path):
    """Starts a Prometheus that scrapes these ports of this machine every second."""

    def start(*ports):
        config = tmp_path / "prometheus.yml"
        targets = ", ".join(f'"127.0.0.1:{port}"' for port in ports)
        config.write_text(
            "global: {scrape_interval: 1s}\n"
            f"scrape_configs: [{{job_name: models, static_configs: [{{targets: [{targets}]}}]}}]\n"
        )
        folder = tmp_path / "data"
        folder.mkdir()
        prometheus = Prometheus(folder, config, free_port())
        request.addfinalizer(prometheus.kill)
        return prometheus

    return start


def check(url, port, prometheus):
    options = ("--addr", f"127.0.0.1:{port}", "--prometheus-url", f"http://127.0.0.1:{prometheus.port}")
    return run_check(url, *options, code=1).document


def test_the_target_of_the_exporter(start_exporter, start_prometheus):
    url = f"http://127.0.0.1:{free_port()}"
    exporter = start_exporter(url, record_polls=False)
    prometheus = start_prometheus(exporter.port)

    def target(health):
        document = check(url, exporter.port, prometheus)
        [found] = document["prometheus"]
        # It has none yet when it has just started.
        targets = [target for target in found["targets"] if target["health"] == health]
        return targets and (document, targets[0])

    document, found = wait_for(lambda: target("up"), lambda: prometheus.log)
    assert found["last_error"] is None and found["job"] == "models"
    running = document["exporter"]
    assert running["state"] == "running" and running["health"] == "ok" and running["exposition"]["valid"]
    assert running["servers"] == {url.removeprefix("http://"): False} and running["unwatched"] == []
    exporter.stop()
    document, found = wait_for(lambda: target("down"), lambda: prometheus.log)
    assert "refused" in found["last_error"] and document["exporter"]["state"] == "none"


def test_prometheus_and_the_check_accept_the_same_scrapes(replay, start_prometheus):
    servers = {
        text: replay({"/metrics": Response("# HELP x y\n" + OURS + text, 200, TEXT)}) for text in ACCEPTED + REJECTED
    }
    prometheus = start_prometheus(*(server.port for server in servers.values()))

    def targets():
        found = prometheus.get("/api/v1/targets", state="active")["activeTargets"]
        health = {one["scrapeUrl"]: one["health"] for one in found}
        return len(health) == len(servers) and "unknown" not in health.values() and health

    health = wait_for(targets, lambda: prometheus.log, interval=0.5)
    url = f"http://127.0.0.1:{free_port()}"
    for text, server in servers.items():
        is_accepted = health[f"http://127.0.0.1:{server.port}/metrics"] == "up"
        assert is_accepted == (text in ACCEPTED), text
        document = check(url, server.port, prometheus)
        assert document["exporter"]["exposition"]["valid"] == is_accepted, (text, document["exporter"])
