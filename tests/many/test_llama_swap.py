"""llama-swap, from recordings, with the servers of its models reachable or not."""

import json

import pytest

from support.http_client import free_port
from support.replay import OK, ROUTER, Response, from_file, recorded, with_json

KIND = "llama-swap"
ALPHA, BETA = "alpha", "org/beta:Q4"
IDLE, RUNNING, LOADING, UNLOADED = "idle", "running", "loading", "unloaded"

# A request for such a path loads a model, keeps it loaded or stops it.
HARMFUL = ("/upstream", "/unload", "/props?", "/comfyui", "/api/models", "/v1/audio", "/sdapi")


def model_server():
    """The responses of a busy model's own server."""
    return {
        "/health": Response(OK),
        "/props": from_file(ROUTER / "props-both-alpha.json"),
        "/v1/models": Response(json.dumps({"data": [{"id": "/models/x.gguf", "meta": {"n_params": 268098176}}]})),
        "/metrics": from_file(ROUTER / "metrics-both-alpha.txt"),
        "/slots": from_file(ROUTER / "slots-both-alpha.json"),
    }


def with_ports(responses, **ports):
    """The responses, with the models' servers at these ports; by default at a port where nothing listens."""
    ports = {"alpha": ports.get("alpha", free_port()), "org/beta:Q4": ports.get("beta", free_port())}

    def change(running):
        for process in running["running"]:
            process["proxy"] = f"http://localhost:{ports[process['model']]}"

    return with_json(responses, "/running", change)


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
def test_every_recorded_state_with_unreachable_model_servers(recording, expected, replay, start_exporter):
    server = replay(with_ports(recorded(KIND, recording)))
    exporter = start_exporter(server.url, interval="200ms")
    poll = exporter.wait_for(lambda poll: poll.value("up") == 1)
    later = exporter.wait_for_polls(3, since=poll)
    assert later.model_statuses == expected
    assert later.server_kind == KIND
    assert later.labels("server_info")["version"] == "v250-5-g0bdb37"
    assert later.value("up") == 1
    assert server.methods == {"GET"}
    assert not [path for path in server.paths if path.startswith(HARMFUL)]


def test_an_unreachable_model_server_still_has_the_tokens_of_completed_requests(replay, start_exporter):
    server = replay(with_ports(recorded(KIND, "ready-in-use")))
    exporter = start_exporter(server.url, interval="200ms")
    # The running request is not in the activity yet.
    first = exporter.wait_for(lambda poll: poll.model_status(ALPHA) == IDLE)
    assert not first.value("generated_tokens_total", model=ALPHA)
    server.responses = with_ports(recorded(KIND, "ready-idle"))
    exporter.wait_for(lambda poll: poll.value("generated_tokens_total", model=ALPHA) == 80)
    server.responses = with_ports(recorded(KIND, "both-in-use"))
    # One request of 80, one of 5 under the alias, one refused, one cancelled.
    poll = exporter.wait_for(lambda poll: poll.value("generated_tokens_total", model=ALPHA) == 85)
    assert poll.value("prompt_tokens_total", model=ALPHA) == 28 + 5
    assert poll.value("prompt_tokens_cached_total", model=ALPHA) == 23
    assert "gpt-small" not in poll.model_statuses
    # The counter never falls.
    values = [poll.value("generated_tokens_total", model=ALPHA) or 0 for poll in exporter.polls]
    assert values == sorted(values)


def test_unknown_tokens_are_not_counted(replay, start_exporter):
    def change(activity):
        for request in activity["data"]:
            request["tokens"].update(input_tokens=-1, output_tokens=-1, cache_tokens=-1)

    server = replay(with_json(with_ports(recorded(KIND, "ready-idle")), "/api/metrics/activity?limit=999", change))
    exporter = start_exporter(server.url, interval="200ms")
    poll = exporter.wait_for(lambda poll: poll.model_status(ALPHA) == IDLE and poll.number >= 3)
    assert not poll.value("generated_tokens_total", model=ALPHA)


