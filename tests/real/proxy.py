"""A proxy between the exporter and a server that knows which questions wait in the server.

Before b10566 `/metrics` and `/slots` wait in the server's queue until it is done with a batch,
and stay in it also when their asker has gone. The queue is first in, first out: a question that
was given up is out of it at the latest when one that was asked after it is answered.
"""

import socket
import threading
import time
from dataclasses import dataclass

QUEUED = ("/metrics", "/slots")


@dataclass
class Question:
    path: str
    asked_at: float
    answered_at: float | None = None


class Proxy:
    def __init__(self, port):
        self.questions = []
        self._upstream = ("127.0.0.1", port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self):
        while True:
            try:
                asker, _ = self._listener.accept()
            except OSError:
                return
            try:
                server = socket.create_connection(self._upstream)
            except OSError:
                asker.close()
                continue
            asked = []
            for pump in (self._pass_questions, self._pass_answers):
                threading.Thread(target=pump, args=(asker, server, asked), daemon=True).start()

    def _pass_questions(self, asker, server, asked):
        """The exporter sends one question at a time, in one piece."""
        while data := receive(asker):
            if data.startswith(b"GET "):
                question = Question(data.split()[1].decode(), time.monotonic())
                asked.append(question)
                self.questions.append(question)
            send(server, data)
        half_close(server)

    def _pass_answers(self, asker, server, asked):
        while data := receive(server):
            if asked and asked[-1].answered_at is None:
                asked[-1].answered_at = time.monotonic()
            send(asker, data)
        half_close(asker)
        server.close()

    def waits(self):
        """From when to when each question was in the server's queue."""
        queued = [question for question in self.questions if question.path in QUEUED]
        return [
            (
                question.asked_at,
                min((later.answered_at for later in queued[number:] if later.answered_at), default=time.monotonic()),
            )
            for number, question in enumerate(queued)
        ]

    def most_waiting(self, longer_than):
        """The most questions that, at one moment, had waited longer than so many seconds."""
        late = [(begin + longer_than, end) for begin, end in self.waits()]
        return max((sum(begin <= moment < end for begin, end in late) for moment, _ in late), default=0)

    def close(self):
        self._listener.close()


def receive(connection):
    try:
        return connection.recv(65536)
    except OSError:
        return b""


def send(connection, data):
    try:
        connection.sendall(data)
    except OSError:
        pass


def half_close(connection):
    try:
        connection.shutdown(socket.SHUT_WR)
    except OSError:
        pass
