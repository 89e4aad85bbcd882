"""llama-swap, from recordings of a genuine one, with its models' own servers beside it or out of reach."""

import json

import pytest
from llama import free_port
from replay import RECORDINGS, Answer, changed, recorded
from said import families, kind, labels_of, state, states

KIND = "llama-swap"
ALPHA, BETA = "alpha", "org/beta:Q4"
IDLE, RUNNING, LOADING, UNLOADED = "idle", "running", "loading", "unloaded"

# Whatever begins so loads a model, keeps it loaded or stops it.
HARMFUL = ("/upstream", "/unload", "/props?", "/comfyui", "/api/models", "/v1/audio", "/sdapi")


def child():
    """What the server of one model answers at its own address, while it is at work."""
    folder = RECORDINGS / "router" / "b10068"
    return {
        "/health": Answer('{"status":"ok"}'),
        "/props": Answer((folder / "props-both-alpha.json").read_text()),
        "/v1/models": Answer(json.dumps({"data": [{"id": "/models/x.gguf", "meta": {"n_params": 268098176}}]})),
        "/metrics": Answer((folder / "metrics-both-alpha.txt").read_text(), type="text/plain; version=0.0.4"),
        "/slots": Answer((folder / "slots-both-alpha.json").read_text()),
    }


def at(answers, **ports):
    """The same answers, with the models' servers at these ports: by default at one where nobody listens."""
    ports = {"alpha": ports.get("alpha", free_port()), "org/beta:Q4": ports.get("beta", free_port())}

    def change(running):
        for process in running["running"]:
            process["proxy"] = f"http://localhost:{ports[process['model']]}"

    return changed(answers, "/running", change)


@pytest.mark.parametrize(
    "recording, expected",
    {
        "none": {ALPHA: UNLOADED, BETA: UNLOADED},
        "starting": {ALPHA: LOADING, BETA: UNLOADED},
        "ready-in-use": {ALPHA: IDLE, BETA: UNLOADED},
        "ready-idle": {ALPHA: IDLE, BETA: UNLOADED},
        "both-in-use": {ALPHA: IDLE, BETA: IDLE},
        "stopping": {ALPHA: UNLOADED, BETA: IDLE},
        "one-stopped": {ALPHA: UNLOADED, BETA: IDLE},
        "stopped": {ALPHA: UNLOADED, BETA: UNLOADED},
    }.items(),
)
def test_every_recorded_state_with_the_models_servers_out_of_reach(recording, expected, replay, start_exporter):
    server = replay(at(recorded(KIND, recording)))
    exporter = start_exporter(server.url, interval="200ms")
    poll = exporter.wait_for(lambda poll: poll.value("up") == 1)
    later = exporter.wait_for(lambda later: later.number == poll.number + 3)
    assert states(later) == expected
    assert kind(later) == KIND
    assert labels_of(later, "server_info")["version"] == "v250-5-g0bdb37"
    assert later.value("up") == 1
    assert {method for method, _ in server.asked} == {"GET"}
    assert not [path for path in server.paths_asked() if path.startswith(HARMFUL)]


def test_the_tokens_of_ended_requests_where_a_server_is_out_of_reach(replay, start_exporter):
    server = replay(at(recorded(KIND, "ready-in-use")))
    exporter = start_exporter(server.url, interval="200ms")
    # The request at work is not in the activity yet.
    first = exporter.wait_for(lambda poll: state(poll, ALPHA) == IDLE)
    assert not first.value("generated_tokens_total", model=ALPHA)
    server.show(at(recorded(KIND, "ready-idle")))
    exporter.wait_for(lambda poll: poll.value("generated_tokens_total", model=ALPHA) == 80)
    server.show(at(recorded(KIND, "both-in-use")))
    # One of 80, one of 5 under the alias, one refused, one hung up.
    poll = exporter.wait_for(lambda poll: poll.value("generated_tokens_total", model=ALPHA) == 85)
    assert poll.value("prompt_tokens_total", model=ALPHA) == 28 + 5
    assert poll.value("prompt_tokens_cached_total", model=ALPHA) == 23
    assert "gpt-small" not in states(poll)
    # Started anew, it counts from 1 again; its tokens never go down within one life.
    told = [poll.value("generated_tokens_total", model=ALPHA) or 0 for poll in exporter.polls]
    assert told == sorted(told)


def test_unknown_tokens_are_not_counted(replay, start_exporter):
    def change(activity):
        for request in activity["data"]:
            request["tokens"].update(input_tokens=-1, output_tokens=-1, cache_tokens=-1)

    server = replay(changed(at(recorded(KIND, "ready-idle")), "/api/metrics/activity?limit=999", change))
    exporter = start_exporter(server.url, interval="200ms")
    poll = exporter.wait_for(lambda poll: state(poll, ALPHA) == IDLE and poll.number >= 3)
    assert not poll.value("generated_tokens_total", model=ALPHA)


