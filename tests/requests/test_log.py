"""The counts of the log source equal what the server's responses report of their own requests."""

import random
import shutil
import threading

import pytest

from support.exporter import run_check
from support.request_log import assert_counted, complete
from support.wait import wait_for

# Part of prompts and completions. It must appear nowhere in the exporter's output.
MARKER = "XqzzyMarker"


def random_requests(number, generator):
    """Requests of mixed lengths, streamed or not, and whether their client disconnects: every tenth does."""
    for index in range(number):
        length = generator.choice([1, 2, 3, 5, 20])
        words = " ".join(generator.choice(["sun", "rain", "tree", "wind"]) for _ in range(length))
        tokens, stream = generator.choice([1, 2, 2, 3, 8]), generator.random() < 0.5
        request = {"prompt": words, "n_predict": tokens, "stream": stream}
        if index % 10 == 9:
            # b11549 notices a disconnect only for streams.
            yield request | {"n_predict": 1500, "stream": True}, True
        elif index % 50 == 4:
            grammar = f'root ::= "{MARKER}"'
            yield request | {"prompt": MARKER, "grammar": grammar, "ignore_eos": False, "n_predict": 20}, False
        else:
            yield request, False


def complete_all(server, number, generator, at_half=None):
    """Sends requests from three clients at once, one more than there are slots. Returns the results."""
    waiting = list(random_requests(number, generator))
    results, errors, lock = [], [], threading.Lock()

    def client():
        while True:
            with lock:
                if not waiting:
                    return
                request, disconnect = waiting.pop(0)
            try:
                result = complete(server, request, disconnect)
                with lock:
                    results.append(result)
            except Exception as error:
                errors.append(error)
                return

    clients = [threading.Thread(target=client) for _ in range(3)]
    for thread in clients:
        thread.start()
    if at_half:
        wait_for(lambda: len(results) >= number // 2 or errors, "half of the requests", timeout=600)
        at_half()
    for thread in clients:
        thread.join()
    assert not errors, errors
    return results


def output(exporter):
    """All that the exporter exposes: to Prometheus, in a browser, and in its own log."""
    return exporter.scrape() + exporter.get("/")[1] + exporter.log


@pytest.mark.parametrize("build", ["program", 7710, 11549])
def test_each_request_is_counted_once_and_exactly(build, start_server, follow, log, one_core):
    server = start_server(build)
    generator = random.Random(13)
    complete(server, {"prompt": "before the exporter starts", "n_predict": 3, "stream": False})
    exporter = follow(server)
    rotated = log.with_name("server.log.1")

    def rename():
        """The server keeps writing to the renamed file; an empty one replaces it."""
        log.rename(rotated)
        log.touch()

    results = complete_all(server, 100, generator, at_half=rename)
    assert_counted(exporter, results)
    # As logrotate's copytruncate does.
    shutil.copy(rotated, log.with_name("server.log.2"))
    with open(rotated, "r+b") as file:
        file.truncate(0)
    results += complete_all(server, 100, generator)
    completed, cancelled = assert_counted(exporter, results)
    print(f"\n{build}: {completed} completed and {cancelled} cancelled requests, sums and counts agree")

    text = output(exporter)
    exporter.stop()
    restarted = follow(server, log_file=rotated)
    assert_counted(restarted, complete_all(server, 9, generator))
    report = run_check(server.url, "--log-level", "debug")
    text += output(restarted) + report.stdout + report.stderr
    assert "request_duration_seconds_bucket" in text
    assert any(MARKER in result[1] for result in results if result), "no completion contains the marker"
    assert MARKER not in text
