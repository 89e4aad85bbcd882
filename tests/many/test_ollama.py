"""Ollama, from recordings, with real llama-servers as the processes of its models."""

import hashlib
import json
import os
import sys

import pytest

from support import MODEL, MODEL_PARAMETERS, ROOT
from support.exporter import run_check
from support.http_client import free_port, responds
from support.llama_server import LlamaServerProgram
from support.process import NOBODY, ChildProcess, needs_root
from support.replay import recorded, with_json
from support.wait import wait_for

KIND = "ollama"
GEMMA, TINY = "gemma3:270m", "tiny:latest"
IDLE, RUNNING, UNLOADED = "idle", "running", "unloaded"
WEIGHTS = "application/vnd.ollama.image.model"

# What a poll of Ollama itself requests. Others may load a model.
HARMLESS = {"/", "/health", "/api/ps", "/api/tags", "/api/version", "/engines/ps", "/running"}


class Store:
    """A store of Ollama's, below a folder."""

    def __init__(self, folder):
        self.folder = folder

    def add(self, name, content):
        """Adds a model; returns the path of its blob. The content only makes the digest: each blob is the real model."""
        digest = hashlib.sha256(content.encode()).hexdigest()
        blob = self.folder / "blobs" / f"sha256-{digest}"
        blob.parent.mkdir(exist_ok=True)
        if not blob.exists():
            os.symlink(MODEL, blob)
        model, tag = name.split(":")
        manifest = self.folder / "manifests" / "registry.ollama.ai" / "library" / model / tag
        manifest.parent.mkdir(parents=True, exist_ok=True)
        layer = {"mediaType": WEIGHTS, "digest": f"sha256:{digest}", "size": 1}
        manifest.write_text(json.dumps({"schemaVersion": 2, "layers": [layer]}))
        return blob


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path)


class OllamaChild(LlamaServerProgram):
    """A llama-server with the arguments that Ollama gives it, but for the log file; without an alias."""

    def __init__(self, log_path, blob, metrics, uid=None):
        environment = {"LLAMA_ARG_ENDPOINT_METRICS": "1"} if metrics else {}
        super().__init__(log_path, model=blob, uid=uid, environment=environment)
        own = self.command.index("--alias")
        self.command[own:] = [
            "--port", self.port, "--host", "127.0.0.1", "--no-webui", "--offline", "-c", 4096, "-np", 1,
            "--log-verbosity", 4, "--no-log-prefix", "--no-log-timestamps", "--flash-attn", "auto", "-b", 512,
            "-ub", 512, "--context-shift", "--keep", 4, "-t", 1, "--no-warmup", "--fit", "off",
        ]  # fmt: skip


@pytest.fixture
def start_child(start, log_path):
    """Starts the llama-server of a model: a child of the process that replays Ollama."""

    def start_child(blob, metrics=True, log=None):
        return start(OllamaChild(log or log_path("child"), blob, metrics))

    return start_child


@pytest.mark.parametrize(
    "state, expected",
    {
        "none-loaded": {GEMMA: UNLOADED, TINY: UNLOADED},
        "one-loaded": {GEMMA: IDLE, TINY: UNLOADED},
        "two-loaded": {GEMMA: IDLE, TINY: IDLE},
    }.items(),
)
def test_states_and_facts_without_the_processes(state, expected, replay, start_exporter):
    server = replay(recorded(KIND, state))
    exporter = start_exporter(server.url, interval="200ms")
    poll = exporter.wait_for(lambda poll: poll.value("up") == 1)
    later = exporter.wait_for_polls(3, since=poll)
    assert later.model_statuses == expected
    assert later.server_kind == KIND
    assert later.labels("server_info")["version"] == "0.0.0"
    assert later.value("model_parameters", model=TINY) == 268100000
    assert later.value("model_size_bytes", model=TINY) == 253113388
    assert later.value("model_training_context_tokens", model=GEMMA) == 32768
    loaded = expected[GEMMA] == IDLE
    assert later.value("max_context_size_tokens", model=GEMMA) == (4096 if loaded else None)
    assert later.value("model_info", model=GEMMA, quantization="Q4_K_M", architecture="gemma3") == 1
    assert not later.families(GEMMA) & {"generated_tokens_total", "slots", "memory_usage_bytes"}
    assert later.errors() == 0
    # Nothing that could load a model or keep it loaded.
    assert server.methods == {"GET"}
    assert server.paths <= HARMLESS | {"/props"}
    # For each request Ollama reads all of its manifests.
    assert server.count("/api/tags") == 1


