"""HTTP requests of the tests' own, and free ports. Standard library only."""

import contextlib
import http.client
import json
import random
import socket
from pathlib import Path


class UnixConnection(http.client.HTTPConnection):
    def __init__(self, path, timeout):
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


def connect(port, timeout):
    """A connection to a port of this machine, or to a Unix socket by its path."""
    if isinstance(port, Path):
        return UnixConnection(port, timeout)
    return http.client.HTTPConnection("127.0.0.1", port, timeout=timeout)


def request(port, path, body=None, headers=None, timeout=60):
    """Status and text of a GET, or of a POST of `body` as JSON. Every failure is an OSError."""
    connection = connect(port, timeout)
    try:
        if body is None:
            connection.request("GET", path, headers=headers or {})
        else:
            headers = {"Content-Type": "application/json"} | (headers or {})
            connection.request("POST", path, json.dumps(body), headers)
        response = connection.getresponse()
        return response.status, response.read().decode()
    except http.client.HTTPException as error:
        raise OSError(f"{type(error).__name__}: {error}") from error
    finally:
        connection.close()


def responds(port, path, timeout=5):
    """Whether the status is 200."""
    try:
        return request(port, path, timeout=timeout)[0] == 200
    except OSError:
        return False


def free_port():
    """A port for a server, outside the range that Linux assigns to clients: one from that range could
    be taken before the server listens, or while it restarts."""
    while True:
        port = random.randrange(15000, 30000)
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port
