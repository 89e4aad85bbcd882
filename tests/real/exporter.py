"""The exporter's release binary, and what it said at each of its polls."""

import os
import re
import socket
import subprocess
import threading
import time
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

ROOT = Path(__file__).resolve().parents[2]
BINARY = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")) / "release" / "llamacpp-exporter"
# How often it is scraped while it polls once: each poll is seen soon after it ends.
SCRAPES_A_POLL = 20
# Seconds to wait for what must come: far longer than anything takes on a busy machine.
PATIENCE = 120
STATES = ("idle", "loading", "running", "sleeping", "unloaded", "downloading", "failed")
TOLD_IN_STORIES = (
    "up", "tokens_per_second", "prompt_tokens_per_second", "generated_tokens_total", "prompt_tokens_total",
    "decode_calls_total", "requests_processing", "requests_deferred", "slots_busy", "exporter_poll_duration_seconds",
)  # fmt: skip


def seconds(interval):
    """What the exporter's option means: "200ms", "0.25s"."""
    number, unit = re.fullmatch(r"([\d.]+)(ms|s)", interval).groups()
    return float(number) * {"ms": 0.001, "s": 1}[unit]


def ask(port, path):
    """The exporter's whole answer, head and body.

    Without http.client, which takes longer to read the answer than the exporter to give it: there
    are dozens of scrapes a second of each of the exporters that are watched at the same time.
    """
    with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE) as connection:
        connection.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        answer = b"".join(iter(lambda: connection.recv(1 << 20), b""))
    if not answer:
        raise ConnectionError("no answer")
    return answer.decode()


@dataclass
class Poll:
    """What /metrics said from the end of one poll on. It ended after `after` and before `seen`."""

    number: int
    after: float
    seen: float
    text: str

    @cached_property
    def samples(self):
        families = text_string_to_metric_families(self.text)
        return [sample for family in families for sample in family.samples]

    def value(self, name, **labels):
        """The value of the one series of that name with those labels; None if there is none."""
        found = [
            sample.value
            for sample in self.samples
            if sample.name == f"llamacpp_{name}" and labels.items() <= sample.labels.items()
        ]
        assert len(found) <= 1, f"{len(found)} series of {name} {labels}"
        return found[0] if found else None

    @property
    def begun(self):
        """It began at this moment or later."""
        return self.after - self.value("exporter_poll_duration_seconds")

    @property
    def status(self):
        states = [state for state in STATES if self.value("status", status=state) == 1]
        assert len(states) <= 1, f"more than one state: {states}"
        return states[0] if states else None

    @property
    def model_series(self):
        """Names of the families that tell something about a model."""
        return {sample.name for sample in self.samples if "model" in sample.labels}

    def gist(self):
        """The states and some values, in a line."""
        told = []
        for sample in self.samples:
            name, model = sample.name.removeprefix("llamacpp_"), sample.labels.get("model", "")
            if name == "status" and sample.value:
                told.append(f"{model} is {sample.labels['status']}")
            elif name in TOLD_IN_STORIES:
                told.append(f"{model} {name}={sample.value:g}".strip())
        return f"errors={self.errors():g} {', '.join(told[:40])}"

    def errors(self, **labels):
        """Requests of polls that failed, up to this one."""
        return sum(
            sample.value
            for sample in self.samples
            if sample.name == "llamacpp_exporter_poll_errors_total" and labels.items() <= sample.labels.items()
        )


class Exporter:
    """It polls at the interval, and is scraped all the while unless it is left `unwatched`."""

    def __init__(
        self, base_url, log, interval="1s", timeout=None, api_key=None, sleep_idle_seconds=None, unwatched=False,
        pid_file=None, procfs=None,
    ):  # fmt: skip
        assert BINARY.exists(), f"{BINARY} is missing: cargo build --release"
        self.log_file = log
        self.polls = []
        self._changed = threading.Condition()
        self._ended = threading.Event()
        command = [str(BINARY), "--base-url", base_url, "--addr", "127.0.0.1:0", "--interval", interval]
        command += ["--timeout", timeout] if timeout else []
        command += ["--sleep-idle-seconds", str(sleep_idle_seconds)] if sleep_idle_seconds else []
        command += ["--pid-file", str(pid_file)] if pid_file else []
        command += ["--procfs", str(procfs)] if procfs else []
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("LLAMACPP_", "LLM_"))}
        if api_key:
            environment["LLAMACPP_API_KEY"] = api_key
        with open(log, "wb") as output:
            self.process = subprocess.Popen(command, stdout=output, stderr=output, env=environment)
        self.port = self._serving_port()
        self._pause = seconds(interval) / SCRAPES_A_POLL
        if not unwatched:
            threading.Thread(target=self._watch, daemon=True).start()

    def _serving_port(self):
        deadline = time.monotonic() + PATIENCE
        while not (found := re.search(r"serving.*addr=\S*:(\d+)", self.log)):
            assert self.process.poll() is None, f"the exporter did not start: {self.log}"
            assert time.monotonic() < deadline, f"the exporter does not say where it serves: {self.log}"
            time.sleep(0.01)
        return int(found[1])

    @property
    def log(self):
        return Path(self.log_file).read_text()

    def scrape(self):
        head, _, body = ask(self.port, "/metrics").partition("\r\n\r\n")
        assert head.startswith("HTTP/1.1 200 "), head
        return body

    def _watch(self):
        after = time.monotonic()
        last = 0
        while not self._ended.is_set():
            began = time.monotonic()
            try:
                text = self.scrape()
            except OSError:
                if self._ended.is_set() or self.process.poll() is not None:
                    return
                raise
            counted = re.search(r"^llamacpp_exporter_polls_total (\S+)$", text, re.MULTILINE)
            number = int(float(counted[1])) if counted else 0
            if number != last:
                last = number
                with self._changed:
                    self.polls.append(Poll(number, after, time.monotonic(), text))
                    self._changed.notify_all()
            after = began
            time.sleep(self._pause)

    def wait_for(self, wanted, patience=PATIENCE):
        """The first poll, of those seen already or to come, of which `wanted` is true."""
        deadline = time.monotonic() + patience
        looked_at = 0
        while True:
            with self._changed:
                self._changed.wait_for(lambda: len(self.polls) > looked_at, deadline - time.monotonic())
                polls = self.polls[looked_at:]
            looked_at += len(polls)
            for poll in polls:
                if wanted(poll):
                    return poll
            assert time.monotonic() < deadline, (
                f"no such poll in {patience} s. The last one:\n{self.polls[-1].text if self.polls else None}\n{self.log}"
            )

    def poll_begun_after(self, moment, patience=PATIENCE):
        """The first poll that began after that moment: the one before it had ended by then or later."""
        before = self.wait_for(lambda poll: poll.after >= moment, patience)
        return self.wait_for(lambda poll: poll.number == before.number + 1, patience)

    def wait_for_status(self, status, since=0.0, patience=PATIENCE):
        return self.wait_for(lambda poll: poll.seen >= since and poll.status == status, patience)

    def between(self, first, last):
        """The polls after the first given one up to the last."""
        return [poll for poll in self.polls if first.number < poll.number <= last.number]

    def story(self):
        """What it said of the first few models, a line a poll: for whoever reads a test that failed."""
        return "\n".join(f"{poll.seen:.3f} poll {poll.number}: {poll.gist()}" for poll in self.polls)

    def stop(self):
        self._ended.set()
        self.process.terminate()
        try:
            self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise
