"""The scenarios of scripts/compatibility, and the document with their results."""

import datetime
import os
import platform
import re
import signal
import subprocess
import sys
import time

from support import BINARY, LLAMA_CPP, MODEL_PARAMETERS, ROOT
from support.cores import one_core
from support.exporter import Exporter
from support.llama_server import ANSWERS_WHILE_BUSY, XllamacppServer

DOCUMENT = ROOT / "docs" / "compatibility.md"
LOGS = ROOT / "target" / "compatibility"

INTERVAL = 1.0
TIMEOUT = 1.0
# Allowance for a busy machine, and for the time between two scrapes.
GRACE = 1.0
# Enough for four requests, the exporter and this program.
HTTP_THREADS = ("--threads-http", 8)
SLEEP = 3
STAYS_ASLEEP = 5
SCENARIOS = ("idle", "one stream", "four on two slots", "disconnect", "long prompt", "restart", "sleep")
PASSED = "✓"
NOT_APPLICABLE = "–"
# The first words of a result that is no fault of the exporter.
SERVER = "the server"

# Metrics that exist only if the build reports the value, in words.
REPORTED = {
    "generated_tokens_total": "generated tokens",
    "prompt_tokens_total": "prompt tokens",
    "prompt_tokens_cached_total": "reused prompt tokens",
    "prompt_seconds_total": "time spent on prompts",
    "generation_seconds_total": "time spent generating",
    "decode_calls_total": "decode calls",
    "batch_latency_seconds_count": "decode time",
    "batch_size": "batch size",
    "requests_processing": "requests on slots",
    "requests_deferred": "waiting requests",
    "slots": "slots",
    "slots_busy": "busy slots",
    "context_size_tokens": "context in use",
    "max_context_size_tokens": "context size",
    "max_sequence_tokens": "longest sequence",
    "model_size_bytes": "size of the model",
    "model_parameters": "parameters of the model",
}


class ScenarioError(Exception):
    """The exporter failed a scenario."""


class TooShortError(Exception):
    """The requests ended before a poll could see them."""


def check(condition, message):
    if not condition:
        raise ScenarioError(message)


