"""The exporter's release binary, and the exposition after each of its polls."""

import json
import re
import socket
import subprocess
import threading
import time
from dataclasses import dataclass

from support import BINARY, TIMEOUT
from support.exposition import Exposition, Poll
from support.process import ChildProcess, as_user, clean_environment
from support.wait import wait_for

# Scrapes in one interval: each poll is recorded soon after it ends.
SCRAPES_PER_POLL = 20
# The most polls that a failed test shows.
MOST_IN_SUMMARY = 200


def parse_duration(text):
    """Seconds of "200ms" or "0.25s"."""
    number, unit = re.fullmatch(r"([\d.]+)(ms|s)", text).groups()
    return float(number) * {"ms": 0.001, "s": 1}[unit]


def http_get(port, path):
    """The whole response, head and body.

    A plain socket: http.client takes longer to read the response than the exporter to write it, and
    there are dozens of scrapes a second of each exporter whose polls are recorded.
    """
    with socket.create_connection(("127.0.0.1", port), timeout=TIMEOUT) as connection:
        connection.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        response = b"".join(iter(lambda: connection.recv(1 << 20), b""))
    if not response:
        raise ConnectionError("empty response")
    return response.decode()


class Exporter(ChildProcess):
    """An exporter of one base URL, of several separated by commas, or of none.

    `polls` holds the exposition after each poll, unless `record_polls` is off. With `port` 0 the system
    chooses a port, and the exporter serves when this returns.
    """

    def __init__(
        self, base_url, log_path, *options, interval="1s", host="127.0.0.1", port=0, record_polls=True, binary=BINARY,
        environment=None,
    ):  # fmt: skip
        super().__init__(log_path)
        assert binary.exists(), f"{binary} is missing: cargo build --release"
        self.polls = []
        self._changed = threading.Condition()
        self._stopping = threading.Event()
        self._pause = parse_duration(interval) / SCRAPES_PER_POLL
        command = [binary, "--addr", f"{host}:{port}", "--interval", interval, *options]
        command += ["--base-url", base_url] if base_url else []
        self.spawn(command, env=clean_environment(**(environment or {})))
        self.port = port or wait_for(self._logged_port, lambda: f"the exporter to serve:\n{self.log}", interval=0.01)
        self.url = f"http://127.0.0.1:{self.port}"
        if record_polls:
            threading.Thread(target=self._record, daemon=True).start()

    def _logged_port(self):
        if found := re.search(r"serving.*addr=\S*:(\d+)", self.log):
            return int(found[1])
        self.assert_running()
        return None

    def get(self, path):
        """Status and body."""
        head, _, body = http_get(self.port, path).partition("\r\n\r\n")
        return int(head.split()[1]), body

    def scrape(self):
        status, body = self.get("/metrics")
        assert status == 200, body
        return body

    def exposition(self):
        return Exposition(self.scrape())

    def value(self, name, **labels):
        """The value of a series now; None if there is none."""
        return self.exposition().value(name, **labels)

    def poll_count(self):
        return int(self.value("exporter_polls_total") or 0)

    def poll_counts(self):
        """The number of polls of each of several servers so far."""
        return {sample.labels["server"]: sample.value for sample in self.exposition().find("exporter_polls_total")}

    def _record(self):
        ended_after = time.monotonic()
        last = 0
        while not self._stopping.is_set():
            started = time.monotonic()
            try:
                text = self.scrape()
            except OSError:
                if self._stopping.is_set() or self.process.poll() is not None:
                    return
                raise
            counted = re.search(r"^llamacpp_exporter_polls_total\{.*\} (\S+)$", text, re.MULTILINE)
            number = int(float(counted[1])) if counted else 0
            if number != last:
                last = number
                with self._changed:
                    self.polls.append(Poll(text, number, ended_after, time.monotonic()))
                    self._changed.notify_all()
            ended_after = started
            time.sleep(self._pause)

    def wait_for(self, condition, timeout=TIMEOUT):
        """The first recorded or future poll of which `condition` is true."""
        deadline = time.monotonic() + timeout
        checked = 0
        while True:
            with self._changed:
                self._changed.wait_for(lambda: len(self.polls) > checked, deadline - time.monotonic())
                polls = self.polls[checked:]
            checked += len(polls)
            for poll in polls:
                if condition(poll):
                    return poll
            assert time.monotonic() < deadline, (
                f"no such poll in {timeout} s; last one:\n{self.polls[-1].text if self.polls else None}\n{self.log}"
            )

    def poll_started_after(self, moment, timeout=TIMEOUT):
        """The first poll that started after that moment: the one before it ended by then or later."""
        before = self.wait_for(lambda poll: poll.ended_after >= moment, timeout)
        return self.wait_for(lambda poll: poll.number == before.number + 1, timeout)

    def wait_for_status(self, status, since=0.0, timeout=TIMEOUT):
        return self.wait_for(lambda poll: poll.ended_before >= since and poll.status == status, timeout)

    def wait_for_polls(self, count, since):
        """The poll that comes `count` polls after `since`."""
        return self.wait_for(lambda poll: poll.number == since.number + count)

    def between(self, first, last):
        """The polls after the first one, up to and including the last one."""
        return [poll for poll in self.polls if first.number < poll.number <= last.number]

    def summary(self):
        """A line for each of the last polls, shown when a test fails."""
        # Parsed apart from the polls, which would keep their samples: those of thousands of polls are gigabytes.
        return "\n".join(
            f"{poll.ended_before:.3f} poll {poll.number}: {Exposition(poll.text).summary()}"
            for poll in self.polls[-MOST_IN_SUMMARY:]
        )

    def stop(self):
        self._stopping.set()
        super().stop()


@dataclass
class CheckReport(Exposition):
    """The document of --check --json. `text` has its values as series, without buckets."""

    document: dict
    stdout: str
    stderr: str

    @property
    def notes(self):
        """The notes and failures of all servers, one a line."""
        servers = self.document["servers"]
        failures = [failure["detail"] for server in servers for failure in server["failures"]]
        return "\n".join([note for server in servers for note in server["notes"]] + failures)


def run_check(url, *options, uid=None, code=0):
    command = [str(BINARY), "--base-url", url, "--check", "--json", "--interval", "200ms", *options]
    done = subprocess.run(as_user(uid, command), capture_output=True, text=True, timeout=60)
    assert done.returncode == code, done.stdout + done.stderr
    document = json.loads(done.stdout)
    text = "".join(series_of(value) for server in document["servers"] for value in server["values"])
    return CheckReport(text, document, done.stdout, done.stderr)


def series_of(value):
    """A value of the document as lines of the exposition."""
    labels = ",".join(f"{name}={json.dumps(label)}" for name, label in value["labels"].items())
    parts = {"": value["value"], "_count": value["count"], "_sum": value["sum"]}
    known = ((suffix, number) for suffix, number in parts.items() if number is not None)
    return "".join(f"{value['metric']}{suffix}{{{labels}}} {number}\n" for suffix, number in known)
