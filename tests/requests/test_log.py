"""What the log source counts is what each response says of its own request."""

import http.client
import json
import random
import shutil
import socket
import threading
import time

import pytest
from watch import check_report, server_of, wait_until

# In prompts, and said again in answers; in nothing that the exporter says.
MARKER = "XqzzyMarker"


def ask(server, request, hang_up=False):
    """The timings of the response and its text; None where the client hung up."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=600)
    try:
        body = json.dumps({"ignore_eos": True, "temperature": 0} | request)
        connection.request("POST", "/completion", body, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        assert answer.status == 200, answer.read()
        if not request["stream"]:
            whole = json.loads(answer.read())
            return whole["timings"], whole["content"]
        timings, text = None, ""
        for line in answer:
            if line.startswith(b"data: {"):
                if hang_up:
                    connection.sock.shutdown(socket.SHUT_RDWR)
                    return None
                event = json.loads(line[6:])
                text += event["content"]
                timings = event.get("timings", timings)
        return timings, text
    finally:
        connection.close()


def requests_of(number, chance):
    """Requests of mixed lengths, streamed or not, every tenth of which is given up."""
    for index in range(number):
        words = " ".join(chance.choice(["sun", "rain", "tree", "wind"]) for _ in range(chance.choice([1, 2, 3, 5, 20])))
        request = {"prompt": words, "n_predict": chance.choice([1, 2, 2, 3, 8]), "stream": chance.random() < 0.5}
        if index % 10 == 9:
            # A stream: b11549 does not notice when the client of another request goes away.
            yield request | {"n_predict": 1500, "stream": True}, True
        elif index % 50 == 4:
            grammar = f'root ::= "{MARKER}"'
            yield request | {"prompt": MARKER, "grammar": grammar, "ignore_eos": False, "n_predict": 20}, False
        else:
            yield request, False


def ask_all(server, number, chance, meanwhile=None):
    """Asks from three clients at once, one more than there are slots."""
    waiting = list(requests_of(number, chance))
    results, errors, lock = [], [], threading.Lock()

    def client():
        while True:
            with lock:
                if not waiting:
                    return
                request, hang_up = waiting.pop(0)
            try:
                result = ask(server, request, hang_up)
                with lock:
                    results.append(result)
            except Exception as error:
                errors.append(error)
                return

    clients = [threading.Thread(target=client) for _ in range(3)]
    for one in clients:
        one.start()
    if meanwhile:
        wait_until(lambda: len(results) >= number // 2 or errors, "half of the requests are done", 600)
        meanwhile()
    for one in clients:
        one.join()
    assert not errors, errors
    return results


def printed(milliseconds):
    """What the log prints of it, in seconds."""
    return float(f"{milliseconds:.2f}") / 1e3


def check(exporter, results):
    """Counts match exactly, and sums to what the log prints: hundredths of a millisecond of each request."""
    done = [result[0] for result in results if result]
    given_up = len(results) - len(done)
    wait_until(
        lambda: exporter.log("request_duration_seconds_count") >= len(done)
        and exporter.log("request_cancellations_total") >= given_up,
        f"{len(done)} requests and {given_up} cancellations are counted",
        patience=180,
    )
    # One more than there should be would come by now.
    time.sleep(1)
    expected = {
        "first_token_latency_seconds": [printed(each["prompt_ms"]) for each in done],
        "request_duration_seconds": [printed(each["prompt_ms"] + each["predicted_ms"]) for each in done],
        "time_per_output_token_seconds": [
            printed(each["predicted_ms"]) / each["predicted_n"] for each in done if each["predicted_n"] > 1
        ],
        "request_prompt_tokens": [each["prompt_n"] for each in done],
        "request_generated_tokens": [each["predicted_n"] for each in done],
    }
    values = exporter.values()
    for name, observed in expected.items():
        assert values[f"{name}_count", "log"] == len(observed), name
        assert values[f"{name}_sum", "log"] == pytest.approx(sum(observed), rel=0, abs=1e-9), name
    assert values["request_cancellations_total", "log"] == given_up
    return len(done), given_up


@pytest.mark.parametrize("kind", ["program", 7710, 11549])
def test_counts_each_request_once_and_exactly(kind, start_server, watch, tmp_path, one_core):
    log = tmp_path / "server.log"
    server = start_server(server_of(kind, log))
    chance = random.Random(13)
    ask(server, {"prompt": "before we came", "n_predict": 3, "stream": False})
    exporter = watch(server.url, "--log-file", log)
    wait_until(exporter.is_following, "the log is followed")

    # The server keeps writing to the renamed file; an empty one takes its place.
    def rotate():
        log.rename(tmp_path / "server.log.1")
        log.touch()

    results = ask_all(server, 100, chance, meanwhile=rotate)
    check(exporter, results)
    log = tmp_path / "server.log.1"
    shutil.copy(log, tmp_path / "server.log.2")
    with open(log, "r+b") as file:
        file.truncate(0)
    results += ask_all(server, 100, chance)
    done, given_up = check(exporter, results)
    print(f"\n{kind}: {done} finished and {given_up} cancelled requests, sums and counts agree")

    said = exporter.said()
    exporter.stop()
    again = watch(server.url, "--log-file", log)
    wait_until(again.is_following, "the log is followed again")
    check(again, ask_all(server, 9, chance))
    report = check_report(server.url)
    said += again.said() + report.stdout + report.stderr
    assert "request_duration_seconds_bucket" in said
    assert any(MARKER in result[1] for result in results if result), "no answer has the marker"
    assert MARKER not in said