def test_models_in_the_cloud_are_left_out(replay, start_exporter):
    def add_cloud(document):
        host = "https://ollama.com:443"
        document["models"].insert(0, {"name": "gpt-oss:120b-cloud", "size": 384, "remote_host": host})

    server = replay(with_json(recorded(KIND, "none-loaded"), "/api/tags", add_cloud))
    exporter = start_exporter(server.url, interval="200ms")
    poll = exporter.wait_for(lambda poll: poll.value("up") == 1)
    assert poll.model_statuses == {GEMMA: UNLOADED, TINY: UNLOADED}


def test_a_server_that_imitates_ollama_is_none(replay, start_exporter):
    responses = recorded(KIND, "one-loaded")
    server = replay({path: answer for path, answer in responses.items() if path != "/"})
    exporter = start_exporter(server.url, interval="200ms")
    poll = exporter.wait_for(lambda poll: poll.number >= 3)
    assert poll.value("up") == 0


@pytest.mark.parametrize("metrics", [True, False])
def test_a_model_is_read_from_its_own_server(metrics, store, replay, start_child, start_exporter):
    blob = store.add(GEMMA, "gemma")
    store.add(TINY, "tiny")
    server = replay(recorded(KIND, "none-loaded"))
    exporter = start_exporter(server.url, interval="500ms")
    exporter.wait_for(lambda poll: poll.model_statuses == {GEMMA: UNLOADED, TINY: UNLOADED})

    child = start_child(blob, metrics)
    # While it loads, Ollama does not list it.
    exporter.wait_for(lambda poll: poll.model_status(GEMMA) in (IDLE, "loading"))
    server.responses = recorded(KIND, "one-loaded")
    idle = exporter.wait_for(lambda poll: poll.model_status(GEMMA) == IDLE and poll.value("slots", model=GEMMA) == 1)
    assert idle.model_statuses == {GEMMA: IDLE, TINY: UNLOADED}
    assert idle.value("model_parameters", model=GEMMA) == MODEL_PARAMETERS
    assert idle.value("max_context_size_tokens", model=GEMMA) == 4096
    assert idle.value("memory_usage_bytes", model=GEMMA) > 0
    assert idle.value("kv_cache_limit_bytes", model=GEMMA) > 0
    # As Ollama spells it, as while the model is unloaded.
    assert idle.value("model_info", model=GEMMA, quantization="Q4_K_M", architecture="gemma3") == 1

    stream = child.stream(child.tokens_for(seconds=3)).wait()
    done = exporter.poll_started_after(stream.ended_at)
    during = [poll for poll in exporter.between(idle, done) if stream.streaming_during(poll, poll)]
    assert during
    for poll in during:
        assert poll.model_status(GEMMA) == RUNNING
        assert poll.value("slots_busy", model=GEMMA) == 1
    assert any(poll.value("tokens_per_second", model=GEMMA) for poll in during)
    if metrics:
        assert done.value("generated_tokens_total", model=GEMMA) == child.counter("tokens_predicted_total")
    else:
        assert "LLAMA_ARG_ENDPOINT_METRICS=1" in exporter.log
        assert "start llama-server with --metrics" not in exporter.log

    child.kill()
    server.responses = recorded(KIND, "none-loaded")
    gone = exporter.wait_for(lambda poll: poll.number > done.number and poll.model_status(GEMMA) == UNLOADED)
    assert not gone.families(GEMMA) & {"slots", "memory_usage_bytes", "tokens_per_second"}
    # The path of the blob is a name of no model.
    assert set(gone.model_statuses) == {GEMMA, TINY}


def test_two_models_at_once(store, replay, start_child, start_exporter):
    gemma, tiny = (start_child(store.add(name, name)) for name in (GEMMA, TINY))
    exporter = start_exporter(replay(recorded(KIND, "two-loaded")).url, interval="500ms")
    tiny.stream(16).wait()
    stream = gemma.stream(40).wait()
    done = exporter.poll_started_after(stream.ended_at)
    assert done.model_statuses == {GEMMA: IDLE, TINY: IDLE}
    assert done.value("generated_tokens_total", model=GEMMA) == 40
    assert done.value("generated_tokens_total", model=TINY) == 16


def test_the_names_of_one_blob_are_not_mixed_up(store, replay, start_child, start_exporter):
    """`ollama cp` gives a model another name; only the loaded one has a server."""
    blob = store.add(GEMMA, "same")
    assert store.add(TINY, "same") == blob
    start_child(blob)
    exporter = start_exporter(replay(recorded(KIND, "one-loaded")).url, interval="200ms")
    poll = exporter.wait_for(lambda poll: poll.value("slots", model=GEMMA) == 1)
    assert poll.model_statuses == {GEMMA: IDLE, TINY: UNLOADED}
    assert poll.value("slots", model=TINY) is None


def test_without_its_store_only_one_model_is_certain(store, replay, start_child, start_exporter):
    blobs = [store.add(name, name) for name in (GEMMA, TINY)]
    os.rename(store.folder / "manifests", store.folder / "elsewhere")
    start_child(blobs[0])
    server = replay(recorded(KIND, "one-loaded"))
    exporter = start_exporter(server.url, interval="200ms")
    exporter.wait_for(lambda poll: poll.value("slots", model=GEMMA) == 1)
    start_child(blobs[1])
    server.responses = recorded(KIND, "two-loaded")
    both = exporter.wait_for(lambda poll: poll.model_statuses == {GEMMA: IDLE, TINY: IDLE})
    later = exporter.wait_for_polls(2, since=both)
    assert later.value("slots", model=GEMMA) is None and later.value("slots", model=TINY) is None


class SeparateOllama(ChildProcess):
    """A process `ollama serve` that answers with recordings, and starts the llama-server `child`, if any."""

    def __init__(self, log_path, state, child=None):
        super().__init__(log_path)
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        command = child and list(map(str, child.command))
        script = log_path.parent / "serve"
        script.write_text(f"""
import ctypes, subprocess, threading
from support.replay import ReplayServer, recorded
if {command!r}:
    # The child ends with this process.
    subprocess.Popen({command!r}, preexec_fn=lambda: ctypes.CDLL(None).prctl(1, 9))
ReplayServer(recorded({KIND!r}, {state!r}), {self.port})
threading.Event().wait()
""")
        environment = (child.environment if child else os.environ) | {"PYTHONPATH": str(ROOT / "tests")}
        self.spawn(["ollama", "serve"], executable=sys.executable, cwd=script.parent, env=environment)
        wait_for(lambda: responds(self.port, "/api/ps"), "Ollama to answer")


@pytest.fixture
def start_ollama(log_path, request):
    def start(state, child=None):
        ollama = SeparateOllama(log_path("ollama"), state, child)
        request.addfinalizer(ollama.kill)
        return ollama

    return start


def test_the_servers_of_another_ollama_are_not_used(store, start_child, start_ollama, start_exporter):
    """Another Ollama on this machine may hold a model of the same name."""
    start_child(store.add(GEMMA, "gemma"))
    exporter = start_exporter(start_ollama("one-loaded").url, interval="200ms")
    first = exporter.wait_for(lambda poll: poll.model_status(GEMMA) == IDLE)
    later = exporter.wait_for_polls(5, since=first)
    assert later.model_statuses == {GEMMA: IDLE, TINY: UNLOADED}
    assert not later.families(GEMMA) & {"slots", "memory_usage_bytes", "generated_tokens_total"}


@needs_root
def test_another_user_cannot_tell_two_ollamas_apart(store, log_path, start_ollama):
    """It sees the name and the user of a process, and those of a socket, but not which process has it open."""
    child = OllamaChild(log_path("child"), store.add(GEMMA, "gemma"), metrics=True)
    first = start_ollama("one-loaded", child)
    wait_for(lambda: responds(child.port, "/health"), "the model to load")

    def shows_process(ollama):
        return "llamacpp_memory_usage_bytes" in run_check(ollama.url, uid=NOBODY).text

    wait_for(lambda: shows_process(first), "the process to be found")
    second = start_ollama("one-loaded")
    assert not shows_process(first) and not shows_process(second)
    second.kill()
    wait_for(lambda: shows_process(first), "the process to be found again")


