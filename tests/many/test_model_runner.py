"""Docker Model Runner, from recordings: each recorded state, and modified recordings."""

import json
import random
import re

import pytest

from support.exposition import INTEGRALS
from support.replay import Response, recorded, with_json, with_values

KIND = "model-runner"
GEMMA = "docker.io/ai/gemma3:270M-Q4_K_M"
TINY = "docker.io/example/tiny:latest"
GEMMA_ID = "sha256:3260b3141c3704f86c2ac348162acf0698237d5981728084f18ca457a1fe4820"
COMPLETION, EMBEDDING = (GEMMA, "completion"), (GEMMA, "embedding")
IDLE, RUNNING, LOADING, UNLOADED = "idle", "running", "loading", "unloaded"

COUNTERS = {"generated_tokens_total", "prompt_tokens_total", "decode_calls_total"}


@pytest.fixture
def first_poll(replay, start_exporter):
    """Starts a server and an exporter; returns both and the first poll."""

    def start(responses, *options, interval="200ms"):
        server = replay(responses)
        exporter = start_exporter(server.url, *options, interval=interval)
        return server, exporter, exporter.wait_for(lambda poll: poll.value("up") == 1)

    return start


@pytest.mark.parametrize(
    "recording, expected",
    {
        "no-models": {},
        "unloaded": {GEMMA: UNLOADED, TINY: UNLOADED},
        "loading": {GEMMA: LOADING, TINY: UNLOADED},
        "running": {GEMMA: RUNNING, TINY: UNLOADED},
        "idle": {GEMMA: IDLE, TINY: UNLOADED},
        "requests": {GEMMA: RUNNING, TINY: UNLOADED},
        "two-models": {GEMMA: RUNNING, TINY: RUNNING},
        "unloaded-again": {GEMMA: UNLOADED, TINY: UNLOADED},
        "configured-loading": {GEMMA: LOADING, TINY: UNLOADED},
        "configured-idle": {GEMMA: IDLE, TINY: UNLOADED},
        "configured-unloaded": {GEMMA: UNLOADED, TINY: UNLOADED},
        "by-id-loading": {GEMMA: LOADING, TINY: UNLOADED},
        "by-id-running": {GEMMA: RUNNING, TINY: UNLOADED},
        "by-id-running-three": {GEMMA: RUNNING, TINY: UNLOADED},
        "by-id-idle": {GEMMA: IDLE, TINY: UNLOADED},
        "by-id-killed": {GEMMA: IDLE, TINY: UNLOADED},
        "two-modes": {COMPLETION: RUNNING, EMBEDDING: IDLE, TINY: UNLOADED},
        "two-modes-idle": {COMPLETION: IDLE, EMBEDDING: IDLE, TINY: UNLOADED},
        "two-modes-one-by-name": {COMPLETION: RUNNING, EMBEDDING: IDLE, TINY: UNLOADED},
        "metrics-disabled": {GEMMA: IDLE, TINY: UNLOADED},
    }.items(),
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_every_recorded_state(recording, expected, first_poll):
    server, exporter, poll = first_poll(recorded(KIND, recording))
    assert poll.model_statuses == expected
    assert poll.server_kind == KIND
    assert poll.labels("server_info")["version"] == "v1.2.6-18-g642c7211"
    later = exporter.wait_for_polls(3, since=poll)
    assert later.model_statuses == expected
    assert later.errors() == 0
    assert server.methods == {"GET"}


def test_size_and_parameters_come_from_the_model_list(first_poll):
    _, _, poll = first_poll(recorded(KIND, "unloaded"))
    # As the list rounds them: 235.16MiB and 268.10M.
    assert poll.value("model_size_bytes", model=GEMMA) == pytest.approx(235.16 * 1024**2, abs=1)
    assert poll.value("model_parameters", model=GEMMA) == 268_100_000
    assert (
        poll.value("models_disk_usage_bytes")
        == json.loads(recorded(KIND, "unloaded")["/engines/df"].body)["models_disk_usage"]
    )
    # Which engine will run it is not known: the labels of its information would not stay the same.
    assert not poll.find("model_info")


def test_the_information_about_a_model_begins_when_it_is_complete(first_poll):
    server, exporter, poll = first_poll(recorded(KIND, "unloaded"))
    assert not poll.find("model_info")
    for recording, status in (("loading", LOADING), ("running", RUNNING), ("idle", IDLE)):
        server.responses = recorded(KIND, recording)
        poll = exporter.wait_for(lambda later: later.model_status(GEMMA) == status)  # noqa: B023
        info = poll.labels("model_info", model=GEMMA)
        assert info.pop("quantization").endswith("Q4_K_M")
        assert info == {
            "model": GEMMA, "server": f"127.0.0.1:{server.port}",
            "architecture": "gemma3", "backend": "llama.cpp", "mode": "completion",
        }  # fmt: skip


@pytest.mark.parametrize("recording", ["running", "idle", "two-models"])
def test_a_model_loaded_by_name_has_the_tokens_of_its_records_and_one_log_line_explains_it(recording, first_poll):
    responses = recorded(KIND, recording)
    assert responses["/metrics"].body == "# No active runners\n" and responses["/engines/ps"].body != "[]\n"
    _, exporter, poll = first_poll(responses)
    poll = exporter.wait_for_polls(5, since=poll)
    assert poll.families(GEMMA) & COUNTERS == COUNTERS - {"decode_calls_total"}
    assert poll.value("generated_tokens_total", model=GEMMA) == 0, "requests from before the first poll"
    explained = [line for line in exporter.log.splitlines() if "/metrics" in line and "name" in line]
    assert len(explained) == 1, exporter.log


def test_a_model_loaded_by_its_id_has_its_counters(first_poll):
    _, _, poll = first_poll(recorded(KIND, "by-id-idle"))
    text = recorded(KIND, "by-id-idle")["/metrics"].body
    value = lambda name: float(re.search(rf"^llamacpp:{name}\{{.*\}} (\S+)$", text, re.MULTILINE)[1])  # noqa: E731
    assert poll.value("generated_tokens_total", model=GEMMA) == value("tokens_predicted_total") > 0
    assert poll.value("prompt_tokens_total", model=GEMMA) == value("prompt_tokens_total") > 0
    assert poll.value("decode_calls_total", model=GEMMA) == value("n_decode_total") > 0
    assert poll.value("requests_processing", model=GEMMA) == 0


def test_tokens_are_live_while_they_stream(first_poll):
    """Derived from the decode calls: `/metrics` counts the tokens of a request when it ends."""
    idle_recording, busy_recording = recorded(KIND, "by-id-idle"), recorded(KIND, "by-id-running")
    before = {"tokens_predicted_total": 500, "n_decode_total": 510, "n_busy_slots_per_decode": 1}

    def metrics(responses, **values):
        text = with_values(idle_recording["/metrics"].body, **before | values)
        families = re.split(r"(?=^# HELP )", text, flags=re.MULTILINE)
        random.shuffle(families)
        return responses | {"/metrics": Response("".join(families), type="text/plain; version=0.0.4; charset=utf-8")}

    server, exporter, idle = first_poll(metrics(idle_recording))
    assert idle.value("generated_tokens_total", model=GEMMA) == 500
    for generated in (20, 50, 90):
        # One more decode call for the prompt.
        server.responses = metrics(busy_recording, n_decode_total=510 + 1 + generated, requests_processing=1)
        poll = exporter.wait_for(
            lambda poll: abs((poll.value("generated_tokens_total", model=GEMMA) or 0) - 500 - generated) <= 3  # noqa: B023
        )
        assert poll.model_status(GEMMA) == RUNNING
        assert poll.value("requests_processing", model=GEMMA) == 1
    ended = {"tokens_predicted_total": 500 + 100, "n_decode_total": 510 + 100}
    server.responses = metrics(idle_recording, **ended)
    done = exporter.wait_for(lambda poll: poll.model_status(GEMMA) == IDLE and poll.number > idle.number + 1)
    assert done.value("generated_tokens_total", model=GEMMA) == 600
    counted = [poll.value("generated_tokens_total", model=GEMMA) for poll in exporter.polls]
    assert counted == sorted(counted)

    # Unloaded: only the status remains.
    server.responses = recorded(KIND, "unloaded-again")
    gone = exporter.wait_for(lambda poll: poll.model_status(GEMMA) == UNLOADED)
    assert not gone.families(GEMMA) & (COUNTERS | {"requests_processing", "tokens_per_second"})


def test_every_series_of_a_model_has_its_mode(first_poll):
    for recording in ("unloaded", "loading", "by-id-running", "requests", "two-modes"):
        _, _, poll = first_poll(recorded(KIND, recording))
        for sample in poll.samples:
            assert ("mode" in sample.labels) == ("model" in sample.labels), sample


def test_a_mode_that_is_unloaded_keeps_its_series(first_poll):
    server, exporter, poll = first_poll(recorded(KIND, "two-modes"))
    assert poll.value("requests_processing", model=GEMMA, mode="completion") == 1
    assert poll.value("requests_processing", model=GEMMA, mode="embedding") == 0
    assert poll.value("decode_calls_total", model=GEMMA, mode="embedding") == 1
    assert poll.value("request_duration_seconds_count", model=GEMMA, mode="completion") == 0
    assert poll.value("request_prompt_tokens_count", model=GEMMA, mode="embedding") == 0
    server.responses = recorded(KIND, "by-id-idle")
    alone = exporter.wait_for(lambda later: later.model_status(GEMMA, mode="completion") == IDLE)
    assert alone.model_status(GEMMA, mode="embedding") == UNLOADED


def test_two_modes_of_which_only_one_was_loaded_by_id(first_poll):
    _, _, poll = first_poll(recorded(KIND, "two-modes-one-by-name"))
    assert "decode_calls_total" in poll.families(GEMMA, mode="embedding")
    assert poll.families(GEMMA, mode="completion") & COUNTERS == COUNTERS - {"decode_calls_total"}


def test_disabled_metrics(first_poll):
    server, exporter, poll = first_poll(recorded(KIND, "metrics-disabled"))
    later = exporter.wait_for_polls(5, since=poll)
    assert later.model_status(GEMMA) == IDLE
    assert later.errors() == 0, "a disabled endpoint is not an error"
    assert len([line for line in exporter.log.splitlines() if "DISABLE_METRICS" in line]) == 1
    assert server.count("/metrics") <= 2


def test_the_model_list_is_requested_rarely(first_poll):
    """For each request of the list, Model Runner logs two lines and reads its whole store."""
    server, exporter, poll = first_poll(recorded(KIND, "by-id-idle"), interval="50ms")
    exporter.wait_for_polls(60, since=poll)
    lists = [path for _, path in server.requests if path.endswith("/models")]
    assert 1 <= len(lists) <= 3
    assert server.count("/engines/ps") >= 60


# Modified recordings.


def with_runner(responses, **runner):
    """The responses, with one more runner in /engines/ps."""
    full = {
        "backend_name": "llama.cpp",
        "model_name": "ai/x",
        "mode": "completion",
        "last_used": "0001-01-01T00:00:00Z",
    }
    return with_json(responses, "/engines/ps", lambda runners: runners + [full | runner])


@pytest.mark.parametrize("backend", ["vllm", "mlx"])
def test_another_engine_has_a_status_and_nothing_else(backend, first_poll):
    name = "docker.io/ai/smollm2:vllm"
    config = {"format": "safetensors", "parameters": "361.82M", "size": "723.65MB"}
    other = {"id": "sha256:" + "5" * 64, "tags": [name], "created": 1, "config": config}
    responses = with_json(recorded(KIND, "by-id-idle"), "/models", lambda models: models + [other])
    responses = with_runner(responses, backend_name=backend, model_name="ai/smollm2:vllm", in_use=True)
    # In case a later version includes its metrics.
    labels = f'{{backend="{backend}",model="ai/smollm2:vllm",mode="completion"}}'
    extra = f"vllm:num_requests_running{labels} 3\nllamacpp:tokens_predicted_total{labels} 7\n"
    responses["/metrics"] = Response(responses["/metrics"].body + extra, type="text/plain")
    _, _, poll = first_poll(responses)
    assert poll.model_statuses == {GEMMA: IDLE, TINY: UNLOADED, name: RUNNING}
    assert poll.families(name) - INTEGRALS <= {"status", "model_info"}
    info = next(s.labels for s in poll.samples if s.name == "llamacpp_model_info" and s.labels["model"] == name)
    assert info["backend"] == backend
    assert "generated_tokens_total" in poll.families(GEMMA)


@pytest.mark.parametrize(
    "spelling",
    [
        "ai/gemma3:270M-Q4_K_M", "gemma3:270M-Q4_K_M", "docker.io/ai/gemma3:270M-Q4_K_M",
        "index.docker.io/ai/gemma3:270M-Q4_K_M", GEMMA_ID, GEMMA_ID.removeprefix("sha256:"), "3260b3141c37",
        "docker.io/example/also:v2", "example/also:v2",
    ],
)  # fmt: skip
def test_every_spelling_of_a_model_has_the_same_label(spelling, first_poll):
    responses = recorded(KIND, "by-id-running")
    responses["/engines/ps"] = Response(responses["/engines/ps"].body.replace(GEMMA_ID, spelling))
    responses["/metrics"] = Response(responses["/metrics"].body.replace(GEMMA_ID, spelling), type="text/plain")
    _, _, poll = first_poll(responses)
    assert poll.model_statuses == {GEMMA: RUNNING, TINY: UNLOADED}
    assert poll.value("requests_processing", model=GEMMA) == 1


@pytest.mark.parametrize("spelling", ["tiny", "example/tiny", "example/tiny:latest", "docker.io/example/tiny"])
def test_the_default_tag_is_latest(spelling, first_poll):
    responses = with_runner(recorded(KIND, "unloaded"), model_name=spelling, in_use=True)
    _, _, poll = first_poll(responses)
    # A name without a namespace is in `ai`, and so is another model.
    expected = {"ai/tiny", "tiny", "docker.io/ai/tiny:latest"} if spelling == "tiny" else {TINY}
    assert [model for model, status in poll.model_statuses.items() if status == RUNNING][0] in expected


def test_a_model_missing_from_the_list_keeps_its_name(first_poll):
    responses = with_runner(recorded(KIND, "unloaded"), model_name="ai/just-removed", in_use=True)
    server, exporter, poll = first_poll(responses)
    assert poll.model_statuses == {GEMMA: UNLOADED, TINY: UNLOADED, "ai/just-removed": RUNNING}
    exporter.wait_for_polls(10, since=poll)
    assert server.count("/models") <= 2, "requested again at every poll"


def test_a_model_without_a_tag_has_its_id_as_label(first_poll):
    responses = with_json(recorded(KIND, "unloaded"), "/models", lambda models: models[0].pop("tags") and None)
    _, _, poll = first_poll(responses)
    assert poll.model_statuses == {GEMMA_ID: UNLOADED, TINY: UNLOADED}


@pytest.mark.parametrize(
    "size, bytes",
    [
        ("235.16MiB", 246_583_132), ("235.16 MiB", 246_583_132), ("1.5GiB", 1_610_612_736), ("12.50 KiB", 12_800),
        ("270.60MB", 270_600_000), ("270.60 MB", 270_600_000), ("4.98GB", 4_980_000_000), ("640kB", 640_000),
        ("0.99TB", 990_000_000_000), ("512B", 512), ("n/a", None), ("", None), ("lots", None),
    ],
)  # fmt: skip
def test_sizes_in_every_spelling(size, bytes, first_poll):
    def change(models):
        models[0]["config"]["size"] = size

    _, _, poll = first_poll(with_json(recorded(KIND, "unloaded"), "/models", change))
    exported = poll.value("model_size_bytes", model=GEMMA)
    assert exported == (None if bytes is None else pytest.approx(bytes, abs=1))
    assert poll.value("model_size_bytes", model=TINY)


@pytest.mark.parametrize(
    "parameters, number",
    [
        ("268.10M", 268_100_000), ("361.82 M", 361_820_000), ("1.24B", 1_240_000_000), ("8.03 B", 8_030_000_000),
        ("0.5T", 500_000_000_000), ("22K", 22_000), ("1B", 1_000_000_000), ("", None), ("unknown", None),
    ],
)  # fmt: skip
def test_parameters_in_every_spelling(parameters, number, first_poll):
    def change(models):
        models[0]["config"]["parameters"] = parameters

    _, _, poll = first_poll(with_json(recorded(KIND, "unloaded"), "/models", change))
    assert poll.value("model_parameters", model=GEMMA) == number


@pytest.mark.parametrize(
    "change",
    {
        "no config": lambda model: model.pop("config"),
        "null config": lambda model: model.update(config=None),
        "numbers of other types": lambda model: model.update(config={"size": 7, "parameters": None, "gguf": []}),
        "no ID": lambda model: model.pop("id"),
        "tags of other types": lambda model: model.update(tags=[None, 7, GEMMA]),
    }.items(),
    ids=lambda change: change[0],
)
def test_a_malformed_model_affects_no_other(change, first_poll):
    responses = with_json(recorded(KIND, "idle"), "/models", lambda models: change[1](models[0]) and None)
    _, _, poll = first_poll(responses)
    assert poll.value("model_parameters", model=TINY) == 268_100_000
    assert poll.model_status(TINY) == UNLOADED
    assert IDLE in poll.model_statuses.values()


def test_when_metrics_time_out_the_status_stays_and_requests_back_off(first_poll):
    """A runner that decodes a long prompt responses /metrics late, and an abandoned request stays queued."""
    responses = recorded(KIND, "by-id-running")
    slow = responses | {"/metrics": Response(responses["/metrics"].body, type="text/plain", delay=3)}
    server, exporter, first = first_poll(responses, "--timeout", "1s")
    server.responses = slow
    count_before = server.count("/metrics")
    late = exporter.wait_for(
        lambda poll: poll.number > first.number and poll.errors(endpoint="/metrics", reason="timeout") > 0
    )
    last = exporter.wait_for(lambda poll: poll.ended_before > late.ended_before + 6)
    polls = exporter.between(late, last)
    counted = first.value("generated_tokens_total", model=GEMMA)
    assert {poll.value("generated_tokens_total", model=GEMMA) for poll in polls} == {counted}, (
        "the counter does not move"
    )
    assert {poll.value("tokens_per_second", model=GEMMA) for poll in polls} == {None}, "there is no rate"
    assert {poll.model_status(GEMMA) for poll in polls} == {RUNNING}
    assert {poll.value("up") for poll in polls} == {1}
    assert server.count("/metrics") - count_before <= 6
    assert len(polls) >= 15
    server.responses = recorded(KIND, "by-id-idle")
    exporter.wait_for(
        lambda poll: (
            poll.number > last.number
            and poll.model_status(GEMMA) == IDLE
            and poll.value("generated_tokens_total", model=GEMMA)
        )
    )


@pytest.mark.parametrize("prefix", ["", "/proxy/models"])
@pytest.mark.parametrize(
    "path",
    ["", "/", "/v1", "/engines", "/engines/v1", "/engines/v1/", "/engines/llama.cpp/v1", "/engines/llama.cpp/v1/"],
)
def test_it_is_detected_at_every_base_url(path, prefix, replay, start_exporter):
    server = replay(recorded(KIND, "by-id-running"), prefix=prefix)
    exporter = start_exporter(server.url + path, interval="200ms")
    poll = exporter.wait_for(lambda poll: poll.value("up") == 1)
    assert poll.server_kind == KIND
    assert poll.model_statuses == {GEMMA: RUNNING, TINY: UNLOADED}
    assert poll.value("requests_processing", model=GEMMA) == 1