def test_a_ready_model_is_polled_at_its_own_address(replay, start_exporter):
    own = replay(model_server())
    server = replay(with_ports(recorded(KIND, "ready-in-use"), alpha=own.port))
    exporter = start_exporter(server.url, interval="200ms")
    poll = exporter.wait_for(lambda poll: poll.model_status(ALPHA) == RUNNING)
    assert poll.model_statuses == {ALPHA: RUNNING, BETA: UNLOADED}
    assert poll.value("requests_processing", model=ALPHA) == 1
    assert poll.value("slots", model=ALPHA) == 2
    assert poll.value("slots_busy", model=ALPHA) == 1
    assert poll.server_kind == KIND
    assert "/models/x.gguf" not in {sample.labels.get("model") for sample in poll.samples}

    # Another model takes over the same address.
    server.responses = with_ports(recorded(KIND, "one-stopped"), beta=own.port)
    other = exporter.wait_for(lambda poll: poll.model_status(BETA) == RUNNING)
    assert other.model_statuses == {ALPHA: UNLOADED, BETA: RUNNING}
    assert not other.families(ALPHA) & {"requests_processing", "generated_tokens_total"}

    count = len(own.requests)
    server.responses = recorded(KIND, "stopped")
    stopped = exporter.wait_for(lambda poll: poll.model_status(BETA) == UNLOADED)
    exporter.wait_for_polls(3, since=stopped)
    assert len(own.requests) <= count + 5, "polled after it was stopped"


def test_a_model_server_that_times_out_delays_no_other(replay, start_exporter):
    slow = {path: Response(answer.body, answer.status, answer.type, delay=2) for path, answer in model_server().items()}
    hanging, own = replay(slow), replay(model_server())
    server = replay(with_ports(recorded(KIND, "both-in-use"), alpha=hanging.port, beta=own.port))
    exporter = start_exporter(server.url, "--timeout", "300ms", interval="200ms")
    first = exporter.wait_for(lambda poll: poll.model_status(BETA) == RUNNING)
    last = exporter.wait_for(lambda poll: poll.ended_before > first.ended_before + 4)
    polls = exporter.between(first, last)
    assert len(polls) >= 6
    assert {poll.model_status(BETA) for poll in polls} == {RUNNING}
    assert all(poll.value("requests_processing", model=BETA) == 1 for poll in polls)
    assert None not in {poll.model_status(ALPHA) for poll in polls}


def test_command_lines_are_neither_exported_nor_logged(replay, start_exporter):
    def change(running):
        running["running"][0]["cmd"] += " --api-key hunter2"

    server = replay(with_json(with_ports(recorded(KIND, "ready-idle")), "/running", change))
    exporter = start_exporter(server.url, interval="200ms")
    poll = exporter.wait_for(lambda poll: poll.model_status(ALPHA) is not None and poll.number >= 3)
    assert "hunter2" not in poll.text
    assert "hunter2" not in exporter.log


@pytest.mark.parametrize("type", ["alias", "selector", "peer", "profile"])
def test_list_entries_of_other_types_are_not_models(type, replay, start_exporter):
    def change(models):
        models["data"].append(models["data"][0] | {"id": "other", "meta": {"llamaswap": {"type": type}}})

    server = replay(with_json(recorded(KIND, "none"), "/v1/models", change))
    exporter = start_exporter(server.url, interval="200ms")
    poll = exporter.wait_for(lambda poll: poll.model_statuses)
    assert poll.model_statuses == {ALPHA: UNLOADED, BETA: UNLOADED}


@pytest.mark.parametrize("path", ["/", "/v1", "/v1/"])
def test_it_is_detected_at_every_base_url(path, replay, start_exporter):
    server = replay(recorded(KIND, "none"), prefix="/swap")
    exporter = start_exporter(server.url + path, interval="200ms")
    poll = exporter.wait_for(lambda poll: poll.value("up") == 1)
    assert poll.server_kind == KIND
    assert poll.model_statuses == {ALPHA: UNLOADED, BETA: UNLOADED}


def test_without_its_api_key(replay, start_exporter):
    refused = Response('{"src":"llama-swap","error":{"message":"unauthorized: invalid or missing API key"}}', 401)
    responses = dict.fromkeys(recorded(KIND, "none"), refused) | {
        "/health": Response("OK", type="text/plain; charset=utf-8")
    }
    server = replay(responses)
    exporter = start_exporter(server.url, interval="200ms")
    poll = exporter.wait_for(lambda poll: poll.number == 3)
    assert poll.errors(reason="unauthorized") > 0
    assert "LLAMACPP_API_KEY" in exporter.log