def test_a_ready_model_is_read_at_its_own_address(replay, start_exporter):
    own = replay(child())
    server = replay(at(recorded(KIND, "ready-in-use"), alpha=own.port))
    exporter = start_exporter(server.url, interval="200ms")
    poll = exporter.wait_for(lambda poll: state(poll, ALPHA) == RUNNING)
    assert states(poll) == {ALPHA: RUNNING, BETA: UNLOADED}
    assert poll.value("requests_processing", model=ALPHA) == 1
    assert poll.value("slots", model=ALPHA) == 2
    assert poll.value("slots_busy", model=ALPHA) == 1
    assert kind(poll) == KIND
    assert "/models/x.gguf" not in {sample.labels.get("model") for sample in poll.samples}

    # The next model at the same address is another one.
    server.show(at(recorded(KIND, "one-stopped"), beta=own.port))
    other = exporter.wait_for(lambda poll: state(poll, BETA) == RUNNING)
    assert states(other) == {ALPHA: UNLOADED, BETA: RUNNING}
    assert not families(other, ALPHA) & {"requests_processing", "generated_tokens_total"}

    asked = len(own.asked)
    server.show(recorded(KIND, "stopped"))
    gone = exporter.wait_for(lambda poll: state(poll, BETA) == UNLOADED)
    exporter.wait_for(lambda later: later.number == gone.number + 3)
    assert len(own.asked) <= asked + 5, "asked after it was stopped"


def test_a_ready_model_that_hangs_delays_nothing_but_itself(replay, start_exporter):
    slow = {path: Answer(answer.body, answer.status, answer.type, delay=2) for path, answer in child().items()}
    hanging, own = replay(slow), replay(child())
    server = replay(at(recorded(KIND, "both-in-use"), alpha=hanging.port, beta=own.port))
    exporter = start_exporter(server.url, interval="200ms", timeout="300ms")
    first = exporter.wait_for(lambda poll: state(poll, BETA) == RUNNING)
    last = exporter.wait_for(lambda poll: poll.seen > first.seen + 4)
    polls = exporter.between(first, last)
    assert len(polls) >= 6
    assert {state(poll, BETA) for poll in polls} == {RUNNING}
    assert all(poll.value("requests_processing", model=BETA) == 1 for poll in polls)
    assert None not in {state(poll, ALPHA) for poll in polls}


def test_its_command_lines_are_shown_nowhere(replay, start_exporter):
    def change(running):
        running["running"][0]["cmd"] += " --api-key hunter2"

    server = replay(changed(at(recorded(KIND, "ready-idle")), "/running", change))
    exporter = start_exporter(server.url, interval="200ms")
    poll = exporter.wait_for(lambda poll: state(poll, ALPHA) is not None and poll.number >= 3)
    assert "hunter2" not in poll.text
    assert "hunter2" not in exporter.log


@pytest.mark.parametrize("type", ["alias", "selector", "peer", "profile"])
def test_other_names_in_its_list_are_no_models(type, replay, start_exporter):
    def change(models):
        models["data"].append(models["data"][0] | {"id": "other", "meta": {"llamaswap": {"type": type}}})

    server = replay(changed(recorded(KIND, "none"), "/v1/models", change))
    exporter = start_exporter(server.url, interval="200ms")
    poll = exporter.wait_for(lambda poll: states(poll))
    assert states(poll) == {ALPHA: UNLOADED, BETA: UNLOADED}


@pytest.mark.parametrize("path", ["/", "/v1", "/v1/"])
def test_it_is_found_at_every_base_url(path, replay, start_exporter):
    server = replay(recorded(KIND, "none"), prefix="/swap")
    exporter = start_exporter(server.url + path, interval="200ms")
    poll = exporter.wait_for(lambda poll: poll.value("up") == 1)
    assert kind(poll) == KIND
    assert states(poll) == {ALPHA: UNLOADED, BETA: UNLOADED}


def test_without_its_key(replay, start_exporter):
    refused = Answer('{"src":"llama-swap","error":{"message":"unauthorized: invalid or missing API key"}}', 401)
    answers = {path: refused for path in recorded(KIND, "none")} | {
        "/health": Answer("OK", type="text/plain; charset=utf-8")
    }
    server = replay(answers)
    exporter = start_exporter(server.url, interval="200ms")
    poll = exporter.wait_for(lambda poll: poll.number == 3)
    assert poll.errors(reason="unauthorized") > 0
    assert "LLAMACPP_API_KEY" in exporter.log
