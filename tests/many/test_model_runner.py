"""Docker Model Runner, from recordings of a genuine one: each state, and what was not to be had for real."""

import json
import random
import re

import pytest
from replay import Answer, changed, recorded, with_values
from said import families, kind, labels_of, state, states

KIND = "model-runner"
GEMMA = "docker.io/ai/gemma3:270M-Q4_K_M"
TINY = "docker.io/example/tiny:latest"
GEMMA_ID = "sha256:3260b3141c3704f86c2ac348162acf0698237d5981728084f18ca457a1fe4820"
COMPLETION, EMBEDDING = (GEMMA, "completion"), (GEMMA, "embedding")
IDLE, RUNNING, LOADING, UNLOADED = "idle", "running", "loading", "unloaded"

COUNTERS = {"generated_tokens_total", "prompt_tokens_total", "decode_calls_total"}


def first_poll(replay, start_exporter, answers, path="", **settings):
    """The server, the exporter that watches it, and what that says of the first poll."""
    server = replay(answers)
    exporter = start_exporter(server.url + path, **{"interval": "200ms", **settings})
    return server, exporter, exporter.wait_for(lambda poll: poll.value("up") == 1)


# What a genuine one was recorded to answer.


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
def test_every_recorded_state(recording, expected, replay, start_exporter):
    server, exporter, poll = first_poll(replay, start_exporter, recorded(KIND, recording))
    assert states(poll) == expected
    assert kind(poll) == KIND
    assert labels_of(poll, "server_info")["version"] == "v1.2.6-18-g642c7211"
    later = exporter.wait_for(lambda later: later.number == poll.number + 3)
    assert states(later) == expected
    assert later.errors() == 0
    assert {method for method, _ in server.asked} == {"GET"}


def test_the_figures_of_a_model_are_those_of_its_store(replay, start_exporter):
    _, _, poll = first_poll(replay, start_exporter, recorded(KIND, "unloaded"))
    # As it rounds them: 235.16MiB and 268.10M.
    assert poll.value("model_size_bytes", model=GEMMA) == pytest.approx(235.16 * 1024**2, abs=1)
    assert poll.value("model_parameters", model=GEMMA) == 268_100_000
    assert (
        poll.value("models_disk_usage_bytes")
        == json.loads(recorded(KIND, "unloaded")["/engines/df"].body)["models_disk_usage"]
    )
    info = {sample.labels["model"]: sample.labels for sample in poll.samples if sample.name == "llamacpp_model_info"}
    assert info[GEMMA]["architecture"] == "gemma3"
    assert info[GEMMA]["quantization"].endswith("Q4_K_M")


@pytest.mark.parametrize("recording", ["running", "idle", "two-models"])
def test_a_model_loaded_by_name_has_no_counters_and_the_log_says_why(recording, replay, start_exporter):
    answers = recorded(KIND, recording)
    assert answers["/metrics"].body == "# No active runners\n" and answers["/engines/ps"].body != "[]\n"
    _, exporter, poll = first_poll(replay, start_exporter, answers)
    exporter.wait_for(lambda later: later.number == poll.number + 5)
    assert not families(poll, GEMMA) & COUNTERS
    explained = [line for line in exporter.log.splitlines() if "/metrics" in line and "name" in line]
    assert len(explained) == 1, exporter.log


def test_a_model_loaded_by_its_id_has_its_counters(replay, start_exporter):
    _, _, poll = first_poll(replay, start_exporter, recorded(KIND, "by-id-idle"))
    text = recorded(KIND, "by-id-idle")["/metrics"].body
    value = lambda name: float(re.search(rf"^llamacpp:{name}\{{.*\}} (\S+)$", text, re.MULTILINE)[1])  # noqa: E731
    assert poll.value("generated_tokens_total", model=GEMMA) == value("tokens_predicted_total") > 0
    assert poll.value("prompt_tokens_total", model=GEMMA) == value("prompt_tokens_total") > 0
    assert poll.value("decode_calls_total", model=GEMMA) == value("n_decode_total") > 0
    assert poll.value("requests_processing", model=GEMMA) == 0
    assert all("mode" not in sample.labels for sample in poll.samples if sample.name != "llamacpp_model_info")


