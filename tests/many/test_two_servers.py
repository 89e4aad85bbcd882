"""Two genuine servers, one of them stopped: what is said of the other stays fresh."""

import os
import signal
import subprocess
import time

import pytest
from exporter import BINARY, PATIENCE, Poll
from llama import LlamaServer

INTERVAL = 0.5
# Of each question to the server that is stopped: far longer than a poll of the other one takes.
TIMEOUT = 3.0


@pytest.fixture
def two_servers(tmp_path):
    servers = [LlamaServer(10068, tmp_path / f"server-{number}.log") for number in range(2)]
    for server in servers:
        server.start()
    for server in servers:
        server.wait_until_loaded()
    yield servers
    for server in servers:
        os.kill(server.process.pid, signal.SIGCONT)
        server.kill()


def test_a_stopped_server_delays_no_other(one_core, two_servers, start_exporter):
    fresh, stopped = two_servers
    names = {server: f"127.0.0.1:{server.port}" for server in two_servers}
    tokens = fresh.tokens_for(seconds=6)
    exporter = start_exporter(
        f"{fresh.url},{stopped.url}/v1", interval=f"{INTERVAL}s", timeout=f"{TIMEOUT}s", unwatched=True
    )

    def look():
        began = time.monotonic()
        text = exporter.scrape()
        return Poll(0, began, time.monotonic(), text)

    def wait_for(wanted, patience=PATIENCE):
        deadline = time.monotonic() + patience
        while not wanted(said := look()):
            assert time.monotonic() < deadline, f"{said.text}\n{exporter.log}"
            time.sleep(0.05)
        return said

    both = wait_for(lambda said: all(said.value("up", server=name) == 1 for name in names.values()))
    for name in names.values():
        assert both.value("status", server=name, status="idle") == 1
    for sample in both.samples:
        named_for_itself = sample.name.startswith(
            ("process_", "llamacpp_exporter_build_info", "llamacpp_exporter_series_dropped")
        )
        assert ("server" in sample.labels) != named_for_itself, sample

    os.kill(stopped.process.pid, signal.SIGSTOP)
    stream = fresh.stream(tokens).wait_for_tokens(5)
    # Polls of the fresh one go on, however long one of the other hangs.
    ended = {name: set() for name in names.values()}
    highest = 0
    while stream.ended_at is None:
        said = look()
        for name, moments in ended.items():
            moments.add(said.value("exporter_last_poll_timestamp_seconds", server=name))
        counted = said.value("generated_tokens_total", server=names[fresh]) - 24
        assert highest <= counted <= stream.generated(said.seen)
        highest = counted
        time.sleep(0.03)
    polls = {name: len(moments) for name, moments in ended.items()}
    print(polls)
    assert polls[names[fresh]] > 2 * polls[names[stopped]], "a poll of the fresh server was held up"
    assert highest > 0
    stream.wait()

    # The stopped one does not answer: whatever is said of it, no old figures are kept as new.
    gone = wait_for(lambda said: said.value("up", server=names[stopped]) == 0)
    assert {
        sample.name for sample in gone.samples if "model" in sample.labels and sample.labels["server"] == names[stopped]
    } == set()
    assert gone.value("status", server=names[fresh], status="idle") in (0, 1)

    os.kill(stopped.process.pid, signal.SIGCONT)
    back = wait_for(lambda said: said.value("status", server=names[stopped], status="idle") == 1)
    assert back.value("generated_tokens_total", server=names[stopped]) == 0
    done = wait_for(lambda said: said.value("generated_tokens_total", server=names[fresh]) == 24 + tokens)
    assert done.value("up", server=names[fresh]) == 1


def test_the_same_url_twice_is_an_error(tmp_path):
    url = "http://127.0.0.1:9"
    ended = subprocess.run(
        [BINARY, "--base-url", url, "--base-url", f"{url}/", "--addr", "127.0.0.1:0"],
        capture_output=True, text=True, timeout=10,
    )  # fmt: skip
    assert ended.returncode == 2
    assert len(ended.stderr.splitlines()) == 1
    assert "--base-url" in ended.stderr and url in ended.stderr
