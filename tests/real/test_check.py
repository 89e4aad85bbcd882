"""--check with real servers: its values are the server's, each missing metric has its remedy, and a key that is
refused is a failure. Colours are for a terminal only."""

import os
import pty
import subprocess

import pytest

from support import BINARY
from support.exporter import run_check
from support.http_client import free_port
from support.process import clean_environment

KEY = "a-key-for-this-test"
# What a program on a terminal gets.
TERMINAL = {"TERM": "xterm-256color"}


def missing(report, metric):
    """What the report says of a missing metric of its only server."""
    [server] = report.document["servers"]
    found = [one for one in server["missing"] if one["metric"] == f"llamacpp_{metric}"]
    assert len(found) <= 1, found
    return found[0] if found else None


def test_the_values_are_those_of_the_server(start_server):
    server = start_server()
    server.stream(24).wait()
    report = run_check(server.url)
    assert report.value("generated_tokens_total") == server.counter("tokens_predicted_total")
    assert report.value("prompt_tokens_total") == server.counter("prompt_tokens_total")
    # It needs two polls.
    assert report.value("tokens_per_second") == 0
    [of_server] = report.document["servers"]
    assert [model["status"] for model in of_server["models"]] == ["idle"]
    assert {source["name"] for source in of_server["sources"] if source["state"] == "read"} >= {"/health", "/metrics"}
    assert missing(report, "generated_tokens_total") is None
    assert report.document["exposition"]["valid"]


def test_without_metrics_the_remedy_is_to_switch_them_on(start_server):
    report = run_check(start_server(metrics=False).url)
    decode_calls = missing(report, "decode_calls_total")
    assert decode_calls["reason"] == "metrics_off" and "--metrics" in decode_calls["remedy"]
    assert missing(report, "request_duration_seconds")["reason"] == "log_not_given"
    assert report.value("slots") == 2


def test_a_key_that_is_refused_is_a_failure(start_server, tmp_path):
    server = start_server(api_key=KEY)
    without = run_check(server.url, code=1)
    assert missing(without, "generated_tokens_total")["reason"] == "key_required"
    key = tmp_path / "key"
    key.write_text("another")
    wrong = run_check(server.url, "--api-key-file", str(key), code=1)
    assert missing(wrong, "generated_tokens_total")["reason"] == "key_rejected"
    key.write_text(KEY)
    right = run_check(server.url, "--api-key-file", str(key))
    assert right.value("slots") == 2 and KEY not in right.stdout


def test_a_server_that_is_down_is_a_failure():
    report = run_check(f"http://127.0.0.1:{free_port()}/metrics", code=1)
    assert "ends in /metrics" in report.notes and "refused" in report.notes


def text_on_terminal(url, *options, **environment):
    """What --check prints on a pseudo terminal."""
    master, slave = pty.openpty()
    command = [BINARY, "--check", "--no-gpu", "--interval", "200ms", "--base-url", url, *options]
    variables = clean_environment(**(TERMINAL | environment))
    with subprocess.Popen(command, stdout=slave, stderr=subprocess.DEVNULL, env=variables) as process:
        os.close(slave)
        text = b""
        while part := read(master):
            text += part
    os.close(master)
    assert process.returncode == 0
    return text.decode().replace("\r\n", "\n")


def read(descriptor):
    """The next bytes; none once the other end is closed."""
    try:
        return os.read(descriptor, 1 << 16)
    except OSError:
        return b""


@pytest.mark.parametrize("build", [11549], indirect=True)
def test_colours_are_for_a_terminal_only(start_server):
    url = start_server().url
    coloured = text_on_terminal(url)
    assert "\x1b[32mup\x1b[0m\n" in coloured
    for plain in (
        text_on_terminal(url, NO_COLOR="1"),
        text_on_terminal(url, TERM="dumb"),
        text_on_terminal(url, "--json"),
    ):
        assert "\x1b" not in plain
    lines = text_on_terminal(url, NO_COLOR="1").splitlines()
    assert max(map(len, lines)) <= 80, max(lines, key=len)
    piped = subprocess.run(
        [BINARY, "--check", "--no-gpu", "--interval", "200ms", "--base-url", url],
        env=clean_environment(**TERMINAL), capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert "\x1b" not in piped.stdout and piped.stderr == ""
