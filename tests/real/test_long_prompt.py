"""A prompt that keeps the server from answering: before b10566, until a batch of it is done."""

import http.client
import threading
import time

from llama import ANSWERS_WHILE_BUSY, prompt_of_tokens
from proxy import Proxy

TIMEOUT = 1.0
INTERVAL = 1.0
# In time-outs; as in src/upstream/http/open_requests.rs.
DOUBTED_AFTER = 20
# For what the machine adds: a process that has to wait for a core, and the time between two scrapes.
GRACE = 0.5


def test_a_prompt_of_3000_tokens(build, one_core, start_server, start_exporter):
    server = start_server()
    proxy = Proxy(server.port)
    exporter = start_exporter(proxy.url, interval=f"{INTERVAL:g}s", timeout=f"{TIMEOUT:g}s")
    prompt = prompt_of_tokens(server, 3000)
    idle = exporter.wait_for_status("idle")

    # A rate there must be, for it to freeze.
    before = server.stream(server.tokens_for(seconds=2))
    exporter.wait_for(lambda poll: (poll.value("tokens_per_second") or 0) > 0)
    before.wait()
    with OtherClient(server) as other:
        stream = server.stream(30, prompt=prompt).wait()
    done = exporter.wait_for_status("idle", since=exporter.poll_begun_after(stream.ended_at).after)
    proxy.close()

    polls = exporter.between(idle, done)
    # Nothing holds a poll, or another client, up for as long as the prompt takes.
    took = stream.first_at - stream.sent_at
    rates_in_prompt = []
    for earlier, poll in zip(polls, polls[1:]):
        assert poll.value("up") == 1
        assert poll.seen - earlier.after <= max(INTERVAL + TIMEOUT + GRACE, took / 2), "a poll came late"
        if earlier.after >= stream.sent_at + GRACE and poll.seen <= stream.first_at:
            assert poll.status == "running"
            rates_in_prompt.append(poll.value("tokens_per_second"))
            if poll.errors(reason="timeout") > earlier.errors(reason="timeout"):
                assert poll.value("tokens_per_second") is None
                assert poll.value("prompt_tokens_per_second") is None
    # One interval may hold the last tokens of the stream before; after it nothing is generated.
    assert len([rate for rate in rates_in_prompt if rate]) <= 1, rates_in_prompt

    # It was hard for the old ones, or this would show nothing.
    waited = [end - begin for begin, end in proxy.waits()]
    if build < ANSWERS_WHILE_BUSY and stream.timings["prompt_ms"] > 4000:
        assert max(waited) > TIMEOUT
        assert done.errors(reason="timeout") >= 1
    # One request that waits for very long may have got lost: then another endpoint is asked, too.
    may_wait = 1 if max(waited) < DOUBTED_AFTER * TIMEOUT else 2
    assert proxy.most_waiting(longer_than=TIMEOUT + GRACE) <= may_wait
    assert other.error is None
    assert max(other.waited) < max(GRACE, took / 4)

    assert stream.timings["prompt_n"] == 3000
    grown = {name: done.value(name) - idle.value(name) for name in ("generated_tokens_total", "prompt_tokens_total")}
    assert grown["generated_tokens_total"] == server.counter("tokens_predicted_total")
    assert grown["prompt_tokens_total"] == server.counter("prompt_tokens_total")


class OtherClient:
    """Asks for /health ten times a second."""

    def __init__(self, server):
        self.waited = []
        self.error = None
        self._server = server
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._ask, daemon=True)

    def _ask(self):
        while not self._ended.wait(0.1):
            asked_at = time.monotonic()
            try:
                assert self._server.get("/health") == (200, '{"status":"ok"}')
            except (OSError, http.client.HTTPException, AssertionError) as error:
                self.error = error
                return
            self.waited.append(time.monotonic() - asked_at)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._ended.set()
        self._thread.join()
        assert self.waited
