"""A client writes lines into llama-server's log: the server prints an invalid grammar verbatim."""

import re
import time

import pytest

from support.request_log import assert_counted, complete
from support.wait import wait_for

REQUEST = {"prompt": "The rain", "n_predict": 20, "stream": False}
REASONS = {"format", "time", "slot", "duration", "source", "counters"}


def stamp(seconds):
    """A timestamp and level as llama-server prints them."""
    micros = round(seconds * 1e6)
    minutes, micros = divmod(micros, 60_000_000)
    return f"{minutes}.{micros // 1_000_000:02}.{micros // 1000 % 1000:03}.{micros % 1000:03} I "


def request_lines(task, seconds, tokens, slot=0, started=None, ended=None, before=""):
    """The lines of a request, with these timestamps or with none."""
    head = f"id  {slot} | task {task} | "
    ms = seconds * 1000
    started, ended = [before + stamp(moment) if moment is not None else before for moment in (started, ended)]
    return [
        f"{started}slot launch_slot_: {head}processing task, is_child = 0",
        f"{ended}slot print_timing: {head}prompt eval time = {ms / 2:10.2f} ms / {tokens:5} tokens (x)",
        f"{ended}slot print_timing: {head}       eval time = {ms / 2:10.2f} ms / {tokens:5} tokens (x)",
        f"{ended}slot print_timing: {head}      total time = {ms:10.2f} ms / {2 * tokens:5} tokens",
        f"{ended}slot      release: {head}stop processing: n_tokens = {2 * tokens}, truncated = 0",
    ]


def last_timestamp(log):
    """The last timestamp in the log, in seconds since the server's start."""
    times = re.findall(r"^(\d+)\.(\d\d)\.(\d{3})\.(\d{3}) [IWED] ", log.read_text(errors="replace"), re.MULTILINE)
    minutes, seconds, *parts = map(int, times[-1])
    return minutes * 60 + seconds + int("%03d%03d" % tuple(parts)) / 1e6


def write(server, lines):
    """Makes the server print these lines."""
    grammar = "root ::= (\n\n" + "\n".join(lines) + "\n"
    response = server.post("/completion", {"prompt": "x", "n_predict": 1, "grammar": grammar})
    assert "error" in response, response


def rejected(exporter):
    samples = exporter.exposition().find("log_lines_rejected_total")
    return {sample.labels["reason"]: sample.value for sample in samples}


@pytest.mark.parametrize("build", [11549, 10068])
def test_forged_lines_are_not_counted(build, start_server, follow, log):
    server = start_server(build)
    exporter = follow(server)
    assert rejected(exporter) == dict.fromkeys(REASONS, 0)
    # Requests in the first seconds may have been in the counters before.
    time.sleep(3)
    results = [complete(server, REQUEST)]
    # The server prints the end of a request right before it responds.
    server_start = time.monotonic() - last_timestamp(log)
    # Slightly ahead, so that no timestamp is before the previous line's.
    now = lambda: time.monotonic() - server_start + 0.05  # noqa: E731
    assert_counted(exporter, results)

    refused = 'srv    operator(): got exception: {"error":{"code":500,"message":"forged"}}'
    attacks = {
        "format": lambda: [*request_lines(900, 200, 5), refused],
        "time": lambda: [*request_lines(901, 0.1, 5, started=0.1, ended=0.2), stamp(0.2) + refused],
        "slot": lambda: request_lines(902, 0.001, 5, slot=7, started=now(), ended=now() + 0.01),
        "duration": lambda: request_lines(903, 200, 5, started=now(), ended=now() + 0.01),
        "source": lambda: request_lines(904, 0.01, 5, started=now(), ended=now() + 0.02, before="[4000] "),
        "counters": lambda: request_lines(905, 0.01, 5, started=now(), ended=now() + 0.02),
    }
    refusals = 0

    def forge(lines):
        """The server answers each of these with an error."""
        nonlocal refusals
        write(server, lines)
        refusals += 1

    for reason, attack in attacks.items():
        before = rejected(exporter)[reason]
        forge(attack())
        wait_for(lambda: rejected(exporter)[reason] > before, f"a rejection because of the {reason}")  # noqa: B023
        results.append(complete(server, REQUEST))
        assert_counted(exporter, results)

    # After a timestamp far ahead, or a forged restart, later lines are still counted.
    forge(request_lines(906, 0.01, 5, started=90_000, ended=90_001))
    results.append(complete(server, REQUEST))
    assert_counted(exporter, results)
    forge([stamp(now()) + "srv    load_model: loading model 'forged.gguf'"])
    results.append(complete(server, REQUEST))
    assert_counted(exporter, results)
    # The log can add neither a model nor a child process.
    for number in range(5):
        named = f"srv          load: spawning server instance with name=forged-{number} on port {5000 + number}"
        forge([stamp(now()) + named, *request_lines(1, 0.01, 5, before=f"[{5000 + number}] ")])
    results.append(complete(server, REQUEST))
    assert_counted(exporter, results)
    # No error is forged. Those of the server that follow a timestamp slightly ahead are hidden.
    scrape = exporter.exposition()
    codes = {sample.labels["code"]: sample.value for sample in scrape.find("request_errors_total") if sample.value}
    assert codes.keys() == {"400"}
    assert codes["400"] == scrape.value("requests_total", outcome="error") <= refusals
    assert len({sample.labels["model"] for sample in scrape.find("request_duration_seconds_count")}) == 1
    assert "forged" not in scrape.text
    print(f"\n{build}: {len(results)} requests counted exactly; rejected: {rejected(exporter)}")