def test_tokens_are_live_while_they_stream(replay, start_exporter):
    """From the decode calls: `/metrics` counts a request's tokens only when it has ended."""
    resting, working = recorded(KIND, "by-id-idle"), recorded(KIND, "by-id-running")
    before = {"tokens_predicted_total": 500, "n_decode_total": 510, "n_busy_slots_per_decode": 1}

    def metrics(answers, **values):
        text = with_values(resting["/metrics"].body, **before | values)
        families = re.split(r"(?=^# HELP )", text, flags=re.MULTILINE)
        random.shuffle(families)
        return answers | {"/metrics": Answer("".join(families), type="text/plain; version=0.0.4; charset=utf-8")}

    server, exporter, idle = first_poll(replay, start_exporter, metrics(resting))
    assert idle.value("generated_tokens_total", model=GEMMA) == 500
    for generated in (20, 50, 90):
        # One more call for the prompt.
        server.show(metrics(working, n_decode_total=510 + 1 + generated, requests_processing=1))
        poll = exporter.wait_for(
            lambda poll: abs((poll.value("generated_tokens_total", model=GEMMA) or 0) - 500 - generated) <= 3  # noqa: B023
        )
        assert state(poll, GEMMA) == RUNNING
        assert poll.value("requests_processing", model=GEMMA) == 1
    ended = {"tokens_predicted_total": 500 + 100, "n_decode_total": 510 + 100}
    server.show(metrics(resting, **ended))
    done = exporter.wait_for(lambda poll: state(poll, GEMMA) == IDLE and poll.number > idle.number + 1)
    assert done.value("generated_tokens_total", model=GEMMA) == 600
    counted = [poll.value("generated_tokens_total", model=GEMMA) for poll in exporter.polls]
    assert counted == sorted(counted)

    # Unloaded: what was live goes, the state stays.
    server.show(recorded(KIND, "unloaded-again"))
    gone = exporter.wait_for(lambda poll: state(poll, GEMMA) == UNLOADED)
    assert not families(gone, GEMMA) & (COUNTERS | {"requests_processing", "tokens_per_second"})


def test_two_modes_of_one_model_are_told_apart_and_only_then(replay, start_exporter):
    server, exporter, poll = first_poll(replay, start_exporter, recorded(KIND, "two-modes"))
    assert poll.value("requests_processing", model=GEMMA, mode="completion") == 1
    assert poll.value("requests_processing", model=GEMMA, mode="embedding") == 0
    assert poll.value("decode_calls_total", model=GEMMA, mode="embedding") == 1
    for sample in poll.samples:
        # Records of requests do not say in which mode they ran.
        if sample.labels.get("model") == GEMMA and "source" not in sample.labels:
            assert sample.labels["mode"] in ("completion", "embedding"), sample
    server.show(recorded(KIND, "by-id-idle"))
    alone = exporter.wait_for(lambda later: later.number > poll.number and state(later, GEMMA) == IDLE)
    assert all("mode" not in sample.labels for sample in alone.samples if sample.name != "llamacpp_model_info")


def test_two_modes_of_which_only_one_was_loaded_by_id(replay, start_exporter):
    _, _, poll = first_poll(replay, start_exporter, recorded(KIND, "two-modes-one-by-name"))
    assert "decode_calls_total" in families(poll, GEMMA, mode="embedding")
    assert not families(poll, GEMMA, mode="completion") & COUNTERS


def test_metrics_that_are_switched_off(replay, start_exporter):
    server, exporter, poll = first_poll(replay, start_exporter, recorded(KIND, "metrics-disabled"))
    later = exporter.wait_for(lambda later: later.number == poll.number + 5)
    assert state(later, GEMMA) == IDLE
    assert later.errors() == 0, "an endpoint that is switched off is no failure"
    assert len([line for line in exporter.log.splitlines() if "DISABLE_METRICS" in line]) == 1
    assert server.asked.count(("GET", "/metrics")) <= 2


def test_its_own_log_is_not_filled(replay, start_exporter):
    """It writes two lines whenever it is asked for its models, and reads its whole store."""
    server, exporter, poll = first_poll(replay, start_exporter, recorded(KIND, "by-id-idle"), interval="50ms")
    exporter.wait_for(lambda later: later.number == poll.number + 60)
    lists = [path for _, path in server.asked if path.endswith("/models")]
    assert 1 <= len(lists) <= 3
    assert server.asked.count(("GET", "/engines/ps")) >= 60


# What was not to be had for real.


def with_runner(answers, **runner):
    """The same answers, with one more runner in /engines/ps."""
    full = {
        "backend_name": "llama.cpp",
        "model_name": "ai/x",
        "mode": "completion",
        "last_used": "0001-01-01T00:00:00Z",
    }
    return changed(answers, "/engines/ps", lambda runners: runners + [full | runner])