class BuildTest:
    """All scenarios with one build."""

    def __init__(self, build):
        self.build = build
        self.unreported = []
        self.length_factor = 1
        self.families = set()
        folder = LOGS / f"b{build}"
        folder.mkdir(parents=True, exist_ok=True)
        for old in folder.iterdir():
            old.unlink()
        self.folder = folder
        self.server = XllamacppServer(build, folder / "server.log", *HTTP_THREADS)
        self.exporter = None

    def cells(self):
        """The result of each scenario."""
        cells = {}
        try:
            self.server.start().wait_until_loaded()
            self.start_exporter()
            for scenario in SCENARIOS:
                started_at = time.monotonic()
                cells[scenario] = self.result(getattr(self, scenario.replace(" ", "_")))
                say(f"  {scenario}: {cells[scenario]} ({time.monotonic() - started_at:.1f} s)")
        except AssertionError as error:
            say(f"  {error}")
            cells |= {scenario: f"{SERVER} did not start" for scenario in SCENARIOS if scenario not in cells}
        finally:
            self.server.kill()
            if self.exporter:
                self.exporter.stop()
        return cells

    def result(self, scenario):
        try:
            if scenario == self.sleep:
                return scenario() or PASSED
            with one_core():
                return self.run_long_enough(scenario) or PASSED
        except (ScenarioError, TooShortError, AssertionError, OSError) as error:
            self.write_polls(scenario.__name__)
            if self.exporter.process.poll() is not None:
                self.start_exporter()
                return "the exporter ended"
            code = self.server.process.poll()
            if code is not None:
                self.server.start().wait_until_loaded()
                return f"{SERVER} died ({signal.Signals(-code).name if code < 0 else f'status {code}'})"
            return (str(error) or repr(error)).splitlines()[0]

    def run_long_enough(self, scenario):
        """Retries with longer requests: a busy machine may have generated the trial tokens slowly."""
        for self.length_factor in (1, 2, 4):
            try:
                return scenario()
            except TooShortError as error:
                last = error
        raise last

    def write_polls(self, scenario):
        """Writes the last polls to a file, for debugging."""
        with open(self.folder / f"polls-{scenario}.txt", "w") as file:
            for poll in self.exporter.polls[-30:]:
                file.write(
                    f"--- poll {poll.number}, ended {poll.ended_after:.3f} to {poll.ended_before:.3f}\n{poll.text}"
                )

    def start_exporter(self, *options):
        """Starts the exporter, or restarts it."""
        if self.exporter:
            self.collect_families()
            self.exporter.stop()
        number = len(list(self.folder.glob("exporter-*.log")))
        log = self.folder / f"exporter-{number}.log"
        options = ["--timeout", f"{TIMEOUT:g}s", *options]
        self.exporter = Exporter(self.server.url, log, *options, interval=f"{INTERVAL:g}s")

    def collect_families(self):
        """Adds the names of all exported series to `families`."""
        for poll in self.exporter.polls:
            self.families |= {sample.name.removeprefix("llamacpp_") for sample in poll.samples}

    def wait_until_idle(self, stream=None):
        """A poll with the status idle that started after the stream ended, or after now."""
        since = self.exporter.poll_started_after(stream.ended_at if stream else time.monotonic()).ended_after
        return self.exporter.wait_for_status("idle", since=since)

    def idle(self):
        idle = self.exporter.wait_for_status("idle")
        for name in ("generated_tokens_total", "prompt_tokens_total", "requests_processing", "requests_deferred"):
            check(idle.value(name) == 0, f"{name} is {idle.value(name)}")
        for name, value in {"up": 1, "slots": 2, "slots_busy": 0, "max_context_size_tokens": 4096}.items():
            check(idle.value(name) == value, f"{name} is {idle.value(name)}")
        check(
            idle.value("model_parameters") == MODEL_PARAMETERS, f"model_parameters is {idle.value('model_parameters')}"
        )
        check(idle.errors() == 0, "requests of the exporter failed")
        if not idle.labels("server_info").get("version", "").startswith(f"b{self.build}-"):
            self.unreported.append("its build")
        if not any(sample.labels.get("quantization") for sample in idle.find("model_info")):
            self.unreported.append("quantization")

    def one_stream(self):
        server_count = self.server.counter("tokens_predicted_total")
        tokens = self.server.tokens_for(seconds=5 * self.length_factor)
        before = self.wait_until_idle()
        base = before.value("generated_tokens_total")
        check(base == server_count + 24, f"{base:g} tokens counted of {server_count + 24:g}")
        stream = self.server.stream(tokens).wait()
        done = self.wait_until_idle(stream)

        live = 0
        polls = self.exporter.between(before, done)
        for previous, poll in zip([before, *polls], polls):
            counted = poll.value("generated_tokens_total") - base
            fewest, most = stream.received(previous.ended_after), stream.generated(poll.ended_before)
            check(
                fewest <= counted <= most, f"{counted:g} tokens counted when the client had received {fewest} to {most}"
            )
            if stream.streaming_during(previous, poll):
                live += 1
                check(poll.status == "running", f"{poll.status} during a stream")
                rate = poll.value("tokens_per_second")
                check(rate is not None, "no tokens per second during a stream")
                slowest, fastest = stream.rates_generated(previous, poll)
                check(
                    0.85 * slowest <= rate <= 1.15 * fastest,
                    f"{rate:.1f} tokens per second exported, {slowest:.1f} to {fastest:.1f} received",
                )
        if live < 2:
            raise TooShortError("the stream was too short")
        counted = done.value("generated_tokens_total") - base
        check(counted == tokens, f"{counted:g} tokens counted of {tokens}")

    def four_on_two_slots(self):
        tokens = self.server.tokens_for(seconds=2.5 * self.length_factor)
        before = self.wait_until_idle()
        streams = [self.server.stream(tokens) for _ in range(4)]
        for stream in streams:
            stream.wait()
        done = self.wait_until_idle(max(streams, key=lambda stream: stream.ended_at))
        started = sorted(stream.first_at for stream in streams)
        ended = sorted(stream.last_at for stream in streams)

        full = 0
        polls = self.exporter.between(before, done)
        for earlier, poll in zip(polls, polls[1:]):
            if started[1] < earlier.ended_after and poll.ended_before < ended[0]:
                full += 1
                check(poll.status == "running", f"{poll.status} with two requests running and two waiting")
                for name, value in {"requests_processing": 2, "requests_deferred": 2, "slots_busy": 2}.items():
                    check(
                        poll.value(name) == value,
                        f"{name} is {poll.value(name)} with two requests running and two waiting",
                    )
        if not full:
            raise TooShortError("the requests were too short")
        for name in ("requests_processing", "requests_deferred", "slots_busy"):
            check(done.value(name) == 0, f"{name} is {done.value(name)} afterwards")
        counted = done.value("generated_tokens_total") - before.value("generated_tokens_total")
        check(counted == 4 * tokens, f"{counted:g} tokens counted of {4 * tokens}")

    def disconnect(self):
        before = self.wait_until_idle()
        count_before = self.server.counter("tokens_predicted_total")
        stream = self.server.stream(1500, disconnect_after=60).wait()
        settled = self.wait_until_idle(stream)
        # The server generates a token or two more before it notices, and counts them; or only the slot
        # keeps their number.
        generated = self.server.counter("tokens_predicted_total") - count_before
        if generated == 0:
            self.unreported.append("tokens of disconnected clients, except in its slots")
            generated = self.server.slot_tasks()[-1]["n_decoded"]
        counted = settled.value("generated_tokens_total") - before.value("generated_tokens_total")
        check(60 <= generated < 1500, f"the server reports {generated:g} generated tokens")
        check(counted == generated, f"{counted:g} tokens counted of {generated:g}")
        done = self.wait_until_idle(self.server.stream(20, prompt="And then").wait())
        counted = done.value("generated_tokens_total") - settled.value("generated_tokens_total")
        check(counted == 20, f"{counted:g} tokens of the next request counted of 20")

    def long_prompt(self):
        prompt = self.server.prompt_of_tokens(2000)
        before = self.wait_until_idle()
        stream = self.server.stream(20, prompt=prompt)
        latencies = []
        while not stream.arrivals and not stream.ended_at:
            sent_at = time.monotonic()
            check(self.server.get("/health")[0] == 200, "/health failed")
            latencies.append(time.monotonic() - sent_at)
            time.sleep(0.1)
        stream.wait()
        done = self.wait_until_idle(stream)
        if done.errors(reason="timeout") > before.errors(reason="timeout"):
            self.unreported.append("counters while it reads a long prompt")

        polls = self.exporter.between(before, done)
        during = [
            poll
            for earlier, poll in zip(polls, polls[1:])
            if stream.sent_at + GRACE <= earlier.ended_after and poll.ended_before <= stream.first_at
        ]
        for earlier, poll in zip(polls, polls[1:]):
            check(poll.value("up") == 1, "down during the prompt")
            took = poll.ended_before - earlier.ended_after
            check(took <= INTERVAL + TIMEOUT + GRACE, f"a poll came {took:.1f} s after the previous one")
        for poll in during:
            check(poll.status == "running", f"{poll.status} during the prompt")
        rates = [poll.value("tokens_per_second") for poll in during]
        check(len([rate for rate in rates if rate]) <= 1, "a generation rate during the prompt")
        slowest = max(latencies, default=0)
        check(slowest < GRACE, f"another client's /health took {slowest:.1f} s")
        for name, expected in {"prompt_tokens_total": 2000, "generated_tokens_total": 20}.items():
            counted = done.value(name) - before.value(name)
            check(counted == expected, f"{name} increased by {counted:g}, not {expected}")

    def restart(self):
        before = self.wait_until_idle()
        interrupted = self.server.stream(3000).wait_for_tokens(20)
        killed_at = time.monotonic()
        self.server.kill()
        down = self.exporter.wait_for(lambda poll: poll.ended_before > killed_at and poll.value("up") == 0)
        took = down.ended_before - killed_at
        check(took <= INTERVAL + TIMEOUT + GRACE, f"up for {took:.1f} s after the server was killed")
        check(not down.model_series, f"{sorted(down.model_series)} of a killed server")
        # Now with the default number of HTTP threads.
        self.server.command = [word for word in self.server.command if word not in HTTP_THREADS]
        self.server.start()
        restarted = self.exporter.wait_for_status("idle", since=down.ended_before, timeout=60)
        check(restarted.value("generated_tokens_total") == 0, "counters of the killed process")
        done = self.wait_until_idle(self.server.stream(10).wait())
        counted = done.value("generated_tokens_total")
        check(counted == 10, f"{counted:g} tokens counted of 10 after the restart")
        for poll in self.exporter.between(down, restarted):
            check(poll.status in (None, "loading", "idle"), f"{poll.status} while it started")
        for poll in self.exporter.between(before, done):
            rate = poll.value("tokens_per_second") or 0
            check(0 <= rate <= 2 * max(interrupted.tokens_per_second, 20), f"{rate:.1f} tokens per second")
        if not self.answers_while_full():
            self.unreported.append("anything while requests hold all its HTTP threads")

    def answers_while_full(self):
        """Whether the server answers /health during four requests."""
        streams = [self.server.stream(60) for _ in range(4)]
        while sum(bool(stream.arrivals) for stream in streams) < 2:
            time.sleep(0.01)
        try:
            return self.server.get("/health", timeout=TIMEOUT)[0] == 200
        except OSError:
            return False
        finally:
            for stream in streams:
                stream.wait()

    def sleep(self):
        if not self.has_sleep_mode():
            self.unreported.append("sleep")
            return NOT_APPLICABLE
        self.server.kill()
        self.server.command += ["--sleep-idle-seconds", SLEEP]
        self.server.start().wait_until_loaded()
        self.start_exporter(*(["--sleep-idle-seconds", SLEEP] if self.build < ANSWERS_WHILE_BUSY else []))
        self.exporter.wait_for_status("idle")
        stream = self.server.stream(30).wait()
        while not self.server.is_sleeping():
            late = time.monotonic() - stream.ended_at
            check(late < 2 * SLEEP + 4, f"still awake {late:.0f} s after its last request")
            time.sleep(0.2)
        asleep = self.exporter.poll_started_after(time.monotonic())
        while time.monotonic() < asleep.ended_before + STAYS_ASLEEP:
            check(self.server.is_sleeping(), f"woken after {time.monotonic() - asleep.ended_before:.1f} s")
            time.sleep(0.25)
        still_asleep = self.exporter.poll_started_after(time.monotonic())
        for poll in [asleep, *self.exporter.between(asleep, still_asleep)]:
            check(poll.status == "sleeping", f"{poll.status} during sleep")
            counted = poll.value("generated_tokens_total")
            check(counted == 30, f"{counted} tokens counted of 30 during sleep")
        with one_core():
            waking = self.server.stream(170).wait()
            done = self.wait_until_idle(waking)
        first = self.exporter.poll_started_after(waking.sent_at)
        second = self.exporter.wait_for_polls(1, since=first)
        if second.ended_before < waking.last_at:
            check(second.status in ("loading", "running"), f"{second.status} two polls after the wake-up")
        # Polls after the model was loaded.
        during = [poll for poll in self.exporter.polls if waking.streaming_during(poll, poll)]
        check(any(poll.status == "running" for poll in during), "never running after the wake-up")
        counted = done.value("generated_tokens_total")
        check(counted == 200, f"{counted:g} tokens counted of 200 after the wake-up")

    def has_sleep_mode(self):
        code = "import xllamacpp; print(hasattr(xllamacpp.CommonParams(), 'sleep_idle_seconds'))"
        environment = os.environ | {"PYTHONPATH": str(LLAMA_CPP / f"b{self.build}")}
        done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
        return done.stdout.strip() == "True"

    def row(self):
        """The row of the document, and whether every scenario passed."""
        cells = self.cells()
        if self.exporter:
            self.collect_families()
            self.unreported += [words for name, words in REPORTED.items() if name not in self.families]
        passed = all(cell in (PASSED, NOT_APPLICABLE) or cell.startswith(SERVER) for cell in cells.values())
        columns = [
            f"b{self.build}",
            (LLAMA_CPP / f"b{self.build}" / ".complete").read_text().strip(),
            *(cells[scenario].replace("|", "\\|") for scenario in SCENARIOS),
            "; ".join(dict.fromkeys(self.unreported)) or "nothing",
            str(datetime.date.today()),
        ]
        return "| " + " | ".join(columns) + " |", passed


