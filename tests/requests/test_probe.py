"""What the probe feels, and that it disturbs nobody."""

import json
import re
import statistics
import threading
import time

from llama import MODEL, server_post
from watch import Program, Router, wait_until

ROUNDS = 4


class Means:
    """Mean time to the first token by source, of what was observed since the last look."""

    def __init__(self, exporter):
        self.exporter = exporter
        self.last = {}

    def new(self):
        values = self.exporter.values()
        means = {}
        for source in ("log", "probe"):
            now = [values.get((f"first_token_latency_seconds_{part}", source), 0) for part in ("sum", "count")]
            then = self.last.get(source, [0, 0])
            self.last[source] = now
            count = now[1] - then[1]
            means[source] = ((now[0] - then[0]) / count if count else None, int(count))
        return means


def first_token_of_a_client(server):
    stream = server.stream(2, prompt="Hello").wait()
    return stream.first_at - stream.sent_at


def test_what_each_source_includes(start_server, watch, tmp_path, one_core):
    """Prints the table of docs/requests.md: run it with pytest -s."""
    log = tmp_path / "server.log"
    server = start_server(Program(log))
    exporter = watch(server.url, "--log-file", log, "--probe-interval", "1s")
    wait_until(lambda: ("first_token_latency_seconds_count", "probe") in exporter.values(), "a first probe")
    means = Means(exporter)
    rows = []

    means.new()
    clients = []
    for _ in range(ROUNDS):
        clients.append(first_token_of_a_client(server))
        time.sleep(2)
    idle = means.new()
    rows.append(("idle", statistics.mean(clients), ROUNDS, idle))

    stop = threading.Event()

    def keep_busy():
        while not stop.is_set():
            server.stream(30, prompt="Once upon a time").wait()

    busy = [threading.Thread(target=keep_busy) for _ in range(2)]
    for thread in busy:
        thread.start()
    time.sleep(3)
    means.new()
    clients = [first_token_of_a_client(server) for _ in range(ROUNDS)]
    time.sleep(1)
    stop.set()
    for thread in busy:
        thread.join()
    time.sleep(2)
    saturated = means.new()
    rows.append(("saturated", statistics.mean(clients), ROUNDS, saturated))

    print("\nmean time to first token, ms (observations)")
    for state, client, count, seen in rows:
        cells = [f"{source} {mean * 1e3:.0f} ({number})" for source, (mean, number) in seen.items()]
        print(f"  {state:9}  client {client * 1e3:.0f} ({count})  {'  '.join(cells)}")
    client, (probe, _), (of_log, _) = rows[1][1], saturated["probe"], saturated["log"]
    assert probe > 2 * of_log, "the probe waits for a slot as a client does"
    assert client > 2 * of_log, "the log begins to count when there is a slot"


def test_a_probe_keeps_nothing_awake(start_server, watch, tmp_path):
    server = start_server(Program(tmp_path / "server.log", "--sleep-idle-seconds", "6"))
    exporter = watch(server.url, "--probe-interval", "1s", "--sleep-idle-seconds", "6s", interval="1s")
    probes = lambda: exporter.values().get(("probe_tokens_total", None), 0)  # noqa: E731
    wait_until(lambda: probes() == 1, "a first probe")
    for real_traffic in (False, True):
        if real_traffic:
            server.stream(40).wait()
            wait_until(lambda: probes() > 1, "real traffic brings a probe")
        wait_until(server.is_sleeping, "it falls asleep", 60)
        sent = probes()
        for _ in range(16):
            time.sleep(0.5)
            assert server.is_sleeping(), "it was woken"
        assert probes() == sent
        assert real_traffic or sent == 1
        assert not exporter.values()["probe_failures_total", None]


def test_a_probe_loads_nothing_on_a_router(start_server, watch, tmp_path):
    """And its log, where the lines of all models come, tells of each its own."""
    presets = tmp_path / "presets.ini"
    options = f"model = {MODEL}\nn-gpu-layers = 0\nfit = off\nthreads = 1\nmetrics = 1\n"
    presets.write_text("".join(f"[{name}]\n{options}\n" for name in ("one", "two")))
    log = tmp_path / "server.log"
    server = start_server(Router(log, presets))

    def states():
        return {model["id"]: model["status"]["value"] for model in json.loads(server.get("/models")[1])["data"]}

    def probes_of(model):
        found = re.search(rf'^llamacpp_probe_tokens_total{{model="{model}"}} (\S+)', exporter.text(), re.MULTILINE)
        return float(found[1]) if found else 0

    exporter = watch(server.url, "--probe-interval", "500ms", "--log-file", log)
    time.sleep(3)
    assert states() == {"one": "unloaded", "two": "unloaded"}
    assert "probe_tokens_total" not in exporter.text()

    for request in range(3):
        server_post(server, "/v1/completions", {"model": "one", "prompt": "Once", "max_tokens": 5})
        wait_until(lambda: probes_of("one") > request, "the model that is used is probed")  # noqa: B023
    probes = probes_of("one")
    wait_until(lambda: exporter.log("request_duration_seconds_count") == 3 + probes, "its log tells of all of them")
    assert 'request_duration_seconds_count{model="one",source="log"}' in exporter.text()

    server_post(server, "/models/unload", {"model": "one"})
    wait_until(lambda: states()["one"] == "unloaded", "it is unloaded")
    time.sleep(3)
    assert states() == {"one": "unloaded", "two": "unloaded"}
    assert probes_of("two") == 0
