"""How each request ended, as its client saw it, without the exporter's own probes."""

import collections
import http.client
import json
import signal
import threading
import time

import pytest

from support.request_log import assert_counted, complete, log_value
from support.wait import wait_for

# With 256 tokens for each of two slots. Without /metrics, a request counts as soon as its lines are read.
SERVERS = {
    "program": lambda start: start("program", "-c", "512"),
    "b11549": lambda start: start(11549, ctx_size=512),
    "b11549 without metrics": lambda start: start(11549, ctx_size=512, metrics=False),
}
TOO_LONG = {"prompt": "rain " * 500, "n_predict": 4}
BAD_GRAMMAR = {"prompt": "x", "grammar": "root ::= (", "n_predict": 2}
# As the exporter's probe: the same prompt, and a single token.
LIKE_A_PROBE = {"prompt": "Hello", "n_predict": 1, "cache_prompt": False}


def error_code(server, path, body):
    """The status of a request that fails."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=120)
    try:
        connection.request("POST", path, body, {"Content-Type": "application/json"})
        response = connection.getresponse()
        code = json.loads(response.read())["error"]["code"]
        assert code == response.status
        return code
    finally:
        connection.close()


def outcomes(exporter):
    """Requests of the log by outcome."""
    return {s.labels["outcome"]: s.value for s in exporter.exposition().find("requests_total", source="log")}


def errors(exporter):
    """Requests of the log that failed, by code; codes without any are left out."""
    found = exporter.exposition().find("request_errors_total", source="log")
    return {int(sample.labels["code"]): sample.value for sample in found if sample.value}


@pytest.mark.parametrize("server", SERVERS)
def test_outcomes_are_those_that_the_clients_saw(server, start_server, follow, one_core):
    server = SERVERS[server](start_server)
    exporter = follow(server, "--probe-interval", "500ms")
    assert outcomes(exporter) == dict.fromkeys(("ok", "error", "cancelled", "truncated"), 0)
    results, codes, failures = [], collections.Counter(), []

    def completions():
        for number in range(8):
            for request in ({"prompt": "It rains", "n_predict": 5 * number + 1}, LIKE_A_PROBE):
                results.append(complete(server, request | {"stream": number % 2 == 0}))
        results.append(complete(server, {"prompt": "It rains", "n_predict": 5000, "stream": True}))

    def cancels_and_errors():
        for stream in (True, False):
            results.append(complete(server, {"prompt": "Once", "n_predict": 200, "stream": True}, disconnect=True))
            for body in (TOO_LONG, BAD_GRAMMAR):
                codes[error_code(server, "/completion", json.dumps(body | {"stream": stream}))] += 1
            codes[error_code(server, "/completion", '{"prompt": ')] += 1
            codes[error_code(server, "/v1/chat/completions", "{}")] += 1

    def run(requests):
        try:
            requests()
        except Exception as error:
            failures.append(error)

    clients = [threading.Thread(target=run, args=[requests]) for requests in (completions, cancels_and_errors)]
    for client in clients:
        client.start()
    for client in clients:
        client.join()
    assert not failures, failures

    completed, cancelled = assert_counted(exporter, results)
    expected = {"ok": completed - 1, "error": codes.total(), "cancelled": cancelled, "truncated": 1}
    wait_for(lambda: outcomes(exporter) == expected, lambda: f"{expected}, not {outcomes(exporter)}")
    assert errors(exporter) == codes
    probes = exporter.value("probe_tokens_total")
    assert probes >= 3
    assert exporter.value("probe_first_token_latency_seconds_count") == probes
    assert not exporter.exposition().find("first_token_latency_seconds_count", source="probe")
    print(f"\n{expected}, errors {dict(codes)}, and {probes:g} probes that are not in it")


def test_a_server_that_shuts_down_cancels_no_request(start_server, follow, log):
    server = start_server()
    exporter = follow(server)
    complete(server, {"prompt": "Once", "n_predict": 200, "stream": True}, disconnect=True)
    wait_for(lambda: outcomes(exporter)["cancelled"] == 1, "the cancellation of a client")
    for stream in [server.stream(2000) for _ in range(2)]:
        stream.wait_for_tokens(3)
    cancels = lambda: log.read_text().count("cancel task")  # noqa: E731
    before = cancels()
    server.signal(signal.SIGTERM)
    # Half a minute later it gives up the streams; it may cancel the request of a poll as well.
    wait_for(lambda: cancels() >= before + 2, "the server to cancel its tasks")
    # Two polls and more.
    time.sleep(2)
    assert outcomes(exporter) == {"ok": 0, "error": 0, "cancelled": 1, "truncated": 0}
    assert log_value(exporter, "request_cancellations_total") == 1
