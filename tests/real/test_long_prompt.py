"""A long prompt. Before b10566 the server answers no poll until a batch of the prompt is done."""

import threading
import time

from support.llama_server import ANSWERS_WHILE_BUSY
from support.queue_proxy import QueueProxy

TIMEOUT = 1.0
INTERVAL = 1.0
# After so many time-outs the exporter takes an abandoned request for lost, and sends another one.
LOST_AFTER = 20
# Allowance for a busy machine, and for the time between two scrapes.
GRACE = 0.5


def test_a_prompt_of_3000_tokens(build, one_core, start_server, start_exporter):
    server = start_server()
    proxy = QueueProxy(server.port)
    exporter = start_exporter(proxy.url, "--timeout", f"{TIMEOUT:g}s", interval=f"{INTERVAL:g}s")
    prompt = server.prompt_of_tokens(3000)
    idle = exporter.wait_for_status("idle")

    # A rate must exist before it can freeze.
    before = server.stream(server.tokens_for(seconds=2))
    exporter.wait_for(lambda poll: (poll.value("tokens_per_second") or 0) > 0)
    before.wait()
    with HealthClient(server) as client:
        stream = server.stream(30, prompt=prompt).wait()
    done = exporter.wait_for_status("idle", since=exporter.poll_started_after(stream.ended_at).ended_after)
    proxy.close()

    polls = exporter.between(idle, done)
    # The prompt delays neither a poll nor another client for as long as it takes.
    duration = stream.first_at - stream.sent_at
    rates_in_prompt = []
    for earlier, poll in zip(polls, polls[1:]):
        assert poll.value("up") == 1
        assert poll.ended_before - earlier.ended_after <= max(INTERVAL + TIMEOUT + GRACE, duration / 2), (
            "a poll was late"
        )
        if earlier.ended_after >= stream.sent_at + GRACE and poll.ended_before <= stream.first_at:
            assert poll.status == "running"
            rates_in_prompt.append(poll.value("tokens_per_second"))
            if poll.errors(reason="timeout") > earlier.errors(reason="timeout"):
                assert poll.value("tokens_per_second") is None
                assert poll.value("prompt_tokens_per_second") is None
    # One interval may include the last tokens of the previous stream.
    assert len([rate for rate in rates_in_prompt if rate]) <= 1, rates_in_prompt

    # Older builds did block polls, or this test would show nothing.
    waits = [end - start for start, end in proxy.waits()]
    if build < ANSWERS_WHILE_BUSY and stream.timings["prompt_ms"] > 4000:
        assert max(waits) > TIMEOUT
        assert done.errors(reason="timeout") >= 1
    # A request that waits for very long may have been lost: then another endpoint is requested, too.
    max_queued = 1 if max(waits) < LOST_AFTER * TIMEOUT else 2
    assert proxy.most_queued(longer_than=TIMEOUT + GRACE) <= max_queued
    assert client.error is None
    assert max(client.latencies) < max(GRACE, duration / 4)

    assert stream.timings["prompt_n"] == 3000
    for name, own_name in (("generated_tokens_total", "tokens_predicted_total"), ("prompt_tokens_total",) * 2):
        assert done.value(name) - idle.value(name) == server.counter(own_name)


class HealthClient:
    """Requests /health ten times a second."""

    def __init__(self, server):
        self.latencies = []
        self.error = None
        self._server = server
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self):
        while not self._stopping.wait(0.1):
            sent_at = time.monotonic()
            try:
                assert self._server.get("/health") == (200, '{"status":"ok"}')
            except (OSError, AssertionError) as error:
                self.error = error
                return
            self.latencies.append(time.monotonic() - sent_at)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._stopping.set()
        self._thread.join()
        assert self.latencies
