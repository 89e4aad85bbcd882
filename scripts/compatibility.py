"""What scripts/compatibility does, once what it needs is installed."""

import datetime
import json
import os
import platform
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests" / "real"))

from conftest import cores, take  # noqa: E402
from exporter import BINARY, Exporter  # noqa: E402
from llama import ANSWERS_WHILE_BUSY, INSTALLED, LlamaServer, prompt_of_tokens  # noqa: E402

DOCUMENT = ROOT / "docs" / "compatibility.md"
LOGS = ROOT / "target" / "compatibility"

INTERVAL = 1.0
TIMEOUT = 1.0
# For what the machine adds: a process that has to wait for a core, and the time between two scrapes.
GRACE = 1.0
# Enough for four requests and those who ask how it goes.
HTTP_THREADS = 8
SLEEP = 3
STAYS_ASLEEP = 5
SCENARIOS = ("idle", "one stream", "four on two slots", "hung up", "long prompt", "restart", "sleep")
RIGHT = "✓"
NOT_POSSIBLE = "–"
# How a cell begins that is no fault of the exporter.
SERVER = "the server"

# What the exporter tells of a llama-server that tells it, in words.
FACTS = {
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


class Wrong(Exception):
    """What was wrong, in words."""


class TooShort(Exception):
    """All was over before anything could be seen."""


def check(right, words):
    if not right:
        raise Wrong(words)


class Run:
    """One build, from its first scenario to its last."""

    def __init__(self, build):
        self.build = build
        self.untold = []
        self.longer = 1
        self.families = set()
        folder = LOGS / f"b{build}"
        folder.mkdir(parents=True, exist_ok=True)
        for old in folder.iterdir():
            old.unlink()
        self.folder = folder
        self.server = LlamaServer(build, folder / "server.log", threads_http=HTTP_THREADS)
        self.exporter = None

    def cells(self):
        """What came of each scenario."""
        cells = {}
        try:
            self.server.start().wait_until_loaded()
            self.watch()
            for scenario in SCENARIOS:
                began = time.monotonic()
                cells[scenario] = self.outcome(getattr(self, scenario.replace(" ", "_")))
                say(f"  {scenario}: {cells[scenario]} ({time.monotonic() - began:.1f} s)")
        except AssertionError as error:
            say(f"  {error}")
            cells |= {scenario: f"{SERVER} did not start" for scenario in SCENARIOS if scenario not in cells}
        finally:
            self.server.kill()
            if self.exporter:
                self.exporter.stop()
        return cells

    def outcome(self, scenario):
        try:
            if scenario == self.sleep:
                return scenario() or RIGHT
            with one_core():
                return self.long_enough(scenario) or RIGHT
        except (Wrong, TooShort, AssertionError, OSError) as error:
            self.keep_polls(scenario.__name__)
            if self.exporter.process.poll() is not None:
                self.watch()
                return "the exporter ended"
            code = self.server.process.poll()
            if code is not None:
                self.server.start().wait_until_loaded()
                return f"{SERVER} died ({signal.Signals(-code).name if code < 0 else f'status {code}'})"
            return (str(error) or repr(error)).splitlines()[0]

    def long_enough(self, scenario):
        """Runs it with longer requests if other work on this machine made it look slow when it was tried out."""
        for self.longer in (1, 2, 4):
            try:
                return scenario()
            except TooShort as error:
                last = error
        raise last

    def keep_polls(self, scenario):
        """For whoever looks for the reason."""
        with open(self.folder / f"polls-{scenario}.txt", "w") as file:
            for poll in self.exporter.polls[-30:]:
                file.write(f"--- poll {poll.number}, ended {poll.after:.3f} to {poll.seen:.3f}\n{poll.text}")

    def watch(self, **settings):
        """Starts the exporter, anew if it runs."""
        if self.exporter:
            self.remember()
            self.exporter.stop()
        number = len(list(self.folder.glob("exporter-*.log")))
        log = self.folder / f"exporter-{number}.log"
        settings = {"interval": f"{INTERVAL:g}s", "timeout": f"{TIMEOUT:g}s"} | settings
        self.exporter = Exporter(self.server.url, log, **settings)

    def remember(self):
        """Which families there were."""
        for poll in self.exporter.polls:
            self.families |= {sample.name.removeprefix("llamacpp_") for sample in poll.samples}

    def at_rest(self, stream=None):
        """A poll that began after all was over, and found nothing going on."""
        since = self.exporter.poll_begun_after(stream.ended_at if stream else time.monotonic()).after
        return self.exporter.wait_for_status("idle", since=since)

    def idle(self):
        idle = self.exporter.wait_for_status("idle")
        for name in ("generated_tokens_total", "prompt_tokens_total", "requests_processing", "requests_deferred"):
            check(idle.value(name) == 0, f"{name} is {idle.value(name)}")
        for name, value in {"up": 1, "slots": 2, "slots_busy": 0, "max_context_size_tokens": 4096}.items():
            check(idle.value(name) == value, f"{name} is {idle.value(name)}")
        check(idle.value("model_parameters") == 268098176, f"model_parameters is {idle.value('model_parameters')}")
        check(idle.errors() == 0, "questions failed")
        version = next(s.labels.get("version") for s in idle.samples if s.name == "llamacpp_server_info")
        if not (version or "").startswith(f"b{self.build}-"):
            self.untold.append("its build")
        if not any(s.labels.get("quantization") for s in idle.samples if s.name == "llamacpp_model_info"):
            self.untold.append("quantization")

    def one_stream(self):
        own = self.server.counter("tokens_predicted_total")
        tokens = self.server.tokens_for(seconds=5 * self.longer)
        before = self.at_rest()
        base = before.value("generated_tokens_total")
        check(base == own + 24, f"{base:g} tokens counted of {own + 24:g}")
        stream = self.server.stream(tokens).wait()
        done = self.at_rest(stream)

        live = 0
        previous = before
        for poll in self.exporter.between(before, done):
            counted = poll.value("generated_tokens_total") - base
            fewest, most = stream.received(previous.after), stream.generated(poll.seen)
            check(
                fewest <= counted <= most, f"{counted:g} tokens counted when the client had received {fewest} to {most}"
            )
            if stream.first_at < previous.after and poll.seen < stream.last_at:
                live += 1
                check(poll.status == "running", f"{poll.status} while it streamed")
                told = poll.value("tokens_per_second")
                check(told is not None, "no tokens per second while it streamed")
                # As far as it is known when the polls ended.
                slowest, fastest = stream.rates_generated(previous, poll)
                check(
                    0.85 * slowest <= told <= 1.15 * fastest,
                    f"{told:.1f} tokens per second told, {slowest:.1f} to {fastest:.1f} received",
                )
            previous = poll
        if live < 2:
            raise TooShort("the stream was too short to see anything")
        counted = done.value("generated_tokens_total") - base
        check(counted == tokens, f"{counted:g} tokens counted of {tokens}")

    def four_on_two_slots(self):
        tokens = self.server.tokens_for(seconds=2.5 * self.longer)
        before = self.at_rest()
        streams = [self.server.stream(tokens) for _ in range(4)]
        for stream in streams:
            stream.wait()
        done = self.at_rest(max(streams, key=lambda stream: stream.ended_at))
        begun = sorted(stream.first_at for stream in streams)
        ended = sorted(stream.last_at for stream in streams)

        full = 0
        polls = self.exporter.between(before, done)
        for earlier, poll in zip(polls, polls[1:]):
            if begun[1] < earlier.after and poll.seen < ended[0]:
                full += 1
                check(poll.status == "running", f"{poll.status} with two at work and two waiting")
                for name, value in {"requests_processing": 2, "requests_deferred": 2, "slots_busy": 2}.items():
                    check(poll.value(name) == value, f"{name} is {poll.value(name)} with two at work and two waiting")
        if not full:
            raise TooShort("the requests were too short to see anything")
        for name in ("requests_processing", "requests_deferred", "slots_busy"):
            check(done.value(name) == 0, f"{name} is {done.value(name)} afterwards")
        counted = done.value("generated_tokens_total") - before.value("generated_tokens_total")
        check(counted == 4 * tokens, f"{counted:g} tokens counted of {4 * tokens}")

    def hung_up(self):
        before = self.at_rest()
        own = self.server.counter("tokens_predicted_total")
        stream = self.server.stream(1500, hang_up_after=60).wait()
        settled = self.at_rest(stream)
        # The server generates a token or two more before it notices, and counts
        # them, or keeps their number in the slot alone.
        generated = self.server.counter("tokens_predicted_total") - own
        if generated == 0:
            self.untold.append("hung-up tokens, but in its slots")
            generated = self.tokens_of_last_task()
        counted = settled.value("generated_tokens_total") - before.value("generated_tokens_total")
        check(60 <= generated < 1500, f"the server says that it generated {generated:g}")
        check(counted == generated, f"{counted:g} tokens counted of {generated:g}")
        done = self.at_rest(self.server.stream(20, prompt="And then").wait())
        counted = done.value("generated_tokens_total") - settled.value("generated_tokens_total")
        check(counted == 20, f"{counted:g} tokens of the next request counted of 20")

    def tokens_of_last_task(self):
        slots = json.loads(self.server.get("/slots")[1])
        task = max((slot for slot in slots if slot.get("next_token")), key=lambda slot: slot["id_task"])["next_token"]
        return (task[0] if isinstance(task, list) else task)["n_decoded"]

    def long_prompt(self):
        prompt = prompt_of_tokens(self.server, 2000)
        before = self.at_rest()
        stream = self.server.stream(20, prompt=prompt)
        health = []
        while not stream.arrivals and not stream.ended_at:
            asked = time.monotonic()
            check(self.server.get("/health")[0] == 200, "/health failed")
            health.append(time.monotonic() - asked)
            time.sleep(0.1)
        stream.wait()
        done = self.at_rest(stream)
        if done.errors(reason="timeout") > before.errors(reason="timeout"):
            self.untold.append("counters while it reads a long prompt")

        polls = self.exporter.between(before, done)
        during = [
            (earlier, poll)
            for earlier, poll in zip(polls, polls[1:])
            if stream.sent_at + GRACE <= earlier.after and poll.seen <= stream.first_at
        ]
        for earlier, poll in zip(polls, polls[1:]):
            check(poll.value("up") == 1, "down while it read a prompt")
            took = poll.seen - earlier.after
            check(took <= INTERVAL + TIMEOUT + GRACE, f"a poll came {took:.1f} s after the one before")
        for earlier, poll in during:
            check(poll.status == "running", f"{poll.status} while it read a prompt")
        rates = [poll.value("tokens_per_second") for _, poll in during]
        check(len([rate for rate in rates if rate]) <= 1, "a generation rate while it read a prompt")
        check(max(health, default=0) < GRACE, f"another client's /health took {max(health, default=0):.1f} s")
        for name, wanted in {"prompt_tokens_total": 2000, "generated_tokens_total": 20}.items():
            counted = done.value(name) - before.value(name)
            check(counted == wanted, f"{name} grew by {counted:g}, not {wanted}")

    def restart(self):
        before = self.at_rest()
        cut = self.server.stream(3000).wait_for_tokens(20)
        killed = time.monotonic()
        self.server.kill()
        down = self.exporter.wait_for(lambda poll: poll.seen > killed and poll.value("up") == 0)
        took = down.seen - killed
        check(took <= INTERVAL + TIMEOUT + GRACE, f"up for {took:.1f} s after its death")
        check(not down.model_series, f"{sorted(down.model_series)} of a dead server")
        # This time it has as many HTTP threads as it takes by itself.
        self.server.command = [word for word in self.server.command if word not in ("--threads-http", str(HTTP_THREADS))]
        self.server.start()
        back = self.exporter.wait_for_status("idle", since=down.seen, patience=60)
        check(back.value("generated_tokens_total") == 0, "counters of its earlier life")
        done = self.at_rest(self.server.stream(10).wait())
        counted = done.value("generated_tokens_total")
        check(counted == 10, f"{counted:g} tokens counted of 10 in its new life")
        for poll in self.exporter.between(down, back):
            check(poll.status in (None, "loading", "idle"), f"{poll.status} while it started")
        for poll in self.exporter.between(before, done):
            rate = poll.value("tokens_per_second") or 0
            check(0 <= rate <= 2 * max(cut.tokens_per_second, 20), f"{rate:.1f} tokens per second")
        if not self.answers_others():
            self.untold.append("anything while requests hold all its HTTP threads")

    def answers_others(self):
        """Whether /health is answered, as it always should be, while four requests are there."""
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
        if not self.may_sleep():
            self.untold.append("sleep")
            return NOT_POSSIBLE
        self.server.kill()
        self.server.command += ["--sleep-idle-seconds", str(SLEEP)]
        self.server.start().wait_until_loaded()
        self.watch(sleep_idle_seconds=SLEEP if self.build < ANSWERS_WHILE_BUSY else None)
        self.exporter.wait_for_status("idle")
        stream = self.server.stream(30).wait()
        while not self.server.is_sleeping():
            late = time.monotonic() - stream.ended_at
            check(late < 2 * SLEEP + 4, f"still awake {late:.0f} s after its last work")
            time.sleep(0.2)
        asleep = self.exporter.poll_begun_after(time.monotonic())
        while time.monotonic() < asleep.seen + STAYS_ASLEEP:
            check(self.server.is_sleeping(), f"woken {time.monotonic() - asleep.seen:.1f} s later")
            time.sleep(0.25)
        still = self.exporter.poll_begun_after(time.monotonic())
        for poll in [asleep, *self.exporter.between(asleep, still)]:
            check(poll.status == "sleeping", f"{poll.status} while it slept")
            counted = poll.value("generated_tokens_total")
            check(counted == 30, f"{counted} tokens counted of 30 while it slept")
        with one_core():
            waking = self.server.stream(170).wait()
            done = self.at_rest(waking)
        begun = self.exporter.poll_begun_after(waking.sent_at)
        second = self.exporter.wait_for(lambda poll: poll.number == begun.number + 1)
        if second.seen < waking.last_at:
            check(second.status in ("loading", "running"), f"{second.status} two polls after it was woken")
        # It loads its model first, which takes as long as it takes.
        during = [poll for poll in self.exporter.polls if waking.first_at < poll.after and poll.seen < waking.last_at]
        check(any(poll.status == "running" for poll in during), "never seen to run after it was woken")
        counted = done.value("generated_tokens_total")
        check(counted == 200, f"{counted:g} tokens counted of 200 after it woke")

    def may_sleep(self):
        """Whether there is such a setting in this build."""
        question = "import xllamacpp; print(hasattr(xllamacpp.CommonParams(), 'sleep_idle_seconds'))"
        environment = os.environ | {"PYTHONPATH": str(INSTALLED / f"b{self.build}")}
        answer = subprocess.run([sys.executable, "-c", question], env=environment, capture_output=True, text=True)
        return answer.stdout.strip() == "True"

    def row(self):
        """The document's row, and whether all of it is right."""
        cells = self.cells()
        if self.exporter:
            self.remember()
            self.untold += [words for name, words in FACTS.items() if name not in self.families]
        right = all(cell in (RIGHT, NOT_POSSIBLE) or cell.startswith(SERVER) for cell in cells.values())
        columns = [
            f"b{self.build}",
            (INSTALLED / f"b{self.build}" / ".complete").read_text().strip(),
            *(cells[scenario].replace("|", "\\|") for scenario in SCENARIOS),
            "; ".join(dict.fromkeys(self.untold)) or "nothing",
            str(datetime.date.today()),
        ]
        return "| " + " | ".join(columns) + " |", right


class one_core:  # noqa: N801
    """The tests of tests/real compute on another core meanwhile."""

    def __enter__(self):
        while not (lock := next(filter(None, map(take, cores())), None)):
            time.sleep(0.1)
        self.lock = lock

    def __exit__(self, *_):
        self.lock.close()


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
| hung up | a client disconnected after 60 tokens: all generated tokens were counted, and those of the next request exactly |
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
| hung-up tokens, but in its slots | the server's counter loses the tokens of disconnected clients; the exporter reads them from the slot |
| counters while it reads a long prompt | `/metrics` is answered more than a second late: until then the model is `running`, its counters do not move, and rates are absent |
| anything while requests hold all its HTTP threads | by default the server has max(slots + 2, cores − 1) HTTP threads; while each handles a request, it does not answer even `/health`, with or without the exporter. `llamacpp_up` is 0 until a request ends; then all tokens are counted |
| sleep | the build has no sleep mode |

"b8400" is an estimate: xllamacpp 0.2.14 does not report its build, which lies between b8352 and b8672.

"""

HEADER = ["build", "xllamacpp", *SCENARIOS, "what it does not report", "run on"]


def write(rows):
    """Puts these rows into the document, which keeps its others."""
    kept = {}
    if DOCUMENT.exists():
        kept = {int(found[1]): found[0] for found in re.finditer(r"^\| b(\d+) \|.*$", DOCUMENT.read_text(), re.MULTILINE)}
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


def say(words):
    print(words, file=sys.stderr, flush=True)


def setup(*what):
    return subprocess.run([ROOT / "scripts" / "setup", *what], check=True, stdout=subprocess.PIPE, text=True).stdout


def main():
    known = [int(number) for number in setup("--builds").split()]
    unknown = [word for word in sys.argv[1:] if not word.isdigit() or int(word) not in known]
    if unknown:
        sys.exit(f"scripts/compatibility: no build {unknown[0]}: scripts/setup --builds lists them")
    all_right = True
    for build in [int(word) for word in sys.argv[1:]] or known:
        setup(str(build))
        say(f"b{build}")
        row, right = Run(build).row()
        print(row, flush=True)
        write({build: row})
        all_right &= right
    return 0 if all_right else 1


if __name__ == "__main__":
    # Its servers end with it, however it is asked to.
    for asked in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(asked, lambda *_: sys.exit(1))
    sys.exit(main())
