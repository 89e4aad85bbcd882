"""Very many models behind one address."""

import http.client
import json
import re
import time
from pathlib import Path

import pytest
from exporter import PATIENCE
from replay import RECORDINGS, Answer, recorded
from said import states

MOST_SHOWN = 500
ROUTER = RECORDINGS / "router" / "b10068"


def resident(exporter):
    """Its memory, in bytes."""
    status = Path(f"/proc/{exporter.process.pid}/status").read_text()
    return int(re.search(r"^VmRSS:\s+(\d+) kB", status, re.MULTILINE)[1]) * 1024


def peak(exporter):
    status = Path(f"/proc/{exporter.process.pid}/status").read_text()
    return int(re.search(r"^VmHWM:\s+(\d+) kB", status, re.MULTILINE)[1]) * 1024


def test_ten_thousand_models_in_a_model_runners_store(replay, start_exporter):
    answers = recorded("model-runner", "by-id-idle")
    models = json.loads(answers["/models"].body)
    many = [
        models[0] | {"id": f"sha256:{number:064x}", "tags": [f"docker.io/ai/model-{number:05}:latest"]}
        for number in range(10_000)
    ]
    # The one that is loaded comes last.
    answers["/models"] = Answer(json.dumps(many + models))
    server = replay(answers)
    exporter = start_exporter(server.url, interval="500ms", timeout="30s", unwatched=True)
    wait_for_text(exporter, "llamacpp_status")
    text = exporter.scrape()
    shown = set(re.findall(r'^llamacpp_status\{model="([^"]*)"', text, re.MULTILINE))
    print(f"resident {resident(exporter)}, at most {peak(exporter)}; a scrape of {len(text)} bytes")
    assert len(shown) == MOST_SHOWN
    assert "docker.io/ai/gemma3:270M-Q4_K_M" in shown, "what is loaded comes first"
    warned(exporter)
    # What was never shown is not held either, not even while it is read.
    assert peak(exporter) < 20_000_000

    # The server goes and comes back: that is not said twice.
    server.close()
    wait_for_text(exporter, "llamacpp_up 0")
    again = replay(answers, port=server.port)
    wait_for_text(exporter, "llamacpp_status")
    again.show(answers | {"/models": Answer(json.dumps(models))})
    warned(exporter)


def warned(exporter):
    """It is said once, as a warning, that there are more models than are shown."""
    [said] = [line for line in exporter.log.splitlines() if str(MOST_SHOWN) in line]
    assert " WARN " in said, said


def wait_for_text(exporter, text, patience=PATIENCE):
    deadline = time.monotonic() + patience
    while text not in exporter.scrape():
        assert time.monotonic() < deadline, exporter.log
        time.sleep(0.05)


def test_nothing_grows_with_models_that_come_and_go(replay, start_exporter):
    """A store whose models are others at every look, each of which is loaded once."""
    answers = recorded("model-runner", "by-id-idle")
    models = json.loads(answers["/models"].body)

    def life(number):
        id = f"sha256:f{number:063x}"
        here = [
            models[0] | {"id": f"sha256:{number:03x}{other:061x}", "tags": [f"ai/n{number}-{other}:latest"]}
            for other in range(40)
        ]
        here.append(models[0] | {"id": id, "tags": [f"ai/loaded-{number}:latest"]})
        old = "sha256:3260b3141c3704f86c2ac348162acf0698237d5981728084f18ca457a1fe4820"
        return answers | {
            "/models": Answer(json.dumps(here)),
            "/engines/ps": Answer(answers["/engines/ps"].body.replace(old, id)),
            "/metrics": Answer(answers["/metrics"].body.replace(old, id), type="text/plain"),
        }

    server = replay(life(0))
    exporter = start_exporter(server.url, interval="20ms", unwatched=True)
    sizes = {}
    for number in range(300):
        server.show(life(number))
        wanted = f'model="ai/loaded-{number}:latest"'
        deadline = time.monotonic() + PATIENCE
        while wanted not in (text := exporter.scrape()):
            assert time.monotonic() < deadline, exporter.log
            time.sleep(0.005)
        if number in (50, 299):
            sizes[number] = resident(exporter)
            assert text.count("llamacpp_status{") == 41 * 7
    print(sizes)
    assert sizes[299] < sizes[50] + (1 << 20)