@pytest.mark.parametrize("backend", ["vllm", "mlx"])
def test_of_another_engine_the_state_is_shown_and_nothing_else(backend, replay, start_exporter):
    name = "docker.io/ai/smollm2:vllm"
    config = {"format": "safetensors", "parameters": "361.82M", "size": "723.65MB"}
    other = {"id": "sha256:" + "5" * 64, "tags": [name], "created": 1, "config": config}
    answers = changed(recorded(KIND, "by-id-idle"), "/models", lambda models: models + [other])
    answers = with_runner(answers, backend_name=backend, model_name="ai/smollm2:vllm", in_use=True)
    # An exposition that some day has them too.
    labels = f'{{backend="{backend}",model="ai/smollm2:vllm",mode="completion"}}'
    extra = f"vllm:num_requests_running{labels} 3\nllamacpp:tokens_predicted_total{labels} 7\n"
    answers["/metrics"] = Answer(answers["/metrics"].body + extra, type="text/plain")
    _, _, poll = first_poll(replay, start_exporter, answers)
    assert states(poll) == {GEMMA: IDLE, TINY: UNLOADED, name: RUNNING}
    assert families(poll, name) <= {"status", "model_info"}
    info = next(s.labels for s in poll.samples if s.name == "llamacpp_model_info" and s.labels["model"] == name)
    assert info["backend"] == backend
    assert "generated_tokens_total" in families(poll, GEMMA)


@pytest.mark.parametrize(
    "spelling",
    [
        "ai/gemma3:270M-Q4_K_M", "gemma3:270M-Q4_K_M", "docker.io/ai/gemma3:270M-Q4_K_M",
        "index.docker.io/ai/gemma3:270M-Q4_K_M", GEMMA_ID, GEMMA_ID.removeprefix("sha256:"), "3260b3141c37",
        "docker.io/example/also:v2", "example/also:v2",
    ],
)  # fmt: skip
def test_one_model_has_one_label_however_it_is_spelled(spelling, replay, start_exporter):
    answers = recorded(KIND, "by-id-running")
    answers["/engines/ps"] = Answer(answers["/engines/ps"].body.replace(GEMMA_ID, spelling))
    answers["/metrics"] = Answer(answers["/metrics"].body.replace(GEMMA_ID, spelling), type="text/plain")
    _, _, poll = first_poll(replay, start_exporter, answers)
    assert states(poll) == {GEMMA: RUNNING, TINY: UNLOADED}
    assert poll.value("requests_processing", model=GEMMA) == 1


@pytest.mark.parametrize("spelling", ["tiny", "example/tiny", "example/tiny:latest", "docker.io/example/tiny"])
def test_a_tag_that_is_left_out_is_latest(spelling, replay, start_exporter):
    answers = with_runner(recorded(KIND, "unloaded"), model_name=spelling, in_use=True)
    _, _, poll = first_poll(replay, start_exporter, answers)
    # A bare name is one of the namespace `ai`, and so another model.
    expected = {"ai/tiny", "tiny", "docker.io/ai/tiny:latest"} if spelling == "tiny" else {TINY}
    assert [model for model, said in states(poll).items() if said == RUNNING][0] in expected


def test_a_model_that_the_store_does_not_list_keeps_its_name(replay, start_exporter):
    answers = with_runner(recorded(KIND, "unloaded"), model_name="ai/just-removed", in_use=True)
    server, exporter, poll = first_poll(replay, start_exporter, answers)
    assert states(poll) == {GEMMA: UNLOADED, TINY: UNLOADED, "ai/just-removed": RUNNING}
    exporter.wait_for(lambda later: later.number == poll.number + 10)
    assert server.asked.count(("GET", "/models")) <= 2, "asked for again at every poll"


def test_a_model_without_a_tag_goes_by_its_id(replay, start_exporter):
    answers = changed(recorded(KIND, "unloaded"), "/models", lambda models: models[0].pop("tags") and None)
    _, _, poll = first_poll(replay, start_exporter, answers)
    assert states(poll) == {GEMMA_ID: UNLOADED, TINY: UNLOADED}


