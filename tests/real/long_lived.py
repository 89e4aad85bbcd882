"""A server that seems to have counted for months: a proxy adds to what it has counted.

The sums are printed anew as llama.cpp prints them, with the six significant digits that a C++
stream gives by default. Each of the calls that it adds had one busy slot.
"""

import http.client
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

COUNTERS = ("prompt_tokens_total", "tokens_predicted_total", "n_decode_total")
BUSY_SLOTS = "n_busy_slots_per_decode"
PASSED_ON = ("Content-Type", "Process-Start-Time-Unix")


class LongLived:
    """Answers at `url` as the server at `port` does, but for `counted` more of everything."""

    def __init__(self, port, counted):
        self.counted = counted

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self):
                server = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
                try:
                    server.request("GET", self.path)
                    answer = server.getresponse()
                    body = answer.read()
                except OSError:
                    self.close_connection = True
                    return
                finally:
                    server.close()
                if self.path == "/metrics" and answer.status == 200:
                    body = older(body.decode(), counted).encode()
                self.send_response(answer.status)
                for name in PASSED_ON:
                    if value := answer.getheader(name):
                        self.send_header(name, value)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_):
                pass

        self._listener = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._listener.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._listener.server_port}"
        threading.Thread(target=self._listener.serve_forever, daemon=True).start()

    @property
    def half_step(self):
        """How far what is printed may be from the truth."""
        return 10 ** (len(str(self.counted)) - 6) / 2

    def close(self):
        self._listener.shutdown()
        self._listener.server_close()


def older(text, counted):
    values = {name: float(value) for name, value in re.findall(r"^llamacpp:(\w+) (\S+)$", text, re.MULTILINE)}
    calls = values["n_decode_total"]
    busy = values.get(BUSY_SLOTS, 0) * calls
    values = {name: values[name] + counted for name in COUNTERS}
    values[BUSY_SLOTS] = (busy + counted) / (calls + counted)
    for name, value in values.items():
        text = re.sub(rf"^(llamacpp:{name}) \S+$", rf"\1 {value:.6g}", text, flags=re.MULTILINE)
    return text
