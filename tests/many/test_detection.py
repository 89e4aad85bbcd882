"""What answers at an address is found out by asking, and anew after every reconnect."""

import subprocess
import time
from dataclasses import replace

import pytest
from exporter import BINARY, PATIENCE
from replay import RECORDINGS, Answer, recorded, with_values
from said import kind, states

ROUTER = RECORDINGS / "router" / "b10068"
LOADED = "alpha/one:Q4"


def router():
    child = "?model=alpha%2Fone%3AQ4&autoload=false"
    return {
        "/health": Answer((ROUTER / "health.json").read_text()),
        "/props": Answer((ROUTER / "props.json").read_text()),
        "/models": Answer((ROUTER / "models-loaded.json").read_text()),
        "/v1/models": Answer((ROUTER / "models-loaded.json").read_text()),
        "/metrics": Answer((ROUTER / "metrics-nomodel.json").read_text(), 400),
        f"/props{child}": Answer((ROUTER / "child-props.json").read_text()),
        f"/metrics{child}": Answer((ROUTER / "metrics-busy.txt").read_text(), type="text/plain; version=0.0.4"),
        f"/slots{child}": Answer((ROUTER / "slots-busy.json").read_text()),
    }


def llama_server():
    return {
        "/health": Answer('{"status":"ok"}'),
        "/props": Answer((ROUTER / "child-props.json").read_text()),
        "/v1/models": Answer('{"data":[{"id":"only","meta":{"n_params":7}}]}'),
        "/metrics": Answer((ROUTER / "metrics-after.txt").read_text(), type="text/plain; version=0.0.4"),
        "/slots": Answer((ROUTER / "slots-busy.json").read_text()),
    }


KINDS = {
    "llama-server": llama_server(),
    "router": router(),
    "model-runner": recorded("model-runner", "by-id-running"),
    "llama-swap": recorded("llama-swap", "none"),
}


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("prefix", ["", "/behind/a.proxy"])
@pytest.mark.parametrize("path", ["", "/", "/v1", "/v1/"])
def test_every_kind_is_known_and_nothing_is_asked_that_does_harm(name, path, prefix, replay, start_exporter):
    server = replay(KINDS[name], prefix=prefix)
    exporter = start_exporter(server.url + path, interval="200ms")
    poll = exporter.wait_for(lambda poll: poll.value("up") == 1 and poll.number >= 4)
    assert kind(poll) == name
    assert poll.errors() == 0, "what a server does not have is no failure"
    assert {method for method, _ in server.asked} == {"GET"}
    for asked in server.paths_asked():
        assert not asked.startswith(("/upstream", "/unload", "/api/models", "/load")), asked
        assert "model=" not in asked or "autoload=false" in asked, asked


def test_one_address_changes_from_one_kind_to_another(replay, start_exporter):
    server = replay(KINDS["llama-server"])
    exporter = start_exporter(server.url, interval="200ms")
    last = exporter.wait_for(lambda poll: kind(poll) == "llama-server" and states(poll))
    for name in ("model-runner", "router", "llama-swap", "llama-server", "llama-swap", "model-runner", "llama-server"):
        before = set(states(last))
        server.close()
        down = exporter.wait_for(lambda poll: poll.number > last.number and poll.value("up") == 0)  # noqa: B023
        assert states(down) == {}
        server = replay(KINDS[name], port=server.port)
        last = exporter.wait_for(lambda poll: poll.number > down.number and kind(poll) == name and states(poll))  # noqa: B023
        assert not before & set(states(last))
        assert last.errors(reason="parse") == 0, "another kind's /health is no failure"