INTRODUCTION = """\
# Builds of llama.cpp

The exporter was tested with {number} builds of llama.cpp's server, from {oldest} to {newest}, with a real model
(gemma-3-270m, Q4_K_M, on the CPU, two slots) and real requests. This file was written by

    scripts/compatibility

which downloads each build from PyPI's `xllamacpp` and exits with status 1 if a scenario fails. Made with
llamacpp-exporter {version} on {machine}, at the date in the last column.

| scenario | ✓ means |
| --- | --- |
| idle | state, slots, context size and model are correct, and all counters are 0 |
| one stream | at each poll, the counter was between the tokens that the client had received at the previous poll and at this one; the rate was within 15% of the rate of received tokens; at the end the counter was exact |
| four on two slots | two requests running, two waiting, state `running`; then `idle`, with every token counted |
| disconnect | a client disconnected after 60 tokens: all generated tokens were counted, and those of the next request exactly |
| long prompt | 2,000 tokens, with a timeout of 1 s: up and `running` throughout, no poll late, no stale rate, `/health` answered to another client at once, both counters exact |
| restart | the server was killed during a stream: down within one interval and one timeout, with no values of its model; then up with counters of the new process and no wrong rate |
| sleep | with `--sleep-idle-seconds {sleep}`, polled every second: the server fell asleep and was left asleep, counters were kept, its wake-up was seen within two polls, every token was counted. Before b10566 the exporter had `--sleep-idle-seconds`, too |

–: not applicable. The server has 8 HTTP threads (`--threads-http`) until the scenario "restart", and its default number
from then on.

| what a build does not report | effect |
| --- | --- |
| its build | the label `version` holds what the server reports instead; the exporter assumes that a poll of `/metrics` keeps this server awake |
| quantization | `llamacpp_model_info` has no such label |
| reused prompt tokens | no `llamacpp_prompt_tokens_cached_total` |
| context in use | no `llamacpp_context_size_tokens` and no `llamacpp_context_tokens` |
| tokens of disconnected clients, except in its slots | the server's counter loses the tokens of disconnected clients; the exporter reads them from the slot |
| counters while it reads a long prompt | `/metrics` is answered more than a second late: until then the model is `running`, its counters do not move, and rates are absent |
| anything while requests hold all its HTTP threads | by default the server has max(slots + 2, cores − 1) HTTP threads; while each handles a request, it does not answer even `/health`, with or without the exporter. `llamacpp_up` is 0 until a request ends; then all tokens are counted |
| sleep | the build has no sleep mode |

"b8400" is an estimate: xllamacpp 0.2.14 does not report its build, which lies between b8352 and b8672.

"""

