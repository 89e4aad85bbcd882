"""A real llama.cpp server, chat requests, and a live table of the exporter's numbers; scripts/demo starts it.

Standard library only.
"""

import argparse
import contextlib
import http.client
import itertools
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time

from support import LLAMA_CPP, MODEL, MODEL_NAME, ROOT
from support.http_client import request, responds

SERVER_PROGRAM = ROOT / "tests" / "support" / "xllamacpp_server.py"
LOGS = ROOT / "target" / "demo"
EXPORTER_PORT = 9100
SERVER_PORT = 8080
# The demo tries so many builds, newest first.
MAX_BUILDS = 3
# The longest run of --once, in seconds, after the setup.
ONCE_SECONDS = 40
# --once succeeds after so many polls that were ahead of the server's own counter.
LIVE_POLLS = 3

QUESTIONS = (
    "Tell me a long story about a lighthouse keeper.",
    "Explain in detail how bread is made.",
    "Describe a walk through a forest in autumn.",
    "What should one know before buying a bicycle?",
    "Write a letter to a friend about a journey by train.",
)


def main():
    parser = argparse.ArgumentParser(
        prog="scripts/demo",
        description="Start a real llama.cpp server with a small model (270M) and the exporter, send it a few chat"
        " requests, and print the exporter's numbers live until Ctrl-C. The first run downloads about 400 MB into"
        " target/; later runs start in seconds.",
        epilog="With --base-url, set the exporter's other settings by their environment variables, for example"
        " LLAMACPP_API_KEY.",
    )
    parser.add_argument(
        "--once", action="store_true", help="exit after at most 40 s; status 0 only if running requests were counted"
    )
    parser.add_argument(
        "--base-url", metavar="URL", help="watch your own server; download nothing, send it no requests"
    )
    arguments = parser.parse_args()

    # A shell starts background processes with SIGINT ignored. Under nohup, SIGHUP stays ignored.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if number != signal.SIGHUP or signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
            signal.signal(number, interrupt)
    processes = []
    try:
        exporter_program = build_exporter()
        if arguments.base_url:
            return watch_own_server(processes, exporter_program, arguments)
        return watch_demo_server(processes, exporter_program, arguments)
    except Interrupted:
        # On a new line, after the ^C of the terminal; which may have been closed.
        with contextlib.suppress(OSError):
            print("\nStopped.", flush=True)
        return 0
    except BrokenPipeError:
        # Standard output was closed. Without this, Python would report the error once more at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 0
    finally:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        for process in reversed(processes):
            process.stop()


def watch_own_server(processes, exporter_program, arguments):
    """Watches the user's server, and shows the exporter's log, which reports problems with it."""
    exporter = Exporter(exporter_program, arguments.base_url, log=None)
    processes.append(exporter)
    exporter.wait_until_serving()
    show_addresses(exporter, f"watching       {without_userinfo(arguments.base_url)}")
    table = Table(own_counter=False)
    before = None
    for models in exporter.polls(seconds=ONCE_SECONDS if arguments.once else None):
        table.add(models)
        if arguments.once and before and any(model.grew_since(before) for model in models):
            print("\nSuccess: tokens of a running request were counted.")
            return 0
        before = models
    warn(f"no tokens were counted in {ONCE_SECONDS} s: send the server a request while the demo runs")
    return 1


def watch_demo_server(processes, exporter_program, arguments):
    server = start_server(processes)
    exporter = Exporter(exporter_program, server.url, log=LOGS / "exporter.log")
    processes.append(exporter)
    exporter.wait_until_serving()
    show_addresses(
        exporter,
        f"llama-server   {server.address}/   build {server.build}; chat with it in a browser, watch the numbers here",
    )
    print(f"  logs           {LOGS.relative_to(ROOT)}/")
    if not arguments.once:
        print("  Ctrl-C         stops everything")
    print("\n  generated: the exporter's counter; own count: llama-server's own counter at the same moment")

    table = Table(own_counter=True)
    load = LoadGenerator(server)
    live = 0
    highest = 0
    for models in exporter.polls(seconds=ONCE_SECONDS if arguments.once else None):
        # Read after the exporter's poll, so a smaller value means that it does not include running requests.
        own = server.own_counter()
        table.add(models, own)
        server.check()
        load.send_due_requests()
        generated = models[0].generated if models else None
        if None not in (generated, own) and generated > max(own, highest):
            live += 1
        highest = max(highest, generated or 0)
        if arguments.once and live >= LIVE_POLLS:
            print(f"\nSuccess: at {live} polls the exporter had counted tokens of running requests")
            print("that were not yet in llama-server's own counter.")
            return 0
    warn(f"no tokens of running requests were counted in {ONCE_SECONDS} s: see {LOGS.relative_to(ROOT)}/")
    return 1