@pytest.mark.parametrize("name, slow", [("model-runner", "/engines/ps"), ("llama-swap", "/running"), ("router", "/props")])
def test_what_answers_late_at_first_is_known_later(name, slow, replay, start_exporter):
    """Not taken for something else meanwhile, least of all for good."""
    answers = KINDS[name]
    server = replay(answers | {slow: replace(answers[slow], delay=4)})
    exporter = start_exporter(server.url, interval="200ms", timeout="1500ms")
    exporter.wait_for(lambda poll: poll.errors(endpoint=slow, reason="timeout") == 1)
    server.show(answers)
    last = exporter.wait_for(lambda poll: kind(poll) == name)
    assert set(states(last)) & {LOADED, "alpha", "docker.io/ai/gemma3:270M-Q4_K_M"}
    before = [poll for poll in exporter.polls if poll.number < last.number]
    if name != "router":
        assert {poll.value("up") for poll in before} == {0}
        assert not any(states(poll) for poll in before)


def test_a_router_is_asked_of_its_loaded_model_alone(replay, start_exporter):
    server = replay(KINDS["router"])
    exporter = start_exporter(server.url, interval="200ms")
    poll = exporter.wait_for(lambda poll: poll.value("requests_processing", model=LOADED) == 1)
    assert states(poll) == {LOADED: "running"} | {name: "unloaded" for name in states(poll) if name != LOADED}
    asked_of = {path.partition("model=")[2] for path in server.paths_asked() if "model=" in path}
    assert asked_of == {"alpha%2Fone%3AQ4&autoload=false"}


@pytest.mark.parametrize("file", ["models-unloaded", "models-loading", "models-sleeping", "models-crashed"])
def test_a_router_is_asked_nothing_of_a_model_that_is_not_awake(file, replay, start_exporter):
    server = replay(KINDS["router"] | {"/models": Answer((ROUTER / f"{file}.json").read_text())})
    exporter = start_exporter(server.url, interval="200ms")
    poll = exporter.wait_for(lambda poll: poll.number == 5)
    expected = file.removeprefix("models-").replace("crashed", "failed")
    assert states(poll)[LOADED] == expected
    assert not [path for path in server.paths_asked() if "model=" in path]


def test_a_model_that_was_unloaded_in_between_has_no_past(replay, start_exporter):
    child = "?model=alpha%2Fone%3AQ4&autoload=false"

    def counted(tokens):
        answers = KINDS["router"] | {f"/slots{child}": Answer("", 501)}
        text = with_values(answers[f"/metrics{child}"].body, tokens_predicted_total=tokens, requests_processing=0)
        return answers | {f"/metrics{child}": Answer(text, type="text/plain")}

    server = replay(counted(100))
    exporter = start_exporter(server.url, interval="200ms")
    exporter.wait_for(lambda poll: poll.value("tokens_per_second", model=LOADED) == 0)
    server.show(counted(100) | {"/models": Answer((ROUTER / "models-unloaded.json").read_text())})
    exporter.wait_for(lambda poll: states(poll).get(LOADED) == "unloaded")
    server.show(counted(900))
    again = exporter.wait_for(lambda poll: poll.value("generated_tokens_total", model=LOADED) == 900)
    assert again.value("tokens_per_second", model=LOADED) is None, "800 tokens were not generated in this interval"


def test_the_default_address_says_what_to_check_when_nobody_is_there(tmp_path):
    log = tmp_path / "log"
    with open(log, "wb") as output:
        process = subprocess.Popen(
            [BINARY, "--addr", "127.0.0.1:0", "--interval", "100ms"], stderr=output, env={"PATH": "/usr/bin:/bin"}
        )
    try:
        deadline = time.monotonic() + PATIENCE
        while "is down" not in log.read_text():
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.05)
        # Long enough for it to be said again, if it were.
        time.sleep(1.5)
    finally:
        process.terminate()
        process.wait(10)
    advice = [line for line in log.read_text().splitlines() if "enabled" in line]
    assert len(advice) == 1, log.read_text()
    assert " WARN " in advice[0], advice
    for told in ("docker desktop enable model-runner --tcp 12434", "http://localhost:12434", "http://172.17.0.1:12434"):
        assert told in advice[0]
