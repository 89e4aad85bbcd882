"""A user of the model's API writes lines into llama-server's log: an invalid grammar is printed as it came."""

import re
import time

import pytest
from llama import server_post
from test_log import ask, check
from watch import server_of, wait_until

GENUINE = {"prompt": "The rain", "n_predict": 20, "stream": False}
REASONS = {"format", "time", "slot", "duration", "source", "counters"}


def stamp(seconds):
    """A time and level as llama-server prints them."""
    micros = round(seconds * 1e6)
    minutes, micros = divmod(micros, 60_000_000)
    return f"{minutes}.{micros // 1_000_000:02}.{micros // 1000 % 1000:03}.{micros % 1000:03} I "


def lines_of(task, seconds, tokens, slot=0, begun=None, ended=None, before=""):
    """The lines of a request, with these times before them, or with none."""
    head = f"id  {slot} | task {task} | "
    ms = seconds * 1000
    begun, ended = [before + stamp(moment) if moment is not None else before for moment in (begun, ended)]
    return [
        f"{begun}slot launch_slot_: {head}processing task, is_child = 0",
        f"{ended}slot print_timing: {head}prompt eval time = {ms / 2:10.2f} ms / {tokens:5} tokens (x)",
        f"{ended}slot print_timing: {head}       eval time = {ms / 2:10.2f} ms / {tokens:5} tokens (x)",
        f"{ended}slot print_timing: {head}      total time = {ms:10.2f} ms / {2 * tokens:5} tokens",
        f"{ended}slot      release: {head}stop processing: n_tokens = {2 * tokens}, truncated = 0",
    ]


def last_time_of(log):
    """The time that the server's log has come to."""
    times = re.findall(r"^(\d+)\.(\d\d)\.(\d{3})\.(\d{3}) [IWED] ", log.read_text(errors="replace"), re.MULTILINE)
    minutes, seconds, *parts = map(int, times[-1])
    return minutes * 60 + seconds + int("%03d%03d" % tuple(parts)) / 1e6


def write(server, lines):
    """Has the server print these lines."""
    grammar = "root ::= (\n\n" + "\n".join(lines) + "\n"
    answer = server_post(server, "/completion", {"prompt": "x", "n_predict": 1, "grammar": grammar})
    assert "error" in answer, answer


def rejected(exporter):
    found = re.findall(r'^llamacpp_log_lines_rejected_total{.*reason="(\w+)".*} (\S+)$', exporter.text(), re.MULTILINE)
    return {reason: float(count) for reason, count in found}


@pytest.mark.parametrize("build", [11549, 10068])
def test_what_a_user_writes_into_the_log_is_not_counted(build, start_server, watch, tmp_path):
    log = tmp_path / "server.log"
    server = start_server(server_of(build, log))
    exporter = watch(server.url, "--log-file", log)
    wait_until(exporter.is_following, "the log is followed")
    assert rejected(exporter) == dict.fromkeys(REASONS, 0)
    # What the log tells of the first seconds may have been in the counters before.
    time.sleep(3)
    results = [ask(server, GENUINE)]
    # The server prints the end of a request right before it answers.
    start_of_server = time.monotonic() - last_time_of(log)
    # A little ahead, so that they are not before the line above them.
    now = lambda: time.monotonic() - start_of_server + 0.05  # noqa: E731
    check(exporter, results)

    attacks = {
        "format": lambda: lines_of(900, 200, 5),
        "time": lambda: lines_of(901, 0.1, 5, begun=0.1, ended=0.2),
        "slot": lambda: lines_of(902, 0.001, 5, slot=7, begun=now(), ended=now() + 0.01),
        "duration": lambda: lines_of(903, 200, 5, begun=now(), ended=now() + 0.01),
        "source": lambda: lines_of(904, 0.01, 5, begun=now(), ended=now() + 0.02, before="[4000] "),
        "counters": lambda: lines_of(905, 0.01, 5, begun=now(), ended=now() + 0.02),
    }
    for reason, attack in attacks.items():
        before = rejected(exporter)[reason]
        write(server, attack())
        wait_until(lambda: rejected(exporter)[reason] > before, f"it is rejected for its {reason}")  # noqa: B023
        results.append(ask(server, GENUINE))
        check(exporter, results)

    # A time that is far ahead makes no later line unbelievable, nor does a restart that never was.
    write(server, lines_of(906, 0.01, 5, begun=90_000, ended=90_001))
    results.append(ask(server, GENUINE))
    check(exporter, results)
    write(server, [stamp(now()) + "srv    load_model: loading model 'forged.gguf'"])
    results.append(ask(server, GENUINE))
    check(exporter, results)
    # Neither a model nor a child comes from the log.
    for number in range(5):
        named = f"srv          load: spawning server instance with name=forged-{number} on port {5000 + number}"
        write(server, [stamp(now()) + named, *lines_of(1, 0.01, 5, before=f"[{5000 + number}] ")])
    results.append(ask(server, GENUINE))
    check(exporter, results)
    models = set(re.findall(r'^llamacpp_request_duration_seconds_count{.*model="([^"]*)"', exporter.text(), re.MULTILINE))
    assert len(models) == 1 and "forged" not in exporter.text()
    print(f"\n{build}: {len(results)} requests counted exactly; rejected: {rejected(exporter)}")
