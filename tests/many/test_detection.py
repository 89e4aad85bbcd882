"""The server's kind is detected automatically, and again after each reconnect."""

import time
from dataclasses import replace

import pytest

from support import BINARY
from support.process import ChildProcess
from support.replay import OK, ROUTER, Response, from_file, recorded, with_values
from support.wait import wait_for

# The query for the loaded model of the router.
CHILD = "?model=alpha%2Fone%3AQ4&autoload=false"
LOADED = "alpha/one:Q4"


def router():
    return {
        "/health": from_file(ROUTER / "health.json"),
        "/props": from_file(ROUTER / "props.json"),
        "/models": from_file(ROUTER / "models-loaded.json"),
        "/v1/models": from_file(ROUTER / "models-loaded.json"),
        "/metrics": from_file(ROUTER / "metrics-nomodel.json", 400),
        f"/props{CHILD}": from_file(ROUTER / "child-props.json"),
        f"/metrics{CHILD}": from_file(ROUTER / "metrics-busy.txt"),
        f"/slots{CHILD}": from_file(ROUTER / "slots-busy.json"),
    }


def llama_server():
    return {
        "/health": Response(OK),
        "/props": from_file(ROUTER / "child-props.json"),
        "/v1/models": Response('{"data":[{"id":"only","meta":{"n_params":7}}]}'),
        "/metrics": from_file(ROUTER / "metrics-after.txt"),
        "/slots": from_file(ROUTER / "slots-busy.json"),
    }


KINDS = {
    "llama-server": llama_server(),
    "router": router(),
    "model-runner": recorded("model-runner", "by-id-running"),
    "llama-swap": recorded("llama-swap", "none"),
    "ollama": recorded("ollama", "none-loaded"),
}


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("prefix", ["", "/behind/a.proxy"])
@pytest.mark.parametrize("path", ["", "/", "/v1", "/v1/"])
def test_every_kind_is_detected_with_harmless_requests(name, path, prefix, replay, start_exporter):
    server = replay(KINDS[name], prefix=prefix)
    exporter = start_exporter(server.url + path, interval="200ms")
    poll = exporter.wait_for(lambda poll: poll.value("up") == 1 and poll.number >= 4)
    assert poll.server_kind == name
    assert poll.errors() == 0, "a missing endpoint is not an error"
    assert server.methods == {"GET"}
    for path in server.paths:
        assert not path.startswith(("/upstream", "/unload", "/api/models", "/load")), path
        assert "model=" not in path or "autoload=false" in path, path


def test_the_kind_changes_behind_one_address(replay, start_exporter):
    server = replay(KINDS["llama-server"])
    exporter = start_exporter(server.url, interval="200ms")
    last = exporter.wait_for(lambda poll: poll.server_kind == "llama-server" and poll.model_statuses)
    for name in (
        "model-runner", "router", "llama-swap", "ollama", "llama-server", "llama-swap", "ollama", "model-runner",
        "llama-server",
    ):  # fmt: skip
        before = set(last.model_statuses)
        server.close()
        down = exporter.wait_for(lambda poll: poll.number > last.number and poll.value("up") == 0)  # noqa: B023
        assert down.model_statuses == {}
        server = replay(KINDS[name], port=server.port)
        last = exporter.wait_for(
            lambda poll: poll.number > down.number and poll.server_kind == name and poll.model_statuses
        )  # noqa: B023
        assert not before & set(last.model_statuses)
        assert last.errors(reason="parse") == 0, "another kind's /health is not an error"


@pytest.mark.parametrize(
    "name, slow",
    [("model-runner", "/engines/ps"), ("llama-swap", "/running"), ("ollama", "/api/ps"), ("router", "/props")],
)
def test_a_server_that_first_times_out_is_detected_later(name, slow, replay, start_exporter):
    """It is not taken for another kind, neither meanwhile nor afterwards."""
    responses = KINDS[name]
    server = replay(responses | {slow: replace(responses[slow], delay=4)})
    exporter = start_exporter(server.url, "--timeout", "1500ms", interval="200ms")
    exporter.wait_for(lambda poll: poll.errors(endpoint=slow, reason="timeout") == 1)
    server.responses = responses
    last = exporter.wait_for(lambda poll: poll.server_kind == name)
    assert set(last.model_statuses) & {LOADED, "alpha", "gemma3:270m", "docker.io/ai/gemma3:270M-Q4_K_M"}
    before = [poll for poll in exporter.polls if poll.number < last.number]
    if name != "router":
        assert {poll.value("up") for poll in before} == {0}
        assert not any(poll.model_statuses for poll in before)


def test_only_the_loaded_model_of_a_router_is_polled(replay, start_exporter):
    server = replay(KINDS["router"])
    exporter = start_exporter(server.url, interval="200ms")
    poll = exporter.wait_for(lambda poll: poll.value("requests_processing", model=LOADED) == 1)
    assert poll.model_statuses == {LOADED: "running"} | {
        name: "unloaded" for name in poll.model_statuses if name != LOADED
    }
    models = {path.partition("model=")[2] for path in server.paths if "model=" in path}
    assert models == {"alpha%2Fone%3AQ4&autoload=false"}


@pytest.mark.parametrize("file", ["models-unloaded", "models-loading", "models-sleeping", "models-crashed"])
def test_a_model_of_a_router_that_is_not_loaded_is_not_polled(file, replay, start_exporter):
    server = replay(KINDS["router"] | {"/models": from_file(ROUTER / f"{file}.json")})
    exporter = start_exporter(server.url, interval="200ms")
    poll = exporter.wait_for(lambda poll: poll.number == 5)
    expected = file.removeprefix("models-").replace("crashed", "failed")
    assert poll.model_statuses[LOADED] == expected
    assert not [path for path in server.paths if "model=" in path]


def test_no_rate_spans_an_unload(replay, start_exporter):
    def responses(tokens):
        router = KINDS["router"] | {f"/slots{CHILD}": Response("", 501)}
        text = with_values(router[f"/metrics{CHILD}"].body, tokens_predicted_total=tokens, requests_processing=0)
        return router | {f"/metrics{CHILD}": Response(text, type="text/plain")}

    server = replay(responses(100))
    exporter = start_exporter(server.url, interval="200ms")
    exporter.wait_for(lambda poll: poll.value("tokens_per_second", model=LOADED) == 0)
    server.responses = responses(100) | {"/models": from_file(ROUTER / "models-unloaded.json")}
    exporter.wait_for(lambda poll: poll.model_statuses.get(LOADED) == "unloaded")
    server.responses = responses(900)
    reloaded = exporter.wait_for(lambda poll: poll.value("generated_tokens_total", model=LOADED) == 900)
    assert reloaded.value("tokens_per_second", model=LOADED) is None, "800 tokens were not generated in this interval"


def test_an_unreachable_default_address_logs_advice_once(tmp_path):
    exporter = ChildProcess(tmp_path / "log")
    exporter.spawn([BINARY, "--addr", "127.0.0.1:0", "--interval", "100ms"], env={"PATH": "/usr/bin:/bin"})
    try:
        wait_for(lambda: "is down" in exporter.log, lambda: f"the server to be down:\n{exporter.log}")
        # Long enough for a second line.
        time.sleep(1.5)
    finally:
        exporter.stop()
    # The rest of the advice depends on where the exporter runs.
    [advice] = [line for line in exporter.log.splitlines() if "this is the default" in line]
    assert " WARN " in advice and "server=model-runner.docker.internal:80" in advice
    for part in ("Docker Desktop", "http://localhost:8080"):
        assert part in advice
