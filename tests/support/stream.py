"""A client that streams a generation and records when each token arrives."""

import bisect
import http.client
import json
import math
import threading
import time

from support.http_client import connect

class Stream:
    """A streamed generation. Each token arrives by itself and has two timestamps.

    `received` counts by arrival here. On a busy machine this process may wait while the server goes
    on, so `generated` counts by the server's own clock (`predicted_ms`), aligned with ours by the
    token that arrived with the least delay.
    """

    def __init__(self, server, tokens, prompt="Once upon a time", disconnect_after=None, **request):
        self.tokens = tokens
        self.arrivals = []
        self._generated_at = []
        self.timings = None
        # Whether the answer ended because the context was full.
        self.truncated = False
        # Of the response, once there is one.
        self.status = None
        self.error = None
        self.ended_at = None
        self._disconnect_after = disconnect_after
        self._changed = threading.Condition()
        self._connection = connect(server.port, timeout=300)
        # Deterministic and without an end-of-text token. Plain words, because the server sends each of
        # their tokens at once; half of a multi-byte character would wait for the rest.
        self._request = json.dumps({
            "prompt": prompt, "n_predict": tokens, "stream": True, "ignore_eos": True,
            "seed": 1, "temperature": 0, "cache_prompt": False,
            "timings_per_token": True, **request,
        })  # fmt: skip
        self._headers = {"Content-Type": "application/json"} | server.headers()
        self.sent_at = time.monotonic()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self):
        try:
            self._connection.request("POST", "/completion", self._request, self._headers)
            answer = self._connection.getresponse()
            self.status = answer.status
            assert answer.status == 200, f"{answer.status}: {answer.read().decode()}"
            for line in answer:
                now = time.monotonic()
                if not line.startswith(b"data: {"):
                    continue
                chunk = json.loads(line.removeprefix(b"data: "))
                with self._changed:
                    self.timings = chunk.get("timings", self.timings)
                    self.truncated = chunk.get("truncated", self.truncated)
                    for _ in chunk["tokens"]:
                        self._generated_at.append(self.timings["predicted_ms"] / 1000)
                        self.arrivals.append(now)
                    self._changed.notify_all()
                if self._disconnect_after and len(self.arrivals) >= self._disconnect_after:
                    break
        except (OSError, http.client.HTTPException, AssertionError) as error:
            self.error = error
        finally:
            self._connection.close()
            with self._changed:
                self.ended_at = time.monotonic()
                self._changed.notify_all()

    def wait(self, timeout=240):
        """Waits for the end, and checks that every requested token has arrived."""
        self._thread.join(timeout)
        assert not self._thread.is_alive(), "the stream has not ended"
        if self.error:
            raise self.error
        if not self._disconnect_after:
            assert len(self.arrivals) == self.timings["predicted_n"] == self.tokens
        return self

    def wait_for_tokens(self, count, timeout=240):
        with self._changed:
            enough = lambda: len(self.arrivals) >= count or self.ended_at  # noqa: E731
            assert self._changed.wait_for(enough, timeout)
        assert len(self.arrivals) >= count, f"the stream ended early: {self.error}"
        return self

    def disconnect(self):
        """Closes the connection at the next token."""
        self._disconnect_after = 1
        self._thread.join()

    def received(self, moment):
        """The number of tokens that had arrived by that moment."""
        return bisect.bisect_right(self.arrivals, moment)

    def generated(self, moment):
        """The number of tokens that the server had sent by that moment."""
        started = min(arrival - generated for arrival, generated in zip(self.arrivals, self._generated_at))
        return bisect.bisect_right(self._generated_at, moment - started)

    def rates_generated(self, previous, poll):
        """Bounds of the tokens per second between two polls, each of which read the counter at an unknown
        moment between its start and its end."""
        fewest = self.generated(poll.started_after) - self.generated(previous.ended_before)
        most = self.generated(poll.ended_before) - self.generated(previous.started_after)
        least_time = poll.started_after - previous.ended_before
        return fewest / (poll.ended_before - previous.started_after), most / least_time if least_time > 0 else math.inf

    @property
    def first_at(self):
        return self.arrivals[0]

    @property
    def last_at(self):
        return self.arrivals[-1]

    @property
    def tokens_per_second(self):
        return (len(self.arrivals) - 1) / (self.last_at - self.first_at)

    def streaming_during(self, previous, poll):
        """Whether tokens arrived from before the one poll ended until after the other did."""
        return self.first_at < previous.ended_after and poll.ended_before < self.last_at
