"""A server that answers as genuine ones were recorded to, and remembers what it was asked."""

import json
import re
import socket
import threading
import time
from dataclasses import dataclass, replace
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from socketserver import ThreadingTCPServer

RECORDINGS = Path(__file__).resolve().parents[1] / "recordings"


@dataclass(frozen=True)
class Answer:
    body: str
    status: int = 200
    type: str = "application/json"
    # Seconds that it lets its asker wait.
    delay: float = 0


NOT_FOUND = Answer("404 page not found\n", 404, "text/plain; charset=utf-8")


def recorded(kind, state):
    """What a server of that kind answers in a state, by path and query."""
    answers = {}
    for folder in (RECORDINGS / kind / "any", RECORDINGS / kind / state):
        for line in (folder / "answers.tsv").read_text().splitlines():
            path, status, content_type, file = line.split("\t")
            answers[path] = Answer((folder / file).read_text(), int(status), content_type)
    return answers


def changed(answers, path, change):
    """The same answers, one of them with its JSON put through `change`."""
    document = json.loads(answers[path].body)
    changed_document = change(document)
    body = json.dumps(document if changed_document is None else changed_document)
    return answers | {path: replace(answers[path], body=body)}


def with_values(text, **values):
    """An exposition with other values, by the part of the name after `llamacpp:`."""
    for name, value in values.items():
        text, count = re.subn(rf"^(llamacpp:{name}(?:\{{.*\}})?) \S+$", rf"\1 {value}", text, flags=re.MULTILINE)
        assert count, f"no {name}"
    return text


class Replay:
    """Serves the answers last given to `show`, below a prefix such as a reverse proxy adds."""

    def __init__(self, answers=None, port=0, prefix=""):
        self.answers = answers or {}
        self.prefix = prefix
        self.asked = []
        self._connections = set()
        replay = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            # Head and body leave together, at once.
            wbufsize = -1
            disable_nagle_algorithm = True

            def setup(self):
                super().setup()
                replay._connections.add(self.request)

            def finish(self):
                replay._connections.discard(self.request)
                super().finish()

            def answer(self):
                answer = replay.answer(self.command, self.path)
                if answer.delay:
                    time.sleep(answer.delay)
                body = answer.body.encode()
                self.send_response(answer.status)
                self.send_header("Content-Type", answer.type)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            do_GET = do_POST = do_HEAD = do_PUT = do_DELETE = answer

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

    def show(self, answers):
        self.answers = answers

    def answer(self, method, path):
        self.asked.append((method, path))
        return (
            self.answers.get(path.removeprefix(self.prefix), NOT_FOUND) if path.startswith(self.prefix) else NOT_FOUND
        )

    def paths_asked(self):
        return {path.removeprefix(self.prefix) for _, path in self.asked}

    def close(self):
        """Goes away, and cuts the connections that are open."""
        self._server.shutdown()
        self._server.server_close()
        for connection in list(self._connections):
            try:
                connection.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass
