"""Docker Model Runner's models, read from their own llama-servers: recorded answers of Model Runner, and
beside them real llama-servers on Unix sockets, as Model Runner starts them.
"""

import contextlib
import json
import os
import signal
import subprocess
import tempfile
from pathlib import Path

import pytest

from support import MODEL
from support.exporter import run_check
from support.http_client import responds
from support.live_tokens import follow
from support.process import NOBODY, needs_root, resident_bytes
from support.replay import recorded, with_json
from support.wait import wait_for

KIND = "model-runner"
GEMMA = "docker.io/ai/gemma3:270M-Q4_K_M"
TINY = "docker.io/example/tiny:latest"
NOT_SEEN = "no process that can be seen from here is certain to be the llama-server of a model"
NOT_ALLOWED = "may not be opened"
AMBIGUOUS = "several processes run the same model"


def digests():
    """The digest of each model's ID, by its label."""
    models = json.loads(recorded(KIND, "two-models")["/models"].body)
    return {model["tags"][0]: model["id"].removeprefix("sha256:") for model in models}


@pytest.fixture
def working_directory():
    """Of all llama-servers. Its path is short: that of a socket has 107 bytes at most."""
    with tempfile.TemporaryDirectory(prefix="dmr-") as path:
        os.chmod(path, 0o755)
        yield Path(path)


@pytest.fixture
def start_runner(start_program, working_directory):
    """Starts the llama-server of a model, with its model and its socket where Model Runner has them."""
    numbers = iter(range(10))

    def start(model, *arguments, **settings):
        folder = working_directory / "models" / "bundles" / "sha256" / digests()[model] / "model"
        folder.mkdir(parents=True, exist_ok=True)
        file = folder / "model.gguf"
        if not file.exists():
            file.symlink_to(MODEL.resolve())
        socket = f"inference-runner-{next(numbers)}.sock"
        return start_program(*arguments, model=file, socket=socket, cwd=working_directory, **settings)

    return start


def find(command):
    """The PID of the process with this command line; None if there is none."""
    wanted = "\0".join(map(str, command)) + "\0"
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if (process / "cmdline").read_text() == wanted:
                return int(process.name)
    return None


def test_tokens_of_a_model_loaded_by_name_are_live(one_core, start_runner, replay, start_exporter):
    server = start_runner(GEMMA)
    runner = replay(recorded(KIND, "idle"))
    tokens = server.tokens_for(seconds=3)
    exporter = start_exporter(runner.url, interval="500ms")
    idle = exporter.wait_for(lambda poll: poll.value("generated_tokens_total", model=GEMMA) is not None)
    assert idle.server_kind == KIND
    assert idle.value("memory_usage_bytes", model=GEMMA) == pytest.approx(resident_bytes(server.pid), rel=0.1)
    assert idle.value("kv_cache_limit_bytes", model=GEMMA) > 0
    done, counted, _ = follow(exporter, server.stream(tokens).wait(), idle, model=GEMMA)
    assert counted == tokens
    assert done.model_status(GEMMA) == "idle"
    assert done.value("slots", model=GEMMA) > 0
    assert done.errors() == 0
    assert exporter.log.count("come from their own llama-servers") == 1
    # It would ask the llama-server again.
    assert "/metrics" not in runner.paths


def test_each_of_two_models_has_its_own_server(one_core, start_runner, replay, start_exporter):
    gemma, tiny = start_runner(GEMMA), start_runner(TINY)
    exporter = start_exporter(replay(recorded(KIND, "two-models")).url, interval="500ms")
    exporter.wait_for(lambda poll: poll.value("generated_tokens_total", model=TINY) == 0)
    gemma.stream(7).wait()
    end = tiny.stream(11).wait().ended_at
    poll = exporter.poll_started_after(end)
    assert poll.value("generated_tokens_total", model=GEMMA) == 7
    assert poll.value("generated_tokens_total", model=TINY) == 11
    assert poll.value("process_cpu_seconds_total", model=GEMMA) > 0
    assert poll.value("process_cpu_seconds_total", model=TINY) > 0
    # Model Runner has ended one of them.
    tiny.signal(signal.SIGKILL)
    gone = exporter.wait_for(lambda poll: NOT_SEEN in exporter.log and poll.ended_after > end)
    later = exporter.wait_for_polls(2, since=gone)
    assert later.value("generated_tokens_total", model=TINY) is None
    assert later.value("generated_tokens_total", model=GEMMA) == 7


