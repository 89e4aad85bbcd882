"""A proxy that makes a server look as if it had run for months: it adds to the server's counters.

The sums are printed as llama.cpp prints them, with the six significant digits that a C++ stream has by
default. Each of the added decode calls had one busy slot.
"""

import http.client
import re

from support.replay import ReplayServer, Response

COUNTERS = ("prompt_tokens_total", "tokens_predicted_total", "n_decode_total")
BUSY_SLOTS = "n_busy_slots_per_decode"
START_TIME = "Process-Start-Time-Unix"


class CounterProxy(ReplayServer):
    """Responds as the server at `server_port`, with `offset` added to every counter."""

    def __init__(self, server_port, offset):
        self.server_port = server_port
        self.offset = offset
        super().__init__()

    def _response(self, method, path):
        connection = http.client.HTTPConnection("127.0.0.1", self.server_port, timeout=60)
        try:
            connection.request(method, path)
            response = connection.getresponse()
            body = response.read().decode()
        except OSError:
            return None
        finally:
            connection.close()
        if path == "/metrics" and response.status == 200:
            body = add_to_counters(body, self.offset)
        headers = [(START_TIME, value)] if (value := response.getheader(START_TIME)) else []
        return Response(body, response.status, response.getheader("Content-Type"), headers=headers)

    @property
    def rounding_error(self):
        """The largest difference between a printed counter and its exact value."""
        return 10 ** (len(str(self.offset)) - 6) / 2


def add_to_counters(text, offset):
    values = {name: float(value) for name, value in re.findall(r"^llamacpp:(\w+) (\S+)$", text, re.MULTILINE)}
    calls = values["n_decode_total"]
    busy = values.get(BUSY_SLOTS, 0) * calls
    values = {name: values[name] + offset for name in COUNTERS}
    values[BUSY_SLOTS] = (busy + offset) / (calls + offset)
    for name, value in values.items():
        text = re.sub(rf"^(llamacpp:{name}) \S+$", rf"\1 {value:.6g}", text, flags=re.MULTILINE)
    return text