def router_of(models):
    """A router with so many loaded models, of four slots each, all at work."""
    listed = json.loads((ROUTER / "models-both-loaded.json").read_text())["data"][0]
    slots = json.loads((ROUTER / "slots-both-alpha.json").read_text())
    slots = json.dumps([slots[1] | {"id": number} for number in range(4)])
    answers = {
        "/health": Answer((ROUTER / "health.json").read_text()),
        "/props": Answer((ROUTER / "props.json").read_text()),
        "/models": Answer(json.dumps({"data": [listed | {"id": f"model-{number:03}"} for number in range(models)]})),
    }
    for number in range(models):
        child = f"?model=model-{number:03}&autoload=false"
        answers[f"/props{child}"] = Answer((ROUTER / "props-both-alpha.json").read_text())
        answers[f"/metrics{child}"] = Answer((ROUTER / "metrics-both-alpha.txt").read_text(), type="text/plain")
        answers[f"/slots{child}"] = Answer(slots)
    return answers


def scrape_cost(port, times=50):
    """Seconds of one scrape over an open connection where little else went on, and its bytes."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
    took = []
    for _ in range(times):
        began = time.monotonic()
        connection.request("GET", "/metrics")
        size = len(connection.getresponse().read())
        took.append(time.monotonic() - began)
    connection.close()
    return sorted(took)[times // 10], size


def test_a_hundred_loaded_models_of_four_slots(all_cores, replay, start_exporter):
    costs = {}
    for models in (1, 10, 100):
        server = replay(router_of(models))
        exporter = start_exporter(server.url, interval="500ms", timeout="30s", unwatched=True)
        # The stand-in takes its time for 300 answers a poll.
        deadline = time.monotonic() + 300
        while number_of_polls(text := exporter.scrape()) < 3:
            assert time.monotonic() < deadline, exporter.log
            time.sleep(0.2)
        assert text.count("llamacpp_context_tokens{") == 4 * models
        costs[models] = *scrape_cost(exporter.port), resident(exporter)
        duration = re.search(r"^llamacpp_exporter_poll_duration_seconds (\S+)$", text, re.MULTILINE)[1]
        print(
            f"{models} models: {costs[models][0] * 1e3:.2f} ms a scrape of {costs[models][1]} bytes,"
            f" {costs[models][2]} bytes resident, {duration} s a poll"
        )
        exporter.stop()
        server.close()
    assert costs[100][2] < 8_000_000
    # Ten times the bytes cost ten times as much, give or take what every scrape costs.
    per_byte = {models: cost / size for models, (cost, size, _) in costs.items()}
    assert per_byte[100] <= 3 * per_byte[10]


def number_of_polls(text):
    counted = re.search(r"^llamacpp_exporter_polls_total (\S+)$", text, re.MULTILINE)
    return float(counted[1]) if counted else 0


@pytest.mark.parametrize("models", [501])
def test_a_router_of_more_models_than_are_shown(models, replay, start_exporter):
    answers = router_of(2)
    unloaded = json.loads((ROUTER / "models-unloaded.json").read_text())["data"][0]
    listed = json.loads(answers["/models"].body)["data"]
    answers["/models"] = Answer(
        json.dumps({"data": [unloaded | {"id": f"a{number:04}"} for number in range(models)] + listed})
    )
    server = replay(answers)
    exporter = start_exporter(server.url, interval="300ms")
    poll = exporter.wait_for(lambda poll: states(poll))
    assert len(states(poll)) == MOST_SHOWN
    exporter.wait_for(lambda later: later.number == poll.number + 3)
    warned(exporter)
    assert {model for model, said in states(poll).items() if said != "unloaded"} == {"model-000", "model-001"}