def show_addresses(exporter, watched):
    print(f"\n  metrics        {exporter.address}/metrics")
    print(f"  status page    {exporter.address}/")
    print(f"  {watched}")


class Interrupted(Exception):
    """A signal ends the demo."""


def interrupt(*_):
    raise Interrupted


def build_exporter():
    """Builds the release binary if necessary; returns its path."""
    command = ["cargo", "build", "--release", "--locked", "--bin", "llamacpp-exporter"]
    built = subprocess.run(
        [*command, "--message-format", "json-render-diagnostics"], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    if built.returncode:
        needed = re.search(r'^rust-version = "(.*)"', (ROOT / "Cargo.toml").read_text(), re.MULTILINE)
        fail(f"the exporter could not be built: it needs Rust {needed[1]} or newer and a C compiler")
    programs = [json.loads(line).get("executable") for line in built.stdout.splitlines() if line.startswith("{")]
    return next(program for program in programs if program)


def setup(*what):
    command = [ROOT / "scripts" / "setup", *what]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def start_server(processes):
    """Starts the newest build that can be installed and runs here."""
    for build in reversed(setup("--builds").split()[-MAX_BUILDS:]):
        try:
            setup(build)
        except subprocess.CalledProcessError:
            continue
        server = Server(build)
        processes.append(server)
        if server.loads():
            return server
        warn(f"llama.cpp b{build} does not run here ({server.exit_reason()}): see {server.log.relative_to(ROOT)}")
        if server.process.returncode == -signal.SIGILL:
            # No build is compiled for less.
            fail("this processor is too old for the prebuilt servers; use --base-url to watch your own server")
    fail("no llama.cpp server could be started here; use --base-url to watch your own server")


class Process:
    """A process that ends with the demo, even if the demo is killed."""

    def __init__(self, command, log, environment):
        if log:
            LOGS.mkdir(parents=True, exist_ok=True)
        output = open(log, "wb") if log else None
        # In its own session, so that Ctrl-C reaches only the demo, which then stops its processes in order.
        self.process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=environment, start_new_session=True
        )
        # If the demo is killed, the pipe closes and this shell ends the process.
        self.watchdog = subprocess.Popen(
            ["sh", "-c", 'read -r _; kill "$1"', "sh", str(self.process.pid)],
            stdin=subprocess.PIPE,
            start_new_session=True,
        )

    def stop(self):
        self.process.terminate()
        try:
            self.process.wait(5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.watchdog.kill()
        self.watchdog.wait()

    def exit_reason(self):
        code = self.process.poll()
        if code is None:
            return "not ready in time"
        return signal.Signals(-code).name if code < 0 else f"status {code}"


class Server(Process):
    def __init__(self, build):
        self.build = f"b{build}"
        self.port = free_port(SERVER_PORT)
        self.url = f"http://127.0.0.1:{self.port}"
        self.address = f"http://localhost:{self.port}"
        self.log = LOGS / "llama-server.log"
        # Half of the cores are enough for so small a model.
        threads = max(1, min(4, (os.cpu_count() or 1) // 2))
        command = [
            sys.executable, SERVER_PROGRAM, "--model", MODEL, "--alias", MODEL_NAME, "--port", str(self.port),
            "--parallel", "2", "--ctx-size", "8192", "--threads", str(threads), "--metrics",
        ]  # fmt: skip
        super().__init__(command, self.log, os.environ | {"PYTHONPATH": str(LLAMA_CPP / self.build)})

    def loads(self, timeout=180):
        """Waits for the model; stops the server and returns False if it does not load."""
        deadline = time.monotonic() + timeout
        while self.process.poll() is None and time.monotonic() < deadline:
            if responds(self.port, "/health", timeout=2):
                return True
            time.sleep(0.05)
        self.stop()
        return False

    def check(self):
        if self.process.poll() is not None:
            fail(f"llama-server has ended ({self.exit_reason()}): see {self.log.relative_to(ROOT)}")

    def own_counter(self):
        """llama-server's own counter of generated tokens; None if it does not answer."""
        try:
            found = re.search(
                r"^llamacpp:tokens_predicted_total (\S+)", request(self.port, "/metrics", timeout=2)[1], re.MULTILINE
            )
        except OSError:
            return None
        return float(found[1]) if found else None


class Exporter(Process):
    def __init__(self, program, base_url, log):
        self.log = log
        self.port = free_port(EXPORTER_PORT)
        self.address = f"http://localhost:{self.port}"
        environment = dict(os.environ)
        if log:
            # Without the settings of another exporter.
            environment = {
                name: value for name, value in environment.items() if not name.startswith(("LLAMACPP_", "LLM_"))
            }
        command = [program, "--base-url", base_url, "--addr", f"127.0.0.1:{self.port}"]
        command += [] if "LLAMACPP_SCRAPE_INTERVAL" in environment else ["--interval", "1s"]
        super().__init__(command, log, environment)

    def check(self):
        code = self.process.poll()
        if code is not None:
            where = f": see {self.log.relative_to(ROOT)}" if self.log else ""
            warn(f"the exporter has ended ({self.exit_reason()}){where}")
            sys.exit(code if code > 0 else 1)

    def wait_until_serving(self):
        while True:
            self.check()
            try:
                request(self.port, "/metrics", timeout=2)
                return
            except OSError:
                time.sleep(0.02)

    def polls(self, seconds=None):
        """The models after each poll of the exporter, for so many seconds."""
        deadline = time.monotonic() + seconds if seconds else None
        last = None
        while deadline is None or time.monotonic() < deadline:
            self.check()
            try:
                samples = parse(request(self.port, "/metrics", timeout=2)[1])
            except OSError:
                self.check()
                raise
            number = sum(value for (metric, _), value in samples.items() if metric == "llamacpp_exporter_polls_total")
            if number and number != last:
                last = number
                yield models(samples)
            time.sleep(0.1)


def parse(text):
    """The samples of a Prometheus exposition, by name and labels."""
    samples = {}
    for name, labels, value in re.findall(r"^(\w+)(?:\{(.*)\})? (\S+)$", text, re.MULTILINE):
        samples[name, tuple(re.findall(r'(\w+)="((?:[^"\\]|\\.)*)"', labels))] = float(value)
    return samples


def models(samples):
    """Every model that has a series."""
    # Several servers may have a model of the same name.
    names = {tuple(label for label in labels if label[0] in ("server", "model", "mode")) for _, labels in samples}
    return [Model(samples, name) for name in sorted(names) if dict(name).get("model")]


class Model:
    def __init__(self, samples, name):
        self.name = name

        def value(metric):
            return samples.get((f"llamacpp_{metric}", name))

        states = [
            dict(labels)["status"]
            for (metric, labels), is_so in samples.items()
            if metric == "llamacpp_status" and is_so and set(name) <= set(labels)
        ]
        self.state = states[0] if states else "-"
        self.tokens_per_second = value("tokens_per_second")
        self.generated = value("generated_tokens_total")
        self.processing = value("requests_processing")
        self.waiting = value("requests_deferred")
        self.slots = value("slots")
        self.slots_busy = value("slots_busy")
        self.context = value("context_size_tokens")
        self.max_context = value("max_context_size_tokens")

    def grew_since(self, before):
        """Whether the counter increased between two polls during which a request ran."""
        earlier = next((model for model in before if model.name == self.name), None)
        counts = (earlier and earlier.generated, self.generated)
        return bool(earlier and earlier.processing and self.processing and None not in counts and counts[1] > counts[0])

    def columns(self):
        return (
            self.state,
            f"{self.tokens_per_second:.1f}" if self.tokens_per_second is not None else "-",
            number(self.generated),
            number(self.processing) + (f" + {number(self.waiting)} waiting" if self.waiting else ""),
            f"{number(self.slots_busy)} of {number(self.slots)} busy" if self.slots else "-",
            f"{number(self.context)} of {number(self.max_context)}" if self.max_context else "-",
        )


def number(value):
    return f"{value:.0f}" if value is not None else "-"


class Table:
    """Prints a line for each change."""

    HEADER_EVERY = 20

    def __init__(self, own_counter):
        self.own_counter = own_counter
        self.lines = 0
        self.last = {}

    def add(self, models, own=None):
        rows = {model.name: model.columns() for model in models} or {(): ("down", *"-----")}
        for name, columns in rows.items():
            if self.last.get(name) != columns:
                self.print(columns, own, ", ".join(value for _, value in name) if len(rows) > 1 else "")
        self.last = rows

    def print(self, columns, own, name):
        if self.lines % self.HEADER_EVERY == 0:
            titles = ("state", "tokens/s", "generated", "requests", "slots", "context")
            print("\n" + self.line("", titles, "own count", ""))
        self.lines += 1
        print(self.line(time.strftime("%H:%M:%S"), columns, number(own), name), flush=True)

    def line(self, moment, columns, own, name):
        state, rate, generated, requests, slots, context = columns
        own = f"  {own:>9}" if self.own_counter else ""
        text = f"  {moment:8}  {state:8}{rate:>9}  {generated:>9}{own}   {requests:13}  {slots:11}  {context:12}"
        return f"{text}  {name}".rstrip()


class LoadGenerator:
    """Sends several chat requests at once at first, then one from time to time."""

    PAUSE = 12

    def __init__(self, server):
        self.port = server.port
        self.questions = itertools.cycle(QUESTIONS)
        self.speed = None
        self.requests = []
        self.next_at = 0

    def send_due_requests(self):
        now = time.monotonic()
        if not self.requests:
            # The first request measures the speed of this machine.
            self.send(1, tokens=40)
        elif self.speed is None:
            first = self.requests[0]
            if first.ended:
                self.speed = first.tokens_per_second or 20
                self.send(4, seconds=4)
        elif all(request.ended for request in self.requests):
            self.requests = self.requests[-1:]
            self.next_at = self.next_at or now + self.PAUSE
            if now >= self.next_at:
                self.next_at = 0
                self.send(1, seconds=4)

    def send(self, count, tokens=None, seconds=None):
        tokens = tokens or max(40, min(1500, int(seconds * self.speed)))
        self.requests += [ChatRequest(self.port, next(self.questions), tokens) for _ in range(count)]


class ChatRequest(threading.Thread):
    """A streamed chat completion."""

    def __init__(self, port, question, tokens):
        super().__init__(daemon=True)
        self.port = port
        self.body = json.dumps({
            "messages": [{"role": "user", "content": question}],
            "stream": True, "max_tokens": tokens, "ignore_eos": True,
        })  # fmt: skip
        self.arrivals = []
        self.ended = False
        self.start()

    def run(self):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        try:
            connection.request("POST", "/v1/chat/completions", self.body, {"Content-Type": "application/json"})
            for line in connection.getresponse():
                if line.startswith(b"data: {"):
                    self.arrivals.append(time.monotonic())
        except (OSError, http.client.HTTPException):
            # Server.check reports a server that has ended.
            pass
        finally:
            connection.close()
            self.ended = True

    @property
    def tokens_per_second(self):
        if len(self.arrivals) < 2:
            return None
        return (len(self.arrivals) - 1) / (self.arrivals[-1] - self.arrivals[0])


def free_port(preferred):
    """That port, or the next free one."""
    port = next(filter(is_free, range(preferred, preferred + 100)))
    if port != preferred:
        warn(f"port {preferred} is taken: using {port}")
    return port


def is_free(port):
    # On some systems a port can be bound although another program listens on all addresses.
    for address in ("127.0.0.1", "::1"):
        try:
            socket.create_connection((address, port), timeout=1).close()
            return False
        except OSError:
            pass
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def without_userinfo(url):
    return re.sub(r"//[^/]*@", "//", url)


def warn(message):
    print(f"scripts/demo: {message}", file=sys.stderr, flush=True)


def fail(message):
    warn(message)
    sys.exit(1)


if __name__ == "__main__":
    sys.exit(main())
