"""Two real servers, one of them stopped: the values of the other stay fresh."""

import signal
import subprocess
import time

import pytest

from support import BINARY
from support.wait import wait_for

INTERVAL = 0.5
# Of each request to the stopped server: far longer than a poll of the other one takes.
TIMEOUT = 3.0
# Families of a server's process, which stay while the server does not answer.
OF_PROCESS = {
    "llamacpp_memory_usage_bytes",
    "llamacpp_total_memory_bytes",
    "llamacpp_cpu_utilization_percent",
    "llamacpp_thread_count",
    "llamacpp_process_cpu_seconds_total",
    "llamacpp_process_start_time_seconds",
}
# Families of the exporter itself, without the label `server`.
WITHOUT_SERVER = ("process_", "llamacpp_exporter_build_info", "llamacpp_exporter_series_dropped")


@pytest.fixture
def two_servers(start_build):
    servers = [start_build(10068) for _ in range(2)]
    yield servers
    for server in servers:
        server.signal(signal.SIGCONT)


def test_a_stopped_server_delays_no_other(one_core, two_servers, start_exporter):
    running, stopped = two_servers
    of_running, of_stopped = ({"server": f"127.0.0.1:{server.port}"} for server in two_servers)
    tokens = running.tokens_for(seconds=6)
    urls = f"{running.url},{stopped.url}/v1"
    exporter = start_exporter(urls, "--timeout", f"{TIMEOUT}s", interval=f"{INTERVAL}s", record_polls=False)

    def scrape_until(condition):
        found = lambda: (scrape := exporter.exposition()) and condition(scrape) and scrape  # noqa: E731
        return wait_for(found, lambda: f"an exposition; last one:\n{exporter.scrape()}\n{exporter.log}")

    both = scrape_until(lambda scrape: all(scrape.value("up", **of) == 1 for of in (of_running, of_stopped)))
    for of in (of_running, of_stopped):
        assert both.value("status", **of, status="idle") == 1
    for sample in both.samples:
        assert ("server" in sample.labels) != sample.name.startswith(WITHOUT_SERVER), sample

    stopped.signal(signal.SIGSTOP)
    stream = running.stream(tokens).wait_for_tokens(5)
    # Polls of the running server continue, however long one of the stopped server waits.
    ended = {"running": set(), "stopped": set()}
    highest = 0
    while stream.ended_at is None:
        scrape, scraped_at = exporter.exposition(), time.monotonic()
        for name, of in {"running": of_running, "stopped": of_stopped}.items():
            ended[name].add(scrape.value("exporter_last_successful_poll_timestamp_seconds", **of))
        counted = scrape.value("generated_tokens_total", **of_running) - 24
        assert highest <= counted <= stream.generated(scraped_at)
        highest = counted
        time.sleep(0.03)
    polls = {name: len(moments) for name, moments in ended.items()}
    print(polls)
    assert polls["running"] > 2 * polls["stopped"], "a poll of the running server was delayed"
    assert highest > 0
    stream.wait()

    # The stopped server is down and has no stale values: only its process is still read.
    down = scrape_until(lambda scrape: scrape.value("up", **of_stopped) == 0)
    of_model = {s.name for s in down.samples if "model" in s.labels and s.labels["server"] == of_stopped["server"]}
    assert of_model <= OF_PROCESS, of_model
    assert down.value("status", **of_running, status="idle") in (0, 1)

    stopped.signal(signal.SIGCONT)
    resumed = scrape_until(lambda scrape: scrape.value("status", **of_stopped, status="idle") == 1)
    assert resumed.value("generated_tokens_total", **of_stopped) == 0
    done = scrape_until(lambda scrape: scrape.value("generated_tokens_total", **of_running) == 24 + tokens)
    assert done.value("up", **of_running) == 1


def test_the_same_url_twice_is_a_usage_error():
    url = "http://127.0.0.1:9"
    command = [BINARY, "--base-url", url, "--base-url", f"{url}/", "--addr", "127.0.0.1:0"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=10)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert "--base-url" in done.stderr and url in done.stderr