def test_an_unloaded_model_is_not_read(start_runner, replay, start_exporter):
    """The process may end later than Model Runner says so."""
    start_runner(GEMMA)
    runner = replay(recorded(KIND, "idle"))
    exporter = start_exporter(runner.url, interval="250ms")
    exporter.wait_for(lambda poll: poll.value("slots", model=GEMMA) is not None)
    runner.responses = recorded(KIND, "unloaded-again")
    gone = exporter.wait_for(lambda poll: poll.model_status(GEMMA) == "unloaded")
    assert not gone.families(GEMMA) & {"slots", "generated_tokens_total", "memory_usage_bytes"}


def test_two_processes_of_one_model_and_mode_are_ambiguous(start_runner, replay):
    start_runner(GEMMA), start_runner(GEMMA)
    report = run_check(replay(recorded(KIND, "idle")).url)
    assert report.notes.count(AMBIGUOUS) == 1
    assert report.value("slots", model=GEMMA) is None


def test_a_model_in_another_mode_is_another_process(start_runner, replay):
    start_runner(GEMMA)
    responses = with_json(recorded(KIND, "idle"), "/engines/ps", lambda ps: [ps[0] | {"mode": "embedding"}])
    report = run_check(replay(responses).url)
    assert report.notes.count(NOT_SEEN) == 1
    assert report.value("slots", model=GEMMA) is None


@contextlib.contextmanager
def started_by_another(server):
    """Starts `server`, which has ended, again: as nobody's child. Another user's may have the same model file."""
    server.port.unlink()
    command = ["setsid", "--fork", *map(str, server.command)]
    subprocess.run(command, cwd=server.cwd, env=server.environment, check=True)
    pid = wait_for(lambda: find(server.command), "the server to start")
    try:
        wait_for(lambda: responds(server.port, "/health"), "the server to load its model")
        yield
    finally:
        os.kill(pid, signal.SIGKILL)


def test_a_server_that_model_runner_did_not_start_is_not_read(start_runner, replay):
    server = start_runner(GEMMA)
    server.kill()
    with started_by_another(server):
        report = run_check(replay(recorded(KIND, "idle")).url)
    assert report.notes.count(NOT_SEEN) == 1
    assert report.value("slots", model=GEMMA) is None


def test_the_process_of_a_loading_model_is_the_one_that_model_runner_started(start_runner, replay):
    other = start_runner(GEMMA)
    other.kill()
    with started_by_another(other):
        own = start_runner(GEMMA)
        report = run_check(replay(recorded(KIND, "loading")).url)
    assert report.model_status(GEMMA) == "loading"
    [model] = [model for model in report.document["servers"][0]["models"] if model["model"] == GEMMA]
    assert model["pid"] == own.pid
    # From where its tokens come is told once it is loaded.
    assert "Model Runner's records" not in report.notes
    assert report.value("generated_tokens_total", model=GEMMA) is None


@needs_root
def test_an_unprivileged_exporter_says_once_what_it_may_not_do(start_runner, replay):
    start_runner(GEMMA)
    report = run_check(replay(recorded(KIND, "idle")).url, uid=NOBODY)
    [note] = [line for line in report.notes.splitlines() if NOT_SEEN in line or NOT_ALLOWED in line]
    for help in ("as root with CAP_SYS_PTRACE", "--pid=host --user 0 --cap-add SYS_PTRACE"):
        assert help in note
    assert report.model_status(GEMMA) == "idle"
    assert not report.families(GEMMA) & {"slots", "tokens_per_second"}
