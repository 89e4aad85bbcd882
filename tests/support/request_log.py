"""Completions, and the comparison of their timings with the histograms of the source `log`."""

import http.client
import json
import socket
import time

import pytest

from support.wait import wait_for


def complete(server, request, disconnect=False):
    """The timings and text of a completion; None if the client disconnects at the first event of its stream."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=600)
    try:
        body = json.dumps({"ignore_eos": True, "temperature": 0} | request)
        connection.request("POST", "/completion", body, {"Content-Type": "application/json"})
        response = connection.getresponse()
        assert response.status == 200, response.read()
        if not request["stream"]:
            whole = json.loads(response.read())
            return whole["timings"], whole["content"]
        timings, text = None, ""
        for line in response:
            if line.startswith(b"data: {"):
                if disconnect:
                    connection.sock.shutdown(socket.SHUT_RDWR)
                    return None
                event = json.loads(line[6:])
                text += event["content"]
                timings = event.get("timings", timings)
        return timings, text
    finally:
        connection.close()


def log_value(exporter, name, **labels):
    """The value of a metric that comes from the log; 0 while there is none."""
    return exporter.value(name, source="log", **labels) or 0


def logged_seconds(milliseconds):
    """The duration as the log prints it: in hundredths of a millisecond."""
    return float(f"{milliseconds:.2f}") / 1e3


def assert_counted(exporter, results):
    """Waits for the results of `complete`; counts must match exactly, and sums to what the log prints."""
    completed = [result[0] for result in results if result]
    cancelled = len(results) - len(completed)
    wait_for(
        lambda: (
            log_value(exporter, "request_duration_seconds_count") >= len(completed)
            and log_value(exporter, "request_cancellations_total") >= cancelled
        ),
        f"{len(completed)} requests and {cancelled} cancellations",
        timeout=180,
    )
    # A request counted twice would be visible by then.
    time.sleep(1)
    expected = {
        "first_token_latency_seconds": [logged_seconds(each["prompt_ms"]) for each in completed],
        "request_duration_seconds": [logged_seconds(each["prompt_ms"] + each["predicted_ms"]) for each in completed],
        "time_per_output_token_seconds": [
            logged_seconds(each["predicted_ms"]) / (each["predicted_n"] - 1)
            for each in completed
            if each["predicted_n"] > 1
        ],
        "request_prompt_tokens": [each["prompt_n"] for each in completed],
        "request_generated_tokens": [each["predicted_n"] for each in completed],
    }
    scrape = exporter.exposition()
    for name, observed in expected.items():
        assert scrape.value(f"{name}_count", source="log") == len(observed), name
        assert scrape.value(f"{name}_sum", source="log") == pytest.approx(sum(observed), rel=0, abs=1e-9), name
    assert scrape.value("request_cancellations_total", source="log") == cancelled
    return len(completed), cancelled