HEADER = ["build", "xllamacpp", *SCENARIOS, "what it does not report", "run on"]


def write(rows):
    """Adds these rows to the document or replaces them; other rows stay."""
    kept = {}
    if DOCUMENT.exists():
        kept = {
            int(found[1]): found[0] for found in re.finditer(r"^\| b(\d+) \|.*$", DOCUMENT.read_text(), re.MULTILINE)
        }
    kept |= rows
    builds = sorted(kept)
    version = subprocess.run([BINARY, "--version"], capture_output=True, text=True).stdout.split()[1]
    text = INTRODUCTION.format(
        number=len(builds),
        oldest=f"b{builds[0]}",
        newest=f"b{builds[-1]}",
        version=version,
        machine=f"{platform.system()}, {platform.machine()}, {os.cpu_count()} cores",
        sleep=SLEEP,
    )
    text += "\n".join(["| " + " | ".join(HEADER) + " |", "| --- " * len(HEADER) + "|", *(kept[b] for b in builds)])
    DOCUMENT.parent.mkdir(exist_ok=True)
    DOCUMENT.write_text(text + "\n")


def say(message):
    print(message, file=sys.stderr, flush=True)


def setup(*what):
    return subprocess.run([ROOT / "scripts" / "setup", *what], check=True, stdout=subprocess.PIPE, text=True).stdout


def main():
    known = [int(number) for number in setup("--builds").split()]
    unknown = [word for word in sys.argv[1:] if not word.isdigit() or int(word) not in known]
    if unknown:
        sys.exit(f"scripts/compatibility: no build {unknown[0]}: scripts/setup --builds lists them")
    all_passed = True
    for build in [int(word) for word in sys.argv[1:]] or known:
        setup(str(build))
        say(f"b{build}")
        row, passed = BuildTest(build).row()
        print(row, flush=True)
        write({build: row})
        all_passed &= passed
    return 0 if all_passed else 1


if __name__ == "__main__":
    # A signal must end the servers, too.
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: sys.exit(1))
    sys.exit(main())