def test_ollamas_log_is_used_while_one_model_is_loaded(store, tmp_path, replay, start_child, start_exporter):
    """The servers of all models write into one log, without a sign which of them wrote a line."""
    blobs = [store.add(name, name) for name in (GEMMA, TINY)]
    log = tmp_path / "ollama.log"
    log.write_text('time=2026-11-26T20:13:25.072Z level=INFO source=routes.go:2008 msg="Listening on 127.0.0.1:11434"\n')
    server = replay(recorded(KIND, "none-loaded"))
    exporter = start_exporter(server.url, "--log-file", log, interval="200ms")
    exporter.wait_for(lambda poll: poll.model_statuses == {GEMMA: UNLOADED, TINY: UNLOADED})

    def logged(poll, model):
        return poll.value("request_duration_seconds_count", model=model, source="log") or 0

    gemma = start_child(blobs[0], log=log)
    server.responses = recorded(KIND, "one-loaded")
    for number in (1, 2):
        gemma.stream(5).wait()
        exporter.wait_for(lambda poll: logged(poll, GEMMA) == number)  # noqa: B023

    tiny = start_child(blobs[1], log=log)
    server.responses = recorded(KIND, "two-loaded")
    both = exporter.wait_for(lambda poll: poll.model_statuses == {GEMMA: IDLE, TINY: IDLE})
    exporter.wait_for_polls(2, since=both)
    for child in (gemma, tiny):
        child.stream(5).wait()
    assert "the log is not used now" in exporter.log
    tiny.kill()
    server.responses = recorded(KIND, "one-loaded")
    one = exporter.wait_for(lambda poll: poll.number > both.number and poll.model_status(TINY) == UNLOADED)
    later = exporter.wait_for_polls(2, since=one)
    assert (logged(later, GEMMA), logged(later, TINY)) == (2, 0)
    # Its log is used again.
    exporter.wait_for(lambda poll: poll.ended_after > one.ended_before + 2)
    gemma.stream(5).wait()
    exporter.wait_for(lambda poll: logged(poll, GEMMA) == 3)


def test_the_log_counts_tokens_where_metrics_is_off(store, tmp_path, replay, start_child, start_exporter):
    blobs = [store.add(name, name) for name in (GEMMA, TINY)]
    log = tmp_path / "ollama.log"
    log.touch()
    server = replay(recorded(KIND, "none-loaded"))
    exporter = start_exporter(server.url, "--log-file", log, interval="300ms")
    exporter.wait_for(lambda poll: poll.value("up") == 1)
    gemma = start_child(blobs[0], metrics=False, log=log)
    server.responses = recorded(KIND, "one-loaded")
    idle = exporter.wait_for(lambda poll: poll.value("generated_tokens_total", model=GEMMA) == 0)
    stream = gemma.stream(gemma.tokens_for(seconds=2)).wait()
    done = exporter.poll_started_after(exporter.poll_started_after(stream.ended_at).ended_before)
    # `tokens_for` has generated 24.
    assert done.value("generated_tokens_total", model=GEMMA) == 24 + stream.tokens
    values = [poll.value("generated_tokens_total", model=GEMMA) for poll in exporter.between(idle, done)]
    assert values == sorted(values) and len(set(values)) > 3

    # While the log may be about another model, nothing counts. Then the counter starts again.
    tiny = start_child(blobs[1], metrics=False, log=log)
    server.responses = recorded(KIND, "two-loaded")
    both = exporter.wait_for(lambda poll: poll.model_statuses == {GEMMA: IDLE, TINY: IDLE})
    later = exporter.wait_for_polls(2, since=both)
    assert later.value("generated_tokens_total", model=GEMMA) is None
    gemma.stream(5).wait()
    tiny.kill()
    server.responses = recorded(KIND, "one-loaded")
    again = exporter.wait_for(
        lambda poll: poll.number > later.number and poll.value("generated_tokens_total", model=GEMMA) is not None
    )
    assert again.value("generated_tokens_total", model=GEMMA) == 0
    gemma.stream(7).wait()
    exporter.wait_for(lambda poll: poll.number > again.number and poll.value("generated_tokens_total", model=GEMMA) == 7)


def test_the_advice_on_a_discovered_server_is_about_ollama(store, start_child, start_exporter):
    child = start_child(store.add(GEMMA, "gemma"), metrics=False)
    exporter = start_exporter(None, "--discover", interval="200ms", record_polls=False)

    def notes():
        lines = exporter.log.splitlines()
        return [line for line in lines if f"server=127.0.0.1:{child.port}" in line and "switched off" in line]

    assert "LLAMA_ARG_ENDPOINT_METRICS=1 in the environment of Ollama" in wait_for(notes, "the advice")[0]


def test_check_says_what_is_missing(store, replay, start_child):
    server = replay(recorded(KIND, "one-loaded"))
    missing = run_check(server.url)
    assert "the llama-server of a model was not found" in missing.notes
    start_child(store.add(GEMMA, "gemma"), metrics=False)
    report = run_check(server.url)
    assert "set LLAMA_ARG_ENDPOINT_METRICS=1 in the environment of Ollama" in report.notes
    assert "was not found" not in report.notes
    assert "journalctl -n 0 -fu ollama" in report.stdout
