"""A server that answers with recordings, and keeps the requests that it gets."""

import contextlib
import json
import re
import socket
import threading
import time
from dataclasses import dataclass, replace
from http.server import BaseHTTPRequestHandler
from socketserver import ThreadingTCPServer

from support import RECORDINGS

ROUTER = RECORDINGS / "router" / "b10068"
TEXT = "text/plain; version=0.0.4"
OK = '{"status":"ok"}'


@dataclass(frozen=True)
class Response:
    body: str
    status: int = 200
    type: str = "application/json"
    # Seconds before it is sent.
    delay: float = 0
    headers: tuple = ()


NOT_FOUND = Response("404 page not found\n", 404, "text/plain; charset=utf-8")


def from_file(path, status=200, delay=0):
    """A recorded response; JSON or an exposition, by the file's extension."""
    return Response(path.read_text(), status, TEXT if path.suffix == ".txt" else "application/json", delay)


def recorded(kind, state):
    """The responses of a server of that kind in a state, by path and query."""
    responses = {}
    for folder in (RECORDINGS / kind / "any", RECORDINGS / kind / state):
        for line in (folder / "answers.tsv").read_text().splitlines():
            path, status, content_type, file = line.split("\t")
            responses[path] = Response((folder / file).read_text(), int(status), content_type)
    return responses


def with_json(responses, path, change):
    """The responses, with `change` applied to one JSON document; it modifies the document or returns another."""
    document = json.loads(responses[path].body)
    changed = change(document)
    body = json.dumps(document if changed is None else changed)
    return responses | {path: replace(responses[path], body=body)}


def with_values(text, **values):
    """An exposition with other values, by name without `llamacpp:`."""
    for name, value in values.items():
        text, count = re.subn(rf"^(llamacpp:{name}(?:\{{.*\}})?) \S+$", rf"\1 {value}", text, flags=re.MULTILINE)
        assert count, f"no {name}"
    return text


class ReplayServer:
    """Serves `responses`, which may be replaced, below a path prefix such as a reverse proxy adds."""

    def __init__(self, responses=None, port=0, prefix=""):
        self.responses = responses or {}
        self.prefix = prefix
        self.requests = []
        self._connections = set()
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            # Head and body are sent together.
            wbufsize = -1
            disable_nagle_algorithm = True

            def setup(self):
                super().setup()
                server._connections.add(self.request)

            def finish(self):
                server._connections.discard(self.request)
                super().finish()

            def respond(self):
                response = server._response(self.command, self.path)
                if response is None:
                    self.close_connection = True
                    return
                time.sleep(response.delay)
                body = response.body.encode()
                self.send_response(response.status)
                self.send_header("Content-Type", response.type)
                for header in response.headers:
                    self.send_header(*header)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            do_GET = do_POST = do_HEAD = do_PUT = do_DELETE = respond

            def log_message(self, *_):
                pass

        class Server(ThreadingTCPServer):
            allow_reuse_address = True
            daemon_threads = True

            def handle_error(self, *_):
                pass

        self._server = Server(("127.0.0.1", port), Handler)
        self.port = self._server.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}{prefix}"
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def _response(self, method, path):
        """The response to a request; None closes the connection instead."""
        self.requests.append((method, path))
        if not path.startswith(self.prefix):
            return NOT_FOUND
        return self.responses.get(path.removeprefix(self.prefix), NOT_FOUND)

    @property
    def methods(self):
        return {method for method, _ in self.requests}

    @property
    def paths(self):
        """The distinct paths and queries that were requested."""
        return {path.removeprefix(self.prefix) for _, path in self.requests}

    def count(self, path):
        return self.requests.count(("GET", path))

    def close(self):
        """Stops listening and closes open connections."""
        self._server.shutdown()
        self._server.server_close()
        for connection in list(self._connections):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