@pytest.mark.parametrize(
    "size, bytes",
    [
        ("235.16MiB", 246_583_132), ("235.16 MiB", 246_583_132), ("1.5GiB", 1_610_612_736), ("12.50 KiB", 12_800),
        ("270.60MB", 270_600_000), ("270.60 MB", 270_600_000), ("4.98GB", 4_980_000_000), ("640kB", 640_000),
        ("0.99TB", 990_000_000_000), ("512B", 512), ("n/a", None), ("", None), ("lots", None),
    ],
)  # fmt: skip
def test_sizes_in_every_spelling(size, bytes, replay, start_exporter):
    def change(models):
        models[0]["config"]["size"] = size

    _, _, poll = first_poll(replay, start_exporter, changed(recorded(KIND, "unloaded"), "/models", change))
    said = poll.value("model_size_bytes", model=GEMMA)
    assert said == (None if bytes is None else pytest.approx(bytes, abs=1))
    assert poll.value("model_size_bytes", model=TINY)


@pytest.mark.parametrize(
    "parameters, number",
    [
        ("268.10M", 268_100_000), ("361.82 M", 361_820_000), ("1.24B", 1_240_000_000), ("8.03 B", 8_030_000_000),
        ("0.5T", 500_000_000_000), ("22K", 22_000), ("1B", 1_000_000_000), ("", None), ("unknown", None),
    ],
)  # fmt: skip
def test_parameters_in_every_spelling(parameters, number, replay, start_exporter):
    def change(models):
        models[0]["config"]["parameters"] = parameters

    _, _, poll = first_poll(replay, start_exporter, changed(recorded(KIND, "unloaded"), "/models", change))
    assert poll.value("model_parameters", model=GEMMA) == number


@pytest.mark.parametrize(
    "change",
    {
        "no config": lambda model: model.pop("config"),
        "null config": lambda model: model.update(config=None),
        "figures of other types": lambda model: model.update(config={"size": 7, "parameters": None, "gguf": []}),
        "no ID": lambda model: model.pop("id"),
        "tags of other types": lambda model: model.update(tags=[None, 7, GEMMA]),
    }.items(),
    ids=lambda change: change[0],
)
def test_a_model_that_is_told_oddly_spoils_no_other(change, replay, start_exporter):
    answers = changed(recorded(KIND, "idle"), "/models", lambda models: change[1](models[0]) and None)
    _, _, poll = first_poll(replay, start_exporter, answers)
    assert poll.value("model_parameters", model=TINY) == 268_100_000
    assert state(poll, TINY) == UNLOADED
    assert IDLE in states(poll).values()


def test_metrics_that_hang_hide_no_state_and_are_asked_ever_more_rarely(replay, start_exporter):
    """A runner at work on a long prompt answers its /metrics late, and an abandoned question stays with it."""
    answers = recorded(KIND, "by-id-running")
    slow = answers | {"/metrics": Answer(answers["/metrics"].body, type="text/plain", delay=3)}
    server, exporter, first = first_poll(replay, start_exporter, answers, interval="200ms", timeout="1s")
    server.show(slow)
    asked_before = server.asked.count(("GET", "/metrics"))
    late = exporter.wait_for(
        lambda poll: poll.number > first.number and poll.errors(endpoint="/metrics", reason="timeout") > 0
    )
    last = exporter.wait_for(lambda poll: poll.seen > late.seen + 6)
    polls = exporter.between(late, last)
    counted = first.value("generated_tokens_total", model=GEMMA)
    assert {poll.value("generated_tokens_total", model=GEMMA) for poll in polls} == {counted}, "it stands"
    assert {poll.value("tokens_per_second", model=GEMMA) for poll in polls} == {None}, "it is not known"
    assert {state(poll, GEMMA) for poll in polls} == {RUNNING}
    assert {poll.value("up") for poll in polls} == {1}
    assert server.asked.count(("GET", "/metrics")) - asked_before <= 6
    assert len(polls) >= 15
    server.show(recorded(KIND, "by-id-idle"))
    exporter.wait_for(
        lambda poll: (
            poll.number > last.number
            and state(poll, GEMMA) == IDLE
            and poll.value("generated_tokens_total", model=GEMMA)
        )
    )


@pytest.mark.parametrize("prefix", ["", "/proxy/models"])
@pytest.mark.parametrize(
    "path",
    ["", "/", "/v1", "/engines", "/engines/v1", "/engines/v1/", "/engines/llama.cpp/v1", "/engines/llama.cpp/v1/"],
)
def test_it_is_found_at_every_base_url(path, prefix, replay, start_exporter):
    server = replay(recorded(KIND, "by-id-running"), prefix=prefix)
    exporter = start_exporter(server.url + path, interval="200ms")
    poll = exporter.wait_for(lambda poll: poll.value("up") == 1)
    assert kind(poll) == KIND
    assert states(poll) == {GEMMA: RUNNING, TINY: UNLOADED}
    assert poll.value("requests_processing", model=GEMMA) == 1
