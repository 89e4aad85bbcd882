"""A proxy between the exporter and a server that records how long requests wait in the server's queue.

Before b10566 `/metrics` and `/slots` wait in the server's task queue until a batch is done, and stay
queued when their client has disconnected. The queue is first in, first out: an abandoned request has
left it at the latest when a later one is answered.
"""

import contextlib
import socket
import threading
import time
from dataclasses import dataclass

QUEUED_PATHS = ("/metrics", "/slots")


@dataclass
class Request:
    path: str
    sent_at: float
    answered_at: float | None = None


class QueueProxy:
    def __init__(self, port):
        self.requests = []
        self._upstream = ("127.0.0.1", port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self):
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            try:
                server = socket.create_connection(self._upstream)
            except OSError:
                client.close()
                continue
            requests = []
            for pump in (self._forward_requests, self._forward_responses):
                threading.Thread(target=pump, args=(client, server, requests), daemon=True).start()

    def _forward_requests(self, client, server, requests):
        """The exporter sends one request at a time, in one piece."""
        while data := receive(client):
            if data.startswith(b"GET "):
                request = Request(data.split()[1].decode(), time.monotonic())
                requests.append(request)
                self.requests.append(request)
            send(server, data)
        half_close(server)

    def _forward_responses(self, client, server, requests):
        while data := receive(server):
            if requests and requests[-1].answered_at is None:
                requests[-1].answered_at = time.monotonic()
            send(client, data)
        half_close(client)
        server.close()

    def waits(self):
        """When each request entered and left the server's queue."""
        queued = [request for request in self.requests if request.path in QUEUED_PATHS]
        return [
            (
                request.sent_at,
                min((later.answered_at for later in queued[number:] if later.answered_at), default=time.monotonic()),
            )
            for number, request in enumerate(queued)
        ]

    def most_queued(self, longer_than):
        """The largest number of requests that were queued for longer than that at the same time."""
        late = [(start + longer_than, end) for start, end in self.waits()]
        return max((sum(start <= moment < end for start, end in late) for moment, _ in late), default=0)

    def close(self):
        self._listener.close()


def receive(connection):
    try:
        return connection.recv(65536)
    except OSError:
        return b""


def send(connection, data):
    with contextlib.suppress(OSError):
        connection.sendall(data)


def half_close(connection):
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_WR)
