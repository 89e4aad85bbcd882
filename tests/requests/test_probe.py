"""What the probe measures, and that it neither wakes nor loads a model."""

import statistics
import threading
import time

from support.request_log import log_value
from support.router import Router
from support.wait import wait_for

ROUNDS = 4


class MeanLatency:
    """The mean time to the first token by source, over the requests since the last call."""

    def __init__(self, exporter):
        self.exporter = exporter
        self.last = {}

    def read(self):
        scrape = self.exporter.exposition()
        means = {}
        for source in ("log", "probe"):
            name = ("probe_" if source == "probe" else "") + "first_token_latency_seconds"
            now = [scrape.value(f"{name}_{part}") or 0 for part in ("sum", "count")]
            before = self.last.get(source, [0, 0])
            self.last[source] = now
            count = now[1] - before[1]
            means[source] = ((now[0] - before[0]) / count if count else None, int(count))
        return means


def client_latency(server):
    stream = server.stream(2, prompt="Hello").wait()
    return stream.first_at - stream.sent_at


def test_what_each_source_includes(start_server, follow, one_core):
    """Prints the table of docs/requests.md: run it with pytest -s."""
    server = start_server()
    exporter = follow(server, "--probe-interval", "1s")
    wait_for(lambda: exporter.value("probe_first_token_latency_seconds_count") is not None, "a probe")
    mean_latency = MeanLatency(exporter)
    rows = []

    mean_latency.read()
    latencies = []
    for _ in range(ROUNDS):
        latencies.append(client_latency(server))
        time.sleep(2)
    rows.append(("idle", statistics.mean(latencies), mean_latency.read()))

    stop = threading.Event()

    def keep_a_slot_busy():
        while not stop.is_set():
            server.stream(30).wait()

    threads = [threading.Thread(target=keep_a_slot_busy) for _ in range(2)]
    for thread in threads:
        thread.start()
    time.sleep(3)
    mean_latency.read()
    latencies = [client_latency(server) for _ in range(ROUNDS)]
    time.sleep(1)
    stop.set()
    for thread in threads:
        thread.join()
    time.sleep(2)
    rows.append(("saturated", statistics.mean(latencies), mean_latency.read()))

    print("\nmean time to first token, ms (observations)")
    for state, client, means in rows:
        cells = [f"{source} {mean * 1e3:.0f} ({count})" for source, (mean, count) in means.items()]
        print(f"  {state:9}  client {client * 1e3:.0f} ({ROUNDS})  {'  '.join(cells)}")
    _, client, means = rows[1]
    (probe, _), (of_log, _) = means["probe"], means["log"]
    assert probe > 2 * of_log, "the probe includes the wait for a slot, as a client does"
    assert client > 2 * of_log, "the log excludes the wait for a slot"


def test_a_probe_keeps_no_model_awake(start_server, watch):
    server = start_server("program", "--sleep-idle-seconds", "6")
    # On a busy machine, the first completion after a load takes longer than the default time-out: a probe that
    # fails is not repeated before there is traffic.
    server.stream(2).wait()
    options = ["--probe-interval", "1s", "--sleep-idle-seconds", "6s", "--timeout", "60s"]
    exporter = watch(server.url, *options, interval="1s")
    probes = lambda: exporter.value("probe_tokens_total") or 0  # noqa: E731
    wait_for(lambda: probes() == 1, "a first probe")
    for traffic in (False, True):
        if traffic:
            server.stream(40).wait()
            wait_for(lambda: probes() > 1, "a probe after real traffic")
        wait_for(server.is_sleeping, "the server to sleep", timeout=60)
        sent = probes()
        for _ in range(16):
            time.sleep(0.5)
            assert server.is_sleeping(), "it was woken"
        assert probes() == sent
        assert traffic or sent == 1
        assert not any(sample.value for sample in exporter.exposition().find("probe_failures_total"))


def test_a_probe_loads_no_model_of_a_router(start, watch, log):
    """The log contains the lines of all models; each request is counted for its own model, and no probe."""
    router = start(Router(log, models=("one", "two")))

    def statuses():
        return {name: model["value"] for name, model in router.models().items()}

    def probes_of(model):
        return exporter.value("probe_tokens_total", model=model) or 0

    exporter = watch(router.url, "--probe-interval", "500ms", "--log-file", log)
    time.sleep(3)
    assert set(statuses().values()) == {"unloaded"}
    assert "probe_tokens_total" not in exporter.scrape()

    for request in range(3):
        router.post("/v1/completions", {"model": "one", "prompt": "Once", "max_tokens": 5})
        wait_for(lambda: probes_of("one") > request, "a probe of the model in use")  # noqa: B023
    wait_for(lambda: log_value(exporter, "request_duration_seconds_count", model="one") == 3, "all requests")
    # The router itself refuses a request: it is of no model.
    router.post("/v1/completions", {"prompt": "Once"})

    router.post("/models/unload", {"model": "one"})
    wait_for(lambda: statuses()["one"] == "unloaded", "the model to be unloaded")
    time.sleep(3)
    assert set(statuses().values()) == {"unloaded"}
    assert probes_of("two") == 0
    assert log_value(exporter, "request_duration_seconds_count", model="one") == 3
    assert not any(sample.value for sample in exporter.exposition().find("log_lines_rejected_total"))
