"""What the log source counts is what each response says of its own request."""

import http.client
import json
import random
import shutil
import socket
import threading
import time

import pytest
from watch import server_of, wait_until

# In prompts and in answers; in nothing that the exporter says.
MARKER = "XqzzyMarkerOfThePrompt"
ANSWER_MARKER = "VmworpMarkerOfTheAnswer"


def ask(server, request, hang_up=False):
    """The timings of the response; None where the client hung up."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=600)
    try:
        body = json.dumps({"ignore_eos": True, "seed": 1} | request)
        connection.request("POST", "/completion", body, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        assert answer.status == 200, answer.read()
        if not request["stream"]:
            return json.loads(answer.read())["timings"]
        timings = None
        for line in answer:
            if line.startswith(b"data: {"):
                if hang_up:
                    connection.sock.shutdown(socket.SHUT_RDWR)
                    return None
                timings = json.loads(line[6:]).get("timings", timings)
        return timings
    finally:
        connection.close()


def requests_of(number, chance):
    """Requests of mixed lengths, streamed or not, every tenth of which is given up."""
    for index in range(number):
        words = " ".join(chance.choice(["sun", "rain", "tree", MARKER]) for _ in range(chance.randint(1, 24)))
        request = {"prompt": words, "n_predict": chance.randint(1, 12), "stream": chance.random() < 0.5}
        if index % 10 == 9:
            # A stream: b11549 does not notice when the client of another request goes away.
            yield request | {"n_predict": 1500, "stream": True}, True
        elif index % 10 == 4:
            yield request | {"grammar": f'root ::= "{ANSWER_MARKER}"', "ignore_eos": False, "n_predict": 40}, False
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
                timings = ask(server, request, hang_up)
                with lock:
                    results.append(timings)
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


def check(exporter, results):
    """Counts match exactly, sums to what the log prints: hundredths of a millisecond."""
    done = [timings for timings in results if timings]
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
        "first_token_latency_seconds": [each["prompt_ms"] / 1e3 for each in done],
        "request_duration_seconds": [(each["prompt_ms"] + each["predicted_ms"]) / 1e3 for each in done],
        "time_per_output_token_seconds": [
            each["predicted_ms"] / 1e3 / each["predicted_n"] for each in done if each["predicted_n"] > 1
        ],
        "request_prompt_tokens": [each["prompt_n"] for each in done],
        "request_generated_tokens": [each["predicted_n"] for each in done],
    }
    values = exporter.values()
    for name, observed in expected.items():
        assert values[f"{name}_count", "log"] == len(observed), name
        difference = abs(values[f"{name}_sum", "log"] - sum(observed))
        rounding = 0.0 if name.endswith("_tokens") else 5.1e-6 * len(observed)
        assert difference <= rounding, f"{name}: {difference} apart, {rounding} allowed"
    assert values["request_cancellations_total", "log"] == given_up
    return len(done), given_up


@pytest.mark.parametrize("kind", ["program", 7710, 11549])
def test_counts_each_request_once_and_exactly(kind, start_server, watch, tmp_path):
    log = tmp_path / "server.log"
    server = start_server(server_of(kind, log))
    chance = random.Random(13)
    ask(server, {"prompt": "before we came", "n_predict": 3, "stream": False})
    exporter = watch(server.url, "--log-file", log)
    wait_until(lambda: ("request_duration_seconds_count", "log") in exporter.values(), "the log is followed")

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

    for number in range(8):
        before = exporter.values()
        timings = ask(server, {"prompt": f"{number} apples", "n_predict": 2 + number, "stream": number % 2 == 0})
        done += 1
        wait_until(lambda: exporter.log("request_duration_seconds_count") == done, "one more is counted")  # noqa: B023
        after = exporter.values()
        added = {name: after[name, "log"] - before[name, "log"] for name, source in before if source == "log"}
        assert round(added["first_token_latency_seconds_sum"] * 1e3, 2) == pytest.approx(timings["prompt_ms"], abs=0.0051)
        assert added["request_prompt_tokens_sum"] == timings["prompt_n"]
        assert added["request_generated_tokens_sum"] == timings["predicted_n"] == 2 + number

    outputs = exporter.text() + exporter.text("/") + exporter.stderr.read_text()
    exporter.stop()
    again = watch(server.url, "--log-file", log)
    wait_until(lambda: ("request_duration_seconds_count", "log") in again.values(), "the log is followed again")
    time.sleep(1)
    assert again.log("request_duration_seconds_count") == 0
    check(again, ask_all(server, 9, chance))
    outputs += again.text() + again.stderr.read_text()
    assert "request_duration_seconds_bucket" in outputs
    for marker in (MARKER, ANSWER_MARKER):
        assert marker not in outputs
